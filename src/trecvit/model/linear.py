"""Linear maps, with what is done right after them, so that one kernel can do both.

Kernels of matrix products keep their results in registers for a moment; a GELU or a sum that is done there costs next
to nothing, and a pass over memory less. `Linear` says what is meant, in plain operations. `PackedLinear` computes the
same with oneDNN, its weight laid out once as the kernel reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trecvit.config import Gelu

GELU: dict[Gelu, str] = {"tanh": "tanh", "erf": "none"}  # ours -> torch's word for it


class Linear(nn.Linear):
    """y = W x + b, then optionally a GELU, or another tensor added."""

    def forward(
        self, x: Float[Tensor, "*any I"], *, gelu: Gelu | None = None, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """Maps the last axis.

        Args:
            x: Inputs.
            gelu: Which GELU the result goes through, or None.
            add: What is added to the result, such as the input of a residual block.
        """
        y: Tensor = super().forward(x)
        if gelu is not None:
            y = F.gelu(y, approximate=GELU[gelu])
        return y if add is None else add + y


class PackedLinear(nn.Module):
    """A `Linear` for inference on the CPU. Its packed weight is no parameter and cannot be saved.

    Args:
        linear: Of which the weight is copied.
        rows: How many vectors at once it will mostly map; only the speed depends on it.
    """

    def __init__(self, linear: Linear, rows: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), rows)
        self.bias = linear.bias.detach()
        self._map: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise.default
        self._map_and_add: Callable[..., Any] = torch.ops.mkldnn._linear_pointwise.binary

    def forward(
        self, x: Float[Tensor, "*any I"], *, gelu: Gelu | None = None, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """See `Linear.forward`."""
        y: Tensor
        if gelu is not None:
            y = self._map(x, self._weight, self.bias, "gelu", [], GELU[gelu])
        elif add is not None:
            y = self._map_and_add(x, add, self._weight, self.bias, "add")
            return y
        else:
            y = self._map(x, self._weight, self.bias, "none", [], "")
        return y if add is None else add + y

    @staticmethod
    def is_available() -> bool:
        """Whether this PyTorch has oneDNN's kernels."""
        return bool(torch.backends.mkldnn.is_available())
