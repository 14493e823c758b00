"""What people see: bars, tables, complaints."""

from __future__ import annotations

import codecs
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from trecvit.data.clips import Failure


# Plain letters for what this package prints, where an output has no Unicode: redirects on Windows, LANG=C.
_PLAIN = {
    "█": "#", "●": "*", "○": "o", "…": "...", "·": "-", "–": "-", "×": "x", "±": "+-", "≥": ">=", "δ": "delta",
    "λ": "lambda",
}  # fmt: skip
_MIN_FOLDED = 8  # letters of a folded column


def degrade_output() -> None:
    """Makes stdout and stderr print any text: what their encoding lacks becomes plain letters or an escape.

    Labels and file names may hold any character, and names that are not UTF-8 hold halves of surrogate pairs. Outputs
    that were closed when the process began print nowhere.
    """
    codecs.register_error("trecvit-plain", partial(_degraded, letters=None))
    # On terminals each is one letter, as it was when rows were cut to the terminal's width.
    codecs.register_error("trecvit-plain-letter", partial(_degraded, letters=1))
    if sys.stdout is None or sys.stderr is None:
        nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  open until the process ends
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="trecvit-plain-letter" if stream.isatty() else "trecvit-plain")


def _degraded(error: UnicodeError, *, letters: int | None) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letter = error.object[error.start]
    if letter in _PLAIN:
        return _PLAIN[letter][:letters], error.start + 1
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return codecs.backslashreplace_errors(one)


@contextmanager
def progress_bar(what: str, total: int | None, *, hidden: bool = False) -> Iterator[Callable[..., None]]:
    """A bar on stderr for long work, with the time left; nothing where nobody looks.

    It is moved by the number of things done and, where some can fail, of those that failed. A `total` of None is one
    that nobody knows.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, **_bar_place(hidden=hidden), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(done: int, failed: int = 0) -> None:
            bar.update(task, completed=done, description=f"{what}, {failed} failed" if failed else what)

        yield advance


@contextmanager
def progress_bars(*, hidden: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each of several things that are done one after another, told by name, number done and number in all."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, **_bar_place(hidden=hidden)) as bars:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def _bar_place(*, hidden: bool) -> dict[str, Any]:
    """Arguments of a bar on stderr. It takes what is printed meanwhile to stdout, unless that goes to a file."""
    return {
        "console": console(stderr=True),
        "disable": hidden or not sys.stderr.isatty(),
        "redirect_stdout": sys.stdout.isatty(),
    }


@contextmanager
def download_bar() -> Iterator[Callable[[int, int | None], None]]:
    """A bar that appears with the first bytes of a download."""
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        "downloading",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
    )
    task = None

    def advance(done_bytes: int, total_bytes: int | None) -> None:
        nonlocal task
        if task is None:
            bar.start()
            task = bar.add_task("download", total=total_bytes)
        bar.update(task, completed=done_bytes, total=total_bytes)

    try:
        yield advance
    finally:
        if task is not None:
            bar.stop()


@contextmanager
def live_panel(title: str, num_frames: int | None) -> Iterator[Callable[[RenderableType, int, float], None]]:
    """A panel that is drawn anew for each frame: its content, the frame's number and its time."""
    import time

    from rich.live import Live
    from rich.panel import Panel
    from rich.text import Text

    begun_s, looked_at = time.perf_counter(), 0
    with Live(console=console(), refresh_per_second=12) as live:

        def draw(content: RenderableType, index: int, time_s: float) -> None:
            nonlocal looked_at
            looked_at += 1
            speed = looked_at / (time.perf_counter() - begun_s)
            place = f"frame {index + 1}" + (f" of {num_frames}" if num_frames else "")
            words = f"{place} · {time_s:.1f} s · {speed:.{0 if speed >= 10 else 1}f} frames/s"
            live.update(Panel(content, title=Text(title), subtitle=words, width=min(console().width, 90)))

        yield draw


def print_facts(facts: dict[str, Any]) -> None:
    """A line for each name and its value."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if isinstance(value, dict):
            words = "\n".join(f"{key}: {item}" for key, item in value.items())
        elif isinstance(value, list):
            words = ", ".join(str(item) for item in value)
        else:
            words = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(Text(name, "bold"), words)
    console().print(table, highlight=False)


def row_printer(titles: Sequence[str], widths: Sequence[int]) -> Callable[[Sequence[Sequence[str]]], None]:
    """Prints tables piece by piece, as results come: the titles once, then rows.

    Args:
        titles: Of the columns.
        widths: Of the columns' longest cells, in letters. Where a terminal is too narrow, the first column folds.

    Returns:
        A function that prints some rows at once.
    """
    from rich.table import Table

    rest = sum(2 + width for width in widths[1:])
    output = console() if sys.stdout.isatty() else console(width=widths[0] + rest)
    widths = (min(widths[0], max(_MIN_FOLDED, output.width - rest)), *widths[1:])
    is_first = True

    def print_rows(rows: Sequence[Sequence[str]]) -> None:
        nonlocal is_first
        table = Table(box=None, pad_edge=False, show_header=is_first)
        for title, width in zip(titles, widths, strict=True):
            table.add_column(title, width=width, overflow="fold")
        for row in rows:
            table.add_row(*row)
        with output.capture() as captured:
            output.print(table, highlight=False)
        print(captured.get(), end="", flush=True)  # by way of a bar that may be on the terminal
        is_first = False

    return print_rows


def name_failures(failures: Sequence[Failure]) -> None:
    """Lists videos that could not be read, and makes the exit code 1 if there are any."""
    for failure in failures:
        complain(f"{failure.name}: {failure.reason}")
    if failures:
        raise typer.Exit(1)


def bar_letters() -> int:
    """How long a full bar is, so that a row with one fits the terminal."""
    return 20 if console().width >= 80 else 4


def bar_of(probability: float, width: int) -> str:
    """A probability as people see it, `width` letters for 1."""
    return "█" * round(probability * width)


def complain(words: str) -> None:
    """A line on stderr."""
    print(f"trecvit: {words}", file=sys.stderr)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Where tables and panels go; files and pipes have 160 columns unless `width` is given."""
    from rich.console import Console

    # Names of files and classes may hold brackets, so no markup; in files and pipes nothing is to be folded.
    if width is None and not (sys.stderr if stderr else sys.stdout).isatty():
        width = 160
    return Console(stderr=stderr, markup=False, width=width)
