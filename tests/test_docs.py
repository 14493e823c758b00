"""The documents' code runs, their links lead somewhere, and the command lines they name exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trecvit.cli import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.md")])
BLOCKS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in DOCUMENTS
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL))
]


@pytest.mark.parametrize("block", BLOCKS)
def test_code_in_documents_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "document", "exec"), {})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_to_files_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist(path):
    for line in re.findall(r"^trecvit (.*?)(?:  +#.*)?$", path.read_text(encoding="utf-8"), re.MULTILINE):
        words = shlex.split(line)
        command = words[:2] if words[0] in ("data", "eval", "bench") else words[:1]
        usage = CliRunner().invoke(app, [*command, "--help"], terminal_width=200)
        assert usage.exit_code == 0, line
        for option in (word for word in words if word.startswith("--")):
            assert option in usage.stdout, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_what_is_there(path):
    for name in re.findall(
        r"`((?:src|tests|docs|recipes|scripts|benchmarks)/[\w./]+)`", path.read_text(encoding="utf-8")
    ):
        assert (ROOT / name).exists(), name
