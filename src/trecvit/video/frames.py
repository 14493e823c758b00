"""What a frame and a video are: the types and limits that every source of frames shares."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from trecvit.errors import InputError, VideoError

Image: TypeAlias = npt.NDArray[np.uint8]

# What FFmpeg reads, by the names that cameras, broadcasters and encoders give it. Pictures are not among them, but for
# GIF and WebP, which may be animated.
_SUFFIXES = """
    mp4 webm mkv avi mov m4v mpg mpeg ts wmv flv 3gp mts m2ts m2t mod tod tp trp vob vro evo m1v m2v m2p mp2v mpe mpv
    mp4v mpeg4 ogv ogg ogm ogx asf divx xvid rm rmvb qt f4v 3g2 3gp2 3gpp amv mxf gxf dv dif wtv dvr-ms nut y4m mk3d mj2
    mjpeg mjpg ivf obu av1 h261 h263 h264 264 avc h265 265 hevc h266 266 vvc vc1 drc insv swf nsv gif apng webp
"""
VIDEO_SUFFIXES = tuple(f".{suffix}" for suffix in _SUFFIXES.split())

MAX_SIDE_PX = 16_384
# Twice an 8K picture. Decoders take memory by what a header claims, so a hostile one must be refused first.
MAX_PIXELS = 2**26


class Frame(NamedTuple):
    """One picture of a video.

    Attributes:
        image: `[H, W, 3]`, red green blue, uint8. The receiver's own copy: it may be drawn on.
        time_s: Seconds after the video's first frame.
        index: Place in presentation order, from 0.
    """

    image: Image
    time_s: float
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What a source says about itself, with its first frame as witness.

    Attributes:
        source: The source as the caller named it; passwords in addresses are hidden.
        width_px: Width as shown, that is after rotation.
        height_px: Height as shown.
        average_fps: Frames per second: what the source states, where its time stamps confirm it, else as measured on
            the first of them; None if there is neither.
        duration_s: Stated length, or None. A truncated file states more than it holds.
        stated_frames: Stated number of frames, or None. Not a promise either.
        codec: Name of the codec ("h264", "vp9", …), or "images", "animation" or "array".
        rotation_degrees: By how much the stored pictures are turned counter-clockwise for display: 0, 90, 180 or 270.
    """

    source: str
    width_px: int
    height_px: int
    average_fps: Fraction | None
    duration_s: float | None
    stated_frames: int | None
    codec: str
    rotation_degrees: int

    @property
    def rate_fps(self) -> float | None:
        """`average_fps` as a float."""
        return float(self.average_fps) if self.average_fps else None


def check_size(source: str, width_px: int, height_px: int) -> None:
    """Refuses pictures that no camera makes, before memory is taken for them.

    Raises:
        VideoError: If a side is not in 1..`MAX_SIDE_PX` or the picture has more than `MAX_PIXELS` pixels.
    """
    if min(width_px, height_px) < 1 or max(width_px, height_px) > MAX_SIDE_PX or width_px * height_px > MAX_PIXELS:
        raise VideoError(
            source,
            f"expected pictures of 1 to {MAX_SIDE_PX} pixels a side and at most {MAX_PIXELS} in all, "
            f"got {width_px} x {height_px}; the file is damaged, or scale it down first",
        )


def scaled_size(height_px: int, width_px: int, short_side_px: int) -> tuple[int, int]:
    """Height and width with the short side at `short_side_px` and the aspect kept to the nearest pixel."""
    scale = Fraction(short_side_px, min(height_px, width_px))
    return max(1, round(height_px * scale)), max(1, round(width_px * scale))


def check_short_side(short_side_px: int | None) -> None:
    """Raises InputError unless `short_side_px` is None or in 1..`MAX_SIDE_PX`."""
    if short_side_px is not None and not 1 <= short_side_px <= MAX_SIDE_PX:
        raise InputError(f"short_side_px: expected 1 to {MAX_SIDE_PX}, or None for no resizing, got {short_side_px}")


def checked_fps(name: str, fps: float | Fraction) -> Fraction:
    """The frame rate as the fraction that was meant: 29.97003 is 30000/1001.

    Raises:
        InputError: Unless `fps` is a number above 0.
    """
    try:
        rate = Fraction(fps).limit_denominator(1001)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InputError(f"{name}: expected frames per second, got {fps!r}") from exc
    if rate <= 0:
        raise InputError(f"{name}: expected frames per second, at least 1/1001, got {fps!r}")
    return rate


class Start(NamedTuple):
    """Where to begin: at the frame `frame`, or at the first not before `time_s` if that is given."""

    frame: int
    time_s: float | None

    def check(self) -> None:
        """Raises InputError for a start that no video has."""
        if self.frame < 0:
            raise InputError(f"start_frame: expected 0 or more, got {self.frame}")
        if self.time_s is not None and not 0 <= self.time_s < float("inf"):
            raise InputError(f"start_s: expected seconds from 0 on, got {self.time_s}")
        if self.time_s is not None and self.frame:
            raise InputError(f"expected start_frame or start_s, got both: {self.frame} and {self.time_s}")

    def reached(self, index: int, time_s: float) -> bool:
        """Whether the frame `index` at `time_s` is to be given."""
        return index >= self.frame if self.time_s is None else time_s >= self.time_s

    def not_in(self, source: str, num_frames: int) -> VideoError:
        """The error for a video that ends before this start."""
        wanted = f"frame {self.frame}" if self.time_s is None else f"{self.time_s:g} s"
        return VideoError(source, f"expected to start at {wanted}, but the video has only {num_frames} frames")


def index_not_in(source: str, index: int, num_frames: int) -> VideoError:
    """The error for an index that the video does not reach."""
    return VideoError(source, f"expected to read frame {index}, but the video has only {num_frames} frames")
