"""What a run writes of itself."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from trecvit.data.clips import Failure
from trecvit.errors import CheckpointError, DataError, MissingPackageError
from trecvit.files import write_text, writing
from trecvit.pretrained import CONFIG_FILE
from trecvit.processes import Processes
from trecvit.train.optimise import uses_bf16
from trecvit.train.recipe import Recipe
from trecvit.train.run_data import data_of, difference

# What is drawn of a run, in words: of its training clips, and of its tests. A run has one of each, or no test.
_EXPLAINED = "explained variance"
_LEARNT = {"accuracy": "accuracy", "average_pts_within_thresh": "δ-average", "explained": _EXPLAINED}
_TESTED = {"top1": "top-1", "average_jaccard": "average Jaccard", "explained": _EXPLAINED}
_METRICS, _VALIDATION, _FAILURES = "metrics.jsonl", "validation.jsonl", "failures.jsonl"
_RECIPE, _RUN = "recipe.json", "run.json"
_BF16 = "optimisation.bf16"
_NAMED = 3  # differing values that a message names

TESTED = Path("evaluation/result.json")
"""The test of the trained model, the last thing that a run does."""


def claim(folder: Path, recipe: Recipe, processes: Processes) -> None:
    """Writes the resolved recipe and what it began on, or checks that the folder's run is of the same recipe and data.

    A recipe with `bf16: auto` is the same as one with the value that the run has chosen.

    Raises:
        CheckpointError: when the folder holds a run of another recipe, or its data have changed since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, data = folder / _RECIPE, data_of(recipe)
    if path.exists():
        about = _about(folder)
        if "data" in about and (changed := difference(about["data"], data)):
            raise CheckpointError(
                f"{folder}: expected the data that the run began with, got other {changed}; put them back, or give "
                "another folder to train anew"
            )
        if differing := _differing(_read(path), recipe, about):
            raise CheckpointError(
                f"{path}: the folder holds a run of another recipe ({differing}); give another folder"
            )
        return
    about = {
        "date": date.today().isoformat(),
        **{name: version(name) for name in ("trecvit", "torch", "numpy", "av", "pillow")},
        "commit": _commit(),
        "python": platform.python_version(),
        "processes": processes.share.count,
        "device": processes.device.type,
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "bf16": uses_bf16(recipe.optimisation, processes.device),
        "data": data,
    }
    write_text(folder / _RUN, json.dumps(about, indent=2) + "\n")
    write_text(path, json.dumps(recipe.to_dict(), indent=2) + "\n")  # last: where it is, all that was to be said is


def as_begun(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe with what the run in a claimed folder has chosen, wherever it is continued."""
    chosen = _about(folder).get("bf16")
    if chosen is None:  # of a version that chose nothing
        chosen = _read(folder / _RECIPE)["optimisation"]["bf16"]
    return dataclasses.replace(recipe, optimisation=dataclasses.replace(recipe.optimisation, bf16=chosen))


def steps_if_finished(folder: Path, recipe: Recipe) -> int | None:
    """How many steps the folder's run has, if nothing is left to do: the model is trained, written and tested."""
    last = read_lines(folder / _METRICS)[-1:]
    written = [folder / "model" / CONFIG_FILE, *([folder / TESTED] if recipe.evaluates else [])]
    if not last or last[0]["step"] < last[0].get("num_steps", math.inf) or not all(path.exists() for path in written):
        return None
    return int(last[0]["step"])


def _about(folder: Path) -> dict[str, Any]:
    return _read(folder / _RUN) if (folder / _RUN).exists() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise CheckpointError(f"{path}: expected JSON, got something else ({exc}); give another folder") from exc
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object in JSON, got {type(content).__name__}; give another folder")
    return content


def _differing(begun: dict[str, Any], recipe: Recipe, about: Mapping[str, Any]) -> str:
    """The values in which a recipe differs from that of a run, some of them."""
    before, now = _flat(begun), _flat(json.loads(json.dumps(recipe.to_dict())))
    chosen = about.get("bf16", before.get(_BF16))
    if "auto" in (before.get(_BF16), now[_BF16]) and now[_BF16] in ("auto", chosen):
        before[_BF16] = now[_BF16]
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    words = [f"{key}: {json.dumps(before.get(key))} there, {json.dumps(now.get(key))} now" for key in keys[:_NAMED]]
    return ", ".join(words) + (f", and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def was_tested(folder: Path, step: int) -> bool:
    """Whether the validation after `step` updates is in a run's `validation.jsonl`."""
    return any(line["step"] == step for line in read_lines(folder / _VALIDATION))


class Journal:
    """The figures of a run as it goes: JSON lines, and TensorBoard's events if that is installed.

    Args:
        folder: Of the run.
        first_step: Where the run goes on; lines of later steps, which are going to be done again, are dropped.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.folder = folder
        for name in (_METRICS, _VALIDATION, _FAILURES):
            kept = [line for line in read_lines(folder / name) if line["step"] <= first_step]
            if (folder / name).exists():
                write_text(folder / name, "".join(json.dumps(line) + "\n" for line in kept))
        self._events: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard.writer import SummaryWriter

            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
        else:
            warnings.warn("no TensorBoard events: pip install 'trecvit[train]'", stacklevel=2)

    def training(self, line: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        self._add(_METRICS, "training", line)

    def validation(self, line: Mapping[str, Any]) -> None:
        """Adds a line to `validation.jsonl`."""
        self._add(_VALIDATION, "validation", line)

    def best(self, score: str) -> float:
        """The highest value of a figure in all validations so far; minus infinity if there was none."""
        return max((line[score] for line in read_lines(self.folder / _VALIDATION)), default=-math.inf)

    def failures(self, step: int, failures: Sequence[Failure]) -> None:
        """Adds videos that could not be read to `failures.jsonl`."""
        path = self.folder / _FAILURES
        with writing(path), path.open("a", encoding="utf-8") as log:
            for failure in failures:
                log.write(json.dumps({"step": step, "name": failure.name, "reason": failure.reason}) + "\n")

    def close(self) -> None:
        """Writes out what is waiting to be written."""
        if self._events is not None:
            self._events.close()

    def _add(self, name: str, kind: str, line: Mapping[str, Any]) -> None:
        path = self.folder / name
        with writing(path), path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        if self._events is not None:
            for key, value in line.items():
                if isinstance(value, float):
                    self._events.add_scalar(f"{kind}/{key}", value, line["step"])


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What a file of JSON lines holds, without a last line cut off by a killed process; nothing if there is no file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def known_failures(folder: Path) -> dict[str, str]:
    """Which videos a run could not read so far, and why."""
    return {line["name"]: line["reason"] for line in read_lines(folder / _FAILURES)}


def draw_curves(runs: Mapping[str, Path], target: Path) -> None:
    """Draws loss and what was right of one run, or of several over each other, from what their folders hold.

    Args:
        runs: Run folders by the name to write at their curves.
        target: The PNG file to write.

    Raises:
        DataError: when a folder holds no run.
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", needed_for="curves", extra="train") from error

    figure = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (name, folder) in enumerate(runs.items()):
        if not (folder / _METRICS).is_file():
            raise DataError(f"{folder}: expected a run folder, with a {_METRICS}")
        lines, colour = read_lines(folder / _METRICS), f"C{number}"
        steps = [line["step"] for line in lines]
        left.plot(steps, [line["loss"] for line in lines], color=colour, label=name)
        learnt = _the_one_in(lines[0], _LEARNT) if lines else "accuracy"
        label = f"{name}, {_LEARNT[learnt]} on training clips"
        right.plot(steps, [line[learnt] for line in lines], color=colour, alpha=0.5, label=label)
        if tested := read_lines(folder / _VALIDATION):
            score = _the_one_in(tested[0], _TESTED)
            steps, values = [line["step"] for line in tested], [line[score] for line in tested]
            right.plot(steps, values, color=colour, marker="o", label=f"{name}, {_TESTED[score]} on validation videos")
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel="share", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    with writing(target):
        figure.savefig(target, dpi=100)


def outcome(folder: Path) -> dict[str, float | int]:
    """How far a run has come: steps, last loss, the best score on the way, and that of its evaluation.

    The score is `top1`, of trackers `average_jaccard`, of autoencoders `explained`; the best is `best_top1` and so on.

    Raises:
        DataError: when the folder holds no run.
    """
    lines = read_lines(folder / _METRICS)
    if not lines:
        raise DataError(f"{folder}: expected a run folder, with a {_METRICS}")
    found = {"steps": lines[-1]["step"], "loss": lines[-1]["loss"]}
    if tested := read_lines(folder / _VALIDATION):
        score = _the_one_in(tested[0], _TESTED)
        found[f"best_{score}"] = max(line[score] for line in tested)
    if (path := folder / TESTED).exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        score = _the_one_in(result, _TESTED)
        found[score] = result[score]
    return found


def _the_one_in(line: Mapping[str, Any], names: Mapping[str, str]) -> str:
    return next(name for name in names if name in line)


def _commit() -> str:
    """The commit of the package's repository, with a plus if files differ from it; nothing outside a repository."""
    try:
        where = Path(__file__).parent
        words = ["git", "-C", str(where), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
