"""Augmentation of clips: one random draw per clip, applied to all its frames alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageEnhance, ImageOps
from PIL.Image import Image as Picture

from trecvit.errors import ConfigError
from trecvit.video.frames import Image

# Directions that a mirror reverses, anywhere in a class name (swipe_left, TurnRight, leftwards), except in words
# without a direction (upright). When in doubt a class is not mirrored rather than mislabelled.
_SIDED = re.compile(r"(?<!b)(?<!up)(left(?!over)|right|(?:(?:counter|anti)[-_ ]?)?clockwise)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Augmentation of training clips. The defaults vary only the position of the crop.

    Attributes:
        scale: Range of the short side, as a factor on `resize_px` (paper, Table 9: 0.875 to 1.33).
        resize_px: Short side in pixels before the crop; 0 for the crop's side / 0.875, with which the smallest factor
            of Table 9 just fits a crop (256 for 224).
        flip: Mirror half of the clips, except for classes that name left, right or (counter-)clockwise.
        flip_sided: With `flip`, mirror those too if the opposite (left for right, clockwise for counter-clockwise) is
            a class of the data, which becomes the label of the mirrored clip.
        rand_augment_ops: Number of RandAugment operations per clip (Cubuk et al. 2020); 0 for none.
        rand_augment_magnitude: Their strength, from 0 to 10.
    """

    scale: tuple[float, float] = (1.0, 1.0)
    resize_px: int = 0
    flip: bool = False
    flip_sided: bool = False
    rand_augment_ops: int = 0
    rand_augment_magnitude: float = 5.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", tuple(self.scale))
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"scale: expected two factors, the smaller first, got {self.scale}")
        if self.resize_px < 0 or self.rand_augment_ops < 0:
            raise ConfigError(
                f"resize_px and rand_augment_ops: expected 0 or more, got {self.resize_px} and {self.rand_augment_ops}"
            )
        if self.flip_sided and not self.flip:
            raise ConfigError("flip_sided: expected `flip` with it, got flip=false; set both or neither")
        if not 0 <= self.rand_augment_magnitude <= 10:
            raise ConfigError(f"rand_augment_magnitude: expected 0 to 10, got {self.rand_augment_magnitude}")

    def short_side_px(self, rng: np.random.Generator, image_size: tuple[int, int]) -> int:
        """Draw the short side to decode to, never smaller than the crop."""
        base = self.resize_px or round(max(image_size) / 0.875)
        return max(round(base * rng.uniform(*self.scale)), *image_size)

    def mirrored_labels(self, labels: Sequence[str]) -> tuple[int | None, ...]:
        """Return the label of each class's mirrored clips; None where clips must not be mirrored."""
        numbers = {label: number for number, label in enumerate(labels)}
        if not self.flip:
            return (None,) * len(labels)
        return tuple(
            number if _SIDED.search(label) is None else numbers.get(opposite(label)) if self.flip_sided else None
            for label, number in numbers.items()
        )

    def __call__(
        self, frames: Image, rng: np.random.Generator, image_size: tuple[int, int], *, may_flip: bool
    ) -> tuple[Image, bool]:
        """Crop, flip and distort a clip at random.

        Args:
            frames: `[T, H, W, 3]`, at least as large as the crop.
            rng: Source of randomness.
            image_size: Height and width of the crop.
            may_flip: Whether this clip may be mirrored, see `mirrored_labels`.

        Returns:
            `[T, height, width, 3]`, contiguous, and whether it was mirrored.
        """
        height, width = image_size
        top = int(rng.integers(frames.shape[1] - height + 1))
        left = int(rng.integers(frames.shape[2] - width + 1))
        cropped = frames[:, top : top + height, left : left + width]
        flipped = may_flip and bool(rng.random() < 0.5)
        if flipped:
            cropped = cropped[:, :, ::-1]
        clip: Image = np.ascontiguousarray(cropped)
        return rand_augment(clip, rng, self.rand_augment_ops, self.rand_augment_magnitude), flipped


def opposite(label: str) -> str:
    """Swap left with right and clockwise with counter-clockwise in a class name."""

    def swap(match: re.Match[str]) -> str:
        word = match[0].lower()
        swapped = {"left": "right", "right": "left", "clockwise": "counter-clockwise"}.get(word, "clockwise")
        return swapped.capitalize() if match[0].istitle() else swapped

    return _SIDED.sub(swap, label)


def rand_augment(frames: Image, rng: np.random.Generator, num_ops: int, magnitude: float) -> Image:
    """Apply RandAugment (Cubuk et al. 2020): random operations, drawn with repeats, equal on all frames.

    Operations and ranges are those of the paper's policy space, done by Pillow. Operations that use the statistics of a
    picture (contrast, equalising ...) use those of the whole clip, which avoids flicker.

    Args:
        frames: `[T, H, W, 3]` uint8.
        rng: Source of randomness.
        num_ops: Number of operations.
        magnitude: Strength of all operations, 0 to 10.
    """
    for name in rng.choice(sorted(_OPERATIONS), size=num_ops):
        sign = 1 if rng.random() < 0.5 else -1
        frames = _OPERATIONS[str(name)](frames, magnitude / 10, sign)
    return frames


def _on_clip(change: Callable[[Picture, float], Picture]) -> Callable[..., Image]:
    """Apply a change of colours to all frames as one tall picture."""

    def changed(frames: Image, strength: float, sign: int) -> Image:
        tall = PIL.Image.fromarray(frames.reshape(-1, *frames.shape[2:]))
        return np.array(change(tall, strength * sign)).reshape(frames.shape)  # a copy: Pillow's own is read-only

    return changed


def _on_frames(change: Callable[[Picture, float], Picture]) -> Callable[..., Image]:
    """Apply a change that depends on neighbouring pixels to each frame separately."""

    def changed(frames: Image, strength: float, sign: int) -> Image:
        pictures = (PIL.Image.fromarray(frame) for frame in frames)
        return np.stack([np.asarray(change(picture, strength * sign)) for picture in pictures])

    return changed


def _affine(picture: Picture, matrix: tuple[float, ...]) -> Picture:
    """Apply an affine map about the centre of the picture: Pillow's (a, b, c, d, e, f), from output to input."""
    a, b, c, d, e, f = matrix
    x, y = picture.width / 2, picture.height / 2  # Pillow's coordinates start at pixel edges
    about = (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y)
    return picture.transform(
        picture.size, PIL.Image.Transform.AFFINE, about, PIL.Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
    )


def _enhanced(enhancer: Callable[[Picture], Any]) -> Callable[[Picture, float], Picture]:
    def change(picture: Picture, strength: float) -> Picture:
        enhanced: Picture = enhancer(picture).enhance(1 + 0.9 * strength)
        return enhanced

    return change


def _posterised(picture: Picture, strength: float) -> Picture:
    return ImageOps.posterize(picture, 8 - round(4 * abs(strength)))


def _solarised(picture: Picture, strength: float) -> Picture:
    return ImageOps.solarize(picture, round(256 * (1 - abs(strength))))


_OPERATIONS: dict[str, Callable[..., NDArray[np.uint8]]] = {
    "identity": lambda frames, strength, sign: frames,
    "auto_contrast": _on_clip(lambda picture, _: ImageOps.autocontrast(picture)),
    "equalise": _on_clip(lambda picture, _: ImageOps.equalize(picture)),
    "posterise": _on_clip(_posterised),
    "solarise": _on_clip(_solarised),
    "colour": _on_clip(_enhanced(ImageEnhance.Color)),
    "contrast": _on_clip(_enhanced(ImageEnhance.Contrast)),
    "brightness": _on_clip(_enhanced(ImageEnhance.Brightness)),
    "sharpness": _on_frames(_enhanced(ImageEnhance.Sharpness)),
    "rotate": _on_frames(lambda picture, strength: picture.rotate(
        30 * strength, PIL.Image.Resampling.BILINEAR, fillcolor=(128, 128, 128)
    )),
    "shear_x": _on_frames(lambda picture, strength: _affine(picture, (1.0, 0.3 * strength, 0.0, 0.0, 1.0, 0.0))),
    "shear_y": _on_frames(lambda picture, strength: _affine(picture, (1.0, 0.0, 0.0, 0.3 * strength, 1.0, 0.0))),
    "translate_x": _on_frames(
        lambda picture, strength: _affine(picture, (1.0, 0.0, 0.45 * strength * picture.width, 0.0, 1.0, 0.0))
    ),
    "translate_y": _on_frames(
        lambda picture, strength: _affine(picture, (1.0, 0.0, 0.0, 0.0, 1.0, 0.45 * strength * picture.height))
    ),
}  # fmt: skip
