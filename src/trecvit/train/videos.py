"""Which clips of which videos each training step shows, and what happens when one cannot be read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from trecvit.data.clips import Failure, Sample, TrainingClips
from trecvit.data.layouts import DataSource, read_manifest
from trecvit.data.manifest import Manifest
from trecvit.errors import DataError
from trecvit.processes import Share
from trecvit.train.feed import Epochs, Feed, LabelledBatch, Steps
from trecvit.train.recipe import Recipe
from trecvit.train.sections import Videos
from trecvit.workers import load_items

_EXAMPLES = 256


def read_split(source: DataSource) -> Manifest:
    """`read_manifest`, with a warning of what it passed over."""
    manifest = read_manifest(source)
    for remark in manifest.remarks():
        warnings.warn(remark, stacklevel=2)
    return manifest


class VideoFeed(Feed[LabelledBatch]):
    """Batches of clips of real videos, `Videos.clips_per_video` of each per epoch, see `Epochs`."""

    def __init__(self, recipe: Recipe, videos: Videos) -> None:
        manifest = read_split(videos.train)
        self.manifest = manifest.unlabelled() if recipe.mae or recipe.memory else manifest.for_classifier()
        if missing := self.manifest.missing:
            listed = len(missing) + len(self.manifest.videos)
            warnings.warn(
                f"{self.manifest.source}: {len(missing)} of {listed} videos have no file, such as {missing[0]}",
                stacklevel=2,
            )
        plan = recipe.optimisation
        num_clips = len(self.manifest.videos) * videos.clips_per_video
        self.epochs = Epochs(num_clips, plan.batch_size, seed=recipe.seed)
        self.steps_per_epoch = self.epochs.steps_per_epoch
        if not self.steps_per_epoch:
            raise DataError(
                f"{self.manifest.source}: {len(self.manifest.videos)} videos do not fill one batch of "
                f"{plan.batch_size}; take a smaller batch_size, or more videos.clips_per_video"
            )
        names = self.manifest.labels or tuple(f"class {number}" for number in range(self.manifest.num_classes))
        super().__init__(labels=names, num_steps=plan.num_steps or plan.epochs * self.steps_per_epoch)
        self.videos = videos
        self.batch_size = plan.batch_size
        self.num_workers = recipe.num_workers
        self.clips = TrainingClips(self.manifest, recipe.preprocessing, videos.augmentation, seed=recipe.seed)

    def items(self, step: int) -> list[tuple[int, int]]:
        """The videos of a step, and the how-manieth passes over them these are: each cuts its clips elsewhere."""
        num_videos, clips = len(self.manifest.videos), self.videos.clips_per_video
        found = []
        for epoch, number in self.epochs.items(step):
            clip, video = divmod(number, num_videos)
            found.append((epoch * clips + clip, video))
        return found

    def batches(self, first_step: int, share: Share) -> Iterator[LabelledBatch]:
        """What a process sees in each step."""
        yield from load_items(
            self.clips,
            num_workers=self.num_workers,
            prefetch_factor=2,
            batch_sampler=Steps(self.items, range(first_step, self.num_steps), share),
            collate_fn=_collate,
        )

    def accept(self, failed: Mapping[str, str]) -> None:
        """Refuses more than the recipe's share of the videos."""
        if len(failed) > self.videos.max_failed_share * len(self.manifest.videos):
            name, reason = next(iter(failed.items()))
            raise DataError(
                f"{self.manifest.source}: {len(failed)} videos could not be read, more than max_failed_share="
                f"{self.videos.max_failed_share:g} allows, such as {name}: {reason}; `trecvit data check` lists "
                "them all and writes a clean list"
            )

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The clips of the first steps, some hundred."""
        num_steps = min(-(-_EXAMPLES // self.batch_size), self.steps_per_epoch)
        return _collate([self.clips[item] for step in range(num_steps) for item in self.items(step)]).videos


def _collate(items: Sequence[Sample | Failure]) -> LabelledBatch:
    samples = [item for item in items if isinstance(item, Sample)]
    failures = tuple(item for item in items if isinstance(item, Failure))
    videos = torch.stack([sample.pixels for sample in samples]) if samples else torch.zeros(0, dtype=torch.uint8)
    labels = torch.tensor([sample.label for sample in samples], dtype=torch.long)
    return LabelledBatch(videos, labels, failures=failures)
