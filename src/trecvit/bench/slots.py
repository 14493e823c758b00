"""Cost of a live tracker's empty slots: latency, memory, and a change of the predictions.

A `TAPNext` carries an empty slot as a token that takes part in spatial attention, as it did in training. So slots for
points that may be added later cost time in every frame, and affect the points that are tracked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from trecvit.data.tracked import TrackedVideo, TrackedVideos
from trecvit.errors import InputError
from trecvit.evaluate.tapvid import IMAGE_SIZE, Queries, queries_first, tapvid_metrics
from trecvit.model.tracker import PointTracker
from trecvit.runtime.describe import flops_per_frame
from trecvit.runtime.follow import TrackUpdate, follow, follow_live


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """A tracker's predictions with empty slots, compared with those without.

    Every point counts in every frame after its query's, over all videos; pixels are those of TAP-Vid's 256 x 256.

    Attributes:
        moved_median_px: Distance from the prediction without empty slots.
        moved_p99_px: Its 99th percentile.
        moved_most_px: Its maximum.
        seen_otherwise: Share of points predicted visible with and hidden without empty slots, or the reverse.
        average_jaccard: TAP-Vid's, against the ground truth.
    """

    moved_median_px: float
    moved_p99_px: float
    moved_most_px: float
    seen_otherwise: float
    average_jaccard: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotCost:
    """A tracker with some number of empty slots beside its points.

    Attributes:
        empty_slots: With 0, all points are given at the start; a `LiveTracker` carries at least 1.
        median_ms: Latency of a frame, resizing included.
        times_as_long: Latency relative to that without empty slots: the median of the ratios within each turn, which
            other load hardly changes.
        gflop: Matrix multiplications of a frame, as PyTorch counts them.
        state_bytes: State carried from frame to frame.
        answers: None for untrained weights.
    """

    empty_slots: int
    median_ms: float
    times_as_long: float
    gflop: float
    state_bytes: int
    answers: Answers | None


def slot_costs(
    tracker: PointTracker,
    videos: TrackedVideos,
    *,
    empty_slots: Sequence[int],
    trained: bool = True,
    report: Callable[[int], None] = lambda _: None,
) -> list[SlotCost]:
    """Track the points of each video frame by frame, every frame with each number of empty slots in turn.

    Points are queried where they are first visible, so they are added at any frame of a stream.

    Args:
        tracker: Any; a result of `trecvit.optimize` to be fast.
        videos: With the same number of points, each visible at some time, and at least 2 frames each.
        empty_slots: Numbers from 1 on; 0 is always measured, and first in the result.
        trained: Whether the tracker is trained, so that its predictions are worth comparing.
        report: Called with the number of frames done, each counted once for every number of slots.

    Raises:
        InputError: for fewer than one empty slot, no video, or videos with different numbers of points.
    """
    if min(empty_slots, default=1) < 1:
        raise InputError(
            f"empty_slots: expected 1 or more, because a LiveTracker carries at least one, got {list(empty_slots)}"
        )
    counts = (0, *sorted(set(empty_slots)))
    runs: list[_Run] = []
    done = 0
    for video in videos:
        run = _Run(tracker, video.resized(tracker.preprocessing.image_size), counts)
        for _ in run:
            done += 1
            report(done)
        runs.append(run)
    sizes = {len(run.queries.tracks) for run in runs}
    if len(sizes) != 1:
        raise InputError(f"videos: expected the same number of points in each, got {sorted(sizes) or 'no video'}")
    (num_points,) = sizes
    # A stream's first frame also makes the state.
    times_s = np.concatenate([run.times_s[:, 1:] for run in runs], axis=1)
    return [
        SlotCost(
            empty_slots=count,
            median_ms=1000 * float(np.median(times_s[row])),
            times_as_long=float(np.median(times_s[row] / times_s[0])),
            gflop=flops_per_frame(tracker, num_points=num_points + count) / 1e9,
            state_bytes=tracker.init_state(torch.full((1, num_points + count, 3), math.inf)).nbytes,
            answers=_answers(runs, row) if trained else None,
        )
        for row, count in enumerate(counts)
    ]


class _Run:
    """One video, tracked with every number of empty slots.

    Attributes:
        queries: Q points.
        times_s: `[C, T]`, latency by number of slots and frame.
        points_xy: `[C, Q, T, 2]`, in pixels of the video; 0 before a point's query.
        visible: `[C, Q, T]`.
    """

    def __init__(self, tracker: PointTracker, video: TrackedVideo, counts: Sequence[int]) -> None:
        self.video = video
        self.queries = queries_first(video)
        shape = (len(counts), len(self.queries.tracks), video.num_frames)
        self.times_s = np.zeros((shape[0], shape[2]))
        self.points_xy = np.zeros((*shape, 2), np.float32)
        self.visible = np.zeros(shape, np.bool_)
        self._streams = [_stream(tracker, video, self.queries, count) for count in counts]

    def __iter__(self) -> Iterator[None]:
        """Process the frames; yield after each update."""
        # The first in a turn has cold caches: each number of slots is first equally often.
        for frame, place in product(range(self.video.num_frames), range(len(self._streams))):
            row = (frame + place) % len(self._streams)
            start_s = time.perf_counter()
            update = next(self._streams[row])
            self.times_s[row, frame] = time.perf_counter() - start_s
            ids = list(update.ids)
            self.points_xy[row, ids, frame] = update.points.points_xy
            self.visible[row, ids, frame] = update.points.visible
            yield

    @property
    def to_raster(self) -> NDArray[np.float64]:
        """Factors of x and y from pixels of the video to TAP-Vid's raster, `[2]`."""
        height, width = self.video.video.shape[1:3]
        return np.array([IMAGE_SIZE[1] / width, IMAGE_SIZE[0] / height])

    @property
    def counted(self) -> NDArray[np.bool_]:
        """`[Q, T]`: the frames after a point's query; in the query's own frame its position is an input."""
        return np.arange(self.video.num_frames) > self.queries.points_tyx[:, :1]

    def average_jaccard(self, row: int) -> float:
        """TAP-Vid's metric of this video."""
        tracks = self.queries.tracks
        metrics = tapvid_metrics(
            query_points_tyx=self.queries.points_tyx[None],
            gt_occluded=self.video.occluded[tracks][None],
            gt_tracks_xy=self.video.tracks_xy[tracks][None] * self.to_raster,
            pred_occluded=~self.visible[row][None],
            pred_tracks_xy=self.points_xy[row][None] * self.to_raster,
            query_mode="first",
        )
        return float(metrics["average_jaccard"][0])


def _stream(tracker: PointTracker, video: TrackedVideo, queries: Queries, empty_slots: int) -> Iterator[TrackUpdate]:
    if not empty_slots:
        return follow(tracker, video.video, queries.points_tyx)
    # A live tracker carries one slot more than there can be points.
    max_points = len(queries.tracks) + empty_slots - 1
    return follow_live(tracker, video.video, queries.points_tyx, max_points=max_points)


def _answers(runs: Sequence[_Run], row: int) -> Answers:
    moved_px = np.concatenate(
        [np.linalg.norm((run.points_xy[row] - run.points_xy[0]) * run.to_raster, axis=-1)[run.counted] for run in runs]
    )
    otherwise = np.concatenate([(run.visible[row] != run.visible[0])[run.counted] for run in runs])
    return Answers(
        moved_median_px=float(np.median(moved_px)),
        moved_p99_px=float(np.quantile(moved_px, 0.99)),
        moved_most_px=float(moved_px.max()),
        seen_otherwise=float(otherwise.mean()),
        average_jaccard=float(np.mean([run.average_jaccard(row) for run in runs])),
    )
