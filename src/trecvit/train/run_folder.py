"""Records of a run: its recipe, versions and data, its log, and its curves."""

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
from trecvit.errors import CheckpointError, ConfigError, DataError, MissingPackageError
from trecvit.files import write_text, writing
from trecvit.pretrained import CONFIG_FILE
from trecvit.processes import Processes
from trecvit.train.optimise import uses_bf16
from trecvit.train.recipe import Recipe, recipe_from_dict
from trecvit.train.run_data import difference
from trecvit.train.task import Curves
from trecvit.train.tasks import TASKS

_METRICS, _VALIDATION, _FAILURES = "metrics.jsonl", "validation.jsonl", "failures.jsonl"
_RECIPE, _RUN = "recipe.json", "run.json"
_BF16 = "optimisation.bf16"
_NAMED = 3  # differing values in a message

TESTED = Path("evaluation/result.json")
"""Result of the trained model's test, the last file that a run writes."""


def claim(folder: Path, recipe: Recipe, processes: Processes) -> None:
    """Write the resolved recipe and its environment, or check that the folder's run has the same recipe and data.

    `bf16: auto` equals the value that the run has resolved it to.

    Raises:
        CheckpointError: when the folder has a run of another recipe, or its data have changed since.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, data = folder / _RECIPE, recipe.task.fingerprints()
    if path.exists():
        about = _about(folder)
        if "data" in about and (changed := difference(about["data"], data)):
            raise CheckpointError(
                f"{folder}: expected the data that the run started with, got other {changed}; restore them, or give "
                "another folder for a new run"
            )
        if differing := _differing(_read(path), recipe, about):
            raise CheckpointError(f"{path}: the folder has a run of another recipe ({differing}); give another folder")
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
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "bf16": uses_bf16(recipe.optimisation, processes.device),
        "data": data,
    }
    write_text(folder / _RUN, json.dumps(about, indent=2) + "\n")
    write_text(path, json.dumps(recipe.to_dict(), indent=2) + "\n")  # last: it marks the folder as complete


def resolved(folder: Path, recipe: Recipe) -> Recipe:
    """The recipe with the values that the run in a claimed folder has resolved; the same on any machine."""
    chosen = _about(folder).get("bf16")
    if chosen is None:  # written before `auto`
        chosen = _read(folder / _RECIPE)["optimisation"]["bf16"]
    return dataclasses.replace(recipe, optimisation=dataclasses.replace(recipe.optimisation, bf16=chosen))


def steps_if_finished(folder: Path, recipe: Recipe) -> int | None:
    """Steps of the folder's run if it is finished: the model is trained, written and tested."""
    last = read_lines(folder / _METRICS)[-1:]
    written = [folder / "model" / CONFIG_FILE, *([folder / TESTED] if recipe.task.evaluates else [])]
    if not last or last[0]["step"] < last[0].get("num_steps", math.inf) or not all(path.exists() for path in written):
        return None
    return int(last[0]["step"])


def _about(folder: Path) -> dict[str, Any]:
    return _read(folder / _RUN) if (folder / _RUN).exists() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise CheckpointError(f"{path}: expected JSON, got another format ({exc}); give another folder") from exc
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object in JSON, got {type(content).__name__}; give another folder")
    return content


def _differing(there: dict[str, Any], recipe: Recipe, about: Mapping[str, Any]) -> str:
    """Describe some of the values in which a recipe differs from a run's."""
    before, now = _flat(_with_defaults(there)), _flat(json.loads(json.dumps(recipe.to_dict())))
    chosen = about.get("bf16", before.get(_BF16))
    if "auto" in (before.get(_BF16), now[_BF16]) and now[_BF16] in ("auto", chosen):
        before[_BF16] = now[_BF16]
    keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
    words = [f"{key}: {json.dumps(before.get(key))} there, {json.dumps(now.get(key))} now" for key in keys[:_NAMED]]
    return ", ".join(words) + (f", and {len(keys) - _NAMED} more" if len(keys) > _NAMED else "")


def _with_defaults(written: dict[str, Any]) -> dict[str, Any]:
    """A run's recipe with the fields that it did not have when it was written, at their default values."""
    try:
        filled: dict[str, Any] = json.loads(json.dumps(recipe_from_dict(written).to_dict()))
    except ConfigError:  # of a later version, which is to be compared as it is
        return written
    return filled


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def was_tested(folder: Path, step: int) -> bool:
    """Whether a run's `validation.jsonl` has the validation after `step` updates."""
    return any(line["step"] == step for line in read_lines(folder / _VALIDATION))


class Journal:
    """The log of a run: JSON lines, and TensorBoard's events if that is installed.

    Args:
        folder: The run folder.
        first_step: Step from which the run starts or resumes; lines of later steps, which it repeats, are dropped.
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
        """Add a line to `metrics.jsonl`."""
        self._add(_METRICS, "training", line)

    def validation(self, line: Mapping[str, Any]) -> None:
        """Add a line to `validation.jsonl`."""
        self._add(_VALIDATION, "validation", line)

    def best(self, score: str) -> float:
        """Highest value of a figure in all validations so far; minus infinity before the first."""
        return max((line[score] for line in read_lines(self.folder / _VALIDATION)), default=-math.inf)

    def failures(self, step: int, failures: Sequence[Failure]) -> None:
        """Add unreadable videos to `failures.jsonl`."""
        path = self.folder / _FAILURES
        with writing(path), path.open("a", encoding="utf-8") as log:
            for failure in failures:
                log.write(json.dumps({"step": step, "name": failure.name, "reason": failure.reason}) + "\n")

    def close(self) -> None:
        """Flush and close TensorBoard's file."""
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
    """Read a file of JSON lines, without a last line cut off by a killed process; empty without a file."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def failures_so_far(folder: Path) -> dict[str, str]:
    """A run's unreadable videos with the reasons."""
    return {line["name"]: line["reason"] for line in read_lines(folder / _FAILURES)}


def draw_curves(runs: Mapping[str, Path], target: Path) -> None:
    """Draw loss and figures of one run, or of several over each other.

    Args:
        runs: Run folders by the name for their curves.
        target: The PNG file to write.

    Raises:
        DataError: when a folder has no run.
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", needed_for="curves", extra="train") from error

    figure = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (name, folder) in enumerate(runs.items()):
        if not (folder / _METRICS).is_file():
            raise DataError(f"{folder}: expected a run folder, with a {_METRICS}")
        lines, colour = read_lines(folder / _METRICS), f"C{index}"
        steps = [line["step"] for line in lines]
        left.plot(steps, [line["loss"] for line in lines], color=colour, label=name)
        for curves in _curves():
            if lines and curves.training in lines[0]:
                label = f"{name}, {curves.training_label} on training clips"
                right.plot(steps, [line[curves.training] for line in lines], color=colour, alpha=0.5, label=label)
        tests = read_lines(folder / _VALIDATION)
        if score := score_in(tests[0] if tests else {}):
            steps, values = [line["step"] for line in tests], [line[score] for line in tests]
            label = label_of(score)
            right.plot(steps, values, color=colour, marker="o", label=f"{name}, {label} on validation videos")
    left.set(xlabel="step", ylabel="training loss")
    right.set(xlabel="step", ylabel="share", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    with writing(target):
        figure.savefig(target, dpi=100)


def outcome(folder: Path) -> dict[str, float | int]:
    """Summarise a run: steps, last loss, the best score during training, and that of the trained model.

    The score is `top1`, of trackers `average_jaccard`, of autoencoders `explained`; the best is `best_top1` and so on.

    Raises:
        DataError: when the folder has no run.
    """
    lines = read_lines(folder / _METRICS)
    if not lines:
        raise DataError(f"{folder}: expected a run folder, with a {_METRICS}")
    summary = {"steps": lines[-1]["step"], "loss": lines[-1]["loss"]}
    tests = read_lines(folder / _VALIDATION)
    if score := score_in(tests[0] if tests else {}):
        summary[f"best_{score}"] = max(line[score] for line in tests)
    if (path := folder / TESTED).exists():
        result = json.loads(path.read_text(encoding="utf-8"))
        if score := score_in(result):
            summary[score] = result[score]
    return summary


def score_in(figures: Mapping[str, Any], prefix: str = "") -> str:
    """The score among a test's figures, whose names may have a prefix; empty if there is none."""
    return next((curves.test for curves in _curves() if f"{prefix}{curves.test}" in figures), "")


def label_of(score: str) -> str:
    """A score's name for people: "top-1", "average Jaccard" or "explained variance"."""
    return next(curves.test_label for curves in _curves() if curves.test == score)


def pictures_of(folder: Path) -> list[Path]:
    """List a run's pictures: its curves, the confusion matrix of its test, and an autoencoder's folder of them."""
    names = ("curves.png", "evaluation/confusion.png", "pictures")
    return [folder / name for name in names if (folder / name).exists()]


def _curves() -> list[Curves]:
    """Those of all tasks, each once."""
    return list(dict.fromkeys(task.curves for task in TASKS.values()))


def _commit() -> str:
    """The commit of the package's repository, with a plus if files differ from it; empty outside a repository."""
    try:
        where = Path(__file__).parent
        words = ["git", "-C", str(where), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
