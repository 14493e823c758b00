"""Which clips with tracks each training step shows, and which points are asked for in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from trecvit.data.clips import Failure
from trecvit.data.tapvid import read_track_files
from trecvit.data.tracked import TrackedVideo, TrackedVideos, random_queries
from trecvit.errors import DataError
from trecvit.processes import Share
from trecvit.synthetic.pictures import load_pictures, photographs
from trecvit.synthetic.track_scenes import TrackScenes
from trecvit.train.feed import Epochs, Feed, Steps, TrackBatch
from trecvit.train.recipe import Recipe
from trecvit.workers import load_items

_EXAMPLES = 64

Clip = tuple[Tensor, Tensor, Tensor, Tensor]  # of a `TrackBatch`, without its first axis


class TrackFeed(Feed[TrackBatch]):
    """Batches of clips with tracks: scenes, each shown once; or files, each once per epoch, see `Epochs`."""

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.tracks is not None, "a tracker's recipe has tracks"
        plan = recipe.optimisation
        self.batch_size, self.num_workers = plan.batch_size, recipe.num_workers
        self.max_failed_share = recipe.tracks.max_failed_share
        self.clips = TrackClips(recipe)
        self.epochs: Epochs | None = None
        num_steps = plan.num_steps
        if isinstance(self.clips.source, TrackedVideos):
            self.epochs = Epochs(len(self.clips.source), plan.batch_size, seed=recipe.seed)
            if not self.epochs.steps_per_epoch:
                raise DataError(
                    f"{recipe.data}: {len(self.clips.source)} files do not fill one batch of {plan.batch_size}; take a "
                    "smaller batch_size"
                )
            num_steps = num_steps or plan.epochs * self.epochs.steps_per_epoch
        super().__init__(labels=(), num_steps=num_steps)

    def items(self, step: int) -> list[tuple[int, int]]:
        """The epoch and the clips of a step."""
        if self.epochs is not None:
            return self.epochs.items(step)
        return [(0, step * self.batch_size + place) for place in range(self.batch_size)]

    def batches(self, first_step: int, share: Share) -> Iterator[TrackBatch]:
        """What a process sees in each step."""
        yield from load_items(
            self.clips,
            num_workers=self.num_workers,
            prefetch_factor=2,
            batch_sampler=Steps(self.items, range(first_step, self.num_steps), share),
            collate_fn=_collate,
        )

    def accept(self, failed: Mapping[str, str]) -> None:
        """Refuses more than the recipe's share of the files."""
        num_files = self.epochs.num_files if self.epochs is not None else 0
        if len(failed) > self.max_failed_share * num_files:
            name, reason = next(iter(failed.items()))
            raise DataError(
                f"{len(failed)} files with tracks could not be read, more than max_failed_share="
                f"{self.max_failed_share:g} allows, such as {name}: {reason}"
            )

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The clips of the first steps, some dozens."""
        num_steps = min(-(-_EXAMPLES // self.batch_size), self.num_steps)
        return _collate([self.clips[item] for step in range(num_steps) for item in self.items(step)]).videos


class TrackClips(Dataset[Clip | Failure]):
    """(epoch, index) -> a clip of the scene or file `index`, and the points that are asked for in it.

    Args:
        recipe: With `tracks`.
    """

    def __init__(self, recipe: Recipe) -> None:
        tracks, self.preprocessing = recipe.tracks, recipe.preprocessing
        assert tracks is not None, "a tracker's recipe has tracks"
        self.num_points, self.first_share, self.seed = tracks.num_points, tracks.first_share, recipe.seed
        self.source: TrackScenes | TrackedVideos
        self.easy_scenes: TrackScenes | None = None
        self.num_easy = tracks.easy_steps * recipe.optimisation.batch_size
        if tracks.scenes is None:
            self.source = read_track_files(tracks.files)
        else:
            pictures = photographs("train") if tracks.photographs else []
            pictures += load_pictures(tracks.pictures) if tracks.pictures else []
            self.source = TrackScenes(tracks.scenes, seed=tracks.seed, pictures=pictures)
            self.easy_scenes = TrackScenes(tracks.scenes.easy(), seed=tracks.seed, pictures=pictures)

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Clip | Failure:
        epoch, index = epoch_and_index
        rng = np.random.default_rng([self.seed, 9, epoch, index])
        try:
            video = self._cut(self._source(index)[index], rng)
        except DataError as exc:
            names = self.source.names if isinstance(self.source, TrackedVideos) else {index: f"scene {index}"}
            return Failure(names[index], str(exc))
        return self._asked(video, rng)

    def _source(self, index: int) -> TrackScenes | TrackedVideos:
        """Easy scenes at first, whose share falls from all to none over the first `easy_steps`."""
        draw = np.random.default_rng([self.seed, 10, index]).random()
        if self.easy_scenes is not None and draw * self.num_easy > index:
            return self.easy_scenes
        return self.source

    def _cut(self, video: TrackedVideo, rng: np.random.Generator) -> TrackedVideo:
        """As many frames as a clip has, from anywhere in the video, in a clip's size."""
        length = self.preprocessing.num_frames
        if video.num_frames < length:
            raise DataError(f"{video.name}: expected at least num_frames={length} frames, got {video.num_frames}")
        first = int(rng.integers(video.num_frames - length + 1))
        frames = slice(first, first + length)
        cut = replace(
            video,
            video=video.video[frames],
            tracks_xy=video.tracks_xy[:, frames],
            occluded=video.occluded[:, frames],
            query_points_tyx=None,
        )
        return cut.resized(self.preprocessing.image_size)

    def _asked(self, video: TrackedVideo, rng: np.random.Generator) -> Clip:
        """Some of the points that the clip shows, each asked for at a frame that shows it."""
        shown = np.nonzero(~video.occluded.all(axis=1))[0]
        chosen = rng.permutation(shown)[: self.num_points]
        video = replace(video, tracks_xy=video.tracks_xy[chosen], occluded=video.occluded[chosen])
        queries = np.full((self.num_points, 3), math.inf, np.float32)
        tracks_xy = np.zeros((self.num_points, video.num_frames, 2), np.float32)
        visible = np.zeros((self.num_points, video.num_frames), bool)
        if len(chosen):
            asked = random_queries(video, rng)
            firsts = np.nonzero(rng.random(len(chosen)) < self.first_share)[0]
            frames = (~video.occluded[firsts]).argmax(axis=1)
            asked[firsts, 0] = frames
            asked[firsts, 1:] = video.tracks_xy[firsts, frames, ::-1]
            # Files may call a point visible that lies a little outside of the frame.
            asked[:, 1:] = asked[:, 1:].clip(0, video.video.shape[1:3])
            queries[: len(chosen)] = asked
            tracks_xy[: len(chosen)] = video.tracks_xy
            visible[: len(chosen)] = ~video.occluded
        pixels = torch.from_numpy(video.video).permute(0, 3, 1, 2).contiguous()
        return pixels, torch.from_numpy(queries), torch.from_numpy(tracks_xy), torch.from_numpy(visible)


def _collate(items: Sequence[Clip | Failure]) -> TrackBatch:
    failures = tuple(item for item in items if isinstance(item, Failure))
    clips = [item for item in items if not isinstance(item, Failure)]
    if not clips:
        nothing = torch.zeros(0)
        return TrackBatch(nothing, nothing, nothing, nothing, failures=failures)
    return TrackBatch(*(torch.stack(column) for column in zip(*clips, strict=True)), failures=failures)
