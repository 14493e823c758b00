"""Procedural surfaces: RGB arrays `[h, w, 3]`, float32 in [0, 1], determined by a `numpy.random.Generator`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from trecvit.errors import InputError
from trecvit.synthetic.outlines import SHAPES, outline, rotation

_Array = NDArray[np.float32]


def palette(rng: np.random.Generator, colours: int) -> _Array:
    """Draw a palette `[colours, 3]`: one family of hues, light and dark."""
    hue, spread = rng.uniform(0, 1), rng.choice([0.05, 0.15, 0.5])
    hues = hue + rng.uniform(-spread, spread, colours)
    saturation = rng.uniform(0, rng.choice([0.25, 0.6, 1.0]), colours)
    value = rng.permutation(np.linspace(rng.uniform(0.05, 0.45), rng.uniform(0.6, 1.0), colours))
    wheel = np.clip(np.abs((hues[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    mixed: _Array = (value[:, None] * (1 - saturation[:, None] * (1 - wheel))).astype(np.float32)
    return mixed


def _paint(field: NDArray[Any], colours: _Array) -> _Array:
    """Map a field in [0, 1] to a colour ramp."""
    stops = np.linspace(0, 255, len(colours))
    ramp = np.stack([np.interp(np.arange(256), stops, colours[:, c]) for c in range(3)], axis=1).astype(np.float32)
    painted: _Array = ramp[(np.clip(field, 0, 1) * 255).astype(np.uint8)]
    return painted


def _axes(size: int) -> tuple[_Array, _Array]:
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return line[None, :], line[:, None]


def _noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 1) -> _Array:
    """Draw smooth noise `[size, size]` in [0, 1] with `cells` bumps along a side in the coarsest octave."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        side = cells * 2**octave + 1
        if side > size // 3:  # a finer octave would flicker when minified
            break
        grid = rng.standard_normal((side, side), dtype=np.float32)
        total += np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)) * 0.55**octave
    low, high = float(total.min()), float(total.max())
    scaled: _Array = (total - low) / max(high - low, 1e-6)
    return scaled


def _clouds(rng: np.random.Generator, size: int) -> _Array:
    return _paint(_noise(rng, size, int(rng.integers(2, 9)), int(rng.integers(1, 6))), palette(rng, 4))


def _nature(rng: np.random.Generator, size: int) -> _Array:
    """Draw noise with the spectrum of photographs (amplitude falls with frequency) and correlated colours."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1
    fall = np.exp(-((frequency / 0.3) ** 2)) / frequency ** rng.uniform(1.0, 1.7)
    fall[0, 0] = 0
    planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, size, size))) * fall, s=(size, size))
    planes /= planes.std() + 1e-9
    planes[1:] = planes[:1] + rng.uniform(0.1, 0.6) * planes[1:]
    tint = palette(rng, 1)[0] * 0.6 + 0.2
    surface: _Array = np.clip(tint + 0.2 * planes.transpose(1, 2, 0), 0, 1).astype(np.float32)
    return surface


def _waves(rng: np.random.Generator, size: int) -> _Array:
    angle, waves = rng.uniform(0, math.pi), rng.uniform(2, size / 14)
    return math.cos(angle) * _axes(size)[0] * waves * math.pi + math.sin(angle) * _axes(size)[1] * waves * math.pi


def _stripes(rng: np.random.Generator, size: int) -> _Array:
    phase = _waves(rng, size) + rng.choice([0, 0, 2, 6]) * _noise(rng, size, 3)
    return _paint(0.5 + 0.5 * np.tanh(rng.uniform(0.5, 4) * np.sin(phase)), palette(rng, int(rng.integers(2, 4))))


def _plaid(rng: np.random.Generator, size: int) -> _Array:
    across = 0.5 + 0.5 * np.tanh(rng.uniform(1, 4) * np.sin(_axes(size)[0] * rng.uniform(6, size / 6)))
    down = 0.5 + 0.5 * np.tanh(rng.uniform(1, 4) * np.sin(_axes(size)[1] * rng.uniform(6, size / 6)))
    return _paint(rng.uniform(0.3, 0.7) * (across + down), palette(rng, 3))


def _checks(rng: np.random.Generator, size: int) -> _Array:
    first, second = _waves(rng, size), _waves(rng, size)
    return _paint(0.5 + 0.5 * np.tanh(rng.uniform(2, 6) * np.sin(first) * np.sin(second)), palette(rng, 2))


def _rings(rng: np.random.Generator, size: int) -> _Array:
    x, y = _axes(size)
    radius = np.hypot(x - rng.uniform(-1.5, 1.5), (y - rng.uniform(-1.5, 1.5)) * rng.uniform(0.3, 1))
    field = np.sin(radius * rng.uniform(8, size / 7) + rng.uniform(1, 8) * _noise(rng, size, 3, 2))
    return _paint(0.5 + 0.5 * field, palette(rng, 3))


def _bricks(rng: np.random.Generator, size: int) -> _Array:
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    height = int(rng.integers(size // 16, size // 5))
    width = int(height * rng.uniform(1, 2.6))
    row = y // height
    column = (x + row * (width // 2)) // width
    tones = rng.uniform(0.35, 0.95, 4096)[(row * 61 + column * 7) % 4096]
    joint = max(1, height // 8)
    mortar = ((y % height) < joint) | (((x + row * (width // 2)) % width) < joint)
    colours = palette(rng, 2)
    surface = np.where(mortar[..., None], colours[0], colours[1] * tones[..., None].astype(np.float32))
    grain: _Array = surface * (0.75 + 0.35 * _noise(rng, size, 12, 2)[..., None])
    return grain


def _cells(rng: np.random.Generator, size: int) -> _Array:
    count = int(rng.integers(8, 60))
    x, y = _axes(size)
    first, second = np.full((2, size, size), 9.0, np.float32)
    nearest = np.zeros((size, size), np.int64)
    for cell, (cx, cy) in enumerate(rng.uniform(-1.1, 1.1, (count, 2)).astype(np.float32)):
        distance = np.hypot(x - cx, y - cy)
        closer = distance < first
        second = np.where(closer, first, np.minimum(second, distance))
        first = np.where(closer, distance, first)
        nearest[closer] = cell
    surface = palette(rng, 5)[rng.integers(0, 5, count)][nearest] * rng.uniform(0.8, 1.1, (count, 1))[nearest]
    edge = np.clip((second - first) * rng.choice([12, 40]), 0, 1)[..., None] if rng.random() < 0.6 else 1.0
    joined: _Array = (surface * edge).astype(np.float32)
    return joined


def _plain(rng: np.random.Generator, size: int) -> _Array:
    x, y = _axes(size)
    slope = 0.5 + 0.35 * (rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y)
    return _paint(slope + rng.uniform(0, 0.15) * (_noise(rng, size, 10, 3) - 0.5), palette(rng, 2))


def _spots(rng: np.random.Generator, size: int) -> _Array:
    colours = palette(rng, 4)
    canvas = Image.fromarray((_paint(_noise(rng, size * 2, 3), colours[:2]) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    radius = rng.uniform(0.02, 0.09) * 2 * size
    for x, y, r in rng.uniform(0, 1, (int(rng.integers(15, 120)), 3)):
        reach = radius * (0.5 + r)
        box = (x * 2 * size - reach, y * 2 * size - reach, x * 2 * size + reach, y * 2 * size + reach)
        draw.ellipse(box, fill=_rgb(colours[2 + int(r * 2)]))
    return np.asarray(canvas.reduce(2), np.float32) / np.float32(255)


def _clutter(rng: np.random.Generator, size: int) -> _Array:
    """Draw overlapping shapes of all kinds and colours."""
    canvas = Image.fromarray((_clouds(rng, size * 2) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    colours = np.concatenate([palette(rng, 4), palette(rng, 4)])
    for _ in range(int(rng.integers(8, 40))):
        centre, reach = rng.uniform(0, 2 * size, 2), rng.uniform(0.04, 0.3) * size
        fill = _rgb(colours[int(rng.integers(8))] * rng.uniform(0.6, 1))
        for points, is_filled in outline(rng, str(rng.choice(SHAPES))):
            turned = (points * rng.uniform(0.4, 1, 2)) @ rotation(rng.uniform(0, 2 * math.pi)).T
            draw.polygon(
                [(float(x), float(y)) for x, y in turned * reach + centre], fill=fill if is_filled else (0, 0, 0)
            )
    return np.asarray(canvas.reduce(2), np.float32) / np.float32(255)


def _rgb(colour: NDArray[Any]) -> tuple[int, int, int]:
    red, green, blue = (int(255 * min(max(float(part), 0.0), 1.0)) for part in colour)
    return red, green, blue


# Aperiodic kinds first: a periodic pattern shifted by its period appears to move the other way.
_IRREGULAR = (_clouds, _nature, _clutter, _cells, _nature, _spots, _clutter)
_REGULAR = (_stripes, _plain, _plaid, _bricks, _checks, _rings)
_SURFACES: tuple[Callable[[np.random.Generator, int], _Array], ...] = (*_IRREGULAR, *_REGULAR)
NUM_IRREGULAR, NUM_KINDS = len(_IRREGULAR), len(_SURFACES)


def surface(rng: np.random.Generator, size: int, kind: int | None = None) -> Float[np.ndarray, "s s 3"]:
    """Draw a procedural surface, float32 in [0, 1].

    Args:
        rng: Source of randomness.
        size: Side in pixels, at least 64.
        kind: Index of the kind, modulo their number; random when None.
    """
    if size < 64:
        raise InputError(f"size: expected at least 64 px, got {size}")
    kind = int(rng.integers(len(_SURFACES))) if kind is None else kind
    return np.clip(_SURFACES[kind % len(_SURFACES)](rng, size), 0, 1).astype(np.float32)


def recolour(
    rng: np.random.Generator, colours: Float[np.ndarray, "h w 3"], strength: float
) -> Float[np.ndarray, "h w 3"]:
    """Change hue, saturation and brightness at random: strength 1 is any change, 0.2 another light source."""
    turn = strength * rng.uniform(-math.pi, math.pi)
    cos, sin, third = math.cos(turn), math.sin(turn), math.sqrt(1 / 3)
    hue = cos * np.eye(3) + (1 - cos) / 3 + sin * third * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    saturation = 1 - strength * rng.uniform(-0.3, 0.8)
    mix = (saturation * hue + (1 - saturation) / 3) * (1 + strength * rng.uniform(-0.45, 0.35))
    shift = strength * rng.uniform(-0.15, 0.2)
    changed: _Array = np.clip(colours @ mix.T.astype(np.float32) + np.float32(shift), 0, 1)
    return changed
