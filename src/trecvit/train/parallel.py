"""Several processes that train one model, as `torchrun` starts them: PyTorch's own DDP or FSDP2."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel

from trecvit.errors import ConfigError
from trecvit.model.trecvit import TRecViT
from trecvit.train.feed import Share
from trecvit.train.optimise import RunningMean

Kind = Literal["ddp", "fsdp"]


class Processes:
    """All processes of a run, seen from one of them.

    Args:
        kind: "ddp" keeps the whole model in every process, "fsdp" spreads its weights over them.

    Attributes:
        share: Which of the processes this is, and how many there are.
    """

    def __init__(self, kind: str = "ddp") -> None:
        if kind not in get_args(Kind):
            raise ConfigError(f"expected one of {', '.join(get_args(Kind))}, got {kind!r}")
        self.kind = kind
        self.share = Share(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Share()

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

    def spread(self, model: TRecViT) -> nn.Module:
        """What to call instead of the model, so that gradients are averaged over the processes."""
        if self.share.count == 1:
            return model
        if self.kind == "ddp":
            return DistributedDataParallel(model)
        from torch.distributed.fsdp import fully_shard

        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        return model

    def save_model(self, model: TRecViT, mean: RunningMean | None, folder: Path) -> None:
        """Writes the whole model, or the running mean of its weights, from the first process."""
        if mean is not None:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    weight.copy_(mean.weights[name])
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights: Mapping[str, Any] = get_model_state_dict(model, options=options)
        if self.first:
            whole = TRecViT(
                model.config, preprocessing=model.preprocessing, labels=model.labels, provenance=model.provenance
            )
            whole.load_state_dict(weights)
            whole.save(folder)
        self.wait()


@contextmanager
def joined() -> Iterator[None]:
    """Joins the processes that `torchrun` started, if it did, over gloo: training runs on CPUs."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
