"""The training runs of a study: ordinary run folders, each begun, gone on with, or left as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trecvit.processes import Processes
from trecvit.train.loop import Progress, train
from trecvit.train.recipe import Recipe
from trecvit.train.run_folder import TESTED, claim


def train_once(
    recipe: Recipe, folder: Path, *, processes: Processes, report: Callable[[Progress], None] = lambda _: None
) -> bool:
    """Trains what has not been trained and tested before; says whether it had been.

    Args:
        recipe: What is trained.
        folder: Its run folder.
        processes: Those that share the training, and the device.
        report: Called with every line of the log, by the first process.

    Raises:
        CheckpointError: when the folder holds a run of another recipe.
        Interrupted: after Ctrl-C or SIGTERM; called again, it goes on.
    """
    if processes.first:
        claim(folder, recipe, processes)
    done = processes.any(processes.first and (folder / TESTED).exists())
    if not done:
        train(recipe, folder, processes=processes, report=report)
    return done
