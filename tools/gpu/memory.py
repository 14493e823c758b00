"""Memory of ViViT-L and TRecViT-B as allocated, beside the paper's 12 × (32 frames) and 24 × (64)."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

from paper.efficiency import OURS, PAPER_RATIOS
from paper.video_transformers import build_baseline, build_vivit
from tools.gpu.child import Case
from tools.gpu.device import Target
from trecvit.config import model_config
from trecvit.model.trecvit import TRecViT

_FRAMES = (32, 64)
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def cases(target: Target) -> dict[str, Case]:
    """Return the cases: each model, length and dtype, ViViT-L with materialised and with fused attention."""
    made: dict[str, Case] = {}
    for (dtype_name, dtype), num_frames in product(_DTYPES.items(), _FRAMES):
        for name, fused in ((OURS, True), ("ViViT-L", True), ("ViViT-L", False)):
            attention = "fused" if fused else "materialised"
            made[f"{name} {attention} {num_frames} {dtype_name}"] = partial(
                _case, name, fused, num_frames, dtype, target
            )
    return made


def _case(name: str, fused: bool, num_frames: int, dtype: torch.dtype, target: Target) -> dict[str, Any]:
    with torch.device(target.device):
        model = _built(name, fused, num_frames, target).to(dtype)
    ours = isinstance(model, TRecViT)
    side = target.pick(224, 32)
    video = torch.rand(1, target.pick(num_frames, 2), 3, side, side, device=target.device)
    video = (video * 255).to(torch.uint8) if ours else video.to(dtype)
    found: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}

    def forward() -> None:
        with torch.no_grad():
            model(video)

    def update() -> None:
        out = model(video)
        result = out.logits if ours else out.last_hidden_state
        result.float().sum().backward()

    for kind, run, training in (("inference", forward, False), ("training", update, True)):
        try:
            found[f"{kind}_bytes"] = target.peak_bytes(partial(_in_mode, model, run, training))
        except torch.OutOfMemoryError:
            found[f"{kind}_bytes"] = None
        model.zero_grad(set_to_none=True)
    words = [f"{kind} {_gb(found[f'{kind}_bytes'])}" for kind in ("inference", "training")]
    return {"line": ", ".join(words), "paper_ratio": PAPER_RATIOS[num_frames][0], **found}


def _in_mode(model: nn.Module, run: Any, training: bool) -> None:
    model.train(training)
    run()


def _built(name: str, fused: bool, num_frames: int, target: Target) -> nn.Module:
    if name == OURS:
        small = {"width": 24, "depth": 2, "num_heads": 2, "mlp_width": 32, "head_width": 16, "image_size": (32, 32)}
        return TRecViT(model_config("base", num_classes=174, **target.pick({}, small)))
    if target.small:
        sizes = {"width": 24, "depth": 2, "num_heads": 2, "mlp_width": 32, "patch_size": 16, "num_frames": 2}
        vivit: nn.Module = build_vivit(**sizes, image_size=(32, 32))
        return vivit
    return build_baseline(name, image_size=224, num_frames=num_frames, fused=fused)


def _gb(size: int | None) -> str:
    return "out of memory" if size is None else f"{size / 1e9:.2f} GB"
