"""Baselines of point tracking: static points, and pyramidal Lucas–Kanade optical flow.

Both are callables as `trecvit.model.tracker.Tracker` describes: video uint8 `[B,T,3,H,W]` and queries (frame, y, x)
`[B,Q,3]` -> `TrackerOutput`, in pixels of the video.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trecvit.errors import MissingPackageError
from trecvit.model.tracker import TrackerOutput


def static_points(video: Tensor, query_points_tyx: Tensor) -> TrackerOutput:
    """Predict that every point stays at its query's place and is always visible."""
    batch_size, num_frames = video.shape[:2]
    points_xy = query_points_tyx[..., [2, 1]].float()[:, :, None].expand(-1, -1, num_frames, -1)
    always = torch.ones(batch_size, query_points_tyx.shape[1], num_frames, device=video.device)
    return TrackerOutput(points_xy, always, always)


class LucasKanade:
    """OpenCV's pyramidal Lucas–Kanade flow (Bouguet 2000) from frame to frame, with a forward-backward check.

    A point is lost when the flow fails, when the backward flow does not return to its start, or when it leaves the
    frame. A lost point stays at its last place and is hidden from then on: flow alone cannot recover it.

    Args:
        window_px: Side of the matched square, an odd number of pixels; OpenCV's default.
        pyramid_levels: Halvings of the picture, for large motions; OpenCV's default.
        return_within_px: Largest distance between a point and the end of its forward and backward flow.

    Raises:
        MissingPackageError: when OpenCV is not installed.
    """

    def __init__(self, *, window_px: int = 21, pyramid_levels: int = 3, return_within_px: float = 1.0) -> None:
        try:
            import cv2
        except ImportError as error:
            raise MissingPackageError(
                "opencv-python-headless", needed_for="the Lucas–Kanade baseline", extra="flow"
            ) from error
        self._cv2: Any = cv2
        self._settings = {
            "winSize": (window_px, window_px),
            "maxLevel": pyramid_levels,
            "criteria": (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.01),
        }
        self.return_within_px = return_within_px

    def __call__(self, video: Tensor, query_points_tyx: Tensor) -> TrackerOutput:
        """Track every point from its query's frame to the end."""
        rows = [
            self._follow(frames.permute(0, 2, 3, 1).cpu().numpy(), queries.double().cpu().numpy())
            for frames, queries in zip(video, query_points_tyx, strict=True)
        ]
        points_xy = torch.from_numpy(np.stack([points for points, _ in rows])).to(video.device)
        seen = torch.from_numpy(np.stack([seen for _, seen in rows])).to(video.device).float()
        return TrackerOutput(points_xy, 2 * seen - 1, seen)

    def _follow(
        self, frames: NDArray[np.uint8], queries: NDArray[np.float64]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return points `[Q,T,2]` of one video `[T,H,W,3]`, and whether each is visible `[Q,T]`."""
        greys = [self._cv2.cvtColor(np.ascontiguousarray(frame), self._cv2.COLOR_RGB2GRAY) for frame in frames]
        height, width = frames.shape[1:3]
        query_frames = np.round(queries[:, 0])
        points = np.repeat(queries[:, None, [2, 1]].astype(np.float32), len(frames), axis=1)
        seen = np.repeat((query_frames < len(frames))[:, None], len(frames), axis=1)
        for frame in range(1, len(frames)):
            started = query_frames < frame
            points[started, frame] = points[started, frame - 1]
            seen[started, frame] = seen[started, frame - 1]
            followed = np.nonzero(started & seen[:, frame - 1])[0]
            if not len(followed):
                continue
            start = points[followed, frame - 1]
            moved, tracked = self._flow(greys[frame - 1], greys[frame], start)
            returned, tracked_back = self._flow(greys[frame], greys[frame - 1], moved)
            inside = ((moved >= 0) & (moved <= (width, height))).all(axis=1)
            consistent = np.linalg.norm(returned - start, axis=1) <= self.return_within_px
            kept = tracked & tracked_back & inside & consistent
            seen[followed, frame] = kept
            points[followed[kept], frame] = moved[kept]
        return points, seen

    def _flow(
        self, grey: NDArray[np.uint8], next_grey: NDArray[np.uint8], points_xy: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the new places of points `[N,2]`, and whether the flow succeeded."""
        # OpenCV's origin is the centre of the upper left pixel, ours its corner.
        moved, status, _ = self._cv2.calcOpticalFlowPyrLK(
            grey, next_grey, points_xy[:, None] - np.float32(0.5), None, **self._settings
        )
        return moved[:, 0] + np.float32(0.5), status[:, 0] == 1
