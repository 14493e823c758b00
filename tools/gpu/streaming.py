"""Streaming: latency of a step and throughput of many streams, for each model and each way to run it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tools.gpu.child import Case
from tools.gpu.device import Target
from trecvit.accelerate.graphs import GraphEngine
from trecvit.accelerate.optimize import optimize
from trecvit.config import ModelConfig, model_config
from trecvit.model.tapnext import TAPNext, TrackerConfig
from trecvit.model.trecvit import TRecViT, VideoModel
from trecvit.runtime.describe import flops_per_frame

_CLASSIFIERS = ("base", "tiny", "small", "base_k400")
_BATCHES = {"base": (1, 8, 64, 256), "base_k400": (1, 64), "small": (1, 64, 256), "tiny": (1, 64, 256)}
_POINTS = {256: (1, 8, 32), 64: (1, 8, 32), 1024: (1, 8)}  # points of TAPNext-B: streams
_COMPILED = (("base", 64), ("base", 1), ("tiny", 1))  # models and numbers of streams


def cases(target: Target) -> dict[str, Case]:
    """Return the cases, the most important first: those that compile are the last."""
    made: dict[str, Case] = {}
    for mode in ("graphs", "eager"):
        for name in _CLASSIFIERS:
            made[f"{name} {mode}"] = _classifier(name, mode, _BATCHES[name], target)
        for points, batches in _POINTS.items():
            made[f"tapnext_b {points} points {mode}"] = _tracker(points, mode, batches, target)
    if clone := os.environ.get("TAPNET_CLONE"):
        for dtype in (torch.float32, torch.bfloat16):
            made[f"public TAPNext 256 points {dtype}".replace("torch.", "")] = _public(clone, 256, dtype, target)
    made["tapnext_b 256 points compile"] = _tracker(256, "compile", (1,), target)
    for name, size in _COMPILED:
        made[f"{name} compile {size}"] = _classifier(name, "compile", (size,), target)
    made["base eager float32"] = _classifier("base", "eager", (1, 64), target, dtype=torch.float32)
    return made


def _classifier(
    name: str, mode: str, batches: tuple[int, ...], target: Target, *, dtype: torch.dtype = torch.bfloat16
) -> Case:
    def case() -> dict[str, Any]:
        small = {"width": 24, "depth": 2, "num_heads": 2, "mlp_width": 32, "head_width": 16, "image_size": (32, 32)}
        config = model_config(name, **target.pick({}, small))
        with torch.device(target.device):
            model = TRecViT(config).eval()
        return _measured(model, mode, dtype, batches, target, lambda fast, size: fast.init_state(size))

    return case


def _tracker(points: int, mode: str, batches: tuple[int, ...], target: Target) -> Case:
    def case() -> dict[str, Any]:
        with torch.device(target.device):
            model = TAPNext(tracker_config(target)).eval()
        height, width = model.preprocessing.image_size

        def begin(fast: Any, size: int) -> Any:
            places = torch.rand(size, points, 2) * torch.tensor([height, width])
            return fast.init_state(torch.cat([torch.zeros(size, points, 1), places], dim=2))

        return _measured(model, mode, torch.bfloat16, batches, target, begin, points=points)

    return case


def tracker_config(target: Target) -> TrackerConfig:
    """TAPNext-B, or for tests of this command a small one."""
    if not target.small:
        return TrackerConfig()
    blocks = ModelConfig(
        width=24, depth=2, num_heads=2, mlp_width=32, patch_size=8, image_size=(32, 32), temporal_mlp=True,
        pooling="mean", num_classes=0,
    )  # fmt: skip
    return TrackerConfig(blocks=blocks, raster_px=64, readout_width=12)


def _measured(
    model: VideoModel,
    mode: str,
    dtype: torch.dtype,
    batches: tuple[int, ...],
    target: Target,
    begin: Callable[[Any, int], Any],
    *,
    points: int = 0,
) -> dict[str, Any]:
    """Measure one model in one mode for all numbers of streams; compiled models also with CUDA graphs."""
    counted = flops_per_frame(model, num_points=points) if points else flops_per_frame(model)  # type: ignore[arg-type]
    found: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "gflop_per_frame": counted / 1e9}
    lines = []
    if not target.is_cuda and mode in ("graphs", "compile"):  # they need a GPU, or a minute
        mode = "eager"
    fast: Any = optimize(model, dtype=dtype, mode=mode)
    for size in target.pick(batches, batches[:2]):
        try:
            found |= _of_streams(fast, size, begin, target)
            lines.append(f"{size}: {found[f'latency_ms_{size}']:.2f} ms, {found[f'frames_per_s_{size}']:.0f} frames/s")
        except torch.OutOfMemoryError:
            found[f"out_of_memory_{size}"] = True
            lines.append(f"{size}: out of memory")
            break
    if mode == "compile":
        fast.engine = GraphEngine(fast.engine)
        for size in batches:
            graphs = _of_streams(fast, size, begin, target)
            found |= {f"graphs_{name}": value for name, value in graphs.items()}
            lines.append(f"{size} with graphs: {graphs[f'latency_ms_{size}']:.2f} ms")
    return {"line": "; ".join(lines), **found}


@torch.inference_mode()
def _of_streams(fast: Any, size: int, begin: Callable[[Any, int], Any], target: Target) -> dict[str, Any]:
    frames = torch.randint(
        0, 256, (size, 1, 3, *fast.preprocessing.image_size), dtype=torch.uint8, device=target.device
    )
    state = begin(fast, size)

    def step() -> Tensor:
        nonlocal state
        out, state = fast.step(frames, state)
        result: Tensor = out[0]
        return result

    for _ in range(3):  # a graph is recorded, kernels are compiled
        first = step()
    peak = target.peak_bytes(step)
    latency_s, calls_per_s = target.latency_s(step), target.throughput(step)
    if not torch.isfinite(first).all():
        raise RuntimeError("expected finite outputs")
    return {
        f"latency_ms_{size}": latency_s * 1e3,
        f"frames_per_s_{size}": calls_per_s * size,
        f"peak_bytes_{size}": peak,
        f"state_bytes_{size}": state.nbytes,
    }


def _public(clone: str, points: int, dtype: torch.dtype, target: Target) -> Case:
    """The public PyTorch TAPNext, frame by frame; random weights take as long as trained ones."""

    def case() -> dict[str, Any]:
        from importlib import import_module

        sys.path.insert(0, clone)
        module = import_module("tapnet.tapnext.tapnext_torch")
        with torch.device(target.device):
            model = module.TAPNext(image_size=(256, 256)).eval().to(dtype)
        frame = torch.rand(1, 1, 256, 256, 3, device=target.device).to(dtype) * 2 - 1
        places = torch.rand(1, points, 2, device=target.device) * 256
        queries = torch.cat([torch.zeros(1, points, 1, device=target.device), places], dim=2).to(dtype)
        with torch.inference_mode(), torch.autocast(target.device.type, dtype, enabled=dtype != torch.float32):
            *_, state = model(video=frame, query_points=queries)

            def step() -> None:
                nonlocal state
                *_, state = model(video=frame, state=state)

            latency_ms = target.latency_s(step) * 1e3
            frames_per_s = target.throughput(step)
        return {
            "line": f"1: {latency_ms:.2f} ms, {frames_per_s:.0f} frames/s",
            "latency_ms_1": latency_ms,
            "frames_per_s_1": frames_per_s,
        }

    return case
