"""Weights stored in 8 bits: error, size after compression, and folders that hold them."""

from __future__ import annotations

import zlib

import pytest
import torch

from trecvit.model.trecvit import TRecViT, create_model
from trecvit.pretrained import WEIGHTS_FILE
from trecvit.quantised import dequantise, quantise


def test_the_error_is_that_of_rounding():
    torch.manual_seed(0)
    tensors = {"a.weight": torch.randn(64, 128) * torch.logspace(-4, 2, 64)[:, None], "a.bias": torch.randn(64)}
    restored = dequantise(quantise(tensors, step=0.15))
    assert restored.keys() == tensors.keys()
    error = (restored["a.weight"] - tensors["a.weight"]).square().mean(dim=1).sqrt()
    size = tensors["a.weight"].square().mean(dim=1).sqrt()
    torch.testing.assert_close(error / size, torch.full((64,), 0.15 / 12**0.5), rtol=0.2, atol=0.0)
    assert torch.equal(restored["a.bias"], tensors["a.bias"].half())


def test_rows_of_zeros_and_large_values():
    matrix = torch.zeros(64, 64)
    matrix[1, 0], matrix[2] = 1000.0, 1e-3
    restored = dequantise(quantise({"w": matrix}, step=0.15))["w"]
    assert torch.equal(restored[0], matrix[0])
    assert restored[1, 0] == pytest.approx(1000.0, rel=0.01)
    torch.testing.assert_close(restored[2], matrix[2], rtol=0.08, atol=0.0)


def test_shapes_of_more_axes_and_names_that_end_alike():
    tensors = {"gate.weight": torch.randn(4, 32, 32), "gate.weight_more": torch.randn(8, 1024)}
    restored = dequantise(quantise(tensors, step=0.01))
    assert {name: tensor.shape for name, tensor in restored.items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }


def test_small_numbers_compress_to_little_more_than_five_bits():
    torch.manual_seed(0)
    stored = quantise({"w": torch.randn(256, 384)}, step=0.15)["w"]
    packed = zlib.compress(stored.numpy().tobytes(), 6)
    assert len(packed) * 8 / stored.numel() < 5.4


def test_a_folder_is_a_quarter_and_loads_as_any_other(tmp_path):
    model = create_model("tiny", depth=2, width=64, num_heads=2, head_width=64, num_classes=3, image_size=32).eval()
    whole, small = model.save(tmp_path / "whole") / WEIGHTS_FILE, model.save(tmp_path / "small", int8_step=0.05)
    assert (small / WEIGHTS_FILE).stat().st_size < 0.3 * whole.stat().st_size
    loaded = TRecViT.load(small)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    video = torch.rand(1, 3, 3, 32, 32)
    with torch.no_grad():
        expected, got = model(video).logits, loaded(video).logits
    assert 0 < (got - expected).abs().max() < 0.05 * expected.abs().max().clamp(min=1)
    again = loaded.save(tmp_path / "again")
    assert torch.equal(TRecViT.load(again)(video).logits, loaded(video).logits)
