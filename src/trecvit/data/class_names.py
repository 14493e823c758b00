"""Class names in index order: those of public data sets, and files of names."""

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
    """Return the class names of "kinetics400" (400) or "something_something_v2" (174 templates).

    Raises:
        DataError: The data set is unknown; the message suggests the nearest name.
    """
    data_sets = get_args(DataSet)
    if data_set not in data_sets:
        raise DataError(f"data_set: expected {' or '.join(data_sets)}, got {data_set!r}{nearest(data_set, data_sets)}")
    text = (files("trecvit.data") / "labels" / f"{data_set}.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def read_labels(name: str | Path) -> tuple[str, ...]:
    """Read class names in index order.

    Text files have a name per line. Byte-order marks, blanks around names and blank lines at the end are ignored; a
    blank line before a name or a duplicate name is an error.

    Args:
        name: "kinetics400", "something_something_v2", a text file with a name per line, a `.csv` file with names and
            numbers, or a JSON file: a list of names, or an object from names to numbers or back.

    Raises:
        DataError: The file is none of these, the numbers have gaps, or a name is empty, duplicate or invalid text.
    """
    path, data_sets = Path(name), get_args(DataSet)
    if not path.exists():
        if str(name) in data_sets:
            return class_names(str(name))
        raise DataError(
            f"{name}: expected a file of class names, or {' or '.join(data_sets)}, got no such file"
            f"{nearest(str(name), data_sets)}; check the path"
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
    """Write names as `read_labels` reads them, one per line."""
    write_text(path, "".join(f"{label}\n" for label in labels))


def label_hash(labels: Sequence[str]) -> str:
    """Return a short hash of the class names in order, to compare label maps."""
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()[:16]


def check_labels(labels: Sequence[str], places: Sequence[str]) -> None:
    """Validate class names.

    Args:
        labels: The names.
        places: The origin of each, for messages.

    Raises:
        DataError: A name is empty, begins or ends with a blank, is invalid text, or is a duplicate.
    """
    first: dict[str, str] = {}
    for label, place in zip(labels, places, strict=True):
        if reason := why_no_label(label):
            raise DataError(f"{place}: expected a class name, got {label!r}, {reason}")
        if label in first:
            raise DataError(
                f"{place}: expected unique class names, got {label!r} again (first: {first[label]}); rename one"
            )
        first[label] = place


def plain(template: str) -> str:
    """Remove the brackets around a template's placeholders, as in the class names."""
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
    raise DataError(f"{path}: expected a list of names, or an object of names and numbers from 0")


def _is_number(value: Any) -> bool:
    text = value if isinstance(value, str) else str(value) if type(value) is int else ""
    return re.fullmatch(r"\s*[0-9]+\s*", text) is not None


def _table(lines: Iterable[str]) -> list[tuple[int, str]]:
    """Parse a table of numbers and names, with or without a header; empty if the lines are not a table."""
    rows = [row for row in csv.reader(lines) if row]
    if not all(len(row) == 2 for row in rows):
        return []
    for column in (0, 1):
        body = rows if _is_number(rows[0][column]) else rows[1:]
        if body and all(_is_number(row[column]) for row in body):
            return [(int(row[column]), row[1 - column].strip()) for row in body]
    return []


def _numbered(path: Path, pairs: Iterable[tuple[int, str]]) -> tuple[str, ...]:
    """Sort names by their numbers, which must be consecutive from 0."""
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
