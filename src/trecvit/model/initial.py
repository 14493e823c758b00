"""Random first values of weights, but none on the meta device, where a model is made that is given its weights.

There PyTorch would work out even what is only a shape with parts of its compiler, and to import them takes longer than
to load a small model.
"""

from __future__ import annotations

from torch import Tensor, nn


def normal_(weight: Tensor, std: float) -> None:
    """Normal values of this deviation and no mean."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)
