"""Execution of a plan: every variant trained for every seed, and results beside the paper's.

Runs are ordinary run folders, `{variant}-seed{seed}`. Finished ones are reused, others resume from their last
checkpoint, so a study may be interrupted at any time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paper.plan import FROM_SCRATCH, OURS, Plan, Row, Variant, recipe_for
from paper.recurrence import Recurrence, draw_eigenvalues, draw_gates, held_out, look_at
from paper.results import empty_figure, heading
from paper.runs import train_once
from trecvit.bench.training import updates_in_turn
from trecvit.errors import ConfigError, DataError
from trecvit.model.trecvit import TRecViT
from trecvit.processes import Processes
from trecvit.train.loop import Progress
from trecvit.train.recipe import Recipe
from trecvit.train.run_folder import TESTED, outcome, read_lines

_HELD_OUT_CLIPS = 32  # that gates are averaged over
_TIMED_ROUNDS = 10


@dataclass(frozen=True, slots=True)
class Run:
    """One training run.

    Attributes:
        variant: The model.
        seed: Seed of weights, order and augmentation.
        recipe: The complete recipe.
        folder: The run folder.
    """

    variant: Variant
    seed: int
    recipe: Recipe
    folder: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Results of a variant.

    Attributes:
        name: The variant's name.
        parameters: Number of weights.
        top1: Seed -> final accuracy on all views of the validation videos, in [0, 1].
        curves: Seed -> (step, top-1 on one view) of each validation during training.
        steps_per_s: Updates per second without data loading, one number for each round of measurement.
    """

    name: str
    parameters: int
    top1: dict[int, float]
    curves: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    steps_per_s: list[float]


def runs_of(
    plan: Plan,
    recipe: str | Path,
    folder: str | Path,
    *,
    overrides: Sequence[str] = (),
    seeds: Sequence[int] = (0, 1, 2),
    num_steps: int | None = None,
) -> list[Run]:
    """List all runs of a plan, seed by seed, so that an interrupted study has results of all variants.

    Raises:
        ConfigError: see `recipe_for`.
    """
    return [
        Run(
            variant,
            seed,
            recipe_for(variant, recipe, overrides, seed=seed, num_steps=num_steps),
            Path(folder) / f"{variant.name}-seed{seed}",
        )
        for seed in seeds
        for variant in plan.variants
    ]


def require_curves(runs: Sequence[Run]) -> None:
    """Raise ConfigError unless the runs are validated during training."""
    for run in runs:
        if not run.recipe.task.validate_every:
            raise ConfigError(
                "videos.validate_every: expected more than 0, as curves need validation during training, got 0"
            )


def train_all(
    runs: Sequence[Run],
    *,
    processes: Processes | None = None,
    report: Callable[[Run, Progress], None] = lambda *_: None,
    finished: Callable[[Run, float], None] = lambda *_: None,
) -> None:
    """Train all unfinished runs.

    Args:
        runs: The runs, in this order.
        processes: Ranks that share each training, and their device.
        report: Called with a run and every line of its log.
        finished: Called with every finished run and its duration in seconds, 0 if it was finished before.

    Raises:
        CheckpointError: when a folder holds a run of another recipe.
        Interrupted: after SIGTERM; another call resumes.
    """
    processes = processes or Processes()
    for run in runs:
        start_s = time.perf_counter()
        done = train_once(run.recipe, run.folder, processes=processes, report=partial(report, run))
        if processes.first:
            finished(run, 0.0 if done else time.perf_counter() - start_s)


def measure(
    runs: Sequence[Run], *, processes: Processes | None = None, report: Callable[[int, int], None] = lambda *_: None
) -> list[Measured]:
    """Read the results of finished runs, and time the updates of all variants in turn.

    Args:
        runs: The runs of all variants and seeds.
        processes: Ranks and device of the timing.
        report: Called with the number of timing rounds done, and of all.

    Raises:
        DataError: when a run is unfinished.
    """
    for run in runs:
        if not (run.folder / TESTED).exists():
            raise DataError(
                f"{run.folder}: expected a finished run, got an unfinished one; run the study again to resume it"
            )
    measured: dict[str, Measured] = {}
    speeds = updates_in_turn(
        {run.variant.name: run.recipe for run in runs},
        num_rounds=_TIMED_ROUNDS,
        processes=processes,
        report=lambda done: report(done, _TIMED_ROUNDS + 1),  # the first is not timed
    )
    for run in runs:
        name = run.variant.name
        if name not in measured:
            with torch.device("meta"):
                parameters = sum(weight.numel() for weight in TRecViT(run.recipe.blocks).parameters())
            measured[name] = Measured(name=name, parameters=parameters, top1={}, steps_per_s=speeds[name])
        measured[name].top1[run.seed] = float(outcome(run.folder)["top1"])
        tests = read_lines(run.folder / "validation.jsonl")
        measured[name].curves[run.seed] = [(line["step"], line["top1"]) for line in tests]
    return list(measured.values())


def look_at_ours(runs: Sequence[Run]) -> list[list[Recurrence]]:
    """Measure the trained recurrences of the paper's model on held-out clips, for each seed; empty without it."""
    ours = [run for run in runs if run.variant.name == OURS]
    clips = held_out(ours[0].recipe, _HELD_OUT_CLIPS) if ours else []
    return [look_at(TRecViT.load(run.folder / "model"), clips) for run in ours]


def to_dict(
    plan: Plan,
    runs: Sequence[Run],
    measured: Sequence[Measured],
    of_seeds: Sequence[Sequence[Recurrence]],
    command: str,
) -> dict[str, Any]:
    """Convert a study's results to plain JSON values.

    Args:
        plan: The plan.
        runs: Its runs.
        measured: Their results.
        of_seeds: From `look_at_ours`.
        command: The study's command line.
    """
    by_name = {variant.name: variant for variant in measured}
    return {
        **heading(plan.name, command, scale(runs)),
        "rows": [_row(row, by_name[row.variant], _ours_of(row, plan, by_name)) for row in plan.rows],
        "recurrence": [
            {"seed": seed, "blocks": [block.to_dict() for block in blocks]}
            for seed, blocks in zip(by_name[OURS].top1 if of_seeds else [], of_seeds, strict=True)
        ],
    }


def scale(runs: Sequence[Run]) -> str:
    """Describe model, frames, steps, classes and seeds in a line."""
    ours = next((run for run in runs if run.variant.name == OURS), runs[0])
    model, clips, plan = ours.recipe.blocks, ours.recipe.preprocessing, ours.recipe.optimisation
    height, width = clips.image_size
    length = f"{plan.num_steps:,} steps" if plan.num_steps else f"{plan.epochs} epochs"
    seeds = ", ".join(str(seed) for seed in dict.fromkeys(run.seed for run in runs))
    return (
        f"width {model.width}, depth {model.depth}, {clips.num_frames} frames of {height} x {width}, {length} of "
        f"{plan.batch_size} clips, {model.num_classes} classes, seeds {seeds}"
    )


def draw(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the picture of a study's result into a folder: curves from scratch, bars of ablations."""
    if content["study"] == FROM_SCRATCH.name:
        return [draw_accuracy_curves(content["rows"], folder / "from_scratch.png")]
    return [draw_bars(content["rows"], folder / "ablations.png")]


def draw_bars(rows: Sequence[Mapping[str, Any]], target: Path) -> Path:
    """Draw a panel per table of `to_dict`'s rows: accuracy here with its deviation, beside the paper's."""
    tables: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        tables.setdefault(row["table"], []).append(row)
    figure = empty_figure(3.4 * len(tables), 4.6)
    for axes, (table, lines) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        places = np.arange(len(lines))
        here = [100 * line["top1"] for line in lines]
        deviation = [100 * (line["top1_deviation"] or 0.0) for line in lines]
        axes.bar(places - 0.2, here, 0.38, yerr=deviation, capsize=3, color="C0", label="here")
        paper = [line["paper_top1"] or 0.0 for line in lines]
        axes.bar(places + 0.2, paper, 0.38, color="0.75", label="paper")
        axes.set(title=table, ylabel="top-1, %", ylim=(0, 100))
        axes.set_xticks(places, [line["label"] for line in lines], rotation=40, ha="right")
        axes.legend()
    figure.savefig(target, dpi=100)
    return target


def draw_accuracy_curves(rows: Sequence[Mapping[str, Any]], target: Path) -> Path:
    """Draw `to_dict`'s accuracy over training, mean and deviation over the seeds."""
    figure = empty_figure(7.5, 4.6)
    axes = figure.subplots()
    for index, row in enumerate(rows):
        steps = [point["step"] for point in row["curve"]]
        mean = np.array([100 * point["top1"] for point in row["curve"]])
        deviation = np.array([100 * (point["top1_deviation"] or 0.0) for point in row["curve"]])
        axes.plot(steps, mean, color=f"C{index}", marker="o", markersize=3, label=row["label"])
        axes.fill_between(steps, mean - deviation, mean + deviation, color=f"C{index}", alpha=0.2)
    axes.set(xlabel="step", ylabel="top-1 on validation videos, %")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, dpi=100)
    return target


def draw_recurrence(runs: Sequence[Run], of_seeds: Sequence[Sequence[Recurrence]], folder: Path) -> list[Path]:
    """Draw `eigenvalues.png` and `gates.png`, unless `of_seeds` is empty."""
    if not of_seeds:
        return []
    ours = next(run for run in runs if run.variant.name == OURS)
    draw_eigenvalues(of_seeds, ours.recipe.blocks, folder / "eigenvalues.png")
    draw_gates(of_seeds, folder / "gates.png")
    return [folder / "eigenvalues.png", folder / "gates.png"]


def _row(row: Row, measured: Measured, ours: tuple[Row, Measured] | None) -> dict[str, Any]:
    """Make a row of the result: the plan's row, the measurement, and both differences from ours in the same table."""
    mean, deviation = _mean_and_deviation(list(measured.top1.values()))
    speed, speed_deviation = _mean_and_deviation(measured.steps_per_s)
    steps = [step for step, _ in next(iter(measured.curves.values()))]
    tests = [
        _mean_and_deviation([curve[place][1] for curve in measured.curves.values()]) for place in range(len(steps))
    ]
    difference = paper_difference = None
    if ours is not None:
        line, other = ours
        # Paired by seed, which decides the order of the clips.
        differences = [top1 - other.top1[seed] for seed, top1 in measured.top1.items() if seed in other.top1]
        difference = _mean_and_deviation(differences)
        if row.paper_top1 is not None and line.paper_top1 is not None:
            paper_difference = round(row.paper_top1 - line.paper_top1, 6)
    return {
        **asdict(row),
        "top1": mean,
        "top1_deviation": deviation,
        "top1_by_seed": {str(seed): top1 for seed, top1 in measured.top1.items()},
        "top1_over_ours": difference and {"mean": difference[0], "deviation": difference[1]},
        "paper_top1_over_ours": paper_difference,
        "parameters": measured.parameters,
        "steps_per_s": speed,
        "steps_per_s_deviation": speed_deviation,
        "curve": [
            {"step": step, "top1": top1, "top1_deviation": spread}
            for step, (top1, spread) in zip(steps, tests, strict=True)
        ],
    }


def _ours_of(row: Row, plan: Plan, by_name: Mapping[str, Measured]) -> tuple[Row, Measured] | None:
    """Return the paper's model in the same table, unless this row is that model."""
    lines = [other for other in plan.rows if other.table == row.table and other.variant == OURS]
    return (lines[0], by_name[OURS]) if lines and row.variant != OURS else None


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Compute the mean and the sample standard deviation, None for a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None
