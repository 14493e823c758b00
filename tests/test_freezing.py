"""Models whose lower blocks are a frozen ViT: the pass of training, kept tokens, repeated views, clips of nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from trecvit.config import Preprocessing, model_config
from trecvit.data.augment import Augmentation
from trecvit.data.clips import EvaluationViews, TrainingClips
from trecvit.data.layouts import read_manifest
from trecvit.errors import CheckpointError, ConfigError, DataError
from trecvit.evaluate.videos import check_labels
from trecvit.model.state import State
from trecvit.model.trecvit import TRecViT
from trecvit.train.frozen import FrozenBelow, freeze
from trecvit.train.loop import train
from trecvit.train.recipe import load_recipe
from trecvit.train.videos import NOTHING, read_split
from trecvit.video.encode import VideoWriter
from trecvit.weights.load import convert, load

FIELDS = {
    "preset": "tiny", "width": 16, "depth": 4, "num_heads": 2, "mlp_width": 24, "head_width": 8, "patch_size": 16,
    "image_size": 32, "num_classes": 3, "temporal_from": 2,
}  # fmt: skip
PLAN = Preprocessing(image_size=32, num_frames=4, frame_stride=1)
LOUD = Augmentation(scale=(1.0, 1.5), flip=True)


def network(**fields) -> TRecViT:
    torch.manual_seed(0)
    values = {**FIELDS, **fields}
    return TRecViT(model_config(values.pop("preset"), **values), preprocessing=PLAN)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number in range(9):
        folder = root / ("clap", "wave")[number % 2]
        folder.mkdir(exist_ok=True)
        with VideoWriter(folder / f"{number:02d}.mp4", 12) as writer:
            for _ in range(6 + number):
                writer.write(rng.integers(0, 80 + 120 * (number % 2), (40, 56, 3), np.uint8))
    return root


@pytest.mark.parametrize("mixer", ["lru", "lstm", "conv"])
def test_blocks_below_see_single_frames(mixer):
    model = network(temporal_mixer=mixer).eval()
    assert [block.temporal is None for block in model.blocks] == [True, True, False, False]
    video = torch.rand(2, 5, 3, 32, 32)
    state = model.init_state(2)
    assert [layer.hidden.numel() + layer.taps.numel() > 0 for layer in state.layers] == [False, False, True, True]
    with torch.no_grad():
        whole = model(video).logits
        for frames in video.split((1, 3, 1), dim=1):
            out, state = model.step(frames, state)
    torch.testing.assert_close(out.logits, whole, rtol=1e-5, atol=1e-6)


def test_a_state_and_a_folder_keep_it(tmp_path):
    model = network().eval()
    _, state = model.step(torch.rand(1, 2, 3, 32, 32), model.init_state(1))
    state.save(tmp_path / "state")
    frame = torch.rand(1, 1, 3, 32, 32)
    again = load(model.save(tmp_path / "model"))
    with torch.no_grad():
        assert torch.equal(
            again.step(frame, State.load(tmp_path / "state"))[0].logits, model.step(frame, state)[0].logits
        )
    with pytest.raises(CheckpointError, match="temporal_from=2"):
        convert(tmp_path / "model", tmp_path / "official.npz")


@pytest.mark.parametrize(
    "fields", [{"temporal_from": 4}, {"temporal_from": -1}, {"temporal_mixer": "none"}, {"temporal_mixer": "flat_lru"}]
)
def test_impossible_models_are_refused(fields):
    with pytest.raises(ConfigError, match="temporal_from"):
        network(**fields)


def test_only_the_first_token_is_the_same_and_has_the_same_gradients():
    block = network().double().blocks[-1].spatial
    x = torch.randn(2, 3, 5, 16, dtype=torch.float64, requires_grad=True)
    towards = torch.randn(2, 3, 1, 16, dtype=torch.float64)
    results = []
    for first_only in (False, True):
        out = block(x, first_only=first_only)[:, :, :1]
        grads = torch.autograd.grad((out * towards).sum(), [x, *block.parameters()])
        results.append((out, *grads))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def reference(model: TRecViT, video: torch.Tensor) -> torch.Tensor:
    """Logits with the tokens of the first two blocks rounded to float16."""
    tokens = model.tokenizer(video)
    for block in model.blocks[:2]:
        tokens = block.spatial(tokens)
    tokens, fresh = tokens.half().float(), torch.ones(len(video), dtype=torch.bool)
    for block, layer in zip(model.blocks[2:], model.init_state(len(video)).layers[2:], strict=True):
        tokens, _ = block(tokens, layer, fresh)
    return model.head(model.head.evidence(model.norm(tokens)).mean(dim=1))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_pass_of_training_is_the_model(tmp_path, pooling):
    model = network(pooling=pooling).eval()
    freeze(model, 2)
    video = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    expected = reference(model, video.float() / 255)
    torch.testing.assert_close(expected, model(video).logits, rtol=0.02, atol=0.02)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grads = torch.autograd.grad(expected.sin().sum(), parameters)
    for folder in (None, tmp_path, tmp_path):  # computed, kept, read
        model.engine = FrozenBelow(model, 2, folder)
        got = model(video).logits
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        for one, other in zip(torch.autograd.grad(got.sin().sum(), parameters), grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_tokens_are_dropped_in_training_only(pooling):
    model = network(pooling=pooling, image_size=64).eval()
    video = torch.rand(2, 3, 3, 64, 64)
    model.engine = FrozenBelow(model, 2, token_dropout=0.5)
    expected = FrozenBelow(model, 2)(video, model.init_state(2, image_size=64))[0].logits
    assert torch.equal(model(video).logits, expected)
    model.train()
    seen = {tuple(model.engine._kept(16 + (pooling == "cls")).tolist()) for _ in range(30)}
    assert len(seen) > 20
    assert {len(kept) for kept in seen} == {8 + (pooling == "cls")}
    if pooling == "cls":
        assert {kept[0] for kept in seen} == {0}
    one, other = model(video).logits, model(video).logits
    assert not torch.equal(one, other)
    assert not torch.equal(one, expected)


def test_tokens_are_computed_once_for_the_same_weights(tmp_path, monkeypatch):
    model = network()
    frames = torch.randint(0, 256, (2, 3, 3, 32, 32), dtype=torch.uint8).float() / 255
    frames[1] = frames[0]
    first = FrozenBelow(model, 2, tmp_path).tokens(frames)
    assert len([*tmp_path.rglob("*")]) == 1 + 3, "a folder of the weights, with a file for each different frame"
    again = FrozenBelow(model, 2, tmp_path)
    monkeypatch.setattr(again, "_computed", None)
    assert torch.equal(again.tokens(frames), first)
    with torch.no_grad():
        model.blocks[1].spatial.qkv.bias += 1
    changed = FrozenBelow(model, 2, tmp_path)
    assert not torch.equal(changed.tokens(frames), first)
    with torch.no_grad():
        model.blocks[2].spatial.qkv.bias += 1  # not frozen
    assert FrozenBelow(model, 2, tmp_path)._folder == changed._folder


def test_views_repeat_and_the_first_is_that_of_tests(data):
    manifest = read_manifest(data)
    clips = TrainingClips(manifest, PLAN, LOUD, seed=1, views=3)
    pixels = [clips[epoch, 4].pixels for epoch in range(7)]
    assert all(torch.equal(pixels[epoch], pixels[epoch + 3]) for epoch in range(4))
    assert not any(torch.equal(pixels[0], pixels[epoch]) for epoch in (1, 2))
    assert not torch.equal(pixels[1], pixels[2])
    assert torch.equal(pixels[0], EvaluationViews(manifest, PLAN, num_clips=1, num_crops=1)[4].pixels[0])
    fewer = replace(manifest, videos=manifest.videos[4:])
    assert torch.equal(TrainingClips(fewer, PLAN, LOUD, seed=1, views=3)[1, 0].pixels, pixels[1])


def test_a_share_of_the_clips_shows_nothing(data):
    manifest = read_manifest(data)
    clips = TrainingClips(manifest, PLAN, Augmentation(), seed=0, still_share=0.25)
    samples = [clips[epoch, index] for epoch in range(4) for index in range(len(clips))]
    stills = [sample for sample in samples if sample.label == 2]
    assert 0.1 < len(stills) / len(samples) < 0.4
    assert all(torch.equal(sample.pixels, sample.pixels[:1].expand_as(sample.pixels)) for sample in stills)
    assert all((sample.pixels[0] != sample.pixels[-1]).any() for sample in samples if sample.label != 2)


def recipe_in(folder, data, **changes):
    content = {
        "model": FIELDS,
        "preprocessing": {"image_size": 32, "num_frames": 4, "frame_stride": 1},
        "videos": {
            "train": str(data), "validation": str(data), "views": 2, "nothing_share": 0.25, "eval_clips": 1,
            "eval_crops": 1, "augmentation": {"scale": [1.0, 1.4]},
        },
        "optimisation": {
            "bf16": False, "epochs": 3, "batch_size": 4, "warmup_steps": 1, "frozen_blocks": 2,
            **changes.pop("optimisation", {}),
        },
        "num_workers": 0,
        **changes,
    }  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_recipe(path)


@pytest.mark.slow
def test_training_changes_what_is_not_frozen_and_kept_tokens_change_nothing(tmp_path, data):
    recipe = recipe_in(tmp_path, data)
    plain = train(recipe, tmp_path / "plain")
    assert plain.labels == ("clap", "wave", NOTHING)
    torch.manual_seed(recipe.seed)
    initial = network_of(recipe)
    for name, weight in plain.named_parameters():
        below = name.startswith(("tokenizer", "blocks.0", "blocks.1"))
        assert torch.equal(weight, initial[name]) == below, name
    kept = train(recipe_in(tmp_path, data, optimisation={"frozen_tokens": str(tmp_path / "t")}), tmp_path / "kept")
    for one, other in zip(plain.parameters(), kept.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert len([*(tmp_path / "t").rglob("*")]) > 1


def network_of(recipe) -> dict[str, torch.Tensor]:
    from trecvit.train.initialise import initial_model

    return dict(initial_model(recipe, recipe.feed())[0].named_parameters())


def test_recipes_that_cannot_work_are_refused(tmp_path, data):
    with pytest.raises(ConfigError, match="temporal_from=2"):
        train(recipe_in(tmp_path, data, optimisation={"frozen_blocks": 3}), tmp_path / "run")
    with pytest.raises(ConfigError, match="frozen_tokens"):
        recipe_in(tmp_path, data, optimisation={"frozen_blocks": 0, "frozen_tokens": "t"})
    with pytest.raises(ConfigError, match=r"videos\.views"):
        recipe_in(tmp_path, data, videos={"train": str(data)}, optimisation={"frozen_tokens": "t"})
    with pytest.raises(ConfigError, match="only classification"):
        recipe_in(
            tmp_path, data, model={**FIELDS, "num_classes": 0},
            mae={"decoder": {"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8}},
        )  # fmt: skip


def test_a_model_may_have_further_classes_than_the_data(data):
    manifest = read_split(read_source(data))
    model = network()
    model.relabel((*manifest.labels, NOTHING))
    check_labels(model, manifest)
    model.relabel((NOTHING, *manifest.labels))
    with pytest.raises(DataError):
        check_labels(model, manifest)


def read_source(data):
    from trecvit.data.layouts import DataSource

    return DataSource(path=str(data))
