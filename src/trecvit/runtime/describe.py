"""Facts about a model: architecture, size, cost."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trecvit.model.tracker import PointTracker, TrackerState
from trecvit.model.trecvit import TRecViT

POINTS = 64
"""Number of points for which the costs of trackers are given."""


def describe(model: TRecViT | PointTracker) -> dict[str, Any]:
    """Describe a model in plain JSON values, the most useful first.

    Floating-point operations are PyTorch's count for matrix multiplications, two per multiply-add, for one new frame
    at the size of `preprocessing`; for a tracker with `POINTS` points. A model that cannot stream has no state and is
    counted over a whole clip.
    """
    height, width = model.preprocessing.image_size
    streams = isinstance(model, PointTracker) or model.config.can_stream
    facts: dict[str, Any] = {
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weight bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "GFLOP per frame": round(flops_per_frame(model) / 1e9, 3),
    }
    if streams:
        state = _tracks(model) if isinstance(model, PointTracker) else model.init_state(1)
        facts |= {"state bytes per stream": state.nbytes}
    if isinstance(model, PointTracker):
        facts |= {"costs are with": f"{POINTS} points", "input": f"single frames of {height}x{width} pixels"}
    else:
        clips = f"clips of {model.preprocessing.num_frames}" + ("" if streams else "; cannot stream")
        facts |= {"input": f"frames of {height}x{width} pixels, {clips}"}
    facts |= {"preprocessing": model.preprocessing.to_dict(), "model": model.config.to_dict()}
    if isinstance(model, TRecViT):
        facts |= {"labels": list(model.labels)}
    return {**facts, "provenance": dict(model.provenance)}


def flops_per_frame(model: TRecViT | PointTracker, *, num_points: int = POINTS) -> int:
    """Count floating-point operations per frame of one stream; with temporal patches, the mean over a patch.

    A tracker is counted with `num_points` points, readouts included; a model that cannot stream by the mean over a
    clip.
    """
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        if isinstance(model, PointTracker):
            tracker = type(model)(model.config, preprocessing=model.preprocessing)
            tracker.step(torch.zeros(1, 1, 3, *model.preprocessing.image_size), _tracks(tracker, num_points))
            return int(counter.get_total_flops())
        shadow = TRecViT(model.config, preprocessing=model.preprocessing)
        extent = model.config.temporal_patch_size
        num_frames = extent if model.config.can_stream else model.preprocessing.num_frames // extent * extent
        frames = torch.zeros(1, num_frames, 3, *model.preprocessing.image_size)
        shadow.engine(frames, shadow.init_state(1))
        return int(counter.get_total_flops()) // num_frames


def _tracks(tracker: PointTracker, num_points: int = POINTS) -> TrackerState:
    """The state of one stream with `num_points` points, on the meta device."""
    queries = torch.zeros(1, num_points, dtype=torch.int64, device="meta"), torch.zeros(1, num_points, 2, device="meta")
    return tracker.begin(*queries, tracker.preprocessing.image_size)
