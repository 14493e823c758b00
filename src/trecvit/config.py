"""What a model is: frozen, validated dataclasses, and the presets.

Sources of the numbers: "paper" is arXiv:2412.14294 v2, "code" is github.com/google-deepmind/trecvit at 81bcb0a.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import unicodedata
from collections.abc import Iterable, KeysView, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from trecvit.errors import ConfigError

Positions = Literal["learned", "sincos2d"]
Pooling = Literal["cls", "mean"]
TemporalMixer = Literal["lru", "attention", "lstm", "conv", "none", "full_attention", "causal_attention", "flat_lru"]
Gelu = Literal["tanh", "erf"]
QueryBorder = Literal["nearest", "zeros"]
Recompute = Literal["nothing", "cheap", "blocks"]
ImageSize = Any  # what `as_image_size` takes: (height, width) in pixels in any container, or one number for a square


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Architecture of a TRecViT: everything that decides which weights exist and what is computed with them.

    Attributes:
        width: Channels D of a token.
        depth: Number of blocks; each mixes over time, then over space, then over channels.
        num_heads: Heads of the spatial attention and blocks of the gates' block-diagonal matrices; divides `width`.
        mlp_width: Hidden channels of the MLP (paper, Table 8: 4 x width).
        temporal_mixer: What carries information over time: the gated "lru", or for the paper's comparisons
            "attention" over whole clips, an "lstm" or a "conv"; "none" shows what single frames allow. The fields
            beginning with lru_, the radii and `temporal_mlp` are the "lru"'s. Three look at a clip's tokens as one
            sequence (paper, Figure 4): "full_attention" and "causal_attention" in the place of the spatial one, the
            latter to a token's own frame and those before; and "flat_lru", an LRU along the tokens, row by row and
            frame by frame, and no attention at all.
        temporal_skip: The skip connection around the temporal part (paper, Table 1: hardly trains without).
        temporal_positions: Temporal positions stored for what looks at whole clips, one per frame, or temporal patch,
            of a training clip.
        lru_multiplier: Recurrent width E over `width`. The paper's parameter counts need 1, released weights have 2.
        lru_gates: Input and recurrence gate; without them eigenvalues are constant (paper, Table 1: 0.7 % less).
        lru_complex: Complex instead of real eigenvalues: E real channels hold E/2 complex ones (paper 3.1: no gain).
        min_radius: Least value of sigmoid(lambda) at initialisation (paper, Table 15: 0.6; code: 0.5).
        max_radius: Largest one (0.999 in both).
        conv_width: Taps K of the causal temporal convolution before the recurrence, 0 leaves it out; or of the "conv".
        gelu: GELU of the spatial MLP: the "tanh" approximation of the original JAX code, or exact, "erf".
        temporal_mlp: Griffin's gated MLP after the recurrence; TRecViT has none, TAPNext keeps it.
        patch_size: Side of a square patch in pixels.
        temporal_patch_size: Frames per token, 1, 2, 4 or 8 (paper, Table 13: 1 is best).
        image_size: Height and width in pixels for which learned positions are stored.
        positions: Spatial positions, "learned" or the fixed "sincos2d".
        pooling: What the head reads of a frame: a "cls" token or the "mean" of all tokens.
        head_width: Channels of the tanh layer before the classifier (code: rep_size 3072).
        num_classes: Classes V; 0 builds no head.
    """

    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    temporal_mixer: TemporalMixer = "lru"
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
        for name in (
            "width",
            "depth",
            "num_heads",
            "mlp_width",
            "lru_multiplier",
            "temporal_positions",
            "patch_size",
            "head_width",
        ):
            _require(_is_int(getattr(self, name)) and getattr(self, name) >= 1, self, name, "a whole number >= 1")
        for name in ("conv_width", "num_classes"):
            _require(_is_int(getattr(self, name)) and getattr(self, name) >= 0, self, name, "a whole number >= 0")
        for name in ("lru_complex", "lru_gates", "temporal_mlp", "temporal_skip"):
            _require(isinstance(getattr(self, name), bool), self, name, "true or false")
        _require(self.temporal_patch_size in (1, 2, 4, 8), self, "temporal_patch_size", "1, 2, 4 or 8")
        self._check_temporal_part()
        _require(self.gelu in get_args(Gelu), self, "gelu", f"one of {get_args(Gelu)}")
        _require(self.positions in get_args(Positions), self, "positions", f"one of {get_args(Positions)}")
        _require(self.pooling in get_args(Pooling), self, "pooling", f"one of {get_args(Pooling)}")
        _require(self.width % self.num_heads == 0, self, "num_heads", f"a divisor of width={self.width}")
        _require(
            not self.lru_complex or (self.lru_width // self.num_heads) % 2 == 0,
            self,
            "lru_complex",
            f"an even number of channels per head, lru_width/num_heads is {self.lru_width}/{self.num_heads}",
        )
        _require(
            self.positions == "learned" or (self.width % 4 == 0 and self.width >= 8),
            self,
            "positions",
            f"a width that 4 divides and that is at least 8 for sincos2d, width is {self.width}",
        )
        _require(
            0.0 < self.min_radius < self.max_radius < 1.0,
            self,
            "min_radius",
            f"0 < min_radius < max_radius < 1, max_radius is {self.max_radius}",
        )
        _require(
            all(side > 0 and side % self.patch_size == 0 for side in self.image_size),
            self,
            "image_size",
            f"a positive multiple of patch_size={self.patch_size} in both directions",
        )

    def _check_temporal_part(self) -> None:
        mixer = self.temporal_mixer
        _require(mixer in get_args(TemporalMixer), self, "temporal_mixer", f"one of {get_args(TemporalMixer)}")
        if mixer == "conv":
            _require(self.conv_width >= 1, self, "conv_width", "at least one tap for temporal_mixer='conv'")
        recurs = mixer in ("lru", "flat_lru")
        if not self.temporal_skip:
            apart = mixer not in ("none", "full_attention", "causal_attention")
            rule = f"true for temporal_mixer={mixer!r}, which has no temporal part to skip"
            _require(apart, self, "temporal_skip", rule)
        if not self.lru_gates:
            _require(recurs, self, "lru_gates", f"true for temporal_mixer={mixer!r}; only the 'lru' has gates")
            _require(not self.lru_complex, self, "lru_gates", "true for lru_complex=True; without gates it is real")
        if self.temporal_mlp:
            rule = f"false for temporal_mixer={mixer!r}; Griffin's MLP belongs to the 'lru'"
            _require(recurs or mixer == "none", self, "temporal_mlp", rule)
        if mixer == "flat_lru":
            rule = "'mean' for temporal_mixer='flat_lru', where a class token would come before its frame's patches"
            _require(self.pooling == "mean", self, "pooling", rule)

    @property
    def can_stream(self) -> bool:
        """Whether the model can go on with a stream, or looks at whole clips only, with learned positions in time."""
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

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; an unknown field is a ConfigError that names the nearest one."""
        refuse_unknown(type(self), changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**dataclasses.asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; unknown keys and impossible values raise ConfigError."""
        refuse_unknown(cls, values)
        return cls(**values)


def _tapnext_b() -> ModelConfig:
    """The blocks of TAPNext-B; eigenvalues begin in Griffin's range, recurrentgemma's default."""
    return ModelConfig(
        patch_size=8, image_size=(256, 256), temporal_mlp=True, min_radius=0.9, pooling="mean", num_classes=0
    )


class _AroundBlocks:
    """What architectures that have a TRecViT's blocks, and no classes, have in common."""

    __slots__ = ()
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
        """0: it names nothing."""
        return 0

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; an unknown field is a ConfigError that names the nearest one."""
        refuse_unknown(type(self), changes)
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    @classmethod
    def _blocks_of(cls, values: Mapping[str, Any]) -> ModelConfig:
        blocks = values.get("blocks")
        if not isinstance(blocks, Mapping):
            raise ConfigError(f"{cls.__name__}.blocks: expected the fields of a ModelConfig, got {blocks!r}")
        return ModelConfig.from_dict(blocks)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackerConfig(_AroundBlocks):
    """Architecture of a TAPNext point tracker. The defaults are the published models' size, 194 M parameters.

    The published weights come in two arithmetics: JAX (`gelu="tanh"` in `blocks`, `norm_eps=1e-6`,
    `query_border="nearest"`) and PyTorch (`"erf"`, `1e-5`, `"zeros"`). Source: github.com/google-deepmind/tapnet at
    c2cbab8, `tapnet/models/ssm_vit.py` and `tapnet/tapnext/tapnext_torch.py`.

    Attributes:
        blocks: Tokenizer and blocks. Without class token and head; `gelu` is also that of the readouts.
        raster_px: Side of the square raster in which points are embedded and found, whatever the picture's size: the
            readout tells `raster_px` columns and as many rows apart.
        readout_width: Hidden channels of the readouts.
        norm_eps: Epsilon of the last norm and of the readouts' norms; the blocks' own is 1e-6.
        query_border: What the embedding of a query within half a raster pixel of the border is interpolated with:
            the "nearest" pixel's, or "zeros".
        matching: Whether points are also told where their query's look is found again, see `trecvit.model.matching`.
            The published models have nothing of the kind.
    """

    blocks: ModelConfig = field(default_factory=_tapnext_b)
    raster_px: int = 256
    readout_width: int = 256
    norm_eps: float = 1e-6
    query_border: QueryBorder = "nearest"
    matching: bool = False

    def __post_init__(self) -> None:
        _require(isinstance(self.blocks, ModelConfig), self, "blocks", "a ModelConfig")
        for name, expected in (("pooling", "mean"), ("num_classes", 0), ("temporal_patch_size", 1)):
            _require(getattr(self.blocks, name) == expected, self, "blocks", f"{name}={expected!r}")
        _require(self.blocks.can_stream, self, "blocks", "a temporal_mixer that can stream, which 'attention' cannot")
        _require(self.blocks.width % 4 == 0 and self.blocks.width >= 8, self, "blocks", "a width >= 8 that 4 divides")
        for name in ("raster_px", "readout_width"):
            _require(_is_int(getattr(self, name)) and getattr(self, name) >= 1, self, name, "a whole number >= 1")
        is_eps = isinstance(self.norm_eps, float) and 0.0 < self.norm_eps < 1.0
        _require(is_eps, self, "norm_eps", "a number between 0 and 1")
        _require(self.query_border in get_args(QueryBorder), self, "query_border", f"one of {get_args(QueryBorder)}")
        _require(isinstance(self.matching, bool), self, "matching", "true or false")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**dataclasses.asdict(self), "blocks": self.blocks.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; unknown keys and impossible values raise ConfigError."""
        refuse_unknown(cls, values)
        return cls(**{**values, "blocks": cls._blocks_of(values)})


@dataclass(frozen=True, kw_only=True, slots=True)
class PointReadoutConfig:
    """Architecture of a `RecurrentPointReadout`. The defaults are MooG's (moog/configs/movi.py, head "points").

    Attributes:
        num_bases: Frequencies in which a query's x and y are told.
        width: Channels S of a point's state, and of its queries, keys and values.
        depth: Layers of cross-attention.
        num_heads: Of the attention; divides `width`.
        mlp_width: Hidden channels of the layers' MLPs; those of all others are `width`.
    """

    num_bases: int = 16
    width: int = 512
    depth: int = 3
    num_heads: int = 8
    mlp_width: int = 2048

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            _require(_is_int(value) and value >= 1, self, entry.name, "a whole number >= 1")
        _require(self.width % self.num_heads == 0, self, "num_heads", f"a divisor of width={self.width}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From plain JSON values; unknown keys and impossible values raise ConfigError."""
        refuse_unknown(cls, values)
        return cls(**values)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadoutTrackerConfig(_AroundBlocks):
    """Architecture of the paper's point tracker (section 5.3): a frozen TRecViT, and a readout that has a state.

    Attributes:
        blocks: The backbone, without its head.
        readout: What reads the points off its features.
    """

    blocks: ModelConfig = field(default_factory=lambda: ModelConfig(num_classes=0))
    readout: PointReadoutConfig = field(default_factory=PointReadoutConfig)

    def __post_init__(self) -> None:
        _require(isinstance(self.blocks, ModelConfig), self, "blocks", "a ModelConfig")
        for name, expected in (("num_classes", 0), ("temporal_patch_size", 1)):
            _require(getattr(self.blocks, name) == expected, self, "blocks", f"{name}={expected!r}")
        _require(isinstance(self.readout, PointReadoutConfig), self, "readout", "a PointReadoutConfig")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {"blocks": self.blocks.to_dict(), "readout": dataclasses.asdict(self.readout)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; unknown keys and impossible values raise ConfigError."""
        refuse_unknown(cls, values)
        readout = values.get("readout", {})
        if not isinstance(readout, Mapping):
            raise ConfigError(f"{cls.__name__}.readout: expected the fields of a PointReadoutConfig, got {readout!r}")
        return cls(blocks=cls._blocks_of(values), readout=PointReadoutConfig.from_dict(readout))


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderConfig(_AroundBlocks):
    """Architecture of a masked autoencoder: a TRecViT that sees some tubes of a clip, and what restores the others.

    Attributes:
        blocks: Tokenizer and blocks of the encoder, without a head.
        decoder: Blocks of the decoder, see `decoder_config`. Patches are the encoder's, positions the fixed ones.
        mask_ratio: Share of the tubes that are hidden (paper, section 4.1: 0.9 does best).
        normalised_targets: Whether each patch to be restored is brought to mean 0 and deviation 1 (paper), or is taken
            as it is. What is hidden of a small picture has its colour in common with what is around it, and that is
            soon learnt; a normalised patch keeps nothing of it.
    """

    blocks: ModelConfig
    decoder: ModelConfig
    mask_ratio: float = 0.9
    normalised_targets: bool = True

    def __post_init__(self) -> None:
        for name in ("blocks", "decoder"):
            _require(isinstance(getattr(self, name), ModelConfig), self, name, "a ModelConfig")
        _require(self.blocks.num_classes == 0, self, "blocks", "num_classes=0")
        _require(self.blocks.patch_size >= 2, self, "blocks", "patch_size >= 2, patches of one pixel have no contrast")
        for name, value in _decoder_must_have(self.blocks).items():
            _require(getattr(self.decoder, name) == value, self, "decoder", f"{name}={value!r}")
        _require(0.0 <= self.mask_ratio < 1.0, self, "mask_ratio", "a share of 0 up to but not 1")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**dataclasses.asdict(self), "blocks": self.blocks.to_dict(), "decoder": self.decoder.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; unknown keys and impossible values raise ConfigError."""
        refuse_unknown(cls, values)
        parts = {}
        for name in ("blocks", "decoder"):
            if not isinstance(values.get(name), Mapping):
                raise ConfigError(
                    f"AutoencoderConfig.{name}: expected a ModelConfig's fields, got {values.get(name)!r}"
                )
            parts[name] = ModelConfig.from_dict(values[name])
        return cls(**{**values, **parts})


Architecture = ModelConfig | TrackerConfig | ReadoutTrackerConfig | AutoencoderConfig


def decoder_config(blocks: ModelConfig, **fields: Any) -> ModelConfig:
    """The decoder for an encoder of these blocks, by default of the size of VideoMAE's for its base model.

    The paper does not say what its decoder was. VideoMAE's (github.com/MCG-NJU/VideoMAE at 14ef8d8) has 4 blocks of
    width 384 with 6 heads, which attend to all tokens of all frames. These are TRecViT's own blocks, so that a hidden
    tube too remembers its past, or with `temporal_mixer="none"` blocks that see each frame by itself.

    Args:
        blocks: The encoder's.
        fields: Those of `ModelConfig` that are to be others.
    """
    size = {"width": 384, "depth": 4, "num_heads": 6, "mlp_width": 1536}
    return ModelConfig().replace(**{**size, **_decoder_must_have(blocks), **fields})


def _decoder_must_have(blocks: ModelConfig) -> dict[str, Any]:
    same = {name: getattr(blocks, name) for name in ("patch_size", "temporal_patch_size", "image_size")}
    return {**same, "positions": "sincos2d", "pooling": "mean", "num_classes": 0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How frames become the model's input. Pixels are in [0, 1], without mean or deviation (code: frames / 255).

    Attributes:
        image_size: Height and width of the crop in pixels.
        num_frames: Frames of a training clip.
        frame_stride: Every how many frames of the video one is taken (paper, Table 9: 2).
        frame_rate_fps: Frames per second of the training clips, or None. When both this and the video's rate are known,
            they decide the stride, see `stride_for`.
    """

    image_size: tuple[int, int] = (224, 224)
    num_frames: int = 32
    frame_stride: int = 2
    frame_rate_fps: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", as_image_size(self.image_size))
        for name in ("num_frames", "frame_stride"):
            _require(_is_int(getattr(self, name)) and getattr(self, name) >= 1, self, name, "a whole number >= 1")
        rate = self.frame_rate_fps
        is_rate = rate is None or (isinstance(rate, (int, float)) and 0 < rate < math.inf)
        _require(is_rate, self, "frame_rate_fps", "a positive number or nothing")

    def stride_for(self, video_fps: float | None) -> int:
        """Every how many frames of a video of this rate to take one."""
        if self.frame_rate_fps is None or video_fps is None:
            return self.frame_stride
        return max(1, round(video_fps / self.frame_rate_fps))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**dataclasses.asdict(self), "image_size": list(self.image_size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`; unknown keys and impossible values raise ConfigError."""
        refuse_unknown(cls, values)
        return cls(**values)


def nearest(name: str, names: Iterable[str]) -> str:
    """The words ", did you mean 'x'" for the most similar of `names`, or nothing when none is similar."""
    matches = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f", did you mean {matches[0]!r}" if matches else ""


def refuse_unknown(config_class: type, values: Mapping[str, Any]) -> None:
    """Raises ConfigError for a key that is no field of a dataclass, naming the nearest one."""
    fields = [field.name for field in dataclasses.fields(config_class)]
    for name in values:
        if name not in fields:
            hint = nearest(name, fields)
            raise ConfigError(
                f"{config_class.__name__} has no field {name!r}{hint}; its fields are {', '.join(fields)}"
            )


def _require(condition: bool, config: object, name: str, rule: str) -> None:
    if not condition:
        raise ConfigError(f"{type(config).__name__}.{name}: expected {rule}, got {getattr(config, name)!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def as_image_size(value: object) -> tuple[int, int]:
    """Height and width in pixels, from a pair of integers in any container, or from one integer for a square.

    Args:
        value: `(height, width)` as a tuple, list, `torch.Size` or array of integers, or one integer.

    Raises:
        ConfigError: for anything else, such as floats, numbers below 1 or another count of numbers.
    """
    sides: tuple[object, ...] = (value, value)
    if isinstance(value, Iterable) and not isinstance(value, (Set, Mapping)) and getattr(value, "shape", None) != ():
        sides = tuple(value)
    whole = [number for number in map(_integer, sides) if number is not None and number >= 1]
    if len(sides) == len(whole) == 2:
        return (whole[0], whole[1])
    raise ConfigError(f"image_size: expected (height, width) in pixels or one whole number, got {value!r}")


def _integer(value: object) -> int | None:
    """An integer of Python, numpy or PyTorch as Python's own; None for anything else, booleans too."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_labels(labels: object) -> tuple[str, ...]:
    """Names of classes, in the order of their numbers, as plain strings; what has no order or is no name is refused.

    One rule for names from files and from Python, so that whatever is accepted can be saved, printed line by line and
    told apart.

    Args:
        labels: A list or any other iterable of names; or transformers' `id2label`, a mapping from 0 ... n-1 (also as
            text, as JSON has it) to names, whatever the order of its keys.

    Returns:
        One name per class: not empty, printable, without white space around it, and each once.

    Raises:
        ConfigError: for anything else, with the class and its name.
    """
    names: dict[str, int] = {}
    for number, label in enumerate(_in_order(labels)):
        if not isinstance(label, str):
            kind = type(label).__name__
            raise ConfigError(f"labels: expected a text as the name of class {number}, got {kind} {label!r:.80}")
        name = "".join(label)  # of a subclass, such as numpy's, a plain string
        if reason := why_no_label(name):
            raise ConfigError(f"labels: expected a name for class {number}, got {name!r:.80}, {reason}")
        if name in names:
            raise ConfigError(
                f"labels: expected each name once, got {name!r:.80} for classes {names[name]} and {number}; "
                "rename one of them, or make them one class"
            )
        names[name] = number
    return tuple(names)


def _in_order(labels: object) -> Iterable[object]:
    if isinstance(labels, Mapping):
        by_number = {_integer(int(key) if isinstance(key, str) and key.isdecimal() else key): key for key in labels}
        if set(by_number) != set(range(len(labels))):
            raise ConfigError(
                f"labels: expected a list of names or a mapping from 0 ... {max(len(labels) - 1, 0)} to names, got a "
                f"mapping with the keys {', '.join(map(repr, [*labels][:5]))}{' ...' if len(labels) > 5 else ''}; give "
                "a list of names in the order of the classes' numbers"
            )
        return [labels[by_number[number]] for number in range(len(labels))]
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise ConfigError(
            f"labels: expected a list of names, one per class, got {type(labels).__name__} {labels!r:.80}"
        )
    if isinstance(labels, Set) and not isinstance(labels, KeysView):
        raise ConfigError("labels: expected names in the order of the classes' numbers, got a set, which has no order")
    return labels


def why_no_label(name: str) -> str:
    """Why a text cannot be the name of a class; empty if it can."""
    if not name.strip():
        return "which is empty"
    if name != name.strip() or name.startswith("\ufeff"):
        return "with white space or a byte-order mark around it; strip the names"
    kinds = {unicodedata.category(character) for character in name}
    if "Cs" in kinds:
        return "which is not valid Unicode; was the file read in another encoding?"
    return "with a control character or line break in it" if kinds & {"Cc", "Zl", "Zp"} else ""


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
    """The configuration of a preset with some fields overridden.

    Raises:
        ConfigError: for an unknown preset or field, with the nearest name, and for impossible values.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}{nearest(preset, PRESETS)}; the presets are {', '.join(PRESETS)}")
    return PRESETS[preset].replace(**overrides)
