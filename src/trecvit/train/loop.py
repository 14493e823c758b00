"""The training loop: for any objective, on one process or many.

A run lives in a folder: `recipe.json` (resolved), `run.json` (versions, commit, machine), `start.txt` (what the first
weights were made of), `metrics.jsonl`, `validation.jsonl` and the same as TensorBoard's events, `failures.jsonl` if
videos could not be read, `checkpoints/`, `best/`, an autoencoder's `pictures/` and, at the end, `model/`, `evaluation/`
and `curves.png`. Killed at any moment and started again with the same recipe, it goes on from its last checkpoint, to
the same bit on a CPU.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trecvit.baselines.baseline import Baseline
from trecvit.data.clips import Failure
from trecvit.errors import DataError, Interrupted
from trecvit.files import only_writer, write_text, writing
from trecvit.model.memorise import Memoriser
from trecvit.model.tracker import PointTracker
from trecvit.model.trecvit import TRecViT
from trecvit.pretrained import check_path
from trecvit.processes import Processes
from trecvit.train.checkpoints import Checkpoints
from trecvit.train.classify import Classification
from trecvit.train.feed import Batch, Feed, LabelledBatch
from trecvit.train.initialise import Trainable, first_model, load_trained
from trecvit.train.mae import MaskedAutoencoding, held_out_clips
from trecvit.train.masks import MaskedFeed
from trecvit.train.memorise import Memorisation, MemoryFeed, held_out_memory
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.optimise import RunningMean, optimisers_of, schedule, uses_bf16
from trecvit.train.parallel import save_whole, spread
from trecvit.train.recipe import Recipe
from trecvit.train.run_folder import (
    Journal,
    as_begun,
    claim,
    draw_curves,
    known_failures,
    steps_if_finished,
    was_tested,
)
from trecvit.train.scenes import SceneFeed
from trecvit.train.stop import StopSignals
from trecvit.train.track import Tracking, validation_of
from trecvit.train.tracks import TrackFeed
from trecvit.train.videos import VideoFeed, read_split


@dataclass(frozen=True)
class Progress:
    """One line of the log: means over the steps since the last one.

    Attributes:
        step: Updates done.
        num_steps: Updates in all.
        loss: Mean over the training clips.
        figures: The objective's, such as the accuracy: shares of what was right in the training clips.
        learning_rate: Now.
        clips_per_s: Throughput of all processes.
        elapsed_s: Of this process, since the loop began.
        failed: Videos that could not be read since the last line.
        first_step: The step that this process went on from.
    """

    step: int
    num_steps: int
    loss: float
    figures: dict[str, float]
    learning_rate: float
    clips_per_s: float
    elapsed_s: float
    failed: int
    first_step: int

    def line(self) -> dict[str, float | int]:
        """What is logged: all of it, the figures by their own names."""
        fields = dict(self.__dict__)
        figures = fields.pop("figures")
        head = {name: fields.pop(name) for name in ("step", "num_steps", "loss")}
        return {**head, **figures, **fields}


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    processes: Processes | None = None,
    parallel: str = "ddp",
    report: Callable[[Progress], None] = lambda _: None,
) -> TRecViT | PointTracker | Memoriser | Baseline:
    """Trains a model and leaves it in `folder`/model.

    Args:
        recipe: What to train.
        folder: The run folder. One that holds the beginning of the same run is continued, and a finished run is left as
            it is.
        processes: Those that share the work, and the device; by default this one is alone, on the CPU.
        parallel: How several share it, "ddp" or "fsdp".
        report: Called with every line of the log, by the first process.

    Raises:
        BusyError: when another process trains in the folder.
        CheckpointError: when the folder holds another recipe's run, its data have changed, all its checkpoints are
            damaged, or its path is not UTF-8.
        DataError: when the loss is no longer a finite number, or too many videos cannot be read.
        Interrupted: after Ctrl-C or SIGTERM; a checkpoint of that moment has been written.
        KeyboardInterrupt: after a second Ctrl-C, which stops at once, or one before the first step or after the last.
        StorageError: when something cannot be written, as on a full disk; the run goes on once it can.
    """
    processes = processes or Processes()
    folder = Path(folder)
    check_path(folder)
    with only_writer(folder) if processes.first else nullcontext():
        _train(recipe, folder, processes, parallel, report)
    return load_trained(recipe.architecture, folder / "model", device=processes.device)


def _train(
    recipe: Recipe, folder: Path, processes: Processes, parallel: str, report: Callable[[Progress], None]
) -> None:
    if processes.first:
        claim(folder, recipe, processes)
    processes.wait()
    finished = processes.any(processes.first and steps_if_finished(folder, recipe) is not None)
    recipe = as_begun(folder, recipe)
    torch.manual_seed(recipe.seed)
    feed, objective = feed_of(recipe), objective_of(recipe)
    model, made_of = first_model(recipe, feed)
    if processes.first:
        write_text(folder / "start.txt", made_of + "\n")
    loop = Loop(recipe, folder, feed, objective, model.to(processes.device), processes, parallel, report)
    if not loop.run() and finished:
        return
    loop.export(feed.num_steps, folder / "model")
    objective.evaluate(folder / "model", folder / "evaluation", processes)
    if processes.first and find_spec("matplotlib"):
        draw_curves({folder.name: folder}, folder / "curves.png")
    processes.wait()


def feed_of(recipe: Recipe) -> Feed[Batch]:
    """Where a recipe's batches come from."""
    if recipe.tracks is not None:
        return TrackFeed(recipe)
    if recipe.memory is not None:
        return MemoryFeed(recipe)
    clips: Feed[LabelledBatch]
    if recipe.scenes is not None:
        clips = SceneFeed(recipe, recipe.scenes)
    else:
        assert recipe.videos is not None, "a recipe has scenes or videos"
        clips = VideoFeed(recipe, recipe.videos)
    return MaskedFeed(recipe, clips) if recipe.mae is not None else clips


def objective_of(recipe: Recipe) -> Objective[Any, Any]:
    """What a recipe trains for."""
    if recipe.tracks is not None:
        return Tracking(recipe, validation_of(recipe.tracks))
    if recipe.memory is not None:
        return Memorisation(recipe, held_out_memory(recipe))
    if recipe.mae is not None:
        return MaskedAutoencoding(recipe, held_out_clips(recipe))
    validation = read_split(recipe.videos.validation) if recipe.videos and recipe.videos.validation else None
    return Classification(recipe, validation)


class Loop:
    """All that a run holds while it goes."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        feed: Feed[Batch],
        objective: Objective[Any, Any],
        model: Trainable,
        processes: Processes,
        parallel: str,
        report: Callable[[Progress], None],
    ) -> None:
        self.recipe, self.plan, self.folder, self.feed = recipe, recipe.optimisation, folder, feed
        self.objective, self.processes, self.report = objective, processes, report
        model.recompute = self.plan.recompute
        objective.prepare(model)
        self.model = model.train()
        self.bf16 = uses_bf16(self.plan, processes.device)
        self.network = spread(model, processes, parallel)
        if self.plan.compile:
            self.network.compile()
        self.optimisers = optimisers_of(model, self.plan)
        self.mean = RunningMean(model, self.plan.ema_decay) if self.plan.ema_decay else None
        self.checkpoints = Checkpoints(folder / "checkpoints", processes, keep=recipe.keep_checkpoints)
        self.failed: dict[str, str] = {}  # videos that no process could read, and why

    def run(self) -> int:
        """Trains from the last checkpoint, if there is one, to the end; returns how many steps that were."""
        first_step = self.checkpoints.resume(self.model, self.optimisers, self.mean)
        if first_step == self.feed.num_steps and not self._owes_validation(first_step):
            return 0
        journal = Journal(self.folder, first_step) if self.processes.first else None
        self.processes.wait()
        self.failed = known_failures(self.folder)
        try:
            with StopSignals(alone=self.processes.share.count == 1) as stop:
                self._go_on(first_step, journal, stop)
        finally:
            if journal is not None:
                journal.close()
        return self.feed.num_steps - first_step

    def export(self, step: int, folder: Path) -> None:
        """Writes the model as it is after `step` updates, or the running mean of its weights."""
        self.model.provenance = {"source": f"trained for {step} steps", "data": self.recipe.data}
        with self.mean.in_place_of(self.model) if self.mean is not None else nullcontext():
            save_whole(self.model, folder, self.processes)

    def _go_on(self, first_step: int, journal: Journal | None, stop: StopSignals) -> None:
        clock = _Clock()
        sums = self._no_sums()
        done = first_step
        try:
            if self._owes_validation(done):
                self._validate(done, journal, stop)
            with closing(self._batches(first_step, stop)) as batches:
                for step, batch in enumerate(batches, start=first_step):
                    sums += self.update(batch, step)
                    done = step + 1
                    last = done == self.feed.num_steps
                    self._note_failures(batch.failures, done, journal)
                    stopped_by = self._stopped_by(stop)
                    if done % self.recipe.log_every == 0 or last:
                        self._log(done, first_step, sums, clock, journal)
                        sums.zero_()
                    with clock.paused():
                        if self.recipe.validates_at(done):
                            self._validate(done, journal, stop)
                        # After log and validation: a run that goes on from here has them behind it.
                        if done % self.recipe.checkpoint_every == 0 or last or stopped_by:
                            self.checkpoints.save(done, self.model, self.optimisers, self.mean)
                    if stopped_by:
                        raise self._stopped_at(done, stopped_by)
        except KeyboardInterrupt:
            if stop.again or not stop.number:
                raise
            if done > first_step:
                self.checkpoints.save(done, self.model, self.optimisers, self.mean)
            raise self._stopped_at(done, stop.number) from None

    def _owes_validation(self, done: int) -> bool:
        """Whether a signal kept the run from the validation after `done` steps, the same in each process."""
        if not done or not self.recipe.validates_at(done):
            return False
        return not self.processes.any(self.processes.first and was_tested(self.folder, done))

    def _batches(self, first_step: int, stop: StopSignals) -> Generator[Batch, None, None]:
        """The feed's; a signal need not wait for the next one."""
        batches = self.feed.batches(first_step, self.processes.share)
        while True:
            with stop.at_once():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _stopped_by(self, stop: StopSignals) -> int:
        """The signal that came to any of the processes, the same in each; 0 if none did."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        came = self.processes.total(torch.tensor([float(stop.number == number) for number in numbers]))
        return next((int(number) for number, count in zip(numbers, came, strict=True) if count), 0)

    def _stopped_at(self, step: int, number: int) -> Interrupted:
        where = self.checkpoints.path(step)
        words = f"from {where}" if where.exists() else "from its beginning"
        return Interrupted(f"{self.folder}: stopped at step {step} as asked; start it again to go on {words}", number)

    def _log(self, done: int, first_step: int, sums: Tensor, clock: _Clock, journal: Journal | None) -> None:
        """Adds a line to the log, of the steps since the last one."""
        of_all = self.processes.total(sums)
        loss, clips, failed = of_all[:3].tolist()
        shares = of_all[3:].view(-1, 2).tolist()
        lap_s = clock.lap_s()
        progress = Progress(
            step=done,
            num_steps=self.feed.num_steps,
            loss=loss / max(clips, 1),
            figures={
                name: right / max(count, 1) for name, (right, count) in zip(self.objective.figures, shares, strict=True)
            },
            learning_rate=schedule(done - 1, self.plan, self.feed.num_steps) * self.plan.learning_rate,
            clips_per_s=clips / lap_s,
            elapsed_s=clock.elapsed_s,
            failed=int(failed),
            first_step=first_step,
        )
        if journal is not None:
            journal.training(progress.line())
            self.report(progress)

    def _note_failures(self, failures: tuple[Failure, ...], step: int, journal: Journal | None) -> None:
        """Counts and logs the videos that any process could not read in this step, and stops if they are too many."""
        if not self.processes.any(bool(failures)):
            return
        of_all = [failure for some in self.processes.gather(failures) for failure in some]
        if journal is not None:
            journal.failures(step, of_all)
        self.failed |= {failure.name: failure.reason for failure in of_all}
        self.feed.accept(self.failed)

    def _validate(self, step: int, journal: Journal | None, stop: StopSignals) -> None:
        """Tests the model as it is now; the best so far is kept in `best`."""
        tested = self.folder / "tested"
        self.export(step, tested)
        with stop.at_once():
            figures = self.objective.test(tested, self.processes)
        self.processes.wait()  # all have loaded it
        if journal is None:
            return
        self.objective.draw(tested, self.folder / "pictures" / f"step-{step:08d}", self.processes)
        if figures[self.objective.score] > journal.best(self.objective.score):
            shutil.rmtree(self.folder / "best", ignore_errors=True)
            tested.rename(self.folder / "best")
        else:
            shutil.rmtree(tested)
        journal.validation({"step": step, **figures})

    def _no_sums(self) -> Tensor:
        """Loss, clips, failures, then for each of the objective's figures how much was right and out of how much."""
        return torch.zeros(3 + 2 * len(self.objective.figures), dtype=torch.float64)

    def update(self, batch: Batch, step: int) -> Tensor:
        """One step; returns the sums that the log is made of, see `_no_sums`."""
        # What is drawn in a step depends on nothing but the step, whatever was drawn before it.
        draws = np.random.SeedSequence([self.recipe.seed, 6, step, self.processes.share.rank])
        torch.manual_seed(int(draws.generate_state(1, np.uint64)[0]))
        rate = schedule(step, self.plan, self.feed.num_steps)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * rate
        self.model.zero_grad(set_to_none=True)
        num_clips = max(float(self.processes.total(torch.tensor(float(len(batch))))), 1.0)
        sums = self._no_sums()
        sums[1], sums[2] = len(batch), len(batch.failures)
        for part in self._parts(batch.to(self.processes.device)):
            loss, shares = self._backward(part, num_clips)
            sums[0] += loss.item()
            sums[3:] += shares.flatten()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not (math.isfinite(float(self.processes.total(sums)[0])) and math.isfinite(float(norm))):
            self._give_up(batch, step)
        for optimiser in self.optimisers:
            optimiser.step()
        if self.mean is not None:
            self.mean.update(self.model)
        return sums

    def _backward(self, part: Batch, num_clips: float) -> PartLoss:
        """Adds a part's gradient; returns the sum of its losses, and what it got right."""
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.network(*part.inputs)
        loss, shares = self.objective.loss(out, part)
        # Processes average their gradients; what is wanted is the mean over all clips of all of them.
        (loss * (self.processes.share.count / num_clips)).backward()
        return PartLoss(loss.detach(), shares)

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """The batch in the parts that go through the model together, as many in every process and every step.

        All processes have to take part in every pass: where there is no clip for one, it shows a blank one that counts
        nothing.
        """
        for part in batch.split(self.plan.accumulation):
            yield part if len(part) else self.objective.blank(self.recipe.preprocessing, self.processes.device)

    def _give_up(self, batch: Batch, step: int) -> None:
        """Leaves everything that is needed to compute this step again."""
        left = self.folder / f"failed-step-{step:08d}"
        self.model.zero_grad(set_to_none=True)
        Checkpoints(left, self.processes, keep=1).save(step, self.model, self.optimisers, self.mean)
        name = f"batch-{self.processes.share.rank}.safetensors"
        with writing(left / name):
            save_file({key: tensor.contiguous() for key, tensor in batch.tensors().items()}, left / name)
        raise DataError(
            f"step {step}: loss or gradient is not finite; weights before the step and its batch are in {left}. "
            "Try a smaller learning rate or a longer warm-up"
        )


class _Clock:
    """Seconds since the loop began, and of the steps since the last line of the log."""

    def __init__(self) -> None:
        self._begun_s = self._last_s = time.perf_counter()
        self._paused_s = 0.0

    @property
    def elapsed_s(self) -> float:
        return self._last_s - self._begun_s

    def lap_s(self) -> float:
        """Since the last call, without pauses."""
        last_s, self._last_s = self._last_s, time.perf_counter()
        paused_s, self._paused_s = self._paused_s, 0.0
        return self._last_s - last_s - paused_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done within is no part of the steps."""
        begun_s = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - begun_s
