"""TAPNext: the originals' outputs, clips against streams, slots, and refused inputs."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import DEVICE, of_each_part, random_video, relative_error, tiny_model, tiny_tracker, unchecked
from models import assert_same_tracks as assert_close
from models import run_tracker as run
from torch import Tensor

from trecvit.accelerate.optimize import optimize
from trecvit.config import ModelConfig
from trecvit.errors import ConfigError, InputError, StateError
from trecvit.model.tapnext import TAPNext, TrackerConfig, TrackState, certainty, soft_argmax
from trecvit.model.tracker import NEVER, TrackerOutput, read_queries, track_both_ways
from trecvit.weights.load import load

GOLDEN = Path(__file__).parent / "golden"
NUM_FRAMES = 8
TOLERANCE = 1e-5  # float32: the same sums in another order
TRACKER = tiny_tracker()
# Each of two rows has queries in the first frame, in mid-clip and in the last frame, and an empty slot.
QUERIES = torch.tensor(
    [
        [[0, 3.5, 20.25], [3, 30.0, 1.5], [7, 0.0, 32.0], [math.inf, 0, 0]],
        [[2, 16.0, 16.0], [0, 31.9, 0.1], [0, 8.25, 25.0], [5, 12.5, 3.0]],
    ]
).to(DEVICE)


@pytest.fixture(scope="module", params=[False, True], ids=["as published", "matching"])
def tracker(request):
    return tiny_tracker(matching=request.param)


def video_of(batch_size: int = 2, num_frames: int = NUM_FRAMES, seed: int = 0, size: tuple[int, int] = (32, 32)):
    return random_video(batch_size, num_frames, *size, seed=seed)


# ---- the originals' outputs ----


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tapnext_small.pt", "tapnext_small_jax.npz"])
@pytest.mark.parametrize("online", [False, True], ids=["clip", "online"])
def test_the_originals_are_matched(name, online):
    tracker = load(GOLDEN / name).to(DEVICE)
    given = np.load(GOLDEN / "tapnext_small_io.npz")
    stored = np.load(GOLDEN / f"{Path(name).stem}_io.npz")
    video = torch.from_numpy(given["video"]).movedim(-1, 2).to(DEVICE)
    queries = torch.from_numpy(given["query_points_tyx"]).to(DEVICE)
    with torch.no_grad():
        out = tracker(video, queries)
        if online:
            out, _ = run(tracker, video, tracker.init_state(queries), list(range(1, video.shape[1])))
    prefix = "online_" if online and "online_tracks" in stored.files else ""
    scores = out.coordinate_logits.flip(-2).flatten(-2).transpose(1, 2)  # rows first, as the originals give them
    assert np.abs(scores.cpu().numpy() - stored[prefix + "track_logits"]).max() <= 1e-4
    visible = out.visible_logits.transpose(1, 2)[..., None]
    assert np.abs(visible.cpu().numpy() - stored[prefix + "visible_logits"]).max() <= 1e-4
    points_yx = out.points_xy.flip(-1).transpose(1, 2)
    assert np.abs(points_yx.cpu().numpy() - stored[prefix + "tracks"]).max() <= 0.002


def test_the_two_arithmetics_differ():
    """So that the test above detects a loader that confuses them."""
    outputs = [np.load(GOLDEN / f"tapnext_small{kind}_io.npz")["track_logits"] for kind in ("", "_jax")]
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-4


# ---- an independent implementation, at any size ----


def reference(tracker: TAPNext, video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
    """Points in pixels and coordinate scores, with a whole table of query positions and one token at a time."""
    config, (height, width) = tracker.config, video.shape[3:]
    size, channels = config.raster_px, config.blocks.width
    number, frequency = torch.arange(size).double(), torch.arange(channels // 4).double()
    angle = number[:, None] * 10_000 ** (-frequency / (channels // 4 - 1))
    of_axis = torch.cat([angle.sin(), angle.cos()], dim=1).float().to(DEVICE)
    table = torch.cat([of_axis.expand(size, size, -1), of_axis[:, None].expand(size, size, -1)], dim=-1)

    patches = tracker.tokenizer.embedding(
        F.unfold(video.flatten(0, 1).float() / 255, config.blocks.patch_size, stride=config.blocks.patch_size).mT
    ).unflatten(0, video.shape[:2])
    grid = (height // config.blocks.patch_size, width // config.blocks.patch_size)
    side = config.image_size[0] // config.blocks.patch_size
    positions = tracker.tokenizer.positions.T.reshape(1, channels, side, side)
    if grid != (side, side):
        positions = F.interpolate(positions, size=grid, mode="bicubic", align_corners=False)
    patches = patches + positions.flatten(2)[0].T
    points = torch.empty(*video.shape[:2], queries.shape[1], channels, device=DEVICE)
    for row, number_of in np.ndindex(*queries.shape[:2]):
        t, y, x = queries[row, number_of].tolist()
        at = torch.tensor([[[[2 * x / width - 1, 2 * y / height - 1]]]], device=DEVICE)
        padding = {"zeros": "zeros", "nearest": "border"}[config.query_border]
        where = F.grid_sample(table.permute(2, 0, 1)[None], at, padding_mode=padding, align_corners=False).flatten()
        for frame in range(video.shape[1]):
            kind = tracker.point_tokens
            token = kind.unknown if frame < t else kind.query + where if frame == t else kind.mask
            points[row, frame, number_of] = token
    tokens = torch.cat([patches, points], dim=2)
    state = tracker.init_state(queries, image_size=(height, width))
    for block, layer in zip(tracker.blocks, state.layers, strict=True):
        tokens, _ = block(tokens, layer, torch.ones(len(video), dtype=torch.bool, device=DEVICE))
    rows, columns = tracker.coordinates(tracker.norm(tokens)[:, :, patches.shape[2] :]).chunk(2, dim=-1)

    def expectation(scores: Tensor) -> Tensor:  # the original's: normalise, cut off, normalise again
        pixel = torch.arange(size, device=DEVICE)
        probs = (scores * 0.5).softmax(dim=-1) * ((scores.argmax(-1, keepdim=True) - pixel).abs() <= 20)
        return (probs / probs.sum(-1, keepdim=True) * pixel).sum(dim=-1) + 0.5

    points_xy = torch.stack([expectation(columns) * width / size, expectation(rows) * height / size], dim=-1)
    return points_xy.transpose(1, 2), torch.stack([columns, rows], dim=-2).transpose(1, 2)


@pytest.mark.parametrize("border", ["nearest", "zeros"])
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 16), (16, 64)])
def test_any_size_of_frames_is_read_as_the_original_would(border, size):
    tracker = tiny_tracker(query_border=border)
    video = video_of(2, 4, size=size)
    scale = torch.tensor([1, size[0] / 32, size[1] / 32]).to(DEVICE)
    queries = QUERIES.clone()
    queries[0, 3, 1:] = 0
    queries = torch.where(queries.isinf(), queries, queries * scale)
    out = tracker(video, queries)
    points_xy, scores = reference(tracker, video, queries)
    assert relative_error(out.coordinate_logits, scores) < TOLERANCE
    assert relative_error(out.points_xy, points_xy) < TOLERANCE
    assert (out.points_xy >= 0).all()
    assert (out.points_xy.cpu() <= torch.tensor([size[1], size[0]])).all()


def test_certainty_is_the_probability_of_a_disc():
    """The original sums over a window around the point; the whole raster gives the same, also at its edges."""
    torch.manual_seed(1)
    for size in (64, 12):
        scores = 3 * torch.randn(3, 40, 2, size, dtype=torch.float64)
        points = torch.rand(3, 40, 2, dtype=torch.float64) * size
        points[0, :4] = torch.tensor([[0.5, 0.5], [0.5, size - 0.5], [size - 0.5, 0.5], [size - 0.5, size - 0.5]])
        probs = scores.softmax(dim=-1)
        centre = torch.arange(size) + 0.5
        far_x, far_y = ((centre - points[..., None]) ** 2).unbind(dim=-2)
        disc = far_x[..., :, None] + far_y[..., None, :] <= 64
        expected = (probs[..., 0, :, None] * probs[..., 1, None, :] * disc).sum(dim=(-2, -1))
        torch.testing.assert_close(certainty(scores, points), expected)


def test_a_sharp_peak_gives_its_centre_and_high_certainty():
    scores = torch.full((1, 2, 64), -50.0)
    scores[0, 0, 10:12] = 50.0  # columns 10 and 11: between them is 11
    scores[0, 1, 40] = 50.0
    points = soft_argmax(scores)
    torch.testing.assert_close(points, torch.tensor([[11.0, 40.5]]))
    assert certainty(scores, points).item() == pytest.approx(1.0)
    assert certainty(scores, points + 20).item() == pytest.approx(0.0, abs=1e-6)


def test_a_second_peak_far_away_does_not_pull():
    scores = torch.zeros(1, 64) - 50
    scores[0, 10], scores[0, 60] = 50.0, 49.5
    assert soft_argmax(scores).item() == pytest.approx(10.5, abs=1e-4)


# ---- a clip is a stream ----


@pytest.mark.slow
@given(places=st.lists(st.integers(1, NUM_FRAMES - 1), unique=True).map(sorted), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_any_cut_gives_the_clips_points(tracker, places, seed):
    video = video_of(seed=seed)
    got, state = run(tracker, video, tracker.init_state(QUERIES), places)
    assert_close(got, tracker(video, QUERIES))
    _, at_once = run(tracker, video, tracker.init_state(QUERIES), [])
    for name, tensor in at_once._tensors().items():
        assert torch.equal(tensor, state._tensors()[name]) or relative_error(state._tensors()[name], tensor) < TOLERANCE


def test_later_frames_do_not_change_earlier_points(tracker):
    video, other = video_of(), video_of(seed=1)
    mixed = torch.cat([video[:, :5], other[:, 5:]], dim=1)
    moved = torch.where(QUERIES[..., :1] >= 5, QUERIES + torch.tensor([0.0, 1.0, -0.05]).to(DEVICE), QUERIES).clamp(
        min=0
    )
    assert not torch.equal(moved, QUERIES)
    until = tracker(video, QUERIES)
    assert_close(
        of_each_part(lambda part: part[:, :, :5], tracker(mixed, moved)),
        of_each_part(lambda part: part[:, :, :5], until),
        1e-7,
    )
    assert relative_error(tracker(mixed, QUERIES).points_xy, until.points_xy) > 1e-3


def test_the_query_matters_and_is_for_its_frame(tracker):
    video = video_of()
    moved = QUERIES.clone()
    moved[:, 0, 1:] += 4
    assert relative_error(tracker(video, moved).points_xy[:, 0], tracker(video, QUERIES).points_xy[:, 0]) > 1e-3
    later = QUERIES.clone()
    later[:, 0, 0] += 1
    assert relative_error(tracker(video, later).points_xy[:, 0], tracker(video, QUERIES).points_xy[:, 0]) > 1e-3


def test_points_have_no_order(tracker):
    """Slots differ by their queries alone."""
    video, order = video_of(), torch.tensor([2, 0, 3, 1])
    swapped = tracker(video, QUERIES[:, order])
    assert_close(swapped, of_each_part(lambda part: part[:, order], tracker(video, QUERIES)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_independent_and_can_be_moved_in_mid_stream(tracker, dtype):
    tracker = copy.deepcopy(tracker).to(dtype)
    video = video_of()
    _, state = run(tracker, video[:, :3], tracker.init_state(QUERIES), [])
    expected, _ = run(tracker, video[:, 3:], state, [])
    rows = [1, 0, 1]
    got, _ = run(tracker, video[rows, 3:], state.select(rows), [])
    tolerance = TOLERANCE if dtype == torch.float32 else 3e-2  # sums of 8-bit numbers, blocked differently per batch
    assert_close(got, of_each_part(lambda part: part[rows], expected), tolerance)
    joined = TrackState.cat([state.select([1]), state.select([0])])
    for name, tensor in state.select([1, 0])._tensors().items():
        assert torch.equal(joined._tensors()[name], tensor)


def test_a_reset_row_restarts_with_its_queries(tracker):
    video = video_of()
    _, state = run(tracker, video[:, :3], tracker.init_state(QUERIES), [])
    state = state.reset([True, False])
    assert state.frames_seen.tolist() == [0, 3]
    out, _ = tracker.step(video, state)
    assert_close(of_each_part(lambda part: part[:1], out), of_each_part(lambda part: part[:1], tracker(video, QUERIES)))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_resumes_bit_exactly(tracker, tmp_path, dtype):
    tracker = copy.deepcopy(tracker).to(dtype)
    video = video_of()
    _, state = run(tracker, video[:, :4], tracker.init_state(QUERIES), [2])
    state.save(tmp_path / "points.state")
    loaded = TrackState.load(tmp_path / "points.state", device=DEVICE)
    assert (loaded.config, loaded.image_size, loaded.num_queries) == (state.config, (32, 32), 4)
    expected, _ = run(tracker, video[:, 4:], state, [])
    got, _ = run(tracker, video[:, 4:], loaded, [])
    for one, other in zip(got[:4], expected[:4], strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_the_size_of_a_state_depends_on_the_points_alone(tracker):
    state = tracker.init_state(QUERIES)
    _, after = run(tracker, video_of(num_frames=30), state, list(range(1, 30)))
    assert after.nbytes == state.nbytes
    look_width = tracker.matching.descriptor_width if tracker.config.matching else 0
    (patches, points), per_token = (16, 4), tracker.config.depth * 16 * 4 * 4  # hidden and three taps, float32
    assert state.nbytes == 2 * ((patches + points) * per_token + points * (8 + 2 * 4 + look_width * 4) + 8)


def test_methods_leave_the_state_as_it_is(tracker):
    _, state = run(tracker, video_of(), tracker.init_state(QUERIES), [])
    copies = {name: tensor.clone() for name, tensor in state._tensors().items()}
    state.reset([True, False])
    state.copy_slot(0, 1)
    tracker.init_state(torch.full((2, 1, 3), math.inf)).place(0, torch.ones(2, 2).to(DEVICE))
    state.to(dtype=torch.bfloat16)
    tracker.step(video_of(), state)
    assert all(torch.equal(tensor, copies[name]) for name, tensor in state._tensors().items())


def test_a_stream_may_be_longer_than_float32_can_count(tracker):
    state = tracker.init_state(torch.tensor([[[2.0**24 + 3, 5.0, 6.0], [0, 1, 1]]], dtype=torch.float64))
    aged = state.replace(frames_seen=torch.tensor([2**24 + 2]).to(DEVICE))
    young = tracker.init_state(torch.tensor([[[1.0, 5.0, 6.0], [0, 1, 1]]]))
    young = young.replace(query_frames=torch.tensor([[1, -1]]).to(DEVICE), frames_seen=torch.tensor([0]).to(DEVICE))
    # Only the rule for the first frame differs, so both process a frame before.
    young = young.replace(query_frames=young.query_frames + 5, frames_seen=torch.tensor([5]).to(DEVICE))
    assert_close(tracker.step(video_of(1), aged)[0], tracker.step(video_of(1), young)[0], 1e-7)


def test_low_precision_is_close(tracker):
    video = video_of()
    coarse = copy.deepcopy(tracker).to(torch.bfloat16)(video, QUERIES)
    exact = tracker(video, QUERIES)
    assert coarse.points_xy.dtype == coarse.coordinate_logits.dtype == torch.float32
    assert relative_error(coarse.coordinate_logits, exact.coordinate_logits) < 0.1


# ---- slots ----


def test_a_point_placed_later_is_as_if_declared_at_the_start(tracker):
    video = video_of()
    declared = QUERIES.clone()
    declared[:, 3] = torch.tensor([[4, 12.0, 30.5], [4, 3.25, 8.0]]).to(DEVICE)
    free = declared.clone()
    free[:, 3, 0] = math.inf
    before, state = run(tracker, video[:, :4], tracker.init_state(free), [1])
    after, _ = run(tracker, video[:, 4:], state.place(3, declared[:, 3, 1:].flip(-1)), [2])
    got = of_each_part(lambda *parts: torch.cat(parts, dim=2), before, after)
    assert_close(got, tracker(video, declared))


def test_an_emptied_slot_is_as_if_it_had_always_been_empty(tracker):
    video = video_of()
    queries = torch.cat([QUERIES[:, :3], torch.full((2, 2, 3), math.inf).to(DEVICE)], dim=1)
    _, state = run(tracker, video[:, :4], tracker.init_state(queries), [])
    emptied = state.copy_slot(4, 0)
    assert (emptied.query_frames[:, 0] == NEVER).all()
    for slot in (1, 2, 3, 4):  # bit for bit the same
        first = 16 + slot
        for one, other in zip(emptied.layers, state.layers, strict=True):
            assert torch.equal(one.hidden[:, first], other.hidden[:, first])
            assert torch.equal(one.taps[:, :, first], other.taps[:, :, first])
    for one in emptied.layers:
        assert relative_error(one.hidden[:, 16], one.hidden[:, 16 + 3]) < TOLERANCE  # and a slot that was never used
    # A new point in it is tracked as in a slot that was never used.
    place = torch.tensor([[5.0, 6.0], [7.0, 8.0]]).to(DEVICE)
    reused, _ = tracker.step(video[:, 4:], emptied.place(0, place))
    unused, _ = tracker.step(video[:, 4:], emptied.place(3, place))
    order = [3, 1, 2, 0, 4]
    assert_close(reused, of_each_part(lambda part: part[:, order], unused))


def test_a_slot_that_has_a_point_is_not_taken():
    state = TRACKER.init_state(QUERIES)
    with pytest.raises(StateError, match="slot 3, which has a point"):
        state.place(3, torch.ones(2, 2))
    with pytest.raises(InputError, match=r"x in 0\.\.32 pixels.*x=33"):
        TRACKER.init_state(torch.full((1, 1, 3), math.inf)).place(0, torch.tensor([[33.0, 5.0]]))


# ---- backwards ----


def test_frames_before_a_query_are_tracked_in_the_reversed_video(tracker):
    video = video_of()
    out = track_both_ways(tracker, video, QUERIES)
    ahead = tracker(video, QUERIES)
    mirrored = QUERIES.clone()
    mirrored[..., 0] = torch.where(QUERIES[..., 0].isinf(), QUERIES[..., 0], NUM_FRAMES - 1 - QUERIES[..., 0])
    back = tracker(video.flip(1), mirrored)
    for row, point in np.ndindex(2, 4):
        t = QUERIES[row, point, 0]
        for frame in range(NUM_FRAMES):
            source, at = (ahead, frame) if frame >= t else (back, NUM_FRAMES - 1 - frame)
            for got, expected in zip(out[:4], source[:4], strict=True):
                assert torch.equal(got[row, point, frame], expected[row, point, at])


def test_queries_after_the_last_frame_are_never_seen_either_way(tracker):
    video = video_of()
    late = QUERIES.clone()
    late[:, 0, 0] = NUM_FRAMES + 3
    never = QUERIES.clone()
    never[:, 0, 0] = math.inf
    assert_close(track_both_ways(tracker, video, late), track_both_ways(tracker, video, never), 1e-7)
    assert torch.equal(
        track_both_ways(tracker, video, QUERIES.nan_to_num(posinf=9).long()).points_xy,
        track_both_ways(tracker, video, QUERIES.nan_to_num(posinf=9).long().double()).points_xy,
    )


# ---- gradients ----


def loss_of(out: TrackerOutput) -> Tensor:
    is_after = (torch.arange(NUM_FRAMES, device=DEVICE) >= QUERIES[..., :1]).double()
    points = (out.points_xy - 16).square().sum(dim=-1) * 0.01 + out.visible_logits.square()
    return (points * is_after).sum() + (out.coordinate_logits.logsumexp(dim=-1).sum(dim=-1) * is_after).sum()


@pytest.mark.slow
def test_gradients_reach_every_weight_and_are_the_same_for_pieces(tracker):
    tracker = copy.deepcopy(tracker).double()
    video = video_of().double() / 255
    weights = dict(tracker.named_parameters())
    whole = torch.autograd.grad(loss_of(tracker(video, QUERIES)), weights.values())
    pieces = torch.autograd.grad(loss_of(run(tracker, video, tracker.init_state(QUERIES), [3, 4])[0]), weights.values())
    tracker.recompute = "cheap"
    cheap = torch.autograd.grad(loss_of(tracker(video, QUERIES)), weights.values())
    tracker.recompute = "blocks"
    blocks = torch.autograd.grad(loss_of(tracker(video, QUERIES)), weights.values())
    for name, expected, got, *recomputed in zip(weights, whole, pieces, cheap, blocks, strict=True):
        assert torch.isfinite(expected).all(), name
        assert (expected != 0).any(), name
        assert relative_error(got, expected) < 1e-9, name
        for again in recomputed:
            assert relative_error(again, expected) < 1e-9, name


@pytest.mark.slow
def test_gradients_match_finite_differences(tracker):
    tracker = copy.deepcopy(tracker).double()
    video = video_of().double() / 255
    names = ["point_tokens.query", "point_tokens.unknown", "point_tokens.mask", "coordinates.first.weight"]
    if tracker.matching is not None:
        names += ["matching.first.weight", "matching.context.weight", "matching.sharpness", "matching.guess_out.1.bias"]
        for last in tracker.matching.guess_out:  # the positions of sampling have no gradient, on purpose
            torch.nn.init.zeros_(last.weight)
    for name in names:
        weight = tracker.get_parameter(name)
        direction = torch.randn_like(weight)
        (gradient,) = torch.autograd.grad(loss_of(tracker(video, QUERIES)), [weight])
        values = []
        with torch.no_grad():
            for step in (1e-6, -2e-6):
                weight.add_(step * direction)
                values.append(loss_of(tracker(video, QUERIES)))
            weight.add_(1e-6 * direction)
        slope = (values[0] - values[1]) / 2e-6
        assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-4, abs=1e-6), name


# ---- refused inputs ----


@pytest.mark.parametrize(
    ("queries", "words"),
    [
        (torch.zeros(2, 4), r"\[B,Q,3\] of \(t, y, x\), got \(2, 4\)"),
        (torch.zeros(2, 4, 2), r"got \(2, 4, 2\)"),
        (torch.zeros(2, 4, 3, dtype=torch.bool), "expected numbers, got torch.bool"),
        (torch.full((2, 4, 3), 0.5), "t to be a frame's index from 0.*got 0.5"),
        (torch.full((2, 4, 3), -1.0), "got -1"),
        (torch.full((2, 4, 3), math.nan), "got nan"),
        (torch.tensor([[[0.0, 5, 33]]]).expand(2, 1, 3), r"x in 0\.\.32 pixels of the frames, got y=5, x=33"),
        (torch.tensor([[[0.0, -0.5, 3]]]).expand(2, 1, 3), "got y=-0.5"),
        (torch.tensor([[[0.0, math.nan, 3]]]).expand(2, 1, 3), "got y=nan"),
    ],
)
def test_invalid_queries_are_refused(queries, words):
    # Without the tests' shape checker, which would refuse it before.
    with pytest.raises(InputError, match=words):
        read_queries(queries, (32, 32))


def test_frames_and_states_that_do_not_fit_are_refused():
    state = TRACKER.init_state(QUERIES)
    with pytest.raises(InputError, match="patch_size=8 divides, got 32x20"):
        TRACKER(video_of(size=(32, 20)), QUERIES)
    with pytest.raises(InputError, match="queries for 2 videos, got queries for 3"):
        TAPNext.forward.__wrapped__(TRACKER, video_of(), torch.zeros(3, 4, 3))
    with pytest.raises(InputError, match=r"\[0,1\]"):
        TRACKER(video_of().float(), QUERIES)
    with pytest.raises(StateError, match="holds 2 streams, the frames 1"):
        TRACKER.step(video_of(1), state)
    with pytest.raises(StateError, match="size 32x32, got 32x64"):
        TRACKER.step(video_of(size=(32, 64)), state)
    with pytest.raises(StateError, match="gelu erf and tanh"):
        tiny_tracker(blocks=TRACKER.config.blocks.replace(gelu="erf")).step(video_of(), state)
    with pytest.raises(StateError, match="expected a state with 96 channels per point, got 0"):
        tiny_tracker(matching=True).step(video_of(), state)
    with pytest.raises(StateError, match="look_width 0 and 96"):
        TrackState.cat([state, tiny_tracker(matching=True).init_state(QUERIES)])
    with pytest.raises(StateError, match=r"num_queries 4 and 1"):
        TrackState.cat([state, TRACKER.init_state(QUERIES[:, :1])])
    with pytest.raises(StateError, match="expected a TrackState"):
        TAPNext.step.__wrapped__(TRACKER, video_of(), tiny_model().init_state(2, image_size=(32, 32)))


def test_other_states_files_are_not_a_trackers(tmp_path):
    tiny_model().init_state(1, image_size=(16, 24)).save(tmp_path / "other")
    with pytest.raises(StateError, match=r"expected the format 'trecvit-track-state-2', got 'trecvit-state-1'"):
        TrackState.load(tmp_path / "other")
    with pytest.raises(StateError, match=r"written by TrackState\.save"):
        TrackState.load(tmp_path / "nothing")


def test_no_points_and_no_streams_are_batches_like_any_other(tracker):
    out = tracker(video_of(), torch.zeros(2, 0, 3).to(DEVICE))
    assert out.points_xy.shape == (2, 0, NUM_FRAMES, 2)
    assert out.visible.shape == (2, 0, NUM_FRAMES)
    for model in (tracker, optimize(tracker)):
        assert model(video_of(0), torch.zeros(0, 3, 3).to(DEVICE)).certainty.shape == (0, 3, NUM_FRAMES)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"blocks": ModelConfig()}, "pooling='mean'"),
        ({"blocks": ModelConfig(pooling="mean")}, "num_classes=0"),
        ({"blocks": ModelConfig(pooling="mean", num_classes=0, temporal_patch_size=2)}, "temporal_patch_size=1"),
        ({"blocks": ModelConfig(pooling="mean", num_classes=0, width=42, num_heads=6)}, "width >= 8 that 4 divides"),
        ({"blocks": {"width": 768}}, "a ModelConfig"),
        ({"raster_px": 0}, "raster_px: expected a whole number >= 1"),
        ({"readout_width": 2.5}, "readout_width"),
        ({"norm_eps": 0}, "norm_eps"),
        ({"query_border": "wrap"}, "query_border: expected one of"),
        ({"matching": 64}, "matching: expected true or false"),
    ],
)
def test_impossible_trackers_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        unchecked(TrackerConfig, **fields)


def test_a_description_survives_json():
    config = TrackerConfig(raster_px=128, query_border="zeros", norm_eps=1e-5, matching=True)
    assert TrackerConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="no field 'raster', did you mean 'raster_px'"):
        config.replace(raster=3)
    with pytest.raises(ConfigError, match="the fields of a ModelConfig"):
        TrackerConfig.from_dict({"raster_px": 3})


def test_the_defaults_are_the_published_models_size():
    with torch.device("meta"):
        tracker = TAPNext(TrackerConfig())
    assert round(sum(parameter.numel() for parameter in tracker.parameters()) / 1e6) == 194
    assert tracker.preprocessing.frame_stride == 1
