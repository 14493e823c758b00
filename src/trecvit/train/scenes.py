"""Which scenes of the synthetic world each training step shows.

Step s depends on nothing but s, so a run that goes on after an interruption sees exactly what it would have seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from trecvit.errors import ConfigError
from trecvit.processes import Share
from trecvit.synthetic.pictures import load_pictures, photographs
from trecvit.synthetic.world import LABELS, NUM_SYMMETRIES, World, mirrored
from trecvit.train.feed import Feed, LabelledBatch
from trecvit.train.recipe import Recipe
from trecvit.train.sections import Scenes
from trecvit.workers import load_items

# Most numbers of workers divide this one, so that the worker that rendered a scene is the one that shows it again.
_STEPS_BETWEEN_VIEWS = 64


class SceneFeed(Feed[LabelledBatch]):
    """Batches of the synthetic world's clips."""

    def __init__(self, recipe: Recipe, scenes: Scenes) -> None:
        super().__init__(labels=LABELS, num_steps=recipe.optimisation.num_steps)
        self.scenes = scenes
        self.num_workers = recipe.num_workers
        self.new_per_step = recipe.optimisation.batch_size // 2 // scenes.views_per_scene

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """Some frames of the first scenes."""
        views = _Views(self.scenes, self.new_per_step)
        return torch.cat([views.world.pair(number)[0][:, ::5] for number in range(256)])

    def accept(self, failed: Mapping[str, str]) -> None:
        """Scenes are made, not read."""
        assert not failed, failed

    def batches(self, first_step: int, share: Share) -> Iterator[LabelledBatch]:
        """The clips of each step from `first_step` to the last."""
        pairs_per_step = self.new_per_step * self.scenes.views_per_scene
        if pairs_per_step % share.count:
            raise ConfigError(f"{share.count} processes cannot share {pairs_per_step} pairs of clips equally")
        steps = range(first_step, self.num_steps)
        loader = load_items(
            _Views(self.scenes, self.new_per_step),
            num_workers=self.num_workers,
            prefetch_factor=4,
            batch_size=pairs_per_step // share.count,
            sampler=[view for step in steps for view in share.of(self.views(step))],
        )
        for videos, labels in loader:
            yield LabelledBatch(videos.flatten(0, 1), labels.flatten())

    def views(self, step: int) -> list[tuple[int, int]]:
        """The scene numbers of a step, and how often each has been shown before.

        A scene comes back every `_STEPS_BETWEEN_VIEWS` steps until it was shown `views_per_scene` times. The numbers go
        round: the first steps also show scenes that are new at the last.
        """
        shown = []
        for view in range(self.scenes.views_per_scene):
            first_shown = (step - view * _STEPS_BETWEEN_VIEWS) % self.num_steps
            shown += [(first_shown * self.new_per_step + place, view) for place in range(self.new_per_step)]
        return shown


class _Views(Dataset[tuple[Tensor, Tensor]]):
    """(scene number, view) -> both clips of the scene [2,T,3,H,W] as that view shows them, and their classes [2]."""

    def __init__(self, scenes: Scenes, new_per_step: int) -> None:
        pictures = photographs("train") if scenes.photographs else []
        pictures += load_pictures(scenes.pictures) if scenes.pictures else []
        self.scenes = scenes
        self.world = World(scenes.world, seed=scenes.seed, pictures=pictures)
        self.easy_world = World(scenes.world.easy(), seed=scenes.seed, pictures=pictures)
        self.num_easy = scenes.easy_steps * new_per_step
        self.num_kept = scenes.views_per_scene * _STEPS_BETWEEN_VIEWS * new_per_step
        self.kept: OrderedDict[int, tuple[Tensor, tuple[int, int]]] = OrderedDict()

    def __getitem__(self, scene_and_view: tuple[int, int]) -> tuple[Tensor, Tensor]:
        number, view = scene_and_view
        rng = np.random.default_rng([self.scenes.seed, 4, number])
        # The share of easy scenes falls from all to none over the first `easy_steps`.
        easy = rng.random() * self.num_easy > number
        symmetry = int(rng.permutation(NUM_SYMMETRIES)[view]) if self.scenes.views_per_scene > 1 else 0
        if number not in self.kept:
            self.kept[number] = (self.easy_world if easy else self.world).pair(number)
            if len(self.kept) > self.num_kept:
                self.kept.popitem(last=False)
        videos, labels = mirrored(*self.kept[number], symmetry)
        return videos, torch.tensor(labels)
