"""Frame rates measured on time stamps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

# A step longer than both is a pause or a splice, not a frame.
_PAUSE_S, _PAUSE_STEPS = 5, 20
# A higher rate is not a camera's but a clock's.
_MAX_FPS = 1000
# Largest factor between a stated and a measured rate.
_TOLERANCE = Fraction(5, 4)


def measured_rate(stamps: Sequence[int] | npt.NDArray[np.int64], time_base: Fraction) -> Fraction | None:
    """Measure the mean frames per second over all steps between time stamps except pauses.

    Args:
        stamps: In ticks, in any order; equal ones count once.
        time_base: Seconds per tick.

    Returns:
        The rate, or None for fewer than two different time stamps.
    """
    steps = np.diff(np.unique(np.asarray(stamps, dtype=np.int64)))
    if not len(steps):
        return None
    # Rounded up to whole ticks, as time stamps are.
    pause = math.ceil(max(_PAUSE_S / float(time_base), _PAUSE_STEPS * float(np.median(steps))))
    frame_steps = steps[steps <= pause]
    return Fraction(len(frame_steps), int(frame_steps.sum())) / time_base


def believable_rate(
    stated: Fraction | None,
    stamps: Sequence[int] | npt.NDArray[np.int64],
    time_base: Fraction,
) -> Fraction | None:
    """Return the stated frame rate where time stamps confirm it, else the measured one.

    Stated rates may be missing (WebM of browsers), a clock's (60,000 in raw DV) or the field rate (50 for 25). A
    confirmed stated rate is better than a measured one: time stamps in milliseconds do not give 30000/1001.

    Args:
        stated: The rate stated by the container, or None.
        stamps: As for `measured_rate`.
        time_base: As for `measured_rate`.

    Returns:
        The rate; the stated one without time stamps; None without either.
    """
    measured = measured_rate(stamps, time_base)
    if measured is not None and measured > _MAX_FPS:
        measured = None
    if stated is None or not 0 < stated <= _MAX_FPS:
        return measured
    if measured is None or stated / _TOLERANCE <= measured <= stated * _TOLERANCE:
        return stated
    return measured
