"""Class probabilities of whole videos, and all metrics computed from them.

A result is a folder: `scores.npz` with each video's name, class and probabilities, and `result.json` with the protocol
and the metrics. The metrics are functions of the scores alone, so they can be recomputed from the file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import Float, Int
from numpy.typing import NDArray

from trecvit.errors import DataError
from trecvit.files import write_json, writing

_MAX_NAMED = 60  # classes in a picture
_TITLE_PX = 24  # height of an axis title in a picture
_LEAST_AXIS_PX = 150  # room for an axis title beside few classes
_NUM_BINS = 15  # of the calibration error, as in Guo et al. 2017


@dataclass(frozen=True)
class Scores:
    """One row per video.

    Attributes:
        names: As in the manifest.
        classes: `[M]`, the true classes.
        probs: `[M,V]`, averaged over the views.
        labels: The names of the classes, or empty.
    """

    names: tuple[str, ...]
    classes: Int[np.ndarray, " m"]
    probs: Float[np.ndarray, "m v"]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("scores: expected at least one readable video, got none")
        if len({len(self.names), len(self.classes), len(self.probs)}) > 1:
            raise DataError("scores: expected names, classes and probabilities of the same number of videos")
        if not np.isfinite(self.probs).all():
            raise DataError("scores: expected finite probabilities, got NaN or infinity; the weights may be damaged")

    def save(self, path: Path) -> None:
        """Write an `.npz` without pickled objects."""
        with writing(path):
            np.savez_compressed(
                path,
                names=np.array(self.names, dtype=np.str_),
                classes=self.classes.astype(np.int64),
                probs=self.probs.astype(np.float32),
                labels=np.array(self.labels, dtype=np.str_),
            )

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Read what `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                names, labels = (tuple(str(name) for name in arrays[key]) for key in ("names", "labels"))
                return cls(names, arrays["classes"], arrays["probs"], labels)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as exc:
            raise DataError(f"{path}: expected the scores of an evaluation: {exc}") from exc


def figures(scores: Scores) -> dict[str, Any]:
    """Compute top-1, top-5, mean class accuracy, calibration and a row per class, as plain JSON values.

    Ties count against the true class, so a model with equal probabilities for all classes scores 0.
    """
    rows = np.arange(len(scores.classes))
    own = scores.probs[rows, scores.classes]
    # The number of other classes that are at least as likely.
    ahead = (scores.probs >= own[:, None]).sum(axis=1) - 1
    per_class = []
    for index in np.unique(scores.classes):
        members = scores.classes == index
        per_class.append(
            {
                "class": scores.labels[index] if scores.labels else str(index),
                "videos": int(members.sum()),
                "top1": float((ahead[members] == 0).mean()),
                "most_taken_for": _most_taken_for(scores, members, int(index)),
            }
        )
    return {
        "videos": len(rows),
        "top1": float((ahead == 0).mean()),
        "top5": float((ahead < 5).mean()),
        "mean_class_accuracy": float(np.mean([entry["top1"] for entry in per_class])),
        "calibration_error": calibration_error(scores),
        "per_class": per_class,
    }


def confusion(scores: Scores) -> Int[np.ndarray, "v v"]:
    """Count the videos of each true class (row) and predicted class (column)."""
    counts = np.zeros((scores.probs.shape[1],) * 2, np.int64)
    np.add.at(counts, (scores.classes, scores.probs.argmax(axis=1)), 1)
    return counts


def draw_confusion(scores: Scores) -> PIL.Image.Image:
    """Draw the confusion matrix: a row per true class, a column per predicted class, darker for a larger share.

    Up to 60 classes are named, with the share of their videos that are recognised in the diagonal.
    """
    counts = confusion(scores)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = max(2, min(24, 1200 // len(counts)))
    ink = np.array([18, 60, 120])
    pixels = (255 - shares[..., None] * (255 - ink)).round().astype(np.uint8)
    grid = PIL.Image.fromarray(pixels.repeat(cell, axis=0).repeat(cell, axis=1))
    names = scores.labels if len(counts) <= _MAX_NAMED else ()
    font = PIL.ImageFont.load_default(size=max(10, cell * 2 // 3))
    pen = PIL.ImageDraw.Draw(grid)
    for index in range(len(names)):
        recall, centre = shares[index, index], (index + 0.5) * cell
        pen.text(
            (centre, centre), f"{recall:.0%}", "white" if recall > 0.5 else "black", anchor="mm", font_size=cell // 2
        )
    margin = _TITLE_PX + (12 + max(round(font.getlength(name)) for name in names) if names else 0)
    length = max(grid.width, _LEAST_AXIS_PX)
    columns = _axis("predicted class", names, cell, (margin, length), font, anchor="l")
    rows = _axis("true class", names, cell, (margin, length), font, anchor="r")
    picture = PIL.Image.new("RGB", (margin + length, margin + length), "white")
    picture.paste(columns.transpose(PIL.Image.Transpose.ROTATE_90), (margin, 0))
    picture.paste(rows, (0, margin))
    picture.paste(grid, (margin, margin))
    return picture


def _axis(
    title: str,
    names: Sequence[str],
    cell: int,
    size: tuple[int, int],
    font: PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont,
    *,
    anchor: Literal["l", "r"],
) -> PIL.Image.Image:
    """Draw an axis from top to bottom: class names beside the grid, at its right ("r") or, to be turned, left ("l")."""
    strip = PIL.Image.new("RGB", size, "white")
    pen = PIL.ImageDraw.Draw(strip)
    for index, name in enumerate(names):
        pen.text((6 if anchor == "l" else size[0] - 6, (index + 0.5) * cell), name, "black", font, f"{anchor}m")
    heading = PIL.Image.new("RGB", (size[1], _TITLE_PX), "white")
    PIL.ImageDraw.Draw(heading).text((heading.width / 2, _TITLE_PX / 2), title, "black", font, "mm")
    if anchor == "r":
        strip.paste(heading.transpose(PIL.Image.Transpose.ROTATE_90), (0, 0))
    else:
        strip.paste(heading.transpose(PIL.Image.Transpose.ROTATE_270), (size[0] - _TITLE_PX, 0))
    return strip


def calibration_error(scores: Scores) -> float:
    """Compute the expected calibration error (Guo et al. 2017): mean |confidence - accuracy| over 15 equal bins."""
    confidence = scores.probs.max(axis=1)
    right = scores.probs.argmax(axis=1) == scores.classes
    bins = np.minimum((confidence * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    error = 0.0
    for index in np.unique(bins):
        members = bins == index
        error += members.mean() * abs(right[members].mean() - confidence[members].mean())
    return float(error)


def write_result(
    folder: str | Path, scores: Scores, protocol: dict[str, Any], failures: Sequence[Any]
) -> dict[str, Any]:
    """Write `scores.npz`, `confusion.png` and `result.json`; return the latter's content.

    Args:
        folder: Created if missing.
        scores: Of all readable videos.
        protocol: How the scores were computed.
        failures: Unreadable videos: objects with `name` and `reason`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    scores.save(folder / "scores.npz")
    result = {
        "protocol": protocol,
        "good": len(scores.names),
        "failed": [{"name": failure.name, "reason": failure.reason} for failure in failures],
        **figures(scores),
    }
    with writing(folder / "confusion.png"):
        draw_confusion(scores).save(folder / "confusion.png")
    write_json(folder / "result.json", result)
    return result


def _most_taken_for(scores: Scores, members: NDArray[np.bool_], index: int) -> str:
    """Return the most frequent wrong prediction for videos of one class, or an empty string."""
    predicted = scores.probs[members].argmax(axis=1)
    wrong = predicted[predicted != index]
    if not len(wrong):
        return ""
    other = int(np.bincount(wrong).argmax())
    return scores.labels[other] if scores.labels else str(other)
