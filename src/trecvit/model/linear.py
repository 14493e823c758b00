"""Linear layers that can add their result to another tensor, and the names of GELUs."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from trecvit.config import Gelu

GELU: dict[Gelu, str] = {"tanh": "tanh", "erf": "none"}  # our name -> torch's


class Linear(nn.Linear):
    """y = W x + b, optionally added to another tensor, so that a faster layer can do both in one kernel."""

    def forward(
        self, x: Float[Tensor, "*any I"], *, add: Float[Tensor, "*any O"] | None = None
    ) -> Float[Tensor, "*any O"]:
        """Map the last axis.

        Args:
            x: Inputs.
            add: Added to the result, such as the input of a residual block.
        """
        y: Tensor = super().forward(x)
        return y if add is None else add + y
