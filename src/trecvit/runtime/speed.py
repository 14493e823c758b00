"""How fast a model runs, and how fast its matrix products alone would: the bound that no way of running it can beat.

The products are those that the model really makes: one pass is watched, and the products it asked for are done again
in the same order on the same numbers, each by the fastest kernel that PyTorch has for it here. What a mode takes beyond
that is copies, casts, norms, gates and the recurrence. Every case is measured in a process of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trecvit.config import PRESETS
from trecvit.errors import ConfigError, MissingPackageError
from trecvit.memory import peak_bytes
from trecvit.model.trecvit import TRecViT, create_model
from trecvit.runtime.describe import flops_per_frame
from trecvit.runtime.fast import DTYPES, optimize
from trecvit.weights.load import load
from trecvit.workers import worker_pool

_aten = torch.ops.aten
_LINEAR = {_aten.addmm.default, _aten.mm.default}
_PRODUCTS = _LINEAR | {_aten.bmm.default, _aten.baddbmm.default, _aten._softmax.default}


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """One way of running one model.

    Attributes:
        model: A preset with fresh weights, or what `trecvit.load` takes.
        dtype: Of the matrix products.
        mode: See `trecvit.runtime.fast.optimize`.
        batch_size: Streams, or clips, at once.
        num_frames: Frames of one call: 1 is a stream, one frame after another with its state; more is a clip.
        median_ms: Of one call.
        p95_ms: Of one call.
        frames_per_s: All streams together, by the median.
        gflop_per_s: Likewise, of matrix products.
        bound_frames_per_s: What the products alone would reach.
        state_bytes: Carried per stream.
        peak_bytes: Memory of the process at its peak.
        ready_s: Until the first answer was there: packing, compiling, converting.
    """

    model: str
    dtype: str
    mode: str
    batch_size: int
    num_frames: int
    median_ms: float
    p95_ms: float
    frames_per_s: float
    gflop_per_s: float
    bound_frames_per_s: float
    state_bytes: int
    peak_bytes: int
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
        dtypes: "float32", "bfloat16".
        modes: See `optimize`.
        batch_sizes: Streams at once.
        frames: Frames of a call.
        seconds: How long each is timed, at the least five calls.
    """
    for case in product(models, dtypes, modes, batch_sizes, frames):
        with worker_pool(1) as pool:
            try:
                yield pool.submit(measure, *case, seconds=seconds).result()
            except (ConfigError, MissingPackageError) as exc:
                yield str(exc)


@torch.inference_mode()
def measure(name: str, dtype: str, mode: str, batch_size: int, num_frames: int, *, seconds: float) -> Speed:
    """Measures one case in this process."""
    if dtype not in DTYPES:
        raise ConfigError(f"expected one of {', '.join(DTYPES)}")
    model = create_model(name).eval() if name in PRESETS else load(name)
    begun_s = time.perf_counter()
    fast = optimize(model, dtype=DTYPES[dtype], mode=mode)
    size = (batch_size, num_frames, 3, *model.preprocessing.image_size)
    frames = torch.randint(0, 256, size, dtype=torch.uint8)
    state = fast.init_state(batch_size)
    _, state = fast.step(frames, state)
    ready_s = time.perf_counter() - begun_s

    def call() -> None:
        nonlocal state
        _, after = fast.step(frames, state)
        state = after if num_frames == 1 else state

    times_s = _timed(call, seconds)
    peak = peak_bytes()
    plain = optimize(model, dtype=DTYPES[dtype])
    bound_s = float(np.median(_timed(_products_alone(plain, frames), seconds)))
    per_call = batch_size * num_frames
    median_s = float(np.median(times_s))
    return Speed(
        model=name,
        dtype=dtype,
        mode=mode,
        batch_size=batch_size,
        num_frames=num_frames,
        median_ms=median_s * 1e3,
        p95_ms=float(np.percentile(times_s, 95)) * 1e3,
        frames_per_s=per_call / median_s,
        gflop_per_s=flops_per_frame(plain) * per_call / median_s / 1e9,
        bound_frames_per_s=per_call / bound_s,
        state_bytes=state.nbytes // batch_size,
        peak_bytes=peak,
        ready_s=ready_s,
    )


def _timed(call: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each call, two calls that are not counted before them."""
    for _ in range(2):
        call()
    times_s: list[float] = []
    until_s = time.perf_counter() + seconds
    while len(times_s) < 5 or time.perf_counter() < until_s:
        begun_s = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - begun_s)
    return times_s


class _Watch(TorchDispatchMode):
    """Notes every matrix product, and the softmax between those of attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _PRODUCTS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def _products_alone(model: TRecViT, frames: Tensor) -> Callable[[], None]:
    """Does the products of one step again, in their order, each by the kernel that is fastest for its shapes."""
    state = model.init_state(len(frames))
    # Inference tensors do not pass through a dispatch mode as products: autograd's own way does.
    with torch.inference_mode(False), torch.no_grad(), _Watch() as watch:
        model.step(frames.clone(), state)
    calls = [_fastest(func, args, kwargs) for func, args, kwargs in watch.calls]

    def again() -> None:
        for call in calls:
            call()

    return again


_choices: dict[tuple[Any, ...], bool] = {}


def _fastest(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], object]:
    """The product as it was asked for, or with its weight packed beforehand if that is faster."""

    def plain() -> object:
        return func(*args, **kwargs)

    if func not in _LINEAR:
        return plain
    *bias, x, weight = args
    packed = _packed(x, weight.t(), bias[0] if bias else None)
    key = (tuple(x.shape), tuple(weight.shape), x.dtype)
    if key not in _choices:
        _choices[key] = min(_timed(packed, 0.02)) < min(_timed(plain, 0.02))
    return packed if _choices[key] else plain


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Callable[[], object]:
    """A linear map whose weight lies as oneDNN (bfloat16) or MKL (float32) likes it."""
    weight = weight.contiguous()
    if x.dtype == torch.float32 and torch.backends.mkl.is_available():
        mkl = torch.ops.mkl._mkl_linear.default
        ordered = torch.ops.mkl._mkl_reorder_linear_weight.default(weight, len(x))
        return lambda: mkl(x, ordered, weight, bias, len(x))
    linear = torch.ops.mkldnn._linear_pointwise.default
    ordered = torch.ops.mkldnn._reorder_linear_weight.default(weight, len(x))
    return lambda: linear(x, ordered, bias, "none", [], "")
