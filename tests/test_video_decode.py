"""Frames of video files: each once, in order, on time, in true colours, and by index."""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from video_fixtures import (
    CODECS,
    FFV1,
    H264_B,
    MPEG4,
    VP8,
    VP9,
    calls_of,
    code_of,
    cut,
    make_video,
    needs_proc,
    open_files,
    painted,
    read_to_error,
    set_display,
)

from trecvit.errors import InputError, VideoError
from trecvit.video import container, decode
from trecvit.video.decode import (
    VideoInfo,
    length_and_rate,
    open_video,
    probe,
    read_frames,
    read_frames_at,
)
from trecvit.video.sources import FilePart


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("videos")
    return {name: make_video(folder / name, codec, num_frames=75) for name, codec in CODECS.items()}


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], list[float]]:
    folder = tmp_path_factory.mktemp("uneven")
    chance = random.Random(7)
    times_ms = [0]
    while len(times_ms) < 75:
        times_ms.append(times_ms[-1] + chance.choice((10, 33, 40, 80, 700)))
    codecs = {"h264-b": H264_B, "vp9": VP9, "ffv1": FFV1}
    paths = {name: make_video(folder / name, codec, num_frames=75, times_ms=times_ms) for name, codec in codecs.items()}
    return paths, [time_ms / 1000 for time_ms in times_ms]


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_every_frame_comes_once_in_order_and_on_time(videos: dict[str, Path], name: str) -> None:
    frames = list(read_frames(videos[name]))
    assert [code_of(frame.image) for frame in frames] == list(range(75))
    assert [frame.index for frame in frames] == list(range(75))
    assert [frame.time_s for frame in frames] == [index / 25 for index in range(75)]
    assert frames[0].image.shape == (64, 128, 3)
    assert frames[0].image.dtype == np.uint8
    assert frames[0].image.flags.writeable
    assert frames[0].image.flags.c_contiguous


def test_images_are_the_receivers_own(videos: dict[str, Path]) -> None:
    codes = []
    for frame in read_frames(videos["h264-b"]):
        codes.append(code_of(frame.image))
        frame.image[:] = 77
    assert codes == list(range(75))


@pytest.mark.parametrize("name", ["h264-b", "vp9", "ffv1"])
def test_variable_frame_rate_is_kept(uneven: tuple[dict[str, Path], list[float]], name: str) -> None:
    paths, times_s = uneven
    frames = list(read_frames(paths[name]))
    assert [code_of(frame.image) for frame in frames] == list(range(75))
    assert [frame.time_s for frame in frames] == pytest.approx(times_s, abs=1e-4)


def test_ntsc_frame_rate_is_exact(tmp_path: Path) -> None:
    path = make_video(tmp_path / "ntsc", H264_B, fps=Fraction(30000, 1001))
    assert probe(path).average_fps == Fraction(30000, 1001)
    assert [frame.time_s for frame in read_frames(path)] == [index * 1001 / 30000 for index in range(60)]


def test_time_starts_at_the_first_frame(tmp_path: Path) -> None:
    path = make_video(tmp_path / "late", VP9, num_frames=5, times_ms=[5000, 5040, 5080, 5120, 5160])
    assert [frame.time_s for frame in read_frames(path)] == [0, 0.04, 0.08, 0.12, 0.16]


def test_times_rise_even_where_time_stamps_do_not() -> None:
    class Video:
        timed = True
        step = Fraction(1, 2)
        time_base = Fraction(1, 10)

    clock = decode._Clock(Video())
    pictures = [av.VideoFrame(2, 2) for _ in range(6)]
    for picture, pts in zip(pictures, (100, 110, None, 90, 110, 140), strict=True):
        picture.pts = pts
    assert [clock.time_s(picture) for picture in pictures] == [0.0, 1.0, 1.5, 2.0, 2.5, 4.0]


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_display_matrix_is_applied(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    # Stored so that mirroring it and then turning it clockwise by `degrees` sets it right.
    upright = painted(0b0000_0001_0000_0111, 64, 128)
    stored = np.rot90(upright, degrees // 90)
    stored = np.fliplr(stored) if mirrored else stored
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "10"})
        stream.height, stream.width = stored.shape[:2]
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(stored), format="rgb24")))
        container.mux(stream.encode())
    set_display(path, degrees, mirrored=mirrored)
    image = next(iter(read_frames(path))).image
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 8
    info = probe(path)
    assert (info.width_px, info.height_px, info.rotation_degrees) == (64, 128, -degrees % 360)
    assert read_frames_at(path, [0], short_side_px=32)[0].shape == (1, 64, 32, 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codec", "pixel_format", "size_px"),
    [
        ("ffv1", "bgr0", (77, 51)),
        ("ffv1", "gray", (77, 51)),
        ("ffv1", "gray10le", (64, 48)),
        ("ffv1", "yuv420p", (77, 51)),
        ("ffv1", "yuv444p", (77, 51)),
        ("ffv1", "yuv420p10le", (77, 51)),
        ("ffv1", "yuv422p10le", (64, 48)),
        ("ffv1", "yuva420p", (64, 48)),
        ("ffv1", "gbrp10le", (33, 17)),
        ("libx264", "yuv420p", (62, 46)),
        ("libx264", "yuv444p", (63, 47)),
        ("libx264", "yuv420p10le", (64, 48)),
        ("libx264", "gray", (64, 48)),
        ("mjpeg", "yuvj420p", (77, 51)),
        ("libvpx-vp9", "yuv420p", (77, 51)),
        ("ffv1", "bgr0", (1, 1)),
        ("ffv1", "yuv420p", (2, 1)),
    ],
)
def test_every_pixel_format_and_size_becomes_rgb(
    tmp_path: Path, codec: str, pixel_format: str, size_px: tuple[int, int]
) -> None:
    path = tmp_path / "colour.mkv"
    grey = "gray" in pixel_format
    colour = (150, 150, 150) if grey else (200, 40, 90)
    image = np.full((size_px[1], size_px[0], 3), colour, np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size_px
        stream.pix_fmt = pixel_format
        for _ in range(3):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixel_format))
            )
        container.mux(stream.encode())
    frames = list(read_frames(path))
    assert len(frames) == 3
    for frame in frames:
        assert frame.image.shape == image.shape
        assert np.abs(frame.image.astype(int) - image).max() <= 6


@pytest.mark.parametrize("colour_range", [1, 2])
@pytest.mark.parametrize("colour_space", [1, 5])
def test_colour_matrix_and_range_are_honoured(tmp_path: Path, colour_range: int, colour_space: int) -> None:
    path = tmp_path / "tagged.mkv"
    colours = np.array([(255, 255, 255), (0, 0, 0), (200, 40, 90), (20, 180, 60)], np.uint8)
    image = np.repeat(np.repeat(colours.reshape(2, 2, 3), 32, 0), 32, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv444p"
        stream.codec_context.color_range = colour_range
        stream.codec_context.colorspace = colour_space
        picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
            format="yuv444p", dst_colorspace=colour_space, dst_color_range=colour_range
        )
        container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert np.abs(next(iter(read_frames(path))).image.astype(int) - image).max() <= 2


def test_resizing_keeps_the_aspect(videos: dict[str, Path]) -> None:
    frames = list(read_frames(videos["h264-b"], short_side_px=24))
    assert frames[0].image.shape == (24, 48, 3)
    assert [code_of(frame.image) for frame in frames] == list(range(75))
    assert next(iter(read_frames(videos["h264-b"], short_side_px=100))).image.shape == (100, 200, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_random_frames_are_exact(videos: dict[str, Path], name: str) -> None:
    chance = random.Random(name)
    for _ in range(3):
        indices = [chance.randrange(75) for _ in range(5)]
        images, times_s = read_frames_at(videos[name], indices)
        assert [code_of(image) for image in images] == indices
        assert list(times_s) == [index / 25 for index in indices]
        assert images.shape == (5, 64, 128, 3)
        assert times_s.dtype == np.float64


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("start", [1, 23, 24, 50, 74])
def test_reading_from_a_frame_is_exact(videos: dict[str, Path], name: str, start: int) -> None:
    frames = list(read_frames(videos[name], start_frame=start))
    assert [code_of(frame.image) for frame in frames] == list(range(start, 75))
    assert [frame.index for frame in frames] == list(range(start, 75))
    assert frames[0].time_s == start / 25


@pytest.mark.slow
@pytest.mark.parametrize("name", CODECS)
def test_reading_from_a_time_is_exact(videos: dict[str, Path], name: str) -> None:
    time_s = next(frame.time_s for frame in read_frames(videos[name]) if frame.index == 40)
    for start_s in (time_s, time_s - 0.01):
        first = next(read_frames(videos[name], start_s=start_s))
        assert (code_of(first.image), first.index, first.time_s) == (40, 40, pytest.approx(time_s))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["h264-b", "vp9", "ffv1"])
def test_seeking_is_exact_at_a_variable_frame_rate(uneven: tuple[dict[str, Path], list[float]], name: str) -> None:
    paths, _ = uneven
    whole = [(frame.index, frame.time_s) for frame in read_frames(paths[name])]
    for start in (1, 30, 31, 74):
        expected = whole[start:]
        by_frame = list(read_frames(paths[name], start_frame=start))
        by_time = list(read_frames(paths[name], start_s=whole[start][1]))
        assert [(frame.index, frame.time_s) for frame in by_frame] == expected
        assert [(frame.index, frame.time_s) for frame in by_time] == expected
        assert [code_of(frame.image) for frame in by_time] == list(range(start, 75))
    images, times_s = read_frames_at(paths[name], [70, 3, 3])
    assert [code_of(image) for image in images] == [70, 3, 3]
    assert list(times_s) == [whole[70][1], whole[3][1], whole[3][1]]


def test_a_far_frame_is_reached_without_decoding_all_before(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = calls_of(monkeypatch, "_decode")
    assert code_of(next(read_frames(videos["h264"], start_frame=61)).image) == 61
    assert len(decoded) <= 5
    decoded.clear()
    read_frames_at(videos["h264"], [1, 61])
    assert len(decoded) <= 10


def test_a_seek_that_lands_wrong_falls_back_to_counting(
    videos: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = container.Container.pictures_from
    monkeypatch.setattr(container.Container, "pictures_from", lambda self, pts: original(self, pts + 25 * 512))
    frames = list(read_frames(videos["h264"], start_frame=30))
    assert [code_of(frame.image) for frame in frames] == list(range(30, 75))
    assert [code_of(image) for image in read_frames_at(videos["h264"], [30, 2])[0]] == [30, 2]


def test_packets_that_show_nothing_are_not_counted(tmp_path: Path) -> None:
    path = make_video(tmp_path / "hidden", VP8)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        hidden = [bytes(packet) for packet in container.demux(video=0)][30]
    # The bit of a VP8 frame that marks it as shown.
    content[content.index(hidden)] &= ~0x10
    path.write_bytes(content)
    whole = list(read_frames(path))
    assert [code_of(frame.image) for frame in whole] == [*range(30), *range(31, 60)]
    images, times_s = read_frames_at(path, [45, 58])
    assert [code_of(image) for image in images] == [46, 59]
    assert list(times_s) == [whole[45].time_s, whole[58].time_s]


def test_starts_beyond_the_end_are_errors(videos: dict[str, Path]) -> None:
    for name in ("h264-b", "vp8"):
        with pytest.raises(VideoError, match=r"frame 75.*only 75 frames"):
            next(read_frames(videos[name], start_frame=75))
        with pytest.raises(VideoError, match=r"3 s.*only 75 frames"):
            next(read_frames(videos[name], start_s=3.0))
        with pytest.raises(VideoError, match=r"frame 75.*only 75 frames"):
            read_frames_at(videos[name], [0, 75])


def test_impossible_arguments_are_refused_at_once(videos: dict[str, Path]) -> None:
    path = videos["h264"]
    for options in (
        {"start_frame": -1},
        {"start_s": -1.0},
        {"start_s": float("nan")},
        {"start_frame": 3, "start_s": 1.0},
        {"short_side_px": 0},
        {"untimed_fps": 0},
        {"untimed_fps": "fast"},
    ):
        with pytest.raises(InputError):
            read_frames(path, **options)
    for indices in ([], [-1], [[1]], [1.5], [True]):
        with pytest.raises(InputError, match="indices"):
            read_frames_at(path, indices)
    with pytest.raises(InputError, match="source"):
        read_frames(b"bytes")


@needs_proc
def test_nothing_stays_open(videos: dict[str, Path], tmp_path: Path) -> None:
    array_file = tmp_path / "frames.npy"
    np.save(array_file, np.zeros((9, 8, 8, 3), np.uint8))
    before = open_files()
    for source in (videos["h264-b"], videos["vp9"], array_file):
        for options in ({}, {"start_frame": 5}):
            frames = read_frames(source, **options)
            next(frames)
            frames.close()
            assert open_files() == before
            list(read_frames(source, **options))
            assert open_files() == before
        probe(source)
        read_frames_at(source, [7, 2])
        assert open_files() == before
    cut(truncated := make_video(tmp_path / "cut", VP9), 0.4)
    read_to_error(truncated)
    assert open_files() == before


@pytest.mark.slow
@needs_proc
def test_memory_stays_flat_over_a_long_video(tmp_path: Path) -> None:
    path = make_video(tmp_path / "long", VP9, num_frames=3000)
    # In a process of its own, since FFmpeg's memory is seen only in the peak of the whole process.
    program = """
import re, sys
from pathlib import Path
from trecvit.video.decode import read_frames
# Not getrusage: its peak is inherited from the process that started this one.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
for frame in read_frames(sys.argv[1], short_side_px=256):
    if frame.index == 100:
        early = peak()
print(frame.index, peak() - early)
"""
    result = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    last_index, growth_mb = map(int, result.stdout.split())
    assert last_index == 2999
    # All frames would be 1.2 GB.
    assert growth_mb < 16


@pytest.mark.slow
def test_a_lazy_consumer_makes_nothing_pile_up(tmp_path: Path) -> None:
    path = make_video(tmp_path / "long", MPEG4, num_frames=600)
    tracemalloc.start()
    try:
        frames = read_frames(path, short_side_px=256)
        next(frames)
        base, _ = tracemalloc.get_traced_memory()
        for _ in frames:
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak - base < 4 * 256 * 512 * 3


def test_probe_tells_what_the_file_states(videos: dict[str, Path]) -> None:
    assert probe(videos["h264-b"]) == VideoInfo(
        source=str(videos["h264-b"]),
        width_px=128,
        height_px=64,
        average_fps=Fraction(25),
        duration_s=3.0,
        stated_frames=75,
        codec="h264",
        rotation_degrees=0,
    )
    webm = probe(str(videos["vp9"]))
    assert (webm.stated_frames, webm.duration_s, webm.codec) == (None, 3.0, "vp9")
    assert probe(videos["h264-raw"]).duration_s is None


@pytest.mark.slow
def test_only_decode_and_encode_load_ffmpeg() -> None:
    program = (
        "import sys, trecvit.video, trecvit.video.frames, trecvit.video.stills, trecvit.video.sampling, "
        "trecvit.video.transforms, trecvit.video.draw; sys.exit('av' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def write_streams(path: Path, *streams: tuple[str, int, Disposition], fps: int = 25, num_frames: int = 6) -> Path:
    """A file of several video streams: codec, height and disposition of each."""
    with av.open(str(path), "w") as container:
        made = []
        for codec, height_px, disposition in streams:
            stream = container.add_stream(codec, rate=fps)
            stream.width, stream.height, stream.pix_fmt = 2 * height_px, height_px, "yuvj420p"
            if codec != "mjpeg":
                stream.pix_fmt = "yuv420p"
            stream.disposition = disposition
            made.append((stream, 1 if codec == "mjpeg" else num_frames))
        for stream, count in made:
            for index in range(count):
                image = painted(index, stream.width, stream.height)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("suffix", "streams", "height_px"),
    [
        (".mp4", [("libx264", 32, Disposition(0)), ("libx264", 64, Disposition.default)], 64),
        (".mp4", [("libx264", 64, Disposition.default), ("libx264", 32, Disposition(0))], 64),
        (".mkv", [("libx264", 32, Disposition(0)), ("libvpx-vp9", 64, Disposition.default)], 64),
        (".mkv", [("mjpeg", 96, Disposition(0)), ("libx264", 64, Disposition.default)], 64),
        (".mp4", [("mjpeg", 96, Disposition.attached_pic), ("libx264", 64, Disposition.default)], 64),
        (".mp4", [("libx264", 64, Disposition.default), ("mjpeg", 96, Disposition.attached_pic)], 64),
        (".ts", [("libx264", 32, Disposition(0)), ("libx264", 64, Disposition(0))], None),
    ],
)
def test_the_default_or_best_stream_is_read(tmp_path: Path, suffix: str, streams: list, height_px: int | None) -> None:
    path = write_streams(tmp_path / f"several{suffix}", *streams)
    if height_px is None:  # none is the default
        with av.open(str(path)) as opened:
            height_px = opened.streams.best("video").height
    assert probe(path).height_px == height_px
    frames = list(read_frames(path))
    assert [code_of(frame.image) for frame in frames] == list(range(6))
    assert read_frames_at(path, [3])[0].shape[1] == height_px


@pytest.mark.parametrize("suffix", [".m4a", ".mp4"])
def test_a_cover_is_no_video(tmp_path: Path, suffix: str) -> None:
    path = write_streams(tmp_path / "song.mp4", ("mjpeg", 64, Disposition.attached_pic)).rename(
        tmp_path / f"song{suffix}"
    )
    for attempt in (lambda: probe(path), lambda: next(read_frames(path)), lambda: length_and_rate(path)):
        with pytest.raises(VideoError, match="holds only: a cover picture"):
            attempt()


def test_everything_is_read_of_one_opened_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a", H264_B, num_frames=30)
    opened = []
    original = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened.append(self) or original(self, mode))
    with open_video(path) as video:
        assert video.info.height_px == 64
        assert [code_of(frame.image) for frame in video.frames()] == list(range(30))
        assert video.length_and_rate() == (30, 25.0)
        assert [code_of(image) for image in video.frames_at([20, 4, 4])[0]] == [20, 4, 4]
        assert [code_of(frame.image) for frame in video.frames(start_frame=25)] == list(range(25, 30))
        assert video.info == probe(path)
        first = video.frames()
        next(first)
        video.frames_at([3])
        with pytest.raises(InputError, match="one pass over the video"):
            next(first)
    assert opened == [path, path]  # the second by probe


def test_time_stamps_are_read_once_for_a_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = []
    original = decode.presentation_order
    monkeypatch.setattr(decode, "presentation_order", lambda *given: scans.append(1) or original(*given))
    with open_video(make_video(tmp_path / "a", H264_B, num_frames=30)) as video:
        num_frames, _ = video.length_and_rate()
        video.frames_at([num_frames - 1])
        video.frames_at([2])
    assert len(scans) == 1


def test_a_part_of_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    content = make_video(tmp_path / "a", H264_B, num_frames=30).read_bytes()
    whole = tmp_path / "whole.bin"
    whole.write_bytes(b"x" * 1000 + content + b"y" * 1000)
    part = FilePart(whole, 1000, len(content), "a.mp4")
    assert part.read() == content
    assert [code_of(image) for image in read_frames_at(part, [29, 3])[0]] == [29, 3]
    assert length_and_rate(part) == (30, 25.0)
    with part.open() as file:
        assert file.seek(-8, io.SEEK_END) == len(content) - 8
        assert file.read() == content[-8:]
        assert file.read(5) == b""


@pytest.mark.parametrize(("size_px", "matrix"), [((1280, 720), 1), ((720, 1280), 1), ((640, 480), 5), ((720, 576), 5)])
def test_colours_without_a_stated_matrix_are_taken_as_players_do(
    tmp_path: Path, size_px: tuple[int, int], matrix: int
) -> None:
    path = tmp_path / "untagged.mkv"
    image = np.full((size_px[1], size_px[0], 3), (200, 40, 90), np.uint8)
    with av.open(str(path), "w") as written:
        stream = written.add_stream("ffv1", rate=25)
        stream.width, stream.height = size_px
        stream.pix_fmt = "yuv444p"
        picture = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv444p", dst_colorspace=matrix)
        picture.colorspace = 2
        written.mux(stream.encode(picture))
        written.mux(stream.encode())
    assert np.abs(next(read_frames(path)).image.astype(int) - image).max() <= 2
