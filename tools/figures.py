"""Measured figures in documents, between marks: `scripts/figures [--check]`.

Every block of measured figures stands between `<!-- scripts/figures: NAME -->` and `<!-- end of figures -->` and is
built from result files in `benchmarks/`. On the results page no figure may stand outside the marks, except in
paragraphs that begin with "The paper".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from paper import report
from tools import actions, measured
from trecvit.cli.app import run
from trecvit.errors import DataError
from trecvit.files import write_text

PAGE = "docs/results.md"
DOCUMENTS: dict[str, Callable[[Path], dict[str, str]]] = {
    "README.md": measured.readme,
    "docs/architecture.md": measured.architecture,
    "docs/performance.md": measured.performance,
    PAGE: report.texts,
    "docs/serving.md": measured.serving,
    "docs/tracking.md": measured.tracking,
    "docs/training.md": measured.training,
    "docs/notes/actions.md": actions.card,
    "src/trecvit/weights/motions/README.md": measured.motions_card,
    "src/trecvit/weights/points/README.md": measured.points_card,
}
"""Each document with the function that builds the texts between its marks, by name."""

_BEGIN, _END = "<!-- scripts/figures: {} -->", "<!-- end of figures -->"
_BLOCK = re.compile(rf"({_BEGIN.format('([^>]*)')}\n)(.*?)\n?({_END})", re.DOTALL)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if a figure differs.")] = False,
    root: Annotated[Path, typer.Option(help="The checkout.")] = Path(),
) -> None:
    """Fill the documents with the measured figures, and redraw the pictures that need only a result file."""
    for picture in () if check else report.draw_pictures(root):
        print(picture)
    for name, build in DOCUMENTS.items():
        path = root / name
        before = _read(path)
        after = fill(before, build(root), name)
        if name == PAGE:
            refuse_figures_by_hand(after, name)
        if check and after != before:
            raise DataError(f"{path}: {first_difference(before, after)}; run `scripts/figures`")
        if after != before:
            write_text(path, after)
            print(f"{path}: changed")
    print(f"{len(DOCUMENTS)} documents agree with the result files")


def fill(document: str, texts: dict[str, str], name: str) -> str:
    """Replace the text between all marks of a document.

    Args:
        document: Its text.
        texts: New text for each mark.
        name: The document's name, for errors.

    Raises:
        DataError: unless the document has exactly one pair of marks for each text, and no other.
    """
    marks = [match[2] for match in _BLOCK.finditer(document)]
    if sorted(marks) != sorted(texts):
        missing = sorted({*texts} - {*marks}) or sorted(
            mark for mark in marks if mark not in texts or marks.count(mark) > 1
        )
        raise DataError(
            f"{name}: expected one block `{_BEGIN.format('NAME')}` … `{_END}` for each of {len(texts)} texts, got "
            f"{len(marks)} blocks; missing, unknown or repeated: {', '.join(missing)}"
        )
    return _BLOCK.sub(lambda match: f"{match[1]}{texts[match[2]]}\n{match[4]}", document)


def first_difference(document: str, rebuilt: str) -> str:
    """Describe the first line that differs between a document and its rebuilt text."""
    ours, theirs = document.split("\n"), rebuilt.split("\n")
    index = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
    got, expected = (lines[index] if index < len(lines) else "" for lines in (ours, theirs))
    return f"line {index + 1}: expected {expected!r} as in the result files, got {got!r}"


_FIGURE = re.compile(r"\d\.\d|\d ?(?:%|×|GB|dB|fps|frames/s|steps/s)")
_NO_FIGURES = re.compile(r"`[^`]*`|\]\([^)]*\)")  # code, and link targets


def refuse_figures_by_hand(document: str, name: str) -> None:
    """Check that all figures are in blocks, in code, or in paragraphs about the paper.

    Raises:
        DataError: with the first line that has another.
    """
    paragraph = code = ""
    without_blocks = _BLOCK.sub(lambda match: "\n" * match[0].count("\n"), document)
    for number, line in enumerate(without_blocks.split("\n"), start=1):
        if line.startswith("```"):
            code = "" if code else line
        paragraph = paragraph or line if line else ""
        if line.startswith("The paper"):
            paragraph = line
        if not code and not paragraph.startswith("The paper") and _FIGURE.search(_NO_FIGURES.sub("", line)):
            raise DataError(
                f"{name}: line {number}: expected figures between marks, from result files, or in a paragraph that "
                f'begins with "The paper", got {line!r}'
            )


def _read(path: Path) -> str:
    if not path.exists():
        raise DataError(f"{path}: expected a document with measured figures; run this in the checkout, or give --root")
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    run(app)
