"""`gated_scan` as one Triton kernel in each direction, for GPUs.

Gates, decay, root and recurrence of one frame are computed in registers: x and the two gates are read once, the states
are written once, and no other tensor of size B·T·N·E exists. Each program owns a stretch of channels of one stream and
loops over its frames, in float32 whatever the inputs' dtype. The gradient reads the same tensors and the states, from
the last frame to the first.

The kernels are registered as `torch.ops.trecvit.gated_scan`, so that torch.compile, torch.export and autocast see an
ordinary operator. The tests run them on the CPU in Triton's interpreter (TRITON_INTERPRET=1); they have not yet run on
a GPU.

B streams · T frames · N tokens per frame · E recurrent channels · C = N·E
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 128  # channels per program
_EXPM1_TERMS_BELOW = tl.constexpr(0.35)  # |x| from which exp(x) - 1 is exact enough without a series


@triton.jit
def _expm1(x):  # type: ignore[no-untyped-def]
    """exp(x) - 1 for x <= 0, to float32 rounding: Taylor's series of degree 7 where the difference would cancel."""
    series = 1.0 + x / 6.0 * (1.0 + x / 7.0)
    series = 1.0 + x / 4.0 * (1.0 + x / 5.0 * series)
    series = x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * series))
    return tl.where(x > -_EXPM1_TERMS_BELOW, series, tl.exp(x) - 1.0)


@triton.jit
def _gates(x_ptr, input_gate_ptr, recurrence_gate_ptr, at, inside, rate):  # type: ignore[no-untyped-def]
    """x, the two gates, the decay and 1 - decay^2 of one frame, in float32."""
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    i = tl.sigmoid(tl.load(input_gate_ptr + at, mask=inside, other=0.0).to(tl.float32))
    r = tl.sigmoid(tl.load(recurrence_gate_ptr + at, mask=inside, other=0.0).to(tl.float32))
    log_a = r * rate
    return x, i, r, tl.exp(log_a), -_expm1(2.0 * log_a)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]
    x_ptr, input_gate_ptr, recurrence_gate_ptr, rate_ptr, hidden_ptr, fresh_ptr, states_ptr,
    num_frames, num_channels, num_rates, BLOCK: tl.constexpr,
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
    for frame in range(num_frames):
        x, i, _, a, rest = _gates(x_ptr, input_gate_ptr, recurrence_gate_ptr, at, inside, rate)
        scale = tl.where(fresh & (frame == 0), 1.0, tl.sqrt(rest))
        state = a * state + scale * (i * x)
        tl.store(states_ptr + at, state, mask=inside)
        at += num_channels


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad_states_ptr, x_ptr, input_gate_ptr, recurrence_gate_ptr, rate_ptr, hidden_ptr, fresh_ptr, states_ptr,
    grad_x_ptr, grad_input_ptr, grad_recurrence_ptr, grad_rate_ptr, grad_hidden_ptr,
    num_frames, num_channels, num_rates, least_rest, BLOCK: tl.constexpr,
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
    at = (stream * num_frames + num_frames - 1) * num_channels + channels
    for step in range(num_frames):
        first = step == num_frames - 1
        x, i, r, a, rest = _gates(x_ptr, input_gate_ptr, recurrence_gate_ptr, at, inside, rate)
        unscaled = fresh & first
        scale = tl.where(unscaled, 1.0, tl.sqrt(rest))
        slope = tl.where(unscaled, 0.0, 1.0 / tl.sqrt(tl.maximum(rest, least_rest)))
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
    batch_size, num_frames = x.shape[:2]
    states = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    num_channels = hidden[0].numel()
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _forward[_programs(batch_size, num_channels)](
            *(tensor.contiguous() for tensor in (x, input_gate, recurrence_gate, rate, hidden)),
            fresh.to(torch.int8), states, num_frames, num_channels, len(rate), BLOCK=_BLOCK,
        )  # fmt: skip
    return states


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
    inputs = tuple(tensor.contiguous() for tensor in (x, input_gate, recurrence_gate))
    grads = tuple(torch.empty_like(tensor) for tensor in inputs)
    grad_rate, grad_hidden = (torch.empty(hidden.shape, dtype=torch.float32, device=x.device) for _ in range(2))
    num_channels = hidden[0].numel()
    with torch.cuda.device_of(x):
        _backward[_programs(x.shape[0], num_channels)](
            grad_states.contiguous(), *inputs, rate.contiguous(), hidden.contiguous(), fresh.to(torch.int8), states,
            *grads, grad_rate, grad_hidden, x.shape[1], num_channels, len(rate), least_rest, BLOCK=_BLOCK,
        )  # fmt: skip
    return grads[0], grads[1], grads[2], grad_rate.sum(dim=(0, 1)), grad_hidden


def _programs(batch_size: int, num_channels: int) -> tuple[int]:
    return (batch_size * -(-num_channels // _BLOCK),)


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
