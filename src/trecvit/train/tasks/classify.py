"""Classification: cross-entropy of a clip's class, tested by top-1 on validation videos."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from trecvit.config import Preprocessing
from trecvit.data.clips import EvaluationViews, Failure
from trecvit.data.manifest import Manifest
from trecvit.errors import ConfigError
from trecvit.evaluate.scores import Scores, figures, write_result
from trecvit.evaluate.videos import check_labels, evaluate_videos, protocol, views_protocol, with_class
from trecvit.model.trecvit import Output, TRecViT
from trecvit.processes import Processes
from trecvit.train.feed import Feed, LabelledBatch
from trecvit.train.frozen import FrozenBelow, freeze
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.scenes import Scenes
from trecvit.train.sections import Settings
from trecvit.train.task import Curves, Task
from trecvit.train.videos import Videos, read_split

ClipSource = Scenes | Videos

CLIP_SECTIONS = ("scenes", "videos")
_NO_CLASS = -100  # ignored by the loss


def clip_source(sections: Mapping[str, Any]) -> ClipSource:
    """Read the one source of clips in the sections of a recipe.

    Raises:
        ConfigError: for none, for both, for unknown keys, with the nearest one, and for impossible values.
    """
    given = [name for name in CLIP_SECTIONS if sections[name] is not None]
    if len(given) != 1:
        raise ConfigError("expected `tracks`, `scenes` or `videos`, one of them")
    return (Scenes if given == ["scenes"] else Videos).from_value(sections[given[0]])


def clip_section(clips: ClipSource) -> dict[str, Any]:
    """The section of the clips as plain JSON values, by its key."""
    return {"scenes" if isinstance(clips, Scenes) else "videos": dataclasses.asdict(clips)}


@dataclass(frozen=True, kw_only=True)
class ClassifyTask(Task):
    """Classification of clips.

    Attributes:
        clips: Labelled clips.
    """

    sections = CLIP_SECTIONS
    curves = Curves("accuracy", "accuracy", "top1", "top-1")
    can_freeze = True

    clips: ClipSource

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any], settings: Settings) -> ClassifyTask:
        """Read the task, see `Task`."""
        return cls(clips=clip_source(sections))

    def to_dict(self) -> dict[str, Any]:
        """The section of the clips."""
        return clip_section(self.clips)

    def check(self, settings: Settings) -> None:
        """Raises ConfigError for settings that do not fit the clips, and for a tracker."""
        super().check(settings)
        self.clips.check(settings, labelled=True)
        if settings.optimisation.frozen_tokens and not (self.videos is not None and self.videos.views):
            raise ConfigError("optimisation.frozen_tokens: expected videos.views with it, or no frame is seen twice")

    @property
    def videos(self) -> Videos | None:
        """The clips if they are files: only these can be tested on."""
        return self.clips if isinstance(self.clips, Videos) else None

    @property
    def origin(self) -> str:
        """Path of the training videos; empty for scenes."""
        return self.videos.train.path if self.videos is not None else ""

    @property
    def evaluates(self) -> bool:
        """Whether there are validation videos."""
        return self.videos is not None and self.videos.validation is not None

    @property
    def validate_every(self) -> int:
        """Steps between two tests, see `Videos`."""
        return self.videos.validate_every if self.videos is not None else 0

    def feed(self, settings: Settings) -> Feed[LabelledBatch]:
        """Labelled clips."""
        return self.clips.feed(settings, labelled=True)

    def objective(self, settings: Settings) -> Classification:
        """Cross-entropy."""
        return Classification(settings, self.videos)

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Of the clips."""
        return self.clips.fingerprints(labelled=True)

    def untested(self) -> ClassifyTask:
        """Without validation videos."""
        return replace(self, clips=self.videos.untested()) if self.videos is not None else self


class Classification(Objective[LabelledBatch, Output]):
    """Cross-entropy with label smoothing; tested by top-1 on the validation videos.

    Args:
        settings: Of the recipe.
        videos: Its section, if the clips are files.
    """

    figures = ("accuracy",)
    score = "top1"

    def __init__(self, settings: Settings, videos: Videos | None) -> None:
        self.settings, self.videos = settings, videos
        self.validation: Manifest | None = None
        if videos is not None and videos.validation is not None:
            self.validation = read_split(videos.validation)

    def prepare(self, model: TRecViT) -> None:
        """Set the head's dropout, and check that the validation videos have the model's classes."""
        if model.head is not None:
            model.head.dropout = self.settings.optimisation.head_dropout
        if frozen := self.settings.optimisation.frozen_blocks:
            freeze(model, frozen)
            self._reuse_frozen(model)
        if self.videos is not None and self.validation is not None:
            check_labels(model, self.validation)
            with_class(self.validation)
            clips, crops = self.videos.eval_clips, self.videos.eval_crops
            EvaluationViews(self.validation, self.settings.preprocessing, num_clips=clips, num_crops=crops)

    def blank(self, preprocessing: Preprocessing, device: torch.device) -> LabelledBatch:
        """A black clip without a class."""
        size = (1, preprocessing.num_frames, 3, *preprocessing.image_size)
        return LabelledBatch(
            torch.zeros(size, dtype=torch.uint8, device=device), torch.full((1,), _NO_CLASS, device=device)
        )

    def loss(self, out: Output, part: LabelledBatch) -> PartLoss:
        """Sum of the clips' cross-entropies, and the number of correct clips."""
        assert out.logits is not None, "a classification model has a head"
        smoothing = self.settings.optimisation.label_smoothing
        loss = F.cross_entropy(
            out.logits, part.labels, label_smoothing=smoothing, reduction="sum", ignore_index=_NO_CLASS
        )
        correct = (out.logits.argmax(dim=1) == part.labels).sum()
        shares = torch.stack([correct, (part.labels != _NO_CLASS).sum()])[None]
        return PartLoss(loss, shares.double().cpu())

    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """Top-1 on one middle crop of one clip of every validation video."""
        assert self.validation is not None, "a task that validates has validation videos"
        scores, failures = self._scores(self.validation, self._load(model, processes), processes, clips=1, crops=1)
        return {"top1": figures(scores)["top1"], "videos": len(scores.names), "failed": len(failures)}

    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """Test on all of the recipe's views of every validation video."""
        if self.videos is None or self.validation is None:
            return
        trained = self._load(model, processes)
        clips, crops = self.videos.eval_clips, self.videos.eval_crops
        scores, failures = self._scores(self.validation, trained, processes, clips=clips, crops=crops)
        if processes.first:
            description = protocol(trained, self.validation, checkpoint=model, looked_at=views_protocol(clips, crops))
            write_result(folder, scores, description, failures)

    def _load(self, model: Path, processes: Processes) -> TRecViT:
        trained = TRecViT.load(model, device=processes.device)
        self._reuse_frozen(trained)
        return trained

    def _reuse_frozen(self, model: TRecViT) -> None:
        """Let a model whose first blocks are frozen take their tokens from the recipe's folder."""
        plan = self.settings.optimisation
        if plan.frozen_blocks:
            folder = Path(plan.frozen_tokens) if plan.frozen_tokens else None
            model.engine = FrozenBelow(model, plan.frozen_blocks, folder, token_dropout=plan.token_dropout)

    def _scores(
        self, manifest: Manifest, model: TRecViT, processes: Processes, *, clips: int, crops: int
    ) -> tuple[Scores, list[Failure]]:
        return evaluate_videos(
            model,
            manifest,
            num_clips=clips,
            num_crops=crops,
            num_workers=self.settings.num_workers,
            processes=processes,
        )
