"""Weights under other authors' names: tables that say what is what, and reading `.npz` files without trusting them.

A file is taken as a whole or not at all: each array is used exactly once, and what is missing, left over or of another
shape is listed by name.
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

_MAX_EXPANSION = 100  # a genuine file holds noise-like floats, which do not compress; a zip bomb does


class Layout(NamedTuple):
    """How the values of one official array lie in one of our tensors. Both functions take (array, shape wanted)."""

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


SAME = Layout(_reshape, _reshape)  # the same values in the same order, perhaps with other brackets
KERNEL = Layout(_kernel_to_ours, _kernel_to_official)  # [in..., out...] there, [out, in] here
PATCH = Layout(_patch_to_ours, _patch_to_official)  # [frames, height, width, colours, D] there


@dataclass(frozen=True)
class Entry:
    """One row of the table: an official array, or one slice of it, is one of our tensors, or one chunk of its rows.

    The letters of `shape` are those of the sizes given to `shapes_of`; the official name and shape are always those of
    the whole.
    """

    official: str
    shape: str
    ours: str
    layout: Layout
    official_slice: int | None = None
    our_chunk: tuple[int, int] | None = None  # (number, of how many)


def per_layer(rows: Iterable[Entry], depth: int) -> list[Entry]:
    """The rows of one layer, whose names say {i}, for each of `depth` layers."""
    rows = tuple(rows)
    return [
        replace(row, official=row.official.format(i=i), ours=row.ours.format(i=i)) for i in range(depth) for row in rows
    ]


def shapes_of(table: Sequence[Entry], sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a table, `sizes` being what its letters stand for."""
    return {row.official: tuple(sizes.get(s) or int(s) for s in row.shape.split()) for row in table}


def size_of(letter: str, table: Iterable[Entry], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """What a letter stands for, going by the shape of the first array whose row has it.

    Raises:
        CheckpointError: when there is no such array, or it has fewer axes.
    """
    row = next(row for row in table if letter in row.shape.split())
    shape, letters = shapes.get(row.official), row.shape.split()
    if shape is None or len(shape) != len(letters):
        found = "nothing" if shape is None else f"shape {shape}"
        raise CheckpointError(f"expected an array {row.official!r} of {len(letters)} axes, got {found}")
    return shape[letters.index(letter)]


def in_our_names(
    table: Sequence[Entry], arrays: Mapping[str, Array], make_model: Callable[[], nn.Module]
) -> dict[str, Tensor]:
    """A complete set of official arrays as the state dict of the model that `make_model` makes, float32."""
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
def taken_whole(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever goes wrong while a file is read into a CheckpointError that names it.

    Args:
        path: The file.
        kind: What it was expected to be.
    """
    try:
        yield
    except CheckpointError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zipfile.LargeZipFile) as exc:
        raise CheckpointError(f"{path}: expected {kind}: {exc}") from exc
    except Exception as exc:  # zlib.error, struct.error, NotImplementedError ...: whatever a mangled archive provokes
        raise CheckpointError(f"{path}: damaged file ({type(exc).__name__}: {exc})") from exc


def read_headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and type of every array in the archive, without its values."""
    headers = {}
    with zipfile.ZipFile(path) as archive:
        if sum(item.file_size for item in archive.infolist()) > _MAX_EXPANSION * path.stat().st_size:
            raise CheckpointError("the archive would expand more than a hundredfold; no file of weights does")
        for item in archive.infolist():
            with archive.open(item) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in read:
                    raise CheckpointError(f"{item.filename}: unknown .npy version {version}")
                shape, _, dtype = read[version](file)
            if math.prod(shape) * dtype.itemsize > item.file_size:
                raise CheckpointError(f"{item.filename}: promises {dtype} {shape}, more than the file holds")
            headers[item.filename.removesuffix(".npy")] = (shape, dtype)
    return headers


def compare(headers: Headers, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises CheckpointError with the names of arrays that are missing, left over, or of another shape or type."""
    missing = [f"{name} {shape}" for name, shape in expected.items() if name not in headers]
    left_over = [f"{name} {shape}" for name, (shape, _) in headers.items() if name not in expected]
    other = [
        f"{name} {dtype} {shape} instead of float {expected[name]}"
        for name, (shape, dtype) in headers.items()
        if name in expected and (shape != expected[name] or dtype.kind != "f")
    ]
    if reasons := mismatch(missing, left_over, other):
        raise CheckpointError(f"the arrays do not match the model that they imply; {reasons}")
