"""What an encoded video can be read from: a file, a part of a file, the address of a stream, or a camera."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class FilePart:
    """A video that is a part of another file, as a member of a tar is.

    Attributes:
        path: The file.
        start_bytes: Where the part begins in it.
        num_bytes: How long it is.
        name: Its own name, for messages.
    """

    path: Path
    start_bytes: int
    num_bytes: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    def open(self) -> BufferedIOBase:
        """The part as a file of its own, read from the disk as it is asked for."""
        return BufferedReader(_Window(self.path.open("rb"), self.start_bytes, self.num_bytes))

    def read(self) -> bytes:
        """All of it."""
        with self.open() as file:
            return file.read()


class _Window(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, file: BufferedIOBase, start_bytes: int, num_bytes: int) -> None:
        self._file, self._start, self._size, self._place = file, start_bytes, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._place)
        count = max(min(len(buffer), self._size - self._place), 0)
        content = self._file.read(count)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


EncodedSource: TypeAlias = str | Path | FilePart


def scheme_of(source: object) -> str:
    """ "http" of "http://…", "camera" of "camera:0" and of a video device; empty for a path."""
    if not isinstance(source, str | Path):
        return ""
    if re.fullmatch(r"(camera:|/dev/video)\d+", str(source)):
        return "camera"
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", source) if isinstance(source, str) else None
    return match[1].lower() if match else ""
