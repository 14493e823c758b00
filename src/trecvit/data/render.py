"""The synthetic world as real files, in the layout of Something-Something-v2: videos, and JSON lists beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

from trecvit.data.world import World
from trecvit.errors import DataError
from trecvit.video.encode import VideoWriter

SPLITS = ("train", "validation")


def render_data_set(
    world: World,
    folder: str | Path,
    *,
    num_clips: dict[str, int],
    fps: Fraction | float = 12,
    suffix: str = ".webm",
    report: Callable[[int], None] = lambda _: None,
) -> Path:
    """Writes `videos/{id}.webm`, `labels.json` and one list per split.

    The splits take the world's items one after the other, so they share no scene. A list holds
    `{"id", "label", "template", "placeholders"}` per clip; labels.json gives each template its number, as text.

    Args:
        world: Whose clips.
        folder: Made if need be; must be empty otherwise, so that two renderings do not mix.
        num_clips: Clips of each split, "train" and "validation"; even, because clips come in pairs of one scene.
        fps: Frame rate of the files.
        suffix: ".webm" (VP9, as the real data set) or ".mp4" (H.264).
        report: Called with the number of clips written.

    Raises:
        DataError: for a folder that is not empty, or counts that are not possible.
        VideoError: when a file cannot be written.
    """
    folder = Path(folder)
    if set(num_clips) - set(SPLITS) or any(count < 0 or count % 2 for count in num_clips.values()):
        raise DataError(f"num_clips: expected even numbers for {' and '.join(SPLITS)}, got {num_clips}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: expected a new or an empty folder; remove it or give another")
    videos = folder / "videos"
    videos.mkdir(parents=True)
    item = 0
    for split, count in num_clips.items():
        entries = []
        for _ in range(count):
            frames, label = world.clip(item)
            with VideoWriter(videos / f"{item}{suffix}", fps) as writer:
                for frame in frames:
                    writer.write(frame)
            name = world.labels[label]
            entries.append({"id": str(item), "label": name, "template": name, "placeholders": []})
            item += 1
            report(item)
        _write_json(folder / f"{split}.json", entries)
    _write_json(folder / "labels.json", {name: str(number) for number, name in enumerate(world.labels)})
    return folder


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
