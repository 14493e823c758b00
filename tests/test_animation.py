"""The tool for the README's animation."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from models import tiny_model, tiny_tracker

from tools.animation import drawn_frames, write_animation
from trecvit.video.encode import VideoWriter


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_part_of_a_video_becomes_an_animation(tmp_path, suffix):
    rng = np.random.default_rng(0)
    with VideoWriter(tmp_path / "video.mkv", 24) as writer:
        for _ in range(48):
            writer.write(rng.integers(0, 256, (120, 160, 3), np.uint8))
    model = tiny_model()
    model.relabel(list("abcde"))
    frames = drawn_frames(tmp_path / "video.mkv", tiny_tracker(), model, grid=3, start_s=0.5, seconds=0.5, trail=4)
    target = tmp_path / f"live{suffix}"
    assert write_animation(frames, target, width_px=80) == 6  # 12 of 24 frames per second
    with PIL.Image.open(target) as picture:
        assert (picture.size[0], picture.n_frames) == (80, 6)
        picture.load()
        assert picture.info["duration"] in (80, 83)  # GIF counts hundredths of a second
