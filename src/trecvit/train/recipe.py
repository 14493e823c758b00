"""A recipe: one YAML file that says everything a training run depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trecvit.config import ModelConfig, Preprocessing, model_config, refuse_unknown
from trecvit.data.world import LABELS, WorldConfig
from trecvit.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimisation:
    """How the weights are moved. AdamW, linear warm-up, cosine decay to zero (paper, Table 9, and Table 10's AdamW).

    Attributes:
        num_steps: Updates in all.
        batch_size: Clips per update; even, because clips come in contrasting pairs.
        learning_rate: The peak.
        weight_decay: On matrices only; norms, biases, positions and the recurrence's eigenvalues are left alone.
        warmup_steps: Updates until the peak.
        label_smoothing: Share of the target spread over all classes.
        clip_norm: Largest norm of the whole gradient.
        bf16: Matrix products in bfloat16 (autocast); weights, recurrence and loss stay float32.
    """

    num_steps: int
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    label_smoothing: float = 0.1
    clip_norm: float = 1.0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.num_steps < 1 or self.batch_size < 2 or self.batch_size % 2 or self.warmup_steps < 0:
            raise ConfigError(
                "optimisation: expected num_steps >= 1, warmup_steps >= 0 and an even batch_size >= 2, got "
                f"{self.num_steps}, {self.warmup_steps} and {self.batch_size}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A training run on the synthetic world.

    Attributes:
        model: The architecture.
        preprocessing: What the trained model will expect of videos.
        world: The scenes.
        photographs: Whether textures are also cut from photographs (scikit-image's, the training split).
        optimisation: How the weights are moved.
        whiten: Begin with a patch embedding that whitens the world's patches, see `whiten_patches`.
        conv_scale: Factor on the initial weights of the temporal convolutions.
        seed: Of the initial weights; the world's scenes have `world_seed`.
        world_seed: Of the training scenes.
        num_workers: Processes that render scenes beside the training process.
        log_every: Steps between two lines of the log.
        checkpoint_every: Steps between two checkpoints.
    """

    model: ModelConfig
    preprocessing: Preprocessing
    world: WorldConfig
    optimisation: Optimisation
    photographs: bool = True
    whiten: bool = False
    conv_scale: float = 1.0
    seed: int = 0
    world_seed: int = 0
    num_workers: int = 1
    log_every: int = 20
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.model.num_classes != len(LABELS):
            raise ConfigError(f"model.num_classes: the world has {len(LABELS)} classes, got {self.model.num_classes}")
        if self.world.image_size != self.preprocessing.image_size:
            raise ConfigError(
                f"world.image_size {self.world.image_size} and preprocessing.image_size "
                f"{self.preprocessing.image_size} must be the same"
            )

    def to_dict(self) -> dict[str, Any]:
        """Everything resolved, as plain JSON values."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "model": self.model.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "world": dataclasses.asdict(self.world),
            "optimisation": dataclasses.asdict(self.optimisation),
        }


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: The YAML file. `model` takes `preset` and any fields of `ModelConfig`.
        overrides: Words of the form "section.key=value" that replace single values.

    Raises:
        ConfigError: when the file or a word is not understood; names the nearest key.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: expected a recipe in YAML: {exc}") from exc
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a recipe in YAML, got {type(content).__name__}")
    for word in overrides:
        _override(content, word)
    try:
        return _recipe(content)
    except (ConfigError, TypeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def _override(content: dict[str, Any], word: str) -> None:
    name, equals, value = word.partition("=")
    *sections, key = name.split(".")
    if not equals or not key:
        raise ConfigError(f"expected section.key=value, got {word!r}")
    target = content
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{word!r}: {section!r} is a value, not a section")
    target[key] = yaml.safe_load(value)


def _recipe(content: Mapping[str, Any]) -> Recipe:
    sections = {"model", "preprocessing", "world", "optimisation"}
    plain = {key: value for key, value in content.items() if key not in sections}
    refuse_unknown(Recipe, content)
    for key, value in plain.items():
        if isinstance(value, (dict, list)):
            raise ConfigError(f"{key!r} is a value, not a section; got {value!r}")
    model = dict(content.get("model", {}))
    world, optimisation = dict(content.get("world", {})), content.get("optimisation", {})
    refuse_unknown(WorldConfig, world)
    refuse_unknown(Optimisation, optimisation)
    if "image_size" in world:
        world["image_size"] = tuple(world["image_size"])
    return Recipe(
        model=model_config(model.pop("preset", "tiny"), **model),
        preprocessing=Preprocessing.from_dict(content.get("preprocessing", {})),
        world=WorldConfig(**world),
        optimisation=Optimisation(**optimisation),
        **plain,
    )
