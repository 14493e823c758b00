"""Sources as people type them: patterns and `~` that no shell has expanded, and standard input."""

from __future__ import annotations

import glob
import os.path
import re
from collections.abc import Sequence
from pathlib import Path

from trecvit.errors import ConfigError, VideoError


def expand_source(word: str) -> list[str]:
    """The sources that one argument names, sorted: those that match if it is a pattern, else itself.

    A file of that very name comes first, so brackets in names are safe. Addresses and device names stay as they are.

    Raises:
        VideoError: If it is a pattern that nothing matches.
        ConfigError: For `-`.
    """
    if word == "-":
        raise ConfigError("expected a file, a folder or an address, got - (standard input); save the video to a file")
    if os.path.lexists(word) or re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", word):
        return [word]
    path = os.path.expanduser(word)
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise VideoError(word, "there is no such file, and as a pattern it matches none; check the path")
    return found


def expand_one(word: str) -> str:
    """`expand_source` where one video is expected.

    Raises:
        VideoError: As `expand_source`.
        ConfigError: Likewise, and for a pattern that several files match.
    """
    found = expand_source(word)
    if len(found) > 1:
        raise ConfigError(f"{word}: expected one video, but {len(found)} files match, {found[0]} first; name one")
    return found[0]


def expand_paths(paths: Sequence[Path] | None) -> list[Path]:
    """`expand_source` of every path, one after another; None holds no path."""
    return [Path(source) for path in paths or () for source in expand_source(str(path))]
