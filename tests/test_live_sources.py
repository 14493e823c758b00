"""Live sources that are slower or faster than the model, stall, drop the connection and come back."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import PIL.Image
import pytest
from command_line import trecvit
from video_fixtures import MPEGTS, VP9, Sender, code_of, make_video, painted

from trecvit.errors import InputError, VideoError
from trecvit.runtime.follow import follow_live
from trecvit.runtime.stream import stream
from trecvit.video import container, live
from trecvit.video.decode import open_video
from trecvit.video.live import LiveVideo, cameras, open_live

_Update = TypeVar("_Update")
HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n"


def part(code: int) -> bytes:
    """One picture of a network camera."""
    file = io.BytesIO()
    PIL.Image.fromarray(painted(code)).save(file, "JPEG", quality=95)
    return b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n" % (file.tell(), file.getvalue())


class Camera:
    """A network camera whose connections each send some numbered pictures and then end, stall, or are refused.

    Args:
        script: For each connection: how many pictures, and what follows: "end", "stall" or "refuse". After the last,
            connections are refused.
        pause_s: Between pictures.
    """

    def __init__(self, script: list[tuple[int, str]], pause_s: float = 0.01) -> None:
        self._script, self._pause_s = script, pause_s
        self.connections = self.sent = 0
        self._over = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}/live"

    def __enter__(self) -> Camera:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                number, self.connections = self.connections, self.connections + 1
                script = self._script[number] if number < len(self._script) else (0, "refuse")
                threading.Thread(target=self._answer, args=(connection, *script), daemon=True).start()

    def _answer(self, connection: socket.socket, count: int, then: str) -> None:
        with connection, suppress(OSError):
            if not self._begin(connection, accepts=then != "refuse"):
                return
            for _ in range(count):
                connection.sendall(self._picture(self.sent))
                self.sent += 1
                time.sleep(self._pause_s)
            if then == "stall":
                self._over.wait(20)

    def _begin(self, connection: socket.socket, *, accepts: bool) -> bool:
        """Answer the request; return whether pictures follow."""
        connection.recv(1000)
        connection.sendall(HEAD if accepts else b"HTTP/1.0 503 Busy\r\nContent-Length: 0\r\n\r\n")
        return accepts

    def _picture(self, number: int) -> bytes:
        return part(number % 32)


class RtspCamera(Camera):
    """The same by RTSP (RFC 2326) over its TCP connection, with pictures as RFC 2435 has them."""

    def __init__(self, script: list[tuple[int, str]], pause_s: float = 0.01) -> None:
        super().__init__(script, pause_s)
        self.url = self.url.replace("http", "rtsp", 1)

    def _begin(self, connection: socket.socket, *, accepts: bool) -> bool:
        requests = connection.makefile("r", newline="\r\n", encoding="ascii")
        while line := requests.readline():
            method = line.split()[0]
            fields = {}
            while field := requests.readline().strip():
                name, _, value = field.partition(":")
                fields[name.lower()] = value.strip()
            status, extra, body = "200 OK", "", ""
            if not accepts:
                status = "503 Service Unavailable"
            elif method == "OPTIONS":
                extra = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n"
            elif method == "DESCRIBE":
                body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
                body += "m=video 0 RTP/AVP 26\r\na=control:track\r\n"
                extra = "Content-Type: application/sdp\r\n"
            elif method == "SETUP" and "TCP" not in fields["transport"]:
                status = "461 Unsupported Transport"  # FFmpeg requests UDP first
            elif method == "SETUP":
                extra = f"Transport: {fields['transport']}\r\nSession: 1\r\n"
            head = f"RTSP/1.0 {status}\r\nCSeq: {fields['cseq']}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
            connection.sendall((head + body).encode())
            if not accepts or method == "PLAY":
                return accepts
        return False

    def _picture(self, number: int) -> bytes:
        payload = rtp_jpeg(number % 32)
        packet = struct.pack(">BBHII", 0x80, 0x80 | 26, number % 2**16, number * 3600, 1) + payload
        return b"$\0" + len(packet).to_bytes(2) + packet


def rtp_jpeg(code: int) -> bytes:
    """A picture as the payload of RTP: the tables of quantisation and the scan of its JPEG (RFC 2435, section 3.1)."""
    file = io.BytesIO()
    image = painted(code)
    PIL.Image.fromarray(image).save(file, "JPEG", quality=95, subsampling="4:2:0")
    content, at, tables, marker = file.getvalue(), 2, b"", 0
    while marker != 0xFFDA:
        marker, length = struct.unpack_from(">HH", content, at)
        if marker == 0xFFDB:  # tables of 64 values, each after its number
            tables += b"".join(content[start + 1 : start + 65] for start in range(at + 4, at + 2 + length, 65))
        at += 2 + length
    height, width = image.shape[:2]
    main = bytes([0, 0, 0, 0, 1, 255, width // 8, height // 8])
    return main + struct.pack(">BBH", 0, 0, len(tables)) + tables + content[at:-2]


CAMERAS = pytest.mark.parametrize("kind", [Camera, RtspCamera])


def drained(updates: Iterator[_Update]) -> list[_Update]:
    """All that a source gives before it is lost for good, which FFmpeg calls an end or an error."""
    got: list[_Update] = []
    with suppress(VideoError):
        got.extend(updates)
    return got


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "FIRST_DELAY_S", 0.05)
    monkeypatch.setattr(live, "MAX_DELAY_S", 0.1)


@CAMERAS
def test_a_lost_camera_comes_back_and_no_frame_is_counted_twice(kind: type[Camera]) -> None:
    said: list[str] = []
    with (
        kind([(20, "end"), (0, "refuse"), (15, "end")]) as camera,
        open_live(camera.url, latest=False, patience_s=1.5, report=said.append) as video,
    ):
        assert isinstance(video, LiveVideo)
        assert video.info.width_px == painted(0).shape[1]
        frames = drained(video.frames())
    assert [frame.index for frame in frames] == list(range(35))
    assert [code_of(frame.image) for frame in frames] == [number % 32 for number in range(35)]
    times_s = [frame.time_s for frame in frames]
    assert times_s == sorted(set(times_s)), "times rise over the gap"
    assert video.reconnections == 1
    assert "lost (it " in said[0]
    assert "; trying again for 1.5 s, the state is kept" in said[0]
    assert "back after" in said[1]
    assert "lost" in said[2]


@CAMERAS
def test_a_stalled_camera_is_opened_again(monkeypatch: pytest.MonkeyPatch, kind: type[Camera]) -> None:
    monkeypatch.setattr(container, "NETWORK_TIMEOUT_S", 0.5)
    with (
        kind([(20, "stall"), (20, "end")]) as camera,
        open_live(camera.url, latest=False, patience_s=1.0) as video,
    ):
        frames = drained(video.frames())
    assert [code_of(frame.image) for frame in frames] == [number % 32 for number in range(40)]


def test_a_camera_that_does_not_come_back_ends_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "NETWORK_TIMEOUT_S", 0.4)
    with Camera([(20, "stall")]) as camera, open_live(camera.url, latest=True, patience_s=0.5) as video:
        with pytest.raises(VideoError, match=r"no data for 0\.4 s"):
            list(video.frames())
        with pytest.raises(InputError, match="second pass"):
            video.frames()


def test_the_newest_frame_is_read_and_what_is_skipped_is_counted() -> None:
    with Camera([(60, "end")]) as camera, open_live(camera.url, patience_s=0) as video:
        assert isinstance(video, LiveVideo)
        slowly = ((frame, time.sleep(0.1))[0] for frame in video.frames())
        frames = drained(slowly)
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert indices[-1] == 59, "the last frame is the newest"
    assert video.skipped == 60 - len(frames) > 20
    assert all(code_of(frame.image) == frame.index % 32 for frame in frames)


@CAMERAS
def test_the_state_is_kept_over_a_lost_connection(kind: type[Camera]) -> None:
    from models import tiny_model, tiny_tracker

    with (
        kind([(18, "end"), (12, "end")]) as camera,
        open_live(camera.url, latest=False, patience_s=1.0) as video,
    ):
        updates = drained(stream(tiny_model(), video, stride=3))
    assert [update.frames_seen for update in updates] == [index // 3 + 1 for index in range(30)]
    queries = np.array([[0, 5, 7], [20, 9, 30]], np.float32)
    with kind([(18, "end"), (12, "end")]) as camera, open_live(camera.url, latest=False, patience_s=1.0) as video:
        tracked = drained(follow_live(tiny_tracker(), video, queries))
    assert [len(update.ids) for update in tracked] == [1] * 20 + [2] * 10


def test_skipped_frames_keep_the_stride_and_the_points() -> None:
    class Skipping(LiveVideo):
        def frames(self, **_: object):  # type: ignore[override, no-untyped-def]
            with open_video(np.stack([painted(number % 32) for number in range(30)])) as video:
                yield from (frame for frame in video.frames() if frame.index not in (3, 4, 10, 11, 12))

    from models import tiny_model, tiny_tracker

    video = object.__new__(Skipping)
    updates = list(stream(tiny_model(), video, stride=3))
    assert [update.index for update in updates if update.is_new] == [0, 5, 6, 9, 13, 15, 18, 21, 24, 27]
    tracked = list(follow_live(tiny_tracker(), video, np.array([[0, 5, 7], [11, 9, 30]], np.float32)))
    assert {update.index: len(update.ids) for update in tracked}[9] == 1
    assert {update.index: len(update.ids) for update in tracked}[13] == 2


def test_a_video_with_an_end_is_read_as_before(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a", VP9, num_frames=12)
    with open_live(str(path)) as video:
        assert not isinstance(video, LiveVideo)
        assert len(list(video.frames())) == 12
    with pytest.raises(InputError, match="live source"), open_live(str(path), latest=True):
        pass
    done = trecvit("stream", path, "--latest")
    assert done.returncode == 1
    assert "expected a live source" in done.stderr
    done = trecvit("track", path, "--latest", "--json", "-m", "points")
    assert "--live too" in done.stderr


def test_a_sender_of_one_client_is_connected_to_once(tmp_path: Path) -> None:
    content = make_video(tmp_path / "sent", MPEGTS, num_frames=40).read_bytes()
    with Sender(content) as sender, open_live(f"tcp://{sender.address}", latest=False, patience_s=0) as video:
        assert [code_of(frame.image) for frame in video.frames()] == list(range(40))
        assert sender.connections == 1


def test_cameras_are_listed_by_their_numbers(tmp_path: Path) -> None:
    for number, index, name in ((10, 0, "USB camera"), (2, 0, "Built-in"), (3, 1, "Built-in: metadata")):
        device = tmp_path / f"video{number}"
        device.mkdir()
        (device / "index").write_text(f"{index}\n")
        (device / "name").write_text(f"{name}\n")
    assert cameras(tmp_path) == [("camera:2", "Built-in"), ("camera:10", "USB camera")]
    assert cameras(tmp_path / "none") == []


def lines(process: subprocess.Popen[str]) -> Iterator[dict[str, object]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["stream"], ["track", "--live", "-m", "points", "--points", "5,5"]])
def test_ctrl_c_leaves_whole_files_of_a_camera_that_was_lost(tmp_path: Path, command: list[str]) -> None:
    saved = tmp_path / "out.mp4"
    with Camera([(30, "end"), (2000, "end")], pause_s=0.03) as camera:
        words = [sys.executable, "-m", "trecvit", *command, camera.url, "--save", str(saved), "--json"]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
        indices = [int(str(line["frame"])) for line in islice(lines(process), 12)]
        while indices[-1] < 40:
            indices.append(int(str(next(lines(process))["frame"])))
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "lost (it " in stderr
    assert "back after" in stderr
    assert f"wrote {saved}" in stderr
    assert indices == sorted(set(indices))
    with open_video(saved) as video:
        assert len(list(video.frames())) >= len(indices)
