"""The reference for training steps: autograd alone, without hand-written gradients or recomputation.

As a program it prints the peak memory in bytes of one step at 32 frames.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from torch import Tensor

from trecvit.bench.usage import peak_bytes
from trecvit.config import Recompute
from trecvit.model import lru
from trecvit.model.scan import gated_scan_reference
from trecvit.model.trecvit import create_model

SIZE, DEPTH, IMAGE_PX, NUM_FRAMES = "small", 12, 112, 32  # with fewer, a single block would count too much


@contextmanager
def plain_autograd() -> Iterator[None]:
    """Compute convolution and recurrence without hand-written gradients."""
    with (
        patch.object(lru, "gated_scan", gated_scan_reference),
        patch.object(lru.CausalConv, "forward", _convolve),
    ):
        yield


def _convolve(conv: lru.CausalConv, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    window = torch.cat([taps.to(x.dtype), x], dim=1) if taps.shape[1] else x
    shifted = [window[:, tap : tap + x.shape[1]] * conv.weight[tap] for tap in range(len(conv.weight))]
    return sum(shifted) + conv.bias, window[:, x.shape[1] :].to(taps.dtype)


def _step_bytes(recompute: Recompute) -> int:
    """Peak of this process's memory above that with the model loaded."""
    model = create_model(SIZE, num_classes=4, depth=DEPTH, image_size=(IMAGE_PX, IMAGE_PX)).train()
    model.recompute = recompute
    video = torch.randint(0, 256, (1, NUM_FRAMES, 3, *model.config.image_size), dtype=torch.uint8)
    model(video[:, :1]).logits.sum().backward()  # one-time set-up
    before_bytes = peak_bytes()
    model(video).logits.sum().backward()
    return peak_bytes() - before_bytes


if __name__ == "__main__":
    torch.set_num_threads(1)
    with plain_autograd() if sys.argv[1] == "plain" else nullcontext():
        print(_step_bytes("nothing" if sys.argv[1] == "plain" else sys.argv[1]))
