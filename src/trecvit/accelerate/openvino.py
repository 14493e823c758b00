"""A model run by OpenVINO: its pass over frames as a graph, with the carried state as inputs and outputs.

So the state stays the explicit value that it is everywhere else. A graph holds for one batch size, number of frames and
image size. OpenVINO is known to compute some graphs wrong without a warning, so each is validated against the model
over several steps before it is used.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trecvit.errors import ConfigError, MissingPackageError
from trecvit.model.engine import Engine
from trecvit.model.state import State
from trecvit.model.trecvit import Output, TRecViT

FrameEngine = Engine[Output, State]

_STEPS_COMPARED = 3
_MAX_GRAPHS = 4
# Relative to the largest value. In bfloat16 the rounding errors of both sides add up over the layers.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Shapes:
    """The sizes that a graph holds for."""

    batch_size: int
    num_frames: int
    image_size: tuple[int, int]

    @classmethod
    def of(cls, frames: Tensor) -> Shapes:
        """The sizes of frames `[B,T,C,H,W]`."""
        return cls(frames.shape[0], frames.shape[1], (frames.shape[3], frames.shape[4]))


class OpenVINOEngine:
    """A TRecViT's pass over frames, with a graph for each of the last few shapes.

    Args:
        model: float32, on the CPU. It is kept to build graphs for new shapes and to validate them.
        dtype: Of the matrix multiplications; the state stays float32.

    Raises:
        MissingPackageError: When OpenVINO is not installed.
    """

    def __init__(self, model: TRecViT, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._eager = model.engine
        self._graphs: dict[Shapes, FrameEngine] = {}
        find_openvino()

    def __call__(self, frames: Tensor, state: State, /) -> tuple[Output, State]:
        """See `Engine`."""
        if not frames.numel():
            return self._eager(frames, state)
        shapes = Shapes.of(frames)
        if shapes not in self._graphs:
            graph = compile_openvino(to_openvino(TracedPass(self._eager, state), frames, state), self._dtype)
            run = OpenVINORun(self._model, graph)
            validate(self._model, self._eager, run, shapes, self._dtype, maker="OpenVINO")
            if len(self._graphs) == _MAX_GRAPHS:
                del self._graphs[next(iter(self._graphs))]  # the oldest, because each holds the weights
            self._graphs[shapes] = run
        return self._graphs[shapes](frames, state)


class OpenVINORun:
    """A compiled graph as an engine."""

    def __init__(self, model: TRecViT, graph: Any) -> None:
        self._model, self._graph = model, graph
        self._inputs: list[Any] = []

    def __call__(self, frames: Tensor, state: State, /) -> tuple[Output, State]:
        """See `Engine`."""
        inputs = [np.ascontiguousarray(tensor.numpy()) for tensor in (frames, *carried(state).values())]
        self._inputs = inputs  # OpenVINO reads them where they lie: they have to outlive the call
        results = self._graph(inputs, share_inputs=True, share_outputs=False)
        arrays = [torch.from_numpy(np.asarray(results[number])) for number in range(len(self._graph.outputs))]
        return unpacked(self._model, state, arrays)


class TracedPass(nn.Module):
    """A pass over frames with tensors in and tensors out.

    Args:
        engine: Computes the pass.
        like: A state of the shapes of later ones.
    """

    def __init__(self, engine: FrameEngine, like: State) -> None:
        super().__init__()
        self._engine, self._like = engine, like

    def forward(self, frames: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """From frames and the `carried` tensors of a state to features and the carried tensors of the next."""
        before = self._like._with({**self._like._tensors(), **dict(zip(carried(self._like), tensors, strict=True))})
        out, after = self._engine(frames, before)
        return (out.features, *carried(after).values())


def carried(state: State) -> dict[str, Tensor]:
    """The tensors that a pass reads and writes: neither the frames that wait for a whole patch, nor empty ones."""
    return {name: tensor for name, tensor in state._tensors().items() if tensor.numel() and name != "pending"}


def unpacked(model: TRecViT, before: State, tensors: Sequence[Tensor]) -> tuple[Output, State]:
    """The results of an `Engine` from those of a `TracedPass`."""
    features, *after = tensors
    state = before._with({**before._tensors(), **dict(zip(carried(before), after, strict=True))})
    return Output(*model.scores(state), features), state


def validate(
    model: TRecViT, expected: FrameEngine, engine: FrameEngine, shapes: Shapes, dtype: torch.dtype, *, maker: str
) -> None:
    """Check an engine against the model's own over several steps.

    Args:
        model: Its states are used.
        expected: The model's own engine.
        engine: The other.
        shapes: The sizes that it holds for.
        dtype: Of its matrix multiplications.
        maker: Its maker's name, for the error.

    Raises:
        ConfigError: When features or a tensor of the state differ.
    """
    generator = torch.Generator().manual_seed(0)
    expected_state = state = model.init_state(shapes.batch_size, image_size=shapes.image_size)
    size = (shapes.batch_size, shapes.num_frames, 3, *shapes.image_size)
    for _ in range(_STEPS_COMPARED):
        frames = torch.rand(size, generator=generator).to(model.dtype)
        with torch.no_grad():
            expected_out, expected_state = expected(frames, expected_state)
            out, state = engine(frames, state)
        compared = {"features": (expected_out.features, out.features)}
        compared |= {name: (value, state._tensors()[name]) for name, value in carried(expected_state).items()}
        for name, (right, value) in compared.items():
            error = (value.double() - right.double()).abs().max()
            if not error <= _TOLERANCE[dtype] * right.double().abs().max().clamp(min=1e-6):
                raise ConfigError(
                    f"{maker} computes {name} wrong by {float(error):.3g} on this machine; take another mode"
                )


def find_openvino() -> Any:
    """The package without its telemetry, or an error with the command that installs it."""
    # It would report every use to its makers, each from a process of its own that is waited for up to 3 seconds.
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as error:
        raise MissingPackageError("openvino", needed_for="mode='openvino'", extra="openvino") from error
    return openvino


def to_openvino(traced: nn.Module, frames: Tensor, state: State) -> Any:
    """The graph of a module that takes frames and the carried tensors of a state.

    Raises:
        ConfigError: When OpenVINO lacks one of its operations.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        inputs = (frames, *carried(state).values())
        exported = torch.export.export(traced, inputs)
        try:
            graph = find_openvino().convert_model(exported)
            # It forgets the sizes that the graph was traced with.
            graph.reshape({number: list(tensor.shape) for number, tensor in enumerate(inputs)})
            return graph
        except Exception as error:  # of many kinds; it lacks complex numbers, for example
            reason = str(error).strip().splitlines()[-1]
            message = f"OpenVINO cannot convert this model ({reason}); take mode='compile' or 'eager'"
            raise ConfigError(message) from error


def keep_inside(graph: Any, after: dict[str, str]) -> None:
    """Make inputs of a graph its own memory: zeros at first, then the outputs of the last call, named in `after`."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    apply_make_stateful_transformation(graph, after)


def save_openvino(graph: Any, path: Path) -> None:
    """Write a graph and, beside it, its weights in full precision."""
    find_openvino().save_model(graph, path, compress_to_fp16=False)


def compile_openvino(graph: Any, dtype: torch.dtype) -> Any:
    """A graph, or the file of one, ready to run on this CPU."""
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
    }
    return find_openvino().Core().compile_model(graph, "CPU", hints)
