"""Damaged files, files that are no videos, and attacks."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import av
import pytest
from video_fixtures import (
    FFV1,
    H264,
    H264_B,
    MJPEG,
    MPEGTS,
    VP9,
    Codec,
    code_of,
    cut,
    make_sound,
    make_video,
    needs_proc,
    open_files,
    read_to_error,
    show_only,
)

from trecvit.errors import VideoError
from trecvit.video.decode import (
    probe,
    read_frames,
    read_frames_at,
)


def test_a_size_that_changes_is_an_error(tmp_path: Path) -> None:
    small = make_video(tmp_path / "small", MPEGTS, num_frames=10)
    large = make_video(tmp_path / "large", MPEGTS, num_frames=10, size_px=(160, 96))
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    frames, error = read_to_error(both)
    assert len(frames) == 10
    assert error is not None
    assert "128 x 64 and 160 x 96" in error.reason
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
    with pytest.raises(VideoError, match="frame count is uncertain"):
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
        "text": (folder / "text.mp4", "FFmpeg: "),
        "zeros": (folder / "zeros.mp4", "FFmpeg: "),
        "folder": (folder / "nothing", "none among its 1 entries"),
        "headless": (folder / "headless.mp4", "FFmpeg: "),
        "sound": (make_sound(folder / "sound.mp4"), "holds only: audio"),
        "pipe": (folder / "pipe.mp4", "device or pipe"),
        "null": ("a\0b", "no such file|expected a readable file"),
        "scheme": ("ftp://example.org/a.mp4", "starts with http"),
        "concat": (f"concat:{folder}/text.mp4", "no such file"),
    }


@pytest.mark.slow
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
        with pytest.raises(VideoError, match=r"not one frame|FFmpeg: "):
            attempt()


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
