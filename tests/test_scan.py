from __future__ import annotations

import numpy as np
import oracle
import pytest
import torch
from models import DEVICE, relative_error
from torch import Tensor

from trecvit.config import ModelConfig
from trecvit.errors import InputError
from trecvit.model.lru import RGLRU
from trecvit.model.scan import (
    MAX_SQRT_GRADIENT,
    _check,
    bounded_sqrt,
    gated_scan,
    gated_scan_reference,
    linear_scan,
    linear_scan_reference,
)

# Ranges of the decay. Products of the small ones underflow long before 200 frames, which is where divisions by them
# go wrong; the large ones add up errors for longest.
DECAYS = {"near 0": (0.0, 1e-3), "anything": (0.0, 1.0), "near 1": (0.999, 1.0)}
LENGTHS = [1, 2, 3, 17, 64, 200]
FLOAT32 = 2e-6  # relative to the largest value; 200 additions of float32 numbers
FLOAT64 = 1e-13


def array(tensor: Tensor) -> np.ndarray:
    """As the oracle takes it."""
    return tensor.detach().double().cpu().numpy()


def scan_inputs(low: float, high: float, num_frames: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_frames)
    decay = low + (high - low) * torch.rand(3, num_frames, 10, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3, num_frames, 10, generator=generator, dtype=torch.float64)
    initial = torch.randn(3, 10, generator=generator, dtype=torch.float64)
    return [tensor.to(DEVICE, dtype).requires_grad_() for tensor in (decay, inputs, initial)]


@pytest.mark.parametrize("num_frames", LENGTHS)
@pytest.mark.parametrize("decays", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scan", [linear_scan, linear_scan_reference])
def test_scan_and_every_gradient_match_the_oracle(scan, dtype, decays, num_frames):
    tensors = scan_inputs(*DECAYS[decays], num_frames, dtype)
    grad_states, grad_last = (torch.randn(3, *size, dtype=dtype).to(DEVICE) for size in ((num_frames, 10), (10,)))

    states, last = scan(*tensors)
    gradients = torch.autograd.grad((states * grad_states).sum() + (last * grad_last).sum(), tensors)

    arrays = [array(tensor) for tensor in tensors]
    expected = oracle.scan(*arrays)
    expected_gradients = oracle.scan_gradients(*arrays, array(grad_states), array(grad_last))
    tolerance = FLOAT32 if dtype == torch.float32 else FLOAT64
    names = ("states", "last", "d decay", "d inputs", "d initial")
    for name, got, want in zip(names, (states, last, *gradients), (*expected, *expected_gradients), strict=True):
        assert relative_error(got, torch.from_numpy(np.asarray(want))) < tolerance, name


def test_complex_scan_matches_its_reference_in_every_gradient():
    def inputs() -> list[Tensor]:
        generator = torch.Generator().manual_seed(3)
        phases = torch.randn(2, 30, 7, generator=generator)
        decay = torch.polar(torch.rand(2, 30, 7, generator=generator), phases)
        values = torch.randn(2, 30, 7, generator=generator, dtype=torch.complex64)
        initial = torch.randn(2, 7, generator=generator, dtype=torch.complex64)
        return [tensor.to(DEVICE).requires_grad_() for tensor in (decay, values, initial)]

    weight = torch.randn(2, 30, 7, dtype=torch.complex64).to(DEVICE)
    results = []
    for scan in (linear_scan, linear_scan_reference):
        tensors = inputs()
        states, last = scan(*tensors)
        loss = (states * weight).real.sum() + last.abs().sum()
        results.append([states, last, *torch.autograd.grad(loss, tensors)])
    for name, got, want in zip(("states", "last", "d decay", "d inputs", "d initial"), *results, strict=True):
        assert relative_error(got, want) < 1e-5, name


def test_scan_continues_from_its_last_state_and_keeps_its_arguments():
    tensors = [tensor.detach() for tensor in scan_inputs(0.0, 1.0, 20, torch.float32)]
    copies = [tensor.clone() for tensor in tensors]
    decay, inputs, initial = tensors
    whole, _ = linear_scan(decay, inputs, initial)
    first, middle = linear_scan(decay[:, :7], inputs[:, :7], initial)
    second, _ = linear_scan(decay[:, 7:], inputs[:, 7:], middle)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


def test_mismatched_shapes_and_dtypes_are_refused():
    decay, inputs, initial = (tensor.detach() for tensor in scan_inputs(0.0, 1.0, 4, torch.float32))
    # Called directly, because the tests' shape checker would raise first.
    with pytest.raises(InputError, match=r"inputs \(3, 3, 10\), initial \(3, 10\)"):
        _check(decay, inputs[:, :3], initial)
    with pytest.raises(InputError, match="T >= 1"):
        _check(decay[:, :0], inputs[:, :0], initial)
    with pytest.raises(InputError, match="one dtype"):
        _check(decay, inputs, initial.double())


def gated_inputs(num_frames: int, dtype: torch.dtype, gate: float, width: int = 6) -> list[Tensor]:
    """Arguments of the gated scan; `gate` moves the recurrence gates, so decays go near 1 (-) or near 0 (+)."""
    generator = torch.Generator().manual_seed(num_frames)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    recurrent = torch.float64 if dtype == torch.float64 else torch.float32
    x, input_gate = normal(3, num_frames, 4, width), normal(3, num_frames, 4, width)
    recurrence_gate = normal(3, num_frames, 4, width) + gate
    a_param, hidden = 2.0 * normal(width), normal(3, 4, width)
    hidden[[0, 2]] = 0.0
    return [
        *(tensor.to(DEVICE, dtype).requires_grad_() for tensor in (x, input_gate, recurrence_gate)),
        *(tensor.to(DEVICE, recurrent).requires_grad_() for tensor in (a_param, hidden)),
    ]


FRESH = torch.tensor([True, False, True]).to(DEVICE)


@pytest.mark.parametrize("num_frames", [1, 2, 17, 200])
@pytest.mark.parametrize("gate", [-12.0, 0.0, 6.0])
def test_gated_scan_matches_the_oracle(gate, num_frames):
    tensors = gated_inputs(num_frames, torch.float32, gate)
    states, last = gated_scan(*tensors, FRESH)
    expected = oracle.rg_lru(*map(array, tensors), FRESH.cpu().numpy())
    assert relative_error(states, torch.from_numpy(expected)) < 5e-6
    assert torch.equal(last, states[:, -1])


@pytest.mark.slow
@pytest.mark.parametrize("num_frames", [1, 2, 17, 200])
@pytest.mark.parametrize("gate", [-12.0, 0.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_gated_scan_matches_its_reference_in_every_gradient(dtype, gate, num_frames):
    tensors = gated_inputs(num_frames, dtype, gate)
    generator = torch.Generator().manual_seed(1)
    grad_states = torch.randn(tensors[0].shape, generator=generator).to(tensors[4])
    grad_last = torch.randn(tensors[4].shape, generator=generator).to(tensors[4])
    results = []
    for scan in (gated_scan, gated_scan_reference):
        states, last = scan(*tensors, FRESH)
        loss = (states * grad_states).sum() + (last * grad_last).sum()
        results.append([states, last, *torch.autograd.grad(loss, tensors)])
    # bfloat16: the gates' gradients are rounded to 8 bits at the very end, and may fall to either side.
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-2}[dtype]
    names = ("states", "last", "d x", "d input_gate", "d recurrence_gate", "d a_param", "d hidden")
    for name, got, want in zip(names, *results, strict=True):
        assert got.dtype == want.dtype, name
        assert relative_error(got, want) < tolerance, name


@pytest.mark.parametrize("num_frames", [1, 2, 17, 64])
@pytest.mark.parametrize("gate", [-6.0, 0.0, 6.0])
def test_every_gradient_of_gated_scan_matches_the_oracle(gate, num_frames):
    tensors = gated_inputs(num_frames, torch.float32, gate)
    grad_states = torch.randn(tensors[0].shape).to(DEVICE)
    states, _ = gated_scan(*tensors, FRESH)
    gradients = torch.autograd.grad((states * grad_states).sum(), tensors)
    expected = oracle.rg_lru_gradients(*map(array, tensors), FRESH.cpu().numpy(), array(grad_states))
    names = ("x", "input_gate", "recurrence_gate", "a_param", "hidden")
    for name, got, want in zip(names, gradients, expected, strict=True):
        assert relative_error(got, torch.from_numpy(want)) < 1e-5, name


def test_complex_recurrence_matches_the_oracle():
    config = ModelConfig(width=8, depth=1, num_heads=2, lru_complex=True, image_size=16)
    lru = RGLRU(config).double().to(DEVICE)
    x = torch.randn(3, 20, 4, 8, dtype=torch.float64).to(DEVICE)
    states, last = lru(x, x.new_zeros(3, 4, 8), FRESH)
    gates = (lru.input_gate(x), lru.a_gate(x), lru.a_param, lru.a_imag_param)
    expected = oracle.complex_rg_lru(array(x), *map(array, gates), FRESH.cpu().numpy())
    assert relative_error(states, torch.from_numpy(expected)) < 1e-12
    assert torch.equal(last, states[:, -1])


@pytest.mark.slow
def test_gated_scan_passes_gradcheck():
    tensors = gated_inputs(4, torch.float64, 0.0, width=2)
    assert torch.autograd.gradcheck(lambda *args: gated_scan(*args, FRESH), tensors)


def test_the_square_roots_gradient_is_bounded():
    x = torch.tensor([0.0, 1e-12, 0.25 / MAX_SQRT_GRADIENT**2, 0.04, 1.0], device=DEVICE, requires_grad=True)
    root = bounded_sqrt(x)
    (gradient,) = torch.autograd.grad(root.sum(), x)
    assert torch.equal(root, x.sqrt())
    expected = torch.tensor([MAX_SQRT_GRADIENT, MAX_SQRT_GRADIENT, MAX_SQRT_GRADIENT, 2.5, 0.5])
    torch.testing.assert_close(gradient.cpu(), expected, rtol=1e-5, atol=0.0)


def test_gradients_stay_finite_when_a_decay_reaches_one():
    tensors = gated_inputs(5, torch.float32, -200.0)  # sigmoid underflows to 0, so that a is exactly 1
    states, _ = gated_scan(*tensors, FRESH)
    for gradient in torch.autograd.grad(states.sum(), tensors):
        assert torch.isfinite(gradient).all()


def test_the_last_state_does_not_keep_the_others_alive():
    x, hidden = torch.rand(2, 5, 3, 4).to(DEVICE), torch.zeros(2, 3, 4, device=DEVICE)
    fresh = torch.ones(2, dtype=torch.bool, device=DEVICE)
    with torch.no_grad():
        states, last = gated_scan(x, x, x, torch.rand(4).to(DEVICE), hidden, fresh)
    assert torch.equal(last, states[:, -1])
    assert last.untyped_storage().nbytes() == last.nbytes
