"""Files that appear whole or not at all."""

from __future__ import annotations

import os
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
    """`write_whole` for text, in UTF-8."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
