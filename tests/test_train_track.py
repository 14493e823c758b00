"""Trackers in the training loop: clips, queries, loss, and the guarantees of the loop."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from track_files import write_track_file
from training import gradient, loop_of, same_weights

from trecvit.bench.training import loader_speed
from trecvit.data.tracked import TrackedVideo
from trecvit.errors import ConfigError, DataError
from trecvit.evaluate.tapvid import tapvid_metrics
from trecvit.model.matching import Matching
from trecvit.model.tapnext import TAPNext
from trecvit.processes import Share
from trecvit.synthetic.track_scenes import TrackSceneConfig, TrackScenes
from trecvit.train.loop import train
from trecvit.train.optimise import optimisers_of
from trecvit.train.recipe import load_recipe
from trecvit.train.run_folder import outcome, read_lines
from trecvit.train.sections import Optimisation
from trecvit.train.tasks.track import TrackClips
from trecvit.weights.load import load

BLOCKS = {
    "preset": "tiny", "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 16, "patch_size": 8, "image_size": 32,
    "temporal_mlp": True, "pooling": "mean", "num_classes": 0,
}  # fmt: skip
SMALL = {
    "model": {"blocks": BLOCKS, "raster_px": 32, "readout_width": 16},
    "preprocessing": {"image_size": 32, "num_frames": 4, "frame_stride": 1},
    "tracks": {"scenes": {"min_things": 1, "max_things": 2}, "num_points": 6, "photographs": False},
    "optimisation": {"bf16": False, "num_steps": 6, "batch_size": 4, "warmup_steps": 2},
    "num_workers": 0,
    "log_every": 1,
    "checkpoint_every": 2,
}
TESTED = ["tracks.validation_scenes=2", "tracks.validate_every=2"]


@pytest.fixture
def recipe_path(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.mark.slow
def test_a_small_tracker_learns_the_clips_it_is_shown(tmp_path):
    """By overfitting, which checks points, loss and gradients together; to generalise takes hours."""
    scenes = TrackSceneConfig(image_size=(32, 32), num_frames=4, num_points=6, min_things=1, max_things=2)
    (tmp_path / "files").mkdir()
    for number in range(4):
        write_track_file(tmp_path / "files" / f"{number}.npz", TrackScenes(scenes, seed=0)[number])
    content = {
        **SMALL,
        "model": {"blocks": {**BLOCKS, "width": 32, "mlp_width": 64}, "raster_px": 32, "readout_width": 32},
        "tracks": {"files": str(tmp_path / "files"), "num_points": 6, "first_share": 1.0},
        "optimisation": {"bf16": False, "num_steps": 240, "batch_size": 4, "warmup_steps": 10, "learning_rate": 5e-3},
        "checkpoint_every": 1000,
    }
    path, lines = tmp_path / "recipe.yaml", []
    path.write_text(yaml.safe_dump(content))
    train(load_recipe(path, []), tmp_path / "run", report=lines.append)
    assert lines[-1].loss < 0.02 * lines[0].loss
    assert lines[-1].figures["average_pts_within_thresh"] > 0.4
    assert lines[0].figures["average_pts_within_thresh"] < 0.1


@pytest.mark.slow
@pytest.mark.curves
def test_a_run_leaves_a_tracker_its_log_its_tests_and_the_best(tmp_path, recipe_path):
    run = tmp_path / "run"
    tracker = train(load_recipe(recipe_path, TESTED), run)
    again = load(run / "model")
    assert isinstance(tracker, TAPNext)
    assert same_weights(tracker, again)
    assert again.preprocessing.image_size == (32, 32)
    assert again.provenance == {"source": "trained for 6 steps", "data": "the synthetic world"}
    logged, tested = read_lines(run / "metrics.jsonl"), read_lines(run / "validation.jsonl")
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert all(0 <= line["occlusion_accuracy"] <= 1 and math.isfinite(line["loss"]) for line in logged)
    assert [(line["step"], line["videos"], line["failed"]) for line in tested] == [(2, 2, 0), (4, 2, 0), (6, 2, 0)]
    assert isinstance(load(run / "best"), TAPNext)
    result = json.loads((run / "evaluation" / "result.json").read_text())
    assert result["protocol"]["image_size"] == [32, 32]
    for name in ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy"):
        assert result[name] == tested[-1][name]
    with PIL.Image.open(run / "curves.png") as picture:
        assert picture.size == (1100, 400)
    at = outcome(run)
    assert at["average_jaccard"] == result["average_jaccard"] <= at["best_average_jaccard"]


def test_what_is_empty_hidden_or_before_the_query_counts_nothing(tmp_path, recipe_path):
    loop = loop_of(load_recipe(recipe_path, ["optimisation.learning_rate=0.0"]), tmp_path)
    batch = next(loop.feed.batches(0, Share()))
    hidden = replace(batch, visible=torch.zeros_like(batch.visible))
    empty = replace(hidden, query_points_tyx=torch.full_like(batch.query_points_tyx, math.inf))
    sums = loop.update(empty, 0)
    assert sums.tolist() == [0, 4, 0, 0, 0, 0, 0]
    assert gradient(loop).abs().max() == 0
    # Hidden points have no place, so that whatever stands there changes nothing; visibility still counts.
    found = []
    for places in (batch.tracks_xy, torch.full_like(batch.tracks_xy, math.nan)):
        loop = loop_of(loop.recipe, tmp_path)
        found.append((loop.update(replace(hidden, tracks_xy=places), 0), gradient(loop)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert found[0][0][0] > 0
    before = torch.arange(4) < batch.query_points_tyx[..., :1]
    assert before.any()
    moved = torch.where(before[..., None], batch.tracks_xy + 9, batch.tracks_xy)
    turned = torch.where(before, ~batch.visible, batch.visible)
    sums = [
        loop_of(loop.recipe, tmp_path).update(some, 0)
        for some in (batch, replace(batch, tracks_xy=moved, visible=turned))
    ]
    assert torch.equal(*sums)


def test_the_logged_figures_are_tapvids(tmp_path, recipe_path):
    loop = loop_of(load_recipe(recipe_path), tmp_path)
    batch = next(loop.feed.batches(0, Share())).split(4)[0]
    with torch.no_grad():
        out = loop.model(*batch.inputs)
        # Near enough to the truth that there is something to tell.
        out = out._replace(points_xy=batch.tracks_xy + 0.05 * (out.points_xy - batch.tracks_xy))
    shares = loop.objective.loss(out, batch).shares
    expected = tapvid_metrics(
        query_points_tyx=batch.query_points_tyx.numpy(),
        gt_occluded=~batch.visible.numpy(),
        gt_tracks_xy=batch.tracks_xy.numpy() * 8,
        pred_occluded=~out.visible.numpy(),
        pred_tracks_xy=out.points_xy.numpy() * 8,
        query_mode="first",
    )
    for name, (right, count) in zip(loop.objective.figures, shares.tolist(), strict=True):
        assert right / count == pytest.approx(expected[name][0], abs=1e-6)
    assert 0.1 < shares[0, 0] / shares[0, 1] < 0.99


@pytest.mark.slow
def test_a_step_shows_the_same_clips_wherever_the_run_began_and_whoever_makes_them(recipe_path):
    alone, helped = (load_recipe(recipe_path, [f"num_workers={workers}"]).feed() for workers in (0, 1))
    whole, late = list(alone.batches(0, Share())), list(helped.batches(4, Share()))
    assert (len(whole), len(late)) == (6, 2)
    for batch, again in zip(whole[4:], late, strict=True):
        for name, tensor in batch.tensors().items():
            assert torch.equal(tensor, again.tensors()[name])
    assert not torch.equal(whole[0].videos, whole[1].videos)
    halves = [next(alone.batches(0, Share(number, 2))) for number in (0, 1)]
    assert torch.equal(halves[0].videos, whole[0].videos[::2])
    assert torch.equal(halves[1].tracks_xy, whole[0].tracks_xy[1::2])


def test_every_point_is_asked_for_where_it_is_seen(recipe_path):
    for share in (0.0, 1.0):
        words = [f"tracks.first_share={share}", "tracks.num_points=40"]
        batch = next(load_recipe(recipe_path, words).feed().batches(0, Share()))
        frames = batch.query_points_tyx[..., 0].long()
        assert batch.visible.gather(2, frames[..., None]).all()
        places = batch.tracks_xy.gather(2, frames[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
        torch.testing.assert_close(batch.query_points_tyx[..., 1:].flip(-1), places)
        first = batch.visible.int().argmax(dim=2)
        assert (frames == first).float().mean() == 1 if share else (frames == first).float().mean() < 0.8


def test_held_out_scenes_are_others(recipe_path):
    recipe = load_recipe(recipe_path, ["tracks.validation_scenes=2"])
    videos = recipe.task.validation()
    trained_on = recipe.feed().clips.source
    assert len(videos) == 2
    assert not np.array_equal(videos[0].video, trained_on[0].video)
    assert videos[0].video.shape == trained_on[0].video.shape


@pytest.fixture
def files(tmp_path) -> Path:
    """Files longer and larger than the clips, with different numbers of points; NaN where a point is hidden."""
    folder = tmp_path / "files"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(5):
        num_points = (1, 3, 9, 12, 2)[number]
        hidden = rng.random((num_points, 7)) < 0.3
        hidden[:, 3] = False  # which every cut of four frames shows
        tracks = rng.uniform(0, 64, (num_points, 7, 2)).astype(np.float32)
        tracks[hidden] = math.nan
        tracks[0, 3] = 64.4  # a little outside
        pixels = rng.integers(0, 256, (7, 64, 64, 3), np.uint8)
        write_track_file(
            folder / f"{number}.npz", TrackedVideo(name="", video=pixels, tracks_xy=tracks, occluded=hidden)
        )
    return folder


def from_files(path: Path, files: Path, *words: str):
    content = {**SMALL, "tracks": {"files": str(files), "num_points": 6, "max_failed_share": 0.3}}
    content["optimisation"] = {"bf16": False, "epochs": 3, "batch_size": 2, "warmup_steps": 2}
    path.write_text(yaml.safe_dump(content))
    return load_recipe(path, words)


@pytest.mark.slow
def test_a_tracker_learns_from_files(tmp_path, recipe_path, files):
    recipe = from_files(recipe_path, files, f"tracks.validation_files={files}")
    feed = recipe.feed()
    assert feed.num_steps == 6
    shown = [[index for step in (2 * epoch, 2 * epoch + 1) for _, index in feed.items(step)] for epoch in range(3)]
    assert all(len(set(some)) == 4 for some in shown)
    assert len({tuple(some) for some in shown}) > 1
    for batch in feed.batches(0, Share()):
        assert batch.videos.shape == (2, 4, 3, 32, 32)
        asked = batch.query_points_tyx[..., 0].isfinite()
        assert torch.equal(asked, batch.visible.any(dim=2))
        assert batch.query_points_tyx[asked][:, 1:].amax() <= 32
    assert {int(count) for batch in feed.batches(0, Share()) for count in asked_for(batch)} >= {1, 6}
    tracker = train(recipe, tmp_path / "run")
    assert tracker.provenance["data"] == str(files)
    assert all(math.isfinite(line["loss"]) for line in read_lines(tmp_path / "run" / "metrics.jsonl"))
    assert json.loads((tmp_path / "run" / "evaluation" / "result.json").read_text())["good"] == 5


def asked_for(batch) -> torch.Tensor:
    return batch.query_points_tyx[..., 0].isfinite().sum(dim=1)


@pytest.mark.slow
def test_files_that_cannot_be_read_are_counted_and_too_many_stop_the_run(tmp_path, recipe_path, files):
    (files / "3.npz").write_bytes(b"no file")
    short = TrackedVideo(
        name="",
        video=np.zeros((3, 32, 32, 3), np.uint8),
        tracks_xy=np.ones((1, 3, 2), np.float32),
        occluded=np.zeros((1, 3), bool),
    )
    train(from_files(recipe_path, files), tmp_path / "run")
    failures = read_lines(tmp_path / "run" / "failures.jsonl")
    assert {line["name"] for line in failures} == {"3"}
    write_track_file(files / "1.npz", short)
    with pytest.raises(DataError, match=r"2 files with tracks could not be read, more than max_failed_share=0\.3"):
        train(from_files(recipe_path, files), tmp_path / "other")
    reasons = [line["reason"] for line in read_lines(tmp_path / "other" / "failures.jsonl")]
    assert any("expected at least num_frames=4 frames, got 3" in reason for reason in reasons)
    with pytest.raises(DataError, match="5 files do not fill one batch of 6"):
        from_files(recipe_path, files, "optimisation.batch_size=6").feed()


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[TAPNext, str]:
    """A trained tracker, and the override that starts another from it."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return train(load_recipe(folder / "small.yaml"), folder / "run"), f"start.weights={folder / 'run' / 'model'}"


@pytest.mark.slow
def test_a_tracker_goes_on_from_another(tmp_path, recipe_path, first):
    first, start = first
    words = [start, "optimisation.learning_rate=0.0"]
    assert same_weights(train(load_recipe(recipe_path, words), tmp_path / "second"), first)
    assert "randomly initialised: none" in (tmp_path / "second" / "start.txt").read_text()


@pytest.mark.slow
def test_a_tracker_that_matches_looks_goes_on_from_one_that_does_not(tmp_path, recipe_path, first):
    first, start = first
    words = [start, "model.matching=true", *TESTED]
    second = train(load_recipe(recipe_path, words), tmp_path / "second")
    assert "randomly initialised: matching." in (tmp_path / "second" / "start.txt").read_text()
    assert set(first.state_dict()) < set(second.state_dict())
    begun = Matching(second.config.blocks.width, second.config.raster_px)
    for name in ("into_token.weight", "guess_out.0.weight", "guess_out.1.weight"):  # all that lies behind has moved
        assert not begun.get_parameter(name).any()
        assert second.matching.get_parameter(name).any()


def test_muon_and_weight_decay_are_for_a_trackers_matrices(recipe_path):
    model = TAPNext(load_recipe(recipe_path).model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adamw, muon = optimisers_of(model, Optimisation(num_steps=1, weight_decay=0.3, muon_learning_rate=0.1))
    spared = {names[id(p)] for group in adamw.param_groups if not group["weight_decay"] for p in group["params"]}
    assert {"point_tokens.unknown", "point_tokens.query", "point_tokens.mask", "tokenizer.positions"} <= spared
    moved = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert moved
    assert all(name.startswith("blocks.") for name in moved)


@pytest.mark.slow
def test_the_loaders_speed_is_measured(recipe_path):
    speed = loader_speed(load_recipe(recipe_path, TESTED), workers=[0], num_steps=3)
    assert min(speed.made[0], speed.used) > 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["model.bloks={}"], "did you mean 'blocks'"),
        (["model.blocks.widht=3"], "did you mean 'width'"),
        (["model.blocks.num_classes=3"], "num_classes=0"),
        (["tracks.scenes.spede=1"], "did you mean 'speed'"),
        (["tracks.scenes.num_frames=9"], "must be those of preprocessing"),
        (["tracks.num_pints=1"], "did you mean 'num_points'"),
        (["tracks.num_points=0"], "num_points: expected 1 to"),
        (["tracks.files=x"], "`scenes` or `files`, one of them"),
        (["tracks.first_share=1.5"], "first_share from 0 to 1"),
        (["tracks.validate_every=3"], "to test on"),
        (["tracks.validation_seed=0"], "that differ, got 0 and 0"),
        (["tracks.validation_scenes=1", "tracks.validation_files=x"], "not both"),
        (["videos={train: x}"], "one of them"),
        (["model={preset: tiny}"], "with `blocks` is a tracker"),
        (["preprocessing.frame_stride=2"], "a tracker sees every frame"),
        (["start.vit=x"], "expected none for a tracker"),
        (["start.whiten_grain_px=3"], "divisor of patch_size=8"),
        (["optimisation.num_steps=0", "optimisation.epochs=2"], "scenes are endless"),
        (["tracks=3"], "is a section, not a value"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(recipe_path, words, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_recipe(recipe_path, words)


def test_easy_scenes_come_first_and_then_fewer_and_fewer(recipe_path):
    words = ["tracks.easy_steps=40", "optimisation.num_steps=60", "optimisation.batch_size=8"]
    recipe = load_recipe(recipe_path, words)
    clips = TrackClips(recipe, recipe.task.tracks)
    is_easy = [clips._source(index) is clips.easy_scenes for index in range(60 * 8)]
    shares = [sum(is_easy[first : first + 80]) / 80 for first in range(0, 480, 80)]
    assert shares == pytest.approx([0.875, 0.625, 0.375, 0.125, 0.0, 0.0], abs=0.15)
    assert is_easy[0]
    assert not any(is_easy[40 * 8 :])
    assert clips.easy_scenes is not None
    easy = clips.easy_scenes.config
    assert (easy.min_things, easy.max_things, easy.plain_share) == (0, 2, 0.0)
    assert easy.num_frames == 4
    # What is shown is a scene of the kind that is said.
    first = clips.easy_scenes[0].video
    assert np.array_equal(clips[0, 0][0].numpy(), np.moveaxis(first, 3, 1))


def test_files_have_no_easy_ones(recipe_path):
    content = {**SMALL, "tracks": {"files": "somewhere", "easy_steps": 10}}
    recipe_path.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="easy_steps"):
        load_recipe(recipe_path)
