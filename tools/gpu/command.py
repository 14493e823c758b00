"""`scripts/gpu`: correctness, speed and memory on a GPU, in at most nine minutes and without network.

Each part runs in a process of its own, which is ended when the part's time is over, and started again for the other
cases when one of them crashes. Results are in benchmarks/gpu/PART.json after every case; a rerun skips what is done for
the same machine and the same code. `--device cpu --small` runs every case in tiny sizes, to test the command itself.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tools.gpu.child import FATAL, MARK
from tools.gpu.results import ROOT, Results, code_hash

# Part -> its share of the time, the longest time of a case in seconds, and the files, beside its own, that decide
# whether its results still hold.
PARTS: dict[str, tuple[float, float, tuple[str, ...]]] = {
    "correctness": (3.0, 120.0, ("tests/*.py",)),
    "kernels": (1.5, 60.0, ()),
    "streaming": (2.5, 120.0, ()),
    "training": (2.0, 160.0, ()),
    "memory": (0.8, 40.0, ("paper/*.py",)),
}
MODULE = "tools.gpu.{}"  # of a part
START_S = 120.0  # limit of a process's start, before its first case
# Part -> case -> figure -> the least or most it should be.
GOALS: tuple[tuple[str, str, str, float, bool], ...] = (
    ("kernels", "forward bfloat16", "share_of_bandwidth", 0.70, True),
    ("kernels", "backward bfloat16", "share_of_bandwidth", 0.60, True),
    ("streaming", "tapnext_b 256 points graphs", "latency_ms_1", 5.0, False),
    ("streaming", "base graphs", "frames_per_s_64", 2000.0, True),
    ("training", "plain compiled", "share_of_peak", 0.45, True),
)


class Clock:
    """The time that is left.

    Args:
        minutes: In total.
    """

    def __init__(self, minutes: float) -> None:
        self.start_s = time.monotonic()
        self.end_s = self.start_s + 60.0 * minutes

    @property
    def left_s(self) -> float:
        """Seconds until the end."""
        return self.end_s - time.monotonic()

    def print(self, text: str) -> None:
        """Print a line behind the seconds since the start."""
        print(f"[{time.monotonic() - self.start_s:4.0f} s] {text}", flush=True)


class Child:
    """A process that runs cases of a part, see `tools.gpu.child`.

    Args:
        part: A name in `PARTS`.
        args: The device, and "full" or "small".
    """

    def __init__(self, part: str, *args: str) -> None:
        command = [sys.executable, "-m", "tools.gpu.child", MODULE.format(part), *args]
        self._process = subprocess.Popen(
            command, cwd=ROOT, text=True, errors="replace",
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,  # so that it can be ended with all processes of its own
        )  # fmt: skip
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.tail: list[str] = []  # the last lines of its output
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip())
        self._lines.put(None)

    def message(self, limit_s: float) -> dict[str, Any] | None:
        """Return the next message; None when the process has closed its output.

        Raises:
            TimeoutError: There was none within the limit.
        """
        until_s = time.monotonic() + limit_s
        while True:
            try:
                line = self._lines.get(timeout=max(until_s - time.monotonic(), 0.0))
            except queue.Empty:
                raise TimeoutError from None
            if line is None:
                return None
            if line.startswith(MARK):
                message: dict[str, Any] = json.loads(line.removeprefix(MARK))
                return message
            self.tail = [*self.tail[-4:], line]

    def start(self, cases: list[str]) -> None:
        """Send the names of the cases to run."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(cases) + "\n")
            self._process.stdin.flush()

    def end(self) -> int:
        """End the process and all that it started; return its exit code."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reader.join()
        self._process.stdout.close()
        return code

    def exit_code(self) -> int:
        """Wait for a process that has closed its output."""
        try:
            return self._process.wait(timeout=10)
        finally:
            self.end()


class Part:
    """One part: its cases and their results.

    Args:
        name: A name in `PARTS`.
        args: Of the command line.
        clock: The time that is left.
    """

    def __init__(self, name: str, args: argparse.Namespace, clock: Clock) -> None:
        self.name, self.clock = name, clock
        _, self.case_limit_s, files = PARTS[name]
        self.place = (args.device, "small" if args.small else "full")
        self._child, first = self._ask()
        self.about, self.names = first["about"], [case for case in first["names"] if args.only in case]
        keys = ("device", "torch", "triton", "small")
        hashed = code_hash(f"tools/gpu/{name}.py", *files)
        self.results = Results.read(args.to / f"{name}.json", " · ".join([*(str(self.about[k]) for k in keys), hashed]))

    def _ask(self) -> tuple[Child, dict[str, Any]]:
        """A process that waits for cases to run, and what it has printed."""
        child = Child(self.name, *self.place)
        try:
            message = child.message(min(START_S, max(self.clock.left_s, 1.0)))
        except TimeoutError:
            message = None
        if message is None:
            child.end()
            raise SystemExit(f"{self.name}: expected the device's name and the cases, got {' | '.join(child.tail)}")
        return child, message

    def run(self, until_s: float) -> None:
        """Run what is left until this time (of `time.monotonic`)."""
        left = self.results.left(self.names)
        done = len(self.names) - len(left)
        self.clock.print(
            f"{self.name}: {done} of {len(self.names)} cases done, {max(until_s - time.monotonic(), 0):.0f} s"
        )
        try:
            while left and time.monotonic() < until_s:
                left = self._run_some(left, until_s)
                if left and time.monotonic() < until_s:
                    self._child, _ = self._ask()
        finally:
            self._child.end()
        if left:
            self.clock.print(f"{self.name}: no time for {', '.join(left)}; run the command again")

    def _run_some(self, left: list[str], until_s: float) -> list[str]:
        """Run cases in one process until one of them ends it; return those still to be run."""
        child = self._child
        child.start(left)
        running, start_s = "", time.monotonic()
        try:
            while left:
                part_left_s = until_s - time.monotonic()
                try:
                    message = child.message(min(self.case_limit_s, max(part_left_s, 0.0)))
                except TimeoutError:
                    if part_left_s < self.case_limit_s:  # the part's time is over, which is not the case's fault
                        return left
                    self._note(left[0], {"failed": f"stopped after {self.case_limit_s:.0f} s"}, self.case_limit_s)
                    return left[1:]
                if message is None:
                    code = child.exit_code()
                    if code == FATAL and not running:
                        return left
                    reason = f"the process ended with {code}: {' | '.join(child.tail)}"
                    self._note(left[0], {"failed": reason[:600]}, time.monotonic() - start_s)
                    return left[1:]
                running, start_s = message["name"], time.monotonic()
                if "outcome" in message:
                    self._note(running, message["outcome"], message["seconds"])
                    running, left = "", left[1:]
            return left
        finally:
            child.end()

    def _note(self, name: str, outcome: dict[str, Any], seconds: float) -> None:
        self.results.add(name, outcome, seconds, self.about)
        text = f"FAILED: {outcome['failed']}" if "failed" in outcome else outcome["result"].get("line", "done")
        self.clock.print(f"  {name}: {text} ({seconds:.1f} s)")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="scripts/gpu", description="Test and measure the package on a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a test of the command")
    parser.add_argument("--small", action="store_true", help="tiny sizes: a test of the command, no measurement")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all parts; 9 by default")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="only these parts; may be repeated")
    parser.add_argument("--only", default="", help="only cases whose name has this in it")
    parser.add_argument("--to", type=Path, default=Path("benchmarks/gpu"), help="folder of the result files")
    parser.add_argument("--tapnext", type=Path, help="clone of github.com/google-deepmind/tapnet, to be timed too")
    args = parser.parse_args()
    args.to = args.to.resolve()
    if args.tapnext:
        os.environ["TAPNET_CLONE"] = str(args.tapnext.resolve())
    clock = Clock(args.minutes)
    shares = {name: PARTS[name][0] for name in PARTS if not args.part or name in args.part}
    parts: list[Part] = []
    for name in list(shares):
        part = Part(name, args, clock)
        if not parts:
            clock.print(", ".join(f"{key} {value}" for key, value in part.about.items() if value is not None))
        parts.append(part)
        # Time that a part leaves over goes to those after it.
        part.run(time.monotonic() + clock.left_s * shares[name] / sum(shares.values()))
        del shares[name]
    _print_goals(parts, clock)
    failed = sum(len(part.results.failed(part.names)) for part in parts)
    missing = sum(len(part.results.left(part.names)) for part in parts) - failed
    clock.print(f"{failed} cases failed, {missing} not run; results are in {args.to}")
    sys.exit(1 if failed else 0)


def _print_goals(parts: list[Part], clock: Clock) -> None:
    for name, case, figure, goal, is_least in GOALS:
        for part in parts:
            value = part.results.current.get(case, {}).get("result", {}).get(figure)
            if part.name == name and value is not None and not part.about["small"]:
                reached = "reached" if (value >= goal) == is_least else "missed"
                limit = f"{'≥' if is_least else '≤'} {goal:g}"
                clock.print(f"goal {reached}: {name}, {case}: {figure} {value:.3g}, expected {limit}")
