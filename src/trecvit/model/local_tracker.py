"""A point tracker whose tokens are the points: each is matched around its last place, and remembers what it looks like.

In every frame each point gets one token, which sums up its cost volumes (`local_matching`) around where it was, and
one candidate found again in the whole frame. TRecViT's blocks mix each token with its own past (RG-LRU) and with the
frame's other points (attention). The token then chooses between the candidates of the levels, its last place, its last
velocity and the whole frame's candidate; a refinement matches again around the chosen place, finely.

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
_NUM_REFINEMENTS = 1
_FINE = 2  # levels that refinements match in, from the finest
_NEAR_CELLS = 1.5
_STEP_PX = 2.0  # largest correction that is not a candidate's
_BEYOND_PX = 16.0  # places are limited to so far outside of the frame, from where points return
_GLOBAL_SHARPNESS = 20.0
_CHOICE = 0.3  # weight of a level's best score in its choice
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


class _FrameOutput(NamedTuple):
    """Predictions in one frame."""

    points_xy: Float[Tensor, "B Q 2"]
    visible_logits: Float[Tensor, "B Q"]
    certainty_logits: Float[Tensor, "B Q"]
    local: LocalMatches  # without the axis of the frames


_MOTION_WIDTH = 6
# Those of the levels, of the flow from the last frame, of the flow on from there to the query's patch, the last place,
# the velocity's, and the whole frame's.
_NUM_CANDIDATES = len(STRIDES_PX) + 5
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
        self.into_refinement = Linear(width + hidden * _FINE, width)
        # Scores of the levels and of the present place, a small step, visibility and certainty.
        self.out_of_refinement = Linear(width, _FINE + 1 + 2 + 2)
        # A refinement's prior on the places of its windows: by how much less likely they are than the middle.
        self.near = nn.Parameter(torch.empty(_FINE, WINDOW**2))
        set_(self.near, lambda: _squared_distances() / (-2 * _NEAR_CELLS**2))
        self.global_sharpness = nn.Parameter(torch.tensor(_GLOBAL_SHARPNESS))
        for linear in (self.out_of_token, self.out_of_refinement):
            normal_(linear.weight, 0.01)
            nn.init.zeros_(linear.bias)
        with torch.no_grad():
            self.out_of_token.bias[: len(STRIDES_PX)] -= 4.0  # plus up to 10 for a perfect match
            self.out_of_token.bias[len(STRIDES_PX)] += 9.0  # where it can, the flow is the most precise
            self.out_of_token.bias[_NUM_CANDIDATES - 1] -= 4.0  # a jump has to be earned
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
        """Lower the scores of the levels' places, of the last place and of the velocity's, and those of refinements.

        A tracker that was trained briefly takes alike places for the point's too often; its flow is more reliable.

        Args:
            by: Difference of the scores, whose softmax chooses; chosen on validation clips.
        """
        num_levels = len(STRIDES_PX)
        self.out_of_token.bias[:num_levels] -= by
        self.out_of_token.bias[num_levels + 2 : num_levels + 4] -= by
        self.out_of_refinement.bias[_FINE] += by

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
        place_xy = last_xy + _chosen(choice, scores, candidates) + _STEP_PX * step.tanh()
        places, centres, logits = [place_xy], [last_xy] * len(levels), [match.logits for match in scores]

        for _ in range(_NUM_REFINEMENTS):
            centre_xy = place_xy.detach()
            place_xy, seen_now, matches = self._refine(levels, first, second, token, centre_xy)
            seen = seen + seen_now
            places.append(place_xy)
            centres += [centre_xy] * _FINE
            logits += [match.logits for match in matches]

        place_xy = torch.where(is_query, queries_xy, _limited(place_xy, state.image_size))
        templates = self._updated(levels, first, second, place_xy.detach(), seen, update)
        moved = _moved(motion, last_xy, place_xy.detach(), seen, is_query)
        # A hidden point's last patch stays that of when it was seen.
        renewed = (moved.seen[..., :1] > 0.5) | is_query
        last_patches = torch.where(renewed, patches_around(pyramid, place_xy.detach()), last_patches)
        memory = torch.cat([templates, query_patches, last_patches, *moved], dim=-1)
        memory = torch.where(started[..., None], memory, state.points)
        local = LocalMatches(torch.stack(places), torch.stack(centres), torch.stack(logits), frame_scores)
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
    ) -> tuple[Float[Tensor, "B Q 2"], Float[Tensor, "B Q 2"], list[Match]]:
        """Match again around a place; return the next place, a change of visibility and certainty, and the matches."""
        matches = [
            self._match(level, described(window_around(levels[level], centre_xy)), first, second, self.near[level])
            for level in range(_FINE)
        ]
        hidden = self.into_refinement(torch.cat([token, *(match.hidden for match in matches)], dim=-1))
        refined = self.out_of_refinement(F.gelu(hidden, approximate="tanh")).to(centre_xy.dtype)
        choice, step, seen = refined.split([_FINE + 1, 2, 2], dim=-1)
        weights = choice.softmax(dim=-1)
        place_xy = centre_xy + _STEP_PX * step.tanh()
        for level, match in enumerate(matches):
            place_xy = place_xy + weights[..., level, None] * match.offset_xy * levels[level].stride_px
        return place_xy, seen, matches

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


def _chosen(
    choice: Float[Tensor, "B Q K"], scores: list[Match], candidates: list[Float[Tensor, "B Q 2"]]
) -> Float[Tensor, "B Q 2"]:
    """Mean of the candidates by their probabilities; those of the levels are the likelier the better they match."""
    found_well = torch.stack([_best(match) for match in scores], dim=-1).to(choice.dtype)
    choice = torch.cat([choice[..., : len(scores)] + found_well, choice[..., len(scores) :]], dim=-1)
    mean: Tensor = (choice.softmax(dim=-1)[..., None] * torch.stack(candidates, dim=2)).sum(dim=2)
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
