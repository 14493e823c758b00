"""What a live tracker's empty slots cost: time, memory, and a change in the answer.

A `TAPNext` carries an empty slot as a token that takes part in spatial attention, as it did in training. So room for
points that may come later is paid for in every frame, and is not without effect on the points that are there.
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
    """What a tracker says with empty slots, beside what it says without them.

    Every point counts in every frame after its query's, over all videos; pixels are those of TAP-Vid's 256 x 256.

    Attributes:
        moved_median_px: How far points are from where they are without empty slots.
        moved_p99_px: Of a hundred points one is farther.
        moved_most_px: The farthest.
        seen_otherwise: Share of points that are called visible with and hidden without, or the reverse.
        average_jaccard: TAP-Vid's, against the truth.
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
        empty_slots: 0 is the tracker told of all its points at the start; a `LiveTracker` carries 1 at the least.
        median_ms: Of a frame: brought to the tracker's size, and tracked.
        times_as_long: As without empty slots: the median of the ratios within each turn, which a busy machine hardly
            changes.
        gflop: Of a frame, in matrix products, as PyTorch counts them.
        state_bytes: Carried from frame to frame.
        answers: None for weights that nobody trained.
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
    """Follows the points of each video frame by frame, with each number of empty slots in turn for every frame.

    Points are asked for where they are first seen, so they come at any frame of a stream.

    Args:
        tracker: Any; as `trecvit.optimize` made it, if it is to be fast.
        videos: Of one number of points, that are all seen at some time, and at least 2 frames each.
        empty_slots: Numbers from 1 on; 0 is always measured, and stands first in what is returned.
        trained: Whether the answers mean something.
        report: Called with the number of frames done, each counted once for every number of slots.

    Raises:
        InputError: for fewer than one empty slot, no video, or videos whose numbers of points differ.
    """
    if min(empty_slots, default=1) < 1:
        raise InputError(f"empty_slots: expected 1 or more, as a LiveTracker carries one at the least: {empty_slots}")
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
    """One video, followed with every number of empty slots.

    Attributes:
        queries: What was asked, Q points.
        times_s: `[C, T]`, of each number of slots and frame.
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
        """Goes through the frames; yields after each update."""
        # Whoever comes first in a turn finds the caches as another left them: each is first equally often.
        for frame, place in product(range(self.video.num_frames), range(len(self._streams))):
            row = (frame + place) % len(self._streams)
            begun_s = time.perf_counter()
            update = next(self._streams[row])
            self.times_s[row, frame] = time.perf_counter() - begun_s
            ids = list(update.ids)
            self.points_xy[row, ids, frame] = update.points.points_xy
            self.visible[row, ids, frame] = update.points.visible
            yield

    @property
    def to_raster(self) -> NDArray[np.float64]:
        """What x and y are multiplied by to be pixels of TAP-Vid's raster, `[2]`."""
        height, width = self.video.video.shape[1:3]
        return np.array([IMAGE_SIZE[1] / width, IMAGE_SIZE[0] / height])

    @property
    def counted(self) -> NDArray[np.bool_]:
        """`[Q, T]`: the frames after a point's query; in the query's own it has just been told."""
        return np.arange(self.video.num_frames) > self.queries.points_tyx[:, :1]

    def average_jaccard(self, row: int) -> float:
        """TAP-Vid's metric of this one video."""
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
    room = len(queries.tracks) + empty_slots - 1
    return follow_live(tracker, video.video, queries.points_tyx, max_points=room)


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
