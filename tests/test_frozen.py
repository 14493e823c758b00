"""VideoMAE in the training loop, point probes on frozen features of any encoder, and the study of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from typer.testing import CliRunner

from paper import frozen
from paper.commands import app
from paper.point_probe import FrozenTracker, PointProbePlan, held_out_videos, point_probe, training_clips
from paper.video_transformers import videomae_encoder
from paper.videomae import VideoMaeAutoencoder, VideoMaeConfig
from trecvit.config import Preprocessing, model_config
from trecvit.errors import ConfigError, InputError
from trecvit.evaluate.features import Encoder
from trecvit.evaluate.tapvid import evaluate_tapvid
from trecvit.model.mae import decoder_config, hidden_patches, targets
from trecvit.model.readouts import PointReadoutConfig, RecurrentPointReadout
from trecvit.model.trecvit import frames_of, patches_of
from trecvit.synthetic.track_scenes import TrackSceneConfig
from trecvit.train.loop import train
from trecvit.train.networks import load_trained
from trecvit.train.optimise import optimisers_of
from trecvit.train.recipe import load_recipe
from trecvit.train.run_folder import read_lines
from trecvit.video.encode import VideoWriter

SMALL = {
    "model": {
        "preset": "tiny", "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 16, "patch_size": 8, "image_size": 32,
        "pooling": "mean", "num_classes": 0,
    },
    "preprocessing": {"image_size": 32, "num_frames": 4, "frame_stride": 1},
    "scenes": {"world": {"num_frames": 4, "image_size": [32, 32]}, "photographs": False},
    "mae": {
        "mask_ratio": 0.75, "decoder": {"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8},
        "validation_clips": 2, "normalised_targets": False,
    },
    "optimisation": {"bf16": False, "num_steps": 4, "batch_size": 4, "warmup_steps": 2, "muon_learning_rate": 0.01},
    "num_workers": 0,
    "log_every": 1,
    "checkpoint_every": 2,
}  # fmt: skip
VIDEOMAE = ["mae.network=videomae", "model.temporal_patch_size=2"]


@pytest.fixture
def recipe_path(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def videomae() -> VideoMaeAutoencoder:
    """Two frames per tubelet, 6 patches; no weight has its initial value."""
    blocks = model_config(
        "tiny", width=16, depth=2, num_heads=2, mlp_width=24, patch_size=8, image_size=(16, 24), num_classes=0,
        temporal_patch_size=2, pooling="mean",
    )  # fmt: skip
    config = VideoMaeConfig(
        blocks=blocks, decoder=decoder_config(blocks, width=8, depth=1, num_heads=2, mlp_width=8), num_frames=4
    )
    model = VideoMaeAutoencoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


# ---- VideoMAE ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_videomae_does_not_look_at_what_is_hidden_and_says_all_of_it():
    model, video = videomae(), torch.rand(2, 4, 3, 16, 24)
    visible = torch.tensor([[0, 4], [1, 2]])
    before = model(video, visible)
    assert torch.equal(before.hidden, hidden_patches(visible, 6))
    assert before.normalised.shape == targets(video, before.hidden, model.config).normalised.shape == (2, 2, 4, 384)
    noise = torch.rand_like(patches_of(video, model.config.blocks).take_along_dim(before.hidden[:, None, :, None], 2))
    other = model.with_patches(video, before.hidden, noise)
    assert not torch.equal(other, video)
    torch.testing.assert_close(model(other, visible).normalised, before.normalised)
    moved = model.with_patches(video, visible, torch.rand(2, 2, 2, 384))
    assert (model(moved, visible).normalised - before.normalised).abs().max() > 1e-3
    # Attention over time: the last tubelet's answer knows of the first's pixels, and the other way round.
    first = torch.cat([moved[:, :2], video[:, 2:]], dim=1)
    assert (model(first, visible).normalised - before.normalised)[:, 1].abs().max() > 1e-4


@pytest.mark.slow
def test_a_videomae_restores_each_patch_at_its_place():
    """With biases alone the output is the same everywhere; `restore` puts it at the masked patches."""
    model, visible = videomae(), torch.tensor([[0, 4]])
    with torch.no_grad():
        model.network.decoder.head.weight.zero_()
        model.network.decoder.head.bias.copy_(torch.linspace(-1, 1, 384))
    model.config = replace(model.config, normalised_targets=False)
    video = torch.rand(1, 4, 3, 16, 24)
    patches = patches_of(video, model.config.blocks)
    patches[:, :, [1, 2, 3, 5]] = 0.5 + 0.25 * torch.linspace(-1, 1, 384)
    torch.testing.assert_close(model.restore(video, visible), frames_of(patches, model.config.blocks, (16, 24)))


@pytest.mark.slow
def test_a_videomae_is_saved_and_its_encoder_is_transformers_own(tmp_path):
    model, video = videomae(), torch.randint(0, 256, (1, 4, 3, 16, 24), dtype=torch.uint8)
    visible = torch.tensor([[1, 3, 5]])
    again = VideoMaeAutoencoder.load(model.save(tmp_path / "model"))
    torch.testing.assert_close(again(video, visible).normalised, model(video, visible).normalised, rtol=0, atol=0)
    network = model.network.videomae
    encoder = videomae_encoder(network, "it", frame_stride=1)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (video / 255.0 - mean.view(3, 1, 1)) / deviation.view(3, 1, 1)
    torch.testing.assert_close(encoder.features(video).flatten(1, 2), network(pixels).last_hidden_state)
    with pytest.raises(InputError, match=r"expected videos \[B,4,3,16,24\], got"):
        model(video[:, :2], visible)


@pytest.mark.slow
def test_a_videomae_is_trained_by_the_same_loop_and_goes_on_to_the_same_bit(recipe_path, tmp_path):
    recipe = load_recipe(recipe_path, VIDEOMAE)
    whole = train(recipe, tmp_path / "whole")
    assert isinstance(whole, VideoMaeAutoencoder)
    lines = read_lines(tmp_path / "whole" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert (tmp_path / "whole" / "evaluation" / "restored.png").exists()
    assert set(json.loads((tmp_path / "whole" / "evaluation" / "result.json").read_text())) >= {"explained", "psnr_db"}

    def stop(line):
        if line.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "parts", report=stop)
    resumed = train(recipe, tmp_path / "parts")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name
    assert isinstance(load_trained(recipe.architecture, tmp_path / "parts" / "model"), VideoMaeAutoencoder)


def test_its_layers_linear_maps_are_moved_by_muon_and_its_embedding_slowly(recipe_path):
    recipe = load_recipe(recipe_path, [*VIDEOMAE, "optimisation.embedding_rate=0.1"])
    model = VideoMaeAutoencoder(recipe.architecture)
    adam, muon = optimisers_of(model, recipe.optimisation)
    rates = {id(weight): group["peak_lr"] for group in adam.param_groups for weight in group["params"]}
    moved = {id(weight) for group in muon.param_groups for weight in group["params"]}
    layers = [*model.network.videomae.encoder.layer, *model.network.decoder.decoder_layers]
    maps = [part.weight for layer in layers for part in layer.modules() if isinstance(part, nn.Linear)]
    assert moved == {id(weight) for weight in maps}
    assert rates[id(model.embedding.weight)] == pytest.approx(0.1 * recipe.optimisation.learning_rate)
    assert len(rates) + len(moved) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mae.network=vit"], "network"),
        ([*VIDEOMAE, "start.weights=motions"], "a videomae starts from random weights"),
        ([*VIDEOMAE, "start.whiten_grain_px=2"], "a videomae starts from random weights"),
        ([*VIDEOMAE, "preprocessing.num_frames=3"], "a multiple of temporal_patch_size=2"),
    ],
)
def test_what_a_videomae_cannot_be_is_refused(recipe_path, words, said):
    with pytest.raises(ConfigError, match=said):
        load_recipe(recipe_path, words)


# ---- points from frozen features -----------------------------------------------------------------------------------

STILL = TrackSceneConfig(num_frames=4, image_size=(32, 32), num_points=8, speed=0.0, camera_speed=0.0, noise=0.0)


def places(num_rows: int = 4) -> Encoder:
    """Features with the position of each of 4 x 4 patches, independent of the pixels; the same for all clips."""
    grid = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), dim=-1).reshape(16, 2)

    def features(video: torch.Tensor) -> torch.Tensor:
        return grid.expand(len(video), num_rows, 16, 2) + torch.arange(float(num_rows))[:, None, None]

    plan = Preprocessing(image_size=(32, 32), num_frames=4, frame_stride=1)
    return Encoder("places", nn.Linear(1, 1), {}, plan, features)


@pytest.mark.slow
def test_a_readout_learns_to_say_of_still_points_where_they_are():
    readout = PointReadoutConfig(width=32, depth=1, num_heads=2, mlp_width=32, num_bases=4)
    plan = PointProbePlan(
        scenes=STILL, train_scenes=16, test_scenes=3, num_steps=60, batch_size=16, learning_rate=1e-2, readout=readout
    )
    clips = training_clips(plan)
    untrained = point_probe(places(), clips, replace(plan, num_steps=1), seed=0)
    trained = point_probe(places(), clips, plan, seed=0)
    assert trained["pts_within_16"] > untrained["pts_within_16"] + 0.3
    assert trained["occlusion_accuracy"] == 1.0  # nothing that stands still is ever hidden
    assert point_probe(places(), clips, plan, seed=0) == trained


def test_tokens_of_several_frames_are_shown_in_each_of_them():
    plan = PointProbePlan(scenes=STILL, train_scenes=1, test_scenes=2)
    readout = frozen_readout(plan)
    features = FrozenTracker(places(num_rows=2), readout).features(torch.zeros(1, 4, 3, 32, 32, dtype=torch.uint8))
    assert features.shape == (1, 4, 16, 2)
    assert features[0, :, 0, 0].tolist() == [0, 0, 1, 1]
    scores, failures = evaluate_tapvid(FrozenTracker(places(), readout), held_out_videos(plan), image_size=(32, 32))
    assert len(scores.names) == 2
    assert not failures


def frozen_readout(plan: PointProbePlan) -> nn.Module:
    return RecurrentPointReadout(2, plan.readout)


@pytest.mark.slow
def test_held_out_scenes_are_none_of_those_learnt_from():
    plan = PointProbePlan(scenes=STILL, train_scenes=4, test_scenes=4)
    learnt = {clip.video.tobytes() for clip in training_clips(plan)}
    assert learnt.isdisjoint({video.video.tobytes() for video in held_out_videos(plan)})


def test_impossible_plans_are_refused():
    with pytest.raises(ConfigError, match="1 or more"):
        PointProbePlan(scenes=STILL, num_steps=0)


# ---- the study -----------------------------------------------------------------------------------------------------


def write_videos(root: Path, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for number in range(6):
        folder = root / ("dark", "light")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        with VideoWriter(folder / f"{number}.mp4", 12) as writer:
            for _ in range(5):
                writer.write(rng.integers(0, 100 + 100 * (number % 2), (32, 48, 3), np.uint8))
    return root


@pytest.mark.slow
def test_the_study_trains_both_probes_both_and_does_nothing_twice(recipe_path, tmp_path, monkeypatch):
    few = property(lambda self: PointProbePlan(scenes=STILL, train_scenes=2, test_scenes=1, num_steps=1, batch_size=1))
    monkeypatch.setattr(frozen.Plan, "points", few)
    data, validation = write_videos(tmp_path / "train", 0), write_videos(tmp_path / "test", 1)
    words = ["frozen", str(recipe_path), "optimisation.num_steps=1", "--data", str(data), "--epochs", "1"]
    words += ["--validation", str(validation), "--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "to")]
    words += ["--seeds", "0,1"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    content = json.loads((tmp_path / "to" / "result.json").read_text())
    assert [(row["model"], row["features"]) for row in content["rows"]] == [
        (model, features) for model in frozen.MODELS for features in ("pretrained", "random")
    ]
    ours, _, theirs, _ = content["rows"]
    assert abs(ours["parameters"] - theirs["parameters"]) < 0.5 * ours["parameters"]
    for row in content["rows"]:
        for name in ("linear", "k-NN", "attention", "average_jaccard"):
            assert len(row[name]["by_seed"]) == 2
            assert 0 <= row[name]["mean"] <= 1
    assert ours["pretraining_steps_per_s"] > 0
    assert content["still_points"]["average_pts_within_thresh"] > 0.9  # nothing moves in these scenes
    assert (ours["paper_top1"], theirs["paper_top1"]) == ([46.0, 53.9], [45.8, 53.7])
    assert (tmp_path / "to" / "frozen.png").stat().st_size > 5000

    def refuse(*_args, **_kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr("paper.runs.train", refuse)
    monkeypatch.setattr(frozen, "point_probe", refuse)
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    again = json.loads((tmp_path / "to" / "result.json").read_text())
    assert [row["linear"] for row in again["rows"]] == [row["linear"] for row in content["rows"]]


def test_the_study_refuses_a_recipe_without_an_autoencoder(tmp_path):
    plan = frozen.Plan(
        path=Path("src/trecvit/recipes/world.yaml"), overrides=(), runs=tmp_path, seeds=(0,), probes=frozen.ProbePlan()
    )
    with pytest.raises(ConfigError, match="expected a recipe with `mae` for a TRecViT"):
        _ = plan.base
