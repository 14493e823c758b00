"""Addresses and cameras as sources."""

from __future__ import annotations

import io
import socket
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import PIL.Image
import pytest
from video_fixtures import (
    MPEGTS,
    VP9,
    Sender,
    code_of,
    make_video,
    painted,
)

from trecvit.errors import VideoError
from trecvit.video import container
from trecvit.video.decode import (
    open_video,
    probe,
    read_frames,
)


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
            with pytest.raises(VideoError, match="FFmpeg: "):
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
        with pytest.raises(VideoError, match=r"no data for 0\.3 s"):
            probe(f"http://user:hush@127.0.0.1:{server.getsockname()[1]}/live.webm")
        thread.join()
        connections[0].close()


def test_passwords_in_addresses_are_hidden() -> None:
    with pytest.raises(VideoError) as caught:
        probe("http://user:hush@127.0.0.1:9/a.mp4")
    assert "hush" not in str(caught.value)
    assert "http://user:***@127.0.0.1:9/a.mp4" in str(caught.value)


def test_a_sender_with_one_client_is_connected_to_once(tmp_path: Path) -> None:
    content = make_video(tmp_path / "sent", MPEGTS, num_frames=40).read_bytes()
    with Sender(content) as sender, open_video(f"tcp://{sender.address}") as video:
        assert video.is_stream
        assert video.info.average_fps == 25
        assert [code_of(frame.image) for frame in video.frames()] == list(range(40))
        assert sender.connections == 1


@pytest.mark.slow
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
        ("camera:77", r"expected a camera.*check that it is connected|expected Linux or macOS"),
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
