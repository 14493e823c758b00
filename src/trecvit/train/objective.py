"""What a training loop trains for: the loss, the figures that are logged beside it, and how a model is tested."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from trecvit.config import Preprocessing
from trecvit.processes import Processes
from trecvit.train.feed import Batch

_Batch = TypeVar("_Batch", bound=Batch)
_Output = TypeVar("_Output")


class PartLoss(NamedTuple):
    """What comes out for some clips.

    Attributes:
        total: Sum of the clips' losses, to be made small.
        shares: For each of the objective's figures, how much was right and out of how much, float64 on the CPU.
    """

    total: Float[Tensor, ""]
    shares: Float[Tensor, "figures 2"]


class Objective(ABC, Generic[_Batch, _Output]):
    """One of the things that a model can be trained for.

    Attributes:
        figures: Names of what is logged beside the loss; each is a share from 0 to 1.
        score: Which figure of a test tells the better model, by being higher.
    """

    figures: ClassVar[tuple[str, ...]]
    score: ClassVar[str]

    def prepare(self, model: Any) -> None:
        """Sets what a model does in training only.

        Raises:
            TRecViTError: when the model could not be tested. Now, and not after hours of training.
        """

    @abstractmethod
    def blank(self, preprocessing: Preprocessing, device: torch.device) -> _Batch:
        """One clip that counts nothing: no gradient, nothing in the log."""

    @abstractmethod
    def loss(self, out: _Output, part: _Batch) -> PartLoss:
        """What the model's output is worth."""

    @abstractmethod
    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """Figures of a short test of a saved model on the way, `score` among them. All processes call it."""

    def draw(self, model: Path, folder: Path, processes: Processes) -> None:
        """Makes pictures of what a saved model on the way does, if there is something to see; in the first process."""

    @abstractmethod
    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """Tests the trained model thoroughly, if there is something to test it on, and writes into `folder`."""
