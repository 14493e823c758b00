"""Output files and folders: written whole or not at all, by one process at a time, with errors that name them."""

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
"""In a folder that a process is writing to; see `only_writer`."""

_AGAIN = "make room and run the same command again"
_ELSEWHERE = "give another place, one that you may write to"
_FULL = {
    errno.ENOSPC: f"the disk is full; {_AGAIN}",
    errno.EDQUOT: f"the disk quota is used up; {_AGAIN}",
    errno.EFBIG: f"the file is larger than the file system or a limit allows; {_ELSEWHERE}",
    errno.EROFS: f"the file system is read-only; {_ELSEWHERE}",
}
_ANY = {
    **_FULL,
    errno.EACCES: f"permission denied; {_ELSEWHERE}",
    errno.EPERM: f"not permitted; {_ELSEWHERE}",
    errno.ENOENT: "there is no such folder; make it first",
    errno.ENOTDIR: f"a part of the path is a file and no folder; {_ELSEWHERE}",
    errno.EEXIST: "expected a folder, got a file; give another place",
    errno.EISDIR: "expected a file, got a folder; give another place",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
    errno.EIO: "the disk failed; check it and its free space, and run the same command again",
}
_WORDS = {os.strerror(number): number for number in _FULL}

_ours: set[tuple[Path, int]] = set()  # the folders that this process holds, each with the thread that does


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written beside its place, under a name of this process, and moves it there once it is complete.

    Args:
        path: Where it will be. A link stays one, and a device or pipe is written to as it is.
        write: Writes the file that it is given the path of.

    Raises:
        StorageError: When it cannot be written; nothing of it is left then.
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
    """Whether there is something that is neither a file nor a folder, such as /dev/stdout or a named pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text, in UTF-8; in file names, bytes that are no UTF-8 are written as they are."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", errors="surrogateescape"))


def write_json(path: Path, content: object, *, indent: int = 1) -> None:
    """`write_whole` for plain JSON values, in UTF-8."""
    write_text(path, json_text(content, indent=indent) + "\n")


def json_text(content: object, *, indent: int | None = None) -> str:
    """JSON with all characters as they are, but for those that stand for bytes of file names that are no UTF-8.

    These are written as `\\udc80` … `\\udcff`, which gives valid UTF-8 and reads back as the same name.
    """
    text = json.dumps(content, indent=indent, ensure_ascii=False)
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Raises a StorageError that names `path` where the code within fails to write, by whichever library it writes."""
    try:
        yield
    except BaseException as error:  # torch.distributed.checkpoint's exceptions are no `Exception`
        if (failure := storage_error(error, path)) is not None:
            raise failure from error
        raise


def storage_error(error: BaseException, path: str | Path | None = None) -> StorageError | None:
    """The StorageError that reports a failed write, or None for an error of another kind.

    Args:
        error: An OSError, or what NumPy, safetensors, PyTorch or FFmpeg made of one.
        path: What was being written. Without it only errors count that reading cannot cause: a full disk and the like.
    """
    if isinstance(error, RuntimeError) and "</torch_" in str(error):
        return StorageError(
            "shared memory (/dev/shm) is full, by which worker processes hand over data; give --workers 0 or fewer, or "
            "a container more of it (docker run --shm-size)"
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
    words = str(error)
    if found := re.search(r"\(os error (\d+)\)", words):  # safetensors, written in Rust
        return int(found[1])
    if full := next((number for reason, number in _WORDS.items() if reason in words), None):
        return full
    if "PytorchStreamWriter failed" in words:  # torch.save and torch.export do not say why
        return errno.EIO
    causes = [error.__cause__] if error.__cause__ is not None else []
    failures: dict[int, Any] = getattr(error, "failures", {})  # of CheckpointException: {rank: (exception, stack)}
    causes += [failure[0] for failure in failures.values()]
    return next((number for cause in causes if (number := _error_number(cause)) is not None), None)


def check_output(path: Path | None) -> None:
    """Raises a StorageError where a file could not be written, before the work that it is to hold; None is no file."""
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
    """Makes a folder and holds it for this process, which writes to it over time.

    The lock is the operating system's, on the file `LOCK` in the folder: it ends with the process, however that ends.
    A thread that holds the folder may hold it again. A folder that is made here and stays empty is removed again.

    Raises:
        BusyError: When another process, or another thread, holds the folder.
        StorageError: When the folder cannot be made, or nothing can be written in it.
    """
    folder = Path(folder)
    made = not folder.exists()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        key = (folder.resolve(), threading.get_ident())
    if key in _ours:
        yield
        return
    file = _lock(folder)
    _ours.add(key)
    try:
        yield
    finally:
        _ours.discard(key)
        _remove_lock(file, key[0] / LOCK)
        if made:
            with suppress(OSError):  # not empty
                folder.rmdir()


def is_empty(folder: Path) -> bool:
    """Whether there is no such folder, or nothing in it but `only_writer`'s lock."""
    return not folder.exists() or (folder.is_dir() and all(entry.name == LOCK for entry in folder.iterdir()))


@contextmanager
def emptied_on_error(folder: Path) -> Iterator[None]:
    """Removes everything from a folder that was empty before, if the code within fails to fill it.

    What is left of a full disk's files would be in the way of the next attempt.
    """
    try:
        yield
    except BaseException:
        empty(folder)
        raise


def empty(folder: Path) -> None:
    """Removes everything from a folder but `only_writer`'s lock."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != LOCK:
            entry.unlink(missing_ok=True)


def _lock(folder: Path) -> TextIO:
    """Opens the lock file, locks it and writes into it who holds it."""
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
            with suppress(OSError):  # its owner has removed it between opening and locking: then it locks nobody out
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
    with suppress(OSError):  # Windows keeps open files
        path.unlink()
    with suppress(OSError):  # what could not be written before is tried again
        file.close()


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: TextIO) -> bool:
        try:
            os.lseek(file.fileno(), 1 << 30, os.SEEK_SET)  # beyond what others read
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
        except OSError:  # a file system without locks: better unguarded than unusable
            return True
        return True
