"""The paper's comparisons, run from a checkout: `scripts/paper --help`. Adds its tasks and networks to the loop's."""

from __future__ import annotations

from paper import memory_task, videomae, vivit

__all__ = ["memory_task", "videomae", "vivit"]
