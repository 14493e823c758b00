"""Baselines of point tracking: their predictions, and when a point is lost."""

from __future__ import annotations

import builtins
import math
import sys

import numpy as np
import pytest
import torch

from trecvit.data.tracked import TrackedVideo, TrackedVideos
from trecvit.errors import MissingPackageError
from trecvit.evaluate.point_baselines import LucasKanade, static_points
from trecvit.evaluate.tapvid import evaluate_tapvid
from trecvit.synthetic.footage import moved_picture
from trecvit.synthetic.surfaces import surface

QUERIES = torch.tensor([[[0.0, 10, 20], [2, 5.5, 6.5], [3, 30, 1]]])


def numbered(num_frames: int = 6, batch_size: int = 1) -> torch.Tensor:
    """Every pixel of frame t is t; of the second video, 100 + t."""
    frames = (
        torch.arange(num_frames, dtype=torch.uint8)[None] + 100 * torch.arange(batch_size, dtype=torch.uint8)[:, None]
    )
    return frames[:, :, None, None, None].expand(batch_size, num_frames, 3, 40, 50)


class FakeOpenCV:
    """Moves all points by a constant per frame of `numbered`; can be made to fail."""

    TERM_CRITERIA_EPS, TERM_CRITERIA_COUNT, COLOR_RGB2GRAY = 2, 1, 7

    def __init__(self, step: tuple[float, float] = (2.0, -1.0)) -> None:
        self.step = np.array(step, np.float32)
        self.calls: list[tuple[int, int, int]] = []
        self.fails_into: set[int] = set()
        self.wrong_way_back_from: set[int] = set()

    def cvtColor(self, image: np.ndarray, code: int) -> np.ndarray:
        assert code == self.COLOR_RGB2GRAY
        assert image.flags.c_contiguous
        return image[..., 0]

    def calcOpticalFlowPyrLK(self, image, next_image, points, guess, **settings):
        assert points.dtype == np.float32
        assert points.shape[1:] == (1, 2)
        assert guess is None
        assert settings == {"winSize": (21, 21), "maxLevel": 3, "criteria": (3, 30, 0.01)}
        here, there = int(image[0, 0]), int(next_image[0, 0])
        self.calls.append((here, there, len(points)))
        moved = points + (there - here) * self.step
        if there < here and here in self.wrong_way_back_from:
            moved = moved + np.float32(1.5)
        status = np.full((len(points), 1), there not in self.fails_into or there < here, np.uint8)
        return moved, status, None


@pytest.fixture
def opencv(monkeypatch: pytest.MonkeyPatch) -> FakeOpenCV:
    fake = FakeOpenCV()
    monkeypatch.setitem(sys.modules, "cv2", fake)
    return fake


def test_static_points() -> None:
    tracks = static_points(numbered(), QUERIES)
    assert tracks.points_xy.shape == (1, 3, 6, 2)
    assert tracks.points_xy[0, 1].tolist() == [[6.5, 5.5]] * 6
    assert (tracks.visible_logits > 0).all()
    assert tracks.visible_logits.shape == tracks.certainty.shape == (1, 3, 6)


def test_flow_is_summed_from_the_query(opencv: FakeOpenCV) -> None:
    tracks = LucasKanade()(numbered(), QUERIES)
    assert tracks.points_xy.dtype == torch.float32
    assert tracks.points_xy[0, 0].tolist() == [[20 + 2 * t, 10 - t] for t in range(6)]
    assert tracks.points_xy[0, 1, 2:].tolist() == [[6.5 + 2 * t, 5.5 - t] for t in range(4)]
    assert (tracks.visible_logits[0, 0] > 0).all()
    assert torch.equal(tracks.certainty > 0.5, tracks.visible_logits > 0)
    # A point is not tracked before its query.
    assert opencv.calls[:6] == [(0, 1, 1), (1, 0, 1), (1, 2, 1), (2, 1, 1), (2, 3, 2), (3, 2, 2)]


def test_videos_of_a_batch_are_independent(opencv: FakeOpenCV) -> None:
    queries = torch.cat([QUERIES, QUERIES + torch.tensor([1.0, 0, 0])])
    tracks = LucasKanade()(numbered(batch_size=2), queries)
    assert tracks.points_xy[1, 0, 1:].tolist() == [[20 + 2 * t, 10 - t] for t in range(5)]
    assert {here // 100 for here, _, _ in opencv.calls} == {0, 1}
    assert all(abs(here - there) == 1 for here, there, _ in opencv.calls)


@pytest.mark.parametrize("how", ["fails_into", "wrong_way_back_from"])
def test_a_lost_point_stays_where_it_was_and_is_hidden(opencv: FakeOpenCV, how: str) -> None:
    getattr(opencv, how).add(4)
    tracks = LucasKanade()(numbered(), QUERIES)
    assert (tracks.visible_logits[0, 0] > 0).tolist() == [True] * 4 + [False] * 2
    assert tracks.points_xy[0, 0, 4].tolist() == [26, 7]
    assert tracks.points_xy[0, 0, 5].tolist() == [26, 7]
    patient = LucasKanade(return_within_px=3.0)(numbered(), QUERIES)
    assert bool((patient.visible_logits[0, 0] > 0).all()) == (how == "wrong_way_back_from")


def test_a_point_that_leaves_the_frame_is_hidden(opencv: FakeOpenCV) -> None:
    tracks = LucasKanade()(numbered(), torch.tensor([[[0.0, 2.0, 45.0]]]))  # y: 2, 1, 0, -1; x: 45, 47, 49, 51
    assert (tracks.visible_logits[0, 0] > 0).tolist() == [True, True, True, False, False, False]


def test_a_query_after_the_end(opencv: FakeOpenCV) -> None:
    tracks = LucasKanade()(numbered(), torch.tensor([[[math.inf, 0.0, 0.0], [0, 20, 20]]]))
    assert (tracks.visible_logits[0, 0] < 0).all()
    assert (tracks.visible_logits[0, 1] > 0).all()
    assert torch.isfinite(tracks.points_xy).all()


def test_without_opencv_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def no_opencv(name: str, *rest: object, **named: object) -> object:
        if name == "cv2":
            raise ImportError(name)
        return original(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", no_opencv)
    with pytest.raises(MissingPackageError, match=r"trecvit\[flow\]"):
        LucasKanade()


def textured(number: int, **options) -> TrackedVideo:
    picture = (surface(np.random.default_rng(number), 192, kind=1) * 255).astype(np.uint8)
    return moved_picture(picture, name=f"{number}", seed=(number,), num_frames=12, image_size=(128, 128), **options)


def test_static_points_score_low_where_things_move() -> None:
    clips = [textured(number) for number in range(3)]
    data = TrackedVideos("moved", [(clip.name, lambda clip=clip: clip) for clip in clips])
    scores, _ = evaluate_tapvid(static_points, data)
    assert scores.means()["average_jaccard"] < 0.5


def test_real_flow_follows_a_moving_picture() -> None:
    pytest.importorskip("cv2", reason="OpenCV is an extra")
    clips = [textured(number, speed=0.6) for number in range(3)]
    data = TrackedVideos("moved", [(clip.name, lambda clip=clip: clip) for clip in clips])
    for mode in ("first", "strided"):
        flow, _ = evaluate_tapvid(LucasKanade(), data, query_mode=mode, image_size=(128, 128))
        still, _ = evaluate_tapvid(static_points, data, query_mode=mode, image_size=(128, 128))
        assert flow.means()["average_jaccard"] > still.means()["average_jaccard"] + 0.2
        assert flow.means()["pts_within_4"] > 0.8
