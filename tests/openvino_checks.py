"""OpenVINO's outputs and states against the model's; `test_fast.py` runs this file in a separate process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import VARIANTS, random_video, relative_error, tiny_model
from processors import pretend
from safetensors.torch import load_file
from test_fast import TOLERANCE, assert_checks_pixels, assert_refuses_changes, streamed

import trecvit.accelerate.openvino as export_module
from trecvit.accelerate.exported import export, load_exported
from trecvit.accelerate.optimize import optimize
from trecvit.errors import ConfigError
from trecvit.model.state import State

openvino = export_module.find_openvino()


def test_no_use_is_reported():
    from openvino.tools.ovc import convert_impl, telemetry_utils

    for module in (convert_impl, telemetry_utils):
        assert module.tm.__name__ == "openvino.tools.ovc.telemetry_stub"


# Converting a graph takes some seconds per block: one block, except in the first case, and one graph, of two frames,
# except in the first case, which has one of a single frame too.
@pytest.mark.parametrize(
    ("variants", "dtype", "cuts"),
    [
        (["plain"], torch.bfloat16, [1, 1, 2, 1, 1]),
        (["pairs_of_frames", "no_conv_fixed_positions", "temporal_mlp", "no_head"], torch.float32, [1, 1, 2, 1, 1]),
        (["lstm"], torch.float32, 2),
        (["full_conv"], torch.float32, 2),
    ],
)
def test_openvino_gives_the_models_outputs_and_states(variants, dtype, cuts):
    fields = {name: value for variant in variants for name, value in VARIANTS[variant].items()}
    model, video = tiny_model(**{"depth": 2 if variants == ["plain"] else 1, **fields}), random_video(2, 6)
    fast = optimize(model, dtype=dtype, mode="openvino")
    assert_checks_pixels(fast, batch_size=2)
    with torch.inference_mode():
        expected, after = streamed(model, video, cuts=cuts)
        got, carried = streamed(fast, video, cuts=cuts)
    assert relative_error(got.features, expected.features) < TOLERANCE[dtype]
    for name, tensor in after._tensors().items():
        assert carried._tensors()[name].dtype == tensor.dtype, name
        assert relative_error(carried._tensors()[name], tensor) < TOLERANCE[dtype], name
    if model.head is not None:
        assert relative_error(got.logits, expected.logits) < TOLERANCE[dtype]
        assert relative_error(fast(video[:, :2]).logits, model(video[:, :2]).logits) < TOLERANCE[dtype]
        assert_refuses_changes(fast, batch_size=2)


def test_states_are_exchangeable_between_engines(tmp_path):
    model, video = tiny_model(depth=1), random_video(3, 6)
    fast = optimize(model, mode="openvino")
    with torch.inference_mode():
        _, state = fast.step(video[:, :1], fast.init_state(3))
        before = {name: tensor.clone() for name, tensor in state._tensors().items()}
        _, other = fast.step(video[:, 1:2], state)
        assert all(torch.equal(tensor, before[name]) for name, tensor in state._tensors().items())
        # Saved by one and loaded by the other, with rows dropped and copied, and one reset.
        other.save(tmp_path / "state")
        rows = [2, 0, 2]
        mixed = State.load(tmp_path / "state").select(rows).reset(torch.tensor([False, True, False]))
        got, _ = fast.step(video[rows, 2:3], mixed)
        expected, _ = model.step(video[rows, 2:3], mixed)
    assert relative_error(got.logits, expected.logits) < 1e-5


def test_an_unsupported_model_gives_a_one_line_error():
    with pytest.raises(ConfigError, match=r"OpenVINO cannot convert this model .*; take mode='compile' or 'eager'"):
        optimize(tiny_model(depth=1, lru_complex=True), mode="openvino")(random_video(1, 1))


def test_a_graph_that_computes_wrong_is_refused(monkeypatch):
    """OpenVINO 2026.4 does so with ONNX's Scan, without a warning."""
    run = export_module.OpenVINORun.__call__

    def wrong(self, frames, state):
        out, after = run(self, frames, state)
        layers = tuple(layer._replace(hidden=layer.hidden * 1.01) for layer in after.layers)
        return out, after.replace(layers=layers)

    monkeypatch.setattr(export_module.OpenVINORun, "__call__", wrong)
    model = optimize(tiny_model(depth=1), mode="openvino")
    with pytest.raises(ConfigError, match=r"OpenVINO computes layers.0.hidden wrong by .*; take another mode"):
        model(random_video(1, 2))


@pytest.mark.parametrize("has_head", [True, False])
def test_exported_files_give_the_models_outputs(has_head, tmp_path, monkeypatch):
    model = tiny_model(depth=1) if has_head else tiny_model(depth=1, num_classes=0)
    video = random_video(1, 4).float() / 255
    pretend("avx2", monkeypatch.setattr)  # where bfloat16 is slow
    frames, cuts = ((2,), 2) if has_head else ((1,), 1)
    folder = export(model, tmp_path / "fast", mode="openvino", dtype=torch.bfloat16, frames=frames)
    description = json.loads((folder / "exported.json").read_text())
    assert description["dtype"] == "float32"
    (folder / "exported.json").write_text(
        json.dumps({**description, "dtype": "bfloat16"})
    )  # exported on another machine
    loaded = load_exported(folder)
    assert_checks_pixels(loaded)
    core = openvino.Core()
    stream = core.compile_model(tmp_path / "fast" / "stream.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    assert [port.get_any_name() for port in stream.inputs] == ["frames"]
    request = stream.create_infer_request()
    with torch.inference_mode():
        expected, after = streamed(model, video, cuts=cuts)
        got, carried = streamed(loaded, video, cuts=cuts)
        assert relative_error(got.features, expected.features) < 1e-5
        for name, tensor in after._tensors().items():
            assert relative_error(carried._tensors()[name], tensor) < 1e-5, name
        for _ in range(2):  # the second time after the state was reset
            state = model.init_state(1)
            for frame in video.split(1, dim=1):
                out, state = model.step(frame, state)
                result = request.infer({"frames": frame.numpy()})["probs" if has_head else "features"]
                assert relative_error(torch.from_numpy(result), out.probs if has_head else out.features) < 1e-5
            request.reset_state()


def test_an_exported_folder_of_an_earlier_version_runs(tmp_path):
    previous = Path(__file__).parent / "golden" / "previous"
    shutil.unpack_archive(previous / "exported.zip", tmp_path)
    description = json.loads((tmp_path / "exported.json").read_text())
    here = {"made_for": {"openvino": openvino.__version__}}  # which `load_exported` insists on
    (tmp_path / "exported.json").write_text(json.dumps({**description, **here}))
    model, expected = load_exported(tmp_path), load_file(previous / "expected.safetensors")
    _, state = model.step(expected["video"][:, :2], model.init_state(1))
    out, _ = model.step(expected["video"][:, 2:], state)
    assert relative_error(out.logits, expected["lru.logits"]) < 1e-5
