"""The equations of the paper once more, in float64 NumPy loops: no torch, no cleverness."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def scan(decay: Array, inputs: Array, initial: Array) -> tuple[Array, Array]:
    """h_t = a_t h_(t-1) + b_t over axis 1; all states and the last."""
    state, states = initial, []
    for step in range(inputs.shape[1]):
        state = decay[:, step] * state + inputs[:, step]
        states.append(state)
    return np.stack(states, axis=1), state


def scan_gradients(
    decay: Array, inputs: Array, initial: Array, grad_states: Array, grad_last: Array
) -> tuple[Array, Array, Array]:
    """Gradients of sum(grad_states * states) + sum(grad_last * last) with respect to decay, inputs and initial.

    Straight from the definition: a change of b_s reaches h_t multiplied by a_(s+1) ... a_t, one product for each pair.
    """
    states, _ = scan(decay, inputs, initial)
    num_frames = inputs.shape[1]
    arriving = grad_states.copy()
    arriving[:, -1] += grad_last
    grad_decay, grad_inputs = np.zeros_like(decay), np.zeros_like(inputs)
    grad_initial = np.zeros_like(initial)
    for source in range(num_frames):
        reach = np.zeros_like(initial)
        for target in range(source, num_frames):
            product = np.prod(decay[:, source + 1 : target + 1], axis=1)
            reach += product * arriving[:, target]
        grad_inputs[:, source] = reach
        grad_decay[:, source] = reach * (states[:, source - 1] if source else initial)
        if source == 0:
            grad_initial = reach * decay[:, 0]
    return grad_decay, grad_inputs, grad_initial


def sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


def rg_lru(
    x: Array, input_gate: Array, recurrence_gate: Array, a_param: Array, hidden: Array, fresh: NDArray[np.bool_]
) -> Array:
    """All states of the gated recurrence (paper, section 3.1) for x [B,T,N,E]; a_param is -lambda."""
    a = sigmoid(-a_param) ** (8.0 * sigmoid(recurrence_gate))
    states = np.zeros_like(x)
    for stream in range(x.shape[0]):
        state = hidden[stream]
        for frame in range(x.shape[1]):
            is_first = frame == 0 and fresh[stream]
            scale = np.ones_like(state) if is_first else np.sqrt(1.0 - a[stream, frame] ** 2)
            gated = sigmoid(input_gate[stream, frame]) * x[stream, frame]
            state = a[stream, frame] * state + scale * gated
            states[stream, frame] = state
    return states


def rg_lru_gradients(
    x: Array, input_gate: Array, recurrence_gate: Array, a_param: Array, hidden: Array, fresh: NDArray[np.bool_],
    grad_states: Array,
) -> tuple[Array, ...]:  # fmt: skip
    """Gradients of sum(grad_states * states) with respect to the first five arguments of `rg_lru`."""
    r, i = sigmoid(recurrence_gate), sigmoid(input_gate)
    softplus = np.logaddexp(0.0, a_param)
    a = np.exp(-8.0 * r * softplus)
    scale, slope = np.sqrt(1.0 - a**2), -(a**2) / np.sqrt(1.0 - a**2)  # d scale / d log a
    scale[fresh, 0], slope[fresh, 0] = 1.0, 0.0
    flat = [value.reshape(*x.shape[:2], -1) for value in (a, scale * i * x, grad_states)]
    nothing = np.zeros_like(flat[2][:, 0])
    grad_a, grad_inputs, grad_hidden = scan_gradients(flat[0], flat[1], hidden.reshape(len(x), -1), flat[2], nothing)
    grad_a, grad_inputs = grad_a.reshape(x.shape), grad_inputs.reshape(x.shape)
    grad_log_a = grad_a * a + grad_inputs * i * x * slope
    return (
        grad_inputs * scale * i,
        grad_inputs * scale * x * i * (1.0 - i),
        grad_log_a * -8.0 * softplus * r * (1.0 - r),
        (grad_log_a * -8.0 * r).sum(axis=(0, 1, 2)) * sigmoid(a_param),
        grad_hidden.reshape(hidden.shape),
    )


def complex_rg_lru(
    x: Array, input_gate: Array, recurrence_gate: Array, a_param: Array, phase: Array, fresh: NDArray[np.bool_]
) -> Array:
    """All states for complex eigenvalues, from zeros; halves of the channels are real and imaginary parts."""
    half = x.shape[-1] // 2
    values = x[..., :half] + 1j * x[..., half:]
    r = sigmoid(recurrence_gate)
    a = sigmoid(-a_param) ** (8.0 * r) * np.exp(1j * r * phase)
    state, states = np.zeros_like(values[:, 0]), []
    for frame in range(x.shape[1]):
        scale = np.sqrt(1.0 - np.abs(a[:, frame]) ** 2)
        scale[fresh & (frame == 0)] = 1.0
        state = a[:, frame] * state + scale * sigmoid(input_gate[:, frame]) * values[:, frame]
        states.append(state)
    stacked = np.stack(states, axis=1)
    return np.concatenate([stacked.real, stacked.imag], axis=-1)
