"""Readouts on a backbone's features, for classes and for point tracks.

B videos · T frames · N tokens per frame · D the features' width · Q query points · S width of a point's state ·
G attention heads, of d channels each · V outputs

Sources: "MooG" is github.com/google-deepmind/representations4d, `moog/modules.py` (ConditionalAutoregressiveReadout),
`moog/attention.py` and `moog/pos_embeddings.py` at 36b1387, with the sizes of `moog/configs/movi.py`; the paper
(arXiv:2412.14294, section 5.3) tracks with MooG's readout. "4DS" is `models/readout.py` of the same repository
(AttentionReadout with match_vjepa_implementation); the paper's "attention readout" is inferred to be this one. Where
the sources leave a choice open, flax's defaults hold: LeCun's normal for matrices, zeros for biases, tanh-approximated
GELU, norms with epsilon 1e-6.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Real
from torch import Tensor, nn

from trecvit.config import Config
from trecvit.errors import InputError
from trecvit.model.initial import normal_
from trecvit.model.trecvit import NORM_EPS, init_lecun

_STATE_NORM_EPS = 1e-4  # MooG: state_layer_norm
_INITIAL_STD = 0.02  # 4DS: of the query; of the temporal positions a choice, 4DS does not give it


class MLP(nn.Module):
    """Linear, GELU, linear (MooG and 4DS: MLP)."""

    def __init__(self, width_in: int, hidden: int, width_out: int) -> None:
        super().__init__()
        self.up = _linear(width_in, hidden)
        self.down = _linear(hidden, width_out)

    def forward(self, x: Float[Tensor, "*any I"]) -> Float[Tensor, "*any O"]:
        """Map the last axis."""
        y: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return y


# ---- classes -------------------------------------------------------------------------------------------------------


class AttentionReadout(nn.Module):
    """A learned query attends to all tokens of all frames, a linear layer maps it to outputs (4DS: AttentionReadout).

        f = LayerNorm(features) + position of the frame
        z = query + W attention(query; f);   z = z + MLP(LayerNorm(z));   outputs = W_out z

    Args:
        feature_width: D.
        num_outputs: V, such as the number of classes.
        num_frames: T, each with a learned position.
        width: Channels of query, keys and values; the MLP has four times as many hidden channels. The paper does not
            give it; 4DS's demonstrations have 1024 in 16 heads.
        num_heads: G; divides `width`.
    """

    def __init__(
        self, feature_width: int, num_outputs: int, *, num_frames: int, width: int = 1024, num_heads: int = 16
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(feature_width, eps=NORM_EPS)
        self.positions = nn.Parameter(torch.empty(num_frames, feature_width))
        self.query = nn.Parameter(torch.empty(width))
        for learned in (self.positions, self.query):
            normal_(learned, _INITIAL_STD)
        self.keys_values = _linear(feature_width, 2 * width)
        self.attention_out = _linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, 4 * width, width)
        self.out = _linear(width, num_outputs)

    def forward(self, features: Float[Tensor, "B T N D"]) -> Float[Tensor, "B V"]:
        """Map whole clips to outputs.

        Raises:
            InputError: unless there are as many frames as positions.
        """
        if features.shape[1] != len(self.positions):
            raise InputError(f"expected features of {len(self.positions)} frames, got {features.shape[1]}")
        tokens = (self.norm(features) + self.positions[:, None]).flatten(1, 2)  # [B, TN, D]
        keys, values = _heads(self.keys_values(tokens), 2 * self.num_heads).chunk(2, dim=-3)  # each [B, G, TN, d]
        query = self.query.view(1, self.num_heads, 1, -1).expand(len(features), -1, -1, -1)  # [B, G, 1, d]
        mixed = F.scaled_dot_product_attention(query.to(keys.dtype), keys, values).flatten(1)
        token = self.query + self.attention_out(mixed)
        token = token + self.mlp(self.mlp_norm(token))
        outputs: Tensor = self.out(token)
        return outputs


# ---- points --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class PointReadoutConfig(Config):
    """Architecture of a `RecurrentPointReadout`. The defaults are MooG's (moog/configs/movi.py, head "points").

    Attributes:
        num_bases: Fourier frequencies of a query's x and y.
        width: Channels S of a point's state, and of its queries, keys and values.
        depth: Layers of cross-attention.
        num_heads: Attention heads; divides `width`.
        mlp_width: Hidden channels of the layers' MLPs; all other MLPs have `width`.
    """

    num_bases: int = 16
    width: int = 512
    depth: int = 3
    num_heads: int = 8
    mlp_width: int = 2048

    def __post_init__(self) -> None:
        self._require_whole(*(entry.name for entry in dataclasses.fields(self)))
        self._require(self.width % self.num_heads == 0, "num_heads", f"a divisor of width={self.width}")


class PointReadout(NamedTuple):
    """Predictions of a `RecurrentPointReadout` for Q points in T frames.

    Attributes:
        points_xy: Positions, from 0 to 1 over the picture's width and height.
        visible_logits: Above 0 where the point is visible.
        certainty_logits: Above 0 where the position is likely to be accurate.
    """

    points_xy: Float[Tensor, "B Q T 2"]
    visible_logits: Float[Tensor, "B Q T"]
    certainty_logits: Float[Tensor, "B Q T"]


class RecurrentPointReadout(nn.Module):
    """A state per point that attends to each frame's tokens in turn (MooG: ConditionalAutoregressiveReadout).

        in the query's frame   s = MLP(Fourier features of the query's position)
        in every frame         z = s + transformer(s; tokens);   s = LayerNorm(z + MLP(z))
        predictions from z     position = sigmoid(MLP(z)),   (visible, certain) = MLP(z)

    Points do not attend to each other. Choices where MooG's code leaves them open: queries and predictions are (x, y)
    from 0 to 1; the state before the query is zero and meaningless; the tokens are all those of a frame, with the class
    token.

    Args:
        feature_width: D.
        config: All other sizes.
    """

    def __init__(self, feature_width: int, config: PointReadoutConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.begin = MLP(4 * config.num_bases, width, width)
        self.enter = _linear(width, width)
        self.layers = nn.ModuleList(CrossAttention(feature_width, config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.leave = _linear(width, width)
        self.predict = MLP(width, width, width)
        self.state_norm = nn.LayerNorm(width, eps=_STATE_NORM_EPS, bias=False)
        self.place = MLP(width, width, 2)
        self.belief = MLP(width, width, 2)

    def forward(
        self,
        features: Float[Tensor, "B T N D"],
        points_xy: Float[Tensor, "B Q 2"],
        frames_until: Real[Tensor, "B Q"],
        states: Float[Tensor, "B Q S"],
    ) -> tuple[PointReadout, Float[Tensor, "B Q S"]]:
        """Track the points through the next T frames.

        Args:
            features: Of these frames.
            points_xy: Position of each query, from 0 to 1 over the picture's width and height.
            frames_until: Number of frames until each query; 0 is the next frame, negative is past.
            states: Initially zeros, then the last call's result; their dtype is that of the recurrence.
        """
        dtype = self.enter.weight.dtype
        first = self.begin(fourier_features(points_xy, self.config.num_bases).to(dtype)).to(states.dtype)
        # Keys and values do not depend on the states: one matrix multiplication for all frames.
        keys_values = [cast(CrossAttention, layer).keys_and_values(features) for layer in self.layers]
        read = []
        scale = self.state_norm.weight.to(states.dtype)
        for frame in range(features.shape[1]):
            states = torch.where((frames_until == frame)[..., None], first, states)
            update = self._attend(
                states.to(dtype), [(keys[:, frame], values[:, frame]) for keys, values in keys_values]
            )
            corrected = states + update.to(states.dtype)
            predicted = corrected + self.predict(corrected.to(dtype)).to(states.dtype)
            states = F.layer_norm(predicted, scale.shape, scale, eps=_STATE_NORM_EPS)
            read.append(corrected)
        z = torch.stack(read, dim=2).to(dtype)  # [B, Q, T, S]
        positions_xy = self.place(z).to(states.dtype).sigmoid()
        visible, certain = self.belief(z).to(states.dtype).unbind(dim=-1)
        return PointReadout(positions_xy, visible, certain), states

    def _attend(
        self, states: Float[Tensor, "B Q S"], frame: Sequence[tuple[Float[Tensor, "B G N d"], Float[Tensor, "B G N d"]]]
    ) -> Float[Tensor, "B Q S"]:
        """Attend to one frame, given each layer's keys and values (MooG: ImprovedTransformer)."""
        x: Tensor = self.enter(states)
        for layer, (keys, values) in zip(self.layers, frame, strict=True):
            x = layer(x, keys, values)
        update: Tensor = self.leave(self.norm(x))
        return update


class CrossAttention(nn.Module):
    """A pre-norm layer of cross-attention and MLP (MooG: ImprovedTransformerBlock with cross_attn_only).

    Queries and keys are normalised in each head; the features are not.
    """

    def __init__(self, feature_width: int, config: PointReadoutConfig) -> None:
        super().__init__()
        width, self.num_heads = config.width, config.num_heads
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.queries = _linear(width, width, bias=False)
        self.keys = _linear(feature_width, width, bias=False)
        self.values = _linear(feature_width, width, bias=False)
        self.queries_scale = nn.Parameter(torch.ones(width // config.num_heads))
        self.keys_scale = nn.Parameter(torch.ones(width // config.num_heads))
        self.attention_out = _linear(width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS, bias=False)
        self.mlp = MLP(width, config.mlp_width, width)

    def keys_and_values(
        self, features: Float[Tensor, "B T N D"]
    ) -> tuple[Float[Tensor, "B T G N d"], Float[Tensor, "B T G N d"]]:
        """Project the features of these frames to keys and values."""
        features = features.to(self.keys.weight.dtype)
        keys = _rms_norm(_heads(self.keys(features), self.num_heads), self.keys_scale)
        values = _heads(self.values(features), self.num_heads)
        return keys.to(values.dtype), values

    def forward(
        self, x: Float[Tensor, "B Q S"], keys: Float[Tensor, "B G N d"], values: Float[Tensor, "B G N d"]
    ) -> Float[Tensor, "B Q S"]:
        """Apply the layer; points attend to tokens, not to each other."""
        queries = _rms_norm(_heads(self.queries(self.query_norm(x)), self.num_heads), self.queries_scale)
        mixed = F.scaled_dot_product_attention(queries.to(values.dtype), keys, values)
        x = x + self.attention_out(mixed.transpose(-3, -2).flatten(-2))  # [B, G, Q, d] -> [B, Q, S]
        x = x + self.mlp(self.mlp_norm(x))
        return x


def fourier_features(points_xy: Float[Tensor, "*any 2"], num_bases: int) -> Float[Tensor, "*any F"]:
    """Compute sin(2^i pi x), sin(2^i pi y) for i = 0, 1, ..., then all cosines (MooG: SampleFourierEmbedding)."""
    frequencies = 2.0 ** torch.arange(num_bases, device=points_xy.device, dtype=points_xy.dtype)
    # Multiplying by a power of two and the remainder are exact, so that the highest frequencies keep their phase.
    half_turns = (points_xy[..., None, :] * frequencies[:, None]).flatten(-2).remainder(2.0)
    return torch.cat([(math.pi * half_turns).sin(), (math.pi * half_turns).cos()], dim=-1)


def _heads(x: Float[Tensor, "*any N S"], num_heads: int) -> Float[Tensor, "*any G N d"]:
    heads: Tensor = x.unflatten(-1, (num_heads, x.shape[-1] // num_heads)).transpose(-3, -2)
    return heads


def _rms_norm(x: Float[Tensor, "*any d"], scale: Float[Tensor, " d"]) -> Float[Tensor, "*any d"]:
    """Divide by the root mean square and multiply by the scale (flax: RMSNorm)."""
    return F.rms_norm(x, scale.shape, scale.to(x.dtype), eps=NORM_EPS)


def _linear(width_in: int, width_out: int, *, bias: bool = True) -> nn.Linear:
    linear = nn.Linear(width_in, width_out, bias=bias)
    init_lecun(linear)
    return linear
