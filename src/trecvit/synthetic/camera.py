"""Camera motion: hand shake, and moves of the whole picture that show a class."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trecvit.synthetic.stage import Stage


def similarity(stage: Stage, shift: NDArray[Any], angle: NDArray[Any], zoom: NDArray[Any], about: Any) -> NDArray[Any]:
    """Build affine maps `[T, 2, 3]` that rotate and zoom about a point and then shift.

    Args:
        stage: For the number of frames.
        shift: `[T, 2]` in pixels.
        angle: `[T]` in radians, clockwise.
        zoom: `[T]`, a factor.
        about: The fixed point (x, y).
    """
    cos, sin = np.cos(angle) * zoom, np.sin(angle) * zoom
    maps = np.empty((stage.frames, 2, 3))
    maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 0], maps[:, 1, 1] = cos, -sin, sin, cos
    maps[:, :, 2] = about + shift - maps[:, :, :2] @ about
    return maps


def hand(stage: Stage) -> NDArray[Any]:
    """Shake the camera as a hand does, sometimes with a slow drift."""
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
    return similarity(stage, shift, angle, zoom, stage.centre)


def _pan(stage: Stage, heading: float) -> NDArray[Any]:
    heading += stage.between(-1.0, 1.0) * math.radians(15)
    travel = stage.between(0.25, 0.7) * stage.unit
    ahead = np.array([math.cos(heading), math.sin(heading)])
    shift = (stage.progress() - 0.5)[:, None] * travel * ahead
    still = np.zeros(stage.frames)
    return similarity(stage, shift, stage.wobble(0.04), still + 1 + stage.wobble(0.03), stage.centre)


def _zoom(stage: Stage) -> NDArray[Any]:
    zoom = stage.between(1.4, 2.3) ** (stage.progress() - 0.5)
    about = stage.centre + stage.rng.uniform(-0.2, 0.2, 2) * stage.size
    shift = np.stack([stage.wobble(0.02), stage.wobble(0.02)], axis=1) * stage.unit
    return similarity(stage, shift, stage.wobble(0.04), zoom, about)


def _roll(stage: Stage) -> NDArray[Any]:
    turn = stage.turn(40.0, 140.0)
    angle = turn - turn[-1] / 2
    about = stage.centre + stage.rng.uniform(-0.2, 0.2, 2) * stage.size
    shift = np.stack([stage.wobble(0.02), stage.wobble(0.02)], axis=1) * stage.unit
    return similarity(stage, shift, angle, 1 + stage.wobble(0.03), about)


CAMERA_MOVES: tuple[Callable[[Stage], NDArray[Any]], ...] = (
    lambda stage: _pan(stage, math.pi),
    lambda stage: _pan(stage, -math.pi / 2),
    _zoom,
    _roll,
)
