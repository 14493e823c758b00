"""Sources of still images: folders of images, arrays, `.npy` files, and animated pictures.

Only animated pictures have times; in the others frame `i` is at `i / fps` seconds.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import PIL.ImageSequence

from trecvit.errors import InputError, VideoError
from trecvit.video.frames import VIDEO_SUFFIXES, Frame, Image, VideoInfo, check_size, scaled_size

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
ANIMATED_SUFFIXES = (".gif", ".webp", ".apng")
_ONLY_VIDEO_SUFFIXES = frozenset(VIDEO_SUFFIXES) - {*IMAGE_SUFFIXES, *ANIMATED_SUFFIXES}
# Browsers show frames of less than 20 ms for 100 ms, and animations are made to look right there.
_SHORTEST_MS, _INSTEAD_MS = 20, 100

# 16-bit and float pictures have no standard conversion to 8 bits, so they are refused.
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")


class Stills(ABC):
    """Frames with random access.

    Attributes:
        source: Name for messages.
        fps: The assumed frame rate.
        codec: "images", "animation" or "array".
    """

    codec: str

    def __init__(self, source: str, fps: Fraction) -> None:
        self.source = source
        self.fps = fps

    @abstractmethod
    def __len__(self) -> int:
        """Number of frames, at least 1."""

    @abstractmethod
    def load(self, index: int) -> Image:
        """Read frame `index`, `[H, W, 3]` uint8, as a copy."""

    def info(self) -> VideoInfo:
        """Return the metadata of this source."""
        height_px, width_px, _ = self.load(0).shape
        return VideoInfo(
            source=self.source,
            width_px=width_px,
            height_px=height_px,
            average_fps=self.fps,
            duration_s=float(len(self) / self.fps),
            stated_frames=len(self),
            codec=self.codec,
            rotation_degrees=0,
        )

    def time_s(self, index: int) -> float:
        """Return the time of frame `index` in seconds."""
        return float(index / self.fps)

    def index_at(self, start_s: float) -> int:
        """Return the first frame at or after `start_s`; `len(self)` if there is none."""
        if start_s > self.time_s(len(self)):
            return len(self)
        index = max(0, int(start_s * self.fps) - 1)
        # Compared as floats, since callers pass back a time_s: exact fractions could miss by a rounding error.
        while self.time_s(index) < start_s:
            index += 1
        return index

    def frames(self, start_frame: int, short_side_px: int | None) -> Generator[Frame, None, None]:
        """Yield the frames from `start_frame`."""
        for index in range(start_frame, len(self)):
            yield Frame(_resized(self.source, self.load(index), short_side_px), self.time_s(index), index)

    def pick(self, indices: Sequence[int], short_side_px: int | None) -> dict[int, Frame]:
        """Read the frames with these indices, which are rising and valid."""
        return {index: next(self.frames(index, short_side_px)) for index in indices}


class Array(Stills):
    """Frames in an array, which may be a memory map."""

    codec = "array"

    def __init__(self, source: str, pixels: Image, fps: Fraction) -> None:
        super().__init__(source, fps)
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def load(self, index: int) -> Image:
        """Copy frame `index`."""
        return np.array(self._pixels[index])


class Folder(Stills):
    """The images of a folder in natural order, `2.png` before `10.png`, all of one size."""

    codec = "images"

    def __init__(self, folder: Path, fps: Fraction) -> None:
        super().__init__(str(folder), fps)
        self._paths = image_paths(folder)
        self._shape = _read_image(self._paths[0]).shape

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, index: int) -> Image:
        """Read image `index`, which must have the size of the first."""
        image = _read_image(self._paths[index])
        if image.shape != self._shape:
            raise VideoError(
                self.source,
                f"expected images of one size: {self._paths[0].name} is {self._shape[1]} x "
                f"{self._shape[0]}, but {self._paths[index].name} is {image.shape[1]} x {image.shape[0]}",
                frames_read=index,
                time_s=self.time_s(index),
            )
        return image


class Animation(Stills):
    """The frames of an animated picture with their stated times, decoded forwards."""

    codec = "animation"

    def __init__(self, path: Path) -> None:
        self._path = path
        # Start of each frame, and end of the last, in ms.
        self._times_ms = [0]
        with _opened_picture(path) as picture:
            check_size(str(path), *picture.size)
            for frame in PIL.ImageSequence.Iterator(picture):
                frame.load()  # some formats set a frame's duration only then
                stated_ms = round(frame.info.get("duration", 0))
                self._times_ms.append(self._times_ms[-1] + (stated_ms if stated_ms >= _SHORTEST_MS else _INSTEAD_MS))
        super().__init__(str(path), Fraction(1000 * len(self), self._times_ms[-1]))

    def __len__(self) -> int:
        return len(self._times_ms) - 1

    def load(self, index: int) -> Image:
        """Read frame `index`, decoding all before it."""
        return next(self.frames(index, None)).image

    def time_s(self, index: int) -> float:
        """Return the stated time of frame `index` in seconds."""
        return self._times_ms[index] / 1000

    def index_at(self, start_s: float) -> int:
        """See `Stills.index_at`."""
        return bisect_left(range(len(self)), start_s, key=self.time_s)

    def frames(self, start_frame: int, short_side_px: int | None) -> Generator[Frame, None, None]:
        """Yield the frames from `start_frame`."""
        with _opened_picture(self._path) as picture:
            for index, frame in enumerate(PIL.ImageSequence.Iterator(picture)):
                if index >= start_frame:
                    image = np.array(frame.convert("RGB"))
                    yield Frame(_resized(self.source, image, short_side_px), self.time_s(index), index)

    def pick(self, indices: Sequence[int], short_side_px: int | None) -> dict[int, Frame]:
        """See `Stills.pick`; one pass."""
        requested = set(indices)
        by_index = {}
        for frame in self.frames(indices[0], short_side_px):
            if frame.index in requested:
                by_index[frame.index] = frame
            if frame.index == indices[-1]:
                break
        return by_index


def open_animation(path: Path) -> Animation | None:
    """Open an animated picture; None if the file is not a picture, whatever its name.

    Raises:
        VideoError: It is damaged.
    """
    try:
        PIL.Image.open(path).close()
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return None
    return Animation(path)


@contextmanager
def _opened_picture(path: Path) -> Iterator[PIL.Image.Image]:
    try:
        with PIL.Image.open(path) as picture:
            yield picture
    # Pillow's readers let parsing errors through.
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as exc:
        raise VideoError(str(path), f"expected a readable animation: {exc}") from exc


def open_array(pixels: np.ndarray, fps: Fraction) -> Array:
    """Open an array in memory as frames.

    Raises:
        InputError: It is not uint8 `[T, H, W, 3]` with at least one frame.
    """
    if problem := _array_problem(pixels):
        raise InputError(problem)
    return Array("array", pixels, fps)


def open_npy(path: Path, fps: Fraction) -> Array:
    """Open a `.npy` file as frames, read from disk on demand.

    Raises:
        VideoError: The file is damaged or does not hold uint8 `[T, H, W, 3]`.
    """
    try:
        # Never a pickle: open_memmap refuses arrays of objects.
        pixels = np.lib.format.open_memmap(path, mode="r")
    except Exception as exc:  # NumPy parses the header as Python text, with many types of errors
        raise VideoError(str(path), f"expected a .npy file with uint8 [T, H, W, 3]: {exc}") from exc
    if problem := _array_problem(pixels):
        raise VideoError(str(path), problem)
    return Array(str(path), pixels, fps)


def _array_problem(pixels: np.ndarray) -> str:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.size == 0:
        return (
            f"expected an array of RGB frames, uint8 [T, H, W, 3] with T >= 1, got {pixels.dtype} {list(pixels.shape)}"
        )
    return ""


def image_paths(folder: Path) -> Sequence[Path]:
    """List the images of a folder in natural order, as frames of a video.

    Raises:
        VideoError: The folder cannot be read, holds videos, or holds no image.
    """
    try:
        # Names that start with a dot are system files.
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as exc:
        raise VideoError(str(folder), f"expected a readable folder: {exc.strerror}") from exc
    inside = [entry for entry in entries if entry.is_dir()]
    videos = [
        path for path in chain(entries, *map(Path.iterdir, inside)) if path.suffix.lower() in _ONLY_VIDEO_SUFFIXES
    ]
    if videos:
        raise VideoError(
            str(folder),
            f"expected a video or a folder of its frames, got a folder of videos, {videos[0].name!r} among them; "
            "choose one of them",
        )
    paths = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise VideoError(
            str(folder),
            f"expected a folder of images ({' '.join(IMAGE_SUFFIXES)}), found none among its {len(entries)} entries; "
            "give a video file inside it, or the folder of the frames",
        )
    return sorted(paths, key=_natural_key)


def _natural_key(path: Path) -> tuple[list[tuple[str, int]], str]:
    # Pairs of (text, number) compare like with like; the name decides between 1.png and 01.png.
    parts = re.findall(r"(\D*)(\d*)", path.name)
    return [(text.lower(), int(digits or -1)) for text, digits in parts], path.name


def _read_image(path: Path) -> Image:
    try:
        with PIL.Image.open(path) as picture:
            check_size(str(path), *picture.size)
            if picture.mode not in _EIGHT_BIT_MODES:
                raise VideoError(str(path), f"expected 8 bits per colour, got an image of mode {picture.mode!r}")
            # Cameras store portrait pictures sideways, with the orientation in EXIF.
            return np.array(PIL.ImageOps.exif_transpose(picture).convert("RGB"))
    # Pillow's readers let parsing errors through.
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as exc:
        raise VideoError(str(path), f"expected a readable image: {exc}") from exc


def _resized(source: str, image: Image, short_side_px: int | None) -> Image:
    if short_side_px is None:
        return image
    height_px, width_px = scaled_size(image.shape[0], image.shape[1], short_side_px)
    check_size(source, width_px, height_px)
    picture = PIL.Image.fromarray(image).resize((width_px, height_px), PIL.Image.Resampling.BILINEAR)
    return np.array(picture)
