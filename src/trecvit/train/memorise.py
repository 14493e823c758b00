"""Training to return frames of the past (paper, section 5.4): what is shown, the loss, and tests on held-out clips."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from trecvit.baselines.memorise import VivitMemoriser
from trecvit.config import Preprocessing
from trecvit.data.clips import EvaluationViews, Failure
from trecvit.evaluate.memorise import PICTURE, Answer, draw_memory, evaluate_memory
from trecvit.files import write_text
from trecvit.model.memorise import Memoriser, past_frame
from trecvit.processes import Processes, Share
from trecvit.synthetic.pictures import photographs
from trecvit.synthetic.scenery import Scenery
from trecvit.train.feed import Feed, MemoryBatch, Steps
from trecvit.train.initialise import load_trained
from trecvit.train.objective import Objective, PartLoss
from trecvit.train.recipe import Recipe
from trecvit.train.sections import Memory
from trecvit.train.videos import VideoFeed, read_split
from trecvit.video.decode import Source, open_video
from trecvit.video.sampling import spatial_crops
from trecvit.video.transforms import crop
from trecvit.workers import load_items

_EXAMPLES = 64
_NUM_DRAWN = 4  # clips in the pictures


class MemoryFeed(Feed[MemoryBatch]):
    """Batches of clips of which a frame is to be returned: of scenery, each shown once, or of videos, see `VideoFeed`.

    Args:
        recipe: With `memory`.
    """

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.memory is not None, "a recipe that memorises has a memory"
        self.videos = VideoFeed(recipe, recipe.videos) if recipe.videos is not None else None
        self.clips = _Scenery(recipe) if recipe.memory.scenery is not None else None
        self.batch_size, self.num_workers = recipe.optimisation.batch_size, recipe.num_workers
        num_steps = self.videos.num_steps if self.videos is not None else recipe.optimisation.num_steps
        super().__init__(labels=(), num_steps=num_steps)

    def items(self, step: int) -> list[tuple[int, int]]:
        """The pieces of scenery of a step; they belong to no epoch."""
        return [(0, step * self.batch_size + place) for place in range(self.batch_size)]

    def batches(self, first_step: int, share: Share) -> Iterator[MemoryBatch]:
        """What a process sees in each step."""
        if self.videos is not None:
            for batch in self.videos.batches(first_step, share):
                yield _all_count(batch.videos, batch.failures)
            return
        assert self.clips is not None, "a recipe that memorises has videos or scenery"
        for clips in load_items(
            self.clips,
            num_workers=self.num_workers,
            prefetch_factor=2,
            batch_sampler=Steps(self.items, range(first_step, self.num_steps), share),
        ):
            yield _all_count(clips)

    def accept(self, failed: Mapping[str, str]) -> None:
        """As for videos; scenery is made, not read."""
        if self.videos is not None:
            self.videos.accept(failed)

    def examples(self) -> UInt8[Tensor, "b t 3 h w"]:
        """The clips of the first steps, some dozens."""
        if self.videos is not None:
            return self.videos.examples()
        assert self.clips is not None, "a recipe that memorises has videos or scenery"
        return torch.stack([self.clips[0, number] for number in range(_EXAMPLES)])


def _all_count(videos: Tensor, failures: tuple[Failure, ...] = ()) -> MemoryBatch:
    return MemoryBatch(videos, torch.ones(len(videos), dtype=torch.bool), failures=failures)


class _Scenery(Dataset[Tensor]):
    """(0, number) -> the first frames of that piece of scenery, uint8 [T,3,H,W]."""

    def __init__(self, recipe: Recipe) -> None:
        memory = recipe.memory
        assert memory is not None, "a recipe that memorises has a memory"
        self.scenery = _scenery_of(memory, seed=memory.scenery_seed, split_held_out=False)
        self.num_frames = recipe.preprocessing.num_frames

    def __getitem__(self, epoch_and_number: tuple[int, int]) -> Tensor:
        return self.scenery.clip(epoch_and_number[1], self.num_frames)


def _scenery_of(memory: Memory, *, seed: int, split_held_out: bool) -> Scenery:
    assert memory.scenery is not None, "a recipe without videos has scenery"
    pictures = photographs("held_out" if split_held_out else "train") if memory.photographs else []
    return Scenery(memory.scenery, seed=seed, pictures=pictures)


class Memorisation(Objective[MemoryBatch, Tensor]):
    """Mean squared error of the returned frame's pixels; clips count alike.

    The paper does not name its loss; its measure, PSNR, is made of this one.

    Args:
        recipe: With `memory`.
        held_out: Clips to test on and to draw, if there are any.
    """

    figures = ("explained",)
    score = "explained"

    def __init__(self, recipe: Recipe, held_out: HeldOutMemory | None) -> None:
        assert recipe.memory is not None, "a recipe that memorises has a memory"
        self.architecture, self.offset, self.held_out = recipe.architecture, recipe.memory.offset, held_out

    def blank(self, preprocessing: Preprocessing, device: torch.device) -> MemoryBatch:
        """A black clip that does not count."""
        size = (1, preprocessing.num_frames, 3, *preprocessing.image_size)
        nothing = torch.zeros(1, dtype=torch.bool, device=device)
        return MemoryBatch(torch.zeros(size, dtype=torch.uint8, device=device), nothing)

    def loss(self, out: Tensor, part: MemoryBatch) -> PartLoss:
        """Squared errors, and how much of the frames' squared distance from mid-grey is explained."""
        true, counts = past_frame(part.videos, self.offset), part.counts.float()[:, None, None, None]
        squares = (out.float() - true).square() * counts
        whole = ((true - 0.5).square() * counts).double().sum()
        shares = torch.stack([whole - squares.detach().double().sum(), whole])[None]
        return PartLoss(squares.mean(dim=(1, 2, 3)).sum(), shares.cpu())

    def test(self, model: Path, processes: Processes) -> dict[str, float | int]:
        """`evaluate_memory`'s figures; the first process does it by itself, the others get nothing."""
        return self._figures(model, processes) if processes.first else {}

    def draw(self, model: Path, folder: Path, processes: Processes) -> None:
        """Some of the held-out clips: the last frame, the one to be returned, and what was returned."""
        if self.held_out is not None:
            clips, _ = self.held_out.read(_NUM_DRAWN)
            draw_memory({"returned": self._answer(model, processes)}, clips, self.offset, folder / PICTURE)

    def evaluate(self, model: Path, folder: Path, processes: Processes) -> None:
        """The same test as on the way, with pictures."""
        if self.held_out is None or not processes.first:
            return
        self.draw(model, folder, processes)
        protocol = {"data": self.held_out.source, "offset": self.offset}
        result = {"protocol": protocol, **self._figures(model, processes)}
        write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")

    def _figures(self, model: Path, processes: Processes) -> dict[str, float | int]:
        assert self.held_out is not None, "a recipe that validates has clips to test on"
        clips, failures = self.held_out.read()
        return {**evaluate_memory(self._answer(model, processes), clips, self.offset), "failed": len(failures)}

    def _answer(self, model: Path, processes: Processes) -> Answer:
        """The trained model, wherever it is, to be given clips that are on the CPU."""
        trained = load_trained(self.architecture, model, device=processes.device)
        assert isinstance(trained, (Memoriser, VivitMemoriser)), "a recipe with a memory trains what memorises"
        return lambda video: trained(video.to(processes.device))


class HeldOutMemory:
    """The clips that a recipe's model is tested on, and streams that go on where these end.

    Args:
        recipe: With `memory`, and scenery or videos to validate on.

    Attributes:
        source: Where they come from, in words.
    """

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.memory is not None, "a recipe that memorises has a memory"
        self.count, self.preprocessing = recipe.memory.validation_clips, recipe.preprocessing
        self._scenery: Scenery | None = None
        if recipe.memory.scenery is not None:
            self._scenery = _scenery_of(recipe.memory, seed=recipe.memory.validation_seed, split_held_out=True)
            self.source = "the synthetic world, held-out scenery"
            return
        assert recipe.videos is not None, "a recipe that memorises has videos or scenery"
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
        if self._scenery is not None:
            return [self._scenery.clip(number, self.preprocessing.num_frames) for number in range(wanted)], []
        return self._views.first_views(wanted)

    @property
    def knows_cuts(self) -> bool:
        """Whether anybody knows where the streams' cuts are."""
        return self._scenery is not None

    def streams(self, count: int) -> Iterator[tuple[UInt8[Tensor, "b 3 h w"], Bool[Tensor, " b"]]]:
        """Frame after frame of B streams, from where the held-out scenery, or each of some videos, begins.

        Scenery has no end; videos end with the first that does.

        Args:
            count: B; fewer if there are not so many videos that can be read.
        """
        if self._scenery is not None:
            scenes = [self._scenery.frames(number) for number in range(count)]
            while True:
                frames, cuts = zip(*(next(scene) for scene in scenes), strict=True)
                yield torch.from_numpy(np.stack(frames)).movedim(3, 1), torch.tensor(cuts)
        failed = {failure.name for failure in self._views.first_views()[1]}
        sources = [video.source for video in self._views.manifest.videos if video.name not in failed][:count]
        for frames in zip(*(_frames(source, self.preprocessing) for source in sources), strict=False):
            yield torch.stack(frames), torch.zeros(len(frames), dtype=torch.bool)


def _frames(source: Source, plan: Preprocessing) -> Iterator[UInt8[Tensor, "3 h w"]]:
    """The middle of a video's frames, as many apart as the clips' are."""
    with open_video(source) as video:
        stride, side = plan.stride_for(video.info.rate_fps), plan.image_size[0]
        for number, frame in enumerate(video.frames(short_side_px=side)):
            if number % stride == 0:
                picture = torch.from_numpy(frame.image).movedim(2, 0)
                ((top, left),) = spatial_crops(picture.shape[1], picture.shape[2], side, 1)
                yield crop(picture, top, left, side, side).contiguous()


def held_out_memory(recipe: Recipe) -> HeldOutMemory | None:
    """What a recipe's model is tested on, if there is anything."""
    assert recipe.memory is not None, "a recipe that memorises has a memory"
    without = recipe.videos is not None and recipe.videos.validation is None
    return None if without or not recipe.memory.validation_clips else HeldOutMemory(recipe)
