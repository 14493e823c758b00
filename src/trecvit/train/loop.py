"""The training loop: supervised classification of the synthetic world.

A run lives in a folder: `recipe.json` (resolved), `metrics.jsonl`, `checkpoint.pt` and, at the end, `model/`. Killed at
any moment and started again with the same recipe, it goes on from its checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trecvit.data.textures import photographs
from trecvit.data.world import World
from trecvit.errors import CheckpointError, DataError
from trecvit.model.trecvit import Output, TRecViT
from trecvit.train.initialise import scale_convolutions, whiten_patches
from trecvit.train.recipe import Optimisation, Recipe


@dataclass(frozen=True)
class Progress:
    """One line of the log: means over the steps since the last one.

    Attributes:
        step: Updates done.
        num_steps: Updates in all.
        loss: Cross-entropy with label smoothing.
        accuracy: Share of training clips answered right, each clip being new.
        learning_rate: Now.
        clips_per_s: Throughput.
        elapsed_s: Of this process, since the loop began.
    """

    step: int
    num_steps: int
    loss: float
    accuracy: float
    learning_rate: float
    clips_per_s: float
    elapsed_s: float


def train(recipe: Recipe, folder: str | Path, *, report: Callable[[Progress], None] = lambda _: None) -> TRecViT:
    """Trains a model and leaves it in `folder`/model.

    Args:
        recipe: What to train.
        folder: The run folder. One that holds the beginning of the same run is continued.
        report: Called with every line of the log.

    Raises:
        CheckpointError: when the folder holds another recipe's run, or its checkpoint is damaged.
        DataError: when the loss is no longer a finite number.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, recipe)
    torch.manual_seed(recipe.seed)
    world = _world(recipe)
    model = TRecViT(recipe.model, preprocessing=recipe.preprocessing, labels=world.labels)
    if recipe.whiten:
        whiten_patches(model, torch.cat([world.pair(number)[0][:, ::5] for number in range(256)]))
    scale_convolutions(model, recipe.conv_scale)
    optimiser = torch.optim.AdamW(_parameter_groups(model, recipe.optimisation), fused=True)
    step = _resume(folder, model, optimiser)
    if step < recipe.optimisation.num_steps:
        _run(recipe, folder, model, optimiser, _batches(recipe, world, step), step, report)
    model.provenance = {"source": f"trained for {recipe.optimisation.num_steps} steps on the synthetic world"}
    model.save(folder / "model")
    return model.eval()


def learning_rate(step: int, optimisation: Optimisation) -> float:
    """Rate of update number `step`, counted from 0: linear warm-up, then half a cosine down to zero."""
    if step < optimisation.warmup_steps:
        return optimisation.learning_rate * (step + 1) / optimisation.warmup_steps
    share = (step - optimisation.warmup_steps) / max(optimisation.num_steps - optimisation.warmup_steps, 1)
    return optimisation.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))


class _Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Scene number -> both clips of the scene [2,T,3,H,W] and their classes [2]."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        videos, labels = self.world.pair(number)
        return videos, torch.tensor(labels)


def _world(recipe: Recipe) -> World:
    pictures = photographs("train") if recipe.photographs else ()
    return World(recipe.world, seed=recipe.world_seed, pictures=pictures)


def _batches(recipe: Recipe, world: World, first_step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The clips of each step. Step s shows scenes that depend on s alone, so a continued run sees what it missed."""
    pairs_per_step = recipe.optimisation.batch_size // 2
    numbers = range(first_step * pairs_per_step, recipe.optimisation.num_steps * pairs_per_step)
    loader = DataLoader(
        _Pairs(world),
        batch_size=pairs_per_step,
        sampler=numbers,
        num_workers=recipe.num_workers,
        multiprocessing_context="spawn" if recipe.num_workers else None,
        prefetch_factor=4 if recipe.num_workers else None,
    )
    for videos, labels in loader:
        yield videos.flatten(0, 1), labels.flatten()


def _run(
    recipe: Recipe,
    folder: Path,
    model: TRecViT,
    optimiser: torch.optim.Optimizer,
    batches: Iterator[tuple[Tensor, Tensor]],
    first_step: int,
    report: Callable[[Progress], None],
) -> None:
    plan = recipe.optimisation
    begun_s = last_s = time.perf_counter()
    loss_sum, num_right, num_clips = 0.0, 0, 0
    model.train()
    for step, (videos, labels) in enumerate(batches, start=first_step):
        loss, right = _update(model, optimiser, videos, labels, step, plan)
        loss_sum, num_right, num_clips = loss_sum + loss * len(labels), num_right + right, num_clips + len(labels)
        done = step + 1
        if done % recipe.checkpoint_every == 0 or done == plan.num_steps:
            _save(folder, model, optimiser, done)
        if done % recipe.log_every == 0 or done == plan.num_steps:
            now_s = time.perf_counter()
            progress = Progress(
                step=done,
                num_steps=plan.num_steps,
                loss=loss_sum / num_clips,
                accuracy=num_right / num_clips,
                learning_rate=learning_rate(step, plan),
                clips_per_s=num_clips / (now_s - last_s),
                elapsed_s=now_s - begun_s,
            )
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(progress.__dict__) + "\n")
            report(progress)
            last_s, loss_sum, num_right, num_clips = now_s, 0.0, 0, 0


def _update(
    model: TRecViT, optimiser: torch.optim.Optimizer, videos: Tensor, labels: Tensor, step: int, plan: Optimisation
) -> tuple[float, int]:
    """One step: returns the loss, and how many clips were answered right."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, plan)
    with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
        out: Output = model(videos)
    assert out.logits is not None, "a recipe's model has a head"
    loss = F.cross_entropy(out.logits, labels, label_smoothing=plan.label_smoothing)
    if not math.isfinite(value := loss.item()):
        raise DataError(f"step {step}: the loss is {value}; scenes {step * len(labels) // 2} and following")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
    optimiser.step()
    return value, int((out.logits.argmax(dim=1) == labels).sum())


def _parameter_groups(model: nn.Module, plan: Optimisation) -> list[dict[str, Any]]:
    """Weight decay on matrices; none on what scales, shifts, places, or sets the recurrence's eigenvalues."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() >= 2 and not name.endswith(("positions", "bias"))
        (matrices if is_matrix else others).append(parameter)
    return [
        {"params": matrices, "weight_decay": plan.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def _claim(folder: Path, recipe: Recipe) -> None:
    """Writes the resolved recipe, or checks that the folder's run is of the same one."""
    path = folder / "recipe.json"
    text = json.dumps(recipe.to_dict(), indent=2) + "\n"
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise CheckpointError(f"{path}: the folder holds a run of another recipe; give another folder")
        return
    path.write_text(text, encoding="utf-8")
    machine = {
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
    }
    (folder / "machine.json").write_text(json.dumps(machine, indent=2) + "\n", encoding="utf-8")


def _save(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    part = folder / "checkpoint.part"
    torch.save({"step": step, "model": model.state_dict(), "optimiser": optimiser.state_dict()}, part)
    part.replace(folder / "checkpoint.pt")


def _resume(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    try:
        checkpoint = torch.load(path, weights_only=True)
        model.load_state_dict(checkpoint["model"])
        optimiser.load_state_dict(checkpoint["optimiser"])
        return int(checkpoint["step"])
    except Exception as exc:  # torch.load raises many kinds for a damaged file
        raise CheckpointError(f"{path}: damaged checkpoint ({exc}); remove it to begin anew") from exc
