"""How fast a model runs, and how fast its matrix products alone would.

The products are those that the model really makes: one pass is watched, and the products it asked for, with the softmax
of attention, are done again in the same order, each with its own weight, by the fastest kernel that PyTorch offers for
it here. What a mode takes beyond that is copies, casts, norms, gates and the recurrence; a mode with kernels of its own
can be faster. Every case is measured in a process of its own.
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

from trecvit.accelerate.exported import export, load_exported
from trecvit.accelerate.kernels import DTYPES, available_dtype
from trecvit.accelerate.linears import QuantizedLinear, packed_linears
from trecvit.accelerate.optimize import optimize
from trecvit.accelerate.timing import CALLS_IN_TURN, timed_in_turns
from trecvit.config import PRESETS
from trecvit.errors import ConfigError, PrecisionWarning, TRecViTError
from trecvit.memory import resident_bytes
from trecvit.model.linear import Linear
from trecvit.model.trecvit import TRecViT, create_model
from trecvit.runtime.describe import flops_per_frame
from trecvit.weights.load import load_as
from trecvit.workers import worker_pool

_aten = torch.ops.aten
_LINEAR = {_aten.addmm.default, _aten.mm.default}
_PRODUCTS = _LINEAR | {
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._softmax.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}

Product = tuple[Any, tuple[Any, ...], dict[str, Any]]  # an operation and its arguments


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """One way of running one model.

    Attributes:
        model: A preset with fresh weights, or what `trecvit.load` takes.
        dtype: Of the matrix products, as asked for.
        computed_in: What they were computed in: float32 in place of bfloat16 where the CPU is faster with it.
        mode: See `trecvit.accelerate.optimize.optimize`; "exported" is what `trecvit.export` wrote, loaded again.
        batch_size: Streams, or clips, at once.
        num_frames: Frames of one call: 1 is a stream, one frame after another with its state; more is a clip.
        median_ms: Of one call.
        p95_ms: Of one call.
        frames_per_s: All streams together, by the median.
        gflop_per_s: Likewise, of matrix products.
        bound_frames_per_s: What the products alone would reach, for int8 all maps in 8 bits.
        state_bytes: Carried per stream.
        memory_bytes: Of the process while it runs.
        ready_s: Until the first answer was there: packing, compiling, converting.
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
        """How many times as long as the products alone it takes."""
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
    """Measures every combination, one after the other; a combination that cannot be run comes out as its reason.

    Args:
        models: Presets or whatever `trecvit.load` takes.
        dtypes: "float32", "bfloat16", "int8" (with the modes "eager" and "compile").
        modes: See `Speed`.
        batch_sizes: Streams at once.
        frames: Frames of a call.
        seconds: How long each is timed, at the least five calls, and its products alone as long, in turns.
    """
    for case in product(models, dtypes, modes, batch_sizes, frames):
        with worker_pool(1) as pool:
            try:
                yield pool.submit(measure, *case, seconds=seconds).result()
            except (TRecViTError, RuntimeError, OSError, BrokenProcessPool) as exc:  # one case must not cost the others
                yield " ".join(str(exc).split())[:300]


@torch.inference_mode()
def measure(name: str, dtype: str, mode: str, batch_size: int, num_frames: int, *, seconds: float) -> Speed:
    """Measures one case in this process."""
    if dtype not in DTYPES:
        raise ConfigError(f"expected one of {', '.join(DTYPES)}")
    model = _made(name)
    if model.config.temporal_mixer in ("lstm", "conv"):
        raise ConfigError(f"temporal_mixer={model.config.temporal_mixer!r}: the bound is of matrix products only")
    if num_frames % model.config.temporal_patch_size:
        raise ConfigError(f"expected a multiple of temporal_patch_size={model.config.temporal_patch_size} frames")
    with warnings.catch_warnings():  # the result says so
        warnings.simplefilter("ignore", PrecisionWarning)
        computed_in = available_dtype(model, DTYPES[dtype])
    fast, begun_s = _made_fast(model, computed_in, mode, batch_size, num_frames)
    del model
    size = (batch_size, num_frames, 3, *fast.preprocessing.image_size)
    frames = torch.randint(0, 256, size, dtype=torch.uint8)
    state = fast.init_state(batch_size)
    _, state = fast.step(frames, state)
    ready_s = time.perf_counter() - begun_s

    def call() -> None:
        nonlocal state
        _, after = fast.step(frames, state)
        state = after if num_frames == 1 else state

    for _ in range(CALLS_IN_TURN):
        call()
    memory_bytes = resident_bytes()
    # The same products whatever the mode, and weights that can be seen.
    in_bytes = computed_in == torch.int8
    plain = _made(name).to(fast.dtype if in_bytes else computed_in)
    alone = _alone(products(plain, frames), in_bytes=in_bytes)
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
    """How fast a stream runs on an idle machine, and beside other programs that want a core each all the time.

    Attributes:
        model: As for `Speed`.
        dtype: Likewise.
        mode: Likewise.
        busy: Number of other programs.
        threads: That the model may use.
        fair_share: Of the idle speed that the machine has left: cores / (threads + busy), at most 1.
        idle_fixed_fps: Frames per second with all threads at every call, on the idle machine.
        idle_fps: The same with the number of threads that is chosen while running, as `optimize` has it.
        busy_fixed_fps: With all threads, beside the other programs.
        busy_fps: With the number chosen.
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
        """What choosing costs an idle machine, as a share of the speed with all threads."""
        return self.idle_fps / self.idle_fixed_fps

    @property
    def of_fair_share(self) -> float:
        """Frames per second beside the others, of those that a fair share of the machine would give."""
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
    """As `speeds`, for one stream each, idle and beside `busy` other programs; each is timed for 4 x `seconds`."""
    for case in product(models, dtypes, modes):
        with worker_pool(1) as pool:
            try:
                yield pool.submit(measure_shared, *case, busy=busy, seconds=seconds).result()
            except (TRecViTError, RuntimeError, OSError, BrokenProcessPool) as exc:  # one case must not cost the others
                yield " ".join(str(exc).split())[:300]


@torch.inference_mode()
def measure_shared(name: str, dtype: str, mode: str, *, busy: int, seconds: float) -> SharedSpeed:
    """Measures one case in this process."""
    if dtype not in DTYPES:
        raise ConfigError(f"expected one of {', '.join(DTYPES)}")
    fast, _ = _made_fast(_made(name), DTYPES[dtype], mode, 1, 1)
    frames = torch.randint(0, 256, (1, 1, 3, *fast.preprocessing.image_size), dtype=torch.uint8)
    # OpenVINO has threads of its own: then both are the same.
    calls = {"fixed": getattr(fast.step, "__wrapped__", fast.step), "chosen": fast.step}

    def frames_per_s(which: str) -> float:
        state, count, begun_s = fast.init_state(1), 0, time.perf_counter()
        while (spent_s := time.perf_counter() - begun_s) < seconds or not count:
            _, state = calls[which](frames, state)
            count += 1
        return count / spent_s

    for call in calls.values():
        for _ in range(CALLS_IN_TURN):
            call(frames, fast.init_state(1))
    # In turns, so that what else goes on slows all alike.
    idle = [[frames_per_s(which) for which in calls] for _ in range(2)]
    with _busy(busy, for_s=8.0 * seconds + 60.0):
        shared = [[frames_per_s(which) for which in calls] for _ in range(2)]
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
    """Programs that each want a core all the time, at the longest `for_s` should nobody be left to end them."""
    context = multiprocessing.get_context("spawn")
    begun = context.Barrier(count + 1)
    others = [context.Process(target=_spin, args=(begun, for_s), daemon=True) for _ in range(count)]
    try:
        for process in others:
            process.start()
        begun.wait(for_s)
        yield
    finally:
        for process in others:
            process.kill()


def _spin(begun: Barrier, seconds: float) -> None:
    begun.wait()
    until_s = time.perf_counter() + seconds
    while time.perf_counter() < until_s:
        pass


def _made_fast(
    model: TRecViT, dtype: torch.dtype, mode: str, batch_size: int, num_frames: int
) -> tuple[TRecViT, float]:
    """The model to be timed, and since when somebody who wants to use it waits."""
    if mode != "exported":
        begun_s = time.perf_counter()
        return optimize(model, dtype=dtype, mode=mode), begun_s
    with TemporaryDirectory() as folder:  # a library stays loaded when its file has gone
        export(model, folder, dtype=dtype, batch_size=batch_size, frames=[num_frames])
        begun_s = time.perf_counter()
        return load_exported(folder), begun_s


def _made(name: str) -> TRecViT:
    return create_model(name).eval() if name in PRESETS else load_as(TRecViT, name)


class _Watch(TorchDispatchMode):
    """Notes every matrix product."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Product] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def products(model: TRecViT, frames: Tensor) -> list[Product]:
    """The matrix products of one step, in their order."""
    state = model.init_state(len(frames))
    # Inference tensors do not pass through a dispatch mode as products: autograd's own way does.
    with torch.inference_mode(False), torch.no_grad(), _Watch() as watch:
        model.step(frames.clone(), state)
    calls: list[Product] = watch.calls
    return calls


def _alone(calls: Sequence[Product], *, in_bytes: bool) -> Callable[[], None]:
    """Does products again, each by the kernel that is fastest for its shapes, and nothing between them.

    Args:
        calls: See `products`.
        in_bytes: Also by the kernel for 8-bit integers.
    """
    inputs: dict[Any, Tensor] = {}
    chosen: dict[Any, int] = {}
    kernels: list[Callable[[], object]] = []

    def shared(value: Any) -> Any:
        """Of inputs of one shape only one, which is then as near as one that was just computed."""
        if not isinstance(value, Tensor):
            return value
        return inputs.setdefault((value.shape, value.stride(), value.dtype), value)

    for func, args, kwargs in calls:
        candidates: list[Callable[[], object]]
        if func in _LINEAR:
            *bias, x, weight = args  # the weight is its own each time, as in the model
            x = shared(x)
            packed = packed_linears(x, weight.t().contiguous(), bias[0] if bias else None)
            candidates = [partial(func, *bias, x, weight), *packed.values()]
            if in_bytes:
                linear = Linear(*weight.shape)
                linear.weight.data = weight.t()
                integers = shared(torch.zeros(x.shape, dtype=torch.uint8))
                candidates.append(partial(QuantizedLinear(linear, rows=len(x)).product, integers))
        else:
            given = tuple(shared(value) for value in args)
            close = tuple(value.contiguous() if isinstance(value, Tensor) else value for value in given)
            candidates = [partial(func, *given, **kwargs), partial(func, *close, **kwargs)]
            if func is _aten.baddbmm.default:  # the product alone is quicker than with its bias or its factor
                candidates += [partial(torch.bmm, *given[1:]), partial(torch.bmm, *close[1:])]
        key = (func, *((v.shape, v.stride(), v.dtype) if isinstance(v, Tensor) else str(v) for v in args))
        if key not in chosen:
            times_s = [min(of_one) for of_one in timed_in_turns(*candidates, seconds=0.02)]
            chosen[key] = times_s.index(min(times_s))
        kernels.append(candidates[chosen[key]])

    def again() -> None:
        for kernel in kernels:
            kernel()

    return again
