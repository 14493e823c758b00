"""One client's socket: frames in, results out, by credit and acknowledgement, since sockets give no back-pressure."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from torch import Tensor

from trecvit.errors import InputError
from trecvit.runtime.live import LivePoints, SlotChanges, check_inside
from trecvit.serve.batching import Answer, Interface
from trecvit.serve.frames import decode_frame
from trecvit.serve.protocol import (
    Ack,
    Add,
    ClientMessage,
    CloseCode,
    Failure,
    FrameHeader,
    Hello,
    PointResult,
    Policy,
    ProtocolError,
    Ready,
    Remove,
    Reset,
    Result,
    TopClass,
    parse_client,
    parse_frame,
    to_text,
)
from trecvit.serve.saved import SessionRecord
from trecvit.serve.sessions import Session, Sessions

if TYPE_CHECKING:
    from trecvit.serve.metrics import Metrics

TOP = 5
"""Classes in a result."""

_STEPS_AHEAD = {"latest": 1, "all": 3}  # frames of one session that are decoded or in the batcher
_CODES = {"full": CloseCode.TRY_LATER, "rate": CloseCode.TRY_LATER, "internal": CloseCode.INTERNAL}


@dataclass
class _Waiting:
    """A frame that waits to be decoded, with the requests that were sent before it."""

    header: FrameHeader
    payload: memoryview
    requests: list[Add | Remove | Reset]
    arrived_s: float = field(default_factory=time.perf_counter)


@dataclass
class _InFlight:
    """A frame in the batcher, with the points as they are in it."""

    waiting: _Waiting
    future: Future[Answer[Any]]
    ids: tuple[int, ...]
    rows: list[int]
    record: SessionRecord | None


class Connection:
    """A socket from its acceptance to its end.

    Args:
        socket: Accepted.
        sessions: All sessions.
        decoders: Where frames are decoded.
        metrics: Counters.
    """

    def __init__(self, socket: WebSocket, sessions: Sessions, decoders: Executor, metrics: Metrics) -> None:
        self._socket, self._sessions, self._decoders, self._metrics = socket, sessions, decoders, metrics
        self._limits = sessions.limits
        self._waiting: deque[_Waiting] = deque()
        self._requests: list[Add | Remove | Reset] = []
        self._received: deque[int] = deque()  # numbers of frames without a result
        self._unacknowledged: deque[int] = deque()
        self._flights: deque[_InFlight] = deque()
        self._newest = -1
        self._changed = asyncio.Event()  # something that a task waits for may have happened
        self._tasks: list[asyncio.Task[None]] = []
        self._policy: Policy = "latest"
        self._ended = asyncio.Event()
        self._reason_to_stop: tuple[int, str] | None = None
        self._allowance = Allowance(self._limits.messages_per_s)

    async def run(self) -> None:
        """Serve the socket until it ends."""
        try:
            session, token = await self._greet()
        except (ProtocolError, WebSocketDisconnect, TimeoutError) as error:
            await self._refuse(error)
            return
        try:
            await self._send_ready(session, token)
            reader = asyncio.create_task(self._read(session))
            self._tasks = [
                reader, asyncio.create_task(self._feed(session)), asyncio.create_task(self._deliver(session))
            ]  # fmt: skip
            if self._reason_to_stop is not None:
                return
            done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            failures = [task.exception() for task in done if not task.cancelled()]
            if (failure := next(filter(None, failures), None)) is not None:
                await self._refuse(failure)
        except WebSocketDisconnect:
            pass
        finally:
            await self._end(session)
        if self._reason_to_stop is not None:
            await self._close(*self._reason_to_stop)

    async def stop(self, code: int, reason: str) -> None:
        """End the socket; return when its last frame is part of the session."""
        self._reason_to_stop = code, reason
        for task in self._tasks:
            task.cancel()
        await self._ended.wait()

    async def _end(self, session: Session) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while self._flights:  # what was stepped is part of the session's state
            with contextlib.suppress(Exception):
                await self._landed(session)
        if session.connection is self:
            session.connection = None
        self._ended.set()
        await self._sessions.disconnect(session)

    # ---- first message ---------------------------------------------------------------------------------------------

    async def _greet(self) -> tuple[Session, str]:
        async with asyncio.timeout(self._limits.hello_s):
            message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        hello = parse_client(message["text"]) if message.get("text") is not None else None
        if not isinstance(hello, Hello):
            raise ProtocolError("hello", "hello as the first message", "another message")
        if hello.resume is None:
            session, token = self._sessions.create(hello.model)
        else:
            session, token = await self._sessions.resume(hello.resume, hello.model), hello.resume
            while session.connection is not None:  # the last socket wins
                await session.connection.stop(CloseCode.TAKEN_OVER, "another socket resumed the session")
        session.connection = self  # without an await since the session was found to have none
        self._policy = hello.policy
        self._newest = -1 if session.frame is None else session.frame
        return session, token

    async def _send_ready(self, session: Session, token: str) -> None:
        served = session.batcher.served
        await self._send(
            Ready(
                session=session.id,
                token=token,
                labels=served.labels,
                image_size=served.image_size,
                credit=self._limits.credit,
                max_bytes=self._limits.max_frame_bytes,
                max_points=served.max_points,
                frame=session.frame,
                seen=session.seen,
            )
        )

    # ---- messages of the client ------------------------------------------------------------------------------------

    async def _read(self, session: Session) -> None:
        while True:
            async with asyncio.timeout(self._limits.idle_s):
                message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if not self._allowance.take():
                limit = f"at most {self._limits.messages_per_s:g} messages per second"
                raise ProtocolError("rate", limit, "more")
            if (content := message.get("bytes")) is not None:
                await self._take_frame(session, content)
            else:
                self._take_text(parse_client(message["text"]))
            self._changed.set()

    async def _take_frame(self, session: Session, content: bytes) -> None:
        header, payload = parse_frame(content, max_pixels=self._limits.max_pixels)
        if header.frame <= self._newest:  # two frames of one number are one
            if header.frame == session.frame and session.last_result is not None and not self._flights:
                await self._socket.send_text(session.last_result)
            return
        if len(self._received) >= self._limits.credit:
            raise ProtocolError("credit", f"at most {self._limits.credit} frames without a result", "one more")
        self._newest = header.frame
        self._received.append(header.frame)
        waiting = _Waiting(header, payload, self._requests)
        self._requests = []
        if self._policy == "latest" and self._waiting:
            replaced = self._waiting.pop()
            waiting.requests = replaced.requests + waiting.requests
            session.dropped += 1
            self._metrics.dropped.labels(session.batcher.served.name).inc()
        self._waiting.append(waiting)

    def _take_text(self, message: ClientMessage) -> None:
        if isinstance(message, Hello):
            raise ProtocolError("hello", "one hello", "another")
        if isinstance(message, Ack):
            while self._unacknowledged and self._unacknowledged[0] <= message.frame:
                self._unacknowledged.popleft()
        elif len(self._requests) >= self._limits.credit + 2 * 256:
            raise ProtocolError("rate", "frames between the requests", "requests only")
        else:
            self._requests.append(message)

    # ---- frames to the batcher -------------------------------------------------------------------------------------

    async def _feed(self, session: Session) -> None:
        loop, served = asyncio.get_running_loop(), session.batcher.served
        while True:
            await self._until(self._may_feed)
            waiting = self._waiting.popleft()
            clip = await loop.run_in_executor(self._decoders, _decode, served, waiting)
            # From here to the append there is no await: a frame whose requests were applied is always in flight.
            restarts, changes, failures = _edit(session, waiting)
            due = self._sessions.folder is not None and time.monotonic() - session.saved_s > self._limits.save_every_s
            record = session.record() if due else None
            if due:
                session.saved_s = time.monotonic()
            future = session.batcher.submit(session.key, clip, restarts=restarts, changes=changes, keep=due)
            ids, rows = (session.slots.ids, session.slots.rows) if session.slots else ((), [])
            self._flights.append(_InFlight(waiting, future, ids, rows, record))
            self._changed.set()
            for failure in failures:
                self._metrics.errors.labels(failure.code).inc()
                await self._send(failure)

    def _may_feed(self) -> bool:
        may_step = len(self._flights) < _STEPS_AHEAD[self._policy]
        return bool(self._waiting) and may_step and len(self._unacknowledged) + len(self._flights) < self._limits.credit

    # ---- results to the client -------------------------------------------------------------------------------------

    async def _deliver(self, session: Session) -> None:
        while True:
            await self._until(lambda: bool(self._flights))
            text = await self._landed(session)
            await self._socket.send_text(text)
            self._changed.set()

    async def _landed(self, session: Session) -> str:
        """Wait for the first frame in flight and add its result to the session; if cancelled, it stays in flight."""
        flight = self._flights[0]
        done = asyncio.wrap_future(flight.future)
        await asyncio.wait([done])
        self._flights.popleft()
        if done.cancelled():
            raise ProtocolError("session", "a session that is kept", "one that was deleted")
        if (error := done.exception()) is not None:
            raise error
        answer = done.result()
        header = flight.waiting.header
        queue_ms = (answer.started_s - flight.waiting.arrived_s) * 1000
        result = Result(
            frame=header.frame,
            after=session.frame if answer.seen > 1 else None,
            capture_us=header.capture_us,
            queue_ms=round(queue_ms, 3),
            step_ms=round(answer.step_ms, 3),
            batch=answer.batch,
            dropped=session.dropped,
            seen=answer.seen,
            top=_top(session.batcher.served.labels, answer.result) if session.slots is None else (),
            points=_points(session, flight, answer.result) if session.slots is not None else (),
        )
        session.frame, session.seen, session.last_result = header.frame, answer.seen, to_text(result)
        session.active_s = time.monotonic()
        while self._received and self._received[0] <= header.frame:
            self._received.popleft()
        self._unacknowledged.append(header.frame)
        self._metrics.frames.labels(session.batcher.served.name).inc()
        self._metrics.queue.labels(session.batcher.served.name).observe(queue_ms / 1000)
        if flight.record is not None and answer.state is not None:
            # The points as they were at the frame, and the rest as it is now that the frame has its result.
            points = {"slots": flight.record.slots, "refs": flight.record.refs}
            self._sessions.save(SessionRecord(**{**vars(session.record()), **points}), answer.state)
        return session.last_result

    # ---- the socket ------------------------------------------------------------------------------------------------

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    async def _send(self, message: Ready | Failure) -> None:
        await self._socket.send_text(to_text(message))

    async def _refuse(self, error: BaseException) -> None:
        if isinstance(error, WebSocketDisconnect):
            return
        if isinstance(error, TimeoutError):
            error = ProtocolError("idle", "a message in time", "none")
        if not isinstance(error, ProtocolError):
            self._metrics.unexpected(error)
            error = ProtocolError("internal", "a result", "an error in the server")
        self._metrics.errors.labels(error.code).inc()
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(1):
                await self._send(Failure(error.code, error.expected, error.got))
        await self._close(_CODES.get(error.code, CloseCode.POLICY), error.code)

    async def _close(self, code: int, reason: str) -> None:
        if self._socket.application_state != WebSocketState.CONNECTED:
            return
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, TimeoutError):
            async with asyncio.timeout(1):
                await self._socket.close(code, reason)


def _edit(session: Session, waiting: _Waiting) -> tuple[bool, SlotChanges | None, list[Failure]]:
    """Apply the requests before a frame to the session's points; return whether it restarts, changes, and errors."""
    size = waiting.header.height, waiting.header.width
    restarts = False
    failures: list[Failure] = []
    for request in waiting.requests:
        if isinstance(request, Reset):
            restarts = True
            for point_id in session.slots.ids if session.slots is not None else ():
                _remove(session, point_id)
        elif (failure := _apply(session, request, size)) is not None:
            failures.append(failure)
    if session.slots is None:
        return restarts, None, failures
    changes = session.slots.changes(size)
    session.slots.settle()
    if restarts:  # a new state has no point to free
        changes = changes._replace(freed=())
    return restarts, changes if changes.freed or changes.placed else None, failures


def _remove(session: Session, point_id: int) -> None:
    assert session.slots is not None, "a tracker's session"
    session.slots.remove(point_id)
    session.refs.pop(point_id, None)


class Allowance:
    """A token bucket: `rate` per second on average, as many at once.

    Args:
        rate: Per second.
    """

    def __init__(self, rate: float) -> None:
        self._rate, self._left, self._at_s = rate, rate, time.monotonic()

    def take(self) -> bool:
        """Take one; False if there is none left."""
        now_s = time.monotonic()
        self._left = min(self._rate, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _decode(served: Interface, waiting: _Waiting) -> Tensor:
    return served.to_clip(decode_frame(waiting.header, waiting.payload))


def _apply(session: Session, request: Add | Remove, size: tuple[int, int]) -> Failure | None:
    """Add or remove a point; return the error for a request that cannot be met."""
    slots = session.slots
    if slots is None:
        return Failure("points", "a tracker for points", f"the classifier {session.batcher.served.name}")
    if isinstance(request, Remove):
        if request.id not in slots.ids:
            return Failure("points", "the id of a point", str(request.id))
        _remove(session, request.id)
        return None
    try:
        check_inside(request.x, request.y, size)
        session.refs[slots.add(request.x, request.y)] = request.ref
    except InputError:
        if len(slots.ids) == slots.max_points:
            return Failure("points", f"at most {slots.max_points} points", f"one more, {request.ref!r}")
        where = f"x in 0..{size[1]} and y in 0..{size[0]} pixels"
        return Failure("points", where, f"x={request.x:g}, y={request.y:g} for {request.ref!r}")
    return None


def _top(labels: tuple[str, ...], probs: Any) -> tuple[TopClass, ...]:
    order = np.argsort(-probs, kind="stable")[:TOP]
    return tuple(TopClass(labels[index], round(float(probs[index]), 6)) for index in order)


def _points(session: Session, flight: _InFlight, slots: LivePoints) -> tuple[PointResult, ...]:
    header, rows = flight.waiting.header, flight.rows
    points_xy = slots.points_xy[rows] * np.array([header.width, header.height], np.float32)
    return tuple(
        PointResult(
            point_id,
            session.refs.get(point_id, ""),
            round(float(x), 4),
            round(float(y), 4),
            bool(visible),
            round(float(certainty), 4),
        )
        for point_id, (x, y), visible, certainty in zip(
            flight.ids, points_xy, slots.visible[rows], slots.certainty[rows], strict=True
        )
    )
