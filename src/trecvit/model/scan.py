"""The linear recurrence h_t = a_t * h_(t-1) + b_t, element by element over axis 1, with and without the RG-LRU's gates.

`gated_scan` is the real RG-LRU after its gates' linear layers; `linear_scan` is the recurrence alone, real or complex.
Beside each stands a reference written to be obviously right and differentiated by autograd. The tests compare outputs,
final states and every gradient.

B streams · T frames · N tokens per frame · E recurrent channels · C channels (N and E folded into one)
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Inexact
from torch import Tensor

from trecvit.errors import InputError

GATE_SHARPNESS = 8.0  # c in a = sigmoid(lambda)^(c r): Griffin (arXiv:2402.19427), section 2.4
MAX_SQRT_GRADIENT = 1000.0  # code (recurrentgemma): keeps the gradient of sqrt(1 - a^2) finite as a -> 1
_MIN_ROOT_ARGUMENT = 0.25 / MAX_SQRT_GRADIENT**2  # where d sqrt(x)/dx reaches it

Sequence = Inexact[Tensor, "B T C"]
Hidden = Inexact[Tensor, "B C"]


def linear_scan(decay: Sequence, inputs: Sequence, initial: Hidden) -> tuple[Sequence, Hidden]:
    """Run the recurrence; return all states and the last one.

    It computes in the dtype of its arguments, real or complex. Each direction is one pass over memory without a
    transposed copy: every step is a fused multiply-add on all streams and channels at once. Only `decay`, `initial` and
    the states are saved for the gradient, not one graph node per frame.

    Args:
        decay: a_t, usually with absolute values in [0, 1].
        inputs: b_t.
        initial: h_0, the state before the first frame.

    Returns:
        The states h_1 ... h_T and h_T. Gradients reach `decay`, `inputs` and `initial`, also through h_T.

    Raises:
        InputError: for shapes or dtypes that do not match, and for T = 0.
    """
    _check(decay, inputs, initial)
    states: Tensor = _LinearScan.apply(decay, inputs, initial)  # type: ignore[no-untyped-call]
    return states, states[:, -1]


def linear_scan_reference(decay: Sequence, inputs: Sequence, initial: Hidden) -> tuple[Sequence, Hidden]:
    """The recurrence as a plain loop. Same arguments and results as `linear_scan`."""
    _check(decay, inputs, initial)
    state, states = initial, []
    for step in range(inputs.shape[1]):
        state = decay[:, step] * state + inputs[:, step]
        states.append(state)
    return torch.stack(states, dim=1), state


def gated_scan(
    x: Float[Tensor, "B T N E"],
    input_gate: Float[Tensor, "B T N E"],
    recurrence_gate: Float[Tensor, "B T N E"],
    a_param: Float[Tensor, " E"],
    hidden: Float[Tensor, "B N E"],
    fresh: Bool[Tensor, " B"],
) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B N E"]]:
    """Run the RG-LRU after its gates' linear layers (paper, section 3.1).

    log a_t = -c sigmoid(recurrence_gate_t) softplus(a_param), and
    h_t = a_t h_(t-1) + sqrt(1 - a_t^2) sigmoid(input_gate_t) x_t; the first frame of a fresh stream has no root.

    On a GPU it is one Triton kernel in each direction, elsewhere a loop over frames, each of which stays in the cache.
    Only the arguments and the states are saved for the gradient; the gates are recomputed.

    Args:
        x: Inputs, of any floating-point dtype.
        input_gate: Before its sigmoid.
        recurrence_gate: Before its sigmoid.
        a_param: -lambda.
        hidden: h_0. Its dtype is that of the computation.
        fresh: Which streams start with the first frame.

    Returns:
        All states, and the last one. Gradients reach every floating-point argument.
    """
    states: Tensor
    if x.is_cuda and hidden.dtype == torch.float32 and _has_triton():
        states = gated_scan_triton(x, input_gate, recurrence_gate, a_param, hidden, fresh)
    else:
        states = _GatedScan.apply(x, input_gate, recurrence_gate, a_param, hidden, fresh)  # type: ignore[no-untyped-call]
    last = states[:, -1]
    # A view would keep the states of all frames alive, in every layer, until the clip has gone through the last one.
    return states, last if x.shape[1] == 1 else last.clone()


def gated_scan_triton(
    x: Float[Tensor, "B T N E"],
    input_gate: Float[Tensor, "B T N E"],
    recurrence_gate: Float[Tensor, "B T N E"],
    a_param: Float[Tensor, " E"],
    hidden: Float[Tensor, "B N E"],
    fresh: Bool[Tensor, " B"],
) -> Float[Tensor, "B T N E"]:
    """All states of `gated_scan` from the Triton kernels; `hidden` is float32."""
    from trecvit.model.scan_triton import gated_scan_op

    rate = -GATE_SHARPNESS * F.softplus(a_param.float())
    states: Tensor = gated_scan_op(x, input_gate, recurrence_gate, rate, hidden, fresh, _MIN_ROOT_ARGUMENT)
    return states


def gated_scan_reference(
    x: Float[Tensor, "B T N E"],
    input_gate: Float[Tensor, "B T N E"],
    recurrence_gate: Float[Tensor, "B T N E"],
    a_param: Float[Tensor, " E"],
    hidden: Float[Tensor, "B N E"],
    fresh: Bool[Tensor, " B"],
) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B N E"]]:
    """The equations of `gated_scan`, one by one. Same arguments and results."""
    dtype = hidden.dtype
    log_a = -GATE_SHARPNESS * torch.sigmoid(recurrence_gate.to(dtype)) * F.softplus(a_param.to(dtype))
    gated = torch.sigmoid(input_gate.to(dtype)) * x.to(dtype)
    inputs = bounded_sqrt(-torch.expm1(2.0 * log_a)) * gated
    first = torch.where(fresh[:, None, None], gated[:, 0], inputs[:, 0])
    inputs = torch.cat([first[:, None], inputs[:, 1:]], dim=1)
    states, last = linear_scan_reference(log_a.exp().flatten(2), inputs.flatten(2), hidden.flatten(1))
    return states.view_as(inputs), last.view_as(hidden)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def bounded_sqrt(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """sqrt(x) with a gradient of at most `MAX_SQRT_GRADIENT`."""
    root: Tensor = _BoundedSqrt.apply(x)  # type: ignore[no-untyped-call]
    return root


class _LinearScan(torch.autograd.Function):
    """The loop with a hand-written gradient.

    With g_t the total gradient of h_t: g_t = dy_t + conj(a_(t+1)) g_(t+1), and then db_t = g_t,
    da_t = g_t conj(h_(t-1)), dh_0 = conj(a_1) g_1. There is no division by products of decays, which underflow as soon
    as a gate learns to forget.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
        states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        previous = initial
        for step in range(inputs.shape[1]):
            previous = torch.addcmul(inputs[:, step], decay[:, step], previous)
            states[:, step] = previous
        ctx.save_for_backward(decay, initial, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (grad_states,) = grad_outputs
        decay, initial, states = ctx.saved_tensors
        conj_decay = decay.conj().resolve_conj()
        grad = torch.empty_like(states)
        grad[:, -1] = grad_states[:, -1]
        for step in range(states.shape[1] - 2, -1, -1):
            torch.addcmul(grad_states[:, step], conj_decay[:, step + 1], grad[:, step + 1], out=grad[:, step])
        grad_decay = torch.empty_like(states)
        torch.mul(grad[:, 0], initial.conj().resolve_conj(), out=grad_decay[:, 0])
        torch.mul(grad[:, 1:], states[:, :-1].conj().resolve_conj(), out=grad_decay[:, 1:])
        return grad_decay, grad, conj_decay[:, 0] * grad[:, 0]


class _GatedScan(torch.autograd.Function):
    """The gates and the loop, with a hand-written gradient.

    With g_t as in `_LinearScan`, s = sqrt(1 - a^2), i and r the gates and z = softplus(a_param):
    d log a_t = g_t h_(t-1) a_t - g_t i_t x_t a_t^2 / s_t, and everything else by the chain rule.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, a_param: Tensor, hidden: Tensor, fresh: Tensor
    ) -> Tensor:
        rate = -GATE_SHARPNESS * F.softplus(a_param.to(hidden.dtype))
        states = torch.empty(x.shape, dtype=hidden.dtype, device=x.device)
        previous = hidden
        for step in range(x.shape[1]):
            log_a = torch.sigmoid(recurrence_gate[:, step].to(hidden.dtype)).mul_(rate)
            gated = torch.sigmoid(input_gate[:, step].to(hidden.dtype)).mul_(x[:, step])
            scale = torch.expm1(2.0 * log_a).neg_().sqrt_()
            if step == 0:
                scale.masked_fill_(fresh[:, None, None], 1.0)
            previous = gated.mul_(scale).addcmul_(log_a.exp_(), previous)
            states[:, step] = previous
        ctx.save_for_backward(x, input_gate, recurrence_gate, a_param, hidden, fresh, states)
        return states

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, None]:
        (grad_states,) = grad_outputs
        x, input_gate, recurrence_gate, a_param, hidden, fresh, states = ctx.saved_tensors
        dtype = hidden.dtype
        rate = -GATE_SHARPNESS * F.softplus(a_param.to(dtype))
        grad_x, grad_input, grad_recurrence = (torch.empty_like(t) for t in (x, input_gate, recurrence_gate))
        grad_rate = torch.zeros_like(rate)
        carried = torch.zeros_like(hidden)  # a_(t+1) g_(t+1)
        for step in range(x.shape[1] - 1, -1, -1):
            r = torch.sigmoid(recurrence_gate[:, step].to(dtype))
            i = torch.sigmoid(input_gate[:, step].to(dtype))
            log_a = r * rate
            one_minus_a2 = torch.expm1(2.0 * log_a).neg_()
            slope = one_minus_a2.clamp(min=_MIN_ROOT_ARGUMENT).rsqrt_()
            scale = one_minus_a2.sqrt()
            if step == 0:
                scale.masked_fill_(fresh[:, None, None], 1.0)
                slope.masked_fill_(fresh[:, None, None], 0.0)
            a = log_a.exp_()
            g = grad_states[:, step] + carried
            gated = i * x[:, step]
            carried = g * a
            grad_log_a = carried * (states[:, step - 1] if step else hidden)
            grad_log_a.sub_((g * gated).mul_(slope).mul_(one_minus_a2.neg_().add_(1.0)))
            grad_rate += (grad_log_a * r).sum(dim=(0, 1))
            grad_recurrence[:, step] = grad_log_a.mul_(rate).mul_(r).mul_(r.neg_().add_(1.0))
            g.mul_(scale)
            grad_input[:, step] = gated.mul_(g).mul_(1.0 - i)
            grad_x[:, step] = g.mul_(i)
        grad_a_param = -GATE_SHARPNESS * grad_rate * torch.sigmoid(a_param.to(dtype))
        return grad_x, grad_input, grad_recurrence, grad_a_param.to(a_param.dtype), carried, None


class _BoundedSqrt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = 0.5 * x.clamp(min=_MIN_ROOT_ARGUMENT).rsqrt()
        return grad_outputs[0] * slope


def _check(decay: Tensor, inputs: Tensor, initial: Tensor) -> None:
    expected = (inputs.shape[0], inputs.shape[2])
    if inputs.shape[1] < 1 or decay.shape != inputs.shape or tuple(initial.shape) != expected:
        raise InputError(
            "linear_scan: expected decay and inputs [B,T,C] of one shape with T >= 1 and initial [B,C], got "
            f"decay {tuple(decay.shape)}, inputs {tuple(inputs.shape)}, initial {tuple(initial.shape)}"
        )
    if not decay.dtype == inputs.dtype == initial.dtype:
        raise InputError(
            "linear_scan: expected one dtype for decay, inputs and initial, got "
            f"{decay.dtype}, {inputs.dtype}, {initial.dtype}"
        )
