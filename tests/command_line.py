"""`trecvit` in this process, which takes a tenth of a new process's time."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from trecvit.cli import main

Done = subprocess.CompletedProcess[str]
PYTHON_IGNORES = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)


def trecvit(*words: object, cwd: Path | None = None) -> Done:
    """The exit code and what is printed, of `main` called in this process with warnings as Python has them."""
    outputs = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="\n") for _ in range(2)]
    argv, num_threads = ["trecvit", *map(str, words)], torch.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(cwd or Path.cwd()))
        stack.enter_context(contextlib.redirect_stdout(outputs[0]))
        stack.enter_context(contextlib.redirect_stderr(outputs[1]))
        stack.enter_context(warnings.catch_warnings())
        stack.callback(torch.set_num_threads, num_threads)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(sys, "argv", argv)
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)  # `main` sets its own
        warnings.simplefilter("default")
        for category in PYTHON_IGNORES:
            warnings.simplefilter("ignore", category)
        with pytest.raises(SystemExit) as ended:
            main()
    printed = []
    for output in outputs:
        output.flush()
        printed.append(output.buffer.getvalue().decode())
    return Done(argv, ended.value.code or 0, *printed)
