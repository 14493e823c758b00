"""Evaluation of classifiers on videos: probabilities averaged over several views of each video."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence, Sized
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Subset

from trecvit.data.class_names import label_hash
from trecvit.data.clips import EvaluationViews, Failure
from trecvit.data.manifest import Manifest
from trecvit.errors import ConfigError, DataError
from trecvit.evaluate.scores import Scores
from trecvit.model.trecvit import Output, TRecViT
from trecvit.processes import Processes
from trecvit.workers import load_items


@torch.inference_mode()
def evaluate_videos(
    model: TRecViT,
    manifest: Manifest,
    *,
    num_clips: int = 4,
    num_crops: int = 3,
    views_at_once: int = 12,
    num_workers: int = 0,
    processes: Processes | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> tuple[Scores, list[Failure]]:
    """Compute the probabilities of every video, averaged over its views.

    Args:
        model: A classifier with the data's classes.
        manifest: The videos; unlabelled ones are skipped.
        num_clips: Clips of each video, spread evenly over it.
        num_crops: Crops of each clip, 1 or 3.
        views_at_once: Batch size, which limits memory.
        num_workers: Worker processes that decode.
        processes: Ranks that share the videos, each with the whole model; by default this process alone.
        report: Called with the number of videos done by this process, and of those that failed.

    Returns:
        The scores of the readable videos, in the manifest's order, and the unreadable ones; the same in every rank.

    Raises:
        ConfigError: when the model has no head.
        DataError: when its classes are not the data's.
    """
    check_labels(model, manifest)
    processes = processes or Processes()
    mine = processes.share.of(with_class(manifest))
    views = EvaluationViews(manifest, model.preprocessing, num_clips=num_clips, num_crops=num_crops)
    loader = load_items(Subset(views, mine), batch_size=None, num_workers=num_workers)
    outcomes: dict[int, Failure | NDArray[np.float32]] = {}
    num_failed = 0
    model.eval()
    for done, (index, item) in enumerate(zip(mine, loader, strict=True), start=1):
        outcomes[index] = item if isinstance(item, Failure) else _mean_probs(model, item.pixels, views_at_once)
        num_failed += isinstance(item, Failure)
        report(done, num_failed)
    of_all = sorted((index, item) for part in processes.gather(outcomes) for index, item in part.items())
    failures = [item for _, item in of_all if isinstance(item, Failure)]
    probs = {index: item for index, item in of_all if not isinstance(item, Failure)}
    refuse_if_none(probs, manifest, failures)
    scores = Scores(
        names=tuple(manifest.videos[index].name for index in probs),
        classes=np.array([manifest.videos[index].label for index in probs], np.int64),
        probs=np.stack(list(probs.values())),
        labels=model.labels or manifest.labels,
    )
    return scores, failures


def with_class(manifest: Manifest) -> list[int]:
    """List the indices of the videos that have a class.

    Raises:
        DataError: when no video has one.
    """
    indices = [index for index, video in enumerate(manifest.videos) if video.label >= 0]
    if not indices:
        raise DataError(f"{manifest.source}: expected labelled videos, got {len(manifest.videos)} without a class")
    return indices


def refuse_if_none(readable: Sized, manifest: Manifest, failures: Sequence[Failure]) -> None:
    """Raise DataError when no video is readable."""
    if not readable:
        raise DataError(
            f"{manifest.source}: none of {len(failures)} videos could be read; the first, {failures[0].name}: "
            f"{failures[0].reason}"
        )


def check_labels(model: TRecViT, manifest: Manifest) -> None:
    """Check that the model has the data's classes.

    Raises:
        ConfigError: when the model has no head.
        DataError: when numbers or names of classes differ.
    """
    if not model.config.num_classes:
        raise ConfigError("the checkpoint has no head (num_classes = 0): train or fine-tune it before evaluating it")
    if manifest.labels and model.labels[: len(manifest.labels)] == manifest.labels:
        return  # the model may have further classes, such as "nothing of these"
    if manifest.labels and model.labels and model.labels != manifest.labels:
        theirs, ours = set(manifest.labels), set(model.labels)
        if theirs == ours:
            index = next(n for n, (a, b) in enumerate(zip(model.labels, manifest.labels, strict=True)) if a != b)
            raise DataError(
                f"{manifest.source}: expected the model's order of classes, got class {index} "
                f"{manifest.labels[index]!r} in the data and {model.labels[index]!r} in the model"
            )
        stranger = sorted(theirs - ours or ours - theirs)[0]
        raise DataError(
            f"{manifest.source}: expected the model's {len(ours)} classes, got {len(theirs)}; {stranger!r} is in only "
            "one of the two"
        )
    num_classes = len(manifest.labels) or manifest.num_classes
    if num_classes > model.config.num_classes or (manifest.labels and num_classes != model.config.num_classes):
        raise DataError(
            f"{manifest.source}: expected the model's {model.config.num_classes} classes, got {num_classes}"
        )


def views_protocol(num_clips: int, num_crops: int) -> dict[str, Any]:
    """Describe the views of `evaluate_videos`, as plain JSON values."""
    return {
        "clips": num_clips,
        "crops": num_crops,
        "averaged": "probabilities over views",
        "sampler": "clips spread evenly from the first frame to the last; crops along the longer side",
    }


def protocol(
    model: TRecViT, manifest: Manifest, *, checkpoint: str | Path, looked_at: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe an evaluation so that it can be repeated, as plain JSON values.

    Args:
        model: The evaluated model.
        manifest: Its data.
        checkpoint: Name or path that the user gave.
        looked_at: How the videos were sampled, such as `views_protocol`.
    """
    return {
        "checkpoint": str(checkpoint),
        "weights_sha256": hash_of_weights(model),
        "data": manifest.source,
        "listed": len(manifest.videos) + len(manifest.missing),
        "missing": len(manifest.missing),
        "unlabelled": sum(video.label < 0 for video in manifest.videos),
        "label_map_sha256": label_hash(model.labels or manifest.labels),
        **looked_at,
        "preprocessing": model.preprocessing.to_dict(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "decoder": f"PyAV {version('av')}",
        "trecvit": version("trecvit"),
        "torch": torch.__version__,
    }


def hash_of_weights(model: nn.Module) -> str:
    """Hash names and values of all weights, independent of the file that stored them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _mean_probs(model: TRecViT, views: torch.Tensor, views_at_once: int) -> NDArray[np.float32]:
    probs = []
    for batch in views.split(views_at_once):
        out: Output = model(batch.to(model.device))
        assert out.probs is not None, "check_labels refuses models without a head"
        probs.append(out.probs.float().cpu())
    mean: NDArray[np.float32] = torch.cat(probs).mean(dim=0).numpy()
    return mean
