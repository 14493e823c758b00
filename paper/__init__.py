"""Reproduction of the paper's comparisons, run by `scripts/paper`; registers its task and networks."""

from __future__ import annotations

from paper import memory_task, videomae, vivit

__all__ = ["memory_task", "videomae", "vivit"]
