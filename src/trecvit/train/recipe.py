"""A recipe: one YAML file that says everything a training run depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trecvit.baselines.video_transformers import VideoMaeConfig
from trecvit.config import (
    Architecture,
    BlocksConfig,
    MemoriserConfig,
    ModelConfig,
    Preprocessing,
    VivitMemoriserConfig,
    model_config,
    nearest,
    refuse_unknown,
)
from trecvit.errors import ConfigError
from trecvit.model.mae import AutoencoderConfig
from trecvit.model.readout_tracker import ReadoutTrackerConfig
from trecvit.model.readouts import PointReadoutConfig
from trecvit.model.tapnext import TrackerConfig
from trecvit.synthetic.world import LABELS
from trecvit.train.sections import (
    Mae,
    Memory,
    Optimisation,
    Scenes,
    Start,
    Tracks,
    Videos,
    Vivit,
    fields_of,
    plain_values,
)

_RECIPES = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A training run.

    Attributes:
        model: The architecture: of a classifier, or of a tracker of points.
        preprocessing: What the trained model will expect of videos.
        optimisation: How the weights are moved.
        scenes: A classifier's data, if they are the synthetic world's.
        videos: A classifier's data, if they are files.
        tracks: A tracker's data. One of the three.
        mae: Says that the model learns from `scenes` or `videos` without their classes.
        memory: Says that the model learns to return frames of the past, of `videos` or of scenery of its own.
        start: What the first weights are.
        seed: Of the initial weights, the order of the videos and their augmentation.
        num_workers: Processes that make clips beside each training process.
        log_every: Steps between two lines of the log.
        checkpoint_every: Steps between two checkpoints.
        keep_checkpoints: How many of them to keep, the newest.
    """

    model: ModelConfig | BlocksConfig
    preprocessing: Preprocessing
    optimisation: Optimisation
    scenes: Scenes | None = None
    videos: Videos | None = None
    tracks: Tracks | None = None
    mae: Mae | None = None
    memory: Memory | None = None
    start: Start = field(default_factory=Start)
    seed: int = 0
    num_workers: int = 1
    log_every: int = 20
    checkpoint_every: int = 200
    keep_checkpoints: int = 3

    def __post_init__(self) -> None:
        scenery = self.memory.scenery if self.memory is not None else None
        if [self.scenes, self.videos, self.tracks, scenery].count(None) != 3:
            raise ConfigError("expected `tracks`, `scenes`, `videos` or `memory.scenery`, one of them")
        if isinstance(self.model, ModelConfig) == (self.tracks is not None):
            raise ConfigError("a model with `blocks` is a tracker: expected `tracks` for it, and for no other model")
        if self.mae is not None:
            self._check_mae(self.mae)
        if self.memory is not None:
            self._check_memory(self.memory)
        if self.scenes is not None:
            self._check_scenes(self.scenes)
        if self.tracks is not None:
            self._check_tracks(self.tracks)
        if (
            min(self.log_every, self.checkpoint_every, self.keep_checkpoints) < 1
            or min(self.num_workers, self.seed) < 0
        ):
            raise ConfigError(
                "expected log_every, checkpoint_every and keep_checkpoints of 1 or more, num_workers and seed of 0 or "
                f"more, got {self.log_every}, {self.checkpoint_every}, {self.keep_checkpoints}, {self.num_workers} and "
                f"{self.seed}"
            )
        grain = self.start.whiten_grain_px
        patch_size = self.blocks.patch_size
        if grain < 0 or (grain and patch_size % grain):
            raise ConfigError(f"whiten_grain_px: expected 0 or a divisor of patch_size={patch_size}, got {grain}")

    @property
    def blocks(self) -> ModelConfig:
        """The architecture of tokenizer and blocks."""
        return self.model if isinstance(self.model, ModelConfig) else self.model.blocks

    @property
    def architecture(self) -> Architecture:
        """What is trained: the model, or the autoencoder or memoriser around it."""
        if self.memory is not None:
            return self.memoriser
        return self.model if self.mae is None else self.autoencoder

    @property
    def autoencoder(self) -> AutoencoderConfig | VideoMaeConfig:
        """The architecture of encoder and decoder, for a recipe with `mae`."""
        assert self.mae is not None, "a recipe without `mae` has no decoder"
        parts: dict[str, Any] = {
            "blocks": self.blocks,
            "decoder": self.mae.decoder,
            "mask_ratio": self.mae.mask_ratio,
            "normalised_targets": self.mae.normalised_targets,
        }
        if self.mae.network == "videomae":
            return VideoMaeConfig(**parts, num_frames=self.preprocessing.num_frames)
        return AutoencoderConfig(**parts)

    @property
    def memoriser(self) -> MemoriserConfig | VivitMemoriserConfig:
        """The architecture of what returns frames of the past, for a recipe with `memory`."""
        assert self.memory is not None, "a recipe without `memory` returns nothing"
        if self.memory.network == "trecvit":
            return MemoriserConfig(blocks=self.blocks, offset=self.memory.offset)
        names = [entry.name for entry in dataclasses.fields(Vivit)]
        return VivitMemoriserConfig(
            **{name: getattr(self.memory.vivit, name) or getattr(self.blocks, name) for name in names},
            patch_size=self.blocks.patch_size,
            image_size=self.preprocessing.image_size,
            num_frames=self.preprocessing.num_frames,
            offset=self.memory.offset,
        )

    @property
    def data(self) -> str:
        """Where the clips come from, in words."""
        path = self.videos.train.path if self.videos else self.tracks.files if self.tracks else ""
        return path or "the synthetic world"

    @property
    def evaluates(self) -> bool:
        """Whether there is something to test the trained model on."""
        if self.tracks is not None:
            return self.tracks.validates
        if (clips := self.mae or self.memory) is not None:
            return clips.validation_clips > 0 and (self.videos is None or self.videos.validation is not None)
        return self.videos is not None and self.videos.validation is not None

    def _check_mae(self, mae: Mae) -> None:
        _ = self.autoencoder  # refuses what does not fit together
        if self.start.vit:
            raise ConfigError("start.vit: an autoencoder begins from nothing, or from start.weights")
        if mae.network == "videomae" and (self.start.weights or self.start.whiten_grain_px):
            raise ConfigError("start: a VideoMAE begins from fresh weights; leave out weights and whiten_grain_px")
        if self.scenes is not None and self.scenes.seed == mae.validation_seed:
            raise ConfigError(f"mae.validation_seed: expected another than scenes.seed={self.scenes.seed}")
        if self.videos is None:
            return
        if self.videos.validate_every:
            raise ConfigError("videos.validate_every: tests how well videos are classified; say mae.validate_every")
        if mae.validate_every and self.videos.validation is None:
            raise ConfigError("mae.validate_every: there are no videos.validation to test on")

    def _check_memory(self, memory: Memory) -> None:
        if self.mae is not None or self.scenes is not None or self.tracks is not None:
            raise ConfigError("memory: expected `videos` or `memory.scenery`, without `mae`, `scenes` or `tracks`")
        if not 0 <= memory.offset < self.preprocessing.num_frames:
            raise ConfigError(
                f"memory.offset: expected 0 to {self.preprocessing.num_frames - 1} in clips of "
                f"{self.preprocessing.num_frames} frames, got {memory.offset}"
            )
        _ = self.memoriser  # refuses what does not fit together
        if memory.network == "vivit":
            if self.start.vit or self.start.weights:
                raise ConfigError("start.vit and start.weights: a ViViT begins with fresh weights; leave them out")
            if self.optimisation.recompute != "nothing":
                raise ConfigError("optimisation.recompute: expected 'nothing' for a ViViT")
        if memory.scenery is not None:
            if memory.scenery.image_size != self.preprocessing.image_size:
                raise ConfigError(
                    f"memory.scenery.image_size: expected preprocessing.image_size {self.preprocessing.image_size}, "
                    f"got {memory.scenery.image_size}; leave it out"
                )
            if not self.optimisation.num_steps:
                raise ConfigError("optimisation: scenery is without end; say num_steps and not epochs")
        if self.videos is None:
            return
        if self.videos.validate_every:
            raise ConfigError("videos.validate_every: tests how well videos are classified; say memory.validate_every")
        if memory.validate_every and self.videos.validation is None:
            raise ConfigError("memory.validate_every: there are no videos.validation to test on")

    def _check_scenes(self, scenes: Scenes) -> None:
        if self.mae is None and self.model.num_classes != len(LABELS):
            raise ConfigError(f"model.num_classes: the world has {len(LABELS)} classes, got {self.model.num_classes}")
        if scenes.world.image_size != self.preprocessing.image_size:
            raise ConfigError(
                f"world.image_size {scenes.world.image_size} and preprocessing.image_size "
                f"{self.preprocessing.image_size} must be the same"
            )
        if not self.optimisation.num_steps:
            raise ConfigError("optimisation: scenes are without end; say num_steps and not epochs")
        size, views = self.optimisation.batch_size, scenes.views_per_scene
        if size % (2 * views):
            raise ConfigError(
                f"batch_size: clips of scenes come in pairs, each shown {views} times; expected a multiple of "
                f"{2 * views}, got {size}"
            )

    def _check_tracks(self, tracks: Tracks) -> None:
        if self.start.vit:
            raise ConfigError("start.vit: a tracker does not begin with a ViT; expected start.weights or nothing")
        if self.preprocessing.frame_stride != 1:
            raise ConfigError(
                f"preprocessing.frame_stride: a tracker sees every frame; expected 1, got "
                f"{self.preprocessing.frame_stride}"
            )
        if tracks.scenes is None:
            return
        clips = (self.preprocessing.num_frames, self.preprocessing.image_size, tracks.num_points)
        filmed = (tracks.scenes.num_frames, tracks.scenes.image_size, tracks.scenes.num_points)
        if clips != filmed:
            raise ConfigError(
                f"tracks.scenes: num_frames, image_size and num_points {filmed} must be those of preprocessing and "
                f"tracks, {clips}; leave them out"
            )
        if not self.optimisation.num_steps:
            raise ConfigError("optimisation: scenes are without end; say num_steps and not epochs")

    def validates_at(self, step: int) -> bool:
        """Whether the model is tested after `step` updates."""
        tested = self.memory or self.mae or self.videos or self.tracks
        every = tested.validate_every if tested is not None else 0
        return every > 0 and step % every == 0

    def to_dict(self) -> dict[str, Any]:
        """Everything resolved, as plain JSON values."""
        return {
            **dataclasses.asdict(self),
            "model": self.model.to_dict(),
            "preprocessing": self.preprocessing.to_dict(),
        }


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe.

    Args:
        path: The YAML file, or the name of a recipe of the package, such as "world". `model` takes `preset` and any
            fields of `ModelConfig`; or, for a tracker, `blocks`, which take those, and any other fields of
            `TrackerConfig`, or `readout` with those of `PointReadoutConfig`.
        overrides: Words of the form "section.key=value" that replace single values.

    Raises:
        ConfigError: when the file or a word is not understood; names the nearest key.
    """
    path = _packaged(path)
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as exc:
        raise ConfigError(f"{path}: expected a recipe in YAML: {exc}") from exc
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a recipe in YAML, got {type(content).__name__}")
    for word in overrides:
        _override(content, word)
    try:
        return recipe_from_dict(content)
    except (ConfigError, TypeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def recipe_names() -> list[str]:
    """The recipes of the package, sorted."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


def _packaged(path: str | Path) -> str | Path:
    """The file of a recipe that is given by its name; anything else as it is."""
    named = _RECIPES / f"{path}.yaml"
    is_name = Path(path).name == str(path) and not Path(path).suffix and not Path(path).exists()
    if not is_name or named.exists():
        return named if is_name else path
    names = recipe_names()
    raise ConfigError(f"expected a recipe file or one of {', '.join(names)}, got {path}{nearest(str(path), names)}")


def recipe_from_dict(content: Mapping[str, Any]) -> Recipe:
    """A recipe from the values that its YAML file would hold.

    Raises:
        ConfigError: for unknown keys, with the nearest one, and for impossible values.
    """
    refuse_unknown(Recipe, content)
    values = dict(content)
    preprocessing = Preprocessing.from_dict(fields_of(None, values.pop("preprocessing", {}), "preprocessing"))
    optimisation = fields_of(Optimisation, values.pop("optimisation", {}), "optimisation")
    sections: dict[str, Any] = {
        "model": _architecture(fields_of(None, values.pop("model", {}), "model")),
        "preprocessing": preprocessing,
        "optimisation": Optimisation(**optimisation),
        "start": Start(**fields_of(Start, values.pop("start", {}), "start")),
    }
    if (scenes := values.pop("scenes", None)) is not None:
        sections["scenes"] = Scenes.from_value(scenes)
    if (videos := values.pop("videos", None)) is not None:
        sections["videos"] = Videos.from_value(videos)
    if (tracks := values.pop("tracks", None)) is not None:
        sections["tracks"] = Tracks.from_value(tracks, preprocessing)
    if (mae := values.pop("mae", None)) is not None:
        sections["mae"] = Mae.from_value(mae, sections["model"])
    if (memory := values.pop("memory", None)) is not None:
        sections["memory"] = Memory.from_value(memory, preprocessing)
    for key, value in values.items():
        if isinstance(value, (dict, list)):
            raise ConfigError(f"{key!r} is a value, not a section; got {value!r}")
    return Recipe(**sections, **plain_values(Recipe, values))


def _architecture(values: dict[str, Any]) -> ModelConfig | BlocksConfig:
    if "blocks" not in values:
        return model_config(values.pop("preset", "tiny"), **values)
    kind = ReadoutTrackerConfig if "readout" in values else TrackerConfig
    fields = fields_of(kind, values, "model")
    blocks = fields_of(None, fields.pop("blocks"), "model.blocks")
    if "readout" in fields:
        fields["readout"] = PointReadoutConfig(**fields_of(PointReadoutConfig, fields["readout"], "model.readout"))
    return kind(blocks=model_config(blocks.pop("preset", "tiny"), **blocks), **fields)


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
    try:
        target[key] = yaml.safe_load(value)
    except yaml.YAMLError as exc:
        raise ConfigError(f"{word!r}: expected a value in YAML: {exc}") from exc
