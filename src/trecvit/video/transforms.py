"""Resizing and cropping of video tensors. Pixels stay uint8: the model scales them to [0, 1]."""

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
    """Crop `height` x `width` pixels at row `top` and column `left`, as a view.

    Raises:
        InputError: The crop is empty or reaches beyond the picture.
    """
    _check_frames(frames)
    full_height, full_width = frames.shape[-2:]
    fits = 0 <= top <= full_height - height and 0 <= left <= full_width - width
    if not fits or min(height, width) < 1:
        raise InputError(
            f"crop: expected a part of a picture of {full_width} x {full_height} pixels, "
            f"got {width} x {height} at row {top}, column {left}"
        )
    return frames[..., top : top + height, left : left + width]


def centre_crop(frames: UInt8[Tensor, "*batch C H W"], height: int, width: int) -> UInt8[Tensor, "*batch C h w"]:
    """Crop `height` x `width` pixels in the centre, as a view; an odd margin is larger at the bottom or right.

    Raises:
        InputError: The picture is smaller than the crop.
    """
    _check_frames(frames)
    return crop(frames, (frames.shape[-2] - height) // 2, (frames.shape[-1] - width) // 2, height, width)


def to_clip(frames: Image, image_size: tuple[int, int]) -> UInt8[Tensor, "T 3 h w"]:
    """Convert decoded frames to a clip for the model: resized to cover `image_size`, then centre-cropped.

    Args:
        frames: `[T, H, W, 3]` uint8, RGB.
        image_size: `(height, width)` of the result in pixels.

    Returns:
        uint8 `[T, 3, height, width]`, contiguous.

    Raises:
        InputError: `frames` is not uint8 `[T, H, W, 3]`, or a size is below 1.
    """
    height, width = image_size
    video = _as_video(frames, image_size)
    full_height, full_width = frames.shape[1:3]
    scale = max(Fraction(height, full_height), Fraction(width, full_width))
    covering = _resize(video, max(height, round(full_height * scale)), max(width, round(full_width * scale)))
    return centre_crop(covering, height, width).contiguous()


def to_whole_clip(frames: Image, image_size: tuple[int, int]) -> UInt8[Tensor, "T 3 h w"]:
    """Convert decoded frames to a clip for a tracker: the whole picture resized to `image_size`, in any aspect.

    Args:
        frames: As for `to_clip`.
        image_size: As for `to_clip`.

    Returns:
        uint8 `[T, 3, height, width]`, contiguous.

    Raises:
        InputError: As for `to_clip`.
    """
    return _resize(_as_video(frames, image_size), *image_size).contiguous()


def _as_video(frames: Image, image_size: tuple[int, int]) -> UInt8[Tensor, "T 3 H W"]:
    """Validate frames and size, and view the frames as a tensor, sharing memory where possible."""
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or frames.size == 0:
        raise InputError(f"frames: expected uint8 [T, H, W, 3], got {frames.dtype} {list(frames.shape)}")
    if min(image_size) < 1:
        raise InputError(f"image_size: expected (height, width) of 1 or more, got {image_size}")
    # Copied where torch cannot share the memory: negative strides, or read-only as in a memory map.
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
