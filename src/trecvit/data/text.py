"""Text files of any system, and JSON: UTF-8, or UTF-16 and UTF-32 with a byte-order mark."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from trecvit.errors import DataError

# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_UNPACK = "unpack it and give the folder"
_EXPORT = "write a list of paths and class numbers as text from it"
_VIDEO = "a video; give the folder that holds it, or a list of videos"
# Magic numbers of other file types: bytes, their offset, and a description with advice.
_MAGIC = (
    (b"PK\x03\x04", 0, f"a zip archive; {_UNPACK}"),
    (b"PK\x05\x06", 0, f"a zip archive, and an empty one; {_UNPACK}"),
    (b"Rar!\x1a\x07", 0, f"a rar archive; {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", 0, f"a 7z archive; {_UNPACK}"),
    (b"\x1f\x8b", 0, f"a gzip file; {_UNPACK}, or the tar that is in it"),
    (b"\xfd7zXZ\x00", 0, f"an xz file; {_UNPACK}, or the tar that is in it"),
    (b"BZh", 0, f"a bzip2 file; {_UNPACK}, or the tar that is in it"),
    (b"\x28\xb5\x2f\xfd", 0, f"a zstd file; {_UNPACK}, or the tar that is in it"),
    (b"ustar", 257, "a tar; give it a name that ends in .tar"),
    (b"PAR1", 0, f"a Parquet file; {_EXPORT}"),
    (b"ARROW1", 0, f"an Arrow file; {_EXPORT}"),
    (b"\x89HDF\r\n\x1a\n", 0, f"an HDF5 file; {_EXPORT}"),
    (b"SQLite format 3\x00", 0, f"an SQLite database; {_EXPORT}"),
    (b"\x93NUMPY", 0, f"a NumPy array; {_EXPORT}"),
    (b"%PDF", 0, f"a PDF document; {_EXPORT}"),
    (b"\x89PNG", 0, "a picture; give a folder of videos, or a list"),
    (b"\xff\xd8\xff", 0, "a picture; give a folder of videos, or a list"),
    (b"ftyp", 4, _VIDEO),
    (b"\x1a\x45\xdf\xa3", 0, _VIDEO),
    (b"AVI ", 8, _VIDEO),
    (b"OggS", 0, _VIDEO),
    (b"FLV\x01", 0, _VIDEO),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", 0, _VIDEO),
    (b"\x00\x00\x01\xba", 0, _VIDEO),
    (b"\x00\x00\x01\xb3", 0, _VIDEO),
    (b"GIF8", 0, _VIDEO),
)


def read_text(path: Path, expected: str, *, errors: str = "strict") -> str:
    """Read a text file without its byte-order mark; line ends are kept.

    Args:
        path: The file.
        expected: A description of the expected content, for messages.
        errors: For bytes that are not UTF-8: "strict" raises, "surrogateescape" keeps them.

    Raises:
        DataError: The file does not exist, cannot be read, is empty or is not text; the message names its type.
    """
    if path.is_dir():
        raise DataError(f"{path}: expected {expected}, got a folder")
    if not path.is_file():
        raise DataError(f"{path}: expected {expected}, got no such file; check the path")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            marked = head.startswith(tuple(mark for mark, _ in _MARKS))
            if kind := kind_of(head) or ("a binary file" if b"\0" in head and not marked else ""):
                raise DataError(f"{path}: expected {expected}, got {kind}")
            content = head + file.read()
    except OSError as exc:
        raise DataError(f"{path}: expected {expected}, got an unreadable file: {exc.strerror}") from exc
    mark, encoding = next(((mark, name) for mark, name in _MARKS if content.startswith(mark)), (b"", "utf-8"))
    content = content[len(mark) :]
    try:
        text = content.decode(encoding, errors if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as exc:
        line = len(split_lines(content[: exc.start].decode(encoding, "replace") + "x"))
        raise DataError(
            f"{path}, line {line}: expected {expected} in {encoding.upper()}, got the bytes "
            f"{content[exc.start : exc.end].hex(' ')}; save it as UTF-8"
        ) from exc
    if not text.strip():
        raise DataError(f"{path}: expected {expected}, got an empty file")
    return text


def kind_of(head: bytes) -> str:
    """Describe a file type by its first 262 bytes or more, with advice; empty for text and unknown types."""
    for magic, offset, description in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return description
    return ""


def split_lines(text: str) -> list[str]:
    """Split text into lines, with the line ends of Unix, Windows or classic Mac OS."""
    lines = re.split(r"\r\n|\n|\r", text)
    return lines[:-1] if not lines[-1] else lines


def read_json(path: Path) -> Any:
    """Read a JSON file; duplicate keys are an error.

    Raises:
        DataError: The file is not JSON or cannot be read.
    """
    try:
        return json.loads(read_text(path, "JSON"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{path}: expected JSON: {exc}") from exc


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"duplicate key {key!r}")
        content[key] = value
    return content
