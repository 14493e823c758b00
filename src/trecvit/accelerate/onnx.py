"""One step of a model as an ONNX graph: a frame and the state in, predictions and the next state out.

Every recurrent value is an input `state.<name>` and an output `next.<name>`, so any runtime can carry it. Where a
stream stands is floating-point too: `frames_seen`, and for trackers `frames_since_query` in place of both counts of
frames. Float32 counts exactly up to 16.7 million frames and then stays there, which changes no prediction of a tracker
and makes a classifier's mean one of recent frames.

B streams · Q slots of points · N tokens per frame · E recurrent width
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from trecvit.errors import ConfigError, MissingPackageError
from trecvit.model.lru import RGLRU, CausalConv
from trecvit.model.scan import GATE_SHARPNESS
from trecvit.model.state import StreamState
from trecvit.model.tracker import NEVER, PointTracker, TrackerState
from trecvit.model.trecvit import TRecViT

OPSET = 18
EMPTY_SLOT = -1e30
"""`frames_since_query` of an empty slot: adding 1 does not change it."""

_SINCE, _SEEN = "frames_since_query", "frames_seen"
_NOT_CARRIED = ("pending",)  # frames that wait for a whole temporal patch, which a graph gets as one


@dataclass(frozen=True)
class StateTensor:
    """A tensor of the state as a graph has it.

    Attributes:
        name: Name in the state, such as "layers.0.hidden".
        shape: Shape, streams first.
        initial: Value of all elements before the first frame.
        slot_axis: Axis of the points, None for a tensor without points.
        first_slot: Index of the first point on it.
    """

    name: str
    shape: tuple[int, ...]
    initial: float
    slot_axis: int | None = None
    first_slot: int = 0

    @property
    def input(self) -> str:
        """Name of the graph's input."""
        return f"state.{self.name}"

    @property
    def output(self) -> str:
        """Name of the graph's output that is the next call's input."""
        return f"next.{self.name}"


def state_tensors(initial: StreamState) -> tuple[StateTensor, ...]:
    """Describe the state tensors of a graph, given a state before its first frame with only empty slots.

    Raises:
        ConfigError: when a tensor does not start with one value, or is neither float32 nor a count of frames.
    """
    described = []
    for name, tensor in carried(initial).items():
        values = tensor.unique()
        if len(values) != 1 or tensor.dtype != torch.float32:
            raise ConfigError(
                f"onnx: expected float32 states that start with one value, got {tensor.dtype} with {len(values)} "
                f"values in {name}"
            )
        slots = None
        if isinstance(initial, TrackerState):
            slots = initial._slots_in("query_frames" if name == _SINCE else name)
        axis, first = slots or (None, 0)
        described.append(StateTensor(name, tuple(tensor.shape), float(values[0]), axis, first))
    return tuple(described)


def carried(state: StreamState) -> dict[str, Tensor]:
    """Return the tensors of a state as a graph takes them, by name."""
    tensors = {name: tensor for name, tensor in state._tensors().items() if tensor.numel() and name not in _NOT_CARRIED}
    if isinstance(state, TrackerState):
        since = (state.frames_seen[:, None] - state.query_frames).float()
        since = since.masked_fill(state.query_frames == NEVER, EMPTY_SLOT)
        tensors = {_SINCE if name == "query_frames" else name: tensor for name, tensor in tensors.items()}
        tensors[_SINCE] = since
    return {**tensors, _SEEN: state.frames_seen.float()[:, None]}


def continued(before: StreamState, tensors: dict[str, Tensor], num_frames: int) -> StreamState:
    """Return the state after `num_frames` frames from the state before and a graph's outputs, by name.

    Frames are counted here, in int64.
    """
    kept = {name: tensor for name, tensor in tensors.items() if name not in (_SINCE, _SEEN)}
    kept[_SEEN] = before.frames_seen + num_frames
    return before._with({**before._tensors(), **kept})


class Step(nn.Module):
    """The step of one frame (of one temporal patch) with tensors in and tensors out.

    Args:
        model: A result of `for_graph`.
        like: A state of the graph's shapes.
    """

    def __init__(self, model: TRecViT | PointTracker, like: StreamState) -> None:
        super().__init__()
        self._model, self._like = model, like
        self._names = tuple(carried(like))

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs in order."""
        return ["frame", *(f"state.{name}" for name in self._names)]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs in order."""
        return [*predictions(self._model), *(f"next.{name}" for name in self._names)]

    def forward(self, frame: Float[Tensor, "B T 3 H W"], *tensors: Tensor) -> tuple[Tensor, ...]:
        """From a frame in [0,1] and the `carried` tensors to the predictions and the carried tensors after it."""
        given = dict(zip(self._names, tensors, strict=True))
        state = {name: given.get(name, tensor) for name, tensor in self._like._tensors().items()}
        after: StreamState
        if isinstance(self._model, PointTracker):
            # Only whether a stream has begun matters: small numbers keep the difference below exact.
            begun = given[_SEEN].clamp(max=1.0)
            state |= {_SEEN: begun[:, 0], "query_frames": begun - given[_SINCE]}
            points, after = self._model._track(frame, cast(TrackerState, self._like._with(state)))
            predicted = [points.points_xy[:, :, 0], points.visible_logits[:, :, 0], points.certainty[:, :, 0]]
        else:
            state[_SEEN] = given[_SEEN][:, 0]
            out, after = self._model.engine(frame, cast(Any, self._like._with(state)))
            predicted = [part for part in (out.logits, out.probs, out.features) if part is not None]
        result = after._tensors()
        num_frames = float(frame.shape[1])
        counted = {name: given[name] + num_frames for name in (_SINCE, _SEEN) if name in given}
        return (*predicted, *(counted[name] if name in counted else result[name] for name in self._names))


def predictions(model: TRecViT | PointTracker) -> list[str]:
    """Name the outputs of a model's graph that are no state."""
    if isinstance(model, PointTracker):
        return ["points_xy", "visible_logits", "certainty"]
    return ["logits", "probs", "features"] if model.head is not None else ["features"]


class StepRGLRU(RGLRU):
    """An `RGLRU` for one frame, in few operations, all real, which keep precision where decays are close to 1.

    With l = log a: 1 - a^2 = -expm1(2 l) = 2 t / (t - 1), t = tanh(l). ONNX has no expm1, and 1 - exp(2 l) would lose
    the digits that 1 and a^2 have in common.
    """

    def __init__(self, lru: RGLRU) -> None:
        nn.Module.__init__(self)
        self.is_complex = lru.is_complex
        self.input_gate, self.a_gate = lru.input_gate, lru.a_gate
        rate = -GATE_SHARPNESS * nn.functional.softplus(lru.a_param.detach().float())
        self.rate = nn.Parameter(rate, requires_grad=False)
        if self.is_complex:
            self.a_imag_param = lru.a_imag_param

    def forward(
        self, x: Float[Tensor, "B T N E"], hidden: Float[Tensor, "B N E"], fresh: Bool[Tensor, " B"]
    ) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B N E"]]:
        """See `RGLRU.forward`; T = 1."""
        input_gate, recurrence_gate = (gate[:, 0].sigmoid() for gate in self.gates(x))
        log_radius = recurrence_gate * self.rate
        t = log_radius.tanh()
        # At most 1, so that the maximum makes it 1 for a fresh stream.
        scale = torch.maximum((2.0 * t / (t - 1.0)).sqrt(), fresh.to(hidden.dtype)[:, None, None])
        radius = log_radius.exp()
        if not self.is_complex:
            hidden = radius * hidden + scale * (input_gate * x[:, 0])
            return hidden[:, None], hidden
        phase = recurrence_gate * self.a_imag_param
        decay_re, decay_im = radius * phase.cos(), radius * phase.sin()
        gain = scale * input_gate
        (x_re, x_im), (h_re, h_im) = x[:, 0].chunk(2, dim=-1), hidden.chunk(2, dim=-1)
        real = decay_re * h_re - decay_im * h_im + gain * x_re
        imaginary = decay_re * h_im + decay_im * h_re + gain * x_im
        hidden = torch.cat([real, imaginary], dim=-1)
        return hidden[:, None], hidden


class StepConv(nn.Module):
    """A `CausalConv` for one frame, without the window's copy."""

    def __init__(self, conv: CausalConv) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias

    def forward(
        self, x: Float[Tensor, "B T N E"], taps: Float[Tensor, "B taps N E"]
    ) -> tuple[Float[Tensor, "B T N E"], Float[Tensor, "B taps N E"]]:
        """See `CausalConv.forward`; T = 1."""
        num_taps = len(self.weight) - 1
        y = x * self.weight[num_taps] + self.bias
        for tap in range(num_taps):
            y = y + taps[:, tap : tap + 1] * self.weight[tap]
        return y, torch.cat([taps[:, 1:], x], dim=1) if num_taps else taps


def for_graph(model: TRecViT | PointTracker) -> TRecViT | PointTracker:
    """Copy a model in float32, with parts for one frame at a time.

    Raises:
        ConfigError: for a model that cannot stream, is not on the CPU, or is a result of `optimize`.
    """
    if not isinstance(model, (TRecViT, PointTracker)):
        raise ConfigError(f"onnx: expected a TRecViT or a point tracker, got a {type(model).__name__}")
    if model.is_optimized or model.device.type != "cpu":
        raise ConfigError("onnx: expected a model on the CPU as it was loaded or made, not a result of optimize")
    blocks = model.tokenizer.config
    if not blocks.can_stream:
        raise ConfigError(
            f"onnx: expected a model that streams, got temporal_mixer={blocks.temporal_mixer!r}, which needs whole "
            "clips"
        )
    fast = copy.deepcopy(model).eval().requires_grad_(False).float()
    for parent in list(fast.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RGLRU):
                setattr(parent, name, StepRGLRU(child))
            elif isinstance(child, CausalConv):
                setattr(parent, name, StepConv(child))
    return fast


def initial_state(
    model: TRecViT | PointTracker, batch_size: int, image_size: tuple[int, int], num_slots: int
) -> StreamState:
    """Return the state before the first frame; a tracker's slots are empty."""
    if isinstance(model, PointTracker):
        return model.init_state(torch.full((batch_size, num_slots, 3), math.inf), image_size=image_size)
    return model.init_state(batch_size, image_size=image_size)


def frames_per_call(model: TRecViT | PointTracker) -> int:
    """Return the frames of one temporal patch."""
    return model.tokenizer.config.temporal_patch_size


def to_onnx(
    model: TRecViT | PointTracker, image_size: tuple[int, int], *, batch_size: int | None = 1, num_slots: int = 1
) -> Any:
    """Convert the step of a model to an `onnx.ModelProto`, without metadata of the exporter.

    Args:
        model: A result of `for_graph`.
        image_size: Height and width of the frames.
        batch_size: Streams per call; None for any number.
        num_slots: Points per stream, empty slots included.

    Raises:
        ConfigError: when an operation of the model has no equivalent.
        MissingPackageError: when onnx or onnxscript is not installed.
    """
    find_onnx()
    rows = 2 if batch_size is None else batch_size  # torch.export takes sizes of 1 for constants
    state = initial_state(model, rows, image_size, num_slots)
    step = Step(model, state)
    frame = torch.zeros(rows, frames_per_call(model), 3, *image_size)
    inputs = (frame, *carried(state).values())
    shapes = None
    if batch_size is None:
        any_number = {0: torch.export.Dim("batch", min=1, max=4096)}
        shapes = (any_number, tuple(any_number for _ in inputs[1:]))
    try:
        with torch.no_grad(), _silence():
            step(*inputs)  # fills caches of constants, which cannot be computed while tracing
            traced = torch.export.export(step, inputs, dynamic_shapes=shapes, strict=False)
            program = torch.onnx.export(
                traced,
                inputs,
                dynamo=True,
                opset_version=OPSET,
                input_names=step.inputs,
                output_names=step.outputs,
                custom_translation_table=_translations(),
                verbose=False,
            )
    except Exception as error:  # of many kinds
        reason = next((line for line in reversed(str(error).strip().splitlines()) if line.strip()), repr(error))
        raise ConfigError(f"this model cannot be converted to ONNX ({reason.strip()[:200]})") from error
    assert program is not None
    graph = program.model_proto
    _name_batch(graph, batch_size)
    _strip(graph)
    return graph


def _translations() -> dict[Any, Any]:
    """Write GELU and RMSNorm in the standard operations that runtimes recognise and compute in one pass.

    These are the forms that ONNX Runtime's transformer fusions look for (GeluFusion, FastGeluFusion and
    SimplifiedLayerNormFusion).
    """
    import onnxscript

    op: Any = onnxscript.opset18

    def gelu(x: Any, approximate: str = "none") -> Any:
        if approximate == "tanh":
            inner = op.Mul(op.Add(op.Mul(op.Mul(x, 0.044715), x), 1.0), op.Mul(x, math.sqrt(2.0 / math.pi)))
            return op.Mul(op.Mul(x, 0.5), op.Add(op.Tanh(inner), 1.0))
        return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, math.sqrt(2.0))), 1.0)), 0.5)

    def rms_norm(x: Any, normalized_shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
        square = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
        return op.Mul(op.Div(x, op.Sqrt(op.Add(square, eps))), weight)

    return {torch.ops.aten.gelu.default: gelu, torch.ops.aten.rms_norm.default: rms_norm}


def _name_batch(graph: Any, batch_size: int | None) -> None:
    """Name the first axis of all inputs and outputs alike where it is free."""
    if batch_size is None:
        for value in (*graph.graph.input, *graph.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _strip(graph: Any) -> None:
    """Remove traces of the exporter: source lines, shapes in between, and the prefix of weights' names."""
    from trecvit import __version__

    prefix = "_model."
    body = graph.graph
    del body.value_info[:], body.metadata_props[:], graph.metadata_props[:]
    graph.producer_name, graph.producer_version, graph.doc_string, body.doc_string = "trecvit", __version__, "", ""
    body.name = "step"
    for index, node in enumerate(body.node):
        node.name = f"{node.op_type}_{index}"
        node.doc_string = ""
        del node.metadata_props[:]
        for position, name in enumerate(node.input):
            node.input[position] = name.removeprefix(prefix)
    for tensor in body.initializer:
        tensor.name = tensor.name.removeprefix(prefix)
        tensor.doc_string = ""
        del tensor.metadata_props[:]
    for value in (*body.input, *body.output):
        value.doc_string = ""
        del value.metadata_props[:]


def store_in_half(graph: Any) -> None:
    """Store matrices and kernels as float16, each followed by a cast that runtimes compute once, when they load.

    Vectors stay float32: biases, norms, and the decays of the recurrence, which have no digits to spare.

    Raises:
        ConfigError: for weights beyond the range of float16.
    """
    onnx = find_onnx()
    body, casts = graph.graph, []
    for tensor in body.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            continue
        values = onnx.numpy_helper.to_array(tensor)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an overflow, an error below
            half = values.astype("float16")
        if not bool(abs(half).max() < math.inf):
            raise ConfigError(f"weights='float16': expected weights below 65,504, got larger ones in {tensor.name}")
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], name=f"Cast_{name}", to=1))
    nodes = list(body.node)
    del body.node[:]
    body.node.extend([*casts, *nodes])


def find_onnx() -> Any:
    """Return the package, or raise an error with the command that installs it and what it needs."""
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
        import onnxscript  # noqa: F401  # PyTorch's exporter needs it
    except ImportError as error:
        raise MissingPackageError("onnx", needed_for="the format 'onnx'", extra="onnx") from error
    return onnx


@contextmanager
def _silence() -> Iterator[None]:
    """Suppress the exporter's remarks, on packages that it does not find for one."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
