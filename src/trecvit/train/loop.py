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
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trecvit.data.textures import photographs
from trecvit.data.world import World
from trecvit.errors import CheckpointError, DataError
from trecvit.model.trecvit import Output, TRecViT
from trecvit.train.initialise import scale_convolutions, whiten_patches
from trecvit.train.recipe import Optimisation, Recipe

_MOTION_UNIT_PX = 4.0  # motions are told in this unit, so that most of them are about one


@dataclass(frozen=True)
class Progress:
    """One line of the log: means over the steps since the last one.

    Attributes:
        step: Updates done.
        num_steps: Updates in all.
        loss: Cross-entropy with label smoothing.
        motion_loss: Huber error of the motion that the tokens tell, 0 when they are not asked.
        accuracy: Share of training clips answered right, each clip being new.
        learning_rate: Now.
        clips_per_s: Throughput.
        elapsed_s: Of this process, since the loop began.
    """

    step: int
    num_steps: int
    loss: float
    motion_loss: float
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
    learner = Learner(model)
    optimiser = torch.optim.AdamW(_parameter_groups(learner, recipe.optimisation), fused=True)
    step = _resume(folder, learner, optimiser)
    if step < recipe.optimisation.num_steps:
        _run(recipe, folder, learner, optimiser, _batches(recipe, world, step), step, report)
    model.provenance = {"source": f"trained for {recipe.optimisation.num_steps} steps on the synthetic world"}
    model.save(folder / "model")
    return model.eval()


def learning_rate(step: int, optimisation: Optimisation) -> float:
    """Rate of update number `step`, counted from 0: linear warm-up, then half a cosine down to zero."""
    if step < optimisation.warmup_steps:
        return optimisation.learning_rate * (step + 1) / optimisation.warmup_steps
    share = (step - optimisation.warmup_steps) / max(optimisation.num_steps - optimisation.warmup_steps, 1)
    return optimisation.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))


class Batch(NamedTuple):
    """Clips and what there is to know about them.

    Attributes:
        videos: uint8.
        labels: Classes.
        motion: What lies under four points of each patch has moved by (x, y) pixels since the frame before, or nothing
            when it is not asked for.
    """

    videos: UInt8[Tensor, "B T 3 H W"]
    labels: Int64[Tensor, " B"]
    motion: Float[Tensor, "B T P 8"]


class Learner(nn.Module):
    """The model, and the layer that tells motion from its tokens while it learns."""

    def __init__(self, model: TRecViT) -> None:
        super().__init__()
        self.model = model
        self.motion_head = nn.Linear(model.config.width, 8)

    def losses(self, batch: Batch, plan: Optimisation) -> tuple[Tensor, Tensor, Tensor]:
        """Classification loss, motion loss (mean Huber error, in units of four pixels), and the logits [B,V]."""
        with torch.autocast("cpu", torch.bfloat16, enabled=plan.bf16):
            out: Output = self.model(batch.videos)
        assert out.logits is not None, "a recipe's model has a head"
        loss = F.cross_entropy(out.logits, batch.labels, label_smoothing=plan.label_smoothing)
        if not plan.motion_weight:
            return loss, loss.new_zeros(()), out.logits
        patches = out.features[:, :, -batch.motion.shape[2] :].float()  # without the class token
        told = self.motion_head(patches)
        return loss, F.smooth_l1_loss(told, batch.motion / _MOTION_UNIT_PX, beta=0.25), out.logits


class _Pairs(Dataset[Batch]):
    """Scene number -> both clips of the scene."""

    def __init__(self, world: World, points_xy: npt.NDArray[np.float64] | None) -> None:
        self.world = world
        self.points_xy = points_xy

    def __getitem__(self, number: int) -> Batch:
        videos, labels = self.world.pair(number)
        motion = torch.zeros(2, videos.shape[1], 0, 8)
        if self.points_xy is not None:
            moved = self.world.pair_motion(number, self.points_xy).astype(np.float32)
            motion = torch.from_numpy(moved).reshape(2, videos.shape[1], -1, 8)
        return Batch(videos, torch.tensor(labels), motion)


def patch_points(image_size: tuple[int, int], side: int) -> npt.NDArray[np.float64]:
    """Four points in each patch, patch by patch in rows: `[P * 4, 2]`, (x, y) in pixels."""
    offsets = np.array([[x, y] for y in (0.25, 0.75) for x in (0.25, 0.75)]) * side - 0.5
    corners = [[x, y] for y in range(0, image_size[0], side) for x in range(0, image_size[1], side)]
    points: npt.NDArray[np.float64] = (np.array(corners)[:, None] + offsets).reshape(-1, 2)
    return points


def _world(recipe: Recipe) -> World:
    pictures = photographs("train") if recipe.photographs else ()
    return World(recipe.world, seed=recipe.world_seed, pictures=pictures)


def _batches(recipe: Recipe, world: World, first_step: int) -> Iterator[Batch]:
    """The clips of each step. Step s shows scenes that depend on s alone, so a continued run sees what it missed."""
    pairs_per_step = recipe.optimisation.batch_size // 2
    numbers = range(first_step * pairs_per_step, recipe.optimisation.num_steps * pairs_per_step)
    wants_motion = recipe.optimisation.motion_weight > 0
    points_xy = patch_points(recipe.world.image_size, recipe.model.patch_size) if wants_motion else None
    loader = DataLoader(
        _Pairs(world, points_xy),
        batch_size=pairs_per_step,
        sampler=numbers,
        num_workers=recipe.num_workers,
        multiprocessing_context="spawn" if recipe.num_workers else None,
        prefetch_factor=4 if recipe.num_workers else None,
    )
    for pairs in loader:
        yield Batch(*(tensor.flatten(0, 1) for tensor in pairs))


def _run(
    recipe: Recipe,
    folder: Path,
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    batches: Iterator[Batch],
    first_step: int,
    report: Callable[[Progress], None],
) -> None:
    plan = recipe.optimisation
    begun_s = last_s = time.perf_counter()
    sums, num_clips = np.zeros(3), 0  # loss, motion loss, right answers
    learner.train()
    for step, batch in enumerate(batches, start=first_step):
        sums += np.array(_update(learner, optimiser, batch, step, plan)) * len(batch.labels)
        num_clips += len(batch.labels)
        done = step + 1
        if done % recipe.checkpoint_every == 0 or done == plan.num_steps:
            _save(folder, learner, optimiser, done)
        if done % recipe.log_every == 0 or done == plan.num_steps:
            now_s = time.perf_counter()
            loss, motion_loss, accuracy = (sums / num_clips).tolist()
            progress = Progress(
                step=done,
                num_steps=plan.num_steps,
                loss=loss,
                motion_loss=motion_loss,
                accuracy=accuracy,
                learning_rate=learning_rate(step, plan),
                clips_per_s=num_clips / (now_s - last_s),
                elapsed_s=now_s - begun_s,
            )
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(progress.__dict__) + "\n")
            report(progress)
            last_s, sums, num_clips = now_s, np.zeros(3), 0


def _update(
    learner: Learner, optimiser: torch.optim.Optimizer, batch: Batch, step: int, plan: Optimisation
) -> tuple[float, float, float]:
    """One step: returns the loss, the motion loss, and the share of clips that were answered right."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, plan)
    loss, motion_loss, logits = learner.losses(batch, plan)
    total = loss + plan.motion_weight * motion_loss
    if not math.isfinite(total.item()):
        raise DataError(
            f"step {step}: the loss is {total.item()}; scenes {step * len(batch.labels) // 2} and following"
        )
    optimiser.zero_grad(set_to_none=True)
    total.backward()
    nn.utils.clip_grad_norm_(learner.parameters(), plan.clip_norm)
    optimiser.step()
    return loss.item(), motion_loss.item(), float((logits.argmax(dim=1) == batch.labels).float().mean())


def _parameter_groups(learner: nn.Module, plan: Optimisation) -> list[dict[str, Any]]:
    """Weight decay on matrices; none on what scales, shifts, places, or sets the recurrence's eigenvalues."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in learner.named_parameters():
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


def _save(folder: Path, learner: nn.Module, optimiser: torch.optim.Optimizer, step: int) -> None:
    part = folder / "checkpoint.part"
    torch.save({"step": step, "learner": learner.state_dict(), "optimiser": optimiser.state_dict()}, part)
    part.replace(folder / "checkpoint.pt")


def _resume(folder: Path, learner: nn.Module, optimiser: torch.optim.Optimizer) -> int:
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    try:
        checkpoint = torch.load(path, weights_only=True)
        learner.load_state_dict(checkpoint["learner"])
        optimiser.load_state_dict(checkpoint["optimiser"])
        return int(checkpoint["step"])
    except Exception as exc:  # torch.load raises many kinds for a damaged file
        raise CheckpointError(f"{path}: damaged checkpoint ({exc}); remove it to begin anew") from exc
