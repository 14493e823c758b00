"""The site: every public name has a page and a docstring, links lead somewhere, and errors are quoted as they are."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jupytext
import nbformat
import pytest

import trecvit
from tools.site import (
    broken_links,
    mark_languages,
    navigation,
    reference,
    relink,
    stage,
    to_notebook,
    undocumented_names,
)

ROOT = Path(__file__).parent.parent
SOURCE = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))


def test_every_public_name_is_documented_once():
    names = [name for page in reference().values() for name in page if name.split(".")[-1] in trecvit.__all__]
    assert sorted(names) == sorted(f"trecvit.{name}" for name in trecvit.__all__)
    assert not list(undocumented_names())


def test_a_public_name_without_a_docstring_is_found(monkeypatch):
    class Undocumented:
        """A class."""

        def method(self):
            pass

    monkeypatch.setattr(trecvit, "TRecViT", Undocumented)
    assert list(undocumented_names()) == ["TRecViT.method"]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ("[x](../README.md)", "[x](index.md)"),
        ("[x](data.md#a)", "[x](data.md#a)"),
        ("[x](tutorials/y.py)", "[x](tutorials/y.md)"),
        ("[x](../examples/z.py)", "x (`examples/z.py`)"),
        ("![x](images/gone.png)", "![x](docs/images/gone.png)"),
        ("[x](#here) [y](https://a.b/c)", "[x](#here) [y](https://a.b/c)"),
        ("```\n[x](../README.md)\n```", "```\n[x](../README.md)\n```"),
    ],
)
def test_links_between_files_become_links_between_pages(link, expected):
    pages = {"README.md": "index.md", "docs/data.md": "data.md", "docs/tutorials/y.py": "tutorials/y.py"}
    assert relink(link, "docs/page.md", "page.md", pages) == expected


def test_broken_links_are_found(tmp_path):
    (tmp_path / "a.html").write_text('<h1 id="top"></h1><a href="b.html#x">b</a><a href="#top">a</a><img src="c.png">')
    (tmp_path / "b.html").write_text('<a href="gone.html">c</a><a href="https://a.b">d</a><a href="a.html#top">e</a>')
    assert broken_links(tmp_path) == ["a.html: b.html#x (no such heading)", "a.html: c.png", "b.html: gone.html"]


def test_troubleshooting_quotes_errors_that_exist():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = [part for title in re.findall(r"^### (.*)", text, re.MULTILINE) for part in re.findall("`([^`]+)`", title)]
    assert len(quoted) > 20
    flat = re.sub(r'"\s*\n\s*f?"', "", SOURCE)  # texts in several lines
    flat = re.sub(r"\{[^{}]*(\{[^{}]*\}[^{}]*)*\}", "…", flat)
    names = {"model.safetensors and config.json": "… and …", "needs the package …": "… needs the package …"}
    for words in quoted:
        for name, pattern in names.items():
            words = words.replace(name, pattern)
        for part in words.split("…"):
            assert part.strip(" '") in flat, words


def test_blocks_of_code_name_their_language():
    text = "```{}\ntrecvit demo\n```\n\ntrecvit\n```python\npip = 1\n```\n```{}\npip install x\n```\n```\nstep 1\n```"
    python = "```{}\nimport x\n```\n```\ntrecvit.load(x)\n```"
    assert mark_languages(python.format("")) == python.format("python")
    assert mark_languages(text.format("", "")) == text.format("sh", "sh")


@pytest.mark.parametrize("repository", ["", "someone/trecvit"])
def test_notebooks_are_read_anywhere(repository):
    path = ROOT / "docs" / "tutorials" / "stream_a_camera.py"
    notebook = to_notebook(jupytext.read(path), path, repository)
    nbformat.validate(notebook)
    text = "\n".join(cell.source for cell in notebook.cells)
    [pictured] = [cell for cell in notebook.cells if cell.get("attachments")]
    assert "![A frame of the annotated video](attachment:demo_frame.jpg)" in pictured.source
    content = base64.b64decode(pictured.attachments["demo_frame.jpg"]["image/jpeg"])
    assert content == (ROOT / "docs" / "images" / "demo_frame.jpg").read_bytes()
    assert "](../" not in text
    if repository:
        assert "](https://github.com/someone/trecvit/blob/main/docs/streaming.md)" in text
        assert notebook.cells[1].source.endswith('@ git+https://github.com/someone/trecvit"')
    else:
        assert "(`docs/streaming.md`)" in text
        assert "github" not in text


def test_links_between_tutorials_lead_to_their_files():
    path = ROOT / "docs" / "tutorials" / "export_to_onnx.py"
    notebook = to_notebook(jupytext.read(path), path, "someone/trecvit")
    assert "](https://github.com/someone/trecvit/blob/main/docs/tutorials/serve.py)" in notebook.cells[-1].source


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link():
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings_handlers.python")
    done = subprocess.run([sys.executable, "-m", "tools.site"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    site = ROOT / "site"
    assert 'id="trecvit.create_model"' in (site / "api" / "models.html").read_text(encoding="utf-8")
    assert (site / "tutorials" / "classify_a_folder.ipynb").is_file()


def test_pages_of_the_site_are_staged(tmp_path):
    stage(ROOT, tmp_path / "docs", repository="someone/trecvit")
    (tmp_path / "docs" / "later.md").write_text('# A "later" page\n')
    config = tomllib.loads(navigation((ROOT / "docs" / "zensical.toml").read_text(encoding="utf-8"), tmp_path / "docs"))
    listed = re.findall(r"[\w/]+\.md", str(config["project"]["nav"]))
    written = {path.relative_to(tmp_path / "docs").as_posix() for path in (tmp_path / "docs").rglob("*.md")}
    others = written - {*listed}
    assert {"cards/motions.md", "cards/points.md"} <= others
    assert all(name.startswith("cards/") for name in others)
    assert len(listed) == len(set(listed))
    assert """'A "later" page': 'later.md'""" in str(config["project"]["nav"])
    tutorial = (tmp_path / "docs" / "tutorials" / "classify_a_folder.md").read_text(encoding="utf-8")
    assert tutorial.startswith("# Classify a folder of videos\n\n[Download as a notebook](classify_a_folder.ipynb)")
    assert "colab.research.google.com/github/someone/trecvit/blob/notebooks/classify_a_folder.ipynb)" in tutorial
    assert "](docs/" not in (tmp_path / "docs" / "index.md").read_text(encoding="utf-8")
