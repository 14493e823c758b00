"""Pyramidal Lucas–Kanade flow of single points, on patches that a tracker's state remembers.

Where a picture has hardly any pattern, descriptors find many places alike, and a wide patch of bare pixels still tells
them apart (Lucas and Kanade, 1981; from coarse to fine as in Bouguet, 2000; gradients of the remembered patch, as in
Baker and Matthews, 2004). A state holds patches, not frames, so that its size depends on the points alone.

B videos (streams) · Q query points · L sizes of pixels · P side of a remembered patch
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SIZES_PX = (1, 2, 4, 8)  # sides of the pixels of a pyramid
_SIDE = 13  # pixels of a patch that are compared
PATCH_SIDE = _SIDE + 2  # with a border for the gradients
PATCH_WIDTH = len(SIZES_PX) * PATCH_SIDE**2
_STEPS = 2  # in each size
_GREY = (0.299, 0.587, 0.114)
_STIFFNESS = _SIDE**2 * (0.3 / 255) ** 2  # gradients far below it, of rounding and noise, move no point
_LONGEST_STEP = 3.0  # in pixels of each size


class Flow(NamedTuple):
    """Where patches are found again.

    Attributes:
        places_xy: In pixels of the frame.
        read: What a tracker may judge the places by: deviation of the patch from the frame in the finest and the second
            size, relative to the patch's own; logarithm of how much pattern the finest patch has, near 0 for none.
    """

    places_xy: Float[Tensor, "B Q 2"]
    read: Float[Tensor, "B Q 3"]


READ_WIDTH = 3


def grey_pyramid(frames: Float[Tensor, "F 3 H W"]) -> list[Float[Tensor, "F h w"]]:
    """Grey frames with pixels of each size."""
    weights = torch.tensor(_GREY, dtype=frames.dtype, device=frames.device)
    grey = (frames * weights[:, None, None]).sum(dim=1, keepdim=True)
    pyramid = [grey]
    for _ in SIZES_PX[1:]:
        grey = F.avg_pool2d(grey, 2)
        pyramid.append(grey)
    return [level[:, 0] for level in pyramid]


def patches_around(pyramid: list[Tensor], points_xy: Float[Tensor, "B Q 2"]) -> Float[Tensor, "B Q S"]:
    """The patches around places, in each size."""
    return torch.cat(
        [
            _sampled(level, points_xy / size, PATCH_SIDE).flatten(2)
            for level, size in zip(pyramid, SIZES_PX, strict=True)
        ],
        dim=-1,
    )


@torch.no_grad()
def follow(
    pyramid: list[Tensor],
    patches: Float[Tensor, "B Q S"],
    points_xy: Float[Tensor, "B Q 2"],
    *,
    num_sizes: int = len(SIZES_PX),
) -> Flow:
    """Find patches again near places, from the coarsest of the `num_sizes` finest sizes on."""
    remembered = patches.unflatten(-1, (len(SIZES_PX), PATCH_SIDE, PATCH_SIDE))
    deviations = []
    pattern = torch.zeros_like(points_xy[..., 0])
    for number in reversed(range(num_sizes)):
        size, patch = SIZES_PX[number], remembered[:, :, number]
        inner = patch[:, :, 1:-1, 1:-1]
        across = (patch[:, :, 1:-1, 2:] - patch[:, :, 1:-1, :-2]) / 2
        down = (patch[:, :, 2:, 1:-1] - patch[:, :, :-2, 1:-1]) / 2
        inner, across, down = (values.flatten(2) for values in (inner, across, down))
        xx = across.square().sum(dim=-1) + _STIFFNESS
        yy = down.square().sum(dim=-1) + _STIFFNESS
        xy = (across * down).sum(dim=-1)
        determinant = xx * yy - xy.square()
        centred = inner - inner.mean(dim=-1, keepdim=True)
        change = centred
        for _ in range(_STEPS):
            there = _sampled(pyramid[number], points_xy / size, _SIDE).flatten(2)
            # Without their means: light that changes is no motion.
            change = centred - (there - there.mean(dim=-1, keepdim=True))
            x, y = (across * change).sum(dim=-1), (down * change).sum(dim=-1)
            step = torch.stack([yy * x - xy * y, xx * y - xy * x], dim=-1) / determinant[..., None]
            points_xy = points_xy + size * step.clamp(-_LONGEST_STEP, _LONGEST_STEP)
        if number < 2:
            own = centred.square().mean(dim=-1) + _STIFFNESS / _SIDE**2
            deviations.append((change.square().mean(dim=-1) / own).sqrt().clamp(max=3.0))
        pattern = ((xx + yy) / (2 * _STIFFNESS)).log() / 4
    return Flow(points_xy, torch.stack([*deviations, pattern], dim=-1))


def _sampled(level: Float[Tensor, "B h w"], cells_xy: Float[Tensor, "B Q 2"], side: int) -> Tensor:
    """Interpolate the pixels around places bilinearly, `[B, Q, side, side]`; the frame's edges go on outside of it."""
    batch_size, height, width = level.shape
    centred = cells_xy - 0.5
    first = centred.floor()
    part = (centred - first)[..., None, None]
    steps = torch.arange(-(side // 2), side // 2 + 2, device=level.device)
    x = (first[..., :1].long() + steps).clamp(0, width - 1)
    y = (first[..., 1:].long() + steps).clamp(0, height - 1)
    starts = torch.arange(batch_size, device=level.device)[:, None, None, None] * (height * width)
    index = starts + y[..., :, None] * width + x[..., None, :]
    values = level.reshape(-1).index_select(0, index.flatten()).view(index.shape)
    along = torch.lerp(values[..., :-1], values[..., 1:], part[:, :, 0])
    return torch.lerp(along[..., :-1, :], along[..., 1:, :], part[:, :, 1])
