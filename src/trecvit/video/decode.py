"""Turns a source into frames: a video file, a folder of images, an array, a camera, or the address of a stream.

Every frame of the source is given once, in presentation order, as RGB uint8, upright, with the time the file gives it.
Nothing is skipped in silence: a damaged file gives all that can be decoded, and then a `VideoError`. (What FFmpeg does
not notice itself, such as wrong pixels in a codec without check sums, cannot be known.)

Which picture is "frame `i`" is decided by counting. In a sound file it does not matter how one gets there: seeking is
used only where the file's own time stamps prove the place of every frame, else everything before it is decoded. In a
damaged file the two can differ: a reader that came from the start has not counted the frames that could not be decoded,
one that came by a seek has.
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

# Frame rate of sources that state no times: folders, arrays and bare streams. FFmpeg assumes the same.
UNTIMED_FPS = Fraction(25)


class Video(ABC):
    """A source that was opened once, by `open_video`: what it is, its frames in order, its frames by index.

    A file can be read as often as wanted. A stream is read once, from when it was opened; reading it again connects
    anew. Only one pass at a time: a generator of `frames` ends with an InputError when something else is read.

    Attributes:
        is_stream: Whether it is a camera or an address, whose end nobody knows.
    """

    is_stream = False

    @property
    @abstractmethod
    def info(self) -> VideoInfo:
        """What the source states, with its first frame as witness. Raises VideoError if no frame can be decoded."""

    @abstractmethod
    def frames(
        self, *, start_frame: int = 0, start_s: float | None = None, short_side_px: int | None = None
    ) -> Generator[Frame, None, None]:
        """See `read_frames`."""

    @abstractmethod
    def frames_at(
        self, indices: Sequence[int] | npt.NDArray[np.int64], *, short_side_px: int | None = None
    ) -> tuple[Image, npt.NDArray[np.float64]]:
        """See `read_frames_at`."""

    @abstractmethod
    def length_and_rate(self) -> tuple[int, float | None]:
        """See `length_and_rate`."""

    @abstractmethod
    def close(self) -> None:
        """Closes the file or the connection."""


@contextmanager
def open_video(source: Source | Video, *, untimed_fps: float | Fraction = UNTIMED_FPS) -> Iterator[Video]:
    """Opens a source once, for everything that is to be read of it, and closes it at the end of the block.

    Args:
        source: As for `read_frames`; or a video that is open already, which stays open.
        untimed_fps: Frame rate of sources that state no times.

    Raises:
        VideoError: If it cannot be opened, or holds no video.
        InputError: For an array that is not uint8 `[T, H, W, 3]`, or an impossible frame rate.
    """
    if isinstance(source, Video):
        yield source
        return
    video = _open(source, checked_fps("untimed_fps", untimed_fps))
    try:
        yield video
    finally:
        video.close()


def probe(source: Source, *, untimed_fps: float | Fraction = UNTIMED_FPS) -> VideoInfo:
    """Opens a source, decodes its first frame and says what it is.

    Args:
        source: As for `read_frames`.
        untimed_fps: Frame rate of sources that state no times.

    Raises:
        VideoError: If there is no video, or not one frame of it can be decoded.
        InputError: If an array is not uint8 `[T, H, W, 3]`.
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
    """Gives the frames of a source one by one, holding one at a time however long it is.

    Only a start after the beginning takes more: the time stamps before it, 8 bytes a frame.

    Args:
        source: Path of a video file, an animated picture (`.gif .webp .apng`) or a `.npy` file; folder of images
            (`.png .jpg .jpeg .bmp .webp`, in natural order); array uint8 `[T, H, W, 3]`; `FilePart`; address of a
            stream (`http https rtsp tcp udp`); or a camera, `camera:0` or `/dev/video0`.
        start_frame: Index of the first frame to give.
        start_s: Instead of `start_frame`: the first frame given is the first with `time_s >= start_s`. Its `index` is
            its place in the whole video.
        short_side_px: Resize so that the short side has this many pixels. None keeps the size.
        untimed_fps: Frame rate of sources that state no times.

    Yields:
        Frames with `index` counting up from the start and `time_s` rising, 0 at the video's first frame. A frame
        without a time stamp, or with one that does not advance, comes one average frame step after the one before.

    Raises:
        InputError: At once, for impossible arguments.
        VideoError: Before the first frame, if the source cannot be opened, holds no video, or ends before the start;
            after the last frame, if parts were damaged or the file is cut short: all frames that could be decoded
            have then been given, and `frames_read` counts them; in between, if a stream breaks off or the picture
            size changes.
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
    """Reads exactly the frames with these indices, in one pass forward that stops after the last.

    Args:
        source: As for `read_frames`.
        indices: `[T]`, in any order, repeats allowed.
        short_side_px: As for `read_frames`.
        untimed_fps: As for `read_frames`.

    Returns:
        The frames `[T, H, W, 3]` uint8 and their times `[T]` in seconds, in the order asked for.

    Raises:
        InputError: If `indices` is empty or holds anything but whole numbers from 0 on.
        VideoError: If an index is not in the video, or damage on the way makes it uncertain which frame it is.
    """
    _needed(indices)
    check_short_side(short_side_px)
    with open_video(source, untimed_fps=untimed_fps) as video:
        return video.frames_at(indices, short_side_px=short_side_px)


def length_and_rate(source: Source) -> tuple[int, float | None]:
    """How many frames `read_frames` gives, and how many a second if that is known.

    Nothing is decoded where the file's time stamps prove the number. What a container states may be more: a file cut by
    an edit list holds frames that are not shown. The rate is what the container states if the time stamps confirm it,
    else it is measured on them (see `trecvit.video.rate`).

    Raises:
        VideoError: If the source cannot be opened, is cut short, or has to be decoded and is damaged.
    """
    with open_video(source) as video:
        return video.length_and_rate()


def _open(source: Source, fps: Fraction) -> Video:
    stills = _open_stills(source, fps)
    if stills is not None:
        return _StillVideo(stills)
    assert not isinstance(source, np.ndarray), "arrays are stills"
    return _EncodedVideo(Opener(source, fps))


def _open_stills(source: Source, fps: Fraction) -> Stills | None:
    if isinstance(source, np.ndarray):
        return open_array(source, fps)
    if isinstance(source, FilePart):
        return None
    if not isinstance(source, str | Path):
        raise InputError(f"source: expected a path, an address, a camera or an array, got {type(source).__name__}")
    # The path of an empty name would be the current folder.
    if scheme_of(source) or not str(source).strip():
        return None
    path = Path(source)
    if path.is_dir():
        return Folder(path, fps)
    if path.suffix.lower() in ANIMATED_SUFFIXES and path.is_file():
        return open_animation(path)
    return open_npy(path, fps) if path.suffix.lower() == ".npy" and path.is_file() else None


def _needed(indices: Sequence[int] | npt.NDArray[np.int64]) -> list[int]:
    """The indices without repeats, rising; InputError if they are none."""
    wanted = np.asarray(indices)
    if wanted.ndim != 1 or len(wanted) == 0 or wanted.dtype.kind not in "iu" or wanted.min() < 0:
        raise InputError(f"indices: expected a list of one or more whole frame numbers from 0 on, got {indices!r}")
    return sorted({int(index) for index in wanted})


def _stacked(
    found: dict[int, Frame], indices: Sequence[int] | npt.NDArray[np.int64]
) -> tuple[Image, npt.NDArray[np.float64]]:
    frames = [found[int(index)] for index in indices]
    return np.stack([frame.image for frame in frames]), np.array([frame.time_s for frame in frames])


class _StillVideo(Video):
    """Frames that can be had one by one."""

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
        pass  # a still is opened and closed each time


class _EncodedVideo(Video):
    """What FFmpeg reads: a file, a camera or a stream."""

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
            # The first time stamps of a video whose rate varies say little of the rest.
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
            found = self._pick_by_time_stamp(order, needed, short_side_px)
            if found is not None:
                return _stacked(found, indices)
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
        if rate is not None:  # else the times are made up
            rate = believable_rate(rate, times_us, Fraction(1, 1_000_000))
        return len(times_us), float(rate) if rate else None

    def _rate_of_all(self) -> Fraction | None:
        """The stated frame rate if the time stamps of all frames confirm it, else as measured on them."""
        assert self._order is not None, "called where there is an order"
        return believable_rate(self._container.stated_rate, self._order.pts, self._container.time_base)

    def close(self) -> None:
        self._pass += 1
        self._container.close()
        self._opener.close()

    def _at_start(self) -> Container:
        """The container with all its pictures still to come."""
        if not self._container.is_at_start:
            self._container.close()
            self._container = self._opener.open()
        return self._container

    def _order_if(self, enough: Callable[[npt.NDArray[np.int64]], bool]) -> Order | None:
        """The order of the frames as far as it is needed, if the file proves it; learnt once."""
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
                # Not the last: where frames have no times of presentation, theirs are out of order.
                last_pts, time_s = max(picture.pts or last_pts, last_pts), clock.time_s(picture)
                end_pts = max(end_pts, last_pts + (picture.duration or 0))
                if start.reached(index, time_s):
                    yield Frame(container.to_rgb(picture, short_side_px), time_s, index)
                    frames_read += 1
                    if self._pass != this_pass:
                        raise InputError(f"{container.label}: something else was read of the video in between")
        except VideoError as exc:
            exc.frames_read, exc.time_s = frames_read, time_s
            raise
        problems = [words for words in (container.damage(), container.missing(index + 1, last_pts, end_pts)) if words]
        if problems:
            raise VideoError(
                container.label,
                f"{' and '.join(problems)}; {frames_read} frames could be decoded and were given; "
                "get the file anew, or use what there is knowing that some is missing",
                frames_read=frames_read,
                time_s=time_s,
            )
        if frames_read == 0:
            raise start.not_in(container.label, index + 1)

    def _from_the_start(self) -> tuple[Iterator[av.VideoFrame], int, _Clock]:
        container = self._at_start()
        return container.pictures(), 0, _Clock(container)

    def _go_to(self, start: Start) -> tuple[Iterator[av.VideoFrame], int, _Clock] | None:
        """Pictures from the start on, the index of the first, and the clock; None where that is found by counting."""
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
        """Seeks where a key frame lies between here and the next frame needed; None if one cannot be reached."""
        container = self._container
        found: dict[int, Frame] = {}
        pictures: Iterator[av.VideoFrame] = iter(())
        here: int | None = None
        keys_hold = True
        for index in needed:
            pts = int(order.pts[index])
            keys_before = order.key_pts[: np.searchsorted(order.key_pts, pts, side="right")]
            if here is None or (keys_hold and len(keys_before) and keys_before[-1] > here):
                landing = land(container, order, pts)
                if landing is None:
                    return None
                pictures, keys_hold = landing
            picture = next((picture for picture in pictures if picture.pts is None or picture.pts >= pts), None)
            if picture is None or picture.pts != pts:
                return None
            here = pts
            time_s = container.seconds(pts - int(order.pts[0]))
            found[index] = Frame(container.to_rgb(picture, short_side_px), time_s, index)
        return found

    def _pick_by_counting(self, needed: Sequence[int], short_side_px: int | None) -> dict[int, Frame]:
        wanted = set(needed)
        found: dict[int, Frame] = {}
        pictures, _, clock = self._from_the_start()
        container, index = self._container, -1
        for index, picture in enumerate(pictures):
            time_s = clock.time_s(picture)
            if index in wanted:
                found[index] = Frame(container.to_rgb(picture, short_side_px), time_s, index)
            if index == needed[-1]:
                break
        if container.damage():
            raise VideoError(
                container.label,
                f"{container.damage()} before frame {needed[-1]}, so it is not certain which frame is which; "
                "get the file anew, or read it with read_frames, which gives all that can be decoded",
                frames_read=len(found),
            )
        if len(found) < len(needed):
            raise index_not_in(container.label, needed[-1], index + 1)
        return found


class _Clock:
    """Gives each picture its time, in a row that always rises.

    Args:
        container: What the pictures are from.
        origin_pts: Time stamp of the video's first frame; None if the next picture is that.
    """

    def __init__(self, container: Container, origin_pts: int | None = None) -> None:
        self._container = container
        self._origin_pts = origin_pts
        # Exact, since many small steps in floats drift.
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
