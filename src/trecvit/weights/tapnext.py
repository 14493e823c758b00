"""Published files of TAPNext: `.npz` of the JAX original, `.pt` and `.ckpt` of the PyTorch port (TAPNext++).

Names are those of google-deepmind/tapnet at c2cbab8. The format determines the arithmetic of training, see
`TrackerConfig`; the arrays determine every size. Training pixels were from -1 to 1 and ours are from 0 to 1, so the
patch embedding is adapted.
"""

from __future__ import annotations

import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from trecvit.errors import CheckpointError, ConfigError
from trecvit.model.tapnext import TAPNext, TrackerConfig
from trecvit.model.trecvit import sincos_positions
from trecvit.weights.names import (
    KERNEL,
    PATCH,
    SAME,
    Array,
    Entry,
    Headers,
    check_arrays,
    per_layer,
    read_headers,
    reading,
    shapes_of,
    size_of,
    to_state_dict,
)
from trecvit.weights.official import layer_rows, sizes

TORCH_SUFFIXES = (".pt", ".pth", ".ckpt")
_KIND = "a TAPNext file: .npz of arrays, or .pt or .ckpt of tensors"
_TENSORS = "expected the tensors of a TAPNext, the only model that is read from a PyTorch file"
_MARKS = ("lin_proj.weight", "image_pos_emb", "mask_token")  # names that identify a TAPNext
_OUR_MARK = "tokenizer.embedding.weight"
_QUERY_POSITIONS = "query_pos_embed"  # a constant that PyTorch files may contain
_CONSTANT_TOLERANCE = 0.01  # it may be stored in half precision


class _Dialect(NamedTuple):
    """Table of one format. Letters beyond those of `official.sizes`: H readout width, C = 2 x raster size."""

    rows: tuple[Entry, ...]
    layer: tuple[Entry, ...]
    layer_number: re.Pattern[str]
    blocks: dict[str, Any]  # fields of ModelConfig that the format determines
    arithmetic: dict[str, Any]  # fields of TrackerConfig that it determines

    def table(self, depth: int) -> list[Entry]:
        return [*self.rows, *per_layer(self.layer, depth)]


def read_tapnext(path: str | Path) -> tuple[TrackerConfig, dict[str, Tensor]]:
    """Read config and state dict of a published TAPNext.

    Names and shapes are checked before any values are read. A PyTorch file is opened for tensors only, so no code in
    it runs; entries beside its "state_dict" are ignored.

    Args:
        path: `.npz`, or any other suffix for a PyTorch file.

    Raises:
        CheckpointError: The file is missing, damaged, hostile or of another kind. Lists by name the arrays that are
            missing, left over, or of another shape or dtype.
    """
    path = Path(path)
    with reading(path, _KIND):
        if path.suffix.lower() == ".npz":
            config, tensors = _read(_JAX, read_headers(path), lambda: _arrays(path))
        else:
            stored = _torch_tensors(path)
            positions = stored.pop(_QUERY_POSITIONS, None)
            headers = {name: (tuple(tensor.shape), _numpy_dtype(tensor)) for name, tensor in stored.items()}
            # Cloned, since the tensors are memory-mapped and the file may change.
            config, tensors = _read(
                _TORCH, headers, lambda: {name: tensor.float().clone().numpy() for name, tensor in stored.items()}
            )
            if positions is not None:
                _check_query_positions(positions, config)
        return config, _for_pixels_from_0_to_1(tensors)


def is_tapnext_npz(path: Path) -> bool:
    """Whether the array names of an `.npz` are those of a TAPNext."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "backbone/mask_token.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def _readout(official: str, ours: str, outputs: str, *, is_jax: bool) -> list[Entry]:
    """Rows of a readout; layers 2 and 5 are its GELUs."""
    rows = []
    for number, part, shape in (
        (0, "first", "D H"),
        (1, "first_norm", "H"),
        (3, "second", "H H"),
        (4, "second_norm", "H"),
        (6, "out", f"H {outputs}"),
    ):
        prefix = f"{official}/layers_{number}/" if is_jax else f"{official}.{number}."
        bias = shape.split()[-1]
        if is_jax:
            weight, layout = ("scale", SAME) if part.endswith("norm") else ("kernel", KERNEL)
        else:
            weight, layout, shape = "weight", SAME, " ".join(reversed(shape.split()))
        rows += [
            Entry(prefix + weight, shape, f"{ours}.{part}.weight", layout),
            Entry(prefix + "bias", bias, f"{ours}.{part}.bias", SAME),
        ]
    return rows


_LIKE_TRECVIT = layer_rows(TrackerConfig().blocks)  # the JAX layers, up to the prefix of their names
_JAX_LAYER = "backbone/Transformer/encoderblock_{i}"
_JAX = _Dialect(
    rows=(
        Entry("backbone/embedding/kernel", "1 S S 3 D", "tokenizer.embedding.weight", PATCH),
        Entry("backbone/embedding/bias", "D", "tokenizer.embedding.bias", SAME),
        Entry("backbone/pos_embedding", "1 P D", "tokenizer.positions", SAME),
        Entry("backbone/unknown_token", "1 1 D", "point_tokens.unknown", SAME),
        Entry("backbone/point_query_token", "1 1 1 D", "point_tokens.query", SAME),
        Entry("backbone/mask_token", "1 1 1 D", "point_tokens.mask", SAME),
        Entry("backbone/Transformer/encoder_norm/scale", "D", "norm.weight", SAME),
        Entry("backbone/Transformer/encoder_norm/bias", "D", "norm.bias", SAME),
        *_readout("coordinate_head", "coordinates", "C", is_jax=True),
        *_readout("visible_head", "visibility", "1", is_jax=True),
    ),
    layer=tuple(
        replace(
            row,
            official=row.official.replace("encoder/residualblock_{i:02d}", _JAX_LAYER + "/ssm_block").replace(
                "encoder/encoderblock_{i}", _JAX_LAYER + "/vit_block"
            ),
        )
        for row in _LIKE_TRECVIT
    ),
    layer_number=re.compile(r"backbone/Transformer/encoderblock_(\d+)/"),
    blocks={"gelu": "tanh"},
    arithmetic={"norm_eps": 1e-6, "query_border": "nearest"},
)

_RECURRENT = "blocks.{i}.ssm_block.recurrent_block."
_LRU = _RECURRENT + "rg_lru."
_GRIFFIN_MLP = "blocks.{i}.ssm_block.mlp_block."
_VIT = "blocks.{i}.vit_block."
_TEMPORAL, _SPATIAL = "blocks.{i}.temporal.", "blocks.{i}.spatial."
_TORCH = _Dialect(
    rows=(
        Entry("lin_proj.weight", "D 3 S S", "tokenizer.embedding.weight", SAME),
        Entry("lin_proj.bias", "D", "tokenizer.embedding.bias", SAME),
        Entry("image_pos_emb", "1 P D", "tokenizer.positions", SAME),
        Entry("unknown_token", "1 1 D", "point_tokens.unknown", SAME),
        Entry("point_query_token", "1 1 1 D", "point_tokens.query", SAME),
        Entry("mask_token", "1 1 1 D", "point_tokens.mask", SAME),
        Entry("encoder_norm.weight", "D", "norm.weight", SAME),
        Entry("encoder_norm.bias", "D", "norm.bias", SAME),
        *_readout("coordinate_head", "coordinates", "C", is_jax=False),
        *_readout("visible_head", "visibility", "1", is_jax=False),
    ),
    layer=(
        Entry("blocks.{i}.ssm_block.temporal_pre_norm.scale", "D", _TEMPORAL + "norm.scale", SAME),
        Entry(_RECURRENT + "linear_y.weight", "E D", _TEMPORAL + "linear_y.weight", SAME),
        Entry(_RECURRENT + "linear_y.bias", "E", _TEMPORAL + "linear_y.bias", SAME),
        Entry(_RECURRENT + "linear_x.weight", "E D", _TEMPORAL + "linear_x.weight", SAME),
        Entry(_RECURRENT + "linear_x.bias", "E", _TEMPORAL + "linear_x.bias", SAME),
        Entry(_RECURRENT + "conv_1d.w", "K E", _TEMPORAL + "conv.weight", SAME),
        Entry(_RECURRENT + "conv_1d.b", "E", _TEMPORAL + "conv.bias", SAME),
        Entry(_LRU + "a_param", "E", _TEMPORAL + "lru.a_param", SAME),
        Entry(_LRU + "input_gate.w", "G e e", _TEMPORAL + "lru.input_gate.weight", SAME),
        Entry(_LRU + "input_gate.b", "G e", _TEMPORAL + "lru.input_gate.bias", SAME),
        Entry(_LRU + "a_gate.w", "G e e", _TEMPORAL + "lru.a_gate.weight", SAME),
        Entry(_LRU + "a_gate.b", "G e", _TEMPORAL + "lru.a_gate.bias", SAME),
        Entry(_RECURRENT + "linear_out.weight", "D E", _TEMPORAL + "linear_out.weight", SAME),
        Entry(_RECURRENT + "linear_out.bias", "D", _TEMPORAL + "linear_out.bias", SAME),
        Entry("blocks.{i}.ssm_block.channel_pre_norm.scale", "D", _TEMPORAL + "mlp_norm.scale", SAME),
        Entry(_GRIFFIN_MLP + "ffw_up.w", "2 D M", _TEMPORAL + "mlp.gate.weight", KERNEL, official_slice=0),
        Entry(_GRIFFIN_MLP + "ffw_up.b", "2 1 1 M", _TEMPORAL + "mlp.gate.bias", SAME, official_slice=0),
        Entry(_GRIFFIN_MLP + "ffw_up.w", "2 D M", _TEMPORAL + "mlp.up.weight", KERNEL, official_slice=1),
        Entry(_GRIFFIN_MLP + "ffw_up.b", "2 1 1 M", _TEMPORAL + "mlp.up.bias", SAME, official_slice=1),
        Entry(_GRIFFIN_MLP + "ffw_down.weight", "D M", _TEMPORAL + "mlp.down.weight", SAME),
        Entry(_GRIFFIN_MLP + "ffw_down.bias", "D", _TEMPORAL + "mlp.down.bias", SAME),
        Entry(_VIT + "ln_1.weight", "D", _SPATIAL + "attention_norm.weight", SAME),
        Entry(_VIT + "ln_1.bias", "D", _SPATIAL + "attention_norm.bias", SAME),
        Entry(_VIT + "self_attention.in_proj_weight", "3D D", _SPATIAL + "qkv.weight", SAME),
        Entry(_VIT + "self_attention.in_proj_bias", "3D", _SPATIAL + "qkv.bias", SAME),
        Entry(_VIT + "self_attention.out_proj.weight", "D D", _SPATIAL + "attention_out.weight", SAME),
        Entry(_VIT + "self_attention.out_proj.bias", "D", _SPATIAL + "attention_out.bias", SAME),
        Entry(_VIT + "ln_2.weight", "D", _SPATIAL + "mlp_norm.weight", SAME),
        Entry(_VIT + "ln_2.bias", "D", _SPATIAL + "mlp_norm.bias", SAME),
        Entry(_VIT + "mlp.0.weight", "M D", _SPATIAL + "mlp_up.weight", SAME),
        Entry(_VIT + "mlp.0.bias", "M", _SPATIAL + "mlp_up.bias", SAME),
        Entry(_VIT + "mlp.3.weight", "D M", _SPATIAL + "mlp_down.weight", SAME),
        Entry(_VIT + "mlp.3.bias", "D", _SPATIAL + "mlp_down.bias", SAME),
    ),
    layer_number=re.compile(r"blocks\.(\d+)\."),
    blocks={"gelu": "erf"},
    arithmetic={"norm_eps": 1e-5, "query_border": "zeros"},
)


def _read(
    dialect: _Dialect, headers: Headers, arrays: Callable[[], dict[str, Array]]
) -> tuple[TrackerConfig, dict[str, Tensor]]:
    config = _infer_config(dialect, {name: shape for name, (shape, _) in headers.items()})
    table = dialect.table(config.depth)
    letters = {
        **sizes(config.blocks),
        "H": config.readout_width,
        "C": 2 * config.raster_px,
        "3D": 3 * config.blocks.width,
    }
    check_arrays(headers, shapes_of(table, letters))
    return config, to_state_dict(table, arrays(), lambda: TAPNext(config))


def _infer_config(dialect: _Dialect, shapes: Mapping[str, tuple[int, ...]]) -> TrackerConfig:
    # Count the layers instead of taking the highest index: a hostile name must not make the table huge.
    layers = {match[1] for name in shapes if (match := dialect.layer_number.match(name))}
    first_layer = dialect.table(depth=1)

    def size(letter: str) -> int:
        return size_of(letter, first_layer, shapes)

    width, lru_width, num_positions, patch_size, outputs = (size(letter) for letter in "DEPSC")
    if width < 1 or lru_width % width:
        raise CheckpointError(f"expected a recurrent width that is a multiple of width={width}, got {lru_width}")
    side = math.isqrt(num_positions)
    if side * side != num_positions:
        raise CheckpointError(f"expected a square grid of positions, got {num_positions}")
    if outputs % 2:
        raise CheckpointError(
            f"expected an even number of coordinate outputs, half for x and half for y, got {outputs}"
        )
    fields = {
        "width": width,
        "depth": max(len(layers), 1),
        "num_heads": size("G"),
        "mlp_width": size("M"),
        "lru_multiplier": lru_width // width,
        "conv_width": size("K"),
        "patch_size": patch_size,
        "image_size": side * patch_size,
    }
    try:
        blocks = TrackerConfig().blocks.replace(**fields, **dialect.blocks)
        raster_px, readout_width = outputs // 2, size("H")
        return TrackerConfig(blocks=blocks, raster_px=raster_px, readout_width=readout_width, **dialect.arithmetic)
    except ConfigError as exc:
        raise CheckpointError(f"expected the arrays of a TAPNext: {exc}") from exc


def _arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a PyTorch file by name, memory-mapped where the format allows it."""
    content = _load_torch(path)
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{_TENSORS}; got a {type(content).__name__} and no state dict")
    invalid = [name for name, value in content.items() if not (isinstance(name, str) and _is_plain_tensor(value))]
    if invalid:
        kind = type(content[invalid[0]]).__name__
        raise CheckpointError(
            f"{_TENSORS}, by name or under 'state_dict'; got {_some(content)}, of which {invalid[0]!r} is no plain "
            f"tensor but a {kind}"
        )
    tensors = {name.removeprefix("tapnext."): value.detach() for name, value in content.items()}
    if len(tensors) != len(content):
        raise CheckpointError("expected names with or without the prefix 'tapnext.', got some in both forms")
    if sum(tensor.nbytes for tensor in tensors.values()) > path.stat().st_size:
        raise CheckpointError("the tensors are larger than the file")
    _refuse_other_models(tensors)
    return tensors


def _load_torch(path: Path) -> Any:
    """Read the content of a PyTorch file without running code.

    Raises:
        CheckpointError: It is not a PyTorch file, or holds more than tensors and plain values.
    """
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if not any(name.endswith("/data.pkl") for name in names) or any("/code/" in name for name in names):
            kind = "a TorchScript program" if any("/code/" in name for name in names) else "a zip archive"
            raise CheckpointError(f"{_TENSORS}; got {kind} with {_some(names)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the format of the file
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as exc:
        # PyTorch's message is long and explains how to run the code.
        match = re.search(r"GLOBAL ([\w.]+)", str(exc))
        reason = f"it holds a {match[1]}" if match else "it is damaged, or not written by torch.save"
        raise CheckpointError(
            f"{_TENSORS}; {reason}; such pickled checkpoints can run code and are not opened"
        ) from exc
    except (RuntimeError, KeyError, EOFError) as exc:
        reason = (str(exc).splitlines() or [""])[0]
        raise CheckpointError(
            f"{_TENSORS}; it is damaged, or not written by torch.save ({type(exc).__name__} {reason:.100})"
        ) from exc


def _refuse_other_models(tensors: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError for the state dict of another model, without any TAPNext name."""
    if not tensors or any(mark in tensors for mark in _MARKS):
        return
    if any(name.endswith(_OUR_MARK) for name in tensors):
        raise CheckpointError(
            f"{_TENSORS}; got the state dict of a model of this package, without its config; write it with "
            "model.save(folder) and load the folder, or create the model and use "
            "model.load_state_dict(torch.load(path, weights_only=True))"
        )
    raise CheckpointError(
        f"{_TENSORS}, with names such as {', '.join(_MARKS)}; got {len(tensors)} tensors of another model, "
        f"{_some(tensors)}"
    )


def _some(names: Iterable[Any]) -> str:
    """The first names, for an error message."""
    listed = [repr(name) for name in names]
    return ", ".join(listed[:5]) + (" ..." if len(listed) > 5 else "") if listed else "none"


def _numpy_dtype(tensor: Tensor) -> np.dtype[Any]:
    """The dtype of a tensor as an array; every floating-point dtype is loaded as float32."""
    return np.dtype(np.float32) if tensor.is_floating_point() else torch.empty(0, dtype=tensor.dtype).numpy().dtype


def _is_plain_tensor(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _check_query_positions(positions: Tensor, config: TrackerConfig) -> None:
    """Refuse query positions other than the constant ones, since this model computes the constant."""
    side, width = config.raster_px, config.blocks.width
    if tuple(positions.shape) != (1, side * side, width):
        raise CheckpointError(f"expected {_QUERY_POSITIONS} {(1, side * side, width)}, got {tuple(positions.shape)}")
    of_x, of_y = positions.view(side, side, 2, width // 2).unbind(dim=2)
    axis = sincos_positions(1, side, width)[:, : width // 2]
    error = max(float((of_x - axis).abs().max()), float((of_y - axis[:, None]).abs().max()))
    if not error <= _CONSTANT_TOLERANCE:
        raise CheckpointError(
            f"expected sines and cosines in {_QUERY_POSITIONS}, got values that differ by up to {error:.3g}"
        )


def _for_pixels_from_0_to_1(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rewrite the patch embedding W (2x - 1) + b as a linear function of x."""
    weight, bias = (tensors[f"tokenizer.embedding.{kind}"].double() for kind in ("weight", "bias"))
    folded = {
        "tokenizer.embedding.weight": (2.0 * weight).float(),
        "tokenizer.embedding.bias": (bias - weight.sum(dim=1)).float(),
    }
    return {**tensors, **folded}
