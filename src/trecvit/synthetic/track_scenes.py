"""Synthetic scenes with exact point tracks: objects that move, rotate, grow, bend and occlude each other.

A scene holds single pieces, puppets (a body with hinged limbs), chains of hinged links, flocks of identical objects,
and bars and fences in front, under a camera that pans, zooms, rolls and shakes, with parallax. Every point of every
surface has an exact position in every frame.

The seed and the index determine a clip. Held-out scenes have another seed, which also draws the procedural surfaces,
and other pictures: `trecvit.synthetic.pictures.photographs` has two splits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from trecvit.data.tracked import TrackedVideo, TrackedVideos
from trecvit.draws import Stream, rng
from trecvit.errors import ConfigError, InputError
from trecvit.synthetic.camera import similarity
from trecvit.synthetic.outlines import SHAPES
from trecvit.synthetic.scene import Layer, Scene, compose_transforms, render, scene_tracks, visible_layers
from trecvit.synthetic.sprites import Sprite, Supply
from trecvit.synthetic.stage import Stage, WorldConfig

Maps = NDArray[np.float64]  # [T, 2, 3], one affine map per frame

# Speeds are per this many frames, so that longer clips are not slower.
_SPAN_FRAMES = 16
_LIMBS = ("box", "round_box", "ellipse", "drop", "blob")
_BARS = ("box", "round_box", "blob")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackSceneConfig:
    """Appearance and difficulty of the scenes.

    Attributes:
        num_frames: T, at least 2.
        image_size: Height and width of the frames in pixels, each from 32 to 1024.
        num_points: Q, tracks per clip.
        min_things: Least number of objects before the background; a puppet or a chain is one object.
        max_things: Largest number of objects.
        speed: Factor on the speed of objects; 0 for objects at rest. Each scene draws a fraction of it.
        camera_speed: Factor on the speed of the camera; 0 for a camera at rest.
        light_drift: Largest relative change of brightness within a clip, below 0.5.
        noise: Largest standard deviation of the sensor noise, in 8-bit levels.
        picture_share: Share of surfaces taken from pictures, if there are any.
        plain_share: Share of surfaces of one colour, whose points differ in position alone.
    """

    num_frames: int = 16
    image_size: tuple[int, int] = (96, 96)
    num_points: int = 64
    min_things: int = 4
    max_things: int = 10
    speed: float = 1.0
    camera_speed: float = 1.0
    light_drift: float = 0.12
    noise: float = 5.0
    picture_share: float = 0.5
    plain_share: float = 0.06

    def __post_init__(self) -> None:
        self.world()  # checks the shared fields
        ranges: tuple[tuple[str, float, float, float], ...] = (
            ("num_points", self.num_points, 1, 100_000),
            ("min_things", self.min_things, 0, 100),
            ("max_things", self.max_things, self.min_things, 100),
            ("speed", self.speed, 0, 4),
            ("camera_speed", self.camera_speed, 0, 4),
        )
        for name, value, low, high in ranges:
            if isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"{name}: expected {low:g} to {high:g}, got {value!r}")
            if name in ("num_points", "min_things", "max_things") and int(value) != value:
                raise ConfigError(f"{name}: expected a whole number, got {value!r}")

    def easy(self) -> TrackSceneConfig:
        """Return an easy variant: the camera moves past a patterned background with at most two objects.

        Most points then move with their neighbours, which is how a small model learns to track at all.
        """
        return replace(
            self,
            min_things=0,
            max_things=min(self.max_things, 2),
            light_drift=min(self.light_drift, 0.03),
            noise=min(self.noise, 1.0),
            plain_share=0.0,
        )

    def world(self) -> WorldConfig:
        """Return the configuration that `Stage` takes."""
        return WorldConfig(
            num_frames=self.num_frames,
            image_size=self.image_size,
            light_drift=self.light_drift,
            noise=self.noise,
            picture_share=self.picture_share,
            plain_share=self.plain_share,
        )


class TrackScenes:
    """An endless, indexed supply of clips with exact tracks; an index always gives the same clip.

    Args:
        config: See `TrackSceneConfig`.
        seed: 0 or more. Different seeds share no scene and no procedural surface.
        pictures: uint8 `[H, W, 3]` for surfaces, or `[H, W, 4]` for cut-out objects.

    Attributes:
        config: As given.
        seed: As given.
    """

    def __init__(self, config: TrackSceneConfig, *, seed: int, pictures: Sequence[NDArray[Any]] = ()) -> None:
        if seed < 0:
            raise ConfigError(f"seed: expected 0 or more, got {seed}")
        self.config = config
        self.seed = seed
        self._supply = Supply(
            seed,
            pictures,
            picture_share=config.picture_share,
            plain_share=config.plain_share,
            surface_px=min(max(round(2.0 * max(config.image_size)), 128), 384),
        )

    def scene(self, index: int) -> Scene:
        """Build the scene of clip `index`, 0 or more."""
        if index < 0:
            raise InputError(f"index: expected 0 or more, got {index}")
        stage = Stage(rng(self.seed, Stream.TRACK_SCENE, index), self.config.world(), self._supply)
        return _film(stage, self.config, noise_seed=(self.seed, Stream.TRACK_NOISE, index))

    def __getitem__(self, index: int) -> TrackedVideo:
        """Render clip `index` with `num_points` tracks; each query is in a random frame that shows its point."""
        scene = self.scene(index)
        return filmed(
            scene, self.config.num_points, rng(self.seed, Stream.TRACKED_POINTS, index), name=f"scene {index}"
        )

    def videos(self, indices: Iterable[int]) -> TrackedVideos:
        """Return clips as a data set to evaluate on."""
        return TrackedVideos(
            f"synthetic scenes, seed {self.seed}",
            [(f"scene {index}", partial(self.__getitem__, index)) for index in indices],
        )


def filmed(scene: Scene, num_points: int, rng: np.random.Generator, *, name: str) -> TrackedVideo:
    """Render a scene with tracks of random visible points."""
    queries = _sample_points(scene, num_points, rng)
    tracks_xy, visible = scene_tracks(scene, queries)
    return TrackedVideo(
        name=name,
        video=render(scene),
        tracks_xy=(tracks_xy + 0.5).astype(np.float32),  # from pixel centres to TAP-Vid's coordinates
        occluded=~visible,
        query_points_tyx=(queries + np.array([0, 0.5, 0.5])).astype(np.float32),
    )


def _sample_points(scene: Scene, num_points: int, rng: np.random.Generator) -> Float[np.ndarray, "q 3"]:
    """Draw visible points (frame, y, x); a layer gets points in proportion to the square root of its visible area."""
    height, width = scene.image_size
    candidates = np.stack(
        [
            rng.integers(0, scene.num_frames, 4 * num_points),
            rng.uniform(-0.5, height - 0.5, 4 * num_points),
            rng.uniform(-0.5, width - 0.5, 4 * num_points),
        ],
        axis=1,
    )
    _, owners, counts = np.unique(visible_layers(scene, candidates), return_inverse=True, return_counts=True)
    # Gumbel top-k: a weighted sample without replacement.
    keys = rng.gumbel(size=len(candidates)) - 0.5 * np.log(counts[owners])
    return candidates[np.argsort(keys)[-num_points:]]


# ---- motion --------------------------------------------------------------------------------------------------------


def smooth_walk(rng: np.random.Generator, num_frames: int, step: tuple[float, ...]) -> NDArray[np.float64]:
    """Draw a smooth random path `[T, D]` that starts at 0 and reverts to it.

    Args:
        rng: Source of randomness.
        num_frames: T.
        step: Typical distance covered in 16 frames, for each of D coordinates.
    """
    between_knots = rng.uniform(4.0, 12.0)
    num_knots = math.ceil((num_frames - 1) / between_knots) + 3  # one before the first frame, one after the last
    steps = rng.standard_normal((num_knots, len(step))) * np.asarray(step) * between_knots / _SPAN_FRAMES
    knots = np.zeros((num_knots, len(step)))
    for knot in range(1, num_knots):
        knots[knot] = 0.85 * knots[knot - 1] + 0.5 * (steps[knot] + steps[knot - 1])
    place = 1 + np.arange(num_frames) / between_knots
    left = np.floor(place).astype(np.int64)
    part = (place - left)[:, None]
    # A Catmull-Rom spline through the knots.
    p0, p1, p2, p3 = (knots[np.minimum(left + k, num_knots - 1)] for k in (-1, 0, 1, 2))
    curve = 2 * p0 - 5 * p1 + 4 * p2 - p3 + part * (3 * (p1 - p2) + p3 - p0)
    walk: NDArray[np.float64] = p1 + 0.5 * part * (p2 - p0 + part * curve)
    walk -= walk[0]
    return walk


def _walk(stage: Stage, step: tuple[float, ...]) -> NDArray[np.float64]:
    return smooth_walk(stage.rng, stage.frames, step)


def _path(stage: Stage, speed: float) -> NDArray[np.float64]:
    """Draw a path `[T, 2]`: at rest, wandering, crossing the frame, circling or bouncing, sometimes at uneven speed."""
    home = stage.rng.uniform(-0.05, 1.05, 2) * stage.size
    reach = speed * stage.unit * stage.between(0.1, 1.0) ** 1.5
    spans = (stage.frames - 1) / _SPAN_FRAMES
    time = np.linspace(-0.5, 0.5, stage.frames) * spans
    kind = stage.rng.random()
    path: NDArray[np.float64] = np.tile(home, (stage.frames, 1))
    if kind < 0.12:
        return path
    if kind < 0.55:
        walk = _walk(stage, (reach, reach))
        path = home + walk - walk[int(stage.rng.integers(stage.frames))]
    elif kind < 0.75:
        heading = stage.between(0.0, 2 * math.pi)
        line = time[:, None] * 1.2 * reach * np.array([math.cos(heading), math.sin(heading)])
        path = home + line + _walk(stage, (0.15 * reach, 0.15 * reach))
    elif kind < 0.9:
        turns = stage.sign() * stage.between(0.2, 0.8) * speed
        angle = 2 * math.pi * (turns * time + stage.rng.random())
        path = home + 0.4 * reach * np.stack([np.cos(angle), stage.between(0.3, 1.0) * np.sin(angle)], axis=1)
    else:
        beat = (time * stage.between(0.8, 2.0) * max(speed, 0.1) + stage.rng.random()) % 1
        fall = 4 * beat * (1 - beat) * min(reach, 0.5 * stage.unit)
        path = home + np.stack([time * stage.sign() * reach, -fall], axis=1)
    if stage.chance(0.2):  # uneven speed
        frame = stage.progress() * (stage.frames - 1)
        return np.stack([np.interp(frame, np.arange(stage.frames), column) for column in path.T], axis=1)
    return path


def _spin(stage: Stage, speed: float) -> NDArray[np.float64]:
    """Draw rotation angles `[T]` in radians: mostly small, sometimes large."""
    steady = speed * stage.between(-1.0, 1.0) ** 3 * 2 * math.pi * np.arange(stage.frames) / _SPAN_FRAMES
    angle: NDArray[np.float64] = stage.between(0.0, 2 * math.pi) + steady + _walk(stage, (0.5 * speed,))[:, 0]
    return angle


def _growth(stage: Stage, speed: float) -> NDArray[np.float64]:
    """Draw size factors `[T]`, some growing or shrinking steadily, as an approaching or receding object does."""
    growth = _walk(stage, (speed * stage.between(0.0, 0.5),))[:, 0]
    if stage.chance(0.3):
        growth = growth + speed * stage.between(-0.7, 0.7) * np.arange(stage.frames) / _SPAN_FRAMES
    factors: NDArray[np.float64] = np.exp(np.clip(growth, math.log(0.45), math.log(2.2)))
    return factors


def _tilt(stage: Stage, speed: float) -> NDArray[np.float64]:
    """Draw linear maps `[T, 2, 2]` of a board that turns out of the image plane."""
    about = stage.between(0.0, math.pi)
    across = np.array([[math.cos(about)], [math.sin(about)]])
    lean = np.clip(_walk(stage, (speed * stage.between(0.3, 1.2),))[:, 0], -1.15, 1.15)
    maps: NDArray[np.float64] = np.eye(2) + (np.cos(lean) - 1)[:, None, None] * (across @ across.T)
    return maps


def _swing(stage: Stage, speed: float, reach: float) -> NDArray[np.float64]:
    """Draw hinge angles `[T]` that swing about 0."""
    beats = speed * stage.between(0.3, 1.2) * np.arange(stage.frames) / _SPAN_FRAMES
    swing = stage.between(0.3, 1.0) * reach * np.sin(2 * math.pi * (beats + stage.rng.random()))
    angles: NDArray[np.float64] = swing + _walk(stage, (0.2 * speed * reach,))[:, 0]
    return angles


# ---- objects -------------------------------------------------------------------------------------------------------


def _body(stage: Stage, speed: float) -> Maps:
    """Draw the motion of an object of several pieces: maps from its coordinates, (0, 0) at its centre, to frames."""
    return similarity(stage, _path(stage, speed), _spin(stage, speed), _growth(stage, speed), np.zeros(2))


def _fixed(stage: Stage, sprite: Sprite, maps: Maps, pivot: tuple[float, float] = (0.0, 0.0)) -> Layer:
    """Attach a sprite by its pivot to the origin of a moving frame of reference."""
    layer = stage.place(sprite, stage.still(np.zeros(2)), role="piece", pivot=pivot)
    return replace(layer, transforms=compose_transforms(maps, layer.transforms))


def _hinge(stage: Stage, maps: Maps, at: tuple[float, float], angle: NDArray[Any]) -> Maps:
    """Return the frame of reference of a part hinged at a point of another, moved by `maps`."""
    still = np.zeros(stage.frames)
    turned = similarity(stage, stage.still(np.asarray(at, np.float64)), angle, still + 1, np.zeros(2))
    return compose_transforms(maps, turned)


def _sprite(stage: Stage, low: float, high: float, flat: float) -> Sprite:
    """Draw a sprite: longer side `low` to `high` of the frame's shorter side, aspect ratio `flat` to 1."""
    long_px, ratio = stage.between(low, high) * stage.unit, stage.between(flat, 1.0)
    size = (long_px * ratio, long_px) if stage.chance(0.5) else (long_px, long_px * ratio)
    return stage.supply.sprite(stage.rng, str(stage.rng.choice(SHAPES)), size, cut_outs=True)


def _limb(stage: Stage, length: float, width: float) -> Sprite:
    """Draw a piece that lies along x and is hinged at its left end."""
    return stage.supply.sprite(stage.rng, str(stage.rng.choice(_LIMBS)), (width, length))


_HANGING = (-0.85, 0.0)  # hinges of a limb and, at its other end, of the next one: both within the outline
_REACH = 0.85


def single_piece(stage: Stage, speed: float) -> list[Layer]:
    """Draw a single piece that moves, rotates, grows, and may turn out of the image plane."""
    sprite = _sprite(stage, 0.14, 0.6, flat=0.35)
    growth: NDArray[Any] = _growth(stage, speed)
    if stage.chance(0.35):
        growth = growth[:, None, None] * _tilt(stage, speed)
    path, angle = _path(stage, speed), _spin(stage, speed)
    return [stage.place(sprite, path, role="piece", angle=angle, scale=growth)]


def _puppet(stage: Stage, speed: float) -> list[Layer]:
    """Draw a body with limbs that swing on hinges, some with a second segment."""
    maps = _body(stage, speed)
    size = stage.between(0.18, 0.4) * stage.unit
    body = [_fixed(stage, _sprite(stage, size / stage.unit, size / stage.unit, flat=0.5), maps)]
    behind: list[Layer] = []
    before: list[Layer] = []
    num_limbs = int(stage.rng.integers(2, 5))
    for limb in range(num_limbs):
        around = 2 * math.pi * (limb + stage.between(-0.25, 0.25)) / num_limbs
        length, width = stage.between(0.7, 1.2) * size, stage.between(0.22, 0.4) * size
        at = (0.3 * size * math.cos(around), 0.3 * size * math.sin(around))
        upper = _hinge(stage, maps, at, around + _swing(stage, speed, 1.0))
        parts = [_fixed(stage, _limb(stage, length, width), upper, _HANGING)]
        if stage.chance(0.5):
            lower = _hinge(stage, upper, (_REACH * length, 0.0), _swing(stage, speed, 1.3))
            parts.append(_fixed(stage, _limb(stage, 0.9 * length, 0.85 * width), lower, _HANGING))
        (behind if stage.chance(0.5) else before).extend(parts)
    return behind + body + before


def _chain(stage: Stage, speed: float) -> list[Layer]:
    """Draw links hinged end to end, with a wave that runs through them."""
    length, num_links = stage.between(0.16, 0.3) * stage.unit, int(stage.rng.integers(3, 6))
    width = stage.between(0.35, 0.7) * length
    maps = _body(stage, speed)
    beats = speed * stage.between(0.2, 0.8) * np.arange(stage.frames) / _SPAN_FRAMES
    bend, reach, lag = stage.between(-0.4, 0.4), stage.between(0.3, 0.9), stage.between(0.05, 0.3)
    links: list[Layer] = []
    for link in range(num_links):
        wave = bend + reach * np.sin(2 * math.pi * (beats - lag * link))
        maps = _hinge(stage, maps, (_REACH * length if link else 0.0, 0.0), wave)
        links.append(_fixed(stage, _limb(stage, length, width), maps, _HANGING))
    return links if stage.chance(0.5) else links[::-1]


def _flock(stage: Stage, speed: float) -> list[Layer]:
    """Draw identical objects that only their paths distinguish."""
    sprite = _sprite(stage, 0.08, 0.2, flat=0.45)
    return [
        stage.place(sprite, _path(stage, speed), role="piece", angle=_spin(stage, speed), scale=_growth(stage, speed))
        for _ in range(int(stage.rng.integers(2, 5)))
    ]


def _bars(stage: Stage, speed: float) -> list[Layer]:
    """Draw a bar, or a fence of equal bars."""
    num_bars = int(stage.rng.choice([1, 1, 2, 3]))
    width = stage.between(0.06, 0.28 / num_bars + 0.04) * stage.unit
    size = (stage.between(0.8, 1.5) * max(stage.size), width)
    sprite = stage.supply.sprite(stage.rng, str(stage.rng.choice(_BARS)), size)
    path = stage.still(stage.centre) + _walk(stage, (0.4 * speed * stage.unit,) * 2)
    if stage.chance(0.4):
        path = path * [0.0, 1.0] + _path(stage, speed) * [1.0, 0.0]
    lean = _walk(stage, (0.2 * speed,))[:, 0] + stage.rng.choice([0.0, 0.5 * math.pi, stage.between(0.0, math.pi)])
    maps = similarity(stage, path, lean, np.ones(stage.frames), np.zeros(2))
    spacing = stage.between(1.8, 4.0) * width
    offsets = (np.arange(num_bars) - 0.5 * (num_bars - 1)) * spacing + stage.between(-0.3, 0.3) * stage.unit
    level = np.zeros(stage.frames)
    return [_fixed(stage, sprite, _hinge(stage, maps, (float(offset), 0.0), level)) for offset in offsets]


_THINGS: tuple[tuple[float, Callable[[Stage, float], list[Layer]]], ...] = (
    (0.5, single_piece),
    (0.17, _puppet),
    (0.13, _chain),
    (0.12, _flock),
    (0.08, _bars),
)


def thing(stage: Stage, speed: float) -> list[Layer]:
    """Draw one object of a random kind: a piece, puppet, chain, flock or fence."""
    shares = np.array([share for share, _ in _THINGS])
    kind = int(stage.rng.choice(len(_THINGS), p=shares / shares.sum()))
    return _THINGS[kind][1](stage, speed)


# ---- assembling a scene --------------------------------------------------------------------------------------------


def _film(stage: Stage, config: TrackSceneConfig, noise_seed: tuple[int, ...]) -> Scene:
    camera = _Camera(stage, config.camera_speed)
    layers = [stage.backdrop(camera.maps(stage, 0.0), irregular=stage.chance(0.8))]
    num_things = int(stage.rng.integers(config.min_things, config.max_things + 1))
    speed = config.speed * stage.between(0.3, 1.0)  # some scenes are calm, others fast
    for number in range(num_things):
        camera_maps = camera.maps(stage, (number + 1) / num_things)
        layers += [
            replace(layer, transforms=compose_transforms(camera_maps, layer.transforms))
            for layer in thing(stage, speed)
        ]
    return Scene(
        layers=tuple(layers),
        image_size=config.image_size,
        light=stage.light(),
        blur_passes=int(stage.rng.choice([0, 0, 0, 0, 0, 1, 1, 2])),
        noise_levels=config.noise * stage.between(0.0, 1.0) ** 2,
        noise_seed=noise_seed,
    )


class _Camera:
    """Pan, zoom, roll and shake, with parallax: near objects move more than far ones."""

    def __init__(self, stage: Stage, speed: float) -> None:
        speed *= stage.rng.choice([0.0, 0.4, 1.0], p=[0.2, 0.4, 0.4])
        self.shift = _walk(stage, (0.7 * speed * stage.unit * stage.rng.random(),) * 2)
        self.growth = _walk(stage, (0.5 * speed * stage.rng.random(),))[:, 0]
        self.roll = _walk(stage, (0.35 * speed * stage.rng.random() ** 2,))[:, 0]
        if stage.chance(0.4):
            shake = 0.012 * speed * stage.unit * stage.rng.random()
            self.shift = self.shift + shake * stage.rng.standard_normal(self.shift.shape)
            self.roll = self.roll + shake / stage.unit * stage.rng.standard_normal(self.roll.shape)
        self.farthest, self.nearest = stage.between(0.5, 1.0), stage.between(1.0, 1.3)

    def maps(self, stage: Stage, nearness: float) -> Maps:
        """Return the maps at a nearness from 0 (farthest) to 1 (nearest)."""
        part = self.farthest + nearness * (self.nearest - self.farthest)
        zoom = np.exp(np.clip(part * self.growth, math.log(0.5), math.log(2.0)))
        return similarity(stage, part * self.shift, self.roll, zoom, stage.centre)
