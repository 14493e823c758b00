"""`--help` of every command against tests/golden/help. `python -m tests.test_help` writes these files anew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer import rich_utils
from typer.testing import CliRunner

from paper.commands import app as paper
from trecvit.cli import app as trecvit

HELP = Path(__file__).parent / "golden" / "help"
APPS = {"trecvit": trecvit, "paper": paper}


def commands(command: Any, *words: str) -> Iterator[tuple[str, ...]]:
    """The words of a command and of all below it, those that `--help` hides too."""
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *words, name)


ALL = [words for name, app in APPS.items() for words in commands(typer.main.get_command(app), name)]


def help_of(words: tuple[str, ...], patch: pytest.MonkeyPatch) -> str:
    """Plain text of 100 columns, whatever the terminal."""
    for name, value in (("MAX_WIDTH", 100), ("COLOR_SYSTEM", None), ("FORCE_TERMINAL", False)):
        patch.setattr(rich_utils, name, value)
    result = CliRunner().invoke(APPS[words[0]], [*words[1:], "--help"], prog_name=words[0])
    assert result.exit_code == 0, result.output
    return "".join(line.rstrip() + "\n" for line in result.output.splitlines())


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_is_the_golden_text(words, monkeypatch):
    expected = (HELP / f"{'_'.join(words)}.txt").read_text(encoding="utf-8")
    assert help_of(words, monkeypatch) == expected, "run `python -m tests.test_help` after a change of wording"


def test_every_golden_text_is_of_a_command():
    assert {path.stem for path in HELP.iterdir()} == {"_".join(words) for words in ALL}


if __name__ == "__main__":
    for path in HELP.glob("*.txt"):
        path.unlink()
    with pytest.MonkeyPatch.context() as patch:
        for words in ALL:
            (HELP / f"{'_'.join(words)}.txt").write_text(help_of(words, patch), encoding="utf-8")
