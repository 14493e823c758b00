"""Folders of exported ONNX models: the graph, a manifest that describes it to any client, and Triton's configuration.

step.onnx            one frame: predictions and the next state
manifest.json        inputs, outputs, initial state, slots, labels, preprocessing, provenance, comparison, sha256
manifest.schema.json JSON Schema of the manifest
rest.safetensors     the last norm and the head, for `load_exported` only
config.pbtxt         for Triton Inference Server, with the state kept by the server
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors.torch

from trecvit.accelerate.onnx import (
    EMPTY_SLOT,
    OPSET,
    StateTensor,
    find_onnx,
    for_graph,
    frames_per_call,
    initial_state,
    predictions,
    state_tensors,
    store_in_half,
    to_onnx,
)
from trecvit.accelerate.onnx_runtime import (
    FRAMES_COMPARED,
    TOLERANCE,
    GraphSizes,
    SessionRun,
    find_runtime,
    open_session,
    validate,
)
from trecvit.config import nearest
from trecvit.errors import CheckpointError, ConfigError
from trecvit.files import emptied_on_error, write_json, write_text, writing
from trecvit.model.tracker import PointTracker
from trecvit.model.trecvit import TRecViT

FORMAT = "trecvit-onnx-1"
MANIFEST, GRAPH = "manifest.json", "step.onnx"
_SCHEMA, _REST, _TRITON = "manifest.schema.json", "rest.safetensors", "config.pbtxt"
_REST_PARTS = ("norm.", "head.")

Weights = Literal["float32", "float16"]
_ROWS_IN_TRITON = 8  # sequences at once, for a graph of any batch size
_MEANING = {
    "logits": "class scores given all frames so far",
    "probs": "their softmax",
    "features": "the encoder's tokens of this frame",
    "points_xy": "position of each slot's point in pixels of the frame: (0, 0) is the upper left corner",
    "visible_logits": "above 0 where the point is visible",
    "certainty": "predicted probability that the point is close to points_xy",
}


def export_onnx(
    model: TRecViT | PointTracker,
    folder: Path,
    *,
    image_size: tuple[int, int],
    batch_size: int | None,
    num_points: int,
    weights: str,
) -> None:
    """Write a model's folder; see `trecvit.accelerate.exported.export` for the arguments.

    The graph is written only after it agreed with the model, in ONNX Runtime, over `FRAMES_COMPARED` carried frames:
    predictions and every tensor of the state.

    Raises:
        ConfigError: For a model that cannot be converted, or whose graph computes something else.
        MissingPackageError: When onnx, onnxscript or onnxruntime is not installed.
    """
    if weights not in get_args(Weights):
        raise ConfigError(f"weights: expected float32 or float16, got {weights!r}{nearest(weights, get_args(Weights))}")
    find_onnx()
    find_runtime()
    num_slots = num_points + 1 if isinstance(model, PointTracker) else 0
    sizes = GraphSizes(batch_size, image_size, num_slots)
    source = for_graph(model)
    graph = to_onnx(source, image_size, batch_size=batch_size, num_slots=max(num_slots, 1))
    if weights == "float16":
        store_in_half(graph)
    content = graph.SerializeToString()
    errors = validate(model, SessionRun(model, open_session(content), sizes), weights=weights)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with emptied_on_error(folder), writing(folder / GRAPH):
        (folder / GRAPH).write_bytes(content)
        rest = {name: value.contiguous() for name, value in source.state_dict().items() if name.startswith(_REST_PARTS)}
        safetensors.torch.save_file(rest, folder / _REST)
        state = state_tensors(initial_state(model, batch_size or 1, image_size, max(num_slots, 1)))
        manifest = _manifest(model, sizes, state, graph, weights, errors)
        write_text(folder / _TRITON, triton_config(manifest))
        (folder / _SCHEMA).write_bytes(schema().encode())
        manifest["files"] = {
            name: {"sha256": _sha256(folder / name), "bytes": (folder / name).stat().st_size}
            for name in (GRAPH, _REST, _TRITON, _SCHEMA)
        }
        write_json(folder / MANIFEST, manifest, indent=2)


def schema() -> str:
    """Return the JSON Schema of manifests."""
    return (files("trecvit.accelerate") / _SCHEMA).read_text(encoding="utf-8")


def _manifest(
    model: TRecViT | PointTracker,
    sizes: GraphSizes,
    state: tuple[StateTensor, ...],
    graph: Any,
    weights: str,
    errors: dict[str, float],
) -> dict[str, Any]:
    first = sizes.batch_size or "batch"
    shapes = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in graph.graph.output
    }
    packages = ("trecvit", "torch", "onnx", "onnxscript", "onnxruntime")
    slots = None
    if isinstance(model, PointTracker):
        slots = {"count": sizes.num_slots, "spare": sizes.num_slots - 1, "empty": EMPTY_SLOT}
    return {
        "format": FORMAT,
        "architecture": type(model).__name__,
        **model.description(),
        "opset": OPSET,
        "weights": weights,
        "batch_size": sizes.batch_size,
        "image_size": list(sizes.image_size),
        "frames_per_call": frames_per_call(model),
        "inputs": [
            {
                "name": "frame",
                "dtype": "float32",
                "shape": [first, frames_per_call(model), 3, *sizes.image_size],
                "meaning": "RGB pixels from 0 to 1",
            }
        ],
        "outputs": [
            {"name": name, "dtype": "float32", "shape": [first, *shapes[name][1:]], "meaning": _MEANING[name]}
            for name in predictions(model)
        ],
        "state": [
            {
                "name": tensor.name,
                "input": tensor.input,
                "output": tensor.output,
                "dtype": "float32",
                "shape": [first, *tensor.shape[1:]],
                "initial": tensor.initial,
                "slot_axis": tensor.slot_axis,
                "first_slot": tensor.first_slot,
            }
            for tensor in state
        ],
        "slots": slots,
        "compared": {
            "with": f"PyTorch {version('torch')}",
            "frames": FRAMES_COMPARED * frames_per_call(model),
            "tolerance": TOLERANCE[weights],
            "largest_relative_errors": errors,
        },
        "made_with": {name: version(name) for name in packages},
    }


def is_onnx(folder: str | Path) -> bool:
    """Whether `export_onnx` wrote a folder."""
    return (Path(folder) / MANIFEST).is_file()


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a manifest and check the files beside it.

    Raises:
        CheckpointError: for another format, and for a missing or changed file.
    """
    path = folder / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise CheckpointError(f"{path}: expected the format {FORMAT!r}, got {manifest['format']!r}")
        sums = {name: manifest["files"][name]["sha256"] for name in (GRAPH, _REST)}
        found = {name: _sha256(folder / name) for name in sums}
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename}: no such file; export the model again") from error
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error!r}") from error
    for name, value in sums.items():
        if found[name] != value:
            raise CheckpointError(
                f"{folder / name}: expected sha256 {value}, got {found[name]}; export the model again"
            )
    return manifest


def read_rest(folder: Path) -> dict[str, Any]:
    """Read the weights that are used outside of the graph."""
    return safetensors.torch.load_file(folder / _REST)


def run_of(model: TRecViT | PointTracker, folder: Path, manifest: dict[str, Any]) -> SessionRun:
    """Load a folder's graph for a model of the manifest's description."""
    height, width = manifest["image_size"]
    num_slots = manifest["slots"]["count"] if manifest["slots"] else 0
    sizes = GraphSizes(manifest["batch_size"], (height, width), num_slots)
    return SessionRun(model, open_session(folder / GRAPH), sizes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- Triton --------------------------------------------------------------------------------------------------------


def triton_config(manifest: dict[str, Any]) -> str:
    """Write Triton Inference Server's configuration for a manifest.

    The server keeps each sequence's state. A tracker's `frames_since_query` and `query_points_yx` are inputs that the
    client sends with every frame instead, because the points are its own.
    """
    by_client = {"frames_since_query", "query_points_yx"} if manifest["slots"] else set()
    kept = [tensor for tensor in manifest["state"] if tensor["name"] not in by_client]
    sent = [tensor for tensor in manifest["state"] if tensor["name"] in by_client]
    inputs = [*manifest["inputs"], *({**tensor, "name": tensor["input"]} for tensor in sent)]
    sections = [
        f"max_batch_size: {manifest['batch_size'] or _ROWS_IN_TRITON}",
        'backend: "onnxruntime"',
        f'default_model_filename: "{GRAPH}"',
        *(_triton_tensor("input", tensor["name"], tensor["shape"]) for tensor in inputs),
        *(_triton_tensor("output", tensor["name"], tensor["shape"]) for tensor in manifest["outputs"]),
        "sequence_batching {\n  direct { }\n" + "".join(_triton_state(tensor) for tensor in kept) + "}",
    ]
    return "\n".join(sections) + "\n"


def _triton_tensor(kind: str, name: str, shape: list[Any]) -> str:
    return f'{kind} [ {{ name: "{name}" data_type: TYPE_FP32 dims: {shape[1:]} }} ]'


def _triton_state(tensor: dict[str, Any]) -> str:
    assert tensor["initial"] == 0.0, "of all tensors that the server keeps"
    dims = tensor["shape"][1:]
    initial = f'initial_state {{ name: "zeros" data_type: TYPE_FP32 dims: {dims} zero_data: true }}'
    names = f'input_name: "{tensor["input"]}" output_name: "{tensor["output"]}"'
    return f"  state [ {{ {names} data_type: TYPE_FP32 dims: {dims} {initial} }} ]\n"
