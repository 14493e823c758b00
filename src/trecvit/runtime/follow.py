"""Point tracking on a video or live stream, one frame at a time in memory: updates, drawing, track files."""

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
"""(frame, y, x) of each query point, in pixels of the source."""


@dataclass(frozen=True)
class TrackUpdate:
    """One frame of the source and the points in it.

    Attributes:
        index: Index of the frame in the source, from 0.
        time_s: Presentation time in seconds.
        image: The frame, uint8 `[H, W, 3]`; the receiver may draw on it.
        ids: Indices of the queries whose frame has been reached.
        points: Their points; row n belongs to `ids[n]`.
    """

    index: int
    time_s: float
    image: Image
    ids: tuple[int, ...]
    points: LivePoints


def grid_queries(count: int, image_size: tuple[int, int]) -> Queries:
    """Place `count` x `count` points in the first frame, row by row, at the centres of the cells of a grid.

    Raises:
        InputError: A count below 1.
    """
    if count < 1:
        raise InputError(f"grid: expected 1 or more points per side, got {count}")
    middles = (np.arange(count) + 0.5) / count
    y, x = np.meshgrid(middles * image_size[0], middles * image_size[1], indexing="ij")
    return np.stack([np.zeros_like(x), y, x], axis=-1).reshape(-1, 3).astype(np.float32)


def follow(tracker: PointTracker, source: Source | Video, query_points_tyx: Queries) -> Iterator[TrackUpdate]:
    """Track points through a source frame by frame. Memory does not grow with the number of frames.

    Frames are resized to `tracker.preprocessing.image_size`. The points equal those of the tracker on the whole clip.

    Args:
        tracker: Such as `load("bootstapnext")`.
        source: Any source of `trecvit.video.decode.open_video`.
        query_points_tyx: At least one query. Its point is part of the updates from its frame on.

    Yields:
        An update for every frame of the source.

    Raises:
        VideoError: As `read_frames`: at once, or after everything that could be decoded.
        InputError: No queries, or one outside the frame.
    """
    height, width = tracker.preprocessing.image_size
    state = None
    scale_xy = (1.0, 1.0)
    with open_video(source) as video:
        for frame in video.frames():
            if state is None:
                _check(query_points_tyx, frame.image)
                # Multiply before dividing: then x = width maps to the model's width exactly.
                to_model = np.array([[[1, height, width]]]), np.array([[[1, *frame.image.shape[:2]]]])
                state = tracker.init_state(torch.from_numpy(query_points_tyx * to_model[0] / to_model[1]))
                scale_xy = (frame.image.shape[1] / width, frame.image.shape[0] / height)
            clip = to_whole_clip(frame.image[None], (height, width))[None]
            with torch.inference_mode():
                out, state = tracker.step(clip.to(tracker.device), state)
            ids = [index for index, query in enumerate(query_points_tyx) if query[0] <= frame.index]
            yield TrackUpdate(frame.index, frame.time_s, frame.image, tuple(ids), points_in_frame(out, ids, scale_xy))


def follow_live(
    tracker: PointTracker, source: Source | Video, query_points_tyx: Queries, *, max_points: int | None = None
) -> Iterator[TrackUpdate]:
    """`follow` with a `LiveTracker`, to which each point is added at its frame.

    The tokens of a `LiveTracker`'s empty slots take part in a `TAPNext`'s attention, so its points may differ slightly
    from those of `follow`. Updates and errors are those of `follow`.

    Args:
        tracker: As for `follow`.
        source: As for `follow`.
        query_points_tyx: As for `follow`.
        max_points: Number of slots, by default one per query.
    """
    live = LiveTracker(tracker, max_points=max_points or max(1, len(query_points_tyx)))
    query_of: dict[int, int] = {}
    before = -1
    with open_video(source) as video:
        for frame in video.frames():
            if frame.index == 0:
                _check(query_points_tyx, frame.image)
            for index, (t, y, x) in enumerate(query_points_tyx):
                if before < t <= frame.index:  # a live source may skip frames
                    query_of[live.add(float(x), float(y))] = index
            before = frame.index
            points = live.update(frame.image)
            ids = tuple(query_of[point_id] for point_id in live.ids)
            yield TrackUpdate(frame.index, frame.time_s, frame.image, ids, points)


def _check(query_points_tyx: Queries, image: Image) -> None:
    if not len(query_points_tyx):
        raise InputError("query_points_tyx: expected at least one point, got none")
    read_queries(torch.from_numpy(query_points_tyx)[None], (image.shape[0], image.shape[1]))


# ---- drawing -------------------------------------------------------------------------------------------------------


_UNCERTAIN = 0.5  # a certainty below it is counted in the caption


class Trails:
    """Draw updates with the points' recent trails; each point has its own hue.

    Args:
        num_points: Number of points, over which the hues are spread.
        num_frames: Length of a trail in frames.
    """

    def __init__(self, num_points: int, num_frames: int) -> None:
        self._num_points = num_points
        self._num_frames = num_frames
        self._past: dict[int, deque[tuple[NDArray[Any], bool]]] = {}

    def draw(self, update: TrackUpdate) -> Image:
        """Draw points, trails, time and the numbers of visible and uncertain points on the frame, enlarged if tiny."""
        image = fit_for_display(update.image)
        scale = np.array([image.shape[1] / update.image.shape[1], image.shape[0] / update.image.shape[0]])
        for index, point_xy, visible in zip(update.ids, update.points.points_xy, update.points.visible, strict=True):
            past = self._past.setdefault(index, deque(maxlen=self._num_frames + 1))
            past.append((point_xy * scale, bool(visible)))
        trails = [
            Trail(
                np.array([point for point, _ in self._past[index]]),
                np.array([visible for _, visible in self._past[index]]),
                hue_of(index, self._num_points),
                float(certainty),
            )
            for index, certainty in zip(update.ids, update.points.certainty, strict=True)
        ]
        visible_points = f"{int(update.points.visible.sum())} of {len(update.ids)} points visible"
        if uncertain := int((update.points.visible & (update.points.certainty < _UNCERTAIN)).sum()):
            visible_points += f", {uncertain} of them uncertain"
        caption = f"{update.time_s:.2f} s · frame {update.index} · {visible_points}"
        return draw_caption(draw_trails(image, trails), caption)


def hue_of(index: int, num_points: int) -> float:
    """Hue of a point, from red (0) to magenta (0.85), short of red again."""
    return 0.85 * index / max(1, num_points - 1)


# ---- track files ---------------------------------------------------------------------------------------------------


class TracksWriter(Protocol):
    """Receives the updates of a source in order."""

    def write(self, update: TrackUpdate) -> None:
        """Add one frame."""


def tracks_writer(path: Path, query_points_tyx: Queries) -> AbstractContextManager[TracksWriter]:
    """Create a writer of tracks to a `.npz` or `.csv` file.

    Raises:
        InputError: Another suffix.
    """
    if path.suffix.lower() == ".npz":
        return TracksNpz(path, query_points_tyx)
    if path.suffix.lower() == ".csv":
        return TracksCsv(path)
    raise InputError(f"{path}: expected a name that ends in .npz or .csv")


class TracksCsv:
    """One line per point and frame, written as they arrive: frame, time_s, point, x, y, visible, certainty.

    The file is opened at the first frame; until then an existing file is kept.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> Self:
        return self

    def write(self, update: TrackUpdate) -> None:
        """Add one frame."""
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", newline="")
            self._lines = csv.writer(self._file)
            self._lines.writerow(("frame", "time_s", "point", "x", "y", "visible", "certainty"))
        for index, (x, y), visible, certainty in zip(update.ids, *update.points, strict=True):
            row = (f"{update.time_s:.6f}", index, f"{x:.3f}", f"{y:.3f}", int(visible), f"{certainty:.4f}")
            self._lines.writerow((update.index, *row))
        self._file.flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


class TracksNpz:
    """Arrays of Q points in T frames, kept in memory (13 bytes per point and frame) and written at the end, atomically.

    - `points_xy`: float32 `[Q, T, 2]`, pixels of the source; NaN before a point's query;
    - `visible`: bool `[Q, T]`; False there;
    - `certainty`: float32 `[Q, T]`, from 0 to 1; 0 there;
    - `query_points_tyx`: float32 `[Q, 3]`, the queries;
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
        """Add one frame."""
        count, ids = len(self._query_points_tyx), list(update.ids)
        frame = LivePoints(
            np.full((count, 2), math.nan, np.float32), np.zeros(count, np.bool_), np.zeros(count, np.float32)
        )
        for all_points, tracked in zip(frame, update.points, strict=True):
            all_points[ids] = tracked
        self._times_s.append(update.time_s)
        self._frames.append(frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None or not self._frames:
            return
        arrays = {
            name: np.stack([getattr(frame, name) for frame in self._frames], axis=1) for name in LivePoints._fields
        }
        arrays |= {"query_points_tyx": self._query_points_tyx, "times_s": np.array(self._times_s)}

        def write(part: Path) -> None:
            with part.open("wb") as file:  # given a path, NumPy would append a suffix
                np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

        write_whole(self._path, write)
