"""Programs in processes of their own, forked from one that has imported PyTorch, whose start takes seconds.

Nothing of pytest is in them, such as the checks of shapes, which the compiler cannot trace.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, NoReturn

Done = subprocess.CompletedProcess[str]


class Forks:
    """A process that forks itself for each program."""

    def __init__(self) -> None:
        command, pipe = [sys.executable, __file__], subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def run(self, program: str, *words: object, cwd: Path | None = None) -> Done:
        """Run a program's text like `python -c`, by default in the folder of the tests."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"program": program, "words": [*map(str, words)], "cwd": str(cwd or Path(__file__).parent)}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return Done([program, *words], *json.loads(self._process.stdout.readline()))

    def trecvit(self, *words: object, cwd: Path | None = None) -> Done:
        """Run a command."""
        return self.run("from trecvit.cli import main; main()", *words, cwd=cwd)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def _serve() -> None:
    for name in ("torch._dynamo", "torch._inductor.compile_fx", "trecvit.train.loop"):
        importlib.import_module(name)

    for line in sys.stdin:
        with TemporaryFile() as out, TemporaryFile() as err:
            child = os.fork()
            if not child:
                _run(json.loads(line), out, err)
            _, status = os.waitpid(child, 0)
            printed = [file.read().decode() for file in (out, err) if file.seek(0) == 0]
            print(json.dumps([os.waitstatus_to_exitcode(status), *printed]), flush=True)


def _run(request: dict[str, Any], out: IO[bytes], err: IO[bytes]) -> NoReturn:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.chdir(request["cwd"])
    sys.argv = ["-c", *request["words"]]
    code = 0
    try:
        exec(compile(request["program"], "<program>", "exec"), {"__name__": "__main__"})
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else stop.code is not None
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
