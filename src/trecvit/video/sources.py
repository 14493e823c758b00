"""Sources of encoded video: files, parts of files, stream addresses and cameras."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from io import BufferedIOBase, BufferedReader
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class FilePart:
    """A video inside another file, such as a member of a tar.

    Attributes:
        path: The file.
        start_bytes: Offset of the part.
        num_bytes: Its length.
        name: Its name, for messages.
    """

    path: Path
    start_bytes: int
    num_bytes: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    def open(self) -> BufferedIOBase:
        """Open the part as a file, read from disk on demand."""
        return BufferedReader(_Window(self.path.open("rb"), self.start_bytes, self.num_bytes))

    def read(self) -> bytes:
        """Read all bytes."""
        with self.open() as file:
            return file.read()


class _Window(io.RawIOBase):
    """A range of bytes of a file, as a file."""

    def __init__(self, file: BufferedIOBase, start_bytes: int, num_bytes: int) -> None:
        self._file, self._start, self._size, self._position = file, start_bytes, num_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._start + self._position)
        count = max(min(len(buffer), self._size - self._position), 0)
        content = self._file.read(count)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


EncodedSource: TypeAlias = str | Path | FilePart


def scheme_of(source: object) -> str:
    """Return "http" for "http://…", "camera" for "camera:0" and video devices, and an empty string for paths."""
    if not isinstance(source, str | Path):
        return ""
    if re.fullmatch(r"(camera:|/dev/video)\d+", str(source)):
        return "camera"
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", source) if isinstance(source, str) else None
    return match[1].lower() if match else ""
