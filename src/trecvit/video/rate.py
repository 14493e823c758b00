"""Frame rates measured on time stamps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

# A step of the time stamps that is longer than both is a pause or a splice, not a frame.
_PAUSE_S, _PAUSE_STEPS = 5, 20
# More frames per second than any camera makes: the ticks of a clock.
_MAX_FPS = 1000
# By which factor a stated and a measured rate may differ.
_TOLERANCE = Fraction(5, 4)


def measured_rate(stamps: Sequence[int] | npt.NDArray[np.int64], time_base: Fraction) -> Fraction | None:
    """Mean frames per second over all steps from one time stamp to the next that are no pauses.

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
    kept = steps[steps <= pause]
    return Fraction(len(kept), int(kept.sum())) / time_base


def believable_rate(
    stated: Fraction | None,
    stamps: Sequence[int] | npt.NDArray[np.int64],
    time_base: Fraction,
) -> Fraction | None:
    """The stated frame rate where time stamps confirm it, else the measured one.

    Containers state rates that are missing (WebM of browsers), that of a clock (60,000 in raw DV) or of fields (50 for
    25). A stated rate that is confirmed is the better one: time stamps in milliseconds do not give 30000/1001.

    Args:
        stated: What the container states, or None.
        stamps: As for `measured_rate`.
        time_base: Likewise.

    Returns:
        The rate; what is stated if there are no time stamps to measure; None if there is neither.
    """
    measured = measured_rate(stamps, time_base)
    if measured is not None and measured > _MAX_FPS:
        measured = None
    if stated is None or not 0 < stated <= _MAX_FPS:
        return measured
    if measured is None or stated / _TOLERANCE <= measured <= stated * _TOLERANCE:
        return stated
    return measured
