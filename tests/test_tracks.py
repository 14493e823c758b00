"""Track scenes: exact tracks, occlusion as drawn, reproducible clips."""

from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from forked import Forks

from trecvit.data.tracked import TrackedVideo
from trecvit.errors import ConfigError, InputError
from trecvit.synthetic import track_scenes as making
from trecvit.synthetic.pictures import photographs
from trecvit.synthetic.scene import Layer, Scene, compose, invert, scene_tracks, visible_layers
from trecvit.synthetic.stage import Stage
from trecvit.synthetic.track_scenes import TrackSceneConfig, TrackScenes

SMALL = TrackSceneConfig(num_frames=10, image_size=(64, 80), num_points=40)


@pytest.fixture(scope="module")
def scenes() -> TrackScenes:
    return TrackScenes(SMALL, seed=4)


def queries_of(clip: TrackedVideo) -> np.ndarray:
    """Of a scene's clip, in the scene's own coordinates."""
    assert clip.query_points_tyx is not None
    return clip.query_points_tyx - np.array([0, 0.5, 0.5], np.float32)


def alpha_of(layer: Layer, frame: int, height: int, width: int) -> np.ndarray:
    """Alpha of a layer at every pixel of a frame, looked up plainly."""
    y, x = np.mgrid[:height, :width]
    if layer.reflect:
        return np.ones((height, width))
    _, rows, columns = layer.texture.shape
    u, v = np.einsum("ij,jhw->ihw", invert(layer.transforms)[frame], np.stack([x, y, np.ones_like(x)]))
    u, v = np.clip(u, -1, columns), np.clip(v, -1, rows)
    padded = np.pad(layer.texture[3].numpy(), 2)
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    fx, fy = u - left, v - top
    upper = padded[top + 2, left + 2] * (1 - fx) + padded[top + 2, left + 3] * fx
    lower = padded[top + 3, left + 2] * (1 - fx) + padded[top + 3, left + 3] * fx
    return upper * (1 - fy) + lower * fy


def layer_maps(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """`[T, H, W]`: the front layer at every pixel, and whether it alone is seen there, as far as one pixel around."""
    height, width = scene.image_size
    front = np.zeros((scene.num_frames, height, width), int)
    alone = np.ones((scene.num_frames, height, width), bool)
    for frame in range(scene.num_frames):
        for number, layer in enumerate(scene.layers):
            alpha = alpha_of(layer, frame, height, width)
            front[frame][alpha > 0.5] = number
            alone[frame] &= (alpha < 1e-6) | (alpha > 1 - 1e-4)
    padded_front, padded_alone = (np.pad(maps, ((0, 0), (1, 1), (1, 1)), mode="edge") for maps in (front, alone))
    for dy in range(3):
        for dx in range(3):
            window = np.s_[:, dy : dy + height, dx : dx + width]
            alone &= (padded_front[window] == front) & padded_alone[window]
    return front, alone


def sampled(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """Bilinear, `[C]` of `[C, H, W]`."""
    left, top = min(int(x), image.shape[2] - 2), min(int(y), image.shape[1] - 2)
    fx, fy = x - left, y - top
    upper = image[:, top, left] * (1 - fx) + image[:, top, left + 1] * fx
    lower = image[:, top + 1, left] * (1 - fx) + image[:, top + 1, left + 1] * fx
    return upper * (1 - fy) + lower * fy


def as_maps(scene: Scene) -> Scene:
    """The same scene with colours that encode the visible point: u, v in pixels and the layer's index."""
    layers = []
    for number, layer in enumerate(scene.layers):
        _, height, width = layer.texture.shape
        texture = layer.texture.clone()
        texture[0] = torch.arange(width)[None, :] * texture[3]
        texture[1] = torch.arange(height)[:, None] * texture[3]
        texture[2] = number * texture[3]
        layers.append(replace(layer, texture=texture))
    light = np.zeros((scene.num_frames, 2, 3))
    light[:, 0] = 1
    return replace(scene, layers=tuple(layers), light=light, blur_passes=0, noise_levels=0.0)


# ---- exactness -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_visible_point_shows_the_same_place_of_the_same_surface(scenes: TrackScenes) -> None:
    """In every frame that shows a track, the queried point of the surface is drawn at its position."""
    checked = total = 0
    for index in range(6):
        scene, clip = scenes.scene(index), scenes[index]
        drawn = compose(as_maps(scene)).numpy()
        _, alone = layer_maps(scene)
        queries = queries_of(clip)
        owner = visible_layers(scene, queries)
        for q, (t, y, x) in enumerate(queries):
            layer = scene.layers[owner[q]]
            u, v = invert(layer.transforms)[int(t)] @ [x, y, 1]
            texel_px = np.abs(np.linalg.det(layer.transforms[:, :, :2])) ** 0.5
            for frame in np.nonzero(~clip.occluded[q])[0]:
                x_now, y_now = clip.tracks_xy[q, frame] - 0.5
                total += 1
                row, column = np.clip(round(float(y_now)), 0, 63), np.clip(round(float(x_now)), 0, 79)
                if not alone[frame, row, column] or not (0 <= x_now <= 79 and 0 <= y_now <= 63):
                    continue
                colour = sampled(drawn[frame], float(x_now), float(y_now))
                assert colour[2] == pytest.approx(owner[q], abs=1e-3)
                assert np.abs(colour[:2] - [u, v]).max() * texel_px[frame] < 0.02, (index, q, frame)
                checked += 1
    assert checked > 500 > 0.2 * total  # the rest is at an edge, where colours mix


@pytest.mark.slow
def test_occlusion_is_what_the_map_of_layers_says(scenes: TrackScenes) -> None:
    checked = hidden = total = 0
    for index in range(6, 14):
        scene, clip = scenes.scene(index), scenes[index]
        front, _ = layer_maps(scene)
        owner = visible_layers(scene, queries_of(clip))
        for q in range(SMALL.num_points):
            for frame in range(SMALL.num_frames):
                x, y = clip.tracks_xy[q, frame]
                if not (0 <= x <= 80 and 0 <= y <= 64):
                    assert clip.occluded[q, frame]
                    continue
                total += 1
                column, row = min(int(x), 79), min(int(y), 63)
                around = front[frame, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                if (around == around[0, 0]).all():
                    assert clip.occluded[q, frame] == (around[0, 0] != owner[q])
                    checked += 1
                    hidden += int(clip.occluded[q, frame])
    assert checked > 0.6 * total > 1000
    assert hidden > 100


def test_occlusion_at_pixel_centres_is_exact_to_the_pixel() -> None:
    """A scene at rest: every track stays at the centre of a pixel."""
    still = replace(SMALL, speed=0.0, camera_speed=0.0, num_frames=2)
    scene = TrackScenes(still, seed=1).scene(3)
    front, _ = layer_maps(scene)
    y, x = (axis.ravel() for axis in np.mgrid[:64, :80])
    centres = np.stack([np.zeros_like(x), y, x], axis=1).astype(np.float64)
    assert np.array_equal(visible_layers(scene, centres), front[0].ravel())
    assert len(np.unique(front)) > 4


@pytest.mark.slow
def test_queries_are_points_of_their_tracks(scenes: TrackScenes) -> None:
    for index in range(5):
        clip = scenes[index]
        assert clip.query_points_tyx is not None
        t = clip.query_points_tyx[:, 0].astype(int)
        rows = np.arange(len(t))
        assert np.allclose(clip.tracks_xy[rows, t], clip.query_points_tyx[:, [2, 1]], atol=1e-4)
        assert not clip.occluded[rows, t].any()


def test_hinges_hold() -> None:
    """The end of each link of a chain is where the next one hangs, in every frame."""
    config = TrackSceneConfig(num_frames=12, plain_share=0.0)
    scenes = TrackScenes(config, seed=0)
    for number in range(8):
        stage = Stage(np.random.default_rng(number), config.world(), scenes._supply)
        links = making._chain(stage, 1.0)

        def at(link: Layer, where: float) -> np.ndarray:
            _, height, width = link.texture.shape
            middle = np.array([(width - 1) / 2, (height - 1) / 2])
            point = middle + np.array([where * (middle[0] - 0.5), 0])
            return link.transforms[:, :, :2] @ point + link.transforms[:, :, 2]

        gaps = [
            min(
                np.abs(at(one, making._REACH) - at(two, making._HANGING[0])).max(),
                np.abs(at(two, making._REACH) - at(one, making._HANGING[0])).max(),
            )
            for one, two in pairwise(links)
        ]
        size = np.abs(np.linalg.det(links[0].transforms[:, :, :2])).max() ** 0.5
        assert max(gaps) < 1.0 * size  # sprites are whole pixels long
        turns = np.diff(np.arctan2(links[0].transforms[:, 1, 0], links[0].transforms[:, 0, 0]))
        assert np.abs(turns).max() > 0.005


# ---- statistics of the scenes ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_clips_are_rich() -> None:
    scenes = TrackScenes(TrackSceneConfig(num_points=100), seed=2)
    clips = [scenes[index] for index in range(24)]
    layers = [len(scenes.scene(index).layers) for index in range(24)]
    assert 10 < np.mean(layers) < 30
    occluded = np.mean([clip.occluded.mean() for clip in clips])
    assert 0.1 < occluded < 0.35
    again = 0  # hidden behind something, inside the frame, and seen again
    for clip in clips:
        seen = ~clip.occluded
        before, after = np.maximum.accumulate(seen, axis=1), np.maximum.accumulate(seen[:, ::-1], axis=1)[:, ::-1]
        inside = ((clip.tracks_xy >= 0) & (clip.tracks_xy <= 96)).all(axis=-1)
        again += int((clip.occluded & before & after & inside).any(axis=1).sum())
    assert again > 100
    steps = np.concatenate([np.linalg.norm(np.diff(clip.tracks_xy, axis=1), axis=-1).ravel() for clip in clips])
    assert 0.3 < np.median(steps) < 3
    owners = [visible_layers(scenes.scene(n), queries_of(clip)) for n, clip in enumerate(clips)]
    foreground = np.mean([owner > 0 for owner in owners])
    assert 0.5 < foreground < 0.95


@pytest.mark.slow
def test_longer_clips_are_not_slower() -> None:
    def median_step(num_frames: int) -> float:
        scenes = TrackScenes(TrackSceneConfig(num_frames=num_frames, image_size=(48, 48)), seed=3)
        clips = [scenes[index] for index in range(16)]
        steps = [np.linalg.norm(np.diff(clip.tracks_xy, axis=1), axis=-1)[~clip.occluded[:, 1:]] for clip in clips]
        return float(np.median(np.concatenate(steps)))

    assert 0.5 < median_step(48) / median_step(12) < 2


def test_without_speed_nothing_moves() -> None:
    scenes = TrackScenes(replace(SMALL, speed=0.0, camera_speed=0.0), seed=5)
    for index in range(4):
        clip = scenes[index]
        assert np.abs(clip.tracks_xy - clip.tracks_xy[:, :1]).max() < 1e-4
        assert not clip.occluded.any()


def test_the_camera_moves_the_background() -> None:
    scenes = TrackScenes(replace(SMALL, speed=0.0, min_things=0, max_things=0), seed=6)
    moved = [np.ptp(scenes[index].tracks_xy, axis=1).max() for index in range(12)]
    assert sum(reach > 2 for reach in moved) >= 4
    assert sum(reach == 0 for reach in moved) <= 6


def test_held_out_pictures_and_seeds_look_otherwise() -> None:
    pytest.importorskip("skimage")
    config = replace(SMALL, num_frames=2, picture_share=1.0, plain_share=0.0)
    shown = [
        TrackScenes(config, seed=7, pictures=photographs("train"))[0],
        TrackScenes(config, seed=7, pictures=photographs("held_out"))[0],
        TrackScenes(config, seed=8, pictures=photographs("train"))[0],
    ]
    for number, one in enumerate(shown):
        for two in shown[number + 1 :]:
            assert np.abs(one.video.astype(int) - two.video).mean() > 5


def test_pictures_are_used() -> None:
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 0] = 255
    config = replace(SMALL, picture_share=1.0, plain_share=0.0, noise=0.0)
    plain, pictured = (TrackScenes(config, seed=9, pictures=pictures)[2].video for pictures in ([], [red]))
    assert pictured.std(axis=(1, 2)).mean() != plain.std(axis=(1, 2)).mean()


# ---- the contract ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("config", [
    TrackSceneConfig(num_frames=2, image_size=(32, 32), num_points=1),
    TrackSceneConfig(num_frames=33, image_size=(48, 72), num_points=200, min_things=0, max_things=0),
    TrackSceneConfig(num_frames=5, image_size=(96, 40), min_things=20, max_things=20, speed=3.0, camera_speed=3.0),
])  # fmt: skip
def test_any_size_and_length(config: TrackSceneConfig) -> None:
    scenes = TrackScenes(config, seed=0)
    for index in (0, 1, 10**9):
        clip = scenes[index]
        assert clip.video.dtype == np.uint8
        assert clip.video.shape == (config.num_frames, *config.image_size, 3)
        assert clip.tracks_xy.dtype == np.float32
        assert clip.tracks_xy.shape == (config.num_points, config.num_frames, 2)
        assert clip.occluded.shape == (config.num_points, config.num_frames)
        assert clip.query_points_tyx is not None
        assert clip.query_points_tyx.shape == (config.num_points, 3)
        assert np.isfinite(clip.tracks_xy).all()


def digest(scenes: TrackScenes, index: int) -> str:
    clip = scenes[index]
    digest = hashlib.sha256(clip.video.tobytes())
    for array in (clip.tracks_xy, clip.occluded, clip.query_points_tyx):
        assert array is not None
        digest.update(array.tobytes())
    return digest.hexdigest()


@pytest.mark.slow
def test_the_same_clip_every_time(scenes: TrackScenes, forks: Forks) -> None:
    forwards = [digest(scenes, index) for index in (0, 7, 3)]
    fresh = TrackScenes(SMALL, seed=4)
    np.random.seed(1)
    assert [digest(fresh, index) for index in (3, 7, 0)][::-1] == forwards
    assert digest(pickle.loads(pickle.dumps(fresh)), 7) == forwards[1]
    assert len({*forwards, digest(TrackScenes(SMALL, seed=5), 0)}) == 4
    code = (
        "import hashlib; from trecvit.synthetic.track_scenes import *\n"
        "clip = TrackScenes(TrackSceneConfig(num_frames=10, image_size=(64, 80), num_points=40), seed=4)[7]\n"
        "found = hashlib.sha256(clip.video.tobytes())\n"
        "[found.update(a.tobytes()) for a in (clip.tracks_xy, clip.occluded, clip.query_points_tyx)]\n"
        "print(found.hexdigest())"
    )
    assert forks.run(code).stdout.strip() == forwards[1]


def test_as_a_data_set(scenes: TrackScenes) -> None:
    data = scenes.videos(range(5, 8))
    assert data.names == ("scene 5", "scene 6", "scene 7")
    assert "seed 4" in data.source
    assert np.array_equal(data[1].video, scenes[6].video)


def test_tracks_do_not_depend_on_the_other_points(scenes: TrackScenes) -> None:
    scene, clip = scenes.scene(2), scenes[2]
    points_xy, visible = scene_tracks(scene, queries_of(clip)[3:5])
    assert np.allclose(points_xy + 0.5, clip.tracks_xy[3:5], atol=1e-3)
    assert np.array_equal(~visible, clip.occluded[3:5])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_points", 0),
        ("num_points", 2.5),
        ("min_things", -1),
        ("max_things", 3),
        ("speed", -0.1),
        ("camera_speed", float("nan")),
        ("num_frames", 1),
        ("image_size", (8, 96)),
        ("noise", -1.0),
        ("plain_share", 1.5),
    ],
)
def test_config_refuses_what_is_not_possible(field: str, value: object) -> None:
    with pytest.raises((ConfigError, TypeError), match=field):  # a TypeError where types are checked
        TrackSceneConfig(**{field: value})


def test_negative_numbers_are_refused(scenes: TrackScenes) -> None:
    with pytest.raises(ConfigError, match="seed"):
        TrackScenes(SMALL, seed=-1)
    with pytest.raises(InputError, match="index"):
        scenes[-1]
