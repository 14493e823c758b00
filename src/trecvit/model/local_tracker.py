"""A point tracker whose tokens are the points: each is matched around its last place, and remembers what it looks like.

In every frame each point gets one token, which sums up its cost volumes (`local_matching`) around where it was, and
one candidate found again in the whole frame. TRecViT's blocks mix each token with its own past (RG-LRU) and with the
frame's other points (attention). The token then chooses between the candidates of the levels, its last place, its last
velocity, the whole frame's candidate, and moving with the points around; a refinement matches again around the chosen
place, finely.

The first template of a point never changes: it ties a point to what was queried, for any number of frames. Empty slots
are not attended to, and change no prediction.

B videos (streams) · T frames · Q query points · D width · S width of a point's memory
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from trecvit.config import BlocksConfig, ModelConfig, Preprocessing
from trecvit.model.engine import Engine
from trecvit.model.initial import normal_, set_
from trecvit.model.linear import Linear
from trecvit.model.local_flow import PATCH_WIDTH, READ_WIDTH, Flow, follow, grey_pyramid, patches_around
from trecvit.model.local_matching import (
    CONTEXT_WIDTH,
    PATCH,
    STRIDES_PX,
    WINDOW,
    FramePyramid,
    Level,
    LevelMatcher,
    Match,
    correlate,
    described,
    template_of,
    window_around,
    window_offsets,
)
from trecvit.model.lru import LayerState
from trecvit.model.tracker import LocalMatches, PointTracker, TrackerOutput, TrackerState
from trecvit.model.trecvit import Block

_FRAMES_AT_ONCE = 8  # whose descriptors are in memory together
_FINE = 2  # levels that refinements match in, from the finest
_NEAR_CELLS = 1.5
_STEP_PX = 2.0  # largest correction that is not a candidate's
_BEYOND_PX = 16.0  # places are limited to so far outside of the frame, from where points return
_GLOBAL_SHARPNESS = 20.0
_CHOICE = 0.3  # weight of a level's best score in its choice
_AGREE_PX = 1.0  # candidates so far apart are taken for the same
_TRUST, _TRUSTED_BELOW = 3.0, 1.2  # in the flows, where patches deviate by less than so much of their own pattern
_COMPANY_WIDTH, _COMPANY_REACH_PX = 16, 24.0
_NOT_STARTED, _ITSELF = -1e4, -6.0  # added to the scores of company
_JITTER_PX, _JITTERED = 3.0, 0.1  # in training: error of the last place, and the share of points that have it


@dataclass(frozen=True, kw_only=True, slots=True)
class LocalTrackerConfig(BlocksConfig):
    """Architecture of a tracker that matches locally.

    Attributes:
        blocks: Blocks of the points' tokens; `patch_size` is the side of the largest cell, 8 pixels, and divides the
            frames' height and width.
        fine_width: Channels in cells of 2 pixels.
        middle_width: In cells of 4.
        coarse_width: In cells of 8.
    """

    blocks: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            width=128,
            depth=2,
            num_heads=4,
            mlp_width=256,
            patch_size=STRIDES_PX[-1],
            image_size=(256, 256),
            pooling="mean",
            num_classes=0,
        )
    )
    fine_width: int = 16
    middle_width: int = 32
    coarse_width: int = 64

    def __post_init__(self) -> None:
        self._require_blocks(
            num_classes=0,
            temporal_patch_size=1,
            patch_size=STRIDES_PX[-1],
            pooling="mean",
            temporal_mixer="lru",
            temporal_from=0,
        )
        self._require_whole("fine_width", "middle_width", "coarse_width")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level's descriptors."""
        return self.fine_width + CONTEXT_WIDTH, self.middle_width + CONTEXT_WIDTH, self.coarse_width


@dataclass(frozen=True)
class LocalState(TrackerState):
    """State of a `LocalTracker` for B streams with Q points each; see `TrackerState` for its methods.

    Attributes:
        points: Memory of each point, float32 at least; zero in empty slots. Its templates, and its last place, velocity
            and visibility.
    """

    points: Float[Tensor, "B Q S"]

    _FORMAT: ClassVar[str] = "trecvit-local-state-1"
    _ALIKE: ClassVar[tuple[str, ...]] = (*TrackerState._ALIKE, "point_memory_width")
    _POINT_MEMORY: ClassVar[str] = "points"
    _POINTS_ARE_TOKENS: ClassVar[bool] = True
    _PATCHES_ARE_TOKENS: ClassVar[bool] = False


class _Motion(NamedTuple):
    """The part of a point's memory beside its templates."""

    place_xy: Float[Tensor, "B Q 2"]
    velocity_xy: Float[Tensor, "B Q 2"]
    seen: Float[Tensor, "B Q 2"]  # probability of being visible, and certainty


class _Memory(NamedTuple):
    """A point's memory: templates in each level, patches in each size of pixels, and the motion."""

    first: list[Float[Tensor, "B Q n C"]]
    second: list[Float[Tensor, "B Q n C"]]
    query_patches: Float[Tensor, "B Q P"]
    last_patches: Float[Tensor, "B Q P"]
    motion: _Motion


class _Refinement(NamedTuple):
    """A step from the first choice, a change of visibility and certainty, and what the step was chosen between."""

    step_xy: Float[Tensor, "B Q 2"]
    seen: Float[Tensor, "B Q 2"]
    offsets_xy: Float[Tensor, "B Q J 2"]
    choice: Float[Tensor, "B Q J"]
    matches: list[Match]


class _FrameOutput(NamedTuple):
    """Predictions in one frame."""

    points_xy: Float[Tensor, "B Q 2"]
    visible_logits: Float[Tensor, "B Q"]
    certainty_logits: Float[Tensor, "B Q"]
    local: LocalMatches  # without the axis of the frames


_MOTION_WIDTH = 6
# Those of the levels, of the flow from the last frame, of the flow on from there to the query's patch, the last place,
# the velocity's, the whole frame's, and the others' motion.
_NUM_CANDIDATES = len(STRIDES_PX) + 6
_ANCHORED = len(STRIDES_PX) + 1  # the candidate of the flow to the query's patch
_ANCHOR_SIZES = 2  # of pixels, from the finest, in which the query's patch is followed


class LocalTracker(PointTracker):
    """The tracker; see `PointTracker` for its use.

    Frames of any size that 8 divides; descriptors have no positions.
    """

    config: LocalTrackerConfig
    config_class = LocalTrackerConfig
    state_class = LocalState
    engine: Engine[TrackerOutput, LocalState]
    tokenizer: FramePyramid

    def __init__(
        self,
        config: LocalTrackerConfig,
        *,
        preprocessing: Preprocessing | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(config, preprocessing=preprocessing, provenance=provenance)
        width = config.blocks.width
        self.tokenizer = FramePyramid(config.blocks, (config.fine_width, config.middle_width, config.coarse_width))
        self.matchers = nn.ModuleList(LevelMatcher() for _ in STRIDES_PX)
        hidden = LevelMatcher.hidden_width
        self.into_token = Linear(hidden * len(STRIDES_PX) + 4 + 4 + 4 + 2 * (2 + READ_WIDTH), width)
        # Scores of the candidates, a small step, visibility, certainty, and the second template's update.
        self.out_of_token = Linear(width, _NUM_CANDIDATES + 2 + 3)
        self.into_company = Linear(width, 2 * _COMPANY_WIDTH)
        self.company_reach_px = nn.Parameter(torch.tensor(_COMPANY_REACH_PX))
        self.into_refinement = Linear(width + hidden * _FINE + 2, width)
        # Scores of the levels and of the present place, a small step, visibility and certainty.
        self.out_of_refinement = Linear(width, _FINE + 1 + 2 + 2)
        self.trust = nn.Parameter(torch.full((2,), _TRUST))
        # A refinement's prior on the places of its windows: by how much less likely they are than the middle.
        self.near = nn.Parameter(torch.empty(_FINE, WINDOW**2))
        set_(self.near, lambda: _squared_distances() / (-2 * _NEAR_CELLS**2))
        self.global_sharpness = nn.Parameter(torch.tensor(_GLOBAL_SHARPNESS))
        for linear in (self.out_of_token, self.out_of_refinement, self.into_company):
            normal_(linear.weight, 0.01)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():
            self.out_of_token.bias[: len(STRIDES_PX)] -= 4.0  # plus up to 10 for a perfect match
            self.out_of_token.bias[len(STRIDES_PX) : len(STRIDES_PX) + 2] += 9.0  # where it can, flow is most precise
            self.out_of_token.bias[_NUM_CANDIDATES - 2] -= 4.0  # a jump has to be earned
            self.out_of_token.bias[-1] += 3.0
            self.out_of_token.bias[-3] += 2.0
            self.out_of_refinement.bias[_FINE] += 3.0  # stay

    def moved_to(self, state: LocalState, points_xy: Float[Tensor, "B Q 2"], chosen: Bool[Tensor, "B Q"]) -> LocalState:
        """A state with other last places of the chosen points, at rest and seen; for training."""
        widths = [self._templates_width, PATCH_WIDTH, PATCH_WIDTH + _MOTION_WIDTH]
        templates, query, rest = state.points.split(widths, dim=-1)
        seen = torch.ones_like(points_xy)
        # The patch of the last frame was elsewhere.
        there = torch.cat([query, points_xy, torch.zeros_like(points_xy), seen], dim=-1).to(rest)
        return state.replace(points=torch.cat([templates, query, torch.where(chosen[..., None], there, rest)], dim=-1))

    @torch.no_grad()
    def rely_on_flow(self, by: float) -> None:
        """Raise the score of the flow on to the query's patch.

        Scenes for training are harder to follow by flow than most footage, so that a tracker learns to rely on it too
        little.

        Args:
            by: Logarithm of the factor on its odds; chosen on validation clips.
        """
        self.out_of_token.bias[_ANCHORED] += by

    def last_places(self, state: LocalState) -> Float[Tensor, "B Q 2"]:
        """Places of the points in the last frame, in pixels."""
        return self._remembered(state.points).motion.place_xy

    @property
    def point_memory_width(self) -> int:
        """Channels S of a state's memory of each point: two templates, two patches, and the motion."""
        return self._templates_width + 2 * PATCH_WIDTH + _MOTION_WIDTH

    @property
    def _templates_width(self) -> int:
        return 2 * PATCH**2 * sum(self.config.widths)

    def _track(self, frames: Tensor, state: TrackerState) -> tuple[TrackerOutput, TrackerState]:
        assert isinstance(state, LocalState), "checked by step"
        return self.engine(frames, state)

    def _advance(self, frames: Tensor, state: LocalState) -> tuple[TrackerOutput, LocalState]:
        """Compute the pass over frames that an `Engine` may take over."""
        frames_until = state.query_frames - state.frames_seen[:, None]
        outputs: list[_FrameOutput] = []
        for piece in frames.split(_FRAMES_AT_ONCE, dim=1):
            pyramids = _by_frame(grey_pyramid(piece.flatten(0, 1)), piece.shape[1])
            for levels, pyramid in zip(self.tokenizer.levels(piece), pyramids, strict=True):
                frame, state = self._through_frame(levels, pyramid, frames_until - len(outputs), state)
                outputs.append(frame)
        certainty_logits = torch.stack([out.certainty_logits for out in outputs], dim=2)
        out = TrackerOutput(
            torch.stack([out.points_xy for out in outputs], dim=2).float(),
            torch.stack([out.visible_logits for out in outputs], dim=2),
            certainty_logits.sigmoid(),
            certainty_logits=certainty_logits,
            local=_joined([out.local for out in outputs]) if self.training else None,
        )
        return out, state.replace(frames_seen=state.frames_seen + frames.shape[1])

    def _through_frame(
        self, levels: list[Level], pyramid: list[Tensor], frames_until: Int64[Tensor, "B Q"], state: LocalState
    ) -> tuple[_FrameOutput, LocalState]:
        """Track all points in one frame."""
        is_query = (frames_until == 0)[..., None]
        started = frames_until <= 0  # [B,Q]
        remembered = self._remembered(state.points)
        motion = remembered.motion
        queries_xy = state.query_points_yx.flip(-1).to(state.points.dtype)
        last_xy = torch.where(is_query, queries_xy, motion.place_xy)
        if self.training:
            jittered = (torch.rand_like(last_xy[..., :1]) < _JITTERED) & ~is_query
            last_xy = last_xy + jittered * _JITTER_PX * torch.randn_like(last_xy)
        windows = [described(window_around(level, last_xy)) for level in levels]
        here = patches_around(pyramid, last_xy)
        first, second, query_patches, last_patches = _queried(remembered, windows, here, is_query)

        flow = follow(pyramid, last_patches, last_xy)
        anchored = follow(pyramid, query_patches, flow.places_xy, num_sizes=_ANCHOR_SIZES)
        scores = [self._match(level, windows[level], first, second) for level in range(len(levels))]
        found_xy, found, frame_scores = self._find(levels[2], first[2], second[2], last_xy)
        token, layers = self._token(state, levels, scores, found, (flow, anchored), last_xy, motion, started)
        read = self.out_of_token(token).to(last_xy.dtype)
        choice, step, seen, update = read.split([_NUM_CANDIDATES, 2, 2, 1], dim=-1)
        candidates = [match.offset_xy * level.stride_px for match, level in zip(scores, levels, strict=True)]
        candidates += [flow.places_xy - last_xy, anchored.places_xy - last_xy]
        candidates += [torch.zeros_like(last_xy), motion.velocity_xy, found_xy - last_xy]
        deviations = torch.stack([flow.read[..., 0], anchored.read[..., 0]], dim=-1)
        choice = _by_match(choice, scores, self.trust * (1 - (deviations / _TRUSTED_BELOW).square()).clamp(min=0))
        alone_xy = _chosen(choice[..., :-1], torch.stack(candidates, dim=2)).detach()
        offsets_xy = torch.stack([*candidates, self._with_others(token, alone_xy, last_xy, seen, started)], dim=2)
        moved_xy = _chosen(choice, offsets_xy) + _STEP_PX * step.tanh()
        first_xy = last_xy + moved_xy
        against_xy = alone_xy - offsets_xy[:, :, -1]
        refined = self._refine(levels, first, second, token, first_xy.detach(), against_xy.detach())
        seen = seen + refined.seen
        place_xy = first_xy + refined.step_xy
        local = LocalMatches(
            torch.stack([first_xy, place_xy]),
            last_xy[:, :, None] + offsets_xy,
            choice,
            first_xy.detach()[:, :, None] + refined.offsets_xy,
            refined.choice,
            torch.stack([last_xy] * len(levels) + [first_xy.detach()] * _FINE),
            torch.stack([match.logits for match in (*scores, *refined.matches)]),
            frame_scores,
        )

        place_xy = torch.where(is_query, queries_xy, _limited(place_xy, state.image_size))
        templates = self._updated(levels, first, second, place_xy.detach(), seen, update)
        moved = _moved(motion, last_xy, place_xy.detach(), seen, is_query)
        # A hidden point's last patch stays that of when it was seen.
        renewed = (moved.seen[..., :1] > 0.5) | is_query
        last_patches = torch.where(renewed, patches_around(pyramid, place_xy.detach()), last_patches)
        memory = torch.cat([templates, query_patches, last_patches, *moved], dim=-1)
        memory = torch.where(started[..., None], memory, state.points)
        visible_logits, certainty_logits = seen.unbind(dim=-1)
        out = _FrameOutput(place_xy, visible_logits, certainty_logits, local)
        return out, state.replace(points=memory, layers=layers)

    def _refine(
        self,
        levels: list[Level],
        first: list[Tensor],
        second: list[Tensor],
        token: Float[Tensor, "B Q D"],
        centre_xy: Float[Tensor, "B Q 2"],
        against_xy: Float[Tensor, "B Q 2"],
    ) -> _Refinement:
        """Match again around a place; `against_xy` is the motion found so far, beyond the other points'."""
        matches = [
            self._match(level, described(window_around(levels[level], centre_xy)), first, second, self.near[level])
            for level in range(_FINE)
        ]
        against = (against_xy / 8).tanh().to(token.dtype)
        hidden = self.into_refinement(torch.cat([token, *(match.hidden for match in matches), against], dim=-1))
        refined = self.out_of_refinement(F.gelu(hidden, approximate="tanh")).to(centre_xy.dtype)
        choice, step, seen = refined.split([_FINE + 1, 2, 2], dim=-1)
        offsets = [match.offset_xy * level.stride_px for match, level in zip(matches, levels, strict=False)]
        offsets_xy = torch.stack([*offsets, torch.zeros_like(centre_xy)], dim=2)
        return _Refinement(_chosen(choice, offsets_xy) + _STEP_PX * step.tanh(), seen, offsets_xy, choice, matches)

    def _with_others(
        self,
        token: Float[Tensor, "B Q D"],
        moved_xy: Float[Tensor, "B Q 2"],
        last_xy: Float[Tensor, "B Q 2"],
        seen: Float[Tensor, "B Q 2"],
        started: Bool[Tensor, "B Q"],
    ) -> Float[Tensor, "B Q 2"]:
        """Mean motion of the other points that are near, seen, and alike as their tokens tell; alone, its own."""
        queries, keys = self.into_company(token).to(last_xy.dtype).split(_COMPANY_WIDTH, dim=-1)
        alike = torch.matmul(queries, keys.transpose(1, 2)) * _COMPANY_WIDTH**-0.5  # [B,Q,Q]
        distances = (last_xy[:, :, None] - last_xy[:, None]).square().sum(dim=-1)
        near = -(distances / self.company_reach_px.square()).log1p()
        reliable = F.logsigmoid(seen).sum(dim=-1) + torch.where(started, 0.0, _NOT_STARTED)
        itself = _ITSELF * torch.eye(last_xy.shape[1], dtype=last_xy.dtype, device=last_xy.device)
        return torch.matmul((alike + near + reliable[:, None] + itself).softmax(dim=-1), moved_xy)

    def _match(
        self, level: int, places: Tensor, first: list[Tensor], second: list[Tensor], prior: Tensor | None = None
    ) -> Match:
        costs = correlate(places, torch.cat([first[level], second[level]], dim=2))
        match: Match = self.matchers[level](costs, prior)
        return match

    def _find(
        self, level: Level, first: Float[Tensor, "B Q n C"], second: Float[Tensor, "B Q n C"], last_xy: Tensor
    ) -> tuple[Tensor, Tensor, Float[Tensor, "B Q cells"]]:
        """Find each point's best cell of a level in the whole frame: its place, what the token reads, all scores."""
        rows, columns = level.size
        template = (first + second)[:, :, PATCH**2 // 2]
        cells = level.cells.unflatten(1, (rows + 2, columns + 2))[:, 1:-1, 1:-1].flatten(1, 2)
        cosines = torch.matmul(template, cells.transpose(1, 2)) * 0.5  # [B,Q,cells]
        best, index = cosines.max(dim=-1)
        found_xy = torch.stack([index % columns + 0.5, index // columns + 0.5], dim=-1).to(last_xy) * level.stride_px
        spread = (cosines.detach() > best.detach()[..., None] - 0.1).to(best.dtype).mean(dim=-1)
        distance = ((found_xy - last_xy) / 32).tanh()
        read = torch.cat([distance, best[..., None], spread[..., None]], dim=-1)
        return found_xy, read, cosines * self.global_sharpness

    def _token(
        self,
        state: LocalState,
        levels: list[Level],
        scores: list[Match],
        found: Tensor,
        flows: tuple[Flow, Flow],
        last_xy: Tensor,
        motion: _Motion,
        started: Bool[Tensor, "B Q"],
    ) -> tuple[Float[Tensor, "B Q D"], tuple[LayerState, ...]]:
        """Mix the points' tokens with their past and with each other; slots before their query stay as they are."""
        height, width = state.image_size
        size = last_xy.new_tensor([width, height])
        to_border = (torch.cat([last_xy, size - last_xy], dim=-1) / 32).clamp(-1, 1)
        known = torch.cat([(motion.velocity_xy / 8).tanh(), motion.seen], dim=-1)
        flowed = [torch.cat([((flow.places_xy - last_xy) / 8).tanh(), flow.read], dim=-1) for flow in flows]
        inputs = torch.cat([found, known, to_border, *flowed], dim=-1).to(scores[0].hidden.dtype)
        token = self.into_token(torch.cat([*(match.hidden for match in scores), inputs], dim=-1))[:, None]  # [B,1,Q,D]
        never_fresh = torch.zeros_like(state.frames_seen, dtype=torch.bool)
        layers = []
        for block, before in zip(self.blocks.children(), state.layers, strict=True):
            assert isinstance(block, Block), "as VideoModel builds them"
            assert block.spatial is not None, "as temporal_mixer is 'lru'"
            assert block.temporal is not None, "as temporal_from is 0"
            token, after = block.temporal(token, before, never_fresh)
            token = block.spatial(token, attended=started[:, None])
            hidden = torch.where(started[..., None], after.hidden, before.hidden)
            taps = torch.where(started[:, None, :, None], after.taps, before.taps)
            layers.append(LayerState(hidden, taps))
        return self.norm(token)[:, 0], tuple(layers)

    def _remembered(self, points: Float[Tensor, "B Q S"]) -> _Memory:
        """Split a memory."""
        widths = [PATCH**2 * width for width in self.config.widths]
        parts = points.split([*widths, *widths, PATCH_WIDTH, PATCH_WIDTH, _MOTION_WIDTH], dim=-1)
        templates = [template.unflatten(-1, (PATCH**2, -1)) for template in parts[:-3]]
        motion = _Motion(*parts[-1].split(2, dim=-1))
        return _Memory(templates[: len(widths)], templates[len(widths) :], parts[-3], parts[-2], motion)

    def _updated(
        self,
        levels: list[Level],
        first: list[Tensor],
        second: list[Tensor],
        place_xy: Tensor,
        seen: Tensor,
        update: Tensor,
    ) -> Float[Tensor, "B Q S"]:
        """Both templates after a frame."""
        share = (update.sigmoid() * seen[..., :1].sigmoid())[..., None]
        with torch.no_grad():
            here = [template_of(described(window_around(level, place_xy))) for level in levels]
        second = [old + share * (new - old) for old, new in zip(second, here, strict=True)]
        return torch.cat([template.flatten(2) for template in (*first, *second)], dim=-1)


def _queried(
    memory: _Memory, windows: list[Tensor], here: Float[Tensor, "B Q P"], is_query: Bool[Tensor, "B Q 1"]
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Templates and patches of a memory, for points whose query is in this frame those of the frame."""
    fresh = [template_of(window) for window in windows]
    first, second = (
        [torch.where(is_query[..., None], new, old) for new, old in zip(fresh, templates, strict=True)]
        for templates in (memory.first, memory.second)
    )
    query_patches, last_patches = (
        torch.where(is_query, here, patches) for patches in (memory.query_patches, memory.last_patches)
    )
    return first, second, query_patches, last_patches


def _by_match(
    choice: Float[Tensor, "B Q K"], scores: list[Match], trust: Float[Tensor, "B Q 2"]
) -> Float[Tensor, "B Q K"]:
    """Scores of the candidates: those of levels and flows are the likelier the better they match."""
    found_well = torch.stack([_best(match) for match in scores], dim=-1)
    more = torch.cat([found_well.to(choice.dtype), trust.to(choice.dtype)], dim=-1)
    matched, others = choice.split([more.shape[-1], choice.shape[-1] - more.shape[-1]], dim=-1)
    return torch.cat([matched + more, others], dim=-1)


@torch.no_grad()
def _agreement(choice: Float[Tensor, "B Q K"], offsets_xy: Float[Tensor, "B Q K 2"]) -> Float[Tensor, "B Q K"]:
    """Weights of the candidates beside the one that has most probability around it; those apart from it have none."""
    apart = (offsets_xy[:, :, :, None] - offsets_xy[:, :, None]).square().sum(dim=-1)
    near = (apart / (-2 * _AGREE_PX**2)).exp()  # [B,Q,K,K]
    weights = choice.softmax(dim=-1)
    support = (near * weights[:, :, None]).sum(dim=-1)
    best = support.argmax(dim=-1, keepdim=True)[..., None].expand(-1, -1, -1, near.shape[-1])
    around = near.gather(2, best)[:, :, 0] * weights
    return around / around.sum(dim=-1, keepdim=True)


def _chosen(choice: Float[Tensor, "B Q K"], offsets_xy: Float[Tensor, "B Q K 2"]) -> Float[Tensor, "B Q 2"]:
    """Where most probable candidates agree; probabilities are learned from the candidates' own errors."""
    mean: Tensor = (_agreement(choice, offsets_xy)[..., None] * offsets_xy).sum(dim=2)
    return mean


def _limited(places_xy: Float[Tensor, "B Q 2"], image_size: tuple[int, int]) -> Float[Tensor, "B Q 2"]:
    """Places not further outside of the frame than points return from."""
    limits = places_xy.new_tensor([image_size[1] + _BEYOND_PX, image_size[0] + _BEYOND_PX])
    return places_xy.clamp(min=-_BEYOND_PX).minimum(limits)


def _moved(
    motion: _Motion, last_xy: Float[Tensor, "B Q 2"], place_xy: Tensor, seen: Tensor, is_query: Bool[Tensor, "B Q 1"]
) -> _Motion:
    """The motion after a frame."""
    seen = seen.sigmoid().detach()
    moved = torch.where(is_query, 0.0, place_xy - last_xy)
    velocity = motion.velocity_xy + 0.5 * seen[..., :1] * (moved - motion.velocity_xy)
    return _Motion(place_xy, velocity, seen)


def _by_frame(pyramid: list[Float[Tensor, "BT h w"]], num_frames: int) -> list[list[Float[Tensor, "B h w"]]]:
    """For each of T frames its pyramid."""
    sizes = [level.unflatten(0, (-1, num_frames)) for level in pyramid]
    return [[level[:, frame] for level in sizes] for frame in range(num_frames)]


def _squared_distances() -> Float[Tensor, " n"]:
    """Of a window's places from its middle, in cells."""
    return window_offsets(torch.get_default_device(), torch.float32).square().sum(dim=-1)


def _best(match: Match) -> Float[Tensor, "B Q"]:
    """A level's best score, by which it is chosen at first; it changes no match."""
    return match.logits.detach().amax(dim=-1) * _CHOICE


def _joined(frames: list[LocalMatches]) -> LocalMatches:
    """Join frames along an axis before the last one."""
    return LocalMatches(*(torch.stack(parts, dim=-2) for parts in zip(*frames, strict=True)))
