"""The study of configurations: what each changes, and that it trains what is missing and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from trecvit.cli.app import app
from trecvit.errors import ConfigError, DataError
from trecvit.study.ablations import GRIFFIN, OURS, TABLES, VARIANTS, gates, radii, recipe_of
from trecvit.train.recipe import load_recipe
from trecvit.weights.load import blank, load

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes/study_world.yaml"
SMALL = {"width: 128": "width: 16", "mlp_width: 512": "mlp_width: 16", "head_width: 256": "head_width: 16"}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    text = RECIPE.read_text(encoding="utf-8")
    others = {"num_steps: 300": "num_steps: 2", "batch_size: 32": "batch_size: 8", "depth: 3": "depth: 1"}
    for old, new in {**SMALL, **others, "[64, 64]": "[32, 32]"}.items():
        assert old in text, old
        text = text.replace(old, new)
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("recipe", ["study_world.yaml", "something_something_v2.yaml"])
def test_each_configuration_is_one_here_and_at_the_papers_scale(name, recipe):
    plain, changed = load_recipe(ROOT / "recipes" / recipe), recipe_of(ROOT / "recipes" / recipe, name, 5)
    assert changed.seed == 5
    if name == "no-skip":
        assert changed.optimisation.learning_rate == pytest.approx(0.1 * plain.optimisation.learning_rate)
    fields = {change.split("=")[0].removeprefix("model.") for change in VARIANTS[name]}
    differ = {key for key, value in changed.blocks.to_dict().items() if value != plain.blocks.to_dict()[key]}
    assert differ == fields
    with torch.device("meta"):
        blank(changed.architecture, preprocessing=changed.preprocessing)


def test_every_row_of_the_tables_is_a_configuration():
    assert {variant for lines in TABLES.values() for _, variant, _ in lines} == set(VARIANTS)
    with pytest.raises(ConfigError, match="expected one of lru, attention"):
        recipe_of(RECIPE, "gru", 0)


def test_a_study_trains_what_is_missing_and_keeps_the_rest(small, tmp_path):
    words = ["study", "ablations", str(small), "--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "to")]
    words += ["--clips", "18", "--seed", "0", "--seed", "1", "--only", OURS]
    with pytest.raises(DataError, match="no run is finished yet"):
        CliRunner().invoke(app, [*words, "--finished"], catch_exceptions=False)
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    first = json.loads((tmp_path / "to/result.json").read_text())
    (row,) = first["rows"]
    model = load(tmp_path / "runs" / OURS / "seed-0/model")
    assert row["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert row["seeds"] == [0, 1]
    assert row["mean"] == pytest.approx(sum(row["top1"]) / 2)
    assert row["steps_per_s"] > 0
    assert not (tmp_path / "to/recurrence.png").exists()

    weights = tmp_path / "runs" / OURS / "seed-0/model/model.safetensors"
    before = weights.stat().st_mtime_ns
    assert CliRunner().invoke(app, [*words, "--only", GRIFFIN, "--finished"], catch_exceptions=False).exit_code == 0
    again = json.loads((tmp_path / "to/result.json").read_text())
    assert [(some["name"], some["top1"]) for some in again["rows"]] == [(OURS, row["top1"])]
    assert CliRunner().invoke(app, [*words, "--only", GRIFFIN], catch_exceptions=False).exit_code == 0
    both = json.loads((tmp_path / "to/result.json").read_text())
    assert [row["name"] for row in both["rows"]] == [OURS, GRIFFIN]
    assert both["rows"][0]["top1"] == row["top1"]
    assert weights.stat().st_mtime_ns == before
    for picture in ("ablations.png", "recurrence.png"):
        assert (tmp_path / "to" / picture).stat().st_size > 10_000


def test_radii_begin_in_their_range_and_gates_are_the_blocks(small):
    torch.manual_seed(0)
    model = blank(recipe_of(small, GRIFFIN, 0).architecture)
    (values,) = radii(model)
    assert ((values > 0.9 - 1e-4) & (values < 0.999 + 1e-4)).all()
    found = gates(model.eval(), torch.zeros(2, 3, 3, 32, 32, dtype=torch.uint8))
    # Of a blank clip's normed tokens through fresh matrices: about a half, each channel its own.
    for kind in ("input", "recurrence"):
        (gate,) = found[kind]
        assert gate.numel() == 2 * 3 * 4 * model.config.lru_width
        assert 0.0 < gate.min() < 0.5 < gate.max() < 1.0
    before = model.blocks[0].temporal.lru.input_gate
    assert not before._forward_hooks
