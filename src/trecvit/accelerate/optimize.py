"""A model made fast for inference: the front door, which chooses dtype and engine."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch

from trecvit.accelerate.compile import compiled_engine, find_compiler
from trecvit.accelerate.eager import NOT_IN_INT8, PiecewiseEngine, fold_norms, use_eager_parts
from trecvit.accelerate.gates import JoinedRGLRU
from trecvit.accelerate.graphs import GraphEngine
from trecvit.accelerate.kernels import DTYPES, available_dtype
from trecvit.accelerate.linears import FusedQuantizedLinear, PackedLinear, QuantizedLinear, replace_linears
from trecvit.accelerate.onnx_runtime import OnnxEngine
from trecvit.accelerate.openvino import OpenVINOEngine
from trecvit.accelerate.threads import ChosenThreads
from trecvit.config import nearest
from trecvit.errors import ConfigError
from trecvit.model.lru import RGLRU, TemporalBlock
from trecvit.model.tracker import PointTracker
from trecvit.model.trecvit import TRecViT, VideoModel
from trecvit.processor import supports

Mode = Literal["eager", "compile", "graphs", "compile-graphs", "openvino", "onnx"]
_OWN_THREADS = ("openvino", "onnx")  # runtimes that do not use PyTorch's threads
_Model = TypeVar("_Model", bound=VideoModel)


def optimize(model: _Model, *, dtype: torch.dtype | None = None, mode: str = "eager") -> _Model:
    """Copy a model for inference; the copy is used like it: `model(video)`, `model.step(frames, state)`, trackers too.

    Only the engine, the pass over frames, is replaced: checks, temporal patches, clips and state are the model's own
    code. The copy has no gradients and cannot be saved, converted or copied: its weights lie as kernels read them.

    Args:
        model: Any; it is not changed.
        dtype: float32, or bfloat16 for the matrix multiplications. On a CPU that multiplies float32 faster (all without
            AVX-512 or AMX), the result computes in float32 instead, and a `PrecisionWarning` is given. The recurrence
            and its state are float32 in any case. int8, on a CPU with AVX-512 VNNI, eager or compiled: the blocks'
            linear layers in 8-bit integers (see `QuantizedLinear`), everything else in float32, or compiled in bfloat16
            where the CPU has it.
        mode: "eager" runs PyTorch's operations one by one, on the CPU with weights packed for oneDNN. "compile" has
            torch.compile fuse them; the first call with new shapes takes some tens of seconds, or a minute in bfloat16
            on a CPU with AMX, where kernels are tried out. "graphs" (CUDA) records the operations of a step once and
            launches them together, for few streams, where launching takes longer than computing; "compile-graphs" does
            so with the compiled ones. "openvino" runs the network with OpenVINO (CPU; the extra `openvino`), some
            seconds for new shapes, each validated against the model before it is used. "onnx" does so with ONNX
            Runtime (CPU; the extra `onnx`) in float32, frame by frame, classifiers and whole trackers.

    Raises:
        ConfigError: For an unknown mode, another dtype, int8 where it is not available, a model that is a result of
            this already, no C++ compiler for "compile", or an OpenVINO or ONNX Runtime that computes wrong here.
        MissingPackageError: For "openvino" or "onnx" where a package is not installed.
    """
    dtype = dtype or model.dtype
    _check(model, dtype, mode)
    dtype = available_dtype(model, dtype)
    fast = for_inference(model, _beside_int8(mode) if dtype == torch.int8 else dtype, mode)
    if mode == "eager" and fast.device.type == "cpu":
        use_eager_parts(fast, QuantizedLinear if dtype == torch.int8 else PackedLinear)
        if isinstance(fast, TRecViT):
            fast.engine = PiecewiseEngine(fast)
    elif mode in ("compile", "compile-graphs"):
        if dtype == torch.int8:
            quantize(fast, model)
        fast.engine = compiled_engine(fast)
    elif mode == "openvino":
        assert isinstance(fast, TRecViT)
        fast.engine = OpenVINOEngine(fast, dtype)
    elif mode == "onnx":
        _use_onnx(fast)
    if mode in ("graphs", "compile-graphs"):
        fast.engine = GraphEngine(fast.engine)
    if mode not in _OWN_THREADS:
        choose_threads(fast)
    fast.is_optimized = True
    return fast


def choose_threads(model: Any) -> None:
    """Run `step`, and what calls it, with as many threads as are fastest now; see `trecvit.accelerate.threads`."""
    if model.device.type == "cpu" and hasattr(model, "step"):
        # Around the whole step and not as part of the engine: a tracker's readouts need the number of threads, too.
        model.step = ChosenThreads(model.step)


def for_inference(model: _Model, dtype: torch.dtype, mode: str) -> _Model:
    """Copy a model without gradients, in the dtype that a mode starts from."""
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    if mode == "eager" and fast.device.type == "cpu":
        for block in fast.modules():
            if isinstance(block, TemporalBlock):
                fold_norms(block)
    # OpenVINO converts the weights itself, and takes the state in float32.
    fast.to(torch.float32 if mode in _OWN_THREADS else dtype)
    for name, parameter in model.named_parameters():
        # Eigenvalues, because at -7 bfloat16 has steps of 0.03; and the weights that an LSTM runs with, see there.
        if name.endswith(("a_param", "a_imag_param")) or ".lstm." in name:
            fast.get_parameter(name).data = parameter.detach().clone()
    if mode not in _OWN_THREADS:
        for parent in list(fast.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, RGLRU):
                    setattr(parent, name, JoinedRGLRU(child))
    return fast


def _use_onnx(fast: VideoModel) -> None:
    """Let ONNX Runtime compute a model's pass over frames."""
    assert isinstance(fast, (TRecViT, PointTracker)), "checked before"
    engine = OnnxEngine(fast)
    if isinstance(fast, PointTracker):
        fast.replace_tracking(engine)
    else:
        fast.engine = engine


def quantize(fast: VideoModel, model: VideoModel) -> None:
    """Replace the blocks' linear layers by 8-bit ones for a compiler, made from the full precision of `model`."""
    make = partial(FusedQuantizedLinear, rows=model.tokenizer.config.num_patches)
    sources = dict(model.named_modules())
    for name, parent in list(fast.named_modules()):
        if name in sources and not isinstance(parent, NOT_IN_INT8):
            replace_linears(parent, make, source=sources[name])


def _check(model: VideoModel, dtype: torch.dtype, mode: str) -> None:
    if mode not in get_args(Mode):
        raise ConfigError(
            f"mode: expected one of {', '.join(get_args(Mode))}, got {mode!r}{nearest(mode, get_args(Mode))}"
        )
    if dtype not in DTYPES.values():
        raise ConfigError(f"dtype: expected torch.float32, torch.bfloat16 or torch.int8, got {dtype}")
    if model.is_optimized:
        raise ConfigError("the model is already the result of optimize; give it the model that was loaded")
    if dtype == torch.int8:
        _check_int8(model, mode)
    if mode in ("compile", "graphs", "compile-graphs") and not hasattr(model, "step"):
        raise ConfigError(f"mode={mode!r} is for models that take streams, got a {type(model).__name__}; take 'eager'")
    if mode in ("graphs", "compile-graphs") and model.device.type != "cuda":
        raise ConfigError(
            f"mode={mode!r} runs on a CUDA GPU, the model is on {model.device}; take 'eager' or 'compile'"
        )
    if mode == "compile" and model.device.type == "cpu":
        find_compiler()
    if mode in _OWN_THREADS and model.device.type != "cpu":
        raise ConfigError(f"mode={mode!r} runs on the CPU, the model is on {model.device}")
    if mode == "onnx" and dtype != torch.float32:
        raise ConfigError(f"dtype: expected torch.float32 with mode='onnx', got {dtype}; take 'compile' or 'eager'")
    if mode == "openvino" and not isinstance(model, TRecViT):
        raise ConfigError(f"mode='openvino' is for TRecViT, got a {type(model).__name__}; take 'compile' or 'eager'")


def _check_int8(model: VideoModel, mode: str) -> None:
    where = "dtype=torch.int8 is for mode='eager' or 'compile' on a CPU with AVX-512 VNNI"
    if mode in _OWN_THREADS:
        raise ConfigError(f"{where}, got mode={mode!r}; take 'compile', or bfloat16")
    if model.device.type != "cpu":
        raise ConfigError(f"{where}, the model is on {model.device}; take bfloat16")
    if not QuantizedLinear.is_available():
        raise ConfigError(f"{where} and a PyTorch with oneDNN, which are not here; take bfloat16 or float32")


def _beside_int8(mode: str) -> torch.dtype:
    """The dtype beside int8 layers. Eager mode would pay for rounding to bfloat16 with separate operations."""
    return torch.bfloat16 if mode == "compile" and supports("bfloat16") else torch.float32
