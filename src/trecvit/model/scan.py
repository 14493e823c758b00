"""The linear recurrence h_t = a_t * h_(t-1) + b_t, element by element, over axis 1.

`linear_scan` is what the model calls. `linear_scan_reference` is the same thing written to be obviously right: a loop
that autograd differentiates by itself. The tests hold the two together, outputs, final states and every gradient.

B streams · T frames · C channels (the model folds its N tokens and E recurrent channels into them).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Inexact
from torch import Tensor

from trecvit.errors import InputError

Sequence = Inexact[Tensor, "B T C"]
Hidden = Inexact[Tensor, "B C"]


def linear_scan(decay: Sequence, inputs: Sequence, initial: Hidden) -> tuple[Sequence, Hidden]:
    """Runs the recurrence and returns all states and the last one.

    Works on real and complex tensors, in their dtype (the model passes float32 or complex64). One pass over memory in
    each direction, no transposed copy: every step is one fused multiply-add on all streams and channels at once. The
    gradient keeps only `decay`, `initial` and the states, not one graph node per frame.

    Args:
        decay: a_t, usually with absolute values in [0, 1].
        inputs: b_t.
        initial: h_0, the state before the first frame.

    Returns:
        The states h_1 ... h_T and h_T. Gradients reach `decay`, `inputs` and `initial`, also through h_T.

    Raises:
        InputError: for shapes, dtypes or devices that do not belong together, and for T = 0.
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


class _LinearScan(torch.autograd.Function):
    """The loop with a hand-written gradient.

    With g_t the gradient that reaches h_t from everywhere: g_t = dy_t + conj(a_(t+1)) g_(t+1), and then
    db_t = g_t, da_t = g_t conj(h_(t-1)), dh_0 = conj(a_1) g_1. Nothing is divided by products of decays, which
    underflow as soon as a gate learns to forget.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, initial: Tensor) -> Tensor:
        states = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        previous = initial
        for step in range(inputs.shape[1]):
            torch.addcmul(inputs[:, step], decay[:, step], previous, out=states[:, step])
            previous = states[:, step]
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
