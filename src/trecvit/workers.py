"""Worker processes on the same machine: they exit with their parent process, and only it hears Ctrl-C and SIGTERM."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def worker_pool(num_workers: int, prepare: Callable[..., object] | None = None, *given: Any) -> ProcessPoolExecutor:
    """A pool of freshly started processes that exit with this one, however it ends.

    Leaving its `with` block by an exception, such as Ctrl-C, ends the workers at once, whatever they are doing.

    Args:
        num_workers: How many.
        prepare: Called in each of them before anything else.
        given: What it is called with.
    """
    return _Pool(num_workers, prepare, given)


class _Pool(ProcessPoolExecutor):
    def __init__(self, num_workers: int, prepare: Callable[..., object] | None, given: tuple[Any, ...]) -> None:
        super().__init__(num_workers, multiprocessing.get_context("spawn"), _begin, (prepare, given))
        self._started: list[BaseProcess] = []

    def submit(self, fn: Callable[_Given, _Result], /, *args: _Given.args, **kwargs: _Given.kwargs) -> Future[_Result]:
        with _starting(signal.SIGINT) as started:  # workers are started here, as they are needed
            future = super().submit(fn, *args, **kwargs)
        self._started += started
        return future

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is not None:
            _kill(self._started)
        self.shutdown(wait=True, cancel_futures=error[0] is not None)
        return None


def load_items(dataset: Any, *, num_workers: int, prefetch_factor: int | None = None, **how: Any) -> Iterator[Any]:
    """Iterates over a DataLoader whose workers ignore SIGINT and SIGTERM from their first moment on.

    A terminal sends SIGINT, and a scheduler SIGTERM, to all processes of a job; it is for the main process to end it.

    Args:
        dataset: What is loaded.
        num_workers: Worker processes; 0 loads in this one.
        prefetch_factor: As DataLoader has it, where there are workers.
        how: DataLoader's other arguments.
    """
    from torch.utils.data import DataLoader

    if not num_workers:
        yield from DataLoader(dataset, num_workers=0, **how)
        return
    loader = DataLoader(
        dataset,
        num_workers=num_workers,
        worker_init_fn=_begin_loading,
        multiprocessing_context="spawn",
        prefetch_factor=prefetch_factor,
        **how,
    )
    with _starting(signal.SIGINT, signal.SIGTERM) as workers:
        items = iter(loader)
    atexit.register(_kill, workers)  # before `multiprocessing` waits for those that do not hear its SIGTERM
    ended = False
    try:
        yield from items
        ended = True
    finally:
        atexit.unregister(_kill)
        if not ended:
            with _quietly():
                _kill(workers)  # one that has just started would print that its parent is gone
                items._shutdown_workers()  # type: ignore[attr-defined]  # tracebacks keep its destructor from it


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


@contextmanager
def _starting(*signals: signal.Signals) -> Iterator[list[BaseProcess]]:
    """Blocks signals for the processes that are started within; this one gets them afterwards, and none is lost.

    A process takes over its parent's mask, and so it is deaf also while it imports what it needs.

    Yields:
        A list that afterwards holds the processes.
    """
    before = set(multiprocessing.active_children())
    started: list[BaseProcess] = []
    with _blocked(signals):
        yield started
        started += set(multiprocessing.active_children()) - before


@contextmanager
def _blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # by its start it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quietly() -> Iterator[None]:
    """For the end of a DataLoader amid its work: Ctrl-C must not leave it half done, nor killed workers be an error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    instead = {signal.SIGINT: signal.SIG_IGN}
    if hasattr(signal, "SIGCHLD"):
        instead[signal.SIGCHLD] = signal.SIG_DFL
    before = {number: signal.signal(number, handler) for number, handler in instead.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _begin_loading(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.excepthook = _print_unless_interrupted


def _print_unless_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints no broken connections: a parent that Ctrl-C stops amid taking a batch leaves one, in another thread."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _begin(prepare: Callable[..., object] | None, given: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*given)


def _exit_with_parent() -> None:
    # A pool's workers wait on a pipe that they themselves keep open: of their parent's sudden end they would not hear.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
