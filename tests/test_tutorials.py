"""Each tutorial runs as a program, at a small scale, and becomes a notebook and a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.tutorials import FOLDER, ORDER, SMALL, run

ROOT = Path(__file__).parent.parent
LATER = {"export_to_onnx", "serve"}  # with their own packages: their tests are beside those of their rooms


def test_every_tutorial_is_listed():
    found = {path.stem for path in (ROOT / FOLDER).glob("*.py")}
    assert set(ORDER) <= found
    assert found - set(ORDER) <= LATER
    assert set(SMALL) == set(ORDER)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORDER)
def test_a_tutorial_runs(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}")
    run(ROOT / FOLDER / f"{name}.py", tmp_path, SMALL[name])
    assert capsys.readouterr().out


def test_a_constant_that_is_gone_is_an_error(tmp_path):
    (tmp_path / "x.py").write_text("SIZE = 3  # pixels\nprint(SIZE)\n")
    with pytest.raises(ValueError, match="expected a constant DEPTH"):
        run(tmp_path / "x.py", tmp_path, {"DEPTH": "1"})
    run(tmp_path / "x.py", tmp_path, {"SIZE": "4"})
