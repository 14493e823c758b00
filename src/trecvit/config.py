"""Configurations: frozen, validated dataclasses that JSON can hold, and the presets of the model.

Each architecture's own configuration stands beside its network in `trecvit.model`.
Sources of the numbers: "paper" is arXiv:2412.14294 v2, "code" is github.com/google-deepmind/trecvit at 81bcb0a.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self, get_args, get_type_hints, runtime_checkable

from trecvit.errors import ConfigError

Positions = Literal["learned", "sincos2d"]
Pooling = Literal["cls", "mean"]
TemporalMixer = Literal["lru", "attention", "lstm", "conv", "none", "full_attention", "causal_attention", "flat_lru"]
Gelu = Literal["tanh", "erf"]
Recompute = Literal["nothing", "cheap", "blocks"]
ImageSize = Any  # argument of `as_image_size`: (height, width) in pixels in any container, or one number for a square


@runtime_checkable  # for the tests' checks of annotations
class Architecture(Protocol):
    """The part of a network's configuration that every network needs."""

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels for which positions are stored."""

    @property
    def depth(self) -> int:
        """Number of blocks."""

    @property
    def num_classes(self) -> int:
        """Classes V, 0 without a classification head."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Base of all configurations: frozen dataclasses whose fields are plain values, image sizes or configurations."""

    def replace(self, **changes: Any) -> Self:
        """Copy with some fields changed; an unknown field is a ConfigError that names the nearest one."""
        refuse_unknown(type(self), changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: for unknown keys, impossible values, and a nested configuration that is missing.
        """
        refuse_unknown(cls, values)
        nested: dict[str, Config] = {}
        for name, kind in get_type_hints(cls).items():
            if isinstance(kind, type) and issubclass(kind, Config):
                value = values.get(name)
                if not isinstance(value, Mapping):
                    raise ConfigError(f"{cls.__name__}.{name}: expected the fields of a {kind.__name__}, got {value!r}")
                nested[name] = kind.from_dict(value)
        return cls(**{**values, **nested})

    def _require(self, condition: bool, name: str, rule: str) -> None:
        """Raise ConfigError unless the condition holds; `rule` describes the values that a field may have."""
        if not condition:
            raise ConfigError(f"{type(self).__name__}.{name}: expected {rule}, got {getattr(self, name)!r}")

    def _require_whole(self, *names: str, least: int = 1) -> None:
        """Raise ConfigError unless these fields are whole numbers >= `least`."""
        for name in names:
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            self._require(is_whole and value >= least, name, f"a whole number >= {least}")

    def _require_bool(self, *names: str) -> None:
        for name in names:
            self._require(isinstance(getattr(self, name), bool), name, "true or false")


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig(Config):
    """Architecture of a TRecViT: all that determines its weights and its computation.

    Attributes:
        width: Channels D of a token.
        depth: Number of blocks; each mixes over time, then over space, then over channels.
        num_heads: Heads of the spatial attention and blocks of the gates' block-diagonal matrices; divides `width`.
        mlp_width: Hidden channels of the MLP (paper, Table 8: 4 x width).
        temporal_mixer: Layer that mixes over time: the gated "lru", or for the paper's comparisons "attention" over
            whole clips, an "lstm" or a "conv"; "none" is the single-frame baseline. The fields beginning with lru_, the
            radii and `temporal_mlp` belong to the "lru". Three treat a clip's tokens as one sequence (paper, Figure 4):
            "full_attention" and "causal_attention" in place of spatial attention, the latter to a token's own frame and
            those before; and "flat_lru", an LRU along the tokens, row by row and frame by frame, without attention.
        temporal_from: Index of the first block with a temporal part. Those below see single frames: a ViT that can stay
            as it was trained on pictures, see `Optimisation.frozen_blocks`. 0 in the paper.
        temporal_skip: The skip connection around the temporal part (paper, Table 1: hardly trains without).
        temporal_positions: Temporal positions stored for mixers over whole clips, one per frame, or temporal patch, of
            a training clip.
        lru_multiplier: Recurrent width E over `width`. The paper's parameter counts need 1, released weights have 2.
        lru_gates: Input and recurrence gate; without them eigenvalues are constant (paper, Table 1: 0.7 % less).
        lru_complex: Complex instead of real eigenvalues: E real channels hold E/2 complex ones (paper 3.1: no gain).
        min_radius: Smallest sigmoid(lambda) at initialisation (paper, Table 15: 0.6; code: 0.5).
        max_radius: Largest sigmoid(lambda) (0.999 in both).
        conv_width: Taps K of the causal temporal convolution before the recurrence, 0 leaves it out; or of the "conv".
        gelu: GELU of the spatial MLP: the "tanh" approximation of the original JAX code, or exact, "erf".
        temporal_mlp: Griffin's gated MLP after the recurrence; TRecViT has none, TAPNext keeps it.
        patch_size: Side of a square patch in pixels.
        temporal_patch_size: Frames per token, 1, 2, 4 or 8 (paper, Table 13: 1 is best).
        image_size: Height and width in pixels for which learned positions are stored.
        positions: Spatial positions, "learned" or the fixed "sincos2d".
        pooling: Input of the head from each frame: a "cls" token or the "mean" of all tokens.
        head_width: Channels of the tanh layer before the classifier (code: rep_size 3072).
        num_classes: Classes V; 0 builds no head.
    """

    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    temporal_mixer: TemporalMixer = "lru"
    temporal_from: int = 0
    temporal_skip: bool = True
    temporal_positions: int = 32
    lru_multiplier: int = 1
    lru_gates: bool = True
    lru_complex: bool = False
    min_radius: float = 0.6
    max_radius: float = 0.999
    conv_width: int = 4
    gelu: Gelu = "tanh"
    temporal_mlp: bool = False
    patch_size: int = 16
    temporal_patch_size: int = 1
    image_size: tuple[int, int] = (224, 224)
    positions: Positions = "learned"
    pooling: Pooling = "cls"
    head_width: int = 3072
    num_classes: int = 400

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        self._require_whole("width", "depth", "num_heads", "mlp_width", "lru_multiplier", "temporal_positions")
        self._require_whole("patch_size", "head_width")
        self._require_whole("conv_width", "num_classes", "temporal_from", least=0)
        self._require_bool("lru_complex", "lru_gates", "temporal_mlp", "temporal_skip")
        self._require(self.temporal_patch_size in (1, 2, 4, 8), "temporal_patch_size", "1, 2, 4 or 8")
        self._check_temporal_part()
        self._require(self.gelu in get_args(Gelu), "gelu", f"one of {get_args(Gelu)}")
        self._require(self.positions in get_args(Positions), "positions", f"one of {get_args(Positions)}")
        self._require(self.pooling in get_args(Pooling), "pooling", f"one of {get_args(Pooling)}")
        self._require(self.width % self.num_heads == 0, "num_heads", f"a divisor of width={self.width}")
        self._require(
            not self.lru_complex or (self.lru_width // self.num_heads) % 2 == 0,
            "lru_complex",
            f"an even number of channels per head, lru_width/num_heads is {self.lru_width}/{self.num_heads}",
        )
        self._require(
            self.positions == "learned" or (self.width % 4 == 0 and self.width >= 8),
            "positions",
            f"a width that 4 divides and that is at least 8 for sincos2d, width is {self.width}",
        )
        self._require(
            0.0 < self.min_radius < self.max_radius < 1.0,
            "min_radius",
            f"0 < min_radius < max_radius < 1, max_radius is {self.max_radius}",
        )
        self._require(
            all(side > 0 and side % self.patch_size == 0 for side in self.image_size),
            "image_size",
            f"a positive multiple of patch_size={self.patch_size} in both directions",
        )

    def _check_temporal_part(self) -> None:
        mixer = self.temporal_mixer
        self._require(mixer in get_args(TemporalMixer), "temporal_mixer", f"one of {get_args(TemporalMixer)}")
        if mixer == "conv":
            self._require(self.conv_width >= 1, "conv_width", "at least one tap for temporal_mixer='conv'")
        self._require(self.temporal_from < self.depth, "temporal_from", f"less than depth={self.depth}")
        if self.temporal_from:
            apart = mixer in ("lru", "attention", "lstm", "conv")
            rule = f"0 for temporal_mixer={mixer!r}, which has no temporal part beside the spatial one"
            self._require(apart, "temporal_from", rule)
        recurs = mixer in ("lru", "flat_lru")
        if not self.temporal_skip:
            apart = mixer not in ("none", "full_attention", "causal_attention")
            rule = f"true for temporal_mixer={mixer!r}, which has no temporal part to skip"
            self._require(apart, "temporal_skip", rule)
        if not self.lru_gates:
            self._require(recurs, "lru_gates", f"true for temporal_mixer={mixer!r}; only the 'lru' has gates")
            self._require(not self.lru_complex, "lru_gates", "true for lru_complex=True; without gates it is real")
        if self.temporal_mlp:
            rule = f"false for temporal_mixer={mixer!r}; Griffin's MLP belongs to the 'lru'"
            self._require(recurs or mixer == "none", "temporal_mlp", rule)
        if mixer == "flat_lru":
            rule = "'mean' for temporal_mixer='flat_lru', where a class token would come before its frame's patches"
            self._require(self.pooling == "mean", "pooling", rule)

    @property
    def can_stream(self) -> bool:
        """Whether the model can run frame by frame; others need whole clips and have learned positions in time."""
        return self.temporal_mixer in ("lru", "lstm", "conv", "none")

    @property
    def lru_width(self) -> int:
        """Recurrent width E."""
        return self.width * self.lru_multiplier

    @property
    def num_patches(self) -> int:
        """Patches P of a frame at the training image size."""
        height, width = self.image_size
        return (height // self.patch_size) * (width // self.patch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlocksConfig(Config):
    """Base for architectures that add something other than a classification head to a TRecViT's blocks.

    Attributes:
        blocks: Tokenizer and blocks, without a head.
    """

    blocks: ModelConfig

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.blocks.depth

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels for which positions are stored."""
        return self.blocks.image_size

    @property
    def num_classes(self) -> int:
        """0: no classification head."""
        return 0

    def _require_blocks(self, **fields: Any) -> None:
        """Raise ConfigError unless `blocks` is a ModelConfig with these values."""
        self._require(isinstance(self.blocks, ModelConfig), "blocks", "a ModelConfig")
        for name, value in fields.items():
            self._require(getattr(self.blocks, name) == value, "blocks", f"{name}={value!r}")

    def _require_streaming(self) -> None:
        self._require(self.blocks.can_stream, "blocks", "a temporal_mixer that can stream, which 'attention' cannot")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing(Config):
    """Preparation of frames as the model's input. Pixels are in [0,1], without mean or deviation (code: frames / 255).

    Attributes:
        image_size: Height and width of the crop in pixels.
        num_frames: Frames of a training clip.
        frame_stride: Step between the video's frames that are used (paper, Table 9: 2).
        frame_rate_fps: Frames per second of the training clips, or None. Together with the video's rate, if both are
            known, it determines the stride, see `stride_for`.
    """

    image_size: tuple[int, int] = (224, 224)
    num_frames: int = 32
    frame_stride: int = 2
    frame_rate_fps: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        self._require_whole("num_frames", "frame_stride")
        rate = self.frame_rate_fps
        is_rate = rate is None or (isinstance(rate, (int, float)) and 0 < rate < math.inf)
        self._require(is_rate, "frame_rate_fps", "a positive number or None")

    def stride_for(self, video_fps: float | None) -> int:
        """Step between the frames to use of a video of this rate."""
        if self.frame_rate_fps is None or video_fps is None:
            return self.frame_stride
        return max(1, round(video_fps / self.frame_rate_fps))


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ", did you mean 'x'" with the most similar of `names`, or an empty text if none is similar."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}" if matches else ""


def refuse_unknown(config_class: type, values: Mapping[str, Any]) -> None:
    """Raise ConfigError for a key that is not a field of a dataclass, with the nearest one."""
    fields = [field.name for field in dataclasses.fields(config_class)]
    for name in values:
        if name not in fields:
            hint = nearest(name, fields)
            raise ConfigError(
                f"{config_class.__name__} has no field {name!r}{hint}; its fields are {', '.join(fields)}"
            )


def as_image_size(value: object) -> tuple[int, int]:
    """Convert a pair of integers in any container, or one integer for a square, to height and width in pixels.

    Args:
        value: `(height, width)` as a tuple, list, `torch.Size` or array of integers, or one integer.

    Raises:
        ConfigError: for anything else, such as floats, numbers below 1 or another count of numbers.
    """
    sides: tuple[object, ...] = (value, value)
    if isinstance(value, Iterable) and not isinstance(value, (Set, Mapping)) and getattr(value, "shape", None) != ():
        sides = tuple(value)
    whole = [number for number in map(as_integer, sides) if number is not None and number >= 1]
    if len(sides) == len(whole) == 2:
        return (whole[0], whole[1])
    raise ConfigError(f"image_size: expected (height, width) in pixels or one whole number, got {value!r}")


def as_integer(value: object) -> int | None:
    """Convert an integer of Python, numpy or PyTorch to int; None for anything else, booleans included."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


# Sizes: paper, Table 8 (small, base, large) and the code's table of variants (tiny). Heads have 64 channels in all.
PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(width=192, depth=12, num_heads=3, mlp_width=768),
    "small": ModelConfig(width=384, depth=12, num_heads=6, mlp_width=1536),
    "base": ModelConfig(),
    "large": ModelConfig(width=1024, depth=24, num_heads=16, mlp_width=4096),
    # The released Kinetics-400 weights: code, get_model(), which differs from the paper's text in these two fields.
    "base_k400": ModelConfig(lru_multiplier=2, min_radius=0.5),
}


def model_config(preset: str, **overrides: Any) -> ModelConfig:
    """Return a preset's configuration with some fields overridden.

    Raises:
        ConfigError: for an unknown preset or field, with the nearest name, and for impossible values.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}; the presets are {', '.join(PRESETS)}")
    return PRESETS[preset].replace(**overrides)
