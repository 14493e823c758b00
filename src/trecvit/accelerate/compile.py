"""A model's pass over frames compiled by torch.compile."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from shutil import which
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from trecvit.accelerate.kernels import is_faster_with_onednn
from trecvit.accelerate.linears import FusedLinear, FusedQuantizedLinear, replace_linears
from trecvit.errors import ConfigError
from trecvit.model.lru import RGLRU
from trecvit.model.trecvit import VideoModel
from trecvit.processor import supports


def find_compiler() -> str:
    """The C++ compiler that inductor calls for CPUs.

    Raises:
        ConfigError: There is none.
    """
    names = {"darwin": "clang++", "win32": "cl"}
    name = os.environ.get("CXX", names.get(sys.platform, "g++"))
    if (path := which(name)) is None:
        raise ConfigError(f"mode='compile' needs a C++ compiler, got no {name}; install it, set CXX, or take 'eager'")
    return path


def compiled_engine(model: VideoModel) -> Callable[..., Any]:
    """The model's pass with weights as constants, which inductor packs, fusing what follows a matrix multiplication.

    Args:
        model: See `for_inference`; on the CPU its linear layers are replaced.
    """
    # Not torch.compile's options: what reads the graph before inductor does reads these settings too. The wrapper calls
    # one kernel after the other: in Python it takes a good part of a small model's time, but knows complex numbers.
    is_complex = any(isinstance(module, RGLRU) and module.is_complex for module in model.modules())
    settings: dict[str, Any] = {}
    backend: Any = "inductor"
    if model.device.type == "cpu":
        # Kernels for any number of threads, as that changes while they run.
        settings = {"freezing": True, "cpp_wrapper": not is_complex, "cpp.dynamic_threads": True}
        is_quantized = any(isinstance(module, FusedQuantizedLinear) for module in model.modules())
        if model.dtype == torch.bfloat16 and supports("amx") and not is_quantized:
            # For one frame's few rows inductor's own kernels can take a third of the time of oneDNN's: it times both.
            settings |= {"max_autotune_gemm": True, "max_autotune_gemm_backends": "CPP,ATEN"}
            settings |= {"autotune_num_choices_displayed": 0, "max_autotune_report_choices_stats": False}
            warnings.filterwarnings("ignore", "TypedStorage is deprecated", module="torch._inductor")
        elif model.dtype == torch.float32 and is_faster_with_onednn(model):
            backend = _inductor_with_onednn
        for parent in list(model.modules()):
            replace_linears(parent, FusedLinear)
    compiled: Callable[..., Any] = torch.compile(
        _unshared_copy(model.engine),
        backend=backend,
        dynamic=False,
        fullgraph=True,  # Dynamo would compile the inner functions of a broken graph for all models together.
        options={"guard_filter_fn": _guard_inputs_only},
    )
    # Beyond the default limit of 8 shapes there would be an error, as one graph has no fallback.
    inductor = torch._inductor.config.patch(settings)
    dynamo = torch._dynamo.config.patch(allow_rnn=True, recompile_limit=256)

    def engine(*args: Any) -> Any:
        # Constants are allowed only where there can be no gradient.
        with torch.inference_mode(False), torch.no_grad(), inductor, dynamo:
            return compiled(*map(_outside_inference_mode, args))

    return engine


def _outside_inference_mode(value: Any) -> Any:
    """Frames, or a state, without inference tensors, for which everything would be compiled again."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    tensors = value._tensors()
    if not any(tensor.is_inference() for tensor in tensors.values()):
        return value
    return value._with({name: _outside_inference_mode(tensor) for name, tensor in tensors.items()})


def _inductor_with_onednn(graph: Any, inputs: Any) -> Any:
    """Inductor with float32 weights packed for oneDNN even where MKL is there.

    It does so where matrix multiplications may be rounded, which is allowed here while it compiles, and not when the
    graph runs: oneDNN then reads the setting and does not round.
    """
    from torch._inductor.compile_fx import compile_fx

    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        return compile_fx(graph, inputs)
    finally:
        matmul.fp32_precision = before


def _unshared_copy(method: Any) -> Any:
    """A method with its own code object: Dynamo caches graphs by code, which all models of a class share."""
    function = method.__func__
    copy = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    return MethodType(copy, method.__self__)


def _guard_inputs_only(guards: Sequence[Any]) -> list[bool]:
    """Select the guards to check before each call: those of frames and state, because the model stays as it is.

    So does the global state, which `compiled_engine` sets, but for the number of threads, on which no kernel depends.
    """
    return [
        not guard.is_global and not guard.name.startswith("self") and guard.guard_type != "GLOBAL_STATE"
        for guard in guards
    ]
