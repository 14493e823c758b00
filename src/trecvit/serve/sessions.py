"""Sessions: streams of clients that outlive their sockets, kept within limits, and saved to a folder."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trecvit.errors import StateError, TRecViTError
from trecvit.model.state import StreamState
from trecvit.runtime.live import PointSlots
from trecvit.serve.batching import ModelStreams
from trecvit.serve.protocol import ProtocolError
from trecvit.serve.saved import SessionFolder, SessionRecord

if TYPE_CHECKING:
    from trecvit.serve.connection import Connection


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a server.

    Attributes:
        max_sessions: Sessions with a socket.
        max_connections: Sockets and HTTP connections.
        max_frame_bytes: A message of a client.
        max_pixels: Width times height of a frame, and of an uploaded video.
        credit: Frames that a client may send without a result, and results that it may leave unacknowledged.
        messages_per_s: Messages of one socket, averaged over a second.
        state_bytes: States of all sessions; sessions without a socket are evicted to keep it.
        idle_s: Time after which a session without a socket is evicted, and a silent socket closed.
        hello_s: Time for the first message of a socket, and for the head of an HTTP request.
        max_upload_bytes: An uploaded file.
        max_upload_frames: Frames of an uploaded file that are tracked.
        max_uploads: Uploads processed at a time.
        save_every_s: Least time between two saves of a session with a socket.
        folder_bytes: Saved sessions.
    """

    max_sessions: int = 64
    max_connections: int = 512
    max_frame_bytes: int = 4 * 2**20
    max_pixels: int = 2_100_000
    credit: int = 4
    messages_per_s: float = 1000.0
    state_bytes: int = 2**30
    idle_s: float = 300.0
    hello_s: float = 10.0
    max_upload_bytes: int = 200_000_000
    max_upload_frames: int = 36_000
    max_uploads: int = 2
    save_every_s: float = 1.0
    folder_bytes: int = 2**32


class Session:
    """One client's stream.

    Attributes:
        id: Public id, derived from the token.
        token_hash: SHA-256 of the token, in hexadecimal digits.
        batcher: Streams of its model.
        key: Its stream there.
        slots: Points of a tracker's session.
        refs: The client's names of the points, by id.
        frame: Number of the last frame that the state has seen.
        seen: Frames that the state has seen since it began.
        dropped: Frames that were replaced before they were processed.
        last_result: Text of the last result.
        connection: Its socket, if any.
        active_s: Time of the last activity, `time.monotonic`.
        saved_s: Time of the last save while it has a socket.
    """

    def __init__(self, session_id: str, token_hash: str, batcher: ModelStreams, key: int) -> None:
        self.id, self.token_hash = session_id, token_hash
        self.batcher, self.key = batcher, key
        max_points = batcher.served.max_points
        self.slots = PointSlots(max_points) if max_points else None
        self.refs: dict[int, str] = {}
        self.frame: int | None = None
        self.seen = self.dropped = 0
        self.last_result: str | None = None
        self.connection: Connection | None = None
        self.active_s = self.saved_s = time.monotonic()

    def record(self) -> SessionRecord:
        """Describe the session for a file."""
        return SessionRecord(
            id=self.id,
            token_hash=self.token_hash,
            model=self.batcher.served.name,
            frame=self.frame,
            seen=self.seen,
            dropped=self.dropped,
            slots=self.slots.to_dict() if self.slots else None,
            refs=tuple(self.refs.items()),
            last_result=self.last_result,
        )

    def restore(self, record: SessionRecord) -> None:
        """Set what `record` describes."""
        self.frame, self.seen, self.dropped = record.frame, record.seen, record.dropped
        self.last_result, self.refs = record.last_result, dict(record.refs)
        if record.slots is not None:
            self.slots = PointSlots.from_dict(record.slots)

    def to_dict(self) -> dict[str, Any]:
        """Return what `GET /v1/sessions/{id}` tells its owner."""
        return {
            "session": self.id,
            "model": self.batcher.served.name,
            "frame": self.frame,
            "seen": self.seen,
            "dropped": self.dropped,
            "points": len(self.slots.ids) if self.slots else 0,
            "connected": self.connection is not None,
            "state_bytes": self.batcher.state_bytes,
        }


class Sessions:
    """All sessions of a server. Its methods run in the event loop; states are in the batchers' threads.

    Args:
        batchers: By the models' names.
        limits: Its limits.
        folder: Where sessions are saved.
        evicted: Called for each session that is evicted from memory.
        failed: Called, in another thread, with the error of a session that could not be saved.
    """

    def __init__(
        self,
        batchers: Mapping[str, ModelStreams],
        limits: Limits,
        folder: SessionFolder | None = None,
        *,
        evicted: Callable[[], None] = lambda: None,
        failed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.batchers, self.limits, self.folder = batchers, limits, folder
        self._evicted, self._failed = evicted, failed
        self._by_id: dict[str, Session] = {}
        # One thread, so that the saves of a session are written in their order.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="sessions")
        self._resuming: dict[str, asyncio.Lock] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def num_connected(self) -> int:
        """Sessions with a socket."""
        return sum(session.connection is not None for session in self._by_id.values())

    @property
    def state_bytes(self) -> int:
        """Size of all states in memory."""
        return sum(session.batcher.state_bytes for session in self._by_id.values())

    def create(self, model: str) -> tuple[Session, str]:
        """Create a session and its token.

        Raises:
            ProtocolError: There is no such model, or no room.
        """
        batcher = self._batcher(model)
        self._make_room(batcher.state_bytes)
        token = secrets.token_hex(16)
        session = Session(*_names_of(token), batcher, batcher.open())
        self._by_id[session.id] = session
        return session, token

    async def resume(self, token: str, model: str) -> Session:
        """Return the session of a token, from memory or the folder.

        Raises:
            ProtocolError: There is none, it is of another model, or there is no room.
        """
        session_id, token_hash = _names_of(token)
        lock = self._resuming.setdefault(session_id, asyncio.Lock())
        try:
            async with lock:
                session = self._by_id.get(session_id) or await self._load(session_id, token_hash)
        finally:
            if not lock.locked():
                self._resuming.pop(session_id, None)
        if session is None or not hmac.compare_digest(session.token_hash, token_hash):
            raise ProtocolError("resume", "the token of a session that is kept", "another, or one that has expired")
        if session.batcher is not self._batcher(model):
            raise ProtocolError("resume", f"the session's model, {session.batcher.served.name}", model)
        if session.connection is None:
            self._make_room(0)
        return session

    def find(self, session_id: str, token: str) -> Session | None:
        """Return a session in memory for the holder of its token."""
        session = self._by_id.get(session_id)
        if session is None or not hmac.compare_digest(session.token_hash, _names_of(token)[1]):
            return None
        return session

    async def disconnect(self, session: Session) -> None:
        """Save a session whose socket has ended, and keep it for a while; without a frame it is forgotten."""
        session.active_s = time.monotonic()
        if session.connection is not None or session.id not in self._by_id:
            return
        if session.frame is None:
            self._forget(session)
        elif self.folder is not None:
            with suppress(StateError):  # deleted meanwhile
                state = await asyncio.wrap_future(session.batcher.state(session.key))
                if session.connection is None:
                    self.save(session.record(), state)

    def save(self, record: SessionRecord, state: StreamState) -> None:
        """Have a session written to the folder, after all that were given before it."""
        assert self.folder is not None, "the caller checks"
        self._disk.submit(self.folder.save, record, state).add_done_callback(self._check_saved)

    def _check_saved(self, saved: Future[None]) -> None:
        if not saved.cancelled() and (error := saved.exception()) is not None:
            self._failed(error)

    async def delete(self, session: Session) -> None:
        """Forget a session, also in the folder."""
        self._forget(session)
        if self.folder is not None:
            await asyncio.get_running_loop().run_in_executor(self._disk, self.folder.delete, session.id)

    def sweep(self) -> None:
        """Evict the sessions without a socket whose time is over."""
        now_s = time.monotonic()
        for session in list(self._by_id.values()):
            if session.connection is None and now_s - session.active_s > self.limits.idle_s:
                self._evict(session)

    async def close(self) -> None:
        """Wait for saves and release the folder; the sockets have ended."""
        await asyncio.get_running_loop().run_in_executor(None, self._disk.shutdown)
        if self.folder is not None:
            self.folder.close()

    def _batcher(self, model: str) -> ModelStreams:
        if model not in self.batchers:
            raise ProtocolError("model", f"one of {', '.join(self.batchers)}", repr(model))
        return self.batchers[model]

    def _make_room(self, num_bytes: int) -> None:
        if self.num_connected >= self.limits.max_sessions:
            raise ProtocolError("full", f"at most {self.limits.max_sessions} sessions at a time", "one more")
        idle = [session for session in self._by_id.values() if session.connection is None]
        idle.sort(key=lambda session: session.active_s)
        while self.state_bytes + num_bytes > self.limits.state_bytes:
            if not idle:
                raise ProtocolError("full", f"states of at most {self.limits.state_bytes} bytes", "more")
            self._evict(idle.pop(0))

    async def _load(self, session_id: str, token_hash: str) -> Session | None:
        if self.folder is None:
            return None
        load = asyncio.get_running_loop().run_in_executor(self._disk, self.folder.load, session_id, self._state_class)
        try:
            loaded = await load
        except TRecViTError as exc:
            raise ProtocolError("resume", "a session that was saved whole", "damaged files") from exc
        if loaded is None or not hmac.compare_digest(loaded[0].token_hash, token_hash):
            return None
        record, state = loaded
        batcher = self._batcher(record.model)
        try:
            type(state).cat([batcher.init_state(), state])
        except StateError as exc:
            raise ProtocolError("resume", f"a state of {record.model} as it is now", "one of another version") from exc
        self._make_room(batcher.state_bytes)
        session = Session(session_id, token_hash, batcher, batcher.open(state))
        session.restore(record)
        self._by_id[session_id] = session
        return session

    def _state_class(self, model: str) -> type[StreamState]:
        return type(self._batcher(model).init_state())

    def _evict(self, session: Session) -> None:
        self._forget(session)
        self._evicted()

    def _forget(self, session: Session) -> None:
        if self._by_id.pop(session.id, None) is not None:
            session.batcher.drop(session.key)


def _names_of(token: str) -> tuple[str, str]:
    """Return a session's id and the hash of its token; the id is part of the hash, so a token finds its session."""
    token_hash = hashlib.sha256(token.encode()).hexdigest()
    return token_hash[:16], token_hash
