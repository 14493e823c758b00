"""Names of the classes of public data sets, in the order of their numbers."""

from __future__ import annotations

from importlib.resources import files
from typing import Literal, get_args

from trecvit.config import nearest
from trecvit.errors import DataError

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
