"""Models, states and run folders of an earlier version, see golden/previous; `openvino_checks.py` has its export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import relative_error
from safetensors.torch import load_file, save_file

import trecvit
from trecvit.model.mae import MaskedAutoencoder
from trecvit.train.loop import train
from trecvit.train.recipe import load_recipe

PREVIOUS = Path(__file__).parent / "golden" / "previous"
EXPECTED = load_file(PREVIOUS / "expected.safetensors")
TRACKERS = ("readout_tracker", "tapnext", "tapnext_matching")
MODELS = sorted(path.name for path in (PREVIOUS / "models").iterdir())
STATES = sorted(path.stem for path in (PREVIOUS / "states").iterdir())


def model_of(name: str, tmp_path: Path):
    folder = PREVIOUS / "models" / name
    if (folder / "shapes.json").exists():
        folder = shutil.copytree(folder, tmp_path / name)
        shapes = json.loads((folder / "shapes.json").read_text())
        weights = {
            key: 0.2 * torch.sin(torch.ones(shape).double().flatten().cumsum(0) - 1) for key, shape in shapes.items()
        }
        weights = {key: tensor.float().view(shapes[key]) for key, tensor in weights.items()}
        save_file(weights, folder / "model.safetensors")
    return trecvit.load(folder)


def assert_expected(name: str, out, frames: slice = slice(None)) -> None:
    """The output has the expected parts; of a tracker's, over these frames."""
    parts = {key: value for key, value in out._asdict().items() if value is not None}
    assert {f"{name}.{key}" for key in parts} == {key for key in EXPECTED if key.rpartition(".")[0] == name}
    for key, value in parts.items():
        expected = EXPECTED[f"{name}.{key}"]
        if name in TRACKERS:
            expected = expected[:, :, frames]
        elif key == "features":
            expected = expected[:, -value.shape[1] :]
        assert relative_error(value, expected) < 1e-4, key


@pytest.mark.parametrize("name", MODELS)
def test_a_folder_of_an_earlier_version_loads_and_computes_the_same(name, tmp_path):
    model = model_of(name, tmp_path)
    video, queries = EXPECTED["video"], EXPECTED["query_points_tyx"]
    with torch.no_grad():
        if name == "autoencoder":
            autoencoder = MaskedAutoencoder.load(PREVIOUS / "models" / name)
            assert relative_error(autoencoder.restore(video, EXPECTED["visible"]), EXPECTED["restored"]) < 1e-4
        elif name in TRACKERS:
            assert_expected(name, model(video, queries))
        else:
            assert model.labels == ("falls", "rises", "stands still")
            assert_expected(name, model(video))


@pytest.mark.parametrize("name", STATES)
def test_a_stream_of_an_earlier_version_continues(name, tmp_path):
    model, path = model_of(name, tmp_path), PREVIOUS / "states" / f"{name}.safetensors"
    kind = {
        "tapnext": trecvit.TrackState,
        "tapnext_matching": trecvit.TrackState,
        "readout_tracker": trecvit.ReadoutState,
    }
    state = kind.get(name, trecvit.State).load(path)
    seen = int(state.frames_seen)
    assert seen == (2 if name in TRACKERS else 3)
    with torch.no_grad():
        out, _ = model.step(EXPECTED["video"][:, seen:], state)
    assert_expected(name, out, slice(seen, None))
    state.save(tmp_path / "again.safetensors")
    before, after = load_file(path), load_file(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("done", [pytest.param(0, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", ["classify", "track", "mae"])
def test_a_run_has_the_losses_of_an_earlier_version_also_when_that_one_began_it(name, done, tmp_path):
    given, run = PREVIOUS / "runs" / name, tmp_path / "run"
    if done:
        shutil.copytree(given / "stopped", run)
    lines = []
    train(load_recipe(given / "recipe.yaml"), run, report=lines.append)
    assert [line.step for line in lines] == list(range(done + 1, 7))
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 5, 6]
    losses, expected = [line["loss"] for line in logged], json.loads((given / "losses.json").read_text())
    assert losses[:done] == expected[:done]
    # The earlier version drew masks from another stream: other tubes are hidden, of the same clips.
    assert losses == pytest.approx(expected, rel=2e-2 if name == "mae" else 1e-4)
    trecvit.load(run / "model")
    assert (run / "evaluation" / "result.json").exists() == (name != "classify")
