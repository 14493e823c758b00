"""Folders of images, arrays and animated pictures as sources."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from video_fixtures import (
    H264,
    VP9,
    code_of,
    make_video,
    painted,
    read_to_error,
)

from trecvit.errors import InputError, VideoError
from trecvit.video.decode import (
    VideoInfo,
    length_and_rate,
    probe,
    read_frames,
    read_frames_at,
)


def test_a_folder_of_images_is_read_in_natural_order(tmp_path: Path) -> None:
    for index in range(12):
        suffix = (".png", ".bmp", ".webp")[index % 3]
        options = {"lossless": True} if suffix == ".webp" else {}
        PIL.Image.fromarray(painted(index)).save(tmp_path / f"frame{index}{suffix}", **options)
    (tmp_path / "notes.txt").touch()
    (tmp_path / "._frame3.png").write_bytes(b"not an image")
    frames = list(read_frames(tmp_path, untimed_fps=10))
    assert [code_of(frame.image) for frame in frames] == list(range(12))
    assert [frame.time_s for frame in frames] == [index / 10 for index in range(12)]
    assert [frame.index for frame in read_frames(str(tmp_path), start_s=0.3, untimed_fps=10)] == list(range(3, 12))
    images, times_s = read_frames_at(tmp_path, [11, 0], short_side_px=32)
    assert [code_of(image) for image in images] == [11, 0]
    assert images.shape == (2, 32, 64, 3)
    assert list(times_s) == [11 / 25, 0]
    assert probe(tmp_path) == VideoInfo(
        source=str(tmp_path),
        width_px=128,
        height_px=64,
        average_fps=Fraction(25),
        duration_s=0.48,
        stated_frames=12,
        codec="images",
        rotation_degrees=0,
    )


def test_images_of_many_modes_become_rgb(tmp_path: Path) -> None:
    picture = PIL.Image.fromarray(np.full((8, 8, 3), (153, 153, 153), np.uint8))
    for number, mode in enumerate(("RGB", "L", "P", "RGBA", "LA")):
        picture.convert(mode).save(tmp_path / f"{number}.png")
    picture.convert("CMYK").save(tmp_path / "5.jpg")
    for frame in read_frames(tmp_path):
        assert frame.image.shape == (8, 8, 3)
        assert np.abs(frame.image.astype(int) - 153).max() <= 4


def test_images_are_turned_as_their_camera_was(tmp_path: Path) -> None:
    upright = painted(0b111, 32, 64)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.fromarray(np.rot90(upright)).save(tmp_path / "0.png", exif=exif)
    assert np.array_equal(next(read_frames(tmp_path)).image, upright)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("2.png", painted(2, 130), r"1\.png is 128 x 64, but 2\.png is 130 x 64"),
        ("2.png", b"\x89PNG\r\n\x1a\nbroken", r"2\.png: expected a readable image"),
        ("2.png", np.zeros((64, 128), np.uint16), "8 bits per colour"),
    ],
)
def test_a_bad_image_is_named(tmp_path: Path, name: str, content: np.ndarray | bytes, words: str) -> None:
    PIL.Image.fromarray(painted(1)).save(tmp_path / "1.png")
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    else:
        PIL.Image.fromarray(content).save(tmp_path / name)
    frames, error = read_to_error(tmp_path)
    assert len(frames) == 1
    assert error is not None
    with pytest.raises(VideoError, match=words):
        raise error


@pytest.mark.parametrize("as_file", [False, True])
def test_arrays_are_sources(tmp_path: Path, as_file: bool) -> None:
    pixels = np.stack([painted(index) for index in range(10)])
    source: object = pixels
    if as_file:
        source = tmp_path / "frames.npy"
        np.save(source, pixels)
    frames = list(read_frames(source, start_frame=4))
    assert [code_of(frame.image) for frame in frames] == list(range(4, 10))
    assert [frame.time_s for frame in frames] == [index / 25 for index in range(4, 10)]
    frames[0].image[:] = 0
    assert code_of(next(read_frames(source, start_frame=4)).image) == 4
    images, _ = read_frames_at(source, [9, 9, 0])
    assert [code_of(image) for image in images] == [9, 9, 0]
    assert probe(source).codec == "array"
    assert probe(source).stated_frames == 10
    for index in range(10):
        assert next(read_frames(source, start_s=index / 25)).index == index
    with pytest.raises(VideoError, match="only 10 frames"):
        read_frames(source, start_s=1e9)
    with pytest.raises(VideoError, match="only 10 frames"):
        read_frames_at(source, [10])


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 8, 8, 3), np.float32),
        np.zeros((4, 3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.array([{}], dtype=object),
    ],
    ids=["float", "channels first", "one frame", "no frames", "objects"],
)
def test_other_arrays_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"uint8 \[T, H, W, 3\]"):
        read_frames(pixels)
    np.save(tmp_path / "bad.npy", pixels, allow_pickle=True)
    with pytest.raises(VideoError, match=r"uint8 \[T, H, W, 3\]"):
        probe(tmp_path / "bad.npy")


@pytest.mark.parametrize("place", [".", "inside"])
def test_a_folder_of_videos_is_no_video(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    make_video(tmp_path / place / "clip", VP9, num_frames=2)
    PIL.Image.fromarray(painted(1)).save(tmp_path / "thumbnail.png")
    with pytest.raises(VideoError, match=r"a folder of videos, 'clip\.webm' among them; choose one of them"):
        probe(tmp_path)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".apng"])
def test_animated_pictures_are_videos(tmp_path: Path, suffix: str) -> None:
    pictures = [PIL.Image.fromarray(painted(index)) for index in range(12)]
    durations_ms = [40] * 6 + [100] * 5 + [0]
    options = {"lossless": True} if suffix == ".webp" else {}
    path = tmp_path / f"a{suffix}"
    format_name = {".apng": "PNG"}.get(suffix)
    pictures[0].save(
        path, format_name, save_all=True, append_images=pictures[1:], duration=durations_ms, loop=0, **options
    )
    frames = list(read_frames(path))
    assert [code_of(frame.image) for frame in frames] == list(range(12))
    assert [frame.time_s for frame in frames] == pytest.approx(
        [*np.arange(6) * 0.04, *(0.24 + np.arange(5) * 0.1), 0.74]
    )
    assert length_and_rate(path) == (12, pytest.approx(12 / 0.84))
    assert probe(path).codec == "animation"
    assert [code_of(image) for image in read_frames_at(path, [11, 0, 7])[0]] == [11, 0, 7]
    assert [frame.index for frame in read_frames(path, start_s=0.3)] == [7, 8, 9, 10, 11]
    with pytest.raises(VideoError, match="only 12 frames"):
        read_frames_at(path, [12])
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert read_to_error(path)[1] is not None or suffix == ".gif"


def test_a_video_under_the_name_of_an_animation_is_read(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a", H264, num_frames=3).rename(tmp_path / "tenor.gif")
    assert [code_of(frame.image) for frame in read_frames(path)] == [0, 1, 2]
