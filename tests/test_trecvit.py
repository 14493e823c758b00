from __future__ import annotations

import math

import pytest
import torch
from models import DEVICE, VARIANTS, random_video, relative_error, tiny_model

from trecvit.config import PRESETS, ModelConfig, Preprocessing, model_config
from trecvit.errors import ConfigError, InputError
from trecvit.model.lru import RGLRU, BlockDiagonalLinear, CausalConv, TemporalBlock
from trecvit.model.trecvit import TRecViT, attend, create_model, sincos_positions


def count_parameters(preset: str, **overrides: object) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(preset, **overrides).parameters())


@pytest.mark.parametrize(
    ("preset", "num_classes", "count"),
    [
        ("tiny", 174, 8_301_486),
        ("small", 174, 29_336_238),
        ("base", 174, 111_218_862),  # paper, Table 3: 111.3 M; counted layer by layer in millions: 111.219
        ("base", 400, 111_913_360),
        ("large", 174, 385_922_222),
        ("base_k400", 400, 136_778_128),  # the released checkpoint: 136.78 M
    ],
)
def test_presets_have_the_published_numbers_of_parameters(preset, num_classes, count):
    assert count_parameters(preset, num_classes=num_classes) == count


def test_presets_have_the_papers_sizes():
    sizes = {name: (c.depth, c.width, c.mlp_width, c.num_heads) for name, c in PRESETS.items()}
    assert sizes["small"] == (12, 384, 1536, 6)
    assert sizes["base"] == sizes["base_k400"] == (12, 768, 3072, 12)
    assert sizes["large"] == (24, 1024, 4096, 16)
    assert (PRESETS["base"].lru_multiplier, PRESETS["base"].min_radius) == (1, 0.6)
    assert (PRESETS["base_k400"].lru_multiplier, PRESETS["base_k400"].min_radius) == (2, 0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_of_the_output(variant):
    model = tiny_model(**VARIANTS[variant])
    out = model(random_video(2, 8))
    extent, num_tokens = model.config.temporal_patch_size, 6 + (model.config.pooling == "cls")
    assert out.features.shape == (2, 8 // extent, num_tokens, 16)
    if model.config.num_classes:
        assert out.logits.shape == out.probs.shape == (2, 5)
        torch.testing.assert_close(out.probs, out.logits.softmax(dim=1))
    else:
        assert out.logits is None
        assert out.probs is None


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_weight_matters(variant):
    model = tiny_model(**VARIANTS[variant])
    out = model(random_video(2, max(8, 2 * model.config.temporal_patch_size)))
    loss = out.features.square().sum() if out.logits is None else out.logits.square().sum()
    names = [name for name, _ in model.named_parameters()]
    for name, gradient in zip(names, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        if "qkv.bias" not in name:  # a bias of the keys cancels in the softmax, so part of it is rightly zero
            assert gradient.abs().max() > 0, name
        assert torch.isfinite(gradient).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("changed", [1, 4, 7])
def test_a_frame_changes_nothing_before_it(variant, changed):
    model = tiny_model(**VARIANTS[variant])
    video = random_video(1, 8)
    other = video.clone()
    other[:, changed] = 255 - other[:, changed]
    first = changed // model.config.temporal_patch_size
    before, after = model(video).features, model(other).features
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.equal(before[:, first], after[:, first])


def test_time_reaches_later_frames_only_through_the_temporal_part():
    video = random_video(1, 6)
    other = video.clone()
    other[:, 0] = 255 - other[:, 0]
    mixing, blind = tiny_model(), tiny_model(temporal_mixer="none")
    assert not torch.equal(mixing(video).features[:, -1], mixing(other).features[:, -1])
    assert torch.equal(blind(video).features[:, 1:], blind(other).features[:, 1:])


def test_videos_of_a_batch_do_not_see_each_other():
    model = tiny_model()
    video = random_video(3, 5)
    together = model(video).logits
    alone = torch.cat([model(video[row : row + 1]).logits for row in range(3)])
    assert relative_error(together, alone) < 1e-5


def test_evaluation_is_repeatable_and_keeps_its_input():
    model, video = tiny_model(), random_video()
    copy = video.clone()
    assert torch.equal(model(video).logits, model(video).logits)
    assert torch.equal(video, copy)


def test_uint8_and_floats_in_0_1_are_the_same_video():
    model, video = tiny_model(), random_video()
    assert torch.equal(model(video).logits, model(video.float() / 255).logits)


def test_clips_are_averaged_as_the_original_does():
    model, video = tiny_model(), random_video(2, 12)
    out = model(video, frames_per_clip=4)
    parts = [model(video[:, start : start + 4]) for start in (0, 4, 8)]
    torch.testing.assert_close(out.logits, torch.stack([part.logits for part in parts]).mean(dim=0))
    torch.testing.assert_close(out.probs, torch.stack([part.probs for part in parts]).mean(dim=0))
    torch.testing.assert_close(out.features, torch.cat([part.features for part in parts], dim=1))
    # Fewer frames than a clip are one clip; a length that clips do not divide is refused.
    assert torch.equal(model(video[:, :3], frames_per_clip=4).logits, model(video[:, :3]).logits)
    with pytest.raises(InputError, match="11 frames into 2 clips of unequal length"):
        model(video[:, :11], frames_per_clip=4)


def test_frames_beyond_the_last_whole_patch_are_not_used():
    model = tiny_model(temporal_patch_size=4)
    video = random_video(1, 11)
    assert torch.equal(model(video).logits, model(video[:, :8]).logits)
    with pytest.raises(InputError, match="at least temporal_patch_size=4 frames"):
        model(video[:, :3])


@pytest.mark.parametrize("positions", ["learned", "sincos2d"])
def test_other_image_sizes_interpolate_the_positions(positions):
    model = tiny_model(positions=positions)
    out = model(random_video(1, 3, height=32, width=8))
    assert out.features.shape == (1, 3, 4 * 1 + 1, 16)


def test_learned_positions_are_interpolated_when_the_grid_grows():
    model = tiny_model(image_size=(32, 32))
    ramp = torch.linspace(0, 1, 4, device=DEVICE)[:, None].expand(4, 4)  # grows downwards
    with torch.no_grad():
        model.tokenizer.positions.copy_(ramp.reshape(16, 1).expand(16, 16))
    grown = model.tokenizer._positions_for(8, 8).view(8, 8, 16)
    assert (grown.diff(dim=0) > 0).all()
    assert grown.diff(dim=1).abs().max() < 1e-5


def test_fixed_positions_are_sines_and_cosines_of_x_then_y():
    positions = sincos_positions(3, 5, 16)
    row, column = 2, 4
    frequencies = [10_000.0 ** -(k / 3) for k in range(4)]
    expected = [
        function(place * frequency)
        for place in (column, row)
        for function in (math.sin, math.cos)
        for frequency in frequencies
    ]
    torch.testing.assert_close(positions[row * 5 + column], torch.tensor(expected))


def test_plain_attention_equals_the_fused_kernel():
    queries, keys, values = torch.randn(3, 2, 4, 37, 8).to(DEVICE)
    expected = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
    heads = torch.stack([queries, keys, values])
    torch.testing.assert_close(attend(heads, max_plain_tokens=37), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attend(heads, max_plain_tokens=36), expected, rtol=0, atol=0)


def test_the_recurrence_is_float32_whatever_the_compute_dtype():
    model = tiny_model().to(torch.bfloat16)
    out, state = model.step(random_video(2, 3), model.init_state(2))
    assert out.features.dtype == torch.bfloat16
    assert out.logits.dtype == torch.float32
    assert state.evidence.dtype == torch.float32
    for layer in state.layers:
        assert layer.hidden.dtype == torch.float32
        assert layer.taps.dtype == torch.bfloat16
    exact = tiny_model()(random_video(2, 3)).logits
    assert relative_error(out.logits, exact) < 0.05


def test_autocast_keeps_the_logits_close():
    model, video = tiny_model(), random_video(2, 6)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        out, state = model.step(video, model.init_state(2))
    assert all(layer.hidden.dtype == torch.float32 for layer in state.layers)
    assert relative_error(out.logits, model(video).logits) < 0.05


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (torch.zeros(1, 2, 16, 24, 3, dtype=torch.uint8), r"\[B,T,C,H,W\].*movedim"),
        (torch.zeros(2, 3, 16, 24, dtype=torch.uint8), r"got \(2, 3, 16, 24\)"),
        (torch.zeros(1, 0, 3, 16, 24, dtype=torch.uint8), "T >= 1"),
        (torch.zeros(1, 2, 1, 16, 24, dtype=torch.uint8), "C = 3"),
        (torch.zeros(1, 2, 3, 16, 20, dtype=torch.uint8), "patch_size=8 divides, got 16x20"),
        (torch.zeros(1, 2, 3, 16, 24, dtype=torch.int32), "uint8, or floating point"),
        (torch.full((1, 2, 3, 16, 24), 200.0), r"\[0,1\], got values from 200 to 200"),
    ],
)
def test_wrong_videos_are_refused(video, words):
    model = tiny_model()
    # Called directly, because the tests' shape checker would raise first.
    with pytest.raises(InputError, match=words):
        model._check_frames(video)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"widht": 4}, "did you mean 'width'"),
        ({"num_heads": 5}, "divisor of width=768"),
        ({"patch_size": 15}, "multiple of patch_size=15"),
        ({"temporal_patch_size": 3}, "1, 2, 4 or 8"),
        ({"min_radius": 0.9999}, "min_radius < max_radius"),
        ({"positions": "rotary"}, "learned"),
        ({"depth": 0}, "whole number >= 1"),
        ({"depth": True}, "whole number >= 1"),
        ({"image_size": (224,)}, "height, width"),
        ({"num_heads": 768, "lru_complex": True}, "even number of channels per head"),
        ({"width": 6, "num_heads": 1, "positions": "sincos2d"}, "width that 4 divides"),
    ],
)
def test_impossible_configurations_are_refused(overrides, words):
    with pytest.raises(ConfigError, match=words):
        model_config("base", **overrides)


def test_unknown_presets_name_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'small'"):
        create_model("smal")
    with pytest.raises(ConfigError, match="3 labels, one per class, got 2") as error:
        create_model("tiny", num_classes=3, labels=["a", "b"])
    assert "expected" in str(error.value)


def test_configurations_survive_their_dictionary():
    config = ModelConfig(width=64, num_heads=4, image_size=(32, 48))
    assert ModelConfig.from_dict(config.to_dict()) == config
    plan = Preprocessing(image_size=(32, 48), frame_rate_fps=12.5)
    assert Preprocessing.from_dict(plan.to_dict()) == plan


def test_the_stride_follows_the_videos_rate():
    assert Preprocessing(frame_stride=2).stride_for(60.0) == 2
    plan = Preprocessing(frame_stride=2, frame_rate_fps=12)
    assert [plan.stride_for(fps) for fps in (None, 6.0, 12.0, 25.0, 30.0)] == [2, 1, 1, 2, 2]


# ---- initialisation: each number of the paper and the code ----


@pytest.mark.slow
def test_initial_eigenvalues_are_uniform_on_the_ring():
    lru = RGLRU(ModelConfig(width=8192, num_heads=1, min_radius=0.6))
    radius = torch.sigmoid(-lru.a_param.detach().double())
    assert 0.6 <= radius.min() < 0.61
    assert 0.998 < radius.max() <= 0.9991
    squared = (radius.square() - 0.36) / (0.999**2 - 0.36)  # uniform in [0, 1]
    assert abs(float(squared.mean()) - 0.5) < 0.02
    assert abs(float(squared.std()) - 12**-0.5) < 0.01


def test_initial_phases_of_complex_eigenvalues():
    lru = RGLRU(ModelConfig(width=4096, num_heads=1, lru_complex=True))
    assert lru.a_imag_param.shape == (2048,)
    assert lru.a_imag_param.min() >= 0.0
    assert 0.3 < lru.a_imag_param.max() <= 0.1 * math.pi


def deviation(weight: torch.Tensor) -> float:
    return float(weight.detach().std())


def largest(weight: torch.Tensor) -> float:
    return float(weight.detach().abs().max())


@pytest.mark.slow
def test_initial_weights_have_the_codes_deviations():
    block = TemporalBlock(ModelConfig(depth=8, temporal_mlp=True))
    assert deviation(block.linear_x.weight) == pytest.approx(768**-0.5, rel=0.02)
    assert deviation(block.linear_y.weight) == pytest.approx(768**-0.5, rel=0.02)
    assert deviation(block.linear_out.weight) == pytest.approx((2 / 8 / 768) ** 0.5, rel=0.02)
    assert deviation(block.mlp.down.weight) == pytest.approx((2 / 8 / 3072) ** 0.5, rel=0.02)
    # JAX counts block and branch axes into the fan-in: measured on jax 0.10.2 with variance_scaling(1, "fan_in").
    assert deviation(BlockDiagonalLinear(768, 768, 12).weight) == pytest.approx(768**-0.5, rel=0.02)
    assert deviation(block.mlp.gate.weight) == pytest.approx((0.5 / 768) ** 0.5, rel=0.02)
    assert deviation(CausalConv(4096, 4).weight) == pytest.approx((0.01 / 4) ** 0.5, rel=0.05)
    for bias in (block.linear_x.bias, block.linear_out.bias, block.conv.bias, block.lru.a_gate.bias, block.norm.scale):
        assert not bias.any()

    model = TRecViT(ModelConfig(depth=1, num_classes=400))
    spatial, head, tokenizer = model.blocks[0].spatial, model.head, model.tokenizer
    limit = (6 / (2 * 768)) ** 0.5  # Xavier-uniform of one 768 x 768 kernel, not of the three stacked
    assert largest(spatial.qkv.weight) == pytest.approx(limit, rel=0.01)
    assert largest(spatial.mlp_up.weight) == pytest.approx((6 / (768 + 3072)) ** 0.5, rel=0.01)
    assert 0 < deviation(spatial.mlp_up.bias) < 2e-6
    assert not spatial.qkv.bias.any()
    for linear in (tokenizer.embedding, head.pre_logits, head.classifier):
        assert deviation(linear.weight) == pytest.approx(linear.in_features**-0.5, rel=0.02)
        assert not linear.bias.any()
    assert deviation(tokenizer.positions) == pytest.approx(768**-0.5, rel=0.02)
    assert not tokenizer.cls.any()


def test_the_convolution_is_causal_and_passes_gradcheck():
    conv = CausalConv(3, 4).double().to(DEVICE)
    x, taps = (torch.randn(2, size, 2, 3, dtype=torch.float64).to(DEVICE).requires_grad_() for size in (5, 3))
    weight, bias = (tensor.detach().clone().requires_grad_() for tensor in (conv.weight, conv.bias))

    def convolve(x, taps, weight, bias):
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (x, taps))

    y, after = convolve(x, taps, weight, bias)
    window = torch.cat([taps, x], dim=1)
    for frame in range(5):  # tap 3 is the current frame, tap 0 three frames before
        expected = bias + sum(weight[tap] * window[:, frame + tap] for tap in range(4))
        torch.testing.assert_close(y[:, frame], expected)
    assert torch.equal(after, window[:, -3:])
    assert torch.autograd.gradcheck(convolve, (x, taps, weight, bias))
