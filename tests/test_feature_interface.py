"""timm's methods for features: equal to `model(video)`, and the arguments of timm's vision transformers."""

from __future__ import annotations

import inspect

import pytest
import torch
from models import VARIANTS, random_video, relative_error, tiny_model
from torch import nn

from trecvit.accelerate.optimize import optimize
from trecvit.errors import ConfigError, InputError

CLIPS = {
    **VARIANTS,
    "attention": {"temporal_mixer": "attention"},
    "full_attention": {"temporal_mixer": "full_attention"},
}
EXACT = 1e-6


@pytest.mark.parametrize("variant", CLIPS)
def test_features_and_head_are_the_models(variant):
    model, video = tiny_model(**CLIPS[variant]), random_video(num_frames=8)
    out = model(video)
    features = model.forward_features(video)
    assert torch.equal(features, out.features)
    assert features.shape[-1] == model.num_features
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (2, model.head_hidden_size)
    if out.logits is None:
        assert torch.equal(model.forward_head(features), pre_logits)
    else:
        assert relative_error(model.forward_head(features), out.logits) < EXACT
        assert relative_error(model.get_classifier()(pre_logits), out.logits) < EXACT


@pytest.mark.parametrize("variant", CLIPS)
def test_intermediates_are_the_blocks_outputs(variant):
    model, video = tiny_model(**CLIPS[variant]), random_video(num_frames=9)  # the last may be left over
    seen = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, __, result, index=index: seen.update({index: result[0]}))
    out = model(video)
    expected = dict(seen)
    features, [first, second] = model.forward_intermediates(video, output_fmt="NLC", return_prefix_tokens=True)
    assert relative_error(features, out.features) < EXACT
    for index, (patches, prefix) in enumerate((first, second)):
        assert prefix.shape[2] == (1 if model.config.pooling == "cls" else 0)
        assert relative_error(torch.cat([prefix, patches], dim=2), expected[index]) < EXACT
    [maps] = model.forward_intermediates(video, [-1], norm=True, intermediates_only=True)
    rows, columns = 16 // 8, 24 // 8
    assert maps.shape == (2, out.features.shape[1], model.num_features, rows, columns)
    assert relative_error(maps.flatten(3).movedim(2, -1), out.features[:, :, prefix.shape[2] :]) < EXACT


def test_blocks_are_chosen_as_timm_does():
    model, video = tiny_model(depth=4), random_video()
    _, every = model.forward_intermediates(video)
    assert len(every) == 4
    for indices, blocks in ((2, [2, 3]), ([0, -1], [0, 3]), ((3, 1), [1, 3]), (4, [0, 1, 2, 3])):
        taken = model.forward_intermediates(video, indices, intermediates_only=True)
        assert [[torch.equal(item, each) for each in every].index(True) for item in taken] == blocks
    calls = []
    model.blocks[2].register_forward_hook(lambda *_: calls.append(2))
    model.forward_intermediates(video, [1], stop_early=True, intermediates_only=True)
    assert not calls


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"indices": 3}, "expected 1 to 2 last blocks, got 3"),
        ({"indices": 0}, "expected 1 to 2 last blocks, got 0"),
        ({"indices": [2]}, "expected blocks from -2 to 1, got 2"),
        ({"indices": []}, "expected at least one block"),
        ({"output_fmt": "NHWC"}, "expected 'NCHW' or 'NLC'"),
        ({"stop_early": True}, "expected intermediates_only=True too"),
    ],
)
def test_impossible_arguments_are_refused(arguments, reason):
    with pytest.raises(InputError, match=reason):
        inspect.unwrap(type(tiny_model()).forward_intermediates)(tiny_model(), random_video(), **arguments)


def test_gradients_reach_the_weights_also_with_checkpointing():
    grads = []
    for enable in (False, True):
        model = tiny_model().train()
        model.set_grad_checkpointing(enable)
        assert model.recompute == ("blocks" if enable else "nothing")
        features, [first, _] = model.forward_intermediates(random_video())
        (features.square().sum() + first.sum()).backward()
        grads.append([parameter.grad for name, parameter in model.named_parameters() if "head" not in name])
    for plain, again in zip(*grads, strict=True):
        assert relative_error(again, plain) < 1e-5


def test_a_new_classifier_keeps_the_rest(tmp_path):
    model = tiny_model().to(torch.float64)
    model.relabel(list("abcde"))
    before = {name: value.clone() for name, value in model.state_dict().items() if "head.classifier" not in name}
    model.reset_classifier(7)
    assert (model.num_classes, model.config.num_classes, model.labels) == (7, 7, ())
    assert model.get_classifier().weight.dtype == torch.float64
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model(random_video()).logits.shape == (2, 7)
    model.save(tmp_path)
    assert type(model).load(tmp_path, dtype="auto").num_classes == 7


def test_a_head_can_be_removed_and_added():
    model, video = tiny_model(), random_video()
    features = model.forward_features(video)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model.head_hidden_size == model.num_features == model.forward_head(features).shape[1]
    assert model(video).logits is None
    model.reset_classifier(3, global_pool="token")
    assert model(video).logits.shape == (2, 3)
    with pytest.raises(ConfigError, match="global_pool: expected 'token'"):
        model.reset_classifier(3, global_pool="avg")
    with pytest.raises(ConfigError, match="num_classes"):
        model.reset_classifier(-1)


def test_only_positions_and_class_tokens_are_not_decayed():
    assert tiny_model().no_weight_decay() == {"tokenizer.positions", "tokenizer.cls"}
    assert tiny_model(pooling="mean", positions="sincos2d").no_weight_decay() == set()


def test_a_packed_model_gives_features_but_no_intermediates():
    model, video = tiny_model(), random_video()
    fast = optimize(model)
    assert relative_error(fast.forward_features(video), model(video).features) < 1e-5
    if fast.is_optimized:
        with pytest.raises(ConfigError, match="forward_intermediates"):
            fast.forward_intermediates(video)
        with pytest.raises(ConfigError, match="reset_classifier"):
            fast.reset_classifier(3)
