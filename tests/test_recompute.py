"""Training with less memory: the values and gradients of plain autograd with fewer saved activations."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import TINY, VARIANTS
from plain_autograd import plain_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from trecvit.config import ModelConfig, model_config
from trecvit.model.trecvit import TRecViT

WAYS = ("nothing", "cheap", "blocks")


def gradients(model: TRecViT, video: torch.Tensor) -> list[torch.Tensor]:
    out = model(video)
    loss = out.features.float().square().mean()
    if out.logits is not None:
        loss = loss + out.logits.logsumexp(dim=-1).sum()
    return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_value_and_every_gradient_are_those_of_plain_autograd(name):
    torch.manual_seed(0)
    model = TRecViT(ModelConfig(**{**TINY, **VARIANTS[name]})).double()
    video = torch.rand(2, 8, 3, 16, 24, dtype=torch.float64)
    with plain_autograd():
        expected = gradients(model, video)
    for what in WAYS:
        model.recompute = what
        names = ["loss", *(name for name, _ in model.named_parameters())]
        for name, reference, got in zip(names, expected, gradients(model, video), strict=True):
            if reference is None:  # parameters that this variant does not use
                assert got is None, name
            else:
                torch.testing.assert_close(got, reference, rtol=1e-9, atol=1e-12, msg=f"{what}: {name}")


@pytest.mark.parametrize("what", WAYS[1:])
def test_in_bfloat16_recomputing_gives_the_same_bits(what):
    torch.manual_seed(0)
    model = TRecViT(ModelConfig(**TINY))
    video = torch.rand(2, 6, 3, 16, 24)
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients(model, video)
        model.recompute = what
        got = gradients(model, video)
    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))


def test_a_stage_is_recomputed_but_not_the_linear_layer_at_its_end():
    torch.manual_seed(0)
    model = TRecViT(ModelConfig(**TINY))
    video = torch.rand(1, 4, 3, 16, 24)
    block = model.blocks[0]
    parts = {
        "norm": block.spatial.attention_norm,
        "qkv": block.spatial.qkv,
        "down": block.spatial.mlp_down,
        "out": block.temporal.linear_out,
    }
    # Recomputation ends before the matrix multiplication of a layer that ends a stage, and so before its hook.
    counts = dict.fromkeys(parts, 0)
    for name, module in parts.items():
        module.register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
    model.recompute = "cheap"
    model(video).logits.sum().backward()
    assert counts == {"norm": 2, "qkv": 1, "down": 1, "out": 1}


def peak_of_a_step(what: str) -> int:
    """Peak bytes of all live tensors, counted on fake tensors."""
    config = model_config("small", num_classes=4, depth=4)  # with fewer, a single block would count too much
    with torch.device("meta"):
        model = TRecViT(config)
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(torch.empty(weight.shape)))
        model.recompute = what
        video = torch.zeros(1, 16, 3, *config.image_size, dtype=torch.uint8)
        tracker = MemTracker()
        tracker.track_external(model)
        with tracker:
            model.train()(video).logits.sum().backward()
    return int(sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot("peak").values()))


@pytest.mark.slow
def test_a_training_step_needs_less_than_half_of_plain_autograds_memory():
    with plain_autograd():
        plain_bytes = peak_of_a_step("nothing")
    assert peak_of_a_step("cheap") < 0.5 * plain_bytes


@pytest.mark.slow
def test_less_than_half_is_measured_too():
    program = Path(__file__).parent / "plain_autograd.py"
    measured = {
        what: int(subprocess.run([sys.executable, program, what], capture_output=True, text=True, check=True).stdout)
        for what in ("plain", "cheap")
    }
    assert measured["cheap"] < 0.5 * measured["plain"], measured


@pytest.mark.slow
def test_recompute_is_one_of_three_values(forks):
    run = forks.run("from trecvit.train.sections import Optimisation; Optimisation(num_steps=1, recompute='all')")
    assert "ConfigError: optimisation.recompute: expected one of nothing, cheap, blocks, got 'all'" in run.stderr
