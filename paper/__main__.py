"""Entry point of the commands: `python -m paper`, or `scripts/paper`."""

from __future__ import annotations

from paper.commands import app
from trecvit.cli.app import run

if __name__ == "__main__":
    run(app)
