"""Commands run by two ranks over gloo. `torchrun` starts them once, as their start takes longer than most commands."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from typing import Self

from command_line import Done, trecvit


class TwoRanks:
    """A job of two ranks that runs one command after another, each on both ranks."""

    def __init__(self) -> None:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the job
        pipe = subprocess.PIPE
        self._job = subprocess.Popen([*launch, __file__], stdin=pipe, stdout=pipe, stderr=self._log, text=True)

    def trecvit(self, *words: object) -> list[Done]:
        """What `trecvit` gives on each rank."""
        assert self._job.stdin is not None
        assert self._job.stdout is not None
        self._job.stdin.write(json.dumps([str(word) for word in words]) + "\n")
        self._job.stdin.flush()
        line = self._job.stdout.readline()
        if not line:
            self._log.seek(0)
            raise AssertionError(f"the ranks ended during {words}: {self._log.read()[-3000:]}")
        return [Done(list(words), *values) for values in json.loads(line)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._job.communicate(timeout=60)  # closes their input
        self._log.close()
        assert self._job.returncode == 0


def serve() -> None:
    """Run the commands that the first rank reads."""
    import torch.distributed as dist

    import paper  # noqa: F401 - its tasks
    from trecvit.processes import Processes, joined

    with joined():
        ranks = Processes()
        while line := ranks.gather(sys.stdin.readline() if ranks.first else "")[0]:
            done = trecvit(*json.loads(line))
            results = ranks.gather((done.returncode, done.stdout, done.stderr))
            if ranks.first:
                print(json.dumps(results), flush=True)
            dist.barrier()


if __name__ == "__main__":
    serve()
