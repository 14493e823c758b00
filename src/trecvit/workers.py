"""Worker processes on the same machine: they exit with their parent, and only the parent handles Ctrl-C and SIGTERM.

On Linux they are forked from a server process, which imports this package once for all of them.
"""

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
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


def worker_pool(num_workers: int, prepare: Callable[..., object] | None = None, *args: Any) -> ProcessPoolExecutor:
    """Start a pool of processes that exit with this one, however it ends.

    Leaving its `with` block by an exception, such as Ctrl-C, kills the workers at once, also amid their work.

    Args:
        num_workers: Number of processes.
        prepare: Called first in each of them.
        args: Its arguments.
    """
    return _Pool(num_workers, prepare, args)


class _Pool(ProcessPoolExecutor):
    def __init__(self, num_workers: int, prepare: Callable[..., object] | None, args: tuple[Any, ...]) -> None:
        super().__init__(num_workers, multiprocessing.get_context(_start_method()), _begin, (prepare, args))
        self._started: list[BaseProcess] = []

    def submit(self, fn: Callable[_Args, _Result], /, *args: _Args.args, **kwargs: _Args.kwargs) -> Future[_Result]:
        with _starting(signal.SIGINT) as started:  # the pool starts its workers on demand, here
            future = super().submit(fn, *args, **kwargs)
        self._started += started
        return future

    def __exit__(self, *error: Any) -> bool | None:
        # A worker that was started while the pool broke is left out of its clean-up, and would be waited for for ever.
        if error[0] is not None or self._broken:
            _kill(self._started)
        self.shutdown(wait=True, cancel_futures=error[0] is not None)
        return None


def load_items(dataset: Any, *, num_workers: int, prefetch_factor: int | None = None, **options: Any) -> Iterator[Any]:
    """Iterate over a DataLoader whose workers ignore SIGINT and SIGTERM from their start.

    A terminal sends SIGINT, and a scheduler SIGTERM, to all processes of a job; only the main process may end it.

    Args:
        dataset: The dataset.
        num_workers: Worker processes; 0 loads in this process.
        prefetch_factor: DataLoader's, if there are workers.
        options: DataLoader's other arguments.
    """
    from torch.utils.data import DataLoader

    if not num_workers:
        yield from DataLoader(dataset, num_workers=0, **options)
        return
    loader = DataLoader(
        dataset,
        num_workers=num_workers,
        worker_init_fn=_begin_loading,
        multiprocessing_context=_start_method(),
        prefetch_factor=prefetch_factor,
        **options,
    )
    with _starting(signal.SIGINT, signal.SIGTERM) as workers:
        items = iter(loader)
    atexit.register(_kill, workers)  # before `multiprocessing` joins workers that ignore its SIGTERM
    ended = False
    try:
        yield from items
        ended = True
    finally:
        atexit.unregister(_kill)
        if not ended:
            with _quietly():
                _kill(workers)  # a worker amid its start would print that its parent is gone
                items._shutdown_workers()  # type: ignore[attr-defined]  # references in tracebacks can delay its destructor


def _start_method() -> str:
    """Start the server where there is one: workers inherit its mask, so neither signal reaches them as they start."""
    if sys.platform != "linux":
        return "spawn"
    imported = [name for name in sys.modules if name.startswith("trecvit.") and not name.endswith("__main__")]
    multiprocessing.set_forkserver_preload(imported)
    with _blocked((signal.SIGINT, signal.SIGTERM)):
        forkserver.ensure_running()
    return "forkserver"


def _kill(workers: Iterable[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


@contextmanager
def _starting(*signals: signal.Signals) -> Iterator[list[BaseProcess]]:
    """Block signals for the processes that are started within; this process receives them afterwards.

    A process inherits its parent's mask, so signals are blocked also while it imports its modules.

    Yields:
        A list that holds the started processes afterwards.
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
    resource_tracker.ensure_running()  # its start would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _quietly() -> Iterator[None]:
    """Shield a DataLoader's shutdown: Ctrl-C must not interrupt it, and killed workers must not raise an error."""
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
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    sys.excepthook = _print_unless_interrupted


def _print_unless_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ignore broken connections: a parent that Ctrl-C stops amid receiving a batch leaves one, in another thread."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def _begin(prepare: Callable[..., object] | None, args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):  # a broken pool ends its workers by SIGTERM
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    if prepare is not None:
        prepare(*args)


def _exit_with_parent() -> None:
    # A pool's workers wait on a pipe that they hold open themselves, so a killed parent does not close it.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
