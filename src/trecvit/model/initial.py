"""Random initial weights, skipped on the meta device, where a model is built before its weights are assigned.

There PyTorch would import parts of its compiler to draw them, which takes longer than to load a small model.
"""

from __future__ import annotations

from torch import Tensor, nn


def normal_(weight: Tensor, std: float) -> None:
    """Fill a weight with normal values of mean zero."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)
