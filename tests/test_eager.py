"""The parts of eager inference equal the parts that they replace."""

from __future__ import annotations

import copy

import pytest
import torch
from models import random_video, relative_error, tiny_model

from trecvit.accelerate.eager import EagerConv, EagerRGLRU, UnitNorm, fold_norms
from trecvit.accelerate.gates import JoinedRGLRU
from trecvit.accelerate.optimize import for_inference, optimize
from trecvit.config import ModelConfig
from trecvit.model.lru import RGLRU, CausalConv, LayerState, TemporalBlock

CONFIG = ModelConfig(width=48, num_heads=3, mlp_width=64, depth=2, temporal_mlp=True)
RECURRENT = {"float32": 1e-6, "bfloat16": 0.01}


def trained(module):
    """With no parameter left at zero or one."""
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module.requires_grad_(False)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_folded_norms_and_the_layers_after_them_give_the_same_results(size):
    block = trained(TemporalBlock(CONFIG))
    folded = copy.deepcopy(block)
    fold_norms(folded)
    assert isinstance(folded.norm, UnitNorm)
    assert isinstance(folded.mlp_norm, UnitNorm)
    x = size * (torch.randn(2, 3, 5, CONFIG.width) + 1.0)  # 1e-3 is where the norm's eps counts
    for norm, maps in (("norm", ("linear_y", "linear_x")), ("mlp_norm", ("mlp.gate", "mlp.up"))):
        for name in maps:
            expected, found = (one.get_submodule(name)(one.get_submodule(norm)(x)) for one in (block, folded))
            assert relative_error(found, expected) < 1e-6, name
    state = LayerState(torch.randn(2, 5, CONFIG.lru_width), torch.randn(2, 3, 5, CONFIG.lru_width))
    expected, found = (one(x, state, torch.zeros(2, dtype=torch.bool))[0] for one in (block, folded))
    assert relative_error(found, expected) < 2e-6


def test_a_unit_norm_of_bfloat16_rounds_only_its_result():
    x = torch.randn(1, 2, 7, 48).to(torch.bfloat16)
    exact = x.double() / (x.double().square().sum(-1, keepdim=True) + 48e-6).sqrt()
    assert relative_error(UnitNorm()(x), exact) < 2**-8
    assert torch.equal(UnitNorm()(torch.zeros_like(x)), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_taps", [1, 2, 4])
def test_the_convolution_without_a_window_is_bit_exact(num_taps, dtype):
    conv = trained(CausalConv(24, num_taps)).to(dtype)
    fast = EagerConv(conv)
    taps = torch.randn(2, num_taps - 1, 5, 24).to(dtype)
    for num_frames in (1, 1, 3):
        x, before = torch.randn(2, num_frames, 5, 24).to(dtype), taps.clone()
        (expected, after), (found, found_after) = conv(x, taps), fast(x, taps)
        assert torch.equal(found, expected)
        assert torch.equal(found_after, after)
        assert torch.equal(taps, before)
        assert found_after.is_contiguous()
        taps = found_after


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("num_frames", [1, 3])
def test_the_recurrence_to_the_base_2_equals_the_recurrence(num_frames, dtype):
    lru = trained(RGLRU(CONFIG))
    exact = copy.deepcopy(lru).double()
    lru.to(getattr(torch, dtype)).a_param.data = exact.a_param.float()
    x, hidden = torch.randn(3, num_frames, 5, CONFIG.lru_width), torch.randn(3, 5, CONFIG.lru_width)
    x, before = x.to(getattr(torch, dtype)), hidden.clone()
    for fresh in (torch.tensor([True, False, True]), torch.zeros(3, dtype=torch.bool)):
        expected, last = exact(x.double(), hidden.double(), fresh)
        found, found_last = EagerRGLRU(JoinedRGLRU(lru))(x, hidden, fresh)
        assert (found.dtype, found_last.dtype) == (x.dtype, torch.float32)
        assert relative_error(found, expected) < RECURRENT[dtype]
        assert relative_error(found_last, last) < RECURRENT[dtype]
        assert torch.equal(hidden, before)


def test_no_digits_are_lost_for_decays_near_one():
    lru = RGLRU(CONFIG).requires_grad_(False)
    lru.a_param.data = torch.linspace(-16.0, -8.0, CONFIG.lru_width)  # a between 1 - 1e-6 and 1 - 3e-3
    exact = copy.deepcopy(lru).double()
    x, hidden = torch.randn(1, 1, 5, CONFIG.lru_width), torch.zeros(1, 5, CONFIG.lru_width)
    fresh = torch.zeros(1, dtype=torch.bool)
    (found, _), (expected, _) = (
        EagerRGLRU(JoinedRGLRU(lru))(x, hidden, fresh),
        exact(x.double(), hidden.double(), fresh),
    )
    # Relative to each value: computing 1 - a^2 as written would be wrong by a tenth in the first channels.
    assert ((found - expected) / expected).abs().max() < 1e-5


def test_only_eager_inference_on_the_cpu_has_these_parts():
    model = trained(tiny_model())
    fast = optimize(model)
    kinds = {type(module) for module in fast.modules()}
    assert {UnitNorm, EagerConv, EagerRGLRU} <= kinds
    assert not {UnitNorm, EagerConv, EagerRGLRU} & {type(module) for module in model.modules()}
    assert not {UnitNorm, EagerConv, EagerRGLRU} & {
        type(m) for m in for_inference(model, torch.float32, "compile").modules()
    }
    assert RGLRU not in kinds
    assert relative_error(fast(random_video()).features, model(random_video()).features) < 1e-5
