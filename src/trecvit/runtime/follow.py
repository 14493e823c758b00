"""Points of a video or a live stream: followed, drawn and written down, with one frame at a time in memory."""

from __future__ import annotations

import csv
import math
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from trecvit.errors import InputError
from trecvit.files import write_whole
from trecvit.model.tracker import PointTracker, read_queries
from trecvit.runtime.live import LivePoints, LiveTracker, points_in_frame
from trecvit.video.decode import Source, Video, open_video
from trecvit.video.draw import Trail, draw_caption, draw_trails, fit_for_display
from trecvit.video.frames import Image
from trecvit.video.transforms import to_whole_clip

Queries: TypeAlias = Float32[np.ndarray, "q 3"]
"""(frame, y, x) of each point, in pixels of the source."""


@dataclass(frozen=True)
class TrackUpdate:
    """One frame of the source, and where the points are in it.

    Attributes:
        index: Number of the frame in the source, from 0.
        time_s: Its time.
        image: The frame, uint8 `[H, W, 3]`; the receiver may draw on it.
        ids: Which queries have come by now, as their numbers in the list of queries.
        points: Where their points are; row n is that of `ids[n]`.
    """

    index: int
    time_s: float
    image: Image
    ids: tuple[int, ...]
    points: LivePoints


def grid_queries(count: int, image_size: tuple[int, int]) -> Queries:
    """`count` x `count` points of the first frame, row by row, each in the middle of its part of the picture.

    Raises:
        InputError: for a count below 1.
    """
    if count < 1:
        raise InputError(f"grid: expected 1 or more points a side, got {count}")
    middles = (np.arange(count) + 0.5) / count
    y, x = np.meshgrid(middles * image_size[0], middles * image_size[1], indexing="ij")
    return np.stack([np.zeros_like(x), y, x], axis=-1).reshape(-1, 3).astype(np.float32)


def follow(tracker: PointTracker, source: Source | Video, query_points_tyx: Queries) -> Iterator[TrackUpdate]:
    """Tracks points through a source as its frames come. Memory does not grow with their number.

    Frames are brought to `tracker.preprocessing.image_size`; what comes out is what the tracker says of them as one
    clip.

    Args:
        tracker: Such as `load("bootstapnext")`.
        source: Whatever `trecvit.video.decode.open_video` takes.
        query_points_tyx: At least one. A point is told of from its frame on.

    Yields:
        An update for every frame of the source.

    Raises:
        VideoError: as `read_frames`: at once, or after everything that could be decoded.
        InputError: for no queries, or one that is not in the picture.
    """
    height, width = tracker.preprocessing.image_size
    state = None
    scale_xy = (1.0, 1.0)
    with open_video(source) as video:
        for frame in video.frames():
            if state is None:
                _check(query_points_tyx, frame.image)
                # In this order, the last pixel's edge stays the last pixel's edge.
                to_model = np.array([[[1, height, width]]]), np.array([[[1, *frame.image.shape[:2]]]])
                state = tracker.init_state(torch.from_numpy(query_points_tyx * to_model[0] / to_model[1]))
                scale_xy = (frame.image.shape[1] / width, frame.image.shape[0] / height)
            clip = to_whole_clip(frame.image[None], (height, width))[None]
            with torch.inference_mode():
                out, state = tracker.step(clip.to(tracker.device), state)
            ids = [number for number, query in enumerate(query_points_tyx) if query[0] <= frame.index]
            yield TrackUpdate(frame.index, frame.time_s, frame.image, tuple(ids), points_in_frame(out, ids, scale_xy))


def follow_live(
    tracker: PointTracker, source: Source | Video, query_points_tyx: Queries, *, max_points: int | None = None
) -> Iterator[TrackUpdate]:
    """`follow` by way of a `LiveTracker`, to which each point is added when its frame comes.

    The empty slots that a `LiveTracker` carries take part in what a `TAPNext` does, so its points may differ a little
    from those of `follow`.

    Args:
        tracker: As for `follow`.
        source: Likewise.
        query_points_tyx: Likewise.
        max_points: Room for more points than are asked for, by default there is none.

    Yields:
        As `follow`.

    Raises:
        VideoError: as `follow`.
        InputError: as `follow`.
    """
    live = LiveTracker(tracker, max_points=max_points or max(1, len(query_points_tyx)))
    query_of: dict[int, int] = {}
    with open_video(source) as video:
        for frame in video.frames():
            if frame.index == 0:
                _check(query_points_tyx, frame.image)
            for number, (t, y, x) in enumerate(query_points_tyx):
                if t == frame.index:
                    query_of[live.add(float(x), float(y))] = number
            points = live.update(frame.image)
            yield TrackUpdate(frame.index, frame.time_s, frame.image, tuple(query_of[one] for one in live.ids), points)


def _check(query_points_tyx: Queries, image: Image) -> None:
    if not len(query_points_tyx):
        raise InputError("query_points_tyx: expected at least one point to follow, got none")
    read_queries(torch.from_numpy(query_points_tyx)[None], (image.shape[0], image.shape[1]))


# ---- drawn ---------------------------------------------------------------------------------------------------------


class Trails:
    """Draws updates with the ways that the points came lately; each point has a hue of its own.

    Args:
        num_points: Over how many points the rainbow is spread.
        num_frames: How far back a way reaches.
    """

    def __init__(self, num_points: int, num_frames: int) -> None:
        self._num_points = num_points
        self._num_frames = num_frames
        self._past: dict[int, deque[tuple[NDArray[Any], bool]]] = {}

    def draw(self, update: TrackUpdate) -> Image:
        """The update's frame, enlarged if tiny, with points, ways, time and how many points are seen."""
        image = fit_for_display(update.image)
        scale = np.array([image.shape[1] / update.image.shape[1], image.shape[0] / update.image.shape[0]])
        for number, point_xy, visible in zip(update.ids, update.points.points_xy, update.points.visible, strict=True):
            past = self._past.setdefault(number, deque(maxlen=self._num_frames + 1))
            past.append((point_xy * scale, bool(visible)))
        trails = [
            Trail(
                np.array([point for point, _ in self._past[number]]),
                np.array([visible for _, visible in self._past[number]]),
                hue_of(number, self._num_points),
            )
            for number in update.ids
        ]
        seen = f"{int(update.points.visible.sum())} of {len(update.ids)} points seen"
        words = f"{update.time_s:.2f} s · frame {update.index} · {seen}"
        return draw_caption(draw_trails(image, trails), words)


def hue_of(number: int, num_points: int) -> float:
    """A point's place in the rainbow from red to magenta, which ends before it is red again."""
    return 0.85 * number / max(1, num_points - 1)


# ---- written down --------------------------------------------------------------------------------------------------


class TracksWriter(Protocol):
    """Takes the updates of a source, in their order."""

    def write(self, update: TrackUpdate) -> None:
        """Adds one frame."""


def tracks_writer(path: Path, query_points_tyx: Queries) -> AbstractContextManager[TracksWriter]:
    """Writes tracks to a `.npz` or `.csv` file, as the name says.

    Raises:
        InputError: for another kind of file.
    """
    if path.suffix.lower() == ".npz":
        return TracksNpz(path, query_points_tyx)
    if path.suffix.lower() == ".csv":
        return TracksCsv(path)
    raise InputError(f"{path}: expected a name that ends in .npz or .csv")


class TracksCsv:
    """A line for each point in each frame, written as they come: frame, time_s, point, x, y, visible, certainty.

    The file is opened for the first frame: until then an earlier file of that name stays as it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, update: TrackUpdate) -> None:
        """Adds one frame."""
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", newline="")
            self._lines = csv.writer(self._file)
            self._lines.writerow(("frame", "time_s", "point", "x", "y", "visible", "certainty"))
        for number, (x, y), visible, certainty in zip(update.ids, *update.points, strict=True):
            row = (f"{update.time_s:.6f}", number, f"{x:.3f}", f"{y:.3f}", int(visible), f"{certainty:.4f}")
            self._lines.writerow((update.index, *row))
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


class TracksNpz:
    """Arrays of Q points in T frames, kept (13 bytes a point and frame) and written at the end, whole or not at all.

    - `points_xy`: float32 `[Q, T, 2]`, pixels of the source; NaN before a point's query;
    - `visible`: bool `[Q, T]`; False there;
    - `certainty`: float32 `[Q, T]`, from 0 to 1; 0 there;
    - `query_points_tyx`: float32 `[Q, 3]`, what was asked;
    - `times_s`: float64 `[T]`.
    """

    def __init__(self, path: Path, query_points_tyx: Queries) -> None:
        self._path = path
        self._query_points_tyx = query_points_tyx
        self._times_s: list[float] = []
        self._frames: list[LivePoints] = []

    def __enter__(self) -> Self:
        return self

    def write(self, update: TrackUpdate) -> None:
        """Adds one frame."""
        count, ids = len(self._query_points_tyx), list(update.ids)
        frame = LivePoints(
            np.full((count, 2), math.nan, np.float32), np.zeros(count, np.bool_), np.zeros(count, np.float32)
        )
        for all_points, known in zip(frame, update.points, strict=True):
            all_points[ids] = known
        self._times_s.append(update.time_s)
        self._frames.append(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._frames:
            return
        arrays = {name: np.stack([getattr(one, name) for one in self._frames], axis=1) for name in LivePoints._fields}
        arrays |= {"query_points_tyx": self._query_points_tyx, "times_s": np.array(self._times_s)}

        def write(part: Path) -> None:
            with part.open("wb") as opened:  # given a path, NumPy would add an ending to it
                np.savez_compressed(opened, **arrays)  # type: ignore[arg-type]

        write_whole(self._path, write)
