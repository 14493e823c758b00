"""Each tutorial runs as a program, at a small scale, and becomes a notebook and a page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.tutorials import FOLDER, ORDER, SMALL, run

ROOT = Path(__file__).parent.parent
IN_THEIR_OWN_PROCESS = {"export_to_onnx"}  # PyTorch is not to be imported


def test_every_tutorial_is_listed():
    found = {path.stem for path in (ROOT / FOLDER).glob("*.py")}
    assert set(ORDER) == set(SMALL) == found


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ORDER if name not in IN_THEIR_OWN_PROCESS])
def test_a_tutorial_runs(name, tmp_path, capsys, monkeypatch):
    if name == "serve":
        pytest.importorskip("uvicorn")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}")
    run(ROOT / FOLDER / f"{name}.py", tmp_path, SMALL[name])
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_exported_model_runs_without_pytorch(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    name = "export_to_onnx"
    code = "import sys; from pathlib import Path; from tools.tutorials import FOLDER, SMALL, run; "
    code += f"run(FOLDER / '{name}.py', Path(sys.argv[1]), SMALL['{name}'])"
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    assert "PyTorch is loaded: False" in done.stdout
    # The rendered scene's motion is the first of the list, and the exported model names it.
    truth = done.stdout.splitlines()[-3].split(", ")[0]
    assert re.fullmatch(rf" *\d\.\d s  {truth} \d+%", done.stdout.splitlines()[-2])


def test_a_constant_that_is_gone_is_an_error(tmp_path):
    (tmp_path / "x.py").write_text("SIZE = 3  # pixels\nprint(SIZE)\n")
    with pytest.raises(ValueError, match="expected a constant DEPTH"):
        run(tmp_path / "x.py", tmp_path, {"DEPTH": "1"})
    run(tmp_path / "x.py", tmp_path, {"SIZE": "4"})
