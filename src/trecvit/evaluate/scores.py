"""Probabilities of whole videos, and every number that is reported of them.

A result is a folder: `scores.npz` holds each video's name, class and probabilities, `result.json` how they came about
and the figures. The figures are functions of the scores alone, so that anyone can compute them anew.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from jaxtyping import Float, Int
from numpy.typing import NDArray

from trecvit.errors import DataError
from trecvit.files import write_json, writing

_NUM_BINS = 15  # of the calibration error, as in Guo et al. 2017


@dataclass(frozen=True)
class Scores:
    """One row per video.

    Attributes:
        names: As in the manifest.
        classes: `[M]`, the right class of each.
        probs: `[M, V]`, averaged over the views.
        labels: The names of the classes, or none.
    """

    names: tuple[str, ...]
    classes: Int[np.ndarray, " m"]
    probs: Float[np.ndarray, "m v"]
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise DataError("expected the scores of at least one video; not one could be read")
        if len({len(self.names), len(self.classes), len(self.probs)}) > 1:
            raise DataError("scores: names, classes and probabilities must have one row per video")
        if not np.isfinite(self.probs).all():
            raise DataError("scores: some probabilities are not finite numbers; the weights may be damaged")

    def save(self, path: Path) -> None:
        """Writes an `.npz` without any pickled object in it."""
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
        """Inverse of `save`."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                names, labels = (tuple(str(name) for name in arrays[key]) for key in ("names", "labels"))
                return cls(names, arrays["classes"], arrays["probs"], labels)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as exc:
            raise DataError(f"{path}: expected the scores of an evaluation: {exc}") from exc


def figures(scores: Scores) -> dict[str, Any]:
    """Top-1, top-5, mean class accuracy, calibration and a row per class, as plain JSON values.

    A class stands in the ranking behind all that are at least as likely, so that a model which says the same of all
    classes is not called right.
    """
    rows = np.arange(len(scores.classes))
    own = scores.probs[rows, scores.classes]
    # How many others are at least as likely.
    ahead = (scores.probs >= own[:, None]).sum(axis=1) - 1
    per_class = []
    for number in np.unique(scores.classes):
        mine = scores.classes == number
        per_class.append(
            {
                "class": scores.labels[number] if scores.labels else str(number),
                "videos": int(mine.sum()),
                "top1": float((ahead[mine] == 0).mean()),
                "most_taken_for": _most_taken_for(scores, mine, int(number)),
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
    """How many videos of each class (row) were taken for each class (column)."""
    counts = np.zeros((scores.probs.shape[1],) * 2, np.int64)
    np.add.at(counts, (scores.classes, scores.probs.argmax(axis=1)), 1)
    return counts


def draw_confusion(scores: Scores) -> PIL.Image.Image:
    """The confusions as a picture: a row per right class, a column per class named, darker for a larger share.

    Up to 60 classes are named at the side.
    """
    counts = confusion(scores)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = max(2, min(24, 1200 // len(counts)))
    ink = np.array([18, 60, 120])
    pixels = (255 - shares[..., None] * (255 - ink)).round().astype(np.uint8)
    grid = PIL.Image.fromarray(pixels.repeat(cell, axis=0).repeat(cell, axis=1))
    if not scores.labels or len(counts) > 60:
        return grid
    font = PIL.ImageFont.load_default(size=max(10, cell * 2 // 3))
    margin = 12 + max(round(font.getlength(label)) for label in scores.labels)
    picture = PIL.Image.new("RGB", (margin + grid.width, grid.height), "white")
    picture.paste(grid, (margin, 0))
    pen = PIL.ImageDraw.Draw(picture)
    for number, label in enumerate(scores.labels):
        pen.text((margin - 6, (number + 0.5) * cell), label, fill="black", font=font, anchor="rm")
        right = f"{shares[number, number]:.0%}"
        place = (margin + (number + 0.5) * cell, (number + 0.5) * cell)
        pen.text(
            place, right, fill="white" if shares[number, number] > 0.5 else "black", anchor="mm", font_size=cell // 2
        )
    return picture


def calibration_error(scores: Scores) -> float:
    """Expected calibration error (Guo et al. 2017): how far confidence is from accuracy, over 15 equal bins."""
    confidence = scores.probs.max(axis=1)
    right = scores.probs.argmax(axis=1) == scores.classes
    bins = np.minimum((confidence * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    error = 0.0
    for number in np.unique(bins):
        mine = bins == number
        error += mine.mean() * abs(right[mine].mean() - confidence[mine].mean())
    return float(error)


def write_result(
    folder: str | Path, scores: Scores, protocol: dict[str, Any], failures: Sequence[Any]
) -> dict[str, Any]:
    """Writes `scores.npz`, `confusion.png` and `result.json` and returns what the latter says.

    Args:
        folder: Made if need be.
        scores: Of all videos that could be read.
        protocol: Everything that says how they came about.
        failures: Videos that could not be read: objects with `name` and `reason`.
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


def _most_taken_for(scores: Scores, mine: NDArray[np.bool_], number: int) -> str:
    """The wrong class named most often for videos of one class, or nothing."""
    named = scores.probs[mine].argmax(axis=1)
    wrong = named[named != number]
    if not len(wrong):
        return ""
    other = int(np.bincount(wrong).argmax())
    return scores.labels[other] if scores.labels else str(other)
