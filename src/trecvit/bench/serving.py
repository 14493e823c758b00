"""Throughput and latency of `trecvit serve`, beside the model's own step and beside one process per session."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trecvit.accelerate.optimize import optimize
from trecvit.errors import ConfigError, InputError, MissingPackageError
from trecvit.files import writing
from trecvit.model.trecvit import TRecViT
from trecvit.weights.load import load_as

_WARM_UP_S = 1.0
_START_S = 600.0  # for a server or process to start, on a busy machine


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingSpeed:
    """A server with some number of sessions at full load: each has as many frames on their way as its credit permits.

    Attributes:
        sessions: Number of sessions.
        frames_per_s: Answers of all sessions.
        p50_ms: Median latency from sending a frame to its answer.
        p95_ms: 95th percentile.
        p99_ms: 99th percentile.
        mean_batch: Streams per step, averaged over frames.
        step_ms: Median time of a step as the server measures it.
        own_frames_per_s: Of `model.step` alone with as many streams in one batch, in one process.
        apart_frames_per_s: Of one process per session, each with a stream of its own and no sockets, all together.
    """

    sessions: int
    frames_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    mean_batch: float
    step_ms: float
    own_frames_per_s: float
    apart_frames_per_s: float

    @property
    def own_step_ms(self) -> float:
        """Time of `model.step` alone with as many streams in one batch."""
        return self.sessions / self.own_frames_per_s * 1000

    @property
    def overhead(self) -> float:
        """Time per frame beyond that of the model's own step, as a share of it."""
        return self.own_frames_per_s / self.frames_per_s - 1

    @property
    def gain(self) -> float:
        """Frames per second relative to one process per session."""
        return self.frames_per_s / self.apart_frames_per_s

    def to_dict(self) -> dict[str, float]:
        """Return all values, those that follow from others too."""
        derived = {"own_step_ms": self.own_step_ms, "overhead": self.overhead, "gain": self.gain}
        return {**asdict(self), **derived}


def serving_speeds(
    model: str, sessions: Sequence[int], *, seconds: float, report: Callable[[int], None] = lambda done: None
) -> list[ServingSpeed]:
    """Measure a classifier with each number of sessions; server and processes are started by this one.

    Args:
        model: Name or folder.
        sessions: Numbers of sessions, 1 to 64.
        seconds: Duration of each of the three measurements.
        report: Called with the number of measurements done, three for each number of sessions.

    Raises:
        InputError: Another number of sessions.
        MissingPackageError: The extra `serve` is missing.
        ConfigError: The server did not start.
    """
    if not sessions or not all(1 <= count <= 64 for count in sessions):
        raise InputError(f"sessions: expected numbers from 1 to 64, got {list(sessions)}")
    results = []
    for number, count in enumerate(sessions):
        own = _own_speed(model, count, seconds)
        report(3 * number + 1)
        with _server(model) as url:
            served = asyncio.run(_load_server(url, Path(model).name, count, seconds))
        report(3 * number + 2)
        apart = _speed_apart(model, count, seconds)
        report(3 * number + 3)
        results.append(ServingSpeed(sessions=count, own_frames_per_s=own, apart_frames_per_s=apart, **served))
    return results


def draw_serving(speeds: Sequence[ServingSpeed], path: Path) -> None:
    """Draw throughput and latency over the number of sessions.

    Args:
        speeds: In any order.
        path: The .png or .svg file to write.

    Raises:
        MissingPackageError: matplotlib is not installed.
        StorageError: The file cannot be written.
    """
    try:
        import matplotlib.figure
    except ImportError as error:
        raise MissingPackageError("matplotlib", needed_for="trecvit bench serve --plot", extra="train") from error

    speeds = sorted(speeds, key=lambda speed: speed.sessions)
    sessions = [speed.sessions for speed in speeds]
    figure = matplotlib.figure.Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(sessions, [speed.own_frames_per_s for speed in speeds], "o--", label="model.step alone, one batch")
    left.plot(sessions, [speed.frames_per_s for speed in speeds], "o-", label="trecvit serve")
    left.plot(sessions, [speed.apart_frames_per_s for speed in speeds], "o-", label="one process per session")
    left.set(ylabel="frames/s of all sessions")
    for name in ("p99_ms", "p95_ms", "p50_ms"):
        label = f"{name.removesuffix('_ms')}, frame to answer"
        right.plot(sessions, [getattr(speed, name) for speed in speeds], "o-", label=label)
    right.plot(sessions, [speed.own_step_ms for speed in speeds], "o--", label="model.step alone, one batch")
    right.set(ylabel="ms")
    for axes in (left, right):
        axes.set(xlabel="sessions", ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    with writing(path):
        figure.savefig(path, dpi=100)


def _frames(model: TRecViT, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 3, *model.preprocessing.image_size), dtype=torch.uint8)


@torch.inference_mode()
def _own_speed(model: str, count: int, seconds: float) -> float:
    network = optimize(load_as(TRecViT, model))
    frames, state = _frames(network, count), network.init_state(count)
    steps, start_s = 0, time.perf_counter()
    warm_s = start_s + _WARM_UP_S
    while (now_s := time.perf_counter()) < warm_s + seconds:
        if now_s < warm_s:
            steps, start_s = 0, now_s
        _, state = network.step(frames, state)
        steps += 1
    return steps * count / (time.perf_counter() - start_s)


@contextmanager
def _server(model: str) -> Iterator[str]:
    command = [sys.executable, "-m", "trecvit", "serve", "--port", "0", "--model", model]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None, "a pipe"
        url = process.stdout.readline().strip()
        if not url:
            _, error = process.communicate()
            raise ConfigError(f"expected {' '.join(command[2:])} to start, got: {error.strip()}")
        yield url
    finally:
        process.terminate()
        process.communicate()


async def _load_server(url: str, model: str, count: int, seconds: float) -> dict[str, Any]:
    """Send frames in `count` sessions from this process; return the server's part of a `ServingSpeed`."""
    try:
        from websockets.asyncio.client import connect
    except ImportError as exc:
        raise MissingPackageError("websockets", needed_for="trecvit bench serve", extra="serve") from exc
    from trecvit.serve.protocol import PROTOCOL, RGB8, Ack, FrameHeader, Hello, Ready, Result, parse_server, to_text

    results: list[tuple[float, float, Result]] = []  # time of arrival, latency
    end_s = time.perf_counter() + _WARM_UP_S + seconds

    async def session(number: int) -> None:
        address = url.rstrip("/").replace("http", "ws", 1) + "/v1/stream"
        async with connect(address, subprotocols=[PROTOCOL], compression=None, proxy=None) as socket:  # type: ignore[list-item]
            await socket.send(to_text(Hello(model, "all")))
            ready = parse_server(str(await socket.recv()))
            assert isinstance(ready, Ready), ready
            height, width = ready.image_size
            pixels = np.random.default_rng(number).integers(0, 256, height * width * 3, np.uint8).tobytes()
            sent_s: dict[int, float] = {}
            frame = 0
            while time.perf_counter() < end_s or sent_s:
                while len(sent_s) < ready.credit and time.perf_counter() < end_s:
                    sent_s[frame] = time.perf_counter()
                    await socket.send(FrameHeader(RGB8, frame, 0, width, height).pack() + pixels)
                    frame += 1
                result = parse_server(str(await socket.recv()))
                assert isinstance(result, Result), result
                now_s = time.perf_counter()
                results.append((now_s, now_s - sent_s.pop(result.frame), result))
                await socket.send(to_text(Ack(result.frame)))

    await asyncio.gather(*(session(number) for number in range(count)))
    counted = [item for item in results if end_s - seconds <= item[0] < end_s]
    latencies_ms = np.array([latency_s for _, latency_s, _ in counted]) * 1000
    p50, p95, p99 = np.percentile(latencies_ms, [50, 95, 99])
    return {
        "frames_per_s": len(counted) / seconds,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "p99_ms": float(p99),
        "mean_batch": float(np.mean([result.batch for _, _, result in counted])),
        "step_ms": float(np.median([result.step_ms for _, _, result in counted])),
    }


def _speed_apart(model: str, count: int, seconds: float) -> float:
    """Frames per second of `count` processes that each step their own stream in one thread, at the same time."""
    context = multiprocessing.get_context("forkserver")
    assert isinstance(context, ForkServerContext), "of this method"
    context.set_forkserver_preload(["trecvit.bench.serving"])
    barrier, counts = context.Barrier(count), context.Queue()
    processes = [
        context.Process(target=_step_alone, args=(model, seconds, barrier, counts), daemon=True) for _ in range(count)
    ]
    for process in processes:
        process.start()
    frames: list[int] = [counts.get(timeout=_START_S) for _ in processes]
    for process in processes:
        process.join()
    return sum(frames) / seconds


@torch.inference_mode()
def _step_alone(model: str, seconds: float, barrier: Any, counts: Any) -> None:
    torch.set_num_threads(1)
    network = optimize(load_as(TRecViT, model))
    frames, state = _frames(network, 1), network.init_state(1)
    _, state = network.step(frames, state)
    barrier.wait(_START_S)
    steps, start_s = 0, time.perf_counter()
    while time.perf_counter() < start_s + seconds:
        _, state = network.step(frames, state)
        steps += 1
    counts.put(steps)
