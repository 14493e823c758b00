"""Models in Ray actors. A stream is pinned to an actor by hash, and moves to another one by its last saved state.

This process keeps, for each stream, the file that `State.save` wrote and the frames since then. When its actor dies, or
one is added to which the hash pins it, the stream is opened from that file in the other actor and these frames are
repeated there: each frame gets one answer, that of an uninterrupted run.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trecvit.errors import ConfigError, StateError, TRecViTError
from trecvit.model.state import StreamState
from trecvit.runtime.cluster import ray, room
from trecvit.runtime.live import SlotChanges
from trecvit.serve.batching import Answer, Batcher, Interface, ModelStreams, Served

SAVE_EVERY = 32
"""Frames of a stream between two saves of its state: at most about as many are repeated when it moves."""

_PATIENCE_S = 20.0  # until the first actor, before the user hears of what is waited for
_RESTART_S = 1.0  # between the end of an actor and the start of the next one
_MOST_LOSSES = 3  # actors that may die one after another under the same frames, before these are given up

Load = Callable[[], Sequence[Served[Any, Any]]]


class _Input(NamedTuple):
    """A frame on its way to an actor: its clip `[1, 3, h, w]` uint8, and what changes before it."""

    clip: npt.NDArray[np.uint8]
    restarts: bool
    changes: SlotChanges | None


class _Hosted(NamedTuple):
    """A model in an actor, as the server has to know it."""

    interface: Interface
    state_class: type[StreamState]
    initial: bytes


class _Advanced(NamedTuple):
    """What a call returns: an answer or error for each frame, the state if it was to be saved, and batches run."""

    answers: list[Answer[Any] | Exception]
    saved: bytes | None
    batches: list[tuple[int, float]]


class Host:
    """All models of a server in one actor, a batcher for each. It has one call of a stream at a time."""

    def __init__(self) -> None:
        self._batchers: dict[str, Batcher] = {}
        self._batches: dict[str, list[tuple[int, float]]] = defaultdict(list)
        self._keys: dict[tuple[str, int], int] = {}

    def load(self, load: Load) -> list[_Hosted]:
        """Load the models."""
        for served in load():
            batcher = self._batchers[served.name] = Batcher(served)
            batcher.observe = partial(_append, self._batches[served.name])
        return [_hosted(batcher) for batcher in self._batchers.values()]

    async def advance(
        self, model: str, stream: int, inputs: list[_Input], *, opens: bool, saved: bytes | None, saves: bool
    ) -> _Advanced:
        """Process the next frames of a stream.

        Args:
            model: Name of the model.
            stream: Number of the stream.
            inputs: The frames; there may be none.
            opens: Whether the stream is opened with this call.
            saved: Its state then; None for a new one.
            saves: Whether to return the state after these frames.
        """
        batcher = self._batchers[model]
        if opens:
            initial = batcher.init_state()
            state = initial if saved is None else _load(type(initial), saved, initial.device)
            self._keys[model, stream] = batcher.open(state)
        key = self._keys[model, stream]
        futures = [
            batcher.submit(key, torch.tensor(clip), restarts=restarts, changes=changes)
            for clip, restarts, changes in inputs
        ]
        answers = [await _outcome(future) for future in futures]
        state_file = _save(await asyncio.wrap_future(batcher.state(key))) if saves else None
        batches = self._batches[model][:]
        del self._batches[model][: len(batches)]
        return _Advanced(answers, state_file, batches)

    def drop(self, model: str, stream: int) -> None:
        """Remove a stream, if there is one."""
        if (key := self._keys.pop((model, stream), None)) is not None:
            self._batchers[model].drop(key)

    async def watch(self) -> None:
        """Never return: the caller gets an error when the actor dies."""
        await asyncio.Event().wait()


@dataclass(eq=False)
class _Member:
    """An actor that has loaded its models."""

    id: str
    actor: Any


@dataclass(eq=False)
class _Frame:
    """A frame of a stream since its last save; without a clip, a request for the state."""

    clip: Tensor | None
    restarts: bool = False
    changes: SlotChanges | None = None
    keep: bool = False
    future: Future[Any] = field(default_factory=Future)
    is_sent: bool = False
    is_answered: bool = False


@dataclass(eq=False)
class _Stream:
    """A stream: its last saved state, None for a new one, and all frames since then."""

    saved: bytes | None
    frames: list[_Frame] = field(default_factory=list)
    member: _Member | None = None
    losses: int = 0
    task: asyncio.Task[None] | None = None


class Actors:
    """Actors with the same models, each replaced when it dies. Use as a context.

    Where the cluster has no room for all, those that it has room for serve, and the others join when it grows.

    Args:
        load: Loads the models, called in each actor.
        count: Number of actors.
        num_gpus: GPUs of each actor.
        report: Called with a line for each actor that joins or is lost.

    Attributes:
        models: The streams of each model.
        count: Number of actors, with those that are being started.

    Raises:
        TRecViTError: The models could not be loaded.
    """

    def __init__(
        self, load: Load, count: int, *, num_gpus: int = 0, report: Callable[[str], None] = lambda line: None
    ) -> None:
        self._load, self._report, self.count = load, report, 0
        self._host: Any = ray.remote(Host).options(num_cpus=1, num_gpus=num_gpus, scheduling_strategy="SPREAD")
        self._members: list[_Member] = []
        self._loop = asyncio.new_event_loop()
        self._changed = asyncio.Event()
        self._first: Future[list[_Hosted]] = Future()
        self._thread = threading.Thread(target=self._loop.run_forever, name="actors", daemon=True)
        self._thread.start()
        for _ in range(count):
            self.add()
        try:
            self.models: list[ModelStreams] = [ActorStreams(self, hosted) for hosted in self._wait_for_first()]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Actors:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def num_members(self) -> int:
        """Actors that serve."""
        return len(self._members)

    def add(self) -> None:
        """Start one more actor; it serves once it has loaded the models."""
        self.count += 1
        self.run(self._keep_alive())

    def close(self) -> None:
        """End all actors."""
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the thread that has all members and streams."""
        asyncio.run_coroutine_threadsafe(work, self._loop)

    async def member_of(self, stream: str) -> _Member:
        """Return the actor that a stream is pinned to, when there is one.

        The largest of the hashes with each actor decides: an actor that joins takes its share of the streams, one that
        is lost leaves its own to the others, and no other stream moves.
        """
        while not self._members:
            self._changed.clear()
            await self._changed.wait()
        return max(self._members, key=lambda member: hashlib.sha256(f"{member.id} {stream}".encode()).digest())

    def has(self, member: _Member) -> bool:
        """Return whether an actor serves."""
        return member in self._members

    def lose(self, member: _Member) -> None:
        """Give no more work to an actor that did not answer."""
        if member in self._members:
            self._members.remove(member)
            self._report(f"an actor was lost, {len(self._members)} of {self.count} serve; its streams move")

    def _wait_for_first(self) -> list[_Hosted]:
        while True:
            try:
                return self._first.result(_PATIENCE_S)
            except TimeoutError:
                there = f"{room('CPU'):g} CPUs and {room('GPU'):g} GPUs"
                self._report(f"waiting for the first actor to load its models; the cluster has {there}")

    async def _keep_alive(self) -> None:
        """Run an actor; when it dies, another one."""
        while True:
            actor = self._host.remote()
            member = _Member(actor._actor_id.hex(), actor)
            try:
                hosted = await actor.load.remote(self._load)
                self._members.append(member)
                self._changed.set()
                self._report(f"an actor joined, {len(self._members)} of {self.count} serve")
                if not self._first.done():
                    self._first.set_result(hosted)
                await actor.watch.remote()
            except ray.exceptions.RayError as error:
                if not self._first.done():
                    self._first.set_exception(_reason(error))
                    return
                if self.has(member):
                    self.lose(member)
                else:
                    self._report(str(_reason(error)))
            finally:
                ray.kill(actor)
            await asyncio.sleep(_RESTART_S)


class ActorStreams(ModelStreams):
    """All streams of one model in actors.

    Args:
        actors: The actors.
        hosted: The model in them.
    """

    def __init__(self, actors: Actors, hosted: _Hosted) -> None:
        self._actors, self._hosted = actors, hosted
        self.served = hosted.interface
        self._initial = _load(hosted.state_class, hosted.initial)
        self.state_bytes = self._initial.nbytes
        self._streams: dict[int, _Stream] = {}
        self._lock = threading.Lock()
        self._next_key = 0
        self._is_closed = False

    @property
    def is_alive(self) -> bool:
        """Whether there is an actor."""
        return self._actors.num_members > 0

    def init_state(self) -> StreamState:
        """See `ModelStreams`."""
        return self._initial

    def open(self, state: StreamState | None = None) -> int:
        """See `ModelStreams`."""
        with self._lock:
            key, self._next_key = self._next_key, self._next_key + 1
        self._streams[key] = _Stream(None if state is None else _save(state))
        return key

    def submit(
        self,
        key: int,
        clip: Tensor,
        *,
        restarts: bool = False,
        changes: SlotChanges | None = None,
        keep: bool = False,
    ) -> Future[Answer[Any]]:
        """See `ModelStreams`."""
        return self._add(key, _Frame(clip, restarts, changes, keep))

    def state(self, key: int) -> Future[StreamState]:
        """See `ModelStreams`."""
        return self._add(key, _Frame(None, keep=True))

    def drop(self, key: int) -> None:
        """See `ModelStreams`."""
        self._actors.run(self._drop(key))

    def close(self) -> None:
        """See `ModelStreams`."""
        self._is_closed = True
        for key in list(self._streams):
            self.drop(key)

    def _add(self, key: int, frame: _Frame) -> Future[Any]:
        if self._is_closed:
            raise StateError("expected open streams, got streams that were closed")
        self._actors.run(self._append(key, frame))
        return frame.future

    async def _append(self, key: int, frame: _Frame) -> None:
        stream = self._streams.get(key)
        if stream is None:
            frame.future.set_exception(StateError(f"expected an open stream, got stream {key}, which is closed"))
            return
        stream.frames.append(frame)
        self._wake(key, stream)

    async def _drop(self, key: int) -> None:
        if (stream := self._streams.pop(key, None)) is None:
            return
        for frame in stream.frames:
            frame.future.cancel()
        self._wake(key, stream)

    def _wake(self, key: int, stream: _Stream) -> None:
        if stream.task is None or stream.task.done():
            stream.task = asyncio.create_task(self._run(key, stream))

    async def _run(self, key: int, stream: _Stream) -> None:
        """Process frames until none waits. Calls follow each other, since an actor may start them in another order."""
        while key in self._streams and not all(frame.is_answered for frame in stream.frames):
            member = await self._actors.member_of(f"{self.served.name} {key}")
            try:
                await self._advance(key, stream, member)
            except ray.exceptions.RayActorError as error:
                self._actors.lose(member)
                stream.member, stream.losses = None, stream.losses + 1
                if stream.losses > _MOST_LOSSES:
                    self._give_up(key, stream, error)
            except Exception as error:
                self._give_up(key, stream, error)
        if key not in self._streams:
            self._leave(key, stream)

    async def _advance(self, key: int, stream: _Stream, member: _Member) -> None:
        """Send the frames that wait to an actor, and set their answers; all since the last save, if it is another."""
        opens = member is not stream.member
        if opens:
            self._leave(key, stream)
        stream.frames = [frame for frame in stream.frames if frame.is_sent or _starts(frame)]
        first_kept = next((place for place, frame in enumerate(stream.frames) if frame.keep), len(stream.frames))
        batch = stream.frames[: first_kept + 1]  # a state to be kept is that after the last frame of a call
        sent = [frame for frame in batch if frame.clip is not None and (opens or not frame.is_answered)]
        advanced: _Advanced = await member.actor.advance.remote(
            self.served.name,
            key,
            [_Input(frame.clip.numpy(), frame.restarts, frame.changes) for frame in sent if frame.clip is not None],
            opens=opens,
            saved=stream.saved if opens else None,
            saves=first_kept < len(stream.frames) or len(batch) >= SAVE_EVERY,
        )
        stream.member, stream.losses = member, 0
        for frame, answer in zip(sent, advanced.answers, strict=True):
            if frame.is_answered and isinstance(answer, Exception):  # so the state is not what its client has seen
                raise answer
        now_s = time.perf_counter()
        state = None
        if advanced.saved is not None:
            stream.saved = advanced.saved
            stream.frames = stream.frames[len(batch) :]
            state = _load(self._hosted.state_class, advanced.saved) if batch[-1].keep else None
        for size, seconds in advanced.batches:
            self.observe(size, seconds)
        for frame, answer in zip(sent, advanced.answers, strict=True):
            if isinstance(answer, Exception):
                if frame in stream.frames:
                    stream.frames.remove(frame)  # it changed nothing
                frame.future.set_exception(answer)
            elif not frame.is_answered:
                kept = state if frame.keep else None
                frame.future.set_result(replace(answer, started_s=answer.started_s + now_s, state=kept))
            frame.is_answered = True
        if batch and batch[-1].clip is None:
            batch[-1].future.set_result(state)

    def _give_up(self, key: int, stream: _Stream, error: Exception) -> None:
        self._streams.pop(key, None)
        for frame in stream.frames:
            if not frame.future.done():
                frame.future.set_exception(error)

    def _leave(self, key: int, stream: _Stream) -> None:
        """Remove a stream from its actor, if it has one."""
        if stream.member is not None and self._actors.has(stream.member):
            stream.member.actor.drop.remote(self.served.name, key)
        stream.member = None


async def _outcome(future: Future[Answer[Any]]) -> Answer[Any] | Exception:
    """Return a frame's answer or error. Times are relative to now, since another machine has another clock."""
    try:
        answer = await asyncio.wrap_future(future)
    except Exception as error:
        return error
    return replace(answer, started_s=answer.started_s - time.perf_counter())


def _append(batches: list[tuple[int, float]], size: int, seconds: float) -> None:
    batches.append((size, seconds))


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _reason(error: Exception) -> Exception:
    """Return why an actor could not load the models, as an error of this package."""
    cause = getattr(error, "cause", error)
    if isinstance(cause, TRecViTError):
        return cause
    return ConfigError(f"--ray: expected an actor that loads the models, got: {str(cause).splitlines()[0]}")


def _starts(frame: _Frame) -> bool:
    """Mark a frame as sent; False if it was cancelled before."""
    frame.is_sent = frame.future.set_running_or_notify_cancel()
    return frame.is_sent


def _hosted(batcher: Batcher) -> _Hosted:
    served, initial = batcher.served, batcher.init_state()
    interface = Interface(served.name, served.labels, served.max_points, served.preprocessing)
    return _Hosted(interface, type(initial), _save(initial))


def _save(state: StreamState) -> bytes:
    """Return the file that `State.save` writes: of any device, and checked when it is read."""
    with tempfile.TemporaryDirectory(prefix="trecvit-") as folder:
        path = Path(folder) / "state"
        state.save(path)
        return path.read_bytes()


def _load(state_class: type[StreamState], content: bytes, device: torch.device | str = "cpu") -> StreamState:
    with tempfile.TemporaryDirectory(prefix="trecvit-") as folder:
        path = Path(folder) / "state"
        path.write_bytes(content)
        return state_class.load(path, device=device)
