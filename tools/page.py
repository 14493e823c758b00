"""The page in the browser, built: `scripts/page [FOLDER]`.

Beside its sources in `src/trecvit/serve/page/browser`, which the wheel contains, it puts ONNX Runtime Web (from npm,
pinned in tools/npm), the bundled models as ONNX, and a rendered clip. With FOLDER, all of it is also copied there,
ready for any static host.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import trecvit
from trecvit.files import empty, write_json
from trecvit.runtime.demo import render_scenes

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "src/trecvit/serve/page/browser"
_NPM = ROOT / "tools/npm/node_modules/onnxruntime-web"
# The build for WebAssembly, and the one for WebGPU that needs JavaScript Promise Integration: smaller than the others,
# and below the 25 MiB that some hosts allow for a file.
_RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_RUNTIME_GPU = ("ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.mjs", "ort-wasm-simd-threaded.jspi.wasm")
_PAGE_FILES = ("step.onnx", "manifest.json")
MODELS = ("motions", "points")  # `actions` would add 35 MB to the wheel and to a visitor's download


def build(page: Path = PAGE, *, models: tuple[str, ...] = MODELS) -> None:
    """Add to the page what is not in the repository."""
    vendor = page / "vendor"
    _fresh(vendor)
    for name in (*_RUNTIME, *_RUNTIME_GPU):
        shutil.copyfile(_NPM / "dist" / name, vendor / name)
    for name in models:
        folder = page / "models" / name
        _fresh(folder)
        with tempfile.TemporaryDirectory() as exported:
            trecvit.export(trecvit.load(name), exported, mode="onnx", weights="float16", num_points=16)
            for file in _PAGE_FILES:
                shutil.copyfile(Path(exported) / file, folder / file)
    write_json(page / "models" / "index.json", list(models))
    render_scenes(page / "sample.webm", seed=2026)


def _fresh(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    empty(folder)


def main(arguments: list[str]) -> None:
    """Build, and copy where an argument names a folder."""
    build()
    if arguments:
        shutil.copytree(PAGE, arguments[0], dirs_exist_ok=True)
    size = sum(path.stat().st_size for path in PAGE.rglob("*") if path.is_file())
    print(f"{PAGE}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
