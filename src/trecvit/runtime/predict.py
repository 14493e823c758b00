"""Classifying whole videos: clips spread over the video, their probabilities averaged."""

from __future__ import annotations

import os.path
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trecvit.errors import ConfigError, InputError, VideoError
from trecvit.model.trecvit import Output, TRecViT
from trecvit.video.decode import Source, length_and_rate, probe, read_frames_at
from trecvit.video.frames import VideoInfo
from trecvit.video.sampling import evaluation_clips
from trecvit.video.transforms import to_clip


@dataclass(frozen=True)
class Prediction:
    """The answer for one video.

    Attributes:
        source: As the caller named it.
        labels: The likeliest classes, the first first.
        probs: Their probabilities, averaged over clips.
        num_video_frames: Frames of the whole video.
        num_frames_used: Frames that the model has seen, all clips together.
    """

    source: str
    labels: tuple[str, ...]
    probs: tuple[float, ...]
    num_video_frames: int
    num_frames_used: int


@torch.inference_mode()
def classify(model: TRecViT, source: Source, *, num_clips: int = 4, top_k: int = 5) -> Prediction:
    """Classifies one video.

    The clips have the length and the frame rate that the model was trained with, are spread evenly over the video and
    begin with a fresh state each; the middle of the picture is looked at.

    Args:
        model: With a head.
        source: Whatever `trecvit.video.decode.read_frames` takes, if it has an end. Files, folders and arrays have;
            an address must state its length.
        num_clips: Clips to average over; a video no longer than one clip is looked at once.
        top_k: How many classes to name.

    Raises:
        VideoError: when the video cannot be read to the end, or may have none.
        ConfigError: when the model has no head.
    """
    names = class_labels(model)
    if num_clips < 1 or top_k < 1:
        raise InputError(f"expected num_clips >= 1 and top_k >= 1, got {num_clips} and {top_k}")
    info = probe(source)
    _check_has_end(source, info)
    num_video_frames, fps = length_and_rate(source)
    plan = model.preprocessing
    stride = plan.stride_for(fps)
    if num_video_frames <= plan.num_frames * stride:
        num_clips = 1
    indices = evaluation_clips(num_video_frames, plan.num_frames, stride, num_clips)
    # Decoding to the size needed keeps the frames of all clips small, whatever the video's resolution.
    is_larger = min(info.height_px, info.width_px) > max(plan.image_size)
    images, _ = read_frames_at(source, indices.reshape(-1), short_side_px=max(plan.image_size) if is_larger else None)
    clips = to_clip(images, plan.image_size).unflatten(0, (num_clips, plan.num_frames))
    probs = torch.stack([_probs(model, clip) for clip in clips]).mean(dim=0)
    best = probs.topk(min(top_k, len(names)))
    return Prediction(
        source=info.source,
        labels=tuple(names[index] for index in best.indices.tolist()),
        probs=tuple(best.values.tolist()),
        num_video_frames=num_video_frames,
        num_frames_used=indices.size,
    )


def _check_has_end(source: Source, info: VideoInfo) -> None:
    """Raises VideoError for an address or a device that does not state how long the video is."""
    is_local = not isinstance(source, str | Path) or os.path.isfile(source) or os.path.isdir(source)
    if not is_local and info.duration_s is None and info.stated_frames is None:
        raise VideoError(
            info.source,
            "expected a video with an end, got a stream that states no length, such as a camera's; "
            "use `trecvit stream`, or download it to a file first",
        )


def class_labels(model: TRecViT) -> tuple[str, ...]:
    """The model's class names, or "class 0", "class 1" ... for weights that came without names.

    Raises:
        ConfigError: when the model has no head.
    """
    if not model.config.num_classes:
        raise ConfigError("the model has no head (num_classes = 0), so it cannot classify")
    return model.labels or tuple(f"class {number}" for number in range(model.config.num_classes))


def _probs(model: TRecViT, clip: Tensor) -> Tensor:
    out: Output = model(clip[None].to(model.device))
    assert out.probs is not None, "class_labels has refused models without a head"
    return out.probs[0].cpu()
