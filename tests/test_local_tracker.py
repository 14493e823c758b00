"""A tracker that matches locally: its step, its points, its correlation, its loss and its training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from models import assert_same_tracks, random_video, run_tracker, tiny_local_tracker
from PIL import Image

from trecvit.accelerate.optimize import optimize
from trecvit.config import ModelConfig
from trecvit.errors import ConfigError, DataError
from trecvit.model.local_matching import (
    APART,
    REACH,
    WINDOW,
    Level,
    correlate,
    described,
    template_of,
    window_around,
    window_offsets,
)
from trecvit.model.local_tracker import LocalState, LocalTracker, LocalTrackerConfig, _agreement, _chosen
from trecvit.model.tracker import TrackerOutput
from trecvit.runtime.describe import describe
from trecvit.runtime.live import LiveTracker
from trecvit.synthetic.long_scenes import LongSceneConfig, LongScenes, pictures_of
from trecvit.train.local_loss import local_track_loss
from trecvit.train.recipe import load_recipe
from trecvit.train.run_data import files_fingerprint
from trecvit.train.tasks.track_streams import _merged
from trecvit.weights.load import load

QUERIES = torch.tensor([[[0, 8.0, 9.0], [3, 20.5, 11.0], [0, 30.0, 2.0], [math.inf, 0, 0]]]).repeat(2, 1, 1)


def smooth_video(num_frames: int = 5) -> torch.Tensor:
    """Two blurred pictures that drift: [2,T,3,32,32]."""
    noise = torch.nn.functional.avg_pool2d(random_video(2, 1, 48, 48)[:, 0].float(), 5, stride=1, padding=2)
    frames = [noise[:, :, t : t + 32, t // 2 : t // 2 + 32] for t in range(num_frames)]
    return torch.stack(frames, dim=1).to(torch.uint8)


@pytest.mark.parametrize("places", [[1, 2, 3, 4], [3]])
def test_steps_are_the_clip_at_any_cut(places):
    tracker, video = tiny_local_tracker(), smooth_video()
    whole = tracker(video, QUERIES)
    assert whole.points_xy.shape == (2, 4, 5, 2)
    state = tracker.init_state(QUERIES, image_size=(32, 32))
    size = state.nbytes
    pieces, state = run_tracker(tracker, video, state, places)
    assert_same_tracks(pieces, whole)
    assert state.nbytes == size


def test_a_point_is_at_its_query_in_its_frame():
    out = tiny_local_tracker()(smooth_video(), QUERIES)
    torch.testing.assert_close(out.points_xy[0, 0, 0], torch.tensor([9.0, 8.0]))
    torch.testing.assert_close(out.points_xy[1, 1, 3], torch.tensor([11.0, 20.5]))


def of_points(out: TrackerOutput, rows: list[int]) -> list[torch.Tensor]:
    return [out.points_xy[:, rows], out.visible_logits[:, rows], out.certainty[:, rows]]


def test_empty_slots_and_the_order_of_the_points_change_nothing():
    tracker, video = tiny_local_tracker(), smooth_video()
    out = tracker(video, QUERIES)
    for order in ([2, 0, 1], [1, 3, 2, 3, 3, 0]):
        others = tracker(video, QUERIES[:, order])
        rows = [order.index(point) for point in (0, 1, 2)]
        for got, expected in zip(of_points(others, rows), of_points(out, [0, 1, 2]), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_points_are_added_and_removed_as_if_declared():
    tracker, video = tiny_local_tracker(), smooth_video()
    expected = tracker(video[:1], QUERIES[:1, :2])
    never = torch.full((1, 3, 3), math.inf)
    _, state = tracker.step(
        video[:1, :1], tracker.init_state(never, image_size=(32, 32)).place(0, torch.tensor([[9.0, 8.0]]))
    )
    _, state = tracker.step(video[:1, 1:2], state.place(1, torch.tensor([[4.0, 4.0]])))
    state = state.copy_slot(2, 1)  # removes it, before it has changed the others' next frame
    before = tracker.init_state(QUERIES[:1, :1], image_size=(32, 32))
    _, alone = tracker.step(video[:1, :2], before)
    out, _ = tracker.step(video[:1, 2:3], state)
    now, _ = tracker.step(video[:1, 2:3], alone)
    assert (out.points_xy[0, 0] - now.points_xy[0, 0]).abs().max() < 5  # it was attended to in one frame
    fresh = tracker.init_state(never, image_size=(32, 32)).place(0, torch.tensor([[9.0, 8.0]]))
    _, fresh = tracker.step(video[:1, :3], fresh)
    late, _ = tracker.step(video[:1, 3:], fresh.place(1, torch.tensor([[11.0, 20.5]])))
    torch.testing.assert_close(late.points_xy[:, :2], expected.points_xy[:, :2, 3:], rtol=1e-4, atol=1e-4)
    emptied = fresh.place(1, torch.tensor([[1.0, 1.0]])).copy_slot(2, 1)
    for name, tensor in emptied._tensors().items():
        assert torch.equal(tensor, fresh._tensors()[name]), name


def test_live_points_are_those_of_the_clip():
    tracker, video = tiny_local_tracker(), smooth_video()
    expected = tracker(video[:1], torch.tensor([[[0, 8.0, 9.0], [2, 20.5, 11.0]]]))
    live = LiveTracker(tracker, max_points=3, image_size=(32, 32))
    live.add(9.0, 8.0)
    for t in range(5):
        if t == 2:
            live.add(11.0, 20.5)
        points_xy, _, _ = live.update(video[0, t].permute(1, 2, 0).numpy())
        np.testing.assert_allclose(points_xy[0], expected.points_xy[0, 0, t].detach().numpy(), atol=1e-3)
    np.testing.assert_allclose(points_xy[1], expected.points_xy[0, 1, 4].detach().numpy(), atol=1e-3)


def test_rows_are_independent_and_states_survive_files(tmp_path):
    tracker, video = tiny_local_tracker(), smooth_video()
    out, state = tracker.step(video[:, :4], tracker.init_state(QUERIES, image_size=(32, 32)))
    alone, _ = tracker.step(video[1:, :4], tracker.init_state(QUERIES[1:], image_size=(32, 32)))
    torch.testing.assert_close(out.points_xy[1:], alone.points_xy, rtol=1e-4, atol=1e-4)
    state.save(tmp_path / "state.safetensors")
    read = LocalState.load(tmp_path / "state.safetensors")
    expected, _ = tracker.step(video[:, 4:], state)
    got, _ = tracker.step(video[:, 4:], read)
    assert torch.equal(got.points_xy, expected.points_xy)
    reset = state.reset([True, False])
    assert not reset.points[0].any()
    assert reset.points[1].any()


def test_saved_and_loaded_it_predicts_the_same(tmp_path):
    tracker, video = tiny_local_tracker(), smooth_video()
    tracker.save(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, LocalTracker)
    assert torch.equal(loaded(video, QUERIES).points_xy, tracker(video, QUERIES).points_xy)


def test_its_cost_is_counted():
    tracker = tiny_local_tracker()
    facts = describe(tracker)
    assert facts["GFLOP per frame"] > 0
    queries = torch.zeros(1, 64, 3)
    assert facts["state bytes per stream"] == tracker.init_state(queries).nbytes


# In a process without the tests' checks of shapes, which cannot be compiled.
COMPILED = """
from test_local_tracker import assert_it_is_the_same_when_optimized

assert_it_is_the_same_when_optimized("compile")
print("all well")
"""


@pytest.mark.slow
def test_compiled_it_predicts_the_same(forks):
    done = forks.run(COMPILED)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all well" in done.stdout


def test_optimized_it_predicts_the_same():
    assert_it_is_the_same_when_optimized("eager")


@torch.inference_mode()
def assert_it_is_the_same_when_optimized(mode: str) -> None:
    tracker, video = tiny_local_tracker(), smooth_video()
    expected = tracker(video, QUERIES)
    fast = optimize(tracker, mode=mode)
    state = fast.init_state(QUERIES, image_size=(32, 32))
    for t in range(5):
        out, state = fast.step(video[:, t : t + 1], state)
        torch.testing.assert_close(out.points_xy[:, :, 0], expected.points_xy[:, :, t], rtol=1e-3, atol=1e-3)


# ---- choice ---------------------------------------------------------------------------------------------------------


def test_candidates_are_weighed_beside_those_that_agree():
    torch.manual_seed(0)
    offsets, choice = 3 * torch.randn(2, 5, 7, 2), torch.randn(2, 5, 7)
    got = _agreement(choice, offsets)
    for row, point in np.ndindex(2, 5):
        shares = choice[row, point].softmax(dim=-1)
        near = [
            [math.exp(-0.5 * float((a - b).square().sum())) for b in offsets[row, point]] for a in offsets[row, point]
        ]
        support = [sum(n * float(p) for n, p in zip(line, shares, strict=True)) for line in near]
        line = near[support.index(max(support))]
        expected = torch.tensor([n * float(p) for n, p in zip(line, shares, strict=True)])
        torch.testing.assert_close(got[row, point], expected / expected.sum())


def test_one_candidate_that_is_far_off_moves_nothing():
    offsets = torch.tensor([[[[1.0, 0.0], [1.2, 0.0], [40.0, 0.0]]]])
    choice = torch.tensor([[[0.0, 0.0, 0.5]]])  # the likeliest by itself, but the others agree
    assert 1.0 < _chosen(choice, offsets)[0, 0, 0] < 1.2


def test_it_can_rely_on_the_flow_more():
    tracker, video = tiny_local_tracker().train(), smooth_video(1)
    before = tracker(video, QUERIES)
    tracker.rely_on_flow(2.0)
    after = tracker(video, QUERIES)
    assert before.local is not None
    assert after.local is not None
    raised = (after.local.choice_logits - before.local.choice_logits)[:, 0, 0]
    flow_to_the_query = torch.nn.functional.one_hot(torch.tensor(4), raised.shape[-1])
    torch.testing.assert_close(raised, 2.0 * flow_to_the_query.expand_as(raised).float())


def test_points_move_with_others_that_are_near_and_seen():
    tracker = tiny_local_tracker()
    token = torch.zeros(1, 4, tracker.config.blocks.width)
    last = torch.tensor([[[10.0, 10.0], [12.0, 10.0], [10.0, 300.0], [10.0, 11.0]]])
    moved = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [5.0, 5.0], [7.0, 7.0]]])
    seen = torch.tensor([[[-9.0, -9.0], [5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]])
    started = torch.tensor([[True, True, True, False]])
    others = tracker._with_others(token, moved, last, seen, started)
    torch.testing.assert_close(others[0, 0], moved[0, 1], atol=0.1, rtol=0)  # neither the far one nor the empty slot
    alone = torch.tensor([[True, False, False, False]])
    torch.testing.assert_close(tracker._with_others(token, moved, last, seen, alone)[0, 0], moved[0, 0])


# ---- correlation ----------------------------------------------------------------------------------------------------


def plain_sample(grid: torch.Tensor, x: float, y: float) -> torch.Tensor:
    """Bilinear sample at (x, y) in cells, (0, 0) is the first cell's centre; zero outside."""
    total = torch.zeros_like(grid[0, 0])
    left, top = math.floor(x), math.floor(y)
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        if 0 <= row < grid.shape[0] and 0 <= column < grid.shape[1]:
            total = total + grid[row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total / (total.square().sum() + 1e-5).sqrt()


def test_correlation_and_its_gradients_are_those_of_plain_loops():
    torch.manual_seed(0)
    grid = torch.randn(1, 6, 7, 3, dtype=torch.float64, requires_grad=True)
    places = torch.tensor([[[9.3, 14.1], [0.4, 1.0], [30.0, 21.7]]], dtype=torch.float64)
    weights = torch.randn(1, 3, WINDOW**2, 9, dtype=torch.float64)
    cells = torch.nn.functional.pad(grid, (0, 0, 1, 1, 1, 1)).flatten(1, 2)
    window = described(window_around(Level(cells, (6, 7), 4), places))
    costs = correlate(window, template_of(window))
    (gradient,) = torch.autograd.grad((costs * weights).sum(), grid)

    rows, apart = [], (-APART, 0, APART)
    for x, y in (places[0] / 4 - 0.5).tolist():
        template = [plain_sample(grid[0], x + dx, y + dy) for dy in apart for dx in apart]
        around = [
            plain_sample(grid[0], x + dx, y + dy) for dy in range(-REACH, REACH + 1) for dx in range(-REACH, REACH + 1)
        ]
        rows.append(torch.stack([torch.stack([vector @ part for part in template]) for vector in around]))
    expected = torch.stack(rows)[None]
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), grid)
    torch.testing.assert_close(costs, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert window_offsets(grid.device, grid.dtype)[1].tolist() == [1 - REACH, -REACH]


# ---- training -------------------------------------------------------------------------------------------------------


def trainable() -> tuple[LocalTracker, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A small tracker, a video, queries and the true tracks [2,4,4,2]."""
    torch.manual_seed(0)
    blocks = ModelConfig(
        width=16, depth=1, num_heads=2, mlp_width=16, patch_size=8, image_size=(32, 32), pooling="mean", num_classes=0
    )
    tracker = LocalTracker(LocalTrackerConfig(blocks=blocks, fine_width=6, middle_width=6, coarse_width=6))
    queries = torch.cat([torch.zeros(2, 4, 1), 12 + 14 * torch.rand(2, 4, 2)], dim=-1)
    moves = torch.tensor([[-(t // 2), -t] for t in range(4)])
    return tracker, smooth_video(4), queries, queries[:, :, None, [2, 1]] + moves


def test_it_learns_and_every_weight_has_a_gradient():
    tracker, video, queries, tracks = trainable()
    optimiser = torch.optim.Adam(tracker.parameters(), lr=5e-3)
    counted = torch.ones(2, 4, 4, dtype=torch.bool)
    after = counted.clone()
    after[:, :, 0] = False
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        out = tracker(video, queries)
        loss = local_track_loss(
            out, target_xy=tracks, visible=counted, counted=counted, after=after, image_size=(32, 32)
        )
        loss.total.backward()
        assert [name for name, weight in tracker.named_parameters() if weight.grad is None] == []
        optimiser.step()
        losses.append(loss.total.item())
    assert sum(losses[-3:]) < 0.75 * sum(losses[:3])


def test_the_loss_ignores_what_is_not_counted():
    tracker, video, queries, tracks = trainable()
    out = tracker(video, queries)
    counted = torch.ones(2, 4, 4, dtype=torch.bool)
    counted[:, 2:] = False
    visible = torch.ones_like(counted)
    arguments = {"visible": visible & counted, "counted": counted, "after": counted, "image_size": (32, 32)}
    expected = local_track_loss(out, target_xy=tracks, **arguments)
    moved = tracks.clone()
    moved[:, 2:] += 7
    assert local_track_loss(out, target_xy=moved, **arguments).total == expected.total
    moved[:, :2] += 7
    assert local_track_loss(out, target_xy=moved, **arguments).total > expected.total


def test_visibility_is_not_learned_from_points_that_are_lost():
    tracker, video, queries, tracks = trainable()
    out = tracker(video, queries)
    every = torch.ones(2, 4, 4, dtype=torch.bool)
    lost = tracks.clone()
    lost[:, 1:] += 40
    arguments = {"visible": every, "counted": every, "after": every, "image_size": (32, 32)}
    hidden = out._replace(visible_logits=torch.cat([out.visible_logits[:, :1], out.visible_logits[:, 1:] - 50], dim=1))
    of_lost, of_hidden = (local_track_loss(given, target_xy=lost, **arguments).visibility for given in (out, hidden))
    assert of_lost == of_hidden
    assert local_track_loss(hidden, target_xy=tracks, **arguments).visibility > of_hidden


def test_the_loss_of_a_perfect_output_is_small():
    tracker, video, queries, tracks = trainable()
    out = tracker(video, queries)
    assert out.local is not None
    sure = torch.full_like(out.visible_logits, 20.0)
    perfect = out._replace(
        visible_logits=sure,
        certainty_logits=sure,
        local=out.local._replace(places_xy=tracks.expand_as(out.local.places_xy)),
    )
    every = torch.ones(2, 4, 4, dtype=torch.bool)
    loss = local_track_loss(perfect, target_xy=tracks, visible=every, counted=every, after=every, image_size=(32, 32))
    assert loss.place.item() < 1e-6
    assert (loss.visibility + loss.certainty).item() < 1e-6
    assert loss.matches.item() > 0


def test_new_streams_begin_afresh_and_others_continue():
    tracker, video = tiny_local_tracker(), smooth_video()
    _, carried = tracker.step(video[:, :3], tracker.init_state(QUERIES, image_size=(32, 32)))
    begun = tracker.init_state(QUERIES + torch.tensor([0, 1.0, 1.0]), image_size=(32, 32))
    merged = _merged(begun, carried, torch.tensor([True, False]))
    for name, tensor in merged._tensors().items():
        assert torch.equal(tensor[0], begun._tensors()[name][0]), name
        assert torch.equal(tensor[1], carried._tensors()[name][1]), name


def test_points_are_moved_elsewhere_with_the_patch_of_their_query():
    tracker, video = tiny_local_tracker().eval(), smooth_video()[:1, :4]
    state = tracker.init_state(QUERIES[:1, :2], image_size=(32, 32))
    with torch.no_grad():
        _, state = tracker.step(video, state)
    there = torch.tensor([[[5.0, 6.0], [7.0, 8.0]]])
    moved = tracker.moved_to(state, there, torch.tensor([[True, False]]))
    assert torch.equal(moved.points[0, 1], state.points[0, 1])
    memory = tracker._remembered(moved.points)
    assert torch.equal(tracker.last_places(moved)[0, 0], there[0, 0])
    assert torch.equal(memory.last_patches[0, 0], memory.query_patches[0, 0])
    assert not memory.motion.velocity_xy[0, 0].any()
    before = tracker._remembered(state.points)
    assert torch.equal(memory.first[0][0, 0], before.first[0][0, 0])


def small_recipe(tmp_path, *more: str):
    return load_recipe(
        "track_streams",
        [
            "model.blocks.width=16", "model.blocks.mlp_width=16", "model.blocks.depth=1", "model.blocks.num_heads=2",
            "model.fine_width=4", "model.middle_width=4", "model.coarse_width=4", "preprocessing.num_frames=2",
            "track_streams.scenes.image_size=[32,32]", "track_streams.scenes.num_points=5",
            "track_streams.chunks=[2,3]", "track_streams.validation_scenes=0", "track_streams.validate_every=0",
            "optimisation.num_steps=4", "optimisation.warmup_steps=1", "optimisation.batch_size=2",
            "log_every=1", *more,
        ],
    )  # fmt: skip


def test_the_feeds_chunks_are_pieces_of_its_scenes(tmp_path):
    recipe = small_recipe(tmp_path)
    feed = recipe.feed()
    batches = [feed.chunks.batch(step, range(2)) for step in range(6)]
    assert [batch.first_frames.tolist() for batch in batches] == [[0, 0], [2, 2], [0, 4], [2, 0], [0, 2], [2, 4]]
    scenes = feed.chunks.scenes
    video = scenes.video(1 * 2 + 0, 4)  # the second scene of stream 0
    for step, frames in ((2, slice(0, 2)), (3, slice(2, 4))):
        got = batches[step].videos[0].permute(0, 2, 3, 1).numpy()
        assert np.array_equal(got, video.video[frames])
        assert np.array_equal(batches[step].tracks_xy[0].numpy(), video.tracks_xy[:, frames])
    queries = batches[2].query_points_tyx[0]
    seen = ~video.occluded
    assert all(seen[point, int(frame)] for point, frame in enumerate(queries[:, 0]))


@pytest.mark.slow
def test_a_recipe_trains_through_carried_states(tmp_path):
    from trecvit.train.loop import train

    model = train(small_recipe(tmp_path), tmp_path / "run")
    assert isinstance(model, LocalTracker)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimisation.batch_size=3", "expected one clip for each of 2 streams"),
        ("optimisation.accumulation=2", "accumulation: expected 1"),
        ("track_streams.chunks=[0,1]", "chunks: expected numbers of 1 or more"),
        ("track_streams.seed=1", "expected seed and validation_seed that differ"),
        ("track_streams.scenes.still_share=2", "still_share: expected 0 to 1, got 2"),
        ("model.blocks.patch_size=16", "patch_size=8"),
        ("track_streams.scenes.size=9", "no field 'size'"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(tmp_path, override, words):
    with pytest.raises(ConfigError, match=words):
        small_recipe(tmp_path, override)


# ---- scenes ---------------------------------------------------------------------------------------------------------


def test_a_scene_is_the_same_each_time_and_points_lie_on_what_they_show():
    pictures = [np.random.default_rng(0).integers(0, 256, (80, 90, 3), np.uint8)]
    config = LongSceneConfig(image_size=(48, 48), num_points=6)
    first, again = (LongScenes(config, seed=3, pictures=pictures).video(2, 5) for _ in range(2))
    assert np.array_equal(first.video, again.video)
    assert np.array_equal(first.tracks_xy, again.tracks_xy)
    assert first.video.shape == (5, 48, 48, 3)
    seen = first.tracks_xy[~first.occluded]
    assert (seen >= 0).all()
    assert (seen <= 48).all()


def test_pictures_are_read_from_a_folder_and_its_subfolders(tmp_path):
    (tmp_path / "more").mkdir()
    Image.new("RGB", (70, 80), "red").save(tmp_path / "more" / "a.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "more" / ".hidden").mkdir()
    (tmp_path / "more" / ".hidden" / "b.png").write_text("not counted")
    assert files_fingerprint(str(tmp_path))["files"] == 2
    (picture,) = pictures_of(tmp_path)
    assert picture.shape == (80, 70, 3)
    with pytest.raises(DataError, match="expected a folder of videos and pictures"):
        pictures_of(tmp_path / "none")
    (tmp_path / "more" / "a.png").unlink()
    with pytest.raises(DataError, match="expected videos or pictures, got none"):
        pictures_of(tmp_path)
