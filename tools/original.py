"""Latency of the original JAX code, to compare with `trecvit bench speed`: `scripts/original CLONE [RESULT.json]`.

CLONE is a clone of https://github.com/google-deepmind/trecvit. `PYTHON` names a Python with the original's
requirements (`pip install jax flax einops recurrentgemma`); this package is not used. Clips of 8 frames of 224 x 224,
float32, random weights, compiled once as in the original's notebook. The original cannot continue a stream.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

SIZES = {"tiny": ("Ti", 1), "tiny_wide": ("Ti", 2), "small": ("S", 1), "base": ("B", 1), "base_k400": ("B", 2)}
"""Preset -> the original's variant, and its recurrent width as a multiple of the width."""
FRAMES, RUNS, SECONDS = 8, 5, 10.0


def measure(variant: str, multiplier: int) -> dict[str, float]:
    """Time one of the original's sizes; medians over `RUNS` calls and `SECONDS` seconds at least."""
    model = importlib.import_module("trecvit.trecvit_model").get_model(variant, num_frames=FRAMES)
    model = model.clone(encoder=model.encoder.clone(state_multiplier=multiplier))
    clip = jnp.zeros((1, FRAMES, 224, 224, 3), jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), clip)
    forward = jax.jit(lambda params, clip: model.apply(params, clip)["probs"])

    def call_s() -> float:
        start_s = time.perf_counter()
        forward(params, clip).block_until_ready()
        return time.perf_counter() - start_s

    ready_s = call_s()
    times_s: list[float] = []
    while len(times_s) < RUNS or sum(times_s) < SECONDS:
        times_s.append(call_s())
    median_s = statistics.median(times_s)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "median_ms": 1000 * median_s,
        "frames_per_s": FRAMES / median_s,
        "ready_s": ready_s,
        "runs": len(times_s),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="scripts/original", description="Time the original JAX code.")
    parser.add_argument("clone", type=Path, help="clone of github.com/google-deepmind/trecvit")
    parser.add_argument("result", type=Path, nargs="?", help="JSON file to write")
    args = parser.parse_args()
    sys.path.insert(0, str(args.clone))
    speeds: list[dict[str, Any]] = []
    for name, (variant, multiplier) in SIZES.items():
        speeds.append({"model": name, **measure(variant, multiplier)})
        print(name, json.dumps(speeds[-1]), flush=True)
    if args.result:
        about = {"jax": jax.__version__, "date": time.strftime("%Y-%m-%d"), "frames": FRAMES, "dtype": "float32"}
        args.result.write_text(json.dumps({**about, "speeds": speeds}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
