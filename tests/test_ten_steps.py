"""Losses of ten steps of each task against recorded ones: a change of structure changes no number.

`python -m tests.test_ten_steps` records them again, after an intended change of numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import paper  # noqa: F401 - its task
from trecvit.train.loop import train
from trecvit.train.recipe import load_recipe
from trecvit.train.run_folder import read_lines
from trecvit.video.encode import VideoWriter

RECORDED = Path(__file__).parent / "golden" / "ten_steps.json"
BLOCKS = {
    "preset": "tiny", "width": 16, "depth": 2, "num_heads": 2, "mlp_width": 16, "patch_size": 8, "image_size": 32,
    "pooling": "mean",
}  # fmt: skip
SCENES = {"world": {"num_frames": 4, "image_size": [32, 32]}, "photographs": False, "easy_steps": 8}
TASKS: dict[str, dict[str, Any]] = {
    "classify_scenes": {
        "model": {**BLOCKS, "num_classes": 18, "head_width": 8},
        "scenes": {**SCENES, "views_per_scene": 2},
    },
    "classify_videos": {
        "model": {**BLOCKS, "num_classes": 2, "head_width": 8},
        "videos": {"train": "videos", "augmentation": {"scale": [0.9, 1.1], "rand_augment_ops": 1}},
    },
    "track_scenes": {
        "model": {"blocks": {**BLOCKS, "num_classes": 0, "temporal_mlp": True}, "raster_px": 32, "readout_width": 16},
        "tracks": {
            "scenes": {"min_things": 1, "max_things": 2}, "num_points": 6, "photographs": False, "easy_steps": 8,
        },
    },
    "mae_scenes": {
        "model": {**BLOCKS, "num_classes": 0},
        "scenes": SCENES,
        "mae": {
            "decoder": {"width": 8, "depth": 1, "num_heads": 2, "mlp_width": 8}, "mask_ratio": 0.75,
            "validation_clips": 0,
        },
    },
    "memory_scenery": {
        "model": {**BLOCKS, "num_classes": 0},
        "memory": {"offset": 2, "scenery": {}, "photographs": False, "validation_clips": 0},
        "start": {"whiten_grain_px": 2, "conv_scale": 10.0},
    },
}  # fmt: skip


def write_videos(folder: Path) -> None:
    """Two classes of five, lossless."""
    rng = np.random.default_rng(0)
    for number in range(10):
        path = folder / ("dark", "light")[number % 2] / f"{number}.mkv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(path, 12) as writer:
            for _ in range(5 + number):
                writer.write(rng.integers(0, 80 + 120 * (number % 2), (40, 56, 3), np.uint8))


def losses(task: str, folder: Path) -> list[float]:
    """Of ten steps."""
    content = {
        "preprocessing": {"image_size": 32, "num_frames": 4, "frame_stride": 1},
        "optimisation": {"bf16": False, "num_steps": 10, "batch_size": 4, "warmup_steps": 2, "learning_rate": 0.01},
        "num_workers": 0,
        "log_every": 1,
        "checkpoint_every": 10,
        **TASKS[task],
    }
    if "videos" in content:
        write_videos(folder / "videos")
        content["videos"] = {**content["videos"], "train": str(folder / "videos")}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    train(load_recipe(folder / "recipe.yaml"), folder / "run")
    return [line["loss"] for line in read_lines(folder / "run" / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_ten_steps_have_the_recorded_losses(task, tmp_path):
    # Bit-equal on the machine that recorded them; other processors round otherwise.
    assert losses(task, tmp_path) == pytest.approx(json.loads(RECORDED.read_text())[task], rel=1e-3)


def record() -> None:
    torch.set_num_threads(1)
    content = {}
    for task in TASKS:
        with TemporaryDirectory() as folder:
            content[task] = losses(task, Path(folder))
    RECORDED.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    record()
