"""A model made fast for inference: the one place that decides in what precision and by whom it is computed."""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from shutil import which
from types import FunctionType, MethodType
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from trecvit.accelerate.eager import EagerConv, EagerRGLRU, fold_norms
from trecvit.accelerate.openvino import OpenVINOPass
from trecvit.accelerate.threads import ChosenThreads
from trecvit.accelerate.timing import timed_in_turns
from trecvit.config import nearest
from trecvit.errors import ConfigError, PrecisionWarning
from trecvit.model.linear import FusedLinear, FusedQuantizedLinear, Linear, PackedLinear, QuantizedLinear, packed_maps
from trecvit.model.lru import RGLRU, CausalConv, TemporalBlock
from trecvit.model.state import State
from trecvit.model.trecvit import Head, Output, Tokenizer, TRecViT, VideoModel
from trecvit.processor import supports

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DTYPES = {**FLOATS, "int8": torch.int8}
Mode = Literal["eager", "compile", "openvino"]
_FRAMES_AT_ONCE = 8  # of a video; 16 is as good
_FRAMES_OF_ALL_AT_ONCE = 32  # fewer, and copying the states of many streams costs a small model more than it saves
_SECONDS_OF_TRIAL = 0.02  # of each kernel
# What the tokenizer rounds goes through all blocks: it was more than half of int8's error, and is little work.
_NOT_IN_BYTES = (Tokenizer, Head)
_Model = TypeVar("_Model", bound=VideoModel)


def optimize(model: _Model, *, dtype: torch.dtype | None = None, mode: str = "eager") -> _Model:
    """A copy of a model for inference, used as before: `model(video)`, `model.step(frames, state)`; trackers likewise.

    Only the pass over frames is another: checks, temporal patches, clips and state are the model's own code. The copy
    has no gradients and cannot be saved, converted or copied: its weights lie as kernels read them.

    Args:
        model: Any; it is not changed.
        dtype: float32, or bfloat16 for the matrix products. On a CPU that multiplies float32 faster (all without
            AVX-512 or AMX), the result computes in float32 instead, and a `PrecisionWarning` says so. The recurrence
            and its state are float32 in any case. int8, on a CPU with AVX-512 VNNI, eager or compiled: the blocks'
            linear maps in 8-bit integers (see `QuantizedLinear`), everything else in float32, or compiled in bfloat16
            where the CPU has it.
        mode: "eager" runs PyTorch's operations one by one, on the CPU with weights packed for oneDNN. "compile" has
            torch.compile fuse them; the first call with new shapes takes some tens of seconds, or a minute in bfloat16
            on a CPU with AMX, where kernels are tried out. "openvino" hands the network to OpenVINO (CPU; the extra
            `openvino`), some seconds for new shapes, each held against the model before it is used.

    Raises:
        ConfigError: For an unknown mode, another dtype, int8 where it cannot be, a model that is a result of this
            already, no C++ compiler for "compile", or an OpenVINO that computes wrong here.
        MissingPackageError: OpenVINO is asked for and not installed.
    """
    dtype = dtype or model.dtype
    _check(model, dtype, mode)
    dtype = available_dtype(model, dtype)
    fast = for_inference(model, _beside_int8(mode) if dtype == torch.int8 else dtype, mode)
    replacement: Any = None
    if mode == "eager":
        _use_eager_parts(fast, QuantizedLinear if dtype == torch.int8 else PackedLinear)
        if fast.device.type == "cpu" and isinstance(fast, TRecViT):
            replacement = _InPieces(fast)
    elif mode == "compile":
        if dtype == torch.int8:
            _quantize(fast, model)
        replacement = _compiled(fast)
    elif mode == "openvino":
        assert isinstance(fast, TRecViT)
        replacement = OpenVINOPass(fast, dtype)
    if replacement is not None:
        fast._advance = replacement
    if mode != "openvino":  # which has threads of its own
        choose_threads(fast)
    lock(fast)
    return fast


def choose_threads(model: Any) -> None:
    """Has `step`, and what calls it, run with as many threads as are fastest now; see `trecvit.accelerate.threads`."""
    if model.device.type == "cpu" and hasattr(model, "step"):
        model.step = ChosenThreads(model.step)


def available_dtype(model: VideoModel, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 in place of bfloat16 on a CPU that multiplies float32 faster; then it warns.

    Without instructions for bfloat16, PyTorch and oneDNN convert each number to float32, by software on most CPUs.

    Args:
        model: Where it is tells the processor; its linear layers are timed where the processor does not decide.
        dtype: Of the matrix products.
    """
    if dtype != torch.bfloat16 or model.device.type != "cpu" or supports("bfloat16"):
        return dtype
    if supports("onednn_bfloat16") and _is_faster_in_bfloat16(model.tokenizer.config.num_patches, *_shapes(model)):
        return dtype
    words = "this processor multiplies float32 faster than bfloat16: computing in float32"
    warnings.warn(words, PrecisionWarning, stacklevel=3)
    return torch.float32


def for_inference(model: _Model, dtype: torch.dtype, mode: str) -> _Model:
    """A copy without gradients, in the precision that a mode begins from."""
    fast = copy.deepcopy(model).eval().requires_grad_(False)
    if mode == "eager" and fast.device.type == "cpu":
        for block in fast.modules():
            if isinstance(block, TemporalBlock):
                fold_norms(block)
    # OpenVINO converts the weights itself, and takes the state in float32.
    fast.to(torch.float32 if mode == "openvino" else dtype)
    for name, parameter in model.named_parameters():
        # What the eigenvalues are made of: at -7 bfloat16 has steps of 0.03. And what an LSTM runs with, see there.
        if name.endswith(("a_param", "a_imag_param")) or ".lstm." in name:
            fast.get_parameter(name).data = parameter.detach().clone()
    if mode != "openvino":
        for module in fast.modules():
            if isinstance(module, RGLRU):
                module.join_gates()
    return fast


def lock(model: VideoModel) -> None:
    """Has a model refuse to be saved, copied, converted, moved, trained or loaded into.

    Its weights lie in packed or compiled form beside its parameters, which such calls would miss.
    """
    # As attributes of this one object, so that its class stays the model's.
    replacements = {
        "save": _refuse_to_save,
        "train": partial(_refuse_if, model, "train"),
        "requires_grad_": partial(_refuse_if, model, "requires_grad_"),
        "_apply": partial(_refuse_conversion, model),
        **{name: partial(_refuse, name) for name in ("load_state_dict", "__deepcopy__", "__reduce_ex__")},
    }
    for name, replacement in replacements.items():
        setattr(model, name, replacement)


def is_locked(model: VideoModel) -> bool:
    """Whether a model is a result of `optimize` or `load_exported`."""
    return "save" in vars(model)


def _refuse_to_save(folder: str | Path) -> Path:
    raise ConfigError(f"{folder}: a result of optimize is for running; save the model that it was made of")


def _refuse(name: str, *_: object, **__: object) -> Any:
    action = {"__deepcopy__": "deepcopy", "__reduce_ex__": "copy or pickle"}.get(name, name)
    raise ConfigError(
        f"{action}: a result of optimize or load_exported cannot be copied, pickled, converted, moved or trained; "
        "make it from the loaded model again"
    )


def _refuse_if(model: _Model, name: str, enabled: bool = True) -> _Model:
    """`model.eval()` and `model.requires_grad_(False)` change nothing and stay."""
    return _refuse(name) if enabled else model


def _refuse_conversion(model: _Model, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> _Model:
    """Stands where `_apply` was, through which go `to`, `half`, `cuda` …; what would change nothing is allowed."""
    weight = model.norm.weight  # that of `model.device` and `model.dtype`
    return model if convert(weight) is weight else _refuse("to")


def _check(model: VideoModel, dtype: torch.dtype, mode: str) -> None:
    if mode not in get_args(Mode):
        raise ConfigError(
            f"mode: expected one of {', '.join(get_args(Mode))}, got {mode!r}{nearest(mode, get_args(Mode))}"
        )
    if dtype not in DTYPES.values():
        raise ConfigError(f"dtype: expected torch.float32, torch.bfloat16 or torch.int8, got {dtype}")
    if is_locked(model):
        raise ConfigError("the model is already the result of optimize; give it the model that was loaded")
    if dtype == torch.int8:
        _check_int8(model, mode)
    if mode == "compile" and not hasattr(model, "_advance"):
        raise ConfigError(f"mode='compile' is for models that take streams, got a {type(model).__name__}; take 'eager'")
    if mode == "compile" and model.device.type == "cpu":
        find_compiler()
    if mode == "openvino" and model.device.type != "cpu":
        raise ConfigError(f"mode='openvino' runs on the CPU, the model is on {model.device}")
    if mode == "openvino" and not isinstance(model, TRecViT):
        raise ConfigError(f"mode='openvino' is for TRecViT, got a {type(model).__name__}; take 'compile' or 'eager'")


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


def _check_int8(model: VideoModel, mode: str) -> None:
    where = "dtype=torch.int8 is for mode='eager' or 'compile' on a CPU with AVX-512 VNNI"
    if mode == "openvino":
        raise ConfigError(f"{where}, got mode={mode!r}; take 'compile', or bfloat16")
    if model.device.type != "cpu":
        raise ConfigError(f"{where}, the model is on {model.device}; take bfloat16")
    if not QuantizedLinear.is_available():
        raise ConfigError(f"{where} and a PyTorch with oneDNN, which are not here; take bfloat16 or float32")


def _use_eager_parts(model: VideoModel, kind: type[PackedLinear] | type[QuantizedLinear]) -> None:
    """Packs weights for oneDNN, where there is one, and replaces parts by those of `model/eager.py`; on the CPU."""
    if model.device.type != "cpu":
        return
    packs = PackedLinear.is_available(model.dtype)
    for parent in list(model.modules()):
        chosen = PackedLinear if isinstance(parent, _NOT_IN_BYTES) else kind
        rows = 1 if isinstance(parent, Head) else model.tokenizer.config.num_patches
        for name, child in list(parent.named_children()):
            if packs and isinstance(child, Linear):
                setattr(parent, name, chosen(child, rows))
            elif isinstance(child, CausalConv):
                setattr(parent, name, EagerConv(child))
            elif isinstance(child, RGLRU) and not child.is_complex:
                setattr(parent, name, EagerRGLRU(child))


def _beside_int8(mode: str) -> torch.dtype:
    """Of what is not done in 8 bits. Eager mode would pay for rounding with operations of their own."""
    return torch.bfloat16 if mode == "compile" and supports("bfloat16") else torch.float32


def _quantize(fast: VideoModel, model: VideoModel) -> None:
    """Puts maps in 8 bits, for a compiler, where `model` has them in full precision."""
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, Linear) and not isinstance(parent, _NOT_IN_BYTES):
            fast.set_submodule(name, FusedQuantizedLinear(module, model.tokenizer.config.num_patches))


class _InPieces:
    """Takes the place of `TRecViT._advance`: a few frames at a time, whose numbers stay in caches between operations.

    Nor does memory then come from the system and go back to it again and again, as it does in large pieces.
    """

    def __init__(self, model: TRecViT) -> None:
        self._advance = model._advance  # as it was before this took its place
        extent = model.config.temporal_patch_size
        self._num_frames = max(_FRAMES_AT_ONCE // extent, 1) * extent
        self._can_cut_time = model.config.can_stream

    def __call__(self, frames: Tensor, state: State) -> tuple[Output, State]:
        """See `TRecViT._advance`."""
        batch_size, num_frames = frames.shape[:2]
        length = min(num_frames, self._num_frames) if self._can_cut_time else num_frames
        num_rows = max(_FRAMES_OF_ALL_AT_ONCE // max(length, 1), 1)
        if batch_size <= num_rows:
            return self._through_time(frames.split(max(length, 1), dim=1), state)
        outputs, states = [], []
        for rows, videos in zip(torch.arange(batch_size).split(num_rows), frames.split(num_rows), strict=True):
            out, after = self._through_time(videos.split(length, dim=1), state.select(rows))
            outputs.append(out)
            states.append(after)
        logits, probs, features = zip(*outputs, strict=True)
        has_head = logits[0] is not None
        answer = Output(
            torch.cat(logits) if has_head else None, torch.cat(probs) if has_head else None, torch.cat(features)
        )
        return answer, State.cat(states)

    def _through_time(self, pieces: Sequence[Tensor], state: State) -> tuple[Output, State]:
        features = []
        for piece in pieces:
            out, state = self._advance(piece, state)
            features.append(out.features)
        return out._replace(features=torch.cat(features, dim=1)), state


def _compiled(model: VideoModel) -> Callable[..., Any]:
    """The pass with weights as constants, which lets inductor pack them and fuse what follows a product into it."""
    # Not torch.compile's options: what reads the graph before inductor does asks these settings too. The wrapper calls
    # one kernel after the other: in Python it takes a good part of a small model's time, but knows complex numbers.
    is_complex = any(isinstance(module, RGLRU) and module.is_complex for module in model.modules())
    settings: dict[str, Any] = {}
    backend: Any = "inductor"
    if model.device.type == "cpu":
        # Kernels for any number of threads, as that changes while they run.
        settings = {"freezing": True, "cpp_wrapper": not is_complex, "cpp.dynamic_threads": True}
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, Linear):
                    setattr(parent, name, FusedLinear(child))
        is_quantized = any(isinstance(module, FusedQuantizedLinear) for module in model.modules())
        if model.dtype == torch.bfloat16 and supports("amx") and not is_quantized:
            # For one frame's few rows inductor's own kernels can take a third of the time of oneDNN's: it times both.
            settings |= {"max_autotune_gemm": True, "max_autotune_gemm_backends": "CPP,ATEN"}
            settings |= {"autotune_num_choices_displayed": 0, "max_autotune_report_choices_stats": False}
            warnings.filterwarnings("ignore", "TypedStorage is deprecated", module="torch._inductor")
        elif model.dtype == torch.float32 and _is_faster_with_onednn(model):
            backend = _inductor_with_onednn
    # In one graph, for only its outermost function is nobody else's.
    compiled: Callable[..., Any] = torch.compile(
        _with_code_of_its_own(model._advance),
        backend=backend,
        dynamic=False,
        fullgraph=True,
        options={"guard_filter_fn": _of_what_can_change},
    )
    # A limit of 8 shapes would be an error, as there is nothing else to fall back on in one graph.
    inductor = torch._inductor.config.patch(settings)
    dynamo = torch._dynamo.config.patch(allow_rnn=True, recompile_limit=256)

    def advance(*args: Any) -> Any:
        # No constants where there can be a gradient.
        with torch.inference_mode(False), torch.no_grad(), inductor, dynamo:
            return compiled(*map(_outside_inference_mode, args))

    return advance


def _outside_inference_mode(given: Any) -> Any:
    """Frames, or a state, as they would be had they been made out of it: for other tensors all is compiled again."""
    if isinstance(given, Tensor):
        return given.clone() if given.is_inference() else given
    tensors = given._tensors()
    if not any(tensor.is_inference() for tensor in tensors.values()):
        return given
    return given._with({name: _outside_inference_mode(tensor) for name, tensor in tensors.items()})


_Shape = tuple[int, int]  # inputs and outputs of a linear map


def _shapes(model: VideoModel) -> list[_Shape]:
    return [(linear.in_features, linear.out_features) for linear in model.modules() if isinstance(linear, Linear)]


def _is_faster_with_onednn(model: VideoModel) -> bool:
    """Whether oneDNN's kernels take less time than MKL's for all linear maps of one frame, of the shapes they have."""
    has_onednn = PackedLinear.is_available()
    if not has_onednn or not supports("mkl"):
        return has_onednn
    num_rows = model.tokenizer.config.num_patches
    fastest: str = _fastest(_shapes(model), partial(_packed_maps_of_zeros, num_rows, torch.float32))
    return fastest == "onednn"


@cache  # so that every answer of one process is the same
def _is_faster_in_bfloat16(num_rows: int, *shapes: _Shape) -> bool:
    """Whether oneDNN takes less time in bfloat16 than in float32 for linear maps of these shapes."""
    dtypes = (torch.float32, torch.bfloat16)

    def kernels(shape: _Shape) -> dict[torch.dtype, Callable[[], Tensor]]:
        return {dtype: _packed_maps_of_zeros(num_rows, dtype, shape)["onednn"] for dtype in dtypes}

    fastest: torch.dtype = _fastest(shapes, kernels)
    return fastest == torch.bfloat16


def _packed_maps_of_zeros(num_rows: int, dtype: torch.dtype, shape: _Shape) -> dict[str, Callable[[], Tensor]]:
    num_inputs, num_outputs = shape
    zeros = partial(torch.zeros, dtype=dtype)
    return packed_maps(zeros(num_rows, num_inputs), zeros(num_outputs, num_inputs), zeros(num_outputs))


def _fastest(shapes: Sequence[_Shape], kernels: Callable[[_Shape], Mapping[Any, Callable[[], Tensor]]]) -> Any:
    """The name of the kernels that take the least time for linear maps of these shapes together."""
    total_s: dict[Any, float] = {}
    for shape, count in Counter(shapes).items():
        candidates = kernels(shape)
        times_s = timed_in_turns(*candidates.values(), seconds=_SECONDS_OF_TRIAL)
        for name, of_kernel in zip(candidates, times_s, strict=True):
            total_s[name] = total_s.get(name, 0.0) + count * min(of_kernel)
    return min(total_s, key=total_s.__getitem__)


def _inductor_with_onednn(graph: Any, inputs: Any) -> Any:
    """Inductor, which packs float32 weights for MKL if it is there, but for oneDNN where rounding products is allowed.

    It is while this compiles, and not when it runs: oneDNN is asked then what is allowed, and does not round.
    """
    from torch._inductor.compile_fx import compile_fx

    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, products.fp32_precision = products.fp32_precision, "tf32"
    try:
        return compile_fx(graph, inputs)
    finally:
        products.fp32_precision = before


def _with_code_of_its_own(method: Any) -> Any:
    """A method for which nothing is found that was compiled for the same method of another model, and for no other."""
    function = method.__func__
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__)
    return MethodType(own, method.__self__)


def _of_what_can_change(guards: Sequence[Any]) -> list[bool]:
    """Which guards are asked before each call: those of frames and state. The model stays as it was compiled.

    The global state, too, is as `advance` sets it, but for the number of threads, for which kernels are not compiled.
    """
    return [
        not guard.is_global and not guard.name.startswith("self") and guard.guard_type != "GLOBAL_STATE"
        for guard in guards
    ]
