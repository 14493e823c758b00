"""What a training step keeps for its gradient.

Autograd keeps the input of every operation. Most of them are cheap to compute again from a few others: norms, GELUs,
products of gates, the attention's softmax, convolution and recurrence. A `Recomputing` module names its stages, each of
which keeps its inputs only. A linear map at the end of a stage is not computed again: PyTorch's checkpointing stops as
soon as it has all that was saved, which is before that map's product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A part of a network that can keep less for the gradient and compute more.

    Attributes:
        recomputes: Whether it does. Values and gradients are the same either way.
    """

    recomputes = False

    def _stage(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """function(*inputs), of which only the inputs are kept if this module recomputes.

        A compiler has a plan of its own for what is computed again.
        """
        if self._keeps_inputs_only() and not torch.compiler.is_compiling():
            # Nothing in a stage is drawn at random.
            return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
        return function(*inputs)

    def _keeps_inputs_only(self) -> bool:
        return self.recomputes and torch.is_grad_enabled()
