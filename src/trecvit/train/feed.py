"""Where a training loop gets its batches from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import UInt8
from torch import Tensor

from trecvit.data.clips import Failure
from trecvit.processes import Share


@dataclass(frozen=True)
class Batch:
    """What one process sees in one step.

    Attributes:
        videos: uint8 `[B, T, 3, H, W]`.
        labels: `[B]`.
        failures: Videos that should have been there too and could not be read. The batch is smaller by them.
    """

    videos: Tensor
    labels: Tensor
    failures: tuple[Failure, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return replace(self, videos=self.videos.to(device), labels=self.labels.to(device))


class Feed(ABC):
    """Batches by the number of the step.

    Attributes:
        labels: The names of the classes.
        num_steps: Steps in all.
    """

    def __init__(self, *, labels: tuple[str, ...], num_steps: int) -> None:
        self.labels = labels
        self.num_steps = num_steps

    @abstractmethod
    def batches(self, first_step: int, share: Share) -> Iterator[Batch]:
        """What a process sees in each step from `first_step` to the last; step s depends on nothing but s."""

    @abstractmethod
    def accept(self, failed: Mapping[str, str]) -> None:
        """Says whether training may go on although these could not be read, {name: reason}, since it began.

        Raises:
            DataError: When they are too many.
        """

    @abstractmethod
    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """Some clips, to set first weights by."""
