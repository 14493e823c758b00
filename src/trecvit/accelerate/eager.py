"""Parts of a temporal block in fewer operations, for inference on the CPU without a compiler.

There, small models spend as much time between their matrix products as in them: in passes over a few ten thousand
numbers, each of which costs little more than being asked for. Everything here computes what the part of `lru.py` that
it replaces does, frame by frame and clip by clip. It has no gradients and cannot be saved.

B streams · T frames · N tokens per frame · D width · E recurrent width
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from trecvit.model.lru import NORM_EPS, RGLRU, CausalConv, TemporalBlock
from trecvit.model.scan import GATE_SHARPNESS


class UnitNorm(nn.Module):
    """x / sqrt(|x|^2 + D eps): all that is left of an `RMSNorm` whose factors are in the weights after it."""

    def forward(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        """Brings each token to length 1."""
        width = x.shape[-1]
        squares = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).square_().flatten()
        # A batch norm whose channels are the tokens: one kernel that divides in float32 and rounds once.
        y = F.batch_norm(x.reshape(1, -1, width), torch.zeros_like(squares), squares, eps=width * NORM_EPS)
        return y.view_as(x)


def fold_norms(block: TemporalBlock) -> None:
    """Takes what the block's norms multiply by into the maps that follow; best before weights are rounded."""
    followed_by = {"norm": [block.linear_y, block.linear_x]}
    if block.mlp is not None:
        followed_by["mlp_norm"] = [block.mlp.gate, block.mlp.up]
    for name, maps in followed_by.items():
        scale = getattr(block, name).scale.detach().float()
        factors = (scale + 1.0) * math.sqrt(len(scale))
        for linear in maps:
            linear.weight.data = (linear.weight.detach().float() * factors).to(linear.weight.dtype)
        setattr(block, name, UnitNorm())


class EagerConv(CausalConv):
    """A `CausalConv` that reads the frames before, and the one to come, where they lie."""

    def __init__(self, conv: CausalConv) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias = conv.weight, conv.bias
        self._weights = conv.weight.detach().unbind()

    def forward(
        self, x: Float[Tensor, "B T N E"], taps: Float[Tensor, "B taps N E"]
    ) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B taps N E"]]:
        """See `CausalConv.forward`."""
        if x.shape[1] != 1 or not taps.shape[1] or taps.dtype != x.dtype:
            return super().forward(x, taps)
        y = torch.addcmul(self.bias, taps[:, :1], self._weights[0])
        for tap in range(1, taps.shape[1]):
            y.addcmul_(taps[:, tap : tap + 1], self._weights[tap])
        return y.addcmul_(x, self._weights[-1]), torch.cat([taps[:, 1:], x], dim=1)


class EagerRGLRU(nn.Module):
    """An `RGLRU` with real eigenvalues and joined gates, for states in float32."""

    def __init__(self, lru: RGLRU) -> None:
        super().__init__()
        assert lru.pair is not None
        self.pair = lru.pair
        self.a_param = lru.a_param
        # To the base 2, because PyTorch's exp2 takes a third of the time of its exp.
        self._log2_rate = F.softplus(lru.a_param.detach().float()) * (-GATE_SHARPNESS / math.log(2.0))

    def forward(
        self, x: Float[Tensor, "B T N E"], hidden: Float[Tensor, "B N E"], fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B N E"]]:
        """See `RGLRU.forward`."""
        input_gate, recurrence_gate = self.pair(x).sigmoid_()
        any_fresh = bool(fresh.any())
        states = torch.empty(x.shape, dtype=hidden.dtype, device=x.device)
        previous = hidden
        for step in range(x.shape[1]):
            log2_a = recurrence_gate[:, step].mul_(self._log2_rate)
            # elu(y) with these factors is -expm1(y log 4) = 1 - a^2 where y < 0, in one operation and without loss.
            scale = torch.ops.aten.elu(log2_a, -1.0, 1.0, math.log(4.0)).sqrt_()
            if step == 0 and any_fresh:
                scale.masked_fill_(fresh[:, None, None], 1.0)
            gated = input_gate[:, step].mul_(x[:, step]).mul_(scale)
            torch.addcmul(gated, log2_a.exp2_(), previous, out=states[:, step])
            previous = states[:, step]
        # A view of one frame's states is no larger than they are; of a clip's, it would keep all frames alive.
        return states.to(x.dtype), previous if x.shape[1] == 1 else previous.clone()
