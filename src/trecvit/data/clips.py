"""Clips of real videos for training and evaluation: decoded, cut and augmented, reproducibly.

A video that cannot be read is never replaced by another. It gives a `Failure` with its name and the reason: training
counts these, evaluation lists them.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from trecvit.config import Preprocessing
from trecvit.data.augment import Augmentation
from trecvit.data.manifest import NO_LABEL, Manifest
from trecvit.draws import Stream, rng
from trecvit.errors import ConfigError, DataError, VideoError
from trecvit.video.decode import Source, open_video
from trecvit.video.sampling import clip_indices, evaluation_clips, spatial_crops
from trecvit.video.transforms import crop

_MOST_KEPT_BYTES = 1_000_000_000  # of repeated views, per process that reads clips


@dataclass(frozen=True, slots=True)
class Sample:
    """Pixels and label of one video.

    Attributes:
        pixels: uint8; a training clip `[T, 3, H, W]`, or all evaluation views `[V, T, 3, H, W]`: clips, and within each
            clip its crops.
        label: Class index.
        name: The video's name in the manifest.
    """

    pixels: Tensor
    label: int
    name: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A video that could not be read.

    Attributes:
        name: The video's name in the manifest.
        reason: One line.
    """

    name: str
    reason: str


class TrainingClips(Dataset[Sample | Failure]):
    """Training clips: (epoch, index) -> a clip of video `index`, cut and augmented, fixed by seed, epoch and index.

    Args:
        manifest: The videos.
        preprocessing: Length, stride and size of the clips.
        augmentation: Their augmentation.
        seed: 0 or more.
        views: Number of different clips of each video, the same in every V epochs: first the middle one as evaluation
            sees it, then augmented ones, which depend on the file's name and not on its place in the manifest. 0: new
            clips in every epoch.
        still_share: Share of clips that become one of their frames, repeated, with the class after the manifest's:
            nothing happens in them.
    """

    def __init__(
        self,
        manifest: Manifest,
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        *,
        seed: int,
        views: int = 0,
        still_share: float = 0.0,
    ) -> None:
        if augmentation.flip and not manifest.labels and any(video.label != NO_LABEL for video in manifest.videos):
            raise ConfigError(
                f"{manifest.source}: expected class names, which decide what may be mirrored, got class indices only; "
                "give `labels`, or flip=false"
            )
        self.manifest, self.preprocessing, self.augmentation = manifest, preprocessing, augmentation
        self.mirrored_labels = augmentation.mirrored_labels(manifest.labels)
        self.seed, self.views, self.still_share = seed, views, still_share
        self._kept: dict[tuple[int, int], Sample] = {}
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self.manifest.videos)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Sample | Failure:
        epoch, index = epoch_and_index
        sample = self._view(epoch % self.views, index) if self.views else self._clip(epoch, index)
        generator = rng(self.seed, Stream.STILL, epoch, index)
        if isinstance(sample, Failure) or generator.random() >= self.still_share:
            return sample
        frame = sample.pixels[int(generator.integers(len(sample.pixels)))]
        return Sample(frame.expand_as(sample.pixels), self.manifest.num_classes, sample.name)

    def _view(self, view: int, index: int) -> Sample | Failure:
        """Read one of the repeated views, from memory if it is there."""
        if kept := self._kept.get((view, index)):
            return kept
        if view:
            sample = self._clip(view, index)
        else:
            sample = EvaluationViews(self.manifest, self.preprocessing, num_clips=1, num_crops=1).first(index)
        if isinstance(sample, Sample) and self._kept_bytes + sample.pixels.nbytes <= _MOST_KEPT_BYTES:
            self._kept[view, index] = sample
            self._kept_bytes += sample.pixels.nbytes
        return sample

    def _clip(self, epoch: int, index: int) -> Sample | Failure:
        video = self.manifest.videos[index]
        plan = self.preprocessing
        key = zlib.crc32(Path(video.name).stem.encode()) if self.views else index
        generator = rng(self.seed, Stream.AUGMENTATION, epoch, key)
        try:
            with open_video(video.source) as opened:
                num_frames, fps = opened.length_and_rate()
                stride = plan.stride_for(fps)
                room = max(0, num_frames - ((plan.num_frames - 1) * stride + 1))
                indices = clip_indices(num_frames, plan.num_frames, stride, int(generator.integers(room + 1)))
                short_side_px = self.augmentation.short_side_px(generator, plan.image_size)
                frames, _ = opened.frames_at(indices, short_side_px=short_side_px)
        except VideoError as exc:
            return Failure(video.name, exc.reason)
        mirrored = self._mirrored_label(video.label)
        clip, flipped = self.augmentation(frames, generator, plan.image_size, may_flip=mirrored is not None)
        label = mirrored if flipped and mirrored is not None else video.label
        return Sample(torch.from_numpy(clip).permute(0, 3, 1, 2), label, video.name)

    def _mirrored_label(self, label: int) -> int | None:
        """Return the label of a mirrored video; None if it must not be mirrored."""
        if label == NO_LABEL:
            return NO_LABEL if self.augmentation.flip else None
        # Without class names the mirrored label is unknown.
        return self.mirrored_labels[label] if self.mirrored_labels else None


class EvaluationViews(Dataset[Sample | Failure]):
    """Evaluation views: index -> all views of a video, clips spread evenly over it and crops along its longer side.

    Args:
        manifest: The videos.
        preprocessing: Length, stride and size of the clips.
        num_clips: Clips per video (paper, Table 9: 4).
        num_crops: Crops per clip, 1 or 3 (paper, Table 9: 3).
    """

    def __init__(self, manifest: Manifest, preprocessing: Preprocessing, *, num_clips: int, num_crops: int) -> None:
        height, width = preprocessing.image_size
        if height != width or num_clips < 1 or num_crops not in (1, 3):
            raise ConfigError(
                f"expected square clips, num_clips >= 1 and num_crops 1 or 3; got {height} x {width} pixels, "
                f"{num_clips} clips and {num_crops} crops"
            )
        self.manifest, self.preprocessing = manifest, preprocessing
        self.num_clips, self.num_crops = num_clips, num_crops

    def __len__(self) -> int:
        return len(self.manifest.videos)

    def __getitem__(self, index: int) -> Sample | Failure:
        video = self.manifest.videos[index]
        try:
            views = evaluation_views(video.source, self.preprocessing, self.num_clips, self.num_crops)
        except VideoError as exc:
            return Failure(video.name, exc.reason)
        return Sample(views, video.label, video.name)

    def first(self, index: int) -> Sample | Failure:
        """Read the first view of a video."""
        sample = self[index]
        return sample if isinstance(sample, Failure) else replace(sample, pixels=sample.pixels[0])

    def first_views(self, count: int | None = None) -> tuple[list[UInt8[Tensor, "t 3 h w"]], list[Failure]]:
        """Read one view of each of the first `count` videos, by default of all, and the failures.

        Raises:
            DataError: No video can be read.
        """
        items = [self.first(index) for index in range(min(len(self), len(self) if count is None else count))]
        failures = [item for item in items if isinstance(item, Failure)]
        clips = [item.pixels for item in items if not isinstance(item, Failure)]
        if not clips:
            first = failures[0]
            raise DataError(f"{self.manifest.source}: no video can be read; the first, {first.name}: {first.reason}")
        return clips, failures


def evaluation_views(
    source: Source, plan: Preprocessing, num_clips: int, num_crops: int
) -> UInt8[Tensor, "views t 3 h w"]:
    """Read the views of one video, clip by clip and within each clip crop by crop.

    The short side is resized to that of the crop, as for the released model, and the crops lie at both ends and in the
    middle of the longer side. Clips are square.

    Raises:
        VideoError: The video cannot be read.
    """
    side = plan.image_size[0]
    with open_video(source) as opened:
        num_frames, fps = opened.length_and_rate()
        indices = evaluation_clips(num_frames, plan.num_frames, plan.stride_for(fps), num_clips)
        images, _ = opened.frames_at(indices.reshape(-1), short_side_px=side)
    video = torch.from_numpy(images).permute(0, 3, 1, 2).unflatten(0, indices.shape)
    corners = spatial_crops(images.shape[1], images.shape[2], side, num_crops)
    # [clips, crops, T, 3, H, W]
    views = torch.stack([crop(video, top, left, side, side) for top, left in corners], dim=1)
    return views.flatten(0, 1).contiguous()
