"""Checks of output paths before the work starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from trecvit.errors import ConfigError
from trecvit.files import is_empty


def check_file(
    option: str, path: Path | None, *, suffixes: Sequence[str] = (), inputs: Sequence[str | Path] = ()
) -> None:
    """Check that a file can be written at `path`; None is no output.

    Args:
        option: Name of the option or argument, for messages.
        path: The output file.
        suffixes: Allowed suffixes; any if empty.
        inputs: Files that are read meanwhile and must not be overwritten; other names are ignored.

    Raises:
        ConfigError: Another suffix, a folder that does not exist or is not writable, a name that is a folder, a
            read-only file, or one of the inputs, also by another link to it.
    """
    if path is None:
        return
    if suffixes and path.suffix.lower() not in suffixes:
        raise ConfigError(f"{option}: expected a name that ends in {' or '.join(suffixes)}, got {str(path)!r}")
    if path.is_dir():
        raise ConfigError(f"{option}: expected the name of a file, but {path} is a folder; give a name in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {path.parent} for {path.name}; make it first")
    for other in inputs:
        if _same_file(path, Path(other)):
            raise ConfigError(f"{path} is a file to be read and would be overwritten; give {option} another name")
    if not path.exists():
        _check_writable_folder(option, path.parent)
    elif not path.is_file():  # such as /dev/stdout, to which no finished video or array can be moved
        if suffixes:
            raise ConfigError(f"{option}: expected the name of a file, but {path} is a device or pipe")
    elif not os.access(path, os.W_OK):
        raise ConfigError(f"{option}: {path} exists and is read-only; give another name")
    else:
        _check_writable_folder(option, path.parent)


def check_folder(option: str, path: Path | None, *, empty: bool = False) -> None:
    """Check that files can be written to the folder `path`, which need not exist yet; None is no output.

    Args:
        option: Name of the option or argument, for messages.
        path: The folder.
        empty: Whether it must be empty.

    Raises:
        ConfigError: It is a file, cannot be created or written to, or is not empty but must be.
    """
    if path is None:
        return
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise ConfigError(f"{option}: expected a folder, but {existing} is a file; give another name")
    if empty and not is_empty(path):
        raise ConfigError(f"{option}: expected a new or empty folder, but {path} holds files; give another name")
    _check_writable_folder(option, existing)


def check_distinct(**paths: Path | None) -> None:
    """Check that no two outputs are the same file.

    Args:
        paths: The outputs by the names of their options.

    Raises:
        ConfigError: Two of them are.
    """
    outputs = [(name, path) for name, path in paths.items() if path is not None]
    for index, (name, path) in enumerate(outputs):
        for other_name, other in outputs[:index]:
            if path.absolute() == other.absolute() or _same_file(path, other):
                raise ConfigError(f"--{other_name} and --{name} are the same file, {path}; give two names")


def _same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):  # one of them does not exist or is not a path
        return False


def _check_writable_folder(option: str, folder: Path) -> None:
    # Write a file, since access rights do not show read-only disks, quotas and network shares.
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{option}: no file can be written to the folder {folder}: {error.strerror}") from error
