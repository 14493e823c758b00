"""Learning rate schedule, optimisers, and moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from trecvit.model.trecvit import Block, VideoModel
from trecvit.processor import supports
from trecvit.train.networks import Trainable
from trecvit.train.sections import Optimisation

_NOT_DECAYED = ("positions", "bias", "position_embeddings", "cls_token")  # the last two are transformers' names


def uses_bf16(plan: Optimisation, device: torch.device) -> bool:
    """Whether matrix multiplications are in bfloat16; `auto`: if the device has instructions for it."""
    if plan.bf16 != "auto":
        return plan.bf16
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and supports("bfloat16")


def schedule(step: int, plan: Optimisation, num_steps: int) -> float:
    """Factor on the peak learning rate at update `step`, from 0: linear warm-up, then a cosine to zero."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    share = (step - plan.warmup_steps) / max(num_steps - plan.warmup_steps, 1)
    return 0.5 * (1.0 + math.cos(math.pi * share))


def optimisers_of(model: Trainable, plan: Optimisation) -> list[Optimizer]:
    """AdamW, and Muon for the blocks' linear layers if the plan has a rate for it. Groups carry their `peak_lr`.

    Frozen weights are left out. Weight decay is on matrices only, without positions.
    """
    # Also those of an autoencoder's decoder; another network's layers are not of class `Block`.
    blocks: list[nn.Module] = [block for block in model.modules() if isinstance(block, Block)] or [*model.blocks]
    in_blocks = {id(layer.weight) for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear)}
    patches = model.tokenizer.embedding if isinstance(model, VideoModel) else model.embedding
    embedding: list[nn.Parameter] = []
    by_muon: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    spatial_matrices: list[nn.Parameter] = []
    spatial_others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter is patches.weight:
            embedding.append(parameter)
        elif plan.muon_learning_rate and id(parameter) in in_blocks:
            by_muon.append(parameter)
        else:
            is_spatial = plan.spatial_rate != 1.0 and (".spatial." in name or name.startswith("norm."))
            decays = parameter.dim() >= 2 and not name.endswith(_NOT_DECAYED)
            if is_spatial:
                (spatial_matrices if decays else spatial_others).append(parameter)
            else:
                (matrices if decays else others).append(parameter)
    rate, decay = plan.learning_rate, plan.weight_decay
    groups = [
        {"params": embedding, "peak_lr": rate * plan.embedding_rate, "weight_decay": decay},
        {"params": matrices, "peak_lr": rate, "weight_decay": decay},
        {"params": others, "peak_lr": rate, "weight_decay": 0.0},
        {"params": spatial_matrices, "peak_lr": rate * plan.spatial_rate, "weight_decay": decay},
        {"params": spatial_others, "peak_lr": rate * plan.spatial_rate, "weight_decay": 0.0},
    ]
    # A group without weights cannot be loaded from a checkpoint.
    groups = [group for group in groups if group["params"]]
    optimisers: list[Optimizer] = [torch.optim.AdamW(groups, betas=(0.9, plan.beta2), fused=True)]
    if by_muon:
        group = {"params": by_muon, "peak_lr": plan.muon_learning_rate, "weight_decay": decay}
        optimisers.append(torch.optim.Muon([group]))
    return optimisers


class RunningMean:
    """Exponential moving average of the weights.

    The decay of update n is the smaller of `decay` and n / (n + 9), so that the initial weights have little influence
    (as in TensorFlow's ExponentialMovingAverage).

    Args:
        model: The model in training.
        decay: Factor on the average in each update.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.num_updates = torch.zeros((), dtype=torch.long)
        self.weights: dict[str, Tensor] = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Update the average with the current weights."""
        self.num_updates += 1
        count = int(self.num_updates)
        factor = min(self.decay, count / (count + 9))
        for name, weight in model.named_parameters():
            self.weights[name].lerp_(weight.detach(), 1 - factor)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights in the `with` block, and its own after it."""
        own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        try:
            _copy(self.weights, model)
            yield
        finally:
            _copy(own, model)


@torch.no_grad()
def _copy(weights: Mapping[str, Tensor], model: nn.Module) -> None:
    for name, weight in model.named_parameters():
        weight.copy_(weights[name])
