"""Helpers for tests of training: a loop for single updates, its gradient, and equality of weights."""

from __future__ import annotations

from pathlib import Path

import torch

from trecvit.processes import Processes
from trecvit.train.initialise import initial_model
from trecvit.train.loop import Loop
from trecvit.train.recipe import Recipe


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def loop_of(recipe: Recipe, folder: Path) -> Loop:
    torch.manual_seed(recipe.seed)
    feed = recipe.feed()
    model, _ = initial_model(recipe, feed)
    return Loop(recipe, folder, feed, recipe.objective(), model, Processes(), "ddp", lambda _: None)


def gradient(loop: Loop) -> torch.Tensor:
    grads = [parameter.grad for parameter in loop.model.parameters() if parameter.requires_grad]
    return torch.cat([grad.flatten() for grad in grads if grad is not None])
