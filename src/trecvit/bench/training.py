"""What training costs: memory and time of an update, and whether the clips come as fast as the model takes them.

Updates are the training loop's own (`Loop.update`), on random clips. Each measurement of memory is made in a process of
its own, because a process never gives back its peak.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import torch
from jaxtyping import UInt8
from torch import Tensor

from trecvit.config import Recompute
from trecvit.errors import ConfigError
from trecvit.memory import peak_bytes
from trecvit.processes import Processes, Share
from trecvit.train.feed import Batch, Feed, LabelledBatch
from trecvit.train.initialise import first_model
from trecvit.train.loop import Loop, feed_of, objective_of
from trecvit.train.recipe import Recipe, recipe_from_dict
from trecvit.workers import worker_pool


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateCost:
    """What one update takes.

    Attributes:
        size: The model's preset.
        num_frames: Frames of a clip.
        batch_size: Clips of an update.
        recompute: What is computed again in the backward pass.
        memory_bytes: Peak of the process's memory (or of the GPU's) above what it had before there was a model:
            weights, gradients, optimiser and what is kept for the backward pass. None if there was not enough of it.
        updates_per_s: None likewise.
    """

    size: str
    num_frames: int
    batch_size: int
    recompute: Recompute
    memory_bytes: int | None
    updates_per_s: float | None


def update_costs(
    sizes: Sequence[str],
    frames: Sequence[int],
    *,
    batch_size: int = 1,
    image_px: int = 224,
    bf16: bool = False,
    num_updates: int = 2,
    device: str = "cpu",
) -> Iterator[UpdateCost]:
    """Memory and speed of an update for each size and length, by what is computed again in the backward pass.

    Args:
        sizes: Presets.
        frames: Lengths of clips.
        batch_size: Clips of an update.
        image_px: Side of the frames.
        bf16: Matrix products in bfloat16.
        num_updates: How many are timed, after one that is not.
        device: "cpu" or "cuda".
    """
    for size, num_frames, recompute in product(sizes, frames, get_args(Recompute)):
        recipe = recipe_from_dict(
            {
                "model": {"preset": size, "image_size": image_px},
                "preprocessing": {"num_frames": num_frames, "image_size": image_px},
                "videos": {"train": "random clips"},
                "optimisation": {
                    "num_steps": num_updates + 1,
                    "batch_size": batch_size,
                    "recompute": recompute,
                    "bf16": bf16,
                },
            }
        )
        memory_bytes, updates_per_s = None, None
        with worker_pool(1) as pool:
            try:
                memory_bytes, updates_per_s = pool.submit(_measure, recipe, num_updates, device).result()
            except BrokenProcessPool:
                pass  # the system has ended the process, because there was not memory enough
            except RuntimeError as exc:  # CUDA's and the CPU allocator's
                if "memory" not in str(exc):
                    raise
        yield UpdateCost(
            size=size,
            num_frames=num_frames,
            batch_size=batch_size,
            recompute=recompute,
            memory_bytes=memory_bytes,
            updates_per_s=updates_per_s,
        )


def _measure(recipe: Recipe, num_updates: int, device: str) -> tuple[int, float]:
    """Peak memory in bytes, and updates per second, of this process."""
    before_bytes = peak_bytes()
    processes = Processes(device)
    updates_per_s = _updates_per_s(recipe, num_updates, processes)
    if processes.device.type == "cuda":
        return torch.cuda.max_memory_allocated(processes.device), updates_per_s
    return peak_bytes() - before_bytes, updates_per_s


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSpeed:
    """Clips made and clips used, per second.

    Attributes:
        made: Decoded and augmented, or rendered, beside an idle model: {worker processes: clips per second}.
        used: By the model, given clips that are ready.
    """

    made: dict[int, float]
    used: float


def loader_speed(
    recipe: Recipe,
    *,
    workers: Sequence[int],
    num_steps: int = 20,
    device: str = "cpu",
    report: Callable[[int], None] = lambda _: None,
) -> LoaderSpeed:
    """Whether the loader keeps up with the model.

    Args:
        recipe: With videos, or with scenes, which are rendered.
        workers: Numbers of worker processes to try; 0 decodes in the training process itself.
        num_steps: Batches to time, after two that are not.
        device: Where the model computes.
        report: Called with the number of measurements done.

    Raises:
        ConfigError: when the recipe has too few steps to be timed.
    """
    in_all = feed_of(recipe).num_steps
    num_steps = min(num_steps, in_all - 2)
    if num_steps < 1:
        raise ConfigError(f"expected at least 3 steps to time, the recipe has {in_all}")
    # No more than is timed is asked for: workers that are stopped in the middle of a video complain.
    few = replace(recipe, optimisation=replace(recipe.optimisation, num_steps=num_steps + 2, epochs=0))
    made = {}
    for done, count in enumerate(workers, start=1):
        batches = feed_of(replace(few, num_workers=count)).batches(0, Share())
        for _ in range(2):
            next(batches)
        begun_s = time.perf_counter()
        num_clips = sum(len(batch) for batch in batches)
        made[count] = num_clips / (time.perf_counter() - begun_s)
        report(done)
    used = _updates_per_s(recipe, num_steps, Processes(device)) * recipe.optimisation.batch_size
    report(len(workers) + 1)
    return LoaderSpeed(made=made, used=used)


def updates_in_turn(
    recipes: Mapping[str, Recipe],
    *,
    num_rounds: int = 10,
    processes: Processes | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> dict[str, list[float]]:
    """Updates per second of several recipes, measured in turn, so that whatever else happens on the machine hits all.

    Args:
        recipes: By name; their models are all in memory at once.
        num_rounds: How often each makes an update that is timed, after one that is not.
        processes: Those that train together, and the device; by default this one is alone, on the CPU.
        report: Called with the number of rounds done, the first included.
    """
    processes = processes or Processes()
    timed: dict[str, list[float]] = {name: [] for name in recipes}
    with TemporaryDirectory() as folder:
        updates = {name: _Updates(recipe, processes, Path(folder)) for name, recipe in recipes.items()}
        for number in range(num_rounds + 1):
            for name, update in updates.items():
                begun_s = time.perf_counter()
                update()
                if number:
                    timed[name].append(1.0 / (time.perf_counter() - begun_s))
            report(number + 1)
    return timed


def _updates_per_s(recipe: Recipe, num_updates: int, processes: Processes) -> float:
    """Speed of the training loop's updates on clips that are ready, after one that is not timed."""
    with TemporaryDirectory() as folder:
        update = _Updates(recipe, processes, Path(folder))
        update()
        begun_s = time.perf_counter()
        for _ in range(num_updates):
            update()
        return num_updates / (time.perf_counter() - begun_s)


class _Updates:
    """The training loop's updates of a recipe's model, from nothing, on clips that are ready; one with each call.

    An update ends with the loss on the CPU, so a GPU has done its work too.
    """

    def __init__(self, recipe: Recipe, processes: Processes, folder: Path) -> None:
        share = max(recipe.optimisation.batch_size // processes.share.count, 1)
        recipe = replace(
            recipe,
            start=replace(recipe.start, weights="", vit="", whiten_grain_px=0),
            optimisation=replace(recipe.optimisation, batch_size=share),
        )
        feed = _ready(recipe)
        model, _ = first_model(recipe, feed)
        objective = objective_of(_untested(recipe))
        self._loop = Loop(recipe, folder, feed, objective, model.to(processes.device), processes, "ddp", lambda _: None)
        self._batches = enumerate(feed.batches(0, Share()))

    def __call__(self) -> None:
        step, batch = next(self._batches)
        self._loop.update(batch, step)


def _untested(recipe: Recipe) -> Recipe:
    """The recipe without what it is tested on, which need not be there."""
    if recipe.memory is not None:
        recipe = replace(recipe, memory=replace(recipe.memory, validation_clips=0, validate_every=0))
    if recipe.mae is not None:
        recipe = replace(recipe, mae=replace(recipe.mae, validation_clips=0, validate_every=0))
    if recipe.videos is not None:
        return replace(recipe, videos=replace(recipe.videos, validation=None, validate_every=0))
    if recipe.tracks is not None:
        alone = replace(recipe.tracks, validation_files="", validation_scenes=0, validate_every=0)
        return replace(recipe, tracks=alone)
    return recipe


class _ReadyFeed(Feed[Batch]):
    """One batch, again and again."""

    def __init__(self, batch: Batch, *, labels: tuple[str, ...], num_steps: int) -> None:
        super().__init__(labels=labels, num_steps=num_steps)
        self.batch = batch

    def batches(self, first_step: int, share: Share) -> Iterator[Batch]:
        """The batch, without end."""
        while True:
            yield self.batch

    def accept(self, failed: Mapping[str, str]) -> None:
        """Nothing is read."""
        assert not failed, failed

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """Its clips."""
        return self.batch.videos


def _ready(recipe: Recipe) -> _ReadyFeed:
    """Random clips of as many classes as the model has; where there are no classes, the first of the recipe's."""
    plan, size, num_steps = recipe.preprocessing, recipe.optimisation.batch_size, recipe.optimisation.num_steps
    if recipe.tracks is not None or recipe.mae is not None or recipe.memory is not None:
        feed = feed_of(replace(recipe, num_workers=0))
        return _ReadyFeed(next(feed.batches(0, Share())), labels=(), num_steps=feed.num_steps)
    count = recipe.model.num_classes
    videos = torch.randint(0, 256, (size, plan.num_frames, 3, *plan.image_size), dtype=torch.uint8)
    names = tuple(f"class {number}" for number in range(count))
    return _ReadyFeed(LabelledBatch(videos, torch.arange(size) % count), labels=names, num_steps=max(num_steps, 1))
