"""Processors that the tests pretend to run on, by what `trecvit.processor` answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FEATURES = {"avx2": {"onednn", "mkl"}, "bare": set[str]()}  # "bare": also an ARM or a build without oneDNN and MKL


def pretend(name: str, setattr: Callable[[Any, str, Any], Any] = setattr) -> None:
    """Answers as a processor of this name would.

    Args:
        name: Of `FEATURES`.
        setattr: `monkeypatch.setattr`, to be on this processor again after a test.
    """
    from trecvit import processor

    setattr(processor, "_is_supported", FEATURES[name].__contains__)
