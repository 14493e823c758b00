"""Types and limits shared by all sources of frames."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from trecvit.errors import InputError, VideoError

Image: TypeAlias = npt.NDArray[np.uint8]

# Suffixes of videos that FFmpeg reads, from cameras, broadcasters and encoders; no pictures except GIF, APNG and WebP,
# which may be animated.
_SUFFIXES = """
    mp4 webm mkv avi mov m4v mpg mpeg ts wmv flv 3gp mts m2ts m2t mod tod tp trp vob vro evo m1v m2v m2p mp2v mpe mpv
    mp4v mpeg4 ogv ogg ogm ogx asf divx xvid rm rmvb qt f4v 3g2 3gp2 3gpp amv mxf gxf dv dif wtv dvr-ms nut y4m mk3d mj2
    mjpeg mjpg ivf obu av1 h261 h263 h264 264 avc h265 265 hevc h266 266 vvc vc1 drc insv swf nsv gif apng webp
"""
VIDEO_SUFFIXES = tuple(f".{suffix}" for suffix in _SUFFIXES.split())

MAX_SIDE_PX = 16_384
# Twice an 8K picture. Decoders allocate memory by a header's claim, so hostile headers must be refused first.
MAX_PIXELS = 2**26


class Frame(NamedTuple):
    """One frame of a video.

    Attributes:
        image: `[H, W, 3]`, RGB, uint8. A copy that the receiver may modify.
        time_s: Seconds after the video's first frame.
        index: Index in presentation order, from 0.
    """

    image: Image
    time_s: float
    index: int  # type: ignore[assignment]  # hides tuple.index


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """Stated metadata of a source, checked on its first frame.

    Attributes:
        source: The source as given by the caller; passwords in addresses are hidden.
        width_px: Width after rotation.
        height_px: Height after rotation.
        average_fps: Frames per second as stated, if the time stamps confirm it, else measured on them; None if unknown.
        duration_s: Stated length, or None. A truncated file states more than it holds.
        stated_frames: Stated number of frames, or None, with the same caveat.
        codec: Name of the codec ("h264", "vp9", …), or "images", "animation" or "array".
        rotation_degrees: Counter-clockwise rotation of the stored pictures for display: 0, 90, 180 or 270.
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


def check_size(source: str, width_px: int, height_px: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse implausible picture sizes before memory is allocated.

    Raises:
        VideoError: A side is not in 1..`MAX_SIDE_PX`, or the picture has more than `max_pixels` pixels.
    """
    if min(width_px, height_px) < 1 or max(width_px, height_px) > MAX_SIDE_PX or width_px * height_px > max_pixels:
        raise VideoError(
            source,
            f"expected pictures of 1 to {MAX_SIDE_PX} pixels a side and at most {max_pixels} in all, "
            f"got {width_px} x {height_px}; if the file is intact, scale it down first",
        )


def scaled_size(height_px: int, width_px: int, short_side_px: int) -> tuple[int, int]:
    """Compute height and width with a short side of `short_side_px` and the same aspect, to the nearest pixel."""
    scale = Fraction(short_side_px, min(height_px, width_px))
    return max(1, round(height_px * scale)), max(1, round(width_px * scale))


def check_short_side(short_side_px: int | None) -> None:
    """Raise InputError unless `short_side_px` is None or in 1..`MAX_SIDE_PX`."""
    if short_side_px is not None and not 1 <= short_side_px <= MAX_SIDE_PX:
        raise InputError(f"short_side_px: expected 1 to {MAX_SIDE_PX}, or None for no resizing, got {short_side_px}")


def checked_fps(name: str, fps: float | Fraction) -> Fraction:
    """Convert a frame rate to the intended fraction: 29.97003 is 30000/1001.

    Raises:
        InputError: `fps` is not a number above 0.
    """
    try:
        rate = Fraction(fps).limit_denominator(1001)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InputError(f"{name}: expected frames per second, got {fps!r}") from exc
    if rate <= 0:
        raise InputError(f"{name}: expected frames per second, at least 1/1001, got {fps!r}")
    return rate


class Start(NamedTuple):
    """The start of a read: frame `frame`, or the first frame at or after `time_s` if given."""

    frame: int
    time_s: float | None

    def check(self) -> None:
        """Raise InputError for an impossible start."""
        if self.frame < 0:
            raise InputError(f"start_frame: expected 0 or more, got {self.frame}")
        if self.time_s is not None and not 0 <= self.time_s < float("inf"):
            raise InputError(f"start_s: expected 0 s or more, got {self.time_s}")
        if self.time_s is not None and self.frame:
            raise InputError(f"expected start_frame or start_s, got both: {self.frame} and {self.time_s}")

    def reached(self, index: int, time_s: float) -> bool:
        """Test whether frame `index` at `time_s` is at or after the start."""
        return index >= self.frame if self.time_s is None else time_s >= self.time_s

    def not_in(self, source: str, num_frames: int) -> VideoError:
        """Build the error for a video that ends before this start."""
        start = f"frame {self.frame}" if self.time_s is None else f"{self.time_s:g} s"
        return VideoError(source, f"expected to start at {start}, but the video has only {num_frames} frames")


def index_not_in(source: str, index: int, num_frames: int) -> VideoError:
    """Build the error for an index beyond the end of the video."""
    return VideoError(source, f"expected to read frame {index}, but the video has only {num_frames} frames")
