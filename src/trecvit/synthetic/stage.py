"""The stage on which a scene of the world is assembled, and the world's configuration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trecvit.errors import ConfigError
from trecvit.synthetic.outlines import SHAPES
from trecvit.synthetic.scene import Layer, compose_transforms, invert
from trecvit.synthetic.sprites import Sprite, Supply

Trajectory = NDArray[np.float64]  # [T, 2]: (x, y) in pixels

_MAX_TURN_DEG = 35.0  # from one frame to the next


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Appearance and difficulty of the clips.

    Attributes:
        num_frames: T, at least 2.
        image_size: Height and width of the frames in pixels, each from 32 to 1024.
        max_distractors: Largest number of objects without a part in the motion.
        camera_jitter_px: Largest camera shake in pixels; 0 for a tripod.
        light_drift: Largest relative change of brightness within a clip, below 0.5.
        noise: Largest standard deviation of the sensor noise, in 8-bit levels.
        picture_share: Share of surfaces taken from pictures, if the world has any.
        plain_share: Share of surfaces of one colour, where the motion stays visible.
        whole_scene_share: Share of clips of the first four pairs in which the whole picture moves, as under a camera
            that pans, zooms or rolls.
    """

    num_frames: int = 16
    image_size: tuple[int, int] = (96, 96)
    max_distractors: int = 2
    camera_jitter_px: float = 0.7
    light_drift: float = 0.12
    noise: float = 6.0
    picture_share: float = 0.5
    plain_share: float = 0.3
    whole_scene_share: float = 0.3

    def __post_init__(self) -> None:
        if len(self.image_size) != 2:
            raise ConfigError(f"image_size: expected (height, width), got {self.image_size!r}")
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
                raise ConfigError(f"{name}: expected {low:g} to {high:g}, got {value!r}")
            if name in ("num_frames", "max_distractors", "image_size[0]", "image_size[1]") and int(value) != value:
                raise ConfigError(f"{name}: expected a whole number, got {value!r}")

    def easy(self) -> WorldConfig:
        """Return an easy variant of the same size: plain surfaces, no distractors, a steady camera and light."""
        return replace(
            self,
            max_distractors=0,
            camera_jitter_px=0.0,
            light_drift=0.0,
            noise=0.0,
            picture_share=0.0,
            plain_share=1.0,
        )


class Stage:
    """A scene under construction: its random generator, its measures, and the colours used so far."""

    def __init__(self, rng: np.random.Generator, config: WorldConfig, supply: Supply) -> None:
        self.rng = rng
        self.config = config
        self.supply = supply
        self.frames = config.num_frames
        self.height, self.width = config.image_size
        self.unit = float(min(config.image_size))
        self.size = np.array([self.width, self.height], np.float64)
        self.centre = (self.size - 1) / 2
        self.colours: list[NDArray[Any]] = []  # further objects must stand out from these

    def chance(self, share: float) -> bool:
        """Return True with this probability."""
        return bool(self.rng.random() < share)

    def between(self, low: float, high: float) -> float:
        """Draw uniformly from `low` to `high`."""
        return float(self.rng.uniform(low, high))

    def sign(self) -> float:
        """Draw 1 or -1."""
        return 1.0 if self.chance(0.5) else -1.0

    def progress(self, shortest: float = 0.45) -> NDArray[np.float64]:
        """Draw a monotone progress `[T]` from 0 to 1, with a random start, end and speed.

        Args:
            shortest: Least share of the clip that the motion takes.
        """
        length = self.between(shortest, 1.0)
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

    def turn(self, low: float, high: float) -> NDArray[np.float64]:
        """Draw angles `[T]` in radians from 0 to a final `low` to `high` degrees, slow enough to show their direction.

        Boards and bars look the same after half a turn, so steps near a quarter turn would be ambiguous.
        """
        progress = self.progress()
        fastest = float(np.diff(progress).max())
        turn: NDArray[np.float64] = progress * math.radians(min(self.between(low, high), _MAX_TURN_DEG / fastest))
        return turn

    def wobble(self, reach: float) -> NDArray[np.float64]:
        """Draw a slow oscillation `[T]` within ±`reach`, without a direction in time."""
        time = np.linspace(0, 2 * math.pi, self.frames)
        waves = sum(np.sin(self.between(0.4, 3.0) * time + self.between(0.0, 2 * math.pi)) for _ in range(2))
        wave: NDArray[np.float64] = reach * self.between(0.0, 0.5) * np.asarray(waves)
        return wave

    def object(
        self, low: float, high: float, kinds: Sequence[str] = SHAPES, flat: float = 0.45, at_most: float = 1.0
    ) -> Sprite:
        """Draw an object that stands out from all others.

        Its longer side is `low` to `high` of the frame's shorter side, its aspect ratio `flat` to `at_most`.
        """
        long_px, ratio = self.between(low, high) * self.unit, self.between(flat, at_most)
        size = (long_px * ratio, long_px) if self.chance(0.5) else (long_px, long_px * ratio)
        kind = str(kinds[int(self.rng.integers(len(kinds)))])
        sprite = self.supply.sprite(self.rng, kind, size, unlike=self.colours, cut_outs=True)
        self.colours.append(sprite.colour)
        return sprite

    def slab(self, height_px: float, width_px: float, kinds: Sequence[str] = ("box", "round_box")) -> Sprite:
        """Draw a board of a given size."""
        kind = str(kinds[int(self.rng.integers(len(kinds)))])
        sprite = self.supply.sprite(self.rng, kind, (height_px, width_px), unlike=self.colours)
        self.colours.append(sprite.colour)
        return sprite

    def still(self, point: NDArray[np.float64]) -> Trajectory:
        """Return a constant path."""
        return np.tile(point, (self.frames, 1))

    def backdrop(self, camera: NDArray[Any], *, irregular: bool) -> Layer:
        """Draw a background that fills the view of a camera `[T, 2, 3]`; see `Supply.background`."""
        right, bottom = self.size
        corners = np.array([[-1, -1, 1], [right, -1, 1], [-1, bottom, 1], [right, bottom, 1]], np.float64)
        view = invert(camera) @ corners.T  # [T, 2, 4]
        low, high = view.min(axis=(0, 2)), view.max(axis=(0, 2))
        extent = high - low
        finest = 1.0 / max(1.0, float(extent.max()) / 512)
        width, height = (max(16, round(float(side) * finest * self.between(0.7, 1.0))) for side in extent)
        texture = self.supply.background(self.rng, height, width, irregular=irregular)
        self.colours.append(texture[:3].mean(dim=(1, 2)).numpy())
        fit = np.zeros((self.frames, 2, 3))
        fit[:, 0, 0], fit[:, 1, 1] = extent[0] / (width - 1), extent[1] / (height - 1)
        fit[:, :, 2] = low
        return Layer(texture=texture, transforms=compose_transforms(camera, fit), role="background", reflect=True)

    def light(self) -> NDArray[Any]:
        """Draw gain and offset per frame and colour: colour cast, contrast, and a slow change of brightness."""
        drift = self.config.light_drift
        brightness = 1 + self.wobble(drift) if self.chance(0.6) else np.ones(self.frames)
        cast = self.rng.uniform(0.85, 1.1, 3) if self.chance(0.4) else np.ones(3)
        contrast = self.between(0.5, 0.9) if self.chance(0.25) else self.between(0.9, 1.15)
        light = np.empty((self.frames, 2, 3))
        light[:, 0] = brightness[:, None] * cast * contrast
        light[:, 1] = (1 - contrast) * self.between(0.3, 0.6)
        return light

    def place(
        self,
        sprite: Sprite,
        path: Trajectory,
        *,
        role: str,
        angle: NDArray[Any] | float = 0.0,
        scale: NDArray[Any] | float = 1.0,
        pivot: tuple[float, float] = (0.0, 0.0),
    ) -> Layer:
        """Place a sprite on a path.

        Args:
            sprite: The sprite.
            path: Position of its pivot in each frame.
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

    def line(self, heading: float, travel: float, progress: NDArray[Any], radius: float) -> Trajectory:
        """Draw a path through the frame, straight or slightly bent; its ends may lie just outside.

        Args:
            heading: Direction in radians; 0 is right, a quarter turn is down.
            travel: Length in pixels.
            progress: `[T]`, 0 to 1.
            radius: Of the moving object, in pixels.
        """
        ahead = np.array([math.cos(heading), math.sin(heading)])
        half = ahead * travel / 2
        beyond = min(0.8 * radius, 0.2 * self.unit) if self.chance(0.35) else -0.5 * radius
        room = np.where(np.abs(ahead) > 0.7, beyond, -0.7 * radius)  # never along the border, half outside
        reach = np.maximum(self.size / 2 + room - np.abs(half), 0)
        middle = self.centre + self.rng.uniform(-1, 1, 2) * reach
        bend = self.between(-0.08, 0.08) * travel * np.sin(math.pi * progress)
        path: Trajectory = middle + (2 * progress - 1)[:, None] * half + bend[:, None] * np.array([-ahead[1], ahead[0]])
        return path

    def fit(self, *paths: tuple[Trajectory, float]) -> NDArray[np.float64]:
        """Draw a shift (x, y) that brings paths of objects with given radii into the frame."""
        low = np.min([path.min(axis=0) - radius for path, radius in paths], axis=0)
        high = np.max([path.max(axis=0) + radius for path, radius in paths], axis=0)
        room = self.size - (high - low)
        # Where the room is too small, both ends stick out equally.
        corner = np.where(room > 0, self.rng.uniform(0, 1, 2), 0.5) * room
        shift: NDArray[np.float64] = corner - low
        return shift


@dataclass(slots=True)
class Play:
    """The moving layers of a scene."""

    layers: list[Layer]
    swap_last_two: bool = False
