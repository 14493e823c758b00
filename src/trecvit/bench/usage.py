"""Memory of this process, current and peak, in bytes."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATM, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")


def resident_bytes() -> int:
    """Return the resident memory; the peak on systems without /proc."""
    if _STATM.exists():
        return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return peak_bytes()


def peak_bytes() -> int:
    """Return the peak of the resident memory."""
    if _STATUS.exists():
        # Not getrusage's: a child process inherits its parent's peak.
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
