"""Small served models, servers and clients for the tests."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import tiny_model, tiny_tracker

from trecvit.runtime.live import LiveTracker, PointSlots
from trecvit.serve.app import create_app
from trecvit.serve.batching import Served, ServedClassifier, ServedTracker
from trecvit.serve.guard import Access
from trecvit.serve.protocol import Result
from trecvit.serve.run import serving
from trecvit.serve.sessions import Limits
from trecvit.video.frames import Image

MAX_POINTS = 3


@cache
def _classifier() -> ServedClassifier:
    return ServedClassifier("classes", tiny_model())


def served_models() -> list[Served[Any, Any]]:
    """A classifier and a tracker, the same every time."""
    return [ServedClassifier("classes", tiny_model()), ServedTracker("points", tiny_tracker(), MAX_POINTS)]


@contextmanager
def small_server(
    *,
    models: Sequence[Served[Any, Any]] | None = None,
    token: str | None = None,
    folder: Path | None = None,
    **limits: Any,
) -> Iterator[str]:
    """Serve small models in a thread; yields the URL."""
    chosen = Limits(**limits)
    with serving(
        create_app(models or served_models(), Access("127.0.0.1", token), chosen, folder=folder), chosen
    ) as url:
        yield url


@contextmanager
def server_process(*words: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `trecvit serve` with `motions` and more arguments; yields its address and the process."""
    command = [sys.executable, "-m", "trecvit", "serve", "--port", "0", "-m", "motions", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()


def change_points(draw: random.Random, slots: PointSlots, alone: LiveTracker) -> None:
    """Remove and add a point now and then, alike in a served stream's slots and in a tracker of its own."""
    if slots.ids and draw.random() < 0.3:
        gone = draw.choice(slots.ids)
        slots.remove(gone)
        alone.remove(gone)
    if len(slots.ids) < MAX_POINTS and draw.random() < 0.6:
        x, y = draw.uniform(0, 30), draw.uniform(0, 20)
        assert slots.add(x, y) == alone.add(x, y)


def images(num_frames: int, *, seed: int = 0, height: int = 20, width: int = 30) -> list[Image]:
    """Draw frames of noise."""
    generator = np.random.default_rng(seed)
    return list(generator.integers(0, 256, (num_frames, height, width, 3), np.uint8))


def class_probs(frames: Sequence[Image]) -> list[np.ndarray]:
    """The classifier's probabilities after each frame of a lone run."""
    served = _classifier()
    state, probs = served.init_state(), []
    with torch.inference_mode():
        for frame in frames:
            results, state = served.step(served.to_clip(frame)[None], state)
            probs.append(results[0])
    return probs


def lone_tracker() -> LiveTracker:
    """The tracker of `served_models` for one stream."""
    return LiveTracker(tiny_tracker(), MAX_POINTS)


def assert_class_result(result: Result, probs: np.ndarray) -> None:
    """Compare a result with probabilities; it has six digits."""
    for item in result.top:
        assert abs(item.probability - probs[int(item.label.removeprefix("class "))]) < 1.1e-5
    assert [item.probability for item in result.top] == sorted((item.probability for item in result.top), reverse=True)
