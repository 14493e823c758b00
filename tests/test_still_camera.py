"""Background points of a still camera, and a tracker's scores on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trecvit.errors import DataError
from trecvit.evaluate.point_baselines import static_points
from trecvit.evaluate.still_camera import background_points, still_camera_scores
from trecvit.model.tracker import TrackerOutput

SIDE = 256


def still_video(num_frames: int = 12, *, moving: bool = True) -> np.ndarray:
    """Coarse noise at rest; a block of other noise crosses its upper half."""
    draws = np.random.default_rng(0)
    picture = draws.integers(0, 256, (32, 32, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    video = np.stack([picture] * num_frames)
    block = draws.integers(0, 256, (60, 50, 3), np.uint8)
    if moving:
        for t in range(num_frames):
            left = 16 * t
            video[t, 30:90, left : left + 50] = block
    noise = draws.normal(0, 2, video.shape)
    return (video + noise).clip(0, 255).astype(np.uint8)


def test_points_of_the_background_stay_clear_of_what_moves():
    points_xy = background_points(still_video())
    assert len(points_xy) > 20
    assert not ((points_xy[:, 1] > 30) & (points_xy[:, 1] < 90)).any()
    distances = torch.cdist(points_xy, points_xy) + 1000 * torch.eye(len(points_xy))
    assert distances.min() >= 10


def test_a_moving_camera_and_a_blank_wall_are_refused():
    video = still_video(moving=False)
    panned = np.stack([np.roll(frame, 12 * t, axis=1) for t, frame in enumerate(video)])
    with pytest.raises(DataError, match="pan: expected 8 or more textured points of a background at rest, got"):
        background_points(panned, name="pan")
    with pytest.raises(DataError, match="video of a still camera"):
        background_points(np.full((5, SIDE, SIDE, 3), 90, np.uint8))


def drifting(video: torch.Tensor, queries: torch.Tensor) -> TrackerOutput:
    """Every point moves by 2 px per frame; the first of each four jumps 30 px in the fourth frame; half are hidden."""
    out = static_points(video, queries)
    num_frames = video.shape[1]
    points_xy = out.points_xy + torch.tensor([2.0, 0.0]) * torch.arange(num_frames)[:, None]
    points_xy[:, ::4, 3:] += torch.tensor([0.0, 30.0])
    visible = out.visible_logits.clone()
    visible[:, :, num_frames // 2 :] = -1
    return out._replace(points_xy=points_xy, visible_logits=visible)


def test_scores_count_what_is_near_lost_and_seen(tmp_path):
    path = tmp_path / "still.npy"
    np.save(path, still_video())
    trackers = (("static", static_points, (SIDE, SIDE)), ("drifting", drifting, (SIDE, SIDE)))
    reports: list[int] = []
    perfect, drift = still_camera_scores(trackers, [path], report=reports.append)
    assert reports == [1, 2]
    assert (perfect.within_4_px, perfect.within_4_px_last_quarter, perfect.survival, perfect.seen) == (1, 1, 1, 1)
    assert perfect.jumps_per_100_frames == 0
    assert perfect.num_frames == 12
    count = perfect.num_points
    jumping = len(range(0, count, 4)) / count
    assert drift.within_4_px == pytest.approx(3 / 12)  # frames 0, 1 and 2
    assert drift.within_4_px_last_quarter == 0
    assert drift.survival == pytest.approx((jumping * 3 + (1 - jumping) * 9) / 12, abs=1e-5)
    assert drift.jumps_per_100_frames == pytest.approx(100 * jumping / 11, abs=1e-4)
    assert drift.seen == 0.5


def test_places_are_those_of_the_raster_whatever_size_a_tracker_sees(tmp_path):
    path = tmp_path / "still.npy"
    np.save(path, still_video(5))
    (small,) = still_camera_scores((("static", static_points, (64, 96)),), [path])
    assert small.within_4_px == 1
