"""Names of classes in the order of their numbers: those of public data sets, and files of them."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from trecvit.config import nearest
from trecvit.data.text import read_json, read_text, split_lines
from trecvit.errors import DataError
from trecvit.files import write_text
from trecvit.labels import why_no_label

DataSet = Literal["kinetics400", "something_something_v2"]


def class_names(data_set: str) -> tuple[str, ...]:
    """The class names of "kinetics400" (400) or "something_something_v2" (174 templates), line n being class n.

    Raises:
        DataError: for another name, with the nearest one.
    """
    known = get_args(DataSet)
    if data_set not in known:
        raise DataError(f"no class names for {data_set!r}{nearest(data_set, known)}; there are {', '.join(known)}")
    text = (files("trecvit.data") / "labels" / f"{data_set}.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def read_labels(name: str | Path) -> tuple[str, ...]:
    """Names of classes in the order of their numbers.

    Text files have a name per line. Byte-order marks, blanks around names and blank lines at the end are nothing; a
    blank line before a name, or a name that stands there twice, is an error.

    Args:
        name: "kinetics400", "something_something_v2", a text file with a name per line, a `.csv` file with names and
            numbers, or a JSON file: a list of names, or an object of names and numbers, either way round.

    Raises:
        DataError: When it is none of these, the numbers have gaps, or a name is empty, doubled or no valid text.
    """
    path, known = Path(name), get_args(DataSet)
    if not path.exists():
        if str(name) in known:
            return class_names(str(name))
        raise DataError(
            f"{name}: expected a file with the names of the classes, or {' or '.join(known)}; there is no such file"
            f"{nearest(str(name), known)}; check the path"
        )
    if path.suffix.lower() == ".json":
        return _from_json(path)
    lines = [line.strip() for line in split_lines(read_text(path, "one class name per line"))]
    if path.suffix.lower() == ".csv" and (table := _table(lines)):
        return _numbered(path, table)
    while not lines[-1]:
        del lines[-1]
    check_labels(lines, [f"{path}, line {number}" for number in range(1, len(lines) + 1)])
    return tuple(lines)


def write_labels(path: Path, labels: Sequence[str]) -> None:
    """Writes names as `read_labels` reads them, one per line."""
    write_text(path, "".join(f"{label}\n" for label in labels))


def label_hash(labels: Sequence[str]) -> str:
    """A short hash of the classes' names in their order, to tell whether two label maps are the same."""
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()[:16]


def check_labels(labels: Sequence[str], places: Sequence[str]) -> None:
    """Refuses names that files of names could not hold, or that stand for two classes.

    Args:
        labels: The names.
        places: Where each of them stands, for messages.

    Raises:
        DataError: For a name that is empty, begins or ends with a blank, is no valid text, or is there twice.
    """
    first: dict[str, str] = {}
    for label, place in zip(labels, places, strict=True):
        if reason := why_no_label(label):
            raise DataError(f"{place}: expected the name of a class, got {label!r}, {reason}")
        if label in first:
            raise DataError(f"{place}: {label!r} is the name of a class already ({first[label]}); rename one")
        first[label] = place


def plain(template: str) -> str:
    """A template without the brackets around its placeholders, as the class names have it."""
    return template.replace("[", "").replace("]", "").strip()


def _from_json(path: Path) -> tuple[str, ...]:
    content = read_json(path)
    if isinstance(content, list) and all(isinstance(label, str) for label in content):
        labels = [label.strip() for label in content]
        check_labels(labels, [f"{path}, entry {number}" for number in range(len(labels))])
        return tuple(labels)
    if isinstance(content, dict) and content:
        if all(_is_number(value) for value in content.values()):
            return _numbered(path, ((int(number), plain(label)) for label, number in content.items()))
        if all(_is_number(key) and isinstance(value, str) for key, value in content.items()):
            return _numbered(path, ((int(number), plain(label)) for number, label in content.items()))
    raise DataError(f"{path}: expected a list of names, or an object of names and numbers from 0 on")


def _is_number(value: Any) -> bool:
    text = value if isinstance(value, str) else str(value) if type(value) is int else ""
    return re.fullmatch(r"\s*[0-9]+\s*", text) is not None


def _table(lines: Iterable[str]) -> list[tuple[int, str]]:
    """The rows of a table of numbers and names, with or without a header; nothing if the lines are none."""
    rows = [row for row in csv.reader(lines) if row]
    if not all(len(row) == 2 for row in rows):
        return []
    for column in (0, 1):
        body = rows if _is_number(rows[0][column]) else rows[1:]
        if body and all(_is_number(row[column]) for row in body):
            return [(int(row[column]), row[1 - column].strip()) for row in body]
    return []


def _numbered(path: Path, pairs: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    """The names in the order of their numbers, which must be all from 0 on."""
    by_number: dict[int, str] = {}
    for number, label in pairs:
        if number in by_number:
            raise DataError(
                f"{path}: expected a list of names or each number once, got {number} for {by_number[number]!r} and "
                f"for {label!r}"
            )
        by_number[number] = label
    missing = next((number for number in range(len(by_number)) if number not in by_number), None)
    if missing is not None:
        raise DataError(
            f"{path}: expected a list of names or all numbers from 0 to {len(by_number) - 1}, got none for {missing}"
        )
    labels = tuple(by_number[number] for number in range(len(by_number)))
    check_labels(labels, [f"{path}, class {number}" for number in range(len(labels))])
    return labels
