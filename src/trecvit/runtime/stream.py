"""Frame-by-frame classification of a stream, with a state of constant size."""

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
    """One frame of the source and the prediction up to it.

    Attributes:
        index: Index of the frame in the source, from 0.
        time_s: Presentation time in seconds.
        image: The frame, uint8 `[H, W, 3]`; the receiver may draw on it.
        probs: Probabilities [V] given all frames used since the last (re)start.
        is_new: Whether the model used this frame; with a stride, it uses every n-th, the first included.
        frames_seen: Number of frames used since the last (re)start.
    """

    index: int
    time_s: float
    image: Image
    probs: npt.NDArray[np.float32]
    is_new: bool
    frames_seen: int

    def top(self, labels: tuple[str, ...], count: int) -> list[tuple[str, float]]:
        """Return the most probable classes and their probabilities in descending order."""
        order = np.argsort(-self.probs, kind="stable")[:count]
        return [(labels[index], float(self.probs[index])) for index in order]


def stream(
    model: TRecViT, source: Source | Video, *, stride: int = 1, restart_every: int | None = None
) -> Iterator[Update]:
    """Classify a source frame by frame. Memory does not grow with the number of frames.

    Args:
        model: A model with a head.
        source: Any source of `trecvit.video.decode.open_video`.
        stride: Use every n-th frame; `model.preprocessing.stride_for(fps)` is the stride of training.
        restart_every: Reset the state after this many used frames, so that predictions cover recent frames only.
            None: predictions cover all frames since the start.

    Yields:
        An update for every frame of the source, used or not.

    Raises:
        VideoError: As `read_frames`: at once, or after everything that could be decoded.
        InputError: A stride or restart below 1.
    """
    class_labels(model)
    if stride < 1 or (restart_every is not None and restart_every < 1):
        raise InputError(f"expected stride >= 1 and restart_every >= 1, got {stride} and {restart_every}")
    return _updates(model, source, stride, restart_every)


def _updates(model: TRecViT, source: Source | Video, stride: int, restart_every: int | None) -> Iterator[Update]:
    state = initial = model.init_state(1)
    probs = np.zeros(model.config.num_classes, np.float32)
    frames_seen, due = 0, 0
    with open_video(source) as video:
        for frame in video.frames():
            is_new = frame.index >= due  # a live source may skip frames
            if is_new:
                due = (frame.index // stride + 1) * stride
                if frames_seen == restart_every:
                    state, frames_seen = initial, 0
                with torch.inference_mode():
                    clip = to_clip(frame.image[None], model.preprocessing.image_size)[None]
                    out, state = model.step(clip.to(model.device), state)
                assert out.probs is not None, "class_labels refuses models without a head"
                probs = out.probs[0].cpu().numpy()
                frames_seen += 1
            yield Update(frame.index, frame.time_s, frame.image, probs, is_new, frames_seen)


def annotate(update: Update, labels: tuple[str, ...], *, top_k: int = 3, footer: str = "") -> Image:
    """Draw the most probable classes, their bars and the time on the frame, enlarged if tiny."""
    caption = f"{update.time_s:.2f} s · frame {update.index}" + (f" · {footer}" if footer else "")
    return draw_predictions(fit_for_display(update.image), update.top(labels, top_k), footer=caption)
