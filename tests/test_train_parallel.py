"""Two processes over gloo, started by torchrun (`two_ranks`)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import trecvit
from test_train import SMALL

from trecvit.config import Preprocessing, model_config
from trecvit.errors import ConfigError
from trecvit.evaluate.scores import Scores
from trecvit.model.trecvit import TRecViT
from trecvit.processes import Processes
from trecvit.train.loop import train
from trecvit.train.recipe import load_recipe
from trecvit.train.run_folder import read_lines
from trecvit.video.encode import VideoWriter
from trecvit.weights.load import load

WORDS = ["optimisation.batch_size=8", "optimisation.num_steps=8", "model.depth=2", "optimisation.ema_decay=0.8"]


@pytest.fixture
def recipe_path(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


VIDEOS = """
model:
  {{preset: tiny, width: 16, depth: 1, num_heads: 2, mlp_width: 16, head_width: 8, patch_size: 16, image_size: 32,
   num_classes: 2, pooling: mean}}
preprocessing: {{image_size: 32, num_frames: 4, frame_stride: 1}}
videos: {{train: "{data}", max_failed_share: 0.2}}
optimisation: {{bf16: false, epochs: 4, batch_size: 5, warmup_steps: 2}}
num_workers: 0
log_every: 1
"""


def write_shades(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(0)
    for number in range(count):
        path = folder / ("dark", "light")[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(path, 12) as writer:
            for _ in range(4):
                writer.write(rng.integers(0, 60 + 150 * (number % 2), (32, 32, 3), np.uint8))
    return folder


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_and_the_weights_of_one_and_go_on_from_their_checkpoint(
    tmp_path, recipe_path, kind, two_ranks
):
    def train_both(folder: Path) -> None:
        for done in two_ranks.trecvit("train", recipe_path, *WORDS, "--to", folder, "--parallel", kind):
            assert done.returncode == 0, done.stderr[-3000:]

    alone = train(load_recipe(recipe_path, WORDS), tmp_path / "alone")
    whole, run = tmp_path / "whole", tmp_path / "run"
    train_both(whole)
    assert losses(whole) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    shared = load(whole / "model")
    for one, other in zip(alone.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    if kind == "fsdp":  # each process has written its part
        assert len(list((whole / "checkpoints" / "step-00000008").glob("*.safetensors"))) == 2

    shutil.copytree(whole, run)
    shutil.rmtree(run / "model")
    for path in (run / "checkpoints").iterdir():
        if path.name != "step-00000004":
            shutil.rmtree(path)
    train_both(run)
    resumed = load(run / "model")
    assert all(torch.equal(a, b) for a, b in zip(shared.parameters(), resumed.parameters(), strict=True))
    assert losses(run) == losses(whole)
    assert [line["first_step"] for line in read_lines(run / "metrics.jsonl")][-1] == 4


@pytest.mark.slow
def test_ctrl_c_stops_two_processes_after_the_same_step_with_a_checkpoint(tmp_path):
    """The terminal signals all of them, and torchrun's agent signals its processes again."""
    recipe, run = tmp_path / "videos.yaml", tmp_path / "run"
    recipe.write_text(VIDEOS.format(data=write_shades(tmp_path / "data", 10)).replace("epochs: 4", "epochs: 4000"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trecvit",
        "train", str(recipe), "--to", str(run),
    ]  # fmt: skip
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 2/"):
                os.killpg(process.pid, signal.SIGINT)
                break
        rest = process.stdout.read()
    (checkpoint,) = (run / "checkpoints").iterdir()
    step = int(checkpoint.name.removeprefix("step-"))
    lines = [line for line in rest.splitlines() if line.startswith("trecvit: ")]
    assert lines == [f"trecvit: {run}: interrupted at step {step}; repeat the command to resume from {checkpoint}"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_train_on_videos_of_which_some_cannot_be_read(tmp_path, kind, two_ranks):
    """Micro-batches of unequal size, or empty in a process, give the same updates as one process."""
    data = write_shades(tmp_path / "data", 9)
    for number in (2, 5):
        (data / "dark" / f"broken{number}.mp4").write_bytes(b"no video")
    path = tmp_path / "videos.yaml"
    path.write_text(VIDEOS.format(data=data))
    words = ["optimisation.accumulation=2", "optimisation.recompute=blocks"]
    command = ["train", path, *words, "--parallel", kind]
    for done in two_ranks.trecvit(*command, "--to", tmp_path / "both"):
        assert done.returncode == 0, done.stderr[-3000:]
    train(load_recipe(path, words), tmp_path / "alone")
    assert losses(tmp_path / "both") == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    found, again = (read_lines(tmp_path / name / "failures.jsonl") for name in ("both", "alone"))
    assert found
    key = lambda line: (line["step"], line["name"])  # noqa: E731
    assert sorted(found, key=key) == sorted(again, key=key)
    if kind == "fsdp":
        return
    # Two of eleven are more than a tenth, however the two processes came to see them.
    refused = two_ranks.trecvit(*command, "videos.max_failed_share=0.1", "--to", tmp_path / "other")
    assert [done.returncode for done in refused] == [1, 1]
    assert all("2 videos could not be read, more than max_failed_share=0.1 allows" in done.stderr for done in refused)


@pytest.mark.slow
@pytest.mark.parametrize(("num_broken", "workers"), [(0, 1), (1, 0)])
def test_two_processes_evaluate_each_video_once(tmp_path, num_broken, workers, two_ranks):
    write_shades(tmp_path / "data", 5)
    for number in range(num_broken):
        (tmp_path / "data" / "light" / f"{number}.mp4").write_bytes(b"no video")
    small = model_config(
        "tiny", width=16, depth=1, num_heads=2, mlp_width=16, head_width=8, image_size=32, num_classes=2
    )
    TRecViT(small, labels=("dark", "light"), preprocessing=Preprocessing(image_size=(32, 32), num_frames=2)).save(
        tmp_path / "model"
    )
    words = ["eval", "videos", tmp_path / "data", "--model", tmp_path / "model", "--clips", 2, "--crops", 1]
    alone = trecvit(*words, "--workers", workers, "--to", tmp_path / "alone")
    first, second = two_ranks.trecvit(*words, "--workers", workers, "--to", tmp_path / "shared")
    assert (alone.returncode, first.returncode, second.returncode) == (num_broken, num_broken, 0), first.stderr[-3000:]
    one, other = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("alone", "shared"))
    assert one == other
    assert (one["good"], len(one["failed"])) == (5, num_broken)
    found, again = (Scores.load(tmp_path / name / "scores.npz") for name in ("alone", "shared"))
    assert found.names == again.names
    assert np.array_equal(found.probs, again.probs)


def test_processes_alone_share_with_nobody():
    alone = Processes()
    assert alone.first
    assert alone.gather(3) == [3]
    assert not alone.any(False)
    assert alone.device == torch.device("cpu")


def test_other_kinds_are_refused(tmp_path, recipe_path):
    with pytest.raises(ConfigError, match="expected one of ddp, fsdp, got 'dp'"):
        train(load_recipe(recipe_path, WORDS), tmp_path / "run", parallel="dp")
