"""Inference speed beside the matmul lower bound: the speed of the model's matrix multiplications alone.

The matrix multiplications of one step are recorded, with the softmax of attention, and repeated in the same order, each
with its own weight, by the fastest kernel that PyTorch offers for it here. The rest of a mode's time goes to copies,
casts, norms, gates and the recurrence; a mode with kernels of its own can be below the bound. Every case is measured in
a separate process.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from multiprocessing.synchronize import Barrier
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trecvit.accelerate.exported import export, load_exported_as
from trecvit.accelerate.kernels import DTYPES, available_dtype
from trecvit.accelerate.linears import QuantizedLinear, packed_linears
from trecvit.accelerate.optimize import optimize
from trecvit.accelerate.timing import CALLS_IN_TURN, timed_in_turns
from trecvit.bench.usage import resident_bytes
from trecvit.config import PRESETS
from trecvit.errors import ConfigError, PrecisionWarning, TRecViTError
from trecvit.model.linear import Linear
from trecvit.model.trecvit import TRecViT, create_model
from trecvit.runtime.describe import flops_per_frame
from trecvit.weights.load import load_as
from trecvit.workers import worker_pool

_aten = torch.ops.aten
# Turns between the two ways of choosing threads, each a share of the seconds asked for.
_SHARED_TURNS = 8
_LINEAR = {_aten.addmm.default, _aten.mm.default}
_MATMULS = _LINEAR | {
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._softmax.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}

Matmul = tuple[Any, tuple[Any, ...], dict[str, Any]]  # an operator and its arguments


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """One way of running one model.

    Attributes:
        model: A preset, randomly initialised, or a path or name for `trecvit.load`.
        dtype: The requested dtype of the matrix multiplications.
        computed_in: Their actual dtype: float32 in place of bfloat16 where the CPU is faster with it.
        mode: See `trecvit.accelerate.optimize.optimize`; "exported" is for `trecvit.load_exported`.
        batch_size: Streams, or clips, per call.
        num_frames: Frames per call: 1 is a stream, one frame after another with its state; more is a clip.
        median_ms: Latency of a call.
        p95_ms: Latency of a call.
        frames_per_s: Throughput of all streams, by the median.
        gflop_per_s: Likewise, of matrix multiplications.
        bound_frames_per_s: Throughput of the matrix multiplications alone; for int8 with all linear layers in 8 bits.
        state_bytes: State per stream.
        memory_bytes: Resident memory of the process while it runs.
        ready_s: Warm-up time until the first result: packing, compiling, converting.
    """

    model: str
    dtype: str
    computed_in: str
    mode: str
    batch_size: int
    num_frames: int
    median_ms: float
    p95_ms: float
    frames_per_s: float
    gflop_per_s: float
    bound_frames_per_s: float
    state_bytes: int
    memory_bytes: int
    ready_s: float

    @property
    def times_the_bound(self) -> float:
        """Latency as a multiple of the matmul lower bound."""
        return self.bound_frames_per_s / self.frames_per_s

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "times_the_bound": self.times_the_bound}


def speeds(
    models: Sequence[str],
    *,
    dtypes: Sequence[str] = ("float32", "bfloat16"),
    modes: Sequence[str] = ("eager",),
    batch_sizes: Sequence[int] = (1,),
    frames: Sequence[int] = (1,),
    seconds: float = 3.0,
) -> Iterator[Speed | str]:
    """Measure every combination in order; for one that cannot run, yield the reason.

    Args:
        models: Presets, or paths or names for `trecvit.load`.
        dtypes: "float32", "bfloat16", "int8" (with the modes "eager" and "compile").
        modes: See `Speed`.
        batch_sizes: Streams per call.
        frames: Frames per call.
        seconds: Duration of each measurement, at least five calls, and of its matrix multiplications, in turns.
    """
    for case in product(models, dtypes, modes, batch_sizes, frames):
        with worker_pool(1) as pool:
            try:
                yield pool.submit(measure, *case, seconds=seconds).result()
            except (TRecViTError, RuntimeError, OSError, BrokenProcessPool) as exc:  # one case must not cost the others
                yield " ".join(str(exc).split())[:300]


@torch.inference_mode()
def measure(name: str, dtype: str, mode: str, batch_size: int, num_frames: int, *, seconds: float) -> Speed:
    """Measure one case in this process."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    model = _loaded(name)
    if model.config.temporal_mixer in ("lstm", "conv"):
        raise ConfigError(
            f"temporal_mixer={model.config.temporal_mixer!r}: the bound is of matrix multiplications only"
        )
    if num_frames % model.config.temporal_patch_size:
        raise ConfigError(
            f"expected a multiple of temporal_patch_size={model.config.temporal_patch_size} frames, got {num_frames}"
        )
    with warnings.catch_warnings():  # `computed_in` has it
        warnings.simplefilter("ignore", PrecisionWarning)
        computed_in = available_dtype(model, DTYPES[dtype])
    fast, start_s = _optimized(model, computed_in, mode, batch_size, num_frames)
    del model
    size = (batch_size, num_frames, 3, *fast.preprocessing.image_size)
    frames = torch.randint(0, 256, size, dtype=torch.uint8)
    state = fast.init_state(batch_size)
    _, state = fast.step(frames, state)
    ready_s = time.perf_counter() - start_s

    def call() -> None:
        nonlocal state
        _, after = fast.step(frames, state)
        state = after if num_frames == 1 else state

    for _ in range(CALLS_IN_TURN):
        call()
    memory_bytes = resident_bytes()
    # From the plain model: the same matrix multiplications whatever the mode, with unpacked weights.
    in_int8 = computed_in == torch.int8
    plain = _loaded(name).to(fast.dtype if in_int8 else computed_in)
    alone = _fastest_alone(matmuls(plain, frames), in_int8=in_int8)
    times_s, bound_times_s = timed_in_turns(call, alone, seconds=seconds)
    per_call = batch_size * num_frames
    median_s, bound_s = float(np.median(times_s)), float(np.median(bound_times_s))
    return Speed(
        model=name,
        dtype=dtype,
        computed_in=str(computed_in).removeprefix("torch."),
        mode=mode,
        batch_size=batch_size,
        num_frames=num_frames,
        median_ms=median_s * 1e3,
        p95_ms=float(np.percentile(times_s, 95)) * 1e3,
        frames_per_s=per_call / median_s,
        gflop_per_s=flops_per_frame(plain) * per_call / median_s / 1e9,
        bound_frames_per_s=per_call / bound_s,
        state_bytes=state.nbytes // batch_size,
        memory_bytes=memory_bytes,
        ready_s=ready_s,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedSpeed:
    """Throughput of a stream on an idle machine, and beside other programs that each keep a core busy.

    Attributes:
        model: As for `Speed`.
        dtype: Likewise.
        mode: Likewise.
        busy: Number of other programs.
        threads: The largest number of threads of the model.
        fair_share: Share of the idle speed that the machine has left: cores / (threads + busy), at most 1.
        idle_fixed_fps: Frames per second with all threads at every call, on the idle machine.
        idle_fps: The same with the number of threads chosen while running, as after `optimize`.
        busy_fixed_fps: With all threads, beside the other programs.
        busy_fps: With the number of threads chosen, beside the other programs.
    """

    model: str
    dtype: str
    mode: str
    busy: int
    threads: int
    fair_share: float
    idle_fixed_fps: float
    idle_fps: float
    busy_fixed_fps: float
    busy_fps: float

    @property
    def of_idle(self) -> float:
        """Speed on an idle machine with the number of threads chosen, relative to all threads."""
        return self.idle_fps / self.idle_fixed_fps

    @property
    def of_fair_share(self) -> float:
        """Frames per second beside the other programs, relative to a fair share of the machine."""
        return self.busy_fps / (self.fair_share * self.idle_fixed_fps)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "of_idle": self.of_idle, "of_fair_share": self.of_fair_share}


def shared_speeds(
    models: Sequence[str],
    *,
    dtypes: Sequence[str],
    modes: Sequence[str],
    busy: int,
    seconds: float = 3.0,
) -> Iterator[SharedSpeed | str]:
    """Measure as `speeds`, for one stream each, idle and beside `busy` other programs, each for 4 x `seconds`."""
    for case in product(models, dtypes, modes):
        with worker_pool(1) as pool:
            try:
                yield pool.submit(measure_shared, *case, busy=busy, seconds=seconds).result()
            except (TRecViTError, RuntimeError, OSError, BrokenProcessPool) as exc:  # one case must not cost the others
                yield " ".join(str(exc).split())[:300]


@torch.inference_mode()
def measure_shared(name: str, dtype: str, mode: str, *, busy: int, seconds: float) -> SharedSpeed:
    """Measure one case in this process."""
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    fast, _ = _optimized(_loaded(name), DTYPES[dtype], mode, 1, 1)
    frames = torch.randint(0, 256, (1, 1, 3, *fast.preprocessing.image_size), dtype=torch.uint8)
    # OpenVINO and ONNX Runtime have their own threads: then both are the same.
    calls = {"fixed": getattr(fast.step, "__wrapped__", fast.step), "chosen": fast.step}

    def frames_per_s(threads: str) -> float:
        state, count, start_s = fast.init_state(1), 0, time.perf_counter()
        while (spent_s := time.perf_counter() - start_s) < 2.0 * seconds / _SHARED_TURNS or not count:
            _, state = calls[threads](frames, state)
            count += 1
        return count / spent_s

    for call in calls.values():
        for _ in range(CALLS_IN_TURN):
            call(frames, fast.init_state(1))
    # In many short turns, so that other load slows all alike.
    idle = [[frames_per_s(name) for name in calls] for _ in range(_SHARED_TURNS)]
    with _busy(busy, for_s=8.0 * seconds + 60.0):
        shared = [[frames_per_s(name) for name in calls] for _ in range(_SHARED_TURNS)]
    threads = torch.get_num_threads()
    (idle_fixed, idle_chosen), (busy_fixed, busy_chosen) = np.mean(idle, axis=0), np.mean(shared, axis=0)
    return SharedSpeed(
        model=name,
        dtype=dtype,
        mode=mode,
        busy=busy,
        threads=threads,
        fair_share=min(1.0, (os.cpu_count() or 1) / (threads + busy)),
        idle_fixed_fps=float(idle_fixed),
        idle_fps=float(idle_chosen),
        busy_fixed_fps=float(busy_fixed),
        busy_fps=float(busy_chosen),
    )


@contextmanager
def _busy(count: int, *, for_s: float) -> Iterator[None]:
    """Run programs that each keep a core busy, for at most `for_s` seconds in case this process is killed."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(count + 1)
    others = [context.Process(target=_spin, args=(barrier, for_s), daemon=True) for _ in range(count)]
    try:
        for process in others:
            process.start()
        barrier.wait(for_s)
        yield
    finally:
        for process in others:
            process.kill()


def _spin(barrier: Barrier, seconds: float) -> None:
    barrier.wait()
    until_s = time.perf_counter() + seconds
    while time.perf_counter() < until_s:
        pass


def _optimized(
    model: TRecViT, dtype: torch.dtype, mode: str, batch_size: int, num_frames: int
) -> tuple[TRecViT, float]:
    """The model to be timed, and the start of its warm-up."""
    if mode != "exported":
        start_s = time.perf_counter()
        return optimize(model, dtype=dtype, mode=mode), start_s
    with TemporaryDirectory() as folder:  # a library stays loaded after its file is deleted
        export(model, folder, dtype=dtype, batch_size=batch_size, frames=[num_frames])
        start_s = time.perf_counter()
        return load_exported_as(TRecViT, folder), start_s


def _loaded(name: str) -> TRecViT:
    return create_model(name).eval() if name in PRESETS else load_as(TRecViT, name)


class _Recorder(TorchDispatchMode):
    """Records every matrix multiplication."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Matmul] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _MATMULS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def matmuls(model: TRecViT, frames: Tensor) -> list[Matmul]:
    """The matrix multiplications of one step, in order."""
    state = model.init_state(len(frames))
    # With inference tensors, a dispatch mode does not see linear layers as matrix multiplications.
    with torch.inference_mode(False), torch.no_grad(), _Recorder() as recorder:
        model.step(frames.clone(), state)
    calls: list[Matmul] = recorder.calls
    return calls


def _fastest_alone(calls: Sequence[Matmul], *, in_int8: bool) -> Callable[[], None]:
    """Build a call that repeats matrix multiplications, each with the kernel that is fastest for its shapes.

    Args:
        calls: See `matmuls`.
        in_int8: Whether to try the kernel for 8-bit integers, too.
    """
    inputs: dict[Any, Tensor] = {}
    chosen: dict[Any, int] = {}
    kernels: list[Callable[[], object]] = []

    def shared(value: Any) -> Any:
        """One input for all of its shape, which is then in the caches like one that was just computed."""
        if not isinstance(value, Tensor):
            return value
        return inputs.setdefault((value.shape, value.stride(), value.dtype), value)

    for func, args, kwargs in calls:
        candidates: list[Callable[[], object]]
        if func in _LINEAR:
            *bias, x, weight = args  # weights are not shared, as in the model
            x = shared(x)
            packed = packed_linears(x, weight.t().contiguous(), bias[0] if bias else None)
            candidates = [partial(func, *bias, x, weight), *packed.values()]
            if in_int8:
                linear = Linear(*weight.shape)
                linear.weight.data = weight.t()
                integers = shared(torch.zeros(x.shape, dtype=torch.uint8))
                candidates.append(partial(QuantizedLinear(linear, rows=len(x)).product, integers))
        else:
            inputs_as_given = tuple(shared(value) for value in args)
            packed_inputs = tuple(
                value.contiguous() if isinstance(value, Tensor) else value for value in inputs_as_given
            )
            candidates = [partial(func, *inputs_as_given, **kwargs), partial(func, *packed_inputs, **kwargs)]
            if func is _aten.baddbmm.default:  # quicker without the bias or the factor
                candidates += [partial(torch.bmm, *inputs_as_given[1:]), partial(torch.bmm, *packed_inputs[1:])]
        key = (func, *((v.shape, v.stride(), v.dtype) if isinstance(v, Tensor) else str(v) for v in args))
        if key not in chosen:
            times_s = [min(candidate_s) for candidate_s in timed_in_turns(*candidates, seconds=0.02)]
            chosen[key] = times_s.index(min(times_s))
        kernels.append(candidates[chosen[key]])

    def repeat() -> None:
        for kernel in kernels:
            kernel()

    return repeat
