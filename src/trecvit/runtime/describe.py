"""What a model is and what it costs, in plain values."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from trecvit.model.trecvit import TRecViT


def describe(model: TRecViT) -> dict[str, Any]:
    """Facts about a model as plain JSON values, the most asked for first.

    Floating-point operations are PyTorch's count of matrix products, two per multiply-add, for one new frame at the
    size of `preprocessing`.
    """
    height, width = model.preprocessing.image_size
    return {
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weight bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "GFLOP per frame": round(flops_per_frame(model) / 1e9, 3),
        "state bytes per stream": model.init_state(1).nbytes,
        "input": f"frames of {height}x{width} pixels, clips of {model.preprocessing.num_frames}",
        "preprocessing": model.preprocessing.to_dict(),
        "model": model.config.to_dict(),
        "labels": list(model.labels),
        "provenance": dict(model.provenance),
    }


def flops_per_frame(model: TRecViT) -> int:
    """Floating-point operations of one new frame of one stream; with temporal patches, the average over a patch."""
    with torch.device("meta"), torch.inference_mode():
        shadow = TRecViT(model.config, preprocessing=model.preprocessing)
        num_frames = model.config.temporal_patch_size
        frames = torch.zeros(1, num_frames, 3, *model.preprocessing.image_size)
        with FlopCounterMode(display=False) as counter:
            shadow._advance(frames, shadow.init_state(1))
    return int(counter.get_total_flops()) // num_frames
