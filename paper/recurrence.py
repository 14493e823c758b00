"""Statistics of a trained recurrence: eigenvalues, and gates on held-out clips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from paper.results import empty_figure
from trecvit.config import ModelConfig
from trecvit.errors import ConfigError
from trecvit.model.lru import RGLRU
from trecvit.model.trecvit import TRecViT
from trecvit.train.recipe import Recipe
from trecvit.train.tasks.classify import ClassifyTask

_QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recurrence:
    """Statistics of one block with gates.

    Attributes:
        block: Its index.
        radii: Eigenvalues sigmoid(lambda), before the gate's power, in (0, 1).
        input_gate: Mean and deviation of the input gate over clips, frames, tokens and channels, in [0, 1].
        recurrence_gate: The same for the recurrence gate r; an eigenvalue's power is 8 r.
    """

    block: int
    radii: Float[Tensor, " E"]
    input_gate: tuple[float, float]
    recurrence_gate: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON values, with quantiles of the radii."""
        quantiles = np.quantile(self.radii.double().numpy(), _QUANTILES)
        return {
            "block": self.block,
            "eigenvalue_quantiles": {f"{q:g}": float(radius) for q, radius in zip(_QUANTILES, quantiles, strict=True)},
            "input_gate": dict(zip(("mean", "deviation"), self.input_gate, strict=True)),
            "recurrence_gate": dict(zip(("mean", "deviation"), self.recurrence_gate, strict=True)),
        }


def radii(lru: RGLRU) -> Float[Tensor, " E"]:
    """Compute sigmoid(lambda) of a block's channels: the eigenvalues at recurrence gate 1/c."""
    return torch.sigmoid(-lru.a_param.detach().float()).cpu()


@torch.inference_mode()
def look_at(model: TRecViT, clips: Sequence[UInt8[Tensor, "T 3 H W"]]) -> list[Recurrence]:
    """Measure eigenvalues and gates of each block.

    Args:
        model: A model with gated recurrences.
        clips: Clips to run it on, one after the other.

    Raises:
        ConfigError: when the model has no gates, or there is no clip.
    """
    lrus = [module for module in model.modules() if isinstance(module, RGLRU)]
    if not lrus or not clips:
        raise ConfigError(
            f"expected a model with gates and at least one clip, got temporal_mixer={model.config.temporal_mixer!r}, "
            f"lru_gates={model.config.lru_gates} and {len(clips)} clips"
        )
    sums = {gate: torch.zeros(3, dtype=torch.float64) for lru in lrus for gate in (lru.input_gate, lru.a_gate)}
    hooks = [gate.register_forward_hook(partial(_add, of_gate)) for gate, of_gate in sums.items()]
    try:
        for clip in clips:
            model.eval()(clip[None].to(model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return [
        Recurrence(
            block=index,
            radii=radii(lru),
            input_gate=_mean_and_deviation(sums[lru.input_gate]),
            recurrence_gate=_mean_and_deviation(sums[lru.a_gate]),
        )
        for index, lru in enumerate(lrus)
    ]


def held_out(recipe: Recipe, count: int) -> list[UInt8[Tensor, "T 3 H W"]]:
    """Read the middle clip of `count` validation videos, spread evenly over the list.

    Raises:
        DataError: when none is readable.
    """
    assert isinstance(recipe.task, ClassifyTask), "a study's recipe classifies"
    clips, _ = recipe.task.clips.held_out(recipe, count=count, seed=0).read()
    return clips


def draw_eigenvalues(of_seeds: Sequence[Sequence[Recurrence]], config: ModelConfig, target: Path) -> None:
    """Draw histograms of sigmoid(lambda), a panel per block, over all seeds; dashed: the initial distribution."""
    figure, panels = _panels(len(of_seeds[0]))
    low, high = config.min_radius, config.max_radius
    for index, axes in enumerate(panels):
        trained = torch.cat([blocks[index].radii for blocks in of_seeds]).numpy()
        edges = np.linspace(min(float(trained.min()), low) - 0.01, 1.0, 41)
        axes.hist(trained, bins=edges, density=True, color="C0", alpha=0.7, label="trained")
        initial = np.linspace(low, high, 100)
        # a^2 and not a is uniform, see lru._on_the_ring.
        axes.plot(initial, 2 * initial / (high**2 - low**2), "k--", label="at the start")
        axes.set(title=f"block {index + 1}", xlabel="eigenvalue σ(λ)")
    panels[0].set_ylabel("density")
    panels[0].legend()
    figure.savefig(target, dpi=100)


def draw_gates(of_seeds: Sequence[Sequence[Recurrence]], target: Path) -> None:
    """Draw bars of each block's mean gates, with the deviation within a model; averaged over seeds."""
    figure, (axes,) = _panels(1)
    blocks = np.arange(len(of_seeds[0]))
    for side, (name, label) in ((-0.2, ("input_gate", "input gate")), (0.2, ("recurrence_gate", "recurrence gate"))):
        gates = np.array([[getattr(block, name) for block in of_seed] for of_seed in of_seeds]).mean(axis=0)
        axes.bar(blocks + 1 + side, gates[:, 0], 0.38, yerr=gates[:, 1], capsize=3, label=label)
    axes.set(xlabel="block", xticks=blocks + 1, ylabel="mean over held-out clips", ylim=(0, 1))
    axes.axhline(0.5, color="k", linestyle="--", linewidth=0.8)
    axes.legend()
    figure.savefig(target, dpi=100)


def _add(sums: Tensor, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
    gate = torch.sigmoid(output.double())
    sums += torch.tensor([gate.numel(), gate.sum(), gate.square().sum()], dtype=sums.dtype)


def _mean_and_deviation(sums: Tensor) -> tuple[float, float]:
    count, total, squares = sums.tolist()
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5


def _panels(count: int) -> tuple[Any, Any]:
    rows = -(-count // 4)
    columns = -(-count // rows)
    figure = empty_figure(max(3.2 * columns, 6), 3.2 * rows)
    return figure, figure.subplots(rows, columns, squeeze=False).flat[:count]
