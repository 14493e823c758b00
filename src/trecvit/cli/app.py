"""The application, its groups of commands, and how it ends."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated

import typer

from trecvit.errors import Interrupted, TRecViTError

app = typer.Typer(
    name="trecvit",
    help="TRecViT: causal video understanding. The same weights train on clips and stream frame by frame.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(no_args_is_help=True, help="Make, check and pack data sets.")
eval_app = typer.Typer(no_args_is_help=True, help="Measure how well a model does.")
study_app = typer.Typer(no_args_is_help=True, help="Make the paper's tables and figures again.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure what a model costs.")
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")
app.add_typer(bench_app, name="bench")
app.add_typer(study_app, name="study")


def main() -> None:
    """Runs the command line. A user's error is one line on stderr and exit code 1; `--debug` shows where."""
    warnings.formatwarning = lambda message, *_, **__: f"trecvit: {message}\n"
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except Interrupted as error:
        print(f"trecvit: {error}", file=sys.stderr)
        sys.exit(143)  # as a process that SIGTERM has ended
    except TRecViTError as error:
        if debug:
            raise
        print(f"trecvit: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that is not there or may not be written
        if debug:
            raise
        print(f"trecvit: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("trecvit: interrupted", file=sys.stderr)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from trecvit import __version__

        print(__version__)
        raise typer.Exit
