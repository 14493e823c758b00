"""Writes frames to a video file, whole or not at all."""

from __future__ import annotations

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


_RECIPES = {
    # With x264's mbtree the same frames now and then make another file, of one thread too; a data set would not be the
    # same one twice. faststart puts the index first, so that a browser can play what it has.
    ".mp4": _Recipe(
        "mp4",
        "libx264",
        "yuv420p",
        {"crf": "20", "preset": "medium", "x264-params": "mbtree=0"},
        {"movflags": "+faststart"},
    ),
    ".webm": _Recipe(
        "webm", "libvpx-vp9", "yuv420p", {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "6"}, {}
    ),
    # Lossless: what is read back is what was written, bit for bit.
    ".mkv": _Recipe("matroska", "ffv1", "bgr0", {}, {}),
}

SUFFIXES = tuple(_RECIPES)

# The clock ticks at least this often, so that given times are kept to about 0.01 ms (containers may round further).
_MIN_TICKS_PER_S = 90_000

_SWSCALE = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


class VideoWriter:
    """Writes RGB frames to `.mp4` (H.264), `.webm` (VP9) or `.mkv` (FFV1, lossless), as a context manager.

    The file appears under its name when the block ends well; if it ends in an exception, nothing is left behind and a
    file that was there before stays as it was.

    Args:
        path: Where to write. Its suffix chooses the format.
        fps: Frame rate of frames written without a time.

    Raises:
        VideoError: For an unknown suffix or a folder that does not exist; later, if FFmpeg or the disk refuses.
        InputError: If `fps` is not above 0.

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
            raise VideoError(str(path), f"there is no folder {str(self.path.parent)!r}; make it first")
        self._recipe = recipe
        # Beside the target, so that the last step is a rename within one disk.
        self._partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.partial")
        # A whole number of ticks to a frame: a constant frame rate stays exactly constant.
        self._ticks_per_s = self.fps.numerator * -(-_MIN_TICKS_PER_S // self.fps.numerator)
        self._container: av.container.OutputContainer | None = None
        self._stream: av.VideoStream | None = None
        self._reformatter = VideoReformatter()
        self._shape: tuple[int, ...] = ()
        self._frames_written = 0
        self._last_ticks = -1
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def write(self, image: Image, time_s: float | None = None) -> None:
        """Adds one frame.

        Args:
            image: `[H, W, 3]` uint8, red green blue, all of one size. Where the codec needs even sides (`.mp4`,
                `.webm`), an odd one is made even by repeating the last row or column.
            time_s: When it is shown, in seconds; must rise. None: one frame step after the frame before.

        Raises:
            InputError: For another shape, dtype or size, or a time that does not rise.
            VideoError: If it cannot be encoded or written, or the writer is closed.
        """
        if self._closed:
            raise VideoError(str(self.path), "the video is already closed; write inside the with block")
        self._check_image(image)
        ticks = self._ticks(time_s)
        try:
            if self._stream is None:
                self._open(image)
            self._mux(self._picture(image, ticks))
        except (av.FFmpegError, OSError) as exc:
            raise self._failed(exc) from exc
        self._last_ticks = ticks
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
        if self._container is None:
            raise VideoError(str(self.path), "expected at least one frame, but none was written")
        self._mux(None)
        self._container.close()
        self._container = None
        self._partial.replace(self.path)

    def _discard(self) -> None:
        """Closes and removes what `_finish` did not see through; what went wrong is already known."""
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
                f"image: all frames must have the size of the first, {self._shape[1]} x {self._shape[0]}; "
                f"frame {self._frames_written} is {image.shape[1]} x {image.shape[0]}"
            )

    def _ticks(self, time_s: float | None) -> int:
        if time_s is None:
            step = self._ticks_per_s // self.fps.numerator * self.fps.denominator
            return 0 if self._last_ticks < 0 else self._last_ticks + step
        if not 0 <= time_s < float("inf"):
            raise InputError(f"time_s: expected seconds from 0 on, got {time_s}")
        ticks = round(time_s * self._ticks_per_s)
        if ticks <= self._last_ticks:
            raise InputError(
                f"time_s: must rise from frame to frame; frame {self._frames_written} is at {time_s:g} s, "
                f"after one at {self._last_ticks / self._ticks_per_s:g} s"
            )
        return ticks

    def _open(self, image: Image) -> None:
        recipe = self._recipe
        self._container = av.open(
            str(self._partial), "w", format=recipe.container, container_options=recipe.container_options
        )
        stream = self._container.add_stream(recipe.codec, rate=self.fps, options=recipe.codec_options)
        assert isinstance(stream, av.VideoStream), "a video codec makes a video stream"
        height_px, width_px = self._stored_size(image)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, recipe.pixel_format
        stream.codec_context.time_base = Fraction(1, self._ticks_per_s)
        if recipe.pixel_format == "yuv420p":
            # Said outright, because players guess the colour matrix from the picture size where nothing is said.
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
        words = getattr(exc, "strerror", None) or str(exc)
        return VideoError(str(self.path), f"the video could not be written: {words}", frames_read=self._frames_written)
