"""Expansion of source arguments: patterns and `~` that no shell has expanded."""

from __future__ import annotations

import glob
import os.path
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trecvit.cli.terminal import notify
from trecvit.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from trecvit.video.decode import Video


@contextmanager
def open_source(source: str, *, latest: bool | None, reconnect_s: float) -> Iterator[Video]:
    """Open one video or live source, and print what a live one loses: its connection, skipped frames.

    Raises:
        ConfigError: --latest for a source with an end.
        VideoError: It cannot be opened.
    """
    from trecvit.video.live import LiveVideo, open_live

    with open_live(source, latest=latest, patience_s=reconnect_s, report=notify) as video:
        yield video
        if isinstance(video, LiveVideo) and video.skipped:
            notify(f"{video.info.source}: {video.skipped} frames were skipped, because newer ones had arrived")


def expand_source(source: str) -> list[str]:
    """Return the sources that one argument names: the sorted matches of a pattern, else the argument.

    An existing file takes precedence over a pattern, so brackets in names are safe. URLs and devices are unchanged.

    Raises:
        VideoError: A pattern without a match.
        ConfigError: `-`, for standard input.
    """
    if source == "-":
        raise ConfigError("expected a file, a folder or a URL, got - (standard input); save the video to a file")
    if os.path.lexists(source) or re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", source):
        return [source]
    path = os.path.expanduser(source)
    if os.path.lexists(path) or not glob.has_magic(path):
        return [path]
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        raise VideoError(source, "there is no such file, and as a pattern it matches none; check the path")
    return matches


def expand_one(source: str) -> str:
    """`expand_source` for a single video.

    Raises:
        VideoError: As `expand_source`.
        ConfigError: As `expand_source`, and for a pattern with several matches.
    """
    matches = expand_source(source)
    if len(matches) > 1:
        raise ConfigError(f"{source}: expected one video, but {len(matches)} files match, {matches[0]} first; name one")
    return matches[0]


def expand_paths(paths: Sequence[Path] | None) -> list[Path]:
    """`expand_source` for a list of paths; None is empty."""
    return [Path(source) for path in paths or () for source in expand_source(str(path))]
