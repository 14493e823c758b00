"""Videos with point tracks: the common form of the benchmarks, Kubric's files and synthetic scenes.

Points are `(x, y)` in pixels from the outer corner of the top left pixel, as in TAP-Vid: that pixel's centre is
(0.5, 0.5), and a frame of width W spans 0 to W. So resizing a video only scales its points.
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
    """A video with point tracks.

    Attributes:
        name: For messages and results.
        video: uint8 `[T, H, W, 3]`, RGB.
        tracks_xy: float32 `[Q, T, 2]`, the position of each point in every frame, in pixels; arbitrary while occluded.
        occluded: bool `[Q, T]`: hidden by an object, or outside the frame.
        query_points_tyx: float32 `[Q, 3]`, the query (frame, y, x) of each track, if the data define it.
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
                size in (None, actual) for size, actual in zip(shape, array.shape, strict=True)
            )
            if array.dtype != dtype or not fits:
                expected_shape = ", ".join("any" if size is None else str(size) for size in shape)
                raise DataError(
                    f"{self.name}: {name}: expected {np.dtype(dtype)} [{expected_shape}], "
                    f"got {array.dtype} {list(array.shape)}"
                )
        if min(self.video.shape) < 1:
            raise DataError(f"{self.name}: expected at least one frame and pixel, got {list(self.video.shape)}")
        if not np.isfinite(self.tracks_xy[~self.occluded]).all():
            raise DataError(f"{self.name}: tracks_xy: expected finite visible points, got NaN or infinity")

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.video)

    def resized(self, image_size: tuple[int, int]) -> TrackedVideo:
        """Resize frames and points to `(height, width)` pixels, without keeping the aspect, as TAP-Vid does.

        The filter is Pillow's Lanczos, as in the benchmark's code (through mediapy).
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
    """Resize one frame to `(height, width)` pixels by Pillow's Lanczos filter."""
    height, width = image_size
    return np.array(Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS))


class TrackedVideos:
    """Tracked videos, each read on access.

    Args:
        source: Their origin, for messages and results.
        videos: The name and the reader of each.
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
        """Read one video, or select some without reading them.

        Raises:
            DataError: Its tracks are inconsistent.
            VideoError: Its frames cannot be read.
        """
        if isinstance(index, slice):
            return TrackedVideos(self.source, list(zip(self.names, self._read, strict=True))[index])
        return self._read[index]()

    def __iter__(self) -> Iterator[TrackedVideo]:
        return (read() for read in self._read)


def random_queries(video: TrackedVideo, rng: np.random.Generator) -> Float[np.ndarray, "q 3"]:
    """Draw a query (frame, y, x), float32, for each track, uniformly among its visible frames.

    Raises:
        DataError: A track is never visible.
    """
    visible = ~video.occluded
    never = ~visible.any(axis=1)
    if never.any():
        raise DataError(f"{video.name}: track {int(np.argmax(never))} is occluded in every frame; leave it out")
    # The visible frame with the largest random number.
    frames = np.where(visible, rng.random(visible.shape), -1).argmax(axis=1)
    x, y = video.tracks_xy[np.arange(len(frames)), frames].T
    return np.stack([frames, y, x], axis=1).astype(np.float32)
