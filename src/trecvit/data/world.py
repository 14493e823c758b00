"""The synthetic world: endless short clips whose classes only their motion tells.

Classes come in pairs, and so do clips: items 2k and 2k + 1 show the same scene, once as the pair's first class and once
as its second. For all pairs but the last the second is the first played backwards, so both hold the very same frames
and no single frame can tell them apart; for the last the two objects change places in depth. Everything about a scene
is drawn from the seed and k; only the noise differs between the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from trecvit.data.scene import (
    Layer,
    Scene,
    compose,
    compose_transforms,
    expose,
    invert,
    render,
    scene_tracks,
)
from trecvit.data.textures import SHAPES, TURNABLE, Sprite, Supply, shatter
from trecvit.errors import ConfigError, InputError

LABELS: tuple[str, ...] = (
    "moving left",
    "moving right",
    "rising",
    "falling",
    "approaching",
    "receding",
    "turning clockwise",
    "turning counter-clockwise",
    "appearing from behind something",
    "disappearing behind something",
    "opening",
    "closing",
    "colliding",
    "parting",
    "scattering",
    "gathering",
    "passing in front",
    "passing behind",
)
PAIRS: tuple[tuple[int, int], ...] = tuple((label, label + 1) for label in range(0, len(LABELS), 2))

_Path = NDArray[np.float64]  # [T, 2]: (x, y) in pixels


def partner(label: int) -> int:
    """The other class of a label's pair."""
    if not 0 <= label < len(LABELS):
        raise InputError(f"label must be from 0 to {len(LABELS) - 1}, not {label}")
    return label ^ 1


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """What the clips look like and how hard they are.

    Attributes:
        num_frames: T, at least 2.
        image_size: Height and width of the frames in pixels, each from 32 to 1024.
        max_distractors: Most objects that lie around and have no part in what happens.
        camera_jitter_px: Largest shake of the hand that holds the camera, in pixels; 0 for a tripod.
        light_drift: Largest change of brightness within a clip, as a part of 1, below 0.5.
        noise: Largest standard deviation of the sensor's noise, in 8-bit levels.
        picture_share: Share of surfaces that come from pictures, if the world has any.
        plain_share: Share of surfaces that have one colour and no pattern, where something is to be seen all the same.
        whole_scene_share: Share of clips of the first four pairs in which the whole picture moves, as if the camera
            turned, came nearer or rolled.
    """

    num_frames: int = 16
    image_size: tuple[int, int] = (96, 96)
    max_distractors: int = 3
    camera_jitter_px: float = 1.0
    light_drift: float = 0.15
    noise: float = 8.0
    picture_share: float = 0.5
    plain_share: float = 0.3
    whole_scene_share: float = 0.3

    def __post_init__(self) -> None:
        if len(self.image_size) != 2:
            raise ConfigError(f"image_size must be (height, width), not {self.image_size!r}")
        height, width = self.image_size
        ranges: tuple[tuple[str, float, float, float], ...] = (
            ("num_frames", self.num_frames, 2, 100_000),
            ("image_size[0]", height, 32, 1024),
            ("image_size[1]", width, 32, 1024),
            ("max_distractors", self.max_distractors, 0, 20),
            ("camera_jitter_px", self.camera_jitter_px, 0, 0.1 * min(height, width)),
            ("light_drift", self.light_drift, 0, 0.5),
            ("noise", self.noise, 0, 64),
            ("picture_share", self.picture_share, 0, 1),
            ("plain_share", self.plain_share, 0, 1),
            ("whole_scene_share", self.whole_scene_share, 0, 1),
        )
        for name, value, low, high in ranges:
            if isinstance(value, bool) or not low <= value <= high:
                raise ConfigError(f"{name} must be from {low:g} to {high:g}, not {value!r}")
            if name in ("num_frames", "max_distractors", "image_size[0]", "image_size[1]") and int(value) != value:
                raise ConfigError(f"{name} must be a whole number, not {value!r}")


class World:
    """Clips without end: any index from 0 on is one, and the same one every time.

    Args:
        config: See `WorldConfig`.
        seed: At least 0. Worlds with different seeds share no scene.
        pictures: uint8 `[H, W, 3]` for backgrounds and surfaces, or `[H, W, 4]` for cut-out objects.

    Attributes:
        config: As given.
        seed: As given.
        labels: The names of the classes.
    """

    def __init__(self, config: WorldConfig, *, seed: int, pictures: Sequence[NDArray[Any]] = ()) -> None:
        if seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {seed}")
        self.config = config
        self.seed = seed
        self.labels = LABELS
        surface_px = min(max(round(1.6 * max(config.image_size)), 96), 320)
        self._supply = Supply(
            seed,
            pictures,
            picture_share=config.picture_share,
            plain_share=config.plain_share,
            surface_px=surface_px,
        )

    def scene(self, index: int) -> Scene:
        """The scene of an item.

        Args:
            index: 0 or more. Of the 18 items from any multiple of 18 on, each class has one.
        """
        if index < 0:
            raise InputError(f"index must be 0 or more, not {index}")
        first = self._first_of_pair(index // 2)
        if index % 2 == 0:
            return first
        return self._second_of_pair(first)

    def clip(self, index: int) -> tuple[UInt8[np.ndarray, "t h w 3"], int]:
        """Frames of an item, uint8 RGB, and its label."""
        scene = self.scene(index)
        return render(scene), scene.label

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "t 3 h w"], int]:
        scene = self.scene(index)
        return expose(compose(scene), scene), scene.label

    def pair(self, number: int) -> tuple[UInt8[Tensor, "2 t 3 h w"], tuple[int, int]]:
        """Items `2 * number` and `2 * number + 1` at little more than the cost of one."""
        if number < 0:
            raise InputError(f"number must be 0 or more, not {number}")
        first = self._first_of_pair(number)
        second = self._second_of_pair(first)
        clean = compose(first)
        other = clean.flip(0) if first.partner_swap is None else compose(second)
        return torch.stack([expose(clean, first), expose(other, second)]), (first.label, second.label)

    def tracks(
        self, index: int, query_points_tyx: NDArray[Any]
    ) -> tuple[Float[np.ndarray, "q t 2"], Bool[np.ndarray, "q t"]]:
        """Exact tracks of points `[Q, 3]` of an item, and where they can be seen; see `scene_tracks`."""
        return scene_tracks(self.scene(index), query_points_tyx)

    def _first_of_pair(self, number: int) -> Scene:
        rng = np.random.default_rng([self.seed, 0, number])
        # Pairs are shuffled within blocks: balanced, and no stride through the items meets one class only.
        block, place = divmod(number, len(PAIRS))
        pair = int(np.random.default_rng([self.seed, 3, block]).permutation(len(PAIRS))[place])
        return _film(_Stage(rng, self.config, self._supply), pair, noise_seed=(self.seed, 2, 2 * number))

    @staticmethod
    def _second_of_pair(first: Scene) -> Scene:
        *rest, item = first.noise_seed
        return replace(first.partner(), noise_seed=(*rest, item + 1))


# ---- the stage -----------------------------------------------------------------------------------------------------


class _Stage:
    """One scene in the making: its generator, its measures, and what has been put on it so far."""

    def __init__(self, rng: np.random.Generator, config: WorldConfig, supply: Supply) -> None:
        self.rng = rng
        self.config = config
        self.supply = supply
        self.frames = config.num_frames
        self.height, self.width = config.image_size
        self.unit = float(min(config.image_size))
        self.size = np.array([self.width, self.height], np.float64)
        self.centre = (self.size - 1) / 2
        self.colours: list[NDArray[Any]] = []  # what further objects must stand out from

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def sign(self) -> float:
        return 1.0 if self.chance(0.5) else -1.0

    def progress(self) -> NDArray[np.float64]:
        """From 0 to 1, never back: starts late, ends early, hastens, slows down, or rests on the way."""
        length = self.between(0.45, 1.0)
        start = self.between(0.0, 1.0 - length)
        time = np.linspace(0, 1, self.frames)
        part = np.clip((time - start) / length, 0, 1)
        kind = self.rng.random()
        if kind < 0.3:
            return part
        if kind < 0.55:
            return part * part * (3 - 2 * part)
        if kind < 0.7:
            return part ** self.between(1.2, 2.0)
        if kind < 0.85:
            return 1 - (1 - part) ** self.between(1.2, 2.0)
        pause, wait = self.between(0.3, 0.7), self.between(0.1, 0.3)
        return np.interp(part, [0, pause * (1 - wait), pause * (1 - wait) + wait, 1], [0, pause, pause, 1])

    def wobble(self, reach: float) -> NDArray[np.float64]:
        """A slow to and fro within plus and minus `reach`; forwards and backwards it looks alike."""
        time = np.linspace(0, 2 * math.pi, self.frames)
        waves = sum(np.sin(self.between(0.4, 3.0) * time + self.between(0.0, 2 * math.pi)) for _ in range(2))
        wave: NDArray[np.float64] = reach * self.between(0.0, 0.5) * np.asarray(waves)
        return wave

    def object(
        self, low: float, high: float, kinds: Sequence[str] = SHAPES, flat: float = 0.45, at_most: float = 1.0
    ) -> Sprite:
        """A new object, its larger side from `low` to `high` of the frame's smaller, unlike all that is there.

        The ratio of its shorter to its longer side is from `flat` to `at_most`.
        """
        long_px, ratio = self.between(low, high) * self.unit, self.between(flat, at_most)
        size = (long_px * ratio, long_px) if self.chance(0.5) else (long_px, long_px * ratio)
        kind = str(kinds[int(self.rng.integers(len(kinds)))])
        sprite = self.supply.sprite(self.rng, kind, size, unlike=self.colours, cut_outs=True)
        self.colours.append(sprite.colour)
        return sprite

    def slab(self, height_px: float, width_px: float, kinds: Sequence[str] = ("box", "round_box")) -> Sprite:
        """A board of a given size."""
        kind = str(kinds[int(self.rng.integers(len(kinds)))])
        sprite = self.supply.sprite(self.rng, kind, (height_px, width_px), unlike=self.colours)
        self.colours.append(sprite.colour)
        return sprite

    def still(self, point: NDArray[np.float64]) -> _Path:
        return np.tile(point, (self.frames, 1))

    def place(
        self,
        sprite: Sprite,
        path: _Path,
        *,
        role: str,
        angle: NDArray[Any] | float = 0.0,
        scale: NDArray[Any] | float = 1.0,
        pivot: tuple[float, float] = (0.0, 0.0),
    ) -> Layer:
        """Put a sprite on the stage.

        Args:
            sprite: What.
            path: Where its pivot is in each frame.
            role: See `Layer`.
            angle: Clockwise turn in radians, one or `[T]`.
            scale: Factor on its size; one, `[T]`, or `[T, 2, 2]` for any linear map.
            pivot: From (-1, -1), the box's top left corner, to (1, 1).
        """
        _, height, width = sprite.texture.shape
        cos, sin = np.cos(angle), np.sin(angle)
        linear = np.empty((self.frames, 2, 2))
        linear[:, 0, 0], linear[:, 0, 1], linear[:, 1, 0], linear[:, 1, 1] = cos, -sin, sin, cos
        scale = np.asarray(scale, np.float64)
        linear = linear @ scale if scale.ndim == 3 else linear * scale.reshape(-1, 1, 1)
        linear *= sprite.scale
        middle = np.array([(width - 1) / 2, (height - 1) / 2])
        fixed = middle + np.array(pivot) * (middle - 0.5)  # the border of the box, within the transparent pixel
        transforms = np.empty((self.frames, 2, 3))
        transforms[:, :, :2] = linear
        transforms[:, :, 2] = path - linear @ fixed
        return Layer(texture=sprite.texture, transforms=transforms, role=role)

    def line(self, heading: float, travel: float, progress: NDArray[Any], radius: float) -> _Path:
        """A way through the frame, straight or slightly bent, whose ends may lie just outside.

        Args:
            heading: Direction in radians; 0 is right, a quarter turn is down.
            travel: Length in pixels.
            progress: `[T]`, 0 to 1.
            radius: Of what goes there, in pixels.
        """
        ahead = np.array([math.cos(heading), math.sin(heading)])
        half = ahead * travel / 2
        beyond = min(0.8 * radius, 0.2 * self.unit) if self.chance(0.35) else -0.5 * radius
        room = np.where(np.abs(ahead) > 0.7, beyond, -0.7 * radius)  # never along the border, half out of sight
        reach = np.maximum(self.size / 2 + room - np.abs(half), 0)
        middle = self.centre + self.rng.uniform(-1, 1, 2) * reach
        bend = self.between(-0.08, 0.08) * travel * np.sin(math.pi * progress)
        path: _Path = middle + (2 * progress - 1)[:, None] * half + bend[:, None] * np.array([-ahead[1], ahead[0]])
        return path

    def fit(self, *ways: tuple[_Path, float]) -> NDArray[np.float64]:
        """A shift (x, y) that brings things of given radii and their ways into the frame, anywhere they fit."""
        low = np.min([path.min(axis=0) - radius for path, radius in ways], axis=0)
        high = np.max([path.max(axis=0) + radius for path, radius in ways], axis=0)
        room = self.size - (high - low)
        # Where there is not room enough, both ends stick out about as far.
        corner = np.where(room > 0, self.rng.uniform(0, 1, 2), 0.5) * room
        shift: NDArray[np.float64] = corner - low
        return shift


@dataclass(slots=True)
class _Play:
    """What happens on the stage."""

    layers: list[Layer]
    swap_last_two: bool = False


def _film(stage: _Stage, pair: int, noise_seed: tuple[int, ...]) -> Scene:
    whole = pair < len(_CAMERA_MOVES) and stage.chance(stage.config.whole_scene_share)
    camera = _hand(stage)
    if whole:
        camera = compose_transforms(camera, _CAMERA_MOVES[pair](stage))
    background = _background(stage, camera, whole)
    play = _Play([]) if whole else _PLAYS[pair](stage)
    layers = [background, *_distractors(stage, play, camera if whole else None), *play.layers]
    layers[1:] = [replace(layer, transforms=compose_transforms(camera, layer.transforms)) for layer in layers[1:]]
    last = len(layers) - 1
    return Scene(
        layers=tuple(layers),
        image_size=stage.config.image_size,
        light=_light(stage),
        blur_passes=int(stage.rng.choice([0, 0, 0, 0, 0, 1, 1, 2])),
        noise_levels=stage.config.noise * stage.between(0.0, 1.0) ** 2,
        noise_seed=noise_seed,
        label=PAIRS[pair][0],
        partner_label=PAIRS[pair][1],
        partner_swap=(last - 1, last) if play.swap_last_two else None,
    )


def _similarity(
    stage: _Stage, shift: NDArray[Any], angle: NDArray[Any], zoom: NDArray[Any], about: Any
) -> NDArray[Any]:
    """Maps that turn and zoom about a point and then shift."""
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    maps = np.empty((stage.frames, 2, 3))
    maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 0], maps[:, 1, 1] = cos, -sin, sin, cos
    maps[:, :, 2] = about + shift - maps[:, :, :2] @ about
    return maps


def _hand(stage: _Stage) -> NDArray[Any]:
    """The camera in somebody's hand: a shake, and sometimes a drift far slower than what happens."""
    still = np.zeros(stage.frames)
    shift, angle, zoom = np.zeros((stage.frames, 2)), still, still + 1
    jitter = stage.config.camera_jitter_px
    if jitter > 0 and stage.chance(0.65):
        reach = jitter * stage.between(0.2, 1.0)
        shift = np.stack([stage.wobble(reach), stage.wobble(reach)], axis=1)
        shift += stage.rng.uniform(-0.3, 0.3, shift.shape) * reach
        angle = stage.wobble(2 * reach / stage.unit)
        zoom = 1 + stage.wobble(reach / stage.unit)
        if stage.chance(0.4):
            drift = stage.rng.uniform(-0.035, 0.035, 2) * stage.unit
            shift += np.linspace(-0.5, 0.5, stage.frames)[:, None] * drift
    return _similarity(stage, shift, angle, zoom, stage.centre)


def _background(stage: _Stage, camera: NDArray[Any], whole: bool) -> Layer:
    """A surface that fills all the camera will see."""
    right, bottom = stage.size
    corners = np.array([[-1, -1, 1], [right, -1, 1], [-1, bottom, 1], [right, bottom, 1]], np.float64)
    seen = invert(camera) @ corners.T  # [T, 2, 4]
    low, high = seen.min(axis=(0, 2)), seen.max(axis=(0, 2))
    extent = high - low
    finest = 1.0 / max(1.0, float(extent.max()) / 512)
    width, height = (max(16, round(float(side) * finest * stage.between(0.7, 1.0))) for side in extent)
    texture = stage.supply.background(stage.rng, height, width, irregular=whole)
    stage.colours.append(texture[:3].mean(dim=(1, 2)).numpy())
    fit = np.zeros((stage.frames, 2, 3))
    fit[:, 0, 0], fit[:, 1, 1] = extent[0] / (width - 1), extent[1] / (height - 1)
    fit[:, :, 2] = low
    return Layer(texture=texture, transforms=compose_transforms(camera, fit), role="background", reflect=True)


def _light(stage: _Stage) -> NDArray[Any]:
    """Gain and offset per frame and colour: a lamp's colour, a camera's contrast, and a slow change of brightness."""
    drift = stage.config.light_drift
    brightness = 1 + stage.wobble(drift) if stage.chance(0.6) else np.ones(stage.frames)
    cast = stage.rng.uniform(0.85, 1.1, 3) if stage.chance(0.4) else np.ones(3)
    contrast = stage.between(0.5, 0.9) if stage.chance(0.25) else stage.between(0.9, 1.15)
    light = np.empty((stage.frames, 2, 3))
    light[:, 0] = brightness[:, None] * cast * contrast
    light[:, 1] = (1 - contrast) * stage.between(0.3, 0.6)
    return light


def _discs(layer: Layer) -> NDArray[Any]:
    """Centre and radius of the room a layer takes in each frame, `[T, 3]`."""
    _, height, width = layer.texture.shape
    linear = layer.transforms[:, :, :2]
    centre = linear @ np.array([(width - 1) / 2, (height - 1) / 2]) + layer.transforms[:, :, 2]
    extents = np.hypot(linear[:, 0], linear[:, 1]) * np.array([width, height])
    return np.concatenate([centre, 0.5 * np.hypot(extents[:, :1], extents[:, 1:])], axis=1)


def _distractors(stage: _Stage, play: _Play, camera: NDArray[Any] | None) -> list[Layer]:
    """Objects with no part in it, out of everything's way; under a moving camera they may lie anywhere."""
    taken = [_discs(layer) for layer in play.layers]
    found: list[Layer] = []
    for _ in range(int(stage.rng.integers(0, stage.config.max_distractors + 1))):
        sprite = stage.object(0.1, 0.3)
        tries = stage.rng.uniform(-0.05, 1.05, (12, 2)) * stage.size
        if camera is not None:
            # Where the camera looks in some frame, not only where it would look at rest.
            tries = (
                invert(camera)[stage.rng.integers(0, stage.frames, 12)]
                @ np.pad(tries, ((0, 0), (0, 1)), constant_values=1)[..., None]
            )
            tries = tries[..., 0]
        spot = next((point for point in tries if _free(point, sprite.radius_px + 0.03 * stage.unit, taken)), None)
        if spot is None:
            continue
        path = stage.still(spot)
        if stage.chance(0.25):
            path = path + np.stack([stage.wobble(0.025 * stage.unit), stage.wobble(0.025 * stage.unit)], axis=1)
        layer = stage.place(sprite, path, role="distractor", angle=stage.between(0.0, 2 * math.pi))
        found.append(layer)
        taken.append(_discs(layer))
    return found


def _free(point: NDArray[Any], radius: float, taken: list[NDArray[Any]]) -> bool:
    return all((np.hypot(*(discs[:, :2] - point).T) > discs[:, 2] + radius).all() for discs in taken)


# ---- camera moves: the whole picture does what the first label of the pair says --------------------------------------


def _pan(stage: _Stage, heading: float) -> NDArray[Any]:
    heading += stage.between(-1.0, 1.0) * math.radians(15)
    travel = stage.between(0.25, 0.7) * stage.unit
    ahead = np.array([math.cos(heading), math.sin(heading)])
    shift = (stage.progress() - 0.5)[:, None] * travel * ahead
    still = np.zeros(stage.frames)
    return _similarity(stage, shift, stage.wobble(0.04), still + 1 + stage.wobble(0.03), stage.centre)


def _zoom(stage: _Stage) -> NDArray[Any]:
    zoom = stage.between(1.4, 2.3) ** (stage.progress() - 0.5)
    about = stage.centre + stage.rng.uniform(-0.2, 0.2, 2) * stage.size
    shift = np.stack([stage.wobble(0.02), stage.wobble(0.02)], axis=1) * stage.unit
    return _similarity(stage, shift, stage.wobble(0.04), zoom, about)


def _roll(stage: _Stage) -> NDArray[Any]:
    angle = (stage.progress() - 0.5) * math.radians(stage.between(40.0, 140.0))
    about = stage.centre + stage.rng.uniform(-0.2, 0.2, 2) * stage.size
    shift = np.stack([stage.wobble(0.02), stage.wobble(0.02)], axis=1) * stage.unit
    return _similarity(stage, shift, angle, 1 + stage.wobble(0.03), about)


_CAMERA_MOVES: tuple[Callable[[_Stage], NDArray[Any]], ...] = (
    lambda stage: _pan(stage, math.pi),
    lambda stage: _pan(stage, -math.pi / 2),
    _zoom,
    _roll,
)


# ---- plays: each shows the first label of its pair -------------------------------------------------------------------


def _moving(stage: _Stage, heading: float, side: float) -> _Play:
    heading += stage.between(-1.0, 1.0) * math.radians(20)
    progress, travel = stage.progress(), stage.between(0.3, 0.9) * side
    low, high = (0.12, 0.3) if stage.chance(0.4) else (0.25, 0.55)
    layers: list[Layer] = []
    for _ in range(2 if stage.chance(0.15) else 1):
        sprite = stage.object(low, high)
        path = stage.line(heading, travel, progress, sprite.radius_px)
        angle = stage.between(0.0, 2 * math.pi) + stage.wobble(math.radians(12) if stage.chance(0.5) else 0.0)
        scale = 1 + stage.wobble(0.08 if stage.chance(0.5) else 0.0)
        layers.append(stage.place(sprite, path, role="mover", angle=angle, scale=scale))
    return _Play(layers)


def _approaching(stage: _Stage) -> _Play:
    ratio = stage.between(1.4, 3.0)
    sprite = stage.object(0.45, 0.9)
    scale = ratio ** (stage.progress() - stage.between(0.7, 1.0))
    spot = stage.centre + stage.rng.uniform(-0.22, 0.22, 2) * stage.size
    path = (
        stage.still(spot) + np.linspace(-0.5, 0.5, stage.frames)[:, None] * stage.rng.uniform(-0.1, 0.1, 2) * stage.size
    )
    angle = stage.between(0.0, 2 * math.pi) + stage.wobble(math.radians(10) if stage.chance(0.5) else 0.0)
    return _Play([stage.place(sprite, path, role="mover", angle=angle, scale=scale)])


def _turning(stage: _Stage) -> _Play:
    sprite = (
        stage.object(0.3, 0.8, TURNABLE, flat=0.5, at_most=0.85)
        if stage.chance(0.7)
        else stage.object(0.4, 0.9, SHAPES[:3], flat=0.25)
    )
    turn = math.radians(stage.between(40.0, 180.0))
    angle = stage.between(0.0, 2 * math.pi) + stage.progress() * turn
    pivot = (0.0, 0.0)
    if stage.chance(0.4):
        x, y = stage.rng.uniform(-0.5, 0.5, 2)
        pivot = (float(x), float(y))
    path = np.stack([stage.wobble(0.02), stage.wobble(0.02)], axis=1) * stage.unit
    path = path + stage.fit((path, 0.8 * sprite.radius_px))
    scale = 1 + stage.wobble(0.05 if stage.chance(0.5) else 0.0)
    return _Play([stage.place(sprite, path, role="mover", angle=angle, scale=scale, pivot=pivot)])


def _appearing(stage: _Stage) -> _Play:
    sprite = stage.object(0.16, 0.32)
    radius, lean = sprite.radius_px, stage.between(0.0, math.pi)
    kind, inner = (("ellipse", 0.95), ("box", 1.0), ("round_box", 0.9), ("blob", 0.62))[int(stage.rng.integers(4))]
    short = 2 * radius / inner * stage.between(1.1, 1.35)
    long = short * stage.between(1.0, 2.4)
    occluder = stage.slab(short, long, (kind,))
    behind, hidden, end = _way_out(stage, radius, lean, (long * inner / 2, short * inner / 2), (long / 2, short / 2))
    progress = stage.progress()
    path = hidden + progress[:, None] * (end - hidden)
    angle = stage.between(0.0, 2 * math.pi) + stage.wobble(math.radians(8) if stage.chance(0.4) else 0.0)
    return _Play(
        [
            stage.place(sprite, path, role="mover", angle=angle),
            stage.place(occluder, stage.still(behind), role="occluder", angle=lean),
        ]
    )


def _way_out(
    stage: _Stage, radius: float, lean: float, inner: tuple[float, float], outer: tuple[float, float]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """From behind an occluder to a place in full view: the best of some random tries.

    Args:
        stage: Where.
        radius: Of what comes out, in pixels.
        lean: How the occluder is turned, in radians.
        inner: Half its length and width, as far as it surely hides, in pixels.
        outer: Half its length and width in full.

    Returns:
        Points (x, y): the occluder's middle, and the start and the end of the way.
    """
    tries = 48
    headings = stage.rng.uniform(0, 2 * math.pi, tries)
    along, across = np.abs(np.cos(headings - lean)) + 1e-6, np.abs(np.sin(headings - lean)) + 1e-6
    ahead = np.stack([np.cos(headings), np.sin(headings)], axis=1)
    middles = stage.rng.uniform(0.05, 0.95, (tries, 2)) * stage.size
    # As a box this is exact; what is rounder hides less in its corners, hence only a part of the way.
    hidden_way = np.maximum(np.minimum((inner[0] - radius) / along, (inner[1] - radius) / across), 0)
    starts = middles + ahead * (hidden_way * stage.rng.uniform(0, 0.6, tries))[:, None]
    way = np.minimum(outer[0] / along, outer[1] / across) + radius * stage.rng.uniform(0.7, 1.5, tries)
    ends = middles + ahead * way[:, None]
    margin = 0.75 * radius
    outside = np.maximum(margin - ends, 0) + np.maximum(ends - (stage.size - margin), 0)
    best = int(np.argmin(outside.sum(axis=1)))
    return middles[best], starts[best], ends[best]


def _opening(stage: _Stage) -> _Play:
    return (_sliding_doors, _jaws, _jaws, _swinging_doors, _cover)[int(stage.rng.integers(5))](stage)


def _frame_angle(stage: _Stage) -> float:
    """How a door or box stands: mostly upright, or on its side, sometimes askew."""
    base = math.pi / 2 * int(stage.rng.integers(4))
    return base + (stage.between(-1.0, 1.0) * math.pi / 4 if stage.chance(0.3) else stage.between(-0.1, 0.1))


def _two_doors(stage: _Stage) -> tuple[float, float, float, NDArray[Any], list[Layer], tuple[Sprite, Sprite]]:
    """Height and width of a door, how the pair stands and where, what is behind, and the doors."""
    height, width = stage.between(0.3, 0.75) * stage.unit, stage.between(0.16, 0.32) * stage.unit
    lean = _frame_angle(stage)
    spot = stage.centre + stage.rng.uniform(-0.12, 0.12, 2) * stage.size
    inside: list[Layer] = []
    if stage.chance(0.75):
        panel = stage.slab(height * 1.04, width * 2.04, ("box",))
        inside.append(stage.place(panel, stage.still(spot), role="inside", angle=lean))
    left = stage.slab(height, width)
    right = left if stage.chance(0.6) else stage.slab(height, width)
    return height, width, lean, spot, inside, (left, right)


def _sliding_doors(stage: _Stage) -> _Play:
    _, width, lean, spot, inside, doors = _two_doors(stage)
    ahead = np.array([math.cos(lean), math.sin(lean)])
    way = width * (0.5 + 0.02 + stage.progress() * stage.between(0.5, 1.0))
    layers = [
        stage.place(door, spot + side * way[:, None] * ahead, role="part", angle=lean)
        for door, side in zip(doors, (-1.0, 1.0), strict=True)
    ]
    return _Play([*inside, *layers])


def _swinging_doors(stage: _Stage) -> _Play:
    """Two doors on outer hinges, seen from the front: they grow narrow as they swing towards the viewer."""
    _, width, lean, spot, inside, doors = _two_doors(stage)
    ahead = np.array([math.cos(lean), math.sin(lean)])
    swing = stage.between(0.0, 0.15) + stage.progress() * math.radians(stage.between(50.0, 80.0))
    tilt = stage.between(0.1, 0.35) * stage.sign()
    layers = []
    for door, side in zip(doors, (-1.0, 1.0), strict=True):
        hinge = stage.still(spot + side * width * 1.02 * ahead)
        narrow = _foreshortened(swing, side * tilt)
        layers.append(stage.place(door, hinge, role="part", angle=lean, scale=narrow, pivot=(side, 0.0)))
    return _Play([*inside, *layers])


def _foreshortened(swing: NDArray[Any], tilt: float) -> NDArray[Any]:
    """A board swung about an upright hinge, `[T, 2, 2]`; the tilt lifts its far edge as a near viewer would see it."""
    maps = np.zeros((len(swing), 2, 2))
    narrow = np.cos(swing)
    maps[:, 0, 0] = np.where(np.abs(narrow) < 0.04, np.where(narrow < 0, -0.04, 0.04), narrow)
    maps[:, 1, 0] = tilt * np.sin(swing)
    maps[:, 1, 1] = 1
    return maps


def _cover(stage: _Stage) -> _Play:
    """A book or a flap: a board over another of its size swings about one edge, perhaps over to the other side."""
    height, width = stage.between(0.35, 0.7) * stage.unit, stage.between(0.25, 0.42) * stage.unit
    lean, side = _frame_angle(stage), stage.sign()
    ahead = np.array([math.cos(lean), math.sin(lean)])
    spot = stage.centre + stage.rng.uniform(-0.08, 0.08, 2) * stage.size
    body, lid = stage.slab(height, width), stage.slab(height * 1.02, width * 1.02)
    swing = stage.between(0.0, 0.2) + stage.progress() * math.radians(stage.between(60.0, 150.0))
    hinge = spot - side * ahead * width / 2
    narrow = _foreshortened(swing, side * stage.between(-0.4, 0.4))
    return _Play(
        [
            stage.place(body, stage.still(spot), role="rest", angle=lean),
            stage.place(lid, stage.still(hinge), role="part", angle=lean, scale=narrow, pivot=(-side, 0.0)),
        ]
    )


def _jaws(stage: _Stage) -> _Play:
    """Two parts on one hinge: scissors, a beak, a box and its lid."""
    length, lid = stage.between(0.35, 0.62) * stage.unit, stage.between(0.09, 0.2) * stage.unit
    boxed = stage.chance(0.4)
    body = stage.between(0.2, 0.42) * stage.unit if boxed else lid * stage.between(0.8, 1.2)
    kinds = ("box", "round_box") if boxed else ("box", "round_box", "ellipse", "drop")
    upper = stage.slab(lid, length, kinds)
    lower = upper if body == lid else stage.slab(body, length * stage.between(0.9, 1.05), kinds)
    start, wide = math.radians(stage.between(0.0, 10.0)), math.radians(stage.between(40.0, 115.0))
    angle = start + stage.progress() * wide
    share = 1.0 if boxed else float(stage.rng.choice([0.0, 0.5, 0.5, 1.0, stage.between(0.2, 0.8)]))
    facing, mirrored = stage.between(0.0, 2 * math.pi), stage.sign()
    ahead = np.array([math.cos(facing), math.sin(facing)])
    hinge = stage.still(stage.centre - ahead * length * 0.4 + stage.rng.uniform(-0.06, 0.06, 2) * stage.size)
    layers = [
        stage.place(part, hinge, role="part", angle=facing + mirrored * turn, pivot=(-1.0, mirrored * edge))
        for part, turn, edge in ((upper, -share * angle, 1.0), (lower, (1 - share) * angle, -1.0))
    ]
    return _Play(layers if stage.chance(0.5) else layers[::-1])


def _colliding(stage: _Stage) -> _Play:
    sprites = (stage.object(0.18, 0.4), stage.object(0.18, 0.4))
    turns = stage.rng.uniform(0, 2 * math.pi, 2)
    heading = stage.between(0.0, 2 * math.pi)
    ahead = np.array([math.cos(heading), math.sin(heading)])
    aside = np.array([-ahead[1], ahead[0]]) * stage.between(-0.2, 0.2) * min(sprite.radius_px for sprite in sprites)
    touching = _touching(sprites, turns, heading, aside)
    gap = stage.between(0.25, 0.6) * stage.unit * (1 - stage.progress())
    share = float(stage.rng.choice([0.0, 1.0, 0.5, 0.5, stage.between(0.25, 0.75)]))
    near = (-share * gap)[:, None] * ahead - ahead * touching / 2 - aside / 2
    far = ((1 - share) * gap)[:, None] * ahead + ahead * touching / 2 + aside / 2
    shift = stage.fit((near, 0.8 * sprites[0].radius_px), (far, 0.8 * sprites[1].radius_px))
    return _Play(
        [
            stage.place(sprite, path, role="mover", angle=float(turn))
            for sprite, path, turn in zip(sprites, (near + shift, far + shift), turns, strict=True)
        ]
    )


def _touching(sprites: tuple[Sprite, Sprite], turns: NDArray[Any], heading: float, aside: NDArray[Any]) -> float:
    """How far apart along the heading the centres of two turned sprites are when they just touch, in pixels."""
    fronts = []
    for number, (sprite, turn) in enumerate(zip(sprites, turns, strict=True)):
        _, height, width = sprite.texture.shape
        rows, columns = np.nonzero(sprite.texture[3].numpy() > 0.5)
        x, y = (columns - (width - 1) / 2) * sprite.scale, (rows - (height - 1) / 2) * sprite.scale
        cos, sin = math.cos(turn - heading), math.sin(turn - heading)
        along, across = cos * x - sin * y, sin * x + cos * y
        if number == 1:
            along, across = -along, across + aside[1] * math.cos(heading) - aside[0] * math.sin(heading)
        front = np.full(1024, -np.inf)
        width_px = max(1.0, sprite.scale)
        np.maximum.at(front, np.clip(np.floor(across / (2 * width_px)).astype(np.int64) + 512, 0, 1023), along)
        fronts.append(front)
    reach = fronts[0] + fronts[1]
    return float(reach.max()) + 0.5


def _scattering(stage: _Stage) -> _Play:
    pieces = int(stage.rng.integers(4, 8))
    progress, way = stage.progress(), stage.between(0.22, 0.42) * stage.unit
    centre = stage.centre + stage.rng.uniform(-0.1, 0.1, 2) * stage.size
    layers: list[Layer] = []
    if stage.chance(0.35):
        whole = stage.object(0.35, 0.65)
        lean = stage.between(0.0, 2 * math.pi)
        turn = np.array([[math.cos(lean), -math.sin(lean)], [math.sin(lean), math.cos(lean)]])
        for piece, offset in shatter(stage.rng, whole, pieces):
            start = turn @ offset * whole.scale
            ahead = start / max(float(np.hypot(*start)), 1e-6)
            path = centre + start + progress[:, None] * ahead * way * stage.between(0.7, 1.2)
            spin = stage.between(-1.0, 1.0) * math.radians(60) * progress
            layers.append(stage.place(piece, path, role="piece", angle=lean + spin))
        return _Play(layers)
    model = stage.object(0.1, 0.22)
    alike = stage.chance(0.4)
    angles = (np.arange(pieces) + stage.rng.uniform(-0.25, 0.25, pieces)) * (2 * math.pi / pieces)
    for angle in angles + stage.between(0.0, 2 * math.pi):
        sprite = model if alike else stage.supply.sprite(
            stage.rng, str(stage.rng.choice(SHAPES)), (stage.between(0.08, 0.2) * stage.unit,) * 2,
            unlike=stage.colours[:1], cut_outs=True,
        )  # fmt: skip
        ahead = np.array([math.cos(angle), math.sin(angle)])
        start = centre + ahead * sprite.radius_px * stage.between(0.5, 1.2)
        path = start + progress[:, None] * ahead * way * stage.between(0.8, 1.25)
        spin = stage.between(-1.0, 1.0) * math.radians(90) * progress
        layers.append(stage.place(sprite, path, role="piece", angle=stage.between(0.0, 2 * math.pi) + spin))
    return _Play(layers)


def _passing(stage: _Stage) -> _Play:
    sprites = [stage.object(0.24, 0.4), stage.object(0.24, 0.4)]
    # The second was made to stand out from the first; neither part in the play is given away by that.
    resting, moving = sprites if stage.chance(0.5) else sprites[::-1]
    clear = resting.radius_px + moving.radius_px
    before, after = clear * stage.between(0.9, 1.3), clear * stage.between(0.9, 1.3)
    # First the place, then a way that stays in the frame as well as may be. The other way round, the one at rest would
    # be the one nearer to the middle of the frame, and a single frame would tell which of the two moves.
    inset = 0.75 * resting.radius_px
    spot = stage.rng.uniform(inset, stage.size - inset)
    headings = stage.rng.uniform(0, 2 * math.pi, 5)
    directions = np.stack([np.cos(headings), np.sin(headings)], axis=1)
    ends = spot + np.concatenate([-before * directions, after * directions], axis=1).reshape(5, 2, 2)
    ahead = directions[np.argmin((np.maximum(-ends, 0) + np.maximum(ends - stage.size, 0)).sum(axis=(1, 2)))]
    aside = np.array([-ahead[1], ahead[0]]) * stage.between(-0.3, 0.3) * resting.radius_px
    path = spot + aside + (stage.progress() * (before + after) - before)[:, None] * ahead
    angle = stage.between(0.0, 2 * math.pi) + stage.wobble(math.radians(8) if stage.chance(0.4) else 0.0)
    rest = stage.place(resting, stage.still(spot), role="rest", angle=stage.between(0.0, 2 * math.pi))
    return _Play([rest, stage.place(moving, path, role="mover", angle=angle)], swap_last_two=True)


_PLAYS: tuple[Callable[[_Stage], _Play], ...] = (
    lambda stage: _moving(stage, math.pi, float(stage.width)),
    lambda stage: _moving(stage, -math.pi / 2, float(stage.height)),
    _approaching,
    _turning,
    _appearing,
    _opening,
    _colliding,
    _scattering,
    _passing,
)
