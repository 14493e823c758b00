"""Official `.npz` files of TRecViT: the table of array names, and inference of the config from the arrays.

The names are the parameter names of google-deepmind/trecvit at 81bcb0a, joined by '/'. A file is loaded whole or not
at all: each array is used exactly once, and arrays that are missing, left over or of another shape are listed by name.
Both directions only rearrange values, so a round trip is bit-exact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trecvit.config import ModelConfig
from trecvit.errors import CheckpointError, ConfigError
from trecvit.files import write_whole
from trecvit.model.trecvit import TRecViT
from trecvit.weights.names import (
    KERNEL,
    PATCH,
    SAME,
    Array,
    Entry,
    check_arrays,
    per_layer,
    read_headers,
    reading,
    shapes_of,
    to_state_dict,
)

_EMBEDDING = (
    Entry("tokenizer/embedding/kernel", "p S S 3 D", "tokenizer.embedding.weight", PATCH),
    Entry("tokenizer/embedding/bias", "D", "tokenizer.embedding.bias", SAME),
)
_POSITIONS = (Entry("tokenizer/pos_embedding", "1 P D", "tokenizer.positions", SAME),)
_CLS = (Entry("tokenizer/cls", "1 1 D", "tokenizer.cls", SAME),)
_RECURRENT = "encoder/residualblock_{i:02d}/recurrent_block"
_TEMPORAL = (
    Entry("encoder/residualblock_{i:02d}/temporal_pre_norm/scale", "D", "blocks.{i}.temporal.norm.scale", SAME),
    Entry(_RECURRENT + "/linear_y/kernel", "D E", "blocks.{i}.temporal.linear_y.weight", KERNEL),
    Entry(_RECURRENT + "/linear_y/bias", "E", "blocks.{i}.temporal.linear_y.bias", SAME),
    Entry(_RECURRENT + "/linear_x/kernel", "D E", "blocks.{i}.temporal.linear_x.weight", KERNEL),
    Entry(_RECURRENT + "/linear_x/bias", "E", "blocks.{i}.temporal.linear_x.bias", SAME),
    Entry(_RECURRENT + "/rg_lru/a_param", "L", "blocks.{i}.temporal.lru.a_param", SAME),
    Entry(_RECURRENT + "/rg_lru/input_gate/w", "G e l", "blocks.{i}.temporal.lru.input_gate.weight", SAME),
    Entry(_RECURRENT + "/rg_lru/input_gate/b", "G l", "blocks.{i}.temporal.lru.input_gate.bias", SAME),
    Entry(_RECURRENT + "/rg_lru/a_gate/w", "G e l", "blocks.{i}.temporal.lru.a_gate.weight", SAME),
    Entry(_RECURRENT + "/rg_lru/a_gate/b", "G l", "blocks.{i}.temporal.lru.a_gate.bias", SAME),
    Entry(_RECURRENT + "/linear_out/kernel", "E D", "blocks.{i}.temporal.linear_out.weight", KERNEL),
    Entry(_RECURRENT + "/linear_out/bias", "D", "blocks.{i}.temporal.linear_out.bias", SAME),
)
_CONV = (
    Entry(_RECURRENT + "/conv_1d/w", "K E", "blocks.{i}.temporal.conv.weight", SAME),
    Entry(_RECURRENT + "/conv_1d/b", "E", "blocks.{i}.temporal.conv.bias", SAME),
)
_COMPLEX = (Entry(_RECURRENT + "/rg_lru/a_imag_param", "L", "blocks.{i}.temporal.lru.a_imag_param", SAME),)
_GRIFFIN_MLP = "encoder/residualblock_{i:02d}/mlp_block"
_TEMPORAL_MLP = (
    Entry("encoder/residualblock_{i:02d}/channel_pre_norm/scale", "D", "blocks.{i}.temporal.mlp_norm.scale", SAME),
    Entry(_GRIFFIN_MLP + "/ffw_up/w", "2 D M", "blocks.{i}.temporal.mlp.gate.weight", KERNEL, official_slice=0),
    Entry(_GRIFFIN_MLP + "/ffw_up/b", "2 1 1 M", "blocks.{i}.temporal.mlp.gate.bias", SAME, official_slice=0),
    Entry(_GRIFFIN_MLP + "/ffw_up/w", "2 D M", "blocks.{i}.temporal.mlp.up.weight", KERNEL, official_slice=1),
    Entry(_GRIFFIN_MLP + "/ffw_up/b", "2 1 1 M", "blocks.{i}.temporal.mlp.up.bias", SAME, official_slice=1),
    Entry(_GRIFFIN_MLP + "/ffw_down/kernel", "M D", "blocks.{i}.temporal.mlp.down.weight", KERNEL),
    Entry(_GRIFFIN_MLP + "/ffw_down/bias", "D", "blocks.{i}.temporal.mlp.down.bias", SAME),
)
_ATTENTION = "encoder/encoderblock_{i}/MultiHeadDotProductAttention_0"
_SPATIAL = (
    Entry("encoder/encoderblock_{i}/LayerNorm_0/scale", "D", "blocks.{i}.spatial.attention_norm.weight", SAME),
    Entry("encoder/encoderblock_{i}/LayerNorm_0/bias", "D", "blocks.{i}.spatial.attention_norm.bias", SAME),
    Entry(_ATTENTION + "/query/kernel", "D G d", "blocks.{i}.spatial.qkv.weight", KERNEL, our_chunk=(0, 3)),
    Entry(_ATTENTION + "/query/bias", "G d", "blocks.{i}.spatial.qkv.bias", SAME, our_chunk=(0, 3)),
    Entry(_ATTENTION + "/key/kernel", "D G d", "blocks.{i}.spatial.qkv.weight", KERNEL, our_chunk=(1, 3)),
    Entry(_ATTENTION + "/key/bias", "G d", "blocks.{i}.spatial.qkv.bias", SAME, our_chunk=(1, 3)),
    Entry(_ATTENTION + "/value/kernel", "D G d", "blocks.{i}.spatial.qkv.weight", KERNEL, our_chunk=(2, 3)),
    Entry(_ATTENTION + "/value/bias", "G d", "blocks.{i}.spatial.qkv.bias", SAME, our_chunk=(2, 3)),
    Entry(_ATTENTION + "/out/kernel", "G d D", "blocks.{i}.spatial.attention_out.weight", KERNEL),
    Entry(_ATTENTION + "/out/bias", "D", "blocks.{i}.spatial.attention_out.bias", SAME),
    Entry("encoder/encoderblock_{i}/LayerNorm_1/scale", "D", "blocks.{i}.spatial.mlp_norm.weight", SAME),
    Entry("encoder/encoderblock_{i}/LayerNorm_1/bias", "D", "blocks.{i}.spatial.mlp_norm.bias", SAME),
    Entry("encoder/encoderblock_{i}/MlpBlock_0/Dense_0/kernel", "D M", "blocks.{i}.spatial.mlp_up.weight", KERNEL),
    Entry("encoder/encoderblock_{i}/MlpBlock_0/Dense_0/bias", "M", "blocks.{i}.spatial.mlp_up.bias", SAME),
    Entry("encoder/encoderblock_{i}/MlpBlock_0/Dense_1/kernel", "M D", "blocks.{i}.spatial.mlp_down.weight", KERNEL),
    Entry("encoder/encoderblock_{i}/MlpBlock_0/Dense_1/bias", "D", "blocks.{i}.spatial.mlp_down.bias", SAME),
)
_NORM = (
    Entry("encoder/encoder_norm/scale", "D", "norm.weight", SAME),
    Entry("encoder/encoder_norm/bias", "D", "norm.bias", SAME),
)
_HEAD = (
    Entry("decoder/pre_logits/kernel", "D R", "head.pre_logits.weight", KERNEL),
    Entry("decoder/pre_logits/bias", "R", "head.pre_logits.bias", SAME),
    Entry("decoder/cls_head/kernel", "R V", "head.classifier.weight", KERNEL),
    Entry("decoder/cls_head/bias", "V", "head.classifier.bias", SAME),
)
_BACKBONE = ("tokenizer/", "encoder/")


def official_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every array of an official file of this architecture."""
    return shapes_of(_table(config), sizes(config))


def sizes(config: ModelConfig) -> dict[str, int]:
    """Return the values of the letters in the tables' shapes."""
    num_eigenvalues = config.lru_width // 2 if config.lru_complex else config.lru_width
    return {
        "D": config.width,
        "E": config.lru_width,
        "G": config.num_heads,
        "K": config.conv_width,
        "L": num_eigenvalues,
        "M": config.mlp_width,
        "P": config.num_patches,
        "R": config.head_width,
        "S": config.patch_size,
        "V": config.num_classes,
        "d": config.width // config.num_heads,
        "e": config.lru_width // config.num_heads,
        "l": num_eigenvalues // config.num_heads,
        "p": config.temporal_patch_size,
    }


def to_official(config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Array]:
    """Convert a state dict to official float32 arrays.

    Args:
        config: The model's architecture.
        weights: Its `state_dict()`.
    """
    arrays: dict[str, Array] = {}
    shapes = official_shapes(config)
    for entry in _table(config):
        tensor = weights[entry.ours].detach().cpu().float().numpy()
        if entry.our_chunk is not None:
            index, num_chunks = entry.our_chunk
            tensor = np.split(tensor, num_chunks)[index]
        shape = shapes[entry.official]
        if entry.official_slice is None:
            arrays[entry.official] = np.ascontiguousarray(entry.layout.to_official(tensor, shape))
        else:
            whole = arrays.setdefault(entry.official, np.empty(shape, np.float32))
            whole[entry.official_slice] = entry.layout.to_official(tensor, shape[1:])
    return arrays


def from_official(config: ModelConfig, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    """Convert complete official arrays to a float32 state dict; the inverse of `to_official`."""
    return to_state_dict(_table(config), arrays, lambda: TRecViT(config))


def infer_config(shapes: Mapping[str, tuple[int, ...]], **overrides: Any) -> ModelConfig:
    """Infer the config from the shapes of the arrays.

    They determine every field except the eigenvalue range (used at initialisation only; set to that of the released
    model) and, for fixed positions or a grid that is not square, the image size (by default 224 x 224).

    Args:
        shapes: Shape of every array by official name.
        overrides: Fields of `ModelConfig` that the arrays do not determine.

    Raises:
        CheckpointError: The arrays are not those of a TRecViT.
    """

    def dimension(name: str, axis: int) -> int:
        shape = shapes.get(name)
        if shape is None or len(shape) <= abs(axis):
            actual = "none" if shape is None else f"shape {shape}"
            raise CheckpointError(f"not a TRecViT: expected an array {name!r}, got {actual}")
        return shape[axis]

    kernel = "tokenizer/embedding/kernel"
    block, attention = _RECURRENT.format(i=0), _ATTENTION.format(i=0)
    width = dimension(kernel, 4)
    lru_width = dimension(f"{block}/linear_x/kernel", 1)
    # Count the layers instead of taking the highest index: a hostile name must not make the table huge.
    layers = {int(match[1]) for name in shapes if (match := re.match(r"encoder/residualblock_(\d+)/", name))}
    has_head = "decoder/cls_head/kernel" in shapes
    if width < 1 or lru_width % width:
        raise CheckpointError(f"expected a recurrent width that is a multiple of width={width}, got {lru_width}")
    fields: dict[str, Any] = {
        "width": width,
        "depth": max(len(layers), 1),
        "num_heads": dimension(f"{attention}/query/kernel", 1),
        "mlp_width": dimension("encoder/encoderblock_0/MlpBlock_0/Dense_0/kernel", 1),
        "lru_multiplier": lru_width // width,
        "lru_complex": f"{block}/rg_lru/a_imag_param" in shapes,
        "min_radius": 0.5,
        "conv_width": dimension(f"{block}/conv_1d/w", 0) if f"{block}/conv_1d/w" in shapes else 0,
        "temporal_mlp": "encoder/residualblock_00/channel_pre_norm/scale" in shapes,
        "patch_size": dimension(kernel, 1),
        "temporal_patch_size": dimension(kernel, 0),
        "positions": "learned" if "tokenizer/pos_embedding" in shapes else "sincos2d",
        "pooling": "cls" if "tokenizer/cls" in shapes else "mean",
        "head_width": dimension("decoder/pre_logits/kernel", 1) if has_head else ModelConfig().head_width,
        "num_classes": dimension("decoder/cls_head/kernel", 1) if has_head else 0,
    }
    if fields["positions"] == "learned" and "image_size" not in overrides:
        num_patches = dimension("tokenizer/pos_embedding", 1)
        side = math.isqrt(num_patches)
        if side * side != num_patches:
            raise CheckpointError(
                f"expected a square grid of positions, got {num_patches}; give image_size=(height, width) in pixels"
            )
        fields["image_size"] = side * fields["patch_size"]
    elif fields["positions"] == "sincos2d" and fields["patch_size"] >= 1:
        fields["image_size"] = max(224 // fields["patch_size"], 1) * fields["patch_size"]
    try:
        return ModelConfig(**{**fields, **overrides})
    except (ConfigError, TypeError) as exc:
        raise CheckpointError(f"expected the arrays of a TRecViT: {exc}") from exc


def read_official(path: str | Path, **overrides: Any) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read config and state dict of an official `.npz`.

    Shapes are checked before any values are read, so that a hostile header cannot allocate memory.

    Args:
        path: The file.
        overrides: Fields of `ModelConfig` that the arrays do not determine, see `infer_config`.

    Raises:
        CheckpointError: The file is missing, damaged, hostile or of another kind. Lists by name the arrays that are
            missing, left over, or of another shape or dtype.
    """
    path = Path(path)
    with reading(path, "an official .npz file of arrays"):
        headers = read_headers(path)
        shapes = {name: shape for name, (shape, _) in headers.items()}
        config = infer_config(shapes, **overrides)
        check_arrays(headers, official_shapes(config))
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        return config, from_official(config, arrays)


def read_backbone(path: str | Path, **overrides: Any) -> tuple[ModelConfig, dict[str, Tensor], list[str]]:
    """Read config and state dict of the backbone from a file that also holds other arrays.

    For the released masked autoencoder, of which only the backbone's code was published. All arrays under `tokenizer/`
    and `encoder/` must belong to the backbone; the others are ignored.

    Args:
        path: The file.
        overrides: Fields of `ModelConfig` that the arrays do not determine, see `infer_config`.

    Returns:
        Config, state dict, and name and shape of every other array.

    Raises:
        CheckpointError: As `read_official`, for the backbone's arrays.
    """
    path = Path(path)
    with reading(path, "an .npz file of arrays"):
        headers = read_headers(path)
        backbone = {name: header for name, header in headers.items() if name.startswith(_BACKBONE)}
        others = [f"{name} {shape}" for name, (shape, _) in headers.items() if name not in backbone]
        if not backbone:
            raise CheckpointError(f"expected arrays under {' and '.join(_BACKBONE)}, got {', '.join(others[:10])}")
        config = infer_config({name: shape for name, (shape, _) in backbone.items()}, **overrides)
        check_arrays(backbone, official_shapes(config))
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in backbone}
        return config, from_official(config, arrays), others


def write_official(path: str | Path, config: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Write a state dict as an official `.npz`, atomically."""
    arrays: dict[str, Any] = to_official(config, weights)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(Path(path), write)


def _table(config: ModelConfig) -> list[Entry]:
    """The rows of all layers of a model of this architecture."""
    return [
        *_EMBEDDING,
        *(_POSITIONS if config.positions == "learned" else ()),
        *(_CLS if config.pooling == "cls" else ()),
        *per_layer(layer_rows(config), config.depth),
        *_NORM,
        *(_HEAD if config.num_classes else ()),
    ]


def layer_rows(config: ModelConfig) -> tuple[Entry, ...]:
    """Return the rows of one layer, whose names contain {i}."""
    return (
        *_TEMPORAL,
        *(_CONV if config.conv_width else ()),
        *(_COMPLEX if config.lru_complex else ()),
        *(_TEMPORAL_MLP if config.temporal_mlp else ()),
        *_SPATIAL,
    )
