"""Costs of a live tracker's empty slots, and the documented figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from models import random_video, tiny_readout_tracker, tiny_tracker
from typer.testing import CliRunner

from paper import tables
from trecvit.bench.slots import slot_costs
from trecvit.cli import app
from trecvit.data.tracked import TrackedVideo, TrackedVideos
from trecvit.errors import ConfigError, InputError
from trecvit.runtime.describe import flops_per_frame
from trecvit.runtime.live import LiveTracker

ROOT = Path(__file__).parent.parent
NUM_FRAMES, NUM_POINTS = 5, 3
TO_RASTER = 256 / 32


def video_of(seed: int, num_points: int = NUM_POINTS) -> TrackedVideo:
    """Noise with points, the last of which is first visible in frame 2."""
    rng = np.random.default_rng(seed)
    occluded = np.zeros((num_points, NUM_FRAMES), bool)
    occluded[-1, :2] = True
    return TrackedVideo(
        name=f"video {seed}",
        video=random_video(1, NUM_FRAMES, 32, 32, seed=seed)[0].movedim(1, -1).contiguous().numpy(),
        tracks_xy=rng.uniform(0, 32, (num_points, NUM_FRAMES, 2)).astype(np.float32),
        occluded=occluded,
    )


def videos_of(*videos: TrackedVideo) -> TrackedVideos:
    return TrackedVideos("noise", [(video.name, lambda video=video: video) for video in videos])


@pytest.mark.slow
def test_predictions_differ_as_those_of_clips_with_empty_queries():
    tracker, videos, reported = tiny_tracker(), [video_of(0), video_of(1)], []
    costs = slot_costs(tracker, videos_of(*videos), empty_slots=[9, 2, 9], report=reported.append)
    assert [cost.empty_slots for cost in costs] == [0, 2, 9]
    assert reported == list(range(1, 2 * NUM_FRAMES * 3 + 1))
    for cost in costs:
        moved_px, otherwise = [], []
        for video in videos:
            first_seen = [0, 0, 2]
            queries = torch.full((1, NUM_POINTS + cost.empty_slots, 3), math.inf)
            for point, frame in enumerate(first_seen):
                x, y = video.tracks_xy[point, frame]
                queries[0, point] = torch.tensor([frame, y, x])
            pixels = torch.from_numpy(video.video).movedim(-1, 1)[None]
            with torch.inference_mode():
                bare, beside = tracker(pixels, queries[:, :NUM_POINTS]), tracker(pixels, queries)
            for point, frame in enumerate(first_seen):
                there = (0, point, slice(frame + 1, None))
                moved_px += (beside.points_xy[there] - bare.points_xy[there]).norm(dim=-1).mul(TO_RASTER).tolist()
                otherwise += (beside.visible[there] != bare.visible[there]).tolist()
        assert len(moved_px) == 2 * (4 + 4 + 2)
        assert cost.answers.moved_median_px == pytest.approx(np.median(moved_px), abs=0.01)
        assert cost.answers.moved_most_px == pytest.approx(max(moved_px), abs=0.01)
        assert cost.answers.moved_median_px <= cost.answers.moved_p99_px <= cost.answers.moved_most_px
        assert cost.answers.seen_otherwise == np.mean(otherwise)
    assert costs[0].answers.moved_most_px == 0
    assert costs[2].answers.moved_most_px > 0.1


@pytest.mark.slow
def test_costs_are_those_of_a_live_tracker_with_as_many_slots():
    tracker = tiny_tracker()
    costs = slot_costs(tracker, videos_of(video_of(0)), empty_slots=[1, 64], trained=False)
    for cost, room in zip(costs[1:], (NUM_POINTS, NUM_POINTS + 63), strict=True):
        assert cost.state_bytes == LiveTracker(tracker, max_points=room).nbytes
        assert cost.gflop == flops_per_frame(tracker, num_points=room + 1) / 1e9
    assert costs[0].gflop < costs[1].gflop < costs[2].gflop
    assert costs[0].times_as_long == 1
    assert all(cost.median_ms > 0 and cost.answers is None for cost in costs)


@pytest.mark.slow
def test_independent_points_do_not_move():
    costs = slot_costs(tiny_readout_tracker(), videos_of(video_of(0)), empty_slots=[8])
    assert costs[1].answers.moved_most_px < 0.01
    assert costs[1].answers.seen_otherwise == 0
    assert costs[1].answers.average_jaccard == pytest.approx(costs[0].answers.average_jaccard)


def test_wrong_arguments_are_refused():
    with pytest.raises(InputError, match="1 or more"):
        slot_costs(tiny_tracker(), videos_of(video_of(0)), empty_slots=[0, 4])
    with pytest.raises(InputError, match=r"same number of points .* \[2, 3\]"):
        slot_costs(tiny_tracker(), videos_of(video_of(0), video_of(1, num_points=2)), empty_slots=[1])
    with pytest.raises(InputError, match="no video"):
        slot_costs(tiny_tracker(), videos_of(), empty_slots=[1])


@pytest.mark.slow
def test_the_command_writes_the_figures_of_the_page(tmp_path):
    tiny_tracker().save(tmp_path / "tracker")
    words = ["bench", "slots", "track_world", "--save", str(tmp_path / "slots.json")]
    few = ["--model", str(tmp_path / "tracker"), "--points", "4", "--empty", "3", "--scenes", "2", "--num-frames", "3"]
    done = CliRunner().invoke(app, [*words, *few], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "slots.json").read_text())
    assert content["scenes"]["image_size"] == [32, 32]
    assert [cost["empty_slots"] for cost in content["costs"]] == [0, 3]
    assert len(tables.slots([content]).splitlines()) == 4
    assert "2 scenes of 3 frames of 32 × 32, 4 points, float32" in tables.slots_scale(content)
    with pytest.raises(ConfigError, match=r"tracks\.scenes"):
        CliRunner().invoke(app, ["bench", "slots", "world"], catch_exceptions=False)


def test_the_page_shows_the_measured_figures():
    measured = [
        json.loads((ROOT / "benchmarks" / "slots" / f"{name}.json").read_text()) for name in ("points", "tapnext_b")
    ]
    page = (ROOT / "docs" / "tracking.md").read_text(encoding="utf-8")
    assert tables.slots(measured) in page
    assert all(tables.slots_scale(content) in page for content in measured)
