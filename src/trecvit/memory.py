"""How much of the machine's memory this process has, and had at most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATM, _STATUS = Path("/proc/self/statm"), Path("/proc/self/status")


def resident_bytes() -> int:
    """What is resident now; where the system does not tell, the most that ever was."""
    if _STATM.exists():
        return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    return peak_bytes()


def peak_bytes() -> int:
    """The most that ever was resident."""
    if _STATUS.exists():
        # Not getrusage's: that of a process begun by a large one starts at the large one's size.
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
