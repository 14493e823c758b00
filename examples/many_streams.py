"""Several videos at once in one batch, each with its own beginning and end.

    python examples/many_streams.py a.mp4 b.mp4 ...

Rows of the batch are independent: a video that ends is dropped, and the next in line begins in a fresh row.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

import trecvit
from trecvit.video.decode import read_frames
from trecvit.video.transforms import to_clip

MOST_AT_ONCE = 2


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
        while waiting and len(running) < MOST_AT_ONCE:
            running.append(waiting.pop(0))
            state = trecvit.State.cat([state, model.init_state(1)])
            probs = torch.cat([probs, torch.zeros(1, len(model.labels))])
        pictures = [next(stream, None) for _, stream in running]
        for (path, _), picture, answer, seen in zip(running, pictures, probs, state.frames_seen, strict=True):
            if picture is None:
                print(f"{path}: {model.labels[answer.argmax()]} ({answer.max():.0%} after {int(seen)} frames)")
        going = [row for row, picture in enumerate(pictures) if picture is not None]
        running = [running[row] for row in going]
        state = state.select(going)
        if going:
            out, state = model.step(torch.cat([pictures[row] for row in going]), state)
            probs = out.probs


if __name__ == "__main__":
    main(sys.argv[1:])
