"""Eigenvalues of the recurrence before and after training on memorisation (the paper's Figure 2).

The paper's "eigenvalues of the recurrent matrix" have the ranges of sigmoid(lambda), each channel's decay at recurrence
gate r = 1/c (see `paper.recurrence.radii`). At r = 1, where a channel forgets most in one frame, the decay is the c-th
power; both are in the results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paper.memoriser import Memoriser
from paper.memory_task import MemoryTask
from paper.recurrence import radii
from paper.results import empty_figure, heading, scale
from paper.runs import train_once
from trecvit.errors import ConfigError
from trecvit.model.lru import RGLRU
from trecvit.model.scan import GATE_SHARPNESS
from trecvit.processes import Processes
from trecvit.train.initialise import initial_model
from trecvit.train.networks import load_trained
from trecvit.train.recipe import Recipe, load_recipe

RANGES = (0.9, 0.6)
"""Least initial sigmoid(lambda) (Griffin's, and the paper's); the largest is the recipe's, 0.999."""

_EDGES = np.linspace(0.0, 1.0, 101)
_QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Plan of the study.

    Attributes:
        path: The recipe, with a memory.
        overrides: Overrides of its values.
        runs: Folder of the run folders, `min_radius-R/seed-N`.
    """

    path: Path
    overrides: tuple[str, ...]
    runs: Path

    def recipe(self, min_radius: float, seed: int) -> Recipe:
        """Load the recipe of one run.

        Raises:
            ConfigError: when the recipe has no memory.
        """
        words = [*self.overrides, "memory.network=trecvit", f"model.min_radius={min_radius}", f"seed={seed}"]
        plain = load_recipe(self.path, self.overrides)
        if not isinstance(plain.task, MemoryTask):
            raise ConfigError(f"{self.path}: expected a recipe with `memory`")
        return load_recipe(self.path, words)

    def folder(self, min_radius: float, seed: int) -> Path:
        """Return the run folder."""
        return self.runs / f"min_radius-{min_radius:g}" / f"seed-{seed}"


def run(
    plan: Plan, min_radius: float, seed: int, *, processes: Processes, report: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Train one model, or resume or read its run; return its rows for start and end of training.

    Raises:
        CheckpointError: when the folder holds a run of another recipe.
    """
    recipe, folder = plan.recipe(min_radius, seed), plan.folder(min_radius, seed)
    train_once(recipe, folder, processes=processes, report=lambda line: report(line.step, line.num_steps))
    torch.manual_seed(seed)  # as `train` does before it makes the initial model
    first, _ = initial_model(recipe, recipe.feed())
    rows = []
    for moment, model in (("start", first), ("end", load_trained(recipe.architecture, folder / "model"))):
        assert isinstance(model, Memoriser), "a TRecViT that memorises"
        values = torch.cat([radii(part) for part in model.modules() if isinstance(part, RGLRU)]).double().numpy()
        rows.append(
            {
                "min_radius": min_radius,
                "max_radius": recipe.blocks.max_radius,
                "seed": seed,
                "moment": moment,
                **_distribution(values),
                "at_full_gate": _distribution(values**GATE_SHARPNESS),
                "below_min_radius": float((values < min_radius - 1e-4).mean()),
            }
        )
    return rows


def _distribution(values: np.ndarray) -> dict[str, Any]:
    counts, _ = np.histogram(values, _EDGES)
    quantiles = np.quantile(values, _QUANTILES)
    return {
        "count": len(values),
        "mean": float(values.mean()),
        "bin_counts": counts.tolist(),
        "quantiles": {f"{share:g}": float(value) for share, value in zip(_QUANTILES, quantiles, strict=True)},
    }


def to_dict(plan: Plan, rows: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
    """Convert the results to plain JSON values."""
    return {
        **heading("eigenvalues", command, scale(load_recipe(plan.path, plan.overrides))),
        "recipe": plan.path.name,
        "bin_edges": _EDGES.round(2).tolist(),
        "rows": list(rows),
    }


def draw(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw a panel for each range: eigenvalues of all blocks and seeds at the start and at the end of training."""
    ranges = dict.fromkeys(row["min_radius"] for row in content["rows"])
    edges = np.array(content["bin_edges"])
    figure = empty_figure(10, 3.5)
    panels = figure.subplots(1, len(ranges), squeeze=False)[0]
    for panel, low in zip(panels, ranges, strict=True):
        for moment, label, colour in (("start", "at the start", "#c9c9c9"), ("end", "trained", "#2a6f97")):
            rows = [row for row in content["rows"] if (row["min_radius"], row["moment"]) == (low, moment)]
            counts = np.sum([row["bin_counts"] for row in rows], axis=0)
            panel.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colour, alpha=0.7, label=label)
        shown = edges[:-1][np.sum([row["bin_counts"] for row in content["rows"]], axis=0) > 0]
        panel.set(xlim=(float(shown.min()) - 0.02, 1.0), xlabel="σ(λ)", ylabel="channels")
        panel.set_title(f"initialised in [{low:g}, {content['rows'][0]['max_radius']:g}]", fontsize=10)
        panel.axvline(low, color="#8a8a8a", linestyle=":", linewidth=1)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False)
    path = folder / "eigenvalues.png"
    figure.savefig(path, dpi=130)
    return [path]
