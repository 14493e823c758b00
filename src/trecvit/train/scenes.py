"""Clips of the synthetic world: the section `scenes` of a recipe, and the scenes of each training step.

Step s depends on s alone, so a resumed run sees the same scenes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from trecvit.draws import Stream, rng
from trecvit.errors import ConfigError
from trecvit.processes import Share
from trecvit.synthetic.pictures import load_pictures, photographs
from trecvit.synthetic.world import LABELS, NUM_SYMMETRIES, World, WorldConfig, mirrored
from trecvit.train.feed import Feed, LabelledBatch
from trecvit.train.held_out import Clips, HeldOutClips
from trecvit.train.run_data import files_fingerprint
from trecvit.train.sections import Settings, fields_of, require_range
from trecvit.workers import load_items

# Most numbers of workers divide this one, so that the worker that rendered a scene also shows it again.
_STEPS_BETWEEN_VIEWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenes:
    """Clips of the synthetic world.

    Attributes:
        world: Appearance of the clips.
        easy_steps: Steps over which the share of easy scenes (`WorldConfig.easy`) falls from 1 to 0.
        views_per_scene: Number of times that a scene is shown, each time with another symmetry; divides half the batch.
        photographs: Whether textures are also cut from photographs (scikit-image's, the training split).
        pictures: A folder of additional pictures and cut-out sprites.
        seed: Of the scenes.
    """

    world: WorldConfig
    easy_steps: int = 0
    views_per_scene: int = 1
    photographs: bool = True
    pictures: str = ""
    seed: int = 0

    def __post_init__(self) -> None:
        require_range("scenes", self, ("easy_steps", "seed"))
        if not 1 <= self.views_per_scene <= NUM_SYMMETRIES:
            raise ConfigError(f"views_per_scene: expected 1 to {NUM_SYMMETRIES}, got {self.views_per_scene}")
        height, width = self.world.image_size
        if self.views_per_scene > 1 and height != width:
            raise ConfigError(f"views_per_scene: only square scenes can be turned, got {height} x {width}")

    @classmethod
    def from_value(cls, value: Any) -> Scenes:
        """Read the section of a recipe."""
        values = fields_of(cls, value, "scenes")
        world = fields_of(WorldConfig, values.pop("world", {}), "world")
        if "image_size" in world:
            world["image_size"] = tuple(world["image_size"])
        return cls(world=WorldConfig(**world), **values)

    def check(self, settings: Settings, *, labelled: bool) -> None:
        """Raises ConfigError for another number of classes, another image size, epochs or a batch without pairs."""
        if labelled and settings.model.num_classes != len(LABELS):
            raise ConfigError(
                f"model.num_classes: the world has {len(LABELS)} classes, got {settings.model.num_classes}"
            )
        if self.world.image_size != settings.preprocessing.image_size:
            raise ConfigError(
                f"world.image_size {self.world.image_size} and preprocessing.image_size "
                f"{settings.preprocessing.image_size} must be the same"
            )
        settings.require_num_steps("scenes")
        size, views = settings.optimisation.batch_size, self.views_per_scene
        if size % (2 * views):
            raise ConfigError(
                f"batch_size: clips of scenes come in pairs, each shown {views} times; expected a multiple of "
                f"{2 * views}, got {size}"
            )

    def feed(self, settings: Settings, *, labelled: bool) -> Feed[LabelledBatch]:
        """Batches of the clips, with classes in any case."""
        return SceneFeed(settings, self)

    def held_out(self, settings: Settings, *, count: int, seed: int) -> HeldOutClips:
        """Scenes of another seed, with photographs of the other split."""
        pictures = photographs("held_out") if self.photographs else []
        world = World(self.world, seed=seed, pictures=pictures)

        def read(count: int) -> tuple[Clips, list[Any]]:
            return [world.pair(index)[0][index % 2] for index in range(count)], []

        return HeldOutClips("the synthetic world, held-out scenes", count, read)

    def fingerprints(self, *, labelled: bool) -> dict[str, dict[str, Any]]:
        """Summary of the additional pictures."""
        return {"pictures": files_fingerprint(self.pictures)} if self.pictures else {}


class SceneFeed(Feed[LabelledBatch]):
    """Batches of the synthetic world's clips.

    Args:
        settings: Of the recipe.
        scenes: Its section.
    """

    def __init__(self, settings: Settings, scenes: Scenes) -> None:
        super().__init__(labels=LABELS, num_steps=settings.optimisation.num_steps)
        self.scenes = scenes
        self.num_workers = settings.num_workers
        self.new_per_step = settings.optimisation.batch_size // 2 // scenes.views_per_scene

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """Every fifth frame of the first scenes."""
        views = _Views(self.scenes, self.new_per_step)
        return torch.cat([views.world.pair(index)[0][:, ::5] for index in range(256)])

    def accept(self, failed: Mapping[str, str]) -> None:
        """Check that nothing failed: scenes are rendered, not read."""
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
        for videos, labels, keys in loader:
            yield LabelledBatch(videos.flatten(0, 1), labels.flatten(), keys=keys.flatten())

    def views(self, step: int) -> list[tuple[int, int]]:
        """The scenes of a step, and how many times each has been shown before.

        A scene returns every `_STEPS_BETWEEN_VIEWS` steps until it has been shown `views_per_scene` times. Steps wrap
        around: the first ones also show scenes that are first shown in the last ones.
        """
        shown = []
        for view in range(self.scenes.views_per_scene):
            first_shown = (step - view * _STEPS_BETWEEN_VIEWS) % self.num_steps
            shown += [(first_shown * self.new_per_step + place, view) for place in range(self.new_per_step)]
        return shown


class _Views(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """(scene, view) -> both clips [2,T,3,H,W] of a scene under the view's symmetry, their classes [2] and keys [2]."""

    def __init__(self, scenes: Scenes, new_per_step: int) -> None:
        pictures = photographs("train") if scenes.photographs else []
        pictures += load_pictures(scenes.pictures) if scenes.pictures else []
        self.scenes = scenes
        self.world = World(scenes.world, seed=scenes.seed, pictures=pictures)
        self.easy_world = World(scenes.world.easy(), seed=scenes.seed, pictures=pictures)
        self.num_easy = scenes.easy_steps * new_per_step
        self.num_kept = scenes.views_per_scene * _STEPS_BETWEEN_VIEWS * new_per_step
        self.kept: OrderedDict[int, tuple[Tensor, tuple[int, int]]] = OrderedDict()

    def __getitem__(self, scene_and_view: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        scene, view = scene_and_view
        draws = rng(self.scenes.seed, Stream.SCENE_VIEW, scene)
        # The share of easy scenes falls from 1 to 0 over the first `easy_steps`.
        easy = draws.random() * self.num_easy > scene
        symmetry = int(draws.permutation(NUM_SYMMETRIES)[view]) if self.scenes.views_per_scene > 1 else 0
        if scene not in self.kept:
            self.kept[scene] = (self.easy_world if easy else self.world).pair(scene)
            if len(self.kept) > self.num_kept:
                self.kept.popitem(last=False)
        videos, labels = mirrored(*self.kept[scene], symmetry)
        key = 2 * (scene * NUM_SYMMETRIES + view)
        return videos, torch.tensor(labels), torch.tensor([key, key + 1])
