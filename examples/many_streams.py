"""Classify several videos in one batch, each with its own start and end.

    python examples/many_streams.py a.mp4 b.mp4 ...

Rows of the batch are independent: a finished video is removed, and the next one starts in a new row.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

import trecvit
from trecvit.video.decode import read_frames
from trecvit.video.transforms import to_clip

MAX_STREAMS = 2


def frames(path: str, image_size: tuple[int, int]) -> Iterator[torch.Tensor]:
    for frame in read_frames(path):
        yield to_clip(frame.image[None], image_size)[None]


@torch.inference_mode()
def main(paths: list[str]) -> None:
    model = trecvit.load("motions")
    waiting = [(path, frames(path, model.preprocessing.image_size)) for path in paths]
    running: list[tuple[str, Iterator[torch.Tensor]]] = []
    state, probs = model.init_state(0), torch.zeros(0, len(model.labels))
    while waiting or running:
        while waiting and len(running) < MAX_STREAMS:
            running.append(waiting.pop(0))
            state = trecvit.State.cat([state, model.init_state(1)])
            probs = torch.cat([probs, torch.zeros(1, len(model.labels))])
        batch = [next(stream, None) for _, stream in running]
        for (path, _), frame, row_probs, frames_seen in zip(running, batch, probs, state.frames_seen, strict=True):
            if frame is None:
                label = model.labels[row_probs.argmax()]
                print(f"{path}: {label} ({row_probs.max():.0%} after {int(frames_seen)} frames)")
        active = [row for row, frame in enumerate(batch) if frame is not None]
        running = [running[row] for row in active]
        state = state.select(active)
        if active:
            out, state = model.step(torch.cat([batch[row] for row in active]), state)
            probs = out.probs


if __name__ == "__main__":
    main(sys.argv[1:])
