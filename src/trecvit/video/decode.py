"""Frames of any source: a video file, a folder of images, an array, a camera, or the address of a stream.

Every frame of the source is read once, in presentation order, as RGB uint8, upright, with its time in the file. No
frame is skipped silently: a damaged file gives all decodable frames and then a `VideoError`. (Errors that FFmpeg does
not detect, such as wrong pixels in a codec without checksums, stay undetected.)

Frame `i` is defined by counting. In a sound file, seeking gives the same frame: it is used only where the file's time
stamps prove the position of every frame, else all frames before are decoded. In a damaged file the two can differ:
reading from the start does not count undecodable frames, seeking does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TypeAlias

import av
import numpy as np
import numpy.typing as npt

from trecvit.errors import InputError, VideoError
from trecvit.video.container import Container, Opener
from trecvit.video.frames import (
    MAX_PIXELS,
    Frame,
    Image,
    Start,
    VideoInfo,
    check_short_side,
    checked_fps,
    index_not_in,
)
from trecvit.video.order import Order, land, presentation_order
from trecvit.video.rate import believable_rate
from trecvit.video.sources import EncodedSource, FilePart, scheme_of
from trecvit.video.stills import ANIMATED_SUFFIXES, Folder, Stills, open_animation, open_array, open_npy

__all__ = [
    "UNTIMED_FPS",
    "Frame",
    "Source",
    "Video",
    "VideoInfo",
    "length_and_rate",
    "open_video",
    "probe",
    "read_frames",
    "read_frames_at",
]

Source: TypeAlias = EncodedSource | npt.NDArray[np.uint8]

# Frame rate of sources without times: folders, arrays and raw streams. FFmpeg assumes the same.
UNTIMED_FPS = Fraction(25)


class Video(ABC):
    """A source opened once, by `open_video`: metadata, frames in order, and frames by index.

    A file can be read repeatedly. A stream is read once, from the time of opening; reading it again reconnects. There
    is one pass at a time: a generator of `frames` raises an InputError after another read.

    Attributes:
        is_stream: Whether it is a camera or an address, without a known end.
    """

    is_stream = False

    @property
    @abstractmethod
    def info(self) -> VideoInfo:
        """Stated metadata, checked on the first frame. Raises VideoError if no frame can be decoded."""

    @abstractmethod
    def frames(
        self, *, start_frame: int = 0, start_s: float | None = None, short_side_px: int | None = None
    ) -> Generator[Frame, None, None]:
        """Read frames in order, see `read_frames`."""

    @abstractmethod
    def frames_at(
        self, indices: Sequence[int] | npt.NDArray[np.int64], *, short_side_px: int | None = None
    ) -> tuple[Image, npt.NDArray[np.float64]]:
        """Read frames by index, see `read_frames_at`."""

    @abstractmethod
    def length_and_rate(self) -> tuple[int, float | None]:
        """Count the frames, see `trecvit.video.decode.length_and_rate`."""

    @abstractmethod
    def close(self) -> None:
        """Close the file or the connection."""


@contextmanager
def open_video(
    source: Source | Video, *, untimed_fps: float | Fraction = UNTIMED_FPS, max_pixels: int = MAX_PIXELS
) -> Iterator[Video]:
    """Open a source once for all reads, and close it at the end of the block.

    Args:
        source: As for `read_frames`; or an open video, which stays open.
        untimed_fps: Frame rate of sources without times.
        max_pixels: Limit of width times height of encoded videos, checked before a picture is decoded.

    Raises:
        VideoError: It cannot be opened, or holds no video.
        InputError: An array is not uint8 `[T, H, W, 3]`, or the frame rate is impossible.
    """
    if isinstance(source, Video):
        yield source
        return
    video = _open(source, checked_fps("untimed_fps", untimed_fps), max_pixels)
    try:
        yield video
    finally:
        video.close()


def probe(source: Source, *, untimed_fps: float | Fraction = UNTIMED_FPS) -> VideoInfo:
    """Read the metadata of a source, and decode its first frame.

    Args:
        source: As for `read_frames`.
        untimed_fps: Frame rate of sources without times.

    Raises:
        VideoError: There is no video, or no frame of it can be decoded.
        InputError: An array is not uint8 `[T, H, W, 3]`.
    """
    with open_video(source, untimed_fps=untimed_fps) as video:
        return video.info


def read_frames(
    source: Source,
    *,
    start_frame: int = 0,
    start_s: float | None = None,
    short_side_px: int | None = None,
    untimed_fps: float | Fraction = UNTIMED_FPS,
) -> Generator[Frame, None, None]:
    """Read the frames of a source one by one, with one in memory at a time.

    A later start also keeps the time stamps before it, 8 bytes per frame.

    Args:
        source: Path of a video file, an animated picture (`.gif .webp .apng`) or a `.npy` file; folder of images
            (`.png .jpg .jpeg .bmp .webp`, in natural order); array uint8 `[T, H, W, 3]`; `FilePart`; address of a
            stream (`http https rtsp tcp udp`); or a camera, `camera:0` or `/dev/video0`.
        start_frame: Index of the first frame to read.
        start_s: Instead of `start_frame`: start at the first frame with `time_s >= start_s`. Its `index` still counts
            from the beginning of the video.
        short_side_px: Resize the short side to this many pixels. None keeps the size.
        untimed_fps: Frame rate of sources without times.

    Yields:
        Frames with rising `index` and `time_s`, which is 0 at the video's first frame. A frame without a time stamp, or
        with one that does not advance, is one average frame step after its predecessor.

    Raises:
        InputError: At once, for impossible arguments.
        VideoError: Before the first frame, if the source cannot be opened, holds no video, or ends before the start;
            after the last decodable frame, if parts were damaged or the file is truncated, with their number in
            `frames_read`; in between, if a stream is interrupted or the picture size changes.
    """
    Start(start_frame, start_s).check()
    check_short_side(short_side_px)
    fps = checked_fps("untimed_fps", untimed_fps)
    stills = _open_stills(source, fps)
    if stills is not None:
        return _StillVideo(stills).frames(start_frame=start_frame, start_s=start_s, short_side_px=short_side_px)

    def frames() -> Generator[Frame, None, None]:
        with open_video(source, untimed_fps=fps) as video:
            yield from video.frames(start_frame=start_frame, start_s=start_s, short_side_px=short_side_px)

    return frames()


def read_frames_at(
    source: Source,
    indices: Sequence[int] | npt.NDArray[np.int64],
    *,
    short_side_px: int | None = None,
    untimed_fps: float | Fraction = UNTIMED_FPS,
) -> tuple[Image, npt.NDArray[np.float64]]:
    """Read the frames with these indices in one forward pass, which stops after the last.

    Args:
        source: As for `read_frames`.
        indices: `[T]`, in any order, repeats allowed.
        short_side_px: As for `read_frames`.
        untimed_fps: As for `read_frames`.

    Returns:
        The frames `[T, H, W, 3]` uint8 and their times `[T]` in seconds, in the order of `indices`.

    Raises:
        InputError: `indices` is empty or holds anything but whole numbers of 0 or more.
        VideoError: An index is not in the video, or damage before it makes the count uncertain.
    """
    _needed(indices)
    check_short_side(short_side_px)
    with open_video(source, untimed_fps=untimed_fps) as video:
        return video.frames_at(indices, short_side_px=short_side_px)


def length_and_rate(source: Source) -> tuple[int, float | None]:
    """Count the frames that `read_frames` yields, and find the frame rate, or None if unknown.

    No frame is decoded where the file's time stamps prove the number. Containers may state more: a file with an edit
    list holds frames that are not shown. The rate is the stated one if the time stamps confirm it, else measured on
    them (see `trecvit.video.rate`).

    Raises:
        VideoError: The source cannot be opened, is truncated, or has to be decoded and is damaged.
    """
    with open_video(source) as video:
        return video.length_and_rate()


def _open(source: Source, fps: Fraction, max_pixels: int) -> Video:
    stills = _open_stills(source, fps)
    if stills is not None:
        return _StillVideo(stills)
    assert not isinstance(source, np.ndarray), "arrays are stills"
    return _EncodedVideo(Opener(source, fps, max_pixels))


def _open_stills(source: Source, fps: Fraction) -> Stills | None:
    if isinstance(source, np.ndarray):
        return open_array(source, fps)
    if isinstance(source, FilePart):
        return None
    if not isinstance(source, str | Path):
        raise InputError(f"source: expected a path, an address, a camera or an array, got {type(source).__name__}")
    # An empty name as a path would be the current folder.
    if scheme_of(source) or not str(source).strip():
        return None
    path = Path(source)
    if path.is_dir():
        return Folder(path, fps)
    if path.suffix.lower() in ANIMATED_SUFFIXES and path.is_file():
        return open_animation(path)
    return open_npy(path, fps) if path.suffix.lower() == ".npy" and path.is_file() else None


def _needed(indices: Sequence[int] | npt.NDArray[np.int64]) -> list[int]:
    """Sort indices and remove repeats; raise InputError unless they are frame indices."""
    array = np.asarray(indices)
    if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu" or array.min() < 0:
        raise InputError(f"indices: expected one or more whole frame indices of 0 or more, got {indices!r}")
    return sorted({int(index) for index in array})


def _stacked(
    by_index: dict[int, Frame], indices: Sequence[int] | npt.NDArray[np.int64]
) -> tuple[Image, npt.NDArray[np.float64]]:
    frames = [by_index[int(index)] for index in indices]
    return np.stack([frame.image for frame in frames]), np.array([frame.time_s for frame in frames])


class _StillVideo(Video):
    """A source of still images, with random access."""

    def __init__(self, stills: Stills) -> None:
        self._stills = stills

    @property
    def info(self) -> VideoInfo:
        return self._stills.info()

    def frames(
        self, *, start_frame: int = 0, start_s: float | None = None, short_side_px: int | None = None
    ) -> Generator[Frame, None, None]:
        start, stills = Start(start_frame, start_s), self._stills
        start.check()
        check_short_side(short_side_px)
        first = start_frame if start_s is None else stills.index_at(start_s)
        if first >= len(stills):
            raise start.not_in(stills.source, len(stills))
        return stills.frames(first, short_side_px)

    def frames_at(
        self, indices: Sequence[int] | npt.NDArray[np.int64], *, short_side_px: int | None = None
    ) -> tuple[Image, npt.NDArray[np.float64]]:
        needed, stills = _needed(indices), self._stills
        check_short_side(short_side_px)
        if needed[-1] >= len(stills):
            raise index_not_in(stills.source, needed[-1], len(stills))
        return _stacked(stills.pick(needed, short_side_px), indices)

    def length_and_rate(self) -> tuple[int, float | None]:
        return len(self._stills), float(self._stills.fps)

    def close(self) -> None:
        pass  # stills are opened and closed one by one


class _EncodedVideo(Video):
    """A source read by FFmpeg: a file, a camera or a stream."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self.is_stream = opener.is_stream
        self._order: Order | None = None
        self._has_no_order = opener.is_stream
        self._info: VideoInfo | None = None
        self._pass = 0
        try:
            self._container = opener.open()
        except BaseException:
            opener.close()
            raise

    @property
    def info(self) -> VideoInfo:
        if self._info is None:
            rate = self._container.rate
            # At a variable rate, the first time stamps do not represent the rest.
            if self._container.rate_is_doubtful and self._order_if(lambda pts: False) is not None:
                rate = self._rate_of_all()
            self._info = replace(self._at_start().info(), average_fps=rate)
        return self._info

    def frames(
        self, *, start_frame: int = 0, start_s: float | None = None, short_side_px: int | None = None
    ) -> Generator[Frame, None, None]:
        start = Start(start_frame, start_s)
        start.check()
        check_short_side(short_side_px)
        return self._frames(start, short_side_px)

    def frames_at(
        self, indices: Sequence[int] | npt.NDArray[np.int64], *, short_side_px: int | None = None
    ) -> tuple[Image, npt.NDArray[np.float64]]:
        needed = _needed(indices)
        check_short_side(short_side_px)
        self._pass += 1
        order = self._order_if(lambda pts: len(pts) > needed[-1])
        if order is not None:
            if needed[-1] >= len(order.pts):
                raise index_not_in(self._container.label, needed[-1], len(order.pts))
            frames = self._pick_by_time_stamp(order, needed, short_side_px)
            if frames is not None:
                return _stacked(frames, indices)
        return _stacked(self._pick_by_counting(needed, short_side_px), indices)

    def length_and_rate(self) -> tuple[int, float | None]:
        self._pass += 1
        order = self._order_if(lambda pts: False)
        container = self._container
        if order is not None and not container.missing(len(order.pts), int(order.pts[-1]), order.end_pts):
            rate = self._rate_of_all()
            return len(order.pts), float(rate) if rate else None
        times_us = [round(frame.time_s * 1_000_000) for frame in self.frames(short_side_px=16)]
        rate = self._container.rate
        if rate is not None:  # else the times are invented
            rate = believable_rate(rate, times_us, Fraction(1, 1_000_000))
        return len(times_us), float(rate) if rate else None

    def _rate_of_all(self) -> Fraction | None:
        """Return the stated frame rate if the time stamps of all frames confirm it, else the rate measured on them."""
        assert self._order is not None, "called where there is an order"
        return believable_rate(self._container.stated_rate, self._order.pts, self._container.time_base)

    def close(self) -> None:
        self._pass += 1
        self._container.close()
        self._opener.close()

    def _at_start(self) -> Container:
        """Return the container at its first picture, reopened if needed."""
        if not self._container.is_at_start:
            self._container.close()
            self._container = self._opener.open()
        return self._container

    def _order_if(self, enough: Callable[[npt.NDArray[np.int64]], bool]) -> Order | None:
        """Return the order of the frames as far as needed, if the file proves it; cached."""
        if self._has_no_order or (self._order is not None and (self._order.is_whole or enough(self._order.pts))):
            return self._order
        if not self._container.is_untouched:
            self._container.close()
            self._container = self._opener.open()
        self._order = presentation_order(self._container, enough)
        self._has_no_order = self._order is None
        return self._order

    def _frames(self, start: Start, short_side_px: int | None) -> Generator[Frame, None, None]:
        self._pass += 1
        pictures, first_index, clock = self._go_to(start) or self._from_the_start()
        container, this_pass = self._container, self._pass
        frames_read, index, last_pts, end_pts, time_s = 0, first_index - 1, 0, 0, 0.0
        try:
            for index, picture in enumerate(pictures, first_index):
                # The maximum: without presentation times, those of frames are out of order.
                last_pts, time_s = max(picture.pts or last_pts, last_pts), clock.time_s(picture)
                end_pts = max(end_pts, last_pts + (picture.duration or 0))
                if start.reached(index, time_s):
                    yield Frame(container.to_rgb(picture, short_side_px), time_s, index)
                    frames_read += 1
                    if self._pass != this_pass:
                        raise InputError(
                            f"{container.label}: expected one pass over the video at a time, got another between"
                        )
        except VideoError as exc:
            exc.frames_read, exc.time_s = frames_read, time_s
            raise
        problems = [text for text in (container.damage(), container.missing(index + 1, last_pts, end_pts)) if text]
        if problems:
            raise VideoError(
                container.label,
                f"{' and '.join(problems)}; {frames_read} frames were decoded; "
                "get an intact copy, or use these frames knowing that some are missing",
                frames_read=frames_read,
                time_s=time_s,
            )
        if frames_read == 0:
            raise start.not_in(container.label, index + 1)

    def _from_the_start(self) -> tuple[Iterator[av.VideoFrame], int, _Clock]:
        container = self._at_start()
        return container.pictures(), 0, _Clock(container)

    def _go_to(self, start: Start) -> tuple[Iterator[av.VideoFrame], int, _Clock] | None:
        """Seek to the start: pictures, the index of the first, and their clock; None if the frames must be counted."""
        if not (start.frame or start.time_s):
            return None

        def place(pts: npt.NDArray[np.int64]) -> int:
            if start.time_s is None or len(pts) == 0:
                return start.frame
            return int(np.searchsorted(self._container.seconds(pts - pts[0]), start.time_s))

        order = self._order_if(lambda pts: place(pts) < len(pts))
        if order is None:
            return None
        index = place(order.pts)
        if index >= len(order.pts):
            raise start.not_in(self._container.label, len(order.pts))
        landing = land(self._container, order, int(order.pts[index]))
        clock = _Clock(self._container, int(order.pts[0]))
        return None if landing is None else (landing.pictures, index, clock)

    def _pick_by_time_stamp(
        self, order: Order, needed: Sequence[int], short_side_px: int | None
    ) -> dict[int, Frame] | None:
        """Pick frames by seeking over key frames; None if one cannot be reached."""
        container = self._container
        frames: dict[int, Frame] = {}
        pictures: Iterator[av.VideoFrame] = iter(())
        position: int | None = None
        keys_hold = True
        for index in needed:
            pts = int(order.pts[index])
            keys_before = order.key_pts[: np.searchsorted(order.key_pts, pts, side="right")]
            if position is None or (keys_hold and len(keys_before) and keys_before[-1] > position):
                landing = land(container, order, pts)
                if landing is None:
                    return None
                pictures, keys_hold = landing
            picture = next((picture for picture in pictures if picture.pts is None or picture.pts >= pts), None)
            if picture is None or picture.pts != pts:
                return None
            position = pts
            time_s = container.seconds(pts - int(order.pts[0]))
            frames[index] = Frame(container.to_rgb(picture, short_side_px), time_s, index)
        return frames

    def _pick_by_counting(self, needed: Sequence[int], short_side_px: int | None) -> dict[int, Frame]:
        indices = set(needed)
        frames: dict[int, Frame] = {}
        pictures, _, clock = self._from_the_start()
        container, index = self._container, -1
        for index, picture in enumerate(pictures):
            time_s = clock.time_s(picture)
            if index in indices:
                frames[index] = Frame(container.to_rgb(picture, short_side_px), time_s, index)
            if index == needed[-1]:
                break
        if container.damage():
            raise VideoError(
                container.label,
                f"{container.damage()} before frame {needed[-1]}, so the frame count is uncertain; "
                "get an intact copy, or read all decodable frames with read_frames",
                frames_read=len(frames),
            )
        if len(frames) < len(needed):
            raise index_not_in(container.label, needed[-1], index + 1)
        return frames


class _Clock:
    """Clock that gives the pictures strictly rising times.

    Args:
        container: Source of the pictures.
        origin_pts: Time stamp of the video's first frame; None if that is the next picture.
    """

    def __init__(self, container: Container, origin_pts: int | None = None) -> None:
        self._container = container
        self._origin_pts = origin_pts
        # Exact: many small steps in floats would drift.
        self._last: Fraction | None = None

    def time_s(self, picture: av.VideoFrame) -> float:
        container = self._container
        pts = picture.pts if container.timed else None
        if self._origin_pts is None:
            self._origin_pts = pts
        stamp = None if pts is None or self._origin_pts is None else (pts - self._origin_pts) * container.time_base
        if self._last is None:
            self._last = stamp or Fraction(0)
        elif stamp is not None and stamp > self._last:
            self._last = stamp
        else:
            self._last += container.step
        return float(self._last)
