"""The tree of exceptions.

TRecViTError
├── ConfigError          an impossible field, preset or option
├── InputError           a tensor, array or argument of the wrong shape, dtype or range
├── StateError           a streaming state that does not fit the model or the frames
├── CheckpointError      weights that are damaged, hostile, or do not match
├── DownloadError        a file that could not be fetched
├── VideoError           a video that could not be read or written
├── DataError            an inconsistent data set, scene or label list
├── StorageError         a file or folder that could not be written (an OSError too)
├── BusyError            a folder that another process is writing to
├── Interrupted          work that was stopped by a signal and can be resumed
└── MissingPackageError  an optional package that is required here and not installed

Messages: `expected X, got Y (where); what to do`.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import Any


class TRecViTError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(TRecViTError, ValueError):
    """An impossible field, preset or option."""


class InputError(TRecViTError, ValueError):
    """A tensor, array or argument of the wrong shape, dtype or range."""


class StateError(TRecViTError, ValueError):
    """A streaming state that does not fit the model or the frames."""


class CheckpointError(TRecViTError):
    """Weights that are damaged, hostile, or do not match the model."""


class DownloadError(TRecViTError):
    """A file that could not be fetched."""


class DataError(TRecViTError):
    """An inconsistent data set, scene or label list."""


class StorageError(TRecViTError, OSError):
    """A file or folder that could not be written: a full disk, a quota, no permission."""


class BusyError(TRecViTError):
    """A folder that another process is writing to."""


class Terminated(KeyboardInterrupt):
    """SIGTERM as an exception, so that one `except KeyboardInterrupt` cleans up after Ctrl-C and SIGTERM alike.

    `trecvit`'s commands raise it; a program that calls the library keeps its own handling of SIGTERM.
    """


class Interrupted(TRecViTError):
    """Work that was stopped by a signal and can be resumed.

    Attributes:
        signal_number: SIGINT (Ctrl-C) or SIGTERM.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGTERM) -> None:
        self.signal_number = int(signal_number)
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.signal_number)

    @classmethod
    def by(cls, stop: KeyboardInterrupt, message: str) -> Interrupted:
        """Return the error for `stop`: SIGTERM for a `Terminated`, else Ctrl-C."""
        return cls(message, signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)


class MissingPackageError(TRecViTError, ImportError):
    """An optional package that is required here and not installed."""

    def __init__(self, package: str, *, needed_for: str, extra: str) -> None:
        self._given = {"needed_for": needed_for, "extra": extra}
        self.package = package
        super().__init__(f"{needed_for} needs the package {package!r}: pip install 'trecvit[{extra}]'")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), **self._given), (self.package,)


class PrecisionWarning(UserWarning):
    """The result was computed in a dtype that was not requested, because it is faster on this machine."""


class VideoError(TRecViTError):
    """A video that could not be read or written.

    Attributes:
        source: The file, folder or address as the caller named it.
        frames_read: Frames delivered before the error.
        time_s: Last time reached in the video, in seconds, or None.
    """

    def __init__(self, source: str, reason: str, *, frames_read: int = 0, time_s: float | None = None) -> None:
        self.source = source
        self.reason = reason
        self.frames_read = frames_read
        self.time_s = time_s
        super().__init__(f"{source}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:  # picklable, to cross process boundaries
        whole = partial(type(self), frames_read=self.frames_read, time_s=self.time_s)
        return whole, (self.source, self.reason)
