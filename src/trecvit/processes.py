"""Distributed jobs as `torchrun` starts them: ranks, collectives, and the device of a process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from trecvit.errors import ConfigError

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Share:
    """The part of some work that one rank does.

    Attributes:
        rank: Index of the process, from 0.
        count: World size.
    """

    rank: int = 0
    count: int = 1

    def of(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Return this rank's items: every `count`-th; each item belongs to one rank."""
        return items[self.rank :: self.count]


class Processes:
    """The ranks of a job, a single one without a process group.

    Attributes:
        share: Rank and world size.
        device: Device of this rank.

    Args:
        device: "cpu", "cuda", or "auto": a GPU if there is one. Each local rank has a GPU of its own.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.share = Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share()
        self.device = _device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # FSDP computes on the current device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and reports."""
        return self.share.rank == 0

    def wait(self) -> None:
        """Wait until all ranks have reached this call."""
        if self.share.count > 1:
            dist.barrier()

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over all ranks, on every rank."""
        if self.share.count == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value

    def any(self, value: bool) -> bool:
        """Return whether the value is true on any rank."""
        return bool(self.total(torch.tensor(float(value))) > 0)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all ranks in order of rank, on every rank."""
        if self.share.count == 1:
            return [value]
        values: list[Any] = [None] * self.share.count
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined() -> Iterator[None]:
    """Initialise the process group if `torchrun` started this process: gloo for CPU tensors, NCCL for GPU tensors."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def usable_device(name: torch.device | str) -> torch.device:
    """Return the device of this name.

    Raises:
        ConfigError: when this machine has no such device.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as exc:  # unknown to PyTorch, not compiled into it, or absent
        reason = str(exc).splitlines()[0]
        raise ConfigError(
            f"device {str(name)!r} cannot be used here ({reason}); `trecvit doctor` lists usable devices"
        ) from exc
    return device


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return usable_device(name)
