"""ONNX graphs of `trecvit.accelerate.onnx` run by ONNX Runtime, and compared with the model that they are of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trecvit.accelerate.onnx import (
    carried,
    continued,
    for_graph,
    frames_per_call,
    initial_state,
    predictions,
    to_onnx,
)
from trecvit.errors import ConfigError, InputError, MissingPackageError
from trecvit.model.state import State, StreamState
from trecvit.model.tracker import PointTracker, TrackerOutput, TrackerState
from trecvit.model.trecvit import Output, TRecViT

Arrays = dict[str, npt.NDArray[np.float32]]

FRAMES_COMPARED = 10
# Relative to the largest value, after all frames. Weights rounded to half change results by about 2^-11 per layer.
TOLERANCE = {"float32": 3e-4, "float16": 2e-2}
_MAX_GRAPHS = 4


def find_runtime() -> Any:
    """Return the package, or raise an error with the command that installs it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError("onnxruntime", needed_for="mode='onnx'", extra="onnx") from error
    return onnxruntime


def open_session(graph: str | Path | bytes) -> Any:
    """Load a graph for this CPU, with as many threads as PyTorch has.

    Threads that wait for work sleep rather than spin: on a core that other programs want too, spinning threads hold up
    the very thread that they wait for.
    """
    runtime = find_runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: the optimiser's remarks are for its developers
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    source = graph if isinstance(graph, bytes) else str(graph)
    return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True)
class GraphSizes:
    """The sizes that a graph holds for.

    Attributes:
        batch_size: Streams per call; None for any number.
        image_size: Height and width of the frames.
        num_slots: Points per stream, empty slots included; 0 for a classifier.
    """

    batch_size: int | None
    image_size: tuple[int, int]
    num_slots: int = 0

    @classmethod
    def of(cls, state: StreamState) -> GraphSizes:
        """The sizes of a state."""
        num_slots = state.num_queries if isinstance(state, TrackerState) else 0
        return cls(state.batch_size, state.image_size, num_slots)


class SessionRun:
    """A session as the pass over frames of a model, any number of frames and, row by row, of streams.

    Args:
        model: The model that the graph is of.
        session: See `open_session`.
        sizes: Of the graph.
    """

    def __init__(self, model: TRecViT | PointTracker, session: Any, sizes: GraphSizes) -> None:
        self._session, self.sizes = session, sizes
        self._frames_per_call = frames_per_call(model)
        self._predictions = predictions(model)
        self._outputs = [value.name for value in session.get_outputs()]
        self._inputs = {value.name for value in session.get_inputs()}

    def __call__(self, frames: Tensor, state: StreamState) -> tuple[dict[str, Tensor], StreamState]:
        """Return each prediction `[T,B,...]` after every call of T, and the next state.

        Raises:
            InputError: for sizes that the graph does not hold for.
        """
        got, wanted = GraphSizes.of(state), self.sizes
        num_streams = state.batch_size
        rows = wanted.batch_size or max(num_streams, 1)
        if (got.image_size, got.num_slots) != (wanted.image_size, wanted.num_slots) or num_streams % rows:
            points = f" with {wanted.num_slots} slots" if wanted.num_slots else ""
            raise InputError(
                f"the exported model takes multiples of {rows} streams of {wanted.image_size} pixels{points}, got "
                f"{got}; export the model for these, too"
            )
        given = {f"state.{name}": np.ascontiguousarray(value.numpy()) for name, value in carried(state).items()}
        chunks = []
        for start in range(0, num_streams, rows):
            part = slice(start, start + rows)
            inputs = {name: value[part] for name, value in given.items()}
            chunks.append(self._through_time(frames[part].numpy(), inputs))
        joined = {name: np.concatenate([chunk[name] for chunk in chunks], axis=1) for name in self._predictions}
        after = {
            name.removeprefix("next."): torch.from_numpy(np.concatenate([chunk[name][0] for chunk in chunks]))
            for name in self._outputs
            if name.startswith("next.")
        }
        results = {name: torch.from_numpy(value) for name, value in joined.items()}
        return results, continued(state, after, frames.shape[1])

    def _through_time(self, frames: npt.NDArray[np.float32], state: Arrays) -> dict[str, npt.NDArray[np.float32]]:
        """Step through the frames; return predictions after each call, and the last state, with a leading axis."""
        steps: list[Arrays] = []
        for start in range(0, frames.shape[1], self._frames_per_call):
            frame = np.ascontiguousarray(frames[:, start : start + self._frames_per_call])
            feeds = {name: value for name, value in {"frame": frame, **state}.items() if name in self._inputs}
            steps.append(dict(zip(self._outputs, self._session.run(None, feeds), strict=True)))
            state = {f"state.{name.removeprefix('next.')}": value for name, value in steps[-1].items()}
        stacked = {name: np.stack([step[name] for step in steps]) for name in self._predictions}
        return {**stacked, **{name: value[None] for name, value in steps[-1].items() if name.startswith("next.")}}


class ClassifierRun:
    """A session as the engine of a TRecViT.

    Args:
        model: Its head is needed while frames wait for a whole temporal patch.
        run: Of its graph.
    """

    def __init__(self, model: TRecViT, run: SessionRun) -> None:
        self._model, self._run = model, run

    def __call__(self, frames: Tensor, state: State, /) -> tuple[Output, State]:
        """See `Engine`."""
        if not frames.shape[1]:
            tokens = state.layers[0].hidden.shape[1]
            return Output(
                *self._model.scores(state), frames.new_empty(len(frames), 0, tokens, self._model.config.width)
            ), state
        results, after = self._run(frames, state)
        assert isinstance(after, State), "as the state before"
        features = results["features"].transpose(0, 1).flatten(1, 2)  # [T,B,1,N,D] -> [B,T,N,D]
        logits, probs = (results[name][-1] if name in results else None for name in ("logits", "probs"))
        return Output(logits, probs, features), after


class TrackerRun:
    """A session as the pass over frames of a point tracker. Its output has no scores of coordinates."""

    def __init__(self, run: SessionRun) -> None:
        self._run = run

    def __call__(self, frames: Tensor, state: TrackerState, /) -> tuple[TrackerOutput, TrackerState]:
        """See `PointTracker.replace_tracking`."""
        results, after = self._run(frames, state)
        assert isinstance(after, TrackerState), "as the state before"
        # [T,B,Q,...] -> [B,Q,T,...]
        points_xy, visible_logits, certainty = (
            results[name].movedim(0, 2) for name in ("points_xy", "visible_logits", "certainty")
        )
        return TrackerOutput(points_xy, visible_logits, certainty), after


def as_engine(model: TRecViT | PointTracker, run: SessionRun) -> Any:
    """Wrap a session's run as the model's engine, or a tracker's `tracking`."""
    return TrackerRun(run) if isinstance(model, PointTracker) else ClassifierRun(model, run)


class OnnxEngine:
    """A model's pass over frames by ONNX Runtime, with a graph for each of the last few sizes.

    Args:
        model: Kept to convert graphs for new sizes and to validate them.

    Raises:
        MissingPackageError: When onnx, onnxscript or onnxruntime is not installed.
    """

    def __init__(self, model: TRecViT | PointTracker) -> None:
        find_runtime()
        self._model, self._source = model, for_graph(model)
        self._graphs: dict[GraphSizes, Any] = {}

    def __call__(self, frames: Tensor, state: Any, /) -> Any:
        """See `Engine`."""
        if not frames.numel():
            own = self._source._track if isinstance(self._source, PointTracker) else self._source.engine
            return own(frames, state)
        sizes = GraphSizes.of(state)
        if sizes not in self._graphs:
            graph = to_onnx(
                self._source, sizes.image_size, batch_size=sizes.batch_size, num_slots=max(sizes.num_slots, 1)
            )
            run = SessionRun(self._model, open_session(graph.SerializeToString()), sizes)
            validate(self._model, run)
            if len(self._graphs) == _MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]  # the oldest, because each holds the weights
            self._graphs[sizes] = as_engine(self._model, run)
        return self._graphs[sizes](frames, state)


# ---- comparison with the model -------------------------------------------------------------------------------------


def validate(
    model: TRecViT | PointTracker, run: SessionRun, *, weights: str = "float32", frames: int = FRAMES_COMPARED
) -> dict[str, float]:
    """Compare a graph with its model over several carried calls: predictions and every tensor of the state.

    A tracker's points are placed, removed and replaced meanwhile.

    Args:
        model: As it was loaded or made.
        run: Of the graph.
        weights: Dtype of the stored weights, which sets the tolerance.
        frames: Number of calls, each of one temporal patch.

    Returns:
        The largest error of each output, relative to its largest value.

    Raises:
        ConfigError: when an output differs by more than the tolerance, or is NaN.
    """
    sizes = run.sizes
    batch_size = sizes.batch_size or 3
    expected_state: Any = initial_state(model, batch_size, sizes.image_size, max(sizes.num_slots, 1))
    state = expected_state
    errors: dict[str, float] = {}
    extent = frames_per_call(model)
    video = smooth_video(batch_size, frames * extent, sizes.image_size)
    for call in range(frames):
        if isinstance(model, PointTracker):
            expected_state, state = (edit_points(item, call) for item in (expected_state, state))
        pixels = video[:, call * extent : (call + 1) * extent]
        with torch.no_grad():
            if isinstance(model, PointTracker):
                out, expected_state = model._track(pixels, expected_state)
                expected = dict(zip(predictions(model), (part[:, :, 0] for part in out[:3]), strict=True))
            else:
                scores, expected_state = model._advance(pixels, expected_state)
                expected = {name: getattr(scores, name) for name in predictions(model)}
        got, state = run(pixels, state)
        compared = {name: (value, got[name][0]) for name, value in expected.items()}
        # The counts are the caller's, see `continued`.
        after = carried(state)
        compared |= {f"next.{name}": (value, after[name]) for name, value in carried(expected_state).items()}
        for name, (right, value) in compared.items():
            difference = (value.double() - right.double()).abs().max()
            error = float(difference / right.double().abs().max().clamp(min=1e-6))
            if not error <= TOLERANCE[weights]:
                raise ConfigError(
                    f"ONNX Runtime computes {name} wrong by {error:.2g} of its largest value in frame {call + 1}; use "
                    "another mode or format"
                )
            errors[name] = max(errors.get(name, 0.0), error)
    return errors


def edit_points(state: TrackerState, call: int) -> TrackerState:
    """Place, remove and replace points before some calls of a comparison; the last slot stays empty."""
    height, width = state.image_size
    spare = state.num_queries - 1

    def placed(state: TrackerState, slot: int, x: float, y: float) -> TrackerState:
        return state.place(slot, torch.tensor([[x * width, y * height]]).expand(state.batch_size, 2))

    if call == 0:
        for slot in range(min(3, max(spare, 1))):
            state = placed(state, slot, 0.3 + 0.2 * slot, 0.6 - 0.1 * slot)
    elif call == 4 and spare > 3:
        state = placed(state, 3, 0.45, 0.25)
    elif call == 6 and spare:
        state = placed(state.copy_slot(spare, 0), 0, 0.7, 0.7)
    return state


def smooth_video(batch_size: int, num_frames: int, image_size: tuple[int, int]) -> Tensor:
    """Return frames `[B,T,3,H,W]` in [0,1] of smooth surfaces that move by a pixel per frame, always the same."""
    height, width = image_size
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch_size, 3, height // 6 + 4, width // 6 + 4, generator=generator)
    size = (height + num_frames, width + num_frames)
    surface = F.interpolate(coarse, size=size, mode="bicubic", align_corners=False).clamp(0.0, 1.0)
    return torch.stack([surface[:, :, t : t + height, t : t + width] for t in range(num_frames)], dim=1)
