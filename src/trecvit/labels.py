"""Names of classes: one rule for names from files and from Python."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, KeysView, Mapping, Set

from trecvit.config import as_integer
from trecvit.errors import ConfigError


def check_labels(labels: object) -> tuple[str, ...]:
    """Names of classes, in the order of their numbers, as plain strings; what has no order or is no name is refused.

    One rule for names from files and from Python, so that whatever is accepted can be saved, printed line by line and
    told apart.

    Args:
        labels: A list or any other iterable of names; or transformers' `id2label`, a mapping from 0 ... n-1 (also as
            text, as JSON has it) to names, whatever the order of its keys.

    Returns:
        One name per class: not empty, printable, without white space around it, and each once.

    Raises:
        ConfigError: for anything else, with the class and its name.
    """
    names: dict[str, int] = {}
    for number, label in enumerate(_in_order(labels)):
        if not isinstance(label, str):
            kind = type(label).__name__
            raise ConfigError(f"labels: expected a text as the name of class {number}, got {kind} {label!r:.80}")
        name = "".join(label)  # of a subclass, such as numpy's, a plain string
        if reason := why_no_label(name):
            raise ConfigError(f"labels: expected a name for class {number}, got {name!r:.80}, {reason}")
        if name in names:
            raise ConfigError(
                f"labels: expected each name once, got {name!r:.80} for classes {names[name]} and {number}; "
                "rename one of them, or make them one class"
            )
        names[name] = number
    return tuple(names)


def _in_order(labels: object) -> Iterable[object]:
    if isinstance(labels, Mapping):
        by_number = {as_integer(int(key) if isinstance(key, str) and key.isdecimal() else key): key for key in labels}
        if set(by_number) != set(range(len(labels))):
            raise ConfigError(
                f"labels: expected a list of names or a mapping from 0 ... {max(len(labels) - 1, 0)} to names, got a "
                f"mapping with the keys {', '.join(map(repr, [*labels][:5]))}{' ...' if len(labels) > 5 else ''}; give "
                "a list of names in the order of the classes' numbers"
            )
        return [labels[by_number[number]] for number in range(len(labels))]
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise ConfigError(
            f"labels: expected a list of names, one per class, got {type(labels).__name__} {labels!r:.80}"
        )
    if isinstance(labels, Set) and not isinstance(labels, KeysView):
        raise ConfigError("labels: expected names in the order of the classes' numbers, got a set, which has no order")
    return labels


def why_no_label(name: str) -> str:
    """Why a text cannot be the name of a class; empty if it can."""
    if not name.strip():
        return "which is empty"
    if name != name.strip() or name.startswith("\ufeff"):
        return "with white space or a byte-order mark around it; strip the names"
    kinds = {unicodedata.category(character) for character in name}
    if "Cs" in kinds:
        return "which is not valid Unicode; was the file read in another encoding?"
    return "with a control character or line break in it" if kinds & {"Cc", "Zl", "Zp"} else ""
