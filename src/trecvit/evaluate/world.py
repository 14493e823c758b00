"""Accuracy on the synthetic world's motions: held-out scenes, and real footage moved in the same ways.

Clips are made in pairs of opposite classes that share all their frames, so a model without a sense of time is at
chance within each pair.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trecvit.config import Preprocessing
from trecvit.draws import rng_without_stream
from trecvit.errors import DataError
from trecvit.evaluate.scores import Scores, figures
from trecvit.model.trecvit import Output, TRecViT
from trecvit.synthetic.pictures import photographs
from trecvit.synthetic.world import LABELS, World, WorldConfig
from trecvit.video.decode import open_video
from trecvit.video.frames import Image

CAMERA_LABELS = tuple(range(8))  # motions of a whole picture: moving, rising, approaching, turning, and opposites


@dataclass(frozen=True)
class Accuracy:
    """Result of one test.

    Attributes:
        name: Name of the test.
        num_clips: Number of clips.
        top1: Top-1 accuracy.
        pair: Share of clips whose true class is likelier than its opposite: 0.5 without a sense of motion.
        by_class: Top-1 accuracy of each class in the test, by name.
        confused_with: The most frequent wrong prediction for each class in the test, or an empty string.
    """

    name: str
    num_clips: int
    top1: float
    pair: float
    by_class: dict[str, float]
    confused_with: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON values."""
        return dict(self.__dict__)


@torch.inference_mode()
def accuracy(
    model: TRecViT,
    clips: Iterable[tuple[Tensor, Tensor]],
    *,
    name: str,
    report: Callable[[int], None] = lambda _: None,
) -> Accuracy:
    """Compute top-1 and pair accuracy over batches of clips (uint8 [B,T,3,H,W]) and classes [B].

    Args:
        model: A classifier with the world's classes, in the world's order.
        clips: The batches.
        name: Name of the test.
        report: Called with the number of clips done.
    """
    if model.labels != LABELS:
        raise DataError(f"expected a model with the world's {len(LABELS)} classes, got {len(model.labels)} others")
    classes: list[Tensor] = []
    probs: list[Tensor] = []
    for videos, labels in clips:
        out: Output = model(videos.to(model.device))
        assert out.probs is not None, "a model with labels has a head"
        probs.append(out.probs.float().cpu())
        classes.append(labels)
        report(sum(map(len, classes)))
    truth = torch.cat(classes).numpy()
    scores = Scores(tuple(map(str, range(len(truth)))), truth, torch.cat(probs).numpy(), LABELS)
    metrics = figures(scores)
    rows = np.arange(len(truth))
    return Accuracy(
        name=name,
        num_clips=metrics["videos"],
        top1=metrics["top1"],
        pair=float((scores.probs[rows, truth] > scores.probs[rows, truth ^ 1]).mean()),
        by_class={entry["class"]: entry["top1"] for entry in metrics["per_class"]},
        confused_with={entry["class"]: entry["most_taken_for"] for entry in metrics["per_class"]},
    )


def report_world(
    model: TRecViT,
    *,
    num_clips: int,
    seed: int,
    footage: Sequence[str | Path] = (),
    report: Callable[[int], None] = lambda _: None,
) -> dict[str, Any]:
    """Run all tests of a model; return results and protocol as plain JSON values.

    Args:
        model: A classifier with the world's classes.
        num_clips: Clips per test, even.
        seed: Seed of the test scenes; not the training seed.
        footage: Real videos. If given, there are two more tests: scenes made of cut-outs of their frames, and crop
            windows that pan, zoom and turn over them as they play.
        report: Called with the number of clips done in all tests.
    """
    plan = model.preprocessing
    config = WorldConfig(num_frames=plan.num_frames, image_size=plan.image_size)
    held_out = photographs("held_out")
    tests = [("held-out scenes and textures", world_clips(config, num_clips=num_clips, seed=seed, pictures=held_out))]
    if footage:
        rolls = [_read_footage(path, plan) for path in footage]
        stills = [roll[index] for roll in rolls for index in np.linspace(0, len(roll) - 1, 8).astype(int)]
        everywhere = dataclasses.replace(config, picture_share=1.0)
        cut_outs = world_clips(everywhere, num_clips=num_clips, seed=seed, pictures=stills)
        tests.append(("cut-outs of real frames", cut_outs))
        tests.append(("window over playing footage", camera_clips(rolls, config, num_clips=num_clips, seed=seed)))
    outcomes: list[Accuracy] = []
    for name, clips in tests:
        done = sum(outcome.num_clips for outcome in outcomes)
        outcomes.append(accuracy(model, clips, name=name, report=partial(_add, report, done)))
    return {
        "protocol": "trecvit eval world, version 1",
        "seed": seed,
        "footage": [Path(path).name for path in footage],
        "world": dataclasses.asdict(config),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "temporal_mixer": model.config.temporal_mixer,
        "torch": torch.__version__,
        "tests": [outcome.to_dict() for outcome in outcomes],
    }


def _add(report: Callable[[int], None], done: int, count: int) -> None:
    report(done + count)


def world_clips(
    config: WorldConfig, *, num_clips: int, seed: int, pictures: Sequence[Image], batch_size: int = 36
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the first clips of a world.

    Args:
        config: The world's configuration.
        num_clips: Number of clips; even.
        seed: Seed of the world; not the training seed.
        pictures: Pictures that surfaces are cut from, uint8 [H,W,3].
        batch_size: Clips per batch; even.
    """
    world = World(config, seed=seed, pictures=pictures)
    for first in range(0, num_clips // 2, batch_size // 2):
        pairs = [world.pair(index) for index in range(first, min(first + batch_size // 2, num_clips // 2))]
        yield torch.cat([videos for videos, _ in pairs]), torch.tensor([label for _, pair in pairs for label in pair])


def camera_clips(
    footage: Sequence[Image], config: WorldConfig, *, num_clips: int, seed: int, batch_size: int = 36
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of real footage that plays while a crop window pans, zooms or turns over it.

    The label is the picture's motion: a window that moves right makes the picture move left. Clips are made in pairs: a
    piece of footage, and the same piece played backwards.

    Args:
        footage: Videos, uint8 [F,H,W,3], each of at least `config.num_frames` frames.
        config: Length and size of the clips.
        num_clips: Number of clips; even.
        seed: Seed of all choices.
        batch_size: Clips per batch; even.
    """
    for first in range(0, num_clips // 2, batch_size // 2):
        videos, labels = [], []
        for index in range(first, min(first + batch_size // 2, num_clips // 2)):
            forward, label = _camera_clip(footage, config, rng_without_stream(seed, index), index)
            videos += [forward, forward.flip(0)]
            labels += [label, label ^ 1]
        yield torch.stack(videos), torch.tensor(labels)


def _read_footage(path: str | Path, plan: Preprocessing) -> Image:
    """Read at most 120 frames of a video at the model's frame rate, reduced in size."""
    with open_video(path) as video:
        stride = plan.stride_for(video.info.rate_fps)
        short_side_px = min(2 * max(plan.image_size), video.info.height_px, video.info.width_px)
        frames = islice(video.frames(short_side_px=short_side_px), 0, 120 * stride, stride)
        images = np.stack([frame.image for frame in frames])
    if len(images) < plan.num_frames:
        raise DataError(f"{path}: expected at least {plan.num_frames} frames at every {stride}th, got {len(images)}")
    return images


def _camera_clip(
    footage: Sequence[Image], config: WorldConfig, rng: np.random.Generator, index: int
) -> tuple[Tensor, int]:
    """Make a clip of the first class of a pair."""
    video = footage[int(rng.integers(len(footage)))]
    start = int(rng.integers(len(video) - config.num_frames + 1))
    pixels = torch.from_numpy(video[start : start + config.num_frames]).permute(0, 3, 1, 2).float()
    height, width = pixels.shape[2:]
    label = 2 * (index % (len(CAMERA_LABELS) // 2))
    progress = torch.linspace(-0.5, 0.5, config.num_frames, dtype=torch.float64)
    # The window's half side, centre and angle, in units where the shorter side of the footage is 2.
    side, centre, angle = torch.full_like(progress, 0.55), torch.zeros(config.num_frames, 2), torch.zeros_like(progress)
    reach = rng.uniform(0.35, 0.7)
    if label in (0, 2):  # the picture moves left (up): the window moves right (down)
        centre[:, 0 if label == 0 else 1] = (progress * reach).float()
    elif label == 4:  # approaching: the window shrinks
        side = 0.6 * torch.exp(-progress * np.log(rng.uniform(1.4, 2.2)))
    else:  # the picture turns clockwise: the window turns the other way
        angle = -progress * np.deg2rad(rng.uniform(40, 110))
    cosine, sine = (side * angle.cos()).float(), (side * angle.sin()).float()
    short = min(height, width)
    rows_x = torch.stack([cosine, -sine, centre[:, 0]], dim=1) * (short / width)
    rows_y = torch.stack([sine, cosine, centre[:, 1]], dim=1) * (short / height)
    grid = F.affine_grid(
        torch.stack([rows_x, rows_y], dim=1), [config.num_frames, 3, *config.image_size], align_corners=False
    )
    # Shrunk first to about one footage pixel per clip pixel, so that fine detail does not flicker.
    scale = max(config.image_size) / (0.55 * short)
    if scale < 1:
        pixels = F.interpolate(pixels, scale_factor=scale, mode="bilinear", antialias=True)
    clip = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return clip.round().clamp(0, 255).to(torch.uint8), label
