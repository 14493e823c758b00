"""Training on real files: order of the clips, unreadable files, interruptions, and initial weights."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from traceback import StackSummary

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_imagenet import DEPTH, HEADS, MLP, PATCH, WIDTH, vit, written
from torch.distributed.checkpoint.api import CheckpointException

from trecvit.config import model_config
from trecvit.data.layouts import read_manifest
from trecvit.errors import BusyError, CheckpointError, ConfigError, DataError, Interrupted, StorageError, TRecViTError
from trecvit.evaluate.scores import figures
from trecvit.evaluate.videos import evaluate_videos
from trecvit.files import only_writer
from trecvit.model.trecvit import TRecViT
from trecvit.processes import Processes, Share
from trecvit.train.checkpoints import Checkpoints
from trecvit.train.initialise import load_weights_from
from trecvit.train.loop import Loop, train
from trecvit.train.optimise import RunningMean, optimisers_of
from trecvit.train.recipe import Recipe, load_recipe
from trecvit.train.run_folder import claim, read_lines, resolved
from trecvit.train.sections import Optimisation
from trecvit.train.tasks.classify import Classification
from trecvit.train.videos import VideoFeed
from trecvit.video.encode import VideoWriter
from trecvit.weights.load import load

NETWORK = {
    "preset": "tiny", "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 16, "head_width": 8, "patch_size": 16,
    "image_size": 32, "pooling": "mean",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number in range(11):
        folder = root / ("dark", "light")[number % 2]
        folder.mkdir(exist_ok=True)
        with VideoWriter(folder / f"{number:02d}.mp4", 12) as writer:
            for _ in range(5 + number):
                writer.write(rng.integers(0, 80 + 120 * (number % 2), (40, 56, 3), np.uint8))
    return root


def recipe_in(folder: Path, data: Path) -> Path:
    content = {
        "model": {**NETWORK, "num_classes": 2},
        "preprocessing": {"image_size": 32, "num_frames": 4, "frame_stride": 1},
        "videos": {"train": str(data), "augmentation": {"scale": [0.9, 1.1], "rand_augment_ops": 1}},
        "optimisation": {"bf16": False, "epochs": 3, "batch_size": 4, "warmup_steps": 1},
        "num_workers": 0,
        "log_every": 1,
        "checkpoint_every": 2,
    }
    path = folder / "videos.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def recipe_path(tmp_path, data) -> Path:
    return recipe_in(tmp_path, data)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, data) -> TRecViT:
    """The model of the recipe as it stands."""
    folder = tmp_path_factory.mktemp("plain")
    return train(load_recipe(recipe_in(folder, data)), folder / "run")


def write_video(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 12) as writer:
        for number in range(5):
            writer.write(np.full((40, 56, 3), level + 9 * number, np.uint8))


def feed_of(recipe: Recipe) -> VideoFeed:
    feed = recipe.feed()
    assert isinstance(feed, VideoFeed)
    return feed


def same_weights(one: TRecViT, other: TRecViT) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_every_epoch_shows_each_video_at_most_once_in_an_order_of_its_own(recipe_path):
    feed = feed_of(load_recipe(recipe_path))
    assert (feed.num_steps, feed.steps_per_epoch, feed.labels) == (6, 2, ("dark", "light"))
    epochs = [[item for step in (2 * epoch, 2 * epoch + 1) for item in feed.items(step)] for epoch in range(3)]
    for number, shown in enumerate(epochs):
        assert {epoch for epoch, _ in shown} == {number}
        assert len({index for _, index in shown}) == 8
    assert len({tuple(index for _, index in shown) for shown in epochs}) == 3


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_step_shows_the_same_clips_wherever_the_run_began_and_whoever_decodes(recipe_path, workers):
    feed = feed_of(load_recipe(recipe_path))
    helped = feed_of(load_recipe(recipe_path, [f"num_workers={workers}"]))
    whole, late = list(feed.batches(0, Share())), list(helped.batches(4, Share()))
    assert (len(whole), len(late)) == (6, 2)
    for batch, again in zip(whole[4:], late, strict=True):
        assert torch.equal(batch.videos, again.videos)
        assert torch.equal(batch.labels, again.labels)


def test_processes_share_every_step_without_overlap(recipe_path):
    feed = feed_of(load_recipe(recipe_path))
    for step in range(6):
        shares = [feed.items(step)[number::2] for number in (0, 1)]
        assert sorted(shares[0] + shares[1]) == sorted(feed.items(step))
    parts = [next(feed.batches(0, Share(number, 2))) for number in (0, 1)]
    whole = next(feed.batches(0, Share()))
    assert torch.equal(torch.cat([parts[0].videos, parts[1].videos]), whole.videos[[0, 2, 1, 3]])


@pytest.mark.slow
def test_a_video_that_cannot_be_read_is_left_out_counted_and_logged(tmp_path, data, recipe_path):
    broken = tmp_path / "some"
    for path in data.glob("*/*.mp4"):
        copy = broken / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"no video" if path.name == "03.mp4" else path.read_bytes())
    words = [f"videos.train={broken}", "videos.max_failed_share=0.1", "optimisation.epochs=4"]
    recipe = load_recipe(recipe_path, words)
    lines = []
    train(recipe, tmp_path / "run", report=lines.append)
    logged = [json.loads(line) for line in (tmp_path / "run" / "failures.jsonl").read_text().splitlines()]
    assert {entry["name"] for entry in logged} == {"light/03.mp4"}
    assert sum(line.failed for line in lines) == len(logged) >= 2
    assert all("expected a video that FFmpeg can read" in entry["reason"] for entry in logged)
    batches = list(feed_of(recipe).batches(0, Share()))
    assert all(len(batch.labels) + len(batch.failures) == 4 for batch in batches)
    assert all(len(batch.labels) == len(batch.videos) for batch in batches)


def test_a_run_with_too_many_unreadable_videos_stops(tmp_path, data, recipe_path):
    broken = tmp_path / "some"
    for path in data.glob("*/*.mp4"):
        copy = broken / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"no video" if path.name in ("03.mp4", "04.mp4") else path.read_bytes())
    words = [f"videos.train={broken}", "videos.max_failed_share=0.1"]
    with pytest.raises(DataError, match=r"2 videos could not be read, more than max_failed_share=0.1"):
        train(load_recipe(recipe_path, words), tmp_path / "run")


@pytest.mark.slow
def test_batches_of_which_nothing_can_be_read_move_nothing(tmp_path, data, recipe_path):
    broken = tmp_path / "all"
    for path in data.glob("*/*.mp4"):
        copy = broken / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"no video")
    words = [f"videos.train={broken}", "videos.max_failed_share=1.0", "optimisation.weight_decay=0.0"]
    recipe = load_recipe(recipe_path, words)
    torch.manual_seed(recipe.seed)
    untouched = TRecViT(recipe.model)
    lines = []
    assert same_weights(train(recipe, tmp_path / "run", report=lines.append), untouched)
    assert all((line.failed, line.loss, line.figures["accuracy"]) == (4, 0.0, 0.0) for line in lines)


def test_too_few_videos_or_none_with_a_class_are_refused(tmp_path, data, recipe_path):
    with pytest.raises(DataError, match="11 videos do not fill one batch of 12"):
        feed_of(load_recipe(recipe_path, ["optimisation.batch_size=12"]))
    with pytest.raises(ConfigError, match="the data have 2 classes, got 3"):
        train(load_recipe(recipe_path, ["model.num_classes=3"]), tmp_path / "run")
    (tmp_path / "test.json").write_text(json.dumps([{"id": f"{n:02d}"} for n in range(11)]))
    with pytest.raises(DataError, match="11 videos have no class"):
        feed_of(load_recipe(recipe_path, [f"videos.train={{path: {tmp_path / 'test.json'}, videos: {data}}}"]))
    (tmp_path / "one.txt").write_text("".join(f"{path} 0\n" for path in data.rglob("*.mp4")))
    with pytest.raises(DataError, match=r"expected videos of two or more classes, got 1 \(class 0\)"):
        feed_of(load_recipe(recipe_path, [f"videos.train={tmp_path / 'one.txt'}"]))
    with pytest.raises(CheckpointError, match="expected a path in UTF-8"):
        train(load_recipe(recipe_path), tmp_path / "\udce9")


def test_what_was_passed_over_is_said(tmp_path, recipe_path):
    for name in ("a/1.mp4", "a/2.mp4", "b/1.mp4", "b/._1.mp4", "c/notes.txt"):
        (tmp_path / "odd" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "odd" / name).write_bytes(b"x")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        feed_of(load_recipe(recipe_path, [f"videos.train={tmp_path / 'odd'}", "optimisation.batch_size=1"]))
    first, second = (str(warning.message) for warning in said)
    assert "passed over 1 file that is no video: .txt (1); 1 hidden or system entry: b/._1.mp4" in first
    assert "1 of 3 classes have no video: 'c'" in second


@pytest.mark.slow
def test_accumulation_gives_the_big_batchs_update(tmp_path, recipe_path):
    """By the losses of later steps: AdamW turns rounding of a gradient near zero into a whole step."""
    losses: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for count, found in losses.items():
        words = ["optimisation.learning_rate=0.01", f"optimisation.accumulation={count}"]
        train(
            load_recipe(recipe_path, words), tmp_path / str(count), report=lambda line, to=found: to.append(line.loss)
        )
    assert len(losses[1]) == 6
    assert losses[1][-1] != pytest.approx(losses[1][0], rel=1e-2)
    assert losses[2] == pytest.approx(losses[1], rel=1e-4)
    assert losses[3] == pytest.approx(losses[1], rel=1e-4)  # parts of 2 and 2 clips


@pytest.mark.slow
@pytest.mark.parametrize("what", ["cheap", "blocks"])
def test_recomputing_changes_nothing(tmp_path, recipe_path, plain, what):
    again = train(load_recipe(recipe_path, [f"optimisation.recompute={what}"]), tmp_path / "again")
    assert same_weights(plain, again)


@pytest.mark.slow
def test_the_running_mean_is_what_it_is_said_to_be_and_is_what_is_saved(tmp_path, recipe_path, plain):
    model = torch.nn.Linear(3, 2)
    mean = RunningMean(model, decay=0.5)
    expected = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for count in range(1, 15):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        mean.update(model)
        factor = min(0.5, count / (count + 9))
        for name, weight in model.named_parameters():
            expected[name] = factor * expected[name] + (1 - factor) * weight.detach()
    for name, weight in mean.weights.items():
        torch.testing.assert_close(weight, expected[name])
    averaged = train(load_recipe(recipe_path, ["optimisation.ema_decay=0.9"]), tmp_path / "averaged")
    assert not same_weights(plain, averaged)
    saved = TRecViT.load(tmp_path / "averaged" / "model")
    assert same_weights(saved, averaged)
    # The weights under the mean went their way untouched by it.
    (newest,) = (tmp_path / "averaged" / "checkpoints" / "step-00000006").glob("*.safetensors")
    tensors = load_file(newest)
    for name, weight in plain.named_parameters():
        assert torch.equal(tensors[f"model.{name}"], weight)
    for name, weight in averaged.named_parameters():
        assert torch.equal(tensors[f"mean.{name}"], weight)


SLEEPER = """
import sys, time
import trecvit.train.loop as loop
from trecvit.errors import Interrupted
from trecvit.train.recipe import load_recipe
def report(line):
    print(line.step, flush=True)
    time.sleep(0.2)
if __name__ == "__main__":
    try:
        loop.train(load_recipe(sys.argv[1], sys.argv[3:]), sys.argv[2], report=report)
    except Interrupted as stopped:
        print(stopped, flush=True)
        sys.exit(128 + stopped.signal_number)
"""
EVERYTHING = ["optimisation.epochs=8", "optimisation.ema_decay=0.9", "optimisation.muon_learning_rate=0.01"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data) -> TRecViT:
    """A run without interruption; the decoding process makes no difference."""
    folder = tmp_path_factory.mktemp("whole")
    return train(load_recipe(recipe_in(folder, data), EVERYTHING), folder / "run")


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "workers"), [("SIGKILL", 0), ("SIGTERM", 1), ("SIGINT", 0)])
def test_a_run_that_was_ended_goes_on_to_the_same_bits(tmp_path, recipe_path, whole, sent, workers):
    # Schedulers tell all processes of a job to stop, and the workers that decode must not be gone before the loop.
    plan = [*EVERYTHING, f"num_workers={workers}"]
    (tmp_path / "go.py").write_text(SLEEPER)
    run = tmp_path / "run"
    words = [sys.executable, str(tmp_path / "go.py"), str(recipe_path), str(run), *plan]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(words, **pipes, start_new_session=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "5\n":
                (os.killpg if workers else os.kill)(process.pid, signal.Signals[sent])
                break
        rest = process.stdout.read()
    steps = sorted(path.name for path in (run / "checkpoints").iterdir() if not path.name.endswith(".part"))
    if sent != "SIGKILL":
        assert process.returncode == 128 + signal.Signals[sent]
        newest = run / "checkpoints" / "step-00000006"
        line = f"{run}: interrupted at step 6; repeat the command to resume from {newest}"
        assert rest.splitlines() == ["6", line]  # and nothing of the workers
        assert steps[-1] == "step-00000006"
    else:
        assert process.returncode == -signal.SIGKILL
        assert steps[-1] == "step-00000004"
    assert not (run / "model").exists()
    got = train(load_recipe(recipe_path, plan), run)
    assert same_weights(got, whole)


TESTED = ["checkpoint_every=100", "videos.validate_every=2", "videos.eval_clips=1"]


@pytest.fixture(scope="module")
def validated(tmp_path_factory, data) -> tuple[TRecViT, Path]:
    """A run with validations and without interruption, and its file of them."""
    folder = tmp_path_factory.mktemp("tested")
    recipe = load_recipe(recipe_in(folder, data), [*TESTED, f"videos.validation={data}"])
    return train(recipe, folder / "run"), folder / "run" / "validation.jsonl"


@pytest.mark.slow
@pytest.mark.parametrize(
    "when",
    [
        "before the first step",
        "waiting for a batch",
        "testing on the way",
        "testing at the end",
    ],
)
def test_ctrl_c_need_not_wait_for_the_next_step(tmp_path, data, recipe_path, validated, monkeypatch, when):
    recipe, (expected, validations) = load_recipe(recipe_path, [*TESTED, f"videos.validation={data}"]), validated
    target, method = (Classification, "test") if when.startswith("testing") else (VideoFeed, "items")
    whole = getattr(target, method)

    ended = [json.loads(line)["step"] for line in validations.read_text().splitlines()]
    tests = iter(ended)

    def interrupted(self, *given):
        at = {"before the first step": 0, "waiting for a batch": 3, "testing on the way": 2}.get(when, ended[-1])
        if at == (next(tests, None) if when.startswith("testing") else given[0]):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return whole(self, *given)

    monkeypatch.setattr(target, method, interrupted)
    with pytest.raises(Interrupted, match=r"interrupted at step \d; repeat the command to resume from ") as stopped:
        train(recipe, tmp_path / "run")
    assert stopped.value.signal_number == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    step = {"before the first step": 0, "waiting for a batch": 3, "testing on the way": 2}.get(when, ended[-1])
    assert f"at step {step};" in str(stopped.value)
    kept = [path.name for path in (tmp_path / "run").glob("checkpoints/*")]
    assert kept == ([f"step-{step:08d}"] if step else [])
    monkeypatch.setattr(target, method, whole)
    assert same_weights(train(recipe, tmp_path / "run"), expected)
    assert (tmp_path / "run" / "validation.jsonl").read_text() == validations.read_text()
    assert (tmp_path / "run" / "best").exists()
    assert not (tmp_path / "run" / "tested").exists()


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once_but_not_the_same_one_sent_twice(tmp_path, recipe_path, monkeypatch):
    update = Loop.update
    pauses_s = iter([0.0, 0.5])

    def interrupted(self, batch, step):
        pause_s = next(pauses_s)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(pause_s)
        os.kill(os.getpid(), signal.SIGINT)
        return update(self, batch, step)

    monkeypatch.setattr(Loop, "update", interrupted)
    with pytest.raises(Interrupted, match="interrupted at step 1"):
        train(load_recipe(recipe_path), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe(recipe_path), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").glob("checkpoints/*")] == ["step-00000001"]


@pytest.mark.slow
def test_a_process_that_ignores_ctrl_c_goes_on_ignoring_it(tmp_path, recipe_path, monkeypatch):
    """Such as a background process of a script."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(load_recipe(recipe_path), tmp_path / "run", report=lambda _: os.kill(os.getpid(), signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_run_is_of_one_process(tmp_path, recipe_path):
    recipe, run = load_recipe(recipe_path), tmp_path / "run"
    busy = pytest.raises(BusyError, match=rf"run: expected no other process .* but process {os.getpid()} on .* does")
    with ThreadPoolExecutor(1) as another, only_writer(run), busy:
        another.submit(train, recipe, run).result()


@pytest.mark.slow
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("change", ["swapped", "one more", "another class", "validation"])
def test_a_run_is_of_one_set_of_data(tmp_path, recipe_path, change, finished):
    data = tmp_path / "data"
    for name, level in (("cat/a", 10), ("cat/b", 40), ("dog/a", 90), ("dog/b", 200)):
        write_video(data / f"{name}.mp4", level)
    held_out = shutil.copytree(data, tmp_path / "held_out")
    words = [f"videos.train={data}", f"videos.validation={held_out}", "model.num_classes=2", "videos.eval_clips=1"]
    recipe = load_recipe(recipe_path, [*words, "optimisation.num_steps=2", "optimisation.epochs=0"])
    run = tmp_path / "run"
    if finished:
        train(recipe, run)
    else:
        claim(run, recipe, Processes())
    if change == "swapped":
        for one, other in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
            (data / one).rename(data / other)
        reason = r"training data: 4 files as before, as many in each class, but other names, sizes or classes"
    elif change == "one more":
        write_video(data / "dog" / "c.mp4", 10)
        reason = r"training data: 4 files before, 5 now, class 'dog' 2 before, 3 now"
    elif change == "another class":
        (data / "cat").rename(data / "bird")
        reason = r"training data: class 'cat' is gone, class 'bird' is new \(2\)"
    else:
        (held_out / "dog" / "b.mp4").unlink()
        reason = r"validation data: 4 files before, 3 now, class 'dog' 2 before, 1 now"
    with pytest.raises(
        CheckpointError, match=rf"run: expected the data that the run started with, got other {reason};"
    ):
        train(recipe, run)


@pytest.mark.slow
def test_a_run_of_a_version_that_knew_no_data_goes_on(tmp_path, data, recipe_path):
    recipe, run = load_recipe(recipe_path), tmp_path / "run"
    expected = train(recipe, run)
    (run / "run.json").write_text(json.dumps({"torch": torch.__version__}))
    assert same_weights(train(recipe, run), expected)
    (run / "run.json").unlink()
    assert same_weights(train(recipe, run), expected)


CHECKPOINT = "checkpoints/step-00000002"
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
RUST = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "error", "named"),
    [
        ("trecvit.train.checkpoints.save", CheckpointException("write", {0: (RUST, StackSummary())}), CHECKPOINT),
        ("trecvit.train.checkpoints.save", CheckpointException("write", {0: (FULL, StackSummary())}), CHECKPOINT),
        ("safetensors.torch.save_file", RUST, "model/model.safetensors"),
        ("safetensors.torch.save_file", OSError(errno.EDQUOT, "Disk quota exceeded"), "model/model.safetensors"),
    ],
)  # fmt: skip
def test_a_full_disk_is_one_error_that_names_the_file_and_the_run_goes_on(
    tmp_path, recipe_path, plain, monkeypatch, where, error, named
):
    claim(tmp_path / "run", load_recipe(recipe_path), Processes())

    def full(*_given, **_named):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(StorageError, match=rf"run/{named}: could not be written: the disk .*; make room and run"):
            train(load_recipe(recipe_path), tmp_path / "run")
    assert not [path for path in (tmp_path / "run").rglob("*") if ".part" in path.name]
    assert same_weights(train(load_recipe(recipe_path), tmp_path / "run"), plain)


def test_a_loss_that_is_no_number_leaves_what_is_needed_to_see_why(tmp_path, recipe_path):
    words = ["optimisation.learning_rate=1.0e30", "optimisation.clip_norm=1.0e30"]
    with pytest.raises(DataError, match=r"loss or gradient is not finite; weights before the step and its batch are"):
        train(load_recipe(recipe_path, words), tmp_path / "run")
    (left,) = (tmp_path / "run").glob("failed-step-*")
    batch = load_file(left / "batch-0.safetensors")
    recipe = load_recipe(recipe_path, words)
    model = TRecViT(recipe.model)
    step = Checkpoints(left, Processes(), keep=1).resume(model, optimisers_of(model, recipe.optimisation))
    assert left.name == f"failed-step-{step:08d}"
    loss = torch.nn.functional.cross_entropy(model(batch["videos"]).logits, batch["labels"])
    assert not torch.isfinite(loss)


@pytest.mark.slow
@pytest.mark.parametrize("first_bad", [0, 2])
def test_a_gradient_that_is_no_number_stops_the_run_before_it_spoils_a_weight(
    tmp_path, recipe_path, monkeypatch, first_bad
):
    """The loss is finite, as in float16 or for the root of 0; the first step is no exception."""
    recipe = load_recipe(recipe_path)
    expected = train(recipe, tmp_path / "whole")
    backward = Loop._backward
    calls = []

    def spoilt(self, part, num_clips):
        sums = backward(self, part, num_clips)
        if len(calls) == first_bad:
            self.model.norm.weight.grad[0] = float("inf")
        calls.append(sums)
        return sums

    monkeypatch.setattr(Loop, "_backward", spoilt)
    with pytest.raises(DataError, match=f"step {first_bad}: loss or gradient"):
        train(recipe, tmp_path / "run")
    monkeypatch.setattr(Loop, "_backward", backward)
    left = tmp_path / "run" / f"failed-step-{first_bad:08d}"
    # Going on from what was left, with the gradient well, gives what the run would have given.
    shutil.rmtree(tmp_path / "run" / "checkpoints", ignore_errors=True)
    (tmp_path / "run" / "checkpoints").mkdir()
    shutil.copytree(left / f"step-{first_bad:08d}", tmp_path / "run" / "checkpoints" / f"step-{first_bad:08d}")
    assert same_weights(train(recipe, tmp_path / "run"), expected)


def test_failures_are_counted_over_interruptions(tmp_path, data, recipe_path):
    """Each process's first steps have one broken video; a resumed run must not count from 0 again."""
    broken = tmp_path / "some"
    for path in data.glob("*/*.mp4"):
        copy = broken / path.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"no video" if path.name in ("02.mp4", "03.mp4", "04.mp4") else path.read_bytes())
    words = [f"videos.train={broken}", "videos.max_failed_share=0.19", "optimisation.epochs=9", "checkpoint_every=1"]
    recipe, run = load_recipe(recipe_path, words), tmp_path / "run"
    with pytest.raises(DataError, match=r"3 videos could not be read, more than max_failed_share=0.19 allows"):
        train(recipe, run)
    logged = read_lines(run / "failures.jsonl")
    assert len({line["name"] for line in logged}) == 3
    steps = sorted(int(path.name[-8:]) for path in (run / "checkpoints").iterdir())
    for path in (run / "checkpoints").iterdir():
        if path.name != f"step-{steps[0]:08d}":
            shutil.rmtree(path)
    with pytest.raises(DataError, match="3 videos could not be read"):
        train(recipe, run)
    assert read_lines(run / "failures.jsonl") == logged  # what was done twice is listed once


@pytest.mark.slow
def test_bfloat16_is_where_it_is_said_to_be(tmp_path, recipe_path, monkeypatch):
    seen = set()
    backward = Loop._backward

    def watched(self, part, num_clips):
        hook = self.model.blocks[0].spatial.mlp_up.register_forward_hook(lambda _m, _i, out: seen.add(out.dtype))
        try:
            return backward(self, part, num_clips)
        finally:
            hook.remove()

    monkeypatch.setattr(Loop, "_backward", watched)
    losses: dict[tuple[str, bool], list[float]] = {("false", True): [], ("true", False): [], ("auto", False): [],
                                                   ("auto", True): []}  # fmt: skip
    for (word, has_instructions), found in losses.items():
        monkeypatch.setattr("trecvit.processor._is_supported", lambda feature, has=has_instructions: has)
        recipe, run = load_recipe(recipe_path, [f"optimisation.bf16={word}"]), tmp_path / f"{word}-{has_instructions}"
        model = train(recipe, run, report=lambda line, to=found: to.append(line.loss))
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        chosen = word == "true" or (word == "auto" and has_instructions)
        assert seen == {torch.bfloat16 if chosen else torch.float32}
        assert json.loads((run / "run.json").read_text())["bf16"] is chosen
        seen.clear()
    assert losses["true", False] == losses["auto", True] != losses["false", True] == losses["auto", False]
    assert losses["true", False] == pytest.approx(losses["false", True], rel=0.03)


@pytest.mark.parametrize(("began_with", "has_instructions"), [(True, False), (False, True), (None, True)])
def test_a_run_keeps_its_precision_on_another_processor(
    tmp_path, recipe_path, monkeypatch, began_with, has_instructions
):
    """Also a run of a version without `auto`, with true or false in its recipe and no value in its `run.json`."""
    run, auto = tmp_path / "run", load_recipe(recipe_path, ["optimisation.bf16=auto"])
    explicit = load_recipe(recipe_path, [f"optimisation.bf16={str(bool(began_with)).lower()}"])
    monkeypatch.setattr("trecvit.processor._is_supported", lambda _: bool(began_with))
    claim(run, explicit if began_with is None else auto, Processes())
    if began_with is None:
        about = json.loads((run / "run.json").read_text())
        (run / "run.json").write_text(json.dumps({"torch": about["torch"]}))
    monkeypatch.setattr("trecvit.processor._is_supported", lambda _: has_instructions)
    for recipe in (auto, explicit):
        claim(run, recipe, Processes())
        assert resolved(run, recipe).optimisation.bf16 is bool(began_with)
    other = load_recipe(recipe_path, [f"optimisation.bf16={str(not began_with).lower()}"])
    with pytest.raises(CheckpointError, match=r"another recipe \(optimisation.bf16: "):
        claim(run, other, Processes())


@pytest.mark.slow
def test_a_run_starts_from_a_published_vit_and_says_what_it_took(tmp_path, data, recipe_path):
    path = written(vit(), "timm", tmp_path)
    words = [
        f"start.vit={path}", f"model.width={WIDTH}", f"model.depth={DEPTH}", f"model.num_heads={HEADS}",
        f"model.mlp_width={MLP}", f"model.patch_size={PATCH}", "model.pooling=cls", "optimisation.learning_rate=0.0",
    ]  # fmt: skip
    model = train(load_recipe(recipe_path, words), tmp_path / "run")
    said = (tmp_path / "run" / "start.txt").read_text()
    assert str(path) in said
    assert "30 tensors loaded, 32 randomly initialised" in said
    torch.testing.assert_close(model.blocks[1].spatial.mlp_up.weight, vit()["blocks.1.mlp.fc1.weight"])


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["videos.eval_crops=2"], "num_crops 1 or 3"),
        (["preprocessing.image_size=[32, 48]"], "expected square clips"),
        (["videos.validation={path: test.json, videos: DATA}"], "class"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused_before_the_training(
    tmp_path, data, recipe_path, monkeypatch, words, complaint
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test.json").write_text(json.dumps([{"id": f"{n:02d}"} for n in range(11)]))
    (tmp_path / "labels.json").write_text(json.dumps({"dark": "0", "light": "1"}))
    words = [f"videos.validation={data}", *(word.replace("DATA", str(data)) for word in words)]
    with pytest.raises(TRecViTError, match=complaint):
        train(load_recipe(recipe_path, words), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_listed_videos_without_a_file_are_spoken_of(tmp_path, data, recipe_path):
    lines = [f"{path} {number % 2}" for number, path in enumerate(sorted(data.glob("*/*.mp4")))]
    (tmp_path / "list.txt").write_text("\n".join([*lines, "gone.mp4 1"]))
    with pytest.warns(UserWarning, match=r"list.txt: 1 of 12 videos have no file, such as gone.mp4"):
        feed_of(load_recipe(recipe_path, [f"videos.train={tmp_path / 'list.txt'}"]))


def test_interrupted_is_an_error_of_ours():
    assert issubclass(Interrupted, TRecViTError)
    with pytest.raises(ConfigError, match="one of them above 0"):
        Optimisation()


def test_a_model_goes_on_from_another_and_keeps_its_head_only_for_the_same_classes():
    fields = {key: value for key, value in NETWORK.items() if key != "preset"}
    trained = TRecViT(model_config("tiny", **fields, num_classes=2), labels=("a", "b"))
    same = TRecViT(model_config("tiny", **fields, num_classes=2), labels=("a", "b"))
    load_weights_from(same, trained, source="x")
    assert same_weights(same, trained)
    other = TRecViT(model_config("tiny", **fields, num_classes=3), labels=("a", "b", "c"))
    head = other.head.classifier.weight.clone()
    load_weights_from(other, trained, source="x")
    assert torch.equal(other.head.classifier.weight, head)
    for name, weight in other.named_parameters():
        if not name.startswith("head.classifier."):
            assert torch.equal(weight, trained.get_parameter(name)), name
    renamed = TRecViT(model_config("tiny", **fields, num_classes=2), labels=("c", "d"))
    head = renamed.head.classifier.weight.clone()
    load_weights_from(renamed, trained, source="x")
    assert torch.equal(renamed.head.classifier.weight, head)
    deeper = TRecViT(model_config("tiny", **{**fields, "depth": 3}, num_classes=2))
    with pytest.raises(CheckpointError, match=r"x: not a model of this architecture: \d+ missing: blocks\.2"):
        load_weights_from(deeper, trained, source="x")


@pytest.mark.slow
def test_a_trained_run_is_tested_on_its_validation_videos(tmp_path, data, recipe_path):
    words = [f"videos.validation={data}", "videos.eval_clips=2", "videos.eval_crops=1"]
    train(load_recipe(recipe_path, words), tmp_path / "run")
    result = json.loads((tmp_path / "run" / "evaluation" / "result.json").read_text())
    assert result["good"] == 11
    assert (result["protocol"]["clips"], result["protocol"]["crops"]) == (2, 1)
    assert load(tmp_path / "run" / "model").labels == ("dark", "light")


@pytest.mark.slow
@pytest.mark.curves
def test_a_run_keeps_the_model_that_did_best_and_draws_its_curves(tmp_path, data, recipe_path):
    words = [f"videos.validation={data}", "videos.validate_every=2", "videos.eval_clips=1", "videos.eval_crops=1"]
    run = tmp_path / "run"
    train(load_recipe(recipe_path, words), run)
    lines = read_lines(run / "validation.jsonl")
    assert [line["step"] for line in lines] == [2, 4, 6]
    best = max(lines, key=lambda line: line["top1"])
    kept = load(run / "best")
    assert kept.provenance["source"] == f"trained for {best['step']} steps"
    scores, _ = evaluate_videos(kept, read_manifest(data), num_clips=1, num_crops=1)
    assert figures(scores)["top1"] == best["top1"]
    assert not (run / "tested").exists()
    with PIL.Image.open(run / "curves.png") as picture:
        assert picture.width > 800
        assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("validation/top1")] == [2, 4, 6]
    losses = {line["step"]: line["loss"] for line in read_lines(run / "metrics.jsonl")}
    assert {event.step: event.value for event in events.Scalars("training/loss")} == pytest.approx(losses)


@pytest.mark.slow
def test_a_run_that_goes_on_has_the_figures_of_one_that_was_not_stopped(tmp_path, data, recipe_path):
    words = [
        f"videos.validation={data}", "videos.validate_every=2", "checkpoint_every=3", "optimisation.head_dropout=0.3",
        "videos.eval_clips=1", "videos.eval_crops=1", "log_every=1",
    ]  # fmt: skip
    recipe = load_recipe(recipe_path, words)
    whole = train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    again = train(recipe, tmp_path / "run")
    assert same_weights(whole, again)
    for name, keys in (("metrics.jsonl", ("step", "loss")), ("validation.jsonl", ("step", "top1"))):
        one, other = (read_lines(tmp_path / run / name) for run in ("whole", "run"))
        assert [[line[key] for key in keys] for line in one] == [[line[key] for key in keys] for line in other]
    assert same_weights(load(tmp_path / "whole" / "best"), load(tmp_path / "run" / "best"))


def test_validation_that_cannot_be_is_refused(recipe_path):
    with pytest.raises(ConfigError, match=r"no videos\.validation"):
        load_recipe(recipe_path, ["videos.validate_every=2"])


def test_head_dropout_hides_evidence_in_training_only():
    fields = {key: value for key, value in NETWORK.items() if key != "preset"}
    model = TRecViT(model_config("tiny", **fields, num_classes=2))
    model.head.dropout = 0.5
    evidence = torch.ones(4000, 8)
    with torch.no_grad():
        model.head.classifier.weight.fill_(1.0)
        model.head.classifier.bias.zero_()
    with torch.no_grad():
        shown = model.train().head(evidence)[:, 0]
    assert set((shown / 2).unique().tolist()) <= set(range(9))  # what is left counts double
    assert float(shown.mean()) == pytest.approx(8, abs=0.3)
    assert torch.equal(model.eval().head(evidence), torch.full((4000, 2), 8.0))


@pytest.mark.slow
def test_the_run_folder_says_what_it_ran_on(tmp_path, recipe_path):
    began = time.time()
    train(load_recipe(recipe_path), tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["torch"] == torch.__version__
    versions = {"trecvit", "commit", "torch", "numpy", "av", "pillow", "python"}
    assert set(about) == versions | {"date", "machine", "cpus", "gpus", "processes", "device", "bf16", "data"}
    assert date.fromisoformat(about["date"])
    assert (about["processes"], about["device"]) == (1, "cpu")
    assert (tmp_path / "run" / "run.json").stat().st_mtime >= began - 1
