"""Frozen features on disk, and the three probes on them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from paper.commands import app as paper_app
from trecvit.cli import app
from trecvit.config import Preprocessing, model_config
from trecvit.data.clips import evaluation_views
from trecvit.data.layouts import read_manifest
from trecvit.errors import CheckpointError, ConfigError, DataError
from trecvit.evaluate import features as features_module
from trecvit.evaluate.features import Features, cached_features, trecvit_encoder
from trecvit.model.trecvit import TRecViT
from trecvit.train.probe import ProbePlan, attention_probe, fresh_trecvit, knn_probe, linear_probe, probe
from trecvit.video.encode import VideoWriter

LABELS = ("dark", "light")


def network(**fields) -> TRecViT:
    torch.manual_seed(1)
    config = model_config(
        "tiny", width=16, num_heads=2, mlp_width=16, head_width=8, patch_size=16, image_size=32, num_classes=2,
        **{"depth": 1, **fields},
    )  # fmt: skip
    plan = Preprocessing(image_size=(32, 32), num_frames=4, frame_stride=1)
    return TRecViT(config, preprocessing=plan, labels=LABELS).eval()


def write_videos(root: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for number in range(count):
        folder = root / LABELS[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        with VideoWriter(folder / f"{number:02d}.mp4", 12) as writer:
            for _ in range(5):
                writer.write(rng.integers(0, 100 + 100 * (number % 2), (32, 48, 3), np.uint8))
    return root


@pytest.fixture(scope="module")
def train_data(tmp_path_factory) -> Path:
    return write_videos(tmp_path_factory.mktemp("train"), 9, 0)


@pytest.fixture
def test_data(tmp_path) -> Path:
    root = write_videos(tmp_path / "test", 6, 1)
    (root / "light" / "broken.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(features_module, "SHARD", 4)


# ---- the cache -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_kept_is_what_the_model_says(tmp_path, train_data):
    model, manifest = network(), read_manifest(train_data)
    found, failures = cached_features(
        trecvit_encoder(model, "it"), manifest, tmp_path, num_clips=2, num_crops=3, report=lambda *_: None
    )
    assert not failures
    assert found.names == tuple(video.name for video in manifest.videos)
    assert found.classes.tolist() == [video.label for video in manifest.videos]
    assert sorted(path.name for path in tmp_path.glob("shard*")) == [f"shard-0000{n}.safetensors" for n in range(3)]
    for rows, view in (([8, 0, 5], 4), ([3], 0)):
        views = [evaluation_views(manifest.videos[row].source, model.preprocessing, 2, 3)[view] for row in rows]
        with torch.no_grad():
            expected = model(torch.stack(views)).features
        torch.testing.assert_close(found.tokens(rows, view), expected, atol=2e-3, rtol=2e-3)  # half precision
        torch.testing.assert_close(found.per_frame[rows, view], expected.mean(dim=2), atol=1e-5, rtol=1e-4)
    assert found.per_frame.shape == (9, 6, 4, 16)


def test_what_is_there_is_not_computed_again_and_what_is_missing_is(tmp_path, train_data):
    encoder, manifest = trecvit_encoder(network(), "it"), read_manifest(train_data)
    first, _ = cached_features(encoder, manifest, tmp_path)
    calls: list[int] = []
    counted = type(encoder)(
        **{**encoder.__dict__, "features": lambda video: calls.append(len(video)) or encoder.features(video)}
    )
    again, _ = cached_features(counted, manifest, tmp_path)
    assert calls == []
    (tmp_path / "shard-00001.safetensors").unlink()
    mended, _ = cached_features(counted, manifest, tmp_path)
    assert calls == [1] * 4
    for other in (again, mended):
        assert torch.equal(other.per_frame, first.per_frame)
        assert torch.equal(other.tokens([7, 4], 0), first.tokens([7, 4], 0))
    (tmp_path / "shard-00000.safetensors").write_bytes(b"x" * 99)
    with pytest.raises(DataError, match=r"shard-00000\.safetensors: expected a shard of features; remove it"):
        cached_features(encoder, manifest, tmp_path)


def test_features_of_names_that_are_no_utf8_are_kept_too(tmp_path, train_data):
    (tmp_path / "data").mkdir()
    for place in sorted(train_data.glob("*/*.mp4"))[::2]:
        target = tmp_path / "data" / place.parent.name / f"\udce9{place.name}"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(place.read_bytes())
    bad = tmp_path / "data" / place.parent.name / "\udce4.mp4"
    bad.write_bytes(b"no video")
    encoder, manifest = trecvit_encoder(network(), "it"), read_manifest(tmp_path / "data")
    first, failures = cached_features(encoder, manifest, tmp_path / "features")
    again, failures_again = cached_features(encoder, manifest, tmp_path / "features")
    assert first.names == again.names
    assert [failure.name for failure in failures] == [f"{bad.parent.name}/{bad.name}"]
    assert failures_again == failures
    # safetensors could write to such a folder, and not read from it.
    with pytest.raises(CheckpointError, match="expected a path in UTF-8"):
        cached_features(encoder, manifest, tmp_path / "\udce9")
    assert not (tmp_path / "\udce9").exists()


def test_features_of_something_else_are_refused(tmp_path, train_data):
    model, manifest = network(), read_manifest(train_data)
    cached_features(trecvit_encoder(model, "it"), manifest, tmp_path)
    other = network()
    with torch.no_grad():
        other.norm.bias.add_(1e-3)
    longer = network()
    longer.preprocessing = Preprocessing(image_size=(32, 32), num_frames=5, frame_stride=1)
    for changed, views, words in (
        (other, 1, "weights_sha256 differ"),
        (longer, 1, "preprocessing differ"),
        (model, 2, "clips differ"),
        (network(depth=2), 1, "encoder, weights_sha256 differ"),
    ):
        with pytest.raises(DataError, match=f"expected features of this encoder and data, got others \\({words}"):
            cached_features(trecvit_encoder(changed, "it"), manifest, tmp_path, num_clips=views)
    with torch.no_grad():
        model.head.classifier.bias.add_(1)  # which the features do not see
    cached_features(trecvit_encoder(model, "it"), manifest, tmp_path)
    (tmp_path / "key.json").write_text("[")
    with pytest.raises(DataError, match="expected the key of the features beside it"):
        cached_features(trecvit_encoder(model, "it"), manifest, tmp_path)


def test_another_video_under_the_same_name_is_another(tmp_path):
    root = write_videos(tmp_path / "data", 4, 0)
    cached_features(trecvit_encoder(network(), "it"), read_manifest(root), tmp_path / "cache")
    os.truncate(root / "light" / "01.mp4", 500)
    with pytest.raises(DataError, match="videos_sha256 differ"):
        cached_features(trecvit_encoder(network(), "it"), read_manifest(root), tmp_path / "cache")


# ---- the probes ----------------------------------------------------------------------------------------------------


def made_up(tmp_path: Path, name: str, count: int, seed: int, *, hidden: bool = False) -> Features:
    """Features whose class shows in their mean, or, hidden, in one token of one frame only."""
    rng = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 3
    tokens = torch.randn(count, 1, 2, 4, 12, generator=rng)
    if hidden:
        places = torch.randint(0, 4, (count,), generator=rng)
        tokens[torch.arange(count), 0, 1, places] = 6.0 * torch.eye(12)[classes] + 8.0 * torch.eye(12)[5]
    else:
        tokens += 1.5 * torch.eye(12)[classes][:, None, None, None]
    path = tmp_path / f"{name}.safetensors"
    features_module._write_shard(path, list(enumerate(tokens)), {})
    names = tuple(str(number) for number in range(count))
    return Features(names, classes, tokens.mean(dim=3), ((path, 0),))


def accuracy(probs: torch.Tensor, test: Features) -> float:
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(len(probs)))
    return float((probs.argmax(dim=1) == test.classes).float().mean())


def test_the_probes_find_what_is_in_the_mean(tmp_path):
    train, test = made_up(tmp_path, "train", 90, 0), made_up(tmp_path, "test", 45, 1)
    assert accuracy(linear_probe(train, test, 3), test) > 0.9
    assert accuracy(knn_probe(train, test, 3), test) > 0.8
    plan = ProbePlan(epochs=20, learning_rate=3e-3)
    assert accuracy(attention_probe(train, test, 3, plan, seed=0), test) > 0.9


@pytest.mark.slow
def test_only_attention_finds_what_one_token_says(tmp_path):
    train, test = made_up(tmp_path, "train", 240, 0, hidden=True), made_up(tmp_path, "test", 60, 1, hidden=True)
    plan = ProbePlan(epochs=20, learning_rate=3e-3, width=24)
    steps: list[tuple[int, int]] = []
    found = attention_probe(train, test, 3, plan, seed=0, report=lambda *told: steps.append(told))
    assert accuracy(found, test) > 0.95
    assert steps[-1] == (160, 160)
    assert torch.equal(found, attention_probe(train, test, 3, plan, seed=0))
    assert not torch.equal(found, attention_probe(train, test, 3, plan, seed=1))


def test_nearest_neighbours_of_a_case_worked_by_hand(tmp_path):
    """Two training clips, at right angles and along: the votes stand as e^0 to e^(-1/0.07)."""
    train = Features(("a", "b"), torch.tensor([0, 1]), torch.tensor([[[[2.0, 0]]], [[[0, 3.0]]]]), ())
    test = Features(("c",), torch.tensor([0]), torch.tensor([[[[9.0, 0], [1.0, 0.0]], [[2.0, 0], [0.0, 2.0]]]]), ())
    ratio = np.exp(-1 / 0.07)
    expected = (np.array([1, ratio]) / (1 + ratio) + 0.5) / 2  # two views
    np.testing.assert_allclose(knn_probe(train, test, 2)[0], expected, rtol=1e-5)


def test_the_linear_probe_is_at_its_least_loss(tmp_path):
    """The gradient of the ridge regression's loss is zero: its classes' mean probabilities are the classes' shares."""
    train = made_up(tmp_path, "train", 30, 0)
    probs = linear_probe(train, train, 3)
    np.testing.assert_allclose(probs.mean(dim=0), [1 / 3] * 3, atol=1e-4)


@pytest.mark.parametrize("num_frames", [2, 8, 19])
def test_the_linear_probe_tells_what_comes_first_and_the_mean_does_not(num_frames):
    """Each clip holds the same features, forwards as one class and backwards as the other."""
    rng = torch.Generator().manual_seed(0)

    def clips(count: int) -> Features:
        forwards = torch.linspace(-1, 1, num_frames)[:, None] + torch.randn(count, 1, num_frames, 3, generator=rng)
        both = torch.stack([forwards, forwards.flip(2)], dim=1).flatten(0, 1)
        names = tuple(str(number) for number in range(2 * count))
        return Features(names, torch.arange(2 * count) % 2, both, ())

    train, test = clips(200), clips(100)
    assert accuracy(linear_probe(train, test, 2), test) > 0.8
    assert 0.4 < accuracy(knn_probe(train, test, 2), test) < 0.6


# ---- side by side --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_side_by_side_and_the_second_time_from_the_disk(tmp_path, train_data, test_data):
    model = network()
    train, test = read_manifest(train_data), read_manifest(test_data)
    told: list[str] = []
    asked = (lambda seed: trecvit_encoder(fresh_trecvit(model, seed), str(seed)), train, test, tmp_path / "to")
    plan = ProbePlan(epochs=2, batch_size=4, num_seeds=2)
    result, failures = probe(
        trecvit_encoder(model, "it"), *asked, plan, report=lambda words, done, total: told.append(words)
    )
    assert [failure.name for failure in failures] == ["light/broken.mp4"]
    assert result == json.loads((tmp_path / "to" / "probe.json").read_text())
    rows = {(row["features"], row["probe"]): row for row in result["rows"]}
    assert set(rows) == {(kind, name) for kind in ("pretrained", "random") for name in ("linear", "k-NN", "attention")}
    for row in rows.values():
        assert len(row["top1"]) == 2
        assert row["mean"] == pytest.approx(np.mean(row["top1"]))
        assert row["deviation"] == pytest.approx(np.std(row["top1"], ddof=1))
    assert rows["random", "linear"]["mean"] > 0.8  # brightness shows through any weights
    assert result["encoder_parameters"] == sum(
        value.numel() for name, value in model.named_parameters() if not name.startswith("head.")
    )
    assert any(words.startswith("features, pretrained, train") for words in told)
    told.clear()
    again, failures = probe(
        trecvit_encoder(model, "it"), *asked, plan, report=lambda words, done, total: told.append(words)
    )
    assert not any(words.startswith("features") for words in told)
    assert [failure.name for failure in failures] == ["light/broken.mp4"]
    assert [row["top1"] for row in again["rows"]] == [row["top1"] for row in result["rows"]]


@pytest.mark.slow
def test_the_command(tmp_path, train_data, test_data):
    network().save(tmp_path / "model")
    words = ["probe", "--data", train_data, "--validation", test_data, "--model", tmp_path / "model"]
    words += ["--to", tmp_path / "to", "--epochs", 1, "--seeds", 1]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 1, done.output  # a video is broken
    assert "broken.mp4" in done.output
    assert "attention" in done.output
    (test_data / "light" / "broken.mp4").unlink()
    done = CliRunner().invoke(app, [str(word) for word in [*words, "--json"]])
    assert isinstance(done.exception, DataError)
    assert "videos" in str(done.exception)
    done = CliRunner().invoke(app, [str(word) for word in [*words, "--json", "--to", tmp_path / "other"]])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["rows"]) == 6


def test_other_classes_and_impossible_plans_are_refused(tmp_path, train_data):
    (tmp_path / "other" / "grey").mkdir(parents=True)
    (tmp_path / "other" / "grey" / "a.mp4").write_bytes(b"x")
    encoder = trecvit_encoder(network(), "it")
    with pytest.raises(DataError, match="do not have the same classes"):
        probe(
            encoder, lambda _: encoder, read_manifest(train_data), read_manifest(tmp_path / "other"), tmp_path,
            ProbePlan(),
        )  # fmt: skip
    for fields in ({"epochs": 0}, {"learning_rate": 0.0}, {"width": -1}, {"num_seeds": 0}):
        with pytest.raises(ConfigError, match="expected epochs"):
            ProbePlan(**fields)


# ---- VideoMAE ------------------------------------------------------------------------------------------------------


def videomae(folder: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(2)
    config = transformers.VideoMAEConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32, num_frames=4,
        decoder_hidden_size=24, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
        decoder_intermediate_size=24,
    )  # fmt: skip
    transformers.VideoMAEForPreTraining(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_videomaes_tokens_are_told_frame_by_frame(tmp_path):
    from paper.video_transformers import fresh_videomae, load_videomae, videomae_encoder

    model = load_videomae(videomae(tmp_path))
    encoder = videomae_encoder(model, "it")
    assert encoder.preprocessing == Preprocessing(image_size=(32, 32), num_frames=4, frame_stride=4)
    video = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8)
    seen: list[torch.Tensor] = []
    handle = encoder.network.embeddings.register_forward_hook(lambda _module, _args, out: seen.append(out))
    other = video.clone()
    other[:, 2:] = 0
    with torch.no_grad():
        tokens = encoder.features(video)
        encoder.features(other)
    handle.remove()
    assert tokens.shape == (2, 2, 4, 24)
    first, second = (part.unflatten(1, (2, 4)) for part in seen)
    assert torch.equal(first[:, 0], second[:, 0])
    assert not torch.isclose(first[:, 1], second[:, 1]).all(dim=-1).any()
    again = videomae_encoder(fresh_videomae(model, 0), "fresh")
    assert not torch.equal(again.features(video), tokens)
    assert torch.equal(again.features(video), videomae_encoder(fresh_videomae(model, 0), "fresh").features(video))


@pytest.mark.slow
def test_a_videomae_is_probed_as_a_trecvit_is(tmp_path, train_data):
    folder = videomae(tmp_path / "videomae")
    words = ["probe", "--data", train_data, "--validation", train_data, "--videomae", folder, "--stride", 1]
    words += ["--to", tmp_path / "to", "--epochs", 1, "--seeds", 1]
    done = CliRunner().invoke(paper_app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "to" / "probe.json").read_text())
    assert result["protocol"]["architecture"]["architecture"] == "VideoMAE"
    assert result["protocol"]["preprocessing"]["frame_stride"] == 1


@pytest.mark.slow
def test_what_is_no_videomae_is_refused(tmp_path):
    from paper.video_transformers import load_videomae

    pytest.importorskip("transformers")
    with pytest.raises(CheckpointError, match="expected a folder with transformers'"):
        load_videomae(tmp_path / "nothing")
    (tmp_path / "config.json").write_text('{"model_type": "videomae"}')
    with pytest.raises(CheckpointError, match="as transformers saves it"):
        load_videomae(tmp_path)
