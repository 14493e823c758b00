"""Compiled models in a folder, started without compiling again.

    trecvit.export(model, "fast", dtype=torch.bfloat16, frames=(1, 32))
    model = trecvit.load_exported("fast")         # used like the model: model.step(frame, state), model(clip)

A graph holds for one batch size, number of frames and image size, so there is a file for each. The carried state is
among its inputs and outputs, and stays the explicit value that it is everywhere else. OpenVINO's folders also hold
`stream.xml`, with the state kept inside, for programs without Python: frames in, class probabilities (or features) out.
A model that only takes whole clips has none. ONNX's folders are `trecvit.accelerate.onnx_folder`'s.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from trecvit.accelerate.compile import find_compiler
from trecvit.accelerate.kernels import FLOATS, available_dtype
from trecvit.accelerate.onnx_folder import export_onnx, is_onnx, read_manifest, read_rest, run_of
from trecvit.accelerate.onnx_runtime import as_engine
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
from trecvit.model.tracker import PointTracker
from trecvit.model.trecvit import Output, TRecViT, VideoModel
from trecvit.processor import features, instruction_set
from trecvit.weights.load import ARCHITECTURES

_FORMAT = "trecvit-exported-1"
_MODES = ("compile", "openvino", "onnx")
_DESCRIPTION, _REST, _STREAM = "exported.json", "rest.safetensors", "stream.xml"

_REST_PARTS = ("norm.", "head.")  # parts that run outside of the graphs

_Model = TypeVar("_Model", bound=VideoModel)


def export(
    model: TRecViT | PointTracker,
    folder: str | Path,
    *,
    mode: str = "compile",
    dtype: torch.dtype | None = None,
    batch_size: int | None = 1,
    frames: Sequence[int] = (1,),
    image_size: ImageSize | None = None,
    num_points: int = 16,
    weights: str = "float32",
) -> Path:
    """Compile a model for the given shapes and write the result into a folder.

    Each graph is validated against the model over several steps.

    Args:
        model: On the CPU. It is not changed.
        folder: A new or empty folder.
        mode: "compile" is PyTorch's AOTInductor: a library for this kind of processor, some tens of seconds for each
            number of frames. "openvino" is OpenVINO's format (the extra `openvino`), for any processor it runs on.
            "onnx" (the extra `onnx`) is the step of one frame for any ONNX runtime, of classifiers and point trackers.
        dtype: float32, or bfloat16 for the matrix multiplications where this CPU is faster with it, see `optimize`. By
            default the model's. For "onnx" float32.
        batch_size: Streams or clips per call; None, with "onnx", for any number.
        frames: Numbers of frames per call: 1 for a stream frame by frame; the length of the clips. Not for "onnx".
        image_size: Height and width of the frames, by default those of `preprocessing`.
        num_points: With "onnx", the most points that a tracker can track at a time.
        weights: With "onnx", how weight matrices are stored: "float32", or "float16" for half of the size. The graph
            computes in float32 either way.

    Returns:
        The folder.

    Raises:
        ConfigError: For a model or arguments that cannot be exported, or a graph whose results differ from the model's.
        MissingPackageError: For "openvino" where it is not installed.
    """
    folder, dtype = Path(folder), dtype or model.dtype
    image_size = model.preprocessing.image_size if image_size is None else as_image_size(image_size)
    extent = model.tokenizer.config.temporal_patch_size
    if mode not in _MODES:
        raise ConfigError(f"mode: expected one of {', '.join(_MODES)}, got {mode!r}{nearest(mode, _MODES)}")
    if dtype not in FLOATS.values():
        raise ConfigError(f"dtype: expected torch.float32 or torch.bfloat16, got {dtype}")
    if mode == "onnx":
        _export_onnx(model, folder, dtype, batch_size, frames, image_size, num_points, weights)
        return folder
    if not isinstance(model, TRecViT) or model.is_optimized or model.device.type != "cpu":
        raise ConfigError(
            "export: expected a TRecViT on the CPU as it was loaded or made, not a result of optimize; trackers are "
            "exported with mode='onnx'"
        )
    if weights != "float32":
        raise ConfigError(f"weights: expected float32 with mode={mode!r}, got {weights!r}; take mode='onnx'")
    if batch_size is None or batch_size < 1 or not frames or any(count < 1 or count % extent for count in frames):
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


def _export_onnx(
    model: TRecViT | PointTracker,
    folder: Path,
    dtype: torch.dtype,
    batch_size: int | None,
    frames: Sequence[int],
    image_size: tuple[int, int],
    num_points: int,
    weights: str,
) -> None:
    """Check the arguments of `export` for ONNX, and export."""
    if dtype != torch.float32 and dtype != model.dtype:
        raise ConfigError(
            f"dtype: expected torch.float32 with mode='onnx', got {dtype}; weights='float16' makes it small"
        )
    if list(frames) != [1] or (batch_size is not None and batch_size < 1) or num_points < 1:
        raise ConfigError(
            "export: expected frames=[1], a batch of 1 or more (or None) and one point or more with mode='onnx', got "
            f"frames={list(frames)}, batch_size={batch_size}, num_points={num_points}"
        )
    if not is_empty(folder):
        raise ConfigError(f"{folder}: expected a new or empty folder")
    export_onnx(model, folder, image_size=image_size, batch_size=batch_size, num_points=num_points, weights=weights)


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
    """Write the weights that are used outside of the graphs, and the description."""
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
    """Whether `export` wrote a folder."""
    return (Path(folder) / _DESCRIPTION).is_file() or is_onnx(folder)


def load_exported(folder: str | Path) -> TRecViT | PointTracker:
    """Load a folder that `export` wrote, without compiling. The model takes only the shapes it was exported for.

    A folder of "compile" holds machine code, which loading it runs: load only folders that you trust.

    Raises:
        CheckpointError: For another or a damaged folder, and one made for another PyTorch or kind of processor.
        MissingPackageError: When it needs OpenVINO or ONNX Runtime, which is not installed.
    """
    folder = Path(folder)
    return _load_onnx(folder) if is_onnx(folder) else _load_graphs(folder)


def load_exported_as(kind: type[_Model], folder: str | Path) -> _Model:
    """`load_exported` for a given class of model.

    Raises:
        CheckpointError: As `load_exported`, and for a model of another class.
    """
    model = load_exported(folder)
    if not isinstance(model, kind):
        raise CheckpointError(f"{folder}: expected a {kind.__name__}, got a {type(model).__name__}")
    return model


def _load_onnx(folder: Path) -> TRecViT | PointTracker:
    """Load a folder of `export_onnx`."""
    manifest = read_manifest(folder)
    try:
        kind: Any = ARCHITECTURES[manifest["architecture"]]
        config = kind.config_class.from_dict(manifest["model"])
        preprocessing = Preprocessing.from_dict(manifest["preprocessing"])
        with torch.device("meta"):  # the weights are in the graph
            model = kind(config, preprocessing=preprocessing, provenance=manifest["provenance"]).eval()
        model._labels = tuple(manifest["labels"])  # as they are, see `Pretrained.load`
        model.load_state_dict(read_rest(folder), strict=False, assign=True)
        model.requires_grad_(False)
        run = run_of(model, folder, manifest)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, ConfigError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder}: damaged: {error!r}") from error
    if isinstance(model, PointTracker):
        model.replace_tracking(as_engine(model, run), num_slots=run.sizes.num_slots)
    else:
        model.engine = as_engine(model, run)
    model.is_optimized = True
    loaded: TRecViT | PointTracker = model
    return loaded


def _load_graphs(folder: Path) -> TRecViT:
    """Load a folder of "compile" or "openvino"."""
    try:
        facts = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        if facts["format"] != _FORMAT:
            raise CheckpointError(f"{folder / _DESCRIPTION}: expected the format {_FORMAT!r}, got {facts['format']!r}")
        config, preprocessing = ModelConfig.from_dict(facts["model"]), Preprocessing.from_dict(facts["preprocessing"])
        mode, dtype, image_size = facts["mode"], FLOATS[facts["dtype"]], tuple(facts["image_size"])
        shapes = [Shapes(facts["batch_size"], count, image_size) for count in facts["frames"]]
        made_for, labels, provenance = facts["made_for"], facts["labels"], facts["provenance"]
        rest = safetensors.torch.load_file(folder / _REST)
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such file; `trecvit export` writes such folders") from error
    except (OSError, KeyError, TypeError, ValueError, ConfigError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{folder}: damaged: {error!r}") from error
    here = _made_for(mode)
    older = {name: value for name, value in here.items() if name != "features"}  # as earlier versions wrote it
    if made_for not in (here, older):
        raise CheckpointError(f"{folder}: expected one made for {here}, got {made_for}; export the model again here")
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
    """The name of the graph for this number of frames."""
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
                f"the exported model takes {expected}, got {shapes.batch_size} x {shapes.num_frames} frames of "
                f"{shapes.image_size}; export the model for these, too"
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
    """Write the graph with its state inside, which starts as zeros like that of every fresh stream."""
    state = source.init_state(shapes.batch_size, image_size=shapes.image_size)
    frames = torch.zeros(shapes.batch_size, shapes.num_frames, 3, *shapes.image_size)
    graph = to_openvino(_Stream(source, state), frames, state)
    names = list(carried(state))
    for port, name in zip(graph.inputs, ["frames", *names], strict=True):
        port.get_tensor().set_names({name})
    output = "features" if source.head is None else "probs"
    for port, name in zip(graph.outputs, [output, *(f"next.{name}" for name in names)], strict=True):
        port.get_tensor().set_names({name})
    keep_inside(graph, {name: f"next.{name}" for name in names})
    save_openvino(graph, path)


def _made_for(mode: str) -> dict[str, Any]:
    """The versions and processor features that a folder depends on."""
    if mode == "openvino":
        return {"openvino": find_openvino().__version__}
    return {"torch": str(torch.__version__), "instructions": instruction_set(), "features": features()}
