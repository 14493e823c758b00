"""The number of threads follows the load: on simulated machines here, on a real one in `trecvit bench speed --busy`."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from trecvit.accelerate.threads import ChosenThreads, ThreadChoice, probe_s
from trecvit.bench.speed import SharedSpeed, shared_speeds


class Machine:
    """A simulated machine with `cores`, `busy` of them used by others; a call takes `work_s` on one core."""

    def __init__(self, cores: int, *, work_s: float = 0.1, serial_share: float = 0.1) -> None:
        self.cores, self.work_s, self.serial_share, self.busy = cores, work_s, serial_share, 0
        self.clock_s = 0.0
        self.calls: list[int] = []

    def speedup(self, threads: int) -> float:
        if threads == 1:
            return min(1.0, self.cores / (1 + self.busy))
        ideal = 1.0 / (self.serial_share + (1.0 - self.serial_share) / threads)
        # Each barrier waits for the thread that shares its core with another program.
        return ideal if threads + self.busy <= self.cores else ideal / 10

    def seconds(self, threads: int, work_s: float) -> float:
        return work_s / self.speedup(threads)

    def probe(self, threads: int) -> float:
        spent_s = self.seconds(threads, 0.0005)
        self.clock_s += 2 * spent_s
        return spent_s

    def run(self, choice: ThreadChoice, for_s: float) -> float:
        """Calls per second."""
        start_s, calls = self.clock_s, 0
        while self.clock_s - start_s < for_s:
            threads = choice.next_count()
            spent_s = self.seconds(threads, self.work_s)
            self.clock_s += spent_s
            share = min(1.0, self.cores / (1 + self.busy)) if threads == 1 else 1.0
            choice.record(spent_s, share)
            calls += 1
        return calls / (self.clock_s - start_s)

    def best(self) -> float:
        return max(self.speedup(threads) for threads in range(1, self.cores + 1)) / self.work_s


@pytest.mark.parametrize("cores", [2, 4, 16])
@pytest.mark.parametrize("work_s", [0.002, 0.1])
def test_an_idle_machine_gives_all_its_threads(cores: int, work_s: float) -> None:
    machine = Machine(cores, work_s=work_s)
    choice = ThreadChoice(cores, machine.probe, lambda: machine.clock_s)
    assert choice.count == cores
    assert machine.run(choice, 3) > 0.96 * machine.best()
    assert machine.run(choice, 27) > 0.985 * machine.best()
    assert choice.count == cores


@pytest.mark.parametrize("busy", [1, 2, 5])
def test_a_busy_machine_gets_one_thread(busy: int) -> None:
    machine = Machine(2)
    machine.busy = busy
    choice = ThreadChoice(2, machine.probe, lambda: machine.clock_s)
    assert machine.run(choice, 30) > 0.9 * machine.best()
    assert choice.count == 1


def test_threads_follow_other_load() -> None:
    machine = Machine(2)
    choice = ThreadChoice(2, machine.probe, lambda: machine.clock_s)
    for _ in range(3):
        machine.busy = 0
        machine.run(choice, 70)
        assert choice.count == 2
        machine.busy = 2
        machine.run(choice, 10)
        assert choice.count == 1
        assert machine.run(choice, 60) > 0.9 * machine.best()


def test_one_stalled_call_is_enough_to_switch() -> None:
    """Frames of 40 ms that take 3 s with two threads as soon as others are busy."""
    machine = Machine(2, work_s=0.07)
    machine.speedup = lambda threads: (0.023 if machine.busy else 1.75) if threads == 2 else 0.9  # type: ignore[method-assign]
    choice = ThreadChoice(2, machine.probe, lambda: machine.clock_s)
    machine.run(choice, 10)
    assert choice.count == 2
    machine.busy = 2
    machine.run(choice, 4)
    assert choice.count == 1
    assert machine.run(choice, 30) > 0.95 * 0.9 / 0.07


def test_threads_fill_the_free_cores() -> None:
    machine = Machine(16)
    machine.busy = 8
    choice = ThreadChoice(16, machine.probe, lambda: machine.clock_s)
    assert machine.run(choice, 30) > 0.9 * machine.best()
    assert choice.count == 8


def test_calls_that_slow_down_with_threads_get_one() -> None:
    class Tiny(Machine):
        def seconds(self, threads: int, work_s: float) -> float:
            return work_s * threads if work_s == self.work_s else super().seconds(threads, work_s)

    machine = Tiny(2, work_s=0.001)
    choice = ThreadChoice(2, machine.probe, lambda: machine.clock_s)
    machine.run(choice, 10)
    assert choice.count == 1


def test_a_call_restores_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    seen = []

    def call(frames: torch.Tensor, fail: bool) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        if fail:
            raise ValueError
        return 2 * frames

    chosen = ChosenThreads(call)
    try:
        torch.set_num_threads(2)
        assert chosen(torch.ones(3), False).tolist() == [2, 2, 2]
        with pytest.raises(ValueError):
            chosen(torch.ones(3), True)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        chosen(torch.ones(3), False)
        assert seen[-1] == 1
        assert set(seen) <= {1, 2}
        assert probe_s(2) > 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_other_python_threads_keep_the_allowed_number() -> None:
    before = torch.get_num_threads()
    inside, ended = threading.Event(), threading.Event()

    def call(frames: torch.Tensor, waits: bool) -> int:
        if waits:
            inside.set()
            ended.wait(10)
        return torch.get_num_threads()

    try:
        torch.set_num_threads(2)
        chosen = ChosenThreads(call)
        chosen._choices[torch.Size([3])] = ThreadChoice(2, lambda count: float(count), time.perf_counter)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(chosen, torch.ones(3), True)
            inside.wait(10)
            second = pool.submit(chosen, torch.ones(3), False)  # unchanged: the first call has the choice
            second.result()
            ended.set()
            assert first.result() == 1
            assert pool.submit(lambda: (chosen(torch.ones(4), False), torch.get_num_threads())).result()[1] == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_bench_measures_beside_busy_programs() -> None:
    [speed] = shared_speeds(["motions"], dtypes=["float32"], modes=["eager"], busy=1, seconds=0.1)
    assert isinstance(speed, SharedSpeed)
    assert min(speed.idle_fps, speed.idle_fixed_fps, speed.busy_fps, speed.busy_fixed_fps) > 0
    assert speed.fair_share == min(1.0, (os.cpu_count() or 1) / (speed.threads + 1))
    [reason] = shared_speeds(["motions"], dtypes=["int3"], modes=["eager"], busy=1, seconds=0.1)
    assert "expected one of float32" in reason
