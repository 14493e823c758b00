"""Frame indices of clips and corners of crops.

`num_video_frames` is the length of the video, `num_frames` that of a clip, `stride` the step between its frames.
Indices past the end are clamped, so a video shorter than the clip repeats its last frame.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trecvit.errors import InputError

Indices = npt.NDArray[np.int64]


def clip_indices(num_video_frames: int, num_frames: int, stride: int = 1, start: int = 0) -> Indices:
    """List the frames of the clip that begins at frame `start`: `[num_frames]`, rising.

    Raises:
        InputError: A count is below 1, or `start` is not a frame of the video.
    """
    _check_counts(num_video_frames=num_video_frames, num_frames=num_frames, stride=stride)
    if not 0 <= start < num_video_frames:
        raise InputError(f"start: expected a frame from 0 to {num_video_frames - 1}, got {start}")
    return np.minimum(start + stride * np.arange(num_frames, dtype=np.int64), num_video_frames - 1)


def centre_clip(num_video_frames: int, num_frames: int, stride: int = 1) -> Indices:
    """List the frames of the clip in the middle of the video: `[num_frames]`, rising.

    Raises:
        InputError: A count is below 1.
    """
    return clip_indices(num_video_frames, num_frames, stride, _room(num_video_frames, num_frames, stride) // 2)


def evaluation_clips(num_video_frames: int, num_frames: int, stride: int = 1, num_clips: int = 4) -> Indices:
    """List the frames of clips spread evenly over the video: `[num_clips, num_frames]`, rising along both axes.

    The first clip begins with the video and the last ends with it; a single clip is in the middle.

    Raises:
        InputError: A count is below 1.
    """
    _check_counts(num_clips=num_clips)
    if num_clips == 1:
        return centre_clip(num_video_frames, num_frames, stride)[None]
    room = _room(num_video_frames, num_frames, stride)
    # Rounded half up: n / d is (2 n + d) // (2 d).
    gaps = num_clips - 1
    starts = [(2 * clip * room + gaps) // (2 * gaps) for clip in range(num_clips)]
    return np.stack([clip_indices(num_video_frames, num_frames, stride, start) for start in starts])


def spatial_crops(height_px: int, width_px: int, crop_px: int, num_crops: int) -> list[tuple[int, int]]:
    """List the corners `(top, left)` of square crops along the longer side, centred on the shorter.

    Args:
        height_px: Height of the picture.
        width_px: Width of the picture.
        crop_px: Side of the crops, at most the shorter side.
        num_crops: 1 for the centre; 3 for one end, the centre and the other end.

    Raises:
        InputError: The crop does not fit, or `num_crops` is neither 1 nor 3.
    """
    _check_counts(crop_px=crop_px)
    if crop_px > min(height_px, width_px):
        raise InputError(
            f"crop_px: expected at most the shorter side of {width_px} x {height_px} pixels, got {crop_px}"
        )
    if num_crops not in (1, 3):
        raise InputError(f"num_crops: expected 1 or 3, got {num_crops}")
    top, left = height_px - crop_px, width_px - crop_px
    if num_crops == 1:
        return [(top // 2, left // 2)]
    if height_px > width_px:
        return [(0, left // 2), (top // 2, left // 2), (top, left // 2)]
    return [(top // 2, 0), (top // 2, left // 2), (top // 2, left)]


def _room(num_video_frames: int, num_frames: int, stride: int) -> int:
    """Return the number of frames by which a clip can be shifted within the video."""
    _check_counts(num_video_frames=num_video_frames, num_frames=num_frames, stride=stride)
    return max(0, num_video_frames - ((num_frames - 1) * stride + 1))


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise InputError(f"{name}: expected 1 or more, got {count}")
