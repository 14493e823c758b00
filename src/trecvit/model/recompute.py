"""Activation checkpointing by stages.

Autograd saves the input of every operation. Most operations are cheap to recompute from a few others: norms, GELUs,
products of gates, the attention's softmax, convolution and recurrence. A `Recomputing` module computes in stages, of
which only the inputs are saved. A linear layer at the end of a stage is not recomputed: PyTorch's checkpointing stops
as soon as it has every tensor that was saved, which is before that layer's matrix multiplication.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_P = ParamSpec("_P")
_R = TypeVar("_R")


def saving_inputs_only(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Wrap a function so that the backward pass recomputes it from its inputs; without gradients it is unchanged."""
    if not torch.is_grad_enabled():
        return function
    return partial(checkpoint, function, use_reentrant=False)


class Recomputing(nn.Module):
    """A part of a network that computes in stages.

    Attributes:
        recomputes: Whether the backward pass recomputes each stage. Values and gradients are the same either way.
    """

    recomputes = False

    def _stage(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """The function as it is, or recomputed in the backward pass. It must draw no random numbers."""
        # A compiler chooses for itself what to recompute.
        if not self.recomputes or not torch.is_grad_enabled() or torch.compiler.is_compiling():
            return function
        return partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
