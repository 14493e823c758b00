"""flash-linear-attention's kernel behind the gated scan: a stand-in of its signature, and itself where installed."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch
from models import relative_error
from test_scan import FRESH, gated_inputs

from trecvit.errors import ConfigError, MissingPackageError
from trecvit.model.scan import gated_scan, gated_scan_reference, linear_scan_reference, use_kernels

NAMES = ("states", "last", "d x", "d input_gate", "d recurrence_gate", "d a_param", "d hidden")


def fused_recurrent_hgrn(x, g, initial_state=None, output_final_state=False, cu_seqlens=None):
    """Takes and gives what fla-core 0.6.0 documents: `[B,T,D]` and `[B,D]`, states in the dtype of `x`."""
    assert cu_seqlens is None
    states, last = linear_scan_reference(g.float().exp(), x.float(), initial_state.float())
    return states.to(x.dtype), last.to(x.dtype) if output_final_state else None


@pytest.fixture
def own_kernels_after():
    yield
    use_kernels("own")


@pytest.fixture
def scan_fla(monkeypatch, own_kernels_after):
    """The adapter around the stand-in."""
    for name in ("fla", "fla.ops", "fla.ops.hgrn"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["fla.ops.hgrn"].fused_recurrent_hgrn = fused_recurrent_hgrn
    monkeypatch.delitem(sys.modules, "trecvit.model.scan_fla", raising=False)
    yield importlib.import_module("trecvit.model.scan_fla")
    sys.modules.pop("trecvit.model.scan_fla")


def outcome(scan, tensors, grad_states, grad_last):
    states = scan(*tensors, FRESH)
    states = states[0] if isinstance(states, tuple) else states
    loss = (states * grad_states).sum() + (states[:, -1] * grad_last).sum()
    return [states, states[:, -1], *torch.autograd.grad(loss, tensors)]


def check_every_gradient(scan, dtype, gate, num_frames):
    tensors = gated_inputs(num_frames, dtype, gate)
    grad_states, grad_last = torch.randn(tensors[0].shape), torch.randn(tensors[4].shape)
    results = [outcome(one, tensors, grad_states, grad_last) for one in (scan, gated_scan_reference)]
    for name, got, want in zip(NAMES, *results, strict=True):
        assert got.dtype == want.dtype, name
        assert relative_error(got, want) < (1e-5 if dtype == torch.float32 else 1e-2), name


LENGTHS_AND_GATES = [(1, 0.0), (17, -12.0), (17, 0.0), (17, 6.0), (130, 0.0)]


@pytest.mark.parametrize(("num_frames", "gate"), LENGTHS_AND_GATES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapter_matches_the_reference_in_every_gradient(scan_fla, dtype, gate, num_frames):
    check_every_gradient(scan_fla.gated_scan_fla, dtype, gate, num_frames)


@pytest.mark.filterwarnings("ignore")  # its own, about the CPU
@pytest.mark.parametrize(("num_frames", "gate"), [(1, 0.0), (17, -12.0), (17, 6.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flash_linear_attention_matches_the_reference_in_every_gradient(dtype, gate, num_frames):
    pytest.importorskip("fla.ops.hgrn", reason="flash-linear-attention is an extra")
    kernels = sys.modules["fla.ops.hgrn.fused_recurrent"]
    for kernel in (kernels.fused_recurrent_hgrn_fwd_kernel, kernels.fused_recurrent_hgrn_bwd_kernel):
        del kernel.fn.configs[1:]  # the interpreter cannot time them to choose
    check_every_gradient(importlib.import_module("trecvit.model.scan_fla").gated_scan_fla, dtype, gate, num_frames)


class OnGpu(torch.Tensor):
    """A tensor on the CPU that says something else."""

    is_cuda = True


def test_it_is_taken_on_gpus_for_float32_states_when_asked_for(scan_fla, monkeypatch):
    calls = []

    def noted(*args, **kwargs):
        calls.append(args)
        return fused_recurrent_hgrn(*args, **kwargs)

    monkeypatch.setattr(scan_fla, "fused_recurrent_hgrn", noted)
    monkeypatch.setattr("trecvit.model.scan._has_triton", lambda: False)

    def is_taken(kind, dtype=torch.float32):
        calls.clear()
        x, *rest = (tensor.detach() for tensor in gated_inputs(5, dtype, 0.0))
        states, last = gated_scan(x.as_subclass(kind), *rest, FRESH)
        assert relative_error(states, gated_scan_reference(x, *rest, FRESH)[0]) < 1e-5
        assert torch.equal(last, states[:, -1])
        return len(calls) == 1

    assert not is_taken(OnGpu)
    use_kernels("fla")
    assert is_taken(OnGpu)
    assert not is_taken(OnGpu, torch.float64)
    assert not is_taken(torch.Tensor)
    use_kernels("own")
    assert not is_taken(OnGpu)


def test_it_is_refused_where_it_is_not_installed_and_other_words_are_too(monkeypatch, own_kernels_after):
    monkeypatch.setitem(sys.modules, "fla.ops.hgrn", None)
    monkeypatch.delitem(sys.modules, "trecvit.model.scan_fla", raising=False)
    with pytest.raises(MissingPackageError, match=r"use_kernels\('fla'\) needs .*pip install 'trecvit\[fla\]'"):
        use_kernels("fla")
    with pytest.raises(ConfigError, match="expected one of own, fla, got 'flaa', did you mean 'fla'"):
        use_kernels("flaa")
