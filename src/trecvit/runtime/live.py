"""Point tracking on a live stream: points are added and removed at any frame, at constant cost and memory."""

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
    """Positions of N points in one frame; row n belongs to `LiveTracker.ids[n]`.

    Attributes:
        points_xy: Positions in pixels of the frame, float32 [N,2].
        visible: Visibility, bool [N].
        certainty: Certainty from 0 to 1, float32 [N]; see `TrackerOutput`.
    """

    points_xy: npt.NDArray[np.float32]
    visible: npt.NDArray[np.bool_]
    certainty: npt.NDArray[np.float32]


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
        if max_points < 1:
            raise InputError(f"max_points: expected 1 or more, got {max_points}")
        self.max_points = max_points
        self._tracker = tracker
        self._image_size = tracker.preprocessing.image_size if image_size is None else as_image_size(image_size)
        self._state = tracker.init_state(torch.full((1, max_points + 1, 3), math.inf), image_size=self._image_size)
        self._slots: dict[int, int] = {}  # by id, in order of addition
        self._new: dict[int, tuple[float, float]] = {}  # x and y of points added since the last frame
        self._frame_size: tuple[int, int] | None = None
        self._next_id = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the points in order of addition."""
        return tuple(self._slots)

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
        if len(self._slots) == self.max_points:
            raise InputError(
                f"add: all {self.max_points} points are in use; remove one, or create the tracker with more max_points"
            )
        if self._frame_size is not None:
            _check_inside(x, y, self._frame_size)
        point_id = self._next_id
        self._next_id += 1
        used = set(self._slots.values())
        self._slots[point_id] = next(slot for slot in range(self.max_points) if slot not in used)
        self._new[point_id] = (x, y)
        return point_id

    def remove(self, point_id: int) -> None:
        """Remove a point and free its slot. The other points are not affected.

        Raises:
            InputError: No point has this id.
        """
        if point_id not in self._slots:
            raise InputError(f"remove: no point has the id {point_id}; the ids are {list(self._slots)}")
        slot = self._slots.pop(point_id)
        if self._new.pop(point_id, None) is None:
            self._state = self._state.copy_slot(self.max_points, slot)

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
        for x, y in self._new.values():
            _check_inside(x, y, (height, width))
        model_height, model_width = self._image_size
        state = self._state
        for point_id, (x, y) in self._new.items():
            # Multiply before dividing: then x = width maps to model_width exactly.
            position = torch.tensor([[x * model_width / width, y * model_height / height]], device=state.device)
            state = state.place(self._slots[point_id], position)
        with torch.inference_mode():
            out, self._state = self._tracker.step(clip[None].to(self._tracker.device), state)
        self._new.clear()
        self._frame_size = (height, width)
        slots = list(self._slots.values())
        return points_in_frame(out, slots, (width / model_width, height / model_height))


def points_in_frame(out: TrackerOutput, rows: Sequence[int], scale_xy: tuple[float, float]) -> LivePoints:
    """Select points of a single-frame, single-stream output and scale them by `scale_xy` from the model's pixels."""
    return LivePoints(
        out.points_xy[0, rows, 0].cpu().numpy() * np.array(scale_xy, np.float32),
        out.visible[0, rows, 0].cpu().numpy(),
        out.certainty[0, rows, 0].cpu().numpy(),
    )


def _check_inside(x: float, y: float, frame_size: tuple[int, int]) -> None:
    height, width = frame_size
    if not (0 <= x <= width and 0 <= y <= height):
        raise InputError(f"expected a point with x in 0..{width} and y in 0..{height} pixels, got x={x:g}, y={y:g}")
