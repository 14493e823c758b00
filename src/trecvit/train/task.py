"""The interface of a task: everything in which runs of the training loop differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from trecvit.config import Architecture, ModelConfig
from trecvit.errors import ConfigError
from trecvit.train.feed import Batch, Feed
from trecvit.train.objective import Objective
from trecvit.train.sections import Settings


class Curves(NamedTuple):
    """Figures of a run that are drawn.

    Attributes:
        training: Name in `metrics.jsonl`.
        training_label: Legend.
        test: Name in `validation.jsonl` and `evaluation/result.json`; higher is better.
        test_label: Legend.
    """

    training: str
    training_label: str
    test: str
    test_label: str


class Task(ABC):
    """A task to train for, as the sections of a recipe describe it; see `trecvit.train.tasks` for the table.

    Attributes:
        sections: Keys of the recipe that the task reads.
        curves: What is drawn of its runs.
        trains_tracker: Whether `model` is a point tracker's.
    """

    sections: ClassVar[tuple[str, ...]]
    curves: ClassVar[Curves]
    trains_tracker: ClassVar[bool] = False
    can_freeze: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def from_sections(cls, sections: Mapping[str, Any], settings: Settings) -> Task:
        """Read the task's sections of a recipe, whose other ones are None.

        Raises:
            ConfigError: for unknown keys, with the nearest one, and for impossible values.
        """

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The task's sections as plain JSON values."""

    def check(self, settings: Settings) -> None:
        """Raises ConfigError for settings that do not fit the task."""
        if isinstance(settings.model, ModelConfig) == self.trains_tracker:
            raise ConfigError("a model with `blocks` is a tracker: expected `tracks` for it, and for no other model")
        if settings.optimisation.frozen_blocks and not self.can_freeze:
            raise ConfigError(
                "optimisation.frozen_blocks: expected 0 for this task, only classification freezes blocks"
            )

    @property
    @abstractmethod
    def origin(self) -> str:
        """Path of the training data; empty for the synthetic world."""

    @property
    @abstractmethod
    def evaluates(self) -> bool:
        """Whether there is data to test the trained model on."""

    @property
    @abstractmethod
    def validate_every(self) -> int:
        """Steps between two tests during training; 0: none."""

    def architecture(self, settings: Settings) -> Architecture:
        """Configuration of the network that is trained."""
        return settings.model

    @abstractmethod
    def feed(self, settings: Settings) -> Feed[Batch]:
        """The training batches.

        Raises:
            DataError: when the data cannot be read or do not fill one batch.
        """

    @abstractmethod
    def objective(self, settings: Settings) -> Objective[Any, Any]:
        """Loss and tests; opens the data to test on.

        Raises:
            DataError: when these data cannot be read.
        """

    @abstractmethod
    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Summaries of the files that a run reads, see `trecvit.train.run_data`."""

    @abstractmethod
    def untested(self) -> Task:
        """The same task without data to test on."""
