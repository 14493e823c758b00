"""Messages of the protocol `trecvit.v1`: binary frames and JSON texts, checked in both directions (docs/serving.md)."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from trecvit.errors import TRecViTError

PROTOCOL = "trecvit.v1"
"""WebSocket subprotocol that both sides name."""

TOKEN_PREFIX = "trecvit.token."
"""A client without an `Authorization` header, such as a browser, offers this with its token as a subprotocol."""

Policy = Literal["latest", "all"]
JPEG, RGB8 = 1, 2
CODECS = {JPEG: "JPEG", RGB8: "RGB8"}
_MAGIC = b"TRV1"
_FRAME = 1
_HEADER = struct.Struct("<4sBBHIQHH")
HEADER_BYTES = _HEADER.size
MAX_FRAME = 2**32 - 1
_MAX_TEXT = 4096
_MAX_NAME = 200
_MAX_REF = 64


class CloseCode:
    """Codes with which the server closes a socket, of RFC 6455 but for the last."""

    GOING_AWAY = 1001
    POLICY = 1008
    INTERNAL = 1011
    TRY_LATER = 1013
    TAKEN_OVER = 4001


class ProtocolError(TRecViTError):
    """A message that is not of the protocol, or a request that cannot be met.

    Attributes:
        code: Word for programs.
        expected: What was expected.
        got: What was received, without any detail of the server's machine.
    """

    def __init__(self, code: str, expected: str, got: str) -> None:
        self.code, self.expected, self.got = code, expected, got
        super().__init__(f"{code}: expected {expected}, got {got}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.code, self.expected, self.got)

    def to_dict(self) -> dict[str, str]:
        """Return the fields of the server's `error` message."""
        return {"code": self.code, "expected": self.expected, "got": self.got}


class FrameHeader(NamedTuple):
    """The 24 bytes before a frame's pixels.

    Attributes:
        codec: `JPEG` or `RGB8`.
        frame: Number of the frame; it rises within a session.
        capture_us: Time of capture in microseconds on the client's clock, which the result repeats.
        width: Pixels.
        height: Pixels.
    """

    codec: int
    frame: int
    capture_us: int
    width: int
    height: int

    def pack(self) -> bytes:
        """Return the header as bytes."""
        return _HEADER.pack(_MAGIC, _FRAME, self.codec, 0, self.frame, self.capture_us, self.width, self.height)


def parse_frame(message: bytes, *, max_pixels: int) -> tuple[FrameHeader, memoryview]:
    """Split a binary message into its header and payload.

    Args:
        message: As received.
        max_pixels: Limit of width times height.

    Raises:
        ProtocolError: For anything but a frame within the limit. The payload of a JPEG is not examined.
    """
    if len(message) <= HEADER_BYTES:
        raise ProtocolError("frame", f"a header of {HEADER_BYTES} bytes and pixels", f"{len(message)} bytes")
    magic, kind, codec, flags, frame, capture_us, width, height = _HEADER.unpack_from(message)
    if magic != _MAGIC or kind != _FRAME:
        raise ProtocolError("frame", f"magic {_MAGIC.decode()} and type {_FRAME}", f"{magic!r} and type {kind}")
    if codec not in CODECS:
        raise ProtocolError("frame", "codec 1 (JPEG) or 2 (RGB8)", f"codec {codec}")
    if flags:
        raise ProtocolError("frame", "flags 0", f"flags {flags}")
    if not width or not height or width * height > max_pixels:
        raise ProtocolError("pixels", f"1 to {max_pixels} pixels", f"{width} x {height}")
    payload = memoryview(message)[HEADER_BYTES:]
    if codec == RGB8 and len(payload) != width * height * 3:
        raise ProtocolError("frame", f"{width * height * 3} bytes of RGB for {width} x {height}", str(len(payload)))
    return FrameHeader(codec, frame, capture_us, width, height), payload


@dataclass(frozen=True)
class Hello:
    """First message of a socket: a new session, or a resumed one with its token.

    Attributes:
        model: Name of a model.
        policy: "latest": a frame that waits is replaced by a newer one; "all": every frame is processed.
        resume: Token from `Ready`, or None for a new session.
    """

    model: str
    policy: Policy = "latest"
    resume: str | None = None


@dataclass(frozen=True)
class Add:
    """Track a point from the next frame that is sent.

    Attributes:
        ref: The client's name for the point; results repeat it.
        x: Pixels from the left edge of that frame.
        y: Pixels from its upper edge.
    """

    ref: str
    x: float
    y: float


@dataclass(frozen=True)
class Remove:
    """Remove a point, by the id that results give."""

    id: int


@dataclass(frozen=True)
class Reset:
    """Restart the stream with the next frame that is sent, without points."""


@dataclass(frozen=True)
class Ack:
    """The client has received the result of this frame, and all before it."""

    frame: int


ClientMessage: TypeAlias = Hello | Add | Remove | Reset | Ack


@dataclass(frozen=True)
class Ready:
    """Answer to `Hello`.

    Attributes:
        session: Public id of the session.
        token: Secret with which the session can be resumed, 128 bits in hexadecimal digits.
        labels: Names of the classes; empty for a tracker.
        image_size: Height and width in pixels to which the server resizes frames.
        credit: Frames that may be sent without a result, and results that may be sent without an `Ack`.
        max_bytes: Limit of a message.
        max_points: Points that may be tracked at a time; 0 for a classifier.
        frame: Number of the last frame that the state has seen; None for a new session.
        seen: Frames that the state has seen since it began.
    """

    session: str
    token: str
    labels: tuple[str, ...]
    image_size: tuple[int, int]
    credit: int
    max_bytes: int
    max_points: int
    frame: int | None
    seen: int


class TopClass(NamedTuple):
    """A class and its probability."""

    label: str
    probability: float


class PointResult(NamedTuple):
    """A point in one frame, in pixels of that frame; see `LivePoints`."""

    id: int
    ref: str
    x: float
    y: float
    visible: bool
    certainty: float


@dataclass(frozen=True)
class Result:
    """Prediction after one frame.

    Attributes:
        frame: Number of the frame.
        after: Number of the frame that the state had seen before it; None for the first.
        capture_us: As sent.
        queue_ms: Time from its arrival to its step.
        step_ms: Time of the step of its batch.
        batch: Streams in that batch.
        dropped: Frames of the session that were replaced before they were processed, in all.
        seen: Frames that the state has seen since it began, this one included.
        top: The most probable classes in descending order; empty for a tracker.
        points: All points; empty for a classifier.
    """

    frame: int
    after: int | None
    capture_us: int
    queue_ms: float
    step_ms: float
    batch: int
    dropped: int
    seen: int
    top: tuple[TopClass, ...]
    points: tuple[PointResult, ...]


@dataclass(frozen=True)
class Failure:
    """A request that was refused; for some codes the server closes the socket afterwards."""

    code: str
    expected: str
    got: str


ServerMessage: TypeAlias = Ready | Result | Failure

_NAMES: dict[type, str] = {
    Hello: "hello", Add: "add", Remove: "remove", Reset: "reset", Ack: "ack",
    Ready: "ready", Result: "result", Failure: "error",
}  # fmt: skip


def to_text(message: ClientMessage | ServerMessage) -> str:
    """Return a message as JSON."""
    fields = dict(vars(message))
    if isinstance(message, Result):
        fields["top"] = [item._asdict() for item in message.top]
        fields["points"] = [point._asdict() for point in message.points]
    if isinstance(message, Hello) and message.resume is None:
        del fields["resume"]
    return json.dumps({"type": _NAMES[type(message)], **fields}, separators=(",", ":"), allow_nan=False)


def parse_client(text: str) -> ClientMessage:
    """Read a text message of a client; keys that the protocol does not have are refused.

    Raises:
        ProtocolError: For anything else.
    """
    if len(text) > _MAX_TEXT:
        raise ProtocolError("message", f"at most {_MAX_TEXT} characters", str(len(text)))
    content = _object(text)
    name = content.pop("type", None)
    kind = next((kind for kind in get_args(ClientMessage) if _NAMES[kind] == name), None)
    if kind is None:
        names = ", ".join(_NAMES[kind] for kind in get_args(ClientMessage))
        raise ProtocolError("message", f"type {names}", _short(name))
    message: ClientMessage = kind(**_fields(_CLIENT_FIELDS[kind], content, name))
    return message


def parse_server(text: str) -> ServerMessage:
    """Read a text message of the server; unknown keys are ignored, so that later servers may add some.

    Raises:
        ProtocolError: For anything else.
    """
    content = _object(text)
    name = content.pop("type", None)
    kind = next((kind for kind in get_args(ServerMessage) if _NAMES[kind] == name), None)
    if kind is None:
        raise ProtocolError("message", "type ready, result or error", _short(name))
    try:
        if kind is Ready:
            content["labels"] = tuple(content["labels"])
            height, width = content["image_size"]
            content["image_size"] = int(height), int(width)
        if kind is Result:
            content["top"] = tuple(TopClass(item["label"], item["probability"]) for item in content["top"])
            content["points"] = tuple(
                PointResult(*(point[field] for field in PointResult._fields)) for point in content["points"]
            )
        message: ServerMessage = kind(**{field: content[field] for field in kind.__dataclass_fields__})
    except (KeyError, TypeError, ValueError) as exc:
        raise ProtocolError("message", f"the fields of {name}", f"{type(exc).__name__} {exc}") from exc
    return message


def _object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as exc:
        raise ProtocolError("message", "JSON", _short(text)) from exc
    if not isinstance(content, dict):
        raise ProtocolError("message", "a JSON object", _short(text))
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


_Rule: TypeAlias = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9 and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_FRAME


def _is_text(limit: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and 0 < len(value) <= limit


_CLIENT_FIELDS: dict[type, dict[str, _Rule]] = {
    Hello: {
        "model": (f"a name of 1 to {_MAX_NAME} characters", _is_text(_MAX_NAME)),
        "policy": ("latest or all", lambda value: isinstance(value, str) and value in get_args(Policy)),
        "resume": (
            "32 hexadecimal digits",
            lambda value: isinstance(value, str) and len(value) == 32 and set(value) <= set("0123456789abcdef"),
        ),
    },
    Add: {
        "ref": (f"a text of 1 to {_MAX_REF} characters", _is_text(_MAX_REF)),
        "x": ("a number", _is_number),
        "y": ("a number", _is_number),
    },
    Remove: {"id": ("a whole number", _is_count)},
    Reset: {},
    Ack: {"frame": ("a whole number of 32 bits", _is_count)},
}
_OPTIONAL = {"policy", "resume"}


def _fields(rules: dict[str, _Rule], content: dict[str, Any], name: str) -> dict[str, Any]:
    for key in content:
        if key not in rules:
            raise ProtocolError("message", f"{name} with {', '.join(rules) or 'no field'}", f"the field {_short(key)}")
    for key, (expected, is_valid) in rules.items():
        if key in content:
            if not is_valid(content[key]):
                raise ProtocolError("message", f"{key} of {name} to be {expected}", _short(content[key]))
        elif key not in _OPTIONAL:
            raise ProtocolError("message", f"{name} with {', '.join(rules)}", f"no {key}")
    return content


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
