"""Objectives of the training loop: loss, logged figures, and tests of the model."""

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
    """Loss and figures of some clips.

    Attributes:
        total: Sum of the clips' losses.
        shares: Numerator and denominator of each of the objective's figures, float64 on the CPU.
    """

    total: Float[Tensor, ""]
    shares: Float[Tensor, "figures 2"]


class Objective(ABC, Generic[_Batch, _Output]):
    """Loss and tests of a task.

    Attributes:
        figures: Names of the figures that are logged beside the loss, shares from 0 to 1.
        score: The test's figure by which models are compared; higher is better.
    """

    figures: ClassVar[tuple[str, ...]]
    score: ClassVar[str]

    def prepare(self, model: Any) -> None:
        """Set the model's training-only options, and check that it can be tested.

        Raises:
            TRecViTError: when it cannot: before training, not after hours of it.
        """

    def output(self, network: Any, part: _Batch) -> _Output:
        """Output of the network, wrapped for several processes if there are, in training."""
        output: _Output = network(*part.inputs)
        return output

    @abstractmethod
    def blank(self, preprocessing: Preprocessing, device: torch.device) -> _Batch:
        """One clip without effect on gradients and figures."""

    @abstractmethod
    def loss(self, out: _Output, part: _Batch) -> PartLoss:
        """Loss and figures of the model's output."""

    @abstractmethod
    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """Figures of a short test of a saved model, with `score`. All processes call it."""

    def draw(self, model: Path, folder: Path, processes: Processes) -> None:
        """Draw a saved model's outputs, if they are pictures; in the first process."""

    @abstractmethod
    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """Test the trained model thoroughly and write into `folder`, if there is data to test on."""
