"""A model as OpenVINO runs it: the network's pass over some frames, with everything that is carried as inputs and
outputs, so that the state stays the value it is everywhere else.

A graph holds for one batch, number of frames and image size. OpenVINO is known to compute some graphs silently wrong,
so each is held against the model over several steps before it is used.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
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
class _Shapes:
    """What a graph holds for."""

    batch_size: int
    num_frames: int
    image_size: tuple[int, int]


class OpenVINOPass:
    """Takes the place of `TRecViT._advance`.

    Args:
        model: float32, on the CPU. It is kept to compare with, and to build graphs from when another shape comes.
        dtype: What the matrix products are computed in; the state stays float32.

    Raises:
        MissingPackageError: When OpenVINO is not installed.
    """

    def __init__(self, model: TRecViT, dtype: torch.dtype) -> None:
        try:
            import openvino
        except ImportError as error:
            raise MissingPackageError("openvino", needed_for="mode='openvino'", extra="openvino") from error
        self._openvino = openvino
        self._model, self._dtype = model, dtype
        self._advance = model._advance  # as it was before this took its place
        self._graphs: dict[_Shapes, Any] = {}
        self._given: list[Any] = []

    def __call__(self, frames: Tensor, state: State) -> tuple[Output, State]:
        """One pass over a whole number of temporal patches; see `TRecViT._advance`."""
        shapes = _Shapes(len(frames), frames.shape[1], state.image_size)
        if not frames.numel():
            return self._advance(frames, state)
        if shapes not in self._graphs:
            graph = self._compiled(frames, state)
            self._compare(graph, shapes)
            if len(self._graphs) == _MOST_GRAPHS:
                del self._graphs[next(iter(self._graphs))]  # each holds the weights; the oldest goes
            self._graphs[shapes] = graph
        return self._run(self._graphs[shapes], frames, state)

    def _compiled(self, frames: Tensor, state: State) -> Any:
        tensors = _carried(state)
        traced = _Traced(self._advance, state)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            exported = torch.export.export(traced, (frames, *tensors.values()))
            try:
                graph = self._openvino.convert_model(exported)
            except Exception as error:  # of many kinds; complex numbers, for one, it does not know
                reason = str(error).strip().splitlines()[-1]
                words = f"OpenVINO cannot convert this model ({reason}); take mode='compile' or 'eager'"
                raise ConfigError(words) from error
        precision = "bf16" if self._dtype == torch.bfloat16 else "f32"
        hints = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": str(torch.get_num_threads()),
        }
        return self._openvino.Core().compile_model(graph, "CPU", hints)

    def _run(self, graph: Any, frames: Tensor, state: State) -> tuple[Output, State]:
        tensors = _carried(state)
        given = [np.ascontiguousarray(tensor.numpy()) for tensor in (frames, *tensors.values())]
        self._given = given  # OpenVINO reads them where they lie: they have to outlive the call
        found = graph(given, share_inputs=True, share_outputs=False)
        arrays = [torch.from_numpy(np.asarray(found[number])) for number in range(len(graph.outputs))]
        features, *carried = arrays
        after = state._with({**state._tensors(), **dict(zip(tensors, carried, strict=True))})
        return Output(*self._model._answer(after), features), after

    def _compare(self, graph: Any, shapes: _Shapes) -> None:
        """Refuses a graph that does not compute what the model does."""
        model, generator = self._model, torch.Generator().manual_seed(0)
        mine = theirs = model.init_state(shapes.batch_size, image_size=shapes.image_size)
        size = (shapes.batch_size, shapes.num_frames, 3, *shapes.image_size)
        for _ in range(_STEPS_COMPARED):
            frames = torch.rand(size, generator=generator)
            out, mine = self._advance(frames, mine)
            got, theirs = self._run(graph, frames, theirs)
            compared = {"features": (out.features, got.features)}
            compared |= {name: (value, theirs._tensors()[name]) for name, value in _carried(mine).items()}
            for name, (expected, found) in compared.items():
                error = (found.double() - expected.double()).abs().max()
                if not error <= _TOLERANCE[self._dtype] * expected.double().abs().max().clamp(min=1e-6):
                    raise ConfigError(
                        f"OpenVINO computes {name} wrong by {float(error):.3g} on this machine; take mode='compile' or "
                        "'eager'"
                    )


class _Traced(nn.Module):
    """A pass with tensors in and tensors out."""

    def __init__(self, advance: Callable[[Tensor, State], tuple[Output, State]], like: State) -> None:
        super().__init__()
        self._pass, self._like = advance, like

    def forward(self, frames: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        before = self._like._with({**self._like._tensors(), **dict(zip(_carried(self._like), tensors, strict=True))})
        out, after = self._pass(frames, before)
        return (out.features, *_carried(after).values())


def _carried(state: State) -> dict[str, Tensor]:
    """The tensors that a pass reads and writes: not the frames that wait for a whole patch, nor what is empty."""
    return {name: tensor for name, tensor in state._tensors().items() if tensor.numel() and name != "pending"}
