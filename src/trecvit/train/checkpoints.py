"""Atomic checkpoints of a run, the latest few of them, with a fallback to the previous one if the newest is damaged.

Each is a folder of safetensors files written by torch.distributed.checkpoint, one per process, so that sharded weights
are never gathered; no pickle. `whole.json` has the step and the hash of every file; a folder without it, or with a file
that does not match, is not a checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer

from trecvit.errors import CheckpointError
from trecvit.files import writing
from trecvit.processes import Processes
from trecvit.train.optimise import RunningMean

_WHOLE = "whole.json"
_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        folder: Their folder; the first `save` creates it.
        processes: Processes of the run, which save and resume together.
        keep: Number of latest checkpoints to keep.
    """

    def __init__(self, folder: Path, processes: Processes, *, keep: int) -> None:
        self.folder = folder
        self.processes = processes
        self.keep = keep

    def save(self, step: int, model: nn.Module, optimisers: list[Optimizer], mean: RunningMean | None = None) -> None:
        """Write all that is needed to resume after `step` updates; every process of a run calls this.

        Values that recipe and step determine, such as learning rates and random numbers, are not stored.

        Raises:
            StorageError: when it cannot be written; earlier checkpoints are unchanged.
        """
        target = self.path(step)
        part = target.with_name(f"{target.name}.part")
        try:
            with writing(target):
                self._write(part, step, self._tensors(model, optimisers, mean)[0])
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)  # it would keep a full disk full
            raise
        if self.processes.first:
            shutil.rmtree(target, ignore_errors=True)
            part.rename(target)
            for old in self._steps()[: -self.keep]:
                shutil.rmtree(old)
        self.processes.wait()

    def path(self, step: int) -> Path:
        """Folder of the checkpoint after `step` updates, which may not exist."""
        return self.folder / f"step-{step:08d}"

    def _write(self, part: Path, step: int, tensors: dict[str, Any]) -> None:
        if self.processes.first:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self.processes.wait()
        if step == 0:  # PyTorch creates an optimiser's first state by a step that changes no weights
            tensors |= {name: torch.zeros_like(value) for name, value in tensors.items() if name.endswith(".step")}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            writer = HuggingFaceStorageWriter(path=str(part), save_distributed=True)
            save(tensors, storage_writer=writer, no_dist=not dist.is_initialized())
        self.processes.wait()
        if self.processes.first:
            hashes = {file.name: _hash(file) for file in sorted(part.iterdir())}
            (part / _WHOLE).write_text(json.dumps({"step": step, "sha256": hashes}, indent=1) + "\n", encoding="utf-8")

    def resume(self, model: nn.Module, optimisers: list[Optimizer], mean: RunningMean | None = None) -> int:
        """Load the newest whole checkpoint and return its step; without any, return 0 and change no weights.

        A damaged one is skipped with a warning.

        Raises:
            CheckpointError: when there are checkpoints, but all are damaged, or the newest is of another model.
        """
        paths = self._steps()
        for path in reversed(paths):
            try:
                step = _step_if_whole(path)
            except CheckpointError as exc:
                warnings.warn(f"{exc}; resuming from the previous checkpoint", stacklevel=2)
                continue
            self._load(path, model, optimisers, mean)
            return step
        if paths:
            raise CheckpointError(f"{self.folder}: every checkpoint is damaged; remove the folder to start again")
        return 0

    def _steps(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_dir() and not path.name.endswith(".part"))

    def _tensors(
        self, model: nn.Module, optimisers: list[Optimizer], mean: RunningMean | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """All tensors of a run by name, and the optimisers' flat state, whose other values are the recipe's."""
        weights, optimiser_state = get_state_dict(model, optimisers, options=_FLAT)
        tensors: dict[str, Any] = {f"model.{name}": value for name, value in weights.items()}
        tensors |= {f"optimiser.{name}": value for name, value in optimiser_state.items() if isinstance(value, Tensor)}
        if mean is not None:
            tensors |= {f"mean.{name}": value for name, value in mean.weights.items()}
            tensors["num_mean_updates"] = mean.num_updates
        return tensors, dict(optimiser_state)

    def _load(self, path: Path, model: nn.Module, optimisers: list[Optimizer], mean: RunningMean | None) -> None:
        tensors, optimiser_state = self._tensors(model, optimisers, mean)  # those of the mean are loaded in place
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
                reader = HuggingFaceStorageReader(path=str(path))
                # `load` reads what it is asked for, and passes over the rest: a deeper model's blocks, for one.
                if unread := sorted(set(reader.read_metadata().state_dict_metadata) - set(tensors)):
                    raise ValueError(f"it also has {', '.join(unread[:3])}")
                load(tensors, storage_reader=reader, no_dist=not dist.is_initialized())
        except (CheckpointException, KeyError, RuntimeError, ValueError) as exc:
            raise CheckpointError(f"{path}: not a checkpoint of this model: {exc}") from exc
        set_state_dict(
            model,
            optimisers,
            model_state_dict=_under("model.", tensors),
            optim_state_dict={**optimiser_state, **_under("optimiser.", tensors)},
            options=_FLAT,
        )


def _under(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _step_if_whole(path: Path) -> int:
    try:
        content = json.loads((path / _WHOLE).read_text(encoding="utf-8"))
        for name, digest in content["sha256"].items():
            if _hash(path / name) != digest:
                raise CheckpointError(f"{path}: {name} is damaged")
        return int(content["step"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise CheckpointError(f"{path}: damaged checkpoint ({exc})") from exc


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
