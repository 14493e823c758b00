"""Clips of real videos: the section `videos` of a recipe, the clips of each training step, and unreadable files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from trecvit.data.augment import Augmentation
from trecvit.data.clips import EvaluationViews, Failure, Sample, TrainingClips
from trecvit.data.layouts import DataSource, read_manifest
from trecvit.data.manifest import Manifest
from trecvit.errors import ConfigError, DataError
from trecvit.processes import Share
from trecvit.train.feed import Epochs, Feed, LabelledBatch, Steps
from trecvit.train.held_out import HeldOutClips
from trecvit.train.run_data import videos_fingerprint
from trecvit.train.sections import Settings, fields_of, require_range
from trecvit.workers import load_items

NOTHING = "nothing of these"
"""Class of clips in which nothing happens, see `Videos.nothing_share`."""

_EXAMPLES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Videos:
    """Clips of real videos.

    Attributes:
        train: The training videos.
        clips_per_video: Random clips of each training video per epoch; more than one for few and long videos.
        views: Number of different clips of each training video, the same in every so many epochs, see `TrainingClips`;
            0: each epoch cuts new ones.
        nothing_share: Share of training clips that are one frame, repeated, and belong to a further class, "nothing of
            these", after the data's.
        validation: Videos to test the model on.
        validate_every: Steps between two short tests on one view of each validation video; the best model is kept. 0:
            only the trained model is tested.
        augmentation: Variation of the training clips.
        max_failed_share: Largest share of unreadable videos; the run stops at more.
        eval_clips: Clips of each validation video (paper, Table 9: 4).
        eval_crops: Crops of each clip, 1 or 3 (paper, Table 9: 3).
    """

    train: DataSource
    clips_per_video: int = 1
    views: int = 0
    nothing_share: float = 0.0
    validation: DataSource | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)
    validate_every: int = 0
    max_failed_share: float = 0.01
    eval_clips: int = 4
    eval_crops: int = 3

    def __post_init__(self) -> None:
        require_range("videos", self, ("clips_per_video", "eval_clips"), least=1.0)
        require_range("videos", self, ("validate_every", "views"))
        require_range("videos", self, ("max_failed_share", "nothing_share"), most=1.0)

    @classmethod
    def from_value(cls, value: Any) -> Videos:
        """Read the section of a recipe."""
        values = fields_of(cls, value, "videos")
        if "train" not in values:
            raise ConfigError("videos: expected `train`, the path of the training data")
        for split in ("train", "validation"):
            if values.get(split) is not None:
                values[split] = DataSource.from_value(values[split])
        if values.get("validate_every") and values.get("validation") is None:
            raise ConfigError("videos.validate_every: there are no videos.validation to test on")
        augmentation = fields_of(Augmentation, values.pop("augmentation", {}), "augmentation")
        if isinstance(augmentation.get("scale"), list):
            augmentation["scale"] = tuple(augmentation["scale"])
        return cls(augmentation=Augmentation(**augmentation), **values)

    def check(self, settings: Settings, *, labelled: bool) -> None:
        """Raises ConfigError for tests of the classes where they are not used."""
        if self.nothing_share and not labelled:
            raise ConfigError("videos.nothing_share: expected 0 for a task without classes")
        if self.validate_every and not labelled:
            raise ConfigError(
                "videos.validate_every: tests the classification of videos; give the task's own validate_every"
            )

    def feed(self, settings: Settings, *, labelled: bool) -> VideoFeed:
        """Batches of the clips; without classes unless `labelled`."""
        return VideoFeed(settings, self, labelled=labelled)

    def held_out(self, settings: Settings, *, count: int, seed: int) -> HeldOutClips:
        """The middle clip of each of `count` validation videos, spread evenly over their list."""
        views = self.held_out_views(settings, count)
        return HeldOutClips(views.manifest.source, count, views.first_views)

    def held_out_views(self, settings: Settings, count: int) -> EvaluationViews:
        """One view of each of `count` validation videos, spread evenly over their list."""
        assert self.validation is not None, "a task that is tested has videos to test on"
        manifest = read_split(self.validation).unlabelled().spread(count)
        return EvaluationViews(manifest, settings.preprocessing, num_clips=1, num_crops=1)

    def fingerprints(self, *, labelled: bool) -> dict[str, dict[str, Any]]:
        """Summaries of training and validation videos."""
        sources = {"training": self.train, "validation": self.validation}
        manifests = {split: read_manifest(source) for split, source in sources.items() if source is not None}
        return {
            split: videos_fingerprint(manifest if labelled else manifest.unlabelled())
            for split, manifest in manifests.items()
        }

    def untested(self) -> Videos:
        """The same without validation videos."""
        return replace(self, validation=None, validate_every=0)


def read_split(source: DataSource) -> Manifest:
    """Read a manifest; warn of skipped entries."""
    manifest = read_manifest(source)
    for remark in manifest.remarks():
        warnings.warn(remark, stacklevel=2)
    return manifest


class VideoFeed(Feed[LabelledBatch]):
    """Batches of clips of real videos, `Videos.clips_per_video` of each per epoch, see `Epochs`.

    Args:
        settings: Of the settings.
        videos: Its section.
        labelled: Whether the videos' classes are used.
    """

    def __init__(self, settings: Settings, videos: Videos, *, labelled: bool = True) -> None:
        manifest = read_split(videos.train)
        self.manifest = manifest.for_classifier() if labelled else manifest.unlabelled()
        if missing := self.manifest.missing:
            listed = len(missing) + len(self.manifest.videos)
            warnings.warn(
                f"{self.manifest.source}: {len(missing)} of {listed} videos have no file, such as {missing[0]}",
                stacklevel=2,
            )
        plan = settings.optimisation
        num_clips = len(self.manifest.videos) * videos.clips_per_video
        self.epochs = Epochs(num_clips, plan.batch_size, seed=settings.seed)
        self.steps_per_epoch = self.epochs.steps_per_epoch
        if not self.steps_per_epoch:
            raise DataError(
                f"{self.manifest.source}: {len(self.manifest.videos)} videos do not fill one batch of "
                f"{plan.batch_size}; take a smaller batch_size, or more videos.clips_per_video"
            )
        names = self.manifest.labels or tuple(f"class {index}" for index in range(self.manifest.num_classes))
        if videos.nothing_share:
            names = (*names, NOTHING)
        super().__init__(labels=names, num_steps=plan.num_steps or plan.epochs * self.steps_per_epoch)
        self.videos = videos
        self.batch_size = plan.batch_size
        self.num_workers = settings.num_workers
        clips = TrainingClips(
            self.manifest,
            settings.preprocessing,
            videos.augmentation,
            seed=settings.seed,
            views=videos.views,
            still_share=videos.nothing_share,
        )
        self.clips = _KeyedClips(clips, len(self.manifest.videos))

    def items(self, step: int) -> list[tuple[int, int]]:
        """The pass and the video of each clip of a step; each pass over the videos cuts other clips."""
        num_videos, clips = len(self.manifest.videos), self.videos.clips_per_video
        items = []
        for epoch, index in self.epochs.items(step):
            clip, video = divmod(index, num_videos)
            items.append((epoch * clips + clip, video))
        return items

    def batches(self, first_step: int, share: Share) -> Iterator[LabelledBatch]:
        """The share of a process in each step."""
        yield from load_items(
            self.clips,
            num_workers=self.num_workers,
            prefetch_factor=2,
            batch_sampler=Steps(self.items, range(first_step, self.num_steps), share),
            collate_fn=_collate,
        )

    def accept(self, failed: Mapping[str, str]) -> None:
        """Raises DataError for more than the recipe's share of the videos."""
        if len(failed) > self.videos.max_failed_share * len(self.manifest.videos):
            name, reason = next(iter(failed.items()))
            raise DataError(
                f"{self.manifest.source}: {len(failed)} videos could not be read, more than max_failed_share="
                f"{self.videos.max_failed_share:g} allows, such as {name}: {reason}; `trecvit data check` lists "
                "them all and writes a clean list"
            )

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The clips of the first steps, about 256."""
        num_steps = min(-(-_EXAMPLES // self.batch_size), self.steps_per_epoch)
        return _collate([self.clips[item] for step in range(num_steps) for item in self.items(step)]).videos


class _KeyedClips(Dataset[tuple[int, Sample | Failure]]):
    """(pass, video) -> the key of that clip, and the clip."""

    def __init__(self, clips: TrainingClips, num_videos: int) -> None:
        self.clips, self.num_videos = clips, num_videos

    def __getitem__(self, item: tuple[int, int]) -> tuple[int, Sample | Failure]:
        return item[0] * self.num_videos + item[1], self.clips[item]


def _collate(items: Sequence[tuple[int, Sample | Failure]]) -> LabelledBatch:
    samples = {key: item for key, item in items if isinstance(item, Sample)}
    failures = tuple(item for _, item in items if isinstance(item, Failure))
    pixels = [sample.pixels for sample in samples.values()]
    return LabelledBatch(
        torch.stack(pixels) if pixels else torch.zeros(0, dtype=torch.uint8),
        torch.tensor([sample.label for sample in samples.values()], dtype=torch.long),
        keys=torch.tensor([*samples], dtype=torch.long),
        failures=failures,
    )
