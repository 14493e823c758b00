"""Opened video files, cameras and streams: packets, RGB pictures and decoding errors.

All reading through FFmpeg is here. Display matrices with rotations by 90° and mirroring are applied; pixels are treated
as square, whatever aspect is stated.
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

# Timeout of an address, for the connection and for each packet.
NETWORK_TIMEOUT_S = 10.0
_SCHEMES = ("http", "https", "rtsp", "tcp", "udp")
# A playlist from the network may name more addresses, but never local files.
_NETWORK_PROTOCOLS = "http,https,httpproxy,tls,tcp,udp,rtp,srtp,rtsp,crypto,data"
# FFmpeg's input device for cameras by platform, and its name of camera N.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}

# swscale's fast default turns white into 253 and shifts chroma by a sample.
_SWSCALE = (
    Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)

# FFmpeg's value for an unstated colour matrix.
_UNSPECIFIED = 2

# Containers with an index and a stated length. For others (MPEG-TS …) FFmpeg guesses from the bit rate.
_INDEXED_CONTAINERS = frozenset({"mov", "matroska", "avi"})
# Codecs with one shown frame per packet. VP8, for example, has packets without a shown frame.
_ONE_FRAME_A_PACKET = frozenset({"h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg", "ffv1", "prores", "dnxhd", "png"})
# Streams that are not video: cover pictures, posters, thumbnails.
_PICTURES = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image

# A video counts as truncated if it ends this much before its stated length: in frames if the container states their
# number, else in seconds.
_SHORT_BY_FRAMES = 1.5
_SHORT_BY_S = 1.0
_TIMEOUTS = (av.error.ExitError, av.error.TimeoutError)
# An unreadable container may report its error forever.
_MAX_READ_ERRORS = 16
# Formats without time stamps, for which FFmpeg states 25 frames per second instead of the codec's rate.
_UNTIMED_FORMATS = frozenset({"h264", "hevc", "vvc", "m4v", "mpegvideo", "vc1", "cavsvideo", "h261", "h263", "obu"})
# FFmpeg numbers the JPEG pictures of network cameras instead of timing them; arrival times are better.
_CAMERA_FORMAT = "mpjpeg"
_ARRIVAL_TICK = Fraction(1, 1_000_000)
# A higher rate is not a camera's, but a file served at network speed.
_MAX_CAMERA_FPS = 120
# Limits of the packets read ahead to measure the frame rate: their number and total size.
_PACKETS_AHEAD, _BYTES_AHEAD = 64, 16_000_000
# The same for a stream, where latency counts: number of packets and duration.
_STREAM_PACKETS_AHEAD, _STREAM_AHEAD_S = 16, 1.0


class Opener:
    """Opener of one source, repeatedly from its start if it is a file, which is opened once.

    Args:
        source: A path, a part of a file, an address or a camera.
        untimed_fps: Frame rate of sources without times.
        max_pixels: Limit of width times height, checked before a picture is decoded.
    """

    def __init__(self, source: EncodedSource, untimed_fps: Fraction, max_pixels: int = MAX_PIXELS) -> None:
        self.label = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", str(source))
        self.is_stream = bool(scheme_of(source))
        self._source, self._untimed_fps, self._max_pixels = source, untimed_fps, max_pixels
        self._file: BufferedIOBase | None = None

    def open(self) -> Container:
        """Open the container at its start.

        Raises:
            VideoError: It cannot be opened or holds no video.
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
        return Container(opened, self.label, self._untimed_fps, is_stream=self.is_stream, max_pixels=self._max_pixels)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _open_camera(name: str) -> av.container.InputContainer:
    number = re.sub(r"\D", "", name)
    if sys.platform not in _CAMERAS:
        raise VideoError(name, "expected Linux or macOS for cameras, got another system; give the address of a stream")
    device, pattern = _CAMERAS[sys.platform]
    return av.open(pattern.format(number), "r", format=device, timeout=NETWORK_TIMEOUT_S, metadata_errors="replace")


def _open_address(source: str, label: str) -> av.container.InputContainer:
    if scheme_of(source) not in _SCHEMES:
        raise VideoError(
            label, f"expected a path or an address that starts with {', '.join(_SCHEMES)}, got {scheme_of(source)}"
        )
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
            raise VideoError(str(path), "expected a video, got no such file or folder; check the path")
        if not path.is_file():
            raise VideoError(
                str(path),
                "expected a file, a folder of images or an address, got a device or pipe; write it to a file first",
            )
        if path.stat().st_size == 0:
            raise VideoError(str(path), "expected a video, got an empty file; it was probably not written to the end")
        return path.open("rb")
    except (OSError, ValueError) as exc:  # ValueError: a path with a null character
        raise VideoError(str(path), f"expected a readable file: {exc}") from exc


def _open_bytes(opened: BufferedIOBase) -> av.container.InputContainer:
    # A "video" may be a disguised playlist of addresses or local files. FFmpeg gets the opened file and no protocol, so
    # it can read this file only.
    return av.open(opened, "r", container_options={"protocol_whitelist": "none"}, metadata_errors="replace")


def _why_not_opened(exc: Exception, scheme: str) -> str:
    error = _error_text(exc)
    if not scheme:
        return (
            f"expected a video that FFmpeg can read, got: {error}; check that it is a complete video, or re-encode it"
        )
    if scheme == "camera":
        return f"expected a camera, got: {error}; check that it is connected and that no other program uses it"
    if isinstance(exc, av.error.InvalidDataError):
        return f"expected a video stream at this address, got: {error}; check that it is the address of a video"
    if isinstance(exc, av.error.HTTPUnauthorizedError | av.error.HTTPForbiddenError):
        return f"expected a video stream at this address, got: {error}; check user name, password and rights"
    return f"expected a video stream at this address, got: {error}; check the address, and that its sender is running"


class Container:
    """One opened video, initially at its start.

    Attributes:
        label: Name for messages.
        time_base: Seconds per tick of a time stamp.
        codec: Name of the codec.
        has_order: Whether packets are frames, and an index gives their positions.
        timed: Whether presentation times are reliable.
        stated_rate: Frames per second stated by the container, or by a raw stream's codec; None if unstated.
        rate: The stated rate if the first time stamps confirm it, else the rate measured on them; None if unknown.
        rate_is_doubtful: Whether the time stamps of the whole video may give another rate.
        step: Seconds between frames, for frames without a time stamp.
        is_untouched: Whether `packets` starts with the first packet.
    """

    def __init__(
        self,
        container: av.container.InputContainer,
        label: str,
        untimed_fps: Fraction,
        *,
        is_stream: bool,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.label = label
        self._max_pixels = max_pixels
        self._container = container
        try:
            self._stream = _best_stream(container, label)
            codec = self._stream.codec_context
            # Some streams state size 0 until the first frame; each frame is checked too.
            check_size(label, codec.width or 1, codec.height or 1, max_pixels)
            # Against headers that claim another size in the middle of the video.
            codec.options = {"max_pixels": str(max_pixels)}
        except BaseException:
            container.close()
            raise
        # The codec's name: the decoder's may differ ("libdav1d" for av1).
        self.codec = codec.codec.canonical_name
        formats = set(container.format.name.split(","))
        self._states_its_length = bool(formats & _INDEXED_CONTAINERS)
        self.has_order = self._states_its_length and self.codec in _ONE_FRAME_A_PACKET and not is_stream
        # AVI stores no presentation times. With B-frames, FFmpeg's substitutes are out of order.
        self.timed = not (container.format.name == "avi" and codec.has_b_frames)
        self._stamps_arrivals = is_stream and _CAMERA_FORMAT in formats
        # Every stream opened by a demuxer has a time base.
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
        """Close it; repeated calls have no effect."""
        self._container.close()

    @property
    def is_at_start(self) -> bool:
        """Whether `pictures` starts with the first picture."""
        return self.is_untouched or self._first is not None

    @property
    def is_damaged(self) -> bool:
        """Whether a packet so far was damaged or unreadable."""
        return bool(self._damaged_packets or self._read_error)

    def info(self) -> VideoInfo:
        """Return the stated metadata, checked on the first picture, which `pictures` yields next."""
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
        """Yield all packets with data, skipping unreadable parts of the container."""
        self.is_untouched = False
        while self._ahead:
            yield self._ahead.popleft()
        if self._error_ahead is not None:
            raise self._error_ahead
        yield from self._read()

    def pictures(self) -> Iterator[av.VideoFrame]:
        """Yield all decodable pictures in presentation order.

        Raises:
            VideoError: There is none.
        """
        first, self._first = self._first_picture(), None
        yield first
        yield from self._rest

    def pictures_from(self, pts: int) -> Iterator[av.VideoFrame]:
        """Seek to a key frame at or before `pts`, or near it: the caller must check the position.

        Raises:
            VideoError: The container cannot seek.
        """
        self.is_untouched, self._first, self._error_ahead = False, None, None
        self._ahead.clear()
        try:
            self._container.seek(pts, stream=self._stream)
        except av.FFmpegError as exc:
            raise VideoError(self.label, f"seeking failed: {_error_text(exc)}") from exc
        return self._decoded()

    def forget_damage(self) -> None:
        """Forget errors caused by starting to decode at a frame that is not a key frame."""
        self._damaged_packets, self._first_damage, self._read_error = 0, "", ""

    @overload
    def seconds(self, ticks: int) -> float: ...

    @overload
    def seconds(self, ticks: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]: ...

    def seconds(self, ticks: int | npt.NDArray[np.int64]) -> float | npt.NDArray[np.float64]:
        """Convert differences of time stamps to seconds with one rounding, so that all paths give equal times."""
        return ticks * self.time_base.numerator / self.time_base.denominator

    def to_rgb(self, picture: av.VideoFrame, short_side_px: int | None) -> Image:
        """Convert a picture to `[H, W, 3]` uint8, upright and resized."""
        size_px = picture.width, picture.height
        if self._size_px is None:
            check_size(self.label, *size_px, self._max_pixels)
            self._size_px = size_px
        if size_px != self._size_px:
            raise VideoError(
                self.label,
                f"expected pictures of one size, got {self._size_px[0]} x {self._size_px[1]} "
                f"and {size_px[0]} x {size_px[1]}; re-encode the video to one size",
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
            raise VideoError(
                self.label, f"pictures in {picture.format.name} could not be converted to RGB: {exc}"
            ) from exc
        degrees, mirrored = _orientation(picture)
        return np.ascontiguousarray(np.rot90(np.fliplr(image) if mirrored else image, degrees // 90))

    def damage(self) -> str:
        """Describe the errors so far; empty if there are none."""
        packets = f"{self._damaged_packets} of its packets were damaged ({self._first_damage})"
        errors = [packets] if self._damaged_packets else []
        if self._read_error:
            errors.append(f"it could not be read further ({self._read_error})")
        return " and ".join(errors)

    def missing(self, num_frames: int, last_pts: int, end_pts: int) -> str:
        """Describe how much of the stated video is missing; empty if it is complete or its length is unknown.

        Args:
            num_frames: Number of frames present.
            last_pts: Time stamp of the last.
            end_pts: Time stamp of its end, if the file states its duration.
        """
        stated_s = self._stated_duration_s()
        if not self._states_its_length or stated_s is None:
            return ""
        end_s = max(self.seconds(last_pts) + float(self.step), self.seconds(end_pts))
        # The count alone proves no damage: an edit list may hide frames, so the end must be missing too.
        if num_frames < self._stream.frames and end_s < stated_s - _SHORT_BY_FRAMES * float(self.step):
            return f"the file is truncated: it states {self._stream.frames} frames and holds {num_frames}"
        if not self._stream.frames and end_s < stated_s - _SHORT_BY_S:
            return f"the file is truncated: it states {stated_s:.2f} s and ends at {end_s:.2f} s"
        return ""

    def _rate(self, is_stream: bool) -> Fraction | None:
        # No latency for a plausible stated rate of a stream.
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
        """Return presentation times of the packets read ahead, or decoding times where those are unreliable."""
        pairs = [(packet.pts if self.timed else packet.dts, packet.dts) for packet in self._ahead]
        for kind in zip(*pairs, strict=True):
            if None not in kind:
                return [stamp for stamp in kind if stamp is not None]
        return []

    def _look_ahead(self, is_stream: bool) -> None:
        num_packets, num_bytes, start_s = 0, 0, time.perf_counter()
        limit = _STREAM_PACKETS_AHEAD if is_stream else _PACKETS_AHEAD
        try:
            for packet in self._read():
                self._ahead.append(packet)
                num_packets, num_bytes = num_packets + 1, num_bytes + packet.size
                late = is_stream and time.perf_counter() - start_s > _STREAM_AHEAD_S
                if num_packets == limit or num_bytes > _BYTES_AHEAD or late:
                    return
        except VideoError as error:  # raised after these packets
            self._error_ahead = error

    def _read(self) -> Iterator[av.Packet[av.VideoStream]]:
        errors = 0
        while True:
            try:
                for packet in self._container.demux(self._stream):
                    # FFmpeg treats a packet without data as the end of the video.
                    if packet.size:
                        errors = 0
                        if self._stamps_arrivals:
                            packet.pts = packet.dts = int(time.monotonic() / _ARRIVAL_TICK)
                        yield packet
                return
            except _TIMEOUTS as exc:
                raise VideoError(
                    self.label, f"the stream was interrupted: {_error_text(exc)}; check that its source is running"
                ) from exc
            except (av.FFmpegError, OSError) as exc:
                self._read_error = self._read_error or _error_text(exc)
                errors += 1
                if errors == _MAX_READ_ERRORS:
                    return

    def _first_picture(self) -> av.VideoFrame:
        if self._first is None:
            self._rest = self._decoded()
            self._first = next(self._rest, None)
        if self._first is None:
            error = self._first_damage or self._read_error or "it holds no packets"
            raise VideoError(self.label, f"expected a video, but not one frame could be decoded; {error}")
        return self._first

    def _decoded(self) -> Iterator[av.VideoFrame]:
        for packet in self.packets():
            damaged_before = self._damaged_packets
            yield from self._decode(packet)
            if packet.is_corrupt and self._damaged_packets == damaged_before:
                self._note_damage("the packet is incomplete")
        yield from self._decode(None)

    def _decode(self, packet: av.Packet[av.VideoStream] | None) -> Iterator[av.VideoFrame]:
        # At the end (None), an error in one picture must not lose the delayed pictures behind it.
        for _ in range(_MAX_READ_ERRORS if packet is None else 1):
            try:
                yield from self._stream.codec_context.decode(packet)
                return
            except av.error.EOFError:
                return
            except (av.FFmpegError, ValueError) as exc:
                self._note_damage(_error_text(exc))

    def _note_damage(self, error: str) -> None:
        self._damaged_packets += 1
        self._first_damage = self._first_damage or error

    def _stated_duration_s(self) -> float | None:
        stream, container = self._stream, self._container
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        # Matroska writers store each stream's length in its tags.
        match = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
        if match:
            return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
        # The length of the file may be that of a longer sound track.
        if container.duration and len(container.streams) == 1:
            return container.duration / 1_000_000
        return None


def _best_stream(container: av.container.InputContainer, label: str) -> av.VideoStream:
    """Choose the stream that players show: the default, else FFmpeg's best, never an attached picture.

    Raises:
        VideoError: There is none, or this FFmpeg has no decoder for any.
    """
    videos = [stream for stream in container.streams.video if not stream.disposition & _PICTURES]
    if not videos:
        kinds = {"a cover picture" if stream.type == "video" else str(stream.type) for stream in container.streams}
        content = " and ".join(sorted(kinds)) or "no streams"
        raise VideoError(label, f"expected a video, but the file holds only: {content}")
    decodable = [stream for stream in videos if stream.codec_context is not None]
    if not decodable:
        raise VideoError(label, "expected a codec that this FFmpeg supports, got another; re-encode the video")
    defaults = [stream for stream in decodable if stream.disposition & Disposition.default]
    best = container.streams.best("video")
    return next((stream for stream in (best, *defaults) if stream in (defaults or decodable)), decodable[0])


def _error_text(exc: Exception) -> str:
    if isinstance(exc, _TIMEOUTS):
        return f"no data for {NETWORK_TIMEOUT_S:g} s"
    # Not str(exc): it repeats the address, which may contain a password.
    return f"FFmpeg: {exc.strerror}" if isinstance(exc, av.FFmpegError) else str(exc)


def _matrix(picture: av.VideoFrame) -> Colorspace | None:
    """Choose the colour matrix of a picture that states none: BT.709 in HD, as players do.

    None leaves the choice to FFmpeg: the stated matrix, else BT.601.
    """
    if picture.colorspace != _UNSPECIFIED or picture.format.is_rgb:
        return None
    is_hd = max(picture.width, picture.height) >= 1280 or min(picture.width, picture.height) > 576
    return Colorspace.ITU709 if is_hd else None


def _orientation(picture: av.VideoFrame) -> tuple[int, bool]:
    """Read the display matrix of a picture: rotation, counter-clockwise, and mirroring.

    Returns:
        Degrees, 0, 90, 180 or 270, and whether to mirror left to right first. Other rotations are ignored.
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
