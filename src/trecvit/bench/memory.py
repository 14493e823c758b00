"""Memory of a long stream: whether it stays constant."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trecvit.bench.usage import resident_bytes
from trecvit.errors import InputError
from trecvit.model.trecvit import TRecViT

_TOLERANCE_BYTES = 2 << 20  # allocators round up and keep pages; 9,000 kept frames would be hundreds of megabytes


@dataclass(frozen=True)
class StreamMemory:
    """Memory and throughput of a long stream.

    Attributes:
        frames: Numbers of frames after which the peaks were read, rising.
        peak_bytes: The process's largest resident memory up to each reading.
        state_bytes: Size of the carried state at each reading.
        frames_per_s: Throughput over the whole stream.
    """

    frames: tuple[int, ...]
    peak_bytes: tuple[int, ...]
    state_bytes: tuple[int, ...]
    frames_per_s: float

    @property
    def is_flat(self) -> bool:
        """Whether neither peak nor state grew after the first reading."""
        return (
            self.peak_bytes[-1] - self.peak_bytes[0] <= _TOLERANCE_BYTES and self.state_bytes[-1] == self.state_bytes[0]
        )


@torch.inference_mode()
def stream_memory(model: TRecViT, *, num_frames: int, report: Callable[[int], None] = lambda _: None) -> StreamMemory:
    """Stream random frames, one at a time, and read the peak memory after a tenth of them and at the end.

    Resident memory is sampled after each frame: the operating system's peak would include the loading of the model,
    which can hide a leak.

    Args:
        model: Any.
        num_frames: Length of the stream, at least 10.
        report: Called with the number of frames done, every 100 frames and at the end.
    """
    if num_frames < 10:
        raise InputError(f"expected num_frames >= 10, got {num_frames}")
    readings = (num_frames // 10, num_frames)
    generator = torch.Generator().manual_seed(0)
    shape = (1, 1, 3, *model.preprocessing.image_size)
    state = model.init_state(1)
    peaks: list[int] = []
    sizes: list[int] = []
    peak_bytes = 0
    start_s = time.perf_counter()
    for done in range(1, num_frames + 1):
        frame = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        _, state = model.step(frame.to(model.device), state)
        peak_bytes = max(peak_bytes, resident_bytes())
        if done in readings:
            peaks.append(peak_bytes)
            sizes.append(state.nbytes)
        if done % 100 == 0 or done == num_frames:
            report(done)
    return StreamMemory(readings, tuple(peaks), tuple(sizes), num_frames / (time.perf_counter() - start_s))
