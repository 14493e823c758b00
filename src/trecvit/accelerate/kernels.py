"""Which of this machine's kernels multiply matrices fastest: PyTorch leaves the choice to its caller."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from trecvit.accelerate.linears import PackedLinear, packed_linears
from trecvit.accelerate.timing import timed_in_turns
from trecvit.errors import PrecisionWarning
from trecvit.model.linear import Linear
from trecvit.model.trecvit import VideoModel
from trecvit.processor import supports

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DTYPES = {**FLOATS, "int8": torch.int8}
_SECONDS_OF_TRIAL = 0.02  # per kernel and shape

_Shape = tuple[int, int]  # inputs and outputs of a linear layer


def available_dtype(model: VideoModel, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 in place of bfloat16 on a CPU that multiplies float32 faster; then warn.

    Without instructions for bfloat16, PyTorch and oneDNN convert each number to float32, by software on most CPUs.

    Args:
        model: Its device decides, and where the processor leaves it open, timings of its linear layers.
        dtype: Of the matrix multiplications.
    """
    if dtype != torch.bfloat16 or model.device.type != "cpu" or supports("bfloat16"):
        return dtype
    if supports("onednn_bfloat16") and _is_faster_in_bfloat16(model.tokenizer.config.num_patches, *_shapes(model)):
        return dtype
    message = "this processor multiplies float32 faster than bfloat16: computing in float32"
    warnings.warn(message, PrecisionWarning, stacklevel=3)
    return torch.float32


def is_faster_with_onednn(model: VideoModel) -> bool:
    """Whether oneDNN's float32 kernels take less time than MKL's for all linear layers of one frame."""
    has_onednn = PackedLinear.is_available()
    if not has_onednn or not supports("mkl"):
        return has_onednn
    num_rows = model.tokenizer.config.num_patches
    fastest: str = _fastest(_shapes(model), partial(_packed_zeros, num_rows, torch.float32))
    return fastest == "onednn"


@cache  # so that every answer of one process is the same
def _is_faster_in_bfloat16(num_rows: int, *shapes: _Shape) -> bool:
    """Whether oneDNN takes less time in bfloat16 than in float32 for linear layers of these shapes."""
    dtypes = (torch.float32, torch.bfloat16)

    def kernels(shape: _Shape) -> dict[torch.dtype, Callable[[], Tensor]]:
        return {dtype: _packed_zeros(num_rows, dtype, shape)["onednn"] for dtype in dtypes}

    fastest: torch.dtype = _fastest(shapes, kernels)
    return fastest == torch.bfloat16


def _shapes(model: VideoModel) -> list[_Shape]:
    return [(linear.in_features, linear.out_features) for linear in model.modules() if isinstance(linear, Linear)]


def _packed_zeros(num_rows: int, dtype: torch.dtype, shape: _Shape) -> dict[str, Callable[[], Tensor]]:
    num_inputs, num_outputs = shape
    zeros = partial(torch.zeros, dtype=dtype)
    return packed_linears(zeros(num_rows, num_inputs), zeros(num_outputs, num_inputs), zeros(num_outputs))


def _fastest(shapes: Sequence[_Shape], kernels: Callable[[_Shape], Mapping[Any, Callable[[], Tensor]]]) -> Any:
    """The name of the kernels with the least total time for linear layers of these shapes."""
    total_s: dict[Any, float] = {}
    for shape, count in Counter(shapes).items():
        candidates = kernels(shape)
        times_s = timed_in_turns(*candidates.values(), seconds=_SECONDS_OF_TRIAL)
        for name, kernel_times_s in zip(candidates, times_s, strict=True):
            total_s[name] = total_s.get(name, 0.0) + count * min(kernel_times_s)
    return min(total_s, key=total_s.__getitem__)
