"""Processes that work for this one on the same machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any


def worker_pool(num_workers: int, prepare: Callable[..., object] | None = None, *given: Any) -> ProcessPoolExecutor:
    """A pool of processes begun afresh, which end with this one, however it ends.

    Args:
        num_workers: How many.
        prepare: Called in each of them before anything else.
        given: What it is called with.
    """
    return ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), _begin, (prepare, given))


def ignore_sigterm(_worker: int) -> None:
    """For a DataLoader's workers: schedulers send SIGTERM to all of a job, and it is for the main process to end it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _begin(prepare: Callable[..., object] | None, given: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*given)


def _end_with_parent() -> None:
    # A pool's workers wait on a pipe that they themselves keep open: of their parent's sudden end they would not hear.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
