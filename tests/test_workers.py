"""Worker processes of a program that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

PROGRAM = """
import os, time
from trecvit.workers import load_items
class Slow:
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        time.sleep(index > 0)
        return os.getpid()
if __name__ == "__main__":
    for item in load_items(Slow(), num_workers=2, batch_size=None):
        print(item, flush=True)
"""


def exists(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_workers_that_load_end_with_a_process_that_was_killed(tmp_path):
    script = tmp_path / "load.py"
    script.write_text(PROGRAM)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert exists(worker)
        assert worker != process.pid
        process.kill()
    for _ in range(1200):  # a minute, for busy machines
        if not exists(worker):
            break
        time.sleep(0.05)
    assert not exists(worker)
