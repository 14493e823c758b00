"""The synthetic world: the same clip for the same index, pairs that share their frames, labels that are true."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from forked import Forks

from trecvit.errors import ConfigError, InputError
from trecvit.synthetic.scene import Layer, Scene, compose, render, scene_tracks
from trecvit.synthetic.world import LABELS, NUM_SYMMETRIES, PAIRS, World, WorldConfig, mirrored

ROUNDS = 12  # scenes of each pair on which labels are checked


@pytest.fixture(scope="module")
def world() -> World:
    return World(WorldConfig(), seed=7)


@pytest.fixture(scope="module")
def scenes(world: World) -> dict[int, list[Scene]]:
    """Scenes by label."""
    by_label: dict[int, list[Scene]] = {label: [] for label in range(len(LABELS))}
    for index in range(ROUNDS * len(LABELS)):
        scene = world.scene(index)
        by_label[scene.label].append(scene)
    return by_label


# ---- the contract ----------------------------------------------------------------------------------------------------


def test_labels_come_in_pairs() -> None:
    assert len(LABELS) == len(set(LABELS)) == 18
    assert PAIRS[3] == (6, 7)


def test_items_are_uint8_videos(world: World) -> None:
    video, label = world[5]
    frames, same_label = world.clip(5)
    assert video.dtype == torch.uint8
    assert video.shape == (16, 3, 96, 96)
    assert frames.dtype == np.uint8
    assert frames.shape == (16, 96, 96, 3)
    assert label == same_label
    assert isinstance(label, int)
    assert np.array_equal(video.permute(0, 2, 3, 1).numpy(), frames)


@pytest.mark.slow
@pytest.mark.parametrize("config", [
    WorldConfig(num_frames=2, image_size=(32, 32)),
    WorldConfig(num_frames=5, image_size=(64, 112)),
    WorldConfig(num_frames=40, image_size=(120, 72), max_distractors=0, camera_jitter_px=0.0, noise=0.0),
])  # fmt: skip
def test_any_size_and_length(config: WorldConfig) -> None:
    world = World(config, seed=3)
    for index in range(18):
        video, _ = world[index]
        assert video.shape == (config.num_frames, 3, *config.image_size)


def test_any_index_is_an_item(world: World) -> None:
    assert world[10**12][0].shape == (16, 3, 96, 96)
    with pytest.raises(InputError, match="index"):
        world.scene(-1)
    with pytest.raises(InputError, match="number"):
        world.pair(-1)


@pytest.mark.slow
def test_every_block_of_items_holds_each_label_once(world: World) -> None:
    labels = [world.scene(index).label for index in range(18 * 6)]
    assert Counter(labels) == dict.fromkeys(range(18), 6)
    assert sorted(labels[18:36]) == list(range(18))
    assert all(one ^ 1 == two for one, two in zip(labels[::2], labels[1::2], strict=True))
    assert labels[:18] != labels[18:36]  # no stride through the items meets one class only


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_frames", 1),
        ("num_frames", 2.5),
        ("image_size", (96, 8)),
        ("image_size", (96.5, 96)),
        ("image_size", (96, 96, 3)),
        ("max_distractors", -1),
        ("camera_jitter_px", 50.0),
        ("light_drift", 0.7),
        ("noise", -1.0),
        ("noise", float("nan")),
        ("picture_share", 1.5),
        ("whole_scene_share", -0.1),
    ],
)
def test_config_refuses_what_is_not_possible(field: str, value: object) -> None:
    with pytest.raises((ConfigError, TypeError), match=field):  # a TypeError if types are checked, as in some test runs
        WorldConfig(**{field: value})


def test_seed_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match="seed"):
        World(WorldConfig(), seed=-1)


def test_pictures_are_checked() -> None:
    for wrong in (np.zeros((20, 20), np.uint8), np.zeros((20, 20, 3), np.float32), np.zeros((4, 20, 3), np.uint8)):
        with pytest.raises(InputError, match=r"pictures\[0\]"):
            World(WorldConfig(), seed=0, pictures=[wrong])


# ---- the same clip every time ----------------------------------------------------------------------------------------


def test_worlds_can_be_sent_to_other_processes(world: World) -> None:
    assert torch.equal(pickle.loads(pickle.dumps(world))[22][0], world[22][0])


def test_order_and_threads_do_not_matter(world: World) -> None:
    fresh = World(WorldConfig(), seed=7)
    indices = [40, 3, 17, 3, 28]
    with ThreadPoolExecutor(3) as pool:
        videos = list(pool.map(lambda index: fresh[index][0], indices))
    torch.manual_seed(0)
    np.random.seed(0)
    assert all(torch.equal(video, world[index][0]) for video, index in zip(videos, indices, strict=True))


@pytest.mark.slow
def test_another_process_makes_the_same(world: World, forks: Forks) -> None:
    code = (
        "import hashlib; from trecvit.synthetic.world import *; w = World(WorldConfig(), seed=7)\n"
        "print(*[hashlib.sha256(w[i][0].numpy().tobytes()).hexdigest() for i in (31, 4, 16)])"
    )
    digests = [hashlib.sha256(world[index][0].numpy().tobytes()).hexdigest() for index in (31, 4, 16)]
    assert forks.run(code).stdout.split() == digests


def test_seeds_and_indices_make_different_scenes(world: World) -> None:
    other = World(WorldConfig(), seed=8)
    clips = [world[0][0], world[2][0], world[18][0], other[0][0]]
    for number, one in enumerate(clips):
        for two in clips[number + 1 :]:
            assert (one.float() - two.float()).abs().mean() > 5


# ---- pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_partners_share_every_frame(scenes: dict[int, list[Scene]]) -> None:
    for one, two in PAIRS[:-1]:
        for first, second in zip(scenes[one][:3], scenes[two][:3], strict=True):
            assert torch.equal(compose(first).flip(0), compose(second))
            assert torch.equal(compose(first.partner()), compose(second))
            assert first.partner().label == second.label


def test_noise_is_drawn_for_each_item(scenes: dict[int, list[Scene]]) -> None:
    first, second = scenes[0][0], scenes[1][0]
    loud, other = (replace(scene, noise_levels=5.0) for scene in (first, second))
    clean = render(replace(first, noise_levels=0.0)).astype(float)
    difference = render(loud).astype(float) - clean
    shown = (clean > 30) & (clean < 225)
    assert 4.5 < difference[shown].std() < 5.5
    assert not np.array_equal(render(loud)[::-1], render(other))
    assert abs(np.corrcoef(difference[0].ravel(), difference[1].ravel())[0, 1]) < 0.2


def test_passing_partners_differ_in_depth_only(scenes: dict[int, list[Scene]]) -> None:
    for front, behind in zip(scenes[16], scenes[17], strict=True):
        assert [layer.role for layer in front.layers][-2:] == ["rest", "mover"]
        assert [layer.role for layer in behind.layers][-2:] == ["mover", "rest"]
        assert all(np.array_equal(front.layers[-1 - n].transforms, behind.layers[-2 + n].transforms) for n in (0, 1))


def test_pair_equals_its_two_items(world: World) -> None:
    for number in range(9):
        videos, labels = world.pair(number)
        for member in (0, 1):
            video, label = world[2 * number + member]
            assert label == labels[member]
            assert torch.equal(videos[member], video)


# ---- the labels are true ---------------------------------------------------------------------------------------------


def of_role(scene: Scene, role: str) -> list[Layer]:
    return [layer for layer in scene.layers if layer.role == role]


def subject(scene: Scene) -> Layer:
    """The moving layer: an object, or the whole picture."""
    return (of_role(scene, "mover") or of_role(scene, "background"))[0]


def centres(layer: Layer) -> np.ndarray:
    """Where the middle of a layer is in each frame, [T, 2]."""
    _, height, width = layer.texture.shape
    return layer.transforms @ np.array([(width - 1) / 2, (height - 1) / 2, 1])


def to_image(layer: Layer, points_xy: np.ndarray, frame: int) -> np.ndarray:
    """Where points of a layer's texture lie in a frame, [Q, 2]."""
    return points_xy @ layer.transforms[frame, :, :2].T + layer.transforms[frame, :, 2]


def middle_of_frame(layer: Layer, scene: Scene) -> np.ndarray:
    """Where the point that is in the frame's middle half way through is in each frame, [T, 2]."""
    height, width = scene.image_size
    point = layer.to_texture(np.array([[(width - 1) / 2, (height - 1) / 2]]), scene.num_frames // 2)
    return np.concatenate([to_image(layer, point, frame) for frame in range(scene.num_frames)])


def angles(layer: Layer) -> np.ndarray:
    return np.unwrap(np.arctan2(layer.transforms[:, 1, 0], layer.transforms[:, 0, 0]))


def areas(layer: Layer) -> np.ndarray:
    return np.linalg.det(layer.transforms[:, :, :2])


def pixels(layer: Layer, frame: int, size: tuple[int, int]) -> np.ndarray:
    """Which pixels of a frame a layer covers, [H, W]."""
    y, x = np.mgrid[: size[0], : size[1]]
    points = np.stack([x.ravel(), y.ravel()], axis=1).astype(float)
    return layer.covers(points, frame).reshape(size)


def thicker(mask: np.ndarray, pixels: int) -> np.ndarray:
    for _ in range(pixels):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


@pytest.mark.parametrize(("label", "axis", "sign"), [(0, 0, -1), (1, 0, 1), (2, 1, -1), (3, 1, 1)])
def test_moving(scenes: dict[int, list[Scene]], label: int, axis: int, sign: int) -> None:
    for scene in scenes[label]:
        way = middle_of_frame(subject(scene), scene)
        travel = way[-1] - way[0]
        assert travel[axis] * sign > 0.2 * 96
        assert abs(travel[1 - axis]) < 0.6 * abs(travel[axis])


@pytest.mark.parametrize(("label", "sign"), [(4, 1), (5, -1)])
def test_approaching(scenes: dict[int, list[Scene]], label: int, sign: int) -> None:
    for scene in scenes[label]:
        growth = np.log(areas(subject(scene))) / 2
        assert 1.3 < np.exp(sign * (growth[-1] - growth[0])) < 3.2


@pytest.mark.parametrize(("label", "sign"), [(6, 1), (7, -1)])
def test_turning(scenes: dict[int, list[Scene]], label: int, sign: int) -> None:
    for scene in scenes[label]:
        turn = angles(subject(scene))
        assert np.radians(55) < sign * (turn[-1] - turn[0]) < np.radians(205)


def test_clockwise_is_clockwise_as_seen(scenes: dict[int, list[Scene]]) -> None:
    for scene in scenes[6]:
        layer = subject(scene)
        frame = next(t for t in range(15) if angles(layer)[t + 1] - angles(layer)[t] > 0.02)
        centre, right = np.array([[10.0, 10.0]]), np.array([[60.0, 10.0]])
        hand = layer.to_texture(centre, frame), layer.to_texture(right, frame)
        later = [to_image(layer, point, frame + 1)[0] for point in hand]
        assert later[1][1] > later[0][1]  # a hand at three o'clock goes down


def shown(scene: Scene, frame: int) -> float:
    """Part of the mover that can be seen."""
    mover = of_role(scene, "mover")[0]
    rows, columns = np.nonzero(mover.texture[3].numpy() > 0.5)
    points = to_image(mover, np.stack([columns, rows], axis=1).astype(float), frame)
    height, width = scene.image_size
    seen = (points > -0.5).all(axis=1) & (points < [width - 0.5, height - 0.5]).all(axis=1)
    for layer in scene.layers[[layer.role for layer in scene.layers].index("mover") + 1 :]:
        seen &= ~layer.covers(points, frame)
    return float(seen.mean())


def test_appearing(scenes: dict[int, list[Scene]]) -> None:
    ends = np.array([[shown(scene, 0), shown(scene, -1 + scene.num_frames)] for scene in scenes[8]])
    assert (ends[:, 0] < 0.05).all()
    assert (ends[:, 1] > 0.5).all()
    backwards = np.array([[shown(scene, 0), shown(scene, -1 + scene.num_frames)] for scene in scenes[9]])
    assert np.allclose(backwards, ends[:, ::-1])


@pytest.mark.slow
def test_direction_is_no_cue_for_appearing(world: World) -> None:
    ways = [
        centres(subject(scene))[-1] - centres(subject(scene))[0]
        for scene in (world.scene(index) for index in range(0, 1800, 2))
        if scene.label == 8
    ]
    quadrants = Counter((bool(x > 0), bool(y > 0)) for x, y in ways)
    assert min(quadrants.values()) > len(ways) / 8


def openness(scene: Scene) -> np.ndarray:
    """Grows as things open, for every variant."""
    parts = of_role(scene, "part")
    if len(parts) == 1 or np.ptp(areas(parts[0])) > 0.3 * areas(parts[0]).max():
        return -areas(parts[0])  # swung towards the viewer: seen ever narrower, then from behind
    between = angles(parts[0]) - angles(parts[1])
    spread = np.abs((between + np.pi) % (2 * np.pi) - np.pi)
    if np.ptp(spread) > 0.3:
        return spread
    return np.hypot(*(centres(parts[0]) - centres(parts[1])).T)


def test_opening(scenes: dict[int, list[Scene]]) -> None:
    for scene in scenes[10]:
        value = openness(scene)
        assert value[-1] - value[0] > 0.25 * np.abs(value).max()
        assert (np.diff(value) > -0.1 * np.ptp(value)).all()
    for scene in scenes[11]:
        assert openness(scene)[0] > openness(scene)[-1]


def test_colliding(scenes: dict[int, list[Scene]]) -> None:
    for scene in scenes[12]:
        one, two = of_role(scene, "mover")
        distance = np.hypot(*(centres(one) - centres(two)).T)
        assert distance[0] - distance[-1] > 0.2 * 96
        last = scene.num_frames - 1
        size = scene.image_size
        meeting = pixels(one, last, size), pixels(two, last, size)
        assert (meeting[0] & meeting[1]).sum() <= 4
        assert (thicker(meeting[0], 2) & thicker(meeting[1], 2)).any()
        assert not (thicker(pixels(one, 0, size), 3) & pixels(two, 0, size)).any()
    for scene in scenes[13]:
        one, two = of_role(scene, "mover")
        assert (pixels(one, 0, (96, 96)) & pixels(two, 0, (96, 96))).sum() <= 4


def test_scattering(scenes: dict[int, list[Scene]]) -> None:
    for label, sign in ((14, 1), (15, -1)):
        for scene in scenes[label]:
            pieces = of_role(scene, "piece")
            assert 3 <= len(pieces) <= 7
            places = np.stack([centres(piece) for piece in pieces])
            spread = np.hypot(*np.moveaxis(places - places.mean(axis=0), -1, 0)).mean(axis=0)
            assert sign * (spread[-1] - spread[0]) > 0.15 * 96


def test_passing(scenes: dict[int, list[Scene]]) -> None:
    for scene in scenes[16]:
        rest, mover = of_role(scene, "rest")[0], of_role(scene, "mover")[0]
        both = [
            int((pixels(rest, frame, (96, 96)) & pixels(mover, frame, (96, 96))).sum())
            for frame in range(scene.num_frames)
        ]
        assert max(both) > 10
        assert both[0] < 0.3 * max(both)
        assert both[-1] < 0.3 * max(both)
        assert np.hypot(*np.ptp(centres(rest), axis=0)) < 10 < np.hypot(*np.ptp(centres(mover), axis=0))


@pytest.mark.slow
def test_distractors_stay_where_they_are_and_out_of_the_way(scenes: dict[int, list[Scene]]) -> None:
    for label in range(0, 18, 2):
        for scene in scenes[label]:
            actors = [layer for layer in scene.layers if layer.role not in ("background", "distractor")]
            if not actors:
                continue  # the whole picture moves, and what lies on it with it
            for layer in of_role(scene, "distractor"):
                assert np.ptp(centres(layer), axis=0).max() < 12
                for frame in (0, 7, 15):
                    mask = pixels(layer, frame, (96, 96))
                    assert not any((mask & pixels(actor, frame, (96, 96))).any() for actor in actors)


@pytest.mark.slow
def test_movers_can_be_seen(scenes: dict[int, list[Scene]]) -> None:
    """Without its actors a scene looks different in every frame in which they should be seen."""
    for label in (0, 2, 4, 6, 12, 14, 16):
        for scene in scenes[label]:
            if not of_role(scene, "mover") and not of_role(scene, "piece"):
                continue
            empty = replace(scene, layers=tuple(ly for ly in scene.layers if ly.role not in ("mover", "piece")))
            difference = (compose(scene) - compose(empty)).abs().sum(dim=1)
            share = ((difference > 0.1).flatten(1).sum(dim=1) > 25).float().mean()
            assert share > (0.35 if label == 16 else 0.8)  # the passing object may enter and leave the frame


@pytest.mark.slow
def test_light_and_shake_have_no_direction(world: World) -> None:
    drift = []
    for index in range(0, 720, 2):
        light = world.scene(index).light[:, 0].mean(axis=1)
        drift.append((light[-1] - light[0]) / light.mean())
    assert abs(np.mean(drift)) < 3 * np.std(drift) / np.sqrt(len(drift))


# ---- pictures and tracks ---------------------------------------------------------------------------------------------


def test_cut_outs_and_pictures_are_used() -> None:
    photo = np.zeros((60, 80, 3), np.uint8)
    photo[..., 0] = 200
    cut_out = np.zeros((40, 50, 4), np.uint8)
    cut_out[5:30, 10:40] = (0, 0, 220, 255)
    config = WorldConfig(picture_share=1.0, noise=0.0)
    world = World(config, seed=1, pictures=[photo, cut_out])
    reddish = blueish = 0
    for index in range(0, 36, 2):
        scene = world.scene(index)
        red, _, blue, _ = scene.layers[0].texture.mean(dim=(1, 2)).tolist()
        reddish += red > blue
        for layer in scene.layers[1:]:
            total = layer.texture.sum(dim=(1, 2))
            blueish += bool(total[2] > 2 * total[0])
        world.clip(index)
    assert reddish >= 14  # some are given another hue
    assert blueish >= 3


def test_world_tracks(world: World) -> None:
    rng = np.random.default_rng(0)
    for index in (0, 5, 9, 14, 16, 25):
        queries = np.stack([rng.integers(0, 16, 20), *rng.uniform(0, 95, (2, 20))], axis=1)
        points_xy, visible = world.tracks(index, queries)
        assert points_xy.shape == (20, 16, 2)
        assert visible.shape == (20, 16)
        start = points_xy[np.arange(20), queries[:, 0].astype(int)]
        assert np.allclose(start, queries[:, [2, 1]])
        assert visible[np.arange(20), queries[:, 0].astype(int)].all()
        again = scene_tracks(world.scene(index), queries)
        assert np.array_equal(points_xy, again[0])


@pytest.mark.parametrize("symmetry", range(NUM_SYMMETRIES))
def test_mirrored_clips_get_the_label_of_what_they_show(symmetry: int) -> None:
    turn = np.linspace(0, 1.5, 6)
    middle = np.full(6, 16.0)
    ways = {  # label -> where a dot is in each frame, as (x, y) with y downwards
        0: (24 - 12 * turn, middle),
        1: (8 + 12 * turn, middle),
        2: (middle, 24 - 12 * turn),
        3: (middle, 8 + 12 * turn),
        6: (16 + 10 * np.cos(turn), 16 + 10 * np.sin(turn)),
        7: (16 + 10 * np.cos(-turn), 16 + 10 * np.sin(-turn)),
    }
    for label, (x, y) in ways.items():
        video = torch.zeros(1, 6, 3, 32, 32, dtype=torch.uint8)
        for frame in range(6):
            video[0, frame, :, round(y[frame]), round(x[frame])] = 255
        seen, (named,) = mirrored(video, [label], symmetry)
        _, rows, columns = torch.nonzero(seen[0, :, 0], as_tuple=True)
        dx, dy = float(columns[-1] - columns[0]), float(rows[-1] - rows[0])
        if label < 4:
            shown = (0 if dx < 0 else 1) if abs(dx) > abs(dy) else (2 if dy < 0 else 3)
        else:
            start, end = (complex(columns[at] - 15.5, rows[at] - 15.5) for at in (0, -1))
            shown = 6 if (end / start).imag > 0 else 7
        assert named == shown


def test_mirrored_keeps_the_other_labels_and_makes_eight_different_pictures(world: World) -> None:
    videos, labels = world.pair(next(n for n in range(9) if world.pair(n)[1][0] >= 8))
    views = [mirrored(videos, labels, symmetry) for symmetry in range(NUM_SYMMETRIES)]
    assert all(named == labels for _, named in views)
    assert torch.equal(views[0][0], videos)
    assert len({view.numpy().tobytes() for view, _ in views}) == NUM_SYMMETRIES
    with pytest.raises(InputError, match="expected 0 to 7, got 8"):
        mirrored(videos, labels, 8)
