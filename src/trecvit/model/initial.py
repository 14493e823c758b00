"""Initial weights, skipped on the meta device, where a model is built before its weights are assigned.

There PyTorch would import parts of its compiler to draw or to compute them, which takes longer than to load a small
model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def normal_(weight: Tensor, std: float) -> None:
    """Fill a weight with normal values of mean zero."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


@torch.no_grad()
def set_(weight: Tensor, values: Callable[[], Tensor]) -> None:
    """Fill a weight with computed values that broadcast to its shape."""
    if not weight.is_meta:
        weight.copy_(values())
