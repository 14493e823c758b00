"""Early recognition: accuracy after part of each video, streamed frame by frame.

Readouts average the evidence e_t of each frame (`Head.evidence`); the classifier is linear, so this equals averaging
per-frame logits:

- "mean": (e_1 + … + e_t) / t, the logits of `model.step`;
- "exponential": weights that halve every `half_life` frames, divided by their sum so that early outputs are unbiased;
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
    """Lengths of the readouts, in frames that the model sees.

    Attributes:
        half_life: Half-life of the exponential weights.
        window: Length of the window.
    """

    half_life: float = 8.0
    window: int = 16

    def __post_init__(self) -> None:
        if not self.half_life > 0 or self.window < 1:
            raise ConfigError(f"expected half_life > 0 and window >= 1, got {self.half_life} and {self.window}")

    def __call__(self, evidence: Float[Tensor, "T R"], readout: str) -> Float[Tensor, " R"]:
        """Average the evidence of the frames so far."""
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
    """Score each readout after each part of each video.

    Each video is streamed once, at the model's training stride. "After 25 %" is after the frames that begin in the
    first quarter of those the model sees, at least one.

    Args:
        model: A classifier with the data's classes.
        manifest: The videos; unlabelled ones are skipped.
        parts: Shares of a video, in (0, 1].
        readouts: Their lengths.
        report: Called with the number of videos done and of those that failed.

    Returns:
        Scores by (readout, part), and the unreadable videos.

    Raises:
        ConfigError: when the model has no head, or a part is out of range.
        DataError: when its classes are not the data's, no video is labelled, or none is readable.
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
    videos = [manifest.videos[index] for index in with_class(manifest)]
    for done, video in enumerate(videos, start=1):
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
                assert model.head is not None, "check_labels refuses models without a head"
                logits = model.head(readouts(so_far, name)[None])
                rows.append(logits.softmax(dim=-1)[0].cpu().numpy())
        report(done, len(failures))
    refuse_if_none(names, manifest, failures)
    labels = model.labels or manifest.labels
    scores = {
        key: Scores(tuple(names), np.array(classes, np.int64), np.stack(rows), labels) for key, rows in probs.items()
    }
    return scores, failures


def _evidence(model: TRecViT, source: Source) -> Iterator[Float[Tensor, "T R"]]:
    """Yield the evidence of a video's frames, a few frames per step."""
    assert model.head is not None
    state = model.init_state(1)
    pending: list[Tensor] = []
    with open_video(source) as video:
        stride = model.preprocessing.stride_for(video.info.rate_fps)
        for index, frame in enumerate(video.frames(short_side_px=max(model.preprocessing.image_size))):
            if index % stride == 0:
                pending.append(to_clip(frame.image[None], model.preprocessing.image_size))
            if len(pending) == _FRAMES_AT_ONCE:
                out, state = model.step(torch.cat(pending)[None].to(model.device), state)
                yield model.head.evidence(out.features)[0].float()
                pending = []
    if pending:
        out, state = model.step(torch.cat(pending)[None].to(model.device), state)
        yield model.head.evidence(out.features)[0].float()
