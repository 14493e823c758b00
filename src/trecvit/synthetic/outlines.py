"""Outlines of objects: polygons that fill the square from -1 to 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPES = ("ellipse", "box", "round_box", "polygon", "shard", "star", "blob", "ell", "arrow", "letter", "ring", "cross")
# Shapes without rotational symmetry.
TURNABLE = ("shard", "ell", "arrow", "letter", "blob", "drop")

_LETTERS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0, 0), (5, 0), (5, 1), (1.2, 1), (1.2, 2), (4, 2), (4, 3), (1.2, 3), (1.2, 5), (0, 5)),  # F
    ((0, 0), (5, 0), (5, 1.3), (3.2, 1.3), (3.2, 5), (1.8, 5), (1.8, 1.3), (0, 1.3)),  # T
    ((0, 0), (4, 0), (4, 3), (1.3, 3), (1.3, 5), (0, 5)),  # P with a filled bowl
    ((0, 0), (4, 0), (4, 1), (1.2, 1), (1.2, 2), (4, 2), (4, 3), (1.2, 3), (1.2, 4), (4, 4), (4, 5), (0, 5)),  # E
    ((0, 0), (1.3, 0), (1.3, 2), (2.7, 2), (2.7, 0), (4, 0), (4, 5), (2.7, 5), (2.7, 3.2), (0, 3.2)),  # 4
    ((0, 0), (1.4, 0), (2.5, 3), (3.6, 0), (5, 0), (3.2, 5), (1.8, 5)),  # V
    ((0, 1.5), (1, 1.5), (1, 0), (2.2, 0), (2.2, 3.8), (4, 3.8), (4, 5), (1, 5), (1, 2.6), (0, 2.6)),  # t
    ((0, 0), (5, 0), (5, 5), (3.8, 5), (3.8, 1.2), (1.2, 1.2), (1.2, 3), (0, 3)),  # hook
)
_ELL = ((0.0, 0.0), (0.42, 0.0), (0.42, 0.6), (1.0, 0.6), (1.0, 1.0), (0.0, 1.0))
_ARROW = ((0.0, 0.34), (0.55, 0.34), (0.55, 0.0), (1.0, 0.5), (0.55, 1.0), (0.55, 0.66), (0.0, 0.66))
_CROSS = (
    *((0.35, 0.0), (0.65, 0.0), (0.65, 0.35), (1.0, 0.35), (1.0, 0.65), (0.65, 0.65)),
    *((0.65, 1.0), (0.35, 1.0), (0.35, 0.65), (0.0, 0.65), (0.0, 0.35), (0.35, 0.35)),
)


def rotation(angle: float) -> NDArray[np.float64]:
    """Build the matrix `[2, 2]` that rotates points clockwise on screen by an angle in radians."""
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _round(radius: NDArray[Any] | float, points: int = 40) -> NDArray[np.float64]:
    angle = np.arange(points) * (2 * math.pi / points)
    circle: NDArray[np.float64] = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.reshape(radius, (-1, 1))
    return circle


def _star(rng: np.random.Generator, corners: int, depth: float) -> NDArray[np.float64]:
    radius = np.tile([1.0, depth], corners)
    return _round(radius, 2 * corners) @ rotation(rng.uniform(0, 2 * math.pi)).T


def _blob(rng: np.random.Generator) -> NDArray[np.float64]:
    angle = np.arange(48) * (2 * math.pi / 48)
    radius = np.ones(48)
    for wave in range(1, 5):
        radius += rng.uniform(0.12, 0.36) / wave**0.7 * np.cos(wave * angle + rng.uniform(0, 2 * math.pi))
    return _round(np.maximum(radius, 0.35), 48)


def _shard(rng: np.random.Generator) -> NDArray[np.float64]:
    corners = int(rng.integers(3, 7))
    angle = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * math.pi / corners)
    radius = rng.uniform(0.45, 1, corners)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]


def _round_box(rng: np.random.Generator) -> NDArray[np.float64]:
    power = rng.uniform(0.25, 0.7)
    circle = _round(1.0, 48)
    rounded: NDArray[np.float64] = np.sign(circle) * np.abs(circle) ** power
    return rounded


def outline(rng: np.random.Generator, kind: str) -> list[tuple[NDArray[np.float64], bool]]:
    """Draw the polygons of a shape that fills the square from -1 to 1.

    Args:
        rng: Source of randomness.
        kind: One of `SHAPES` or `TURNABLE`.

    Returns:
        Polygons `[points, 2]` as (x, y) in painting order, each with a flag: filled (True) or cut out (False).
    """
    makers: dict[str, Callable[[], NDArray[np.float64]]] = {
        "ellipse": lambda: _round(1.0),
        "ring": lambda: _round(1.0),
        "box": lambda: np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]),
        "round_box": lambda: _round_box(rng),
        "polygon": lambda: _round(1.0, int(rng.integers(3, 9))) @ rotation(rng.uniform(0, 2 * math.pi)).T,
        "shard": lambda: _shard(rng),
        "star": lambda: _star(rng, int(rng.integers(4, 9)), rng.uniform(0.4, 0.7)),
        "blob": lambda: _blob(rng),
        "ell": lambda: np.array(_ELL),
        "arrow": lambda: np.array(_ARROW),
        "cross": lambda: np.array(_CROSS),
        "letter": lambda: np.array(_LETTERS[int(rng.integers(len(_LETTERS)))]),
        "drop": lambda: np.concatenate([_round(1.0, 40)[5:36], [[1.9, 0.0]]]),
    }
    points = makers[kind]()
    low, high = points.min(axis=0), points.max(axis=0)
    polygons = [((points - low) / (high - low) * 2 - 1, True)]
    if kind == "ring":
        polygons.append((_round(rng.uniform(0.35, 0.65)), False))
    return polygons
