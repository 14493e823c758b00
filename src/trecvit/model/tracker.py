"""Base of all point trackers: queries, output, state, and tracking in both directions of time.

Coordinates are pixels of the caller's frames: (0, 0) is the upper left corner of the upper left pixel and (W, H) the
lower right one of the lower right pixel, as in TAP-Vid (arXiv:2211.03726).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Real, Shaped
from torch import Tensor

from trecvit.config import BlocksConfig, ImageSize, ModelConfig, Preprocessing
from trecvit.errors import InputError, StateError
from trecvit.model.matching import Similarity
from trecvit.model.state import StreamState, empty_layers, num_patches, recurrent_dtype
from trecvit.model.trecvit import NORM_EPS, Video, VideoModel

NEVER = torch.iinfo(torch.int64).max
"""Frame of a query in an empty slot."""

_States = TypeVar("_States", bound="TrackerState")


class LocalMatches(NamedTuple):
    """What a tracker that matches locally has found in T frames, for its loss.

    Attributes:
        places_xy: Places in pixels, before and after the refinement (R = 2).
        candidates_xy: Places in pixels that the first choice was between.
        choice_logits: Their scores; the last candidate moves with the others.
        refined_xy: Places in pixels that the refinement chose between.
        refined_logits: Their scores.
        centres_xy: Centres of all W windows in pixels: those of each level, then those of the refinements' levels.
        window_logits: Scores of each window's n places, row by row.
        frame_logits: Scores of all cells of 8 pixels of the whole frame, row by row.
    """

    places_xy: Float[Tensor, "R B Q T 2"]
    candidates_xy: Float[Tensor, "B Q K T 2"]
    choice_logits: Float[Tensor, "B Q T K"]
    refined_xy: Float[Tensor, "B Q J T 2"]
    refined_logits: Float[Tensor, "B Q T J"]
    centres_xy: Float[Tensor, "W B Q T 2"]
    window_logits: Float[Tensor, "W B Q T n"]
    frame_logits: Float[Tensor, "B Q T cells"]


class TrackerOutput(NamedTuple):
    """Predictions for Q points in T frames; meaningless in frames before a point's query.

    Attributes:
        points_xy: Position of each point, in pixels of the frames given.
        visible_logits: Above 0 where the point is visible, below where it is occluded or outside the picture.
        certainty: Predicted probability, from 0 to 1, that the point is close to `points_xy`.
        coordinate_logits: Scores of x and of y over R columns and R rows of the picture, from which `points_xy` is
            computed (with `matching`, its estimate before refinement). None for a tracker without such scores.
        certainty_logits: Logits of `certainty`, None for a tracker that computes it from the scores.
        similarity: Similarity of each place to each query's appearance; for matching trackers, in training mode.
        local: Matches of a `LocalTracker`, in training mode.
    """

    points_xy: Float[Tensor, "B Q T 2"]
    visible_logits: Float[Tensor, "B Q T"]
    certainty: Float[Tensor, "B Q T"]
    coordinate_logits: Float[Tensor, "B Q T 2 R"] | None = None
    certainty_logits: Float[Tensor, "B Q T"] | None = None
    similarity: Similarity | None = None
    local: LocalMatches | None = None

    @property
    def visible(self) -> Bool[Tensor, "B Q T"]:
        """Whether each point is visible. TAP-Vid's results use this, or sigmoid(visible_logits) * certainty > 0.5."""
        return self.visible_logits > 0


Tracker = Callable[[Tensor, Tensor], TrackerOutput]


@dataclass(frozen=True)
class TrackerState(StreamState):
    """State of a tracker for B streams with Q points each; see `StreamState` for its methods.

    The number of points is fixed, but slots can be reserved from the start: a query with an infinite frame is an empty
    slot until `place` fills it.

    Attributes:
        query_frames: Frame of each query, counted from the stream's first; `NEVER` in empty slots.
        query_points_yx: Position in that frame, in pixels.
    """

    query_frames: Real[Tensor, "B Q"]
    query_points_yx: Float[Tensor, "B Q 2"]

    _ALIKE: ClassVar[tuple[str, ...]] = (*StreamState._ALIKE, "num_queries")
    _KEPT_BY_RESET: ClassVar[tuple[str, ...]] = ("query_frames", "query_points_yx")
    _POINT_MEMORY: ClassVar[str]  # the subclass's tensor [B,Q,S] with the memory of each point, zero in empty slots
    _POINTS_ARE_TOKENS: ClassVar[bool] = False  # in the layers, behind the patches of each frame
    _PATCHES_ARE_TOKENS: ClassVar[bool] = True

    @classmethod
    def begin(
        cls: type[_States],
        config: ModelConfig,
        query_frames: Int64[Tensor, "B Q"],
        query_points_yx: Float[Tensor, "B Q 2"],
        *,
        point_memory_width: int,
        image_size: tuple[int, int],
        dtype: torch.dtype,
    ) -> _States:
        """Return the state before the first frame, on the queries' device; `dtype` is the model's."""
        batch_size, num_queries = query_frames.shape
        device = query_frames.device
        num_tokens = cls._first_point(config, image_size) + cls._POINTS_ARE_TOKENS * num_queries
        memory = (batch_size, num_queries, point_memory_width)
        return cls(
            layers=empty_layers(config, batch_size, num_tokens, device=device, dtype=dtype),
            frames_seen=torch.zeros(batch_size, dtype=torch.int64, device=device),
            config=config,
            image_size=image_size,
            query_frames=query_frames,
            query_points_yx=query_points_yx,
            **{cls._POINT_MEMORY: torch.zeros(memory, dtype=recurrent_dtype(dtype), device=device)},
        )

    @property
    def num_queries(self) -> int:
        """Points Q of each stream, empty slots included."""
        return self.query_frames.shape[1]

    def place(self: _States, slot: int, points_xy: Float[Tensor, "B 2"]) -> _States:
        """Put a point into an empty slot, at its position in each stream's next frame.

        The result is the same as with a query for that frame from the start.

        Raises:
            StateError: when the slot is not empty.
            InputError: for a position outside the picture.
        """
        if not bool((self.query_frames[:, slot] == NEVER).all()):
            raise StateError(f"place: expected an empty slot, got slot {slot}, which has a point")
        points_yx = points_xy.flip(-1).to(self.query_points_yx)
        _, points_yx = read_queries(F.pad(points_yx, (1, 0))[:, None], self.image_size)
        query_frames, query_points_yx = self.query_frames.clone(), self.query_points_yx.clone()
        query_frames[:, slot], query_points_yx[:, slot] = self.frames_seen, points_yx[:, 0]
        return self.replace(query_frames=query_frames, query_points_yx=query_points_yx)

    def copy_slot(self: _States, source: int, target: int) -> _States:
        """Copy the slot `source`, with its query and its history, to `target`.

        With a `source` that has always been empty, this deletes the point in `target`.
        """
        copied = self._tensors()
        for name, tensor in copied.items():
            if (slots := self._slots_in(name)) is not None:
                axis, first = slots
                copied[name] = tensor = tensor.clone()
                tensor.select(axis, first + target).copy_(tensor.select(axis, first + source))
        return self._with(copied)

    @property
    def point_memory_width(self) -> int:
        """Channels S of the memory of each point."""
        memory: Tensor = getattr(self, self._POINT_MEMORY)
        return memory.shape[2]

    def _slots_in(self, name: str) -> tuple[int, int] | None:
        """Return the axis of the points in a tensor and the index of the first on it; None if it has none."""
        if name in (*self._KEPT_BY_RESET, self._POINT_MEMORY):
            return 1, 0
        if self._POINTS_ARE_TOKENS:
            axes = {"hidden": 1, "taps": 2}
            if (axis := axes.get(name.rpartition(".")[2])) is not None:
                return axis, self._first_point(self.config, self.image_size)
        return None

    @classmethod
    def _first_point(cls, config: ModelConfig, image_size: tuple[int, int]) -> int:
        """Count the tokens of a frame before those of the points."""
        return cls._PATCHES_ARE_TOKENS * num_patches(config, image_size) + (config.pooling == "cls")

    @classmethod
    def _described(
        cls: type[_States], config: ModelConfig, image_size: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> _States:
        batch_size, num_queries, width = tensors[cls._POINT_MEMORY].shape
        return cls.begin(
            config,
            torch.empty(batch_size, num_queries, dtype=torch.int64, device="meta"),
            torch.empty(batch_size, num_queries, 2, device="meta"),
            point_memory_width=width,
            image_size=image_size,
            dtype=tensors["layers.0.taps"].dtype,
        )

    def _tensors(self) -> dict[str, Tensor]:
        names = (self._POINT_MEMORY, "query_frames", "query_points_yx")
        return {**{name: getattr(self, name) for name in names}, **super()._tensors()}


class PointTracker(VideoModel, tags=["point-tracking"]):
    """Base of all trackers: `tracker(video, query_points_tyx)` for clips, `step(frames, state)` for streams.

    See `Pretrained` for its other attributes, `track_both_ways` for the frames before a query, and
    `trecvit.LiveTracker` for points that are added and removed.
    """

    config: BlocksConfig
    state_class: ClassVar[type[TrackerState]]
    _tracking: Callable[[Tensor, TrackerState], tuple[TrackerOutput, TrackerState]] | None = None
    _num_slots: int | None = None

    def __init__(
        self,
        config: BlocksConfig,
        *,
        norm_eps: float = NORM_EPS,
        antialias: bool = True,
        preprocessing: Preprocessing | None = None,
        provenance: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            config,
            config.blocks,
            norm_eps=norm_eps,
            antialias=antialias,
            preprocessing=preprocessing or self.preprocessing_for(config.image_size),
            provenance=provenance,
        )

    def replace_tracking(
        self,
        tracking: Callable[[Tensor, TrackerState], tuple[TrackerOutput, TrackerState]],
        *,
        num_slots: int | None = None,
    ) -> None:
        """Let another runtime compute `step`, after this class's checks.

        Args:
            tracking: From frames in [0,1] and a state to the output and the next state.
            num_slots: Number of points that it holds for; states get empty slots up to it.
        """
        self._tracking, self._num_slots = tracking, num_slots

    @staticmethod
    def preprocessing_for(image_size: ImageSize) -> Preprocessing:
        """Return the preprocessing of trackers: every frame, resized to this height and width."""
        return Preprocessing(image_size=image_size, frame_stride=1)

    def forward(self, video: Video, query_points_tyx: Shaped[Tensor, "B Q 3"]) -> TrackerOutput:
        """Track points over whole videos.

        Args:
            video: uint8, or floating point in [0,1]. Any height and width that `patch_size` divides; most accurate at
                the size of the training videos, `preprocessing.image_size`.
            query_points_tyx: Each point's frame from 0, and its y and x in pixels of the video. An infinite frame is an
                empty slot, which pads a row with fewer points.

        Raises:
            InputError: for invalid shapes, dtypes or values of the video or the queries.
        """
        self._check_shape(video)  # `step` checks its pixels
        if query_points_tyx.dim() == 3 and len(query_points_tyx) != len(video):
            raise InputError(f"expected queries for {len(video)} videos, got queries for {len(query_points_tyx)}")
        state = self.init_state(query_points_tyx, image_size=(video.shape[3], video.shape[4]))
        out, _ = self.step(video, state)
        if self._num_slots is None:
            return out
        given = slice(query_points_tyx.shape[1])
        return TrackerOutput(out.points_xy[:, given], out.visible_logits[:, given], out.certainty[:, given])

    def init_state(
        self, query_points_tyx: Shaped[Tensor, "B Q 3"], *, image_size: ImageSize | None = None
    ) -> TrackerState:
        """Return the state of B streams before their first frame.

        Args:
            query_points_tyx: As in `forward`. Frames are counted from the first that `step` will process, without upper
                limit. Points that are added later get empty slots, see `TrackerState`.
            image_size: Height and width of the frames, by default those of `preprocessing`.

        Raises:
            InputError: for invalid queries in pictures of this size.
        """
        size = self._image_size(image_size)
        query_frames, query_points_yx = read_queries(query_points_tyx.to(self.device), size)
        if self._num_slots is not None:
            num_empty = self._num_slots - query_frames.shape[1]
            if num_empty < 0:
                raise InputError(
                    f"query_points_tyx: expected at most {self._num_slots} points, the slots of this exported tracker, "
                    f"got {query_frames.shape[1]}; export it with more points"
                )
            query_frames = F.pad(query_frames, (0, num_empty), value=NEVER)
            query_points_yx = F.pad(query_points_yx, (0, 0, 0, num_empty))
        return self.begin(query_frames, query_points_yx, size)

    def begin(
        self,
        query_frames: Int64[Tensor, "B Q"],
        query_points_yx: Float[Tensor, "B Q 2"],
        image_size: tuple[int, int],
    ) -> TrackerState:
        """`init_state` for queries from `read_queries`."""
        return self.state_class.begin(
            self.config.blocks,
            query_frames,
            query_points_yx,
            point_memory_width=self.point_memory_width,
            image_size=image_size,
            dtype=self.dtype,
        )

    @property
    def point_memory_width(self) -> int:
        """Channels S of a state's memory of each point."""
        raise NotImplementedError

    def step(self, frames: Video, state: TrackerState) -> tuple[TrackerOutput, TrackerState]:
        """Process the next frames of every stream, one or more.

        A video in pieces of any length gives the same points as `tracker(video, query_points_tyx)`.

        Args:
            frames: uint8, or floating point in [0,1]; row b belongs to stream b.
            state: Result of `init_state` or of the last `step`. It is not changed.

        Returns:
            Predictions for all points in these frames, and the new state.

        Raises:
            InputError: for invalid shapes, dtypes or values of the frames.
            StateError: when the state belongs to another model, batch, image size, dtype or device.
        """
        self._check_frames(frames)
        if not isinstance(state, self.state_class):
            expected = self.state_class.__name__
            raise StateError(f"expected a {expected} from init_state or step, got {type(state).__name__}")
        state.check_fits(frames, self.config.blocks, device=self.device, dtype=self.dtype)
        if state.point_memory_width != self.point_memory_width:
            raise StateError(
                f"expected a state with {self.point_memory_width} channels per point, got "
                f"{state.point_memory_width}; use the state that this tracker's init_state returns"
            )
        track = self._track if self._tracking is None else self._tracking
        return track(self._pixels(frames), state)

    def _track(self, frames: Tensor, state: TrackerState) -> tuple[TrackerOutput, TrackerState]:
        """`step` for checked arguments, frames in [0,1]."""
        raise NotImplementedError


def track_both_ways(
    tracker: Tracker, video: Shaped[Tensor, "B T 3 H W"], query_points_tyx: Shaped[Tensor, "B Q 3"]
) -> TrackerOutput:
    """Track every point over the whole video, also in the frames before its query.

    A tracker is causal, so the frames before a query are tracked in the reversed video, as TAP-Vid's "strided" queries
    need it; from each query's frame on the result is that of `tracker(video, query_points_tyx)`. Takes twice the time.

    Args:
        tracker: Such as a `PointTracker`.
        video: As for the tracker.
        query_points_tyx: As for the tracker.

    Raises:
        InputError: as the tracker does.
    """
    forwards = tracker(video, query_points_tyx)
    num_frames = video.shape[1]
    if not query_points_tyx.is_floating_point():
        query_points_tyx = query_points_tyx.double()  # integers have no infinity, the frame of an empty slot
    frame = query_points_tyx[..., 0]
    mirrored = torch.where(frame < num_frames, num_frames - 1 - frame, math.inf)
    backwards = tracker(video.flip(1), torch.cat([mirrored[..., None], query_points_tyx[..., 1:]], dim=-1))
    is_before = torch.arange(num_frames, device=frame.device) < frame[..., None]

    def join(later: Tensor, earlier: Tensor) -> Tensor:
        # is_before [B,Q,T] -> [B,Q,T,1,...]
        return torch.where(is_before.view(*is_before.shape, *[1] * (later.dim() - 3)), earlier.flip(2), later)

    parts: dict[str, Tensor | None] = forwards._asdict()
    del parts["similarity"], parts["local"]  # for training only
    # Both runs return the same parts.
    joined = {name: join(part, getattr(backwards, name)) for name, part in parts.items() if part is not None}
    return TrackerOutput(**joined)  # type: ignore[arg-type]


def read_queries(
    query_points_tyx: Tensor, image_size: tuple[int, int]
) -> tuple[Int64[Tensor, "B Q"], Float[Tensor, "B Q 2"]]:
    """Split queries into frames and positions (y, x); `NEVER` and (0, 0) where the frame is infinite.

    Raises:
        InputError: unless each query has three numbers, a whole frame >= 0 (or infinity) and a position in a picture of
            this height and width.
    """
    if query_points_tyx.dim() != 3 or query_points_tyx.shape[2] != 3:
        raise InputError(f"query_points_tyx: expected [B,Q,3] of (t, y, x), got {tuple(query_points_tyx.shape)}")
    if query_points_tyx.is_complex() or query_points_tyx.dtype == torch.bool:
        raise InputError(f"query_points_tyx: expected numbers, got {query_points_tyx.dtype}")
    # float64 holds every frame index of a video exactly.
    frames, points_yx = query_points_tyx[..., 0].double(), query_points_tyx[..., 1:]
    never = frames == math.inf
    whole = never | ((frames >= 0) & (frames == frames.floor()))
    if not bool(whole.all()):
        raise InputError(
            "query_points_tyx: expected t to be a frame's index from 0, or infinity for an empty slot, "
            f"got {frames[~whole][0].item():g}"
        )
    limits = torch.tensor(image_size, device=points_yx.device)
    inside = never | ((points_yx >= 0) & (points_yx <= limits)).all(dim=-1)
    if not bool(inside.all()):
        y, x = points_yx[~inside][0].tolist()
        raise InputError(
            f"query_points_tyx: expected (t, y, x) with y in 0..{image_size[0]} and x in 0..{image_size[1]} pixels of "
            f"the frames, got y={y:g}, x={x:g}"
        )
    indices = frames.masked_fill(never, 0).long()  # infinity has no int64
    return indices.masked_fill(never, NEVER), points_yx.float().masked_fill(never[..., None], 0.0)
