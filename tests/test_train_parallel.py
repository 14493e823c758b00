"""Two real processes over gloo, started by torchrun as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import SMALL

from trecvit.config import Preprocessing, model_config
from trecvit.errors import ConfigError
from trecvit.evaluate.scores import Scores
from trecvit.model.trecvit import TRecViT
from trecvit.processes import Processes
from trecvit.train.loop import train
from trecvit.train.recipe import load_recipe
from trecvit.video.encode import VideoWriter
from trecvit.weights.load import load

WORDS = ["optimisation.batch_size=8", "optimisation.num_steps=8", "model.depth=2", "optimisation.ema_decay=0.8"]


@pytest.fixture
def recipe_path(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def torchrun(recipe: Path, run: Path, kind: str, *words: str) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trecvit",
        "train", str(recipe), *WORDS, *words, "--to", str(run), "--parallel", kind,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_give_the_losses_and_the_weights_of_one(tmp_path, recipe_path, kind):
    alone = train(load_recipe(recipe_path, WORDS), tmp_path / "alone")
    torchrun(recipe_path, tmp_path / kind, kind)
    assert losses(tmp_path / kind) == pytest.approx(losses(tmp_path / "alone"), rel=1e-5)
    shared = load(tmp_path / kind / "model")
    for one, other in zip(alone.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    if kind == "fsdp":  # each process has written its part
        assert len(list((tmp_path / kind / "checkpoints" / "step-00000008").glob("*.safetensors"))) == 2


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes_go_on_from_their_checkpoint(tmp_path, recipe_path, kind):
    torchrun(recipe_path, tmp_path / "whole", kind)
    torchrun(recipe_path, tmp_path / "run", kind)
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        if path.name != "step-00000004":
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    torchrun(recipe_path, tmp_path / "run", kind)
    one, other = (load(tmp_path / name / "model") for name in ("whole", "run"))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.parametrize("num_broken", [0, 1])
def test_two_processes_evaluate_each_video_once(tmp_path, num_broken):
    rng = np.random.default_rng(0)
    for number in range(5):
        path = tmp_path / "data" / ("dark", "light")[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(path, 12) as writer:
            for _ in range(4):
                writer.write(rng.integers(0, 60 + 150 * (number % 2), (32, 32, 3), np.uint8))
    for number in range(num_broken):
        (tmp_path / "data" / "light" / f"{number}.mp4").write_bytes(b"no video")
    small = model_config(
        "tiny", width=16, depth=1, num_heads=2, mlp_width=16, head_width=8, image_size=32, num_classes=2
    )
    TRecViT(small, labels=("dark", "light"), preprocessing=Preprocessing(image_size=(32, 32), num_frames=2)).save(
        tmp_path / "model"
    )
    words = ["trecvit", "eval", "videos", tmp_path / "data", "--model", tmp_path / "model", "--clips", 2, "--crops", 1]
    alone = [sys.executable, "-m", *words, "--to", tmp_path / "alone"]
    shared = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *words]
    for command in (alone, [*shared, "--to", tmp_path / "shared"]):
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == bool(num_broken), done.stderr[-3000:]
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
