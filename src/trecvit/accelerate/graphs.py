"""A model's pass over frames recorded as CUDA graphs, one for each shape of its inputs.

A pass is some hundreds of short kernels, and for few streams the processor takes longer to launch them than the GPU to
run them. A graph launches all of them at once. It reads and writes fixed memory, which must not show: inputs are copied
into it, results out of it, so that a state stays a value that later steps do not change.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trecvit.errors import ConfigError
from trecvit.model.state import StreamState

_MAX_FRAMES = 8  # of longer clips, launches take a small part of the time, and graphs much memory
_MAX_GRAPHS = 16  # the one that was unused for longest goes
_WARM_UP = 3  # passes before the recording: kernels are compiled and chosen, and libraries take their memory

Record = Callable[[Callable[[], Any], torch.device], tuple[Callable[[], object], Any]]


@dataclass(frozen=True)
class _Graph:
    inputs: list[Tensor]
    replay: Callable[[], object]
    outputs: Any  # of the engine, in the graph's memory


class GraphEngine:
    """An engine that replays another one, see `trecvit.model.engine.Engine`.

    Calls may come from several threads and on several CUDA streams; they run one after the other.

    Args:
        engine: The pass: given tensors and, last, a state, it returns an output and the next state. It must neither
            wait for the GPU nor copy from or to the host's memory.
        record: Runs a pass and returns what repeats it, and the results, which each repetition overwrites.
    """

    def __init__(self, engine: Callable[..., Any], record: Record | None = None) -> None:
        self._engine = engine
        self._record = record or CudaRecorder()
        self._graphs: OrderedDict[tuple[Any, ...], _Graph] = OrderedDict()
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None  # of the last call's use of the graphs' memory

    def __call__(self, *args: Any) -> Any:
        """See `Engine`."""
        frames, state = args[0], args[-1]
        # Memory that outlives this call must not be of inference mode, which could not be written to outside it.
        with torch.inference_mode(False), torch.no_grad():
            if not 0 < frames.shape[1] <= _MAX_FRAMES or not len(frames):
                return self._engine(*args)
            with self._lock, torch.cuda.device(frames.device) if frames.is_cuda else nullcontext():
                return self._replayed(args, frames.device, state)

    def _replayed(self, args: tuple[Any, ...], device: torch.device, state: StreamState) -> Any:
        given = list(_tensors(args))
        key = tuple((tensor.shape, tensor.dtype) for tensor in given)
        if self._done is not None:
            torch.cuda.current_stream(device).wait_event(self._done)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._recorded(args, given, device)
            if len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        _copy(given, graph.inputs)
        graph.replay()
        results = self._results(graph, given)
        if device.type == "cuda":
            self._done = torch.cuda.Event()
            self._done.record(torch.cuda.current_stream(device))
        output, after = graph.outputs
        names = after._tensors()
        # In the caller's state: a model with other classes may use it, and its configuration is kept.
        return _rebuilt(output, results), state._with({name: next(results) for name in names})

    def _recorded(self, args: tuple[Any, ...], given: Sequence[Tensor], device: torch.device) -> _Graph:
        inputs = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in given]
        _copy(given, inputs)
        tensors = iter(inputs)
        fixed = tuple(_rebuilt(arg, tensors) for arg in args)
        replay, outputs = self._record(lambda: self._engine(*fixed), device)
        return _Graph(inputs, replay, outputs)

    def _results(self, graph: _Graph, given: Sequence[Tensor]) -> Iterator[Tensor]:
        """Copies of the graph's results; what a pass hands on unchanged is the caller's own tensor."""
        own = {id(fixed): tensor for fixed, tensor in zip(graph.inputs, given, strict=True)}
        results = list(_tensors(graph.outputs))
        changed = [tensor for tensor in results if id(tensor) not in own]
        copies = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in changed]
        _copy(changed, copies)
        own |= {id(tensor): copied for tensor, copied in zip(changed, copies, strict=True)}
        return iter([own[id(tensor)] for tensor in results])


class CudaRecorder:
    """Records CUDA graphs whose intermediate results share memory; see `GraphEngine`."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Any], device: torch.device) -> tuple[Callable[[], object], Any]:
        """Record a pass on the current device.

        Raises:
            ConfigError: The pass cannot be recorded.
        """
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        ahead, here = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        ahead.wait_stream(here)
        with torch.cuda.stream(ahead):
            for _ in range(_WARM_UP):
                run()
        here.wait_stream(ahead)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on using the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                outputs = run()
        except RuntimeError as exc:
            raise ConfigError(
                f"mode 'graphs': expected a pass that a CUDA graph can record, got {exc}; take 'eager' or 'compile'"
            ) from exc
        return graph.replay, outputs


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors of arguments or results, in an order of their own."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, StreamState):
        yield from value._tensors().values()
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


def _rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same value with other tensors, taken in the order of `_tensors`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, StreamState):
        return value._with({name: next(tensors) for name in value._tensors()})
    if isinstance(value, tuple):
        parts = [_rebuilt(part, tensors) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def _copy(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> None:
    """Copy tensors, those of one dtype in one kernel."""
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for source, target in zip(sources, targets, strict=True):
        mine, theirs = groups.setdefault(source.dtype, ([], []))
        mine.append(target)
        theirs.append(source)
    for mine, theirs in groups.values():
        torch._foreach_copy_(mine, theirs)
