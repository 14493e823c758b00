"""The command line application: its groups of commands, errors and exit codes."""

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

USE, TRAIN, MEASURE, FILES = PANELS = ("Use", "Train", "Measure", "Files")
"""Panels of `trecvit --help`, in this order."""


class _Commands(TyperGroup):
    """All commands; Ctrl-C and SIGTERM leave them as `Interrupted`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the names of the commands, panel by panel."""

        def panel_index(name: str) -> int:
            panel = getattr(self.commands[name], "rich_help_panel", None)
            return PANELS.index(panel) if panel in PANELS else len(PANELS)

        return sorted(self.commands, key=panel_index)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the command line names."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:  # Typer would exit without a message
            message = "terminated" if isinstance(stop, Terminated) else "interrupted"
            raise Interrupted.by(stop, message) from stop


app = typer.Typer(
    name="trecvit",
    cls=_Commands,
    help="TRecViT: causal video understanding. The same weights train on clips and stream frame by frame.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(no_args_is_help=True, help="Data sets: render, check, shard.")
eval_app = typer.Typer(no_args_is_help=True, help="Measure accuracy: videos, early, tapvid, points, world.")
bench_app = typer.Typer(
    no_args_is_help=True, help="Measure speed and memory: stream, speed, slots, serve, train, loader."
)
app.add_typer(data_app, name="data", rich_help_panel=FILES)
app.add_typer(eval_app, name="eval", rich_help_panel=MEASURE)
app.add_typer(bench_app, name="bench", rich_help_panel=MEASURE)


def main() -> None:
    """Run the command line."""
    run(app)


def run(application: typer.Typer) -> None:
    """Run a command line and exit.

    A user's error is one line on stderr and exit code 1; `--debug` shows the traceback. Ctrl-C ends any command with
    one line and exit code 130, SIGTERM with 143.
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
        code = 128 + error.signal_number  # the shells' convention for a process ended by a signal
        for number in (signal.SIGINT, signal.SIGTERM):  # a repeated signal must not change the code
            signal.signal(number, signal.SIG_IGN)
        exec("")  # resets a flag: if Ctrl-C hit `exec`, as in an import, Python would kill itself at its exit
        print(f"trecvit: {error}", file=sys.stderr)
        sys.exit(code)
    except TRecViTError as error:
        if debug:
            raise
        print(f"trecvit: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of stdout, such as `head`, has closed it: no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit:
        raise
    except BaseException as error:  # libraries report a full disk by many exceptions, one of them no `Exception`
        cause = storage_error(error) or (error if isinstance(error, OSError) else None)
        if debug or cause is None:
            raise
        print(f"trecvit: {cause}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM raises `Terminated`, once: `timeout` and others send it twice, and the second must not stop a clean-up.

    A SIGTERM that was ignored when the process started stays ignored.
    """

    def terminate(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise Terminated

    if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@app.command("study", hidden=True, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def _study(context: typer.Context) -> None:
    """Name the commands that replace this one."""
    name = context.args[0] if context.args else "--help"
    command = "trecvit eval points" if name == "points" else f"scripts/paper {name}, in a checkout of the repository"
    raise ConfigError(f"`trecvit study {name}` has moved; run {command}")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        from trecvit import __version__

        print(__version__)
        raise typer.Exit
