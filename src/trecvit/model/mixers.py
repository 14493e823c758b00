"""The other temporal mixers of the paper's comparisons (Table 2, Figures 4 and 5), in place of `lru.TemporalBlock`.

Each is x + mix(norm(x)) on [B,T,N,D], where `mix` sees one token position over the frames, with that block's
`forward(x, state, fresh) -> (x, state)`. The LSTM and the convolution stream as the LRU does. Attention covers all
frames of a clip, later ones too, and cannot stream.

The flattened models of Figure 4 take a clip as one sequence of tokens: `FlatLRU` is here, and the attention of the
others is `trecvit.SpatialBlock`'s over more tokens. They cannot stream either, as `TemporalPositions` encodes the place
in the clip.

Stated in the paper: they replace the gated LRU in the same ViT. Inferred from the operations in its Figure 5: the
convolution is a full one of width 4 from D to D channels, without linear layers around it or around the LSTM. Our
choices: an LSTM of D channels, the RMSNorm of the LRU's block before both, causal taps, flax's initial values.

B streams · T frames · N tokens per frame · D width · E recurrent width · K convolution taps · G heads
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from trecvit.config import ModelConfig, TemporalMixer
from trecvit.model.initial import normal_
from trecvit.model.linear import Linear
from trecvit.model.lru import LayerState, RMSNorm, TemporalBlock


class StateSizes(NamedTuple):
    """Channels and frames of a `LayerState`."""

    hidden_width: int
    num_taps: int
    taps_width: int


def state_sizes(config: ModelConfig, index: int) -> StateSizes:
    """The sizes of a token's state in one layer of a model."""
    if index < config.temporal_from:
        return StateSizes(0, 0, 0)
    num_taps = max(config.conv_width - 1, 0)
    return {
        "lru": StateSizes(config.lru_width, num_taps, config.lru_width),
        "lstm": StateSizes(2 * config.width, 0, 0),
        "conv": StateSizes(0, num_taps, config.width),
    }.get(config.temporal_mixer, StateSizes(0, 0, 0))


def temporal_part(config: ModelConfig) -> nn.Module | None:
    """Build the temporal mixer of one block, or None for "none" and where the spatial block attends over time."""
    parts: dict[TemporalMixer, type[nn.Module]] = {
        "lru": TemporalBlock,
        "attention": TemporalAttention,
        "lstm": TemporalLSTM,
        "conv": TemporalConv,
        "flat_lru": FlatLRU,
    }
    part = parts.get(config.temporal_mixer)
    return part(config) if part is not None else None


class FlatLRU(TemporalBlock):
    """The LRU's block along all tokens of a clip as one sequence (paper, Figure 4: PureLRU).

    Tokens are ordered row by row, then frame by frame. There is one recurrence per clip instead of one per token
    position, so convolution and state mix neighbours in space as they do frames.
    """

    def forward(
        self, x: Float[Tensor, "B T N D"], state: LayerState, fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N D"], LayerState]:
        """Mix each token with all before it in this clip; `state` is returned unchanged."""
        sequence = x.flatten(1, 2)[:, :, None]  # [B,TN,1,D]
        num_taps = 0 if self.conv is None else len(self.conv.weight) - 1
        initial = LayerState(
            state.hidden.new_zeros(len(x), 1, self.linear_x.out_features),
            state.taps.new_zeros(len(x), num_taps, 1, self.linear_x.out_features),
        )
        y, _ = super().forward(sequence, initial, torch.ones_like(fresh))
        return y.reshape(x.shape), state


class TemporalLSTM(nn.Module):
    """x + LSTM(RMSNorm(x)), D channels, one LSTM for all tokens.

    It runs in the state's dtype, float32 at least: a cell rounded to bfloat16 in every frame loses small increments.
    The state's `hidden` holds output and cell side by side, [B,N,2D].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.skip = config.temporal_skip
        self.norm = RMSNorm(config.width)
        self.lstm = nn.LSTM(config.width, config.width)
        # flax's LSTMCell, gate by gate; PyTorch has two biases where one would do.
        input_weight, recurrent_weight, *biases = self.lstm.all_weights[0]
        normal_(input_weight, config.width**-0.5)
        for gate in recurrent_weight.chunk(4):
            nn.init.orthogonal_(gate)
        for bias in biases:
            nn.init.zeros_(bias)

    def forward(
        self, x: Float[Tensor, "B T N D"], state: LayerState, fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N D"], LayerState]:
        """See `TemporalBlock.forward`; a fresh stream is one whose state is zero."""
        rows, dtype = x.shape[::2], state.hidden.dtype
        frames = self.norm(x).to(dtype).transpose(0, 1).flatten(1, 2)  # [T,BN,D], for B = 1 without a copy
        before = [part.flatten(0, 1)[None].contiguous() for part in state.hidden.chunk(2, dim=-1)]
        weights = [weight.to(dtype) for weight in self.lstm.all_weights[0]]
        with _without_autocast(x.device):
            y, output, cell = torch.lstm(frames, before, weights, True, 1, 0.0, self.training, False, False)
        hidden = torch.cat([output[0], cell[0]], dim=-1).unflatten(0, rows)
        y = y.unflatten(1, rows).transpose(0, 1).to(x.dtype)
        return (x + y if self.skip else y), LayerState(hidden, state.taps)


class TemporalConv(nn.Module):
    """x + conv(RMSNorm(x)): y_t = b + sum over K taps of W_k n_(t-K+1+k), causal, W_k full D x D matrices.

    The state's `taps` are its last K-1 inputs, [B,K-1,N,D].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.skip = config.temporal_skip
        self.norm = RMSNorm(config.width)
        # Over [frames, tokens], one token wide: [B,T,N,D] is this kernel's channels-last layout and is not copied.
        self.convolution = nn.Conv2d(config.width, config.width, (config.conv_width, 1))
        normal_(self.convolution.weight, (config.width * config.conv_width) ** -0.5)
        assert self.convolution.bias is not None
        nn.init.zeros_(self.convolution.bias)

    def forward(
        self, x: Float[Tensor, "B T N D"], state: LayerState, fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N D"], LayerState]:
        """See `TemporalBlock.forward`; before a stream's first frame lie frames of zeros."""
        normed = self.norm(x)
        window = torch.cat([state.taps.to(normed.dtype), normed], dim=1)
        y: Tensor = self.convolution(window.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # [B,D,T,N] -> [B,T,N,D]
        taps = window[:, x.shape[1] :].to(state.taps.dtype).clone(memory_format=torch.contiguous_format)
        return (x + y if self.skip else y), LayerState(state.hidden, taps)


class TemporalAttention(nn.Module):
    """x + attention(LayerNorm(x)) over the frames of a clip, later ones too: ViViT's factorised self-attention.

    ViViT (arXiv:2103.15691, model 3) and TimeSformer (arXiv:2102.05095, divided attention) have it in the same block as
    the spatial attention and with as many heads; TimeSformer also puts it first, as here. Initial values are those of
    the spatial attention, our choice. `TemporalPositions` are added before the blocks.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.skip = config.temporal_skip
        self.num_heads = config.num_heads
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)
        for kernel in (*self.qkv.weight.chunk(3), self.out.weight):
            nn.init.xavier_uniform_(kernel)
        for bias in (self.qkv.bias, self.out.bias):
            nn.init.zeros_(bias)

    def forward(
        self, x: Float[Tensor, "B T N D"], state: LayerState, fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N D"], LayerState]:
        """Mix each token with itself in the other frames of this clip; `state` is returned unchanged."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, x.shape[-1] // self.num_heads))
        queries, keys, values = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # [B,T,N,3,G,d] -> 3 x [BN,G,T,d]
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        mixed = mixed.unflatten(0, x.shape[::2]).permute(0, 3, 1, 2, 4).flatten(3)  # [B,N,G,T,d] -> [B,T,N,D]
        return self.out(mixed, add=x if self.skip else None), state


class TemporalPositions(nn.Module):
    """Learned positions in time, added to all tokens of a frame before the blocks, as ViViT and TimeSformer do."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(config.temporal_positions, config.width))
        normal_(self.positions, config.width**-0.5)

    def forward(self, tokens: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        """Add the positions, linearly interpolated for a clip of another length."""
        num_frames = tokens.shape[1]
        if num_frames == len(self.positions):
            return tokens + self.positions[:, None]
        table = F.interpolate(self.positions.T[None].float(), size=num_frames, mode="linear")
        return tokens + table[0].T[:, None].to(tokens.dtype)


def _without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast, which would run an LSTM in another dtype than its arguments'."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
