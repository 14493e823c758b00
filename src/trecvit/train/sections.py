"""The sections of a recipe, see `trecvit.train.recipe`: each a dataclass that refuses impossible values."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from trecvit.config import ModelConfig, Preprocessing, Recompute, refuse_unknown
from trecvit.data.augment import Augmentation
from trecvit.data.layouts import DataSource
from trecvit.errors import ConfigError
from trecvit.model.mae import decoder_config
from trecvit.model.tapnext import TrackerConfig
from trecvit.synthetic.scenery import SceneryConfig
from trecvit.synthetic.track_scenes import TrackSceneConfig
from trecvit.synthetic.world import NUM_SYMMETRIES, WorldConfig

AutoSwitch = bool | Literal["auto"]
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
        bf16: Whether matrix products are in bfloat16 (autocast); weights, recurrence and loss stay float32. "auto":
            where the device has instructions for them; elsewhere it would be slower. A run keeps what it began with.
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
    bf16: AutoSwitch = "auto"
    ema_decay: float = 0.0
    recompute: Recompute = "nothing"
    compile: bool = False

    def __post_init__(self) -> None:
        if (self.num_steps > 0) == (self.epochs > 0) or min(self.num_steps, self.epochs) < 0:
            raise ConfigError(
                "optimisation: expected num_steps or epochs, one of them above 0, "
                f"got {self.num_steps} and {self.epochs}"
            )
        _require_range("optimisation", self, ("learning_rate", "muon_learning_rate", "embedding_rate", "weight_decay"))
        _require_range("optimisation", self, ("label_smoothing",), most=1.0)
        if not self.clip_norm > 0:  # infinity clips nothing
            raise ConfigError(f"optimisation.clip_norm: expected more than 0, got {self.clip_norm}")
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
        _require_range("scenes", self, ("easy_steps", "seed"))
        if not 1 <= self.views_per_scene <= NUM_SYMMETRIES:
            raise ConfigError(f"views_per_scene: expected 1 to {NUM_SYMMETRIES}, got {self.views_per_scene}")
        height, width = self.world.image_size
        if self.views_per_scene > 1 and height != width:
            raise ConfigError(f"views_per_scene: only square scenes can be turned, got {height} x {width}")

    @classmethod
    def from_value(cls, value: Any) -> Scenes:
        """From a recipe."""
        values = fields_of(cls, value, "scenes")
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
        _require_range("videos", self, ("clips_per_video", "eval_clips"), least=1.0)
        _require_range("videos", self, ("validate_every",))
        _require_range("videos", self, ("max_failed_share",), most=1.0)

    @classmethod
    def from_value(cls, value: Any) -> Videos:
        """From a recipe."""
        values = fields_of(cls, value, "videos")
        if "train" not in values:
            raise ConfigError("videos: expected `train`, the path of the training data")
        for split in ("train", "validation"):
            if values.get(split) is not None:
                values[split] = DataSource.from_value(values[split])
        if values.get("validate_every") and values.get("validation") is None:
            raise ConfigError("videos.validate_every: there are no videos.validation to test on")
        augmentation = fields_of(Augmentation, values.pop("augmentation", {}), "augmentation")
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
        _require_range("tracks", self, ("validation_scenes", "validate_every"))
        _require_range("tracks", self, ("max_failed_share",), most=1.0)
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
        values = fields_of(cls, value, "tracks")
        if (scenes := values.pop("scenes", None)) is not None:
            scenes = {
                "num_frames": preprocessing.num_frames,
                "image_size": preprocessing.image_size,
                "num_points": values.get("num_points", _NUM_POINTS),
                **fields_of(TrackSceneConfig, scenes, "tracks.scenes"),
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
        values = fields_of(cls, value, "mae")
        decoder = fields_of(ModelConfig, values.pop("decoder", {}), "mae.decoder")
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

    def __post_init__(self) -> None:
        _require_range("memory.vivit", self, ("width", "depth", "num_heads", "mlp_width"))


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
        values = fields_of(cls, value, "memory")
        if "offset" not in values:
            raise ConfigError("memory: expected `offset`, how many frames before the last the one to return lies")
        if (scenery := values.pop("scenery", None)) is not None:
            scenery = {"image_size": preprocessing.image_size, **fields_of(SceneryConfig, scenery, "memory.scenery")}
            values["scenery"] = SceneryConfig(**{**scenery, "image_size": tuple(scenery["image_size"])})
        if "vivit" in values:
            values["vivit"] = Vivit(**fields_of(Vivit, values["vivit"], "memory.vivit"))
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

    def __post_init__(self) -> None:
        _require_range("start", self, ("conv_scale", "positions_scale"))


def _require_range(
    name: str, section: object, keys: Sequence[str], *, least: float = 0.0, most: float = sys.float_info.max
) -> None:
    for key in keys:
        if not least <= (value := getattr(section, key)) <= most:  # not a number is neither
            limits = f"{least:g} or more" if most == sys.float_info.max else f"{least:g} to {most:g}"
            raise ConfigError(f"{name}.{key}: expected {limits}, got {value}")


def _require_choice(name: str, value: str, choices: Any) -> None:
    if value not in get_args(choices):
        raise ConfigError(f"{name}: expected one of {', '.join(get_args(choices))}, got {value!r}")


def fields_of(section: type | None, value: Any, name: str) -> dict[str, Any]:
    """A copy of a section's values; refuses what is no section, and keys that are no fields."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name!r} is a section, not a value; got {value!r}")
    if section is None:
        return dict(value)
    refuse_unknown(section, value)
    return plain_values(section, value, f"{name}.")


def plain_values(section: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A copy of values in which numbers and switches are what their fields want.

    YAML takes 1e-3 for a word and 0 for a whole number; where a number is wanted, both are one.
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


def _world(given: Mapping[str, Any]) -> WorldConfig:
    values = fields_of(WorldConfig, given, "world")
    if "image_size" in values:
        values["image_size"] = tuple(values["image_size"])
    return WorldConfig(**values)
