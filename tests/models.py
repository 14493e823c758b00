"""Small models and videos for the tests, on the device that TRECVIT_TEST_DEVICE names, by default the CPU."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from trecvit.config import ModelConfig
from trecvit.model.local_tracker import LocalTracker, LocalTrackerConfig
from trecvit.model.readout_tracker import ReadoutTracker, ReadoutTrackerConfig
from trecvit.model.readouts import PointReadoutConfig
from trecvit.model.tapnext import TAPNext, TrackerConfig
from trecvit.model.tracker import PointTracker, TrackerOutput, TrackerState
from trecvit.model.trecvit import TRecViT

DEVICE = torch.device(os.environ.get("TRECVIT_TEST_DEVICE", "cpu"))

TINY = {
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_width": 24,
    "patch_size": 8,
    "image_size": (16, 24),
    "head_width": 12,
    "num_classes": 5,
}

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "wide_lru_mean_pooling": {"lru_multiplier": 2, "pooling": "mean"},
    "no_conv_fixed_positions": {"conv_width": 0, "positions": "sincos2d"},
    "conv_of_one_tap": {"conv_width": 1},
    "long_conv": {"conv_width": 7},
    "complex": {"lru_complex": True},
    "temporal_mlp": {"temporal_mlp": True},
    "no_temporal_part": {"temporal_mixer": "none"},
    "lstm": {"temporal_mixer": "lstm"},
    "full_conv": {"temporal_mixer": "conv", "conv_width": 3},
    "no_gates": {"lru_gates": False},
    "no_skip": {"temporal_skip": False},
    "pairs_of_frames": {"temporal_patch_size": 2},
    "patches_of_four_frames": {"temporal_patch_size": 4, "pooling": "mean"},
    "patches_of_eight_frames": {"temporal_patch_size": 8},
    "no_head": {"num_classes": 0},
}


def tiny_model(**overrides: Any) -> TRecViT:
    """Build the same small model every time; no weight has its initial value, so that an unread weight shows."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        model = TRecViT(ModelConfig(**{**TINY, **overrides}))
        for name, parameter in model.named_parameters():
            scale = 0.5 if name.endswith("conv.weight") else 0.1
            parameter.add_(scale * torch.randn(parameter.shape))
    return model.eval().to(DEVICE)


def random_video(batch_size: int = 2, num_frames: int = 6, height: int = 16, width: int = 24, seed: int = 0) -> Tensor:
    """Draw uint8 noise [B,T,3,H,W]."""
    generator = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (batch_size, num_frames, 3, height, width), dtype=torch.uint8, generator=generator)
    return video.to(DEVICE)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Divide the largest difference by the largest expected value."""
    assert got.shape == expected.shape
    wide = torch.complex128 if expected.is_complex() else torch.float64
    got, expected = got.detach().to("cpu", wide), expected.detach().to("cpu", wide)
    if not expected.numel():
        return 0.0
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def tiny_tracker(**overrides: Any) -> TAPNext:
    """Build the same small TAPNext every time, for frames of 32 x 32; its raster is finer than its patches."""
    blocks = {**TINY, "image_size": (32, 32), "temporal_mlp": True, "pooling": "mean", "num_classes": 0}
    del blocks["head_width"]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        config = TrackerConfig(blocks=ModelConfig(**blocks), raster_px=64, readout_width=12)
        tracker = TAPNext(config.replace(**overrides))
        for name, parameter in tracker.named_parameters():
            scale = 0.5 if name.endswith("conv.weight") else 0.1
            parameter.add_(scale * torch.randn(parameter.shape))
    return tracker.eval().to(DEVICE)


def tiny_readout_tracker(pooling: str = "cls", **readout: int) -> ReadoutTracker:
    """Build the same small tracker of the paper's kind every time, for frames of 32 x 32."""
    blocks = {**TINY, "image_size": (32, 32), "pooling": pooling, "num_classes": 0}
    sizes = {"num_bases": 5, "width": 24, "depth": 2, "num_heads": 3, "mlp_width": 20, **readout}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        tracker = ReadoutTracker(
            ReadoutTrackerConfig(blocks=ModelConfig(**blocks), readout=PointReadoutConfig(**sizes))
        )
        for name, parameter in tracker.named_parameters():
            scale = 0.5 if name.endswith("conv.weight") else 0.1
            parameter.add_(scale * torch.randn(parameter.shape))
    return tracker.eval().to(DEVICE)


def tiny_local_tracker() -> LocalTracker:
    """Build the same small tracker that matches locally every time, for frames of 32 x 32."""
    blocks = {**TINY, "image_size": (32, 32), "pooling": "mean", "num_classes": 0}
    del blocks["head_width"]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(7)
        widths = {"fine_width": 4, "middle_width": 6, "coarse_width": 8}
        tracker = LocalTracker(LocalTrackerConfig(blocks=ModelConfig(**blocks), **widths))
        for parameter in tracker.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return tracker.eval()


def beginning_local_tracker(image_size: tuple[int, int]) -> LocalTracker:
    """Build a tracker before its training, without random corrections: it matches gradients and colours."""
    blocks = {**TINY, "image_size": image_size, "pooling": "mean", "num_classes": 0}
    del blocks["head_width"]
    with torch.random.fork_rng():
        torch.manual_seed(7)
        tracker = LocalTracker(LocalTrackerConfig(blocks=ModelConfig(**blocks)))
    for linear in (tracker.out_of_token, tracker.out_of_refinement):
        torch.nn.init.zeros_(linear.weight)
    return tracker.eval()


def of_each_part(function: Callable[..., Tensor], *outs: TrackerOutput) -> TrackerOutput:
    """Apply a function to each part of some outputs; absent parts stay absent."""
    parts = {name: [getattr(out, name) for out in outs] for name in TrackerOutput._fields}
    return TrackerOutput(**{name: function(*some) for name, some in parts.items() if some[0] is not None})


def run_tracker(
    tracker: PointTracker, video: Tensor, state: TrackerState, places: list[int]
) -> tuple[TrackerOutput, TrackerState]:
    """Stream a video cut at these frames; return the output over all frames, and the last state."""
    outs = []
    for start, end in pairwise([0, *places, video.shape[1]]):
        out, state = tracker.step(video[:, start:end], state)
        outs.append(out)
    return of_each_part(lambda *pieces: torch.cat(pieces, dim=2), *outs), state


def assert_same_tracks(got: TrackerOutput, expected: TrackerOutput, tolerance: float = 1e-5) -> None:
    """Compare two outputs; the default tolerance is that of float32 sums in another order."""
    for name, part in expected._asdict().items():
        assert (getattr(got, name) is None) == (part is None), name
        if part is not None:
            assert relative_error(getattr(got, name), part) < tolerance, name


def unchecked(kind: type[Any], **fields: Any) -> Any:
    """`kind(**fields)` without the tests' own type checks, which refuse wrong types before `kind` can."""
    made = object.__new__(kind)
    inspect.unwrap(kind.__init__)(made, **fields)
    return made
