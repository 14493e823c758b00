"""How early does a model know? Videos streamed frame by frame, and the answer after a part of each.

Readouts, with e_t what frame t contributes to the head (see `Head.evidence`); the classifier is linear, so averaging
evidence and averaging per-frame logits is the same:

- "mean": (e_1 + … + e_t) / t, what `model.step` answers;
- "exponential": weights that halve every `half_life` frames, divided by their sum, so that the first answers are not
  drawn to zero;
- "window": the mean of the last `window` frames.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from trecvit.data.clips import Failure
from trecvit.data.manifest import Manifest
from trecvit.errors import ConfigError, VideoError
from trecvit.evaluate.scores import Scores
from trecvit.evaluate.videos import check_labels, refuse_if_none, with_class
from trecvit.model.trecvit import TRecViT
from trecvit.video.decode import Source, open_video
from trecvit.video.transforms import to_clip

READOUTS = ("mean", "exponential", "window")
_FRAMES_AT_ONCE = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Readouts:
    """The readouts' lengths, in frames that the model sees.

    Attributes:
        half_life: Of the exponential one.
        window: Of the windowed one.
    """

    half_life: float = 8.0
    window: int = 16

    def __post_init__(self) -> None:
        if not self.half_life > 0 or self.window < 1:
            raise ConfigError(f"expected half_life > 0 and window >= 1, got {self.half_life} and {self.window}")

    def __call__(self, evidence: Float[Tensor, "T R"], readout: str) -> Float[Tensor, " R"]:
        """What a readout makes of the frames so far."""
        if readout == "mean":
            return evidence.mean(dim=0)
        if readout == "window":
            return evidence[-self.window :].mean(dim=0)
        age = torch.arange(len(evidence) - 1, -1, -1, dtype=evidence.dtype, device=evidence.device)
        weights = 0.5 ** (age / self.half_life)
        return (weights[:, None] * evidence).sum(dim=0) / weights.sum()


@torch.inference_mode()
def evaluate_early(
    model: TRecViT,
    manifest: Manifest,
    *,
    parts: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0),
    readouts: Readouts | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> tuple[dict[tuple[str, float], Scores], list[Failure]]:
    """Scores after each part of each video, for each readout.

    Each video is streamed once, at the stride that the model was trained with. "After 25 %" means after the frames
    that begin in the first quarter of those the model sees, one at least.

    Args:
        model: With a head whose classes are the data's.
        manifest: The videos; those without a class are left out.
        parts: Shares of a video, above 0 and at most 1.
        readouts: Their lengths.
        report: Called with the number of videos done and how many of them failed.

    Returns:
        Scores by (readout, part), and the videos that could not be read.

    Raises:
        ConfigError: When the model has no head, or a part is impossible.
        DataError: When its classes are not the data's, no video has one, or none could be read.
    """
    check_labels(model, manifest)
    if not parts or not all(0 < part <= 1 for part in parts):
        raise ConfigError(f"parts: expected shares above 0 and at most 1, got {parts}")
    readouts = readouts or Readouts()
    names: list[str] = []
    classes: list[int] = []
    probs: dict[tuple[str, float], list[np.ndarray]] = {(name, part): [] for name in READOUTS for part in parts}
    failures: list[Failure] = []
    model.eval()
    wanted = [manifest.videos[number] for number in with_class(manifest)]
    for done, video in enumerate(wanted, start=1):
        try:
            evidence = torch.cat(list(_evidence(model, video.source)))
            if not len(evidence):
                raise VideoError(video.name, f"shorter than one token of {model.config.temporal_patch_size} frames")
        except VideoError as exc:
            failures.append(Failure(video.name, exc.reason))
        else:
            names.append(video.name)
            classes.append(video.label)
            for (name, part), rows in probs.items():
                so_far = evidence[: max(1, int(np.ceil(part * len(evidence))))]
                assert model.head is not None, "check_labels has refused models without a head"
                logits = model.head(readouts(so_far, name)[None])
                rows.append(logits.softmax(dim=-1)[0].cpu().numpy())
        report(done, len(failures))
    refuse_if_none(names, manifest, failures)
    labels = model.labels or manifest.labels
    found = {
        key: Scores(tuple(names), np.array(classes, np.int64), np.stack(rows), labels) for key, rows in probs.items()
    }
    return found, failures


def _evidence(model: TRecViT, source: Source) -> Iterator[Float[Tensor, "T R"]]:
    """What the frames of one video contribute, a few at a time, with a carried state."""
    assert model.head is not None
    state = model.init_state(1)
    waiting: list[Tensor] = []
    with open_video(source) as video:
        stride = model.preprocessing.stride_for(video.info.rate_fps)
        for number, frame in enumerate(video.frames(short_side_px=max(model.preprocessing.image_size))):
            if number % stride == 0:
                waiting.append(to_clip(frame.image[None], model.preprocessing.image_size))
            if len(waiting) == _FRAMES_AT_ONCE:
                out, state = model.step(torch.cat(waiting)[None].to(model.device), state)
                yield model.head.evidence(out.features)[0].float()
                waiting = []
    if waiting:
        out, state = model.step(torch.cat(waiting)[None].to(model.device), state)
        yield model.head.evidence(out.features)[0].float()
