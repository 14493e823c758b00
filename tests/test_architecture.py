"""The shape of the house: which room may import which, what is public, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import trecvit

SOURCE = Path(trecvit.__file__).parent

# Each room may import the rooms of the lines above its own, and itself. Rooms of one line are blind to each other.
LINES = [
    {"draws", "errors", "processor", "quantised", "workers"},
    {"config", "files", "processes"},
    {"labels", "model_card"},
    {"pretrained", "video", "download"},
    {"model"},
    {"data"},
    {"synthetic"},
    {"weights"},
    {"evaluate"},
    {"train"},
    {"accelerate"},
    {"runtime", "hub"},
    {"serve"},
    {"bench", "hf"},
    {"cli"},
    {"__main__"},
]
LINE_OF = {room: number for number, line in enumerate(LINES) for room in line}
BLIND = {("model", "video"), ("video", "config")}

# Packages that only some files touch.
RESERVED = {
    "av": {"video/container.py", "video/order.py", "video/decode.py", "video/encode.py", "runtime/doctor.py"},
    "typer": {"cli"},
    "rich": {"cli"},
    "skimage": {"synthetic/pictures.py"},
    "openvino": {"accelerate/openvino.py"},
    "onnx": {"accelerate/onnx.py"},
    "onnxscript": {"accelerate/onnx.py"},
    "onnxruntime": {"accelerate/onnx_runtime.py"},
    "cv2": {"evaluate/point_baselines.py"},
    "transformers": {"hf.py"},
    "triton": {"model/scan_triton.py"},
    "huggingface_hub": {"pretrained.py", "model_card.py", "hub.py"},
    "starlette": {"serve"},
    "uvicorn": {"serve/run.py", "serve/guard.py"},
    "websockets": {"serve/client.py", "bench/serving.py"},
    "prometheus_client": {"serve/metrics.py"},
    "ray": {"runtime/cluster.py", "runtime/corpus.py"},
}


@cache
def imports(path: Path, *, checked: bool = True) -> set[str]:
    """Every module that a file imports, also inside functions, by its full name.

    Args:
        path: The file.
        checked: Also those under `if TYPE_CHECKING`.
    """
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        part
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for statement in node.body
        for part in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if not checked and node in for_types:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {part for part in parts if (SOURCE.parent / f"{part.replace('.', '/')}.py").exists()}
    return names


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for name in imports(path):
        if name.startswith("trecvit."):
            other = name.split(".")[1]
            assert other == room or LINE_OF[other] < LINE_OF[room], f"{room} may not import {name}"
            assert (room, other) not in BLIND, f"{room} knows nothing of {other}"


def _module(path: Path) -> str:
    return ".".join(("trecvit", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def test_no_file_imports_itself_by_way_of_others():
    """Imports inside functions count too, but those under TYPE_CHECKING do not: they are for readers only."""
    modules = {_module(path): path for path in FILES}
    edges = {
        name: {other for other in imports(path, checked=False) if other in modules and other != name}
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(edges[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_reserved_packages_are_touched_in_their_places_only(path):
    for name in imports(path):
        allowed = RESERVED.get(name.split(".")[0])
        here = path.relative_to(SOURCE)
        assert allowed is None or {str(here), here.parts[0]} & allowed, f"{name} in {path.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_package_does_not_import_the_papers_comparisons(path):
    assert not any(name.split(".")[0] == "paper" for name in imports(path))


def test_only_the_command_line_prints_or_exits():
    for path in FILES:
        if path.parent.name == "cli":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in {"print", "exit", "quit", "input"}, f"{path}:{node.lineno}"


PUBLIC = [
    "PRESETS",
    "LiveTracker",
    "LocalState",
    "LocalTracker",
    "LocalTrackerConfig",
    "ModelConfig",
    "Output",
    "PointReadoutConfig",
    "PointTracker",
    "Preprocessing",
    "ReadoutState",
    "ReadoutTracker",
    "ReadoutTrackerConfig",
    "State",
    "TAPNext",
    "TRecViT",
    "TRecViTError",
    "TrackState",
    "TrackerConfig",
    "TrackerOutput",
    "World",
    "WorldConfig",
    "class_names",
    "convert",
    "create_model",
    "export",
    "load",
    "load_exported",
    "optimize",
    "track_both_ways",
]


def test_the_public_names_are_these():
    assert trecvit.__all__ == PUBLIC


def test_public_names_exist_and_are_sorted():
    assert sorted(trecvit.__all__) == sorted(trecvit._HOMES)
    for name in trecvit.__all__:
        assert getattr(trecvit, name) is not None
        assert name in dir(trecvit)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = trecvit.lode


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    heavy = run_python(
        "import sys, trecvit; print([m for m in ('torch', 'numpy', 'av', 'rich', 'ray') if m in sys.modules])"
    )
    assert heavy == "[]"


@pytest.mark.slow
def test_loading_imports_no_compiler():
    """It takes longer than all the rest, and a random number on the meta device is enough to have it imported."""
    code = "import sys, trecvit; [trecvit.load(name) for name in ('motions', 'points')]; "
    code += "print([m for m in ('torch._dynamo', 'sympy') if m in sys.modules])"
    assert run_python(code) == "[]"


def test_the_models_need_no_video_library_and_no_command_line():
    code = "import sys, trecvit; trecvit.create_model('tiny', depth=1); print([m for m in {} if m in sys.modules])"
    assert run_python(code.format("('av', 'typer', 'skimage', 'PIL', 'yaml')")) in ("[]", "['yaml']")
