"""Training to restore what is hidden: squared error of its pixels, tested and drawn on held-out clips."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from trecvit.baselines.mae import VideoMaeAutoencoder
from trecvit.config import Preprocessing, VideoMaeConfig
from trecvit.data.clips import EvaluationViews, Failure
from trecvit.evaluate.restoration import draw_restored, evaluate_mae
from trecvit.files import write_text
from trecvit.model.mae import Autoencoder, MaskedAutoencoder, Restoration, targets
from trecvit.processes import Processes
from trecvit.synthetic.textures import photographs
from trecvit.synthetic.world import World
from trecvit.train.feed import MaskedBatch
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.recipe import Recipe
from trecvit.train.videos import read_split

_NUM_DRAWN = 4  # clips in the pictures


class MaskedAutoencoding(Objective[MaskedBatch, Restoration]):
    """Mean squared error of the hidden patches, over all frames of a clip; clips count alike.

    The paper states an L2 loss "of the entire frames", with patches normalised "as done in VideoMAE". VideoMAE counts
    only what was hidden, and so does this: a choice, since what was visible could be copied.

    Args:
        recipe: With `mae`.
        held_out: Clips to test on and to draw, if there are any.
    """

    figures = ("explained",)
    score = "explained"

    def __init__(self, recipe: Recipe, held_out: HeldOut | None) -> None:
        self.autoencoder, self.data, self.held_out = recipe.autoencoder, recipe.data, held_out
        self.seed = recipe.mae.validation_seed if recipe.mae is not None else 0

    def blank(self, preprocessing: Preprocessing, device: torch.device) -> MaskedBatch:
        """A black clip of which nothing is hidden."""
        size = (1, preprocessing.num_frames, 3, *preprocessing.image_size)
        everything = torch.arange(self.autoencoder.blocks.num_patches, device=device)[None]
        return MaskedBatch(torch.zeros(size, dtype=torch.uint8, device=device), everything)

    def loss(self, out: Restoration, part: MaskedBatch) -> PartLoss:
        """Squared errors, and how much of the targets is explained."""
        true = targets(part.videos, out.hidden, self.autoencoder).normalised
        squares = (out.normalised.float() - true).square()
        wrong, whole = squares.detach().double().sum(), true.double().square().sum()
        shares = torch.stack([whole - wrong, whole])[None]
        return PartLoss(squares.sum() * len(part) / max(squares.numel(), 1), shares.cpu())

    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """`evaluate_mae`'s figures; the first process does it by itself, the others get nothing."""
        return self._figures(model, processes) if processes.first else {}

    def draw(self, model: Path, folder: Path, processes: Processes) -> None:
        """Some of the held-out clips restored, as a picture and a film."""
        if self.held_out is not None:
            clips, _ = self.held_out.read(_NUM_DRAWN)
            draw_restored(self._load(model, processes), clips, folder, seed=self.seed)

    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """The same test as on the way, with pictures."""
        if self.held_out is None or not processes.first:
            return
        self.draw(model, folder, processes)
        protocol = {"data": self.held_out.source, "seed": self.seed, "mask_ratio": self.autoencoder.mask_ratio}
        result = {"protocol": protocol, **self._figures(model, processes)}
        write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")

    def _figures(self, model: Path, processes: Processes) -> dict[str, float | int]:
        assert self.held_out is not None, "a recipe that validates has clips to test on"
        clips, failures = self.held_out.read()
        return {**evaluate_mae(self._load(model, processes), clips, seed=self.seed), "failed": len(failures)}

    def _load(self, model: Path, processes: Processes) -> Autoencoder:
        kind = VideoMaeAutoencoder if isinstance(self.autoencoder, VideoMaeConfig) else MaskedAutoencoder
        return kind.load(model, device=processes.device)


class HeldOut:
    """The clips that a recipe's autoencoder is tested on.

    Args:
        recipe: With `mae` and `scenes`, or with `mae` and videos to validate on.

    Attributes:
        source: Where they come from, in words.
    """

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.mae is not None, "only an autoencoder restores"
        self.count = recipe.mae.validation_clips
        self._world: World | None = None
        if recipe.scenes is not None:
            pictures = photographs("held_out") if recipe.scenes.photographs else []
            self._world = World(recipe.scenes.world, seed=recipe.mae.validation_seed, pictures=pictures)
            self.source = "the synthetic world, held-out scenes"
            return
        assert recipe.videos is not None, "a recipe has scenes or videos"
        assert recipe.videos.validation is not None, "held-out clips are of validation videos"
        manifest = read_split(recipe.videos.validation).unlabelled().spread(self.count)
        self._views = EvaluationViews(manifest, recipe.preprocessing, num_clips=1, num_crops=1)
        self.source = manifest.source

    def read(self, count: int | None = None) -> tuple[list[UInt8[Tensor, "t 3 h w"]], list[Failure]]:
        """The first `count` of the clips, by default all, but for those that cannot be read.

        Raises:
            DataError: when not one can be.
        """
        wanted = min(self.count, count or self.count)
        if self._world is not None:
            return [self._world.pair(number)[0][number % 2] for number in range(wanted)], []
        return self._views.first_views(wanted)


def held_out_clips(recipe: Recipe) -> HeldOut | None:
    """What a recipe's autoencoder is tested on, if there is anything."""
    assert recipe.mae is not None, "only an autoencoder restores"
    without = recipe.videos is not None and recipe.videos.validation is None
    return None if without or not recipe.mae.validation_clips else HeldOut(recipe)
