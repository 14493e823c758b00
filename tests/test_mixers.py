"""The paper's other temporal mixers and ablations against their equations; test_streaming tests their streaming."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from models import TINY, random_video, relative_error, tiny_model
from torch import Tensor

from trecvit.accelerate.optimize import optimize
from trecvit.bench.speed import measure
from trecvit.config import ModelConfig
from trecvit.errors import CheckpointError, ConfigError, StateError
from trecvit.model.lru import LayerState, TemporalBlock, UngatedLRU
from trecvit.model.mixers import TemporalAttention, TemporalConv, TemporalLSTM, TemporalPositions, temporal_part
from trecvit.model.scan import linear_scan_reference
from trecvit.model.state import State, empty_layers
from trecvit.model.tapnext import TrackerConfig
from trecvit.model.trecvit import TRecViT, create_model
from trecvit.runtime.describe import describe, flops_per_frame
from trecvit.weights.load import convert, load

MIXERS = ("lru", "attention", "lstm", "conv")
B, T, N, D = 2, 5, 3, 16


def part(mixer: str, **overrides: object) -> tuple[torch.nn.Module, Tensor, LayerState]:
    """A temporal mixer without zero weights, input frames and a non-zero state, in float64."""
    config = ModelConfig(**{**TINY, "temporal_mixer": mixer, **overrides})
    module = temporal_part(config).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    (layer, _) = empty_layers(config, B, N, device=torch.device("cpu"), dtype=torch.float64)
    state = LayerState(*(torch.randn_like(tensor).requires_grad_() for tensor in layer))
    return module, torch.randn(B, T, N, D, dtype=torch.float64, requires_grad=True), state


def rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * (1 + scale)


def lstm_by_hand(module: TemporalLSTM, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
    weights, (output, cell), outputs = module.lstm, state.hidden.chunk(2, dim=-1), []
    for frame in rms_norm(x, module.norm.scale).unbind(dim=1):
        gates = frame @ weights.weight_ih_l0.T + weights.bias_ih_l0
        gates = gates + output @ weights.weight_hh_l0.T + weights.bias_hh_l0
        into, forget, candidate, out = gates.chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + into.sigmoid() * candidate.tanh()
        output = out.sigmoid() * cell.tanh()
        outputs.append(output)
    return x + torch.stack(outputs, dim=1), LayerState(torch.cat([output, cell], dim=-1), state.taps)


def conv_by_hand(module: TemporalConv, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
    kernel, bias = module.convolution.weight[..., 0], module.convolution.bias
    seen = torch.cat([state.taps, rms_norm(x, module.norm.scale)], dim=1)
    frames = [sum(seen[:, t + k] @ kernel[:, :, k].T for k in range(kernel.shape[2])) + bias for t in range(x.shape[1])]
    return x + torch.stack(frames, dim=1), LayerState(state.hidden, seen[:, x.shape[1] :])


def attention_by_hand(module: TemporalAttention, x: Tensor, state: LayerState) -> tuple[Tensor, LayerState]:
    normed = torch.nn.functional.layer_norm(x, (D,), module.norm.weight, module.norm.bias, eps=1e-6)
    queries, keys, values = (normed @ module.qkv.weight.T + module.qkv.bias).chunk(3, dim=-1)
    width, heads = D // module.num_heads, []
    for head in range(module.num_heads):
        q, k, v = (tensor[..., head * width : (head + 1) * width] for tensor in (queries, keys, values))
        weights = (torch.einsum("btnd,bsnd->bnts", q, k) / width**0.5).softmax(dim=-1)
        heads.append(torch.einsum("bnts,bsnd->btnd", weights, v))
    return x + torch.cat(heads, dim=-1) @ module.out.weight.T + module.out.bias, state


@pytest.mark.parametrize(
    ("mixer", "by_hand"), [("lstm", lstm_by_hand), ("conv", conv_by_hand), ("attention", attention_by_hand)]
)
def test_each_mixer_equals_its_equations_with_every_gradient(mixer, by_hand):
    module, x, state = part(mixer)
    results = []
    for compute in (
        lambda x, state: module(x, state, torch.zeros(B, dtype=torch.bool)),
        lambda *a: by_hand(module, *a),
    ):
        y, after = compute(x, state)
        inputs = {"x": x, "hidden": state.hidden, "taps": state.taps, **dict(module.named_parameters())}
        given = [*module.parameters(), x, *(tensor for tensor in state if tensor.numel())]
        loss = (y * torch.arange(y.numel()).view_as(y)).sum() + after.hidden.square().sum() + after.taps.square().sum()
        gradients = torch.autograd.grad(loss, given)
        results.append([y, *after, *gradients])
    assert len(inputs) >= 5
    for got, expected in zip(*results, strict=True):
        assert relative_error(got, expected) < 1e-10


def test_the_lstms_kernel_for_float32_has_the_same_gradients():
    """oneDNN's kernel, which does not take float64."""
    module, x, state = part("lstm")
    module, x, state = module.float(), x.float(), LayerState(state.hidden.float(), state.taps.float())
    fresh = torch.zeros(B, dtype=torch.bool)
    weights = list(module.parameters())
    got = torch.autograd.grad(module(x, state, fresh)[0].square().sum(), weights)
    expected = torch.autograd.grad(lstm_by_hand(module, x, state)[0].square().sum(), weights)
    for one, other in zip(got, expected, strict=True):
        assert relative_error(one, other) < 1e-5


def test_without_gates_it_equals_the_plain_recurrence_with_every_gradient():
    lru = UngatedLRU(ModelConfig(**TINY)).double()
    x, hidden = torch.randn(B, T, N, D).double().requires_grad_(), torch.randn(B, N, D).double().requires_grad_()
    fresh = torch.tensor([True, False])
    hidden.data[0] = 0.0

    def by_hand(x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.sigmoid(-lru.a_param)
        scale = (1 - a.square()).sqrt().expand(B, T, N, D).clone()
        scale[0, 0] = 1.0
        inputs = (scale * x).flatten(2)
        states, last = linear_scan_reference(a.expand(B, T, N, D).flatten(2), inputs, hidden.flatten(1))
        return states.view_as(x), last.view_as(hidden)

    results = []
    for compute in (lambda: lru(x, hidden, fresh), lambda: by_hand(x, hidden)):
        states, last = compute()
        loss = states.square().sum() + last.sum()
        results.append([states, last, *torch.autograd.grad(loss, [x, hidden, lru.a_param])])
    for got, expected in zip(*results, strict=True):
        assert relative_error(got, expected) < 1e-10
    radius = torch.sigmoid(-UngatedLRU(ModelConfig(width=8192, num_heads=1)).a_param)
    assert 0.6 <= radius.min() < 0.61
    assert 0.998 < radius.max() <= 0.9991


@pytest.mark.parametrize("mixer", MIXERS)
def test_without_the_skip_the_input_is_not_added(mixer):
    module, x, state = part(mixer)
    fresh = torch.zeros(B, dtype=torch.bool)
    with_skip, after = module(x, state, fresh)
    module.skip = False
    without, same = module(x, state, fresh)
    torch.testing.assert_close(without + x, with_skip)
    assert all(torch.equal(one, other) for one, other in zip(after, same, strict=True))
    assert not temporal_part(ModelConfig(temporal_mixer=mixer, temporal_skip=False)).skip


def test_attention_depends_on_later_frames_and_their_order():
    model, video = tiny_model(temporal_mixer="attention"), random_video(1, 6)
    other = video.clone()
    other[:, 5] = 255 - other[:, 5]
    assert not torch.equal(model(video).features[:, 0], model(other).features[:, 0])
    backwards = video.flip(1)
    assert relative_error(model(backwards).logits, model(video).logits) > 1e-3
    with torch.no_grad():
        model.tokenizer.time.positions.zero_()
    assert relative_error(model(backwards).logits, model(video).logits) < 1e-5


def test_positions_of_a_clip_of_another_length_are_interpolated():
    time = TemporalPositions(ModelConfig(width=4, num_heads=1, temporal_positions=3))
    ramp = torch.tensor([0.0, 1.0, 2.0])[:, None].expand(3, 4)
    with torch.no_grad():
        time.positions.copy_(ramp)
    tokens = torch.ones(1, 3, 2, 4)
    torch.testing.assert_close(time(tokens)[0, :, 1], ramp + 1)
    found = time(torch.zeros(1, 6, 1, 4))[0, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor([0.0, 0.25, 0.75, 1.25, 1.75, 2.0]))
    assert time(torch.zeros(1, 1, 1, 4))[0, 0, 0, 0] == 1.0


def test_attention_takes_whole_clips_and_refuses_to_stream():
    model, video = tiny_model(temporal_mixer="attention"), random_video(2, 8)
    out, state = model.step(video, model.init_state(2))
    assert torch.equal(out.logits, model(video).logits)
    with pytest.raises(StateError, match=r"'attention' needs whole clips.*new state"):
        model.step(video, state)
    with pytest.raises(StateError, match="whole clips"):
        model.step(video, state.reset([True, False]))
    again, _ = model.step(video, state.reset([True, True]))
    assert torch.equal(again.logits, out.logits)
    clips = model(video, frames_per_clip=4)
    torch.testing.assert_close(clips.logits, (model(video[:, :4]).logits + model(video[:, 4:]).logits) / 2)


def test_a_state_has_the_sizes_of_its_mixer():
    sizes = {}
    for mixer in MIXERS:
        state = tiny_model(temporal_mixer=mixer).init_state(1)
        sizes[mixer] = tuple(tuple(tensor.shape[1:]) for tensor in state.layers[0])
    tokens = 2 * 3 + 1
    assert sizes == {
        "lru": ((tokens, 16), (3, tokens, 16)),
        "attention": ((tokens, 0), (0, tokens, 0)),
        "lstm": ((tokens, 32), (0, tokens, 0)),
        "conv": ((tokens, 0), (3, tokens, 16)),
    }


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimised_model_gives_the_outputs_and_states(mixer, dtype):
    model, video = tiny_model(temporal_mixer=mixer), random_video(2, 4)
    fast = optimize(model, dtype=dtype)
    with torch.inference_mode():
        expected, after = model.step(video, model.init_state(2))
        got, carried = fast.step(video, fast.init_state(2))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert relative_error(got.features, expected.features) < tolerance
    for name, tensor in after._tensors().items():
        assert relative_error(carried._tensors()[name], tensor) < tolerance, name


def test_an_lstm_runs_in_float32_whatever_the_compute_dtype():
    model, video = tiny_model(temporal_mixer="lstm"), random_video(1, 4)
    fast = optimize(model, dtype=torch.bfloat16)
    assert torch.equal(fast.blocks[0].temporal.lstm.weight_hh_l0, model.blocks[0].temporal.lstm.weight_hh_l0)
    kept = []
    for way in (model.bfloat16(), fast):
        _, state = way.step(video, way.init_state(1))
        assert state.layers[0].hidden.dtype == torch.float32
        kept.append(state.layers[0].hidden)
    assert not torch.equal(kept[0], kept[0].bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        _, state = model.float().step(video, model.init_state(1))
    assert not torch.equal(state.layers[0].hidden, state.layers[0].hidden.bfloat16().float())


EXPORTED = """
import sys

import torch
from models import random_video, relative_error, tiny_model
from test_fast import streamed
from trecvit.accelerate.exported import export, load_exported

model, video = tiny_model(temporal_mixer="lstm", depth=1), random_video(1, 2)
exported = load_exported(export(model, sys.argv[1]))
with torch.inference_mode():
    expected, after = streamed(model, video, cuts=1)
    got, carried = streamed(exported, video, cuts=1)
assert relative_error(got.logits, expected.logits) < 1e-5
for name, tensor in after._tensors().items():
    assert relative_error(carried._tensors()[name], tensor) < 1e-5, name
"""


@pytest.mark.slow
def test_an_exported_lstm_gives_the_outputs_and_states(tmp_path, forks):
    done = forks.run(EXPORTED, tmp_path / "fast")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temporal_mixer": "mamba"}, "temporal_mixer: expected one of .*'lstm', 'conv'"),
        ({"temporal_mixer": "conv", "conv_width": 0}, "conv_width: expected at least one tap"),
        ({"temporal_mixer": "none", "temporal_skip": False}, "temporal_skip: expected true for temporal_mixer='none'"),
        ({"temporal_mixer": "lstm", "lru_gates": False}, "lru_gates: expected true for temporal_mixer='lstm'"),
        ({"lru_complex": True, "lru_gates": False}, "lru_gates: expected true for lru_complex=True"),
        ({"temporal_mixer": "conv", "temporal_mlp": True}, "temporal_mlp: expected false for temporal_mixer='conv'"),
        ({"temporal_positions": 0}, "temporal_positions: expected a whole number >= 1"),
        ({"lru_gates": 1}, "lru_gates: expected true or false"),
    ],
)
def test_impossible_temporal_mixers_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        ModelConfig(**fields)


def test_a_tracker_needs_a_mixer_that_can_stream():
    blocks = TrackerConfig().blocks
    TrackerConfig(blocks=dataclasses.replace(blocks, temporal_mixer="lstm", temporal_mlp=False))
    with pytest.raises(ConfigError, match="a temporal_mixer that can stream"):
        TrackerConfig(blocks=dataclasses.replace(blocks, temporal_mixer="attention", temporal_mlp=False))


def test_a_description_without_these_fields_still_loads():
    written = ModelConfig().to_dict()
    for field in ("temporal_skip", "temporal_positions", "lru_gates"):
        del written[field]
    assert ModelConfig.from_dict(written) == ModelConfig()


@pytest.mark.parametrize(
    "fields", [*({"temporal_mixer": mixer} for mixer in MIXERS), {"lru_gates": False, "temporal_skip": False}], ids=str
)
def test_a_loaded_model_equals_the_saved_one(fields, tmp_path):
    model, video = tiny_model(**fields), random_video(1, 4)
    loaded = load(model.save(tmp_path / "model"))
    assert loaded.config == model.config
    assert relative_error(loaded(video).logits, model(video).logits) < 1e-6


@pytest.mark.parametrize("fields", [{"temporal_mixer": "lstm"}, {"lru_gates": False}, {"temporal_skip": False}])
def test_the_original_format_cannot_hold_them(fields, tmp_path):
    tiny_model(**fields).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=f"does not support {next(iter(fields))}"):
        convert(tmp_path / "model", tmp_path / "model.npz")


@pytest.mark.slow
def test_sizes_and_operations_equal_those_by_hand():
    """Weights of one mixer of width D = 768; operations of one frame in all twelve blocks."""
    width, tokens = 768, 197
    weights = {
        "attention": 4 * width * width + 4 * width + 2 * width,
        "lstm": 8 * width * width + 8 * width + width,
        "conv": 4 * width * width + width + width,
    }
    maps = 2 * 2 * 32 * width  # a token's scores and sums over a clip of 32 frames
    operations = {"attention": 2 * 4 * width**2 + maps, "lstm": 2 * 8 * width**2, "conv": 2 * 4 * width**2}
    with torch.device("meta"):
        plain = flops_per_frame(TRecViT(ModelConfig(temporal_mixer="none", num_classes=0)))
        for mixer, expected in weights.items():
            model = TRecViT(ModelConfig(temporal_mixer=mixer, num_classes=0))
            assert sum(parameter.numel() for parameter in model.blocks[0].temporal.parameters()) == expected
            assert flops_per_frame(model) - plain == pytest.approx(12 * tokens * operations[mixer], rel=1e-9)


def test_a_models_facts_include_whether_it_can_stream():
    with torch.device("meta"):
        clips, streams = (
            describe(TRecViT(ModelConfig(**TINY, temporal_mixer=mixer))) for mixer in ("attention", "lstm")
        )
    assert "cannot stream" in clips["input"]
    assert "state bytes per stream" not in clips
    assert "cannot stream" not in streams["input"]
    assert streams["state bytes per stream"] == tiny_model(temporal_mixer="lstm").init_state(1).nbytes


def test_speed_is_refused_where_the_bound_does_not_hold(tmp_path):
    tiny_model(temporal_mixer="conv").save(tmp_path / "model")
    with pytest.raises(ConfigError, match=r"temporal_mixer='conv'.*matrix multiplications only"):
        measure(str(tmp_path / "model"), "float32", "eager", 1, 1, seconds=0.01)


@pytest.mark.parametrize("fields", [{"temporal_mixer": "lstm"}, {"temporal_mixer": "conv"}, {"lru_gates": False}])
def test_presets_take_them_and_a_state_survives_files_and_row_selection(fields, tmp_path):
    model, video = create_model("tiny", depth=1, num_classes=3, image_size=32, **fields), random_video(3, 4, 32, 32)
    _, state = model.step(video[:, :2], model.init_state(3))
    state.select([2, 0]).save(tmp_path / "state")
    got, _ = model.step(video[[2, 0], 2:], State.load(tmp_path / "state"))
    assert relative_error(got.logits, model(video[[2, 0]]).logits) < 1e-5


def test_initial_weights_are_flaxs():
    config = ModelConfig(width=512, num_heads=8)
    lstm, conv = TemporalLSTM(config).lstm, TemporalConv(config).convolution
    assert float(lstm.weight_ih_l0.detach().std()) == pytest.approx(512**-0.5, rel=0.02)
    recurrent = lstm.weight_hh_l0[:512]
    torch.testing.assert_close(recurrent @ recurrent.T, torch.eye(512), rtol=0, atol=1e-5)
    assert float(conv.weight.detach().std()) == pytest.approx((4 * 512) ** -0.5, rel=0.02)
    assert not any(bias.any() for bias in (lstm.bias_ih_l0, lstm.bias_hh_l0, conv.bias))
    assert isinstance(temporal_part(config), TemporalBlock)
