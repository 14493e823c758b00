"""Weights as whole numbers of 8 bits in a file: a matrix w is stored as q (int8) and one step s per row, w ~ q s.

For storage only; a model is loaded in floating point. The steps are a share of a row's root mean square, so that values
are small numbers, which zip archives such as wheels compress to less than 8 bits each.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_STEP = ".int8_step"  # what the name of a matrix's steps adds to its own
_LEAST = 4096  # values of a matrix that is quantised; smaller ones stay float16


def quantise(tensors: Mapping[str, Tensor], *, step: float) -> dict[str, Tensor]:
    """Quantise the matrices of a state dict; all else becomes float16.

    Args:
        tensors: Floating-point tensors by name.
        step: Step between two stored values, as a share of the row's root mean square: 0.15 adds an error of
            0.15 / sqrt(12) = 4 % of it. Larger for a row whose largest value would not fit in 8 bits.
    """
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or tensor.numel() < _LEAST:
            stored[name] = tensor.half()
            continue
        rows = tensor.float().flatten(1)
        steps = torch.maximum(step * rows.square().mean(dim=1).sqrt(), rows.abs().amax(dim=1) / 127)
        steps = steps.clamp(min=torch.finfo(torch.float32).tiny)
        stored[name] = (rows / steps[:, None]).round().to(torch.int8).view(tensor.shape)
        stored[name + _STEP] = steps
    return stored


def dequantise(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Restore the names and shapes of a state dict, float32 where it was quantised; without steps nothing changes."""
    tensors = {name: tensor for name, tensor in stored.items() if not name.endswith(_STEP)}
    for name, steps in stored.items():
        matrix = tensors.get(name.removesuffix(_STEP))
        if name.endswith(_STEP) and matrix is not None and matrix.dtype == torch.int8 and len(matrix) == len(steps):
            tensors[name.removesuffix(_STEP)] = (matrix.flatten(1).float() * steps[:, None]).view(matrix.shape)
    return tensors
