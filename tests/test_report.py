"""Measured figures in documents: each is in a result file; everything in the paper has a row on the results page."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from paper.commands import app
from paper.report import STUDIES, TABLES, texts
from paper.sources import ITEMS
from tools.figures import DOCUMENTS, PAGE, fill, refuse_figures_by_hand
from tools.figures import app as figures_app
from trecvit.cli import app as trecvit_app
from trecvit.errors import DataError

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / PAGE).read_text(encoding="utf-8")
END = "<!-- end of figures -->"


def run_figures(root: Path, *words: str) -> str:
    result = CliRunner().invoke(figures_app, ["--root", str(root), *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def between_marks(page: str, name: str) -> str:
    return page.split(f"<!-- scripts/figures: {name} -->\n")[1].split(END)[0].strip()


def cells(text: str) -> Iterator[dict[str, str]]:
    """The rows of a table in Markdown."""
    titles, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines()]
    for row in rows:
        yield dict(zip(titles, row, strict=True))


def save(root: Path, study: str, content: object) -> Path:
    path = root / STUDIES[study].file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def copy(tmp_path):
    """The documents, the result files, and the pictures beside them."""
    for room in ("src", "paper", "tools", "benchmarks"):  # the file tree of the architecture page is made of sources
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("*.safetensors"))
    for name in DOCUMENTS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_documents_agree_with_the_result_files():
    assert "10 documents agree" in run_figures(ROOT, "--check")


def test_every_table_and_figure_of_the_paper_is_shown_or_not():
    expected = [f"Table {number}" for number in range(1, 16)] + [f"Figure {number}" for number in range(1, 10)]
    shown, not_shown = ([*cells(between_marks(RESULTS, name))] for name in ("shown", "not shown"))
    names = [row["table or figure"] for row in (*shown, *not_shown)]
    assert sorted(names) == sorted([*expected, "Section 1"])
    assert all(row["in the paper"] and row["here"] for row in shown)
    assert all(row["in the paper"] and row["why not"] for row in not_shown)
    measured = {study for item in ITEMS for study in item.studies}
    assert measured | {"endless"} == {*STUDIES}


def test_rows_link_to_their_explanations():
    headings = {"#" + re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines_of("#")}
    for item in ITEMS:
        links = [*filter(None, [item.anchor]), *re.findall(r"\]\(([^)]+)\)", item.here)]
        for link in links:
            assert link in headings if link.startswith("#") else (ROOT / "docs" / link.split("#")[0]).exists(), link


def lines_of(beginning: str) -> list[str]:
    return [line for line in RESULTS.splitlines() if line.startswith(beginning)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLES if name != "Figure 3, ratios"])
def test_figures_measured_here_are_roundings_of_values_in_the_file(name):
    path = ROOT / STUDIES[TABLES[name][0]].file
    if not path.exists():
        assert between_marks(RESULTS, name) == f"{name}: not measured yet."
        return
    values = list(numbers(json.loads(path.read_text(encoding="utf-8"))))
    for row in cells(between_marks(RESULTS, name)):
        for title, cell in row.items():
            if not title or "paper" in title or title.startswith("states are"):  # a name, such as "x 0.9 a frame"
                continue
            for figure in re.findall(r"(?<![\w.])\d[\d,]*\.\d+", cell):
                digits = len(figure.split(".")[1])
                roundings = {f"{value * unit:,.{digits}f}" for value in values for unit in (1, 100, 1e-6, 1e-9, 1e-12)}
                assert f"{float(figure.replace(',', '')):,.{digits}f}" in roundings, f"{title}: {cell}"


def numbers(content: Any) -> Iterator[float]:
    if isinstance(content, int | float):
        yield float(content)
    elif isinstance(content, list | dict):
        for part in content.values() if isinstance(content, dict) else content:
            yield from numbers(part)


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if (ROOT / study.file).exists()])
def test_commands_of_measurements_exist(name):
    line = between_marks(RESULTS, f"study: {name}").split("`")[1]
    of_package = "trecvit " in line
    words = shlex.split(line.split("trecvit ")[-1] if of_package else line.removeprefix("scripts/paper "))
    command = words[:2] if words[0] in ("eval", "bench") else words[:1]
    usage = CliRunner().invoke(trecvit_app if of_package else app, [*command, "--help"])
    assert usage.exit_code == 0, line
    for option in (word for word in words if word.startswith("--")):
        assert option in re.sub(r"\x1b\[[0-9;]*m", "", usage.output), line


def test_a_changed_figure_is_named_with_its_line_and_written_back(copy, monkeypatch):
    monkeypatch.setattr("paper.report.draw_pictures", lambda _: [copy / "a.png"])
    row = next(line for line in lines_of("| TRecViT-B | 32 | 111.3 |"))
    number = RESULTS.splitlines().index(row) + 1
    changed = row[:-3].rstrip("0123456789.") + "0.01 |"
    (copy / PAGE).write_text(RESULTS.replace(row, changed), encoding="utf-8")
    with pytest.raises(DataError, match=rf"results.md: line {number}: .*as in the result files, got '.*0\.01 \|'"):
        run_figures(copy, "--check")
    assert changed in (copy / PAGE).read_text(encoding="utf-8")
    output = run_figures(copy)
    assert "results.md: changed" in output
    assert "a.png" in output
    for name in DOCUMENTS:
        assert (copy / name).read_text(encoding="utf-8") == (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("file", "part", "document"), [("endless/result", "rows", "results.md"), ("motions", "tests", "README.md")]
)
def test_a_changed_result_is_named_too(copy, file, part, document):
    path = copy / "benchmarks" / f"{file}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content[part][0]["top1"] = 0.5
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=rf"{document}: line \d+: expected '.*\| 50\.0 % \|"):
        run_figures(copy, "--check")


@pytest.mark.parametrize("line", ["Here it was 12.3.", "Ours is at 77 %.", "- 3 × faster", "| ours | 8.1 |"])
def test_figures_are_between_marks_or_the_papers(line):
    number = len(RESULTS.splitlines()) + 2
    with pytest.raises(DataError, match=rf"line {number}: expected figures between marks, .* got '{re.escape(line)}'"):
        refuse_figures_by_hand(f"{RESULTS}\n{line}\n", PAGE)
    refuse_figures_by_hand(f"{RESULTS}\nThe paper has this:\n{line}\n", PAGE)
    refuse_figures_by_hand(f"{RESULTS}\n```\n{line}\n```\n", PAGE)


def test_what_is_not_measured_is_named_with_its_command(tmp_path):
    page = texts(tmp_path)
    for name, study in STUDIES.items():
        text = page[f"study: {name}"]
        assert text.startswith("Not measured yet: `")
        assert f"writes {study.file}" in text
    for name in TABLES:
        assert page[name] == f"{name}: not measured yet."
    rows = {row["table or figure"]: row for row in cells(page["shown"])}
    assert rows["Figure 7"]["here"] == "memory: not measured yet"
    assert rows["Figure 7"]["date"] == ""


def test_rows_of_a_part_stand_in_the_table_that_they_name(tmp_path):
    figures = {"psnr_db": 21.26, "last_psnr_db": 9.0, "constant_psnr_db": 15.0, "parameters": 1_250_000}
    rows = [
        {"part": "Table 6", "model": "ViViT", "trained_on": 16, "tested_on": 24, "paper_psnr_db": 15.1, **figures},
        {"part": "Figure 7", "model": "TRecViT", "offset": 12, "steps_per_s": 3.0, **figures},
        {"part": "beyond", "forgetting": "carried on", "frames": 1600, "first_psnr_db": 8, "state_rms": 1, **figures},
    ]
    about = {"command": "scripts/paper memory --to x", "date": "2027-01-02", "machine": "a laptop", "scale": "tiny"}
    about |= {"trained_on": 16, "frame": 4}
    folder = save(tmp_path, "memory", {**about, "study": "memory", "rows": rows}).parent
    (folder / "psnr_over_k.png").write_bytes(b"")
    page = texts(tmp_path)
    assert page["Table 6"].endswith("\n| ViViT | 16 | 24 | 15.1 | 21.3 | 9.0 | 15.0 |")
    assert page["Figure 7"].endswith("\n| 12 | TRecViT | 1.25 M | 21.3 | 9.0 | 15.0 | 3.00 |")
    beyond = page["Past the trained length"]
    assert beyond.startswith("| states are; PSNR, 12 frames back | after 1,600 frames |")
    assert beyond.endswith("\n| carried on | 21.3 |\n| mean-frame baseline | 15.0 |")
    text = page["study: memory"]
    assert text.startswith("Measured by `scripts/paper memory --to x`. tiny. a laptop, 2027-01-02. [benchmarks/")
    assert text.endswith("![psnr over k](../benchmarks/memory/psnr_over_k.png)")
    row = next(row for row in cells(page["shown"]) if row["table or figure"] == "Table 6")
    assert (row["here"], row["date"]) == ("[memory](#table-6-long-video-memorisation)", "2027-01-02")


@pytest.mark.slow
def test_pictures_are_drawn_from_the_file_alone_and_always_alike(tmp_path):
    study = STUDIES["costs"]
    content = json.loads((ROOT / study.file).read_text(encoding="utf-8"))
    first, second = ([path.read_bytes() for path in study.draw(content, tmp_path)] for _ in range(2))
    assert len(first) == 2
    assert first == second


def test_damaged_and_foreign_files_are_refused_by_name(tmp_path):
    path = save(tmp_path, "memory", [])
    with pytest.raises(DataError, match=r"memory/result\.json: expected an object"):
        texts(tmp_path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"memory/result\.json: expected JSON"):
        texts(tmp_path)
    save(tmp_path, "memory", {"rows": [{}]})
    with pytest.raises(DataError, match=r"memory/result\.json: expected the result of `scripts/paper memory .*Error"):
        texts(tmp_path)


def test_marks_and_documents_must_be_there(tmp_path):
    block = f"<!-- scripts/figures: a -->\n{END}\n"
    assert fill(f"x\n{block}y", {"a": "3"}, "README.md") == f"x\n<!-- scripts/figures: a -->\n3\n{END}\ny"
    for document, texts_of, reason in (
        ("no marks", {"a": ""}, "got 0 blocks; missing, unknown or repeated: a"),
        (block * 2, {"a": ""}, "got 2 blocks; .*: a"),
        (block, {}, "got 1 blocks; .*: a"),
    ):
        with pytest.raises(DataError, match=rf"README\.md: expected one block .*{reason}"):
            fill(document, texts_of, "README.md")
    with pytest.raises(DataError, match=r"README\.md: expected a document with measured figures"):
        run_figures(tmp_path, "--check")
