"""TAP-Vid: the metrics equal the benchmark's own, the queries are its, and the protocol asks and scores as it says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trecvit.data.tracked import TrackedVideo, TrackedVideos, random_queries
from trecvit.errors import DataError, InputError, VideoError
from trecvit.evaluate.tapvid import (
    QUERY_MODES,
    evaluate_tapvid,
    queries_first,
    queries_strided,
    tapvid_metrics,
    tapvid_protocol,
    track_both_ways,
    write_tapvid_result,
)
from trecvit.model.tracker import TrackerOutput

GOLDEN = Path(__file__).parent / "golden" / "tapvid_metrics.npz"
KEYS = ("query_points_tyx", "gt_occluded", "gt_tracks_xy", "pred_occluded", "pred_tracks_xy")


def tracked(num_tracks=4, num_frames=12, height=32, width=64, name="a video", seed=0) -> TrackedVideo:
    """Points that move straight, and hide now and then."""
    rng = np.random.default_rng(seed)
    start, step = rng.uniform(5, 25, (num_tracks, 1, 2)), rng.uniform(-1, 1, (num_tracks, 1, 2))
    occluded = rng.random((num_tracks, num_frames)) < 0.3
    occluded[:, -1] = False
    return TrackedVideo(
        name=name,
        video=rng.integers(0, 256, (num_frames, height, width, 3), np.uint8),
        tracks_xy=(start + step * np.arange(num_frames)[:, None]).astype(np.float32),
        occluded=occluded,
    )


def as_data(*videos: TrackedVideo) -> TrackedVideos:
    return TrackedVideos("tests", [(video.name, lambda video=video: video) for video in videos])


class Oracle:
    """Knows the tracks of one video in pixels of the size it is shown, and finds each query's by its place."""

    def __init__(self, video: TrackedVideo, offset_px: float = 0.0, hidden: bool = False) -> None:
        self.truth, self.offset_px, self.hidden = video, offset_px, hidden
        self.queries: list[torch.Tensor] = []

    def __call__(self, video: torch.Tensor, query_points_tyx: torch.Tensor) -> TrackerOutput:
        assert video.dtype == torch.uint8
        assert video.ndim == 5
        assert query_points_tyx.dtype == torch.float32
        self.queries.append(query_points_tyx)
        truth = self.truth.resized(tuple(video.shape[3:]))
        tracks, hidden = torch.from_numpy(truth.tracks_xy), torch.from_numpy(truth.occluded)
        if not torch.equal(video[0].permute(0, 2, 3, 1), torch.from_numpy(truth.video)):
            tracks, hidden = tracks.flip(1), hidden.flip(1)
            assert torch.equal(video[0].permute(0, 2, 3, 1), torch.from_numpy(truth.video).flip(0))
        t = query_points_tyx[0, :, 0].long()
        places = tracks[:, t]  # [tracks, Q, 2]
        number = (places - query_points_tyx[0, :, 1:].flip(-1)).norm(dim=-1).argmin(0)
        # Frames before the query are undefined.
        before = torch.arange(video.shape[1]) < t[:, None]
        points = torch.where(before[..., None], torch.nan, tracks[number] + self.offset_px)
        visible = torch.where(hidden[number] | before | self.hidden, -5.0, 5.0)
        return TrackerOutput(points[None], visible[None], torch.ones_like(visible)[None])


# ---- metrics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", QUERY_MODES)
@pytest.mark.parametrize("case", ["case0", "case1", "case2"])
def test_metrics_equal_the_original_code(case: str, mode: str) -> None:
    with np.load(GOLDEN) as golden:
        found = tapvid_metrics(**{key: golden[f"{case}/{key}"] for key in KEYS}, query_mode=mode)
        expected = {key.split("/")[2]: golden[key] for key in golden if key.startswith(f"{case}/{mode}/")}
    assert len(expected) == 13
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert np.abs(found[name] - value).max() <= 1e-6, name


def test_each_video_of_a_batch_is_scored_by_itself() -> None:
    rng = np.random.default_rng(0)
    shape = (3, 5, 9)
    batch = {
        "query_points_tyx": np.concatenate([rng.integers(0, 9, (3, 5, 1)), rng.uniform(0, 256, (3, 5, 2))], axis=2),
        "gt_occluded": rng.random(shape) < 0.3,
        "gt_tracks_xy": rng.uniform(0, 256, (*shape, 2)),
        "pred_occluded": rng.random(shape) < 0.3,
    }
    batch["pred_tracks_xy"] = batch["gt_tracks_xy"] + rng.normal(0, 4, (*shape, 2))
    for mode in QUERY_MODES:
        together = tapvid_metrics(**batch, query_mode=mode)
        for row in range(3):
            alone = tapvid_metrics(**{key: value[row : row + 1] for key, value in batch.items()}, query_mode=mode)
            assert all(together[name][row] == alone[name][0] for name in together)


def test_a_case_worked_by_hand() -> None:
    """One point, queried in frame 1 of 5: exact; exact but predicted hidden; 3 px off; hidden but predicted visible."""
    truth = np.zeros((1, 1, 5, 2))
    predicted = truth.copy()
    predicted[0, 0, 3, 0] = 3.0
    arguments = {
        "query_points_tyx": np.array([[[1, 0.0, 0.0]]]),
        "gt_occluded": np.array([[[False, False, False, False, True]]]),
        "gt_tracks_xy": truth,
        "pred_occluded": np.array([[[True, False, True, False, False]]]),
        "pred_tracks_xy": predicted,
    }
    first = tapvid_metrics(**arguments, query_mode="first")  # frames 2, 3, 4
    assert first["occlusion_accuracy"] == pytest.approx(1 / 3)
    assert [first[f"pts_within_{d}"][0] for d in (1, 2, 4)] == [0.5, 0.5, 1.0]
    # 2 px: no true positive. 4 px: one; visible are 2, and one false positive.
    assert [first[f"jaccard_{d}"][0] for d in (2, 4)] == pytest.approx([0.0, 1 / 3])
    strided = tapvid_metrics(**arguments, query_mode="strided")  # frames 0, 2, 3, 4
    assert strided["occlusion_accuracy"] == pytest.approx(1 / 4)
    assert strided["jaccard_4"] == pytest.approx(1 / 4)
    assert strided["pts_within_1"] == pytest.approx(2 / 3)


def test_exactly_on_the_threshold_is_too_far() -> None:
    arguments = {
        "query_points_tyx": np.zeros((1, 1, 3)),
        "gt_occluded": np.zeros((1, 1, 2), bool),
        "gt_tracks_xy": np.zeros((1, 1, 2, 2)),
        "pred_occluded": np.zeros((1, 1, 2), bool),
        "pred_tracks_xy": np.full((1, 1, 2, 2), [4.0, 0.0]),
    }
    found = tapvid_metrics(**arguments, query_mode="first")
    assert found["pts_within_4"] == 0
    assert found["pts_within_8"] == 1


def test_nothing_visible_is_nan_without_a_warning() -> None:
    arguments = {
        "query_points_tyx": np.zeros((1, 1, 3)),
        "gt_occluded": np.array([[[False, True]]]),
        "gt_tracks_xy": np.zeros((1, 1, 2, 2)),
        "pred_occluded": np.ones((1, 1, 2), bool),
        "pred_tracks_xy": np.zeros((1, 1, 2, 2)),
    }
    found = tapvid_metrics(**arguments, query_mode="first")
    assert math.isnan(found["average_jaccard"][0])
    assert math.isnan(found["pts_within_1"][0])
    assert found["occlusion_accuracy"] == 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query_mode": "last"}, "query_mode"),
        ({"query_points_tyx": np.zeros((1, 3, 3))}, "query_points_tyx"),
        ({"query_points_tyx": np.full((1, 2, 3), 9.0)}, "0 to 3"),
        ({"gt_occluded": np.zeros((2, 4), bool)}, "gt_occluded"),
        ({"gt_tracks_xy": np.zeros((1, 2, 5, 2))}, "gt_tracks_xy"),
        ({"pred_occluded": np.zeros((1, 3, 4), bool)}, "pred_occluded"),
        ({"pred_tracks_xy": np.zeros((1, 2, 4, 3))}, "pred_tracks_xy"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict, message: str) -> None:
    arguments = {
        "query_points_tyx": np.zeros((1, 2, 3)),
        "gt_occluded": np.zeros((1, 2, 4), bool),
        "gt_tracks_xy": np.zeros((1, 2, 4, 2)),
        "pred_occluded": np.zeros((1, 2, 4), bool),
        "pred_tracks_xy": np.zeros((1, 2, 4, 2)),
        "query_mode": "first",
    }
    with pytest.raises(InputError, match=message):
        tapvid_metrics(**{**arguments, **changed})


# ---- queries ---------------------------------------------------------------------------------------------------------


def hidden_as(rows: list[str]) -> TrackedVideo:
    """Tracks that are seen where a row has an x."""
    occluded = np.array([[letter != "x" for letter in row] for row in rows])
    shape = (*occluded.shape, 2)
    return TrackedVideo(
        name="rows",
        video=np.zeros((occluded.shape[1], 8, 8, 3), np.uint8),
        tracks_xy=np.arange(np.prod(shape), dtype=np.float32).reshape(shape),
        occluded=occluded,
    )


def test_first_queries() -> None:
    video = hidden_as(["..x.xx", "......", "x....."])
    queries = queries_first(video)
    assert queries.tracks.tolist() == [0, 2]
    assert queries.points_tyx.tolist() == [[2, 5, 4], [0, 25, 24]]
    assert queries.points_tyx.dtype == np.float32


def test_strided_queries() -> None:
    video = hidden_as(["x....x.....x", ".....x....x.", ".xxxx.xxxx.x"])
    queries = queries_strided(video)
    assert queries.tracks.tolist() == [0, 0, 1, 1]
    assert queries.points_tyx[:, 0].tolist() == [0, 5, 5, 10]
    assert queries.points_tyx[1].tolist() == [5, 11, 10]
    assert queries_strided(video, stride=1).points_tyx.shape == (14, 3)


def test_random_queries_are_where_the_track_is_seen() -> None:
    video = hidden_as(["..x.xx", "x.....", "xxxxxx"])
    rng = np.random.default_rng(0)
    drawn = np.stack([random_queries(video, rng) for _ in range(600)])
    frames = drawn[..., 0].astype(int)
    assert set(frames[:, 0]) == {2, 4, 5}
    assert set(frames[:, 1]) == {0}
    counts = np.bincount(frames[:, 2])
    assert counts.min() > 60  # 100 each on average
    for query, frame in zip(drawn[0], frames[0], strict=True):
        assert query[1:].tolist() in video.tracks_xy[:, frame, ::-1].tolist()
    with pytest.raises(DataError, match="track 1"):
        random_queries(hidden_as(["x.", ".."]), rng)


# ---- videos with tracks ----------------------------------------------------------------------------------------------


def test_resizing_moves_points_with_the_picture() -> None:
    video = tracked(height=40, width=80)
    video.video[:] = 0
    video.video[:, 20:28, 40:48] = 255  # its outer corners are at (40, 20) and (48, 28)
    video.tracks_xy[0] = [40, 20]
    video.tracks_xy[1] = [48, 28]
    small = video.resized((100, 100))
    assert small.video.shape == (12, 100, 100, 3)
    bright = np.argwhere(small.video[3, ..., 0] > 127)
    low, high = bright.min(axis=0)[::-1], bright.max(axis=0)[::-1] + 1
    assert np.allclose(small.tracks_xy[0], low)
    assert np.allclose(small.tracks_xy[1], high)
    assert small.resized((100, 100)) is small


def test_given_queries_are_resized_too() -> None:
    video = tracked(num_tracks=1, height=10, width=10)
    original = TrackedVideo(
        name="q", video=video.video, tracks_xy=video.tracks_xy, occluded=video.occluded,
        query_points_tyx=np.array([[3, 5, 7]], np.float32),
    )  # fmt: skip
    resized = original.resized((20, 40))
    assert resized.query_points_tyx is not None
    assert resized.query_points_tyx.tolist() == [[3, 10, 28]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("video", np.zeros((12, 32, 64), np.uint8)),
        ("video", np.zeros((0, 32, 64, 3), np.uint8)),
        ("tracks_xy", np.zeros((4, 11, 2), np.float32)),
        ("tracks_xy", np.full((4, 12, 2), np.nan, np.float32)),
        ("occluded", np.zeros((3, 12), bool)),
        ("occluded", np.zeros((4, 12), np.uint8)),
        ("query_points_tyx", np.zeros((4, 2), np.float32)),
    ],
)
def test_tracks_that_do_not_hold_together_are_refused(field: str, value: np.ndarray) -> None:
    video = tracked()
    fields = {"name": "b", "video": video.video, "tracks_xy": video.tracks_xy, "occluded": video.occluded}
    with pytest.raises(DataError, match="b: "):
        TrackedVideo(**{**fields, field: value})


def test_some_of_the_videos() -> None:
    data = as_data(*[tracked(name=name) for name in "abcd"])
    assert len(data) == 4
    assert data[1:3].names == ("b", "c")
    assert data[1:3][1].name == "c"
    assert [video.name for video in data] == list("abcd")


# ---- the protocol ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", QUERY_MODES)
def test_a_perfect_tracker_is_perfect(mode: str) -> None:
    video = tracked()
    scores, failures = evaluate_tapvid(Oracle(video), as_data(video), query_mode=mode)
    assert failures == []
    assert scores.means() == dict.fromkeys(scores.metrics, 1.0)
    if mode == "first":
        assert scores.num_queries == (4,)


@pytest.mark.parametrize("size", [(256, 256), (64, 128)])
def test_errors_count_in_pixels_of_the_benchmark(size: tuple[int, int]) -> None:
    """3 px of the 256 raster, whatever the tracker was shown."""
    video = tracked()

    class Off(Oracle):
        def __call__(self, video: torch.Tensor, query_points_tyx: torch.Tensor) -> TrackerOutput:
            tracks = super().__call__(video, query_points_tyx)
            return tracks._replace(points_xy=tracks.points_xy + torch.tensor([3.0 * size[1] / 256, 0]))

    scores, _ = evaluate_tapvid(Off(video), as_data(video), image_size=size)
    means = scores.means()
    assert [means[f"pts_within_{d}"] for d in (1, 2, 4, 8, 16)] == [0, 0, 1, 1, 1]
    assert means["average_jaccard"] == pytest.approx(3 / 5)
    assert means["occlusion_accuracy"] == 1


def test_the_tracker_sees_256_pixels_and_queries_in_them() -> None:
    video = tracked(height=32, width=64)
    oracle = Oracle(video)
    evaluate_tapvid(oracle, as_data(video))
    [queries_seen] = oracle.queries
    expected = queries_first(video).points_tyx * [1, 256 / 32, 256 / 64]
    assert np.allclose(queries_seen[0].numpy(), expected)


def test_strided_mode_goes_both_ways() -> None:
    video = tracked(num_frames=12)
    scores, _ = evaluate_tapvid(Oracle(video), as_data(video), query_mode="strided", queries_at_once=3)
    assert scores.means()["average_jaccard"] == 1  # the oracle says NaN of what was before a query
    oracle = Oracle(video)
    queries = torch.from_numpy(queries_strided(video).points_tyx)[None]
    both = track_both_ways(oracle, torch.from_numpy(video.video).permute(0, 3, 1, 2)[None], queries)
    assert torch.isfinite(both.points_xy).all()
    assert torch.allclose(oracle.queries[1][..., 0], 11 - queries[..., 0])


def test_queries_can_be_split() -> None:
    video = tracked(num_tracks=5)
    oracle = Oracle(video)
    scores, _ = evaluate_tapvid(oracle, as_data(video), queries_at_once=2)
    assert [queries.shape[1] for queries in oracle.queries] == [2, 2, 1]
    assert scores.means()["average_jaccard"] == 1


def test_certainty_can_hide_points() -> None:
    video = tracked()

    def unsure(frames: torch.Tensor, queries: torch.Tensor) -> SimpleNamespace:
        tracks = Oracle(video)(frames, queries)
        return SimpleNamespace(**{**tracks._asdict(), "certainty": tracks.certainty * 0.4})

    plain, _ = evaluate_tapvid(unsure, as_data(video))
    strict, _ = evaluate_tapvid(unsure, as_data(video), use_certainty=True)
    assert plain.means()["average_jaccard"] == 1
    assert strict.means()["average_jaccard"] == 0
    assert strict.means()["average_pts_within_thresh"] == 1


def test_means_are_over_videos_and_failures_are_named(tmp_path: Path) -> None:
    good, other = tracked(num_tracks=9, name="good"), tracked(num_tracks=2, seed=1, name="other")
    never = hidden_as(["...", "x.."])

    def broken() -> TrackedVideo:
        raise VideoError("broken.mp4", "no video stream")

    readers = [("good", lambda: good), ("broken", broken), ("never", lambda: never), ("other", lambda: other)]
    data = TrackedVideos("tests", readers)
    calls: list[tuple[int, int]] = []
    by_name = {(9,): Oracle(good), (2,): Oracle(other, hidden=True)}
    tracker = lambda video, queries: by_name[tuple(queries.shape[1:2])](video, queries)  # noqa: E731
    scores, failures = evaluate_tapvid(tracker, data, report=lambda *done: calls.append(done))
    assert scores.names == ("good", "other")
    assert scores.num_queries == (9, 2)
    assert [failure.name for failure in failures] == ["broken", "never"]
    assert "no video stream" in failures[0].reason
    assert "visible" in failures[1].reason
    assert calls == [(1, 0), (2, 1), (3, 2), (4, 2)]
    assert scores.means()["average_jaccard"] == 0.5

    protocol = tapvid_protocol(data, tracker="an oracle", query_mode="first")
    result = write_tapvid_result(tmp_path / "out", scores, protocol, failures)
    stored = json.loads((tmp_path / "out" / "result.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(result))
    assert stored["average_jaccard"] == 0.5
    assert stored["failed"][0] == {"name": "broken", "reason": "broken.mp4: no video stream"}
    assert stored["per_video"][1]["video"] == "other"
    assert stored["per_video"][1]["queries"] == 2
    assert stored["per_video"][1]["jaccard_16"] == 0
    assert stored["protocol"]["query_mode"] == "first"
    assert stored["protocol"]["listed"] == 4


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(DataError, match="none of 1 videos"):
        evaluate_tapvid(Oracle(tracked()), as_data(hidden_as(["x.."])))
    with pytest.raises(DataError, match="none of 0"):
        evaluate_tapvid(Oracle(tracked()), TrackedVideos("tests", []))


def test_a_tracker_that_answers_in_other_shapes_is_refused() -> None:
    video = tracked()

    def without_time(frames: torch.Tensor, queries: torch.Tensor) -> TrackerOutput:
        tracks = Oracle(video)(frames, queries)
        return tracks._replace(visible_logits=tracks.visible_logits[..., None])

    with pytest.raises(InputError, match="visible_logits"):
        evaluate_tapvid(without_time, as_data(video))


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="queries_at_once"):
        evaluate_tapvid(Oracle(tracked()), as_data(tracked()), queries_at_once=0)
    with pytest.raises((InputError, TypeError), match="query_mode"):  # a TypeError where types are checked
        evaluate_tapvid(Oracle(tracked()), as_data(tracked()), query_mode="last")
