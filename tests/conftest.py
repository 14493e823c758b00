"""Shapes are checked while the tests run, memory never written is NaN, and each test begins with the same seed."""

from __future__ import annotations

import os

import processors
import pytest

# Before anything imports torch: tests run side by side, and one thread each is faster than many that wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports Triton, whose own functions look at it too: GPU kernels are run by its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "1")

# All that computes but the Triton kernels, which Triton reads as source.
_TRACKERS = [f"trecvit.model.{name}" for name in ("tapnext", "tracker", "readouts", "readout_tracker")]
_NETWORKS = ["trecvit.model.trecvit", "trecvit.model.mae", "paper.memoriser", *_TRACKERS]
_MODEL = ["trecvit.model.lru", "trecvit.model.mixers", "trecvit.model.scan", "trecvit.model.state", *_NETWORKS]
_CHECKED = [*_MODEL, "trecvit.train", "trecvit.evaluate", "trecvit.data"]


def pytest_configure(config: pytest.Config) -> None:
    from jaxtyping import install_import_hook

    config.stash[_HOOK] = install_import_hook(_CHECKED, "beartype.beartype")
    import torch

    if name := os.environ.get("TRECVIT_TEST_PROCESSOR"):
        processors.pretend(name)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)


_HOOK = pytest.StashKey()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(params=["this", *processors.FEATURES])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """This processor, and those that it can pretend to be."""
    name: str = request.param
    if name != "this":
        processors.pretend(name, monkeypatch.setattr)
    return name
