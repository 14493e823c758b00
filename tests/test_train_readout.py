"""The paper's tracker in the training loop: the readout learns, the backbone stays frozen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from track_files import write_track_file
from training import same_weights

from trecvit.config import ModelConfig, Preprocessing
from trecvit.errors import CheckpointError, ConfigError
from trecvit.model.readout_tracker import ReadoutTracker, ReadoutTrackerConfig
from trecvit.model.trecvit import TRecViT
from trecvit.synthetic.track_scenes import TrackSceneConfig, TrackScenes
from trecvit.train.initialise import initial_model
from trecvit.train.loop import train
from trecvit.train.optimise import optimisers_of
from trecvit.train.recipe import load_recipe
from trecvit.train.run_folder import read_lines
from trecvit.train.sections import Optimisation
from trecvit.weights.load import load

RECIPES = Path(__file__).parent.parent / "src" / "trecvit" / "recipes"
BLOCKS = {"width": 32, "depth": 1, "num_heads": 2, "mlp_width": 32, "patch_size": 8, "image_size": 32}
SMALL = {
    "model": {
        "blocks": {"preset": "tiny", **BLOCKS, "num_classes": 0},
        "readout": {"num_bases": 6, "width": 32, "depth": 1, "num_heads": 2, "mlp_width": 64},
    },
    "preprocessing": {"image_size": 32, "num_frames": 4, "frame_stride": 1},
    "tracks": {"scenes": {"min_things": 1, "max_things": 2}, "num_points": 6, "photographs": False},
    "optimisation": {"bf16": False, "num_steps": 6, "batch_size": 4, "warmup_steps": 2},
    "num_workers": 0,
    "log_every": 1,
    "checkpoint_every": 2,
}


def saved_classifier(folder: Path) -> str:
    torch.manual_seed(5)
    model = TRecViT(ModelConfig(**BLOCKS, head_width=8, num_classes=2), labels=("a", "b"))
    return str(model.save(folder / "classifier"))


@pytest.fixture
def classifier(tmp_path) -> str:
    return saved_classifier(tmp_path)


@pytest.fixture
def recipe_path(tmp_path, classifier) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "start": {"weights": classifier}}))
    return path


@pytest.mark.slow
def test_a_readout_learns_the_clips_it_is_shown(tmp_path, classifier):
    """By overfitting, which checks points, loss and gradients together."""
    scenes = TrackSceneConfig(image_size=(32, 32), num_frames=4, num_points=6, min_things=1, max_things=2)
    (tmp_path / "files").mkdir()
    for number in range(4):
        write_track_file(tmp_path / "files" / f"{number}.npz", TrackScenes(scenes, seed=0)[number])
    content = {
        **SMALL,
        "start": {"weights": classifier},
        "tracks": {"files": str(tmp_path / "files"), "num_points": 6, "first_share": 1.0},
        "optimisation": {"bf16": False, "num_steps": 200, "batch_size": 4, "warmup_steps": 10, "learning_rate": 1e-2},
        "checkpoint_every": 1000,
    }
    path, lines = tmp_path / "recipe.yaml", []
    path.write_text(yaml.safe_dump(content))
    train(load_recipe(path, []), tmp_path / "run", report=lines.append)
    assert lines[-1].loss < 0.2 * lines[0].loss
    assert lines[-1].figures["average_pts_within_thresh"] > 0.35
    assert lines[0].figures["average_pts_within_thresh"] < 0.1


@pytest.mark.slow
def test_the_backbone_stays_what_it_was(tmp_path, recipe_path, classifier):
    words = ["tracks.validation_scenes=2", "tracks.validate_every=3", "optimisation.ema_decay=0.9"]
    recipe = load_recipe(recipe_path, [*words, "optimisation.accumulation=2", "optimisation.bf16=true"])
    assert isinstance(recipe.model, ReadoutTrackerConfig)
    expected = train(recipe, tmp_path / "whole")
    assert isinstance(expected, ReadoutTracker)
    backbone = {name: weight for name, weight in load(classifier).state_dict().items() if not name.startswith("head.")}
    for name, weight in backbone.items():
        assert torch.equal(expected.state_dict()[name], weight), name
    first, made_of = initial_model(recipe, recipe.feed())
    changed = [
        name for name, weight in first.state_dict().items() if not torch.equal(expected.state_dict()[name], weight)
    ]
    assert changed
    assert all(name.startswith("readout.") for name in changed)
    assert f"{len(backbone)} tensors taken, randomly initialised: readout." in made_of
    tested = read_lines(tmp_path / "whole" / "validation.jsonl")
    assert [line["step"] for line in tested] == [3, 6]
    assert isinstance(load(tmp_path / "whole" / "best"), ReadoutTracker)


@pytest.mark.slow
def test_it_goes_on_from_its_like_and_from_no_other_tracker(tmp_path, recipe_path):
    first = train(load_recipe(recipe_path, ["optimisation.num_steps=1"]), tmp_path / "first")
    words = [f"start.weights={tmp_path / 'first' / 'model'}", "optimisation.learning_rate=0.0"]
    recipe = load_recipe(recipe_path, words)
    went_on, made_of = initial_model(recipe, recipe.feed())
    assert same_weights(went_on, first)
    assert "randomly initialised: none" in made_of
    tapnext = {**SMALL, "model": {"blocks": {**SMALL["model"]["blocks"], "pooling": "mean"}, "raster_px": 32}}
    recipe_path.write_text(yaml.safe_dump({**tapnext, "start": {"weights": str(tmp_path / "first" / "model")}}))
    other = load_recipe(recipe_path)
    with pytest.raises(CheckpointError, match="expected a TAPNext, got a ReadoutTracker"):
        initial_model(other, other.feed())
    wider = load_recipe(_with(recipe_path, SMALL), [*words[:1], "model.readout.width=64"])
    with pytest.raises(CheckpointError, match=r"not a model of this architecture: .*readout\.begin\.up\.weight"):
        initial_model(wider, wider.feed())


def _with(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_only_the_readout_is_moved():
    model = ReadoutTracker(load_recipe(RECIPES / "track_readout_world.yaml").model)
    optimisers = optimisers_of(model, Optimisation(num_steps=1, weight_decay=0.3))
    moved = [parameter for optimiser in optimisers for group in optimiser.param_groups for parameter in group["params"]]
    assert {id(parameter) for parameter in moved} == {id(parameter) for parameter in model.readout.parameters()}


def test_the_recipe_fits_the_bundled_model():
    recipe = load_recipe(RECIPES / "track_readout_world.yaml")
    model = load(recipe.start.weights)
    assert recipe.blocks == model.config.replace(num_classes=0)
    assert isinstance(recipe.preprocessing, Preprocessing)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["model.readout.heads=3"], "did you mean 'num_heads'"),
        (["model.readout.num_heads=5"], "a divisor of width=32"),
        (["model.readout=3"], "is a section, not a value"),
        (["model.raster_px=32"], "ReadoutTrackerConfig has no field 'raster_px'"),
        (["model.blocks.temporal_patch_size=2"], "temporal_patch_size=1"),
        (["tracks=null", "scenes={}"], "expected `tracks` for it"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(recipe_path, words, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_recipe(recipe_path, words)
