"""Compiled models in a folder, started without compiling again.

    trecvit.export(model, "fast", dtype=torch.bfloat16, frames=(1, 32))
    model = trecvit.load_exported("fast")         # used as the model was: model.step(frame, state), model(clip)

A graph holds for one batch, number of frames and image size, so there is a file for each. What is carried from frame to
frame goes in and out of it, and stays the value it is everywhere else. OpenVINO's folders also hold `stream.xml`, with
the state kept inside, for programs without Python: frames in, class probabilities (or features) out. A model that only
takes whole clips has none.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from trecvit.accelerate.compile import find_compiler
from trecvit.accelerate.kernels import FLOATS, available_dtype
from trecvit.accelerate.openvino import (
    FrameEngine,
    OpenVINORun,
    Shapes,
    TracedPass,
    carried,
    compile_openvino,
    find_openvino,
    keep_inside,
    save_openvino,
    to_openvino,
    unpacked,
    validate,
)
from trecvit.accelerate.optimize import choose_threads, for_inference
from trecvit.config import ImageSize, ModelConfig, Preprocessing, as_image_size, nearest
from trecvit.errors import CheckpointError, ConfigError, InputError
from trecvit.files import emptied_on_error, is_empty, write_json, writing
from trecvit.model.state import State
from trecvit.model.trecvit import Output, TRecViT
from trecvit.processor import features, instruction_set

_FORMAT = "trecvit-exported-1"
_MODES = ("compile", "openvino")
_DESCRIPTION, _REST, _STREAM = "exported.json", "rest.safetensors", "stream.xml"

_REST_PARTS = ("norm.", "head.")  # what is needed outside of the graphs


def export(
    model: TRecViT,
    folder: str | Path,
    *,
    mode: str = "compile",
    dtype: torch.dtype | None = None,
    batch_size: int = 1,
    frames: Sequence[int] = (1,),
    image_size: ImageSize | None = None,
) -> Path:
    """Compiles a model for the shapes it will see and writes the result into a folder.

    Each graph is held against the model over several steps before it is written.

    Args:
        model: On the CPU. It is not changed.
        folder: A new or empty folder.
        mode: "compile" is PyTorch's AOTInductor: a library for this kind of processor, some tens of seconds for each
            number of frames. "openvino" is OpenVINO's format (the extra `openvino`), for any processor it runs on.
        dtype: float32, or bfloat16 for the matrix products where this CPU is faster with it, see `optimize`. By default
            the model's.
        batch_size: Streams or clips at once.
        frames: Frames of a call: 1 for a stream, frame after frame; the length of the clips.
        image_size: Height and width of the frames, by default those of `preprocessing`.

    Returns:
        The folder.

    Raises:
        ConfigError: For what cannot be exported, or a graph that computes something else than the model.
        MissingPackageError: OpenVINO is asked for and not installed.
    """
    folder, dtype = Path(folder), dtype or model.dtype
    image_size = model.preprocessing.image_size if image_size is None else as_image_size(image_size)
    extent = model.config.temporal_patch_size
    if mode not in _MODES:
        raise ConfigError(f"mode: expected one of {', '.join(_MODES)}, got {mode!r}{nearest(mode, _MODES)}")
    if dtype not in FLOATS.values():
        raise ConfigError(f"dtype: expected torch.float32 or torch.bfloat16, got {dtype}")
    if not isinstance(model, TRecViT) or model.is_optimized or model.device.type != "cpu":
        raise ConfigError("export: expected a TRecViT on the CPU as it was loaded or made, not a result of optimize")
    if batch_size < 1 or not frames or any(count < 1 or count % extent for count in frames):
        raise ConfigError(
            f"export: expected a batch of 1 or more and multiples of temporal_patch_size={extent} as frames, "
            f"got batch_size={batch_size}, frames={list(frames)}"
        )
    if not is_empty(folder):
        raise ConfigError(f"{folder}: expected a new or empty folder")
    if mode == "compile":
        find_compiler()
    dtype = available_dtype(model, dtype)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    source = for_inference(model, dtype, mode)
    counts = list(dict.fromkeys(frames))
    with emptied_on_error(folder):
        for count in counts:
            with writing(folder / _file(count, mode)):
                _write_graph(folder / _file(count, mode), source, Shapes(batch_size, count, image_size), mode, dtype)
        if mode == "openvino" and model.config.can_stream:
            with writing(folder / _STREAM):
                _write_stream(folder / _STREAM, source, Shapes(batch_size, extent, image_size))
        _write_rest(model, source, folder, mode, dtype, counts, batch_size, image_size)
    return folder


def _write_rest(
    model: TRecViT,
    source: TRecViT,
    folder: Path,
    mode: str,
    dtype: torch.dtype,
    counts: Sequence[int],
    batch_size: int,
    image_size: tuple[int, int],
) -> None:
    """Writes the parts that run outside of the graphs, and the description of all."""
    rest = {name: tensor.contiguous() for name, tensor in source.state_dict().items() if name.startswith(_REST_PARTS)}
    with writing(folder / _REST):
        safetensors.torch.save_file(rest, folder / _REST)
    description = {
        "format": _FORMAT,
        "mode": mode,
        "dtype": next(name for name, value in FLOATS.items() if value == dtype),
        "batch_size": batch_size,
        "frames": counts,
        "image_size": list(image_size),
        "made_for": _made_for(mode),
        **model.description(),
    }
    write_json(folder / _DESCRIPTION, description, indent=2)


def is_exported(folder: str | Path) -> bool:
    """Whether a folder is one that `export` wrote."""
    return (Path(folder) / _DESCRIPTION).is_file()


def load_exported(folder: str | Path) -> TRecViT:
    """A model as `export` wrote it, ready at once. It is used as any other, but only with the shapes it was made for.

    The folder holds machine code, which loading it runs: load only what you trust.

    Raises:
        CheckpointError: When it is no such folder, or was made for another PyTorch or another kind of processor.
        MissingPackageError: OpenVINO made it and is not installed.
    """
    folder = Path(folder)
    try:
        said = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        if said["format"] != _FORMAT:
            raise CheckpointError(f"{folder / _DESCRIPTION}: expected the format {_FORMAT!r}, got {said['format']!r}")
        config, preprocessing = ModelConfig.from_dict(said["model"]), Preprocessing.from_dict(said["preprocessing"])
        mode, dtype, image_size = said["mode"], FLOATS[said["dtype"]], tuple(said["image_size"])
        shapes = [Shapes(said["batch_size"], count, image_size) for count in said["frames"]]
        made_for, labels, provenance = said["made_for"], said["labels"], said["provenance"]
        rest = safetensors.torch.load_file(folder / _REST)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such file; `trecvit export` writes such folders") from error
    except (OSError, KeyError, TypeError, ValueError, ConfigError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder}: damaged: {error!r}") from error
    here = _made_for(mode)
    older = {name: value for name, value in here.items() if name != "features"}  # as earlier versions wrote it
    if made_for not in (here, older):
        raise CheckpointError(f"{folder}: made for {made_for}, this is {here}; export the model again here")
    with torch.device("meta"):  # the blocks' weights are in the graphs
        model = TRecViT(config, preprocessing=preprocessing, provenance=provenance).eval()
    model._labels = tuple(labels)  # as they are, see `Pretrained.load`
    model.load_state_dict(rest, strict=False, assign=True)
    model.requires_grad_(False)
    if mode == "openvino":  # its files do not depend on the processor
        dtype = available_dtype(model, dtype)
    runs: dict[Shapes, FrameEngine] = {}
    for item in shapes:
        path = folder / _file(item.num_frames, mode)
        if not path.exists():
            raise CheckpointError(f"{path}: no such file; export the model again")
        runs[item] = (
            _package_run(model, path) if mode == "compile" else OpenVINORun(model, compile_openvino(path, dtype))
        )
    model.engine = _ExportedEngine(model, runs)
    if mode == "compile":
        choose_threads(model)
    model.is_optimized = True
    return model


def _file(num_frames: int, mode: str) -> str:
    """Name of the graph for so many frames."""
    return f"frames_{num_frames}.{'pt2' if mode == 'compile' else 'xml'}"


class _ExportedEngine:
    """A TRecViT's pass over frames: runs the graph for their shapes."""

    def __init__(self, model: TRecViT, runs: dict[Shapes, FrameEngine]) -> None:
        self._model, self._runs = model, runs

    def __call__(self, frames: Tensor, state: State, /) -> tuple[Output, State]:
        """See `Engine`."""
        shapes = Shapes.of(frames)
        if not shapes.num_frames:  # frames wait for a whole temporal patch
            tokens = state.layers[0].hidden.shape[1]
            features = frames.new_empty(shapes.batch_size, 0, tokens, self._model.config.width)
            return Output(*self._model.scores(state), features), state
        if shapes not in self._runs:
            expected = "; ".join(
                f"{item.batch_size} x {item.num_frames} frames of {item.image_size}" for item in self._runs
            )
            raise InputError(
                f"the exported model is for {expected}; got {shapes.batch_size} x {shapes.num_frames} frames of "
                f"{shapes.image_size}"
            )
        return self._runs[shapes](frames, state)


def _write_graph(path: Path, source: TRecViT, shapes: Shapes, mode: str, dtype: torch.dtype) -> None:
    state = source.init_state(shapes.batch_size, image_size=shapes.image_size)
    frames = torch.rand(shapes.batch_size, shapes.num_frames, 3, *shapes.image_size).to(source.dtype)
    traced = TracedPass(source.engine, state)
    run: FrameEngine
    if mode == "openvino":
        save_openvino(to_openvino(traced, frames, state), path)
        run = OpenVINORun(source, compile_openvino(path, dtype))
    else:
        # Kernels for any number of threads, as that changes while they run.
        any_threads = torch._inductor.config.patch({"cpp.dynamic_threads": True})
        with warnings.catch_warnings(), torch.no_grad(), any_threads:
            warnings.simplefilter("ignore")
            program = torch.export.export(traced, (frames, *carried(state).values()))
            torch._inductor.aoti_compile_and_package(program, package_path=str(path))
        run = _package_run(source, path)
    validate(source, source.engine, run, shapes, dtype, maker=f"what mode={mode!r} made")


def _package_run(model: TRecViT, path: Path) -> FrameEngine:
    package: Callable[..., Sequence[Tensor]] = torch._inductor.aoti_load_package(str(path))

    def run(frames: Tensor, state: State, /) -> tuple[Output, State]:
        inputs = [tensor.contiguous() for tensor in (frames, *carried(state).values())]
        return unpacked(model, state, package(*inputs))

    return run


class _Stream(nn.Module):
    """Class probabilities (or features) of a stream and its state, which the graph then keeps inside."""

    def __init__(self, model: TRecViT, like: State) -> None:
        super().__init__()
        self._model, self._like = model, like
        self._pass = TracedPass(model.engine, like)

    def forward(self, frames: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        features, *after = self._pass(frames, *tensors)
        out, _ = unpacked(self._model, self._like, [features, *after])
        return (features if out.probs is None else out.probs, *after)


def _write_stream(path: Path, source: TRecViT, shapes: Shapes) -> None:
    """The graph with its state inside. It begins with a state of zeros, which is that of a fresh stream."""
    state = source.init_state(shapes.batch_size, image_size=shapes.image_size)
    frames = torch.zeros(shapes.batch_size, shapes.num_frames, 3, *shapes.image_size)
    graph = to_openvino(_Stream(source, state), frames, state)
    names = list(carried(state))
    for port, name in zip(graph.inputs, ["frames", *names], strict=True):
        port.get_tensor().set_names({name})
    answer = "features" if source.head is None else "probs"
    for port, name in zip(graph.outputs, [answer, *(f"next.{name}" for name in names)], strict=True):
        port.get_tensor().set_names({name})
    keep_inside(graph, {name: f"next.{name}" for name in names})
    save_openvino(graph, path)


def _made_for(mode: str) -> dict[str, Any]:
    """What a folder depends on."""
    if mode == "openvino":
        return {"openvino": find_openvino().__version__}
    return {"torch": str(torch.__version__), "instructions": instruction_set(), "features": features()}
