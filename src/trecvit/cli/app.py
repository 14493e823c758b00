"""The application, its groups of commands, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from trecvit.cli.terminal import degrade_output
from trecvit.errors import ConfigError, Interrupted, Terminated, TRecViTError
from trecvit.files import storage_error


class _Commands(TyperGroup):
    """All commands; Ctrl-C and SIGTERM leave them as `Interrupted`."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that the command line names."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # Typer would exit without a message
            words = "terminated" if isinstance(stop, Terminated) else "interrupted"
            raise Interrupted.by(stop, words) from stop


app = typer.Typer(
    name="trecvit",
    cls=_Commands,
    help="TRecViT: causal video understanding. The same weights train on clips and stream frame by frame.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(no_args_is_help=True, help="Make, check and pack data sets.")
eval_app = typer.Typer(no_args_is_help=True, help="Measure how well a model does.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure what a model costs.")
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Runs the command line."""
    run(app)


def run(application: typer.Typer) -> None:
    """Runs a command line to its end.

    A user's error is one line on stderr and exit code 1; `--debug` shows where. Ctrl-C ends any command with one line
    and exit code 130, SIGTERM with 143.
    """
    degrade_output()
    warnings.formatwarning = lambda message, *_, **__: f"trecvit: {message}\n"
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        with _sigterm_raises():
            application()
    except Interrupted as error:
        code = 128 + error.signal_number  # the shells' convention for a process that a signal has ended
        for number in (signal.SIGINT, signal.SIGTERM):  # nothing is left to do but to exit with this code
            signal.signal(number, signal.SIG_IGN)
        exec("")  # Python forgets that Ctrl-C came amid such code, as in an import, and would kill itself at its exit
        print(f"trecvit: {error}", file=sys.stderr)
        sys.exit(code)
    except TRecViTError as error:
        if debug:
            raise
        print(f"trecvit: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit:
        raise
    except BaseException as error:  # a full disk comes as many kinds of exception, one of them no `Exception`
        line = storage_error(error) or (error if isinstance(error, OSError) else None)
        if debug or line is None:
            raise
        print(f"trecvit: {line}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Terminated`, once: `timeout` and others send it twice, and the second must not stop a clean-up.

    A SIGTERM that was ignored when the process began stays ignored.
    """

    def note(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@app.command("study", hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _study(context: typer.Context) -> None:
    """Name the commands that took this one's place."""
    name = context.args[0] if context.args else "--help"
    command = "trecvit eval points" if name == "points" else f"scripts/paper {name}, in a checkout of the repository"
    raise ConfigError(f"`scripts/paper {name}` has moved; run {command}")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from trecvit import __version__

        print(__version__)
        raise typer.Exit
