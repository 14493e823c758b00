"""Batches of a training loop, and the feeds that make them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from trecvit.data.clips import Failure
from trecvit.draws import Stream, rng
from trecvit.processes import Share

_Batch = TypeVar("_Batch", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """The clips of one process in one step, the first axis of every tensor.

    Attributes:
        videos: uint8 `[B, T, 3, H, W]`.
        keys: int64 `[B]`, the identity of each clip, for random numbers of its own; None if a feed has none.
        failures: Unreadable videos, by which the batch is smaller.
    """

    videos: Tensor
    keys: Tensor | None = field(default=None, kw_only=True)
    failures: tuple[Failure, ...] = field(default=(), kw_only=True)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Arguments of the model."""
        return (self.videos,)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self: _Batch, device: torch.device) -> _Batch:
        """Copy to another device."""
        return self._with({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def split(self: _Batch, num_parts: int) -> list[_Batch]:
        """Split the clips into `num_parts`, of which some may be empty."""
        parts = {name: tensor.tensor_split(num_parts) for name, tensor in self.tensors().items()}
        return [self._with({name: chunks[part] for name, chunks in parts.items()}) for part in range(num_parts)]

    def _with(self: _Batch, tensors: Mapping[str, Any]) -> _Batch:
        return replace(self, **tensors)

    def __len__(self) -> int:
        """Clips B."""
        return len(self.videos)


@dataclass(frozen=True)
class LabelledBatch(Batch):
    """Clips and their classes.

    Attributes:
        labels: `[B]`.
    """

    labels: Tensor


BatchKind_co = TypeVar("BatchKind_co", bound=Batch, covariant=True)


class Feed(ABC, Generic[BatchKind_co]):
    """Batches by step.

    Attributes:
        labels: Names of the classes; empty without classes.
        num_steps: Steps in total.
    """

    def __init__(self, *, labels: tuple[str, ...], num_steps: int) -> None:
        self.labels = labels
        self.num_steps = num_steps

    @abstractmethod
    def batches(self, first_step: int, share: Share) -> Iterator[BatchKind_co]:
        """Yield the share of a process in each step from `first_step` to the last; step s depends on s alone."""

    @abstractmethod
    def accept(self, failed: Mapping[str, str]) -> None:
        """Check the number of unreadable videos since the start of the run, {name: reason}.

        Raises:
            DataError: for too many.
        """

    @abstractmethod
    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """Some clips, to initialise weights from."""


class Epochs:
    """Each file once per epoch, in another random order each time.

    The last files of an epoch that do not fill a batch are left out of it.

    Args:
        num_files: Number of files.
        batch_size: Files of a step.
        seed: Of the orders.

    Attributes:
        steps_per_epoch: Whole batches that the files fill.
    """

    def __init__(self, num_files: int, batch_size: int, *, seed: int) -> None:
        self.num_files, self.batch_size, self.seed = num_files, batch_size, seed
        self.steps_per_epoch = num_files // batch_size
        self._latest: tuple[int, NDArray[Any]] | None = None

    def items(self, step: int) -> list[tuple[int, int]]:
        """The epoch and the index of each file of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        chosen = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return [(epoch, int(index)) for index in chosen]

    def _order(self, epoch: int) -> NDArray[Any]:
        """The order of an epoch; the latest one is cached."""
        if self._latest is None or self._latest[0] != epoch:
            order = rng(self.seed, Stream.FILE_ORDER, epoch).permutation(self.num_files)
            self._latest = (epoch, order)
        return self._latest[1]


class Steps:
    """Sampler of batches: a process's share of the items of each step.

    Args:
        items: Items of a step.
        steps: The steps.
        share: Share of the process.
    """

    def __init__(self, items: Callable[[int], list[tuple[int, int]]], steps: range, share: Share) -> None:
        self.items, self.steps, self.share = items, steps, share

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield list(self.share.of(self.items(step)))

    def __len__(self) -> int:
        return len(self.steps)
