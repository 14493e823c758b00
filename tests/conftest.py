"""Shapes are checked while the tests run, memory never written is NaN, and each test begins with the same seed."""

from __future__ import annotations

import os

import pytest

# Before anything imports torch: tests run side by side, and one thread each is faster than many that wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_CHECKED = ["trecvit.model", "trecvit.train", "trecvit.evaluate", "trecvit.data"]


def pytest_configure(config: pytest.Config) -> None:
    from jaxtyping import install_import_hook

    config.stash[_HOOK] = install_import_hook(_CHECKED, "beartype.beartype")
    import torch

    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)


_HOOK = pytest.StashKey()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)
