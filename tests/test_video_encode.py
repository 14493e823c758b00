from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from video_fixtures import code_of, open_files, painted

from trecvit.errors import InputError, VideoError
from trecvit.video.decode import probe, read_frames
from trecvit.video.encode import VideoWriter

SUFFIXES = (".mp4", ".webm", ".mkv")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    with VideoWriter(path, fps=25) as writer:
        for index in range(40):
            writer.write(painted(index))
    frames = list(read_frames(path))
    assert [code_of(frame.image) for frame in frames] == list(range(40))
    assert [frame.time_s for frame in frames] == pytest.approx([index / 25 for index in range(40)], abs=1e-9)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_given_times_are_kept(tmp_path: Path, suffix: str) -> None:
    times_s = [0.0, 0.02, 0.1, 0.5, 0.533, 2.0, 2.001]
    with VideoWriter(tmp_path / f"out{suffix}", fps=25) as writer:
        for index, time_s in enumerate(times_s):
            writer.write(painted(index), time_s)
        writer.write(painted(7))
    frames = list(read_frames(tmp_path / f"out{suffix}"))
    assert [code_of(frame.image) for frame in frames] == list(range(8))
    assert [frame.time_s for frame in frames] == pytest.approx([*times_s, 2.041], abs=1e-4)


@pytest.mark.parametrize(
    ("fps", "exact"),
    [(25, Fraction(25)), (29.97002997, Fraction(30000, 1001)), (Fraction(24000, 1001), None), (0.5, None), (240, None)],
)
def test_frame_rates_stay_exact(tmp_path: Path, fps: Fraction | float, exact: Fraction | None) -> None:
    exact = exact or Fraction(fps)
    with VideoWriter(tmp_path / "out.mp4", fps) as writer:
        for index in range(30):
            writer.write(painted(index))
    assert probe(tmp_path / "out.mp4").average_fps == exact
    assert [frame.time_s for frame in read_frames(tmp_path / "out.mp4")] == [float(i / exact) for i in range(30)]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("width_px", "height_px"), [(77, 51), (78, 51), (2, 2), (1, 1)])
def test_odd_sizes_are_made_even_only_where_they_must(
    tmp_path: Path, suffix: str, width_px: int, height_px: int
) -> None:
    image = np.full((height_px, width_px, 3), 200, np.uint8)
    with VideoWriter(tmp_path / f"out{suffix}", fps=25) as writer:
        for _ in range(3):
            writer.write(image)
    frame = next(read_frames(tmp_path / f"out{suffix}"))
    if suffix != ".mkv":
        width_px, height_px = width_px + width_px % 2, height_px + height_px % 2
    assert frame.image.shape == (height_px, width_px, 3)
    assert np.abs(frame.image.astype(int) - 200).max() <= 3


def test_mkv_is_lossless(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 33, 47, 3), np.uint8)
    with VideoWriter(tmp_path / "out.mkv", fps=25) as writer:
        for image in images:
            writer.write(image)
    assert np.array_equal(np.stack([frame.image for frame in read_frames(tmp_path / "out.mkv")]), images)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_survive(tmp_path: Path, suffix: str) -> None:
    colours = np.array([(255, 255, 255), (0, 0, 0), (220, 30, 40), (20, 180, 60)], np.uint8)
    image = np.repeat(np.repeat(colours.reshape(2, 2, 3), 64, 0), 64, 1)
    with VideoWriter(tmp_path / f"out{suffix}", fps=25) as writer:
        for _ in range(3):
            writer.write(image)
    read = next(read_frames(tmp_path / f"out{suffix}")).image
    for row, column in ((32, 32), (32, 96), (96, 32), (96, 96)):
        assert np.abs(read[row, column].astype(int) - image[row, column]).max() <= 5
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        picture = next(container.decode(video=0))
    assert (picture.colorspace, picture.color_range) == (1, 1)


def test_mp4_has_its_index_in_front(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", fps=25) as writer:
        writer.write(painted(0))
    content = (tmp_path / "out.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


def test_mp4_is_encoded_without_mbtree(tmp_path: Path) -> None:
    """With x264's mbtree one clip in hundreds was another file, too seldom for a test; x264 notes its settings."""
    with VideoWriter(tmp_path / "clip.mp4", 12.0) as writer:
        writer.write(painted(3))
    assert b" mbtree=0 " in (tmp_path / "clip.mp4").read_bytes()


@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_behind(tmp_path: Path, kind: type[BaseException]) -> None:
    path = tmp_path / "out.mp4"
    path.write_text("what was there before")
    before = open_files()

    def interrupted() -> None:
        with VideoWriter(path, fps=25) as writer:
            for index in range(5):
                writer.write(painted(index))
            raise kind

    with pytest.raises(kind):
        interrupted()
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]
    assert path.read_text() == "what was there before"
    assert open_files() == before


@pytest.mark.parametrize("step", ["_picture", "_mux"])
def test_an_interrupt_caught_inside_the_block_keeps_the_frames(tmp_path: Path, monkeypatch, step: str) -> None:
    """Also an interrupt in the middle of a write."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with VideoWriter(tmp_path / "out.mp4", fps=25) as writer:
        for index in range(50):
            writer.write(painted(index))
        with monkeypatch.context() as patch:
            patch.setattr(writer, step, interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.write(painted(50))
    assert [code_of(frame.image) for frame in read_frames(tmp_path / "out.mp4")] == list(range(50))


def test_success_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_text("what was there before")
    with VideoWriter(path, fps=25) as writer:
        writer.write(painted(3))
        assert path.read_text() == "what was there before"
    assert code_of(next(read_frames(path)).image) == 3


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", fps=25) as writer:
        writer.write(painted(0))
        with pytest.raises(InputError, match=r"128 x 64, got 64 x 128 for frame 1"):
            writer.write(painted(1, 64, 128))
        writer.write(painted(1))
    assert [code_of(frame.image) for frame in read_frames(tmp_path / "out.mp4")] == [0, 1]


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32)],
)
def test_other_arrays_are_refused(tmp_path: Path, image: np.ndarray) -> None:
    with VideoWriter(tmp_path / "out.mp4", fps=25) as writer:
        with pytest.raises(InputError, match=r"uint8 \[H, W, 3\]"):
            writer.write(image)
        with pytest.raises(VideoError, match="pixels a side"):
            writer.write(np.zeros((0, 8, 3), np.uint8))
        writer.write(painted(0))


@pytest.mark.parametrize("times_s", [(0.1, 0.05), (-1.0,), (float("nan"),), (float("inf"),)])
def test_times_must_rise(tmp_path: Path, times_s: tuple[float, ...]) -> None:
    with VideoWriter(tmp_path / "out.mp4", fps=25) as writer:
        for time_s in times_s[:-1]:
            writer.write(painted(0), time_s)
        with pytest.raises(InputError, match="time_s"):
            writer.write(painted(0), times_s[-1])
        writer.write(painted(0))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("fps", "times_s", "expected_s"),
    [
        # Each case: less than a tick apart, then back to their own times.
        (25, (0, 3e-6, 0.5, 0.50001, 0.500011, 1.0), (0, None, 0.5, None, None, 1.0)),
        (25, (0, 0, 0, 1.0, 1.0, 0.97, 2.0), (0, None, None, 1.0, None, None, 2.0)),  # repeated, back by under a frame
        (25, (0, *(1 + index * 1e-7 for index in range(10)), 3.0), (0, 1.0, *(None,) * 9, 3.0)),
        (60_000, (0, 0.04, 0.08, 0.12), (0, 0.04, 0.08, 0.12)),  # as raw DV states
        (Fraction(1001 * 59_999, 1001), (None,) * 5, (0, *(None,) * 4)),
        (0.001, (0, 0.04, 0.08, 1e5), (0, 0.04, 0.08, None)),
        (25, (0, 0.04, 1e6, 1e6 + 0.04, 1e300), (0, 0.04, None, None, None)),
    ],
)
def test_no_frame_is_lost_for_its_time(tmp_path: Path, suffix: str, fps: float, times_s, expected_s) -> None:
    with VideoWriter(tmp_path / f"out{suffix}", fps) as writer:
        for index, time_s in enumerate(times_s):
            writer.write(painted(index), time_s)
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        time_base = container.streams.video[0].time_base
        pictures = [
            (float(picture.pts * time_base), picture.to_ndarray(format="rgb24")) for picture in container.decode()
        ]
    assert [code_of(image) for _, image in pictures] == list(range(len(times_s)))
    found_s = [time_s for time_s, _ in pictures]
    assert all(before < after for before, after in pairwise(found_s))
    for found, expected in zip(found_s, expected_s, strict=True):
        assert expected is None or found == pytest.approx(expected, abs=1e-4)


def test_a_gap_too_long_for_the_container_is_shortened(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", 25) as writer:
        for index, time_s in enumerate((0, 1e6, 1e6 + 0.5, 2e6, 2e6 + 1)):
            writer.write(painted(index), time_s)
    gap_s = 2**29 / 90_000
    assert [frame.time_s for frame in read_frames(tmp_path / "out.mp4")] == pytest.approx(
        [0, gap_s, gap_s + 0.5, 2 * gap_s + 0.5, 2 * gap_s + 1.5], abs=1e-4
    )


def test_a_rate_that_no_tick_divides_does_not_drift(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.webm", 24) as writer:
        for index in range(25):
            writer.write(painted(index))
        writer.write(painted(25), 2.0)
        writer.write(painted(26))
    times_s = [frame.time_s for frame in read_frames(tmp_path / "out.webm")]
    assert times_s == pytest.approx([*(index / 24 for index in range(25)), 2.0, 2 + 1 / 24], abs=6e-4)


def test_impossible_targets_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"\.mp4, \.webm, \.mkv, got '\.avi'"):
        VideoWriter(tmp_path / "out.avi", fps=25)
    with pytest.raises(VideoError, match="expected an existing folder"):
        VideoWriter(tmp_path / "missing" / "out.mp4", fps=25)
    for fps in (0, -1, float("nan"), float("inf"), 1e-9):
        with pytest.raises(InputError, match="fps"):
            VideoWriter(tmp_path / "out.mp4", fps=fps)


def test_a_video_needs_a_frame(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="at least one frame"), VideoWriter(tmp_path / "out.mp4", fps=25):
        pass
    assert not list(tmp_path.iterdir())


def test_a_closed_writer_says_so(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "out.mp4", fps=25) as writer:
        writer.write(painted(0))
    with pytest.raises(VideoError, match="got a closed one"):
        writer.write(painted(1))


def test_a_refusing_disk_is_a_video_error(tmp_path: Path) -> None:
    (tmp_path / "out.mp4").mkdir()
    with pytest.raises(VideoError, match="could not be written"), VideoWriter(tmp_path / "out.mp4", fps=25) as writer:
        writer.write(painted(0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]
