"""An opened video file, camera or stream: packets, pictures in RGB, and what went wrong on the way.

The only file that reads with FFmpeg. Display matrices that turn by 90° or mirror are applied; pixels are taken as
square, whatever their stated aspect.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from io import BufferedIOBase
from pathlib import Path
from typing import overload

import av
import av.container
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideData
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from trecvit.errors import VideoError
from trecvit.video.frames import MAX_PIXELS, Image, VideoInfo, check_size, scaled_size
from trecvit.video.rate import believable_rate
from trecvit.video.sources import EncodedSource, FilePart, scheme_of

# How long an address may keep us waiting, to connect and then for each packet.
NETWORK_TIMEOUT_S = 10.0
_SCHEMES = ("http", "https", "rtsp", "tcp", "udp")
# A playlist that comes over the network may name more addresses, but never files of this machine.
_NETWORK_PROTOCOLS = "http,https,httpproxy,tls,tcp,udp,rtp,srtp,rtsp,crypto,data"
# FFmpeg's input device for cameras, by platform, and how it calls camera N.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}

# The fast default of swscale makes white 253 and takes each colour sample from its left neighbour.
_SWSCALE = (
    Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)

# What a picture's colour matrix is called where none is stated: FFmpeg's number.
_UNSPECIFIED = 2

# Containers that hold an index and say how much they hold. Elsewhere (MPEG-TS …) FFmpeg guesses from the bit rate.
_INDEXED_CONTAINERS = frozenset({"mov", "matroska", "avi"})
# Codecs that keep one shown frame in each packet. VP8, for one, has packets that show nothing.
_ONE_FRAME_A_PACKET = frozenset({"h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "ffv1", "prores", "dnxhd", "png"})
# Streams that are no video: the cover of a song, a poster, thumbnails.
_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

# A video counts as cut short if it ends by more than this before its stated length: frames where the container states
# their number too, else seconds.
_SHORT_BY_FRAMES = 1.5
_SHORT_BY_S = 1.0
_TIMEOUTS = (av.error.ExitError, av.error.TimeoutError)
# A container that cannot be read any further tends to report it for ever.
_MAX_READ_ERRORS = 16
# Formats without time stamps, for which FFmpeg states 25 frames per second whatever the codec's own header does.
_UNTIMED_FORMATS = frozenset({"h264", "hevc", "vvc", "m4v", "mpegvideo", "vc1", "cavsvideo", "h261", "h263", "obu"})
# What cameras send as JPEG pictures has time stamps that are made up by counting: the time of arrival says more.
_CAMERA_FORMAT = "mpjpeg"
_ARRIVAL_TICK = Fraction(1, 1_000_000)
# More frames per second than such a camera sends: a file that is served as fast as the network can.
_MAX_CAMERA_FPS = 120
# Packets that are read ahead to learn the frame rate from their time stamps, and their size in all.
_PACKETS_AHEAD, _BYTES_AHEAD = 64, 16_000_000
# Of a stream, whose first frame is waited for: how many packets, and for how long.
_STREAM_PACKETS_AHEAD, _STREAM_AHEAD_S = 16, 1.0


class Opener:
    """Opens one source, and again from its start if it is a file. Its file is opened once.

    Args:
        source: A path, a part of a file, an address or a camera.
        untimed_fps: Frame rate of sources that state no times.
    """

    def __init__(self, source: EncodedSource, untimed_fps: Fraction) -> None:
        self.label = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", str(source))
        self.is_stream = bool(scheme_of(source))
        self._source, self._untimed_fps = source, untimed_fps
        self._file: BufferedIOBase | None = None

    def open(self) -> Container:
        """The container at its start.

        Raises:
            VideoError: If it cannot be opened or holds no video.
        """
        scheme = scheme_of(self._source)
        try:
            if scheme == "camera":
                opened = _open_camera(str(self._source))
            elif scheme:
                opened = _open_address(str(self._source), self.label)
            else:
                self._file = self._file or _open_file(self._source)
                self._file.seek(0)
                opened = _open_bytes(self._file)
        except (av.FFmpegError, OSError) as exc:
            raise VideoError(self.label, _why_not_opened(exc, scheme)) from exc
        return Container(opened, self.label, self._untimed_fps, is_stream=self.is_stream)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def _open_camera(name: str) -> av.container.InputContainer:
    number = re.sub(r"\D", "", name)
    if sys.platform not in _CAMERAS:
        raise VideoError(name, "cameras can be opened on Linux and macOS; elsewhere name the address of a stream")
    device, pattern = _CAMERAS[sys.platform]
    return av.open(pattern.format(number), "r", format=device, timeout=NETWORK_TIMEOUT_S, metadata_errors="replace")


def _open_address(source: str, label: str) -> av.container.InputContainer:
    if scheme_of(source) not in _SCHEMES:
        raise VideoError(label, f"expected an address that starts with {', '.join(_SCHEMES)}, or a path")
    return av.open(
        source,
        "r",
        timeout=NETWORK_TIMEOUT_S,
        container_options={"protocol_whitelist": _NETWORK_PROTOCOLS},
        metadata_errors="replace",
    )


def _open_file(source: EncodedSource) -> BufferedIOBase:
    if isinstance(source, FilePart):
        return source.open()
    path = Path(source)
    try:
        if not str(source):
            raise VideoError("''", "expected a path, an address or a camera, got an empty name")
        if not path.exists():
            raise VideoError(str(path), "there is no such file or folder; check the path")
        if not path.is_file():
            raise VideoError(
                str(path),
                "expected a file, a folder of images or an address, got a device or pipe; write it to a file first",
            )
        if path.stat().st_size == 0:
            raise VideoError(str(path), "the file is empty (0 bytes); it was probably never written to the end")
        return path.open("rb")
    except (OSError, ValueError) as exc:  # ValueError: a path with a null character
        raise VideoError(str(path), f"the file could not be opened: {exc}") from exc


def _open_bytes(opened: BufferedIOBase) -> av.container.InputContainer:
    # A "video" may be a playlist in disguise, naming addresses or other files of this machine. FFmpeg is handed the
    # opened file and allowed no protocol at all, so it can reach nothing but this one file.
    return av.open(opened, "r", container_options={"protocol_whitelist": "none"}, metadata_errors="replace")


def _why_not_opened(exc: Exception, scheme: str) -> str:
    words = _words(exc)
    if not scheme:
        return (
            f"expected a video that FFmpeg can read, but {words}; "
            "check that it is whole and is a video, or re-encode it"
        )
    if scheme == "camera":
        return f"expected a camera, but {words}; check that it is connected and that no other program uses it"
    if isinstance(exc, av.error.InvalidDataError):
        return f"expected a video stream at this address, but {words}; check that the address is one of a video"
    if isinstance(exc, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
        return f"expected a video stream at this address, but {words}; check user name, password and rights"
    return f"expected a video stream at this address, but {words}; check the address, and that its sender is running"


class Container:
    """One opened video, at first at its start.

    Attributes:
        label: Name for messages.
        time_base: Seconds that one tick of a time stamp stands for.
        codec: Name of the codec.
        has_order: Whether packets are frames, and an index proves where each is.
        timed: Whether presentation times can be believed.
        stated_rate: Frames per second that the container, or a raw stream's codec, states; None if neither does.
        rate: That rate if the first time stamps confirm it, else as measured on them; None if unknown.
        rate_is_doubtful: Whether the time stamps of the whole video may give another.
        step: Seconds between frames, for frames without a time stamp.
        is_untouched: Whether `packets` gives them from the first on.
    """

    def __init__(
        self, container: av.container.InputContainer, label: str, untimed_fps: Fraction, *, is_stream: bool
    ) -> None:
        self.label = label
        self._container = container
        try:
            self._stream = _best_stream(container, label)
            codec = self._stream.codec_context
            # Size 0 is stated by some streams until the first frame; frames are checked again when they come.
            check_size(label, codec.width or 1, codec.height or 1)
            # Kept against headers that claim another size in the middle of the video.
            codec.options = {"max_pixels": str(MAX_PIXELS)}
        except BaseException:
            container.close()
            raise
        # Of the codec: that of the decoder may be another ("libdav1d" for av1).
        self.codec = codec.codec.canonical_name
        formats = set(container.format.name.split(","))
        self._states_its_length = bool(formats & _INDEXED_CONTAINERS)
        self.has_order = self._states_its_length and self.codec in _ONE_FRAME_A_PACKET and not is_stream
        # AVI stores no presentation times. With B-frames, what FFmpeg makes of it is out of order.
        self.timed = not (container.format.name == "avi" and codec.has_b_frames)
        self._stamps_arrivals = is_stream and _CAMERA_FORMAT in formats
        # Present in every stream that a demuxer has opened.
        self.time_base = _ARRIVAL_TICK if self._stamps_arrivals else self._stream.time_base or Fraction(1)
        self._damaged_packets = 0
        self._first_damage = ""
        self._read_error = ""
        self._size_px: tuple[int, int] | None = None
        self._reformatter = VideoReformatter()
        self._ahead: deque[av.Packet[av.VideoStream]] = deque()
        self._error_ahead: VideoError | None = None
        self._first: av.VideoFrame | None = None
        self.is_untouched = True
        stated = self._stream.guessed_rate if formats & _UNTIMED_FORMATS else self._stream.average_rate
        self.stated_rate = None if self._stamps_arrivals else stated or None
        self.rate = self._rate(is_stream)
        self.rate_is_doubtful = self.rate != self.stated_rate
        self.step = 1 / (self.rate or untimed_fps)

    def close(self) -> None:
        """Closes it; a second time does nothing."""
        self._container.close()

    @property
    def is_at_start(self) -> bool:
        """Whether `pictures` gives them from the first on."""
        return self.is_untouched or self._first is not None

    @property
    def is_damaged(self) -> bool:
        """Whether a packet was damaged or could not be read so far."""
        return bool(self._damaged_packets or self._read_error)

    def info(self) -> VideoInfo:
        """What the source states, with its first picture as witness. That picture is the next that `pictures` gives."""
        picture = self._first_picture()
        degrees, _ = _orientation(picture)
        width_px, height_px = (picture.height, picture.width) if degrees % 180 else (picture.width, picture.height)
        return VideoInfo(
            source=self.label,
            width_px=width_px,
            height_px=height_px,
            average_fps=self.rate,
            duration_s=self._stated_duration_s(),
            stated_frames=self._stream.frames or None,
            codec=self.codec,
            rotation_degrees=degrees,
        )

    def packets(self) -> Iterator[av.Packet[av.VideoStream]]:
        """All packets with data, going on past places that the container cannot read."""
        self.is_untouched = False
        while self._ahead:
            yield self._ahead.popleft()
        if self._error_ahead is not None:
            raise self._error_ahead
        yield from self._read()

    def pictures(self) -> Iterator[av.VideoFrame]:
        """All pictures that can be decoded, in presentation order.

        Raises:
            VideoError: If there is none.
        """
        first, self._first = self._first_picture(), None
        yield first
        yield from self._rest

    def pictures_from(self, pts: int) -> Iterator[av.VideoFrame]:
        """Seeks to a key frame at or before `pts`, or near it: the caller must look at where it landed.

        Raises:
            VideoError: If the container cannot seek.
        """
        self.is_untouched, self._first, self._error_ahead = False, None, None
        self._ahead.clear()
        try:
            self._container.seek(pts, stream=self._stream)
        except av.FFmpegError as exc:
            raise VideoError(self.label, f"seeking failed: {_words(exc)}") from exc
        return self._decoded()

    def forget_damage(self) -> None:
        """Forgets damage that came of decoding from a place where no picture can be decoded from."""
        self._damaged_packets, self._first_damage, self._read_error = 0, "", ""

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
            rgb = self._reformatter.reformat(
                picture, width_px, height_px, "rgb24", src_colorspace=_matrix(picture), interpolation=_SWSCALE
            )
            image = np.asarray(rgb.to_ndarray(), dtype=np.uint8)
        except (av.FFmpegError, ValueError) as exc:
            raise VideoError(self.label, f"pictures in {picture.format.name} could not become RGB: {exc}") from exc
        degrees, mirrored = _orientation(picture)
        return np.ascontiguousarray(np.rot90(np.fliplr(image) if mirrored else image, degrees // 90))

    def damage(self) -> str:
        """What went wrong so far, in words; empty if nothing did."""
        packets = f"{self._damaged_packets} of its packets were damaged ({self._first_damage})"
        found = [packets] if self._damaged_packets else []
        if self._read_error:
            found.append(f"it could not be read further ({self._read_error})")
        return " and ".join(found)

    def missing(self, num_frames: int, last_pts: int, end_pts: int) -> str:
        """What the video states and does not hold, in words; empty if it is whole or cannot be known.

        Args:
            num_frames: How many frames there are.
            last_pts: Time stamp of the last.
            end_pts: Time stamp at which it is over, if the file states how long it is shown.
        """
        stated_s = self._stated_duration_s()
        if not self._states_its_length or stated_s is None:
            return ""
        end_s = max(self.seconds(last_pts) + float(self.step), self.seconds(end_pts))
        # The count alone proves nothing: an edit list may hide frames that are there, so the end must be missing too.
        if num_frames < self._stream.frames and end_s < stated_s - _SHORT_BY_FRAMES * float(self.step):
            return f"the file is truncated: it states {self._stream.frames} frames and holds {num_frames}"
        if not self._stream.frames and end_s < stated_s - _SHORT_BY_S:
            return f"the file is truncated: it states {stated_s:.2f} s and ends at {end_s:.2f} s"
        return ""

    def _rate(self, is_stream: bool) -> Fraction | None:
        # A stream is not kept waiting for a rate that it states and that a camera can have.
        if is_stream and self.stated_rate is not None and 1 <= self.stated_rate <= _MAX_CAMERA_FPS:
            return self.stated_rate
        self._look_ahead(is_stream)
        rate = believable_rate(self.stated_rate, self._stamps_ahead(), self.time_base)
        if self._stamps_arrivals and (rate is None or rate > _MAX_CAMERA_FPS):
            self._stamps_arrivals, self.time_base = False, self._stream.time_base or Fraction(1)
            for number, packet in enumerate(self._ahead):
                packet.pts = packet.dts = number
            return None
        return rate

    def _stamps_ahead(self) -> list[int]:
        """Time stamps of the packets read ahead: of presentation, or of decoding where those cannot be believed."""
        pairs = [(packet.pts if self.timed else packet.dts, packet.dts) for packet in self._ahead]
        for kind in zip(*pairs, strict=True):
            if None not in kind:
                return [stamp for stamp in kind if stamp is not None]
        return []

    def _look_ahead(self, is_stream: bool) -> None:
        num_packets, num_bytes, begun_s = 0, 0, time.perf_counter()
        most = _STREAM_PACKETS_AHEAD if is_stream else _PACKETS_AHEAD
        try:
            for packet in self._read():
                self._ahead.append(packet)
                num_packets, num_bytes = num_packets + 1, num_bytes + packet.size
                late = is_stream and time.perf_counter() - begun_s > _STREAM_AHEAD_S
                if num_packets == most or num_bytes > _BYTES_AHEAD or late:
                    return
        except VideoError as error:  # it is raised once these packets are used up
            self._error_ahead = error

    def _read(self) -> Iterator[av.Packet[av.VideoStream]]:
        errors = 0
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    # FFmpeg would take a packet without data for the end of the video.
                    if packet.size:
                        errors = 0
                        if self._stamps_arrivals:
                            packet.pts = packet.dts = int(time.monotonic() / _ARRIVAL_TICK)
                        yield packet
                return
            except _TIMEOUTS as exc:
                raise VideoError(self.label, f"the stream broke off: {_words(exc)}; is its source up?") from exc
            except (av.FFmpegError, OSError) as exc:
                self._read_error = self._read_error or _words(exc)
                errors += 1
                if errors == _MAX_READ_ERRORS:
                    return

    def _first_picture(self) -> av.VideoFrame:
        if self._first is None:
            self._rest = self._decoded()
            self._first = next(self._rest, None)
        if self._first is None:
            words = self._first_damage or self._read_error or "it holds no packets"
            raise VideoError(self.label, f"expected a video, but not one frame could be decoded; {words}")
        return self._first

    def _decoded(self) -> Iterator[av.VideoFrame]:
        for packet in self.packets():
            damaged_before = self._damaged_packets
            yield from self._decode(packet)
            if packet.is_corrupt and self._damaged_packets == damaged_before:
                self._note_damage("the packet is not whole")
        yield from self._decode(None)

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
        self._damaged_packets += 1
        self._first_damage = self._first_damage or words

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


def _best_stream(container: av.container.InputContainer, label: str) -> av.VideoStream:
    """The stream that players show: the default one, else FFmpeg's best, never an attached picture.

    Raises:
        VideoError: If there is none, or this FFmpeg has no decoder for any.
    """
    videos = [stream for stream in container.streams.video if not stream.disposition & _PICTURES]
    if not videos:
        kinds = {"a cover picture" if stream.type == "video" else str(stream.type) for stream in container.streams}
        found = " and ".join(sorted(kinds)) or "nothing"
        raise VideoError(label, f"expected a video, but the file holds only: {found}")
    decodable = [stream for stream in videos if stream.codec_context is not None]
    if not decodable:
        raise VideoError(label, "the video is in a codec that this FFmpeg does not have; re-encode it")
    defaults = [stream for stream in decodable if stream.disposition & Disposition.default]
    best = container.streams.best("video")
    return next((stream for stream in (best, *defaults) if stream in (defaults or decodable)), decodable[0])


def _words(exc: Exception) -> str:
    if isinstance(exc, _TIMEOUTS):
        return f"no data came for {NETWORK_TIMEOUT_S:g} s"
    # Not str(exc): it repeats the address, which may hold a password.
    return f"FFmpeg says: {exc.strerror}" if isinstance(exc, av.FFmpegError) else str(exc)


def _matrix(picture: av.VideoFrame) -> Colorspace | None:
    """The matrix that a picture's colours are in, where it states none: BT.709 in HD, as players take it.

    None leaves it to FFmpeg, which honours what is stated and else takes BT.601.
    """
    if picture.colorspace != _UNSPECIFIED or picture.format.is_rgb:
        return None
    is_hd = max(picture.width, picture.height) >= 1280 or min(picture.width, picture.height) > 576
    return Colorspace.ITU709 if is_hd else None


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
