"""The Triton kernels, run in Triton's interpreter against the reference, and compiled for NVIDIA GPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

import pytest
import torch
from models import DEVICE, relative_error
from test_scan import FRESH, gated_inputs

from trecvit.model.scan import MAX_SQRT_GRADIENT, gated_scan_reference, gated_scan_triton

scan_triton = pytest.importorskip("trecvit.model.scan_triton", reason="Triton is for Linux", exc_type=ImportError)
gated_scan_op = scan_triton.gated_scan_op

NAMES = ("states", "last", "d x", "d input_gate", "d recurrence_gate", "d a_param", "d hidden")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def outcome(scan, tensors, grad_states, grad_last):
    states = scan(*tensors, FRESH)
    states = states[0] if isinstance(states, tuple) else states
    loss = (states * grad_states).sum() + (states[:, -1] * grad_last).sum()
    return [states, states[:, -1], *torch.autograd.grad(loss, tensors)]


# The interpreter takes a millisecond for every frame of every program; a stream has 4 x width channels, and a program
# 128. What adds up over many frames is float32 whatever goes in, and most where decays are near 1.
@pytest.mark.parametrize(
    ("dtype", "num_frames", "width", "gate"),
    [
        *product(TOLERANCE, [1], [5], GATES := (-12.0, 0.0, 6.0)),
        *product(TOLERANCE, [2], [150], GATES),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in product(TOLERANCE, [17], [40], GATES)),
        pytest.param(torch.float32, 256, 5, -12.0, marks=pytest.mark.slow),
    ],
)
def test_kernels_match_the_reference_in_every_gradient(dtype, num_frames, width, gate):
    tensors = gated_inputs(num_frames, dtype, gate, width)
    generator = torch.Generator().manual_seed(1)
    grad_states = torch.randn(tensors[0].shape, generator=generator).to(DEVICE)
    grad_last = torch.randn(tensors[4].shape, generator=generator).to(DEVICE)
    results = [outcome(scan, tensors, grad_states, grad_last) for scan in (gated_scan_triton, gated_scan_reference)]
    for name, got, want in zip(NAMES, *results, strict=True):
        assert got.dtype == want.dtype, name
        assert relative_error(got, want) < TOLERANCE[dtype], name


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # 1 / (1 + inf) is the right sigmoid
def test_gradients_stay_finite_when_a_decay_reaches_one():
    tensors = gated_inputs(5, torch.float32, -200.0)
    states = gated_scan_triton(*tensors, FRESH)
    for gradient in torch.autograd.grad(states.sum(), tensors):
        assert torch.isfinite(gradient).all()


def test_arguments_need_not_be_contiguous():
    tensors = [tensor.detach() for tensor in gated_inputs(7, torch.float32, 0.0)]
    turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in tensors[:3]]
    assert not turned[0].is_contiguous()
    assert torch.equal(gated_scan_triton(*turned, *tensors[3:], FRESH), gated_scan_triton(*tensors, FRESH))


@pytest.mark.parametrize("launch", [scan_triton.Launch(16, 1, 1), scan_triton.Launch(64, 2, 4)])
def test_every_launch_gives_the_same(launch, monkeypatch):
    tensors = gated_inputs(3, torch.float32, 0.0, width=9)  # 36 channels, which no block divides
    weights = [torch.randn(tensors[place].shape).to(DEVICE) for place in (0, 4)]
    expected = outcome(gated_scan_triton, tensors, *weights)
    monkeypatch.setattr(scan_triton, "FORWARD", launch)
    monkeypatch.setattr(scan_triton, "BACKWARD", launch)
    for name, got, want in zip(NAMES, outcome(gated_scan_triton, tensors, *weights), expected, strict=True):
        assert relative_error(got, want) < 1e-6, name


def test_no_stream_at_all_is_a_batch_like_any_other():
    tensors = [tensor.detach()[:0] for tensor in gated_inputs(3, torch.float32, 0.0)]
    tensors[3] = gated_inputs(3, torch.float32, 0.0)[3].detach()
    tensors = [tensor.requires_grad_() for tensor in tensors]
    states = gated_scan_triton(*tensors, FRESH[:0])
    assert states.shape == (0, 3, 4, 6)
    shapes = [gradient.shape for gradient in torch.autograd.grad(states.sum(), tensors)]
    assert shapes == [tensor.shape for tensor in tensors]


@pytest.mark.slow
def test_the_operator_passes_opcheck_and_export():
    tensors = gated_inputs(3, torch.float32, 0.0)
    x, input_gate, recurrence_gate, a_param, hidden = tensors
    rate = (-8.0 * torch.nn.functional.softplus(a_param)).detach().requires_grad_()
    torch.library.opcheck(
        gated_scan_op, (x, input_gate, recurrence_gate, rate, hidden, FRESH, 0.25 / MAX_SQRT_GRADIENT**2)
    )

    class Scan(torch.nn.Module):
        def forward(self, *given: torch.Tensor) -> torch.Tensor:
            return gated_scan_triton(*given)

    given = (*(tensor.detach() for tensor in tensors), FRESH)
    exported = torch.export.export(Scan(), given)
    assert "trecvit.gated_scan.default" in str(exported.graph)
    assert torch.equal(exported.module()(*given), Scan()(*given))
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert torch.equal(Scan()(*given), gated_scan_triton(*given))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from trecvit.model import scan_triton

CONSTANTS = {"BLOCK", "STAGES"}
for kernel, launch in ((scan_triton._forward, scan_triton.FORWARD), (scan_triton._backward, scan_triton.BACKWARD)):
    for dtype in ("fp32", "bf16", "fp16"):
        wide = {"x_ptr", "input_gate_ptr", "recurrence_gate_ptr", "grad_x_ptr", "grad_input_ptr", "grad_recurrence_ptr"}
        signature = {
            name: "constexpr" if name in CONSTANTS else f"*{dtype}" if name in wide else "*i8" if name == "fresh_ptr"
            else "*fp32" if name.endswith("_ptr") else "fp32" if name == "least_rest" else "i32"
            for name in kernel.arg_names
        }
        at = kernel.arg_names.index
        constants = {(at("BLOCK"),): launch.block, (at("STAGES"),): launch.stages}
        # As for the models' sizes: pointers and numbers of channels are multiples of 16.
        multiples = [(at(name),) for name in signature if name.endswith(("_ptr", "num_channels"))]
        source = ASTSource(kernel, signature, constants, {place: [["tt.divisibility", 16]] for place in multiples})
        for target in (GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32)):
            made = triton.compile(source, target=target, options={"num_warps": launch.num_warps})
            assembly = made.asm["ptx"]
            loads = [line for line in assembly.splitlines() if "ld.global" in line]
            assert loads, kernel
            # Offsets of frames and streams are multiplied in 64 bits: sizes may pass 2^31 elements.
            assert "mul.lo.s64" in assembly or "mad.lo.s64" in assembly, assembly
            # Inputs are copied to shared memory ahead of their turn, several numbers at a time.
            ahead = [line for line in assembly.splitlines() if "cp.async" in line and "shared.global" in line]
            assert len(ahead) >= 3, assembly
            assert made.metadata.shared <= 48 * 1024, made.metadata.shared
            print(kernel.__name__, dtype, target.arch, len(loads), len(ahead), made.metadata.shared)
        if dtype == "bf16":  # one frame of a stream: Triton makes a kernel for exactly one
            of_one = {**constants, (at("num_frames"),): 1}
            source = ASTSource(kernel, {**signature, "num_frames": "constexpr"}, of_one, source.attrs)
            assert "ld.global" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""


@pytest.mark.slow
def test_kernels_compile_for_nvidia_gpus(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, check=False,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 12
