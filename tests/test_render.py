"""The world as files: independent of the workers, easy scenes where requested, damaged files reported."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from trecvit.data.layouts import read_manifest
from trecvit.errors import DataError
from trecvit.synthetic.render import render_data_set
from trecvit.synthetic.world import World, WorldConfig
from trecvit.video.decode import read_frames

CONFIG = WorldConfig(num_frames=3, image_size=(32, 32), noise=40.0)


def pixels(path: Path) -> np.ndarray:
    return np.stack([frame.image for frame in read_frames(path)]).astype(float)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_workers_change_nothing(tmp_path):
    counts = {"train": 20, "validation": 4}
    for name, workers in (("here", 0), ("there", 2)):
        done: list[int] = []
        render_data_set(
            World(CONFIG, seed=3), tmp_path / name, num_clips=counts, easy_share=0.5, num_workers=workers,
            suffix=".mkv", report=done.append,
        )  # fmt: skip
        assert done == list(range(2, 25, 2))
    here, there = tmp_path / "here", tmp_path / "there"
    assert set(contents(here)) == set(contents(there))
    for name in ("train.json", "validation.json", "labels.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()
    for number in range(24):
        one, other = (pixels(folder / "videos" / f"{number}.mkv") for folder in (here, there))
        assert np.array_equal(one, other)


def group_exists(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_workers_end_with_a_process_that_was_killed(tmp_path):
    words = [sys.executable, "-m", "trecvit", "data", "render", str(tmp_path / "world"), "--train", "4000"]
    process = subprocess.Popen(words, start_new_session=True)
    videos = tmp_path / "world" / "videos"
    while not videos.is_dir() or len(list(videos.iterdir())) < 8:
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    for _ in range(1200):  # a minute, for busy machines
        if not group_exists(process.pid):
            break
        time.sleep(0.05)
    assert not group_exists(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize(("error", "workers"), [(KeyboardInterrupt(), 1), (OSError(errno.ENOSPC, "No space"), 0)])
def test_what_was_stopped_leaves_an_empty_folder_and_no_workers(tmp_path, error, workers):
    def stop(_done: int) -> None:
        raise error

    world = World(WorldConfig(num_frames=2, image_size=(32, 32)), seed=0)
    with pytest.raises(type(error)):
        render_data_set(world, tmp_path, num_clips={"train": 64}, num_workers=workers, report=stop)
    assert not list(tmp_path.iterdir())
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_easy_scenes_are_in_the_training_split_only_and_keep_their_labels(tmp_path):
    counts = {"train": 16, "validation": 6}
    world = World(CONFIG, seed=0)
    files = {}
    for share in (0.0, 0.5, 1.0):
        folder = render_data_set(world, tmp_path / str(share), num_clips=counts, easy_share=share, suffix=".mp4")
        files[share] = {number: pixels(folder / "videos" / f"{number}.mp4") for number in range(22)}
        assert [entry["label"] for entry in json.loads((folder / "train.json").read_text())] == [
            world.labels[world.scene(number).label] for number in range(16)
        ]
    changed = {
        share: [number for number in range(22) if np.abs(files[share][number] - files[0.0][number]).mean() > 2]
        for share in (0.5, 1.0)
    }
    assert changed[1.0] == list(range(16))  # much noise makes every other scene another file
    assert 0 < len(changed[0.5]) < 16
    with pytest.raises(DataError, match="easy_share"):
        render_data_set(world, tmp_path / "x", num_clips=counts, easy_share=1.5)


@pytest.mark.slow
def test_damaged_files_are_found(tmp_path):
    folder = render_data_set(World(CONFIG, seed=0), tmp_path / "world", num_clips={"train": 12})
    script = Path(__file__).parents[1] / "scripts" / "damage"
    before = contents(folder)
    done = subprocess.run([script, folder / "videos", "4"], capture_output=True, text=True, check=True)
    damaged = {str(Path(line).relative_to(folder)) for line in done.stdout.splitlines()}
    after = contents(folder)
    assert {name for name in before if before[name] != after[name]} == damaged
    assert len(damaged) == 3
    emptied, cut, _ = sorted(damaged)
    assert len(after[emptied]) == 0
    assert len(after[cut]) == len(before[cut]) // 2
    for name in (emptied, cut):
        with pytest.raises(Exception, match=r"empty|truncated|damaged|FFmpeg"):
            sum(1 for _ in read_frames(folder / name))
    assert len(read_manifest(folder / "train.json").videos) == 12


def test_a_format_that_is_none_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(DataError, match=r"suffix: expected one of .mp4, .webm, .mkv, got '.gif'"):
        render_data_set(World(CONFIG, seed=0), tmp_path / "world", num_clips={"train": 2}, suffix=".gif")
    assert not (tmp_path / "world").exists()
