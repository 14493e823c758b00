"""Timing of several calls in turns, comparable on a busy machine."""

from __future__ import annotations

import time
from collections.abc import Callable

CALLS_IN_TURN = 5


def timed_in_turns(*calls: Callable[[], object], seconds: float) -> list[list[float]]:
    """Time calls in turns, a few of each at a time, so that other load slows all alike; return seconds of each.

    The first of each few is not counted, as its data are not in the caches.

    Args:
        calls: Each is timed at least `CALLS_IN_TURN` times.
        seconds: Duration per call to be timed.
    """
    times_s: list[list[float]] = [[] for _ in calls]
    until_s = time.perf_counter() + seconds * len(calls)
    while len(times_s[0]) < CALLS_IN_TURN or time.perf_counter() < until_s:
        for call, call_times_s in zip(calls, times_s, strict=True):
            call()
            for _ in range(CALLS_IN_TURN):
                start_s = time.perf_counter()
                call()
                call_times_s.append(time.perf_counter() - start_s)
    return times_s
