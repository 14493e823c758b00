"""Two real processes over gloo, started by torchrun as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import SMALL

from trecvit.errors import ConfigError
from trecvit.train.loop import train
from trecvit.train.parallel import Processes
from trecvit.train.recipe import load_recipe
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
    assert losses(tmp_path / "run")[4:] == losses(tmp_path / "whole")[2:]


def test_other_kinds_are_refused():
    with pytest.raises(ConfigError, match="expected one of ddp, fsdp, got 'dp'"):
        Processes("dp")
