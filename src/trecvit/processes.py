"""The processes of one job, as `torchrun` starts them, seen from one of them."""

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
    """One of several processes that share some work.

    Attributes:
        number: From 0.
        count: How many there are.
    """

    number: int = 0
    count: int = 1

    def of(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Every `count`-th item; together the processes have each once."""
        return items[self.number :: self.count]


class Processes:
    """All processes of a job; one alone if nothing has joined them.

    Attributes:
        share: Which of the processes this is, and how many there are.
        device: What this one computes on.

    Args:
        device: "cpu", "cuda", or "auto": a GPU if there is one. Of several GPUs each process of a machine has its own.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.share = Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share()
        self.device = _device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # what FSDP computes on, whatever the weights are on

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.share.number == 0

    def wait(self) -> None:
        """Until all processes have come here."""
        if self.share.count > 1:
            dist.barrier()

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""
        if self.share.count == 1:
            return value
        value = value.clone()
        dist.all_reduce(value)
        return value

    def any(self, value: bool) -> bool:
        """Whether it is true in any process."""
        return bool(self.total(torch.tensor(float(value))) > 0)

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of their numbers, the same list in each."""
        if self.share.count == 1:
            return [value]
        values: list[Any] = [None] * self.share.count
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that `torchrun` started, if it did: over gloo what is on CPUs, over NCCL what is on GPUs."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def usable_device(name: torch.device | str) -> torch.device:
    """The device of this name.

    Raises:
        ConfigError: When there is none on this machine.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as exc:  # unknown to PyTorch, not built into it, or not plugged in
        reason = str(exc).splitlines()[0]
        raise ConfigError(
            f"device {str(name)!r} cannot be used here ({reason}); `trecvit doctor` says what can"
        ) from exc
    return device


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return usable_device(name)
