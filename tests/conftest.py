"""Checks of shapes, NaN in uninitialised memory, one seed for each test, and fixtures for all of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import processors
import pytest

if TYPE_CHECKING:
    from forked import Forks
    from two_ranks import TwoRanks

# Before anything imports torch: tests run in parallel, and one thread each is faster than many that wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Inductor starts processes for Triton, each of which imports PyTorch, also where it compiles for the CPU only.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# The device of the tests that compute: "cpu", "cuda", or "pretend", a CPU under the name of a GPU.
_DEVICE = os.environ.get("TRECVIT_TEST_DEVICE", "cpu")
if _DEVICE == "pretend":
    os.environ["TRECVIT_TEST_DEVICE"] = "cuda"
if _DEVICE == "cuda":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic algorithms
else:
    # Before anything imports Triton, whose functions read it too: its interpreter runs the GPU kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")
# For processes that tests start: `paper` is not installed.
_ROOT = str(Path(__file__).parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))

# All modules that compute but the Triton kernels, which Triton reads as source.
_TRACKERS = [f"trecvit.model.{name}" for name in ("tapnext", "tracker", "readouts", "readout_tracker")]
_NETWORKS = ["trecvit.model.trecvit", "trecvit.model.mae", "paper.memoriser", *_TRACKERS]
_MODEL = ["trecvit.model.lru", "trecvit.model.mixers", "trecvit.model.scan", "trecvit.model.state", *_NETWORKS]
_CHECKED = [*_MODEL, "trecvit.train", "trecvit.evaluate", "trecvit.data", "trecvit.synthetic"]


def pytest_configure(config: pytest.Config) -> None:
    if find_spec("beartype"):  # machines with GPUs may have nothing but PyTorch
        from jaxtyping import install_import_hook

        config.stash[_HOOK] = install_import_hook(_CHECKED, "beartype.beartype")
    import torch

    if _DEVICE == "pretend":
        from pretend_cuda import PretendCuda

        PretendCuda().__enter__()
        config.addinivalue_line("filterwarnings", "ignore:PyTorch was compiled without cuDNN")

    if name := os.environ.get("TRECVIT_TEST_PROCESSOR"):
        processors.pretend(name)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a script's background; tests send it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.utils.deterministic.fill_uninitialized_memory = True
    if _DEVICE == "cuda":
        # Without TF32, which rounds to 10 bits. Some of CUDA's kernels are never deterministic.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        config.addinivalue_line("filterwarnings", "ignore:.*does not have a deterministic implementation")
    torch.use_deterministic_algorithms(True, warn_only=_DEVICE == "cuda")


_HOOK = pytest.StashKey()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    import torch

    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_curves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty `curves.png`, which takes half of the time of a small training, but for tests marked `curves`."""
    figure: Any = sys.modules.get("matplotlib.figure")
    if figure is None or request.node.get_closest_marker("curves"):
        return
    draw = figure.Figure.savefig

    def savefig(self: Any, target: Any, **options: Any) -> None:
        if isinstance(target, Path) and target.name == "curves.png":
            target.touch()
        else:
            draw(self, target, **options)

    monkeypatch.setattr(figure.Figure, "savefig", savefig)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[TwoRanks]:
    """Two ranks that run commands; started at the first use."""
    from two_ranks import TwoRanks

    with TwoRanks() as ranks:
        yield ranks


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Runs programs in forked processes; started at the first use."""
    from forked import Forks

    forks = Forks()
    yield forks
    forks.close()


@pytest.fixture(params=["this", *processors.FEATURES])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """This processor, and the simulated ones."""
    name: str = request.param
    if name != "this":
        processors.pretend(name, monkeypatch.setattr)
    return name
