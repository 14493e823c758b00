"""Training steps of `base` on clips of 32 frames: throughput, peak memory, and share of the GPU's arithmetic."""

from __future__ import annotations

import statistics
from typing import Any

import torch

from tools.gpu.child import Case
from tools.gpu.device import NOMINAL, Target, matmul_flop_per_s
from trecvit.bench.training import updates_in_turn
from trecvit.processes import Processes
from trecvit.runtime.describe import flops_per_frame
from trecvit.train.recipe import Recipe, recipe_from_dict

_ROUNDS = 5
_SMALL = {"width": 24, "depth": 2, "num_heads": 2, "mlp_width": 32, "head_width": 16, "num_classes": 4}
# Name -> recomputation, torch.compile, clips.
_CASES: dict[str, tuple[str, bool, int]] = {
    "plain": ("nothing", False, 8),
    "plain compiled": ("nothing", True, 8),
    "cheap recomputed": ("cheap", False, 8),
    "blocks recomputed": ("blocks", False, 8),
    "plain, 16 clips": ("nothing", False, 16),
    "blocks recomputed, 32 clips": ("blocks", False, 32),
    "plain compiled, 16 clips": ("nothing", True, 16),
}


def cases(target: Target) -> dict[str, Case]:
    """Return the cases, the most important first."""
    return {name: _case(*settings, target) for name, settings in _CASES.items()}


def recipe_of(recompute: str, compiled: bool, clips: int, target: Target) -> Recipe:
    """A recipe with random clips."""
    frames, side = target.pick((32, 224), (2, 32))
    return recipe_from_dict(
        {
            "model": {"preset": "base", "image_size": side, **target.pick({}, _SMALL)},
            "preprocessing": {"num_frames": frames, "image_size": side},
            "videos": {"train": "random clips"},
            "optimisation": {
                "num_steps": _ROUNDS + 1,
                "batch_size": target.pick(clips, 2),
                "recompute": recompute,
                "bf16": True,
                "compile": compiled and not target.small,
            },
        }
    )


def _case(recompute: str, compiled: bool, clips: int, target: Target) -> Case:
    def case() -> dict[str, Any]:
        recipe = recipe_of(recompute, compiled, clips, target)
        batch_size, num_frames = recipe.optimisation.batch_size, recipe.preprocessing.num_frames
        speeds: list[float] = []

        def train() -> None:
            processes = Processes(str(target.device))
            speeds.extend(updates_in_turn({"": recipe}, num_rounds=_ROUNDS, processes=processes)[""])

        peak = target.peak_bytes(train)
        clips_per_s = statistics.median(speeds) * batch_size
        # A backward pass has twice the forward's matrix multiplications; recomputed ones are not counted.
        flop_per_s = 3.0 * flops_per_frame(_model(recipe)) * num_frames * clips_per_s
        measured = matmul_flop_per_s(target)
        name = torch.cuda.get_device_name(target.device) if target.is_cuda else ""
        nominal = next((flops for part, (_, flops) in NOMINAL.items() if part in name), None)
        peak_flops = nominal or measured
        return {
            "line": f"{clips_per_s:.1f} clips/s, {peak / 1e9:.1f} GB, {flop_per_s / peak_flops:.0%} of peak",
            "batch_size": batch_size,
            "num_frames": num_frames,
            "clips_per_s": clips_per_s,
            "peak_bytes": peak,
            "flop_per_s": flop_per_s,
            "matmul_flop_per_s": measured,
            "nominal_flop_per_s": nominal,
            "share_of_peak": flop_per_s / peak_flops,
            "share_of_matmul": flop_per_s / measured,
        }

    return case


def _model(recipe: Recipe) -> Any:
    from trecvit.config import ModelConfig
    from trecvit.model.trecvit import TRecViT

    with torch.device("meta"):
        assert isinstance(recipe.model, ModelConfig), "the recipe of a TRecViT"
        return TRecViT(recipe.model, preprocessing=recipe.preprocessing)
