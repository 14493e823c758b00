"""The readouts and the paper's tracker: formulas, clips against streams, slots, frozen backbone, refused inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import (
    assert_same_tracks,
    of_each_part,
    random_video,
    relative_error,
    run_tracker,
    tiny_model,
    tiny_readout_tracker,
    tiny_tracker,
    unchecked,
)
from torch import Tensor

import trecvit
from trecvit.accelerate.optimize import optimize
from trecvit.config import ModelConfig
from trecvit.errors import CheckpointError, ConfigError, InputError, StateError
from trecvit.model.readout_tracker import ReadoutState, ReadoutTracker, ReadoutTrackerConfig
from trecvit.model.readouts import AttentionReadout, PointReadoutConfig, RecurrentPointReadout, fourier_features
from trecvit.model.tapnext import TrackState
from trecvit.model.tracker import track_both_ways
from trecvit.model.trecvit import TRecViT
from trecvit.runtime.describe import POINTS, flops_per_frame
from trecvit.runtime.live import LiveTracker
from trecvit.weights.load import load, load_as

NUM_FRAMES = 8
TRACKER = tiny_readout_tracker()
# Each of two rows has queries in the first frame, in mid-clip and in the last frame, and an empty slot.
QUERIES = torch.tensor(
    [
        [[0, 3.5, 20.25], [3, 30.0, 1.5], [7, 0.0, 32.0], [math.inf, 0, 0]],
        [[2, 16.0, 16.0], [0, 31.9, 0.1], [0, 8.25, 25.0], [5, 12.5, 3.0]],
    ]
)


def video_of(batch_size: int = 2, num_frames: int = NUM_FRAMES, seed: int = 0) -> Tensor:
    return random_video(batch_size, num_frames, 32, 32, seed=seed)


def from_its_query_on(part: Tensor) -> Tensor:
    """Predictions before a query are meaningless."""
    is_told = torch.arange(NUM_FRAMES) >= QUERIES[..., :1]
    return part * is_told.view(*is_told.shape, *[1] * (part.dim() - 3))


# ---- the formulas again: one point, one frame, one head at a time ----


def norm(x: Tensor, scale: Tensor, eps: float = 1e-6) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + eps).sqrt() * scale


def gelu(x: Tensor) -> Tensor:
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rms(x: Tensor, scale: Tensor) -> Tensor:
    return x / (x.square().mean() + 1e-6).sqrt() * scale


def perceptron(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    up = weights[f"{name}.up.weight"] @ x + weights[f"{name}.up.bias"]
    return weights[f"{name}.down.weight"] @ gelu(up) + weights[f"{name}.down.bias"]


def read_one_point(
    readout: RecurrentPointReadout, frames: Tensor, x: float, y: float, first: int
) -> list[tuple[float, float, float, float]]:
    """Predict one point in each of the frames [T,N,D] from its query's on, in float64."""
    w = {name: weight.detach() for name, weight in readout.state_dict().items()}
    bases, heads = readout.config.num_bases, readout.config.num_heads
    angles = [axis * 2**i * math.pi for i in range(bases) for axis in (x, y)]
    features = torch.tensor([math.sin(a) for a in angles] + [math.sin(a + math.pi / 2) for a in angles]).double()
    state = perceptron(w, "begin", features)
    told = []
    for tokens in frames[first:]:
        z = w["enter.weight"] @ state + w["enter.bias"]
        for number in range(readout.config.depth):
            layer = {name.removeprefix(f"layers.{number}."): weight for name, weight in w.items()}
            queries = (layer["queries.weight"] @ norm(z, layer["query_norm.weight"])).chunk(heads)
            mixed = []
            for head, query in enumerate(queries):
                keys = [(layer["keys.weight"] @ token).chunk(heads)[head] for token in tokens]
                values = [(layer["values.weight"] @ token).chunk(heads)[head] for token in tokens]
                query = rms(query, layer["queries_scale"])
                scores = torch.stack([rms(key, layer["keys_scale"]) @ query for key in keys]) / math.sqrt(len(query))
                share = scores.exp() / scores.exp().sum()
                mixed.append(sum(part * value for part, value in zip(share, values, strict=True)))
            z = z + layer["attention_out.weight"] @ torch.cat(mixed) + layer["attention_out.bias"]
            z = z + perceptron(layer, "mlp", norm(z, layer["mlp_norm.weight"]))
        now = state + w["leave.weight"] @ norm(z, w["norm.weight"]) + w["leave.bias"]
        place = 1 / (1 + torch.exp(-perceptron(w, "place", now)))
        told.append((*place.tolist(), *perceptron(w, "belief", now).tolist()))
        state = norm(now + perceptron(w, "predict", now), w["state_norm.weight"], 1e-4)
    return told


def test_the_recurrent_readout_is_moogs_formula():
    tracker = tiny_readout_tracker().double()
    features = torch.randn(2, 5, 7, 16, dtype=torch.float64)
    places = torch.rand(2, 3, 2, dtype=torch.float64)
    firsts = torch.tensor([[0, 3, 4], [2, 0, 0]])
    said, states = tracker.readout(features, places, firsts, torch.zeros(2, 3, 24, dtype=torch.float64))
    for row, point in np.ndindex(2, 3):
        first = int(firsts[row, point])
        told = read_one_point(tracker.readout, features[row], *places[row, point].tolist(), first)
        expected = torch.tensor(told, dtype=torch.float64)
        torch.testing.assert_close(said.points_xy[row, point, first:], expected[:, :2])
        torch.testing.assert_close(said.visible_logits[row, point, first:], expected[:, 2])
        torch.testing.assert_close(said.certainty_logits[row, point, first:], expected[:, 3])
    assert states.shape == (2, 3, 24)
    assert said.points_xy.std() > 0.01


def test_the_highest_frequencies_keep_their_phase_in_float32():
    places = torch.rand(50, 2)
    exact = fourier_features(places.double(), 16)
    assert exact.shape == (50, 64)
    assert (fourier_features(places, 16) - exact).abs().max() < 1e-6
    naive = (places[:, None] * 2.0 ** torch.arange(16)[:, None] * math.pi).flatten(1).sin()
    assert (naive - exact[:, :32]).abs().max() > 1e-4


def test_moogs_sizes_are_the_defaults():
    config = ReadoutTrackerConfig()
    with torch.device("meta"):
        tracker = ReadoutTracker(config)
    readout = sum(parameter.numel() for parameter in tracker.readout.parameters())
    # By hand: MLPs 64-512-512 and 512-512-512 and two 512-512-2; 512-512 twice; three layers of 512-512 twice, 768-512
    # twice and 512-2048-512; norms.
    mlps = (64 + 1 + 512 + 1) * 512 + 2 * (513 * 512) + 2 * (513 * 512 + 513 * 2)
    layers = 3 * (512 * 512 + 513 * 512 + 2 * 768 * 512 + 513 * 2048 + 2049 * 512 + 2 * 512 + 2 * 64)
    assert readout == mlps + 2 * 513 * 512 + layers + 2 * 512
    assert round(readout / 1e6, 1) == 12.1  # which with TRecViT-B makes 120.4 M; the paper's 128 M are not explained
    assert tracker.preprocessing.frame_stride == 1


def test_the_attention_readout_is_4ds_formula():
    readout = AttentionReadout(6, 4, num_frames=3, width=8, num_heads=2).double()
    features = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=torch.float64))
        got = readout(features)
        w = dict(readout.named_parameters())
        for row in range(2):
            tokens = [
                norm(token, w["norm.weight"]) + w["norm.bias"] + w["positions"][frame]
                for frame in range(3)
                for token in features[row, frame]
            ]
            keys_values = [w["keys_values.weight"] @ token + w["keys_values.bias"] for token in tokens]
            mixed = []
            for head in range(2):
                own = slice(4 * head, 4 * head + 4)
                scores = torch.stack([both[:8][own] @ w["query"][own] for both in keys_values]) / 2
                share = scores.exp() / scores.exp().sum()
                mixed.append(sum(part * both[8:][own] for part, both in zip(share, keys_values, strict=True)))
            z = w["query"] + w["attention_out.weight"] @ torch.cat(mixed) + w["attention_out.bias"]
            z = z + perceptron(w, "mlp", norm(z, w["mlp_norm.weight"]) + w["mlp_norm.bias"])
            torch.testing.assert_close(got[row], w["out.weight"] @ z + w["out.bias"])
    with pytest.raises(InputError, match="features of 3 frames, got 2"):
        readout(features[:, :2])


def test_the_tracker_reads_the_backbones_features():
    """All tokens of a frame after the backbone's last norm; predictions in pixels."""
    backbone = tiny_model(image_size=(32, 32))
    tracker = ReadoutTracker.on(backbone, TRACKER.config.readout)
    video = video_of()
    said, _ = tracker.readout(
        backbone(video).features,
        QUERIES[..., 1:].flip(-1) / 32,
        QUERIES[..., 0].nan_to_num(posinf=99).long(),
        torch.zeros(2, 4, 24),
    )
    out = tracker(video, QUERIES)
    torch.testing.assert_close(out.points_xy, said.points_xy * 32)
    torch.testing.assert_close(out.certainty, said.certainty_logits.sigmoid())
    assert torch.equal(out.visible, out.visible_logits > 0)
    assert out.coordinate_logits is None
    assert not tracker.training
    with pytest.raises(ConfigError, match="temporal_patch_size=1"):
        ReadoutTracker.on(tiny_model(temporal_patch_size=2))


# ---- a clip is a stream ----


@pytest.mark.slow
@given(places=st.lists(st.integers(1, NUM_FRAMES - 1), unique=True).map(sorted), seed=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
@pytest.mark.parametrize("pooling", ["cls", pytest.param("mean", marks=pytest.mark.slow)])
def test_any_cut_gives_the_clips_points(pooling, places, seed):
    tracker, video = tiny_readout_tracker(pooling), video_of(seed=seed)
    got, state = run_tracker(tracker, video, tracker.init_state(QUERIES), places)
    assert_same_tracks(got, tracker(video, QUERIES))
    _, at_once = run_tracker(tracker, video, tracker.init_state(QUERIES), [])
    for name, tensor in at_once._tensors().items():
        assert torch.equal(tensor, state._tensors()[name]) or relative_error(state._tensors()[name], tensor) < 1e-5


def test_later_frames_change_no_point_and_queries_do():
    video, other = video_of(), video_of(seed=1)
    until = of_each_part(lambda part: part[:, :, :5], TRACKER(video, QUERIES))
    mixed = torch.cat([video[:, :5], other[:, 5:]], dim=1)
    assert_same_tracks(of_each_part(lambda part: part[:, :, :5], TRACKER(mixed, QUERIES)), until, 1e-6)
    for change in (torch.tensor([0, 4, 0.0]), torch.tensor([1, 0, 0.0])):
        changed = QUERIES.clone()
        changed[:, 0] += change
        points = TRACKER(video, changed).points_xy[:, 0, 3:]
        assert relative_error(points, TRACKER(video, QUERIES).points_xy[:, 0, 3:]) > 1e-3


def test_points_are_independent():
    video = video_of()
    alone = TRACKER(video, QUERIES[:, 1:2])
    assert_same_tracks(alone, of_each_part(lambda part: part[:, 1:2], TRACKER(video, QUERIES)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_streams_can_be_moved_saved_and_reset(tmp_path, dtype):
    tracker = tiny_readout_tracker().to(dtype)
    video = video_of()
    _, state = run_tracker(tracker, video[:, :4], tracker.init_state(QUERIES), [2])
    expected, _ = run_tracker(tracker, video[:, 4:], state, [])
    assert state.point_states.dtype == torch.float32
    state.save(tmp_path / "points.state")
    loaded = ReadoutState.load(tmp_path / "points.state")
    assert (loaded.config, loaded.num_queries, loaded.readout_width) == (state.config, 4, 24)
    got, _ = run_tracker(tracker, video[:, 4:], loaded, [])
    for name, part in expected._asdict().items():
        assert part is None or torch.equal(getattr(got, name), part)
    rows = [1, 0, 1]
    moved, _ = run_tracker(tracker, video[rows, 4:], state.select(rows), [])
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2  # sums of 8-bit numbers, blocked differently per batch
    assert_same_tracks(moved, of_each_part(lambda part: part[rows], expected), tolerance)
    again, _ = tracker.step(video, state.reset([True, False]))
    whole = tracker(video, QUERIES)
    row = of_each_part(lambda part: part[:1] * (torch.arange(NUM_FRAMES) >= 3).view(-1, *[1] * (part.dim() - 3)), again)
    row_of_whole = of_each_part(
        lambda part: part[:1] * (torch.arange(NUM_FRAMES) >= 3).view(-1, *[1] * (part.dim() - 3)), whole
    )
    assert_same_tracks(
        of_each_part(lambda part: part[:, :2], row), of_each_part(lambda part: part[:, :2], row_of_whole), tolerance
    )


def test_the_size_of_a_state_does_not_grow_and_methods_leave_it_as_it_is():
    state = TRACKER.init_state(QUERIES)
    _, after = run_tracker(TRACKER, video_of(num_frames=20), state, list(range(1, 20)))
    tokens, per_token = 17, TRACKER.config.depth * 16 * 4 * 4  # hidden and three taps, float32
    assert state.nbytes == after.nbytes == 2 * (tokens * per_token + 4 * (8 + 2 * 4 + 24 * 4) + 8)
    copies = {name: tensor.clone() for name, tensor in after._tensors().items()}
    after.copy_slot(0, 1)
    after.reset([True, False])
    TRACKER.step(video_of(), after)
    TRACKER.init_state(torch.full((2, 1, 3), math.inf)).place(0, torch.ones(2, 2))
    assert all(torch.equal(tensor, copies[name]) for name, tensor in after._tensors().items())


def test_low_precision_is_close():
    video = video_of()
    exact = of_each_part(from_its_query_on, TRACKER(video, QUERIES))
    coarse = of_each_part(from_its_query_on, tiny_readout_tracker().to(torch.bfloat16)(video, QUERIES))
    with torch.autocast("cpu", torch.bfloat16):
        half = of_each_part(from_its_query_on, TRACKER(video, QUERIES))
    for other in (coarse, half):
        assert other.points_xy.dtype == torch.float32
        assert_same_tracks(other, exact, 0.1)


def test_frames_before_a_query_are_tracked_in_the_reversed_video():
    video = video_of()
    both, ahead = track_both_ways(TRACKER, video, QUERIES), TRACKER(video, QUERIES)
    assert_same_tracks(of_each_part(from_its_query_on, both), of_each_part(from_its_query_on, ahead), 1e-7)
    assert both.certainty_logits.shape == (2, 4, NUM_FRAMES)
    back = TRACKER(video.flip(1), torch.tensor([[[NUM_FRAMES - 4, 30.0, 1.5]]]).expand(2, 1, 3))
    torch.testing.assert_close(both.points_xy[0, 1, :3], back.points_xy[0, 0].flip(0)[:3])


# ---- slots ----


def test_a_point_placed_later_is_as_if_declared_at_the_start():
    video = video_of()
    declared = QUERIES.clone()
    declared[:, 3] = torch.tensor([[4, 12.0, 30.5], [4, 3.25, 8.0]])
    free = declared.clone()
    free[:, 3, 0] = math.inf
    before, state = run_tracker(TRACKER, video[:, :4], TRACKER.init_state(free), [1])
    after, _ = run_tracker(TRACKER, video[:, 4:], state.place(3, declared[:, 3, 1:].flip(-1)), [2])
    got = of_each_part(lambda *parts: torch.cat(parts, dim=2), before, after)
    assert_same_tracks(got, TRACKER(video, declared))
    with pytest.raises(StateError, match="slot 3, which has a point"):
        TRACKER.init_state(declared).place(3, torch.ones(2, 2))


def test_an_emptied_slot_is_as_if_it_had_always_been_empty():
    video = video_of()
    free = torch.cat([QUERIES[:, :3], torch.full((2, 2, 3), math.inf)], dim=1)
    _, state = run_tracker(TRACKER, video[:, :4], TRACKER.init_state(free), [])
    emptied = state.copy_slot(4, 0)
    for name in ("query_frames", "query_points_yx", "point_states"):
        own, was = getattr(emptied, name), getattr(state, name)
        assert torch.equal(own[:, 0], was[:, 4])
        assert torch.equal(own[:, 1:], was[:, 1:])
    for layer, was in zip(emptied.layers, state.layers, strict=True):
        assert layer.hidden is was.hidden


def test_a_live_tracker_adds_and_removes_points():
    frames = random_video(1, NUM_FRAMES, 64, 96)[0].movedim(1, -1).contiguous().numpy()
    plain = random_video(1, NUM_FRAMES, 32, 32)[0]
    live = LiveTracker(TRACKER, max_points=2)
    size = live.nbytes
    first = live.add(3.5, 20)
    live.remove(first)
    queries = torch.tensor([[[2, 20.0, 3.5], [4, 9.0, 8.0]]])
    expected = TRACKER(plain[None], queries)
    for number, frame in enumerate(plain.movedim(1, -1).contiguous().numpy()):
        for t, y, x in queries[0].tolist():
            if t == number:
                live.add(x, y)
        got = live.update(frame)
        count = len(live.ids)
        np.testing.assert_allclose(got.points_xy, expected.points_xy[0, :count, number].detach(), atol=1e-3)
        np.testing.assert_allclose(got.certainty, expected.certainty[0, :count, number].detach(), atol=1e-4)
    assert live.nbytes == size
    live.update(frames[0])  # of another size


# ---- the frozen backbone ----


def loss_of(out: trecvit.TrackerOutput) -> Tensor:
    points = (out.points_xy - 16).square().sum(dim=-1) * 0.01 + out.visible_logits.square()
    return (points + out.certainty_logits.square()).mul(torch.arange(NUM_FRAMES) >= QUERIES[..., :1]).sum()


def test_only_the_readout_is_trained():
    tracker = tiny_readout_tracker().double().train()
    assert tracker.readout.training
    assert not any(part.training for part in (tracker.blocks, tracker.tokenizer, tracker.norm))
    video = video_of().double() / 255
    gradients = []
    for places in ([], [3, 4]):
        tracker.zero_grad()
        loss_of(run_tracker(tracker, video, tracker.init_state(QUERIES), places)[0]).backward()
        gradients.append({name: weight.grad for name, weight in tracker.named_parameters()})
    for name, whole in gradients[0].items():
        if not name.startswith("readout."):
            assert whole is None, name
            assert not tracker.get_parameter(name).requires_grad
            continue
        assert (whole != 0).any(), name
        assert relative_error(gradients[1][name], whole) < 1e-9, name


@pytest.mark.parametrize(
    "name", ["begin.up.weight", "layers.0.keys.weight", "layers.1.queries_scale", "predict.up.bias"]
)
def test_gradients_match_finite_differences(name):
    tracker = tiny_readout_tracker().double()
    video = video_of().double() / 255
    weight = tracker.readout.get_parameter(name)
    direction = torch.randn_like(weight)
    (gradient,) = torch.autograd.grad(loss_of(tracker(video, QUERIES)), [weight])
    values = []
    with torch.no_grad():
        for step in (1e-6, -2e-6):
            weight.add_(step * direction)
            values.append(loss_of(tracker(video, QUERIES)))
    slope = (values[0] - values[1]) / 2e-6
    assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-4, abs=1e-6)


# ---- its place in the package ----


def test_a_saved_tracker_loads(tmp_path):
    tracker = tiny_readout_tracker()
    tracker.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert isinstance(loaded, ReadoutTracker)
    assert loaded.config == tracker.config
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.blocks.parameters())
    video = video_of()
    for name, part in tracker(video, QUERIES)._asdict().items():
        assert part is None or torch.equal(getattr(loaded(video, QUERIES), name), part)
    with pytest.raises(CheckpointError, match="expected a TRecViT, got a ReadoutTracker"):
        load_as(TRecViT, tmp_path / "model")


def test_it_can_be_optimised_and_described():
    fast = optimize(TRACKER)
    video = video_of()
    assert_same_tracks(fast(video, QUERIES), TRACKER(video, QUERIES))
    with pytest.raises(ConfigError, match="is for TRecViT, got a ReadoutTracker"):
        optimize(TRACKER, mode="openvino")
    backbone = flops_per_frame(tiny_model(image_size=(32, 32), num_classes=0))
    tokens, points, width, inner, mlp = 17, POINTS, 16, 24, 20
    layers = 2 * (points * 2 * inner**2 + tokens * 2 * width * inner + 2 * points * tokens * inner)
    layers += 2 * points * 2 * inner * mlp
    others = points * (20 * inner + inner**2 + 2 * inner**2 + 2 * inner**2 + 2 * (inner**2 + 2 * inner))
    assert flops_per_frame(TRACKER) == backbone + 2 * (layers + others)


def test_no_points_and_no_streams_are_batches_like_any_other():
    out = TRACKER(video_of(), torch.zeros(2, 0, 3))
    assert out.points_xy.shape == (2, 0, NUM_FRAMES, 2)
    assert TRACKER(video_of(0), torch.zeros(0, 3, 3)).certainty.shape == (0, 3, NUM_FRAMES)


def test_states_of_other_trackers_are_refused(tmp_path):
    state = TRACKER.init_state(QUERIES)
    with pytest.raises(StateError, match="expected a ReadoutState from init_state or step, got TrackState"):
        TRACKER.step(video_of(), tiny_tracker().init_state(QUERIES))
    with pytest.raises(StateError, match="expected a state with 12 channels per point, got 24"):
        tiny_readout_tracker(width=12).step(video_of(), state)
    with pytest.raises(StateError, match="pooling mean and cls"):
        tiny_readout_tracker("mean").step(video_of(), state)
    with pytest.raises(StateError, match="readout_width 24 and 12"):
        ReadoutState.cat([state, tiny_readout_tracker(width=12).init_state(QUERIES)])
    state.save(tmp_path / "state")
    with pytest.raises(StateError, match="expected the format 'trecvit-track-state-2', got 'trecvit-readout-state-1'"):
        TrackState.load(tmp_path / "state")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"blocks": ModelConfig()}, "num_classes=0"),
        ({"blocks": ModelConfig(num_classes=0, temporal_patch_size=2)}, "temporal_patch_size=1"),
        ({"blocks": {"width": 768}}, "a ModelConfig"),
        ({"readout": {"width": 512}}, "a PointReadoutConfig"),
    ],
)
def test_impossible_trackers_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        unchecked(ReadoutTrackerConfig, **fields)


def test_a_description_survives_json():
    config = ReadoutTrackerConfig(readout=PointReadoutConfig(width=96, num_heads=3))
    assert ReadoutTrackerConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="no field 'heads', did you mean 'num_heads'"):
        ReadoutTrackerConfig.from_dict({**config.to_dict(), "readout": {"heads": 3}})
    with pytest.raises(ConfigError, match="the fields of a PointReadoutConfig"):
        ReadoutTrackerConfig.from_dict({**config.to_dict(), "readout": 3})
    with pytest.raises(ConfigError, match="a divisor of width=512"):
        PointReadoutConfig(num_heads=7)
    with pytest.raises(ConfigError, match="depth: expected a whole number >= 1"):
        PointReadoutConfig(depth=0)
