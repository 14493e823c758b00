"""A part of `scripts/gpu` for its tests: cases that succeed, fail, crash and hang."""

from __future__ import annotations

import os
import time
from pathlib import Path


def cases(target):
    def flaky():
        marker = Path(os.environ["TRIAL_FOLDER"]) / "seen"
        if marker.exists():
            return {"line": "second time"}
        marker.touch()
        raise ValueError("expected a second time, got the first")

    def fatal():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    return {
        "good": lambda: {"line": "well", "value": 1},
        "flaky": flaky,
        "crash": lambda: os._exit(9),
        "fatal": fatal,
        "hang": lambda: time.sleep(600),
        "missed": lambda: {"line": "far", "failed": "too far"},
        "last": lambda: {"line": "well", "value": 2},
    }
