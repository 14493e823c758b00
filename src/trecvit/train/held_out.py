"""Clips that a model is tested on without their classes."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import UInt8
from torch import Tensor

from trecvit.data.clips import Failure

Clips = list[UInt8[Tensor, "t 3 h w"]]


class HeldOutClips:
    """Clips by index.

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
