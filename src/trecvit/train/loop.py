"""The training loop, for any task, in one process or several.

A run has a folder: `recipe.json` (resolved), `run.json` (versions, commit, machine), `start.txt` (source of the initial
weights), `metrics.jsonl`, `validation.jsonl` and the same as TensorBoard's events, `failures.jsonl` after unreadable
videos, `checkpoints/`, `best/`, an autoencoder's `pictures/` and, at the end, `model/`, `evaluation/` and `curves.png`.
A run that was killed resumes from its last checkpoint under the same recipe, bit-exact on a CPU.
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

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trecvit.data.clips import Failure
from trecvit.draws import Stream, torch_seed
from trecvit.errors import DataError, Interrupted
from trecvit.files import only_writer, write_text, writing
from trecvit.pretrained import check_path
from trecvit.processes import Processes
from trecvit.train.checkpoints import Checkpoints
from trecvit.train.feed import Batch, Feed
from trecvit.train.initialise import initial_model
from trecvit.train.networks import Trainable, load_trained
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.optimise import RunningMean, optimisers_of, schedule, uses_bf16
from trecvit.train.parallel import save_whole, wrap_parallel
from trecvit.train.recipe import Recipe
from trecvit.train.run_folder import (
    Journal,
    claim,
    draw_curves,
    failures_so_far,
    resolved,
    steps_if_finished,
    was_tested,
)
from trecvit.train.stop import StopSignals


@dataclass(frozen=True)
class Progress:
    """One line of the log: means over the steps since the previous line.

    Attributes:
        step: Finished updates.
        num_steps: Updates in total.
        loss: Mean over the training clips.
        figures: The objective's figures of the training clips, such as the accuracy.
        learning_rate: Current learning rate.
        clips_per_s: Throughput of all processes.
        elapsed_s: Time since the loop of this process started.
        failed: Unreadable videos since the previous line.
        first_step: Step from which this process started or resumed.
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
        """All values by name, the figures among them."""
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
) -> Trainable:
    """Train a model and write it to `folder`/model.

    Args:
        recipe: The recipe.
        folder: The run folder. An unfinished run of the same recipe is resumed, a finished one is not changed.
        processes: The processes of the run, and the device; by default this one alone, on the CPU.
        parallel: How several processes share the model, "ddp" or "fsdp".
        report: Called with every line of the log, in the first process.

    Raises:
        BusyError: when another process trains in the folder.
        CheckpointError: when the folder has another recipe's run, its data have changed, all its checkpoints are
            damaged, or its path is not UTF-8.
        DataError: when the loss is not finite, or too many videos cannot be read.
        Interrupted: after Ctrl-C or SIGTERM, with a checkpoint of the latest step.
        KeyboardInterrupt: after a second Ctrl-C, which stops at once, or one before the first step or after the last.
        StorageError: when a file cannot be written, as on a full disk; the run can be resumed then.
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
    recipe = resolved(folder, recipe)
    torch.manual_seed(recipe.seed)
    feed, objective = recipe.feed(), recipe.objective()
    model, source = initial_model(recipe, feed)
    if processes.first:
        write_text(folder / "start.txt", source + "\n")
    loop = Loop(recipe, folder, feed, objective, model.to(processes.device), processes, parallel, report)
    if not loop.run() and finished:
        return
    loop.export(feed.num_steps, folder / "model")
    objective.evaluate(folder / "model", folder / "evaluation", processes)
    if processes.first and find_spec("matplotlib"):
        draw_curves({folder.name: folder}, folder / "curves.png")
    processes.wait()


class Loop:
    """A run in training: model, optimisers, feed and log.

    Args:
        recipe: The recipe.
        folder: The run folder.
        feed: The batches.
        objective: Loss and tests.
        model: The initial model, on the processes' device.
        processes: The processes of the run.
        parallel: "ddp" or "fsdp".
        report: Called with every line of the log, in the first process.
    """

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
        self.network = wrap_parallel(model, processes, parallel)
        if self.plan.compile:
            self.network.compile()
        self.optimisers = optimisers_of(model, self.plan)
        self.mean = RunningMean(model, self.plan.ema_decay) if self.plan.ema_decay else None
        self.checkpoints = Checkpoints(folder / "checkpoints", processes, keep=recipe.keep_checkpoints)
        self.failed: dict[str, str] = {}  # unreadable videos of all processes, and the reasons

    def run(self) -> int:
        """Train from the last checkpoint, if there is one, to the end; return the number of steps."""
        first_step = self.checkpoints.resume(self.model, self.optimisers, self.mean)
        if first_step == self.feed.num_steps and not self._is_missing_validation(first_step):
            return 0
        journal = Journal(self.folder, first_step) if self.processes.first else None
        self.processes.wait()
        self.failed = failures_so_far(self.folder)
        try:
            with StopSignals(alone=self.processes.share.count == 1) as stop:
                self._train(first_step, journal, stop)
        finally:
            if journal is not None:
                journal.close()
        return self.feed.num_steps - first_step

    def export(self, step: int, folder: Path) -> None:
        """Write the model after `step` updates, with averaged weights if the recipe has `ema_decay`."""
        self.model.provenance = {"source": f"trained for {step} steps", "data": self.recipe.origin}
        with self.mean.applied_to(self.model) if self.mean is not None else nullcontext():
            save_whole(self.model, folder, self.processes)

    def _train(self, first_step: int, journal: Journal | None, stop: StopSignals) -> None:
        clock = _Clock()
        sums = self._no_sums()
        done = first_step
        try:
            if self._is_missing_validation(done):
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
                        # After log and validation: a run that resumes here does not repeat them.
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

    def _is_missing_validation(self, done: int) -> bool:
        """Whether a signal prevented the validation after `done` steps; the same in each process."""
        if not done or not self.recipe.validates_at(done):
            return False
        return not self.processes.any(self.processes.first and was_tested(self.folder, done))

    def _batches(self, first_step: int, stop: StopSignals) -> Generator[Batch, None, None]:
        """The feed's batches; a signal can interrupt the wait for the next one."""
        batches = self.feed.batches(first_step, self.processes.share)
        while True:
            with stop.at_once():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _stopped_by(self, stop: StopSignals) -> int:
        """The signal that any of the processes received, the same in each; 0: none."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        received = self.processes.total(torch.tensor([float(stop.number == number) for number in numbers]))
        return next((int(number) for number, count in zip(numbers, received, strict=True) if count), 0)

    def _stopped_at(self, step: int, number: int) -> Interrupted:
        where = self.checkpoints.path(step)
        words = f"from {where}" if where.exists() else "from its beginning"
        return Interrupted(f"{self.folder}: interrupted at step {step}; repeat the command to resume {words}", number)

    def _log(self, done: int, first_step: int, sums: Tensor, clock: _Clock, journal: Journal | None) -> None:
        """Add a line to the log, of the steps since the previous one."""
        totals = self.processes.total(sums)
        loss, clips, failed = totals[:3].tolist()
        shares = totals[3:].view(-1, 2).tolist()
        lap_s = clock.lap_s()
        progress = Progress(
            step=done,
            num_steps=self.feed.num_steps,
            loss=loss / max(clips, 1),
            figures={
                name: share / max(total, 1) for name, (share, total) in zip(self.objective.figures, shares, strict=True)
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
        """Count and log unreadable videos of this step in all processes; stop at too many."""
        if not self.processes.any(bool(failures)):
            return
        gathered = [failure for some in self.processes.gather(failures) for failure in some]
        if journal is not None:
            journal.failures(step, gathered)
        self.failed |= {failure.name: failure.reason for failure in gathered}
        self.feed.accept(self.failed)

    def _validate(self, step: int, journal: Journal | None, stop: StopSignals) -> None:
        """Test the current model; keep the best one in `best`."""
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
        """Loss, clips, failures, then numerator and denominator of each of the objective's figures."""
        return torch.zeros(3 + 2 * len(self.objective.figures), dtype=torch.float64)

    def update(self, batch: Batch, step: int) -> Tensor:
        """Run one step; return its sums for the log, see `_no_sums`."""
        # Random numbers of a step depend on the step alone, so that resuming is exact.
        torch.manual_seed(torch_seed(self.recipe.seed, Stream.STEP, step, self.processes.share.rank))
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
        """Add a part's gradient; return the sum of its losses, and its figures."""
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=self.bf16):
            out = self.objective.output(self.network, part)
        loss, shares = self.objective.loss(out, part)
        # Processes average their gradients; the result must be the mean over the clips of all of them.
        (loss * (self.processes.share.count / num_clips)).backward()
        return PartLoss(loss.detach(), shares)

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        """Split the batch for gradient accumulation, into as many parts in every process and every step.

        Every process must take part in every pass: an empty part becomes a blank clip without effect.
        """
        for part in batch.split(self.plan.accumulation):
            yield part if len(part) else self.objective.blank(self.recipe.preprocessing, self.processes.device)

    def _give_up(self, batch: Batch, step: int) -> None:
        """Write all that is needed to repeat this step, and raise DataError."""
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
    """Time since the loop started, and since the previous line of the log."""

    def __init__(self) -> None:
        self._started_s = self._last_s = time.perf_counter()
        self._paused_s = 0.0

    @property
    def elapsed_s(self) -> float:
        return self._last_s - self._started_s

    def lap_s(self) -> float:
        """Time since the previous call, without pauses."""
        last_s, self._last_s = self._last_s, time.perf_counter()
        paused_s, self._paused_s = self._paused_s, 0.0
        return self._last_s - last_s - paused_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the `with` block from the time of the steps."""
        started_s = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - started_s
