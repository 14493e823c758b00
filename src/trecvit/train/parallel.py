"""Data parallelism: DDP or FSDP2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel

from trecvit.errors import ConfigError
from trecvit.pretrained import build
from trecvit.processes import Processes
from trecvit.train.networks import Trainable, untrained

Kind = Literal["ddp", "fsdp"]


def wrap_parallel(model: Trainable, processes: Processes, kind: str) -> nn.Module:
    """Wrap a model so that gradients are averaged over the processes.

    Args:
        model: On the processes' device.
        processes: All that train it.
        kind: "ddp" keeps the whole model in every process, "fsdp" shards its weights.

    Raises:
        ConfigError: for another kind.
    """
    if kind not in get_args(Kind):
        raise ConfigError(f"expected one of {', '.join(get_args(Kind))}, got {kind!r}")
    if processes.share.count == 1:
        return model
    device = processes.device
    if kind == "ddp":
        return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes.share.count,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def save_whole(model: Trainable, folder: Path, processes: Processes) -> None:
    """Gather the weights of all processes and write the model in the first."""
    weights: Mapping[str, Any] = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if processes.first:
        fields: dict[str, Any] = {
            "preprocessing": model.preprocessing,
            "labels": model.labels,
            "provenance": model.provenance,
        }
        # From its config: FSDP changes the class of the model in training to one without this constructor.
        build(lambda: untrained(model.config, **fields), weights, source="the weights in training").save(folder)
    processes.wait()
