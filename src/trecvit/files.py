"""Output files and folders: atomic writes, one writer per folder, errors that name the path."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from trecvit.errors import BusyError, StorageError, TRecViTError

LOCK = ".lock"
"""File in a folder that a process is writing to; see `only_writer`."""

_RETRY = "make room and run the same command again"
_ELSEWHERE = "give another place, one that you may write to"
_FULL = {
    errno.ENOSPC: f"the disk is full; {_RETRY}",
    errno.EDQUOT: f"the disk quota is used up; {_RETRY}",
    errno.EFBIG: f"the file is larger than the file system or a limit allows; {_ELSEWHERE}",
    errno.EROFS: f"the file system is read-only; {_ELSEWHERE}",
}
_ANY = {
    **_FULL,
    errno.EACCES: f"permission denied; {_ELSEWHERE}",
    errno.EPERM: f"not permitted; {_ELSEWHERE}",
    errno.ENOENT: "there is no such folder; make it first",
    errno.ENOTDIR: f"a part of the path is a file, not a folder; {_ELSEWHERE}",
    errno.EEXIST: "expected a folder, got a file; give another place",
    errno.EISDIR: "expected a file, got a folder; give another place",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
    errno.EIO: "the disk failed; check it and its free space, and run the same command again",
}
_NUMBERS = {os.strerror(number): number for number in _FULL}

_locked: set[tuple[Path, int]] = set()  # folders locked by this process, each with the thread that holds the lock


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file beside its destination, under a name of this process, and move it there once it is complete.

    Args:
        path: The destination. The target of a link is replaced; a device or pipe is written to directly.
        write: Writes the file at the path that it receives.

    Raises:
        StorageError: when the file cannot be written; no part of it is left.
    """
    if _is_device(path):
        with writing(path):
            write(path)
        return
    path = path.resolve() if path.is_symlink() else path
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        with writing(path):
            write(part)
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _is_device(path: Path) -> bool:
    """Return whether a path exists and is neither file nor folder, such as /dev/stdout or a named pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text, in UTF-8; bytes of file names that are not UTF-8 are written unchanged."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", errors="surrogateescape"))


def write_json(path: Path, content: object, *, indent: int = 1) -> None:
    """`write_whole` for plain JSON values, in UTF-8."""
    write_text(path, json_text(content, indent=indent) + "\n")


def json_text(content: object, *, indent: int | None = None) -> str:
    """Format JSON without escapes, except of the characters that stand for bytes of file names that are not UTF-8.

    These are written as `\\udc80` … `\\udcff`, which is valid UTF-8 and reads back as the same name.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Raise a StorageError that names `path` where the code within fails to write, with any library."""
    try:
        yield
    except BaseException as error:  # torch.distributed.checkpoint's exceptions are not `Exception`s
        if (failure := storage_error(error, path)) is not None:
            raise failure from error
        raise


def storage_error(error: BaseException, path: str | Path | None = None) -> StorageError | None:
    """Convert the error of a failed write to a StorageError; return None for all others.

    Args:
        error: An OSError, or NumPy's, safetensors', PyTorch's or FFmpeg's exception for one.
        path: The file being written. Without it only errors that reading cannot cause are converted, such as a full
            disk.
    """
    if isinstance(error, RuntimeError) and "</torch_" in str(error):
        return StorageError(
            "shared memory (/dev/shm) is full, through which worker processes send data; use fewer --workers or 0, or "
            "give a container more of it (docker run --shm-size)"
        )
    number = None if isinstance(error, TRecViTError) else _error_number(error)
    reasons = _FULL if path is None else _ANY
    if number is None or number not in reasons:
        return None
    name = path or getattr(error, "filename", None)
    failure = StorageError(f"{f'{name}: ' if name else ''}could not be written: {reasons[number]}")
    failure.errno = number
    return failure


def _error_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno:
        return error.errno
    message = str(error)
    if match := re.search(r"\(os error (\d+)\)", message):  # safetensors, written in Rust
        return int(match[1])
    if number := next((number for reason, number in _NUMBERS.items() if reason in message), None):
        return number
    if "PytorchStreamWriter failed" in message:  # torch.save and torch.export give no reason
        return errno.EIO
    causes = [error.__cause__] if error.__cause__ is not None else []
    failures: dict[int, Any] = getattr(error, "failures", {})  # of CheckpointException: {rank: (exception, stack)}
    causes += [failure[0] for failure in failures.values()]
    return next((number for cause in causes if (number := _error_number(cause)) is not None), None)


def check_output(path: Path | None) -> None:
    """Raise a StorageError if a file cannot be written, before its content is computed; None: no file."""
    if path is None or _is_device(path):
        return
    path = path.resolve() if path.is_symlink() else path
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        beside = path.with_name(f"{path.name}.part-{os.getpid()}")
        beside.touch()
        beside.unlink()


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Create a folder if needed and lock it for this process.

    The lock is the operating system's, on the file `LOCK` in the folder: it ends with the process, however that ends.
    The thread that holds it may lock again. A folder that was created here and stays empty is removed again.

    Raises:
        BusyError: when another process, or another thread, holds the lock.
        StorageError: when the folder cannot be created or written to.
    """
    folder = Path(folder)
    created = not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        key = (folder.resolve(), threading.get_ident())
    if key in _locked:
        yield
        return
    file = _lock(folder)
    _locked.add(key)
    try:
        yield
    finally:
        _locked.discard(key)
        _remove_lock(file, key[0] / LOCK)
        if created:
            with suppress(OSError):  # not empty
                folder.rmdir()


def is_empty(folder: Path) -> bool:
    """Return whether a folder is missing, or empty except for `only_writer`'s lock."""
    return not folder.exists() or (folder.is_dir() and all(entry.name == LOCK for entry in folder.iterdir()))


@contextmanager
def emptied_on_error(folder: Path) -> Iterator[None]:
    """Empty a folder, which was empty before, if the code within fails to fill it.

    The incomplete files of a full disk would be in the way of the next attempt.
    """
    try:
        yield
    except BaseException:
        empty(folder)
        raise


def empty(folder: Path) -> None:
    """Remove everything from a folder except `only_writer`'s lock."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != LOCK:
            entry.unlink(missing_ok=True)


def _lock(folder: Path) -> TextIO:
    """Open the lock file, lock it and write the owner into it."""
    path = folder / LOCK
    with writing(path):
        while True:
            file = path.open("a+", encoding="utf-8")
            if not _try_lock(file):
                file.seek(0)
                owner = file.read().strip() or "another process"
                file.close()
                raise BusyError(
                    f"{folder}: expected no other process to write here, but {owner} does; wait for it, stop it, or "
                    "give another folder"
                )
            with suppress(OSError):  # removed by its owner between opening and locking: then it excludes no one
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            file.close()
        try:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        except BaseException:
            _remove_lock(file, path)
            raise
    return file


def _remove_lock(file: TextIO, path: Path) -> None:
    with suppress(OSError):  # Windows cannot remove open files
        path.unlink()
    with suppress(OSError):  # closing retries a failed write
        file.close()


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: TextIO) -> bool:
        try:
            os.lseek(file.fileno(), 1 << 30, os.SEEK_SET)  # beyond the text that others read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: TextIO) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks: better unlocked than unusable
            return True
        return True
