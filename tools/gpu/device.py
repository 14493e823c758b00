"""The device under test: facts about it, times, memory, and its measured limits."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from trecvit.bench.usage import peak_bytes

# Part of a GPU's name -> memory bandwidth in bytes per second, and bfloat16 operations per second without sparsity.
# Source: NVIDIA's data sheets of these products. A more particular name stands before a more general one.
NOMINAL = {
    "H200": (4.8e12, 989e12),
    "H100 PCIe": (2.0e12, 756e12),
    "H100 NVL": (3.9e12, 835e12),
    "H100": (3.35e12, 989e12),
    "A100-SXM4-80GB": (2.039e12, 312e12),
    "A100": (1.555e12, 312e12),
}


@dataclass(frozen=True)
class Target:
    """Where, and how large, cases are run.

    Attributes:
        device: A CUDA device, or the CPU for a test of the cases themselves.
        small: Tiny sizes, for that test.
    """

    device: torch.device
    small: bool

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.type == "cuda"

    def pick(self, full: Any, small: Any) -> Any:
        """The size of a real measurement, or that of the test."""
        return small if self.small else full

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def median_s(self, call: Callable[[], object], *, seconds: float = 0.3, least: int = 5) -> float:
        """Median time of a call in seconds, after one for warm-up; on a GPU its own time, without waiting for it."""
        call()
        self.wait()
        times_s: list[float] = []
        until_s = time.perf_counter() + (0.02 if self.small else seconds)
        while len(times_s) < least or time.perf_counter() < until_s:
            times_s.append(self._event_s(call) if self.is_cuda else _clock_s(call))
        return statistics.median(times_s)

    def latency_s(self, call: Callable[[], object], *, seconds: float = 0.3, least: int = 10) -> float:
        """Median time in seconds from a call to its results, launches included."""

        def whole() -> None:
            call()
            self.wait()

        whole()
        times_s: list[float] = []
        until_s = time.perf_counter() + (0.02 if self.small else seconds)
        while len(times_s) < least or time.perf_counter() < until_s:
            times_s.append(_clock_s(whole))
        return statistics.median(times_s)

    def throughput(self, call: Callable[[], object], *, seconds: float = 0.4) -> float:
        """Calls per second, one after the other without waiting for each."""
        call()
        self.wait()
        count, start_s = 0, time.perf_counter()
        until_s = start_s + (0.02 if self.small else seconds)
        while count < 3 or time.perf_counter() < until_s:
            call()
            count += 1
            if count % 16 == 0:  # otherwise the queue grows as long as calls are launched faster than they run
                self.wait()
        self.wait()
        return count / (time.perf_counter() - start_s)

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """Peak of the allocated memory during a call; on the CPU that of the process so far."""
        if not self.is_cuda:
            call()
            return peak_bytes()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device)

    def has_bytes(self, needed: int) -> bool:
        """Whether so much memory is free; the CPU's is taken as enough for the tests."""
        return not self.is_cuda or torch.cuda.mem_get_info(self.device)[0] >= needed

    def _event_s(self, call: Callable[[], object]) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3


def _clock_s(call: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    call()
    return time.perf_counter() - start_s


def about(target: Target) -> dict[str, Any]:
    """Return names and versions of everything that results depend on, and the GPU's nominal limits."""
    facts: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "small": target.small,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "transformers": _version("transformers"),
    }
    if target.is_cuda:
        properties = torch.cuda.get_device_properties(target.device)
        bandwidth, flops = next((limits for name, limits in NOMINAL.items() if name in properties.name), (None, None))
        facts |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "driver": _driver(),
            "nominal_bytes_per_s": bandwidth,
            "nominal_bf16_flop_per_s": flops,
        }
    return facts


def copy_bytes_per_s(target: Target) -> float:
    """Measure the memory bandwidth: bytes read and written per second by a large copy on the device."""
    source = torch.randint(0, 256, (target.pick(4 * 2**30, 2**22),), dtype=torch.uint8, device=target.device)
    into = torch.empty_like(source)
    return 2 * source.nbytes / target.median_s(lambda: into.copy_(source))


def matmul_flop_per_s(target: Target) -> float:
    """Measure operations per second of a large matrix multiplication in bfloat16, on random numbers."""
    side = target.pick(8192, 128)
    left, right = (torch.randn(side, side, device=target.device, dtype=torch.bfloat16) for _ in range(2))
    operations: int = 2 * side**3
    return operations / target.median_s(lambda: left @ right)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over that of the expected values, in float64 on the CPU; NaN if one is not finite."""
    got, expected = got.detach().to("cpu", torch.float64), expected.detach().to("cpu", torch.float64)
    return float((got - expected).norm() / expected.norm().clamp(min=1e-30))


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    with suppress(PackageNotFoundError):
        return version(package) if find_spec(package) else None
    return None


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None
