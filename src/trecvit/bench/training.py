"""Cost of training: memory and time of an update, and throughput of the data loader and the model.

Updates are the training loop's (`Loop.update`), on random clips. Each measurement of memory has its own process: the
peak of a process never falls.
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

from trecvit.bench.usage import peak_bytes
from trecvit.config import Recompute
from trecvit.errors import ConfigError
from trecvit.processes import Processes, Share
from trecvit.train.feed import Batch, Feed, LabelledBatch
from trecvit.train.initialise import initial_model
from trecvit.train.loop import Loop
from trecvit.train.recipe import Recipe, recipe_from_dict
from trecvit.train.tasks.classify import ClassifyTask
from trecvit.workers import worker_pool


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateCost:
    """Memory and speed of an update.

    Attributes:
        size: The model's preset.
        num_frames: Frames of a clip.
        batch_size: Clips of an update.
        recompute: Recomputed activations.
        memory_bytes: Increase of the peak memory of the process (or of the GPU) by weights, gradients, optimiser and
            saved activations. None: out of memory.
        updates_per_s: None: out of memory.
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
    """Measure memory and speed of an update for each size and length, and each choice of recomputed activations.

    Args:
        sizes: Presets.
        frames: Lengths of clips.
        batch_size: Clips of an update.
        image_px: Side of the frames.
        bf16: Matrix multiplications in bfloat16.
        num_updates: Timed updates, after one warm-up.
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
                pass  # killed by the system: out of memory
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
    """Throughput in clips per second.

    Attributes:
        made: Of the loader, beside an idle model: {worker processes: clips per second}.
        used: Of the model, on clips in memory.
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
    """Measure the throughput of the loader and of the model.

    Args:
        recipe: The recipe.
        workers: Numbers of worker processes to try; 0 decodes in the training process.
        num_steps: Timed batches, after two for warm-up.
        device: Device of the model.
        report: Called with the number of finished measurements.

    Raises:
        ConfigError: when the recipe has too few steps to be timed.
    """
    total = recipe.feed().num_steps
    num_steps = min(num_steps, total - 2)
    if num_steps < 1:
        raise ConfigError(f"expected at least 3 steps to time, the recipe has {total}")
    # No more steps than are timed: workers that are stopped within a video print errors.
    few = replace(recipe, optimisation=replace(recipe.optimisation, num_steps=num_steps + 2, epochs=0))
    made = {}
    for done, count in enumerate(workers, start=1):
        batches = replace(few, num_workers=count).feed().batches(0, Share())
        for _ in range(2):
            next(batches)
        started_s = time.perf_counter()
        num_clips = sum(len(batch) for batch in batches)
        made[count] = num_clips / (time.perf_counter() - started_s)
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
    """Measure updates per second of several recipes in turn, so that other load on the machine affects all alike.

    Args:
        recipes: By name; all models are in memory at the same time.
        num_rounds: Timed updates of each, after one warm-up.
        processes: The processes of the run, and the device; by default this one alone, on the CPU.
        report: Called with the number of finished rounds, with the warm-up.
    """
    processes = processes or Processes()
    timed: dict[str, list[float]] = {name: [] for name in recipes}
    with TemporaryDirectory() as folder:
        updates = {name: Updates(recipe, processes, Path(folder)) for name, recipe in recipes.items()}
        for index in range(num_rounds + 1):
            for name, update in updates.items():
                started_s = time.perf_counter()
                update()
                if index:
                    timed[name].append(1.0 / (time.perf_counter() - started_s))
            report(index + 1)
    return timed


def _updates_per_s(recipe: Recipe, num_updates: int, processes: Processes) -> float:
    """Speed of the training loop's updates on clips in memory, after one warm-up."""
    with TemporaryDirectory() as folder:
        update = Updates(recipe, processes, Path(folder))
        update()
        started_s = time.perf_counter()
        for _ in range(num_updates):
            update()
        return num_updates / (time.perf_counter() - started_s)


class Updates:
    """The training loop's updates of a recipe's randomly initialised model on clips in memory; one per call.

    An update ends with the loss on the CPU, after the GPU's work.
    """

    def __init__(self, recipe: Recipe, processes: Processes, folder: Path) -> None:
        share = max(recipe.optimisation.batch_size // processes.share.count, 1)
        recipe = replace(
            recipe,
            task=recipe.task.untested(),  # the data to test on need not exist
            start=replace(recipe.start, weights="", vit="", whiten_grain_px=0),
            optimisation=replace(recipe.optimisation, batch_size=share),
        )
        feed = _ready(recipe)
        model, _ = initial_model(recipe, feed)
        self._loop = Loop(
            recipe, folder, feed, recipe.objective(), model.to(processes.device), processes, "ddp", lambda _: None
        )
        self._batches = enumerate(feed.batches(0, Share()))

    def __call__(self) -> Tensor:
        """Run an update; return its sums, see `Loop.update`."""
        step, batch = next(self._batches)
        return self._loop.update(batch, step)


class _ReadyFeed(Feed[Batch]):
    """One batch, repeated endlessly."""

    def __init__(self, batch: Batch, *, labels: tuple[str, ...], num_steps: int) -> None:
        super().__init__(labels=labels, num_steps=num_steps)
        self.batch = batch

    def batches(self, first_step: int, share: Share) -> Iterator[Batch]:
        """The batch, endlessly."""
        while True:
            yield self.batch

    def accept(self, failed: Mapping[str, str]) -> None:
        """Check that nothing failed: the batch is in memory."""
        assert not failed, failed

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """Its clips."""
        return self.batch.videos


def _ready(recipe: Recipe) -> _ReadyFeed:
    """Random clips of the model's classes, or for other tasks the first batch of the recipe."""
    plan, size, num_steps = recipe.preprocessing, recipe.optimisation.batch_size, recipe.optimisation.num_steps
    if not isinstance(recipe.task, ClassifyTask):
        feed = replace(recipe, num_workers=0).feed()
        return _ReadyFeed(next(feed.batches(0, Share())), labels=(), num_steps=feed.num_steps)
    count = recipe.model.num_classes
    videos = torch.randint(0, 256, (size, plan.num_frames, 3, *plan.image_size), dtype=torch.uint8)
    names = tuple(f"class {index}" for index in range(count))
    return _ReadyFeed(LabelledBatch(videos, torch.arange(size) % count), labels=names, num_steps=max(num_steps, 1))
