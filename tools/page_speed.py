"""Milliseconds per frame of the bundled models, in one run: `python -m tools.page_speed [RESULT.json]`.

PyTorch, `optimize` and ONNX Runtime in this process, and the built page (`scripts/page`) in Chromium with the same
graph, in turns, so that other load slows all alike; one thread each, trackers with 16 points' slots.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import trecvit
from tools.chromium import chromium, static_server
from tools.page import PAGE, ROOT
from trecvit.accelerate.onnx import initial_state
from trecvit.accelerate.onnx_folder import MANIFEST, run_of
from trecvit.accelerate.timing import timed_in_turns
from trecvit.files import write_json
from trecvit.runtime.doctor import machine

_MAX_POINTS = 16
_ROUNDS, _SECONDS, _FRAMES = 4, 0.7, 20
# Steps a model that was opened before through frames of noise; returns the milliseconds of each.
_OPEN = """
const [name, done] = arguments;
(async () => {
  const ort = await import("./vendor/ort.wasm.min.mjs");
  ort.env.wasm.numThreads = 1;
  const { Model } = await import("./model.js");
  window.models ??= {};
  models[name] = await Model.open(ort, `./models/${name}`, { executionProviders: ["wasm"] });
})().then(() => done(null), (error) => done(String(error)));
"""
_RUN = """
const [name, count, done] = arguments;
(async () => {
  const model = models[name], [height, width] = model.imageSize, times = [];
  const planes = Uint8ClampedArray.from({ length: 3 * height * width }, () => 256 * Math.random());
  for (let frame = 0; frame < count; frame++) {
    const start = performance.now();
    await model.step(planes);
    times.push(performance.now() - start);
  }
  return times;
})().then(done, (error) => done(String(error)));
"""


def measure(name: str, driver: Any) -> dict[str, list[float]]:
    """Time one model everywhere; return milliseconds by the place."""
    model = trecvit.load(name)
    height, width = model.preprocessing.image_size
    frame = torch.randint(0, 256, (1, 1, 3, height, width), dtype=torch.uint8)
    folder = PAGE / "models" / name
    run = run_of(model, folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    places = {
        "PyTorch, as loaded": _stepper(model, model.step, frame),
        "PyTorch, optimize": _stepper(model, trecvit.optimize(model).step, frame),
        "ONNX Runtime": _stepper(model, run, frame.float() / 255),
    }
    error = driver.execute_async_script(_OPEN, name)
    if error:
        raise RuntimeError(error)
    times: dict[str, list[float]] = {place: [] for place in (*places, "page in Chromium")}
    for _ in range(_ROUNDS):
        for place, seconds in zip(places, timed_in_turns(*places.values(), seconds=_SECONDS), strict=True):
            times[place] += [1e3 * second for second in seconds]
        times["page in Chromium"] += driver.execute_async_script(_RUN, name, _FRAMES)
    return times


def _stepper(model: Any, step: Callable[..., Any], frame: torch.Tensor) -> Callable[[], None]:
    """Return a call that steps a stream by one frame."""
    state = initial_state(model, 1, model.preprocessing.image_size, _MAX_POINTS + 1)

    def call() -> None:
        nonlocal state
        with torch.inference_mode():
            _, state = step(frame, state)

    return call


def main(arguments: list[str]) -> None:
    """Measure, print a table, and write the results where an argument names a file."""
    torch.set_num_threads(1)
    results = {}
    with static_server(PAGE) as address, chromium() as driver:
        driver.get(f"{address}/style.css")
        for name in ("motions", "points"):
            times = measure(name, driver)
            results[name] = {
                place: {"median_ms": float(np.median(values)), "best_ms": float(np.min(values))}
                for place, values in times.items()
            }
            for place, figures in results[name].items():
                print(f"{name:8} {place:20} median {figures['median_ms']:7.2f} ms  best {figures['best_ms']:7.2f} ms")
    if arguments:
        pinned = json.loads((ROOT / "tools/npm/package.json").read_text(encoding="utf-8"))["dependencies"]
        write_json(
            Path(arguments[0]),
            {
                "machine": {**machine(), "threads": 1, "load": os.getloadavg()[0]},
                "command": "python -m tools.page_speed",
                "versions": {"onnxruntime": version("onnxruntime"), **pinned},
                "results": results,
            },
        )


if __name__ == "__main__":
    main(sys.argv[1:])
