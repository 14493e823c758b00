"""Output files and folders: atomic writes, one writer at a time, errors that name the path."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from trecvit.errors import BusyError, DataError, StorageError
from trecvit.files import (
    LOCK,
    check_output,
    emptied_on_error,
    is_empty,
    only_writer,
    storage_error,
    write_text,
    write_whole,
    writing,
)

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FULL, "the disk is full; make room"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "the disk quota is used up; make room"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "the file system is read-only; give another place"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES)), "permission denied; give another place"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("avio: No space left on device"), "the disk is full"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "the disk failed; check"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_failed_writes_are_named_with_what_to_do_and_leave_no_file(tmp_path, error, words):
    def write(part):
        part.write_text("half")
        raise error

    path = tmp_path / "result.json"
    path.write_text("before")
    with pytest.raises(StorageError, match=rf"result\.json: could not be written: {words}") as raised:
        write_whole(path, write)
    assert isinstance(raised.value, OSError)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [ValueError("5 > 3"), OSError(errno.EPIPE, "Broken pipe"), DataError("no"), KeyboardInterrupt()]
)
def test_other_errors_are_left_as_they_are(error):
    with pytest.raises(type(error)) as raised, writing("somewhere"):
        raise error
    assert raised.value is error
    # Without a path, errors that reading can cause too are left as they are.
    assert storage_error(PermissionError(errno.EACCES, "no")) is None
    assert storage_error(FULL) is not None


def test_an_output_is_checked_before_the_work(tmp_path):
    check_output(None)
    check_output(tmp_path / "fine.json")
    (tmp_path / "file").write_text("")
    for path, words in (
        (tmp_path / "none" / "x.json", "there is no such folder"),
        (tmp_path, "expected a file, got a folder"),
        (tmp_path / "file" / "x.json", "a part of the path is a file"),
    ):
        with pytest.raises(StorageError, match=words):
            check_output(path)
    for folder in (tmp_path / "file", tmp_path / "file" / "x"):
        with (
            pytest.raises(StorageError, match=r"(file|x): could not be written"),
            only_writer(folder),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


HOLDER = """
import sys, time
from trecvit.files import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_locked_by_one_process_and_free_after_its_end(tmp_path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        busy = pytest.raises(BusyError, match=rf"run: expected no other process .* but process {process.pid} on ")
        with busy, only_writer(folder):
            pass
        assert is_empty(folder)
        process.send_signal(signal.SIGKILL)
    assert (folder / LOCK).exists()
    with only_writer(folder):
        write_text(folder / "result.json", "{}")
    assert [path.name for path in folder.iterdir()] == ["result.json"]


def test_a_thread_may_lock_its_folder_again_and_another_thread_may_not(tmp_path):
    def hold():
        with only_writer(tmp_path / "run"):
            time.sleep(0.01)

    with ThreadPoolExecutor(1) as another:
        with only_writer(tmp_path / "run"), only_writer(tmp_path / "." / "run"):
            hold()
            with pytest.raises(BusyError):
                another.submit(hold).result()
        assert not (tmp_path / "run").exists()  # made for nothing
        another.submit(hold).result()


def test_a_folder_that_could_not_be_filled_is_empty_again(tmp_path):
    def fill():
        with only_writer(tmp_path), emptied_on_error(tmp_path):
            (tmp_path / "videos").mkdir()
            (tmp_path / "videos" / "0.webm").write_bytes(b"half")
            (tmp_path / "list.json").write_text("[]")
            raise FULL

    with pytest.raises(OSError, match="No space"):
        fill()
    assert is_empty(tmp_path)


def test_links_and_pipes_are_kept(tmp_path):
    real, link, pipe = tmp_path / "real.json", tmp_path / "link.json", tmp_path / "pipe"
    real.write_text("old")
    link.symlink_to(real)
    check_output(link)
    write_text(link, "new")
    assert (link.is_symlink(), real.read_text()) == (True, "new")
    os.mkfifo(pipe)
    check_output(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        write_text(pipe, "piped")
        assert read.result(10) == "piped"
    assert pipe.is_fifo()


def test_full_shared_memory_is_not_a_full_disk():
    error = RuntimeError("unable to write to file </torch_12_34_5>: No space left on device (28)")
    assert "shared memory (/dev/shm) is full" in str(storage_error(error))
