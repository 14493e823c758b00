"""Batches of streams: ready streams of one model are stepped together, each with its own state."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trecvit.config import Preprocessing
from trecvit.errors import StateError
from trecvit.model.state import State, StreamState
from trecvit.model.tracker import PointTracker, TrackerState
from trecvit.model.trecvit import TRecViT
from trecvit.runtime.live import LivePoints, PointSlots, SlotChanges
from trecvit.runtime.predict import class_labels
from trecvit.video.frames import Image
from trecvit.video.transforms import to_clip, to_whole_clip

WAIT_S = 0.005
"""Longest time that a frame waits for frames of other streams."""

MAX_BATCH = 64
_ACTIVE_S = 1.0  # streams that sent a frame within this time are waited for

_State = TypeVar("_State", bound=StreamState)
_Result = TypeVar("_Result")
_Returned = TypeVar("_Returned")


@dataclass(eq=False)
class Interface:
    """What the server has to know of a model to accept frames for it, wherever the model is.

    Attributes:
        name: Name that clients use.
        labels: Names of the classes; empty for a tracker.
        max_points: Points per stream; 0 for a classifier.
        preprocessing: Size of the frames given to the model, and the clips that it was trained on.
    """

    name: str
    labels: tuple[str, ...]
    max_points: int
    preprocessing: Preprocessing

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the frames given to the model."""
        return self.preprocessing.image_size

    def to_clip(self, image: Image) -> Tensor:
        """Convert a frame `[H, W, 3]` to the model's input `[1, 3, h, w]`: all of it for a tracker, else the centre."""
        convert = to_whole_clip if self.max_points else to_clip
        return convert(image[None], self.image_size)


class Served(Interface, ABC, Generic[_State, _Result]):
    """A model as a batcher uses it."""

    @abstractmethod
    def init_state(self) -> _State:
        """Return the state of one new stream."""

    @abstractmethod
    def step(self, clips: Tensor, state: _State) -> tuple[Sequence[_Result], _State]:
        """Step B streams by one frame each, `[B, 1, 3, h, w]`; return a result for each."""


class ServedClassifier(Served[State, npt.NDArray[np.float32]]):
    """A classifier; results are probabilities `[V]` given all frames of the stream."""

    def __init__(self, name: str, model: TRecViT) -> None:
        super().__init__(name, class_labels(model), 0, model.preprocessing)
        self.model = model

    def init_state(self) -> State:
        """See `Served`."""
        return self.model.init_state(1)

    def step(self, clips: Tensor, state: State) -> tuple[Sequence[npt.NDArray[np.float32]], State]:
        """See `Served`."""
        out, state = self.model.step(clips.to(self.model.device), state)
        assert out.probs is not None, "class_labels refuses models without a head"
        return list(out.probs.float().cpu().numpy()), state


class ServedTracker(Served[TrackerState, LivePoints]):
    """A tracker; results are all slots `[max_points + 1]`, positions as fractions of the frame's width and height."""

    def __init__(self, name: str, tracker: PointTracker, max_points: int) -> None:
        super().__init__(name, (), max_points, tracker.preprocessing)
        self.model = tracker

    def init_state(self) -> TrackerState:
        """See `Served`; all slots are empty."""
        return PointSlots(self.max_points).init_state(self.model, self.image_size)

    def step(self, clips: Tensor, state: TrackerState) -> tuple[Sequence[LivePoints], TrackerState]:
        """See `Served`."""
        out, state = self.model.step(clips.to(self.model.device), state)
        height, width = self.image_size
        points_xy = out.points_xy[:, :, 0].float().cpu().numpy() / np.array([width, height], np.float32)
        visible, certainty = out.visible[:, :, 0].cpu().numpy(), out.certainty[:, :, 0].float().cpu().numpy()
        return [LivePoints(*row) for row in zip(points_xy, visible, certainty, strict=True)], state


@dataclass(frozen=True)
class Answer(Generic[_Result]):
    """The result of one frame.

    Attributes:
        result: Of `Served.step`.
        seen: Frames that the stream's state has seen.
        started_s: Start of the step, `time.perf_counter`.
        step_ms: Time of the step.
        batch: Streams in the batch.
        state: The stream's state after this frame, if it was requested.
    """

    result: _Result
    seen: int
    started_s: float
    step_ms: float
    batch: int
    state: StreamState | None = None


@dataclass
class _Work:
    key: int
    clip: Tensor
    restarts: bool
    changes: SlotChanges | None
    keep: bool
    submitted_s: float = field(default_factory=time.perf_counter)
    future: Future[Answer[Any]] = field(default_factory=Future)


class JointStates:
    """States of many streams; those of the last batch stay joined, so that the same batch costs no copy again."""

    def __init__(self) -> None:
        self._joint: StreamState | None = None
        self._rows: list[int] = []
        self._apart: dict[int, StreamState] = {}

    def __len__(self) -> int:
        return len(self._rows) + len(self._apart)

    def put(self, key: int, state: StreamState) -> None:
        """Add a stream, or replace its state."""
        self.drop(key)
        self._apart[key] = state

    def get(self, key: int) -> StreamState:
        """Return the state of one stream.

        Raises:
            StateError: There is no such stream.
        """
        if key in self._apart:
            return self._apart[key]
        if self._joint is None or key not in self._rows:
            raise StateError(f"expected an open stream, got stream {key}, which is closed")
        return self._joint.select([self._rows.index(key)])

    def drop(self, key: int) -> None:
        """Remove a stream, if there is one."""
        if key in self._rows:
            self._keep([other for other in self._rows if other != key])
        self._apart.pop(key, None)

    def gather(self, keys: Sequence[int]) -> tuple[list[int], StreamState]:
        """Join the states of these streams; return their order in the batch and its state."""
        wanted = set(keys)
        for key in [other for other in self._rows if other not in wanted]:
            self._apart[key] = self.get(key)
        self._keep([key for key in self._rows if key in wanted])
        joining = [key for key in keys if key in self._apart]
        parts = [self._joint] if self._joint is not None else []
        parts += [self._apart.pop(key) for key in joining]
        self._rows += joining
        self._joint = parts[0] if len(parts) == 1 else type(parts[0]).cat(parts)
        return list(self._rows), self._joint

    def replace(self, state: StreamState) -> None:
        """Set the state of the batch that `gather` returned."""
        self._joint = state

    def _keep(self, keys: list[int]) -> None:
        if len(keys) == len(self._rows):
            return
        assert self._joint is not None, "rows have a state"
        self._joint = self._joint.select([self._rows.index(key) for key in keys]) if keys else None
        self._rows = keys


class ModelStreams(ABC):
    """All streams of one model. Frames of one stream are processed in the order of `submit`.

    Attributes:
        served: What to know of the model.
        state_bytes: Size of a stream's state.
        observe: Called with the size of each batch and its time in seconds, in any thread.
    """

    served: Interface
    state_bytes: int
    observe: Callable[[int, float], None] = staticmethod(lambda size, seconds: None)

    @property
    @abstractmethod
    def is_alive(self) -> bool:
        """Whether frames are processed."""

    @abstractmethod
    def init_state(self) -> StreamState:
        """Return the state of one new stream."""

    @abstractmethod
    def open(self, state: StreamState | None = None) -> int:
        """Add a stream, new or with a state; return its key."""

    @abstractmethod
    def submit(
        self,
        key: int,
        clip: Tensor,
        *,
        restarts: bool = False,
        changes: SlotChanges | None = None,
        keep: bool = False,
    ) -> Future[Answer[Any]]:
        """Add the next frame of a stream.

        Args:
            key: The stream.
            clip: Of `Interface.to_clip`.
            restarts: Whether the stream begins anew with this frame.
            changes: Changes of a tracker's slots before this frame, and after the restart.
            keep: Whether the answer holds the stream's state.
        """

    @abstractmethod
    def state(self, key: int) -> Future[StreamState]:
        """Return a stream's state after the frames that have been processed."""

    @abstractmethod
    def drop(self, key: int) -> None:
        """Remove a stream; its waiting frames are cancelled."""

    @abstractmethod
    def close(self) -> None:
        """End after the current batch; waiting frames are cancelled."""


class Batcher(ModelStreams):
    """A thread that steps the ready streams of one model together.

    A batch holds at most one frame of each stream; it starts when all active streams have a frame, or `WAIT_S` after
    the first of its frames was submitted.

    Args:
        served: The model.
        max_batch: Largest batch.
    """

    def __init__(self, served: Served[Any, Any], *, max_batch: int = MAX_BATCH) -> None:
        self.served: Served[Any, Any] = served
        self.state_bytes = served.init_state().nbytes
        self._max_batch = max_batch
        self._states = JointStates()
        self._condition = threading.Condition()
        self._pending: dict[int, deque[_Work]] = {}
        self._last_submitted_s: dict[int, float] = {}
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._wanted = 1  # number of streams with a frame at which the thread is woken
        self._next_key = 0
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=f"batcher-{served.name}", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def init_state(self) -> StreamState:
        """See `ModelStreams`."""
        state: StreamState = self.served.init_state()
        return state

    def open(self, state: StreamState | None = None) -> int:
        """See `ModelStreams`."""
        state = self.served.init_state() if state is None else state
        with self._condition:
            key, self._next_key = self._next_key, self._next_key + 1
        self._call(lambda: self._states.put(key, state))
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
        work = _Work(key, clip, restarts, changes, keep)
        with self._condition:
            if self._is_closed:
                raise StateError("expected an open batcher, got one that was closed")
            self._pending.setdefault(key, deque()).append(work)
            self._last_submitted_s[key] = work.submitted_s
            if len(self._pending) >= self._wanted:
                self._condition.notify()
        return work.future

    def state(self, key: int) -> Future[StreamState]:
        """See `ModelStreams`."""
        return self._call(lambda: self._states.get(key))

    def drop(self, key: int) -> None:
        """See `ModelStreams`."""
        with self._condition:
            for work in self._pending.pop(key, ()):
                work.future.cancel()
            self._last_submitted_s.pop(key, None)
        self._call(lambda: self._states.drop(key))

    def close(self) -> None:
        """See `ModelStreams`."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self._thread.join()
        for works in self._pending.values():
            for work in works:
                work.future.cancel()
        self._pending.clear()

    def _call(self, function: Callable[[], _Returned]) -> Future[_Returned]:
        """Run a function between batches, in the thread that owns the states."""
        future: Future[_Returned] = Future()
        with self._condition:
            if self._is_closed:
                future.set_exception(StateError("expected an open batcher, got one that was closed"))
                return future
            self._calls.append((function, future))
            self._condition.notify()
        return future

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._condition:
                    calls, works = self._collect()
                    if self._is_closed and not calls:
                        return
                for function, future in calls:
                    _resolve(future, function)
                if works:
                    self._step(works)

    def _collect(self) -> tuple[list[tuple[Callable[[], Any], Future[Any]]], list[_Work]]:
        """Wait for calls or a batch; the lock is held."""
        self._wanted = 1
        while not (self._pending or self._calls or self._is_closed):
            self._condition.wait()
        if self._pending and not self._calls:
            first_s = min(works[0].submitted_s for works in self._pending.values())
            active = sum(at_s > first_s - _ACTIVE_S for at_s in self._last_submitted_s.values())
            self._wanted = min(active, self._max_batch)
            while len(self._pending) < self._wanted and not self._calls and not self._is_closed:
                left_s = first_s + WAIT_S - time.perf_counter()
                if left_s <= 0 or not self._condition.wait(left_s):
                    break
        calls = list(self._calls)
        self._calls.clear()
        if calls or self._is_closed:
            return calls, []
        oldest_first = sorted(self._pending, key=lambda key: self._pending[key][0].submitted_s)
        works = []
        for key in oldest_first[: self._max_batch]:
            works.append(self._pending[key].popleft())
            if not self._pending[key]:
                del self._pending[key]
        return [], works

    def _step(self, works: list[_Work]) -> None:
        works = [work for work in works if work.future.set_running_or_notify_cancel()]
        for work in list(works):
            try:
                self._edit(work)
            except Exception as error:
                works.remove(work)
                work.future.set_exception(error)
        if not works:
            return
        started_s = time.perf_counter()
        by_key = {work.key: work for work in works}
        order, state = self._states.gather(list(by_key))
        try:
            results, state = self.served.step(torch.stack([by_key[key].clip for key in order]), state)
        except Exception as error:  # the states stay those before this frame
            for work in works:
                work.future.set_exception(error)
            return
        self._states.replace(state)
        seconds = time.perf_counter() - started_s
        seen = state.frames_seen.tolist()
        for row, key in enumerate(order):
            kept = self._states.get(key) if by_key[key].keep else None
            answer = Answer(results[row], seen[row], started_s, seconds * 1000, len(order), kept)
            by_key[key].future.set_result(answer)
        self.observe(len(order), seconds)

    def _edit(self, work: _Work) -> None:
        """Change a stream's state before its frame. Raises StateError if there is no such stream."""
        before = self._states.get(work.key)
        state: Any = self.served.init_state() if work.restarts else before
        if work.changes is not None:
            state = work.changes.apply(state)
        if state is not before:
            self._states.put(work.key, state)


def _resolve(future: Future[_Returned], function: Callable[[], _Returned]) -> None:
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
