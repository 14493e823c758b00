"""Streaming a source through a model, frame by frame, with a carried state of constant size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from trecvit.errors import InputError
from trecvit.model.trecvit import TRecViT
from trecvit.runtime.predict import class_labels
from trecvit.video.decode import Source, Video, open_video
from trecvit.video.draw import draw_predictions, fit_for_display
from trecvit.video.frames import Image
from trecvit.video.transforms import to_clip


@dataclass(frozen=True)
class Update:
    """One frame of the source and the answer up to it.

    Attributes:
        index: Number of the frame in the source, from 0.
        time_s: Its time.
        image: The frame, uint8 `[H, W, 3]`; the receiver may draw on it.
        probs: Probabilities [V] given all frames since the last (re)start; all frames before the first one that the
            model sees would be guesses, so the first frame is always seen.
        is_new: Whether the model has seen this frame; with a stride, it sees every so many.
        frames_seen: How many frames the model has seen since the last (re)start.
    """

    index: int
    time_s: float
    image: Image
    probs: npt.NDArray[np.float32]
    is_new: bool
    frames_seen: int

    def top(self, labels: tuple[str, ...], count: int) -> list[tuple[str, float]]:
        """The likeliest classes and their probabilities, the first first."""
        order = np.argsort(-self.probs, kind="stable")[:count]
        return [(labels[number], float(self.probs[number])) for number in order]


def stream(
    model: TRecViT, source: Source | Video, *, stride: int = 1, restart_every: int | None = None
) -> Iterator[Update]:
    """Runs a source through the model as its frames come. Memory does not grow with their number.

    Args:
        model: With a head.
        source: Whatever `trecvit.video.decode.open_video` takes.
        stride: The model sees every so many frames; `model.preprocessing.stride_for(fps)` is what it was trained with.
        restart_every: Begin with a fresh state whenever the model has seen this many frames, so that the answer speaks
            of recent frames only. None: the answer speaks of all frames since the beginning.

    Yields:
        An update for every frame of the source, seen by the model or not.

    Raises:
        VideoError: as `read_frames`: at once, or after everything that could be decoded.
        InputError: for a stride or restart below 1.
    """
    class_labels(model)
    if stride < 1 or (restart_every is not None and restart_every < 1):
        raise InputError(f"expected stride >= 1 and restart_every >= 1, got {stride} and {restart_every}")
    return _updates(model, source, stride, restart_every)


def _updates(model: TRecViT, source: Source | Video, stride: int, restart_every: int | None) -> Iterator[Update]:
    state = fresh = model.init_state(1)
    probs = np.zeros(model.config.num_classes, np.float32)
    frames_seen = 0
    with open_video(source) as video:
        for number, frame in enumerate(video.frames()):
            is_new = number % stride == 0
            if is_new:
                if frames_seen == restart_every:
                    state, frames_seen = fresh, 0
                with torch.inference_mode():
                    clip = to_clip(frame.image[None], model.preprocessing.image_size)[None]
                    out, state = model.step(clip.to(model.device), state)
                assert out.probs is not None, "class_labels has refused models without a head"
                probs = out.probs[0].cpu().numpy()
                frames_seen += 1
            yield Update(frame.index, frame.time_s, frame.image, probs, is_new, frames_seen)


def annotate(update: Update, labels: tuple[str, ...], *, top_k: int = 3, footer: str = "") -> Image:
    """The update's frame, enlarged if tiny, with the likeliest classes, their bars and the time drawn in."""
    words = f"{update.time_s:.2f} s · frame {update.index}" + (f" · {footer}" if footer else "")
    return draw_predictions(fit_for_display(update.image), update.top(labels, top_k), footer=words)
