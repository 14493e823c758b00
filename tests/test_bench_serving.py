"""`trecvit bench serve`: its figures, the plot of them, and the table in the documents."""

from __future__ import annotations

import json
from pathlib import Path

import PIL.Image
import pytest
from command_line import trecvit

from tools import measured
from trecvit.bench.serving import ServingSpeed, draw_serving
from trecvit.files import write_json
from trecvit.runtime.doctor import machine

SPEED = ServingSpeed(
    sessions=16,
    frames_per_s=320.0,
    p50_ms=40.0,
    p95_ms=55.5,
    p99_ms=70.25,
    mean_batch=15.5,
    step_ms=46.0,
    own_frames_per_s=400.0,
    apart_frames_per_s=100.0,
)


def test_figures_of_a_measurement():
    figures = SPEED.to_dict()
    assert figures["own_step_ms"] == 40.0
    assert figures["overhead"] == pytest.approx(0.25)
    assert figures["gain"] == pytest.approx(3.2)
    assert {"p50_ms", "p95_ms", "p99_ms", "sessions"} < set(figures)


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_the_plot_is_drawn(tmp_path: Path, name: str):
    pytest.importorskip("matplotlib")
    draw_serving([SPEED], tmp_path / name)
    if name.endswith("png"):
        with PIL.Image.open(tmp_path / name) as picture:
            assert picture.size == (1100, 400)
    else:
        assert "<svg" in (tmp_path / name).read_text()


def test_another_kind_of_plot_is_refused_before_the_measurement(tmp_path: Path):
    done = trecvit("bench", "serve", "--plot", tmp_path / "plot.jpg")
    assert done.returncode == 1
    assert "--plot: expected a name that ends in .png or .svg" in done.stderr


def test_the_document_has_the_table_once_it_is_measured(tmp_path: Path):
    assert "Not measured yet: `trecvit bench serve" in measured.serving(tmp_path)["serving"]
    content = {"machine": machine(), "model": "motions", "seconds": 20.0, "load_average": 0.1}
    (tmp_path / "benchmarks").mkdir()
    write_json(tmp_path / "benchmarks" / "serving.json", {**content, "costs": [SPEED.to_dict()]})
    text = measured.serving(tmp_path)["serving"]
    assert "| 16 | 320 | 40.0 ms | 55.5 ms | 70.2 ms | 15.5 | 40.0 ms | 400 | 25 % | 100 | 3.2 × |" in text
    assert "](images/serving.png)" in text
    assert machine()["date"] in text


@pytest.mark.slow
def test_the_command_measures_server_step_and_processes(tmp_path: Path):
    saved = tmp_path / "serving.json"
    done = trecvit("bench", "serve", "--sessions", 2, "--seconds", 0.5, "--save", saved)
    assert done.returncode == 0, done.stderr
    content = json.loads(saved.read_text())
    [figures] = content["costs"]
    assert figures["sessions"] == 2
    assert figures["p50_ms"] <= figures["p95_ms"] <= figures["p99_ms"]
    assert figures["p50_ms"] > figures["step_ms"] > 0
    assert min(figures["frames_per_s"], figures["own_frames_per_s"], figures["apart_frames_per_s"]) > 0
    assert 1 <= figures["mean_batch"] <= 2
    assert content["machine"]["processor"]
