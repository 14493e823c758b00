"""Real footage with known motion: the tracks are where the picture goes, and the picture never ends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trecvit.data.tracked import TrackedVideo
from trecvit.errors import ConfigError, DataError, InputError, VideoError
from trecvit.synthetic.footage import moved_footage, moved_picture
from trecvit.video.encode import VideoWriter


def ramps(height: int = 90, width: int = 160) -> np.ndarray:
    """Red encodes x, green y; no blue."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / (width - 1), y * 255 / (height - 1), 0 * x], axis=-1).round().astype(np.uint8)


BLUE = np.tile(np.array([0, 0, 255], np.uint8), (64, 64, 1))


def clip_of(number: int = 0, **options) -> TrackedVideo:
    options = {"num_frames": 12, "image_size": (64, 80), "noise_levels": 0.0, "num_points": 40, **options}
    return moved_picture(ramps(), name="ramps", seed=(number,), **options)


def colours_at(clip: TrackedVideo, q: int, frame: int) -> np.ndarray:
    """Bilinear, at a track."""
    x, y = np.clip(clip.tracks_xy[q, frame] - 0.5, 0, [78.999, 62.999])
    left, top = int(x), int(y)
    fx, fy = x - left, y - top
    square = clip.video[frame, top : top + 2, left : left + 2].astype(float)
    return (square[0, 0] * (1 - fx) + square[0, 1] * fx) * (1 - fy) + (square[1, 0] * (1 - fx) + square[1, 1] * fx) * fy


def test_tracks_keep_their_colour_exactly() -> None:
    moved = 0.0
    for number in range(5):
        clip = clip_of(number, speed=1.5)
        for q in range(len(clip.tracks_xy)):
            seen = np.nonzero(~clip.occluded[q])[0]
            inside = [t for t in seen if (clip.tracks_xy[q, t] > 1).all() and (clip.tracks_xy[q, t] < [79, 63]).all()]
            if len(inside) > 1:
                colours = np.array([colours_at(clip, q, t) for t in inside])
                # A pixel of the clip is 1.5 to 3 levels of the ramps.
                assert np.ptp(colours, axis=0).max() < 2.0
                moved = max(moved, float(np.ptp(clip.tracks_xy[q], axis=0).max()))
    assert moved > 15


def test_the_picture_fills_every_frame_and_is_moved_affinely() -> None:
    """A mirrored border would bend the ramps."""
    for number in range(5):
        clip = clip_of(number, speed=2.0)
        y, x = np.mgrid[:64, :80]
        places = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)
        for frame in clip.video:
            colours = frame.reshape(-1, 3)[:, :2].astype(float)
            plane = places @ np.linalg.lstsq(places, colours, rcond=None)[0]
            assert np.abs(plane - colours).max() < 2.0


def test_what_is_outside_is_occluded_and_nothing_else() -> None:
    clip = clip_of(1, speed=3.0)
    x, y = clip.tracks_xy[..., 0], clip.tracks_xy[..., 1]
    assert np.array_equal(clip.occluded, (x < 0) | (x > 80) | (y < 0) | (y > 64))
    assert clip.occluded.any()


def test_covers_hide_the_picture() -> None:
    """With blue in the picture or without: where that makes no difference, something is in front of it."""
    hidden = checked = 0
    for number in range(8):
        dark, blue = (
            moved_picture(
                ramps() + np.array([0, 0, level], np.uint8), name="a", seed=(number,), num_frames=12,
                image_size=(64, 80), noise_levels=0.0, num_points=40, cover_pictures=[BLUE], num_covers=3,
            )
            for level in (0, 255)
        )  # fmt: skip
        assert np.array_equal(dark.occluded, blue.occluded)
        shown = blue.video[..., 2].astype(int) - dark.video[..., 2]
        assert dark.query_points_tyx is not None
        t, y, x = dark.query_points_tyx.astype(int).T
        on_picture = shown[t, np.minimum(y, 63), np.minimum(x, 79)] > 250
        inside = ((dark.tracks_xy > 1.5) & (dark.tracks_xy < [78.5, 62.5])).all(axis=-1) & on_picture[:, None]
        for q, frame in np.argwhere(inside):
            column, row = dark.tracks_xy[q, frame].astype(int)
            around = shown[frame, row - 1 : row + 2, column - 1 : column + 2]
            if around.min() > 250 or around.max() < 5:
                assert dark.occluded[q, frame] == (around.max() < 5)
                checked += 1
                hidden += int(dark.occluded[q, frame])
    assert checked > 1000
    assert hidden > 30


def test_the_same_clip_every_time() -> None:
    one, two, other = clip_of(3), clip_of(3), clip_of(4)
    assert np.array_equal(one.video, two.video)
    assert np.array_equal(one.tracks_xy, two.tracks_xy)
    assert not np.array_equal(one.video, other.video)
    noisy = clip_of(3, noise_levels=3.0)
    assert np.array_equal(noisy.tracks_xy, one.tracks_xy)
    difference = noisy.video.astype(int) - one.video
    shown = (one.video > 20) & (one.video < 235)
    assert 2.5 < difference[shown].std() < 3.5


@pytest.mark.parametrize("shape", [(16, 16), (20, 300), (300, 20), (400, 500)])
def test_pictures_of_any_size(shape: tuple[int, int]) -> None:
    clip = moved_picture(ramps(*shape), name="a", seed=(0,), num_frames=3, image_size=(48, 32), num_points=5)
    assert clip.video.shape == (3, 48, 32, 3)


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="cover_pictures"):
        clip_of(num_covers=1)
    for wrong in (np.zeros((20, 20), np.uint8), np.zeros((20, 20, 3), np.float32), np.zeros((8, 90, 3), np.uint8)):
        with pytest.raises((InputError, TypeError), match="picture"):  # a TypeError where types are checked
            moved_picture(wrong, name="a", seed=(0,))
    with pytest.raises(ConfigError, match="num_frames"):
        clip_of(num_frames=1)


@pytest.fixture
def videos(tmp_path: Path) -> list[Path]:
    files = [tmp_path / "ramps.mp4", tmp_path / "blue.mp4"]
    for file, picture in zip(files, (ramps(96, 160), BLUE), strict=True):
        with VideoWriter(file, 25) as writer:
            for frame in range(8):
                # The second half of each video is darker.
                writer.write(np.ascontiguousarray(picture // (1 if frame < 4 else 3)))
    return files


def test_clips_of_videos(videos: list[Path]) -> None:
    options = {"num_frames": 4, "image_size": (64, 64), "num_points": 10}
    data = moved_footage(videos, clips_per_video=2, seed=5, **options)
    assert data.names == ("ramps.mp4[0]", "ramps.mp4[1]", "blue.mp4[0]", "blue.mp4[1]")
    assert "seed 5" in data.source
    first, later = data[0], data[1]
    assert first.name == "ramps.mp4[0]"
    assert first.video.shape == (4, 64, 64, 3)
    assert np.array_equal(first.video, data[0].video)
    assert first.video[..., :2].mean() > 2 * later.video[..., :2].mean()  # its frame is from the darker half
    other = moved_footage(videos, clips_per_video=2, seed=6, **options)
    assert not np.array_equal(first.video, other[0].video)
    alone = moved_footage(videos[:1], clips_per_video=1, num_covers=1, **options)
    assert alone[0].tracks_xy.shape == (10, 4, 2)


def test_videos_that_are_none(tmp_path: Path, videos: list[Path]) -> None:
    with pytest.raises(DataError, match="expected videos"):
        moved_footage([], clips_per_video=1)
    with pytest.raises(DataError, match="expected videos"):
        moved_footage(videos, clips_per_video=0)
    with pytest.raises(VideoError):
        moved_footage([tmp_path / "nothing.mp4"], clips_per_video=1)
