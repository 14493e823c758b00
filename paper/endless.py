"""Accuracy of a classifier in streams longer than its training clips: one clip after another; not in the paper.

The state is carried on, decayed or reset. Each clip is classified from the mean evidence of its own frames, so only the
state holds earlier clips; for comparison, also by `step`, from the mean of all frames of the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from paper.forgetting import FORGETTINGS, Forgetting, forgotten, state_rms
from paper.results import empty_figure, heading
from trecvit.errors import ConfigError
from trecvit.model.trecvit import TRecViT
from trecvit.synthetic.pictures import photographs
from trecvit.synthetic.world import LABELS, World, WorldConfig

WAYS = tuple(way for way in FORGETTINGS if not way.at_cuts)  # every clip begins with a cut, so "at cuts" is redundant
OF_ALL_FRAMES = "carried on, mean of all frames"
ENDS = (1, 3, 10, 30, 100)
"""Numbers of clips after which accuracy is computed, over the clips since the previous one."""

_SEED = 1  # training is on seed 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipAccuracy:
    """Accuracy over some clips of all streams.

    Attributes:
        forgetting: Name of the treatment of the state.
        first_clip: Number of the first clip in each stream, from 1.
        last_clip: Number of the last.
        clips: Number of clips in all streams.
        top1: Top-1 accuracy.
        state_rms: Root mean square of the recurrences' states after the last clip.
    """

    forgetting: str
    first_clip: int
    last_clip: int
    clips: int
    top1: float
    state_rms: float


Clips = tuple[UInt8[Tensor, "B T 3 H W"], Int64[Tensor, " B"]]


def world_streams(model: TRecViT, num_streams: int, num_clips: int) -> Iterator[Clips]:
    """Yield the clips of all streams of held-out synthetic scenes, and their classes: the first of each, the next …

    Raises:
        ConfigError: when the model's classes are not the world's.
    """
    if model.labels != LABELS:
        raise ConfigError(f"expected a model with the world's {len(LABELS)} classes, got {len(model.labels)} others")
    plan = model.preprocessing
    config = WorldConfig(num_frames=plan.num_frames, image_size=plan.image_size)
    world = World(config, seed=_SEED, pictures=photographs("held_out"))
    for index in range(num_clips):
        clips = [world[index * num_streams + stream] for stream in range(num_streams)]
        yield torch.stack([pixels for pixels, _ in clips]), torch.tensor([label for _, label in clips])


@torch.inference_mode()
def accuracies(
    model: TRecViT,
    clips: Iterable[Clips],
    ways: Sequence[Forgetting] = WAYS,
    *,
    ends: Sequence[int] = ENDS,
    report: Callable[[int], None] = lambda _: None,
) -> Iterator[ClipAccuracy]:
    """Step through streams frame by frame, at constant memory, and classify each clip when it ends.

    Args:
        model: A classifier.
        clips: Batches of one clip of each stream, all of one length.
        ways: Treatments of the state, all on the same frames.
        ends: Numbers of clips after which to compute accuracy, rising.
        report: Called with the number of clips seen in each stream.
    """
    assert model.head is not None, "a classifier has a head"
    state = None
    right: dict[str, list[Tensor]] = {name: [] for name in (*(way.name for way in ways), OF_ALL_FRAMES)}
    firsts = dict(zip(ends, [1, *(end + 1 for end in ends)], strict=False))
    for seen, (videos, classes) in enumerate(clips, start=1):
        count = len(classes)
        if state is None:
            state = model.init_state(count * len(ways), image_size=(videos.shape[3], videos.shape[4]))
        evidence: list[Tensor] = []
        for num_frames, frames in enumerate(videos.unbind(dim=1), start=1):
            out, state = model.step(frames.repeat(len(ways), 1, 1, 1)[:, None].to(model.device), state)
            evidence.append(model.head.evidence(out.features)[:, 0])
            last, after = out.logits, state
            state = forgotten(state, ways, clip_ends=num_frames == videos.shape[1])
        predicted = model.head(torch.stack(evidence).mean(dim=0)).argmax(dim=-1).cpu()
        for way, classes_of_way in zip(ways, predicted.unflatten(0, (len(ways), count)), strict=True):
            right[way.name].append(classes_of_way == classes)
        assert last is not None, "a classifier has logits"
        right[OF_ALL_FRAMES].append(last[:count].argmax(dim=-1).cpu() == classes)  # of the first way
        report(seen)
        if seen in firsts:
            sizes = [state_rms(after, slice(place * count, (place + 1) * count)) for place in range(len(ways))]
            for name, size in zip(right, [*sizes, sizes[0]], strict=True):
                outcomes = torch.cat(right[name])
                yield ClipAccuracy(
                    forgetting=name,
                    first_clip=firsts[seen],
                    last_clip=seen,
                    clips=len(outcomes),
                    top1=float(outcomes.double().mean()),
                    state_rms=size,
                )
                right[name].clear()


def to_dict(model: TRecViT, name: str, rows: Sequence[ClipAccuracy], num_streams: int, command: str) -> dict[str, Any]:
    """Convert the results to plain JSON values."""
    num_frames = model.preprocessing.num_frames
    scale = f"{name}, {num_streams} streams of held-out clips of {num_frames} frames, one after another"
    return {
        **heading("endless", command, scale),
        "model": name,
        "num_frames": num_frames,
        "streams": num_streams,
        "rows": [asdict(row) for row in rows],
    }


def draw(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw accuracy and size of the states over the length of the streams."""
    figure = empty_figure(10, 3.8)
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(row["forgetting"] for row in content["rows"]):
        rows = [row for row in content["rows"] if row["forgetting"] == name]
        frames = [row["last_clip"] * content["num_frames"] for row in rows]
        left.plot(frames, [100 * row["top1"] for row in rows], marker="o", label=name)
        if name != OF_ALL_FRAMES:
            right.plot(frames, [row["state_rms"] for row in rows], marker="o", label=name)
    left.set(xscale="log", xlabel="frames seen", ylabel="top-1, %")
    left.set_ylim(bottom=0)
    right.set(xscale="log", xlabel="frames seen", ylabel="size of the states, rms")
    left.legend(frameon=False, fontsize=7)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    path = folder / "endless.png"
    figure.savefig(path, dpi=130)
    return [path]
