"""Points followed through files and streams: on the command line, drawn, written down, and scored."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from models import random_video, tiny_readout_tracker, tiny_tracker
from track_files import write_track_file
from typer.testing import CliRunner

from trecvit.cli import app
from trecvit.data.tapvid import read_tracked
from trecvit.data.tracked import TrackedVideo
from trecvit.errors import ConfigError, DataError, InputError, VideoError
from trecvit.model import tapnext
from trecvit.runtime.describe import POINTS, describe, flops_per_frame
from trecvit.runtime.follow import Trails, follow, follow_live, grid_queries
from trecvit.runtime.live import LiveTracker
from trecvit.video import draw
from trecvit.video.decode import read_frames
from trecvit.video.draw import Trail, draw_caption, draw_grid, draw_trails, draw_truth
from trecvit.video.encode import VideoWriter
from trecvit.weights.load import load

NUM_FRAMES = 6
QUERIES = np.array([[0, 10.0, 20.0], [2, 40.0, 64.0], [0, 0.0, 0.0]], np.float32)


def frames_of(height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [T,H,W,3]."""
    return random_video(1, NUM_FRAMES, height, width)[0].movedim(1, -1).contiguous().numpy()


@pytest.fixture(scope="module")
def tracker(tmp_path_factory) -> str:
    return str(tiny_tracker().save(tmp_path_factory.mktemp("tracker")))


@pytest.fixture(
    scope="module",
    params=[tiny_tracker, partial(tiny_tracker, matching=True), tiny_readout_tracker],
    ids=["tapnext", "matching", "readout"],
)
def either(request, tmp_path_factory) -> str:
    return str(request.param().save(tmp_path_factory.mktemp("either")))


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("videos") / "noise.mkv"  # lossless
    with VideoWriter(path, 10) as writer:
        for frame in frames_of():
            writer.write(frame)
    return str(path)


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


# ---- following -----------------------------------------------------------------------------------------------------


def test_what_is_followed_frame_by_frame_is_what_the_tracker_says_of_the_clip():
    frames = frames_of(32, 32)
    queries = QUERIES * np.array([1, 0.5, 0.5], np.float32)
    model = tiny_tracker()
    with torch.no_grad():
        out = model(torch.from_numpy(frames).movedim(-1, 1)[None], torch.from_numpy(queries)[None])
    updates = list(follow(model, frames, queries))
    assert [update.ids for update in updates] == [(0, 2), (0, 2), *[(0, 1, 2)] * 4]
    for update in updates:
        ids = list(update.ids)
        np.testing.assert_allclose(update.points.points_xy, out.points_xy[0, ids, update.index].numpy(), atol=1e-3)
        np.testing.assert_array_equal(update.points.visible, out.visible[0, ids, update.index].numpy())


def test_a_live_stream_is_followed_by_a_live_tracker():
    live, model = LiveTracker(tiny_tracker(), max_points=3), tiny_tracker()
    for update in follow_live(model, frames_of(), QUERIES):
        for t, y, x in QUERIES:
            if t == update.index:
                live.add(x, y)
        expected = live.update(update.image)
        for got, reference in zip(update.points, expected, strict=True):
            np.testing.assert_array_equal(got, reference)
    assert update.ids == (0, 2, 1)  # in the order in which they came


@pytest.mark.parametrize("run_through", [follow, follow_live])
def test_points_outside_the_picture_and_no_points_are_refused(run_through):
    with pytest.raises(InputError, match=r"y in 0\.\.48 and x in 0\.\.64"):
        next(run_through(tiny_tracker(), frames_of(), np.array([[0, 49, 3]], np.float32)))
    with pytest.raises(InputError, match="at least one point"):
        next(run_through(tiny_tracker(), frames_of(), QUERIES[:0]))


def test_a_grid_lies_in_the_middles_of_its_cells():
    np.testing.assert_array_equal(grid_queries(2, (40, 80)), [[0, 10, 20], [0, 10, 60], [0, 30, 20], [0, 30, 60]])
    with pytest.raises(InputError, match="grid"):
        grid_queries(0, (4, 4))


# ---- drawing -------------------------------------------------------------------------------------------------------


def test_a_trail_fades_into_the_past_and_a_hidden_point_is_hollow():
    black = np.zeros((200, 200, 3), np.uint8)
    way = np.stack([np.linspace(20, 180, 9), np.full(9, 100.0)], axis=1)
    drawn = draw_trails(black, [Trail(way, np.ones(9, bool), 0.0)])
    assert not black.any()
    row = drawn[100, :, 0].astype(int)
    assert row[180] == 255
    assert 0 < row[30] < row[90] < row[150]
    assert (drawn[100, 30:170, 0] >= drawn[100, 30:170, 1]).all()  # red
    hidden = np.ones(9, bool)
    hidden[-1] = False
    assert draw_trails(black, [Trail(way, hidden, 0.0)])[100, 180].max() == 0


def test_what_is_no_number_or_far_away_is_not_drawn():
    grey = np.full((50, 50, 3), 128, np.uint8)
    places = np.array([[np.nan, 3.0], [3.0, np.nan], [1e30, 5.0], [5.0, -np.inf]])
    np.testing.assert_array_equal(draw_trails(grey, [Trail(places, np.ones(4, bool), 0.3)]), grey)
    np.testing.assert_array_equal(draw_truth(grey, places[0], True), grey)


def test_a_picture_painted_in_squares_is_the_picture_painted_whole(monkeypatch):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (150, 201, 3), np.uint8)
    trails = [Trail(rng.uniform(-20, 220, (5, 2)), rng.random(5) < 0.7, number / 12) for number in range(12)]
    pieces = draw_trails(image, trails)
    monkeypatch.setattr(draw, "_TILE_PX", 1000)
    whole = draw_trails(image, trails)
    assert (whole != image).any()
    np.testing.assert_allclose(pieces.astype(int), whole, atol=1)  # Pillow rounds a little differently


def test_a_true_place_is_a_white_cross_that_leaves_it_free():
    grey = np.full((100, 100, 3), 100, np.uint8)
    seen, hidden = (draw_truth(grey, np.array([50.0, 50.0]), visible) for visible in (True, False))
    assert (seen[50, 50] == 100).all()
    assert seen.max() > 220
    assert 100 < hidden.max() < seen.max()


def test_captions_and_grids_keep_to_their_places():
    grey = np.full((90, 120, 3), 128, np.uint8)
    drawn = draw_caption(grey, "a line that is much too long for a picture as small as this one is")
    rows, columns = np.nonzero((drawn != grey).any(axis=2))
    assert rows.min() > 60
    assert columns.min() > 0
    assert columns.max() < 119
    grid = draw_grid([[grey, grey], [grey, grey]], ["a", "b"])
    assert grid.shape[0] > 180
    assert grid.shape[1] > 240
    assert (grid == 128).all(axis=2).sum() >= 4 * 90 * 120
    with pytest.raises(InputError, match="one size"):
        draw_grid([[grey, grey[:40]]], ["a", "b"])
    named = draw_grid([[grey, grey], [grey, grey]], ["a", "b"], row_titles=["first", "second"])
    margin = named.shape[1] - grid.shape[1]
    assert margin > 10
    assert np.array_equal(named[:, margin:], grid)
    assert (named[:, :margin] < 128).any()
    with pytest.raises(InputError, match="row_titles: expected one for each of 1 rows, got 2"):
        draw_grid([[grey, grey]], ["a", "b"], row_titles=["first", "second"])


def test_only_the_last_places_are_remembered():
    trails = Trails(3, num_frames=2)
    for update in follow(tiny_tracker(), frames_of(), QUERIES):
        assert trails.draw(update).shape == (360, 480, 3)
    assert {len(past) for past in trails._past.values()} == {3}


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_track_writes_a_video_and_tracks(video, either, tmp_path):
    out, npz = tmp_path / "out.mp4", tmp_path / "out.npz"
    points = ["--points", "20,10 64,40@2", "--points", "0,0"]
    done = run("track", video, "--model", either, *points, "--save", out, "--tracks", npz)
    assert done.exit_code == 0, done.output
    assert len(list(read_frames(out))) == NUM_FRAMES
    with np.load(npz) as saved:
        arrays = dict(saved)
    np.testing.assert_array_equal(arrays["query_points_tyx"], QUERIES)
    np.testing.assert_allclose(arrays["times_s"], np.arange(NUM_FRAMES) / 10, atol=1e-6)
    assert arrays["points_xy"].shape == (3, NUM_FRAMES, 2)
    assert np.isnan(arrays["points_xy"][1, :2]).all()
    assert np.isfinite(arrays["points_xy"][1, 2:]).all()
    assert not arrays["visible"][1, :2].any()
    assert arrays["certainty"].shape == (3, NUM_FRAMES)

    table = tmp_path / "out.csv"
    done = run("track", video, "--model", either, *points, "--tracks", table)
    assert done.exit_code == 0, done.output
    lines = list(csv.DictReader(table.read_text().splitlines()))
    assert len(lines) == 3 * NUM_FRAMES - 2
    for line in lines:
        place = int(line["point"]), int(line["frame"])
        np.testing.assert_allclose([float(line["x"]), float(line["y"])], arrays["points_xy"][place], atol=1e-3)
        assert bool(int(line["visible"])) == arrays["visible"][place]


@pytest.mark.slow
def test_track_live_prints_a_json_line_per_frame(video, either):
    done = run("track", video, "--model", either, "--live", "--grid", 2)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["frame"] for line in lines] == list(range(NUM_FRAMES))
    assert all([point["id"] for point in line["points"]] == [0, 1, 2, 3] for line in lines)
    assert all(0 <= point["certainty"] <= 1 for line in lines for point in line["points"])


def test_track_says_what_it_cannot_do(video, tracker, tmp_path):
    for words, message in (
        ([], "expected an output"),
        (["--live", "--tracks", tmp_path / "a.npz"], r"expected a \.csv file"),
        (["--points", "3;4", "--live"], "expected x,y or x,y@frame"),
        (["--tracks", tmp_path / "a.txt"], r"\.npz or \.csv"),
        (["--points", "900,3", "--live"], r"x in 0\.\.64"),
        (["--save", video], "would be overwritten"),
    ):
        done = run("track", video, "--model", tracker, *words)
        assert done.exit_code == 1
        assert isinstance(done.exception, ConfigError | InputError), words
        with pytest.raises(type(done.exception), match=message):
            raise done.exception


def test_track_keeps_what_was_readable_of_a_damaged_file(tracker, tmp_path):
    cut = tmp_path / "cut.webm"
    with VideoWriter(cut, 12) as writer:
        for frame in np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), np.uint8):
            writer.write(frame)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    done = run("track", cut, "--model", tracker, "--grid", 1, "--tracks", tmp_path / "cut.npz")
    assert isinstance(done.exception, VideoError)
    with np.load(tmp_path / "cut.npz") as saved:
        assert 5 < len(saved["times_s"]) < 30


@pytest.mark.slow
def test_the_example_gives_up_points_that_stay_lost(tracker, tmp_path):
    slow = tmp_path / "slow.mkv"
    with VideoWriter(slow, 1) as writer:
        for frame in frames_of():
            writer.write(frame)
    example = Path(__file__).parent.parent / "examples" / "track_live.py"
    done = subprocess.run([sys.executable, str(example), str(slow), tracker], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all("removed point" in line for line in done.stdout.splitlines())


@pytest.mark.slow
def test_info_tells_of_trackers(either):
    tapnext._axis_positions.cache_clear()  # as in a process that has tracked nothing before
    done = run("info", either, "--json")
    assert done.exit_code == 0, "".join(traceback.format_exception(done.exception))
    facts = json.loads(done.stdout)
    model = load(either)
    assert facts == json.loads(json.dumps(describe(model)))
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["GFLOP per frame"] == round(flops_per_frame(model) / 1e9, 3)
    state = model.init_state(torch.zeros(1, POINTS, 3))
    assert facts["state bytes per stream"] == state.nbytes


# ---- TAP-Vid -------------------------------------------------------------------------------------------------------


def still_video() -> TrackedVideo:
    points = np.array([[10, 12], [40, 30]], np.float32)
    tracks = np.repeat(points[:, None], NUM_FRAMES, axis=1)
    occluded = np.zeros((2, NUM_FRAMES), bool)
    occluded[1, 3] = True
    return TrackedVideo(name="still", video=frames_of(), tracks_xy=tracks, occluded=occluded)


def test_eval_tapvid_scores_a_baseline_and_draws_it(tmp_path):
    write_track_file(tmp_path / "still.npz", still_video())
    done = run("eval", "tapvid", tmp_path, "--to", tmp_path / "to", "--baseline", "still", "--pictures", tmp_path / "p")
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "to" / "result.json").read_text())
    assert result["average_pts_within_thresh"] == 1  # nothing moves
    assert result["occlusion_accuracy"] == pytest.approx(9 / 10)  # hidden in one of ten frames that count
    assert result["protocol"]["tracker"] == "still"
    with PIL.Image.open(tmp_path / "p" / "still.png") as picture:
        assert picture.width > 4 * picture.height / 2


@pytest.mark.slow
def test_eval_tapvid_scores_a_tracker(either, tmp_path):
    write_track_file(tmp_path / "still.npz", still_video())
    done = run("eval", "tapvid", tmp_path, "--to", tmp_path, "--model", either, "--query-mode", "strided")
    assert done.exit_code == 0, done.output
    protocol = json.loads((tmp_path / "result.json").read_text())["protocol"]
    assert protocol["query_mode"] == "strided"
    assert protocol["image_size"] == [32, 32]
    for words in (["--baseline", "x"], ["--query-mode", "x"]):
        assert isinstance(run("eval", "tapvid", tmp_path, "--to", tmp_path, *words).exception, ConfigError)


def test_data_that_is_none_of_the_benchmarks_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected TAP-Vid"):
        read_tracked(tmp_path)
    with pytest.raises(DataError, match="expected `videos`"):
        read_tracked(tmp_path / "a.json")
    with pytest.raises(DataError, match="Perception Test"):
        read_tracked(tmp_path / "a.pkl", split="valid")
