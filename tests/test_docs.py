"""The documents' code runs, their links lead somewhere, and the command lines they name exist."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from paper.commands import app as paper_app
from trecvit.cli import app
from trecvit.data.layouts import read_manifest
from trecvit.runtime.stream import stream
from trecvit.video.decode import read_frames
from trecvit.video.encode import VideoWriter
from trecvit.weights.load import load

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
# Blocks below a comment with a test's name run in that test, which has the files that they read.
BLOCKS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in DOCUMENTS
    for number, block in enumerate(
        re.findall(r"(?<!-->\n)```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    )
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
    for line in re.findall(r"^(?:trecvit|scripts/paper) .*?(?=  +#|$)", path.read_text(encoding="utf-8"), re.MULTILINE):
        program, *words = shlex.split(line)
        command = words[:2] if words[0] in ("data", "eval", "bench") else words[:1]
        usage = CliRunner().invoke(
            paper_app if program == "scripts/paper" else app, [*command, "--help"], terminal_width=200
        )
        assert usage.exit_code == 0, line
        for option in (word for word in words if word.startswith("--")):
            assert option in usage.stdout, line


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_what_is_there(path):
    for name in re.findall(
        r"`((?:src|tests|docs|paper|tools|scripts|benchmarks)/[\w./]+)`", path.read_text(encoding="utf-8")
    ):
        assert (ROOT / name).exists(), name


def test_the_models_equations_lead_to_code_that_is_there():
    text = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "src" / "trecvit" / "model").glob("*.py"))
    rows = re.findall(r"^\| [^|]+ \|.*\| ([^|]+) \|$", text[: text.index("## Numbers")], re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(names) > 8
    for name in names:
        assert re.search(rf"^(class|def) {name}\b", code, re.MULTILINE), name


@pytest.mark.slow
def test_the_example_with_many_streams_gives_each_video_its_own_answer(tmp_path):
    videos = []
    rng = np.random.default_rng(0)
    for number, length in enumerate((5, 9, 4)):
        videos.append(tmp_path / f"{number}.mkv")
        with VideoWriter(videos[-1], 12) as writer:
            for _ in range(length):
                writer.write(rng.integers(0, 256, (64, 64, 3), np.uint8))
    example = ROOT / "examples" / "many_streams.py"
    done = subprocess.run([sys.executable, str(example), *map(str, videos)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = load("motions")
    for video, length in zip(videos, (5, 9, 4), strict=True):
        best = list(stream(model, video))[-1].top(model.labels, 1)[0]
        assert f"{video}: {best[0]} ({best[1]:.0%} after {length} frames)" in done.stdout


@pytest.mark.slow
def test_the_example_with_new_motions_writes_a_folder_per_class(tmp_path):
    example = ROOT / "examples" / "new_motions.py"
    done = subprocess.run([sys.executable, str(example), str(tmp_path / "new")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    train, validation = (read_manifest(tmp_path / "new" / split) for split in ("train", "validation"))
    assert train.labels == validation.labels
    assert not set(train.labels) & set(load("motions").labels)
    assert (len(train.videos), len(validation.videos)) == (6 * 12, 6 * 40)
    frames = [np.stack([frame.image for frame in read_frames(video.source)]) for video in train.videos[::12]]
    assert all(clip.shape == (8, 64, 64, 3) for clip in frames)
    assert all(np.abs(clip[0].astype(int) - clip[3]).mean() > 0.5 for clip in frames)


@pytest.mark.parametrize("document", ["README.md", "src/trecvit/weights/motions/README.md"])
def test_the_bundled_models_figures_are_the_measured_ones(document):
    report = json.loads((ROOT / "benchmarks" / "motions.json").read_text())
    text = (ROOT / document).read_text(encoding="utf-8")
    for test in report["tests"]:
        row = f"| {test['name']} | {test['num_clips']:,} | {test['top1']:.1%} | {test['pair']:.1%} |".replace("%", " %")
        assert row in text
    assert report["parameters"] == sum(parameter.numel() for parameter in load("motions").parameters())
