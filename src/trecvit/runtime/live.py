"""Points that come and go on a live stream, tracked frame by frame at constant cost and memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from trecvit.config import ImageSize, as_image_size
from trecvit.errors import InputError
from trecvit.model.tracker import PointTracker, TrackerOutput
from trecvit.video.frames import Image
from trecvit.video.transforms import to_whole_clip


class LivePoints(NamedTuple):
    """Where N points are in one frame; row n is that of `LiveTracker.ids[n]`.

    Attributes:
        points_xy: In pixels of the frame, float32 [N,2].
        visible: Whether each is seen, bool [N].
        certainty: From 0 to 1, float32 [N]; see `TrackerOutput`.
    """

    points_xy: npt.NDArray[np.float32]
    visible: npt.NDArray[np.bool_]
    certainty: npt.NDArray[np.float32]


class LiveTracker:
    """Tracks up to `max_points` points, which may be added and removed at any frame.

        live = LiveTracker(trecvit.load("bootstapnext"), max_points=16)
        hand = live.add(320, 200)
        points_xy, visible, certainty = live.update(frame)     # a frame of any size; pixels are that frame's

    Every frame costs the same, however many points there are and however long the stream is: empty slots are carried as
    points that will be asked for later (in a `TAPNext` by the unknown tokens that stand for those in its training). So
    a point added now is tracked exactly as if its frame had been declared at the start. One slot more is carried than
    there can be points; it never has one, and a removed point's slot becomes what that one is.

    Args:
        tracker: It is not changed. Several live trackers may share it.
        max_points: How many points there may be at once.
        image_size: Height and width to which frames are brought for the model, by default
            `tracker.preprocessing.image_size`.

    Raises:
        InputError: for fewer than one point, or a size that the model's patches do not divide.
        ConfigError: for what is no size.
    """

    def __init__(self, tracker: PointTracker, max_points: int, *, image_size: ImageSize | None = None) -> None:
        if max_points < 1:
            raise InputError(f"max_points: expected 1 or more, got {max_points}")
        self.max_points = max_points
        self._tracker = tracker
        self._image_size = tracker.preprocessing.image_size if image_size is None else as_image_size(image_size)
        self._state = tracker.init_state(torch.full((1, max_points + 1, 3), math.inf), image_size=self._image_size)
        self._slots: dict[int, int] = {}  # by id, in the order in which points were added
        self._new: dict[int, tuple[float, float]] = {}  # x and y of points that no frame has been seen with
        self._frame_size: tuple[int, int] | None = None
        self._next_id = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """The points there are, in the order in which they were added."""
        return tuple(self._slots)

    @property
    def nbytes(self) -> int:
        """Size in bytes of what is remembered. It depends on `max_points` and the size of the model's frames."""
        return self._state.nbytes

    def add(self, x: float, y: float) -> int:
        """A new point: where it is in the next frame that `update` will be given.

        Args:
            x: Pixels from that frame's left edge.
            y: Pixels from its upper edge.

        Returns:
            The point's id, which no other point of this tracker ever has.

        Raises:
            InputError: when there are `max_points` points already, or for a place outside the last frame.
        """
        if len(self._slots) == self.max_points:
            raise InputError(f"add: all {self.max_points} points are in use; remove one, or begin with more max_points")
        if self._frame_size is not None:
            _check_inside(x, y, self._frame_size)
        number = self._next_id
        self._next_id += 1
        taken = set(self._slots.values())
        self._slots[number] = next(slot for slot in range(self.max_points) if slot not in taken)
        self._new[number] = (x, y)
        return number

    def remove(self, point_id: int) -> None:
        """Forgets a point; its slot may be used again. The others go on as they are.

        Raises:
            InputError: when there is no such point.
        """
        if point_id not in self._slots:
            raise InputError(f"remove: no point has the id {point_id}; there are {list(self._slots)}")
        slot = self._slots.pop(point_id)
        if self._new.pop(point_id, None) is None:
            self._state = self._state.copy_slot(self.max_points, slot)

    def update(self, frame: Image) -> LivePoints:
        """Looks at the next frame.

        Args:
            frame: uint8 `[H, W, 3]`, red green blue, of any size, which may change from frame to frame.

        Returns:
            Where every point is in it, in the order of `ids`.

        Raises:
            InputError: for another kind of frame, or when a new point lies outside it. Nothing has changed then.
        """
        clip = to_whole_clip(frame[None], self._image_size)
        height, width = frame.shape[:2]
        for x, y in self._new.values():
            _check_inside(x, y, (height, width))
        model_height, model_width = self._image_size
        state = self._state
        for number, (x, y) in self._new.items():
            # In this order, the last pixel's edge stays the last pixel's edge.
            place = torch.tensor([[x * model_width / width, y * model_height / height]], device=state.device)
            state = state.place(self._slots[number], place)
        with torch.inference_mode():
            out, self._state = self._tracker.step(clip[None].to(self._tracker.device), state)
        self._new.clear()
        self._frame_size = (height, width)
        slots = list(self._slots.values())
        return points_in_frame(out, slots, (width / model_width, height / model_height))


def points_in_frame(out: TrackerOutput, rows: Sequence[int], scale_xy: tuple[float, float]) -> LivePoints:
    """Some points of one stream in the one frame that `out` speaks of, in pixels `scale_xy` times the model's."""
    return LivePoints(
        out.points_xy[0, rows, 0].cpu().numpy() * np.array(scale_xy, np.float32),
        out.visible[0, rows, 0].cpu().numpy(),
        out.certainty[0, rows, 0].cpu().numpy(),
    )


def _check_inside(x: float, y: float, frame_size: tuple[int, int]) -> None:
    height, width = frame_size
    if not (0 <= x <= width and 0 <= y <= height):
        raise InputError(f"expected a point with x in 0..{width} and y in 0..{height} pixels, got x={x:g}, y={y:g}")
