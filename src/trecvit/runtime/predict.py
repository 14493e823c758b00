"""Classification of whole videos: probabilities averaged over evenly spaced clips."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from trecvit.config import Preprocessing
from trecvit.errors import ConfigError, InputError, VideoError
from trecvit.model.trecvit import Output, TRecViT
from trecvit.video.decode import Source, Video, open_video
from trecvit.video.frames import Image
from trecvit.video.sampling import evaluation_clips
from trecvit.video.transforms import to_clip

_MAX_KEPT_BYTES = 1 << 30  # of the frames of a stream, which can be read only once


@dataclass(frozen=True)
class Prediction:
    """The classification of one video.

    Attributes:
        source: The video, as named by the caller.
        labels: The most probable classes in descending order.
        probs: Their probabilities, averaged over clips.
        num_video_frames: Frames of the whole video.
    """

    source: str
    labels: tuple[str, ...]
    probs: tuple[float, ...]
    num_video_frames: int

    def to_dict(self, source: str) -> dict[str, Any]:
        """Return plain JSON values, under a name of the video."""
        best = [
            {"label": label, "probability": round(probability, 6)}
            for label, probability in zip(self.labels, self.probs, strict=True)
        ]
        return {"source": source, "frames": self.num_video_frames, "top": best}


@torch.inference_mode()
def classify(model: TRecViT, source: Source | Video, *, num_clips: int = 4, top_k: int = 5) -> Prediction:
    """Classify one video.

    The clips have the length and frame rate of the training clips, are evenly spaced, and start from a new state each.
    Frames are cropped to the centre.

    Args:
        model: A model with a head.
        source: Any source of `trecvit.video.decode.open_video` with an end: files, folders and arrays, and URLs that
            state their length.
        num_clips: Clips to average over; a video no longer than one clip is one clip.
        top_k: Number of classes to return.

    Raises:
        VideoError: The video cannot be read to the end, or may have none.
        ConfigError: The model has no head.
    """
    names = class_labels(model)
    if num_clips < 1 or top_k < 1:
        raise InputError(f"expected num_clips >= 1 and top_k >= 1, got {num_clips} and {top_k}")
    with open_video(source) as video:
        clips, num_video_frames = read_clips(video, model.preprocessing, num_clips)
        name = video.info.source
    probs = torch.stack([_probs(model, clip) for clip in clips]).mean(dim=0)
    best = probs.topk(min(top_k, len(names)))
    return Prediction(
        source=name,
        labels=tuple(names[index] for index in best.indices.tolist()),
        probs=tuple(best.values.tolist()),
        num_video_frames=num_video_frames,
    )


def read_clips(video: Video, plan: Preprocessing, num_clips: int) -> tuple[UInt8[Tensor, "clips T 3 h w"], int]:
    """Read evenly spaced clips, a single one of a short video; return them and the number of its frames.

    Raises:
        VideoError: The video cannot be read to the end, or may have none.
    """
    info = video.info
    _check_has_end(video)
    # Frames are resized while decoding, so that memory does not depend on the resolution of the video.
    is_larger = min(info.height_px, info.width_px) > max(plan.image_size)
    short_side_px = max(plan.image_size) if is_larger else None
    kept = _kept_frames(video, short_side_px) if video.is_stream else None
    num_video_frames, fps = (len(kept), info.rate_fps) if kept else video.length_and_rate()
    if fps is None and plan.frame_rate_fps is not None and num_video_frames > 1:
        warnings.warn(f"{info.source}: frame rate unknown, using a stride of {plan.frame_stride} frames", stacklevel=3)
    stride = plan.stride_for(fps)
    if num_video_frames <= plan.num_frames * stride:
        num_clips = 1
    indices = evaluation_clips(num_video_frames, plan.num_frames, stride, num_clips).reshape(-1)
    if kept:
        images = np.stack([kept[index] for index in indices])
    else:
        images, _ = video.frames_at(indices, short_side_px=short_side_px)
    return to_clip(images, plan.image_size).unflatten(0, (num_clips, plan.num_frames)), num_video_frames


def _kept_frames(video: Video, short_side_px: int | None) -> list[Image] | None:
    """All frames of a stream, which can be read only once; None if they exceed `_MAX_KEPT_BYTES`."""
    frames = video.frames(short_side_px=short_side_px)
    first = next(frames).image
    max_frames = max(_MAX_KEPT_BYTES // first.nbytes, 1)
    kept = [first, *(frame.image for frame in islice(frames, max_frames))]
    return kept if len(kept) <= max_frames else None


def _check_has_end(video: Video) -> None:
    """Raise a VideoError for a URL or camera that does not state the length of the video."""
    if video.is_stream and video.info.duration_s is None and video.info.stated_frames is None:
        raise VideoError(
            video.info.source,
            "expected a video with an end, got a stream without a stated length, such as a camera's; "
            "use `trecvit stream`, or download it to a file first",
        )


def class_labels(model: TRecViT) -> tuple[str, ...]:
    """Return the class names, or "class 0", "class 1", … for weights without names.

    Raises:
        ConfigError: The model has no head.
    """
    if not model.config.num_classes:
        raise ConfigError("expected a classifier, got a model with no head (num_classes=0)")
    return model.labels or tuple(f"class {number}" for number in range(model.config.num_classes))


def _probs(model: TRecViT, clip: Tensor) -> Tensor:
    out: Output = model(clip[None].to(model.device))
    assert out.probs is not None, "class_labels refuses models without a head"
    return out.probs[0].cpu()
