"""A client of `trecvit serve` for Python programs, and an example of the protocol `trecvit.v1`."""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from trecvit.errors import InputError
from trecvit.serve.protocol import (
    HEADER_BYTES,
    PROTOCOL,
    RGB8,
    Ack,
    Add,
    Failure,
    FrameHeader,
    Hello,
    Policy,
    ProtocolError,
    Ready,
    Remove,
    Reset,
    Result,
    ServerMessage,
    parse_server,
    to_text,
)
from trecvit.video.frames import Image


class Client:
    """One session of a server.

        with Client("http://127.0.0.1:8000", "motions") as client:
            for frame in frames:                      # uint8 [H, W, 3]
                result = client.step(frame)
                print(result.frame, result.top[0])

    `step` waits for each result. `send` and `receive` keep up to `credit` frames on their way, which is faster.

    Args:
        url: Address of the server.
        model: Name of a model.
        policy: "all": every frame is processed; "latest": a frame that waits is replaced by a newer one.
        resume: Token of a session that is continued; frames go on after `ready.frame`.
        token: The server's bearer token.
        timeout_s: Longest time to wait for the server.

    Attributes:
        ready: The server's answer, with the session's token and limits.

    Raises:
        ProtocolError: The server refused the session.
        OSError: There is no server at this address.
    """

    ready: Ready

    def __init__(
        self,
        url: str,
        model: str,
        *,
        policy: Policy = "all",
        resume: str | None = None,
        token: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        address = url.rstrip("/").replace("http", "ws", 1) + "/v1/stream"
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self._timeout_s = timeout_s
        connecting = connect(
            address,
            subprotocols=[Subprotocol(PROTOCOL)],
            additional_headers=headers,
            compression=None,
            open_timeout=timeout_s,
            proxy=None,
        )
        self._stack = ExitStack()
        self._socket = self._stack.enter_context(connecting)
        try:
            self._socket.send(to_text(Hello(model, policy, resume)))
            ready = self._next()
            if isinstance(ready, Failure):
                raise ProtocolError(ready.code, ready.expected, ready.got)
            assert isinstance(ready, Ready), "the first answer to hello"
        except BaseException:
            self.close()
            raise
        self.ready = ready
        self._next_frame = 0 if ready.frame is None else ready.frame + 1
        self._on_their_way: deque[int] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def on_their_way(self) -> int:
        """Frames without a result."""
        return len(self._on_their_way)

    def send(self, image: Image, *, number: int | None = None) -> int:
        """Send a frame as RGB pixels.

        Args:
            image: uint8 `[H, W, 3]`.
            number: Of the frame, by default one more than the last.

        Returns:
            Its number.

        Raises:
            InputError: Not such a frame, one larger than `ready.max_bytes`, or more frames without a result than
                `ready.credit`.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError(f"image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        height, width = image.shape[:2]
        return self.send_encoded(image.tobytes(), RGB8, width=width, height=height, number=number)

    def send_encoded(self, payload: bytes, codec: int, *, width: int, height: int, number: int | None = None) -> int:
        """`send` for the bytes of a picture in a codec of the protocol, `JPEG` or `RGB8`."""
        if len(payload) + HEADER_BYTES > self.ready.max_bytes:
            raise InputError(
                f"expected a frame of at most {self.ready.max_bytes - HEADER_BYTES} bytes, got {len(payload)}; make it "
                "smaller, or send it as JPEG"
            )
        if len(self._on_their_way) >= self.ready.credit:
            raise InputError(
                f"expected at most {self.ready.credit} frames without a result, got one more; receive first"
            )
        number = self._next_frame if number is None else number
        header = FrameHeader(codec, number, time.monotonic_ns() // 1000, width, height)
        self._socket.send(header.pack() + payload)
        self._next_frame = number + 1
        self._on_their_way.append(number)
        return number

    def receive(self) -> Result | Failure:
        """Wait for the next result, or the refusal of a point.

        Raises:
            ProtocolError: The server closed the session.
            TimeoutError: It sent no message in time.
        """
        message = self._next()
        if isinstance(message, Result):
            while self._on_their_way and self._on_their_way[0] <= message.frame:
                self._on_their_way.popleft()
            self._socket.send(to_text(Ack(message.frame)))
        assert not isinstance(message, Ready), "sent once"
        return message

    def step(self, image: Image) -> Result:
        """Send a frame and wait for its result.

        Raises:
            ProtocolError: The server refused something.
        """
        number = self.send(image)
        while True:
            message = self.receive()
            if isinstance(message, Failure):
                raise ProtocolError(message.code, message.expected, message.got)
            if message.frame >= number:
                return message

    def add(self, ref: str, x: float, y: float) -> None:
        """Track a point of the next frame, in its pixels; results give it an id and this name."""
        self._socket.send(to_text(Add(ref, float(x), float(y))))

    def remove(self, point_id: int) -> None:
        """Remove a point."""
        self._socket.send(to_text(Remove(point_id)))

    def reset(self) -> None:
        """Restart with the next frame, without points."""
        self._socket.send(to_text(Reset()))

    def close(self) -> None:
        """End the socket; the session can be resumed with its token for a while."""
        self._stack.close()

    def _next(self) -> ServerMessage:
        try:
            text = self._socket.recv(timeout=self._timeout_s)
        except ConnectionClosed as exc:
            received = exc.rcvd
            reason = f"{received.code} {received.reason}" if received else "a lost connection"
            raise ProtocolError("closed", "a message of the server", reason) from exc
        if not isinstance(text, str):
            raise ProtocolError("message", "text", "bytes")
        return parse_server(text)
