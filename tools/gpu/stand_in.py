"""Empty modules in place of PyAV, which reads and writes video files: no measurement here does.

Machines with GPUs are often without it and without a way to install it, and much of the package imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def allow_missing(package: str) -> None:
    """Let this process import a package that may not be installed; what is used of it then does not work."""
    if find_spec(package) is None:
        sys.meta_path.append(_Finder(package))


class _Absent(type):
    """Of classes to inherit from, to catch, to annotate with, and to join with |; their attributes are such classes."""

    def __getattr__(cls, name: str) -> Any:
        return _absent(name)


def _absent(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Absent(name, (Exception,), {})


class _Module(ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - so that it may have parts

    def __getattr__(self, name: str) -> Any:
        return _absent(name)


class _Finder(MetaPathFinder, Loader):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
