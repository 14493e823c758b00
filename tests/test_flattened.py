"""The flattened models of the paper's Figure 4: a clip's tokens as one sequence."""

from __future__ import annotations

import pytest
import torch
from models import TINY, random_video, relative_error, tiny_model
from test_imagenet import network, vit, written
from torch import Tensor

from trecvit.accelerate.optimize import optimize
from trecvit.config import ModelConfig, TemporalMixer
from trecvit.errors import CheckpointError, ConfigError, StateError
from trecvit.model.lru import LayerState, TemporalBlock
from trecvit.model.mixers import FlatLRU
from trecvit.model.state import empty_layers
from trecvit.model.tapnext import TrackerConfig
from trecvit.model.trecvit import SpatialBlock
from trecvit.runtime.describe import describe
from trecvit.weights.imagenet import initialise_from_vit
from trecvit.weights.load import convert, load

FLATTENED: tuple[TemporalMixer, ...] = ("full_attention", "causal_attention", "flat_lru")
B, T, N, D = 2, 4, 3, 16


def fields(mixer: TemporalMixer) -> dict[str, object]:
    return {"temporal_mixer": mixer, "pooling": "mean", "temporal_positions": 6}


def attention_by_hand(block: SpatialBlock, x: Tensor, causal: bool) -> Tensor:
    """Attention over all tokens that a token may attend to, frame by frame."""
    normed = torch.nn.functional.layer_norm(x, (D,), block.attention_norm.weight, block.attention_norm.bias, 1e-6)
    queries, keys, values = (normed @ block.qkv.weight.T + block.qkv.bias).chunk(3, dim=-1)
    width = D // block.num_heads
    frames = []
    for t in range(T):
        last = t + 1 if causal else T
        heads = []
        for head in range(block.num_heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.einsum("bnd,bsmd->bnsm", queries[:, t, :, part], keys[:, :last, :, part]) / width**0.5
            weights = scores.flatten(2).softmax(dim=-1).unflatten(2, (last, N))
            heads.append(torch.einsum("bnsm,bsmd->bnd", weights, values[:, :last, :, part]))
        frames.append(torch.cat(heads, dim=-1))
    x = x + torch.stack(frames, dim=1) @ block.attention_out.weight.T + block.attention_out.bias
    normed = torch.nn.functional.layer_norm(x, (D,), block.mlp_norm.weight, block.mlp_norm.bias, 1e-6)
    hidden = torch.nn.functional.gelu(normed @ block.mlp_up.weight.T + block.mlp_up.bias, approximate="tanh")
    return x + hidden @ block.mlp_down.weight.T + block.mlp_down.bias


@pytest.mark.parametrize("mixer", ["full_attention", "causal_attention"])
def test_attention_over_a_clip_equals_its_equation_with_every_gradient(mixer):
    block = SpatialBlock(ModelConfig(**{**TINY, **fields(mixer)})).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    x = torch.randn(B, T, N, D, dtype=torch.float64, requires_grad=True)
    weights = [x, *block.parameters()]
    results = []
    for y in (block(x), attention_by_hand(block, x, causal=mixer == "causal_attention")):
        results.append([y, *torch.autograd.grad((y * torch.arange(y.numel()).view_as(y)).sum(), weights)])
    for got, expected in zip(*results, strict=True):
        assert relative_error(got, expected) < 1e-10


@pytest.mark.parametrize("overrides", [{}, {"lru_gates": False}, {"conv_width": 0}, {"temporal_mlp": True}], ids=str)
def test_the_flat_lru_is_one_recurrence_along_all_tokens(overrides):
    """It equals the LRU's block on a video of T * N frames of one token each, with every gradient."""
    config = ModelConfig(**{**TINY, **fields("flat_lru"), **overrides})
    by_place = config.replace(temporal_mixer="lru")
    flat, plain = FlatLRU(config).double(), TemporalBlock(by_place).double()
    plain.load_state_dict(flat.state_dict())
    x = torch.randn(B, T, N, D, dtype=torch.float64, requires_grad=True)
    fresh = torch.ones(B, dtype=torch.bool)
    where, dtype = torch.device("cpu"), torch.float64
    empty = empty_layers(config, B, N, device=where, dtype=dtype)[0]
    initial = empty_layers(by_place, B, 1, device=where, dtype=dtype)[0]
    y, after = flat(x, empty, fresh)
    assert after is empty
    assert not any(tensor.numel() for tensor in after)
    rows = x.reshape(B, T * N, 1, D)
    expected = plain(rows, initial, fresh)[0].reshape(B, T, N, D)
    results = [
        [out, *torch.autograd.grad(out.square().sum(), [x, *module.parameters()])]
        for out, module in ((y, flat), (expected, plain))
    ]
    for one, other in zip(*results, strict=True):
        assert relative_error(one, other) < 1e-10


def test_each_attends_to_the_tokens_it_may():
    """The features that change with one patch in the middle of a clip."""
    video = random_video(1, 5)
    other = video.clone()
    other[:, 2, :, :8, 8:16] = 255 - other[:, 2, :, :8, 8:16]  # the second of six patches
    reached = {}
    for mixer in FLATTENED:
        model = tiny_model(**fields(mixer))
        reached[mixer] = (model(video).features != model(other).features).any(dim=-1)[0]
    assert reached["full_attention"].all()
    assert reached["causal_attention"].any(dim=1).tolist() == [False, False, True, True, True]
    assert reached["causal_attention"][2].all()
    assert not reached["flat_lru"][:2].any()
    assert reached["flat_lru"][2].tolist() == [False, True, True, True, True, True]
    assert reached["flat_lru"][3:].all()


@pytest.mark.parametrize("mixer", FLATTENED)
def test_features_depend_on_the_place_in_the_clip(mixer):
    model, video = tiny_model(**fields(mixer)), random_video(1, 6)
    still = video[:, :1].expand(-1, 6, -1, -1, -1).contiguous()
    positioned = model(still).features
    with torch.no_grad():
        model.tokenizer.time.positions.zero_()
    unpositioned = model(still).features
    assert relative_error(positioned[:, 0], positioned[:, 5]) > 1e-3
    if mixer != "flat_lru":
        assert relative_error(unpositioned[:, 0], unpositioned[:, 5]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("mixer", FLATTENED)
def test_they_take_whole_clips_and_refuse_to_stream(mixer):
    model, video = tiny_model(**fields(mixer)), random_video(2, 8)
    out, state = model.step(video, model.init_state(2))
    assert torch.equal(out.logits, model(video).logits)
    with pytest.raises(StateError, match=f"'{mixer}' needs whole clips"):
        model.step(video, state)
    clips = model(video, frames_per_clip=4)
    torch.testing.assert_close(clips.logits, (model(video[:, :4]).logits + model(video[:, 4:]).logits) / 2)
    assert "cannot stream" in describe(model)["input"]


@pytest.mark.parametrize("mixer", FLATTENED)
@pytest.mark.parametrize("recompute", ["cheap", "blocks"])
def test_recomputation_changes_no_gradient(mixer, recompute):
    video, gradients = random_video(1, 4), []
    for what in ("nothing", recompute):
        model = tiny_model(**fields(mixer), temporal_mlp=mixer == "flat_lru")
        model.recompute = what
        model(video).logits.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected is not None, name
        assert relative_error(gradients[1][name], expected) < 1e-5, name


@pytest.mark.parametrize("mixer", FLATTENED)
def test_saved_and_optimised_they_give_the_same_outputs(mixer, tmp_path):
    model, video = tiny_model(**fields(mixer)), random_video(2, 4)
    loaded = load(model.save(tmp_path / "model"))
    for one in (loaded, optimize(loaded)):
        with torch.inference_mode():
            assert relative_error(one(video).logits, model(video).logits) < 1e-5
    with pytest.raises(CheckpointError, match=f"does not support temporal_mixer='{mixer}'"):
        convert(tmp_path / "model", tmp_path / "model.npz")


def test_temporal_patches_shorten_the_sequence():
    model = tiny_model(**fields("full_attention"), temporal_patch_size=2)
    assert model(random_video(1, 6)).features.shape[1:3] == (3, 6)


def test_only_attention_can_be_initialised_from_a_vit(tmp_path):
    path = written(vit(), "timm", tmp_path)
    model = network(temporal_mixer="full_attention")
    initialise_from_vit(model, path)
    assert torch.equal(model.blocks[0].spatial.qkv.weight, vit()["blocks.0.attn.qkv.weight"])
    with pytest.raises(CheckpointError, match="expected a model with spatial blocks, got temporal_mixer='flat_lru'"):
        initialise_from_vit(network(**fields("flat_lru")), path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"temporal_mixer": "flat_lru"}, "pooling: expected 'mean' for temporal_mixer='flat_lru'"),
        ({"temporal_mixer": "full_attention", "temporal_skip": False}, "temporal_skip: expected true"),
        ({"temporal_mixer": "causal_attention", "lru_gates": False}, "lru_gates: expected true"),
        ({"temporal_mixer": "full_attention", "temporal_mlp": True}, "temporal_mlp: expected false"),
    ],
)
def test_impossible_combinations_are_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        ModelConfig(**given)
    with pytest.raises(ConfigError, match="a temporal_mixer that can stream"):
        TrackerConfig(blocks=TrackerConfig().blocks.replace(temporal_mixer="full_attention", temporal_mlp=False))


def test_the_state_of_a_flattened_model_is_empty():
    for mixer in FLATTENED:
        state = tiny_model(**fields(mixer)).init_state(3)
        assert all(isinstance(layer, LayerState) and not sum(t.numel() for t in layer) for layer in state.layers)
