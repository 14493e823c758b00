"""Turns a source into frames: a video file, a folder of images, an array, or the address of a stream.

Every frame of the source is given once, in presentation order, as RGB uint8, upright, with the time the file gives it.
Nothing is skipped in silence: a damaged file gives all that can be decoded, and then a `VideoError`. (What FFmpeg does
not notice itself, such as wrong pixels in a codec without check sums, cannot be known.)

Which picture is "frame `i`" is decided by counting. In a sound file it does not matter how one gets there: seeking is
used only where the file's own time stamps prove the place of every frame, else everything before it is decoded. In a
damaged file the two can differ: a reader that came from the start has not counted the frames that could not be decoded,
one that came by a seek has.

Display matrices that turn by 90° or mirror are applied; pixels are taken as square, whatever their stated aspect.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BufferedIOBase, BytesIO
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeAlias, overload

import av
import av.container
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideData
from av.video.reformatter import Interpolation, VideoReformatter

from trecvit.errors import InputError, VideoError
from trecvit.video.frames import (
    MAX_PIXELS,
    Frame,
    Image,
    Start,
    VideoInfo,
    check_short_side,
    check_size,
    checked_fps,
    index_not_in,
    scaled_size,
)
from trecvit.video.stills import Folder, Stills, open_array, open_npy

__all__ = [
    "UNTIMED_FPS",
    "FilePart",
    "Frame",
    "Source",
    "VideoInfo",
    "length_and_rate",
    "probe",
    "read_frames",
    "read_frames_at",
]


@dataclass(frozen=True, slots=True)
class FilePart:
    """A video that is a part of another file, as a member of a tar is.

    Attributes:
        path: The file.
        start_bytes: Where the part begins in it.
        num_bytes: How long it is.
        name: Its own name, for messages.
    """

    path: Path
    start_bytes: int
    num_bytes: int
    name: str

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"

    def read(self) -> bytes:
        """All of it."""
        with self.path.open("rb") as file:
            file.seek(self.start_bytes)
            return file.read(self.num_bytes)


Source: TypeAlias = str | Path | FilePart | npt.NDArray[np.uint8]

# Frame rate of sources that state no times: folders, arrays and bare streams. FFmpeg assumes the same.
UNTIMED_FPS = Fraction(25)

# How long an address may keep us waiting, to connect and then for each packet.
_NETWORK_TIMEOUT_S = 10.0
_SCHEMES = ("http", "https", "rtsp", "tcp", "udp")
# A playlist that comes over the network may name more addresses, but never files of this machine.
_NETWORK_PROTOCOLS = "http,https,httpproxy,tls,tcp,udp,rtp,srtp,rtsp,crypto,data"

# The fast default of swscale makes white 253 and takes each colour sample from its left neighbour.
_SWSCALE = (
    Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)

# Containers that hold an index and say how much they hold. Elsewhere (MPEG-TS …) FFmpeg guesses from the bit rate.
_INDEXED_CONTAINERS = frozenset({"mov", "matroska", "avi"})
# Codecs that keep one shown frame in each packet. VP8, for one, has packets that show nothing.
_ONE_FRAME_A_PACKET = frozenset({"h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "ffv1", "prores", "dnxhd", "png"})

# A video counts as cut short if it ends by more than this before its stated length: frames where the container states
# their number too, else seconds.
_SHORT_BY_FRAMES = 1.5
_SHORT_BY_S = 1.0
_TIMEOUTS = (av.error.ExitError, av.error.TimeoutError)
# A container that cannot be read on tends to say so for ever.
_MAX_READ_ERRORS = 16


def probe(source: Source, *, untimed_fps: float | Fraction = UNTIMED_FPS) -> VideoInfo:
    """Opens a source, decodes its first frame and tells what it is.

    Args:
        source: As for `read_frames`.
        untimed_fps: Frame rate of sources that state no times.

    Raises:
        VideoError: If there is no video, or not one frame of it can be decoded.
        InputError: If an array is not uint8 `[T, H, W, 3]`.
    """
    fps = checked_fps("untimed_fps", untimed_fps)
    stills = _open_stills(source, fps)
    if stills is not None:
        return stills.info()
    with _open_video(source, fps) as video:
        return video.info(video.first(video.decoded()))


def read_frames(
    source: Source,
    *,
    start_frame: int = 0,
    start_s: float | None = None,
    short_side_px: int | None = None,
    untimed_fps: float | Fraction = UNTIMED_FPS,
) -> Generator[Frame, None, None]:
    """Gives the frames of a source one by one, holding one at a time however long it is.

    Only a start after the beginning takes more: the time stamps before it, 8 bytes a frame.

    Args:
        source: Path of a video file or `.npy` file; folder of images (`.png .jpg .jpeg .bmp .webp`, in natural
            order); array uint8 `[T, H, W, 3]`; `FilePart`; or address of a stream (`http https rtsp tcp udp`).
        start_frame: Index of the first frame to give.
        start_s: Instead of `start_frame`: the first frame given is the first with `time_s >= start_s`. Its `index` is
            its place in the whole video.
        short_side_px: Resize so that the short side has this many pixels. None keeps the size.
        untimed_fps: Frame rate of sources that state no times.

    Yields:
        Frames with `index` counting up from the start and `time_s` rising, 0 at the video's first frame. A frame
        without a time stamp, or with one that does not advance, comes one average frame step after the one before.

    Raises:
        InputError: At once, for impossible arguments.
        VideoError: Before the first frame, if the source cannot be opened, holds no video, or ends before the start;
            after the last frame, if parts were damaged or the file is cut short: all frames that could be decoded
            have then been given, and `frames_read` counts them; in between, if a stream breaks off or the picture
            size changes.
    """
    start = Start(start_frame, start_s)
    start.check()
    check_short_side(short_side_px)
    fps = checked_fps("untimed_fps", untimed_fps)
    stills = _open_stills(source, fps)
    if stills is None:
        return _read_video(source, start, short_side_px, fps)
    first = start_frame if start_s is None else stills.index_at(start_s)
    if first >= len(stills):
        raise start.not_in(stills.source, len(stills))
    return stills.frames(first, short_side_px)


def read_frames_at(
    source: Source,
    indices: Sequence[int] | npt.NDArray[np.int64],
    *,
    short_side_px: int | None = None,
    untimed_fps: float | Fraction = UNTIMED_FPS,
) -> tuple[Image, npt.NDArray[np.float64]]:
    """Reads exactly the frames with these indices, in one pass forward that stops after the last.

    Args:
        source: As for `read_frames`.
        indices: `[T]`, in any order, repeats allowed.
        short_side_px: As for `read_frames`.
        untimed_fps: As for `read_frames`.

    Returns:
        The frames `[T, H, W, 3]` uint8 and their times `[T]` in seconds, in the order asked for.

    Raises:
        InputError: If `indices` is empty or holds anything but whole numbers from 0 on.
        VideoError: If an index is not in the video, or damage on the way makes it uncertain which frame it is.
    """
    wanted = np.asarray(indices)
    if wanted.ndim != 1 or len(wanted) == 0 or wanted.dtype.kind not in "iu" or wanted.min() < 0:
        raise InputError(f"indices: expected a list of one or more whole frame numbers from 0 on, got {indices!r}")
    check_short_side(short_side_px)
    fps = checked_fps("untimed_fps", untimed_fps)
    needed = sorted({int(index) for index in wanted})
    stills = _open_stills(source, fps)
    found = _pick_stills(stills, needed, short_side_px) if stills else _pick(source, needed, short_side_px, fps)
    frames = [found[int(index)] for index in wanted]
    return np.stack([frame.image for frame in frames]), np.array([frame.time_s for frame in frames])


def length_and_rate(source: Source) -> tuple[int, float | None]:
    """How many frames `read_frames` gives, and how many a second if that is known.

    Nothing is decoded where the file's time stamps prove the number. What a container states may be more: a file cut by
    an edit list holds frames that are not shown.

    Raises:
        VideoError: If the source cannot be opened, is cut short, or has to be decoded and is damaged.
    """
    stills = _open_stills(source, UNTIMED_FPS)
    if stills is not None:
        return len(stills), _rate(stills.fps)
    with _open_video(source, UNTIMED_FPS) as video:
        rate = _rate(video.average_fps)
        order = None if _scheme(source) else _presentation_order(video, lambda pts: False)
        if order is not None and not video.missing(len(order.pts), int(order.pts[-1])):
            return len(order.pts), rate
    return sum(1 for _ in read_frames(source, short_side_px=16)), rate


def _rate(fps: Fraction | None) -> float | None:
    return float(fps) if fps else None


def _scheme(source: Source) -> str:
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", source) if isinstance(source, str) else None
    return match[1].lower() if match else ""


def _open_stills(source: Source, fps: Fraction) -> Stills | None:
    if isinstance(source, np.ndarray):
        return open_array(source, fps)
    if isinstance(source, FilePart):
        return None
    if not isinstance(source, str | Path):
        raise InputError(f"source: expected a path, an address or an array, got {type(source).__name__}")
    if _scheme(source):
        return None
    path = Path(source)
    if path.is_dir():
        return Folder(path, fps)
    return open_npy(path, fps) if path.suffix.lower() == ".npy" and path.is_file() else None


@contextmanager
def _open_video(source: Source, fps: Fraction) -> Iterator[_Video]:
    """Opens a file or address, and closes it whatever happens."""
    label = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", str(source))
    with ExitStack() as stack:
        try:
            if isinstance(source, FilePart):
                container = _open_bytes(BytesIO(source.read()))
            elif _scheme(source):
                container = _open_address(str(source), label)
            else:
                container = _open_file(Path(str(source)), stack)
        except (av.FFmpegError, OSError) as exc:
            raise VideoError(
                label,
                f"expected a video that FFmpeg can read, but {_words(exc)}; "
                "check that it is whole and is a video, or re-encode it",
            ) from exc
        stack.enter_context(container)
        yield _Video(container, label, fps)


def _open_address(source: str, label: str) -> av.container.InputContainer:
    if _scheme(source) not in _SCHEMES:
        raise VideoError(label, f"expected an address that starts with {', '.join(_SCHEMES)}, or a path")
    return av.open(
        source,
        "r",
        timeout=_NETWORK_TIMEOUT_S,
        container_options={"protocol_whitelist": _NETWORK_PROTOCOLS},
        metadata_errors="replace",
    )


def _open_file(path: Path, stack: ExitStack) -> av.container.InputContainer:
    try:
        if not path.exists():
            raise VideoError(str(path), "there is no such file or folder; check the path")
        if not path.is_file():
            raise VideoError(str(path), "expected a file, a folder of images or an address, got a device or pipe")
        if path.stat().st_size == 0:
            raise VideoError(str(path), "the file is empty (0 bytes); it was probably never written to the end")
        opened = stack.enter_context(path.open("rb"))
    except (OSError, ValueError) as exc:  # ValueError: a path with a null character
        raise VideoError(str(path), f"the file could not be opened: {exc}") from exc
    return _open_bytes(opened)


def _open_bytes(opened: BufferedIOBase) -> av.container.InputContainer:
    # A "video" may be a playlist in disguise, naming addresses or other files of this machine. FFmpeg is handed the
    # opened file and allowed no protocol at all, so it can reach nothing but this one file.
    return av.open(opened, "r", container_options={"protocol_whitelist": "none"}, metadata_errors="replace")


class _Video:
    """An opened video: packets to pictures, pictures to frames, and what went wrong on the way."""

    def __init__(self, container: av.container.InputContainer, label: str, fps: Fraction) -> None:
        self.label = label
        self._container = container
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
            raise VideoError(label, f"expected a video, but the file holds only: {kinds}")
        self._stream = container.streams.video[0]
        if self._stream.codec_context is None:
            raise VideoError(label, "the video is in a codec that this FFmpeg does not have; re-encode it")
        codec = self._stream.codec_context
        # Size 0 is said by some streams until the first frame; frames are checked again when they come.
        check_size(label, codec.width or 1, codec.height or 1)
        # Kept against headers that claim another size in the middle of the video.
        codec.options = {"max_pixels": str(MAX_PIXELS)}
        formats = set(container.format.name.split(","))
        self.indexed = bool(formats & _INDEXED_CONTAINERS) and codec.name in _ONE_FRAME_A_PACKET
        self._states_its_length = bool(formats & _INDEXED_CONTAINERS)
        # AVI stores no presentation times. With B-frames, what FFmpeg makes of it is out of order.
        self.timed = not (container.format.name == "avi" and codec.has_b_frames)
        # Present in every stream that a demuxer has opened.
        self.time_base = self._stream.time_base or Fraction(1)
        rate = self._stream.average_rate
        self.average_fps = rate if rate and rate > 0 else None
        self.step = 1 / (self.average_fps or fps)
        self.damaged_packets = 0
        self._first_damage = ""
        self._size_px: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()

    def info(self, picture: av.VideoFrame) -> VideoInfo:
        degrees, _ = _orientation(picture)
        width_px, height_px = (picture.height, picture.width) if degrees % 180 else (picture.width, picture.height)
        return VideoInfo(
            source=self.label,
            width_px=width_px,
            height_px=height_px,
            average_fps=self.average_fps,
            duration_s=self._stated_duration_s(),
            stated_frames=self._stream.frames or None,
            codec=self._stream.codec_context.name,
            rotation_degrees=degrees,
        )

    def packets(self) -> Iterator[av.Packet[av.VideoStream]]:
        """All packets with data, going on past places that the container cannot read."""
        errors = 0
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    # FFmpeg would take a packet without data for the end of the video.
                    if packet.size:
                        errors = 0
                        yield packet
                return
            except _TIMEOUTS as exc:
                raise VideoError(self.label, f"the stream broke off: {_words(exc)}; is its source up?") from exc
            except (av.FFmpegError, OSError) as exc:
                self._note_damage(_words(exc))
                errors += 1
                if errors == _MAX_READ_ERRORS:
                    return

    def decoded(self) -> Iterator[av.VideoFrame]:
        """All pictures that can be decoded, in presentation order."""
        for packet in self.packets():
            damaged_before = self.damaged_packets
            yield from self._decode(packet)
            if packet.is_corrupt and self.damaged_packets == damaged_before:
                self._note_damage("the packet is not whole")
        yield from self._decode(None)

    def first(self, pictures: Iterator[av.VideoFrame]) -> av.VideoFrame:
        """The first picture.

        Raises:
            VideoError: If there is none.
        """
        for picture in pictures:
            return picture
        words = self._first_damage or "it holds no packets"
        raise VideoError(self.label, f"expected a video, but not one frame could be decoded; {words}")

    def seek(self, pts: int) -> None:
        """Goes to a key frame at or before `pts`, or near it: the caller must look where it landed."""
        self._container.seek(pts, stream=self._stream)

    @overload
    def seconds(self, ticks: int) -> float: ...

    @overload
    def seconds(self, ticks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]: ...

    def seconds(self, ticks: int | npt.NDArray[np.int64]) -> float | npt.NDArray[np.float64]:
        """Differences of time stamps in seconds, rounded once, so that a time is the same however it was found."""
        return ticks * self.time_base.numerator / self.time_base.denominator

    def to_rgb(self, picture: av.VideoFrame, short_side_px: int | None) -> Image:
        """`[H, W, 3]` uint8, upright, resized."""
        size_px = picture.width, picture.height
        if self._size_px is None:
            check_size(self.label, *size_px)
            self._size_px = size_px
        if size_px != self._size_px:
            raise VideoError(
                self.label,
                f"the picture size changes from {self._size_px[0]} x {self._size_px[1]} to {size_px[0]} x "
                f"{size_px[1]} in the middle of the video; re-encode it to one size",
            )
        width_px, height_px = size_px
        if short_side_px is not None:
            height_px, width_px = scaled_size(height_px, width_px, short_side_px)
            check_size(self.label, width_px, height_px)
        try:
            # The picture's own colour matrix and range are honoured; FFmpeg takes BT.601 where none is stated.
            rgb = self._reformatter.reformat(picture, width_px, height_px, "rgb24", interpolation=_SWSCALE)
            image = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
        except (av.FFmpegError, ValueError) as exc:
            raise VideoError(self.label, f"pictures in {picture.format.name} could not become RGB: {exc}") from exc
        degrees, mirrored = _orientation(picture)
        return np.ascontiguousarray(np.rot90(np.fliplr(image) if mirrored else image, degrees // 90))

    def damage(self) -> str:
        """What went wrong so far, in words; empty if nothing did."""
        return (
            f"{self.damaged_packets} of its packets were damaged ({self._first_damage})" if self.damaged_packets else ""
        )

    def missing(self, num_frames: int, last_pts: int | None) -> str:
        """What the video states and does not hold, in words; empty if it is whole or cannot be known."""
        stated_s = self._stated_duration_s()
        if not self._states_its_length or stated_s is None or last_pts is None:
            return ""
        end_s = self.seconds(last_pts) + float(self.step)
        # The count alone proves nothing: an edit list may hide frames that are there, so the end must be missing too.
        if num_frames < self._stream.frames and end_s < stated_s - _SHORT_BY_FRAMES * float(self.step):
            return f"the file is truncated: it states {self._stream.frames} frames and holds {num_frames}"
        if not self._stream.frames and end_s < stated_s - _SHORT_BY_S:
            return f"the file is truncated: it states {stated_s:.2f} s and ends at {end_s:.2f} s"
        return ""

    def _stated_duration_s(self) -> float | None:
        stream, container = self._stream, self._container
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        # Matroska writers put each stream's length among its tags.
        match = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
        if match:
            return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
        # The length of the whole file may be that of a longer sound track.
        if container.duration and len(container.streams) == 1:
            return container.duration / 1_000_000
        return None

    def _decode(self, packet: av.Packet[av.VideoStream] | None) -> Iterator[av.VideoFrame]:
        # At the end (None), an error about one picture must not cost those that wait behind it.
        for _ in range(_MAX_READ_ERRORS if packet is None else 1):
            try:
                yield from self._stream.codec_context.decode(packet)
                return
            except av.error.EOFError:
                return
            except (av.FFmpegError, ValueError) as exc:
                self._note_damage(_words(exc))

    def _note_damage(self, words: str) -> None:
        self.damaged_packets += 1
        self._first_damage = self._first_damage or words


def _words(exc: Exception) -> str:
    if isinstance(exc, _TIMEOUTS):
        return f"no data came for {_NETWORK_TIMEOUT_S:g} s"
    # Not str(exc): it repeats the address, which may hold a password.
    return f"FFmpeg says: {exc.strerror}" if isinstance(exc, av.FFmpegError) else str(exc)


def _orientation(picture: av.VideoFrame) -> tuple[int, bool]:
    """How the display matrix wants a picture shown: mirrored left to right or not, then turned counter-clockwise.

    Returns:
        Degrees, 0, 90, 180 or 270, and whether to mirror first. Turns that are not by 90° are not applied.
    """
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return 0, False
    # The stored point (x, y) is shown at (a x + c y, b x + d y), y down.
    a, b, _, c, d = np.frombuffer(bytes(matrix), dtype=np.int32)[:5].tolist()
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    degrees = round(-math.degrees(math.atan2(b, a)))
    return (degrees % 360, mirrored) if degrees % 90 == 0 else (0, False)


class _Clock:
    """Gives each picture its time, in a row that always rises.

    Args:
        video: The video that the pictures are from.
        origin_pts: Time stamp of the video's first frame; None if the next picture is that.
    """

    def __init__(self, video: _Video, origin_pts: int | None = None) -> None:
        self._video = video
        self._origin_pts = origin_pts
        # Exact, since many small steps in floats drift.
        self._last: Fraction | None = None

    def time_s(self, picture: av.VideoFrame) -> float:
        pts = picture.pts if self._video.timed else None
        if self._origin_pts is None:
            self._origin_pts = pts
        stamp = None if pts is None or self._origin_pts is None else (pts - self._origin_pts) * self._video.time_base
        if self._last is None:
            self._last = stamp or Fraction(0)
        elif stamp is not None and stamp > self._last:
            self._last = stamp
        else:
            self._last += self._video.step
        return float(self._last)


class _Order(NamedTuple):
    """Time stamps of the frames from the first on, in presentation order.

    Attributes:
        pts: `[N]`, strictly rising.
        key_pts: Those of the key frames.
    """

    pts: npt.NDArray[np.int64]
    key_pts: npt.NDArray[np.int64]


def _presentation_order(video: _Video, enough: Callable[[npt.NDArray[np.int64]], bool]) -> _Order | None:
    """Learns from the packets, without decoding any, where every frame is.

    Args:
        video: Freshly opened; it is at an unknown place afterwards.
        enough: Told the time stamps of the frames so far, says whether more are needed.

    Returns:
        None where the file does not prove it: no time stamps, doubled ones, an unreadable place, or a container or
        codec in which packets are not frames.
    """
    if not (video.indexed and video.timed):
        return None
    pts, keys, last_dts = array("q"), array("q"), None
    for packet in video.packets():
        if packet.pts is None or packet.dts is None or packet.is_corrupt or packet.pts < packet.dts:
            return None
        if last_dts is not None and packet.dts <= last_dts:
            return None
        last_dts = packet.dts
        # An edit list has packets decoded that are not shown.
        if packet.is_discard:
            continue
        pts.append(packet.pts)
        if packet.is_keyframe:
            keys.append(packet.pts)
        # Whatever follows is shown after its decoding time, so up to that time the order is final.
        if len(pts) % 256 == 0:
            stamps = np.array(pts, dtype=np.int64)
            if enough(np.sort(stamps[stamps <= packet.dts])):
                break
    ordered = np.unique(np.array(pts, dtype=np.int64))
    if video.damaged_packets or len(ordered) != len(pts) or len(ordered) == 0:
        return None
    return _Order(ordered, np.sort(np.array(keys, dtype=np.int64)))


def _land(video: _Video, pts: int) -> Iterator[av.VideoFrame] | None:
    """Seeks to exactly one picture.

    Returns:
        Pictures from the one at `pts` on, or None if it cannot be reached: then the video is to be read from its start.
    """
    try:
        video.seek(pts)
    except av.FFmpegError:
        return None
    pictures = video.decoded()
    for picture in pictures:
        if picture.pts is None or picture.pts > pts:
            return None
        if picture.pts == pts:
            return chain([picture], pictures)
    return None


def _read_video(source: Source, start: Start, short_side_px: int | None, fps: Fraction) -> Generator[Frame, None, None]:
    if not _scheme(source) and (start.frame or start.time_s):
        with _open_video(source, fps) as video:
            landed = _go_to(video, start)
            if landed is not None:
                yield from _hand_over(video, *landed, start, short_side_px)
                return
    with _open_video(source, fps) as video:
        pictures = video.decoded()
        whole = chain([video.first(pictures)], pictures)
        yield from _hand_over(video, whole, 0, _Clock(video), start, short_side_px)


def _go_to(video: _Video, start: Start) -> tuple[Iterator[av.VideoFrame], int, _Clock] | None:
    """Pictures from the start on, the index of the first, and the clock; None where that must be found by counting."""

    def place(pts: npt.NDArray[np.int64]) -> int:
        if start.time_s is None or len(pts) == 0:
            return start.frame
        return int(np.searchsorted(video.seconds(pts - pts[0]), start.time_s))

    order = _presentation_order(video, lambda pts: place(pts) < len(pts))
    if order is None:
        return None
    index = place(order.pts)
    if index >= len(order.pts):
        raise start.not_in(video.label, len(order.pts))
    pictures = _land(video, int(order.pts[index]))
    return None if pictures is None else (pictures, index, _Clock(video, int(order.pts[0])))


def _hand_over(
    video: _Video,
    pictures: Iterator[av.VideoFrame],
    first_index: int,
    clock: _Clock,
    start: Start,
    short_side_px: int | None,
) -> Generator[Frame, None, None]:
    frames_read, index, pts, time_s = 0, first_index - 1, None, 0.0
    try:
        for index, picture in enumerate(pictures, first_index):
            pts, time_s = picture.pts, clock.time_s(picture)
            if start.reached(index, time_s):
                yield Frame(video.to_rgb(picture, short_side_px), time_s, index)
                frames_read += 1
    except VideoError as exc:
        exc.frames_read, exc.time_s = frames_read, time_s
        raise
    problems = [words for words in (video.damage(), video.missing(index + 1, pts)) if words]
    if problems:
        raise VideoError(
            video.label,
            f"{' and '.join(problems)}; {frames_read} frames could be decoded and were given; "
            "get the file anew, or use what there is knowing that some is missing",
            frames_read=frames_read,
            time_s=time_s,
        )
    if frames_read == 0:
        raise start.not_in(video.label, index + 1)


def _pick_stills(stills: Stills, needed: Sequence[int], short_side_px: int | None) -> dict[int, Frame]:
    if needed[-1] >= len(stills):
        raise index_not_in(stills.source, needed[-1], len(stills))
    return {index: next(stills.frames(index, short_side_px)) for index in needed}


def _pick(source: Source, needed: Sequence[int], short_side_px: int | None, fps: Fraction) -> dict[int, Frame]:
    """The frames `needed`, which are sorted and without repeats."""
    if not _scheme(source):
        with _open_video(source, fps) as video:
            order = _presentation_order(video, lambda pts: len(pts) > needed[-1])
            if order is not None:
                if needed[-1] >= len(order.pts):
                    raise index_not_in(video.label, needed[-1], len(order.pts))
                found = _pick_by_time_stamp(video, order, needed, short_side_px)
                if found is not None:
                    return found
    return _pick_by_counting(source, needed, short_side_px, fps)


def _pick_by_time_stamp(
    video: _Video, order: _Order, needed: Sequence[int], short_side_px: int | None
) -> dict[int, Frame] | None:
    """Seeks where a key frame lies between here and the next frame needed; None if one is not where it should be."""
    found: dict[int, Frame] = {}
    pictures: Iterator[av.VideoFrame] = iter(())
    here: int | None = None
    for index in needed:
        pts = int(order.pts[index])
        keys_before = order.key_pts[: np.searchsorted(order.key_pts, pts, side="right")]
        if here is None or (len(keys_before) and keys_before[-1] > here):
            pictures = _land(video, pts) or iter(())
        picture = next((picture for picture in pictures if picture.pts is None or picture.pts >= pts), None)
        if picture is None or picture.pts != pts:
            return None
        here = pts
        found[index] = Frame(video.to_rgb(picture, short_side_px), video.seconds(pts - int(order.pts[0])), index)
    return found


def _pick_by_counting(
    source: Source, needed: Sequence[int], short_side_px: int | None, fps: Fraction
) -> dict[int, Frame]:
    wanted = set(needed)
    found: dict[int, Frame] = {}
    with _open_video(source, fps) as video:
        clock = _Clock(video)
        pictures = video.decoded()
        index = -1
        for index, picture in enumerate(chain([video.first(pictures)], pictures)):
            time_s = clock.time_s(picture)
            if index in wanted:
                found[index] = Frame(video.to_rgb(picture, short_side_px), time_s, index)
            if index == needed[-1]:
                break
        if video.damage():
            raise VideoError(
                video.label,
                f"{video.damage()} before frame {needed[-1]}, so it is not certain which frame is which; "
                "get the file anew, or read it with read_frames, which gives all that can be decoded",
                frames_read=len(found),
            )
        if len(found) < len(needed):
            raise index_not_in(video.label, needed[-1], index + 1)
    return found
