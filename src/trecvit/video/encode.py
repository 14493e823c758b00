"""Writing video files, complete or not at all."""

from __future__ import annotations

import math
import secrets
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import av
import av.container
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation, VideoReformatter

from trecvit.errors import InputError, VideoError
from trecvit.video.frames import Image, check_size, checked_fps


class _Recipe(NamedTuple):
    container: str
    codec: str
    pixel_format: str
    codec_options: dict[str, str]
    container_options: dict[str, str]
    # Ticks per second of the container's clock. None: chosen by the frame rate.
    ticks_per_s: int | None


_RECIPES = {
    # x264's mbtree is not deterministic, even with one thread, so a data set could not be reproduced. faststart puts
    # the index first, so that browsers can play a partial download.
    ".mp4": _Recipe(
        "mp4",
        "libx264",
        "yuv420p",
        {"crf": "20", "preset": "medium", "x264-params": "mbtree=0"},
        {"movflags": "+faststart"},
        None,
    ),
    ".webm": _Recipe(
        "webm", "libvpx-vp9", "yuv420p", {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "6"}, {}, 1000
    ),
    # Lossless.
    ".mkv": _Recipe("matroska", "ffv1", "bgr0", {}, {}, 1000),
}

SUFFIXES = tuple(_RECIPES)

# MP4: times are precise to about 0.01 ms. A higher maximum would only shorten the longest gap.
_MIN_TICKS_PER_S = 90_000
_MAX_TICKS_PER_S = 360_000
# MP4 stores each frame's duration, and its reordering over up to 3 frames, in 31 bits.
_MAX_GAP_TICKS = 2**29

_SWSCALE = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


class VideoWriter:
    """Writer of RGB frames to `.mp4` (H.264), `.webm` (VP9) or `.mkv` (FFV1, lossless), as a context manager.

    The file appears under its name when the block ends without an exception. If an exception leaves the block,
    `KeyboardInterrupt` included, the partial file is removed and an earlier file of that name stays. To keep the frames
    written so far, catch the exception inside the block:

        with VideoWriter("out.mp4", fps=25) as writer:
            try:
                for frame in camera:
                    writer.write(frame)
            except KeyboardInterrupt:
                pass        # the frames so far become a complete file

    Frame times are rounded to the ticks of the container: 1 ms in `.webm` and `.mkv`, about 0.01 ms in `.mp4`. A frame
    that would share a tick with its predecessor moves to the next tick, so no frame is lost; later frames keep their
    times. A gap of more than 2**29 ticks (over 20 minutes in `.mp4`) is shortened to that, and all later times shift.

    Args:
        path: The output file; its suffix selects the format.
        fps: Frame rate of frames written without a time.

    Raises:
        VideoError: Unknown suffix or missing folder; later, an error of FFmpeg or the disk.
        InputError: `fps` is not above 0.

    Example:
        ```python
        with VideoWriter("out.mp4", fps=25) as writer:
            for frame in read_frames("in.webm"):
                writer.write(frame.image, frame.time_s)
        ```
    """

    def __init__(self, path: str | Path, fps: Fraction | float) -> None:
        self.path = Path(path)
        self.fps = checked_fps("fps", fps)
        recipe = _RECIPES.get(self.path.suffix.lower())
        if recipe is None:
            raise VideoError(
                str(path),
                f"expected a name that ends in {', '.join(_RECIPES)}, got {self.path.suffix or 'no suffix'!r}",
            )
        if not self.path.parent.is_dir():
            raise VideoError(str(path), f"expected an existing folder, got {str(self.path.parent)!r}; create it first")
        self._recipe = recipe
        # In the target's folder, so that the final rename stays on one disk.
        self._partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        self._ticks_per_s = recipe.ticks_per_s or _mp4_ticks_per_s(self.fps)
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._reformatter = VideoReformatter()
        self._shape: tuple[int, ...] = ()
        self._frames_written = 0
        self._last_ticks = -1
        self._last_s = Fraction(0)  # time of the last frame before rounding
        self._cut_s = Fraction(0)  # total shortening of gaps so far
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def write(self, image: Image, time_s: float | None = None) -> None:
        """Write one frame.

        Args:
            image: `[H, W, 3]` uint8, RGB, all of one size. Where the codec needs even sides (`.mp4`, `.webm`), the last
                row or column is repeated.
            time_s: Presentation time in seconds, 0 or more. Equal times, and times that fall by up to one frame step,
                count as the next tick. None: one frame step after the last frame.

        Raises:
            InputError: Wrong shape, dtype or size, or a time that falls by more than one frame step.
            VideoError: The frame cannot be encoded or written, or the writer is closed.
        """
        if self._closed:
            raise VideoError(str(self.path), "expected an open video, got a closed one; write inside the with block")
        self._check_image(image)
        exact_s = self._exact_s(time_s)
        ticks, cut_s = self._ticks(exact_s)
        try:
            if self._stream is None:
                self._open(image)
            self._mux(self._picture(image, ticks))
        except (av.FFmpegError, OSError) as exc:
            raise self._failed(exc) from exc
        self._last_ticks, self._last_s, self._cut_s = ticks, exact_s, cut_s
        self._frames_written += 1

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        try:
            if exc_type is None:
                self._finish()
        except (av.FFmpegError, OSError) as failure:
            raise self._failed(failure) from failure
        finally:
            self._discard()

    def _finish(self) -> None:
        if self._container is None or not self._frames_written:
            raise VideoError(str(self.path), "expected at least one frame, got none")
        self._mux(None)
        self._container.close()
        self._container = None
        self._partial.replace(self.path)

    def _discard(self) -> None:
        """Close and remove an unfinished file; its error is reported elsewhere."""
        if self._container is not None:
            with suppress(av.FFmpegError, OSError):
                self._container.close()
        self._partial.unlink(missing_ok=True)

    def _check_image(self, image: Image) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        check_size(str(self.path), image.shape[1], image.shape[0])
        if self._shape and image.shape != self._shape:
            raise InputError(
                f"image: expected the size of the first frame, {self._shape[1]} x {self._shape[0]}, "
                f"got {image.shape[1]} x {image.shape[0]} for frame {self._frames_written}"
            )

    def _exact_s(self, time_s: float | None) -> Fraction:
        """Compute the exact time of the next frame: many small steps in floats would drift."""
        if time_s is None:
            return self._last_s + 1 / self.fps if self._frames_written else Fraction(0)
        if not 0 <= time_s < float("inf"):
            raise InputError(f"time_s: expected 0 s or more, got {time_s}")
        # Camera clocks jitter and spliced files overlap by up to a frame; more is a wrong order of frames.
        if time_s < self._last_s - 1 / self.fps:
            raise InputError(
                f"time_s: expected times that rise from frame to frame, got {time_s:g} s for frame "
                f"{self._frames_written}, after {float(self._last_s):g} s"
            )
        return max(Fraction(float(time_s)), self._last_s)

    def _ticks(self, exact_s: Fraction) -> tuple[int, Fraction]:
        """Compute the next frame's tick, after the last one, and the total shortening of gaps."""
        rounded = math.floor((exact_s - self._cut_s) * self._ticks_per_s + Fraction(1, 2))
        ticks = min(max(rounded, self._last_ticks + 1), max(self._last_ticks, 0) + _MAX_GAP_TICKS)
        return ticks, self._cut_s + Fraction(max(rounded - ticks, 0), self._ticks_per_s)

    def _open(self, image: Image) -> None:
        recipe = self._recipe
        self._container = av.open(
            str(self._partial), "w", format=recipe.container, container_options=recipe.container_options
        )
        # VP9 refuses frames that last less than a tick.
        rate = min(self.fps, Fraction(self._ticks_per_s))
        stream = self._container.add_stream(recipe.codec, rate=rate, options=recipe.codec_options)
        assert isinstance(stream, av.VideoStream), "a video codec makes a video stream"
        height_px, width_px = self._stored_size(image)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, recipe.pixel_format
        stream.codec_context.time_base = Fraction(1, self._ticks_per_s)
        if recipe.pixel_format == "yuv420p":
            # Stated, because players otherwise guess the colour matrix from the picture size.
            stream.codec_context.color_range = ColorRange.MPEG
            stream.codec_context.colorspace = Colorspace.ITU709
            stream.codec_context.color_primaries = ColorPrimaries.BT709
            stream.codec_context.color_trc = ColorTrc.BT709
        self._stream = stream
        self._shape = image.shape

    def _stored_size(self, image: Image) -> tuple[int, int]:
        height_px, width_px = image.shape[:2]
        if self._recipe.pixel_format != "yuv420p":
            return height_px, width_px
        return height_px + height_px % 2, width_px + width_px % 2

    def _picture(self, image: Image, ticks: int) -> av.VideoFrame:
        height_px, width_px = self._stored_size(image)
        padding = ((0, height_px - image.shape[0]), (0, width_px - image.shape[1]), (0, 0))
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.pad(image, padding, mode="edge")), format="rgb24")
        picture = self._reformatter.reformat(
            rgb,
            format=self._recipe.pixel_format,
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG if self._recipe.pixel_format == "yuv420p" else ColorRange.JPEG,
            interpolation=_SWSCALE,
        )
        picture.pts = ticks
        picture.time_base = Fraction(1, self._ticks_per_s)
        return picture

    def _mux(self, picture: av.VideoFrame | None) -> None:
        assert self._container is not None, "opened by the first frame"
        assert self._stream is not None, "opened by the first frame"
        for packet in self._stream.encode(picture):
            self._container.mux(packet)

    def _failed(self, exc: Exception) -> VideoError:
        error = getattr(exc, "strerror", None) or str(exc)
        return VideoError(str(self.path), f"the video could not be written: {error}", frames_read=self._frames_written)


def _mp4_ticks_per_s(fps: Fraction) -> int:
    """Choose ticks per second with a whole number per frame if possible, which keeps a constant frame rate exact."""
    ticks_per_s = fps.numerator * -(-_MIN_TICKS_PER_S // fps.numerator)
    return ticks_per_s if ticks_per_s <= _MAX_TICKS_PER_S else _MIN_TICKS_PER_S
