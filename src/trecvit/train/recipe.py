"""A recipe: one YAML file that says everything a training run depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from trecvit.config import (
    Architecture,
    AutoencoderConfig,
    MemoriserConfig,
    ModelConfig,
    PointReadoutConfig,
    Preprocessing,
    ReadoutTrackerConfig,
    Recompute,
    TrackerConfig,
    VideoMaeConfig,
    VivitMemoriserConfig,
    decoder_config,
    model_config,
    refuse_unknown,
)
from trecvit.data.augment import Augmentation
from trecvit.data.manifest import DataSource
from trecvit.data.scenery import SceneryConfig
from trecvit.data.tracks import TrackSceneConfig
from trecvit.data.world import LABELS, NUM_SYMMETRIES, WorldConfig
from trecvit.errors import ConfigError

MemoryNetwork = Literal["trecvit", "vivit"]
MaeNetwork = Literal["trecvit", "videomae"]

_NUM_POINTS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimisation:
    """How the weights are moved. AdamW, linear warm-up, cosine decay to zero (paper, Table 9, and Table 10's AdamW).

    A small model that starts from nothing learns several times faster if the matrices of its blocks are moved by Muon
    (Jordan et al. 2024, `torch.optim.Muon`): steps of equal size in all directions of a matrix.

    Attributes:
        num_steps: Updates in all; 0 if `epochs` says it.
        epochs: Passes over the videos; 0 if `num_steps` says it. Scenes are without end and have none.
        batch_size: Clips per update, all processes together.
        accumulation: Parts that a batch is cut into, one after the other, to need less memory; the update is the same.
        learning_rate: The peak.
        muon_learning_rate: The peak for the linear maps within the blocks, then moved by Muon; 0 leaves them to AdamW.
        embedding_rate: The patch embedding's rate as a factor on the others'. It has many inputs, and with the same
            steps as everything else it would lose what it began with before anything is learnt from it.
        beta2: How slowly AdamW forgets the squares of past gradients.
        weight_decay: On matrices only; norms, biases, positions and the recurrence's eigenvalues are left alone.
        warmup_steps: Updates until the peak.
        label_smoothing: Share of the target spread over all classes; trackers and autoencoders have none.
        head_dropout: Share of the head's evidence that is hidden from the classifier (paper, Table 9, "cls dropout").
        clip_norm: Largest norm of the whole gradient.
        bf16: Matrix products in bfloat16 (autocast); weights, recurrence and loss stay float32.
        ema_decay: Keep a running mean of the weights that forgets by this factor per update, and save that; 0 for none.
        recompute: What is computed again in the backward pass to need less memory, see `VideoModel.recompute`.
        compile: Compile the model with torch.compile.
    """

    num_steps: int = 0
    epochs: int = 0
    batch_size: int = 32
    accumulation: int = 1
    learning_rate: float = 1e-3
    muon_learning_rate: float = 0.0
    embedding_rate: float = 1.0
    beta2: float = 0.999
    weight_decay: float = 0.05
    warmup_steps: int = 100
    label_smoothing: float = 0.1
    head_dropout: float = 0.0
    clip_norm: float = 1.0
    bf16: bool = False
    ema_decay: float = 0.0
    recompute: Recompute = "nothing"
    compile: bool = False

    def __post_init__(self) -> None:
        if (self.num_steps > 0) == (self.epochs > 0) or min(self.num_steps, self.epochs) < 0:
            raise ConfigError(
                "optimisation: expected num_steps or epochs, one of them above 0, "
                f"got {self.num_steps} and {self.epochs}"
            )
        if self.batch_size < 1 or self.warmup_steps < 0 or self.accumulation < 1:
            raise ConfigError(
                "optimisation: expected batch_size >= 1, accumulation >= 1 and warmup_steps >= 0, got "
                f"{self.batch_size}, {self.accumulation} and {self.warmup_steps}"
            )
        _require_choice("optimisation.recompute", self.recompute, Recompute)
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"optimisation.ema_decay: expected 0 up to but not 1, got {self.ema_decay}")
        for name in ("beta2", "head_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimisation.{name}: expected 0 up to but not 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenes:
    """Clips of the synthetic world.

    Attributes:
        world: What they look like.
        easy_steps: Steps over which the share of easy scenes (`WorldConfig.easy`) falls from all to none.
        views_per_scene: How often a scene is shown, each time mirrored or turned another way; divides half the batch.
        photographs: Whether textures are also cut from photographs (scikit-image's, the training split).
        pictures: A folder of further pictures and cut-out sprites, if any.
        seed: Of the scenes.
    """

    world: WorldConfig
    easy_steps: int = 0
    views_per_scene: int = 1
    photographs: bool = True
    pictures: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.views_per_scene <= NUM_SYMMETRIES:
            raise ConfigError(f"views_per_scene: expected 1 to {NUM_SYMMETRIES}, got {self.views_per_scene}")
        height, width = self.world.image_size
        if self.views_per_scene > 1 and height != width:
            raise ConfigError(f"views_per_scene: only square scenes can be turned, got {height} x {width}")

    @classmethod
    def from_value(cls, value: Any) -> Scenes:
        """From a recipe."""
        values = _mapping(cls, value, "scenes")
        return cls(world=_world(values.pop("world", {})), **values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Videos:
    """Clips of real videos.

    Attributes:
        train: Where the training videos are.
        clips_per_video: Clips that an epoch shows of each training video, each cut at random; more than one where
            videos are few and long.
        validation: Where videos are to test the model on, if anywhere.
        validate_every: Steps between two short tests on one view of each validation video; the model that does best is
            kept. 0 tests the trained model only.
        augmentation: How training clips are varied.
        max_failed_share: The run stops once more than this share of the videos could not be read.
        eval_clips: Clips of each validation video (paper, Table 9: 4).
        eval_crops: Crops of each clip, 1 or 3 (paper, Table 9: 3).
    """

    train: DataSource
    clips_per_video: int = 1
    validation: DataSource | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    validate_every: int = 0
    max_failed_share: float = 0.01
    eval_clips: int = 4
    eval_crops: int = 3

    def __post_init__(self) -> None:
        if self.clips_per_video < 1:
            raise ConfigError(f"videos.clips_per_video: expected 1 or more, got {self.clips_per_video}")

    @classmethod
    def from_value(cls, value: Any) -> Videos:
        """From a recipe."""
        values = _mapping(cls, value, "videos")
        if "train" not in values:
            raise ConfigError("videos: expected `train`, the path of the training data")
        for split in ("train", "validation"):
            if values.get(split) is not None:
                values[split] = DataSource.from_value(values[split])
        if values.get("validate_every") and values.get("validation") is None:
            raise ConfigError("videos.validate_every: there are no videos.validation to test on")
        augmentation = _mapping(Augmentation, values.pop("augmentation", {}), "augmentation")
        if isinstance(augmentation.get("scale"), list):
            augmentation["scale"] = tuple(augmentation["scale"])
        return cls(augmentation=Augmentation(**augmentation), **values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tracks:
    """Clips with the tracks of points, to train a tracker on: the synthetic world's, or a folder of files.

    Attributes:
        scenes: What the scenes look like. Length, size and number of points are those of the clips.
        easy_steps: Steps over which the share of easy scenes (`TrackSceneConfig.easy`) falls from all to none.
        files: Such a folder as `trecvit.data.tapvid.read_track_files` takes. One of the two.
        num_points: Points Q of a clip. A file's are drawn from those that it shows; too few leave slots empty.
        first_share: Share of the points that are asked for where they are first seen, as TAP-Vid does; the others are
            at any of the frames that show them.
        photographs: Whether the scenes' textures are also cut from photographs (scikit-image's, the training split).
        pictures: A folder of further pictures and cut-out sprites for the scenes, if any.
        seed: Of the scenes.
        validation_scenes: How many held-out scenes to test on: of another seed, with photographs of the other split.
        validation_seed: Theirs.
        validation_files: A folder of files to test on instead.
        validate_every: Steps between two tests; the tracker that does best is kept. 0 tests the trained one only.
        max_failed_share: The run stops once more than this share of the files could not be read.
    """

    scenes: TrackSceneConfig | None = None
    easy_steps: int = 0
    files: str = ""
    num_points: int = _NUM_POINTS
    first_share: float = 0.5
    photographs: bool = True
    pictures: str = ""
    seed: int = 0
    validation_scenes: int = 0
    validation_seed: int = 1
    validation_files: str = ""
    validate_every: int = 0
    max_failed_share: float = 0.01

    def __post_init__(self) -> None:
        if (self.scenes is None) == (not self.files):
            raise ConfigError("tracks: expected `scenes` or `files`, one of them")
        if self.validation_scenes and self.validation_files:
            raise ConfigError("tracks: expected `validation_scenes` or `validation_files`, not both")
        if self.easy_steps < 0 or (self.easy_steps and self.scenes is None):
            raise ConfigError(f"tracks.easy_steps: expected 0, or more with tracks.scenes, got {self.easy_steps}")
        if self.num_points < 1 or not 0 <= self.first_share <= 1:
            raise ConfigError(
                "tracks: expected num_points >= 1 and first_share from 0 to 1, got "
                f"{self.num_points} and {self.first_share}"
            )
        if min(self.seed, self.validation_seed) < 0 or self.seed == self.validation_seed:
            raise ConfigError(
                "tracks: expected seed and validation_seed of 0 or more that differ, got "
                f"{self.seed} and {self.validation_seed}"
            )
        if self.validation_scenes and self.scenes is None:
            raise ConfigError("tracks.validation_scenes: there are no tracks.scenes that say what they look like")
        if self.validate_every and not self.validates:
            raise ConfigError("tracks.validate_every: there are no validation_scenes or validation_files to test on")

    @property
    def validates(self) -> bool:
        """Whether there is something to test on."""
        return bool(self.validation_scenes or self.validation_files)

    @classmethod
    def from_value(cls, value: Any, preprocessing: Preprocessing) -> Tracks:
        """From a recipe, whose clips are as `preprocessing` says."""
        values = _mapping(cls, value, "tracks")
        if (scenes := values.pop("scenes", None)) is not None:
            scenes = {
                "num_frames": preprocessing.num_frames,
                "image_size": preprocessing.image_size,
                "num_points": values.get("num_points", _NUM_POINTS),
                **_mapping(TrackSceneConfig, scenes, "tracks.scenes"),
            }
            values["scenes"] = TrackSceneConfig(**{**scenes, "image_size": tuple(scenes["image_size"])})
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mae:
    """Masked autoencoding (paper, section 4.1): most of each clip is hidden, and the model learns to restore it.

    The clips are those of `scenes` or `videos`, whose classes, if there are any, play no part.

    Attributes:
        decoder: What restores, see `decoder_config`; it is saved beside the model and belongs to it no more.
        network: What is trained: the recipe's model, a "trecvit", or to compare a "videomae" of its sizes, whose
            tubelets have `model.temporal_patch_size` frames.
        mask_ratio: Share of the tubes that are hidden (paper: 0.9 does best).
        normalised_targets: Whether patches are normalised one by one (paper), see `AutoencoderConfig`.
        validation_clips: How many held-out clips to test on and to make pictures of: one of each of so many of
            `videos.validation`, spread evenly over its list, or scenes of another seed with photographs of the other
            split.
        validation_seed: Of those scenes, and of all held-out clips' masks.
        validate_every: Steps between two tests; the model that does best is kept. 0 tests the trained one only.
    """

    decoder: ModelConfig
    network: MaeNetwork = "trecvit"
    mask_ratio: float = 0.9
    normalised_targets: bool = True
    validation_clips: int = 32
    validation_seed: int = 1
    validate_every: int = 0

    def __post_init__(self) -> None:
        _require_choice("mae.network", self.network, MaeNetwork)
        if min(self.validation_clips, self.validation_seed, self.validate_every) < 0:
            raise ConfigError(
                "mae: expected validation_clips, validation_seed and validate_every of 0 or more, got "
                f"{self.validation_clips}, {self.validation_seed} and {self.validate_every}"
            )
        if self.validate_every and not self.validation_clips:
            raise ConfigError("mae.validate_every: there are no validation_clips to test on")

    @classmethod
    def from_value(cls, value: Any, model: ModelConfig | TrackerConfig) -> Mae:
        """From a recipe whose encoder is `model`."""
        if isinstance(model, TrackerConfig):
            raise ConfigError("mae: the encoder is a TRecViT; expected a model without `blocks`")
        values = _mapping(cls, value, "mae")
        decoder = _mapping(ModelConfig, values.pop("decoder", {}), "mae.decoder")
        return cls(decoder=decoder_config(model, **decoder), **values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Vivit:
    """Sizes of a ViViT; 0 takes those of the recipe's model.

    Attributes:
        width: Channels D.
        depth: Layers.
        num_heads: Of the attention.
        mlp_width: Hidden channels of the MLPs.
    """

    width: int = 0
    depth: int = 0
    num_heads: int = 0
    mlp_width: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Memorisation (paper, section 5.4): watch T frames, and return frame T-k.

    T are the frames of a clip, `preprocessing.num_frames`. The clips are those of `videos`, whose classes, if there are
    any, play no part, or of the synthetic world's scenery.

    Attributes:
        offset: k, from 0, the last frame, up to T-1.
        scenery: What the scenery looks like, if the recipe has no `videos`. The size of its frames is the clips'.
        photographs: Whether its surfaces are also cut from photographs (scikit-image's, the training split).
        scenery_seed: Of the scenery.
        network: What is trained: the recipe's model, a "trecvit", or to compare a "vivit".
        vivit: How large that is.
        validation_clips: How many held-out clips to test on and to make pictures of: one of each of so many of
            `videos.validation`, spread evenly over its list, or scenery of another seed with photographs of the other
            split.
        validation_seed: Of that scenery.
        validate_every: Steps between two tests; the model that does best is kept. 0 tests the trained one only.
    """

    offset: int
    scenery: SceneryConfig | None = None
    photographs: bool = True
    scenery_seed: int = 0
    network: MemoryNetwork = "trecvit"
    vivit: Vivit = field(default_factory=Vivit)
    validation_clips: int = 32
    validation_seed: int = 1
    validate_every: int = 0

    def __post_init__(self) -> None:
        _require_choice("memory.network", self.network, MemoryNetwork)
        if min(self.validation_clips, self.validation_seed, self.validate_every, self.scenery_seed) < 0:
            raise ConfigError(
                "memory: expected validation_clips, validation_seed, validate_every and scenery_seed of 0 or more, got "
                f"{self.validation_clips}, {self.validation_seed}, {self.validate_every} and {self.scenery_seed}"
            )
        if self.validate_every and not self.validation_clips:
            raise ConfigError("memory.validate_every: there are no validation_clips to test on")
        if self.scenery is not None and self.scenery_seed == self.validation_seed:
            raise ConfigError(f"memory.validation_seed: expected another than scenery_seed={self.scenery_seed}")

    @classmethod
    def from_value(cls, value: Any, preprocessing: Preprocessing) -> Memory:
        """From a recipe, whose clips are as `preprocessing` says."""
        values = _mapping(cls, value, "memory")
        if "offset" not in values:
            raise ConfigError("memory: expected `offset`, how many frames before the last the one to return lies")
        if (scenery := values.pop("scenery", None)) is not None:
            scenery = {"image_size": preprocessing.image_size, **_mapping(SceneryConfig, scenery, "memory.scenery")}
            values["scenery"] = SceneryConfig(**{**scenery, "image_size": tuple(scenery["image_size"])})
        if "vivit" in values:
            values["vivit"] = Vivit(**_mapping(Vivit, values["vivit"], "memory.vivit"))
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What the first weights are.

    Attributes:
        weights: A trained model to go on from, as `trecvit.load` takes it; its head is taken if its classes are the
            data's, else begun anew. For the paper's tracker also a classifier, which becomes its backbone.
        vit: A published ViT for the spatial half, see `trecvit.weights.imagenet`.
        whiten_grain_px: Begin with a patch embedding that whitens the data's patches down to this grain, see
            `whiten_patches`; 0 leaves it at random.
        conv_scale: Factor on the initial weights of the temporal convolutions.
        positions_scale: Factor on the initial positions.
    """

    weights: str = ""
    vit: str = ""
    whiten_grain_px: int = 0
    conv_scale: float = 1.0
    positions_scale: float = 1.0


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

    model: Architecture
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
        if min(self.log_every, self.checkpoint_every, self.keep_checkpoints) < 1 or self.num_workers < 0:
            raise ConfigError(
                "log_every, checkpoint_every, keep_checkpoints: expected 1 or more; num_workers: 0 or more"
            )
        grain = self.start.whiten_grain_px
        patch_size = self.blocks.patch_size
        if grain < 0 or (grain and patch_size % grain):
            raise ConfigError(f"whiten_grain_px: expected 0 or a divisor of patch_size={patch_size}, got {grain}")

    @property
    def blocks(self) -> ModelConfig:
        """The architecture of tokenizer and blocks."""
        assert not isinstance(self.model, VivitMemoriserConfig), "a recipe's model is a TRecViT's or a tracker's"
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
        path: The YAML file. `model` takes `preset` and any fields of `ModelConfig`; or, for a tracker, `blocks`, which
            take those, and any other fields of `TrackerConfig`, or `readout` with those of `PointReadoutConfig`.
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
        return recipe_from_dict(content)
    except (ConfigError, TypeError) as exc:
        raise ConfigError(f"{path}: {exc}") from exc


def recipe_from_dict(content: Mapping[str, Any]) -> Recipe:
    """A recipe from the values that its YAML file would hold.

    Raises:
        ConfigError: for unknown keys, with the nearest one, and for impossible values.
    """
    refuse_unknown(Recipe, content)
    values = dict(content)
    preprocessing = Preprocessing.from_dict(_mapping(None, values.pop("preprocessing", {}), "preprocessing"))
    optimisation = _mapping(Optimisation, values.pop("optimisation", {}), "optimisation")
    sections: dict[str, Any] = {
        "model": _architecture(_mapping(None, values.pop("model", {}), "model")),
        "preprocessing": preprocessing,
        "optimisation": Optimisation(**optimisation),
        "start": Start(**_mapping(Start, values.pop("start", {}), "start")),
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
    return Recipe(**sections, **values)


def _architecture(values: dict[str, Any]) -> Architecture:
    if "blocks" not in values:
        return model_config(values.pop("preset", "tiny"), **values)
    kind = ReadoutTrackerConfig if "readout" in values else TrackerConfig
    fields = _mapping(kind, values, "model")
    blocks = _mapping(None, fields.pop("blocks"), "model.blocks")
    if "readout" in fields:
        fields["readout"] = PointReadoutConfig(**_mapping(PointReadoutConfig, fields["readout"], "model.readout"))
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


def _require_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name}: expected one of {', '.join(get_args(choices))}, got {value!r}")


def _mapping(section: type | None, value: Any, name: str) -> dict[str, Any]:
    """A copy of a section's values; refuses what is no section, and keys that are no fields."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name!r} is a section, not a value; got {value!r}")
    if section is None:
        return dict(value)
    refuse_unknown(section, value)
    # YAML takes 1e-3 for a word and 0 for a whole number; where a plain number is wanted, both are one.
    reals = {entry.name for entry in dataclasses.fields(section) if isinstance(entry.default, float)}
    return {key: _real(key, entry) if key in reals else entry for key, entry in value.items()}


def _real(key: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{key}: expected a number, got {value!r}") from None


def _world(given: Mapping[str, Any]) -> WorldConfig:
    values = _mapping(WorldConfig, given, "world")
    if "image_size" in values:
        values["image_size"] = tuple(values["image_size"])
    return WorldConfig(**values)
