"""Clips to learn from or to test on, wherever they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

from jaxtyping import UInt8
from torch import Tensor

from trecvit.data.clips import Failure
from trecvit.train.feed import Feed, LabelledBatch
from trecvit.train.sections import Settings

Clips = list[UInt8[Tensor, "t 3 h w"]]


class HeldOutClips:
    """Clips that a model is tested on.

    Args:
        source: Origin of the clips, for messages and results.
        count: Number of clips.
        read: Reads the first so many of them.

    Attributes:
        source: As given.
    """

    def __init__(self, source: str, count: int, read: Callable[[int], tuple[Clips, list[Failure]]]) -> None:
        self.source, self._count, self._read = source, count, read

    def read(self, count: int | None = None) -> tuple[Clips, list[Failure]]:
        """Read the first `count` clips, by default all, except those that cannot be read.

        Raises:
            DataError: when none can be read.
        """
        return self._read(min(self._count, count or self._count))


class ClipSource(ABC):
    """A section of the recipe with clips, that has a class for each or is used without classes.

    Attributes:
        section: Its key in the recipe.
    """

    section: ClassVar[str]

    @classmethod
    @abstractmethod
    def from_value(cls, value: Any) -> Self:
        """Read the section of a recipe.

        Raises:
            ConfigError: for unknown keys, with the nearest one, and for impossible values.
        """

    @property
    @abstractmethod
    def origin(self) -> str:
        """Path of the clips; empty for the synthetic world."""

    @property
    @abstractmethod
    def has_held_out(self) -> bool:
        """Whether there are clips to test on."""

    @abstractmethod
    def check(self, settings: Settings, *, labelled: bool) -> None:
        """Raises ConfigError for settings that do not fit the clips."""

    @abstractmethod
    def feed(self, settings: Settings, *, labelled: bool) -> Feed[LabelledBatch]:
        """Batches of the clips; without classes unless `labelled`."""

    @abstractmethod
    def held_out(self, settings: Settings, *, count: int, seed: int) -> HeldOutClips:
        """Clips to test on, without classes.

        Args:
            settings: Of the recipe.
            count: Number of clips.
            seed: Of rendered clips; other than the training clips'.
        """

    @abstractmethod
    def fingerprints(self, *, labelled: bool) -> dict[str, dict[str, Any]]:
        """Summaries of the files that a run reads, see `trecvit.train.run_data`."""

    @abstractmethod
    def untested(self) -> Self:
        """The same without clips to test on."""
