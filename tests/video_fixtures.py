"""Small videos made on the spot. Frame `i` carries the number `i` in 16 black or white blocks, to be read back."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import av
import numpy as np
import pytest

from trecvit.errors import VideoError
from trecvit.video.container import Container
from trecvit.video.decode import read_frames
from trecvit.video.frames import Frame

WIDTH_PX, HEIGHT_PX = 128, 64
BLOCKS_PER_ROW = 8


class Codec(NamedTuple):
    suffix: str
    name: str
    pixel_format: str = "yuv420p"
    options: Mapping[str, str] = MappingProxyType({})


H264 = Codec(".mp4", "libx264", options={"preset": "veryfast", "g": "12", "bf": "0"})
H264_B = Codec(".mp4", "libx264", options={"preset": "veryfast", "g": "24", "bf": "3", "b-pyramid": "normal"})
H264_ONE_GOP = Codec(".mp4", "libx264", options={"preset": "veryfast", "g": "9999", "bf": "3"})
VP9 = Codec(".webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "g": "20"})
VP8 = Codec(".webm", "libvpx", options={"deadline": "realtime", "cpu-used": "8", "g": "20"})
MPEG4 = Codec(".avi", "mpeg4", options={"q": "4", "g": "10"})
MPEG4_B = Codec(".avi", "mpeg4", options={"q": "4", "g": "12", "bf": "2"})
FFV1 = Codec(".mkv", "ffv1", "bgr0", {"g": "1"})
MJPEG = Codec(".avi", "mjpeg", "yuvj420p")
HEVC = Codec(".mp4", "libx265", options={"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:bframes=3"})
MPEGTS = Codec(".ts", "libx264", options={"preset": "veryfast", "g": "24", "bf": "3"})
RAW_H264 = Codec(".h264", "libx264", options={"preset": "veryfast", "g": "24", "bf": "2"})
CODECS = {
    "h264": H264,
    "h264-b": H264_B,
    "h264-one-gop": H264_ONE_GOP,
    "h264-avi-b": H264_B._replace(suffix=".avi"),
    "h264-mkv": H264_B._replace(suffix=".mkv"),
    "h264-ts": MPEGTS,
    "h264-raw": RAW_H264,
    "hevc": HEVC,
    "vp9": VP9,
    "vp8": VP8,
    "mpeg4": MPEG4,
    "mpeg4-b": MPEG4_B,
    "ffv1": FFV1,
    "mjpeg": MJPEG,
}


def painted(code: int, width_px: int = WIDTH_PX, height_px: int = HEIGHT_PX) -> np.ndarray:
    """`[H, W, 3]` with the 16 bits of `code` in two rows of eight blocks."""
    image = np.zeros((height_px, width_px, 3), np.uint8)
    for bit in range(16):
        if code >> bit & 1:
            image[block(bit, width_px, height_px)] = 255
    return image


def block(bit: int, width_px: int, height_px: int) -> tuple[slice, slice]:
    row, column = divmod(bit, BLOCKS_PER_ROW)
    return (
        slice(row * height_px // 2, (row + 1) * height_px // 2),
        slice(column * width_px // BLOCKS_PER_ROW, (column + 1) * width_px // BLOCKS_PER_ROW),
    )


def code_of(image: np.ndarray) -> int:
    """The number that a painted frame carries."""
    height_px, width_px = image.shape[:2]
    return sum((image[block(bit, width_px, height_px)].mean() > 127) << bit for bit in range(16))


def make_video(
    path: Path,
    codec: Codec = H264,
    *,
    num_frames: int = 60,
    size_px: tuple[int, int] = (WIDTH_PX, HEIGHT_PX),
    fps: Fraction | int = 25,
    times_ms: Sequence[int] | None = None,
    sound_s: float = 0,
    container_options: dict[str, str] | None = None,
) -> Path:
    """A painted video at `path`, with the codec's suffix added. `times_ms` makes the frame rate vary."""
    path = path.with_name(path.name + codec.suffix)
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec.name, rate=fps, options=dict(codec.options))
        stream.width, stream.height = size_px
        stream.pix_fmt = codec.pixel_format
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = container.add_stream("aac" if codec.suffix == ".mp4" else "libopus", rate=48_000) if sound_s else None
        for index in range(num_frames):
            picture = av.VideoFrame.from_ndarray(painted(index, *size_px), format="rgb24")
            if times_ms is not None:
                picture.pts, picture.time_base = times_ms[index], Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
        if sound is not None:
            _add_silence(container, sound, sound_s)
    return path


def make_sound(path: Path) -> Path:
    """A file with sound and no picture."""
    with av.open(str(path), "w") as container:
        _add_silence(container, container.add_stream("aac", rate=48_000), 1.0)
    return path


def _add_silence(container: av.container.OutputContainer, stream: av.AudioStream, length_s: float) -> None:
    samples = 960
    for block_index in range(int(length_s * 48_000) // samples):
        silence = av.AudioFrame.from_ndarray(np.zeros((1, samples), np.float32), format="flt", layout="mono")
        silence.sample_rate, silence.pts = 48_000, block_index * samples
        container.mux(stream.encode(silence))
    container.mux(stream.encode())


def set_display(path: Path, clockwise_degrees: int, *, mirrored: bool = False) -> None:
    """Writes the display matrix of an mp4's track header, as telephones do: mirror left to right, then turn."""
    content = bytearray(path.read_bytes())
    header = content.index(b"tkhd") + 4
    start = header + (52 if content[header] else 40)
    # (x, y) of the stored picture is shown at (a x + c y, b x + d y), y down.
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[clockwise_degrees]
    if mirrored:
        a, b = -a, -b
    matrix = (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)


def show_only(path: Path, length_ms: int) -> None:
    """Shorten an mp4 by its edit list; the hidden frames stay in the file."""
    content = bytearray(path.read_bytes())
    entry = content.index(b"elst") + 12
    content[entry : entry + 4] = struct.pack(">I", length_ms)
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    """Keeps only the first `share` of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


class Sender:
    """Serves one answer per connection, and counts the connections."""

    def __init__(self, answer: bytes, *, chunks: int = 1, pause_s: float = 0.0, head: bytes = b"") -> None:
        self._answer, self._chunks, self._pause_s, self._head = answer, chunks, pause_s, head
        self.connections = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._server.accept()
                self.connections += 1
                with connection, suppress(OSError):
                    connection.sendall(self._head)
                    for _ in range(self._chunks):
                        connection.sendall(self._answer)
                        time.sleep(self._pause_s)


def calls_of(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    """The arguments of a method of Container, one entry per call from now on."""
    calls: list[object] = []
    original = getattr(Container, name)
    monkeypatch.setattr(Container, name, lambda self, argument: calls.append(argument) or original(self, argument))
    return calls


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")


def read_to_error(source: object, **options: object) -> tuple[list[Frame], VideoError | None]:
    frames = []
    try:
        for frame in read_frames(source, **options):
            frames.append(frame)
    except VideoError as error:
        return frames, error
    return frames, None
