"""The command line: the only place that prints or exits.

Heavy modules are imported inside the commands that need them, so that `trecvit --help` answers at once.
"""

from trecvit.cli import bench, data, evaluate, predict, track, train  # noqa: F401  importing a command adds it to the application
from trecvit.cli.app import app, main

__all__ = ["app", "main"]
