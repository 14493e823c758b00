"""Masked autoencoding in the training loop: clips, masks, loss, files of a run, and resuming."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from training import gradient, loop_of, same_weights

from trecvit.bench.training import loader_speed
from trecvit.errors import CheckpointError, ConfigError, DataError
from trecvit.evaluate.restoration import FILM, PICTURE, draw_restored, evaluate_mae
from trecvit.model.mae import MaskedAutoencoder, hidden_patches, targets
from trecvit.model.trecvit import TRecViT
from trecvit.processes import Share
from trecvit.train.loop import train
from trecvit.train.optimise import optimisers_of
from trecvit.train.recipe import load_recipe
from trecvit.train.run_folder import outcome, read_lines
from trecvit.train.sections import Optimisation
from trecvit.video.decode import length_and_rate
from trecvit.video.encode import VideoWriter
from trecvit.weights.load import load

ENCODER = {
    "preset": "tiny", "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 16, "patch_size": 8, "image_size": 32,
    "pooling": "mean", "num_classes": 0,
}  # fmt: skip
DECODER = {"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8}
SMALL = {
    "model": ENCODER,
    "preprocessing": {"image_size": 32, "num_frames": 4, "frame_stride": 1},
    "scenes": {"world": {"num_frames": 4, "image_size": [32, 32]}, "photographs": False},
    "mae": {"mask_ratio": 0.75, "decoder": DECODER, "validation_clips": 3},
    "optimisation": {"bf16": False, "num_steps": 6, "batch_size": 4, "warmup_steps": 2},
    "num_workers": 0,
    "log_every": 1,
    "checkpoint_every": 2,
}
TESTED = ["mae.validate_every=2"]


@pytest.fixture
def recipe_path(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def written_videos(folder: Path) -> Path:
    """Unlabelled videos of several lengths and sizes in one folder; one is unreadable."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(7):
        with VideoWriter(folder / f"{number}.mp4", 12) as writer:
            for _ in range(4 + number):
                writer.write(rng.integers(0, 256, (40, 56 + 2 * number, 3), np.uint8))
    (folder / "3.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    return written_videos(tmp_path_factory.mktemp("videos"))


def held_out(recipe):
    return recipe.task.held_out(recipe)


def from_videos(path: Path, videos: Path, *words: str):
    content = {**SMALL, "videos": {"train": str(videos), "max_failed_share": 0.3}}
    content["optimisation"] = {"bf16": False, "epochs": 2, "batch_size": 3, "warmup_steps": 2}
    del content["scenes"]
    path.write_text(yaml.safe_dump(content))
    return load_recipe(path, words)


@pytest.mark.slow
def test_a_small_autoencoder_learns_the_clips_it_is_shown(tmp_path, videos):
    """By overfitting: masked noise cannot be inferred."""
    words = [
        "optimisation.epochs=80", "optimisation.learning_rate=0.01", "optimisation.warmup_steps=10",
        "mae.decoder.width=32", "mae.decoder.mlp_width=64", "model.width=32", "mae.mask_ratio=0.5", "log_every=20",
    ]  # fmt: skip
    few = tmp_path / "few"
    few.mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        image[::2] //= 2
        with VideoWriter(few / f"{number}.mkv", 12) as writer:
            for _ in range(4):
                writer.write(image)
    recipe = from_videos(tmp_path / "recipe.yaml", few, *words, "videos.augmentation.resize_px=32")
    lines = []
    train(recipe, tmp_path / "run", report=lines.append)
    assert lines[0].figures["explained"] < 0.5
    assert lines[-1].figures["explained"] > 0.8
    assert lines[-1].loss < 0.2


@pytest.mark.slow
@pytest.mark.curves
def test_a_run_leaves_the_encoder_its_decoder_pictures_and_the_best(tmp_path, recipe_path):
    run = tmp_path / "run"
    encoder = train(load_recipe(recipe_path, TESTED), run)
    assert isinstance(encoder, TRecViT)
    assert encoder.head is None
    assert encoder.provenance == {"source": "trained for 6 steps", "data": "the synthetic world"}
    autoencoder = MaskedAutoencoder.load(run / "model")
    assert autoencoder.config.mask_ratio == 0.75
    assert torch.equal(autoencoder.blocks[1].spatial.qkv.weight, encoder.blocks[1].spatial.qkv.weight)
    logged, tested = read_lines(run / "metrics.jsonl"), read_lines(run / "validation.jsonl")
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(line["loss"]) and line["explained"] <= 1 for line in logged)
    assert [(line["step"], line["clips"], line["failed"]) for line in tested] == [(2, 3, 0), (4, 3, 0), (6, 3, 0)]
    assert max(line["explained"] for line in tested) == outcome(run)["best_explained"]
    assert isinstance(MaskedAutoencoder.load(run / "best"), MaskedAutoencoder)
    result = json.loads((run / "evaluation" / "result.json").read_text())
    assert result["protocol"] == {"data": "the synthetic world, held-out scenes", "seed": 1, "mask_ratio": 0.75}
    assert result["psnr_db"] == tested[-1]["psnr_db"]
    assert outcome(run)["explained"] == result["explained"]
    for folder in ("evaluation", "pictures/step-00000002", "pictures/step-00000006"):
        with PIL.Image.open(run / folder / PICTURE) as picture:
            assert picture.width > 4 * 128
            assert picture.height > 9 * 128
        assert length_and_rate(run / folder / FILM)[0] == 12
    with PIL.Image.open(run / "curves.png") as picture:
        assert picture.size == (1100, 400)


def test_a_blank_clip_counts_nothing(tmp_path, recipe_path):
    loop = loop_of(load_recipe(recipe_path), tmp_path)
    blank = loop.objective.blank(loop.recipe.preprocessing, torch.device("cpu"))
    loss, shares = loop.objective.loss(loop.model(*blank.inputs), blank)
    loss.backward()
    assert (loss.item(), shares.tolist()) == (0.0, [[0.0, 0.0]])
    assert gradient(loop).abs().max() == 0


def test_the_loss_is_the_mean_square_of_what_is_hidden(tmp_path, recipe_path):
    loop = loop_of(load_recipe(recipe_path), tmp_path)
    batch = next(loop.feed.batches(0, Share()))
    with torch.no_grad():
        out = loop.model(*batch.inputs)
    loss, shares = loop.objective.loss(out, batch)
    assert torch.equal(out.hidden, hidden_patches(batch.visible, 16))
    true = targets(batch.videos, out.hidden, loop.recipe.architecture).normalised
    assert true.shape == (4, 4, 12, 192)
    assert float(loss) == pytest.approx(4 * float((out.normalised - true).square().mean()), rel=1e-5)
    explained = 1 - float((out.normalised - true).square().sum() / true.square().sum())
    assert float(shares[0, 0] / shares[0, 1]) == pytest.approx(explained, rel=1e-4)
    perfect = loop.objective.loss(out._replace(normalised=true), batch)
    assert float(perfect.total) == 0
    assert float(perfect.shares[0, 0]) == float(perfect.shares[0, 1]) > 0


@pytest.mark.slow
def test_every_step_and_clip_has_a_mask_of_its_own_the_same_for_any_number_of_processes(recipe_path):
    words = ["optimisation.batch_size=8"]
    feed, late = (load_recipe(recipe_path, [*words, f"num_workers={workers}"]).feed() for workers in (0, 1))
    whole, again = list(feed.batches(0, Share())), list(late.batches(4, Share()))
    assert (len(whole), len(again), feed.labels) == (6, 2, ())
    for batch, same in zip(whole[4:], again, strict=True):
        assert torch.equal(batch.videos, same.videos)
        assert torch.equal(batch.visible, same.visible)
    assert whole[0].visible.shape == (8, 4)
    assert len({tuple(row) for batch in whole for row in batch.visible.tolist()}) > 40
    halves = [next(feed.batches(0, Share(number, 2))) for number in (0, 1)]
    shown = [
        {video.numpy().tobytes(): seen.tolist() for video, seen in zip(batch.videos, batch.visible, strict=True)}
        for batch in (whole[0], *halves)
    ]
    assert shown[0] == {**shown[1], **shown[2]}
    assert len(shown[0]) == 8


@pytest.mark.slow
def test_a_folder_of_unlabelled_videos_will_do(tmp_path, recipe_path, videos):
    words = [f"videos.validation={videos}", "mae.validate_every=2", "videos.augmentation.flip=true"]
    recipe = from_videos(recipe_path, videos, *words)
    feed = recipe.feed()
    assert feed.num_steps == 4
    batches = list(feed.batches(0, Share()))
    assert all(len(batch) + len(batch.failures) == 3 == len(batch.visible) + len(batch.failures) for batch in batches)
    encoder = train(recipe, tmp_path / "run")
    assert encoder.provenance["data"] == str(videos)
    assert {line["name"] for line in read_lines(tmp_path / "run" / "failures.jsonl")} == {"3.mp4"}
    result = json.loads((tmp_path / "run" / "evaluation" / "result.json").read_text())
    assert (result["clips"], result["failed"], result["protocol"]["data"]) == (2, 1, str(videos))
    assert (tmp_path / "run" / "evaluation" / FILM).exists()


def test_labels_play_no_part(recipe_path, tmp_path, videos):
    for name in ("left", "right"):
        (tmp_path / "labelled" / name).mkdir(parents=True)
    for number in (0, 1, 2, 4, 5):
        side = ("left", "right")[number % 2]
        (tmp_path / "labelled" / side / f"{number}.mp4").write_bytes((videos / f"{number}.mp4").read_bytes())
    feed = from_videos(recipe_path, tmp_path / "labelled", "videos.augmentation.flip=true").feed()
    assert feed.labels == ()
    assert next(feed.batches(0, Share())).videos.shape == (3, 4, 3, 32, 32)


@pytest.mark.slow
def test_without_held_out_videos_nothing_is_tested(tmp_path, recipe_path, videos):
    train(from_videos(recipe_path, videos), tmp_path / "run")
    assert not (tmp_path / "run" / "evaluation").exists()
    assert not (tmp_path / "run" / "pictures").exists()


def test_held_out_clips_are_others_spread_over_the_list(tmp_path, recipe_path, videos):
    clips, failures = held_out(load_recipe(recipe_path)).read()
    assert (len(clips), failures) == (3, [])
    trained_on = next(load_recipe(recipe_path).feed().batches(0, Share())).videos
    assert not any(torch.equal(clip, other) for clip in clips for other in trained_on)
    four = held_out(from_videos(recipe_path, videos, f"videos.validation={videos}", "mae.validation_clips=4"))
    clips, failures = four.read()
    assert (len(clips), failures) == (4, [])
    shorter, failures = held_out(from_videos(recipe_path, videos, f"videos.validation={videos}")).read()
    assert [failure.name for failure in failures] == ["3.mp4"]
    assert len(shorter) == 2
    assert torch.equal(shorter[1], clips[3])
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"no video can be read; the first, 0\.mp4"):
        held_out(from_videos(recipe_path, videos, f"videos.validation={tmp_path / 'broken'}")).read()


def small_autoencoder(recipe_path: Path) -> tuple[MaskedAutoencoder, list[torch.Tensor]]:
    recipe = load_recipe(recipe_path)
    return MaskedAutoencoder(recipe.architecture, preprocessing=recipe.preprocessing), held_out(recipe).read()[0]


def test_figures_of_restorations_are_what_they_say(recipe_path):
    autoencoder, clips = small_autoencoder(recipe_path)
    with torch.no_grad():
        autoencoder.decoder.out.weight.zero_()
        autoencoder.decoder.out.bias.zero_()
    flat = evaluate_mae(autoencoder, clips, seed=0)
    assert flat["explained"] == pytest.approx(0.0, abs=1e-6)
    assert flat["psnr_db"] == pytest.approx(flat["flat_psnr_db"])
    assert flat["clips"] == 3
    again, other = (evaluate_mae(autoencoder, clips, seed=seed) for seed in (0, 1))
    assert again == flat != other

    class Perfect(MaskedAutoencoder):
        def forward(self, video, visible):
            out = super().forward(video, visible)
            return out._replace(normalised=targets(video, out.hidden, self.config).normalised)

    perfect = evaluate_mae(Perfect(autoencoder.config, preprocessing=autoencoder.preprocessing), clips, seed=0)
    assert perfect["explained"] == 1.0
    assert perfect["psnr_db"] > 90
    assert perfect["flat_psnr_db"] == flat["flat_psnr_db"]
    with pytest.raises(DataError, match="at least one clip"):
        evaluate_mae(autoencoder, [], seed=0)


def test_pictures_show_what_went_in_what_was_visible_and_what_came_out(tmp_path, recipe_path):
    autoencoder, clips = small_autoencoder(recipe_path)
    draw_restored(autoencoder, clips[:2], tmp_path / "new", seed=0)
    with PIL.Image.open(tmp_path / "new" / PICTURE) as picture:
        pixels = np.asarray(picture)
    gap, title = 3, 20  # of cells of 128 pixels
    margin = pixels.shape[1] - 4 * (128 + gap)
    cells = [
        pixels[title + row * (128 + gap) :][:128, margin + column * (128 + gap) :][:, :128]
        for row in range(3)
        for column in range(4)
    ]
    big = clips[0][2].movedim(0, -1).repeat_interleave(4, 0).repeat_interleave(4, 1).numpy()
    assert np.array_equal(cells[2], big)
    is_grey = (cells[6] == 128).all(axis=2).reshape(4, 32, 4, 32).all(axis=(1, 3))
    assert is_grey.sum() == 12
    kept = ~np.repeat(np.repeat(is_grey, 32, 0), 32, 1)
    for cell in (cells[6], cells[10]):
        assert np.array_equal(cell[kept], big[kept])
    assert not np.array_equal(cells[10], big)
    assert (pixels[title : title + 128, :margin] < 128).any(), "the first row has a title before it"


@pytest.mark.slow
def test_a_classifier_goes_on_from_the_encoder_and_an_autoencoder_from_a_classifier(tmp_path, recipe_path):
    encoder = train(load_recipe(recipe_path, ["optimisation.num_steps=1"]), tmp_path / "first")
    labelled = {name: part for name, part in SMALL.items() if name != "mae"}
    labelled["model"] = {**ENCODER, "num_classes": 18, "head_width": 8}
    still = ["optimisation.learning_rate=0.0", "optimisation.num_steps=1"]
    path = tmp_path / "classify.yaml"
    path.write_text(yaml.safe_dump(labelled))
    words = [f"start.weights={tmp_path / 'first' / 'model'}", *still]
    classifier = train(load_recipe(path, words), tmp_path / "second")
    assert same_weights(classifier.blocks, encoder.blocks)
    assert "randomly initialised: head.pre_logits.weight" in (tmp_path / "second" / "start.txt").read_text()
    words = [f"start.weights={tmp_path / 'second' / 'model'}", *still]
    again = train(load_recipe(recipe_path, words), tmp_path / "third")
    assert same_weights(again, encoder)
    assert "randomly initialised: decoder.mask" in (tmp_path / "third" / "start.txt").read_text()
    with pytest.raises(CheckpointError, match="not a model of this architecture"):
        train(load_recipe(recipe_path, [*words, "model.pooling=cls"]), tmp_path / "fourth")


def test_muon_moves_the_decoders_blocks_too_and_the_mask_token_does_not_decay(recipe_path):
    recipe = load_recipe(recipe_path)
    model = MaskedAutoencoder(recipe.architecture)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adamw, muon = optimisers_of(model, Optimisation(num_steps=1, weight_decay=0.3, muon_learning_rate=0.1, beta2=0.95))
    spared = {names[id(p)] for group in adamw.param_groups if not group["weight_decay"] for p in group["params"]}
    assert {"decoder.mask", "tokenizer.positions"} <= spared
    moved = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert {"blocks.0.spatial.qkv.weight", "decoder.blocks.0.spatial.qkv.weight"} <= moved
    assert not {"decoder.embedding.weight", "decoder.out.weight"} & moved
    assert all(group["betas"] == (0.9, 0.95) for group in adamw.param_groups)


@pytest.mark.slow
def test_the_loaders_speed_is_measured(recipe_path):
    speed = loader_speed(load_recipe(recipe_path, TESTED), workers=[0], num_steps=3)
    assert min(speed.made[0], speed.used) > 0


@pytest.mark.slow
def test_encoder_only_is_loaded_where_a_model_is_wanted(tmp_path, recipe_path):
    train(load_recipe(recipe_path, ["optimisation.num_steps=1"]), tmp_path / "run")
    assert isinstance(load(tmp_path / "run" / "model"), TRecViT)
    with pytest.raises(CheckpointError, match="expected architecture"):
        load(tmp_path / "run" / "model" / "decoder")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["mae.mask_rato=0.5"], "did you mean 'mask_ratio'"),
        (["mae.decoder.widht=3"], "did you mean 'width'"),
        (["mae.decoder.patch_size=4"], "patch_size=8"),
        (["mae.mask_ratio=1.0"], "a share of 0 up to but not 1"),
        (["model.num_classes=18"], "num_classes=0"),
        (["mae.validation_clips=-1"], "0 or more"),
        (["mae.validation_clips=0", "mae.validate_every=2"], "no validation_clips"),
        (["mae.validation_seed=0"], "a seed other than scenes.seed=0"),
        (["start.vit=x"], "expected none for an autoencoder"),
        (["scenes=null", "videos={train: x}", "mae.validate_every=2"], r"no videos\.validation"),
        (["scenes=null", "videos={train: x, validation: x, validate_every: 2}"], "task's own validate_every"),
        (["optimisation.beta2=1.0"], "beta2"),
        (["scenes=null", "tracks={scenes: {}}"], "one of them, got tracks and mae"),
        (["model={blocks: {pooling: mean, num_classes: 0}}"], "without `blocks`"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(recipe_path, words, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_recipe(recipe_path, words)
