"""The results page: its tables are those of the result files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trecvit.cli.app import app
from trecvit.errors import DataError
from trecvit.study.report import rebuilt

ROOT = Path(__file__).parents[1]


def test_the_page_says_what_the_result_files_say():
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert rebuilt(page, ROOT / "benchmarks") == page


def test_the_command_names_the_line_that_differs(tmp_path):
    page = tmp_path / "results.md"
    benchmarks = ["--page", str(page), "--benchmarks", str(ROOT / "benchmarks")]
    shutil.copy(ROOT / "docs/results.md", page)
    assert CliRunner().invoke(app, ["study", "report", "--check", *benchmarks]).exit_code == 0
    right = page.read_text(encoding="utf-8")
    number = next(line for line in right.split("\n") if line.startswith("| held-out scenes | TAPNext"))
    page.write_text(right.replace(number, number.replace(" %", "1 %")), encoding="utf-8")
    with pytest.raises(DataError, match=r"line \d+ says '\| held-out scenes"):
        CliRunner().invoke(app, ["study", "report", "--check", *benchmarks], catch_exceptions=False)
    assert page.read_text(encoding="utf-8") != right
    assert CliRunner().invoke(app, ["study", "report", *benchmarks]).exit_code == 0
    assert page.read_text(encoding="utf-8") == right


def test_what_was_not_measured_is_said(tmp_path):
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    without = rebuilt(page, tmp_path)
    assert "Not measured yet: there is no `benchmarks/points.json`." in without
    assert "| held-out scenes" not in without
    with pytest.raises(DataError, match="expected one pair of marks"):
        rebuilt("no marks", tmp_path)


def test_comparisons_are_shown_beside_the_papers_figures(tmp_path):
    """With a file as `study ablations` writes it, of one line of two tables."""
    machine = {"processor": "a processor", "threads": 1, "torch": "2", "date": "2026-01-01"}
    line = {"parameters": 1_500_000, "top1": 0.5, "top1_deviation": 0.0125, "steps_per_s": 3.0}
    rows = [
        {**line, "table": "Table 1", "label": "no gates", "paper_top1": 66.0, "paper_steps_per_s": None},
        {**line, "table": "Table 2", "label": "LSTM", "paper_top1": 63.7, "paper_steps_per_s": 6.0},
    ]
    (tmp_path / "ablations").mkdir()
    content = {"rows": rows, "scale": "small", "machine": machine}
    (tmp_path / "ablations/result.json").write_text(json.dumps(content), encoding="utf-8")
    page = rebuilt((ROOT / "docs/results.md").read_text(encoding="utf-8"), tmp_path)
    assert "| no gates | 66.0 | 50.0 % ± 1.2 % | 1.50 M |\n\nsmall; a processor, 1 threads" in page
    assert "| LSTM | 63.7 | 50.0 % ± 1.2 % | 1.50 M | 6.0 | 3.0 |" in page
