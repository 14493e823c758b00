"""Plays: the motions of the world, each showing the first class of its pair."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trecvit.synthetic.outlines import SHAPES, TURNABLE
from trecvit.synthetic.scene import Layer
from trecvit.synthetic.sprites import Sprite, shatter
from trecvit.synthetic.stage import Play, Stage


def _moving(stage: Stage, heading: float, side: float) -> Play:
    heading += stage.between(-1.0, 1.0) * math.radians(20)
    progress, travel = stage.progress(), stage.between(0.35, 0.95) * side
    low, high = (0.16, 0.32) if stage.chance(0.3) else (0.28, 0.6)
    layers: list[Layer] = []
    for _ in range(2 if stage.chance(0.15) else 1):
        sprite = stage.object(low, high)
        path = stage.line(heading, travel, progress, sprite.radius_px)
        angle = stage.between(0.0, 2 * math.pi) + stage.wobble(math.radians(12) if stage.chance(0.5) else 0.0)
        scale = 1 + stage.wobble(0.08 if stage.chance(0.5) else 0.0)
        layers.append(stage.place(sprite, path, role="mover", angle=angle, scale=scale))
    return Play(layers)


def _approaching(stage: Stage) -> Play:
    ratio = stage.between(1.4, 3.0)
    sprite = stage.object(0.45, 0.9)
    scale = ratio ** (stage.progress() - stage.between(0.7, 1.0))
    spot = stage.centre + stage.rng.uniform(-0.22, 0.22, 2) * stage.size
    path = (
        stage.still(spot) + np.linspace(-0.5, 0.5, stage.frames)[:, None] * stage.rng.uniform(-0.1, 0.1, 2) * stage.size
    )
    angle = stage.between(0.0, 2 * math.pi) + stage.wobble(math.radians(10) if stage.chance(0.5) else 0.0)
    return Play([stage.place(sprite, path, role="mover", angle=angle, scale=scale)])


def _turning(stage: Stage) -> Play:
    sprite = (
        stage.object(0.4, 0.9, TURNABLE, flat=0.5, at_most=0.85)
        if stage.chance(0.7)
        else stage.object(0.4, 0.9, SHAPES[:3], flat=0.25)
    )
    angle = stage.between(0.0, 2 * math.pi) + stage.turn(60.0, 200.0)
    pivot = (0.0, 0.0)
    if stage.chance(0.4):
        x, y = stage.rng.uniform(-0.5, 0.5, 2)
        pivot = (float(x), float(y))
    path = np.stack([stage.wobble(0.02), stage.wobble(0.02)], axis=1) * stage.unit
    path = path + stage.fit((path, 0.8 * sprite.radius_px))
    scale = 1 + stage.wobble(0.05 if stage.chance(0.5) else 0.0)
    return Play([stage.place(sprite, path, role="mover", angle=angle, scale=scale, pivot=pivot)])


def _appearing(stage: Stage) -> Play:
    sprite = stage.object(0.2, 0.34)
    radius, lean = sprite.radius_px, stage.between(0.0, math.pi)
    kind, inner = (("ellipse", 0.95), ("box", 1.0), ("round_box", 0.9), ("blob", 0.62))[int(stage.rng.integers(4))]
    short = 2 * radius / inner * stage.between(1.1, 1.35)
    long = short * stage.between(1.0, 2.4)
    occluder = stage.slab(short, long, (kind,))
    behind, hidden, end = _way_out(stage, radius, lean, (long * inner / 2, short * inner / 2), (long / 2, short / 2))
    progress = stage.progress()
    path = hidden + progress[:, None] * (end - hidden)
    angle = stage.between(0.0, 2 * math.pi) + stage.wobble(math.radians(8) if stage.chance(0.4) else 0.0)
    return Play(
        [
            stage.place(sprite, path, role="mover", angle=angle),
            stage.place(occluder, stage.still(behind), role="occluder", angle=lean),
        ]
    )


def _way_out(
    stage: Stage, radius: float, lean: float, inner: tuple[float, float], outer: tuple[float, float]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Choose a path from behind an occluder into full view: the best of random tries.

    Args:
        stage: The scene.
        radius: Of the appearing object, in pixels.
        lean: Rotation of the occluder, in radians.
        inner: Half the length and width of the part that certainly hides, in pixels.
        outer: Half the length and width of the whole.

    Returns:
        Points (x, y): the occluder's centre, and start and end of the path.
    """
    tries = 48
    headings = stage.rng.uniform(0, 2 * math.pi, tries)
    along, across = np.abs(np.cos(headings - lean)) + 1e-6, np.abs(np.sin(headings - lean)) + 1e-6
    ahead = np.stack([np.cos(headings), np.sin(headings)], axis=1)
    middles = stage.rng.uniform(0.05, 0.95, (tries, 2)) * stage.size
    # Exact for a box; rounder shapes hide less in their corners, hence only a part of the distance.
    hidden_way = np.maximum(np.minimum((inner[0] - radius) / along, (inner[1] - radius) / across), 0)
    starts = middles + ahead * (hidden_way * stage.rng.uniform(0, 0.6, tries))[:, None]
    way = np.minimum(outer[0] / along, outer[1] / across) + radius * stage.rng.uniform(0.7, 1.5, tries)
    ends = middles + ahead * way[:, None]
    margin = 0.75 * radius
    outside = np.maximum(margin - ends, 0) + np.maximum(ends - (stage.size - margin), 0)
    best = int(np.argmin(outside.sum(axis=1)))
    return middles[best], starts[best], ends[best]


def _opening(stage: Stage) -> Play:
    return (_sliding_doors, _jaws, _jaws, _swinging_doors, _cover)[int(stage.rng.integers(5))](stage)


def _frame_angle(stage: Stage) -> float:
    """Draw the rotation of a door or box: mostly upright or on its side, sometimes askew."""
    base = math.pi / 2 * int(stage.rng.integers(4))
    return base + (stage.between(-1.0, 1.0) * math.pi / 4 if stage.chance(0.3) else stage.between(-0.1, 0.1))


def _two_doors(stage: Stage) -> tuple[float, float, float, NDArray[Any], list[Layer], tuple[Sprite, Sprite]]:
    """Draw two doors: height and width of each, rotation and position of the pair, the layers behind, the sprites."""
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


def _sliding_doors(stage: Stage) -> Play:
    _, width, lean, spot, inside, doors = _two_doors(stage)
    ahead = np.array([math.cos(lean), math.sin(lean)])
    way = width * (0.5 + 0.02 + stage.progress() * stage.between(0.5, 1.0))
    layers = [
        stage.place(door, spot + side * way[:, None] * ahead, role="part", angle=lean)
        for door, side in zip(doors, (-1.0, 1.0), strict=True)
    ]
    return Play([*inside, *layers])


def _swinging_doors(stage: Stage) -> Play:
    """Swing two doors on outer hinges, seen from the front: they narrow as they turn towards the viewer."""
    _, width, lean, spot, inside, doors = _two_doors(stage)
    ahead = np.array([math.cos(lean), math.sin(lean)])
    swing = stage.between(0.0, 0.15) + stage.progress() * math.radians(stage.between(50.0, 80.0))
    tilt = stage.between(0.1, 0.35) * stage.sign()
    layers = []
    for door, side in zip(doors, (-1.0, 1.0), strict=True):
        hinge = stage.still(spot + side * width * 1.02 * ahead)
        narrow = _foreshortened(swing, side * tilt)
        layers.append(stage.place(door, hinge, role="part", angle=lean, scale=narrow, pivot=(side, 0.0)))
    return Play([*inside, *layers])


def _foreshortened(swing: NDArray[Any], tilt: float) -> NDArray[Any]:
    """Project a board that swings about an upright hinge, `[T, 2, 2]`; `tilt` lifts its far edge in perspective."""
    maps = np.zeros((len(swing), 2, 2))
    narrow = np.cos(swing)
    maps[:, 0, 0] = np.where(np.abs(narrow) < 0.04, np.where(narrow < 0, -0.04, 0.04), narrow)
    maps[:, 1, 0] = tilt * np.sin(swing)
    maps[:, 1, 1] = 1
    return maps


def _cover(stage: Stage) -> Play:
    """Open a book or a flap: a board over another of its size swings about one edge, perhaps to the other side."""
    height, width = stage.between(0.35, 0.7) * stage.unit, stage.between(0.25, 0.42) * stage.unit
    lean, side = _frame_angle(stage), stage.sign()
    ahead = np.array([math.cos(lean), math.sin(lean)])
    spot = stage.centre + stage.rng.uniform(-0.08, 0.08, 2) * stage.size
    body, lid = stage.slab(height, width), stage.slab(height * 1.02, width * 1.02)
    swing = stage.between(0.0, 0.2) + stage.progress() * math.radians(stage.between(60.0, 150.0))
    hinge = spot - side * ahead * width / 2
    narrow = _foreshortened(swing, side * stage.between(-0.4, 0.4))
    return Play(
        [
            stage.place(body, stage.still(spot), role="rest", angle=lean),
            stage.place(lid, stage.still(hinge), role="part", angle=lean, scale=narrow, pivot=(-side, 0.0)),
        ]
    )


def _jaws(stage: Stage) -> Play:
    """Open two parts on one hinge: scissors, a beak, a box and its lid."""
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
    return Play(layers if stage.chance(0.5) else layers[::-1])


def _colliding(stage: Stage) -> Play:
    sprites = (stage.object(0.22, 0.42), stage.object(0.22, 0.42))
    turns = stage.rng.uniform(0, 2 * math.pi, 2)
    heading = stage.between(0.0, 2 * math.pi)
    ahead = np.array([math.cos(heading), math.sin(heading)])
    aside = np.array([-ahead[1], ahead[0]]) * stage.between(-0.2, 0.2) * min(sprite.radius_px for sprite in sprites)
    touching = _touching(sprites, turns, heading, aside)
    gap = stage.between(0.25, 0.6) * stage.unit * (1 - stage.progress())
    # Both move: one at rest would look like a distractor.
    share = stage.between(0.25, 0.75)
    near = (-share * gap)[:, None] * ahead - ahead * touching / 2 - aside / 2
    far = ((1 - share) * gap)[:, None] * ahead + ahead * touching / 2 + aside / 2
    shift = stage.fit((near, 0.8 * sprites[0].radius_px), (far, 0.8 * sprites[1].radius_px))
    return Play(
        [
            stage.place(sprite, path, role="mover", angle=float(turn))
            for sprite, path, turn in zip(sprites, (near + shift, far + shift), turns, strict=True)
        ]
    )


def _touching(sprites: tuple[Sprite, Sprite], turns: NDArray[Any], heading: float, aside: NDArray[Any]) -> float:
    """Compute the distance in pixels, along the heading, between the centres of two rotated sprites that just touch."""
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


def _scattering(stage: Stage) -> Play:
    pieces = int(stage.rng.integers(4, 8))
    progress, way = stage.progress(), stage.between(0.22, 0.42) * stage.unit
    centre = stage.centre + stage.rng.uniform(-0.1, 0.1, 2) * stage.size
    layers: list[Layer] = []
    if stage.chance(0.35):
        intact = stage.object(0.35, 0.65)
        lean = stage.between(0.0, 2 * math.pi)
        turn = np.array([[math.cos(lean), -math.sin(lean)], [math.sin(lean), math.cos(lean)]])
        for piece, offset in shatter(stage.rng, intact, pieces):
            start = turn @ offset * intact.scale
            ahead = start / max(float(np.hypot(*start)), 1e-6)
            path = centre + start + progress[:, None] * ahead * way * stage.between(0.7, 1.2)
            spin = stage.between(-1.0, 1.0) * math.radians(60) * progress
            layers.append(stage.place(piece, path, role="piece", angle=lean + spin))
        return Play(layers)
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
    return Play(layers)


def _passing(stage: Stage) -> Play:
    sprites = [stage.object(0.3, 0.46), stage.object(0.3, 0.46)]
    # The second was drawn to stand out from the first, so the roles are assigned at random.
    resting, moving = sprites if stage.chance(0.5) else sprites[::-1]
    clear = resting.radius_px + moving.radius_px
    before, after = clear * stage.between(0.9, 1.3), clear * stage.between(0.9, 1.3)
    # First the position at rest, then the path that stays in the frame best. The other way round, the resting object
    # would be nearer to the middle of the frame, and a single frame would reveal which of the two moves.
    inset = 0.75 * resting.radius_px
    spot = stage.rng.uniform(inset, stage.size - inset)
    headings = stage.rng.uniform(0, 2 * math.pi, 5)
    directions = np.stack([np.cos(headings), np.sin(headings)], axis=1)
    ends = spot + np.concatenate([-before * directions, after * directions], axis=1).reshape(5, 2, 2)
    ahead = directions[np.argmin((np.maximum(-ends, 0) + np.maximum(ends - stage.size, 0)).sum(axis=(1, 2)))]
    aside = np.array([-ahead[1], ahead[0]]) * stage.between(-0.2, 0.2) * resting.radius_px
    path = spot + aside + (stage.progress(shortest=0.65) * (before + after) - before)[:, None] * ahead
    angle = stage.between(0.0, 2 * math.pi) + stage.wobble(math.radians(8) if stage.chance(0.4) else 0.0)
    rest = stage.place(resting, stage.still(spot), role="rest", angle=stage.between(0.0, 2 * math.pi))
    return Play([rest, stage.place(moving, path, role="mover", angle=angle)], swap_last_two=True)


PLAYS: tuple[Callable[[Stage], Play], ...] = (
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
