"""Tables that map other authors' arrays to our tensors, and safe reading of `.npz` files.

A file is loaded whole or not at all: each array is used exactly once, and arrays that are missing, left over or of
another shape are listed by name.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trecvit.errors import CheckpointError
from trecvit.pretrained import mismatch

Array = npt.NDArray[Any]
Headers = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]

_MAX_EXPANSION = 100  # weights hardly compress; a zip bomb does


class Layout(NamedTuple):
    """Memory layout of an official array relative to our tensor. Both functions take (array, target shape)."""

    to_ours: Callable[[Array, tuple[int, ...]], Array]
    to_official: Callable[[Array, tuple[int, ...]], Array]


def _reshape(array: Array, shape: tuple[int, ...]) -> Array:
    return array.reshape(shape)


def _kernel_to_ours(array: Array, shape: tuple[int, ...]) -> Array:
    return array.reshape(shape[::-1]).T


def _kernel_to_official(array: Array, shape: tuple[int, ...]) -> Array:
    return array.T.reshape(shape)


def _patch_to_ours(array: Array, shape: tuple[int, ...]) -> Array:
    return array.transpose(4, 3, 0, 1, 2).reshape(shape)


def _patch_to_official(array: Array, shape: tuple[int, ...]) -> Array:
    frames, height, width, colours, channels = shape
    return array.reshape(channels, colours, frames, height, width).transpose(2, 3, 4, 1, 0)


SAME = Layout(_reshape, _reshape)  # the same values in the same order, reshaped
KERNEL = Layout(_kernel_to_ours, _kernel_to_official)  # official [in..., out...], ours [out, in]
PATCH = Layout(_patch_to_ours, _patch_to_official)  # official [frames, height, width, colours, D]


@dataclass(frozen=True)
class Entry:
    """One row of a table: an official array, or a slice of it, equals one of our tensors, or a chunk of its rows.

    `shape` is that of the whole official array; its letters are those of the sizes given to `shapes_of`.
    """

    official: str
    shape: str
    ours: str
    layout: Layout
    official_slice: int | None = None
    our_chunk: tuple[int, int] | None = None  # (index, number of chunks)


def per_layer(rows: Iterable[Entry], depth: int) -> list[Entry]:
    """Repeat the rows of one layer, whose names contain {i}, for `depth` layers."""
    rows = tuple(rows)
    return [
        replace(row, official=row.official.format(i=i), ours=row.ours.format(i=i)) for i in range(depth) for row in rows
    ]


def shapes_of(table: Sequence[Entry], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every array of a table; `sizes` gives the values of its letters."""
    return {row.official: tuple(sizes.get(s) or int(s) for s in row.shape.split()) for row in table}


def size_of(letter: str, table: Iterable[Entry], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the value of a letter, read from the shape of the first array whose row has it.

    Raises:
        CheckpointError: This array is missing or has another number of axes.
    """
    row = next(row for row in table if letter in row.shape.split())
    shape, letters = shapes.get(row.official), row.shape.split()
    if shape is None or len(shape) != len(letters):
        actual = "none" if shape is None else f"shape {shape}"
        raise CheckpointError(f"expected an array {row.official!r} of {len(letters)} axes, got {actual}")
    return shape[letters.index(letter)]


def to_state_dict(
    table: Sequence[Entry], arrays: Mapping[str, Array], make_model: Callable[[], nn.Module]
) -> dict[str, Tensor]:
    """Convert a complete set of official arrays to a float32 state dict of the model that `make_model` returns."""
    chunks: dict[str, list[Tensor]] = {}
    with torch.device("meta"):
        our_shapes = {name: tuple(tensor.shape) for name, tensor in make_model().state_dict().items()}
    for entry in table:
        array, (rows, *columns) = arrays[entry.official], our_shapes[entry.ours]
        if entry.official_slice is not None:
            array = array[entry.official_slice]
        if entry.our_chunk is not None:
            rows //= entry.our_chunk[1]
        ours = entry.layout.to_ours(array, (rows, *columns))
        chunks.setdefault(entry.ours, []).append(torch.from_numpy(np.ascontiguousarray(ours, np.float32)))
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in chunks.items()}


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn any error while a file is read into a CheckpointError that names it.

    Args:
        path: The file.
        kind: The expected kind of file.
    """
    try:
        yield
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zipfile.LargeZipFile) as exc:
        raise CheckpointError(f"{path}: expected {kind}: {exc}") from exc
    except Exception as exc:  # a damaged archive can raise zlib.error, struct.error, …
        raise CheckpointError(f"{path}: damaged file ({type(exc).__name__}: {exc})") from exc


def read_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Read shape and dtype of every array in the archive, without its values."""
    headers = {}
    with zipfile.ZipFile(path) as archive:
        if sum(item.file_size for item in archive.infolist()) > _MAX_EXPANSION * path.stat().st_size:
            raise CheckpointError(
                f"expected an archive of weights, got one that expands more than {_MAX_EXPANSION}-fold"
            )
        for item in archive.infolist():
            with archive.open(item) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in read:
                    raise CheckpointError(f"{item.filename}: unknown .npy version {version}")
                shape, _, dtype = read[version](file)
            if math.prod(shape) * dtype.itemsize > item.file_size:
                raise CheckpointError(f"{item.filename}: {dtype} {shape} is larger than the file")
            headers[item.filename.removesuffix(".npy")] = (shape, dtype)
    return headers


def check_arrays(headers: Headers, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise a CheckpointError with the names of arrays that are missing, left over, or of another shape or dtype."""
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in headers]
    left_over = [f"{name} {shape}" for name, (shape, _) in headers.items() if name not in expected]
    different = [
        f"{name} {dtype} {shape} instead of float {expected[name]}"
        for name, (shape, dtype) in headers.items()
        if name in expected and (shape != expected[name] or dtype.kind != "f")
    ]
    if reasons := mismatch(missing, left_over, different):
        raise CheckpointError(f"the arrays do not match the model that they imply; {reasons}")
