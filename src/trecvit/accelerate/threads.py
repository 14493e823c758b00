"""The number of CPU threads, chosen while a model runs.

OpenMP's threads wait for one another at every operation, spinning. While another program uses one of their cores, all
of them wait for the thread that cannot run: on a busy machine two threads can be ten times slower than one. So the
number of threads is chosen again whenever the load seems to change: with a short probe, then by timing calls.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from functools import update_wrapper
from typing import Any

import torch

_CALLS_COMPARED = 3
# A number of threads must be this much faster than the one in use to replace it.
_GAIN = 0.9
# Calls that take this many times as long as usual are a reason to try fewer threads; a single one that takes far longer
# is a reason to probe at once, as the next would take as long.
_SLOWDOWN, _STALL = 1.4, 4.0
# A thread that had a core for less of the time than this shares it: more threads would wait for one another.
_OWN_CORE = 0.95
# Seconds until the next trial after a trial without gain: twice as long each time, and four times after a trial of
# fewer threads. Such a trial costs a slow call, and calls that became slow start one at once, without a pause.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
# The probe's operations take half a millisecond with one thread, and many times as long where threads have to wait for
# one another.
_PROBE_CALLS, _PROBE_NUMBERS = 24, 1 << 18


def probe_s(count: int) -> float:
    """Time some parallel operations with `count` threads, in seconds."""
    before = torch.get_num_threads()
    numbers = torch.ones(_PROBE_NUMBERS)
    torch.set_num_threads(count)
    try:
        numbers.mul_(1.0)  # starts the threads
        start_s = time.perf_counter()
        for _ in range(_PROBE_CALLS):
            numbers.mul_(1.0)
        return time.perf_counter() - start_s
    finally:
        torch.set_num_threads(before)


# Held during a call whose number of threads is chosen: the whole process has only one such number.
_choosing = threading.Lock()


class ThreadChoice:
    """The number of threads for calls of one kind, from how long they took.

    Args:
        most: The largest number allowed.
        probe: Times a parallel operation with a number of threads, in seconds.
        now: A clock in seconds.
    """

    def __init__(
        self, most: int, probe: Callable[[int], float] = probe_s, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.most = most
        self._probe, self._now = probe, now
        self.count = self._probed(most)
        self._recent: deque[tuple[float, float]] = deque(maxlen=_CALLS_COMPARED)
        self._usual_s = float("inf")
        self._trial: int | None = None
        self._trial_s: list[float] = []
        self._pause_s = _FIRST_PAUSE_S
        self._next_trial_s = self._now() + _FIRST_PAUSE_S

    def next_count(self) -> int:
        """The number of threads for the next call."""
        return self.count if self._trial is None else self._trial

    def record(self, seconds: float, core_share: float) -> None:
        """Record a call that was made with `next_count` threads.

        Args:
            seconds: Its duration.
            core_share: The share of that time for which the calling thread had a core.
        """
        if self._trial is not None:
            self._record_trial(seconds)
            return
        self._recent.append((seconds, core_share))
        if len(self._recent) < _CALLS_COMPARED:
            return
        typical_s, _ = sorted(self._recent)[_CALLS_COMPARED // 2]
        if seconds > _STALL * self._usual_s and (fewer := self._probed(self.count)) < self.count:
            self._switch(fewer)
            return
        if typical_s > _SLOWDOWN * self._usual_s:
            # This becomes the usual time, else every further call would be a reason for a trial.
            self._usual_s, self._pause_s = typical_s, _FIRST_PAUSE_S
            self._try(max(self.count // 2, 1))
        elif self._now() >= self._next_trial_s:
            more = min(2 * self.count, self.most)
            # A thread that waits for others has a core too, so the share means something with one thread only.
            shares_core = self.count == 1 and min(share for _, share in self._recent) < _OWN_CORE
            if shares_core or (more > self.count and self._probed(more) < more):
                self._end_trial()
            else:
                self._try(more if more > self.count else max(self.count // 2, 1))
        self._usual_s = min(self._usual_s, typical_s)

    def _probed(self, count: int) -> int:
        """The largest number of threads, from `count` down by halves, that is faster than half as many."""
        seconds = self._probe(count) if count > 1 else 0.0
        while count > 1:
            half_s = self._probe(count // 2)
            if seconds < _GAIN * half_s:
                break
            count, seconds = count // 2, half_s
        return count

    def _try(self, count: int) -> None:
        if count == self.count:
            self._end_trial()
        else:
            self._trial = count

    def _record_trial(self, seconds: float) -> None:
        assert self._trial is not None, "called during a trial"
        self._trial_s.append(seconds)
        before_s = min(recent_s for recent_s, _ in self._recent)
        # The first call with other threads has cold caches; it ends the trial only where it is far slower.
        if len(self._trial_s) < 2 and seconds < 1.5 * before_s:
            return
        if min(self._trial_s) < _GAIN * before_s:
            self._switch(self._trial)
        else:
            self._end_trial()

    def _switch(self, count: int) -> None:
        self.count, self._usual_s, self._pause_s = count, float("inf"), _FIRST_PAUSE_S / 2
        self._recent.clear()
        self._end_trial()

    def _end_trial(self) -> None:
        longer = 4 if self._trial is not None and self._trial < self.count else 2
        self._trial, self._trial_s = None, []
        self._pause_s = min(longer * self._pause_s, _LONGEST_PAUSE_S)
        self._next_trial_s = self._now() + self._pause_s


class ChosenThreads:
    """A call that runs with as many threads as are fastest at present, at most `torch.get_num_threads()`.

    Args:
        call: Its first argument is a tensor; calls with tensors of the same shape are compared with one another.
    """

    def __init__(self, call: Callable[..., Any]) -> None:
        update_wrapper(self, call)
        self._call = call
        self._most = torch.get_num_threads()
        self._choices: dict[tuple[int, ...], ThreadChoice] = {}

    def __call__(self, frames: torch.Tensor, *args: Any) -> Any:
        """Run the call."""
        # Another Python thread, during a call, would read the number chosen for it instead of the one allowed.
        is_main = threading.current_thread() is threading.main_thread()
        most = torch.get_num_threads() if is_main else self._most
        if most == 1 or not _choosing.acquire(blocking=False):
            return self._call(frames, *args)
        try:
            return self._call_with(most, frames, *args)
        finally:
            _choosing.release()

    def _call_with(self, most: int, frames: torch.Tensor, *args: Any) -> Any:
        choice = self._choices.get(frames.shape)
        if choice is None or choice.most != most:
            choice = self._choices[frames.shape] = ThreadChoice(most)
        torch.set_num_threads(choice.next_count())
        start_s, start_cpu_s = time.perf_counter(), time.thread_time()
        try:
            result = self._call(frames, *args)
        finally:
            torch.set_num_threads(most)
        seconds = time.perf_counter() - start_s
        choice.record(seconds, (time.thread_time() - start_cpu_s) / max(seconds, 1e-9))
        return result
