"""Loops over the frames of a stream that a signal can end, with complete output files."""

from __future__ import annotations

import atexit
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from fractions import Fraction
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from trecvit.cli.terminal import console
from trecvit.errors import Interrupted, Terminated

if TYPE_CHECKING:
    from trecvit.video.encode import VideoWriter

_MESSAGES = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}


def video_writer(path: Path | None, fps: Fraction | None) -> AbstractContextManager[VideoWriter | None]:
    """Create a writer of timed frames; None without a path.

    Args:
        path: As for `VideoWriter`.
        fps: Stated frame rate of the source, however absurd, or None; it is only metadata of the file.
    """
    from trecvit.video.encode import VideoWriter

    return VideoWriter(path, max(fps or Fraction(25), Fraction(1, 1001))) if path else nullcontext()


class _Indexed(Protocol):
    @property
    def index(self) -> int: ...


_Update = TypeVar("_Update", bound=_Indexed)


class Recording:
    """A loop over updates that ends at SIGINT, SIGTERM, SIGHUP or an error, as a context manager.

        with Recording() as recording:
            updates = stream(model, camera)
            with VideoWriter(path, fps) as writer, recording.kept():
                for update in recording.until_stopped(updates):
                    writer.write(update.image, update.time_s)
            recording.report(path)

    A signal interrupts the code before the loop, such as opening the source, and the wait for the next update. While an
    update is written and files are finished, a signal is recorded and handled afterwards, so an encoder is never
    interrupted. A signal that was ignored when the process started, as SIGHUP under `nohup`, stays ignored.

    Attributes:
        last_frame: Index of the last completed frame, or None.

    Raises:
        Interrupted: At the end of the block, after a signal.
    """

    def __init__(self) -> None:
        self.last_frame: int | None = None
        self._signal: int | None = None
        self._error: Exception | None = None
        self._waiting = True
        self._handlers: dict[int, Any] = {}

    @property
    def stopped(self) -> bool:
        """Whether a signal or an error ended the loop before the end of the stream."""
        return self._signal is not None or self._error is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in _signals():
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if isinstance(exc, KeyboardInterrupt):
            self._stop_by(exc)
        # A closed terminal also makes printing fail with an OSError; interrupting an opening can raise any exception.
        is_consequence = exc is None or self.last_frame is None or isinstance(exc, KeyboardInterrupt | OSError)
        if self._signal is not None and is_consequence:
            atexit.register(_ignore_signals)
            raise Interrupted(_MESSAGES[signal.Signals(self._signal).name], self._signal) from exc

    def until_stopped(self, updates: Iterator[_Update]) -> Iterator[_Update]:
        """Yield updates until the stream ends or a signal arrives."""
        while self._signal is None:
            try:
                self._waiting = True
                update = next(updates, None)
                self._waiting = False
            except KeyboardInterrupt as stop:
                self._stop_by(stop)
                return
            except Exception:
                if self._signal is None:  # else FFmpeg has turned the interrupt into its own error
                    raise
                return
            finally:
                self._waiting = False
            if update is None:
                return
            yield update
            self.last_frame = update.index

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Suppress an error, so that the files around the block are finished; `report` raises it afterwards.

        Before the first frame, with no content to keep, the exception is raised at once.
        """
        try:
            yield
        except KeyboardInterrupt as stop:
            self._stop_by(stop)
        except Exception as error:
            if self.last_frame is None:
                raise
            self._error = error
        if self._signal is not None and self.last_frame is None:
            raise KeyboardInterrupt  # files without a frame are discarded

    def report(self, *paths: Path | None) -> None:
        """Print the written files on stderr and raise the error that ended the loop, if any."""
        suffix = f" (stopped at frame {self.last_frame})" if self.stopped else ""
        with suppress(OSError):  # the terminal may be closed
            for path in paths:
                if path is not None:
                    console(stderr=True).print(f"wrote {path}{suffix}", highlight=False, soft_wrap=True)
        if self._error is not None:
            raise self._error

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        is_first, self._signal = self._signal is None, self._signal or number
        if is_first and self._waiting:
            raise KeyboardInterrupt

    def _stop_by(self, stop: KeyboardInterrupt) -> None:
        self._signal = self._signal or (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


def _signals() -> list[signal.Signals]:
    """The signals of `_MESSAGES` that this system has."""
    return [getattr(signal, name) for name in _MESSAGES if hasattr(signal, name)]


def _ignore_signals() -> None:
    """Ignore repeated signals during shutdown, which would change the exit code."""
    for number in _signals():
        signal.signal(number, signal.SIG_IGN)
