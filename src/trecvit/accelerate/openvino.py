"""A model as OpenVINO runs it: the network's pass over some frames, with everything that is carried as inputs and
outputs, so that the state stays the value it is everywhere else.

A graph holds for one batch, number of frames and image size. OpenVINO is known to compute some graphs silently wrong,
so each is held against the model over several steps before it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trecvit.errors import ConfigError, MissingPackageError
from trecvit.model.state import State
from trecvit.model.trecvit import Output, TRecViT

_STEPS_COMPARED = 3
_MOST_GRAPHS = 4
# Of the largest value of what is compared. In bfloat16 the roundings of both sides add up over the layers.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Shapes:
    """What a graph holds for."""

    batch_size: int
    num_frames: int
    image_size: tuple[int, int]

    @classmethod
    def of(cls, frames: Tensor) -> Shapes:
        """Those of frames `[B,T,C,H,W]`."""
        return cls(frames.shape[0], frames.shape[1], (frames.shape[3], frames.shape[4]))


Run = Callable[[Tensor, State], tuple[Output, State]]


class OpenVINOPass:
    """Takes the place of `TRecViT._advance`.

    Args:
        model: float32, on the CPU. It is kept to compare with, and to build graphs from when another shape comes.
        dtype: What the matrix products are computed in; the state stays float32.

    Raises:
        MissingPackageError: When OpenVINO is not installed.
    """

    def __init__(self, model: TRecViT, dtype: torch.dtype) -> None:
        self._model, self._dtype = model, dtype
        self._advance = model._advance  # as it was before this took its place
        self._graphs: dict[Shapes, Run] = {}
        find_openvino()

    def __call__(self, frames: Tensor, state: State) -> tuple[Output, State]:
        """One pass over a whole number of temporal patches; see `TRecViT._advance`."""
        if not frames.numel():
            return self._advance(frames, state)
        shapes = Shapes.of(frames)
        if shapes not in self._graphs:
            graph = compile_openvino(to_openvino(TracedPass(self._advance, state), frames, state), self._dtype)
            run = OpenVINORun(self._model, graph)
            hold_against(self._model, self._advance, run, shapes, self._dtype, who="OpenVINO")
            if len(self._graphs) == _MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]  # each holds the weights; the oldest goes
            self._graphs[shapes] = run
        return self._graphs[shapes](frames, state)


class OpenVINORun:
    """A compiled graph, called as the pass that it was made of."""

    def __init__(self, model: TRecViT, graph: Any) -> None:
        self._model, self._graph = model, graph
        self._given: list[Any] = []

    def __call__(self, frames: Tensor, state: State) -> tuple[Output, State]:
        """See `TRecViT._advance`."""
        given = [np.ascontiguousarray(tensor.numpy()) for tensor in (frames, *carried(state).values())]
        self._given = given  # OpenVINO reads them where they lie: they have to outlive the call
        found = self._graph(given, share_inputs=True, share_outputs=False)
        arrays = [torch.from_numpy(np.asarray(found[number])) for number in range(len(self._graph.outputs))]
        return taken_up(self._model, state, arrays)


class TracedPass(nn.Module):
    """A pass with tensors in and tensors out."""

    def __init__(self, advance: Run, like: State) -> None:
        super().__init__()
        self._pass, self._like = advance, like

    def forward(self, frames: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Frames and what `carried` gives of a state, to features and what is carried on."""
        before = self._like._with({**self._like._tensors(), **dict(zip(carried(self._like), tensors, strict=True))})
        out, after = self._pass(frames, before)
        return (out.features, *carried(after).values())


def carried(state: State) -> dict[str, Tensor]:
    """The tensors that a pass reads and writes: not the frames that wait for a whole patch, nor what is empty."""
    return {name: tensor for name, tensor in state._tensors().items() if tensor.numel() and name != "pending"}


def taken_up(model: TRecViT, before: State, tensors: Sequence[Tensor]) -> tuple[Output, State]:
    """What a pass returns, of what a `TracedPass` does."""
    features, *after = tensors
    state = before._with({**before._tensors(), **dict(zip(carried(before), after, strict=True))})
    return Output(*model._answer(state), features), state


def hold_against(model: TRecViT, advance: Run, run: Run, shapes: Shapes, dtype: torch.dtype, *, who: str) -> None:
    """Refuses a graph that does not compute what the model does, over several steps.

    Args:
        model: Of which the states are.
        advance: Its pass.
        run: The graph's.
        shapes: What the graph holds for.
        dtype: Of its matrix products.
        who: Made the graph.

    Raises:
        ConfigError: When features or a tensor of the state differ.
    """
    generator = torch.Generator().manual_seed(0)
    mine = theirs = model.init_state(shapes.batch_size, image_size=shapes.image_size)
    size = (shapes.batch_size, shapes.num_frames, 3, *shapes.image_size)
    for _ in range(_STEPS_COMPARED):
        frames = torch.rand(size, generator=generator).to(model.dtype)
        with torch.no_grad():
            out, mine = advance(frames, mine)
            got, theirs = run(frames, theirs)
        compared = {"features": (out.features, got.features)}
        compared |= {name: (value, theirs._tensors()[name]) for name, value in carried(mine).items()}
        for name, (expected, found) in compared.items():
            error = (found.double() - expected.double()).abs().max()
            if not error <= _TOLERANCE[dtype] * expected.double().abs().max().clamp(min=1e-6):
                raise ConfigError(
                    f"{who} computes {name} wrong by {float(error):.3g} on this machine; take another mode"
                )


def find_openvino() -> Any:
    """The package, or an error that says how to install it."""
    try:
        import openvino
    except ImportError as error:
        raise MissingPackageError("openvino", needed_for="mode='openvino'", extra="openvino") from error
    return openvino


def to_openvino(traced: nn.Module, frames: Tensor, state: State) -> Any:
    """The graph of a module that takes frames and what a state carries.

    Raises:
        ConfigError: When OpenVINO does not know one of its operations.
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
        except Exception as error:  # of many kinds; complex numbers, for one, it does not know
            reason = str(error).strip().splitlines()[-1]
            words = f"OpenVINO cannot convert this model ({reason}); take mode='compile' or 'eager'"
            raise ConfigError(words) from error


def keep_inside(graph: Any, after: dict[str, str]) -> None:
    """Makes inputs of a graph its own memory, which is zeros at first: before and, after each call, what it gave."""
    from openvino._offline_transformations import apply_make_stateful_transformation

    apply_make_stateful_transformation(graph, after)


def save_openvino(graph: Any, path: Path) -> None:
    """Writes a graph and, beside it, its weights in full precision."""
    find_openvino().save_model(graph, path, compress_to_fp16=False)


def compile_openvino(graph: Any, dtype: torch.dtype) -> Any:
    """A graph, or the file of one, ready to run on this CPU."""
    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
    }
    return find_openvino().Core().compile_model(graph, "CPU", hints)
