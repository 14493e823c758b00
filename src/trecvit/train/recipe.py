"""A recipe: one YAML file with all that determines a training run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trecvit.config import Architecture, BlocksConfig, ModelConfig, Preprocessing, model_config, nearest
from trecvit.errors import ConfigError
from trecvit.model.local_tracker import LocalTrackerConfig
from trecvit.model.readout_tracker import ReadoutTrackerConfig
from trecvit.model.readouts import PointReadoutConfig
from trecvit.model.tapnext import TrackerConfig
from trecvit.train.feed import Batch, Feed
from trecvit.train.objective import Objective
from trecvit.train.sections import Optimisation, Settings, Start, fields_of, plain_values
from trecvit.train.task import Task
from trecvit.train.tasks import TASKS, task_of

_RECIPES = Path(__file__).parent.parent / "recipes"
_TRACKERS: dict[str, type[BlocksConfig]] = {"readout": ReadoutTrackerConfig, "fine_width": LocalTrackerConfig}
"""Configurations of trackers by a field that no other has; else `TrackerConfig`."""
_PAPERS = "memory"  # a section whose task the package does not have


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe(Settings):
    """A training run.

    Attributes:
        task: What is trained for, with its data.
    """

    task: Task

    def __post_init__(self) -> None:
        Settings.__post_init__(self)  # super() fails in a dataclass with slots
        self.task.check(self)

    @property
    def architecture(self) -> Architecture:
        """Configuration of the network that is trained: the model, or an autoencoder around it."""
        return self.task.architecture(self)

    @property
    def origin(self) -> str:
        """Path of the training data, or "the synthetic world"."""
        return self.task.origin or "the synthetic world"

    def feed(self) -> Feed[Batch]:
        """The training batches, see `Task.feed`."""
        return self.task.feed(self)

    def objective(self) -> Objective[Any, Any]:
        """Loss and tests, see `Task.objective`."""
        return self.task.objective(self)

    def validates_at(self, step: int) -> bool:
        """Whether the model is tested after `step` updates."""
        return self.task.validate_every > 0 and step % self.task.validate_every == 0

    def to_dict(self) -> dict[str, Any]:
        """All values as plain JSON ones, with the default values; None for the sections of other tasks."""
        settings = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(Settings)}
        return {
            **settings,
            "model": self.model.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
            "optimisation": dataclasses.asdict(self.optimisation),
            "start": dataclasses.asdict(self.start),
            **dict.fromkeys(TASKS),
            **self.task.to_dict(),
        }


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: The YAML file, or the name of a recipe of the package, such as "world". `model` takes `preset` and any
            fields of `ModelConfig`; for a tracker `blocks` takes these, beside other fields of `TrackerConfig` or a
            `readout` with those of `PointReadoutConfig`.
        overrides: Values to replace, as "section.key=value".

    Raises:
        ConfigError: for a file or an override that is not valid; names the nearest key.
    """
    path = _packaged(path)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: expected a recipe in YAML: {exc}") from exc
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a recipe in YAML, got {type(content).__name__}")
    for override in overrides:
        _override(content, override)
    try:
        return recipe_from_dict(content)
    except (ConfigError, TypeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def recipe_names() -> list[str]:
    """Names of the package's recipes, sorted."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def _packaged(path: str | Path) -> str | Path:
    """The file of a recipe that is given by its name; any other path unchanged."""
    packaged = _RECIPES / f"{path}.yaml"
    is_name = Path(path).name == str(path) and not Path(path).suffix and not Path(path).exists()
    if not is_name or packaged.exists():
        return packaged if is_name else path
    names = recipe_names()
    raise ConfigError(f"expected a recipe file or one of {', '.join(names)}, got {path}{nearest(str(path), names)}")


def recipe_from_dict(content: Mapping[str, Any]) -> Recipe:
    """Build a recipe from the values of its YAML file.

    Raises:
        ConfigError: for unknown keys, with the nearest one, and for impossible values.
    """
    keys = [*(entry.name for entry in dataclasses.fields(Settings)), *TASKS]
    for key, value in content.items():
        if key not in keys and value is not None:
            if key == _PAPERS:
                raise ConfigError(f"{key!r}: this section needs `scripts/paper train`, in a checkout of the repository")
            raise ConfigError(f"Recipe has no field {key!r}{nearest(key, keys)}; its fields are {', '.join(keys)}")
    values = {key: value for key, value in content.items() if key in keys}
    sections = {name: values.pop(name, None) for name in TASKS}
    settings: dict[str, Any] = {
        "model": _architecture(fields_of(None, values.pop("model", {}), "model")),
        "preprocessing": Preprocessing.from_dict(fields_of(None, values.pop("preprocessing", {}), "preprocessing")),
        "optimisation": Optimisation(**fields_of(Optimisation, values.pop("optimisation", {}), "optimisation")),
        "start": Start(**fields_of(Start, values.pop("start", {}), "start")),
    }
    for key, value in values.items():
        if isinstance(value, (dict, list)):
            raise ConfigError(f"{key!r} is a value, not a section; got {value!r}")
    settings |= plain_values(Settings, values)
    return Recipe(**settings, task=task_of(sections).from_sections(sections, Settings(**settings)))


def _architecture(values: dict[str, Any]) -> ModelConfig | BlocksConfig:
    if "blocks" not in values:
        return model_config(values.pop("preset", "tiny"), **values)
    kind = next((kind for field, kind in _TRACKERS.items() if field in values), TrackerConfig)
    fields = fields_of(kind, values, "model")
    blocks = fields_of(None, fields.pop("blocks"), "model.blocks")
    if "readout" in fields:
        fields["readout"] = PointReadoutConfig(**fields_of(PointReadoutConfig, fields["readout"], "model.readout"))
    return kind(blocks=model_config(blocks.pop("preset", "tiny"), **blocks), **fields)


def _override(content: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    *sections, key = name.split(".")
    if not equals or not key:
        raise ConfigError(f"expected section.key=value, got {override!r}")
    target = content
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"{override!r}: {section!r} is a value, not a section")
    try:
        target[key] = yaml.safe_load(value)
    except yaml.YAMLError as exc:
        raise ConfigError(f"{override!r}: expected a value in YAML: {exc}") from exc
