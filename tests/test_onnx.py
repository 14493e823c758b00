"""ONNX: graphs of one step with the state carried, their folders, and clients that know only the manifest."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import documented_javascript
from command_line import trecvit
from models import random_video, relative_error, tiny_model, tiny_tracker
from onnx_exports import model_of

from tools.chromium import static_server
from trecvit.accelerate import onnx_folder, onnx_runtime
from trecvit.accelerate.exported import export, is_exported, load_exported, load_exported_as
from trecvit.accelerate.onnx import (
    EMPTY_SLOT,
    StepConv,
    StepRGLRU,
    carried,
    continued,
    for_graph,
    initial_state,
    state_tensors,
    store_in_half,
)
from trecvit.accelerate.onnx_folder import schema, triton_config
from trecvit.accelerate.onnx_runtime import edit_points, smooth_video
from trecvit.accelerate.optimize import optimize
from trecvit.errors import CheckpointError, ConfigError, InputError, MissingPackageError
from trecvit.model.lru import RGLRU, CausalConv
from trecvit.model.tracker import NEVER, PointTracker
from trecvit.model.trecvit import TRecViT
from trecvit.runtime.live import LiveTracker

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
runtime = pytest.importorskip("onnxruntime")

# Of float32 sums in another order; of weights rounded to half. In a local tracker, whose scores are sharp and which
# looks next where it was last, rounding grows from frame to frame, in PyTorch as in the graph: see the test of that.
TOLERANCE = {"plain": 5e-3, "readout": 5e-3, "local": 3e-4}


# ---- parts, without an export --------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_complex", [False, True])
def test_a_step_of_the_recurrence_is_the_recurrence(is_complex):
    config = tiny_model(lru_complex=is_complex).config
    lru = RGLRU(config).requires_grad_(False)
    # From decays that forget at once to some so close to 1 that 1 - a^2 has no digit left in float32.
    lru.a_param.copy_(torch.linspace(-16.0, 6.0, len(lru.a_param)))
    step = StepRGLRU(lru)
    hidden = torch.randn(3, 5, config.lru_width)
    for fresh in (torch.tensor([True, False, True]), torch.zeros(3, dtype=torch.bool)):
        x = torch.randn(3, 1, 5, config.lru_width)
        expected, after = lru(x, hidden, fresh)
        got, hidden = step(x, hidden, fresh)
        assert relative_error(got, expected) < 1e-6
        assert relative_error(hidden, after) < 1e-6


@pytest.mark.parametrize("taps", [1, 4])
def test_a_step_of_the_convolution_is_the_convolution(taps):
    conv = CausalConv(6, taps).requires_grad_(False)
    x, before = torch.randn(2, 1, 3, 6), torch.randn(2, taps - 1, 3, 6)
    for got, expected in zip(StepConv(conv)(x, before), conv(x, before), strict=True):
        assert relative_error(got, expected) < 1e-6


def test_counts_of_frames_are_carried_as_numbers_that_never_run_over():
    tracker = tiny_tracker()
    queries = torch.tensor([[[0.0, 1, 2], [3, 4, 5], [math.inf, 0, 0]]])
    state = tracker.init_state(queries).replace(frames_seen=torch.tensor([2]))
    arrays = carried(state)
    assert arrays["frames_seen"].tolist() == [[2.0]]
    assert arrays["frames_since_query"].tolist() == [[2.0, -1.0, torch.tensor(EMPTY_SLOT).item()]]
    assert EMPTY_SLOT + 1.0 == torch.tensor(EMPTY_SLOT) + 1.0 == torch.tensor(EMPTY_SLOT)
    after = continued(state, arrays, 1)
    assert after.frames_seen.tolist() == [3]
    assert after.query_frames.tolist() == [[0, 3, NEVER]]
    for described in state_tensors(initial_state(tracker, 1, (32, 32), 3)):
        start = torch.full(described.shape, described.initial)
        assert torch.equal(start, carried(initial_state(tracker, 1, (32, 32), 3))[described.name])


def test_matrices_are_stored_in_half_and_vectors_are_not():
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    weights = {"matrix": np.float32([[0.1, 2.0], [3.0, 1e-3]]), "bias": np.float32([0.1, 0.2])}
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Gemm", ["x", "matrix", "bias"], ["y"])],
        "g",
        [value("x", 1, [1, 2])],
        [value("y", 1, [1, 2])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    graph = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    before = len(graph.SerializeToString())
    store_in_half(graph)
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.float32([[1, 1]])})
    expected = np.float32([1, 1]) @ weights["matrix"].astype("float16").astype("float32") + weights["bias"]
    np.testing.assert_allclose(y[0], expected, rtol=1e-6)
    assert {tensor.name: tensor.data_type for tensor in graph.graph.initializer} == {"matrix.half": 10, "bias": 1}
    assert before > 0
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32([[1e5, 0]]), "large"))
    with pytest.raises(ConfigError, match=r"expected weights below 65,504, got larger ones in large"):
        store_in_half(graph)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"frames": (2,)}, r"expected frames=\[1\], .* got frames=\[2\]"),
        ({"batch_size": 0}, "a batch of 1 or more"),
        ({"num_points": 0}, "one point or more"),
        ({"dtype": torch.bfloat16}, "expected torch.float32 with mode='onnx'"),
        ({"weights": "int4"}, "expected float32 or float16, got 'int4'"),
    ],
)
def test_impossible_exports_are_refused_before_anything_is_written(words, complaint, tmp_path):
    with pytest.raises(ConfigError, match=complaint):
        export(tiny_model(), tmp_path / "new", mode="onnx", **words)
    assert not (tmp_path / "new").exists()


def test_models_that_cannot_step_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="temporal_mixer='attention', which needs whole clips"):
        export(tiny_model(temporal_mixer="attention"), tmp_path / "new", mode="onnx")
    with pytest.raises(ConfigError, match="not a result of optimize"):
        for_graph(optimize(tiny_model()))
    with pytest.raises(ConfigError, match="trackers are exported with mode='onnx'"):
        export(tiny_tracker(), tmp_path / "new", mode="openvino")
    with pytest.raises(ConfigError, match="expected float32 with mode='openvino'"):
        export(tiny_model(), tmp_path / "new", mode="openvino", weights="float16")
    with pytest.raises(ConfigError, match=r"expected torch\.float32 with mode='onnx'"):
        optimize(tiny_model(), mode="onnx", dtype=torch.bfloat16)


def test_a_missing_package_is_named_with_its_pip_command(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for call in (
        lambda: optimize(tiny_model(), mode="onnx"),
        lambda: export(tiny_model(), tmp_path / "new", mode="onnx"),
    ):
        with pytest.raises(MissingPackageError, match=r"pip install 'trecvit\[onnx\]'"):
            call()


# ---- exported folders ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")  # two minutes of one slow core for all
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx")
    script = Path(__file__).with_name("onnx_exports.py")
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def frames_of(model: TRecViT | PointTracker, batch_size: int, num_frames: int) -> torch.Tensor:
    height, width = model.preprocessing.image_size
    return random_video(batch_size, num_frames, height, width)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "complex", "pairs", "conv"])
def test_a_classifier_streams_as_the_model_does(name, exports):
    model, loaded = model_of(name), load_exported(exports / name)
    assert isinstance(loaded, TRecViT)
    assert loaded.labels == model.labels
    assert loaded.preprocessing == model.preprocessing
    video = frames_of(model, 2, 12)
    state, other = model.init_state(2), loaded.init_state(2)
    for start, end in ((0, 1), (1, 2), (2, 6), (6, 7), (7, 12)):
        with torch.inference_mode():
            expected, state = model.step(video[:, start:end], state)
            got, other = loaded.step(video[:, start:end], other)
        for key, tensor in state._tensors().items():
            assert other._tensors()[key].dtype == tensor.dtype, key
            assert relative_error(other._tensors()[key], tensor) < TOLERANCE.get(name, 2e-5), key
        for part, right in zip(got, expected, strict=True):
            assert (part is None) == (right is None)
            assert right is None or relative_error(part, right) < TOLERANCE.get(name, 2e-5)
    clips = video[:, :4].float() / 255
    assert relative_error(loaded(clips).features, model(clips).features) < TOLERANCE.get(name, 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["points", "readout", "local"])
def test_a_tracker_streams_as_the_model_does(name, exports):
    model, loaded = model_of(name), load_exported_as(PointTracker, exports / name)
    tolerance = TOLERANCE.get(name, 2e-5)
    num_slots = json.loads((exports / name / "manifest.json").read_text())["slots"]["count"]
    video = smooth_video(2, 10, (32, 32))
    state, other = (item.init_state(torch.full((2, num_slots, 3), math.inf)) for item in (model, loaded))
    for call in range(10):
        state, other = (edit_points(item, call) for item in (state, other))
        with torch.inference_mode():
            expected, state = model.step(video[:, call : call + 1], state)
            got, other = loaded.step(video[:, call : call + 1], other)
        for key, tensor in state._tensors().items():
            assert relative_error(other._tensors()[key], tensor) < tolerance, key
        for part in ("points_xy", "visible_logits", "certainty"):
            assert relative_error(getattr(got, part), getattr(expected, part)) < tolerance, part
    # A clip, with fewer points than slots: the others are empty, for the model too.
    queries = torch.tensor([[[0.0, 9, 20], [2, 20, 9]]]).expand(2, 2, 3)
    empty = torch.full((2, num_slots - 2, 3), math.inf)
    got, expected = loaded(video, queries), model(video, torch.cat([queries, empty], dim=1))
    assert got.points_xy.shape == (2, 2, 10, 2)
    assert relative_error(got.points_xy, expected.points_xy[:, :2]) < tolerance
    with pytest.raises(InputError, match=rf"at most {num_slots} points.* got {num_slots + 1}; export it with more"):
        loaded.init_state(torch.zeros(2, num_slots + 1, 3))
    with pytest.raises(InputError, match="export the model for these, too"):
        loaded(video[..., :24], queries)


@pytest.mark.slow
def test_a_local_trackers_graph_is_as_exact_as_pytorch(exports):
    """Over carried frames both differ from double precision by rounding alone, and alike."""
    model, loaded = model_of("local"), load_exported_as(PointTracker, exports / "local")
    exact = model_of("local").double()
    models = [model, loaded, exact]
    states = [item.init_state(torch.full((1, 5, 3), math.inf)) for item in models]
    pytorch, graph = [], []
    for call, frame in enumerate(smooth_video(1, 12, (32, 32))[0]):
        states = [edit_points(state, call) for state in states]
        with torch.inference_mode():
            pairs = [item.step(frame[None, None], state) for item, state in zip(models, states, strict=True)]
        outs, states = [out for out, _ in pairs], [state for _, state in pairs]
        # Templates have length 1, places are pixels.
        parts = [
            (out.points_xy, out.visible_logits, state.points[..., :-6], state.points[..., -6:])
            for out, state in zip(outs, states, strict=True)
        ]
        for errors, got in ((pytorch, parts[0]), (graph, parts[1])):
            errors.append([relative_error(part, right) for part, right in zip(got, parts[2], strict=True)])
    assert np.max(graph[0]) < 1e-5
    assert (np.max(graph, axis=0) < 4 * np.max(pytorch, axis=0)).all()


def live_points(live: LiveTracker, frames: np.ndarray) -> list[dict[int, tuple[float, float]]]:
    """Track, with points that are added, removed and added again."""
    found, ids = [], {}
    for index, frame in enumerate(frames):
        if index == 0:
            ids["a"], ids["b"] = live.add(10, 20), live.add(40, 30)
        elif index == 3:
            live.remove(ids["a"])
        elif index == 5:
            ids["c"] = live.add(30, 12)
        elif index == 7:
            live.remove(ids["b"])
            live.add(5, 5)
        points = live.update(frame)
        found.append({key: tuple(xy) for key, xy in zip(live.ids, points.points_xy.tolist(), strict=True)})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["points", "local"])
def test_points_are_added_and_removed_as_in_a_live_tracker(name, exports):
    """By the loaded model, and by a client with the manifest's arithmetic alone."""
    folder, tolerance_px = exports / name, {"points": 1e-3, "local": 1e-2}[name]
    frames = (smooth_video(1, 10, (48, 64))[0].movedim(1, -1) * 255).byte().numpy()
    expected = live_points(LiveTracker(model_of(name), 4), frames)
    loaded = load_exported_as(PointTracker, folder)
    got = live_points(LiveTracker(loaded, 4), frames)
    assert [list(points) for points in got] == [list(points) for points in expected]
    client = ManifestClient(folder)
    by_client = live_points(client, frames)
    for points, others, right in zip(got, by_client, expected, strict=True):
        for key, xy in right.items():
            assert np.abs(np.subtract(points[key], xy)).max() < tolerance_px
            assert np.abs(np.subtract(others[key], xy)).max() < tolerance_px


class ManifestClient:
    """A `LiveTracker` in NumPy and ONNX Runtime, from docs/export.md's rules for slots."""

    def __init__(self, folder: Path) -> None:
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.session = runtime.InferenceSession(folder / "step.onnx", providers=["CPUExecutionProvider"])
        self.state = {
            tensor["input"]: np.full([1, *tensor["shape"][1:]], tensor["initial"], np.float32)
            for tensor in self.manifest["state"]
        }
        self.slots: dict[int, int] = {}
        self.next_id = 0
        self.size = (48, 64)

    @property
    def ids(self):
        return tuple(self.slots)

    def add(self, x, y):
        height, width = self.manifest["image_size"]
        slot = next(slot for slot in range(self.manifest["slots"]["spare"]) if slot not in self.slots.values())
        self.state["state.frames_since_query"][0, slot] = 0
        self.state["state.query_points_yx"][0, slot] = y * height / self.size[0], x * width / self.size[1]
        self.slots[self.next_id] = slot
        self.next_id += 1
        return self.next_id - 1

    def remove(self, key):
        slot, spare = self.slots.pop(key), self.manifest["slots"]["spare"]
        for tensor in self.manifest["state"]:
            if tensor["slot_axis"] is not None:
                view = np.moveaxis(self.state[tensor["input"]], tensor["slot_axis"], 0)
                view[tensor["first_slot"] + slot] = view[tensor["first_slot"] + spare]

    def update(self, frame):
        from trecvit.runtime.live import LivePoints
        from trecvit.video.transforms import to_whole_clip

        height, width = self.manifest["image_size"]
        pixels = to_whole_clip(frame[None], (height, width)).numpy()[None].astype(np.float32) / 255
        names = [output.name for output in self.session.get_outputs()]
        results = dict(zip(names, self.session.run(None, {"frame": pixels, **self.state}), strict=True))
        self.state = {tensor["input"]: results[tensor["output"]] for tensor in self.manifest["state"]}
        rows = list(self.slots.values())
        scale = np.float32([frame.shape[1] / width, frame.shape[0] / height])
        visible = results["visible_logits"][0, rows] > 0
        return LivePoints(results["points_xy"][0, rows] * scale, visible, results["certainty"][0, rows])


@pytest.mark.slow
def test_the_manifest_describes_the_files_and_changed_ones_are_refused(exports, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(json.loads(schema()))
    for folder in sorted(exports.iterdir()):
        assert is_exported(folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        jsonschema.validate(manifest, json.loads((folder / "manifest.schema.json").read_text()))
        assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
        session = runtime.InferenceSession(folder / "step.onnx", providers=["CPUExecutionProvider"])
        for described, values in (
            (manifest["inputs"], session.get_inputs()),
            (manifest["outputs"], session.get_outputs()),
            ([{**item, "name": item["input"]} for item in manifest["state"]], session.get_inputs()),
            ([{**item, "name": item["output"]} for item in manifest["state"]], session.get_outputs()),
        ):
            found = {value.name: list(value.shape) for value in values}
            for item in described:
                assert found[item["name"]] == item["shape"], item
        graph = onnx.load(folder / "step.onnx")
        assert {opset.domain for opset in graph.opset_import} <= {"", "ai.onnx"}
        assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    copy = tmp_path / "copy"
    shutil.copytree(exports / "plain", copy)
    content = (copy / "step.onnx").read_bytes()
    (copy / "step.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"step.onnx: expected sha256 [0-9a-f]{64}, got"):
        load_exported(copy)
    (copy / "step.onnx").unlink()
    with pytest.raises(CheckpointError, match="no such file; export the model again"):
        load_exported(copy)
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        load_exported(copy)


@pytest.mark.slow
def test_weights_in_half_take_half_and_no_metadata_is_left(exports):
    full, half = (model_of(name) for name in ("complex", "plain"))
    for model, name, bytes_each in ((full, "complex", 4), (half, "plain", 2)):
        numbers = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() > 1)
        graph = onnx.load(exports / name / "step.onnx")
        stored = sum(len(tensor.raw_data) for tensor in graph.graph.initializer if len(tensor.dims) > 1)
        assert stored <= 1.2 * bytes_each * numbers, name


@pytest.mark.slow
def test_the_runtime_recognises_gelu_and_rms_norm(exports, tmp_path):
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    runtime.InferenceSession(exports / "points" / "step.onnx", options, providers=["CPUExecutionProvider"])
    found = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node}
    assert found >= {"FastGelu", "Gelu", "SimplifiedLayerNormalization"}
    assert not found & {"Erf", "ScatterElements", "ScatterND"}


@pytest.mark.slow
def test_commands_take_exported_folders(exports, tmp_path):
    from trecvit.video.encode import VideoWriter

    video = tmp_path / "video.mp4"
    with VideoWriter(video, fps=6) as writer:
        for frame in (smooth_video(1, 8, (48, 64))[0].movedim(1, -1) * 255).byte().numpy():
            writer.write(frame)
    model_of("plain").save(tmp_path / "plain")
    for command in ("stream", "classify"):
        lines = [trecvit(command, video, "-m", folder, "--json") for folder in (tmp_path / "plain", exports / "plain")]
        assert [done.returncode for done in lines] == [0, 0], lines[1].stderr
        expected, got = ([json.loads(line) for line in done.stdout.splitlines()] for done in lines)
        for right, found in zip(expected, got, strict=True):
            probabilities = [{item["label"]: item["probability"] for item in line["top"]} for line in (right, found)]
            for label, value in probabilities[0].items():
                assert abs(probabilities[1].get(label, value) - value) < 1e-2
    done = trecvit("track", video, "-m", exports / "points", "--points", "20,20 30,30", "--json")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8
    done = trecvit("track", video, "-m", exports / "plain", "--json")
    assert done.returncode == 1
    assert "expected a PointTracker, got a TRecViT" in done.stderr


@pytest.mark.slow
def test_a_graph_that_computes_something_else_is_not_written(exports, monkeypatch, tmp_path):
    graph = onnx.load(exports / "conv" / "step.onnx")
    monkeypatch.setattr(onnx_folder, "to_onnx", lambda *_, **__: graph)
    model = model_of("conv")
    with torch.no_grad():
        model.blocks[0].temporal.convolution.bias[0] += 0.5
    with pytest.raises(ConfigError, match=r"computes logits wrong by .* in frame 1;"):
        export(model, tmp_path / "new", mode="onnx")
    assert not (tmp_path / "new").exists()
    export(model_of("conv"), tmp_path / "same", mode="onnx")
    assert (tmp_path / "same" / "step.onnx").read_bytes() == graph.SerializeToString()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["complex", "points"])
def test_optimize_runs_classifiers_and_trackers(name, exports, monkeypatch):
    model = model_of(name)
    monkeypatch.setattr(onnx_runtime, "to_onnx", lambda *_, **__: onnx.load(exports / name / "step.onnx"))
    fast = optimize(model, mode="onnx")
    video = frames_of(model, 1, 3)
    if isinstance(model, PointTracker):
        queries = torch.tensor([[[0.0, 9, 20], [1, 20, 9], [0, 5, 5], [2, 8, 8], [math.inf, 0, 0]]])
        assert relative_error(fast(video, queries).points_xy, model(video, queries).points_xy) < 2e-5
    else:
        assert relative_error(fast(video).features, model(video).features) < 2e-5
    with pytest.raises(ConfigError, match="result of optimize"):
        fast.train()


@pytest.mark.slow
def test_the_documented_python_client_gives_the_models_classes(exports, tmp_path, monkeypatch):
    document = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    client, loaded = re.findall(r"<!-- tests/test_onnx.py -->\n```python\n(.*?)```", document, re.DOTALL)
    assert len(client.strip().splitlines()) <= 20
    (tmp_path / "motions_onnx").symlink_to(exports / "plain")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(client, "export.md", "exec"), names)
    model = model_of("plain")
    state = {tensor["input"]: np.zeros(tensor["shape"], np.float32) for tensor in names["manifest"]["state"]}
    carried_state = model.init_state(1)
    for frame in random_video(1, 4)[0]:
        results, state = names["step"](frame.permute(1, 2, 0).numpy(), state)
        out, carried_state = model.step(frame[None, None], carried_state)
        assert relative_error(torch.from_numpy(results["probs"]), out.probs) < TOLERANCE["plain"]
    exec(compile(loaded, "export.md", "exec"), names)
    assert isinstance(names["model"], TRecViT)


# Steps the documented client through RGBA frames of the standard input; prints the probabilities after each.
NODE = """
import { readFileSync } from "node:fs";
import { open } from "./client.mjs";
const [folder, size] = process.argv.slice(2), bytes = readFileSync(0), step = await open(folder), probs = [];
for (let start = 0; start < bytes.length; start += +size)
  probs.push([...(await step(bytes.subarray(start, start + +size))).probs.data]);
console.log(JSON.stringify(probs));
"""


@pytest.mark.slow
def test_the_documented_javascript_client_gives_the_models_classes_under_node(exports, tmp_path):
    node, packages = shutil.which("node"), Path(__file__).parents[1] / "tools" / "npm" / "node_modules"
    if node is None:
        pytest.skip("Node.js is not installed")
    if not (packages / "onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not installed; run scripts/page")
    (tmp_path / "node_modules").symlink_to(packages)
    client = documented_javascript().replace("./vendor/ort.wasm.min.mjs", "onnxruntime-web")
    (tmp_path / "client.mjs").write_text(client)
    (tmp_path / "main.mjs").write_text(NODE)
    model, video = model_of("conv"), frames_of(model_of("conv"), 1, 4)
    rgba = torch.cat([video[0], torch.full_like(video[0, :, :1], 255)], dim=1).movedim(1, -1).contiguous().numpy()
    with static_server(exports) as url:
        command = [node, tmp_path / "main.mjs", f"{url}/conv", str(rgba[0].nbytes)]
        done = subprocess.run(command, input=rgba.tobytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    state = model.init_state(1)
    for frame, probs in zip(video[0], json.loads(done.stdout), strict=True):
        out, state = model.step(frame[None, None], state)
        assert relative_error(torch.tensor([probs]), out.probs) < 2e-5


def test_tritons_configuration_is_complete():
    """Its grammar is tested with Triton's own definition where `tritonclient` is installed."""
    shapes = {"logits": [1, 5], "frame": [1, 1, 3, 16, 24]}
    tensor = {"dtype": "float32", "initial": 0.0, "slot_axis": None, "first_slot": 0}
    manifest = {
        "batch_size": 1,
        "slots": None,
        "inputs": [{"name": "frame", "shape": shapes["frame"]}],
        "outputs": [{"name": "logits", "shape": shapes["logits"]}],
        "state": [{**tensor, "name": "a", "input": "state.a", "output": "next.a", "shape": [1, 7]}],
    }
    text = triton_config(manifest)
    assert re.search(r'input \[ \{ name: "frame" data_type: TYPE_FP32 dims: \[1, 3, 16, 24\] \} \]', text)
    assert 'input_name: "state.a" output_name: "next.a" data_type: TYPE_FP32 dims: [7]' in text
    parsed = _parse_triton(text)
    if parsed is not None:
        assert parsed.sequence_batching.state[0].initial_state[0].zero_data
        assert list(parsed.output[0].dims) == [5]


@pytest.mark.slow
def test_triton_parses_the_exported_configurations(exports):
    for folder in sorted(exports.iterdir()):
        parsed = _parse_triton((folder / "config.pbtxt").read_text())
        if parsed is None:
            pytest.skip("tritonclient is not installed")
        manifest = json.loads((folder / "manifest.json").read_text())
        given = {item.name for item in parsed.input} | {item.input_name for item in parsed.sequence_batching.state}
        assert given == {"frame"} | {item["input"] for item in manifest["state"]}
        assert parsed.max_batch_size == (manifest["batch_size"] or 8)


def _parse_triton(text: str):
    """Parse by Triton's definition; None where it is not installed."""
    import importlib.util

    found = importlib.util.find_spec("tritonclient")
    if found is None:
        return None
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)  # without gRPC, which its package imports
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    from google.protobuf import text_format

    return text_format.Parse(text, module.ModelConfig())
