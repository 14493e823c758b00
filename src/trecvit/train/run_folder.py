"""What a run writes of itself."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from trecvit.data.clips import Failure
from trecvit.errors import CheckpointError
from trecvit.train.recipe import Recipe


def claim(folder: Path, recipe: Recipe) -> None:
    """Writes the resolved recipe and what it runs on, or checks that the folder's run is of the same recipe.

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
    path.write_text(text, encoding="utf-8")
    about = {
        "trecvit": version("trecvit"),
        "commit": _commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
    }
    (folder / "run.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def log_failures(folder: Path, step: int, failures: Sequence[Failure]) -> None:
    """Adds videos that could not be read to `failures.jsonl`."""
    if failures:
        with (folder / "failures.jsonl").open("a", encoding="utf-8") as log:
            for failure in failures:
                log.write(json.dumps({"step": step, "name": failure.name, "reason": failure.reason}) + "\n")


def _commit() -> str:
    """The commit of the package's repository, with a plus if files differ from it; nothing outside a repository."""
    try:
        where = Path(__file__).parent
        words = ["git", "-C", str(where), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
