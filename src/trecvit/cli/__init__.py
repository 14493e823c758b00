"""The command line: the only place that prints or exits.

Heavy modules are imported inside the commands that need them, so that `trecvit --help` answers at once.
"""

import os

from trecvit.cli import bench, data, evaluate, hub, predict, serve, track, train  # noqa: F401  importing a command adds it to the application
from trecvit.cli.app import app, main

__all__ = ["app", "main"]

# GNU OpenMP reads it once, when PyTorch is loaded: its threads spin for a shorter time while they wait for each other,
# and so leave a shared core to another program sooner. Measured: docs/performance.md.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
