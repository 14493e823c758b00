"""TAPNext (arXiv:2504.05579): TRecViT with point tokens beside the patches, to be read from top to bottom.

Every point has a token in every frame: an "unknown" token before its query, the embedded query in the query's frame, a
mask token afterwards. The blocks treat it as any other token, mixing it over time with its own past and over space with
patches and other points. Two readouts of the resulting features predict the point's position and visibility.

`TrackerConfig.matching` adds `trecvit.model.matching`, which no published model has: it conditions the tokens on
matches of their query's appearance and refines the predicted positions.

B videos (streams) · T frames · Q query points · P patches per frame · N = P + Q tokens per frame · D width ·
R raster, the columns and rows that the readout scores · S channels of a query's descriptors, 0 without matching

Source of every formula: "code", github.com/google-deepmind/tapnet at c2cbab8 (`tapnet/models/ssm_vit.py`,
`tapnet/models/video_ssm_tracker.py` in JAX, `tapnet/tapnext/` in PyTorch).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar, Literal, get_args

import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from trecvit.config import BlocksConfig, ModelConfig, Preprocessing
from trecvit.model.initial import normal_
from trecvit.model.linear import GELU
from trecvit.model.matching import Matching
from trecvit.model.state import recurrent_dtype
from trecvit.model.tracker import PointTracker, TrackerOutput, TrackerState
from trecvit.model.trecvit import init_lecun, sincos_positions

QueryBorder = Literal["nearest", "zeros"]

# code: prediction_heads and tracker_certainty; all in columns or rows of the raster.
_SOFT_ARGMAX_RADIUS = 20
_SOFT_ARGMAX_TEMPERATURE = 0.5  # logits are multiplied by it
_CERTAINTY_RADIUS = 8


def _tapnext_b() -> ModelConfig:
    """Return the blocks of TAPNext-B; initial eigenvalues are in Griffin's range, recurrentgemma's default."""
    return ModelConfig(
        patch_size=8, image_size=(256, 256), temporal_mlp=True, min_radius=0.9, pooling="mean", num_classes=0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerConfig(BlocksConfig):
    """Architecture of a TAPNext point tracker. The defaults are the published models' size, 194 M parameters.

    Published weights exist in two arithmetics: JAX (`gelu="tanh"` in `blocks`, `norm_eps=1e-6`,
    `query_border="nearest"`) and PyTorch (`"erf"`, `1e-5`, `"zeros"`). Source: github.com/google-deepmind/tapnet at
    c2cbab8, `tapnet/models/ssm_vit.py` and `tapnet/tapnext/tapnext_torch.py`.

    Attributes:
        blocks: Tokenizer and blocks, without class token and head; the readouts use their `gelu` too.
        raster_px: Side of the square raster in which queries are embedded and points predicted, for pictures of any
            size: the readout scores `raster_px` columns and as many rows.
        readout_width: Hidden channels of the readouts.
        norm_eps: Epsilon of the last norm and of the readouts' norms; the blocks' own is 1e-6.
        query_border: Values beyond the raster's border, for the embedding of queries within half a raster pixel of it:
            those of the "nearest" pixel, or "zeros".
        matching: Whether point tokens are conditioned on matches of their query's appearance, see
            `trecvit.model.matching`. The published models have no such part.
    """

    blocks: ModelConfig = field(default_factory=_tapnext_b)
    raster_px: int = 256
    readout_width: int = 256
    norm_eps: float = 1e-6
    query_border: QueryBorder = "nearest"
    matching: bool = False

    def __post_init__(self) -> None:
        self._require_blocks(pooling="mean", num_classes=0, temporal_patch_size=1)
        self._require_streaming()
        width = self.blocks.width
        self._require(width % 4 == 0 and width >= 8, "blocks", "a width >= 8 that 4 divides")
        self._require_whole("raster_px", "readout_width")
        is_eps = isinstance(self.norm_eps, float) and 0.0 < self.norm_eps < 1.0
        self._require(is_eps, "norm_eps", "a number between 0 and 1")
        self._require(self.query_border in get_args(QueryBorder), "query_border", f"one of {get_args(QueryBorder)}")
        self._require_bool("matching")


@dataclass(frozen=True)
class TrackState(TrackerState):
    """State of a `TAPNext` for B streams with Q points each; see `TrackerState` for its methods.

    An empty slot holds the unknown tokens that the model was trained with.

    Attributes:
        query_looks: Descriptors of each query in its frame, float32 at least; zero before that frame.
    """

    query_looks: Float[Tensor, "B Q S"]

    _FORMAT: ClassVar[str] = "trecvit-track-state-2"
    _ALIKE: ClassVar[tuple[str, ...]] = (*TrackerState._ALIKE, "look_width")
    _POINT_MEMORY: ClassVar[str] = "query_looks"
    _POINTS_ARE_TOKENS: ClassVar[bool] = True

    @property
    def look_width(self) -> int:
        """Channels S of a query's descriptors."""
        return self.query_looks.shape[2]


class PointTokens(nn.Module):
    """Tokens of the points in each frame: unknown, then the query, then a mask (code: embed_queries)."""

    def __init__(self, config: TrackerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.blocks.width
        self.unknown, self.query, self.mask = (nn.Parameter(torch.empty(width)) for _ in range(3))
        for learned in (self.unknown, self.query, self.mask):
            normal_(learned, width**-0.5)

    def forward(
        self, points_yx: Float[Tensor, "B Q 2"], frames_until: Real[Tensor, "B Q"], num_frames: int
    ) -> Float[Tensor, "B T Q D"]:
        """Embed the points in the next T frames.

        Args:
            points_yx: Position of each query, in pixels of the raster.
            frames_until: Number of frames until each query; 0 is the next frame, negative is past.
            num_frames: T.
        """
        until = (frames_until[:, None] - torch.arange(num_frames, device=frames_until.device)[:, None])[..., None]
        query = (self.query + self._embed(points_yx).to(self.query.dtype))[:, None]
        return torch.where(until > 0, self.unknown, torch.where(until == 0, query, self.mask))

    def _embed(self, points_yx: Float[Tensor, "B Q 2"]) -> Float[Tensor, "B Q D"]:
        """Interpolate sines and cosines of x, then of y, bilinearly between the four nearest pixels' centres.

        The original interpolates in a table of all R x R pixels. Half of an entry depends on x and half on y, and
        bilinear weights are products, so a table of one axis is enough.
        """
        axis = torch.from_numpy(_axis_positions(self.config.raster_px, self.config.blocks.width)).to(points_yx.device)
        coordinates = points_yx - 0.5  # 0 is the first pixel's centre
        low = coordinates.floor()
        pixels = torch.stack([low, low + 1], dim=-1).long()  # [B, Q, 2, 2]: y and x, each between two pixels
        weights = torch.stack([low + 1 - coordinates, coordinates - low], dim=-1)
        if self.config.query_border == "zeros":
            weights = weights * ((pixels >= 0) & (pixels < len(axis)))
        of_y, of_x = (axis[pixels.clamp(0, len(axis) - 1)] * weights[..., None]).sum(dim=-2).unbind(dim=-2)
        sum_y, sum_x = weights.sum(dim=-1, keepdim=True).unbind(dim=-2)
        return torch.cat([of_x * sum_y, of_y * sum_x], dim=-1)


class Readout(nn.Module):
    """Linear, norm, GELU, twice, then linear (code: visible_head and coordinate_head)."""

    def __init__(self, config: TrackerConfig, num_outputs: int) -> None:
        super().__init__()
        hidden = config.readout_width
        self.gelu = GELU[config.blocks.gelu]
        self.first = nn.Linear(config.blocks.width, hidden)
        self.first_norm = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.second = nn.Linear(hidden, hidden)
        self.second_norm = nn.LayerNorm(hidden, eps=config.norm_eps)
        self.out = nn.Linear(hidden, num_outputs)
        for linear in (self.first, self.second, self.out):
            init_lecun(linear)

    def forward(self, x: Float[Tensor, "B T Q D"]) -> Float[Tensor, "B T Q F"]:
        """Map every token separately, in the dtype of these weights; the result is float32 at least."""
        x = F.gelu(self.first_norm(self.first(x.to(self.first.weight.dtype))), approximate=self.gelu)
        x = F.gelu(self.second_norm(self.second(x)), approximate=self.gelu)
        out: Tensor = self.out(x)
        return out.to(recurrent_dtype(out.dtype))


class TAPNext(PointTracker):
    """The tracker; see `PointTracker` for its use."""

    config: TrackerConfig
    config_class = TrackerConfig
    state_class = TrackState
    engine: Callable[[Tensor, Tensor, TrackState], tuple[Tensor, TrackState]]  # an `Engine` that is given point tokens

    def __init__(
        self,
        config: TrackerConfig,
        *,
        preprocessing: Preprocessing | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        # The code resizes positions without antialiasing.
        super().__init__(
            config, norm_eps=config.norm_eps, antialias=False, preprocessing=preprocessing, provenance=provenance
        )
        self.point_tokens = PointTokens(config)
        self.coordinates = Readout(config, 2 * config.raster_px)
        self.visibility = Readout(config, 1)
        self.matching = Matching(config.blocks.width, config.raster_px) if config.matching else None

    @property
    def point_memory_width(self) -> int:
        """Channels S of a query's descriptors, 0 without matching."""
        return 0 if self.matching is None else self.matching.descriptor_width

    def _track(self, frames: Tensor, state: TrackerState) -> tuple[TrackerOutput, TrackerState]:
        assert isinstance(state, TrackState), "checked by step"
        to_raster = self.config.raster_px / torch.tensor(state.image_size, device=self.device)
        frames_until = state.query_frames - state.frames_seen[:, None]
        points = self.point_tokens(state.query_points_yx * to_raster, frames_until, frames.shape[1])
        if self.matching is None:
            features, state = self.engine(frames, points, state)
            return self._read(features, to_raster.flip(0)), state
        size_xy = torch.tensor(state.image_size, device=self.device).flip(0)
        descriptors = self.matching.describe(frames)
        queries = self.matching.describe_queries(
            descriptors, state.query_points_yx.flip(-1) / size_xy, frames_until, state.query_looks
        )
        is_queried = frames_until[:, None] <= torch.arange(frames.shape[1], device=self.device)[:, None]
        matches, similarity = self.matching.condition(descriptors, queries, is_queried)
        features, state = self.engine(frames, points + matches, state.replace(query_looks=queries))
        out = self._read(features, to_raster.flip(0))
        estimates_xy = (out.points_xy / size_xy).transpose(1, 2)
        refined_xy = self.matching.refine(descriptors, queries, is_queried, features, estimates_xy)
        return out._replace(points_xy=refined_xy.transpose(1, 2) * size_xy, similarity=similarity), state

    def _advance(self, frames: Tensor, points: Tensor, state: TrackState) -> tuple[Tensor, TrackState]:
        """Run all tokens through the blocks; return the points' features [B,T,Q,D] and the new state."""
        patches = self.tokenizer(frames)
        tokens = torch.cat([patches, points], dim=2)
        tokens, layers = self._through_blocks(tokens, state.layers, state.frames_seen == 0)
        features: Tensor = self.norm(tokens[:, :, patches.shape[2] :])
        return features, state.replace(layers=layers, frames_seen=state.frames_seen + frames.shape[1])

    def _read(self, features: Float[Tensor, "B T Q D"], to_raster: Float[Tensor, " 2"]) -> TrackerOutput:
        # The readout's order is rows, columns; here it is (x, y).
        # [B, T, Q, 2R] -> [B, T, Q, 2, R] -> [B, Q, T, 2, R]
        scores = self.coordinates(features).unflatten(-1, (2, self.config.raster_px)).flip(-2).transpose(1, 2)
        points = soft_argmax(scores)
        visible = self.visibility(features)[..., 0].transpose(1, 2)
        return TrackerOutput(points / to_raster, visible, certainty(scores, points), scores)


def soft_argmax(scores: Float[Tensor, "*batch R"]) -> Float[Tensor, "*batch"]:
    """Return the mean position, in raster pixels, under a softmax over the pixels within 20 of the highest score."""
    pixel = torch.arange(scores.shape[-1], device=scores.device)
    is_near = (pixel - scores.argmax(dim=-1, keepdim=True)).abs() <= _SOFT_ARGMAX_RADIUS
    probs = (scores * _SOFT_ARGMAX_TEMPERATURE).masked_fill(~is_near, -torch.inf).softmax(dim=-1)
    return (probs * (pixel + 0.5)).sum(dim=-1)


@torch.no_grad()
def certainty(scores: Float[Tensor, "*batch 2 R"], points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    """Sum the probabilities of the pixels whose centres are within 8 pixels of a point of the raster.

    An estimate of the error, not part of the prediction: no gradient.
    """
    num_pixels = scores.shape[-1]
    extent = min(2 * _CERTAINTY_RADIUS + 1, num_pixels)
    first = (points - _CERTAINTY_RADIUS - 0.5).floor().clamp(0, num_pixels - extent).long()
    pixels = first[..., None] + torch.arange(extent, device=scores.device)
    of_x, of_y = scores.softmax(dim=-1).gather(-1, pixels).unbind(dim=-2)
    square_x, square_y = (pixels + 0.5 - points[..., None]).square().unbind(dim=-2)
    is_near: Bool[Tensor, "*batch x y"] = square_x[..., :, None] + square_y[..., None, :] <= _CERTAINTY_RADIUS**2 + 1e-8
    return (of_x[..., :, None] * of_y[..., None, :] * is_near).sum(dim=(-2, -1))


@lru_cache(maxsize=8)
def _axis_positions(raster_px: int, width: int) -> npt.NDArray[Any]:
    """Compute sines and cosines of each pixel's index, float32 [R, D/2]."""
    # On the CPU, also for a model on the meta device.
    positions: npt.NDArray[Any] = sincos_positions(1, raster_px, width, device=torch.device("cpu")).numpy()
    return positions[:, : width // 2]
