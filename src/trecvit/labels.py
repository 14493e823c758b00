"""Names of classes: one rule for names from files and from Python."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, KeysView, Mapping, Set

from trecvit.config import as_integer
from trecvit.errors import ConfigError


def check_labels(labels: object) -> tuple[str, ...]:
    """Check the names of classes and return them as plain strings, in the order of the class indices.

    Accepted names can be saved, printed one per line, and distinguished.

    Args:
        labels: An ordered iterable of names; or transformers' `id2label`, a mapping from 0 ... n-1 (also as text, as in
            JSON) to names, with its keys in any order.

    Returns:
        One name per class: not empty, printable, without surrounding white space, and unique.

    Raises:
        ConfigError: for all others, with the class and its name.
    """
    names: dict[str, int] = {}
    for index, label in enumerate(_in_order(labels)):
        if not isinstance(label, str):
            kind = type(label).__name__
            raise ConfigError(f"labels: expected text as the name of class {index}, got {kind} {label!r:.80}")
        name = "".join(label)  # a plain string of a subclass, such as numpy's
        if reason := why_no_label(name):
            raise ConfigError(f"labels: expected a name for class {index}, got {name!r:.80}, {reason}")
        if name in names:
            raise ConfigError(
                f"labels: expected each name once, got {name!r:.80} for classes {names[name]} and {index}; "
                "rename one of them, or merge the classes"
            )
        names[name] = index
    return tuple(names)


def _in_order(labels: object) -> Iterable[object]:
    if isinstance(labels, Mapping):
        by_index = {as_integer(int(key) if isinstance(key, str) and key.isdecimal() else key): key for key in labels}
        if set(by_index) != set(range(len(labels))):
            raise ConfigError(
                f"labels: expected a list of names or a mapping from 0 ... {max(len(labels) - 1, 0)} to names, got a "
                f"mapping with the keys {', '.join(map(repr, [*labels][:5]))}{' ...' if len(labels) > 5 else ''}; give "
                "a list of names in the order of the class indices"
            )
        return [labels[by_index[index]] for index in range(len(labels))]
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise ConfigError(
            f"labels: expected a list of names, one per class, got {type(labels).__name__} {labels!r:.80}"
        )
    if isinstance(labels, Set) and not isinstance(labels, KeysView):
        raise ConfigError("labels: expected names in the order of the class indices, got a set, which has no order")
    return labels


def why_no_label(name: str) -> str:
    """Explain why a text cannot be the name of a class; empty if it can."""
    if not name.strip():
        return "which is empty"
    if name != name.strip() or name.startswith("\ufeff"):
        return "with white space or a byte-order mark around it; strip the names"
    kinds = {unicodedata.category(character) for character in name}
    if "Cs" in kinds:
        return "which is not valid Unicode; was the file read in another encoding?"
    return "with a control character or line break in it" if kinds & {"Cc", "Zl", "Zp"} else ""
