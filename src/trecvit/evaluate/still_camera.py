"""Point trackers on videos of a still camera: points of the background must stay where they are.

The background finds itself, without labels: places whose colours stay near their median over the whole video, some
pixels from all that moves. Of these the most textured are tracked from the first frame to the last. A camera that moves
leaves no such places, and the video is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from trecvit.data.tracked import resized_frame
from trecvit.errors import DataError
from trecvit.evaluate.tapvid import IMAGE_SIZE
from trecvit.model.tracker import Tracker, TrackerOutput
from trecvit.video.decode import read_frames

NEAR_PX = 4.0
LOST_PX = 16.0
JUMP_PX = 8.0
MIN_POINTS = 8
_NUM_POINTS = 64
_SPACING_PX = 10
_CLEARANCE_PX = 12  # between a point and all that moves
_LARGEST_CHANGE = 14.0  # in 8-bit levels, of a blurred frame from the median: noise and compression stay below
_CHANGED_SHARE = 0.01  # frames that may exceed it
_LEAST_TEXTURE = 60.0  # smaller eigenvalue of the gradients' covariance, squared levels per pixel
_SAMPLED_FRAMES = 64  # of which the median is taken


@dataclass(frozen=True, kw_only=True, slots=True)
class StillScores:
    """A tracker on the background points of one video, all in pixels of the raster of 256 x 256.

    Attributes:
        video: Its file's name.
        tracker: Its name.
        num_frames: Length of the video.
        num_points: Background points.
        within_4_px: Share of the points and frames within 4 px.
        within_4_px_last_quarter: The same in the last quarter of the frames.
        survival: Mean share of the video until a point is more than 16 px off for the first time.
        jumps_per_100_frames: Moves of more than 8 px from a frame to the next, per point.
        seen: Share of the points and frames that are predicted visible, as all are.
    """

    video: str
    tracker: str
    num_frames: int
    num_points: int
    within_4_px: float
    within_4_px_last_quarter: float
    survival: float
    jumps_per_100_frames: float
    seen: float


def still_camera_scores(
    trackers: Sequence[tuple[str, Tracker, tuple[int, int]]],
    videos: Sequence[str | Path],
    *,
    report: Callable[[int], None] = lambda _: None,
) -> list[StillScores]:
    """Score trackers on the background of each video, in every frame from its first.

    Args:
        trackers: Name, tracker and the size of the frames that it sees.
        videos: Files of a still camera.
        report: Called with the number of scores so far.

    Raises:
        DataError: A video has no textured background at rest.
        VideoError: A video cannot be read.
    """
    scores: list[StillScores] = []
    for source in videos:
        frames = [frame.image for frame in read_frames(source)]
        name = Path(source).name
        raster = np.stack([resized_frame(frame, IMAGE_SIZE) for frame in frames])
        points_xy = background_points(raster, name=name)
        for tracker_name, track, size in trackers:
            video = raster if size == IMAGE_SIZE else np.stack([resized_frame(frame, size) for frame in frames])
            scale = torch.tensor([size[1] / IMAGE_SIZE[1], size[0] / IMAGE_SIZE[0]])
            queries = F.pad((points_xy * scale).flip(-1), (1, 0))[None]
            with torch.inference_mode():
                out = track(torch.from_numpy(video).permute(0, 3, 1, 2)[None], queries)
            scores.append(_scored(name, tracker_name, points_xy, out, scale))
            report(len(scores))
    return scores


def background_points(video: UInt8[np.ndarray, "t h w 3"], *, name: str = "video") -> Float[Tensor, "q 2"]:
    """Find textured places that stay the same in all frames: (x, y) in pixels, at most 64, the most textured first.

    Args:
        video: Frames of a still camera.
        name: For messages.

    Raises:
        DataError: There are fewer than 8 such places.
    """
    grey = torch.from_numpy(video).float().mean(dim=-1)  # [T,H,W]
    blurred = F.avg_pool2d(grey[:, None], 5, stride=1, padding=2, count_include_pad=False)[:, 0]
    chosen = np.linspace(0, len(grey) - 1, min(len(grey), _SAMPLED_FRAMES)).round().astype(int)
    median = blurred[torch.from_numpy(chosen)].median(dim=0).values
    changed = ((blurred - median).abs() > _LARGEST_CHANGE).float().mean(dim=0) > _CHANGED_SHARE
    near = F.max_pool2d(changed.float()[None, None], 2 * _CLEARANCE_PX + 1, stride=1, padding=_CLEARANCE_PX)[0, 0] > 0
    texture = _texture(grey[torch.from_numpy(chosen)].median(dim=0).values)
    points_xy = _most_textured(texture, ~near & (texture > _LEAST_TEXTURE))
    if len(points_xy) < MIN_POINTS:
        raise DataError(
            f"{name}: expected {MIN_POINTS} or more textured points of a background at rest, got {len(points_xy)}; "
            "take a video of a still camera"
        )
    return points_xy


def _texture(grey: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
    """Smaller eigenvalue of the covariance of the gradients around each place (Shi and Tomasi, 1994)."""
    across = F.pad((grey[:, 2:] - grey[:, :-2]) / 2, (1, 1))
    down = F.pad((grey[2:] - grey[:-2]) / 2, (0, 0, 1, 1))
    products = torch.stack([across * across, across * down, down * down])
    xx, xy, yy = F.avg_pool2d(products[:, None], 7, stride=1, padding=3)[:, 0]
    smaller: Tensor = (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()
    return smaller


def _most_textured(texture: Float[Tensor, "h w"], allowed: Bool[Tensor, "h w"]) -> Float[Tensor, "q 2"]:
    left = torch.where(allowed, texture, 0.0)
    margin = _CLEARANCE_PX
    left[:margin], left[-margin:], left[:, :margin], left[:, -margin:] = 0.0, 0.0, 0.0, 0.0
    points: list[tuple[float, float]] = []
    while len(points) < _NUM_POINTS and left.max() > 0:
        y, x = divmod(int(left.argmax()), left.shape[1])
        points.append((x + 0.5, y + 0.5))
        left[max(y - _SPACING_PX, 0) : y + _SPACING_PX + 1, max(x - _SPACING_PX, 0) : x + _SPACING_PX + 1] = 0.0
    return torch.tensor(points).view(-1, 2)


def _scored(
    video: str, tracker: str, points_xy: Float[Tensor, "q 2"], out: TrackerOutput, scale: Float[Tensor, " 2"]
) -> StillScores:
    """Scores of a tracker's output for one video."""
    places = out.points_xy[0].float().cpu() / scale  # [Q,T,2]
    num_frames = places.shape[1]
    off_px = (places - points_xy[:, None]).norm(dim=-1)
    lost = off_px > LOST_PX
    first_lost = torch.where(lost.any(dim=1), lost.float().argmax(dim=1), num_frames)
    moves = (places[:, 1:] - places[:, :-1]).norm(dim=-1)
    near = (off_px <= NEAR_PX).float()
    return StillScores(
        video=video,
        tracker=tracker,
        num_frames=num_frames,
        num_points=len(points_xy),
        within_4_px=near.mean().item(),
        within_4_px_last_quarter=near[:, num_frames * 3 // 4 :].mean().item(),
        survival=(first_lost / num_frames).mean().item(),
        jumps_per_100_frames=100 * (moves > JUMP_PX).float().mean().item(),
        seen=out.visible[0].float().mean().item(),
    )
