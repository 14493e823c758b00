"""Masked autoencoding (paper, section 4.1): squared error of masked patches, tested and drawn on held-out clips."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from trecvit.config import Architecture, ModelConfig, Preprocessing
from trecvit.draws import Stream, torch_seed
from trecvit.errors import ConfigError
from trecvit.evaluate.restoration import draw_restored, evaluate_mae
from trecvit.files import write_text
from trecvit.model.mae import (
    Autoencoder,
    AutoencoderConfig,
    MaskedAutoencoder,
    Restoration,
    decoder_config,
    targets,
    tube_masks,
)
from trecvit.processes import Processes, Share
from trecvit.train.feed import Batch, Feed, LabelledBatch
from trecvit.train.held_out import HeldOutClips
from trecvit.train.networks import OTHER_NETWORKS
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.scenes import Scenes
from trecvit.train.sections import Settings, fields_of
from trecvit.train.task import Curves, Task
from trecvit.train.tasks.classify import CLIP_SECTIONS, ClipSource, clip_section, clip_source
from trecvit.train.videos import Videos

_NUM_DRAWN = 4  # clips in the pictures

NETWORKS: dict[str, Callable[[AutoencoderConfig, Preprocessing], AutoencoderConfig]] = {
    "trecvit": lambda config, _: config
}
"""Values of `mae.network`: each makes its architecture from a TRecViT's of the same sizes and the clips."""


# ---- the recipe -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Mae:
    """Settings of masked autoencoding.

    Attributes:
        decoder: Architecture of the decoder, see `decoder_config`; it is saved beside the model, not in it.
        network: Network to train: the recipe's model, "trecvit", or another of `NETWORKS` with its sizes.
        mask_ratio: Share of masked tubes (paper: 0.9 is best).
        normalised_targets: Whether each patch is normalised (paper), see `AutoencoderConfig`.
        validation_clips: Number of held-out clips to test on and to draw: one of each of so many of
            `videos.validation`, spread evenly over its list, or scenes of another seed with photographs of the other
            split.
        validation_seed: Of these scenes, and of the masks of all held-out clips.
        validate_every: Steps between two tests; the best model is kept. 0: only the trained one is tested.
    """

    decoder: ModelConfig
    network: str = "trecvit"
    mask_ratio: float = 0.9
    normalised_targets: bool = True
    validation_clips: int = 32
    validation_seed: int = 1
    validate_every: int = 0

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            hint = "" if self.network != "videomae" else "; 'videomae' needs `scripts/paper train`"
            raise ConfigError(f"mae.network: expected one of {', '.join(NETWORKS)}, got {self.network!r}{hint}")
        if min(self.validation_clips, self.validation_seed, self.validate_every) < 0:
            raise ConfigError(
                "mae: expected validation_clips, validation_seed and validate_every of 0 or more, got "
                f"{self.validation_clips}, {self.validation_seed} and {self.validate_every}"
            )
        if self.validate_every and not self.validation_clips:
            raise ConfigError("mae.validate_every: there are no validation_clips to test on")

    @classmethod
    def from_value(cls, value: Any, model: Architecture) -> Mae:
        """Read the section of a recipe whose encoder is `model`."""
        if not isinstance(model, ModelConfig):
            raise ConfigError("mae: the encoder is a TRecViT; expected a model without `blocks`")
        values = fields_of(cls, value, "mae")
        decoder = fields_of(ModelConfig, values.pop("decoder", {}), "mae.decoder")
        return cls(decoder=decoder_config(model, **decoder), **values)


@dataclass(frozen=True, kw_only=True)
class MaeTask(Task):
    """Masked autoencoding of clips; classes, if there are any, are not used.

    Attributes:
        mae: Settings.
        clips: The clips.
    """

    sections = ("mae", *CLIP_SECTIONS)
    curves = Curves("explained", "explained variance", "explained", "explained variance")

    mae: Mae
    clips: ClipSource

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any], settings: Settings) -> MaeTask:
        """Read the task, see `Task`."""
        return cls(mae=Mae.from_value(sections["mae"], settings.model), clips=clip_source(sections))

    def to_dict(self) -> dict[str, Any]:
        """The section `mae`, and that of the clips."""
        return {"mae": dataclasses.asdict(self.mae), **clip_section(self.clips)}

    def check(self, settings: Settings) -> None:
        """Raises ConfigError for initial weights that the network cannot take, and for tests without clips."""
        super().check(settings)
        self.architecture(settings)  # refuses parts that do not fit together
        if settings.start.vit:
            raise ConfigError("start.vit: expected none for an autoencoder; give start.weights instead")
        if self.mae.network != "trecvit" and (settings.start.weights or settings.start.whiten_grain_px):
            raise ConfigError(
                f"start: a {self.mae.network} starts from random weights; leave out weights and whiten_grain_px"
            )
        if isinstance(self.clips, Scenes) and self.clips.seed == self.mae.validation_seed:
            raise ConfigError(f"mae.validation_seed: expected a seed other than scenes.seed={self.clips.seed}")
        self.clips.check(settings, labelled=False)
        if self.mae.validate_every and not self.evaluates:
            raise ConfigError("mae.validate_every: there are no videos.validation to test on")

    @property
    def origin(self) -> str:
        """Path of the training videos; empty for scenes."""
        return self.clips.train.path if isinstance(self.clips, Videos) else ""

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out clips."""
        has_clips = isinstance(self.clips, Scenes) or self.clips.validation is not None
        return self.mae.validation_clips > 0 and has_clips

    @property
    def validate_every(self) -> int:
        """Steps between two tests, see `Mae`."""
        return self.mae.validate_every

    def architecture(self, settings: Settings) -> AutoencoderConfig:
        """Encoder and decoder."""
        config = AutoencoderConfig(
            blocks=settings.blocks,
            decoder=self.mae.decoder,
            mask_ratio=self.mae.mask_ratio,
            normalised_targets=self.mae.normalised_targets,
        )
        return NETWORKS[self.mae.network](config, settings.preprocessing)

    def feed(self, settings: Settings) -> MaskedFeed:
        """Masked clips."""
        return MaskedFeed(self.architecture(settings), self.clips.feed(settings, labelled=False), seed=settings.seed)

    def objective(self, settings: Settings) -> MaskedAutoencoding:
        """Squared error of the masked patches."""
        held_out = self.held_out(settings) if self.evaluates else None
        return MaskedAutoencoding(self.architecture(settings), held_out, seed=self.mae.validation_seed)

    def held_out(self, settings: Settings) -> HeldOutClips:
        """The clips to test on."""
        return self.clips.held_out(settings, count=self.mae.validation_clips, seed=self.mae.validation_seed)

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Of the clips."""
        return self.clips.fingerprints(labelled=False)

    def untested(self) -> MaeTask:
        """Without held-out clips."""
        clips = self.clips.untested() if isinstance(self.clips, Videos) else self.clips
        return replace(self, mae=replace(self.mae, validation_clips=0, validate_every=0), clips=clips)


# ---- batches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MaskedBatch(Batch):
    """Clips and their visible patches.

    Attributes:
        visible: Indices `[B, K]` of the visible patches, the same in all frames of a clip.
    """

    visible: Tensor

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Video and visible patches."""
        return (self.videos, self.visible)


class MaskedFeed(Feed[MaskedBatch]):
    """The clips of another feed, each with a mask that depends on the step and the clip alone.

    So the mask is the same in a resumed run, in any number of processes, and beside unreadable videos.

    Args:
        config: The autoencoder's.
        clips: Feed of the clips.
        seed: Of the masks.
    """

    def __init__(self, config: AutoencoderConfig, clips: Feed[LabelledBatch], *, seed: int) -> None:
        super().__init__(labels=(), num_steps=clips.num_steps)
        self.clips, self.seed = clips, seed
        self.mask_ratio, self.num_patches = config.mask_ratio, config.blocks.num_patches

    def batches(self, first_step: int, share: Share) -> Iterator[MaskedBatch]:
        """The share of a process in each step."""
        for step, batch in enumerate(self.clips.batches(first_step, share), start=first_step):
            assert batch.keys is not None, "feeds of scenes and videos have keys"
            masks = [self._visible(int(key), step) for key in batch.keys]
            visible = torch.cat(masks) if masks else torch.zeros(0, dtype=torch.int64)
            yield MaskedBatch(batch.videos, visible, keys=batch.keys, failures=batch.failures)

    def _visible(self, key: int, step: int) -> Int64[Tensor, "1 k"]:
        generator = torch.Generator().manual_seed(torch_seed(self.seed, Stream.CLIP_MASK, step, key))
        return tube_masks(1, self.num_patches, self.mask_ratio, generator)

    def accept(self, failed: Mapping[str, str]) -> None:
        """See the other feed."""
        self.clips.accept(failed)

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The other feed's."""
        return self.clips.examples()


# ---- loss and tests -------------------------------------------------------------------------------------------------


class MaskedAutoencoding(Objective[MaskedBatch, Restoration]):
    """Mean squared error of the masked patches, over all frames of a clip; clips have equal weights.

    The paper states an L2 loss "of the entire frames", with patches normalised "as done in VideoMAE". VideoMAE's loss
    is of masked patches only, and so is this: a choice, since visible ones could be copied.

    Args:
        config: The autoencoder's.
        held_out: Clips to test on and to draw.
        seed: Of these clips' masks.
    """

    figures = ("explained",)
    score = "explained"

    def __init__(self, config: AutoencoderConfig, held_out: HeldOutClips | None, *, seed: int) -> None:
        self.config, self.held_out, self.seed = config, held_out, seed

    def blank(self, preprocessing: Preprocessing, device: torch.device) -> MaskedBatch:
        """A black clip without masked patches."""
        size = (1, preprocessing.num_frames, 3, *preprocessing.image_size)
        visible = torch.arange(self.config.blocks.num_patches, device=device)[None]
        return MaskedBatch(torch.zeros(size, dtype=torch.uint8, device=device), visible)

    def loss(self, out: Restoration, part: MaskedBatch) -> PartLoss:
        """Sum of the clips' mean squared errors, and the explained part of the targets' squares."""
        true = targets(part.videos, out.hidden, self.config).normalised
        squares = (out.normalised.float() - true).square()
        error, total = squares.detach().double().sum(), true.double().square().sum()
        shares = torch.stack([total - error, total])[None]
        return PartLoss(squares.sum() * len(part) / max(squares.numel(), 1), shares.cpu())

    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """`evaluate_mae`'s figures in the first process; empty in the others."""
        return self._figures(model, processes) if processes.first else {}

    def draw(self, model: Path, folder: Path, processes: Processes) -> None:
        """Draw some restored held-out clips, as a picture and a film."""
        if self.held_out is not None:
            clips, _ = self.held_out.read(_NUM_DRAWN)
            draw_restored(self._load(model, processes), clips, folder, seed=self.seed)

    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """Write the same test, with pictures."""
        if self.held_out is None or not processes.first:
            return
        self.draw(model, folder, processes)
        protocol = {"data": self.held_out.source, "seed": self.seed, "mask_ratio": self.config.mask_ratio}
        result = {"protocol": protocol, **self._figures(model, processes)}
        write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")

    def _figures(self, model: Path, processes: Processes) -> dict[str, float | int]:
        assert self.held_out is not None, "a task that validates has held-out clips"
        clips, failures = self.held_out.read()
        return {**evaluate_mae(self._load(model, processes), clips, seed=self.seed), "failed": len(failures)}

    def _load(self, model: Path, processes: Processes) -> Autoencoder:
        kind = OTHER_NETWORKS.get(type(self.config), MaskedAutoencoder)
        autoencoder = kind.load(model, device=processes.device)
        assert isinstance(autoencoder, Autoencoder), "mae.network names an autoencoder"
        return autoencoder
