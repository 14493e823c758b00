"""Worker processes on the same machine: they exit with their parent process, and only it hears Ctrl-C and SIGTERM."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
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
        context = multiprocessing.get_context("spawn")
        end, self._until_closed = context.Pipe(duplex=False)
        super().__init__(num_workers, context, _begin, (end, prepare, given))

    def submit(self, fn: Callable[_Given, _Result], /, *args: _Given.args, **kwargs: _Given.kwargs) -> Future[_Result]:
        with _held(signal.SIGINT):  # workers are started here, as they are needed
            return super().submit(fn, *args, **kwargs)

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is not None:
            self._until_closed.close()
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

    loader = DataLoader(
        dataset,
        num_workers=num_workers,
        worker_init_fn=_ignore_signals,
        multiprocessing_context="spawn" if num_workers else None,
        prefetch_factor=prefetch_factor if num_workers else None,
        **how,
    )
    with _held(signal.SIGINT, signal.SIGTERM):
        items = iter(loader)
    yield from items


@contextmanager
def _held(*signals: signal.Signals) -> Iterator[None]:
    """Blocks signals for the processes that are started within; this one gets them afterwards, and none is lost.

    A process takes over its parent's mask, and so it is deaf also while it imports what it needs.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # by its start it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore_signals(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _begin(end: Connection, prepare: Callable[..., object] | None, given: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(end,), daemon=True).start()
    if prepare is not None:
        prepare(*given)


def _exit_with_parent(end: Connection) -> None:
    # A pool's workers wait on a pipe that they themselves keep open: of their parent's sudden end they would not hear.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel, end])
        os._exit(1)
