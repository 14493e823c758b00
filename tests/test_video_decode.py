from __future__ import annotations

import io
import os
import random
import socket
import subprocess
import sys
import threading
import tracemalloc
from fractions import Fraction
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest
from av.stream import Disposition
from video_fixtures import (
    CODECS,
    FFV1,
    H264,
    H264_B,
    MJPEG,
    MPEG4,
    MPEGTS,
    VP8,
    VP9,
    Codec,
    Sender,
    code_of,
    cut,
    make_sound,
    make_video,
    open_files,
    painted,
    set_display,
    show_only,
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


def calls_of(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """What a method of Container is called with, one entry per call from now on."""
    calls: list[object] = []
    original = getattr(container.Container, name)
    monkeypatch.setattr(container.Container, name, lambda self, given: calls.append(given) or original(self, given))
    return calls


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")


def read_to_error(source: object, **options: object) -> tuple[list[decode.Frame], VideoError | None]:
    frames = []
    try:
        for frame in read_frames(source, **options):
            frames.append(frame)
    except VideoError as error:
        return frames, error
    return frames, None


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


# Every frame, in order, with its time


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


# Pictures of every kind


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


def test_a_size_that_changes_is_an_error(tmp_path: Path) -> None:
    small = make_video(tmp_path / "small", MPEGTS, num_frames=10)
    large = make_video(tmp_path / "large", MPEGTS, num_frames=10, size_px=(160, 96))
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    frames, error = read_to_error(both)
    assert len(frames) == 10
    assert error is not None
    assert "128 x 64 to 160 x 96" in error.reason
    assert error.frames_read == 10


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = make_video(tmp_path / "huge", MJPEG, num_frames=2)
    content = bytearray(path.read_bytes())
    start = 0
    while (start := content.find(b"\xff\xc0\x00\x11\x08", start + 1)) > 0:
        content[start + 5 : start + 9] = (16_000).to_bytes(2, "big") * 2
    path.write_bytes(content)
    _, error = read_to_error(path)
    assert error is not None
    assert "16000 x 16000" in error.reason or "not one frame could be decoded" in error.reason
    with pytest.raises(VideoError, match="pixels a side"):
        next(read_frames(make_video(tmp_path / "flat", FFV1, num_frames=1, size_px=(1000, 2)), short_side_px=200))


# Seeking


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


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("start", [1, 23, 24, 50, 74])
def test_reading_from_a_frame_is_exact(videos: dict[str, Path], name: str, start: int) -> None:
    frames = list(read_frames(videos[name], start_frame=start))
    assert [code_of(frame.image) for frame in frames] == list(range(start, 75))
    assert [frame.index for frame in frames] == list(range(start, 75))
    assert frames[0].time_s == start / 25


@pytest.mark.parametrize("name", CODECS)
def test_reading_from_a_time_is_exact(videos: dict[str, Path], name: str) -> None:
    time_s = next(frame.time_s for frame in read_frames(videos[name]) if frame.index == 40)
    for start_s in (time_s, time_s - 0.01):
        first = next(read_frames(videos[name], start_s=start_s))
        assert (code_of(first.image), first.index, first.time_s) == (40, 40, pytest.approx(time_s))


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
    # The bit of a VP8 frame that says whether it is shown.
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


# Damage


@pytest.mark.parametrize("share", [0.7, 0.8, 0.9])
def test_a_truncated_mp4_gives_what_it_has_and_then_says_so(tmp_path: Path, share: float) -> None:
    path = make_video(tmp_path / "cut", H264_B, num_frames=100, container_options={"movflags": "faststart"})
    cut(path, share)
    frames, error = read_to_error(path)
    assert len(frames) > 10
    assert [code_of(frame.image) for frame in frames[:10]] == list(range(10))
    assert error is not None
    assert "truncated: it states 100 frames" in error.reason
    assert error.frames_read == len(frames)
    assert error.time_s == frames[-1].time_s


@pytest.mark.parametrize("sound_s", [0, 4.0])
def test_a_truncated_webm_gives_what_it_has_and_then_says_so(tmp_path: Path, sound_s: float) -> None:
    path = make_video(tmp_path / "cut", VP9, num_frames=100, sound_s=sound_s)
    cut(path, 0.5)
    frames, error = read_to_error(path)
    assert [code_of(frame.image) for frame in frames] == list(range(len(frames)))
    assert 10 < len(frames) < 80
    assert error is not None
    assert "truncated: it states 4.00 s" in error.reason


def test_an_edit_list_is_not_taken_for_damage(tmp_path: Path) -> None:
    path = make_video(tmp_path / "edited", H264_B, num_frames=100)
    show_only(path, 1000)
    assert probe(path).stated_frames == 100
    assert [code_of(frame.image) for frame in read_frames(path)] == list(range(25))
    assert code_of(read_frames_at(path, [24])[0][0]) == 24


@pytest.mark.parametrize("codec", [H264, VP9], ids=["mp4", "webm"])
def test_sound_longer_than_the_video_is_not_taken_for_damage(tmp_path: Path, codec: Codec) -> None:
    path = make_video(tmp_path / "sounding", codec, num_frames=25, sound_s=4.0)
    assert len(list(read_frames(path))) == 25


def test_reading_goes_on_past_damaged_packets(tmp_path: Path) -> None:
    path = make_video(tmp_path / "hit", MJPEG, num_frames=50)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        hit = [bytes(packet) for packet in container.demux(video=0) if packet.pts in (10, 20)]
    for packet in hit:
        start = content.index(packet)
        content[start : start + len(packet)] = bytes(len(packet))
    path.write_bytes(content)
    frames, error = read_to_error(path)
    expected = sorted({*range(50)} - {10, 20})
    assert [code_of(frame.image) for frame in frames] == expected
    assert [frame.time_s for frame in frames] == [index / 25 for index in expected]
    assert error is not None
    assert "2 of its packets were damaged" in error.reason
    assert (error.frames_read, error.time_s) == (48, 49 / 25)


@pytest.mark.parametrize("readable_bytes", [0, 20_000])
def test_a_failing_disk_is_a_video_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, readable_bytes: int) -> None:
    class FailingFile(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            if self.tell() >= readable_bytes:
                raise OSError("the disk is gone")
            return super().read(size)

    path = make_video(tmp_path / "video", FFV1, num_frames=200, size_px=(64, 48))
    monkeypatch.setattr(Path, "open", lambda self, mode: FailingFile(self, mode))
    frames, error = read_to_error(path)
    assert error is not None
    assert "the disk is gone" in error.reason
    assert bool(frames) == bool(readable_bytes)


def test_frames_behind_damage_are_not_mistaken(tmp_path: Path) -> None:
    path = make_video(tmp_path / "hit", MPEGTS, num_frames=75)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 188 * 4] = bytes(188 * 4)
    path.write_bytes(content)
    _, error = read_to_error(path)
    assert error is not None
    assert code_of(read_frames_at(path, [3])[0][0]) == 3
    with pytest.raises(VideoError, match="which frame is which"):
        read_frames_at(path, [70])


def refused_sources(folder: Path) -> dict[str, tuple[object, str]]:
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is not a video.\n" * 50)
    (folder / "zeros.mp4").write_bytes(bytes(5000))
    (folder / "nothing").mkdir()
    (folder / "nothing" / "notes.txt").touch()
    make_video(folder / "headless", H264)
    cut(folder / "headless.mp4", 0.5)
    os.mkfifo(folder / "pipe.mp4")
    return {
        "missing": (folder / "missing.mp4", "no such file"),
        "empty": (folder / "empty.mp4", "empty"),
        "text": (folder / "text.mp4", "FFmpeg says"),
        "zeros": (folder / "zeros.mp4", "FFmpeg says"),
        "folder": (folder / "nothing", "none among its 1 entries"),
        "headless": (folder / "headless.mp4", "FFmpeg says"),
        "sound": (make_sound(folder / "sound.mp4"), "holds only: audio"),
        "pipe": (folder / "pipe.mp4", "device or pipe"),
        "null": ("a\0b", "no such file|could not be opened"),
        "scheme": ("ftp://example.org/a.mp4", "starts with http"),
        "concat": (f"concat:{folder}/text.mp4", "no such file"),
    }


@needs_proc
@pytest.mark.parametrize(
    "name",
    ["missing", "empty", "text", "zeros", "folder", "headless", "sound", "pipe", "null", "scheme", "concat"],
)
def test_what_is_no_video_is_refused_at_once(tmp_path: Path, name: str) -> None:
    source, words = refused_sources(tmp_path)[name]
    before = open_files()
    for attempt in (
        lambda: probe(source),
        lambda: next(read_frames(source)),
        lambda: next(read_frames(source, start_frame=3)),
        lambda: read_frames_at(source, [0]),
    ):
        with pytest.raises(VideoError, match=words) as caught:
            attempt()
        assert caught.value.source == str(source)
        assert str(source) in str(caught.value)
        assert caught.value.frames_read == 0
        del caught
    assert open_files() == before


def test_a_video_without_frames_is_refused(tmp_path: Path) -> None:
    path = make_video(tmp_path / "hollow", FFV1, num_frames=3)
    with av.open(str(path)) as container:
        first = min(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[:first])
    for attempt in (lambda: probe(path), lambda: next(read_frames(path)), lambda: read_frames_at(path, [0])):
        with pytest.raises(VideoError, match=r"not one frame|FFmpeg says"):
            attempt()


# Attacks


def test_a_playlist_in_disguise_reaches_nothing(tmp_path: Path) -> None:
    asked: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.3)
    address = f"http://127.0.0.1:{server.getsockname()[1]}/secret.ts"
    secret = make_video(tmp_path / "secret", MPEGTS, num_frames=10)
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"
    contents = [
        hls.format(address),
        hls.format(secret.name),
        hls.format(f"file://{secret}"),
        f"ffconcat version 1.0\nfile {secret.name}\n",
        f"ffconcat version 1.0\nfile {address}\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video {server.getsockname()[1]} RTP/AVP 96\n",
    ]
    with server:
        for content in contents:
            for suffix in (".m3u8", ".mp4", ".ts", ".sdp"):
                path = tmp_path / f"list{suffix}"
                path.write_text(content)
                with pytest.raises(VideoError):
                    list(read_frames(path))
        with pytest.raises(TimeoutError):
            asked.append(server.accept()[0].recv(10))
    assert not asked


def test_odd_names_are_only_names(tmp_path: Path) -> None:
    original = make_video(tmp_path / "original", H264)
    for name in ("100%03d.mp4", "a:b.mp4", "-i.mp4", "ünï 视频.mp4", "no suffix", "http:", "x.png"):
        path = tmp_path / name
        path.write_bytes(original.read_bytes())
        assert len(list(read_frames(path))) == 60
        assert probe(str(path)).source == str(path)


# Files are closed, memory stays flat


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


# Other sources


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
        ("2.png", b"\x89PNG\r\n\x1a\nbroken", r"2\.png: the image could not be read"),
        ("2.png", np.zeros((64, 128), np.uint16), "8 bits a colour"),
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


# The network


def test_an_address_is_read(tmp_path: Path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    path = make_video(tmp_path / "served", VP9, num_frames=30)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            frames = list(read_frames(f"{address}/{path.name}"))
            later = list(read_frames(f"{address}/{path.name}", start_frame=20))
            with pytest.raises(VideoError, match="FFmpeg says"):
                probe(f"{address}/missing.mp4")
        finally:
            server.shutdown()
            thread.join()
    assert [code_of(frame.image) for frame in frames] == list(range(30))
    assert [code_of(frame.image) for frame in later] == list(range(20, 30))


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 200 OK\r\n\r\n"])
def test_a_silent_address_does_not_hang(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr(container, "NETWORK_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as server:
        connections = []

        def serve() -> None:
            connection, _ = server.accept()
            connection.sendall(answer)
            connections.append(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(VideoError, match=r"no data came for 0\.3 s"):
            probe(f"http://user:hush@127.0.0.1:{server.getsockname()[1]}/live.webm")
        thread.join()
        connections[0].close()


def test_passwords_in_addresses_are_hidden() -> None:
    with pytest.raises(VideoError) as caught:
        probe("http://user:hush@127.0.0.1:9/a.mp4")
    assert "hush" not in str(caught.value)
    assert "http://user:***@127.0.0.1:9/a.mp4" in str(caught.value)


# What probe says


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


def test_only_decode_and_encode_load_ffmpeg() -> None:
    program = (
        "import sys, trecvit.video, trecvit.video.frames, trecvit.video.stills, trecvit.video.sampling, "
        "trecvit.video.transforms, trecvit.video.draw; sys.exit('av' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# The stream that players show


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


# Key frames that are none


def flagged(path: Path, codec: Codec, *, key: bool | None) -> Path:
    """A moving texture in a file that calls all frames key frames, or none; None keeps the true flags."""
    texture = np.random.default_rng(0).integers(0, 255, (110, 190, 3), dtype=np.uint8)
    texture = np.array(PIL.Image.fromarray(texture[:55, :95]).resize((190, 110)))
    path = path.with_name(path.name + codec.suffix)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec.name, rate=25, options=dict(codec.options))
        stream.width, stream.height, stream.pix_fmt = 128, 64, codec.pixel_format
        for index in range(41):
            window = np.ascontiguousarray(texture[index : index + 64, index : index + 128]) if index < 40 else None
            picture = None if window is None else av.VideoFrame.from_ndarray(window, format="rgb24")
            for packet in stream.encode(picture):
                if key is not None:
                    packet.is_keyframe = key
                container.mux(packet)
    return path


_X264 = {"preset": "veryfast"}
FLAGGED = {
    "mpeg4-mp4": MPEG4._replace(suffix=".mp4"),
    "mpeg4-avi": MPEG4,
    "mpeg4-mkv": MPEG4._replace(suffix=".mkv"),
    "mpeg4-b-mp4": Codec(".mp4", "mpeg4", options={"q": "4", "g": "16", "bf": "2"}),
    "h264-b": H264_B,
    "h264-open": Codec(".mp4", "libx264", options=_X264 | {"x264-params": "open-gop=1:keyint=12:min-keyint=12:ref=4"}),
    "h264-refresh-5": Codec(".mp4", "libx264", options=_X264 | {"x264-params": "intra-refresh=1:keyint=5:bframes=0"}),
    "h264-refresh": Codec(".mkv", "libx264", options=_X264 | {"x264-params": "intra-refresh=1:keyint=12:bframes=0"}),
    "hevc": CODECS["hevc"],
    "vp9": VP9,
    "ffv1-mp4": Codec(".mp4", "ffv1", "yuv420p", {"g": "10"}),
    "ffv1-mkv": Codec(".mkv", "ffv1", "yuv420p", {"g": "10"}),
    "av1": Codec(".mp4", "libsvtav1", options={"preset": "13", "g": "12", "svtav1-params": "lp=1"}),
}


@pytest.mark.parametrize("key", [None, True, False], ids=["true flags", "all key", "none key"])
@pytest.mark.parametrize("name", FLAGGED)
def test_every_frame_by_index_is_the_frame_of_the_sequence(tmp_path: Path, name: str, key: bool | None) -> None:
    path = flagged(tmp_path / "flagged", FLAGGED[name], key=key)
    whole = np.stack([frame.image for frame in read_frames(path)])
    assert len(whole) == 40
    for indices in ([5], [13, 14], [3, 17, 31, 39]):
        images, _ = read_frames_at(path, indices)
        assert np.array_equal(images, whole[indices])
    for start in (1, 14, 33):
        assert np.array_equal(np.stack([frame.image for frame in read_frames(path, start_frame=start)]), whole[start:])


def test_flags_that_do_not_hold_cost_one_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = flagged(tmp_path / "flagged", FLAGGED["mpeg4-mp4"], key=True)
    seeks = calls_of(monkeypatch, "pictures_from")
    read_frames_at(path, range(15, 40))
    assert len(seeks) <= 4


def test_av1_is_sought_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a", FLAGGED["av1"], num_frames=40)
    assert probe(path).codec == "av1"
    decoded = calls_of(monkeypatch, "_decode")
    assert length_and_rate(path) == (40, 25.0)
    assert not decoded
    assert code_of(next(read_frames(path, start_frame=37)).image) == 37
    assert len(decoded) < 20


# A source is opened once


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
        with pytest.raises(InputError, match="something else was read"):
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


def test_a_sender_with_one_client_is_connected_to_once(tmp_path: Path) -> None:
    content = make_video(tmp_path / "sent", MPEGTS, num_frames=40).read_bytes()
    with Sender(content) as sender, open_video(f"tcp://{sender.address}") as video:
        assert video.is_stream
        assert video.info.average_fps == 25
        assert [code_of(frame.image) for frame in video.frames()] == list(range(40))
        assert sender.connections == 1


def test_a_camera_without_time_stamps_has_those_of_arrival() -> None:
    picture = io.BytesIO()
    PIL.Image.fromarray(painted(5)).save(picture, "JPEG")
    head = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n"
    length = len(picture.getvalue())
    part = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (length, picture.getvalue())
    with (
        Sender(part, chunks=60, pause_s=0.05, head=head) as sender,
        open_video(f"http://{sender.address}/live") as video,
    ):
        assert 10 < float(video.info.average_fps) < 24  # 20 at the most, as sent
        frames = list(islice(video.frames(), 30))
        assert (frames[-1].time_s - frames[4].time_s) > 25 * 0.05
        assert sender.connections == 1


def test_a_camera_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    # FFmpeg's generator of test pictures stands for a device.
    monkeypatch.setattr(
        container, "_CAMERAS", {sys.platform: ("lavfi", "testsrc=size=64x48:rate=15,trim=start_frame={}")}
    )
    for name in ("camera:3", "/dev/video3", Path("/dev/video3")):
        with open_video(name) as video:
            assert video.is_stream
            assert (video.info.width_px, video.info.average_fps) == (64, 15)
            assert [frame.index for frame in islice(video.frames(), 3)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:9/a.mp4", r"Connection refused; check the address, and that its sender is running"),
        ("rtsp://127.0.0.1:9/a", r"check the address, and that its sender is running"),
        ("camera:77", r"expected a camera.*check that it is connected|cameras can be opened on"),
        ("", r"got an empty name"),
        (" ", r"got an empty name|no such file"),
    ],
)
def test_a_source_that_cannot_be_opened_says_what_to_do(address: str, words: str) -> None:
    with pytest.raises(VideoError, match=words) as caught:
        probe(address)
    assert "whole" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"),
    [("404 Not Found", "check the address"), ("401 Unauthorized", "user name"), ("503 Busy", "check the address")],
)
def test_an_address_that_refuses_is_not_called_damaged(status: str, words: str) -> None:
    with (
        Sender(f"HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n".encode()) as sender,
        pytest.raises(VideoError, match=f"expected a video stream at this address.*{words}"),
    ):
        probe(f"http://{sender.address}/a.mp4")


def test_a_container_that_cannot_be_read_further_has_no_damaged_packets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingFile(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            if self.tell() >= 20_000:
                raise OSError("the disk is gone")
            return super().read(size)

    path = make_video(tmp_path / "video", FFV1, num_frames=200, size_px=(64, 48))
    monkeypatch.setattr(Path, "open", lambda self, mode: FailingFile(self, mode))
    _, error = read_to_error(path)
    assert error is not None
    assert "it could not be read further (the disk is gone)" in error.reason
    assert "packets were damaged" not in error.reason


# Folders, parts of files, animated pictures


@pytest.mark.parametrize("place", [".", "inside"])
def test_a_folder_of_videos_is_no_video(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    make_video(tmp_path / place / "clip", VP9, num_frames=2)
    PIL.Image.fromarray(painted(1)).save(tmp_path / "thumbnail.png")
    with pytest.raises(VideoError, match=r"a folder of videos, 'clip\.webm' among them; name one of them"):
        probe(tmp_path)


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
