"""`gated_scan` as one Triton kernel in each direction, for GPUs.

Gates, decay, root and recurrence of one frame are computed in registers: x and the two gates are read once, the states
are written once, and no other tensor of size B·T·N·E exists. Each program owns a stretch of channels of one stream and
loops over its frames, in float32 whatever the inputs' dtype. The gradient reads the same tensors and the states, from
the last frame to the first.

A frame's result waits for the frame before, its inputs do not: they are copied to shared memory some frames ahead, so
that enough bytes are on their way to keep the memory busy. Exponentials, roots and divisions are as few as possible:
at full memory bandwidth an H100 has time for about eleven of them per element of the forward kernel, an H200 for eight
(16 per clock and multiprocessor, by NVIDIA's table of arithmetic throughputs); it needs seven.

The kernels are registered as `torch.ops.trecvit.gated_scan`, so that torch.compile, torch.export and autocast see an
ordinary operator. The tests run them on the CPU in Triton's interpreter (TRITON_INTERPRET=1); they have not yet run on
a GPU: `scripts/gpu` measures `FORWARD` and `BACKWARD` beside other launches.

B streams · T frames · N tokens per frame · E recurrent channels · C = N·E
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

_SERIES_ABOVE = tl.constexpr(-0.35)  # log a above which a - 1 would cancel and is a series
_LEAST_UNDER_ROOT = tl.constexpr(1e-30)  # keeps 0 / sqrt(0) out of the gradient; smaller than any 1 - a^2 but 0


class Launch(NamedTuple):
    """How a kernel is launched.

    Attributes:
        block: Channels per program, a power of 2.
        num_warps: Warps per program; `block` / (32 `num_warps`) channels per thread.
        stages: Frames in shared memory at the same time; 1 loads each when its turn has come.
    """

    block: int
    num_warps: int
    stages: int


# Chosen by counting bytes in flight, not yet by measurement: `scripts/gpu` does that.
FORWARD = Launch(block=512, num_warps=4, stages=3)
BACKWARD = Launch(block=256, num_warps=4, stages=2)


@triton.jit
def _decay(recurrence_gate, rate):  # type: ignore[no-untyped-def]
    """The recurrence gate, the decay a and 1 - a^2, to float32 rounding.

    Near 1, a - 1 is Taylor's series of degree 7: a GPU's exponential is wrong by up to three units in the last place
    there, perhaps always in one direction, which would add up over the hundreds of frames that such a decay remembers.
    """
    r = tl.sigmoid(recurrence_gate)
    x = r * rate  # log a
    # Factors and not divisors: a division takes as long as an exponential.
    series = 1.0 / 24.0 + x * (1.0 / 120.0 + x * (1.0 / 720.0 + x * (1.0 / 5040.0)))
    series = x * (1.0 + x * (0.5 + x * (1.0 / 6.0 + x * series)))
    is_near = x > _SERIES_ABOVE
    a = tl.where(is_near, 1.0 + series, tl.exp(x))
    return r, a, tl.where(is_near, -series * (2.0 + series), 1.0 - a * a)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x_ptr, input_gate_ptr, recurrence_gate_ptr, rate_ptr, hidden_ptr, fresh_ptr, states_ptr,
    num_frames, num_channels, num_rates, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    stretches = tl.cdiv(num_channels, BLOCK)
    # 64 bits: offsets pass 2^31, and one axis of programs because the others end at 65,535.
    program = tl.program_id(0).to(tl.int64)
    stream = program // stretches
    channels = (program % stretches) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < num_channels
    rate = tl.load(rate_ptr + channels % num_rates, mask=inside, other=0.0)
    fresh = tl.load(fresh_ptr + stream) != 0
    state = tl.load(hidden_ptr + stream * num_channels + channels, mask=inside, other=0.0)
    at = stream * num_frames * num_channels + channels
    for frame in tl.range(0, num_frames, num_stages=STAGES):
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        i = tl.sigmoid(tl.load(input_gate_ptr + at, mask=inside, other=0.0).to(tl.float32))
        _, a, rest = _decay(tl.load(recurrence_gate_ptr + at, mask=inside, other=0.0).to(tl.float32), rate)
        scale = tl.where(fresh & (frame == 0), 1.0, tl.sqrt(rest))
        state = a * state + scale * (i * x)
        tl.store(states_ptr + at, state, mask=inside)
        at += num_channels


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad_states_ptr, x_ptr, input_gate_ptr, recurrence_gate_ptr, rate_ptr, hidden_ptr, fresh_ptr, states_ptr,
    grad_x_ptr, grad_input_ptr, grad_recurrence_ptr, grad_rate_ptr, grad_hidden_ptr,
    num_frames, num_channels, num_rates, least_rest, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    stretches = tl.cdiv(num_channels, BLOCK)
    program = tl.program_id(0).to(tl.int64)
    stream = program // stretches
    channels = (program % stretches) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < num_channels
    rate = tl.load(rate_ptr + channels % num_rates, mask=inside, other=0.0)
    fresh = tl.load(fresh_ptr + stream) != 0
    here = stream * num_channels + channels
    hidden = tl.load(hidden_ptr + here, mask=inside, other=0.0)
    carried = tl.zeros([BLOCK], tl.float32)  # a_(t+1) g_(t+1)
    grad_rate = tl.zeros([BLOCK], tl.float32)
    max_slope = 1.0 / tl.sqrt(least_rest)
    at = (stream * num_frames + num_frames - 1) * num_channels + channels
    for step in tl.range(0, num_frames, num_stages=STAGES):
        first = step == num_frames - 1
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        i = tl.sigmoid(tl.load(input_gate_ptr + at, mask=inside, other=0.0).to(tl.float32))
        r, a, rest = _decay(tl.load(recurrence_gate_ptr + at, mask=inside, other=0.0).to(tl.float32), rate)
        # One root for both: sqrt(rest), and its slope, 1 / sqrt(max(rest, least_rest)).
        inverse = tl.rsqrt(tl.maximum(rest, _LEAST_UNDER_ROOT))
        unscaled = fresh & first
        scale = tl.where(unscaled, 1.0, rest * inverse)
        slope = tl.where(unscaled, 0.0, tl.minimum(inverse, max_slope))
        # There is no state before the first frame to load; any place within the tensor will do.
        earlier = tl.load(states_ptr + tl.where(first, at, at - num_channels), mask=inside, other=0.0)
        earlier = tl.where(first, hidden, earlier)
        g = tl.load(grad_states_ptr + at, mask=inside, other=0.0) + carried
        carried = g * a
        grad_log_a = carried * earlier - g * (i * x) * slope * (1.0 - rest)
        grad_rate += grad_log_a * r
        tl.store(grad_recurrence_ptr + at, grad_log_a * rate * r * (1.0 - r), mask=inside)
        g *= scale
        tl.store(grad_input_ptr + at, g * x * i * (1.0 - i), mask=inside)
        tl.store(grad_x_ptr + at, g * i, mask=inside)
        at -= num_channels
    tl.store(grad_rate_ptr + here, grad_rate, mask=inside)
    tl.store(grad_hidden_ptr + here, carried, mask=inside)


@torch.library.custom_op(
    "trecvit::gated_scan",
    mutates_args=(),
    schema="(Tensor x, Tensor input_gate, Tensor recurrence_gate, Tensor rate, Tensor hidden, Tensor fresh, "
    "float least_rest) -> Tensor",
)
def gated_scan_op(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    rate: Tensor,
    hidden: Tensor,
    fresh: Tensor,
    least_rest: float,
) -> Tensor:
    """Compute all states [B,T,N,E], float32.

    Args:
        x: Inputs [B,T,N,E], of any floating-point dtype, as the gates.
        input_gate: Before its sigmoid.
        recurrence_gate: Before its sigmoid.
        rate: -c softplus(a_param), float32 [E].
        hidden: h_0, float32 [B,N,E].
        fresh: Which streams start with the first frame, [B].
        least_rest: The gradient takes the slope of the square root at 1 - a^2, or at this if it is larger.
    """
    states = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    launch_forward((x, input_gate, recurrence_gate, rate, hidden), fresh, states, FORWARD)
    return states


def launch_forward(inputs: tuple[Tensor, ...], fresh: Tensor, states: Tensor, launch: Launch) -> None:
    """Write all states; `inputs` are the first five arguments of `gated_scan_op`."""
    x, *_, rate, hidden = inputs
    num_channels = hidden.shape[1:].numel()
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _forward[_programs(len(x), num_channels, launch)](
            *(tensor.contiguous() for tensor in inputs), _bytes(fresh), states,
            x.shape[1], num_channels, len(rate), BLOCK=launch.block, STAGES=launch.stages, num_warps=launch.num_warps,
        )  # fmt: skip


@torch.library.custom_op(
    "trecvit::gated_scan_backward",
    mutates_args=(),
    schema="(Tensor grad_states, Tensor x, Tensor input_gate, Tensor recurrence_gate, Tensor rate, Tensor hidden, "
    "Tensor fresh, Tensor states, float least_rest) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
)
def gated_scan_backward_op(
    grad_states: Tensor,
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    rate: Tensor,
    hidden: Tensor,
    fresh: Tensor,
    states: Tensor,
    least_rest: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of the operator's first five arguments; see there for `least_rest`."""
    inputs = (x, input_gate, recurrence_gate, rate, hidden)
    wide = (torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs[:3])
    narrow = (torch.empty(hidden.shape, dtype=torch.float32, device=x.device) for _ in range(2))
    grads = (*wide, *narrow)
    launch_backward(grad_states, inputs, fresh, states, grads, least_rest, BACKWARD)
    return grads[0], grads[1], grads[2], grads[3].sum(dim=(0, 1)), grads[4]


def launch_backward(
    grad_states: Tensor,
    inputs: tuple[Tensor, ...],
    fresh: Tensor,
    states: Tensor,
    grads: tuple[Tensor, ...],
    least_rest: float,
    launch: Launch,
) -> None:
    """Write the gradients of x, the gates, the rate (one per stream and token) and the initial state to `grads`."""
    x, *_, rate, hidden = inputs
    num_channels = hidden.shape[1:].numel()
    with torch.cuda.device_of(x):
        _backward[_programs(len(x), num_channels, launch)](
            grad_states.contiguous(), *(tensor.contiguous() for tensor in inputs), _bytes(fresh), states, *grads,
            x.shape[1], num_channels, len(rate), least_rest,
            BLOCK=launch.block, STAGES=launch.stages, num_warps=launch.num_warps,
        )  # fmt: skip


def _programs(batch_size: int, num_channels: int, launch: Launch) -> tuple[int]:
    return (batch_size * -(-num_channels // launch.block),)


def _bytes(fresh: Tensor) -> Tensor:
    """The same memory as bytes: a copy would be one more kernel in every layer."""
    return fresh.contiguous().view(torch.int8)


@gated_scan_op.register_fake
def _(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    rate: Tensor,
    hidden: Tensor,
    fresh: Tensor,
    least_rest: float,
) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


@gated_scan_backward_op.register_fake
def _(
    grad_states: Tensor,
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    rate: Tensor,
    hidden: Tensor,
    fresh: Tensor,
    states: Tensor,
    least_rest: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    wide = (tensor.new_empty(tensor.shape) for tensor in (x, input_gate, recurrence_gate))
    return (*wide, torch.empty_like(rate), hidden.new_empty(hidden.shape))  # type: ignore[return-value]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.least_rest = inputs
    ctx.save_for_backward(*tensors, output)


def _gradients(ctx: Any, grad_states: Tensor) -> tuple[Tensor | None, ...]:
    return (*gated_scan_backward_op(grad_states, *ctx.saved_tensors, ctx.least_rest), None, None)


gated_scan_op.register_autograd(_gradients, setup_context=_setup_context)
