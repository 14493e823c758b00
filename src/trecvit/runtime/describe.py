"""What a model is and what it costs, in plain values."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trecvit.model.tapnext import TAPNext, TrackState
from trecvit.model.trecvit import TRecViT

POINTS = 64
"""With how many points the costs of trackers are told."""


def describe(model: TRecViT | TAPNext) -> dict[str, Any]:
    """Facts about a model as plain JSON values, the most asked for first.

    Floating-point operations are PyTorch's count of matrix products, two per multiply-add, for one new frame at the
    size of `preprocessing`; a tracker's are those with `POINTS` points. A model that cannot stream has no state and is
    counted over a whole clip.
    """
    height, width = model.preprocessing.image_size
    streams = isinstance(model, TAPNext) or model.config.can_stream
    facts: dict[str, Any] = {
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weight bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "GFLOP per frame": round(flops_per_frame(model) / 1e9, 3),
    }
    if streams:
        state = _tracks(model) if isinstance(model, TAPNext) else model.init_state(1)
        facts |= {"state bytes per stream": state.nbytes}
    if isinstance(model, TAPNext):
        facts |= {"costs are with": f"{POINTS} points", "input": f"frames of {height}x{width} pixels, one by one"}
    else:
        clips = f"clips of {model.preprocessing.num_frames}" + (
            "" if streams else ", whole ones only: it cannot stream"
        )
        facts |= {"input": f"frames of {height}x{width} pixels, {clips}"}
    facts |= {"preprocessing": model.preprocessing.to_dict(), "model": model.config.to_dict()}
    if isinstance(model, TRecViT):
        facts |= {"labels": list(model.labels)}
    return {**facts, "provenance": dict(model.provenance)}


def flops_per_frame(model: TRecViT | TAPNext) -> int:
    """Floating-point operations of one new frame of one stream; with temporal patches, the average over a patch.

    For a tracker with `POINTS` points, their readouts included. For a model that cannot stream, an average over a clip.
    """
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        if isinstance(model, TAPNext):
            tracker = TAPNext(model.config, preprocessing=model.preprocessing)
            frames = torch.zeros(1, 1, 3, *model.preprocessing.image_size)
            points = torch.zeros(1, 1, POINTS, model.config.blocks.width)
            features, _ = tracker._advance(frames, points, _tracks(tracker))
            tracker.coordinates(features)
            tracker.visibility(features)
            return int(counter.get_total_flops())
        shadow = TRecViT(model.config, preprocessing=model.preprocessing)
        extent = model.config.temporal_patch_size
        num_frames = extent if model.config.can_stream else model.preprocessing.num_frames // extent * extent
        frames = torch.zeros(1, num_frames, 3, *model.preprocessing.image_size)
        shadow._advance(frames, shadow.init_state(1))
        return int(counter.get_total_flops()) // num_frames


def _tracks(tracker: TAPNext) -> TrackState:
    """The state of one stream with `POINTS` points, without content."""
    return TrackState.begin(
        tracker.config.blocks,
        torch.zeros(1, POINTS, dtype=torch.int64, device="meta"),
        torch.zeros(1, POINTS, 2, device="meta"),
        image_size=tracker.preprocessing.image_size,
        dtype=tracker.dtype,
    )
