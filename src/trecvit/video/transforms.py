"""Sizes and crops of video tensors. Pixels stay uint8: the model itself brings them to [0, 1]."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional as F

from trecvit.errors import InputError
from trecvit.video.frames import Image


def crop(
    frames: UInt8[Tensor, "*batch C H W"], top: int, left: int, height: int, width: int
) -> UInt8[Tensor, "*batch C h w"]:
    """The `height` x `width` pixels from row `top` and column `left` on, as a view.

    Raises:
        InputError: If the crop is empty or reaches beyond the picture.
    """
    _check_frames(frames)
    full_height, full_width = frames.shape[-2:]
    fits = 0 <= top <= full_height - height and 0 <= left <= full_width - width
    if not fits or min(height, width) < 1:
        raise InputError(
            f"crop: {width} x {height} pixels at row {top}, column {left} "
            f"do not lie in a picture of {full_width} x {full_height}"
        )
    return frames[..., top : top + height, left : left + width]


def centre_crop(frames: UInt8[Tensor, "*batch C H W"], height: int, width: int) -> UInt8[Tensor, "*batch C h w"]:
    """The `height` x `width` pixels in the middle, as a view; an odd pixel left over goes to the bottom or right.

    Raises:
        InputError: If the picture is smaller than that.
    """
    _check_frames(frames)
    return crop(frames, (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2, height, width)


def to_clip(frames: Image, image_size: tuple[int, int]) -> UInt8[Tensor, "T 3 h w"]:
    """Decoded frames as the model takes them: scaled until they cover `image_size`, then cropped to it in the middle.

    Args:
        frames: `[T, H, W, 3]` uint8, 0 to 255, red green blue.
        image_size: `(height, width)` of the result in pixels.

    Returns:
        uint8 `[T, 3, height, width]`, contiguous.

    Raises:
        InputError: If `frames` is not uint8 `[T, H, W, 3]`, or a size is below 1.
    """
    height, width = image_size
    video = _as_video(frames, image_size)
    full_height, full_width = frames.shape[1:3]
    scale = max(Fraction(height, full_height), Fraction(width, full_width))
    covering = _resize(video, max(height, round(full_height * scale)), max(width, round(full_width * scale)))
    return centre_crop(covering, height, width).contiguous()


def to_whole_clip(frames: Image, image_size: tuple[int, int]) -> UInt8[Tensor, "T 3 h w"]:
    """Decoded frames as a tracker takes them: scaled to `image_size`, all of the picture and whatever its aspect.

    Args:
        frames: As for `to_clip`.
        image_size: Likewise.

    Returns:
        uint8 `[T, 3, height, width]`, contiguous.

    Raises:
        InputError: as `to_clip`.
    """
    return _resize(_as_video(frames, image_size), *image_size).contiguous()


def _as_video(frames: Image, image_size: tuple[int, int]) -> UInt8[Tensor, "T 3 H W"]:
    """Decoded frames as a tensor of the same memory where possible, not resized yet; checks both."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or frames.size == 0:
        raise InputError(f"frames: expected uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if min(image_size) < 1:
        raise InputError(f"image_size: expected (height, width) of 1 or more, got {image_size}")
    # Copied where torch could not look at the memory: negative strides, or read-only as a memory map is.
    writable = frames if frames.flags.writeable and min(frames.strides) >= 0 else frames.copy()
    return torch.from_numpy(writable).permute(0, 3, 1, 2)


def _resize(frames: UInt8[Tensor, "T 3 H W"], height: int, width: int) -> UInt8[Tensor, "T 3 h w"]:
    if frames.shape[-2:] == (height, width):
        return frames
    # On the CPU, torch resizes uint8 directly, many times faster than through floats.
    return F.interpolate(frames, size=(height, width), mode="bilinear", antialias=True)


def _check_frames(frames: Tensor) -> None:
    if frames.dtype != torch.uint8 or frames.ndim < 3 or frames.numel() == 0:
        raise InputError(f"frames: expected uint8 [..., C, H, W], got {frames.dtype} {list(frames.shape)}")
