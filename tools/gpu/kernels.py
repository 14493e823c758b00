"""Speed of the RG-LRU's kernels beside the memory's, plain and compiled PyTorch, and flash-linear-attention."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tools.gpu.child import Case
from tools.gpu.device import Target, copy_bytes_per_s, matmul_flop_per_s
from trecvit.model.scan import GATE_SHARPNESS, MAX_SQRT_GRADIENT, _GatedScan, gated_scan_reference

_LEAST_REST = 0.25 / MAX_SQRT_GRADIENT**2
_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Streams, frames, tokens and channels: clips of `base` in training, one clip, and one frame of many streams.
_SHAPES = {"": (8, 32, 197, 768), " 1 clip": (1, 32, 197, 768), " 64 streams": (64, 1, 197, 768)}
_BLOCKS, _WARPS, _STAGES = (128, 256, 512, 1024), (2, 4, 8), (1, 2, 3, 5)


class Problem:
    """Random arguments of one scan, in both directions.

    Args:
        shape: B, T, N and E.
        dtype: Of the inputs and gates; the states are float32.
        target: The device.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, target: Target) -> None:
        batch_size, _, num_tokens, width = shape
        device = target.device
        self.wide = tuple(torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
        self.a_param = torch.randn(width, device=device)
        self.rate = -GATE_SHARPNESS * F.softplus(self.a_param)
        self.hidden = torch.randn(batch_size, num_tokens, width, device=device)
        self.fresh = torch.arange(batch_size, device=device) % 2 == 0
        self.grad_states = torch.randn(shape, device=device)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """As the kernels take them."""
        return (*self.wide, self.rate, self.hidden)

    @property
    def forward_bytes(self) -> int:
        """Bytes that the forward pass reads and writes at least: each tensor once."""
        return sum(tensor.nbytes for tensor in (*self.wide, self.hidden, self.grad_states))

    @property
    def backward_bytes(self) -> int:
        """The same of the backward pass: it reads inputs, states and their gradients, and writes gradients."""
        return sum(2 * tensor.nbytes for tensor in (*self.wide, self.hidden, self.grad_states))

    def leaves(self) -> list[Tensor]:
        """Arguments of `gated_scan` with gradients."""
        return [tensor.detach().requires_grad_() for tensor in (*self.wide, self.a_param, self.hidden)]


def cases(target: Target) -> dict[str, Case]:
    """Return the cases, the most important first."""
    made: dict[str, Case] = {"ceilings": lambda: _ceilings(target)}
    for (shape_name, shape), (dtype_name, dtype) in product(_SHAPES.items(), _DTYPES.items()):
        shape = target.pick(shape, (2, min(shape[1], 3), 2, 16))
        for direction in ("forward", "backward"):
            if direction == "forward" or shape[1] > 1:  # one frame at a time has no gradient
                made[f"{direction} {dtype_name}{shape_name}"] = _kernel(direction, shape, dtype, target)
    shape = target.pick(_SHAPES[""], (2, 3, 2, 16))
    for direction in ("forward", "backward"):
        made[f"launches of {direction}"] = _launches(direction, shape, target)
        for name, make in _others(target).items():
            made[f"{name} {direction}"] = _other(make, direction, shape, target)
    return made


def _ceilings(target: Target) -> dict[str, Any]:
    bandwidth, flops = copy_bytes_per_s(target), matmul_flop_per_s(target)
    line = f"copies {bandwidth / 1e12:.2f} TB/s, bfloat16 {flops / 1e12:.0f} TFLOP/s"
    return {"line": line, "copy_bytes_per_s": bandwidth, "bf16_flop_per_s": flops}


def _kernel(direction: str, shape: tuple[int, ...], dtype: torch.dtype, target: Target) -> Case:
    def case() -> dict[str, Any]:
        from trecvit.model.scan_triton import BACKWARD, FORWARD

        launch = FORWARD if direction == "forward" else BACKWARD
        problem = Problem(shape, dtype, target)
        found = _speed(direction, problem, _call(direction, problem, launch), copy_bytes_per_s(target), target)
        return {**found, "launch": launch._asdict(), "shape": shape}

    return case


def _call(direction: str, problem: Problem, launch: Any) -> Callable[[], None]:
    from trecvit.model.scan_triton import launch_backward, launch_forward

    states = torch.empty_like(problem.grad_states)
    if direction == "forward":
        return lambda: launch_forward(problem.inputs, problem.fresh, states, launch)
    launch_forward(problem.inputs, problem.fresh, states, launch)
    grads = (*map(torch.empty_like, problem.wide), *(torch.empty_like(problem.hidden) for _ in range(2)))
    return lambda: launch_backward(
        problem.grad_states, problem.inputs, problem.fresh, states, grads, _LEAST_REST, launch
    )


def _speed(
    direction: str, problem: Problem, call: Callable[[], object], copy_bytes: float, target: Target
) -> dict[str, Any]:
    seconds = target.median_s(call)
    moved = problem.forward_bytes if direction == "forward" else problem.backward_bytes
    share = moved / seconds / copy_bytes
    return {
        "line": f"{seconds * 1e3:.3f} ms, {moved / seconds / 1e12:.2f} TB/s, {share:.0%} of a copy's",
        "milliseconds": seconds * 1e3,
        "bytes": moved,
        "bytes_per_s": moved / seconds,
        "copy_bytes_per_s": copy_bytes,
        "share_of_bandwidth": share,
    }


def _launches(direction: str, shape: tuple[int, ...], target: Target) -> Case:
    """Time all ways to launch a kernel, to choose `FORWARD` and `BACKWARD` by."""

    def case() -> dict[str, Any]:
        from trecvit.model.scan_triton import BACKWARD, FORWARD, Launch

        problem = Problem(shape, torch.bfloat16, target)
        chosen = FORWARD if direction == "forward" else BACKWARD
        every = [Launch(*sizes) for sizes in product(_BLOCKS, _WARPS, _STAGES) if 1 <= sizes[0] // (32 * sizes[1]) <= 8]
        every = [chosen, *(launch for launch in every if launch != chosen)][: target.pick(None, 2)]
        times_s: dict[Launch, float] = {}
        failures: dict[str, str] = {}
        for launch in every:
            try:
                times_s[launch] = target.median_s(_call(direction, problem, launch), seconds=0.02)
            except Exception as exc:  # too much shared memory, for example
                failures[str(launch)] = " ".join(str(exc).split())[:200]
        ranked = sorted(times_s, key=times_s.__getitem__)
        if not ranked:
            raise RuntimeError(str(failures))
        best = ranked[0]
        by = times_s.get(chosen, float("nan")) / times_s[best]
        return {
            "line": f"best {tuple(best)}: {times_s[best] * 1e3:.3f} ms, {by:.2f} × as fast as {tuple(chosen)}",
            "times": [{**launch._asdict(), "milliseconds": times_s[launch] * 1e3} for launch in ranked],
            "failures": failures,
        }

    return case


def _others(target: Target) -> dict[str, Callable[[], Callable[..., Any]]]:
    """Make other functions of `gated_scan`'s arguments that compute the same."""
    made: dict[str, Callable[[], Callable[..., Any]]] = {
        "plain PyTorch": lambda: _GatedScan.apply,
        "compiled PyTorch": lambda: gated_scan_reference if target.small else torch.compile(gated_scan_reference),
    }
    if find_spec("fla"):
        made["flash-linear-attention"] = lambda: _hgrn
    return made


def _hgrn(
    x: Tensor, input_gate: Tensor, recurrence_gate: Tensor, a_param: Tensor, hidden: Tensor, fresh: Tensor
) -> Any:
    """The recurrence by flash-linear-attention's HGRN kernel, its gates by PyTorch; first frames as all others."""
    from fla.ops.hgrn import fused_recurrent_hgrn  # type: ignore[import-not-found]

    log_a = -GATE_SHARPNESS * torch.sigmoid(recurrence_gate.float()) * F.softplus(a_param)
    inputs = torch.sqrt(-torch.expm1(2.0 * log_a)) * torch.sigmoid(input_gate.float()) * x.float()
    states, _ = fused_recurrent_hgrn(inputs.flatten(2), log_a.flatten(2), initial_state=hidden.flatten(1))
    return states.view(x.shape)


def _other(make: Callable[[], Callable[..., Any]], direction: str, shape: tuple[int, ...], target: Target) -> Case:
    def case() -> dict[str, Any]:
        scan = make()
        problem = Problem(shape, torch.bfloat16, target)
        copy_bytes = copy_bytes_per_s(target)
        if direction == "forward":
            arguments = [tensor.detach() for tensor in problem.leaves()]
            with torch.no_grad():
                return _speed(direction, problem, lambda: scan(*arguments, problem.fresh), copy_bytes, target)
        leaves = problem.leaves()
        states = _states(scan(*leaves, problem.fresh))

        def backward() -> None:
            torch.autograd.grad(states, leaves, problem.grad_states.to(states.dtype), retain_graph=True)

        return _speed(direction, problem, backward, copy_bytes, target)

    return case


def _states(result: Any) -> Tensor:
    states: Tensor = result[0] if isinstance(result, tuple) else result
    return states
