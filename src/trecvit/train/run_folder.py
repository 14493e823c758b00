"""What a run writes of itself."""

from __future__ import annotations

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
from trecvit.files import write_text
from trecvit.processes import Processes
from trecvit.train.recipe import Recipe

# What is drawn of a run, in words: of its training clips, and of its tests. A run has one of each, or no test.
_EXPLAINED = "explained variance"
_LEARNT = {"accuracy": "accuracy", "average_pts_within_thresh": "δ-average", "explained": _EXPLAINED}
_TESTED = {"top1": "top-1", "average_jaccard": "average Jaccard", "explained": _EXPLAINED}
_METRICS, _VALIDATION, _FAILURES = "metrics.jsonl", "validation.jsonl", "failures.jsonl"


def claim(folder: Path, recipe: Recipe, processes: Processes) -> None:
    """Writes the resolved recipe and what it began on, or checks that the folder's run is of the same recipe.

    Raises:
        CheckpointError: when the folder holds a run of another recipe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.json"
    text = json.dumps(recipe.to_dict(), indent=2) + "\n"
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise CheckpointError(f"{path}: the folder holds a run of another recipe; give another folder")
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
    }
    write_text(folder / "run.json", json.dumps(about, indent=2) + "\n")
    write_text(path, text)  # last: where it is, all that was to be said is


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
        with (self.folder / _FAILURES).open("a", encoding="utf-8") as log:
            for failure in failures:
                log.write(json.dumps({"step": step, "name": failure.name, "reason": failure.reason}) + "\n")

    def close(self) -> None:
        """Writes out what is waiting to be written."""
        if self._events is not None:
            self._events.close()

    def _add(self, name: str, kind: str, line: Mapping[str, Any]) -> None:
        with (self.folder / name).open("a", encoding="utf-8") as log:
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
    if (path := folder / "evaluation" / "result.json").exists():
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
