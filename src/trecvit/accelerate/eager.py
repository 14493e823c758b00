"""Eager inference on the CPU without a compiler: packed linear layers, and temporal blocks in fewer operations.

Small models spend as much time between their matrix multiplications as in them: in passes over a few ten thousand
numbers, each of which costs little more than its call. Each part here computes what the part of `model/lru.py` that it
replaces does, frame by frame and clip by clip. It has no gradients and cannot be saved.

B streams · T frames · N tokens per frame · D width · E recurrent width
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from trecvit.accelerate.gates import JoinedRGLRU
from trecvit.accelerate.linears import PackedLinear, QuantizedLinear, replace_linears
from trecvit.model.lru import NORM_EPS, CausalConv, TemporalBlock
from trecvit.model.scan import GATE_SHARPNESS
from trecvit.model.state import State
from trecvit.model.trecvit import Head, Output, Tokenizer, TRecViT, VideoModel

_FRAMES_PER_PIECE = 8  # 16 is as good
_FRAMES_OF_ALL_ROWS = 32  # with fewer, copying the states of many streams costs a small model more than it saves
# What the tokenizer rounds goes through all blocks: it was more than half of int8's error, and is little work.
NOT_IN_INT8 = (Tokenizer, Head)


class UnitNorm(nn.Module):
    """x / sqrt(|x|^2 + D eps): an `RMSNorm` whose factors were folded into the weights after it."""

    def forward(self, x: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        """Normalise each token to length 1."""
        width = x.shape[-1]
        squares = torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).square_().flatten()
        # A batch norm whose channels are the tokens: one kernel that divides in float32 and rounds once.
        y = F.batch_norm(x.reshape(1, -1, width), torch.zeros_like(squares), squares, eps=width * NORM_EPS)
        return y.view_as(x)


def fold_norms(block: TemporalBlock) -> None:
    """Fold the factors of a block's norms into the linear layers after them, best before weights are rounded."""
    layers_after = {"norm": [block.linear_y, block.linear_x]}
    if block.mlp is not None:
        layers_after["mlp_norm"] = [block.mlp.gate, block.mlp.up]
    for name, layers in layers_after.items():
        scale = getattr(block, name).scale.detach().float()
        factors = (scale + 1.0) * math.sqrt(len(scale))
        for linear in layers:
            linear.weight.data = (linear.weight.detach().float() * factors).to(linear.weight.dtype)
        setattr(block, name, UnitNorm())


class EagerConv(CausalConv):
    """A `CausalConv` that reads earlier frames and the next one in place."""

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


class EagerRGLRU(JoinedRGLRU):
    """A `JoinedRGLRU` with real eigenvalues, for states in float32.

    Args:
        lru: Its weights are shared.
    """

    def __init__(self, lru: JoinedRGLRU) -> None:
        nn.Module.__init__(self)
        self.is_complex = False
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
        # A view of a clip's states would keep all frames alive; that of a single frame is no larger than itself.
        return states.to(x.dtype), previous if x.shape[1] == 1 else previous.clone()


def use_eager_parts(model: VideoModel, kind: type[PackedLinear] | type[QuantizedLinear]) -> None:
    """Replace a model's parts by those above, and pack its linear layers where oneDNN can.

    Args:
        model: See `for_inference`, on the CPU.
        kind: What the blocks' linear layers become; the others are packed.
    """
    packs = PackedLinear.is_available(model.dtype)
    num_patches = model.tokenizer.config.num_patches
    for parent in list(model.modules()):
        if packs:
            chosen = PackedLinear if isinstance(parent, NOT_IN_INT8) else kind
            replace_linears(parent, partial(chosen, rows=1 if isinstance(parent, Head) else num_patches))
        for name, child in list(parent.named_children()):
            if isinstance(child, CausalConv):
                setattr(parent, name, EagerConv(child))
            elif isinstance(child, JoinedRGLRU) and not child.is_complex:
                setattr(parent, name, EagerRGLRU(child))


class PiecewiseEngine:
    """A TRecViT's pass, a few frames at a time, whose tensors stay in caches between operations.

    Small pieces also reuse memory that large ones would return to the system and request again.
    """

    def __init__(self, model: TRecViT) -> None:
        self.engine = model.engine  # of one piece
        extent = model.config.temporal_patch_size
        self._num_frames = max(_FRAMES_PER_PIECE // extent, 1) * extent
        self._can_cut_time = model.config.can_stream

    def __call__(self, frames: Tensor, state: State, /) -> tuple[Output, State]:
        """See `Engine`."""
        batch_size, num_frames = frames.shape[:2]
        length = min(num_frames, self._num_frames) if self._can_cut_time else num_frames
        num_rows = max(_FRAMES_OF_ALL_ROWS // max(length, 1), 1)
        if batch_size <= num_rows:
            return self._through_time(frames.split(max(length, 1), dim=1), state)
        outputs, states = [], []
        for rows, videos in zip(torch.arange(batch_size).split(num_rows), frames.split(num_rows), strict=True):
            out, after = self._through_time(videos.split(length, dim=1), state.select(rows))
            outputs.append(out)
            states.append(after)
        joined: list[Any] = [None if parts[0] is None else torch.cat(parts) for parts in zip(*outputs, strict=True)]
        return Output(*joined), State.cat(states)

    def _through_time(self, pieces: Sequence[Tensor], state: State) -> tuple[Output, State]:
        features = []
        for piece in pieces:
            out, state = self.engine(piece, state)
            features.append(out.features)
        return out._replace(features=torch.cat(features, dim=1)), state
