"""Memorisation as a task (paper, section 5.4): squared error of a past frame, on endless scenery or long videos."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from paper.memoriser import Memoriser, MemoriserConfig, past_frame
from paper.recall import PICTURE, Predict, draw_memory, evaluate_memory
from paper.scenery import Scenery, SceneryConfig
from paper.vivit import VivitMemoriserConfig
from trecvit.config import Preprocessing
from trecvit.data.clips import Failure
from trecvit.errors import ConfigError
from trecvit.files import write_text
from trecvit.processes import Processes, Share
from trecvit.synthetic.pictures import photographs
from trecvit.train.feed import Batch, Feed, Steps
from trecvit.train.held_out import Clips
from trecvit.train.initialise import BACKBONE_USERS
from trecvit.train.networks import load_trained
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.sections import Settings, fields_of, require_choice, require_range
from trecvit.train.task import Curves, Task
from trecvit.train.tasks import TASKS
from trecvit.train.videos import Videos
from trecvit.video.decode import Source, open_video
from trecvit.video.sampling import spatial_crops
from trecvit.video.transforms import crop
from trecvit.workers import load_items

MemoryNetwork = Literal["trecvit", "vivit"]

_EXAMPLES = 64
_NUM_DRAWN = 4  # clips in the pictures


# ---- the recipe -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Vivit:
    """Sizes of a ViViT; 0: those of the recipe's model.

    Attributes:
        width: Channels D.
        depth: Layers.
        num_heads: Of the attention.
        mlp_width: Hidden channels of the MLPs.
    """

    width: int = 0
    depth: int = 0
    num_heads: int = 0
    mlp_width: int = 0

    def __post_init__(self) -> None:
        require_range("memory.vivit", self, ("width", "depth", "num_heads", "mlp_width"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Settings of memorisation: from T frames, `preprocessing.num_frames`, reconstruct frame T-k.

    Attributes:
        offset: k, from 0, the last frame, to T-1.
        scenery: Appearance of the scenery, without `videos`. The size of its frames is the clips'.
        photographs: Whether its surfaces are also cut from photographs (scikit-image's, the training split).
        scenery_seed: Of the scenery.
        network: Network to train: the recipe's model, "trecvit", or a "vivit".
        vivit: Sizes of the ViViT.
        validation_clips: Number of held-out clips to test on and to draw: one of each of so many of
            `videos.validation`, spread evenly over its list, or scenery of another seed with photographs of the other
            split.
        validation_seed: Of this scenery.
        validate_every: Steps between two tests; the best model is kept. 0: only the trained one is tested.
    """

    offset: int
    scenery: SceneryConfig | None = None
    photographs: bool = True
    scenery_seed: int = 0
    network: MemoryNetwork = "trecvit"
    vivit: Vivit = field(default_factory=Vivit)
    validation_clips: int = 32
    validation_seed: int = 1
    validate_every: int = 0

    def __post_init__(self) -> None:
        require_choice("memory.network", self.network, MemoryNetwork)
        if min(self.validation_clips, self.validation_seed, self.validate_every, self.scenery_seed) < 0:
            raise ConfigError(
                "memory: expected validation_clips, validation_seed, validate_every and scenery_seed of 0 or more, got "
                f"{self.validation_clips}, {self.validation_seed}, {self.validate_every} and {self.scenery_seed}"
            )
        if self.validate_every and not self.validation_clips:
            raise ConfigError("memory.validate_every: there are no validation_clips to test on")
        if self.scenery is not None and self.scenery_seed == self.validation_seed:
            raise ConfigError(f"memory.validation_seed: expected a seed other than scenery_seed={self.scenery_seed}")

    @classmethod
    def from_value(cls, value: Any, preprocessing: Preprocessing) -> Memory:
        """Read the section of a recipe with clips of this `preprocessing`."""
        values = fields_of(cls, value, "memory")
        if "offset" not in values:
            raise ConfigError("memory: expected `offset`, the frame to return, counted back from the last")
        if (scenery := values.pop("scenery", None)) is not None:
            scenery = {"image_size": preprocessing.image_size, **fields_of(SceneryConfig, scenery, "memory.scenery")}
            values["scenery"] = SceneryConfig(**{**scenery, "image_size": tuple(scenery["image_size"])})
        if "vivit" in values:
            values["vivit"] = Vivit(**fields_of(Vivit, values["vivit"], "memory.vivit"))
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class MemoryTask(Task):
    """Memorisation.

    Attributes:
        memory: Settings.
        videos: The clips, without scenery; their classes, if there are any, are not used.
    """

    sections = ("memory", "videos")
    curves = Curves("explained", "explained variance", "explained", "explained variance")

    memory: Memory
    videos: Videos | None = None

    @classmethod
    def from_sections(cls, sections: Mapping[str, Any], settings: Settings) -> MemoryTask:
        """Read the task, see `Task`."""
        videos = sections.get("videos")
        return cls(
            memory=Memory.from_value(sections["memory"], settings.preprocessing),
            videos=None if videos is None else Videos.from_value(videos),
        )

    def to_dict(self) -> dict[str, Any]:
        """The sections `memory` and `videos`."""
        return dataclasses.asdict(self)

    def check(self, settings: Settings) -> None:
        """Raises ConfigError for settings that do not fit the task."""
        super().check(settings)
        memory, clips, start = self.memory, settings.preprocessing, settings.start
        if (memory.scenery is None) == (self.videos is None):
            raise ConfigError("memory: expected `videos` or `memory.scenery`, one of them")
        if not 0 <= memory.offset < clips.num_frames:
            raise ConfigError(
                f"memory.offset: expected 0 to {clips.num_frames - 1} in clips of {clips.num_frames} frames, got "
                f"{memory.offset}"
            )
        self.architecture(settings)  # refuses parts that do not fit together
        if memory.network == "vivit":
            if start.vit or start.weights:
                raise ConfigError("start.vit and start.weights: a ViViT starts from random weights; leave them out")
            if settings.optimisation.recompute != "nothing":
                raise ConfigError("optimisation.recompute: expected 'nothing' for a ViViT")
        if memory.scenery is not None:
            if memory.scenery.image_size != clips.image_size:
                raise ConfigError(
                    f"memory.scenery.image_size: expected preprocessing.image_size {clips.image_size}, got "
                    f"{memory.scenery.image_size}; leave it out"
                )
            settings.require_num_steps("scenery")
        if self.videos is not None:
            self.videos.check(settings, labelled=False)
            if memory.validate_every and not self.evaluates:
                raise ConfigError("memory.validate_every: there are no videos.validation to test on")

    @property
    def origin(self) -> str:
        """Path of the training videos; empty for scenery."""
        return self.videos.train.path if self.videos is not None else ""

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out clips."""
        return self.memory.validation_clips > 0 and (self.videos is None or self.videos.validation is not None)

    @property
    def validate_every(self) -> int:
        """Steps between two tests, see `Memory`."""
        return self.memory.validate_every

    def architecture(self, settings: Settings) -> MemoriserConfig | VivitMemoriserConfig:
        """A TRecViT with a reader, or a ViViT."""
        memory, blocks = self.memory, settings.blocks
        if memory.network == "trecvit":
            return MemoriserConfig(blocks=blocks, offset=memory.offset)
        sizes = {name: size or getattr(blocks, name) for name, size in dataclasses.asdict(memory.vivit).items()}
        return VivitMemoriserConfig(
            **sizes,
            patch_size=blocks.patch_size,
            image_size=settings.preprocessing.image_size,
            num_frames=settings.preprocessing.num_frames,
            offset=memory.offset,
        )

    def feed(self, settings: Settings) -> MemoryFeed:
        """Clips of scenery or videos."""
        if self.videos is not None:
            return MemoryFeed(self.videos.feed(settings, labelled=False))
        return MemoryFeed(SceneryFeed(settings, self.memory))

    def objective(self, settings: Settings) -> Memorisation:
        """Squared error of the past frame."""
        held_out = self.held_out(settings) if self.evaluates else None
        return Memorisation(self.architecture(settings), held_out)

    def held_out(self, settings: Settings) -> HeldOutMemory:
        """The clips to test on."""
        return HeldOutMemory(settings, self.memory, self.videos)

    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Of the videos."""
        return self.videos.fingerprints(labelled=False) if self.videos is not None else {}

    def untested(self) -> MemoryTask:
        """Without held-out clips."""
        return replace(
            self,
            memory=replace(self.memory, validation_clips=0, validate_every=0),
            videos=self.videos.untested() if self.videos is not None else None,
        )


TASKS["memory"] = MemoryTask
BACKBONE_USERS.append(Memoriser)


# ---- batches --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryBatch(Batch):
    """Clips with a frame to reconstruct.

    Attributes:
        counts: bool `[B]`, false for blank clips.
    """

    counts: Tensor


class MemoryFeed(Feed[MemoryBatch]):
    """The clips of another feed.

    Args:
        clips: Feed of the clips.
    """

    def __init__(self, clips: Feed[Batch]) -> None:
        super().__init__(labels=(), num_steps=clips.num_steps)
        self.clips = clips

    def batches(self, first_step: int, share: Share) -> Iterator[MemoryBatch]:
        """The share of a process in each step."""
        for batch in self.clips.batches(first_step, share):
            counts = torch.ones(len(batch), dtype=torch.bool)
            yield MemoryBatch(batch.videos, counts, failures=batch.failures)

    def accept(self, failed: Mapping[str, str]) -> None:
        """See the other feed."""
        self.clips.accept(failed)

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The other feed's."""
        return self.clips.examples()


class SceneryFeed(Feed[Batch]):
    """Batches of scenery, each clip shown once.

    Args:
        settings: Of the recipe.
        memory: Its section.
    """

    def __init__(self, settings: Settings, memory: Memory) -> None:
        super().__init__(labels=(), num_steps=settings.optimisation.num_steps)
        self.batch_size, self.num_workers = settings.optimisation.batch_size, settings.num_workers
        self.clips = _SceneryClips(memory, settings.preprocessing.num_frames)

    def items(self, step: int) -> list[tuple[int, int]]:
        """The clips of a step, in the only epoch."""
        return [(0, step * self.batch_size + place) for place in range(self.batch_size)]

    def batches(self, first_step: int, share: Share) -> Iterator[Batch]:
        """The share of a process in each step."""
        for clips in load_items(
            self.clips,
            num_workers=self.num_workers,
            prefetch_factor=2,
            batch_sampler=Steps(self.items, range(first_step, self.num_steps), share),
        ):
            yield Batch(clips)

    def accept(self, failed: Mapping[str, str]) -> None:
        """Check that nothing failed: scenery is rendered, not read."""
        assert not failed, failed

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The first clips."""
        return torch.stack([self.clips[0, index] for index in range(_EXAMPLES)])


class _SceneryClips(Dataset[Tensor]):
    """(0, index) -> the first frames of that video of scenery, uint8 [T,3,H,W]."""

    def __init__(self, memory: Memory, num_frames: int) -> None:
        self.scenery = _scenery(memory, held_out=False)
        self.num_frames = num_frames

    def __getitem__(self, epoch_and_index: tuple[int, int]) -> Tensor:
        return self.scenery.clip(epoch_and_index[1], self.num_frames)


def _scenery(memory: Memory, *, held_out: bool) -> Scenery:
    assert memory.scenery is not None, "a task without videos has scenery"
    pictures = photographs("held_out" if held_out else "train") if memory.photographs else []
    return Scenery(memory.scenery, seed=memory.validation_seed if held_out else memory.scenery_seed, pictures=pictures)


# ---- loss and tests -------------------------------------------------------------------------------------------------


class Memorisation(Objective[MemoryBatch, Tensor]):
    """Mean squared error of the reconstructed frame's pixels; clips have equal weights.

    The paper does not name its loss; its measure, PSNR, is a function of this one.

    Args:
        config: The network's.
        held_out: Clips to test on and to draw.
    """

    figures = ("explained",)
    score = "explained"

    def __init__(self, config: MemoriserConfig | VivitMemoriserConfig, held_out: HeldOutMemory | None) -> None:
        self.config, self.offset, self.held_out = config, config.offset, held_out

    def blank(self, preprocessing: Preprocessing, device: torch.device) -> MemoryBatch:
        """A black clip that does not count."""
        size = (1, preprocessing.num_frames, 3, *preprocessing.image_size)
        videos = torch.zeros(size, dtype=torch.uint8, device=device)
        return MemoryBatch(videos, torch.zeros(1, dtype=torch.bool, device=device))

    def loss(self, out: Tensor, part: MemoryBatch) -> PartLoss:
        """Sum of the clips' mean squared errors, and the explained part of the squared distance from mid-grey."""
        true, counts = past_frame(part.videos, self.offset), part.counts.float()[:, None, None, None]
        squares = (out.float() - true).square() * counts
        total = ((true - 0.5).square() * counts).double().sum()
        shares = torch.stack([total - squares.detach().double().sum(), total])[None]
        return PartLoss(squares.mean(dim=(1, 2, 3)).sum(), shares.cpu())

    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """`evaluate_memory`'s figures in the first process; empty in the others."""
        return self._figures(model, processes) if processes.first else {}

    def draw(self, model: Path, folder: Path, processes: Processes) -> None:
        """Draw some held-out clips: the last frame, frame T-k, and its reconstruction."""
        if self.held_out is not None:
            clips, _ = self.held_out.read(_NUM_DRAWN)
            draw_memory({"returned": self._load(model, processes)}, clips, self.offset, folder / PICTURE)

    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """Write the same test, with pictures."""
        if self.held_out is None or not processes.first:
            return
        self.draw(model, folder, processes)
        protocol = {"data": self.held_out.source, "offset": self.offset}
        result = {"protocol": protocol, **self._figures(model, processes)}
        write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")

    def _figures(self, model: Path, processes: Processes) -> dict[str, float | int]:
        assert self.held_out is not None, "a task that validates has held-out clips"
        clips, failures = self.held_out.read()
        return {**evaluate_memory(self._load(model, processes), clips, self.offset), "failed": len(failures)}

    def _load(self, model: Path, processes: Processes) -> Predict:
        """The trained model, on any device, for clips on the CPU."""
        trained = load_trained(self.config, model, device=processes.device)
        return lambda video: trained(video.to(processes.device))


class HeldOutMemory:
    """Clips that a model is tested on, and longer streams that start with them.

    Args:
        settings: Of the recipe.
        memory: Its section.
        videos: Its section, with videos to validate on; None for scenery.

    Attributes:
        source: Origin of the clips, for messages and results.
    """

    def __init__(self, settings: Settings, memory: Memory, videos: Videos | None) -> None:
        self.count, self.preprocessing = memory.validation_clips, settings.preprocessing
        self._scenery: Scenery | None = None
        if videos is None:
            self._scenery = _scenery(memory, held_out=True)
            self.source = "the synthetic world, held-out scenery"
        else:
            self._views = videos.held_out_views(settings, self.count)
            self.source = self._views.manifest.source

    def read(self, count: int | None = None) -> tuple[Clips, list[Failure]]:
        """Read the first `count` clips, by default all, except those that cannot be read.

        Raises:
            DataError: when none can be read.
        """
        count = min(self.count, count or self.count)
        if self._scenery is not None:
            return [self._scenery.clip(index, self.preprocessing.num_frames) for index in range(count)], []
        return self._views.first_views(count)

    @property
    def has_cuts(self) -> bool:
        """Whether the places of the streams' cuts are available."""
        return self._scenery is not None

    def streams(self, count: int) -> Iterator[tuple[UInt8[Tensor, "b 3 h w"], Bool[Tensor, " b"]]]:
        """Yield frames of B streams from the start of held-out scenery or videos, with whether a cut precedes each.

        Scenery is endless; videos end with the shortest.

        Args:
            count: B; fewer if fewer videos can be read.
        """
        if self._scenery is not None:
            scenes = [self._scenery.frames(index) for index in range(count)]
            while True:
                frames, cuts = zip(*(next(scene) for scene in scenes), strict=True)
                yield torch.from_numpy(np.stack(frames)).movedim(3, 1), torch.tensor(cuts)
        failed = {failure.name for failure in self._views.first_views()[1]}
        sources = [video.source for video in self._views.manifest.videos if video.name not in failed][:count]
        for frames in zip(*(_frames(source, self.preprocessing) for source in sources), strict=False):
            yield torch.stack(frames), torch.zeros(len(frames), dtype=torch.bool)


def _frames(source: Source, clips: Preprocessing) -> Iterator[UInt8[Tensor, "3 h w"]]:
    """Yield the centre crops of a video's frames, with the clips' stride."""
    with open_video(source) as video:
        stride, side = clips.stride_for(video.info.rate_fps), clips.image_size[0]
        for index, frame in enumerate(video.frames(short_side_px=side)):
            if index % stride == 0:
                picture = torch.from_numpy(frame.image).movedim(2, 0)
                ((top, left),) = spatial_crops(picture.shape[1], picture.shape[2], side, 1)
                yield crop(picture, top, left, side, side).contiguous()
