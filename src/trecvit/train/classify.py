"""Training to classify: cross-entropy of a clip's class."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from trecvit.config import Preprocessing
from trecvit.data.clips import EvaluationViews
from trecvit.data.manifest import Manifest
from trecvit.evaluate.scores import figures, write_result
from trecvit.evaluate.videos import check_labels, evaluate_videos, protocol, views_protocol, with_class
from trecvit.model.trecvit import Output, TRecViT
from trecvit.processes import Processes
from trecvit.train.feed import LabelledBatch
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.recipe import Recipe

_NO_CLASS = -100  # what cross-entropy leaves out of account


class Classification(Objective[LabelledBatch, Output]):
    """Cross-entropy with label smoothing; tested by top-1 on the validation videos.

    Args:
        recipe: With `scenes` or `videos`.
        validation: The videos to test on, if there are any.
    """

    figures = ("accuracy",)
    score = "top1"

    def __init__(self, recipe: Recipe, validation: Manifest | None) -> None:
        self.recipe, self.validation = recipe, validation

    def prepare(self, model: TRecViT) -> None:
        """Sets the head's dropout, and looks whether the validation videos are of the model's classes."""
        if model.head is not None:
            model.head.dropout = self.recipe.optimisation.head_dropout
        if self.recipe.videos is not None and self.validation is not None:
            check_labels(model, self.validation)
            with_class(self.validation)
            clips, crops = self.recipe.videos.eval_clips, self.recipe.videos.eval_crops
            EvaluationViews(self.validation, self.recipe.preprocessing, num_clips=clips, num_crops=crops)

    def blank(self, preprocessing: Preprocessing, device: torch.device) -> LabelledBatch:
        """A black clip without a class."""
        size = (1, preprocessing.num_frames, 3, *preprocessing.image_size)
        return LabelledBatch(
            torch.zeros(size, dtype=torch.uint8, device=device), torch.full((1,), _NO_CLASS, device=device)
        )

    def loss(self, out: Output, part: LabelledBatch) -> PartLoss:
        """Cross-entropy, and how many clips were answered right."""
        assert out.logits is not None, "a recipe's model has a head"
        smoothing = self.recipe.optimisation.label_smoothing
        loss = F.cross_entropy(
            out.logits, part.labels, label_smoothing=smoothing, reduction="sum", ignore_index=_NO_CLASS
        )
        right = (out.logits.argmax(dim=1) == part.labels).sum()
        shares = torch.stack([right, (part.labels != _NO_CLASS).sum()])[None]
        return PartLoss(loss, shares.double().cpu())

    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """Top-1 on one middle crop of one clip of every validation video."""
        assert self.validation is not None, "a recipe that validates has validation videos"
        scores, failures = evaluate_videos(
            TRecViT.load(model, device=processes.device),
            self.validation,
            num_clips=1,
            num_crops=1,
            num_workers=self.recipe.num_workers,
            processes=processes,
        )
        return {"top1": figures(scores)["top1"], "videos": len(scores.names), "failed": len(failures)}

    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """All the recipe's views of every validation video."""
        if self.recipe.videos is None or self.validation is None:
            return
        trained = TRecViT.load(model, device=processes.device)
        clips, crops = self.recipe.videos.eval_clips, self.recipe.videos.eval_crops
        scores, failures = evaluate_videos(
            trained,
            self.validation,
            num_clips=clips,
            num_crops=crops,
            num_workers=self.recipe.num_workers,
            processes=processes,
        )
        if processes.first:
            said = protocol(trained, self.validation, checkpoint=model, looked_at=views_protocol(clips, crops))
            write_result(folder, scores, said, failures)
