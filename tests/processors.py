"""Simulated processors: what `trecvit.processor` detects is replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FEATURES = {"avx2": {"onednn", "mkl"}, "bare": set[str]()}  # "bare": also an ARM or a build without oneDNN and MKL


def pretend(name: str, setattr: Callable[[Any, str, Any], Any] = setattr) -> None:
    """Let the package detect the features of the processor of this name.

    Args:
        name: Of `FEATURES`.
        setattr: `monkeypatch.setattr`, which undoes it after a test.
    """
    from trecvit import processor

    setattr(processor, "_is_supported", FEATURES[name].__contains__)
