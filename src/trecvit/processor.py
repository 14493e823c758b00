"""CPU features and kernels of this PyTorch build: all queries are in this module.

PyTorch's own queries are not enough. Some versions and builds lack them (no oneDNN, no MKL, ARM), and some ignore the
variables that limit oneDNN (`ONEDNN_MAX_CPU_ISA`). So each kernel is run once on a few numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Feature = Literal["onednn", "mkl", "onednn_bfloat16", "bfloat16", "amx", "int8"]
FEATURES: tuple[Feature, ...] = get_args(Feature)


def supports(feature: Feature) -> bool:
    """Return whether this processor and this PyTorch have a feature; False where it cannot be determined.

    Args:
        feature: "onednn" and "mkl": linear layers in float32 with packed weights. "onednn_bfloat16": the same in
            bfloat16 by oneDNN, which may convert to float32 to multiply. "bfloat16": there are also instructions that
            multiply bfloat16 (AVX512-BF16 or AMX), so that it is faster than float32. "amx": tiles (AMX). "int8":
            oneDNN's sums of 8-bit products are exact, by AVX-512 VNNI.
    """
    return _is_supported(feature)


def features() -> list[Feature]:
    """Return all supported features."""
    return [feature for feature in FEATURES if supports(feature)]


def instruction_set() -> str:
    """Return the instruction set of PyTorch's CPU kernels, such as "AVX2", or "unknown"."""
    query = getattr(getattr(torch.backends, "cpu", None), "get_cpu_capability", None)
    return str(query()) if query else "unknown"


@cache
def _is_supported(feature: Feature) -> bool:
    """Cache the query; tests replace this function to emulate another processor."""
    return _try(feature)


def _try(feature: Feature) -> bool:
    try:
        return _QUERIES[feature]()
    except (AttributeError, RuntimeError):  # no such query, or no such kernel, in this build or on this processor
        return False


def _has_instructions(name: str) -> bool:
    query = getattr(torch.cpu, f"_is_{name}_supported", None)
    return bool(query and query())


def _has_onednn() -> bool:
    return bool(torch.backends.mkldnn.is_available()) and _packs(torch.float32)


def _has_onednn_bfloat16() -> bool:
    return _has_onednn() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and _packs(torch.bfloat16)


def _has_bfloat16() -> bool:
    return _has_onednn_bfloat16() and (_has_instructions("avx512_bf16") or _has_instructions("amx_tile"))


def _packs(dtype: torch.dtype) -> bool:
    """Return whether oneDNN can pack a weight of this dtype and multiply by it."""
    x, weight = _ones(2, 16, dtype), _ones(16, 16, dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight.default(weight, 2)
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, None, "none", [], "")
    return bool((y == 16).all())


def _has_mkl() -> bool:
    if not torch.backends.mkl.is_available():
        return False
    x, weight = _ones(2, 16, torch.float32), _ones(16, 16, torch.float32)
    packed = torch.ops.mkl._mkl_reorder_linear_weight.default(weight, 2)
    y: Tensor = torch.ops.mkl._mkl_linear.default(x, packed, weight, None, 2)
    return bool((y == 16).all())


def _has_int8() -> bool:
    """Return whether 8-bit products are exact: without VNNI oneDNN adds pairs of them in 16 bits, which overflow."""
    x, weight = 255 * _ones(2, 64, torch.uint8), 127 * _ones(16, 64, torch.int8)
    scale, zero = _ones(16, 1, torch.float32).flatten(), torch.zeros(16, dtype=torch.int32, device="cpu")
    packed = torch.ops.onednn.qlinear_prepack.default(weight, [2, 64])
    linear: Any = torch.ops.onednn.qlinear_pointwise.default
    y: Tensor = linear(x, 1.0, 0, packed, scale, zero, None, 1.0, 0, torch.float32, "none", [], "")
    return _has_instructions("vnni") and bool((y == 255 * 127 * 64).all())


def _ones(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.ones(rows, columns, dtype=dtype, device="cpu")


_QUERIES: dict[Feature, Callable[[], bool]] = {
    "onednn": _has_onednn,
    "mkl": _has_mkl,
    "onednn_bfloat16": _has_onednn_bfloat16,
    "bfloat16": _has_bfloat16,
    "amx": lambda: _has_instructions("amx_tile"),
    "int8": _has_int8,
}
