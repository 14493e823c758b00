"""What the studies' results have in common: how a result file begins, and an empty picture."""

from __future__ import annotations

from typing import Any

from trecvit.errors import MissingPackageError
from trecvit.runtime.doctor import machine


def heading(study: str, command: str, scale: str) -> dict[str, Any]:
    """The first values of a result file: what was run, when, where and at which scale, for `trecvit study report`.

    Args:
        study: Its name.
        command: The command line as it was run.
        scale: Model, clips and length of training in a line.
    """
    here = machine()
    return {"study": study, "command": command, "date": here["date"], "machine": here, "scale": scale}


def empty_figure(width: float, height: float) -> Any:
    """A matplotlib figure of so many inches.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", needed_for="pictures", extra="study") from error
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
