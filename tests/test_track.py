"""Live tracking: points that come and go, whatever the frames' size, at constant cost."""

from __future__ import annotations

import math
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from models import random_video, tiny_tracker

import trecvit
from trecvit.data.tracked import TrackedVideos
from trecvit.errors import InputError
from trecvit.evaluate.point_baselines import static_points
from trecvit.evaluate.tapvid import evaluate_tapvid
from trecvit.runtime.live import LivePoints, LiveTracker
from trecvit.synthetic.long_scenes import LongSceneConfig, LongScenes
from trecvit.synthetic.pictures import photographs
from trecvit.video.transforms import to_whole_clip
from trecvit.weights.load import load

TRACKER = tiny_tracker()
NUM_FRAMES = 9
MAX_POINTS = 3


def frames_of(num_frames: int = NUM_FRAMES, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """uint8 [T,H,W,3]."""
    return random_video(1, num_frames, height, width, seed=seed)[0].movedim(1, -1).contiguous().numpy()


def as_video(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).movedim(-1, 1)[None]


def clip_answer(points: dict[int, tuple[int, float, float]], frames: np.ndarray):
    """What the tracker says of a clip in which every point is declared at the start: {slot: (t, x, y)}."""
    queries = torch.full((1, MAX_POINTS + 1, 3), math.inf)
    for slot, (t, x, y) in points.items():
        queries[0, slot] = torch.tensor([t, y, x])
    with torch.no_grad():
        return TRACKER(as_video(frames), queries)


def assert_row(live: LiveTracker, got: LivePoints, point: int, out, slot: int, frame: int) -> None:
    row = live.ids.index(point)
    np.testing.assert_allclose(got.points_xy[row], out.points_xy[0, slot, frame].numpy(), atol=1e-3)
    np.testing.assert_allclose(got.certainty[row], out.certainty[0, slot, frame].numpy(), atol=1e-4)
    assert got.visible[row] == bool(out.visible_logits[0, slot, frame] > 0)


def test_it_is_public():
    assert trecvit.LiveTracker is LiveTracker


def test_a_point_added_later_is_as_if_declared_at_the_start():
    frames = frames_of()
    places = {0: (0, 5.0, 6.5), 1: (3, 20.0, 31.0), 2: (7, 0.0, 12.0)}
    expected = clip_answer(places, frames)
    live, ids = LiveTracker(TRACKER, MAX_POINTS), {}
    for number, frame in enumerate(frames):
        for slot, (t, x, y) in places.items():
            if t == number:
                ids[slot] = live.add(x, y)
        got = live.update(frame)
        points_xy, visible, certainty = got
        assert points_xy.shape == (len(ids), 2)
        assert points_xy.dtype == certainty.dtype == np.float32
        assert visible.dtype == np.bool_
        for slot, point in ids.items():
            assert_row(live, got, point, expected, slot, number)


def test_removing_and_using_a_slot_again_leaves_the_others_untouched():
    """The same story twice: once a point leaves and another takes its slot, once the other gets a slot of its own."""
    frames = frames_of()
    again, apart = LiveTracker(TRACKER, MAX_POINTS), LiveTracker(TRACKER, MAX_POINTS)
    stay, leave = again.add(5, 6.5), again.add(20, 31)
    assert (stay, leave) == (apart.add(5, 6.5), apart.add(20, 31))
    for frame in frames[:4]:
        again.update(frame)
        apart.update(frame)
    before = [layer.hidden.clone() for layer in again._state.layers]
    for live in (again, apart):
        live.remove(leave)
        assert live.ids == (stay,)
    patches = 16
    for layer, hidden in zip(again._state.layers, before, strict=True):
        others = [*range(patches), patches, patches + 2, patches + 3]
        assert torch.equal(layer.hidden[:, others], hidden[:, others])
        assert not torch.equal(layer.hidden[:, patches + 1], hidden[:, patches + 1])
    apart._slots._slots[-1] = 1  # bars the slot from which the point was removed
    added = again.add(9, 10)
    assert added == apart.add(9, 10)
    assert again._slots._slots[added] == 1
    assert apart._slots._slots[added] == 2
    del apart._slots._slots[-1]
    for frame in frames[4:]:
        got, expected = again.update(frame), apart.update(frame)
        np.testing.assert_allclose(got.points_xy, expected.points_xy, atol=1e-3)
        np.testing.assert_allclose(got.certainty, expected.certainty, atol=1e-4)


def test_nothing_of_a_removed_point_is_left_in_its_slot():
    """It is what a slot is that never was used; only the picture's tokens have met the point."""
    frames = frames_of()
    live = LiveTracker(TRACKER, MAX_POINTS)
    for number, frame in enumerate(frames):
        ids = [live.add(3 * number + k, 5) for k in range(MAX_POINTS)]
        live.update(frame)
        for point in ids:
            live.remove(point)
        for layer in live._state.layers:
            slots = layer.hidden[0, 16:]
            torch.testing.assert_close(slots, slots[-1:].expand_as(slots))
    assert live.update(frames[0]).points_xy.shape == (0, 2)


def test_a_point_removed_before_any_frame_was_never_there():
    frames = frames_of(4)
    live, plain = LiveTracker(TRACKER, MAX_POINTS), LiveTracker(TRACKER, MAX_POINTS)
    live.remove(live.add(3, 4))
    live.add(8, 9)
    plain.add(8, 9)
    for frame in frames:
        np.testing.assert_array_equal(live.update(frame).points_xy, plain.update(frame).points_xy)


def test_frames_may_have_any_size_and_points_are_in_their_pixels():
    small = frames_of()
    large = small.repeat(4, axis=1).repeat(3, axis=2)  # 128 high, 96 wide; scaled down, the small ones again
    live, plain = LiveTracker(TRACKER, MAX_POINTS), LiveTracker(TRACKER, MAX_POINTS)
    resized = [to_whole_clip(frame[None], (32, 32))[0].movedim(0, -1).numpy() for frame in large]
    live.add(15, 26), live.add(96, 128)
    plain.add(5, 6.5), plain.add(32, 32)
    for big, little in zip(large, resized, strict=True):
        got, expected = live.update(big), plain.update(little)
        np.testing.assert_allclose(got.points_xy / [3, 4], expected.points_xy, atol=1e-3)
        np.testing.assert_allclose(got.certainty, expected.certainty, atol=1e-4)
    with pytest.raises(InputError, match=r"x in 0\.\.96 and y in 0\.\.128 pixels, got x=97, y=5"):
        live.add(97, 5)
    live.update(np.ascontiguousarray(large[0][::2, ::2]))  # a camera that changes its mind


def test_the_models_frames_may_have_another_size():
    frames = frames_of(height=64, width=48)
    live = LiveTracker(TRACKER, MAX_POINTS, image_size=[64, 48])
    point = live.add(30, 60)
    queries = torch.full((1, MAX_POINTS + 1, 3), math.inf)
    queries[0, 0] = torch.tensor([0, 60, 30])
    with torch.no_grad():
        expected = TRACKER(as_video(frames), queries)
    for number, frame in enumerate(frames):
        assert_row(live, live.update(frame), point, expected, 0, number)


def test_memory_does_not_grow_and_does_not_depend_on_the_points():
    live = LiveTracker(TRACKER, MAX_POINTS)
    size = live.nbytes
    for number, frame in enumerate(frames_of(40)):
        if number % 5 == 0 and len(live.ids) < MAX_POINTS:
            live.add(number % 30, 7)
        if number % 7 == 6:
            live.remove(live.ids[0])
        live.update(frame)
        assert live.nbytes == size
    storages = {tensor.untyped_storage().nbytes() - tensor.nbytes for tensor in live._state._tensors().values()}
    assert storages == {0}, "no tensor keeps a larger one alive"


def test_live_trackers_share_a_model_and_nothing_else():
    frames = frames_of(3)
    first, second = LiveTracker(TRACKER, MAX_POINTS), LiveTracker(TRACKER, 1)
    before = {name: tensor.clone() for name, tensor in TRACKER.state_dict().items()}
    first.add(3, 4)
    first.update(frames[0])
    assert second.ids == ()
    assert second.add(5, 6) == 0
    second.update(frames[1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in TRACKER.state_dict().items())


def test_ids_are_never_used_twice():
    live = LiveTracker(TRACKER, 2)
    seen = set()
    for number, frame in enumerate(frames_of(6)):
        point = live.add(number, number)
        assert point not in seen
        seen.add(point)
        live.update(frame)
        live.remove(point)


def test_what_is_impossible_is_refused_and_changes_nothing():
    live = LiveTracker(TRACKER, 1)
    with pytest.raises(InputError, match="max_points: expected 1 or more, got 0"):
        LiveTracker(TRACKER, 0)
    with pytest.raises(InputError, match="patch_size=8 divides"):
        LiveTracker(TRACKER, 1, image_size=(30, 32))
    with pytest.raises(InputError, match="no point has the id 7"):
        live.remove(7)
    point = live.add(40, 3)
    with pytest.raises(InputError, match="all 1 points are in use"):
        live.add(1, 1)
    frame = frames_of(1)[0]
    state = live._state
    with pytest.raises(InputError, match=r"x in 0\.\.32.*got x=40"):
        live.update(frame)
    with pytest.raises(InputError, match="expected uint8"):
        live.update(frame.astype(np.float32))
    assert live._state is state
    live.remove(point)
    for x, y in ((math.nan, 1), (-0.1, 1), (1, 32.5)):
        bad = live.add(x, y)
        with pytest.raises(InputError, match="expected a point"):
            live.update(frame)
        live.remove(bad)
    assert live.update(frame).points_xy.shape == (0, 2)


def test_a_coarse_model_can_be_live():
    live = LiveTracker(tiny_tracker().to(torch.bfloat16), MAX_POINTS)
    live.add(3, 4)
    for frame in frames_of(3):
        got = live.update(frame)
    assert got.points_xy.dtype == np.float32
    assert np.isfinite(got.points_xy).all()


# ---- the bundled tracker ----


@pytest.mark.slow
def test_the_bundled_tracker_is_small_and_follows_moved_pictures():
    tracker = load("points")
    folder = files("trecvit.weights") / "points"
    assert sum(path.stat().st_size for path in Path(str(folder)).iterdir()) < 12e6
    assert tracker.provenance["recipe"] == "src/trecvit/recipes/track_streams.yaml"
    scenes = LongScenes(
        LongSceneConfig(image_size=(256, 256), still_share=0.0, max_things=0), seed=1, pictures=photographs("held_out")
    )
    videos = TrackedVideos("moved", [(f"{index}", partial(scenes.video, index, 12)) for index in range(3)])
    shares = []
    for follow in (tracker, static_points):
        scores, failures = evaluate_tapvid(follow, videos, image_size=(256, 256))
        assert not failures
        shares.append(scores.means()["average_jaccard"])
    assert shares[0] > 2 * shares[1]
    assert shares[0] > 0.5


@pytest.mark.slow
def test_the_bundled_tracker_holds_what_does_not_move():
    tracker = load("points")
    picture = photographs("held_out")[0][:256, :256]
    noise = np.random.default_rng(0).normal(0, 3, (60, *picture.shape))
    video = torch.from_numpy((picture + noise).clip(0, 255).astype(np.uint8)).permute(0, 3, 1, 2)[None]
    video[:, :, :, 100:140] = torch.where(torch.arange(60)[:, None, None, None] % 20 >= 15, 90, video[:, :, :, 100:140])
    places = np.random.default_rng(1).uniform(20, 236, (1, 64, 2))
    queries = torch.cat([torch.zeros(1, 64, 1), torch.from_numpy(places).float()], dim=-1)
    with torch.inference_mode():
        out = tracker(video, queries)
    off_px = (out.points_xy - queries[:, :, None, 1:].flip(-1)).norm(dim=-1)
    beside = (queries[0, :, 1] - 120).abs() > 20 + 12  # of what passes
    assert (off_px[0, beside] < 4).float().mean() > 0.98  # the goal for cameras at rest
    assert (off_px[0, ~beside] < 4).float().mean() > 0.7
