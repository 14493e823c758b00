"""Training runs of a study, in ordinary run folders."""

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
    """Train and test a recipe, or resume its run, unless the run has finished; return whether it had.

    Args:
        recipe: The recipe.
        folder: Its run folder.
        processes: Ranks that share the training, and their device.
        report: Called with every line of the log, in the first rank.

    Raises:
        CheckpointError: when the folder holds a run of another recipe.
        Interrupted: after Ctrl-C or SIGTERM; another call resumes.
    """
    if processes.first:
        claim(folder, recipe, processes)
    done = processes.any(processes.first and (folder / TESTED).exists())
    if not done:
        train(recipe, folder, processes=processes, report=report)
    return done
