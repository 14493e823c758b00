"""What the training loop asks of a network that TRecViT is compared with."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from trecvit.config import Recompute
from trecvit.errors import ConfigError
from trecvit.pretrained import Pretrained


class Baseline(Pretrained):
    """A network of Hugging Face transformers' blocks that is trained by the same loop as a `VideoModel`."""

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """Its layers, whose linear maps have an optimiser of their own and whose weights are spread together."""

    @property
    @abstractmethod
    def embedding(self) -> nn.Conv3d:
        """What makes tokens of patches."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device

    @property
    def recompute(self) -> Recompute:
        """What is computed again in the backward pass instead of being kept: nothing."""
        return "nothing"

    @recompute.setter
    def recompute(self, what: Recompute) -> None:
        if what != "nothing":
            raise ConfigError(f"optimisation.recompute: expected 'nothing' for {type(self).__name__}, got {what!r}")
