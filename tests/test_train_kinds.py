"""Guarantees of the training loop for tasks without classes: accumulation, resuming, several processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import test_memorise
import test_train_mae
import test_train_readout
import test_train_track
import torch
import yaml
from safetensors.torch import load_file
from training import gradient, loop_of

from trecvit.processes import Share
from trecvit.train.loop import train
from trecvit.train.recipe import load_recipe
from trecvit.train.run_folder import read_lines


@dataclass(frozen=True)
class Kind:
    content: dict[str, Any]
    tested: list[str]
    figures: list[str]
    words: list[str] = field(default_factory=list)


ROOT = Path(__file__).parents[1]
TRACKED = ["average_pts_within_thresh", "occlusion_accuracy"]
REMEMBERED = ["memory.validate_every=2", "optimisation.num_steps=6"]
KINDS = {
    "autoencoder": Kind(test_train_mae.SMALL, test_train_mae.TESTED, ["explained"]),
    "tracker": Kind(test_train_track.SMALL, test_train_track.TESTED, TRACKED),
    "readout": Kind(test_train_readout.SMALL, test_train_track.TESTED, TRACKED),
    "memoriser": Kind(test_memorise.SMALL, REMEMBERED, ["explained"]),
    "vivit": Kind(test_memorise.SMALL, REMEMBERED, ["explained"], [test_memorise.AS_VIVIT]),
}


def written(name: str, folder: Path) -> Path:
    """Write the recipe of a kind; a readout needs a backbone."""
    content = dict(KINDS[name].content)
    if name == "readout":
        content["start"] = {"weights": test_train_readout.saved_classifier(folder)}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    """All weights of a run's model, with an autoencoder's decoder."""
    files = sorted((run / "model").rglob("*.safetensors"))
    return {f"{path.parent.name}.{name}": weight for path in files for name, weight in load_file(path).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_run_that_was_interrupted_ends_with_the_same_bits(tmp_path, name):
    """A tracker's also with a worker, which makes no difference."""
    words = ["optimisation.ema_decay=0.9", "optimisation.accumulation=2", "optimisation.bf16=true"]
    words += ["optimisation.muon_learning_rate=0.01", *KINDS[name].tested, *KINDS[name].words]
    path = written(name, tmp_path)
    train(load_recipe(path, words), tmp_path / "whole")
    recipe = load_recipe(path, [*words, "num_workers=1"] if name == "tracker" else words)

    def fall(line):
        if line.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", report=fall)
    assert not (tmp_path / "run" / "model").exists()
    began = []
    train(recipe, tmp_path / "run", report=began.append)
    assert [line.step for line in began] == [5, 6]
    got, expected = weights_of(tmp_path / "run"), weights_of(tmp_path / "whole")
    assert got.keys() == expected.keys()
    assert all(torch.equal(weight, expected[key]) for key, weight in got.items())
    for file in ("metrics.jsonl", "validation.jsonl"):
        timed = ("clips_per_s", "elapsed_s", "first_step")
        one, other = (
            [{key: value for key, value in line.items() if key not in timed} for line in read_lines(run / file)]
            for run in (tmp_path / "whole", tmp_path / "run")
        )
        assert one == other


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_parts_and_blanks_give_the_big_batchs_update(tmp_path, name):
    path, gradients, sums = written(name, tmp_path), [], []
    for parts in (1, 3, 6):  # in six parts two are empty
        words = [f"optimisation.accumulation={parts}", "optimisation.learning_rate=0.0", *KINDS[name].words]
        loop = loop_of(load_recipe(path, [*words, "num_workers=0"]), tmp_path)
        sums.append(loop.update(next(loop.feed.batches(0, Share())), 0))
        gradients.append(gradient(loop))
    for other, its in zip(gradients[1:], sums[1:], strict=True):
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(its, sums[0], rtol=1e-5, atol=1e-4)
    assert sums[0][1] == 4
    assert gradients[0].abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "parallel"),
    [
        ("autoencoder", "fsdp"), ("tracker", "ddp"), ("readout", "fsdp"),
    ],
)  # fmt: skip
def test_two_processes_train_what_one_does(tmp_path, name, parallel, two_ranks):
    """FSDP shards weights, a readout's frozen ones too; the autoencoder has videos, one of them broken."""
    words = ["optimisation.accumulation=2", "optimisation.ema_decay=0.8", "optimisation.batch_size=3"]
    words += [*KINDS[name].tested, *KINDS[name].words]
    path, near, nearest = written(name, tmp_path), 1e-4, 1e-3
    if name == "autoencoder":
        test_train_mae.from_videos(path, videos := test_train_mae.written_videos(tmp_path / "videos"))
        words.append(f"videos.validation={videos}")
        near, nearest = 1e-3, 2e-4
    command = ["train", path, *words, "--to", tmp_path / "both", "--parallel", parallel]
    command += ["num_workers=1"] if name == "tracker" else []
    done, other = two_ranks.trecvit(*command)
    assert (done.returncode, other.returncode) == (0, 0), done.stderr[-3000:] + other.stderr[-3000:]
    train(load_recipe(path, words), tmp_path / "alone")
    both, alone = (read_lines(tmp_path / run / "metrics.jsonl") for run in ("both", "alone"))
    for figure in ("loss", *KINDS[name].figures):
        assert [line[figure] for line in both] == pytest.approx([line[figure] for line in alone], rel=near)
        assert figure == "loss" or figure.replace("_", " ") in done.stdout
    got, expected = weights_of(tmp_path / "both"), weights_of(tmp_path / "alone")
    assert got.keys() == expected.keys()
    for key, weight in got.items():  # AdamW turns rounding of a gradient near zero into a whole step
        torch.testing.assert_close(weight, expected[key], rtol=1e-3, atol=nearest)
    tested = [read_lines(tmp_path / run / "validation.jsonl") for run in ("both", "alone")]
    assert [line["step"] for line in tested[0]] == [line["step"] for line in tested[1]] != []
