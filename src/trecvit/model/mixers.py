"""The other temporal parts of the paper's comparisons (Table 2 and Figure 5), in the place of `lru.TemporalBlock`.

Each is x + mix(norm(x)) on [B,T,N,D], where `mix` sees one token at a time over the frames, and each has that block's
`forward(x, state, fresh) -> (x, state)`. The LSTM and the convolution stream as the LRU does: a clip is any cut of it.
Attention looks at all frames of a clip, later ones too, and a stream cannot go on with it.

Of the flattened models of Figure 4, which see a clip as one sequence of tokens, `FlatLRU` is here, and the attention of
the others is `trecvit.SpatialBlock`'s, over more tokens. None of them goes on with a stream: where in the clip a token
is, `TemporalPositions` has told it.

What is known of them: the paper says that they stand where the gated LRU stands, in the same ViT, and no more. Inferred
from the operations in its Figure 5, which leave room for nothing else: the convolution is a full one of width 4 from D
to D channels, and there are no linear maps around it or around the LSTM. Our choices: an LSTM of D channels, the
RMSNorm of the LRU's block before both, causal taps, flax's initial values.

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


def state_sizes(config: ModelConfig) -> StateSizes:
    """What the temporal part of a model remembers of each token."""
    num_taps = max(config.conv_width - 1, 0)
    return {
        "lru": StateSizes(config.lru_width, num_taps, config.lru_width),
        "lstm": StateSizes(2 * config.width, 0, 0),
        "conv": StateSizes(0, num_taps, config.width),
    }.get(config.temporal_mixer, StateSizes(0, 0, 0))


def temporal_part(config: ModelConfig) -> nn.Module | None:
    """What carries information over time in one block of such a model."""
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

    The order is that of the tokens: row by row, then frame by frame. There is one recurrence for the whole clip, not
    one for each place, so convolution and state mix neighbours in space as they do frames.
    """

    def forward(
        self, x: Float[Tensor, "B T N D"], state: LayerState, fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N D"], LayerState]:
        """Mixes each token with all before it in this clip; nothing is remembered of the clips before."""
        sequence = x.flatten(1, 2)[:, :, None]
        num_taps = 0 if self.conv is None else len(self.conv.weight) - 1
        begin = LayerState(
            state.hidden.new_zeros(len(x), 1, self.linear_x.out_features),
            state.taps.new_zeros(len(x), num_taps, 1, self.linear_x.out_features),
        )
        y, _ = super().forward(sequence, begin, torch.ones_like(fresh))
        return y.reshape(x.shape), state


class TemporalLSTM(nn.Module):
    """x + LSTM(RMSNorm(x)), D channels, one LSTM for all tokens.

    It runs in the state's dtype, float32 at least: a cell that is rounded to bfloat16 in every frame forgets what comes
    in small pieces. The state's `hidden` holds output and cell side by side, [B,N,2D].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.skip = config.temporal_skip
        self.norm = RMSNorm(config.width)
        self.lstm = nn.LSTM(config.width, config.width)
        # flax's LSTMCell, gate by gate; PyTorch has two biases where one would do.
        of_inputs, of_outputs, *biases = self.lstm.all_weights[0]
        normal_(of_inputs, config.width**-0.5)
        for gate in of_outputs.chunk(4):
            nn.init.orthogonal_(gate)
        for bias in biases:
            nn.init.zeros_(bias)

    def forward(
        self, x: Float[Tensor, "B T N D"], state: LayerState, fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N D"], LayerState]:
        """See `TemporalBlock.forward`; a fresh stream is one whose state is zero."""
        rows, dtype = x.shape[::2], state.hidden.dtype
        frames = self.norm(x).to(dtype).transpose(0, 1).flatten(1, 2)  # [T,BN,D], for B = 1 as it lies in memory
        before = [part.flatten(0, 1)[None].contiguous() for part in state.hidden.chunk(2, dim=-1)]
        weights = [weight.to(dtype) for weight in self.lstm.all_weights[0]]
        with _as_asked_for(x.device):
            y, output, cell = torch.lstm(frames, before, weights, True, 1, 0.0, self.training, False, False)
        hidden = torch.cat([output[0], cell[0]], dim=-1).unflatten(0, rows)
        y = y.unflatten(1, rows).transpose(0, 1).to(x.dtype)
        return (x + y if self.skip else y), LayerState(hidden, state.taps)


class TemporalConv(nn.Module):
    """x + conv(RMSNorm(x)): y_t = b + sum over K taps of W_k n_(t-K+1+k), causal, W_k full D x D matrices.

    The state's `taps` are the last K-1 frames that it has seen, [B,K-1,N,D].
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.skip = config.temporal_skip
        self.norm = RMSNorm(config.width)
        # Over [frames, tokens] with one token at a time: [B,T,N,D] is this kernel's channels-last layout, and stays.
        self.convolution = nn.Conv2d(config.width, config.width, (config.conv_width, 1))
        normal_(self.convolution.weight, (config.width * config.conv_width) ** -0.5)
        assert self.convolution.bias is not None
        nn.init.zeros_(self.convolution.bias)

    def forward(
        self, x: Float[Tensor, "B T N D"], state: LayerState, fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N D"], LayerState]:
        """See `TemporalBlock.forward`; before a stream's first frame there were frames of zeros."""
        normed = self.norm(x)
        window = torch.cat([state.taps.to(normed.dtype), normed], dim=1)
        y: Tensor = self.convolution(window.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        taps = window[:, x.shape[1] :].to(state.taps.dtype).clone(memory_format=torch.contiguous_format)
        return (x + y if self.skip else y), LayerState(state.hidden, taps)


class TemporalAttention(nn.Module):
    """x + attention(LayerNorm(x)) over the frames of a clip, later ones too: ViViT's factorised self-attention.

    ViViT (arXiv:2103.15691, model 3) and TimeSformer (arXiv:2102.05095, divided attention) have this part, with as many
    heads as the spatial one, in the same block; TimeSformer also puts it first, as here. Initial values are those of
    the spatial attention, our choice. Where in the clip a token is, `TemporalPositions` has told it before the blocks.
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
        """Mixes each token with itself in the other frames of this clip; there is nothing to remember."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.num_heads, x.shape[-1] // self.num_heads))
        queries, keys, values = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)  # each [BN,G,T,d]
        mixed = F.scaled_dot_product_attention(queries, keys, values)
        mixed = mixed.unflatten(0, x.shape[::2]).permute(0, 3, 1, 2, 4).flatten(3)
        return self.out(mixed, add=x if self.skip else None), state


class TemporalPositions(nn.Module):
    """Learned positions in time, added to all tokens of a frame before the blocks, as ViViT and TimeSformer do."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(config.temporal_positions, config.width))
        normal_(self.positions, config.width**-0.5)

    def forward(self, tokens: Float[Tensor, "B T N D"]) -> Float[Tensor, "B T N D"]:
        """Positions of a clip of another length lie evenly between the learned ones."""
        num_frames = tokens.shape[1]
        if num_frames == len(self.positions):
            return tokens + self.positions[:, None]
        table = F.interpolate(self.positions.T[None].float(), size=num_frames, mode="linear")
        return tokens + table[0].T[:, None].to(tokens.dtype)


def _as_asked_for(device: torch.device) -> AbstractContextManager[object]:
    """Without autocast, which would take an LSTM out of the dtype of its arguments."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
