"""What every point tracker takes, gives and remembers: queries in, points out, and tracking backwards in time.

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
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from trecvit.config import BlocksConfig, ImageSize, ModelConfig, Preprocessing
from trecvit.errors import InputError, StateError
from trecvit.model.matching import Similarity
from trecvit.model.state import StreamState, empty_layers, num_patches, recurrent_dtype
from trecvit.model.trecvit import NORM_EPS, Video, VideoModel

NEVER = torch.iinfo(torch.int64).max
"""The frame of a query that has not come."""

_States = TypeVar("_States", bound="TrackerState")


class TrackerOutput(NamedTuple):
    """What a tracker says of Q points in T frames.

    In frames before a point's query it has been told nothing, and what it says there means nothing.

    Attributes:
        points_xy: Where each point is, in pixels of the frames given.
        visible_logits: Above 0 where the point is seen, below where something hides it or it is out of the picture.
        certainty: From 0 to 1, how much of the tracker's belief lies close to `points_xy`.
        coordinate_logits: The scores that `points_xy` was read off: of x and of y, over R columns and R rows into which
            the picture is divided (with `matching`, the first guess was). None for a tracker that has no such scores.
        certainty_logits: What `certainty` is the sigmoid of, None for a tracker that finds it otherwise.
        similarity: Of a tracker that matches looks, in training mode: where it sees each query's again.
    """

    points_xy: Float[Tensor, "B Q T 2"]
    visible_logits: Float[Tensor, "B Q T"]
    certainty: Float[Tensor, "B Q T"]
    coordinate_logits: Float[Tensor, "B Q T 2 R"] | None = None
    certainty_logits: Float[Tensor, "B Q T"] | None = None
    similarity: Similarity | None = None

    @property
    def visible(self) -> Bool[Tensor, "B Q T"]:
        """Whether each point is seen. TAP-Vid's results use this, or sigmoid(visible_logits) * certainty > 0.5."""
        return self.visible_logits > 0


Tracker = Callable[[Tensor, Tensor], TrackerOutput]


@dataclass(frozen=True)
class TrackerState(StreamState):
    """What a tracker remembers of B streams with Q points each; see `StreamState` for its methods.

    Points cannot be added to a state, but a point's place can be kept free from the start: a query whose frame is
    infinite is an empty slot until `place` fills it.

    Attributes:
        query_frames: The frame in which each point is shown to the model, counted from the stream's first; `NEVER` in
            empty slots.
        query_points_yx: Where it is there, in pixels of the frames.
    """

    query_frames: Int64[Tensor, "B Q"]
    query_points_yx: Float[Tensor, "B Q 2"]

    _ALIKE: ClassVar[tuple[str, ...]] = (*StreamState._ALIKE, "num_queries")
    _KEPT_BY_RESET: ClassVar[tuple[str, ...]] = ("query_frames", "query_points_yx")
    _POINT_MEMORY: ClassVar[str]  # the subclass's tensor [B,Q,S] with the memory of each point, zero in empty slots
    _POINTS_ARE_TOKENS: ClassVar[bool] = False  # in the layers, behind the patches of each frame

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
        num_tokens = num_patches(config, image_size) + (config.pooling == "cls") + cls._POINTS_ARE_TOKENS * num_queries
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
        """A point in a slot that was empty so far: where it is in each stream's next frame.

        This is the same as having declared it from the start, with the number of the next frame.

        Raises:
            StateError: when the slot is not empty.
            InputError: for a place outside the picture.
        """
        if not bool((self.query_frames[:, slot] == NEVER).all()):
            raise StateError(f"place: expected an empty slot, but slot {slot} has a point")
        points_yx = points_xy.flip(-1).to(self.query_points_yx)
        _, points_yx = read_queries(F.pad(points_yx, (1, 0))[:, None], self.image_size)
        frames, places = self.query_frames.clone(), self.query_points_yx.clone()
        frames[:, slot], places[:, slot] = self.frames_seen, points_yx[:, 0]
        return self.replace(query_frames=frames, query_points_yx=places)

    def copy_slot(self: _States, source: int, target: int) -> _States:
        """The slot `target` becomes what `source` is, with its query and its past; the others stay as they are.

        From a slot that was empty from the start this makes one that is as if it had been: a point is forgotten.
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
                return axis, num_patches(self.config, self.image_size)
        return None

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
    """What trackers have in common: `tracker(video, query_points_tyx)` for clips, `step(frames, state)` for streams.

    See `Pretrained` for what it carries besides weights, `track_both_ways` for the frames before a query, and
    `trecvit.LiveTracker` for points that come and go.
    """

    config: BlocksConfig
    state_class: ClassVar[type[TrackerState]]

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

    @staticmethod
    def preprocessing_for(image_size: ImageSize) -> Preprocessing:
        """Every frame, brought to this height and width."""
        return Preprocessing(image_size=image_size, frame_stride=1)

    def forward(self, video: Video, query_points_tyx: Shaped[Tensor, "B Q 3"]) -> TrackerOutput:
        """Tracks points over whole videos.

        Args:
            video: uint8, or floating point in [0,1]. Any height and width that `patch_size` divides; points are found
                best at the size of the training videos, `preprocessing.image_size`.
            query_points_tyx: Each point's frame from 0, and its y and x in pixels of the video. An infinite frame makes
                an empty slot, which fills up a row with fewer points.

        Raises:
            InputError: for shapes, dtypes or values that are not a video or not queries in it.
        """
        self._check_shape(video)  # its pixels are checked by `step`
        if query_points_tyx.dim() == 3 and len(query_points_tyx) != len(video):
            raise InputError(f"expected queries for {len(video)} videos, got them for {len(query_points_tyx)}")
        state = self.init_state(query_points_tyx, image_size=(video.shape[3], video.shape[4]))
        return self.step(video, state)[0]

    def init_state(
        self, query_points_tyx: Shaped[Tensor, "B Q 3"], *, image_size: ImageSize | None = None
    ) -> TrackerState:
        """The state of B streams before their first frame.

        Args:
            query_points_tyx: As in `forward`. Frames are counted from the first that `step` will see, and may be any
                number of frames away. Points that are not known yet get empty slots, see `TrackerState`.
            image_size: Height and width of the frames to come, by default those of `preprocessing`.

        Raises:
            InputError: for what are no queries in pictures of this size.
        """
        size = self._image_size(image_size)
        return self.begin(*read_queries(query_points_tyx.to(self.device), size), size)

    def begin(
        self,
        query_frames: Int64[Tensor, "B Q"],
        query_points_yx: Float[Tensor, "B Q 2"],
        image_size: tuple[int, int],
    ) -> TrackerState:
        """`init_state` for queries that have been read."""
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
        """Goes on with the next frames, any number of them, of every stream.

        Feeding a video in any pieces gives the same points as `tracker(video, query_points_tyx)`.

        Args:
            frames: uint8, or floating point in [0,1]; row b belongs to stream b.
            state: What `init_state` or the last `step` returned. It is not changed.

        Returns:
            What is said of every point in these frames, and the new state.

        Raises:
            InputError: for shapes, dtypes or values that are not frames.
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
        return self._track(self._pixels(frames), state)

    def _track(self, frames: Tensor, state: TrackerState) -> tuple[TrackerOutput, TrackerState]:
        """`step` for what has been checked, frames in [0,1]."""
        raise NotImplementedError


def track_both_ways(
    tracker: Tracker, video: Shaped[Tensor, "B T 3 H W"], query_points_tyx: Shaped[Tensor, "B Q 3"]
) -> TrackerOutput:
    """Tracks every point over the whole video, also in the frames before its query.

    A tracker is causal, so those are tracked in the video played backwards (as TAP-Vid's "strided" queries need it).
    Twice the work of `tracker(video, query_points_tyx)`, whose answer it keeps from each query's frame on.

    Args:
        tracker: Such as a `PointTracker`.
        video: As the tracker takes it.
        query_points_tyx: Likewise.

    Raises:
        InputError: as the tracker does.
    """
    ahead = tracker(video, query_points_tyx)
    num_frames = video.shape[1]
    if not query_points_tyx.is_floating_point():
        query_points_tyx = query_points_tyx.double()  # whole numbers have no infinity, which says that nothing is asked
    frame = query_points_tyx[..., 0]
    mirrored = torch.where(frame < num_frames, num_frames - 1 - frame, math.inf)
    back = tracker(video.flip(1), torch.cat([mirrored[..., None], query_points_tyx[..., 1:]], dim=-1))
    is_before = torch.arange(num_frames, device=frame.device) < frame[..., None]

    def join(ahead: Tensor, back: Tensor) -> Tensor:
        return torch.where(is_before.view(*is_before.shape, *[1] * (ahead.dim() - 3)), back.flip(2), ahead)

    # What one has none of, the other has none of either.
    parts: dict[str, Tensor | None] = ahead._asdict()
    del parts["similarity"]  # which is for training
    joined = {name: join(part, getattr(back, name)) for name, part in parts.items() if part is not None}
    return TrackerOutput(**joined)  # type: ignore[arg-type]


def read_queries(
    query_points_tyx: Tensor, image_size: tuple[int, int]
) -> tuple[Int64[Tensor, "B Q"], Float[Tensor, "B Q 2"]]:
    """Frames and places (y, x) of queries; `NEVER` and (0, 0) for those whose frame is infinite.

    Raises:
        InputError: unless there are three numbers per query, a whole frame >= 0 (or infinity) and a place in a picture
            of this height and width.
    """
    if query_points_tyx.dim() != 3 or query_points_tyx.shape[2] != 3:
        raise InputError(f"query_points_tyx: expected [B,Q,3] of (t, y, x), got {tuple(query_points_tyx.shape)}")
    if query_points_tyx.is_complex() or query_points_tyx.dtype == torch.bool:
        raise InputError(f"query_points_tyx: expected numbers, got {query_points_tyx.dtype}")
    # In float64 whole numbers of every size that a video has frames stay what they are.
    frames, places = query_points_tyx[..., 0].double(), query_points_tyx[..., 1:]
    never = frames == math.inf
    whole = never | ((frames >= 0) & (frames == frames.floor()))
    if not bool(whole.all()):
        raise InputError(
            f"query_points_tyx: expected t to be a frame's number from 0, or infinity for a query that may come later, "
            f"got {frames[~whole][0].item():g}"
        )
    limits = torch.tensor(image_size, device=places.device)
    inside = never | ((places >= 0) & (places <= limits)).all(dim=-1)
    if not bool(inside.all()):
        y, x = places[~inside][0].tolist()
        raise InputError(
            f"query_points_tyx: expected (t, y, x) with y in 0..{image_size[0]} and x in 0..{image_size[1]} pixels of "
            f"the frames, got y={y:g}, x={x:g}"
        )
    known_frames = frames.masked_fill(never, 0).long()
    return known_frames.masked_fill(never, NEVER), places.float().masked_fill(never[..., None], 0.0)
