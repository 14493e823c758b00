"""The synthetic world as files in the layout of Something-Something-v2: videos and JSON lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from trecvit.draws import Stream, rng
from trecvit.errors import DataError
from trecvit.files import emptied_on_error, is_empty, write_json, writing
from trecvit.synthetic.world import World
from trecvit.video.encode import SUFFIXES, VideoWriter
from trecvit.workers import worker_pool

SPLITS = ("train", "validation")


def render_data_set(
    world: World,
    folder: str | Path,
    *,
    num_clips: dict[str, int],
    easy_share: float = 0.0,
    fps: Fraction | float = 12.0,
    suffix: str = ".webm",
    num_workers: int = 0,
    report: Callable[[int], None] = lambda _: None,
) -> Path:
    """Write `videos/{id}.webm`, `labels.json` and one list per split.

    The splits take consecutive items of the world, so they share no scene. A list holds
    `{"id", "label", "template", "placeholders"}` per clip; labels.json maps each template to its class number, as text.

    Args:
        world: Source of the clips.
        folder: Created if needed; must be empty, so that two renderings do not mix.
        num_clips: Clips of each split, "train" and "validation"; even, because scenes give pairs of clips.
        easy_share: Share of training scenes with `WorldConfig.easy`, which help small models to start; the validation
            split has none.
        fps: Frame rate of the files.
        suffix: ".webm" (VP9, as the real data set) or ".mp4" (H.264).
        num_workers: Worker processes; 0 renders in this one. The clips do not depend on it.
        report: Called with the number of clips written so far.

    Raises:
        DataError: The folder is not empty, or a count is impossible.
        VideoError: A file cannot be written.
    """
    folder = Path(folder)
    if set(num_clips) - set(SPLITS) or any(count < 0 or count % 2 for count in num_clips.values()):
        raise DataError(f"num_clips: expected even numbers for {' and '.join(SPLITS)}, got {num_clips}")
    if not 0 <= easy_share <= 1:
        raise DataError(f"easy_share: expected 0 to 1, got {easy_share}")
    if suffix not in SUFFIXES:
        raise DataError(f"suffix: expected one of {', '.join(SUFFIXES)}, got {suffix!r}")
    if not is_empty(folder):
        raise DataError(f"{folder}: expected a new or empty folder; remove it or choose another")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with emptied_on_error(folder):
        (folder / "videos").mkdir()
        writer = _PairWriter(world, folder / "videos", easy_share, num_clips.get("train", 0) // 2, fps, suffix)
        labels = list(_written(writer, sum(num_clips.values()) // 2, num_workers, report))
        item = 0
        for split, count in num_clips.items():
            names = ((number, world.labels[labels[number]]) for number in range(item, item + count))
            entries = [
                {"id": str(number), "label": name, "template": name, "placeholders": []} for number, name in names
            ]
            write_json(folder / f"{split}.json", entries)
            item += count
        write_json(folder / "labels.json", {name: str(number) for number, name in enumerate(world.labels)})
    return folder


class _PairWriter:
    """Writes both clips of a pair; `easy_share` of the first `num_train_pairs` are easy."""

    def __init__(
        self,
        world: World,
        folder: Path,
        easy_share: float,
        num_train_pairs: int,
        fps: Fraction | float,
        suffix: str,
    ) -> None:
        self.world, self.easy_world = world, World(world.config.easy(), seed=world.seed)
        self.easy_share, self.num_train_pairs = easy_share, num_train_pairs
        self.folder, self.fps, self.suffix = folder, fps, suffix

    def __call__(self, number: int) -> tuple[int, int]:
        """Write pair `number`, the clips 2 * number and 2 * number + 1, and return their labels."""
        draw = rng(self.world.seed, Stream.RENDERED_EASY, number).random()
        easy = number < self.num_train_pairs and draw < self.easy_share
        videos, labels = (self.easy_world if easy else self.world).pair(number)
        for item, video in enumerate(videos.permute(0, 1, 3, 4, 2).numpy(), start=2 * number):
            with VideoWriter(self.folder / f"{item}{self.suffix}", self.fps) as writer:
                for frame in video:
                    writer.write(np.ascontiguousarray(frame))
        return labels


def _written(writer: _PairWriter, num_pairs: int, num_workers: int, report: Callable[[int], None]) -> Iterator[int]:
    """Write the pairs and yield the label of each item."""
    with ExitStack() as stack:
        pairs: Iterator[tuple[int, int]] = map(writer, range(num_pairs))
        if num_workers:
            pool = stack.enter_context(worker_pool(num_workers, _prepare, writer))
            pairs = pool.map(_write_here, range(num_pairs), chunksize=8)
        for number, labels in enumerate(pairs, start=1):
            yield from labels
            report(2 * number)


_writer: _PairWriter  # of a worker process, sent once and not with every pair


def _prepare(writer: _PairWriter) -> None:
    global _writer
    torch.set_num_threads(1)
    _writer = writer


def _write_here(number: int) -> tuple[int, int]:
    return _writer(number)
