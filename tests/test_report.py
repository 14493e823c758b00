"""The results page: a row for everything in the paper, and no figure that is in no result file."""

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
from paper.report import PAGE, STUDIES, TABLES, fill, rebuilt
from paper.sources import ITEMS
from trecvit.cli import app as trecvit_app
from trecvit.errors import DataError

ROOT = Path(__file__).parents[1]
SAID = (ROOT / PAGE).read_text(encoding="utf-8")
END = "<!-- end of figures -->"


def report(root: Path, *words: str) -> str:
    result = CliRunner().invoke(app, ["report", "--root", str(root), *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def between_marks(page: str, name: str) -> str:
    return page.split(f"<!-- scripts/paper report: {name} -->\n")[1].split(END)[0].strip()


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
    """The page, the result files that it is of, and the pictures beside them."""
    for study in STUDIES.values():
        if (ROOT / study.file).exists():
            (tmp_path / study.file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / study.file, tmp_path / study.file)
            for pattern in ("*.png", "*.run.json"):
                for beside in (ROOT / study.file).parent.glob(pattern):
                    shutil.copy(beside, (tmp_path / study.file).with_name(beside.name))
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / PAGE, tmp_path / PAGE)
    return tmp_path


@pytest.fixture
def empty(tmp_path):
    """The page alone."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / PAGE, tmp_path / PAGE)
    return tmp_path


def test_the_page_is_what_the_result_files_say():
    assert "as the result files say" in report(ROOT, "--check")


def test_every_table_and_figure_of_the_paper_has_its_row():
    wanted = [f"Table {number}" for number in range(1, 16)] + [f"Figure {number}" for number in range(1, 10)]
    rows = {row["in the paper"]: row for row in cells(between_marks(SAID, "overview"))}
    assert [name for name in rows if name != "Section 1"] == wanted
    for row in rows.values():
        assert row["the paper says"]
        assert row["here"]
        measured = row["here"].replace("not measured yet", "").strip()
        assert row["command"] or "cannot be measured" in measured or "`" in measured, row


def test_rows_lead_to_where_they_are_explained():
    headings = {"#" + re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in lines_of("#")}
    for item in ITEMS:
        links = [item.anchor, *re.findall(r"\]\(([^)]+)\)", item.here)]
        for link in links:
            assert link in headings if link.startswith("#") else (ROOT / "docs" / link.split("#")[0]).exists(), link


def lines_of(beginning: str) -> list[str]:
    return [line for line in SAID.splitlines() if line.startswith(beginning)]


@pytest.mark.parametrize("name", [name for name in TABLES if name != "Figure 3, ratios"])
def test_figures_measured_here_are_roundings_of_what_the_file_holds(name):
    path = ROOT / STUDIES[TABLES[name][0]].file
    if not path.exists():
        assert between_marks(SAID, name) == f"{name}: not measured yet."
        return
    known = list(numbers(json.loads(path.read_text(encoding="utf-8"))))
    for row in cells(between_marks(SAID, name)):
        for title, cell in row.items():
            if not title or "paper" in title or title == "states are":  # a name, such as "x 0.9 a frame"
                continue
            for figure in re.findall(r"(?<![\w.])\d[\d,]*\.\d+", cell):
                digits = len(figure.split(".")[1])
                said = {f"{value * unit:,.{digits}f}" for value in known for unit in (1, 100, 1e-6, 1e-9, 1e-12)}
                assert f"{float(figure.replace(',', '')):,.{digits}f}" in said, f"{title}: {cell}"


def numbers(content: Any) -> Iterator[float]:
    if isinstance(content, int | float):
        yield float(content)
    elif isinstance(content, list | dict):
        for part in content.values() if isinstance(content, dict) else content:
            yield from numbers(part)


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if (ROOT / study.file).exists()])
def test_commands_of_what_was_measured_exist(name):
    line = between_marks(SAID, f"study: {name}").split("`")[1]
    of_package = "trecvit " in line
    words = shlex.split(line.split("trecvit ")[-1] if of_package else line.removeprefix("scripts/paper "))
    command = words[:2] if words[0] in ("eval", "bench") else words[:1]
    usage = CliRunner().invoke(trecvit_app if of_package else app, [*command, "--help"])
    assert usage.exit_code == 0, line
    for option in (word for word in words if word.startswith("--")):
        assert option in re.sub(r"\x1b\[[0-9;]*m", "", usage.output), line


def test_a_changed_figure_is_named_with_its_line_and_written_back(copy):
    row = next(line for line in lines_of("| TRecViT-B | 32 | 111.3 |"))
    number = SAID.splitlines().index(row) + 1
    changed = row[:-3].rstrip("0123456789.") + "0.01 |"
    (copy / PAGE).write_text(SAID.replace(row, changed), encoding="utf-8")
    with pytest.raises(DataError, match=rf"results.md: line {number} says '.*0\.01 \|', the result files"):
        report(copy, "--check")
    assert changed in (copy / PAGE).read_text(encoding="utf-8")
    report(copy)
    assert (copy / PAGE).read_text(encoding="utf-8") == SAID


def test_a_changed_result_is_named_too(copy):
    path = copy / STUDIES["classifier"].file
    content = json.loads(path.read_text(encoding="utf-8"))
    save(copy, "classifier", {**content, "top1": 0.5})
    with pytest.raises(DataError, match=r"the result files '.*\| 50\.0 % \|'"):
        report(copy, "--check")


@pytest.mark.parametrize("words", ["Here it was 12.3.", "Ours is at 77 %.", "- 3 × faster", "| ours | 8.1 |"])
def test_figures_stand_between_marks_or_are_the_papers(words):
    line = len(SAID.splitlines()) + 2
    with pytest.raises(DataError, match=rf"line {line} says '{re.escape(words)}': expected figures between marks"):
        rebuilt(f"{SAID}\n{words}\n", ROOT)
    about = f"{SAID}\nThe paper has this:\n{words}\n"
    assert rebuilt(about, ROOT) == about


def test_what_is_not_measured_is_said_with_its_command(empty):
    page = rebuilt(SAID, empty)
    for name, study in STUDIES.items():
        text = between_marks(page, f"study: {name}")
        assert text.startswith("Not measured yet: `")
        assert f"is to write {study.file}" in text
    for name in TABLES:
        assert between_marks(page, name) == f"{name}: not measured yet."
    rows = {row["in the paper"]: row for row in cells(between_marks(page, "overview"))}
    assert rows["Figure 7"]["here"] == "memory: not measured yet"
    assert rows["Figure 7"]["when"] == ""


def test_rows_of_a_part_stand_in_the_table_that_they_name(empty):
    figures = {"psnr_db": 21.26, "last_psnr_db": 9.0, "constant_psnr_db": 15.0, "parameters": 1_250_000}
    rows = [
        {"part": "Table 6", "model": "ViViT", "trained_on": 16, "tested_on": 24, "paper_psnr_db": 15.1, **figures},
        {"part": "Figure 7", "model": "TRecViT", "offset": 12, "steps_per_s": 3.0, **figures},
        {"part": "beyond", "forgetting": "carried on", "frames": 1600, "first_psnr_db": 8, "state_rms": 1, **figures},
    ]
    about = {"command": "scripts/paper memory --to x", "date": "2027-01-02", "machine": "a laptop", "scale": "tiny"}
    about |= {"trained_on": 16, "frame": 4}
    folder = save(empty, "memory", {**about, "study": "memory", "rows": rows}).parent
    (folder / "psnr_over_k.png").write_bytes(b"")
    page = rebuilt(SAID, empty)
    assert between_marks(page, "Table 6").endswith("\n| ViViT | 16 | 24 | 15.1 | 21.3 | 9.0 | 15.0 |")
    assert between_marks(page, "Figure 7").endswith("\n| 12 | TRecViT | 1.25 M | 21.3 | 9.0 | 15.0 | 3.00 |")
    beyond = between_marks(page, "Past the trained length")
    assert "| PSNR, 12 frames back | PSNR, frame 4 |" in beyond
    assert beyond.endswith("\n| carried on | 1,600 | 21.3 | 8.0 | 15.0 | 1.00 |")
    text = between_marks(page, "study: memory")
    assert text.startswith("Measured by `scripts/paper memory --to x`. tiny. a laptop, 2027-01-02. [benchmarks/")
    assert text.endswith("![psnr over k](../benchmarks/memory/psnr_over_k.png)")
    row = next(row for row in cells(between_marks(page, "overview")) if row["in the paper"] == "Table 6")
    assert (row["here"], row["when"]) == ("[memory](#table-6-long-video-memorisation)", "2027-01-02")


def test_a_trainings_test_is_of_the_day_its_run_began(empty):
    result = save(empty, "autoencoder", {"clips": 4, "explained": 0.5, "psnr_db": 18.0, "flat_psnr_db": 20.0,
                                         "protocol": {"mask_ratio": 0.75}})  # fmt: skip
    assert "Date not recorded" in between_marks(rebuilt(SAID, empty), "study: autoencoder")
    result.with_name("mae_world.run.json").write_text(json.dumps({"date": "2027-01-02"}))
    assert "2027-01-02" in between_marks(rebuilt(SAID, empty), "study: autoencoder")


def test_a_study_that_was_run_in_part_shows_that_part(empty):
    machine = {"processor": "P", "threads": 1, "torch": "T", "date": "2027-01-02"}
    row = {"table": "Table 2", "label": "LSTM", "paper_top1": 63.7, "paper_steps_per_s": 6.0, "parameters": 1_500_000}
    row |= {"top1": 0.5, "top1_deviation": 0.0125, "steps_per_s": 3.0}
    about = {"command": "scripts/paper ablations it --to there", "scale": "small", "machine": machine}
    save(empty, "ablations", {**about, "rows": [row, {**row, "table": "Table 14", "paper_steps_per_s": None}]})
    page = rebuilt(SAID, empty)
    (line,) = cells(between_marks(page, "Table 14"))
    assert line["here, steps/s"] == "3.0"
    assert "paper, steps/s" not in line
    (line,) = cells(between_marks(page, "Table 2"))
    assert (line["paper, top-1 on SSv2"], line["here, top-1 of 18"]) == ("63.7", "50.0 % ± 1.2 %")
    assert (line["paper, steps/s"], line["here, steps/s"]) == ("6.0", "3.0")
    assert "has been run in part" in between_marks(page, "Table 1")
    text = between_marks(page, "study: ablations")
    assert text.startswith(
        "Measured by `scripts/paper ablations it --to there`. small. P, 1 thread, torch T, 2027-01-02."
    )
    report(empty)
    assert (empty / "benchmarks/ablations/ablations.png").stat().st_size > 5_000
    assert "](../benchmarks/ablations/ablations.png)" in (empty / PAGE).read_text(encoding="utf-8")


def test_pictures_are_drawn_from_the_file_alone_and_always_alike(copy):
    drawn = [copy / "benchmarks/efficiency" / f"efficiency.{suffix}" for suffix in ("png", "svg")]
    drawn[0].unlink()
    assert "efficiency.svg" in report(copy)
    before = [path.read_bytes() for path in drawn]
    report(copy)
    assert [path.read_bytes() for path in drawn] == before


def test_damaged_and_foreign_files_are_refused_by_name(empty):
    path = save(empty, "points", [])
    with pytest.raises(DataError, match=r"points\.json: expected an object"):
        rebuilt(SAID, empty)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"points\.json: expected JSON"):
        rebuilt(SAID, empty)
    save(empty, "points", {"scores": [{}]})
    with pytest.raises(DataError, match=r"points\.json: expected what `trecvit eval points` writes; .*Error"):
        rebuilt(SAID, empty)


def test_marks_and_page_must_be_there(tmp_path):
    with pytest.raises(DataError, match="expected one pair of marks"):
        rebuilt("no marks", ROOT)
    with pytest.raises(DataError, match="found 2"):
        fill(f"<!-- by: a -->\n{END}\n" * 2, "a", "", by="by")
    with pytest.raises(DataError, match=r"results\.md: expected the results page"):
        report(tmp_path)
