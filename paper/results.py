"""Common parts of all studies: result files and empty figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trecvit.errors import DataError, MissingPackageError
from trecvit.files import write_json
from trecvit.runtime.doctor import machine
from trecvit.train.recipe import Recipe


def heading(study: str, command: str, scale: str) -> dict[str, Any]:
    """Make the first values of a result file: study, command, date, machine and scale.

    Args:
        study: Name of the study.
        command: Its command line.
        scale: Model, clips and length of training in a line.
    """
    here = machine()
    return {"study": study, "command": command, "date": here["date"], "machine": here, "scale": scale}


def scale(recipe: Recipe) -> str:
    """Describe model, clips and updates of a recipe in a line."""
    blocks, clips, plan = recipe.blocks, recipe.preprocessing, recipe.optimisation
    length = f"{plan.num_steps} updates" if plan.num_steps else f"{plan.epochs} epochs"
    height, width = clips.image_size
    return (
        f"{blocks.depth} blocks of width {blocks.width}, patches of {blocks.patch_size}, clips of {clips.num_frames} "
        f"frames of {height} x {width}, {length} of {plan.batch_size} clips, {recipe.origin}"
    )


def write_result(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write a study's `result.json` atomically; create the folder if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    write_json(path, content)
    return path


def read_result(path: Path) -> dict[str, Any] | None:
    """Read a result file; None if there is none.

    Raises:
        DataError: when the file is not JSON, or holds no object.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: expected JSON, {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object with a study's results, got {type(content).__name__}")
    return content


def empty_figure(width: float, height: float) -> Any:
    """Make a matplotlib figure; sizes in inches.

    Raises:
        MissingPackageError: when matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", needed_for="pictures", extra="study") from error
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
