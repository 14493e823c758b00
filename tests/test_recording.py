"""Loops that a signal or an error ends: every output is whole, wherever in the loop the signal comes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from video_fixtures import code_of, painted

from trecvit.cli.recording import Recording, video_writer
from trecvit.errors import Interrupted, Terminated, VideoError
from trecvit.runtime.follow import TracksWriter, TrackUpdate, tracks_writer
from trecvit.runtime.live import LivePoints
from trecvit.video.decode import read_frames
from trecvit.video.encode import VideoWriter

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Update(NamedTuple):
    index: int  # type: ignore[assignment]
    image: np.ndarray


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Python's own, whatever the tests' own process was begun with, and afterwards those of before."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


def updates(stop_at: int | None = None, number: int = 0, num_frames: int = 50) -> Iterator[Update]:
    """Frames; before one of them a signal comes, as while a camera is waited for."""
    for index in range(num_frames):
        if index == stop_at:
            send(number)
        yield Update(index, painted(index))


def record(
    path: Path, output: AbstractContextManager[Any], source: Iterator[Update], write: Callable[[Any, Update], None]
) -> None:
    """As the commands do it."""
    with Recording() as recording:
        with output as writer, recording.kept():
            for update in recording.until_stopped(source):
                write(writer, update)
        recording.report(path)


def write_image(writer: VideoWriter, update: Update) -> None:
    writer.write(update.image)


@pytest.mark.slow
@pytest.mark.parametrize("sent", SIGNALS)
@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
@pytest.mark.parametrize("when", ["waiting", "waiting, swallowed", "waiting, converted", "writing", "finishing"])
def test_a_signal_leaves_a_whole_file(tmp_path: Path, monkeypatch, capsys, sent: int, suffix: str, when: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_text("what was there before")
    mux = VideoWriter._mux

    def muxed(self: VideoWriter, picture: object) -> None:
        if picture is None and when == "finishing":
            send(sent, times=3)
        if picture is not None and picture.pts > 0 and when == "writing" and self._frames_written == 30:
            send(sent, times=2)
        mux(self, picture)

    def interrupted_inside() -> Iterator[Update]:
        for update in updates():
            if update.index == 31:
                try:
                    send(sent)
                except KeyboardInterrupt as stop:  # as destructors and FFmpeg do
                    if "converted" in when:
                        raise VideoError("camera", "FFmpeg: Immediate exit requested") from stop
            yield update

    monkeypatch.setattr(VideoWriter, "_mux", muxed)
    source = interrupted_inside() if "," in when else updates(31 if when == "waiting" else None, sent)
    with pytest.raises(Interrupted) as caught:
        record(path, VideoWriter(path, 25), source, write_image)
    num_frames = {"waiting, swallowed": 32, "finishing": 50}.get(when, 31)
    assert caught.value.signal_number == sent
    assert [code_of(frame.image) for frame in read_frames(path)] == list(range(num_frames))
    assert os.listdir(tmp_path) == [path.name]
    assert capsys.readouterr().err == f"wrote {path} (stopped at frame {num_frames - 1})\n"
    assert all(signal.getsignal(number) == signal.default_int_handler for number in SIGNALS)


@pytest.mark.parametrize("suffix", [".mp4", ".csv", ".npz"])
def test_a_signal_before_the_first_frame_writes_nothing(tmp_path: Path, capsys, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_text("what was there before")
    queries = np.zeros((1, 3), np.float32)
    output = VideoWriter(path, 25) if suffix == ".mp4" else tracks_writer(path, queries)
    with pytest.raises(Interrupted):
        record(path, output, updates(0, signal.SIGINT), lambda *_: pytest.fail("there is no frame"))
    assert (os.listdir(tmp_path), path.read_text()) == ([path.name], "what was there before")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [None, OSError("FFmpeg: Immediate exit requested")])
def test_a_source_that_is_being_opened_is_interrupted_too(error: OSError | None) -> None:
    def opened() -> None:
        with Recording():
            try:
                send(signal.SIGTERM)
            except KeyboardInterrupt as stop:
                raise (VideoError("camera", str(error)) if error else stop) from error

    with pytest.raises(Interrupted) as caught:
        opened()
    assert caught.value.signal_number == signal.SIGTERM


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_tracks_are_kept_too(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    places = LivePoints(np.ones((1, 2), np.float32), np.ones(1, bool), np.ones(1, np.float32))

    def write(file: TracksWriter, update: Update) -> None:
        file.write(TrackUpdate(update.index, update.index / 25, update.image, (0,), places))

    with pytest.raises(Interrupted):
        record(path, tracks_writer(path, np.zeros((1, 3), np.float32)), updates(7, signal.SIGTERM), write)
    if suffix == ".csv":
        assert len(path.read_text().splitlines()) == 1 + 7
    else:
        with np.load(path) as arrays:
            assert arrays["points_xy"].shape == (1, 7, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt, Interrupted),
        (Terminated, Interrupted),
        (BrokenPipeError, BrokenPipeError),
        (VideoError("camera", "is gone"), VideoError),
        (RuntimeError("a bug"), RuntimeError),
    ],
)
@pytest.mark.parametrize("where", ["source", "loop"])
def test_an_error_keeps_what_there_was(tmp_path: Path, error, raised: type[Exception], where: str) -> None:
    def source() -> Iterator[Update]:
        yield from updates(num_frames=5)
        if where == "source":
            raise error
        yield Update(5, painted(5))

    def write(writer: VideoWriter, update: Update) -> None:
        if update.index == 5:
            raise error
        writer.write(update.image)

    path = tmp_path / "out.mp4"
    with pytest.raises(raised):
        record(path, VideoWriter(path, 25), source(), write)
    assert [code_of(frame.image) for frame in read_frames(path)] == list(range(5))


@pytest.mark.parametrize("fps", [None, Fraction(1, 3600), Fraction(60_000), Fraction(10**9)])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_a_source_may_state_any_rate_or_none(tmp_path: Path, suffix: str, fps: Fraction | None) -> None:
    with video_writer(tmp_path / f"out{suffix}", fps) as writer:
        for update in updates(num_frames=5):
            writer.write(update.image, update.index / 10)
    frames = list(read_frames(tmp_path / f"out{suffix}"))
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_signals_that_were_ignored_stay_ignored(tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with Recording() as recording, recording.kept():
        assert sum(1 for _ in recording.until_stopped(updates(20, signal.SIGHUP))) == 50
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
