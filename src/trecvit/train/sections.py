"""Sections of a recipe that every task has, and how sections are read: dataclasses that refuse impossible values."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trecvit.config import BlocksConfig, ModelConfig, Preprocessing, Recompute, refuse_unknown
from trecvit.errors import ConfigError

AutoSwitch = bool | Literal["auto"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimisation:
    """AdamW, linear warm-up, cosine decay to zero (paper, Table 9, and Table 10's AdamW).

    A small randomly initialised model learns several times faster if Muon (Jordan et al. 2024, `torch.optim.Muon`)
    updates the matrices of its blocks: updates with equal singular values.

    Attributes:
        num_steps: Updates in total; 0 with `epochs`.
        epochs: Passes over the videos; 0 with `num_steps`. Scenes are endless and have no epochs.
        batch_size: Clips per update over all processes.
        accumulation: Micro-batches per update: less memory, the same update.
        learning_rate: Peak learning rate.
        muon_learning_rate: Peak learning rate of Muon for the blocks' linear layers; 0: AdamW for these too.
        embedding_rate: Factor on the patch embedding's learning rate. It has many inputs; at the full rate its initial
            values would be lost before the other layers have learnt to use them.
        spatial_rate: Factor on the learning rate of the spatial blocks and the final norm; small if they start from a
            ViT, so that the temporal parts and the head learn before these change much.
        beta2: AdamW's decay of the second moment.
        weight_decay: On matrices only; none on norms, biases, positions and the recurrence's eigenvalues.
        warmup_steps: Updates until the peak.
        label_smoothing: Share of the target spread over all classes, for classification.
        head_dropout: Dropout before the classifier (paper, Table 9, "cls dropout").
        clip_norm: Largest norm of the gradient.
        bf16: Matrix multiplications in bfloat16 (autocast); weights, recurrence and loss stay float32. "auto": where
            the device has instructions for it; elsewhere it would be slower. A resumed run keeps its first choice.
        ema_decay: Decay of an exponential moving average of the weights, which is saved instead of them; 0: none.
        recompute: Activations to recompute in the backward pass to save memory, see `VideoModel.recompute`.
        compile: Compile the model with torch.compile.
        frozen_blocks: Number of first blocks that are not trained, nor is the tokenizer; they must have no temporal
            part, see `ModelConfig.temporal_from`. For classification.
        token_dropout: Share of the patches that are left out above the frozen blocks in training, the same in all
            frames of a batch (PatchDropout, arXiv:2208.07220): less time, and less overfitting.
        frozen_tokens: Folder where the frozen blocks' tokens of each frame are kept, 2 bytes per channel, so that later
            epochs and runs read them. Needs `videos.views`, without which no frame is seen twice. Empty: no folder.
    """

    num_steps: int = 0
    epochs: int = 0
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.0
    embedding_rate: float = 1.0
    spatial_rate: float = 1.0
    beta2: float = 0.999
    weight_decay: float = 0.05
    warmup_steps: int = 100
    label_smoothing: float = 0.1
    head_dropout: float = 0.0
    clip_norm: float = 1.0
    bf16: AutoSwitch = "auto"
    ema_decay: float = 0.0
    recompute: Recompute = "nothing"
    compile: bool = False
    frozen_blocks: int = 0
    token_dropout: float = 0.0
    frozen_tokens: str = ""

    def __post_init__(self) -> None:
        if (self.num_steps > 0) == (self.epochs > 0) or min(self.num_steps, self.epochs) < 0:
            raise ConfigError(
                "optimisation: expected num_steps or epochs, one of them above 0, "
                f"got {self.num_steps} and {self.epochs}"
            )
        require_range(
            "optimisation",
            self,
            ("learning_rate", "muon_learning_rate", "embedding_rate", "spatial_rate", "weight_decay"),
        )
        require_range("optimisation", self, ("label_smoothing",), most=1.0)
        if not self.clip_norm > 0:  # infinity clips nothing
            raise ConfigError(f"optimisation.clip_norm: expected more than 0, got {self.clip_norm}")
        if self.frozen_blocks < 0 or ((self.frozen_tokens or self.token_dropout) and not self.frozen_blocks):
            raise ConfigError(
                "optimisation.frozen_blocks: expected 0 or more, and more than 0 with frozen_tokens or token_dropout, "
                f"got {self.frozen_blocks}"
            )
        if self.batch_size < 1 or self.warmup_steps < 0 or self.accumulation < 1:
            raise ConfigError(
                "optimisation: expected batch_size >= 1, accumulation >= 1 and warmup_steps >= 0, got "
                f"{self.batch_size}, {self.accumulation} and {self.warmup_steps}"
            )
        require_choice("optimisation.recompute", self.recompute, Recompute)
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"optimisation.ema_decay: expected 0 up to but not 1, got {self.ema_decay}")
        for name in ("beta2", "head_dropout", "token_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimisation.{name}: expected 0 up to but not 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Initial weights.

    Attributes:
        weights: A trained model, in any form that `trecvit.load` takes. Its classifier is kept if its classes are the
            data's, else randomly initialised. For the paper's tracker also a classification model as backbone.
        vit: A published ViT for the spatial layers, see `trecvit.weights.imagenet`.
        whiten_grain_px: Initialise the patch embedding to whiten the data's patches down to this grain, see
            `whiten_patches`; 0: random.
        conv_scale: Factor on the initial weights of the temporal convolutions.
        temporal_scale: Factor on the initial weights of the temporal parts' last layers; with 0 each of them starts as
            the identity, and the model as the ViT of `vit`.
        positions_scale: Factor on the initial positions.
    """

    weights: str = ""
    vit: str = ""
    whiten_grain_px: int = 0
    conv_scale: float = 1.0
    temporal_scale: float = 1.0
    positions_scale: float = 1.0

    def __post_init__(self) -> None:
        require_range("start", self, ("conv_scale", "temporal_scale", "positions_scale"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A recipe without its task.

    Attributes:
        model: Architecture of a classifier or of a point tracker.
        preprocessing: Preprocessing that the trained model will expect.
        optimisation: Optimisers, schedule and precision.
        start: Initial weights.
        seed: Of the initial weights, the order of the videos and their augmentation.
        num_workers: Data-loading processes beside each training process.
        log_every: Steps between two lines of the log.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: Number of latest checkpoints to keep.
    """

    model: ModelConfig | BlocksConfig
    preprocessing: Preprocessing
    optimisation: Optimisation
    start: Start = field(default_factory=Start)
    seed: int = 0
    num_workers: int = 1
    log_every: int = 20
    checkpoint_every: int = 200
    keep_checkpoints: int = 3

    def __post_init__(self) -> None:
        positive = (self.log_every, self.checkpoint_every, self.keep_checkpoints)
        if min(positive) < 1 or min(self.num_workers, self.seed) < 0:
            raise ConfigError(
                "expected log_every, checkpoint_every and keep_checkpoints of 1 or more, num_workers and seed of 0 or "
                f"more, got {', '.join(map(str, positive))}, {self.num_workers} and {self.seed}"
            )
        grain, patch_size = self.start.whiten_grain_px, self.blocks.patch_size
        if grain < 0 or (grain and patch_size % grain):
            raise ConfigError(f"whiten_grain_px: expected 0 or a divisor of patch_size={patch_size}, got {grain}")

    @property
    def blocks(self) -> ModelConfig:
        """Architecture of tokenizer and blocks."""
        return self.model if isinstance(self.model, ModelConfig) else self.model.blocks

    def require_num_steps(self, endless: str) -> None:
        """Raises ConfigError unless the optimisation counts steps: endless clips have no epochs."""
        if not self.optimisation.num_steps:
            raise ConfigError(f"optimisation: {endless} are endless; give num_steps, not epochs")


def require_range(
    name: str, section: object, keys: Sequence[str], *, least: float = 0.0, most: float = sys.float_info.max
) -> None:
    """Raises ConfigError for a field of a section outside of a range."""
    for key in keys:
        if not least <= (value := getattr(section, key)) <= most:  # false for NaN too
            limits = f"{least:g} or more" if most == sys.float_info.max else f"{least:g} to {most:g}"
            raise ConfigError(f"{name}.{key}: expected {limits}, got {value}")


def require_choice(name: str, value: str, choices: Any) -> None:
    """Raises ConfigError for a value that is not in a Literal."""
    if value not in get_args(choices):
        raise ConfigError(f"{name}: expected one of {', '.join(get_args(choices))}, got {value!r}")


def fields_of(section: type | None, value: Any, name: str) -> dict[str, Any]:
    """Copy a section's values; refuse a plain value, and keys that are not fields of the dataclass, if any is given."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name!r} is a section, not a value; got {value!r}")
    if section is None:
        return dict(value)
    refuse_unknown(section, value)
    return plain_values(section, value, f"{name}.")


def plain_values(section: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Copy values, converted to the types of a dataclass's float, int and bool fields.

    YAML reads 1e-3 as text and 0 as an integer; a float field accepts both.
    """
    read = {"float": _real, "int": _whole, "bool": _switch, "AutoSwitch": _auto_switch}
    kinds = {entry.name: read[entry.type] for entry in dataclasses.fields(section) if entry.type in read}
    return {key: kinds[key](f"{prefix}{key}", value) if key in kinds else value for key, value in values.items()}


def _real(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: expected a number, got {value!r}") from None


def _whole(key: str, value: Any) -> int:
    number = math.nan if isinstance(value, bool) else _real(key, value)
    if not number.is_integer():
        raise ConfigError(f"{key}: expected a whole number, got {value!r}")
    return value if isinstance(value, int) else int(number)


def _switch(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: expected true or false, got {value!r}")
    return value


def _auto_switch(key: str, value: Any) -> AutoSwitch:
    if value == "auto":
        return "auto"
    if not isinstance(value, bool):
        raise ConfigError(f"{key}: expected auto, true or false, got {value!r}")
    return value
