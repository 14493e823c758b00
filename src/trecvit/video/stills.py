"""Sources whose frames can be had one by one: a folder of images, an array, a `.npy` file, an animated picture.

All but the last state no times, so frame `i` is at `i / fps` seconds.
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
# Browsers show frames that state less than 20 ms for 100 ms, and people make animations so that they look right there.
_SHORTEST_MS, _INSTEAD_MS = 20, 100

# 16-bit and float pictures have no agreed way to become 8 bits, so they are refused and not squeezed.
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa")


class Stills(ABC):
    """Frames that can be asked for by index.

    Attributes:
        source: Name for messages.
        fps: The frame rate to assume.
        codec: "images" or "array".
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
        """Frame `index`, `[H, W, 3]` uint8, a copy of its own."""

    def info(self) -> VideoInfo:
        """What `probe` says of this source."""
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
        """Seconds from the first frame to frame `index`."""
        return float(index / self.fps)

    def index_at(self, start_s: float) -> int:
        """The first frame that is not before `start_s`; `len(self)` if none is."""
        if start_s > self.time_s(len(self)):
            return len(self)
        index = max(0, int(start_s * self.fps) - 1)
        # Compared as floats, as a caller does who hands back a time_s: exact fractions would miss by a rounding.
        while self.time_s(index) < start_s:
            index += 1
        return index

    def frames(self, start_frame: int, short_side_px: int | None) -> Generator[Frame, None, None]:
        """All frames from `start_frame` on."""
        for index in range(start_frame, len(self)):
            yield Frame(_resized(self.source, self.load(index), short_side_px), self.time_s(index), index)

    def pick(self, indices: Sequence[int], short_side_px: int | None) -> dict[int, Frame]:
        """The frames with these indices, which rise and are in the source."""
        return {index: next(self.frames(index, short_side_px)) for index in indices}


class Array(Stills):
    """Frames held in an array, which may be a memory map."""

    codec = "array"

    def __init__(self, source: str, pixels: Image, fps: Fraction) -> None:
        super().__init__(source, fps)
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def load(self, index: int) -> Image:
        """Frame `index`, copied."""
        return np.array(self._pixels[index])


class Folder(Stills):
    """The images of a folder in natural order: `2.png` before `10.png`. All must have one size."""

    codec = "images"

    def __init__(self, folder: Path, fps: Fraction) -> None:
        super().__init__(str(folder), fps)
        self._paths = _image_paths(folder)
        self._shape = _read_image(self._paths[0]).shape

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, index: int) -> Image:
        """The image at place `index`, if it has the size of the first."""
        image = _read_image(self._paths[index])
        if image.shape != self._shape:
            raise VideoError(
                self.source,
                f"all images of a folder must have one size: {self._paths[0].name} is {self._shape[1]} x "
                f"{self._shape[0]}, but {self._paths[index].name} is {image.shape[1]} x {image.shape[0]}",
                frames_read=index,
                time_s=self.time_s(index),
            )
        return image


class Animation(Stills):
    """The frames of an animated picture, each at the time that it states. Decoding goes forward only."""

    codec = "animation"

    def __init__(self, path: Path) -> None:
        self._path = path
        # Times in ms at which frames begin, and at which the last ends.
        self._times_ms = [0]
        with _opened_picture(path) as picture:
            check_size(str(path), *picture.size)
            for frame in PIL.ImageSequence.Iterator(picture):
                frame.load()  # some formats know a frame's time only then
                stated_ms = round(frame.info.get("duration", 0))
                self._times_ms.append(self._times_ms[-1] + (stated_ms if stated_ms >= _SHORTEST_MS else _INSTEAD_MS))
        super().__init__(str(path), Fraction(1000 * len(self), self._times_ms[-1]))

    def __len__(self) -> int:
        return len(self._times_ms) - 1

    def load(self, index: int) -> Image:
        """Frame `index`; all before it are decoded."""
        return next(self.frames(index, None)).image

    def time_s(self, index: int) -> float:
        """As the picture states it."""
        return self._times_ms[index] / 1000

    def index_at(self, start_s: float) -> int:
        """As `Stills.index_at`."""
        return bisect_left(range(len(self)), start_s, key=self.time_s)

    def frames(self, start_frame: int, short_side_px: int | None) -> Generator[Frame, None, None]:
        """All frames from `start_frame` on."""
        with _opened_picture(self._path) as picture:
            for index, frame in enumerate(PIL.ImageSequence.Iterator(picture)):
                if index >= start_frame:
                    image = np.array(frame.convert("RGB"))
                    yield Frame(_resized(self.source, image, short_side_px), self.time_s(index), index)

    def pick(self, indices: Sequence[int], short_side_px: int | None) -> dict[int, Frame]:
        """As `Stills.pick`, in one pass."""
        wanted = set(indices)
        found = {}
        for frame in self.frames(indices[0], short_side_px):
            if frame.index in wanted:
                found[frame.index] = frame
            if frame.index == indices[-1]:
                break
        return found


def open_animation(path: Path) -> Animation | None:
    """An animated picture, or one that could be; None if the file is none, whatever its name.

    Raises:
        VideoError: If it is damaged.
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
    # Pillow's readers let their parsing errors through as they are.
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as exc:
        raise VideoError(str(path), f"the animation could not be read: {exc}") from exc


def open_array(pixels: np.ndarray, fps: Fraction) -> Array:
    """Frames of an array in memory.

    Raises:
        InputError: If it is not uint8 `[T, H, W, 3]` with at least one frame.
    """
    wrong = _what_is_wrong(pixels)
    if wrong:
        raise InputError(wrong)
    return Array("array", pixels, fps)


def open_npy(path: Path, fps: Fraction) -> Array:
    """Frames of a `.npy` file, read from the disk as they are asked for.

    Raises:
        VideoError: If the file is damaged or does not hold uint8 `[T, H, W, 3]`.
    """
    try:
        # Never a pickle: open_memmap refuses arrays of objects.
        pixels = np.lib.format.open_memmap(path, mode="r")
    except Exception as exc:  # NumPy parses the header as Python text; a damaged one fails in a dozen ways
        raise VideoError(str(path), f"expected a .npy file with uint8 [T, H, W, 3]: {exc}") from exc
    wrong = _what_is_wrong(pixels)
    if wrong:
        raise VideoError(str(path), wrong)
    return Array(str(path), pixels, fps)


def _what_is_wrong(pixels: np.ndarray) -> str:
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.size == 0:
        return (
            "frames in an array must be uint8 [T, H, W, 3], red green blue, 0 to 255, with at least one frame; "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    return ""


def _image_paths(folder: Path) -> Sequence[Path]:
    try:
        # Names that start with a dot are what systems leave beside the real images.
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    except OSError as exc:
        raise VideoError(str(folder), f"the folder could not be listed: {exc.strerror}") from exc
    inside = [entry for entry in entries if entry.is_dir()]
    videos = [
        path for path in chain(entries, *map(Path.iterdir, inside)) if path.suffix.lower() in _ONLY_VIDEO_SUFFIXES
    ]
    if videos:
        raise VideoError(
            str(folder),
            f"expected a video or a folder of its frames, got a folder of videos, {videos[0].name!r} among them; "
            "name one of them",
        )
    paths = [entry for entry in entries if entry.suffix.lower() in IMAGE_SUFFIXES]
    if not paths:
        raise VideoError(
            str(folder),
            f"expected a folder of images ({' '.join(IMAGE_SUFFIXES)}), found none among its {len(entries)} entries; "
            "name a video file inside it, or a folder that holds the frames themselves",
        )
    return sorted(paths, key=_natural_key)


def _natural_key(path: Path) -> tuple[list[tuple[str, int]], str]:
    # Pairs of (text, number) compare text with text and number with number; the name itself settles 1.png and 01.png.
    parts = re.findall(r"(\D*)(\d*)", path.name)
    return [(text.lower(), int(digits or -1)) for text, digits in parts], path.name


def _read_image(path: Path) -> Image:
    try:
        with PIL.Image.open(path) as picture:
            check_size(str(path), *picture.size)
            if picture.mode not in _EIGHT_BIT_MODES:
                raise VideoError(str(path), f"expected 8 bits a colour, got an image of mode {picture.mode!r}")
            # A camera held upright says so in EXIF and stores the picture on its side.
            return np.array(PIL.ImageOps.exif_transpose(picture).convert("RGB"))
    # Pillow's readers let their parsing errors through as they are.
    except (OSError, ValueError, SyntaxError, EOFError, PIL.Image.DecompressionBombError) as exc:
        raise VideoError(str(path), f"the image could not be read: {exc}") from exc


def _resized(source: str, image: Image, short_side_px: int | None) -> Image:
    if short_side_px is None:
        return image
    height_px, width_px = scaled_size(image.shape[0], image.shape[1], short_side_px)
    check_size(source, width_px, height_px)
    picture = PIL.Image.fromarray(image).resize((width_px, height_px), PIL.Image.Resampling.BILINEAR)
    return np.array(picture)
