"""Files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written beside its place, under a name of this process, and moves it there once it is complete.

    Args:
        path: Where it will be.
        write: Writes the file that it is given the path of.
    """
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        write(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


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
