"""Timing several ways of doing something so that they can be compared on a machine that does other things too."""

from __future__ import annotations

import time
from collections.abc import Callable

CALLS_IN_TURN = 5


def timed_in_turns(*calls: Callable[[], object], seconds: float) -> list[list[float]]:
    """Seconds of each call, a few of one and a few of the next in turns, so that what else goes on slows all alike.

    The first of each few is not counted: it finds the caches full of another's numbers.

    Args:
        calls: What is timed; each at the least `CALLS_IN_TURN` times.
        seconds: How long, for each of them.
    """
    times_s: list[list[float]] = [[] for _ in calls]
    until_s = time.perf_counter() + seconds * len(calls)
    while len(times_s[0]) < CALLS_IN_TURN or time.perf_counter() < until_s:
        for call, of_call in zip(calls, times_s, strict=True):
            call()
            for _ in range(CALLS_IN_TURN):
                begun_s = time.perf_counter()
                call()
                of_call.append(time.perf_counter() - begun_s)
    return times_s
