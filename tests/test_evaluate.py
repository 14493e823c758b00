from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from trecvit.config import Preprocessing, model_config
from trecvit.data.class_names import label_hash
from trecvit.data.clips import Failure, evaluation_views
from trecvit.data.layouts import read_manifest
from trecvit.data.manifest import Manifest
from trecvit.errors import ConfigError, DataError
from trecvit.evaluate.early import READOUTS, Readouts, evaluate_early
from trecvit.evaluate.scores import Scores, calibration_error, confusion, figures, write_result
from trecvit.evaluate.videos import check_labels, evaluate_videos, protocol, views_protocol
from trecvit.model.trecvit import TRecViT
from trecvit.video.encode import VideoWriter

LABELS = ("dark", "light")


def network(labels=LABELS, **fields) -> TRecViT:
    torch.manual_seed(1)
    config = model_config(
        "tiny", width=16, depth=1, num_heads=2, mlp_width=16, head_width=8, patch_size=16, image_size=32,
        num_classes=len(labels), **fields,
    )  # fmt: skip
    model = TRecViT(
        config, preprocessing=Preprocessing(image_size=(32, 32), num_frames=4, frame_stride=1), labels=labels
    )
    return model.eval()


@pytest.fixture
def data(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(5):
        folder = tmp_path / "data" / LABELS[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        with VideoWriter(folder / f"{number}.mp4", 12) as writer:
            for _ in range(6 + 3 * number):
                writer.write(rng.integers(0, 100 + 100 * (number % 2), (32, 48, 3), np.uint8))
    (tmp_path / "data" / "light" / "broken.mp4").write_bytes(b"no video")
    return tmp_path / "data"


def scores(classes, probs, labels=()) -> Scores:
    names = tuple(str(number) for number in range(len(classes)))
    return Scores(names, np.array(classes, np.int64), np.array(probs, np.float32), labels)


def test_figures_equal_those_by_hand():
    probs = [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]
    metrics = figures(scores([0, 1, 1, 1], probs, ("a", "b", "c")))
    assert metrics["videos"] == 4
    assert metrics["top1"] == 0.5
    assert metrics["top5"] == 1.0
    assert metrics["mean_class_accuracy"] == pytest.approx((1 + 1 / 3) / 2)
    assert metrics["per_class"] == [
        {"class": "a", "videos": 1, "top1": 1.0, "most_taken_for": ""},
        {"class": "b", "videos": 3, "top1": pytest.approx(1 / 3), "most_taken_for": "a"},
    ]
    assert confusion(scores([0, 1, 1, 1], probs)).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_equal_probabilities_are_never_right():
    metrics = figures(scores([0, 1, 2], np.full((3, 10), 0.1)))
    assert (metrics["top1"], metrics["top5"]) == (0.0, 0.0)


def test_top5_counts_the_five_likeliest():
    probs = np.tile(np.arange(10, 0, -1) / 55, (10, 1))
    assert figures(scores(list(range(10)), probs))["top5"] == 0.5


def test_calibration_error_of_known_cases():
    assert calibration_error(scores([0, 0, 0, 1], [[0.75, 0.25]] * 4)) == pytest.approx(0.0, abs=1e-6)
    assert calibration_error(scores([1, 1], [[1.0, 0.0]] * 2)) == pytest.approx(1.0)
    # two bins: 0.55 of confidence never right (2 of 4), 0.95 always right
    mixed = scores([1, 1, 0, 0], [[0.55, 0.45]] * 2 + [[0.95, 0.05]] * 2)
    assert calibration_error(mixed) == pytest.approx(0.5 * 0.55 + 0.5 * 0.05, abs=1e-6)


def test_every_figure_can_be_computed_from_the_saved_scores(tmp_path):
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(7), 50).astype(np.float32)
    original = Scores(
        tuple(f"vidéo {n}" for n in range(50)), rng.integers(0, 7, 50), probs, tuple(f"class {n}" for n in range(7))
    )
    result = write_result(tmp_path / "out", original, {"clips": 4}, [Failure("x", "why")])
    again = Scores.load(tmp_path / "out" / "scores.npz")
    assert again.names == original.names
    assert again.labels == original.labels
    stored = json.loads((tmp_path / "out" / "result.json").read_text())
    assert stored == result
    assert stored["failed"] == [{"name": "x", "reason": "why"}]
    with PIL.Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert min(picture.size) > 7 * 24, "cells, and the names beside and below them"
    for name, value in figures(again).items():
        assert stored[name] == value
    (tmp_path / "bad.npz").write_bytes(b"x")
    with pytest.raises(DataError, match="expected the scores"):
        Scores.load(tmp_path / "bad.npz")
    with pytest.raises(DataError, match="expected at least one readable video"):
        scores([], np.zeros((0, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("views_at_once", [1, 5, 100])
def test_a_videos_score_is_the_mean_over_its_views(data, views_at_once):
    model, manifest = network(), read_manifest(data)
    seen = []
    found, failures = evaluate_videos(
        model, manifest, num_clips=2, num_crops=3, views_at_once=views_at_once, report=lambda *now: seen.append(now)
    )
    assert [failure.name for failure in failures] == ["light/broken.mp4"]
    assert seen[-1] == (6, 1)
    assert found.names == tuple(video.name for video in manifest.videos if "broken" not in video.name)
    for number, name in enumerate(found.names):
        views = evaluation_views(data / name, model.preprocessing, 2, 3)
        with torch.inference_mode():
            expected = torch.stack([model(view[None]).probs[0] for view in views]).mean(dim=0)
        np.testing.assert_allclose(found.probs[number], expected, rtol=1e-5)


def test_names_that_are_not_utf8_are_read_back_from_the_results(tmp_path, data):
    good, bad = os.fsdecode(b"dark/\xe9.mp4"), os.fsdecode(b"light/\xe9.mp4")
    root = data.rename(tmp_path / os.fsdecode(b"d\xe4ta"))
    next((root / "dark").glob("*.mp4")).rename(root / good)
    (root / bad).write_bytes(b"no video")
    model, manifest = network(), read_manifest(root)
    scores, failures = evaluate_videos(model, manifest, num_clips=1, num_crops=1)
    about = protocol(model, manifest, checkpoint="x", looked_at=views_protocol(1, 1))
    result = write_result(tmp_path / "result", scores, about, failures)
    assert json.loads((tmp_path / "result" / "result.json").read_bytes()) == result
    assert bad in {entry["name"] for entry in result["failed"]}
    assert result["protocol"]["data"] == str(root)
    assert good in Scores.load(tmp_path / "result" / "scores.npz").names


@pytest.mark.slow
def test_workers_change_nothing(data):
    model, manifest = network(), read_manifest(data)
    alone, _ = evaluate_videos(model, manifest, num_clips=2, num_crops=1)
    helped, failures = evaluate_videos(model, manifest, num_clips=2, num_crops=1, num_workers=2)
    assert helped.names == alone.names
    np.testing.assert_array_equal(helped.probs, alone.probs)
    assert len(failures) == 1


def test_checkpoints_of_other_classes_are_refused(data):
    manifest = read_manifest(data)
    with pytest.raises(ConfigError, match="no head"):
        check_labels(TRecViT(model_config("tiny", num_classes=0)), manifest)
    with pytest.raises(
        DataError, match="model's order of classes, got class 0 'dark' in the data and 'light' in the model"
    ):
        check_labels(network(("light", "dark")), manifest)
    with pytest.raises(DataError, match="'dark' is in only one"):
        check_labels(network(("light", "grey", "black")), manifest)
    nameless = Manifest(manifest.videos, (), (), "list.txt")
    check_labels(network(), nameless)
    with pytest.raises(DataError, match="expected the model's 1 classes, got 2"):
        check_labels(network(("one",)), nameless)


def test_the_protocol_identifies_weights_data_and_views(data):
    about = protocol(network(), read_manifest(data), checkpoint="x", looked_at=views_protocol(4, 3))
    assert about["clips"] == 4
    assert about["crops"] == 3
    assert about["label_map_sha256"] == label_hash(LABELS)
    assert len(about["weights_sha256"]) == 64
    other = network()
    torch.nn.init.ones_(other.head.classifier.bias)
    again, changed = (
        protocol(model, read_manifest(data), checkpoint="y", looked_at=views_protocol(4, 3))["weights_sha256"]
        for model in (network(), other)
    )
    assert again == about["weights_sha256"] != changed
    assert about["decoder"].startswith("PyAV ")
    assert json.loads(json.dumps(about)) == about


@pytest.mark.slow
def test_early_outputs_equal_those_of_the_stream(data):
    model, manifest = network(), read_manifest(data)
    found, failures = evaluate_early(model, manifest, parts=(0.5, 1.0))
    assert len(failures) == 1
    assert set(found) == {(name, part) for name in READOUTS for part in (0.5, 1.0)}
    from trecvit.runtime.stream import stream

    for number, name in enumerate(found["mean", 1.0].names):
        updates = [update.probs for update in stream(model, data / name)]
        np.testing.assert_allclose(found["mean", 1.0].probs[number], updates[-1], atol=1e-5)
        half = updates[int(np.ceil(0.5 * len(updates))) - 1]
        np.testing.assert_allclose(found["mean", 0.5].probs[number], half, atol=1e-5)


def test_unreadable_and_unlabelled_data_are_refused(tmp_path):
    from trecvit.data.manifest import Video

    (tmp_path / "broken.mp4").write_bytes(b"no video")
    unreadable = Manifest((Video("broken", tmp_path / "broken.mp4", 0),), LABELS, (), "x")
    unlabelled = Manifest((Video("broken", tmp_path / "broken.mp4", -1),), LABELS, (), "x")
    for evaluate in (evaluate_videos, evaluate_early):
        with pytest.raises(DataError, match="none of 1 videos could be read; the first, broken"):
            evaluate(network(), unreadable)
        with pytest.raises(DataError, match="expected labelled videos, got 1 without a class"):
            evaluate(network(), unlabelled)


def test_readouts_equal_their_definitions():
    evidence = torch.randn(40, 5, dtype=torch.float64)
    readouts = Readouts(half_life=4.0, window=6)
    running = torch.zeros(5, dtype=torch.float64)
    weight = torch.zeros((), dtype=torch.float64)
    for t in range(40):
        so_far = evidence[: t + 1]
        keep = 0.5 ** (1 / 4)
        running, weight = keep * running + evidence[t], keep * weight + 1
        torch.testing.assert_close(readouts(so_far, "exponential"), running / weight)
        torch.testing.assert_close(readouts(so_far, "mean"), so_far.sum(0) / (t + 1))
        torch.testing.assert_close(readouts(so_far, "window"), evidence[max(0, t - 5) : t + 1].mean(0))
    with pytest.raises(ConfigError, match="window >= 1"):
        Readouts(window=0)
    with pytest.raises(ConfigError, match="shares above 0"):
        evaluate_early(network(), _one_video(), parts=(0.0,))


def _one_video() -> Manifest:
    from trecvit.data.manifest import Video

    return Manifest((Video("a", Path("a.mp4"), 0),), LABELS, (), "x")
