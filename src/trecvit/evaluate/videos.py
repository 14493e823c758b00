"""Evaluation on real videos: several views of each, one answer per video, nothing left out in silence."""

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
    """The probabilities of every video, averaged over its views.

    Args:
        model: With a head whose classes are the data's.
        manifest: The videos; those without a class are left out.
        num_clips: Clips of each video, spread evenly over it.
        num_crops: Crops of each clip, 1 or 3.
        views_at_once: How many views go through the model together: what limits the memory.
        num_workers: Processes that decode.
        processes: Those that share the videos, each with the whole model; by default this one is alone.
        report: Called with the number of videos that this process has done, and how many of them failed.

    Returns:
        The scores of the videos that could be read, in the manifest's order, and the others; in every process those of
        all.

    Raises:
        ConfigError: When the model has no head.
        DataError: When its classes are not the data's.
    """
    check_labels(model, manifest)
    processes = processes or Processes()
    mine = processes.share.of(with_class(manifest))
    views = EvaluationViews(manifest, model.preprocessing, num_clips=num_clips, num_crops=num_crops)
    loader = load_items(Subset(views, mine), batch_size=None, num_workers=num_workers)
    found: dict[int, Failure | NDArray[np.float32]] = {}
    num_failed = 0
    model.eval()
    for done, (number, item) in enumerate(zip(mine, loader, strict=True), start=1):
        found[number] = item if isinstance(item, Failure) else _mean_probs(model, item.pixels, views_at_once)
        num_failed += isinstance(item, Failure)
        report(done, num_failed)
    everything = {number: item for some in processes.gather(found) for number, item in some.items()}
    failures = [item for _, item in sorted(everything.items()) if isinstance(item, Failure)]
    probs = {number: item for number, item in sorted(everything.items()) if not isinstance(item, Failure)}
    refuse_if_none(probs, manifest, failures)
    scores = Scores(
        names=tuple(manifest.videos[number].name for number in probs),
        classes=np.array([manifest.videos[number].label for number in probs], np.int64),
        probs=np.stack(list(probs.values())),
        labels=model.labels or manifest.labels,
    )
    return scores, failures


def with_class(manifest: Manifest) -> list[int]:
    """The numbers of the videos that have a class.

    Raises:
        DataError: When none has.
    """
    wanted = [number for number, video in enumerate(manifest.videos) if video.label >= 0]
    if not wanted:
        raise DataError(f"{manifest.source}: no video has a class, so there is nothing to compare with")
    return wanted


def refuse_if_none(found: Sized, manifest: Manifest, failures: Sequence[Failure]) -> None:
    """Raises DataError when not one video could be read."""
    if not found:
        raise DataError(
            f"{manifest.source}: none of {len(failures)} videos could be read; the first, {failures[0].name}: "
            f"{failures[0].reason}"
        )


def check_labels(model: TRecViT, manifest: Manifest) -> None:
    """Refuses a model that cannot speak of these classes.

    Raises:
        ConfigError: When the model has no head.
        DataError: When numbers or names of classes differ.
    """
    if not model.config.num_classes:
        raise ConfigError("the checkpoint has no head (num_classes = 0): train or fine-tune it before evaluating it")
    if manifest.labels and model.labels and model.labels != manifest.labels:
        theirs, ours = set(manifest.labels), set(model.labels)
        if theirs == ours:
            place = next(n for n, (a, b) in enumerate(zip(model.labels, manifest.labels, strict=True)) if a != b)
            raise DataError(
                f"the model and {manifest.source} have the same classes in another order: class {place} is "
                f"{model.labels[place]!r} for the model and {manifest.labels[place]!r} for the data"
            )
        stranger = sorted(theirs - ours or ours - theirs)[0]
        raise DataError(
            f"the model has {len(ours)} classes and {manifest.source} has {len(theirs)}, and they differ: "
            f"{stranger!r} is known to one only"
        )
    if manifest.labels and len(manifest.labels) != model.config.num_classes:
        raise DataError(f"{manifest.source} has {len(manifest.labels)} classes, the model {model.config.num_classes}")
    if manifest.num_classes > model.config.num_classes:
        raise DataError(
            f"{manifest.source} has {manifest.num_classes} classes, the model only {model.config.num_classes}"
        )


def views_protocol(num_clips: int, num_crops: int) -> dict[str, Any]:
    """How `evaluate_videos` looks at a video, as plain JSON values."""
    return {
        "clips": num_clips,
        "crops": num_crops,
        "averaged": "probabilities over views",
        "sampler": "clips spread evenly from the first frame to the last; crops along the longer side",
    }


def protocol(
    model: TRecViT, manifest: Manifest, *, checkpoint: str | Path, looked_at: Mapping[str, Any]
) -> dict[str, Any]:
    """Everything that must be known to get the same scores again, as plain JSON values.

    Args:
        model: As evaluated.
        manifest: Likewise.
        checkpoint: What was loaded, as the user named it.
        looked_at: How the videos were looked at, such as `views_protocol`.
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
    """Of names and values, so that it is the same whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _mean_probs(model: TRecViT, views: torch.Tensor, views_at_once: int) -> NDArray[np.float32]:
    probs = []
    for some in views.split(views_at_once):
        out: Output = model(some.to(model.device))
        assert out.probs is not None, "check_labels has refused models without a head"
        probs.append(out.probs.float().cpu())
    mean: NDArray[np.float32] = torch.cat(probs).mean(dim=0).numpy()
    return mean
