"""What tests of training look at: one update by itself, and whether two models are the same."""

from __future__ import annotations

from pathlib import Path

import torch

from trecvit.processes import Processes
from trecvit.train.initialise import initial_model
from trecvit.train.loop import Loop
from trecvit.train.recipe import Recipe


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def loop_of(recipe: Recipe, folder: Path) -> Loop:
    torch.manual_seed(recipe.seed)
    feed = recipe.feed()
    model, _ = initial_model(recipe, feed)
    return Loop(recipe, folder, feed, recipe.objective(), model, Processes(), "ddp", lambda _: None)


def gradient(loop: Loop) -> torch.Tensor:
    grads = [parameter.grad for parameter in loop.model.parameters() if parameter.requires_grad]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])
