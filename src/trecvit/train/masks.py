"""Clips without their classes, and what is visible of each."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trecvit.model.mae import tube_masks
from trecvit.processes import Share
from trecvit.train.feed import Feed, LabelledBatch, MaskedBatch
from trecvit.train.recipe import Recipe

_PIXELS_APART = 8  # enough of them tell clips apart


class MaskedFeed(Feed[MaskedBatch]):
    """The clips of another feed, each with a mask that depends on the step and on the clip, and on nothing else.

    So it is the same wherever the run began, whoever shares the step, and whatever else of it could not be read.

    Args:
        recipe: With `mae`.
        clips: Where the clips come from.
    """

    def __init__(self, recipe: Recipe, clips: Feed[LabelledBatch]) -> None:
        super().__init__(labels=(), num_steps=clips.num_steps)
        self.clips, self.seed = clips, recipe.seed
        self.mask_ratio, self.num_patches = recipe.autoencoder.mask_ratio, recipe.blocks.num_patches

    def batches(self, first_step: int, share: Share) -> Iterator[MaskedBatch]:
        """What a process sees in each step."""
        for step, batch in enumerate(self.clips.batches(first_step, share), start=first_step):
            masks = [self._visible(clip, step) for clip in batch.videos]
            visible = torch.cat(masks) if masks else torch.zeros(0, dtype=torch.int64)
            yield MaskedBatch(batch.videos, visible, failures=batch.failures)

    def _visible(self, clip: Tensor, step: int) -> Int64[Tensor, "1 k"]:
        some_pixels = clip[..., ::_PIXELS_APART, ::_PIXELS_APART].numpy().tobytes()
        draws = np.random.SeedSequence([self.seed, 12, step, zlib.crc32(some_pixels)])
        generator = torch.Generator().manual_seed(int(draws.generate_state(1, np.uint64)[0]))
        return tube_masks(1, self.num_patches, self.mask_ratio, generator)

    def accept(self, failed: Mapping[str, str]) -> None:
        """As the other feed does."""
        self.clips.accept(failed)

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The other feed's."""
        return self.clips.examples()
