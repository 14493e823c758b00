"""The table of tasks: a file for each, and rows for its sections of a recipe. Other packages add rows of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trecvit.errors import ConfigError
from trecvit.train.task import Task
from trecvit.train.tasks.classify import ClassifyTask
from trecvit.train.tasks.mae import MaeTask
from trecvit.train.tasks.track import TrackTask
from trecvit.train.tasks.track_streams import TrackStreamsTask

TASKS: dict[str, type[Task]] = {
    "scenes": ClassifyTask,
    "videos": ClassifyTask,
    "tracks": TrackTask,
    "track_streams": TrackStreamsTask,
    "mae": MaeTask,
}
"""Sections of a recipe by key, each with its task. A recipe's task is the one that reads all of its sections."""


def task_of(sections: Mapping[str, Any]) -> type[Task]:
    """The task of a recipe.

    Args:
        sections: Values of the keys in `TASKS`; None where the recipe has none.

    Raises:
        ConfigError: for sections of no task, or of several.
    """
    given = [name for name, value in sections.items() if value is not None]
    for name in given:
        if set(given) <= set(TASKS[name].sections):
            return TASKS[name]
    raise ConfigError(f"expected `tracks`, `scenes` or `videos`, one of them, got {' and '.join(given) or 'none'}")
