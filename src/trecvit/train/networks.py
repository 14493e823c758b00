"""Networks that the training loop can train: the package's own, and others that are compared with them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from trecvit.config import Architecture, Preprocessing, Recompute
from trecvit.errors import ConfigError
from trecvit.model.trecvit import VideoModel
from trecvit.pretrained import Pretrained
from trecvit.weights.load import build_untrained, load


class OtherNetwork(Pretrained):
    """A network other than a `VideoModel` that the training loop can train."""

    @property
    @abstractmethod
    def blocks(self) -> nn.ModuleList:
        """Its layers: units of sharding, whose linear layers Muon can train."""

    @property
    @abstractmethod
    def embedding(self) -> nn.Conv3d:
        """The patch embedding."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embedding.weight.device

    @property
    def recompute(self) -> Recompute:
        """Always "nothing": all activations are saved."""
        return "nothing"

    @recompute.setter
    def recompute(self, activations: Recompute) -> None:
        if activations != "nothing":
            raise ConfigError(
                f"optimisation.recompute: expected 'nothing' for {type(self).__name__}, got {activations!r}"
            )

    def set_embedding(self, weight: Float[Tensor, "D 3 F side side"], bias: Float[Tensor, " D"]) -> None:
        """Set the patch embedding to these weights for pixels in [0,1]."""
        raise ConfigError(f"start.whiten_grain_px: expected 0 for {type(self).__name__}")


Trainable = VideoModel | OtherNetwork

OTHER_NETWORKS: dict[type, type[Trainable]] = {}
"""Networks that `trecvit.load` does not read, by their configuration's class; each has a row where it is defined."""


def untrained(
    config: Architecture,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> Trainable:
    """Build a randomly initialised network; only a TRecViT takes labels."""
    other: Any = OTHER_NETWORKS.get(type(config))
    if other is None:
        return build_untrained(config, preprocessing=preprocessing, labels=labels, provenance=provenance)
    network: Trainable = other(config, preprocessing=preprocessing, provenance=provenance)
    return network


def load_trained(config: Architecture, folder: str | Path, *, device: torch.device | str = "cpu") -> Trainable:
    """Load the model of a finished run of this architecture; of an autoencoder the encoder."""
    if (other := OTHER_NETWORKS.get(type(config))) is not None:
        return other.load(folder, device=device)
    return load(folder, device=device)
