"""Live sources: cameras and streams that are read as they arrive, and opened again when they are lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trecvit.errors import InputError, VideoError
from trecvit.video.decode import Source, Video, open_video
from trecvit.video.frames import Frame, Image, VideoInfo, check_short_side

FIRST_DELAY_S, MAX_DELAY_S = 0.5, 10.0
"""Delays before the first and the later attempts to reconnect; each is twice the one before."""


@contextmanager
def open_live(
    source: Source,
    *,
    latest: bool | None = None,
    patience_s: float = 60.0,
    report: Callable[[str], None] = lambda text: None,
) -> Iterator[Video]:
    """Open any source: a camera or stream without a stated end as a `LiveVideo`, others as `open_video` does.

    Args:
        source: As for `open_video`.
        latest: Of `LiveVideo`; None is true for live sources. Others are read frame by frame.
        patience_s: Of `LiveVideo`.
        report: Of `LiveVideo`.

    Raises:
        VideoError: It cannot be opened.
        InputError: `latest` for a source that is not live.
    """
    connection = _Connection(source)
    video = connection.video
    try:
        if is_endless(video):
            video = LiveVideo(source, connection, latest=latest is not False, patience_s=patience_s, report=report)
        elif latest:
            raise InputError(f"{video.info.source}: expected a live source for the newest frame, got one with an end")
        yield video
    finally:
        video.close()
        if not isinstance(video, LiveVideo):
            connection.close()


class LiveVideo(Video):
    """A camera or stream without a stated end, read as it arrives.

    `frames` yields rising indices that count all frames received: a gap is the number of frames that were skipped
    because the reader of this video was slower than the source. Times are those of the source within a connection;
    after a lost connection they go on by the time that passed. It is read once.

    Args:
        source: Its address, or a camera.
        connection: The first connection to it.
        latest: Yield the newest frame and skip those before it; otherwise every frame, as late as it may be.
        patience_s: Time for which a lost source is tried again. Then `frames` ends, with the error that ended it.
        report: Called with a sentence when the source is lost, and when it is back.

    Attributes:
        skipped: Frames received and not yielded.
        reconnections: Times that the source was lost and came back.
    """

    is_stream = True

    def __init__(
        self,
        source: Source,
        connection: _Connection,
        *,
        latest: bool,
        patience_s: float,
        report: Callable[[str], None],
    ) -> None:
        self.skipped = self.reconnections = 0
        self._source, self._latest, self._patience_s, self._report = source, latest, patience_s, report
        self._connection = connection
        self._info = self._connection.video.info
        self._closed = threading.Event()
        self._is_read = False

    @property
    def info(self) -> VideoInfo:
        """Of the first connection."""
        return self._info

    def frames(
        self, *, start_frame: int = 0, start_s: float | None = None, short_side_px: int | None = None
    ) -> Generator[Frame, None, None]:
        """Read frames from now on.

        Raises:
            InputError: A later start, or a second pass.
            VideoError: The source was lost and did not come back.
        """
        if start_frame or start_s or self._is_read:
            raise InputError("a live source: expected one pass from its present, got another start or a second pass")
        check_short_side(short_side_px)
        self._is_read = True
        received = self._received(short_side_px)
        return self._newest(received) if self._latest else received

    def frames_at(
        self, indices: Sequence[int] | npt.NDArray[np.int64], *, short_side_px: int | None = None
    ) -> tuple[Image, npt.NDArray[np.float64]]:
        """Live sources have no frames by index."""
        raise InputError("a live source: expected frames in order, got a request for frames by index")

    def length_and_rate(self) -> tuple[int, float | None]:
        """Live sources have no length."""
        raise InputError("a live source: expected frames in order, got a request for its length")

    def close(self) -> None:
        """Close the connection; a thread that waits for the source ends with its time-out, or with the process."""
        self._closed.set()
        if not (self._latest and self._is_read):  # else the thread that reads closes it
            self._connection.close()

    def _received(self, short_side_px: int | None) -> Generator[Frame, None, None]:
        """Yield all frames of all connections."""
        index, offset_s, last_s = 0, 0.0, 0.0
        while True:
            lost_by: VideoError | None = None
            try:
                for frame in self._connection.video.frames(short_side_px=short_side_px):
                    last_s = offset_s + frame.time_s
                    yield Frame(frame.image, last_s, index)
                    index += 1
                    if self._closed.is_set():
                        return
            except VideoError as error:
                lost_by = error
            lost_s = time.monotonic()
            self._connection.close()
            if not self._reconnect(lost_by):
                if lost_by is not None and not self._closed.is_set():
                    raise lost_by
                return
            # A new connection counts from 0: its first frame is later than the last by the time that passed.
            offset_s = last_s + max(time.monotonic() - lost_s, 1e-3)

    def _reconnect(self, lost_by: VideoError | None) -> bool:
        """Open the source again; False if it did not come back in time."""
        lost_s, delay_s = time.monotonic(), FIRST_DELAY_S
        # The rest of an error's text is advice for files.
        reason = lost_by.reason.partition(";")[0] if lost_by is not None else "it ended"
        if self._patience_s <= 0:
            return False
        name, patience_s = self._info.source, self._patience_s
        self._report(f"{name}: lost ({reason}); trying again for {patience_s:g} s, the state is kept")
        while time.monotonic() + delay_s - lost_s <= self._patience_s:
            if self._closed.wait(delay_s):
                return False
            delay_s = min(2 * delay_s, MAX_DELAY_S)
            try:
                self._connection = _Connection(self._source)
            except VideoError:
                continue
            self.reconnections += 1
            self._report(f"{name}: back after {time.monotonic() - lost_s:.1f} s")
            return True
        return False

    def _newest(self, received: Generator[Frame, None, None]) -> Generator[Frame, None, None]:
        """Read in a thread; yield the newest frame whenever one is requested."""
        newest: list[Frame] = []
        ended: list[BaseException | None] = []
        changed = threading.Condition()

        def read() -> None:
            error: BaseException | None = None
            try:
                for frame in received:
                    with changed:
                        self.skipped += len(newest)
                        newest[:] = [frame]
                        changed.notify()
            except Exception as caught:
                error = caught
            finally:
                self._connection.close()
            with changed:
                ended.append(error)
                changed.notify()

        threading.Thread(target=read, name="live-source", daemon=True).start()
        while True:
            with changed:
                while not newest and not ended:
                    changed.wait(0.2)  # so that Ctrl-C is handled on every system
                if not newest:
                    break
                frame = newest.pop()
            yield frame
        if ended[0] is not None:
            raise ended[0]


class _Connection:
    """An open video that knows its first picture."""

    def __init__(self, source: Source) -> None:
        self._stack = ExitStack()
        self.video = self._stack.enter_context(open_video(source))
        try:
            _ = self.video.info  # a source without a picture is not there yet
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it; repeated calls have no effect."""
        self._stack.close()


def is_endless(video: Video) -> bool:
    """Return whether a video is a camera or stream without a stated length."""
    return video.is_stream and video.info.duration_s is None and video.info.stated_frames is None


def cameras(root: Path = Path("/sys/class/video4linux")) -> list[tuple[str, str]]:
    """List the cameras of a Linux machine: their sources, such as "camera:0", and names."""
    found = []
    for device in root.glob("video*"):
        number = device.name.removeprefix("video")
        index = device / "index"  # a camera's further devices carry its metadata
        if number.isdecimal() and (not index.exists() or index.read_text().strip() == "0"):
            name = device / "name"
            found.append((int(number), name.read_text(errors="replace").strip() if name.exists() else "unnamed"))
    return [(f"camera:{number}", name) for number, name in sorted(found)]
