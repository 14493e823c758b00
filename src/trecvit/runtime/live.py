"""Point tracking on a live stream: points are added and removed at any frame, at constant cost and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from trecvit.config import ImageSize, as_image_size
from trecvit.errors import InputError
from trecvit.model.tracker import PointTracker, TrackerOutput, TrackerState
from trecvit.video.frames import Image
from trecvit.video.transforms import to_whole_clip


class LivePoints(NamedTuple):
    """Positions of N points in one frame; row n belongs to `LiveTracker.ids[n]`.

    Attributes:
        points_xy: Positions in pixels of the frame, float32 [N,2].
        visible: Visibility, bool [N].
        certainty: Certainty from 0 to 1, float32 [N]; see `TrackerOutput`.
    """

    points_xy: npt.NDArray[np.float32]
    visible: npt.NDArray[np.bool_]
    certainty: npt.NDArray[np.float32]


class SlotChanges(NamedTuple):
    """Changes of a tracker's slots before its next frame.

    Attributes:
        empty_slot: Slot that has always been empty.
        freed: Slots to empty.
        placed: Slots to fill, each with x and y from 0 to 1 across the frame.
    """

    empty_slot: int
    freed: tuple[int, ...]
    placed: tuple[tuple[int, float, float], ...]

    def apply(self, state: TrackerState) -> TrackerState:
        """Return the state of one stream with these changes."""
        for slot in self.freed:
            state = state.copy_slot(self.empty_slot, slot)
        height, width = state.image_size
        for slot, x, y in self.placed:
            state = state.place(slot, torch.tensor([[x * width, y * height]], device=state.device))
        return state


class PointSlots:
    """Ids and slots of the points of one stream; the stream's state may be anywhere, alone or in a batch.

    A state of `max_points + 1` empty slots belongs to it: the last always stays empty. `add` and `remove` are recorded,
    `take_changes` returns them for the state before the next frame.

    Args:
        max_points: Maximum number of points at any time.

    Raises:
        InputError: Fewer than one point.
    """

    def __init__(self, max_points: int) -> None:
        if max_points < 1:
            raise InputError(f"max_points: expected 1 or more, got {max_points}")
        self.max_points = max_points
        self._slots: dict[int, int] = {}  # by id, in order of addition
        self._new: dict[int, tuple[float, float]] = {}  # x and y of points added since the last frame
        self._freed: list[int] = []
        self._next_id = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the points in order of addition."""
        return tuple(self._slots)

    @property
    def rows(self) -> list[int]:
        """Slots of the points, in the order of `ids`."""
        return list(self._slots.values())

    def init_state(self, tracker: PointTracker, image_size: ImageSize) -> TrackerState:
        """Return the state of one stream before its first frame, all slots empty."""
        return tracker.init_state(torch.full((1, self.max_points + 1, 3), math.inf), image_size=image_size)

    def add(self, x: float, y: float) -> int:
        """Add a point at its position in the next frame, in pixels, and return its id.

        Raises:
            InputError: There are `max_points` points already.
        """
        if len(self._slots) == self.max_points:
            raise InputError(
                f"add: all {self.max_points} points are in use; remove one, or create the tracker with more max_points"
            )
        point_id = self._next_id
        self._next_id += 1
        used = set(self._slots.values())
        self._slots[point_id] = next(slot for slot in range(self.max_points) if slot not in used)
        self._new[point_id] = (x, y)
        return point_id

    def remove(self, point_id: int) -> None:
        """Remove a point and free its slot.

        Raises:
            InputError: No point has this id.
        """
        if point_id not in self._slots:
            raise InputError(f"remove: no point has the id {point_id}; the ids are {list(self._slots)}")
        slot = self._slots.pop(point_id)
        if self._new.pop(point_id, None) is None:
            self._freed.append(slot)

    def check(self, frame_size: tuple[int, int]) -> None:
        """Raise InputError if a new point is outside a frame of this height and width."""
        for x, y in self._new.values():
            check_inside(x, y, frame_size)

    def changes(self, frame_size: tuple[int, int]) -> SlotChanges:
        """Return the changes since the last `settle`, for a next frame of this height and width."""
        height, width = frame_size
        placed = [(self._slots[point_id], x / width, y / height) for point_id, (x, y) in self._new.items()]
        return SlotChanges(self.max_points, tuple(self._freed), tuple(placed))

    def take_freed(self) -> SlotChanges:
        """Return the removals since the last `settle` alone, and record that they are part of the state."""
        freed = SlotChanges(self.max_points, tuple(self._freed), ())
        self._freed.clear()
        return freed

    def settle(self) -> None:
        """Record that the changes are part of the state."""
        self._new.clear()
        self._freed.clear()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON. Changes have to be settled."""
        return {"max_points": self.max_points, "next_id": self._next_id, "slots": list(self._slots.items())}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> PointSlots:
        """Restore the result of `to_dict`."""
        slots = cls(content["max_points"])
        slots._next_id = content["next_id"]
        slots._slots = {int(point_id): int(slot) for point_id, slot in content["slots"]}
        return slots


class LiveTracker:
    """Track up to `max_points` points, which may be added and removed at any frame.

        live = LiveTracker(trecvit.load("bootstapnext"), max_points=16)
        hand = live.add(320, 200)
        points_xy, visible, certainty = live.update(frame)     # a frame of any size; positions in its pixels

    The cost of a frame depends on `max_points` only. Empty slots are points whose query frame is in the future (the
    unknown tokens of `TAPNext`'s training), so a point added now is tracked exactly as if its query had been given at
    the start. One extra slot always stays empty; removing a point copies it over the point's slot.

    Args:
        tracker: It is not changed, and several live trackers may share it.
        max_points: Maximum number of points at any time.
        image_size: Height and width to which frames are resized, by default `tracker.preprocessing.image_size`.

    Raises:
        InputError: Fewer than one point, or a size that the patch size does not divide.
        ConfigError: `image_size` is not a size.
    """

    def __init__(self, tracker: PointTracker, max_points: int, *, image_size: ImageSize | None = None) -> None:
        self.max_points = max_points
        self._slots = PointSlots(max_points)
        self._tracker = tracker
        self._image_size = tracker.preprocessing.image_size if image_size is None else as_image_size(image_size)
        self._state = self._slots.init_state(tracker, self._image_size)
        self._frame_size: tuple[int, int] | None = None

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the points in order of addition."""
        return self._slots.ids

    @property
    def nbytes(self) -> int:
        """Size of the state in bytes. It depends on `max_points` and `image_size` only."""
        return self._state.nbytes

    def add(self, x: float, y: float) -> int:
        """Add a point by its position in the next frame given to `update`.

        Args:
            x: Pixels from the left edge of that frame.
            y: Pixels from its upper edge.

        Returns:
            The point's id, unique in this tracker.

        Raises:
            InputError: There are `max_points` points already, or the position is outside the last frame.
        """
        if self._frame_size is not None and len(self._slots.ids) < self.max_points:
            check_inside(x, y, self._frame_size)
        return self._slots.add(x, y)

    def remove(self, point_id: int) -> None:
        """Remove a point and free its slot. The other points are not affected.

        Raises:
            InputError: No point has this id.
        """
        self._slots.remove(point_id)
        self._state = self._slots.take_freed().apply(self._state)

    def update(self, frame: Image) -> LivePoints:
        """Track all points in the next frame.

        Args:
            frame: RGB uint8 `[H, W, 3]` of any size, which may change from frame to frame.

        Returns:
            The points in this frame, in the order of `ids`.

        Raises:
            InputError: Not such a frame, or a new point lies outside it. The tracker is unchanged then.
        """
        clip = to_whole_clip(frame[None], self._image_size)
        height, width = frame.shape[:2]
        model_height, model_width = self._image_size
        self._slots.check((height, width))
        state = self._slots.changes((height, width)).apply(self._state)
        with torch.inference_mode():
            out, self._state = self._tracker.step(clip[None].to(self._tracker.device), state)
        self._slots.settle()
        self._frame_size = (height, width)
        return points_in_frame(out, self._slots.rows, (width / model_width, height / model_height))


def points_in_frame(out: TrackerOutput, rows: Sequence[int], scale_xy: tuple[float, float]) -> LivePoints:
    """Select points of a single-frame, single-stream output and scale them by `scale_xy` from the model's pixels."""
    return LivePoints(
        out.points_xy[0, rows, 0].cpu().numpy() * np.array(scale_xy, np.float32),
        out.visible[0, rows, 0].cpu().numpy(),
        out.certainty[0, rows, 0].cpu().numpy(),
    )


def check_inside(x: float, y: float, frame_size: tuple[int, int]) -> None:
    """Raise InputError unless a point is inside a frame of this height and width."""
    height, width = frame_size
    if not (0 <= x <= width and 0 <= y <= height):
        raise InputError(f"expected a point with x in 0..{width} and y in 0..{height} pixels, got x={x:g}, y={y:g}")
