"""Videos whose points are followed through all frames: what the benchmarks, Kubric's files and our own scenes share.

Points are `(x, y)` in pixels of the video, counted as TAP-Vid does, from the outer corner of the top left pixel: that
pixel's centre is (0.5, 0.5), and a frame of width W reaches from 0 to W. So points of a resized video are the points
times the ratio of the sizes, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image

from trecvit.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrackedVideo:
    """A video and the tracks of points in it.

    Attributes:
        name: For messages and results.
        video: uint8 `[T, H, W, 3]`, red green blue.
        tracks_xy: float32 `[Q, T, 2]`, where each point is in every frame, in pixels. While a point is occluded this
            may be a guess, or anything at all.
        occluded: bool `[Q, T]`: it cannot be seen, because something hides it or it is outside of the frame.
        query_points_tyx: float32 `[Q, 3]`, (frame, y, x) to ask for each track with, if the data says so.
    """

    name: str
    video: NDArray[Any]
    tracks_xy: NDArray[Any]
    occluded: NDArray[Any]
    query_points_tyx: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        expected: list[tuple[str, NDArray[Any], type, tuple[int | None, ...]]] = [
            ("video", self.video, np.uint8, (None, None, None, 3)),
            ("tracks_xy", self.tracks_xy, np.float32, (None, self.num_frames, 2)),
            ("occluded", self.occluded, np.bool_, (len(self.tracks_xy), self.num_frames)),
        ]
        if self.query_points_tyx is not None:
            expected.append(("query_points_tyx", self.query_points_tyx, np.float32, (len(self.tracks_xy), 3)))
        for name, array, dtype, shape in expected:
            fits = array.ndim == len(shape) and all(
                want in (None, got) for want, got in zip(shape, array.shape, strict=True)
            )
            if array.dtype != dtype or not fits:
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                raise DataError(
                    f"{self.name}: {name}: expected {np.dtype(dtype)} [{wanted}], got {array.dtype} {list(array.shape)}"
                )
        if min(self.video.shape) < 1:
            raise DataError(f"{self.name}: the video is empty: {list(self.video.shape)}")
        if not np.isfinite(self.tracks_xy[~self.occluded]).all():
            raise DataError(f"{self.name}: some visible points of tracks_xy are not finite numbers")

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.video)

    def resized(self, image_size: tuple[int, int]) -> TrackedVideo:
        """The same with frames of `(height, width)` pixels, whatever their aspect was, as TAP-Vid has it.

        Frames go through Pillow's Lanczos filter, as they do in the benchmark's own code (by way of mediapy).
        """
        if self.video.shape[1:3] == image_size:
            return self
        ratio = np.array([image_size[1] / self.video.shape[2], image_size[0] / self.video.shape[1]], np.float32)
        queries = self.query_points_tyx
        return replace(
            self,
            video=np.stack([resized_frame(frame, image_size) for frame in self.video]),
            tracks_xy=self.tracks_xy * ratio,
            query_points_tyx=None if queries is None else queries * np.array([1, ratio[1], ratio[0]], np.float32),
        )


def resized_frame(frame: UInt8[np.ndarray, "h w 3"], image_size: tuple[int, int]) -> UInt8[np.ndarray, "_ _ 3"]:
    """One frame, brought to `(height, width)` pixels by Pillow's Lanczos filter."""
    height, width = image_size
    return np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


class TrackedVideos:
    """Tracked videos that are read one at a time, as they are asked for.

    Args:
        source: Where they come from, for messages and results.
        videos: The name of each, and how to read it.
    """

    def __init__(self, source: str, videos: Sequence[tuple[str, Callable[[], TrackedVideo]]]) -> None:
        self.source = source
        self.names = tuple(name for name, _ in videos)
        self._read = [read for _, read in videos]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> TrackedVideo: ...
    @overload
    def __getitem__(self, index: slice) -> TrackedVideos: ...
    def __getitem__(self, index: int | slice) -> TrackedVideo | TrackedVideos:
        """One of them, read anew, or some of them, unread.

        Raises:
            DataError: When its tracks do not hold together.
            VideoError: When its frames cannot be read.
        """
        if isinstance(index, slice):
            return TrackedVideos(self.source, list(zip(self.names, self._read, strict=True))[index])
        return self._read[index]()

    def __iter__(self) -> Iterator[TrackedVideo]:
        return (read() for read in self._read)


def random_queries(video: TrackedVideo, rng: np.random.Generator) -> Float[np.ndarray, "q 3"]:
    """For each track a query (frame, y, x) float32 at one of the frames that show it, each as likely as any other.

    Raises:
        DataError: When a track is never seen.
    """
    seen = ~video.occluded
    never = ~seen.any(axis=1)
    if never.any():
        raise DataError(f"{video.name}: track {int(np.argmax(never))} is occluded in every frame; leave it out")
    # The frame with the largest of independent draws, hidden ones last.
    frames = np.where(seen, rng.random(seen.shape), -1).argmax(axis=1)
    x, y = video.tracks_xy[np.arange(len(frames)), frames].T
    return np.stack([frames, y, x], axis=1).astype(np.float32)
