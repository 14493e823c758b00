"""Exports small models as ONNX into a folder: `python tests/onnx_exports.py FOLDER`.

In a process of its own, without the tests' checks of shapes, which fix the sizes that a graph leaves open.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from models import VARIANTS, tiny_local_tracker, tiny_model, tiny_readout_tracker, tiny_tracker

from trecvit.accelerate.exported import export
from trecvit.model.tracker import PointTracker
from trecvit.model.trecvit import TRecViT

# Each variant of the architecture occurs once; an export takes some seconds.
MODELS: dict[str, tuple[list[str], dict[str, object]]] = {
    "plain": (["plain"], {"weights": "float16"}),
    "complex": (["complex", "temporal_mlp", "no_head"], {"batch_size": None}),
    "pairs": (["pairs_of_frames", "no_conv_fixed_positions", "no_gates"], {"batch_size": None}),
    "conv": (["full_conv"], {}),
}
TRACKERS: dict[str, tuple[Callable[[], PointTracker], dict[str, object]]] = {
    "points": (lambda: tiny_tracker(matching=True), {"num_points": 4}),
    "readout": (tiny_readout_tracker, {"num_points": 3, "batch_size": 2, "weights": "float16"}),
    "local": (tiny_local_tracker, {"num_points": 4, "batch_size": None}),
}


def model_of(name: str) -> TRecViT | PointTracker:
    """Build the model that was exported under a name."""
    if name in TRACKERS:
        return TRACKERS[name][0]()
    fields = {key: value for variant in MODELS[name][0] for key, value in VARIANTS[variant].items()}
    model = tiny_model(**{"depth": 2 if name == "plain" else 1, **fields})
    if name == "plain":
        model.relabel(["left", "right", "up", "down", "still"])
    return model


def main(folder: Path) -> None:
    for name, (_, options) in (*MODELS.items(), *TRACKERS.items()):
        export(model_of(name), folder / name, mode="onnx", **options)
    print(json.dumps(sorted(path.name for path in folder.iterdir())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
