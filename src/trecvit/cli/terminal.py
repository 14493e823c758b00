"""Terminal output: progress bars, tables, JSON, messages."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress
    from rich.text import Text

    from trecvit.data.clips import Failure


# ASCII for outputs without Unicode: redirects on Windows, LANG=C.
_PLAIN = {
    "█": "#", "●": "*", "○": "o", "…": "...", "·": "-", "–": "-", "×": "x", "±": "+-", "≥": ">=", "δ": "delta",
    "λ": "lambda",
}  # fmt: skip
_MIN_FOLDED = 8  # characters of a folded column


def degrade_output() -> None:
    """Make stdout and stderr print any text: characters that their encoding lacks become ASCII or an escape.

    Labels and file names may hold any character, and names that are not UTF-8 hold lone surrogates. Outputs that were
    closed when the process started go to the null device.
    """
    codecs.register_error("trecvit-plain", partial(_degraded, width=None))
    # On terminals, rows are cut to the terminal's width before encoding, so the replacement has one character too.
    codecs.register_error("trecvit-plain-cell", partial(_degraded, width=1))
    if sys.stdout is None or sys.stderr is None:
        null = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  open until the process ends
        sys.stdout, sys.stderr = sys.stdout or null, sys.stderr or null
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="trecvit-plain-cell" if stream.isatty() else "trecvit-plain")


def _degraded(error: UnicodeError, *, width: int | None) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if character in _PLAIN:
        return _PLAIN[character][:width], error.start + 1
    return codecs.backslashreplace_errors(
        UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    )


@contextmanager
def progress_bar(title: str, total: int | None, *, hidden: bool = False) -> Iterator[Callable[..., None]]:
    """A bar on stderr with the time left, on terminals only.

    Yields:
        `advance(done, failed=0)`, which sets the number of items done and how many of them failed. `total` is None
        where it is unknown.
    """
    with _bars(hidden=hidden, transient=True) as bars:
        task = bars.add_task(title, total=total)

        def advance(done: int, failed: int = 0) -> None:
            bars.update(task, completed=done, description=f"{title}, {failed} failed" if failed else title)

        yield advance


@contextmanager
def progress_bars(*, hidden: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each of several stages; yields `advance(title, done, total)`."""
    with _bars(hidden=hidden, transient=False) as bars:
        tasks: dict[str, Any] = {}

        def advance(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total)
            bars.update(tasks[title], completed=done, total=total)

        yield advance


def _bars(*, hidden: bool, transient: bool) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console(stderr=True),
        disable=hidden or not sys.stderr.isatty(),
        redirect_stdout=sys.stdout.isatty(),  # a redirected stdout must not be written to the terminal
        transient=transient,
    )


@contextmanager
def download_bar() -> Iterator[Callable[[int, int | None], None]]:
    """A bar that appears with the first bytes of a download."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
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
    """A panel that is redrawn for each frame; yields `draw(content, frame index, time in seconds)`."""
    import time

    from rich.live import Live
    from rich.panel import Panel
    from rich.text import Text

    start_s, num_frames_drawn = time.perf_counter(), 0
    with Live(console=console(), refresh_per_second=12) as live:

        def draw(content: RenderableType, index: int, time_s: float) -> None:
            nonlocal num_frames_drawn
            num_frames_drawn += 1
            speed = num_frames_drawn / (time.perf_counter() - start_s)
            position = f"frame {index + 1}" + (f" of {num_frames}" if num_frames else "")
            status = f"{position} · {time_s:.1f} s · {speed:.{0 if speed >= 10 else 1}f} frames/s"
            live.update(Panel(content, title=Text(title), subtitle=status, width=min(console().width, 90)))

        yield draw


def print_facts(facts: dict[str, Any]) -> None:
    """Print names and values, a line each."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if isinstance(value, dict):
            cell = "\n".join(f"{key}: {item}" for key, item in value.items())
        elif isinstance(value, list):
            cell = ", ".join(str(item) for item in value)
        else:
            cell = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(Text(name, "bold"), cell)
    console().print(table, highlight=False)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table without lines, its columns aligned."""
    from rich.table import Table

    table = Table(*titles, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def print_json(content: object) -> None:
    """Print JSON, indented."""
    print(json.dumps(content, indent=2))


def row_printer(titles: Sequence[str], widths: Sequence[int]) -> Callable[[Sequence[Sequence[str]]], None]:
    """Print a table row by row as results arrive: the titles once, then rows.

    Args:
        titles: Column titles.
        widths: Width of each column in characters. Where a terminal is too narrow, the first column folds.

    Returns:
        A function that prints some rows.
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
        print(captured.get(), end="", flush=True)  # `print`, so that a bar on the terminal makes way
        is_first = False

    return print_rows


def report_failures(failures: Sequence[Failure]) -> None:
    """List videos that could not be read, and exit with code 1 if there are any."""
    for failure in failures:
        notify(f"{failure.name}: {failure.reason}")
    if failures:
        raise typer.Exit(1)


def full_bar() -> int:
    """Length in characters of the bar for a probability of 1, so that its row fits the terminal."""
    return 20 if console().width >= 80 else 4


def probability_bar(probability: float, length: int) -> str:
    """A bar for a probability, `length` characters for 1."""
    return "█" * round(probability * length)


def notify(message: str) -> None:
    """Print a message on stderr."""
    print(f"trecvit: {message}", file=sys.stderr)


def console(*, stderr: bool = False, width: int | None = None) -> Console:
    """Console for tables and panels; files and pipes have 160 columns unless `width` is given."""
    from rich.console import Console

    # No markup, since names of files and classes may hold brackets; files and pipes are wide, so no line folds.
    if width is None and not (sys.stderr if stderr else sys.stdout).isatty():
        width = 160
    return Console(stderr=stderr, markup=False, width=width)
