"""Counted costs against sums by hand and the paper's figures, and the comparison of trackers."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from models import tiny_tracker
from typer.testing import CliRunner
from video_fixtures import make_video

from paper import efficiency, video_transformers
from paper.commands import app
from paper.efficiency import MODELS, OURS, PAPER, cost, costs, frame_costs
from paper.video_transformers import build_baseline
from trecvit import config
from trecvit.evaluate.point_baselines import static_points
from trecvit.evaluate.point_comparison import compare_trackers
from trecvit.evaluate.tapvid import evaluate_tapvid
from trecvit.synthetic.pictures import photographs
from trecvit.synthetic.track_scenes import TrackSceneConfig, TrackScenes


@pytest.fixture
def shallow(monkeypatch):
    """Every model with two layers, as every operation of each layer is counted."""
    monkeypatch.setitem(config.PRESETS, "base", dataclasses.replace(config.PRESETS["base"], depth=2))
    for sizes in (video_transformers._BASE, video_transformers._LARGE):
        monkeypatch.setitem(sizes, "num_hidden_layers", 2)
    monkeypatch.setattr(video_transformers, "_TEMPORAL_LAYERS", 1)


@pytest.mark.slow
def test_costs_are_those_of_the_papers_table_3():
    """Operations within the two counts' differences; memory is XLA's there and PyTorch's here."""
    ours, vivit = (efficiency._counted(name, 32, fused=False, training=False) for name in (OURS, "ViViT-L"))
    for name, counted in ((OURS, ours), ("ViViT-L", vivit)):
        parameters, tflop, gigabytes = PAPER[name, 32]
        assert counted.parameters / 1e6 == pytest.approx(parameters, rel=0.005)
        assert counted.inference[0] / 1e12 == pytest.approx(tflop, rel=0.03)
        # At least the weights and one block's hidden layer of its MLP.
        widest_bytes = 4 * counted.parameters + 4 * 32 * 196 * 4 * 768
        assert widest_bytes < counted.inference[1] < 1.1e9 * gigabytes
    assert vivit.inference[0] / ours.inference[0] > 5
    assert vivit.inference[1] / ours.inference[1] > 3
    assert vivit.inference[0] == vivit_operations(layers=24)


def vivit_operations(layers: int) -> int:
    tokens, width = 32 * 196 + 1, 1024
    linear = 2 * tokens * width * 12 * width
    attention = 2 * 2 * tokens * tokens * width
    patches = 2 * (tokens - 1) * 768 * width
    return layers * (linear + attention) + patches


@pytest.mark.slow
def test_training_costs_three_times_the_operations_and_fused_attention_saves_the_materialised_maps(shallow):
    vivit = cost("ViViT-L", 32)
    assert vivit.inference_flop == vivit_operations(layers=2)
    assert vivit.training_flop == pytest.approx(3 * vivit.inference_flop, rel=0.01)
    one_map_bytes = 16 * (32 * 196 + 1) ** 2 * 4
    assert vivit.inference_bytes - vivit.fused_inference_bytes > one_map_bytes
    assert vivit.training_bytes - vivit.fused_training_bytes > 2 * one_map_bytes


@pytest.mark.slow
def test_cost_grows_with_the_frames_except_in_a_stream(shallow):
    short, long = (cost(OURS, frames, training=False) for frames in (8, 32))
    assert long.inference_flop == pytest.approx(4 * short.inference_flop, rel=0.01)
    new_frame, *windows = frame_costs([short, long])
    assert new_frame.window == 1
    assert new_frame.flop == pytest.approx(short.inference_flop / 8, rel=0.01)
    assert [window.flop for window in windows] == [short.inference_flop, long.inference_flop]


@pytest.mark.slow
def test_a_short_loop_costs_as_much_as_the_whole_loop(shallow, monkeypatch):
    few = cost(OURS, 5)
    assert few.training_bytes > few.fused_training_bytes > few.inference_bytes
    monkeypatch.setattr(efficiency, "_FRAMES_FOLLOWED", 1_000_000)
    assert few == cost(OURS, 5)


@pytest.mark.slow
def test_operations_of_the_other_temporal_parts_equal_sums_by_hand(shallow):
    """Of 2 temporal parts, 4 frames of 197 tokens: an LSTM's 8 D x D matrices, a convolution's 4."""
    product = 2 * 2 * 4 * 197 * 768 * 768
    lstm, conv = (cost(name, 4, training=False).inference_flop for name in ("ViT-LSTM", "ViT-Conv1D"))
    assert lstm - conv == 4 * product
    linear_and_gates = 3 + 2 / 12  # of the LRU's block: three linear layers, two gates with 12 blocks each
    assert conv - cost(OURS, 4, training=False).inference_flop == round((4 - linear_and_gates) * product)


@pytest.mark.slow
def test_training_is_counted_for_the_papers_lengths_only(shallow):
    short, long = costs(["ViT-Conv1D"], [1, 128])
    assert short.training_flop > 2.9 * short.inference_flop
    assert short.training_bytes >= short.fused_training_bytes > short.inference_bytes
    assert long.training_flop is long.training_bytes is long.fused_training_bytes is None


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*MODELS} - {OURS, "ViT-LSTM", "ViT-Conv1D", "ViViT-L", "ViViT-B"}))
def test_every_other_model_to_compare_with_can_be_counted(name, request):
    with torch.device("meta"):
        whole = build_baseline(name, image_size=224, num_frames=2, fused=False)
    assert sum(parameter.numel() for parameter in whole.parameters()) > 8e7
    request.getfixturevalue("shallow")
    few = cost(name, 2, training=False)
    assert few.inference_flop > 0
    assert few.inference_bytes > 4 * few.parameters
    assert few.training_flop is None


@pytest.mark.slow
def test_the_command_writes_figures_and_pictures(shallow, tmp_path):
    words = ["efficiency", "--to", str(tmp_path), "--model", OURS, "--model", "ViViT-B", "--frames", "1"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    content = json.loads((tmp_path / "efficiency.json").read_text())
    assert [cost["model"] for cost in content["costs"]] == [OURS, "ViViT-B"]
    assert [cost["model"] for cost in content["per_new_frame"]] == [OURS, OURS, "ViViT-B"]
    assert (tmp_path / "efficiency.png").stat().st_size > 10_000
    assert "<svg" in (tmp_path / "efficiency.svg").read_text()


@pytest.mark.slow
def test_a_tracker_is_scored_beside_both_baselines(tmp_path):
    pytest.importorskip("cv2")
    scene = TrackSceneConfig(num_frames=4, image_size=(32, 32), num_points=6, min_things=1, max_things=2)
    footage = make_video(tmp_path / "real.mp4")
    reported: list[int] = []
    scored = compare_trackers(
        tiny_tracker(),
        scenes=scene,
        num_scenes=2,
        footage=[footage],
        clips_per_video=1,
        pictures=tmp_path / "pictures",
        report=reported.append,
    )
    tests = ("held-out scenes", "moved footage", "moved footage, covered now and then")
    assert [(score.test, score.tracker) for score in scored] == [
        (test, name) for test in tests for name in ("TAPNext", "still points", "Lucas–Kanade")
    ]
    assert reported == list(range(1, 10))
    drawn = {path.relative_to(tmp_path / "pictures").as_posix() for path in tmp_path.glob("pictures/*/*.png")}
    covered = "moved footage, covered now and then"
    scenes_drawn = {f"held-out scenes/scene {number}.png" for number in range(2)}
    assert drawn == {*scenes_drawn, *(f"{test}/{footage.name}[0].png" for test in ("moved footage", covered))}
    scenes = TrackScenes(scene, seed=1, pictures=photographs("held_out")).videos(range(2))
    scores, _ = evaluate_tapvid(static_points, scenes, image_size=(32, 32))
    assert scored[1].metrics == {name: scores.means()[name] for name in scored[1].metrics}
    assert scored[0].metrics != scored[1].metrics
