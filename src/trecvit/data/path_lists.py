"""Lists of videos as text: a path and a class index per line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from trecvit.data.text import read_text, split_lines
from trecvit.errors import DataError
from trecvit.files import write_text

# A path in quotes, which may contain anything, and its class index up to the end of the line.
_QUOTED = re.compile(r'[ \t]*"([^"]*(?:""[^"]*)*)"[ \t]*[\t ,][ \t]*(-1|[0-9]+)[ \t]*(?:\r\n|\n|\r|\Z)')


def read_path_list(path: Path, *, is_labelled: bool = True) -> Iterator[tuple[int, str, int]]:
    """Read a list and yield line number, path and class index of each entry.

    Args:
        path: The list.
        is_labelled: Whether each line has a class index; else it may be absent, and is -1 then.

    Raises:
        DataError: The file is not text, or a line is not a path and an index.
    """
    return _entries(read_text(path, "a list as text", errors="surrogateescape"), str(path), is_labelled)


def write_list(path: Path, entries: Iterable[tuple[str, int]]) -> None:
    """Write paths and class indices as `read_path_list` reads them, one video per line.

    A path that would be misread, such as one with a line break, is quoted. Names that are not UTF-8 keep their bytes.
    """
    write_text(path, "".join(_as_entry(name, label) for name, label in entries))


def _entries(text: str, source: str, is_labelled: bool = True) -> Iterator[tuple[int, str, int]]:
    """Yield line number, path and class index of each entry."""
    place = 0
    line = 1
    while place < len(text):
        if quoted := _QUOTED.match(text, place):
            yield line, quoted[1].replace('""', '"'), int(quoted[2])
            end = quoted.end()
        else:
            stop = re.compile(r"\r\n|\n|\r|\Z").search(text, place)
            assert stop is not None, "\\Z always matches"
            content, end = text[place : stop.start()], stop.end()
            if content.strip():
                yield line, *_path_and_label(content, f"{source}, line {line}", is_labelled)
        line += len(split_lines(text[place:end]))
        place = end


def _path_and_label(text: str, where: str, is_labelled: bool) -> tuple[str, int]:
    for separator in ("\t", " ", ","):
        name, matched, label = text.rstrip().rpartition(separator)
        if matched and re.fullmatch(r"-1|[0-9]+", label.strip()):
            return _without_quotes(name.strip().rstrip(",")), int(label)
    if not is_labelled and is_text(text):
        return _without_quotes(text.strip()), -1
    expected = "a path and a class index" if is_text(text) else "a list as text in UTF-8"
    raise DataError(f"{where}: expected {expected}, got {text[:200]!r}")


def _without_quotes(name: str) -> str:
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name


def _as_entry(name: str, label: int) -> str:
    entry = f"{name} {label}\n"
    try:
        as_read = [(name, label) for _, name, label in _entries(entry, "")]
    except DataError:
        as_read = []
    # A later line could close an opening quote, and a byte-order mark at the start of a list is not content.
    if as_read == [(name, label)] and not name.startswith(('"', "\ufeff")):
        return entry
    return '"{}" {}\n'.format(name.replace('"', '""'), label)


def is_text(name: str) -> bool:
    """Test whether a file name is valid text, without escaped bytes."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)
