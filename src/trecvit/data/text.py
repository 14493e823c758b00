"""Lists, tables and JSON as text files of any system: UTF-8, or UTF-16 and UTF-32 with a byte-order mark."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from trecvit.errors import DataError

# In this order: the mark of UTF-32 begins with that of UTF-16.
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
# What files begin with (bytes, and where they stand), and what they are.
_KNOWN = (
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
    """The content of a text file without its byte-order mark; line ends are kept as they are.

    Args:
        path: The file.
        expected: What it should be, for messages.
        errors: For bytes that are no UTF-8: "strict" refuses them, "surrogateescape" keeps them.

    Raises:
        DataError: For a file that is not there, cannot be read, is empty, or is no text; the message says what it is.
    """
    if path.is_dir():
        raise DataError(f"{path}: expected {expected}, got a folder")
    if not path.is_file():
        raise DataError(f"{path}: expected {expected}, and there is no such file; check the path")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            marked = head.startswith(tuple(mark for mark, _ in _MARKS))
            if kind := kind_of(head) or ("a binary file" if b"\0" in head and not marked else ""):
                raise DataError(f"{path}: expected {expected}, got {kind}")
            content = head + file.read()
    except OSError as exc:
        raise DataError(f"{path}: expected {expected}, and it cannot be read: {exc.strerror}") from exc
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
    """What a file is by its first bytes, 262 or more, and what to do with it; empty for text and what is not known."""
    for magic, place, words in _KNOWN:
        if head[place : place + len(magic)] == magic:
            return words
    return ""


def split_lines(text: str) -> list[str]:
    """Lines without their ends, which may be those of Unix, Windows or old Macs."""
    lines = re.split(r"\r\n|\n|\r", text)
    return lines[:-1] if not lines[-1] else lines


def read_json(path: Path) -> Any:
    """The content of a JSON file; an object that names a key twice is refused.

    Raises:
        DataError: For what is not JSON, or cannot be read.
    """
    try:
        return json.loads(read_text(path, "JSON"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{path}: expected JSON: {exc}") from exc


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key!r} stands there twice")
        content[key] = value
    return content
