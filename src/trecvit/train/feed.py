"""Where a training loop gets its batches from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from trecvit.data.clips import Failure
from trecvit.processes import Share

_Batch = TypeVar("_Batch", bound="Batch")


@dataclass(frozen=True)
class Batch:
    """What one process sees in one step. Every tensor's first axis is the clips.

    Attributes:
        videos: uint8 `[B, T, 3, H, W]`.
        failures: Videos that should have been there too and could not be read. The batch is smaller by them.
    """

    videos: Tensor
    failures: tuple[Failure, ...] = field(default=(), kw_only=True)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the model is called with."""
        return (self.videos,)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def to(self: _Batch, device: torch.device) -> _Batch:
        """The same on another device."""
        return self._with({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def split(self: _Batch, num_parts: int) -> list[_Batch]:
        """The clips in so many parts, of which some may be empty."""
        parts = {name: tensor.tensor_split(num_parts) for name, tensor in self.tensors().items()}
        return [self._with({name: some[part] for name, some in parts.items()}) for part in range(num_parts)]

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


@dataclass(frozen=True)
class TrackBatch(Batch):
    """Clips and the tracks of Q points in each. Places are in pixels, see `trecvit.data.tracked`.

    Attributes:
        query_points_tyx: float32 `[B, Q, 3]`; the frame of an empty slot, which counts nothing, is infinite.
        tracks_xy: float32 `[B, Q, T, 2]`.
        visible: bool `[B, Q, T]`.
    """

    query_points_tyx: Tensor
    tracks_xy: Tensor
    visible: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the tracker is called with."""
        return (self.videos, self.query_points_tyx)


@dataclass(frozen=True)
class MaskedBatch(Batch):
    """Clips and what is visible of them.

    Attributes:
        visible: `[B, K]`, the numbers of the patches that are, the same in all frames of a clip.
    """

    visible: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """What the autoencoder is called with."""
        return (self.videos, self.visible)


@dataclass(frozen=True)
class MemoryBatch(Batch):
    """Clips of which a frame is to be returned.

    Attributes:
        counts: bool `[B]`, which of them count.
    """

    counts: Tensor


BatchKind_co = TypeVar("BatchKind_co", bound=Batch, covariant=True)


class Feed(ABC, Generic[BatchKind_co]):
    """Batches by the number of the step.

    Attributes:
        labels: The names of the classes, if there are any.
        num_steps: Steps in all.
    """

    def __init__(self, *, labels: tuple[str, ...], num_steps: int) -> None:
        self.labels = labels
        self.num_steps = num_steps

    @abstractmethod
    def batches(self, first_step: int, share: Share) -> Iterator[BatchKind_co]:
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


class Epochs:
    """Each of some files once per epoch, in an order of each epoch's own.

    The last files of an epoch that do not fill a batch are left out of it; the next epoch has another order.

    Args:
        num_files: How many there are.
        batch_size: Files of a step.
        seed: Of the orders.

    Attributes:
        steps_per_epoch: Whole batches that the files fill.
    """

    def __init__(self, num_files: int, batch_size: int, *, seed: int) -> None:
        self.num_files, self.batch_size, self.seed = num_files, batch_size, seed
        self.steps_per_epoch = num_files // batch_size
        self._latest: tuple[int, NDArray[np.int64]] | None = None

    def items(self, step: int) -> list[tuple[int, int]]:
        """The epoch and the files of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        chosen = self._order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return [(epoch, int(index)) for index in chosen]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """The files of an epoch in its order; that of the last one asked for is kept."""
        if self._latest is None or self._latest[0] != epoch:
            order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.num_files)
            self._latest = (epoch, order)
        return self._latest[1]


class Steps:
    """A process's share of each step's items, as a sampler of batches; made as the steps come.

    Args:
        items: The items of a step.
        steps: Their numbers.
        share: The process.
    """

    def __init__(self, items: Callable[[int], list[tuple[int, int]]], steps: range, share: Share) -> None:
        self.items, self.steps, self.share = items, steps, share

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield list(self.share.of(self.items(step)))

    def __len__(self) -> int:
        return len(self.steps)
