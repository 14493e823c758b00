"""Optimised models give the model's results: clips, streams, rows, states."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import pickle
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from models import TINY, VARIANTS, random_video, relative_error, tiny_model, tiny_readout_tracker, tiny_tracker
from processors import FEATURES, pretend
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from paper.memoriser import Memoriser, MemoriserConfig
from trecvit.accelerate import kernels as kernels_module
from trecvit.accelerate.exported import export
from trecvit.accelerate.kernels import FLOATS, available_dtype
from trecvit.accelerate.linears import (
    FusedLinear,
    FusedQuantizedLinear,
    PackedLinear,
    QuantizedLinear,
    packed_linears,
)
from trecvit.accelerate.optimize import for_inference, optimize, quantize
from trecvit.bench.speed import Speed, matmuls, measure, speeds
from trecvit.cli import app
from trecvit.config import ModelConfig
from trecvit.errors import ConfigError, InputError, MissingPackageError, PrecisionWarning
from trecvit.model.linear import GELU, Linear
from trecvit.model.mae import AutoencoderConfig, MaskedAutoencoder, decoder_config
from trecvit.model.trecvit import create_model
from trecvit.processor import supports
from trecvit.runtime.describe import flops_per_frame
from trecvit.synthetic.world import World, WorldConfig
from trecvit.weights.load import load

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}


def streamed(model, video, *, cuts):
    state = model.init_state(len(video))
    for frames in video.split(cuts, dim=1):
        out, state = model.step(frames, state)
    return out, state


def assert_checks_pixels(fast, batch_size=1):
    """An optimised model refuses the same pixels as a plain one."""
    frames, state = random_video(batch_size, 2).float(), fast.init_state(batch_size)
    for wrong in (frames, frames / 255 - 0.5, frames.mul(torch.nan)):
        with pytest.raises(InputError, match=r"pixels in \[0,1\]"):
            fast.step(wrong, state)
        with pytest.raises(InputError, match=r"pixels in \[0,1\]"):
            fast(wrong)


def assert_refuses_changes(fast, batch_size=1):
    """Calls that would miss the packed or compiled weights are refused; calls that change nothing are not."""
    other = torch.float32 if fast.dtype == torch.bfloat16 else torch.bfloat16
    video = random_video(batch_size, 2)
    answer = fast(video).features
    for change in (
        copy.deepcopy,
        copy.copy,
        pickle.dumps,
        lambda model: torch.save(model, io.BytesIO()),
        lambda model: model.half(),
        lambda model: model.double(),
        lambda model: model.to(other),
        lambda model: model.to("meta"),
        lambda model: model.to_empty(device="cpu"),
        lambda model: model.train(),
        lambda model: model.requires_grad_(),
        lambda model: model.load_state_dict(model.state_dict()),
    ):
        with pytest.raises(ConfigError, match=r"a result of optimize or .*; make it from the loaded model again"):
            change(fast)
    assert fast.eval() is fast.cpu() is fast.to(fast.dtype) is fast.requires_grad_(False) is fast
    assert torch.equal(fast(video).features, answer)


@pytest.mark.slow
def test_openvino_gives_the_models_outputs_and_states():
    # In a separate process: pytest's worker was seen to crash some time after OpenVINO had run in it.
    checks = Path(__file__).with_name("openvino_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(checks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "11 passed" in done.stdout


def test_without_openvino_the_error_has_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'trecvit\[openvino\]'"):
        optimize(tiny_model(), mode="openvino")


HAS_AMX = supports("amx")
needs_vnni = pytest.mark.skipif(not QuantizedLinear.is_available(), reason="no AVX-512 VNNI here")

COMPILED = """
import sys
import warnings

import torch
from models import random_video, tiny_model
from test_fast import streamed
from torch._inductor.utils import run_and_get_code
from trecvit.accelerate import compile as compile_module
from trecvit.accelerate.optimize import optimize

warnings.simplefilter("error", UserWarning)
compile_module.is_faster_with_onednn = lambda model: True  # inductor's own choice is MKL
model, video = tiny_model(depth=1), random_video(1, 4)
fast = optimize(model, mode="compile", dtype=getattr(torch, sys.argv[1]))
with torch.inference_mode():
    expected, after = streamed(model, video, cuts=1)
    (got, carried), code = run_and_get_code(streamed, fast, video, cuts=1)
assert len(code) == 1  # a state made in inference mode needs no separate graph
if sys.argv[1] == "float32":
    assert "linear_pointwise" in code[0] and "mkl_linear" not in code[0]
if sys.argv[1] == "int8":  # weights are packed once, and not at each call
    assert "qlinear_pointwise" in code[0] and "prepack" not in code[0] and "trecvit" not in code[0]
assert torch.backends.mkldnn.matmul.fp32_precision not in ("tf32", "bf16")
pairs = [(got.logits, expected.logits)]
pairs += [(carried._tensors()[name], tensor) for name, tensor in after._tensors().items()]
print(max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-9)) for a, b in pairs if b.numel()))
"""

# Without inductor, which is slow: lookups and numbers of graphs do not depend on it.
COMPILED_BESIDE_EACH_OTHER = """
import torch
from models import VARIANTS, random_video, relative_error, tiny_model, tiny_readout_tracker, tiny_tracker
from processors import FEATURES, pretend
from test_fast import assert_checks_pixels, assert_refuses_changes
from trecvit import processor
from trecvit.accelerate.linears import QuantizedLinear
from trecvit.accelerate.optimize import optimize

compile = torch.compile
torch.compile = lambda function, **options: compile(function, **options | {"backend": "eager"})
models = [tiny_model(**VARIANTS[variant]) for variant in ("plain", "plain", "complex", "lstm")]
with torch.no_grad():
    models[1].blocks[0].spatial.qkv.weight.mul_(2.0)
this_processor = processor._is_supported
for name in FEATURES:  # other processors, on which bfloat16 is slow
    pretend(name)
    for dtype in (torch.float32, torch.bfloat16):
        one = optimize(models[0], dtype=dtype, mode="compile")
        assert (one.dtype, one.init_state(1).dtype) == (torch.float32, torch.float32)
        assert relative_error(one(random_video(1, 1)).logits, models[0](random_video(1, 1)).logits) < 1e-5
processor._is_supported = this_processor
fast = [optimize(model, mode="compile") for model in models]
with torch.inference_mode():
    for video in (random_video(1, 1), random_video(2, 3)):
        answers = [model(video).features for model in models]
        assert relative_error(answers[0], answers[1]) > 1e-2
        for model, one, answer in zip(models, fast, answers):
            assert relative_error(one(video).features, answer) < 1e-5, model.config
    assert_checks_pixels(fast[0])
    assert_refuses_changes(fast[0])
    for batch_size in range(2, 10):  # more shapes than Dynamo's default limit
        fast[0](random_video(batch_size, 1))
    queries = torch.tensor([[[0.0, 5.0, 6.0], [2.0, 20.0, 9.0]]] * 2)
    for tracker in (tiny_tracker(), tiny_readout_tracker()):
        video = random_video(2, 4, 32, 32)
        expected = tracker(video, queries).points_xy
        assert relative_error(optimize(tracker, mode="compile")(video, queries).points_xy, expected) < 1e-5
        if QuantizedLinear.is_available():
            found = optimize(tracker, dtype=torch.int8, mode="compile")(video, queries).points_xy
            assert relative_error(found, expected) < 0.05
print("all well")
"""


@pytest.mark.slow
def test_compiled_graphs_are_not_shared_between_models(forks):
    done = forks.run(COMPILED_BESIDE_EACH_OTHER)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all well" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        ("float32", 1e-5),
        pytest.param("bfloat16", 0.03, marks=pytest.mark.skipif(not HAS_AMX, reason="kernels are tried out with AMX")),
        pytest.param("int8", 0.05, marks=needs_vnni),
    ],
)
def test_a_compiled_model_gives_the_models_outputs_and_states(dtype, tolerance, forks):
    done = forks.run(COMPILED, dtype)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout) < tolerance
    assert not done.stderr  # no log of autotuning


@pytest.mark.parametrize(("slower", "chosen"), [("mkl", True), ("onednn", False)])
def test_float32_is_compiled_for_the_kernels_that_are_faster_here(slower, chosen, monkeypatch):
    shapes_timed = []

    def pretended(x, weight, bias):
        shapes_timed.append((len(x), *weight.shape))
        return {name: (lambda: time.sleep(2e-3)) if name == slower else (lambda: None) for name in ("onednn", "mkl")}

    monkeypatch.setattr(kernels_module, "packed_linears", pretended)
    model = tiny_model()
    monkeypatch.setattr("trecvit.processor._is_supported", {"onednn", "mkl"}.__contains__)
    assert kernels_module.is_faster_with_onednn(model) == chosen
    shapes = {(module.out_features, module.in_features) for module in model.modules() if isinstance(module, Linear)}
    assert sorted(shapes_timed) == sorted((model.tokenizer.config.num_patches, *shape) for shape in shapes)
    for has in ({"onednn"}, {"mkl"}, set()):
        monkeypatch.setattr("trecvit.processor._is_supported", has.__contains__)
        assert kernels_module.is_faster_with_onednn(model) == ("onednn" in has)


@pytest.mark.parametrize(
    ("has", "slower", "chosen"),
    [
        ({"onednn", "onednn_bfloat16", "bfloat16"}, None, "bfloat16"),
        ({"onednn", "onednn_bfloat16"}, "float32", "bfloat16"),  # AVX-512 without instructions for bfloat16
        ({"onednn", "onednn_bfloat16"}, "bfloat16", "float32"),
        ({"onednn", "mkl"}, None, "float32"),  # AVX2
        (set(), None, "float32"),
    ],
)
def test_bfloat16_is_computed_in_the_faster_dtype(has, slower, chosen, monkeypatch):
    def pretended(x, weight, bias):
        assert slower, "timed where the processor decides"
        return {"onednn": (lambda: time.sleep(2e-3)) if x.dtype == FLOATS[slower] else (lambda: None)}

    monkeypatch.setattr(kernels_module, "packed_linears", pretended)
    monkeypatch.setattr("trecvit.processor._is_supported", has.__contains__)
    kernels_module._is_faster_in_bfloat16.cache_clear()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert available_dtype(tiny_model(), torch.bfloat16) == FLOATS[chosen]
        assert [warning.category for warning in caught] == [PrecisionWarning] * (chosen == "float32")
        assert available_dtype(tiny_model(), torch.float32) == torch.float32
        assert available_dtype(tiny_model().to("meta"), torch.bfloat16) == torch.bfloat16  # not timed on other devices
    finally:
        kernels_module._is_faster_in_bfloat16.cache_clear()


def test_without_a_compiler_the_error_asks_to_install_one(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for compile in (lambda: optimize(tiny_model(), mode="compile"), lambda: export(tiny_model(), tmp_path / "fast")):
        with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler, got no no-such-compiler; install it"):
            compile()
    assert not (tmp_path / "fast").exists()


def test_a_replaced_dtype_gives_one_warning_at_the_call_of_optimize(monkeypatch):
    pretend("avx2", monkeypatch.setattr)
    with pytest.warns(
        PrecisionWarning, match=r"^this processor multiplies float32 faster .* computing in float32$"
    ) as caught:
        assert optimize(tiny_model(), dtype=torch.bfloat16).dtype == torch.float32
    assert [warning.filename for warning in caught] == [__file__]


def test_packed_linears_are_the_linear_layer(processor):
    torch.manual_seed(0)
    x, linear = torch.randn(10, 24), Linear(24, 40)
    for bias in (linear.bias.detach(), None):
        expected = torch.nn.functional.linear(x, linear.weight.detach(), bias)
        kernels = packed_linears(x, linear.weight.detach(), bias)
        assert kernels.keys() == {name for name in ("onednn", "mkl") if supports(name)}
        for kernel in kernels.values():
            torch.testing.assert_close(kernel(), expected)


EXPORTED = """
import json
import sys
from pathlib import Path

import pytest
import torch
from models import random_video, relative_error, tiny_model
from test_fast import assert_checks_pixels, assert_refuses_changes, streamed

from trecvit.errors import CheckpointError, ConfigError, InputError
from trecvit.accelerate.exported import export, load_exported

folder = Path(sys.argv[1])
model, video = tiny_model(temporal_patch_size=2, depth=1), random_video(2, 8)
export(model, folder, batch_size=2, frames=(2, 4))
loaded = load_exported(folder)
with torch.inference_mode():
    for cuts in (4, 2, 1, [3, 1, 2, 2]):  # with patches of two frames each gives passes of 2 or 4
        expected, after = streamed(model, video, cuts=cuts)
        got, carried = streamed(loaded, video, cuts=cuts)
        assert relative_error(got.logits, expected.logits) < 1e-5
        for name, tensor in after._tensors().items():
            assert relative_error(carried._tensors()[name], tensor) < 1e-5, name
    assert relative_error(loaded(video[:, :4]).logits, model(video[:, :4]).logits) < 1e-5
assert_checks_pixels(loaded, batch_size=2)
assert_refuses_changes(loaded, batch_size=2)
with pytest.raises(InputError, match=r"takes 2 x 2 frames of .*; 2 x 4 frames of .*, got 1 x 4 frames"):
    loaded(video[:1, :4])
with pytest.raises(ConfigError, match="save the model that it was made of"):
    loaded.save(folder / "again")
with pytest.raises(ConfigError, match="expected a new or empty folder"):
    export(model, folder, frames=(2,))
description = folder / "exported.json"
facts = json.loads(description.read_text())
here = facts["made_for"]
for instructions, features in (("VAX", here["features"]), (here["instructions"], ["no such"])):
    other = {**here, "instructions": instructions, "features": features}
    description.write_text(json.dumps({**facts, "made_for": other}))
    with pytest.raises(CheckpointError, match="export the model again here"):
        load_exported(folder)
del here["features"]  # as earlier versions wrote it
description.write_text(json.dumps(facts))
assert relative_error(load_exported(folder)(video[:, :4]).logits, model(video[:, :4]).logits) < 1e-5
description.write_text("{}")
with pytest.raises(CheckpointError, match="damaged"):
    load_exported(folder)
with pytest.raises(CheckpointError, match="no such file"):
    load_exported(folder / "nowhere")
print("all well")
"""


@pytest.mark.slow
def test_an_exported_model_gives_the_models_outputs_and_states(tmp_path, forks):
    done = forks.run(EXPORTED, tmp_path / "fast")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all well" in done.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"mode": "eager"}, "expected one of compile, openvino, onnx, got 'eager'"),
        ({"dtype": torch.float16}, "float32 or torch.bfloat16"),
        ({"dtype": torch.int8}, "float32 or torch.bfloat16"),
        ({"frames": (1, 3)}, "multiples of temporal_patch_size=2"),
        ({"frames": ()}, "multiples of temporal_patch_size=2"),
        ({"batch_size": 0}, "a batch of 1 or more"),
    ],
)
def test_unsupported_exports_are_refused_before_writing(words, complaint, tmp_path):
    with pytest.raises(ConfigError, match=complaint):
        export(tiny_model(temporal_patch_size=2), tmp_path / "fast", **{"frames": (2,), **words})
    with pytest.raises(ConfigError, match="not a result of optimize"):
        export(optimize(tiny_model()), tmp_path / "fast")
    assert not (tmp_path / "fast").exists()


def test_eigenvalues_are_not_rounded_and_a_result_is_not_optimised_again():
    model = tiny_model()
    fast = optimize(model, dtype=torch.bfloat16)
    rounded = for_inference(model, torch.bfloat16, "eager")  # also where float32 is faster
    assert torch.equal(rounded.blocks[0].temporal.lru.a_param, model.blocks[0].temporal.lru.a_param)
    assert torch.equal(fast.blocks[0].temporal.lru.a_param, model.blocks[0].temporal.lru.a_param)
    assert fast.blocks[0].temporal.lru.a_param.dtype == torch.float32
    with pytest.raises(ConfigError, match="already the result of optimize"):
        optimize(fast)


def test_a_result_cannot_be_saved(tmp_path):
    with pytest.raises(ConfigError, match="save the model that it was made of"):
        optimize(tiny_model()).save(tmp_path / "model")
    with pytest.raises(ConfigError, match="save the model that it was made of"):
        optimize(tiny_model()).save_pretrained(tmp_path / "model")
    assert not any(tmp_path.rglob("*.safetensors"))


def gelu_named(name):
    return None if name is None else torch.nn.GELU(approximate=GELU[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [None, "tanh", "erf"])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("faster", [partial(PackedLinear, rows=6), FusedLinear], ids=["packed", "fused"])
def test_a_faster_layer_equals_the_linear_layer_and_gelu(dtype, gelu, adds, faster):
    if faster is not FusedLinear and not PackedLinear.is_available(dtype):
        pytest.skip(f"oneDNN packs no {dtype} here")
    linear, then = Linear(48, 40).to(dtype), gelu_named(gelu)
    fast = faster(linear, then)
    for shape in [(2, 3, 6), (1, 1, 1)]:  # the second are not the rows it was packed for
        x, add = torch.randn(*shape, 48).to(dtype), torch.randn(*shape, 40).to(dtype) if adds else None
        exact = copy.deepcopy(linear).double()(x.double())
        exact = (then(exact) if then else exact) + (add.double() if adds else 0.0)
        with torch.inference_mode():
            found = fast(x, add=add)
        assert found.dtype == dtype
        assert relative_error(found, exact) < {torch.float32: 1e-6, torch.bfloat16: 1e-2}[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", VARIANTS)
def test_eager_inference_gives_the_models_outputs_and_states(variant, dtype, processor):
    model, video = tiny_model(**VARIANTS[variant]), random_video(2, 6)
    fast = optimize(model, dtype=dtype)
    assert fast.dtype == available_dtype(model, dtype)
    assert fast.init_state(2).dtype == fast.dtype
    assert supports("onednn") == any(isinstance(module, PackedLinear) for module in fast.modules())
    assert supports("onednn") != any(isinstance(module, Linear) for module in fast.modules())
    with torch.inference_mode():
        expected, after = streamed(model, video, cuts=[1, 1, 2, 1, 1])
        got, carried = streamed(fast, video, cuts=[1, 1, 2, 1, 1])
    assert relative_error(got.features, expected.features) < TOLERANCE[dtype]
    for name, tensor in after._tensors().items():
        assert relative_error(carried._tensors()[name], tensor) < TOLERANCE[dtype], name


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("batch_size", "num_frames"), [(1, 20), (35, 2), (5, 10)])
def test_many_frames_computed_in_pieces_give_the_models_outputs_and_states(
    variant, batch_size, num_frames, monkeypatch
):
    model, video = tiny_model(**VARIANTS[variant]), random_video(batch_size, 2 * num_frames)
    fast = optimize(model)
    sizes: list[torch.Size] = []
    engine = fast.engine.engine
    monkeypatch.setattr(fast.engine, "engine", lambda *args: sizes.append(args[0].shape[:2]) or engine(*args))
    with torch.inference_mode():
        expected, after = streamed(model, video, cuts=num_frames)
        got, carried = streamed(fast, video, cuts=num_frames)
    assert max(length for _, length in sizes) <= 8
    assert max(rows * length for rows, length in sizes) <= 32
    for one, other in zip(got, expected, strict=True):
        assert other is None or relative_error(one, other) < 1e-5
    for name, tensor in after._tensors().items():
        assert relative_error(carried._tensors()[name], tensor) < 1e-5, name


def test_a_model_that_cannot_stream_computes_whole_clips():
    model, video = tiny_model(temporal_mixer="attention"), random_video(3, 10)
    with torch.inference_mode():
        assert relative_error(optimize(model)(video).logits, model(video).logits) < 1e-5


@needs_vnni
@pytest.mark.parametrize("gelu", [None, "tanh", "erf"])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("kind", [QuantizedLinear, FusedQuantizedLinear])
def test_a_quantized_layer_equals_the_linear_layer_up_to_rounding(kind, gelu, adds):
    linear, then = Linear(48, 40), gelu_named(gelu)
    quantized = kind(linear, then, rows=6)
    for shape in [(2, 3, 6), (1, 1, 1), (1, 0, 6)]:  # the last two are not the rows it was packed for
        x, add = torch.randn(*shape, 48), torch.randn(*shape, 40) if adds else None
        exact, found = linear(x), quantized(x, add=add)
        exact = (then(exact) if then else exact) + (add if adds else 0.0)
        assert found.dtype == torch.float32
        assert found.shape == exact.shape
        assert x.numel() == 0 or relative_error(found, exact) < 0.01


@needs_vnni
@pytest.mark.parametrize("kind", [QuantizedLinear, FusedQuantizedLinear])
def test_quantized_vectors_do_not_depend_on_each_other(kind):
    quantized = kind(Linear(48, 40), rows=6)
    x = torch.randn(5, 48)
    x[1] *= 1e6  # with a common scale the others would round to 0
    x[2] = 0.0
    found = quantized(x)
    assert all(torch.equal(quantized(x[row : row + 1]), found[row : row + 1]) for row in range(5))
    assert torch.equal(found[2], quantized.bias)


@needs_vnni
@pytest.mark.parametrize("variant", VARIANTS)
def test_int8_gives_nearly_the_models_outputs_and_states(variant):
    model, video = tiny_model(**VARIANTS[variant]), random_video(2, 6)
    fast = optimize(model, dtype=torch.int8)
    assert any(isinstance(module, QuantizedLinear) for module in fast.modules())
    with torch.inference_mode():
        expected, after = streamed(model, video, cuts=[1, 1, 2, 1, 1])
        got, carried = streamed(fast, video, cuts=[1, 1, 2, 1, 1])
        clip = fast(video) if model.config.temporal_patch_size == 1 else None  # clips have whole patches only
    assert relative_error(got.features, expected.features) < 0.05
    for name, tensor in after._tensors().items():
        assert relative_error(carried._tensors()[name], tensor) < 0.05, name
    assert clip is None or relative_error(clip.features[:, -1:], got.features[:, -1:]) < 1e-3


@needs_vnni
def test_int8_is_closer_to_a_trained_models_logits_than_bfloat16():
    model, world = load("motions"), World(WorldConfig(image_size=(64, 64)), seed=12_345)
    clips = torch.stack([world[index][0] for index in range(36)])
    in_bfloat16 = for_inference(model, torch.bfloat16, "eager")  # also where float32 is faster
    with torch.inference_mode():
        exact, bytewise, halved = (one(clips).logits for one in (model, optimize(model, dtype=torch.int8), in_bfloat16))
    assert relative_error(bytewise, exact) < min(0.01, relative_error(halved, exact))
    assert torch.equal(bytewise.argmax(-1), exact.argmax(-1))
    compiled = for_inference(model, torch.bfloat16, "compile")  # before compilation
    quantize(compiled, model)
    with torch.inference_mode():
        bytewise = compiled(clips).logits
    assert relative_error(bytewise, exact) < 1.5 * relative_error(halved, exact)
    assert torch.equal(bytewise.argmax(-1), exact.argmax(-1))


def test_for_a_compiler_every_linear_layer_of_the_blocks_is_quantized():
    model = tiny_model(temporal_mlp=True)
    fast = for_inference(model, torch.float32, "compile")
    quantize(fast, model)
    names = [name for name, module in model.named_modules() if isinstance(module, Linear)]
    quantized = [name for name in names if isinstance(fast.get_submodule(name), FusedQuantizedLinear)]
    assert quantized == [name for name in names if name.startswith("blocks.")]


def test_int8_is_refused_where_it_is_not_available(monkeypatch):
    with pytest.raises(ConfigError, match=r"is for mode='eager' or 'compile' .* got mode='openvino'"):
        optimize(tiny_model(), dtype=torch.int8, mode="openvino")
    for name in FEATURES:
        pretend(name, monkeypatch.setattr)
        for mode in ("eager", "compile"):
            with pytest.raises(ConfigError, match=r"AVX-512 VNNI .* not here; take bfloat16 or float32"):
                optimize(tiny_model(), dtype=torch.int8, mode=mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, pytest.param(torch.int8, marks=needs_vnni)])
def test_a_result_checks_pixels_and_refuses_changes(dtype, processor):
    if dtype == torch.int8 and processor != "this":
        return
    fast = optimize(tiny_model(), dtype=dtype)
    assert_checks_pixels(fast)
    assert_refuses_changes(fast)


def other_models():
    """Every other kind of model that `optimize` takes, each with a call that returns a tensor."""
    blocks = ModelConfig(**{**TINY, "num_classes": 0, "pooling": "mean"})
    queries = torch.tensor([[[0.0, 5.0, 6.0], [2.0, 20.0, 9.0]]] * 2)
    video = random_video(2, 4, 32, 32)
    for tracker in (tiny_tracker(), tiny_tracker(matching=True), tiny_readout_tracker()):
        yield tracker, lambda model: model(video, queries).points_xy
    yield Memoriser(MemoriserConfig(blocks=blocks, offset=2)).eval(), lambda model: model(random_video())
    autoencoder = MaskedAutoencoder(
        AutoencoderConfig(blocks=blocks, decoder=decoder_config(blocks, width=8, depth=1, num_heads=2, mlp_width=12))
    ).eval()
    yield autoencoder, lambda model: model(random_video(), torch.tensor([[0, 3], [1, 4]])).normalised


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_other_models_give_the_same_outputs_in_every_dtype(dtype, processor):
    if dtype == torch.int8 and not supports("int8"):
        pytest.skip("no AVX-512 VNNI here")
    for model, answer in other_models():
        fast = optimize(model, dtype=dtype)
        with pytest.raises(ConfigError, match="make it from the loaded model again"):
            fast.half()
        expected, found = (answer(one).detach() for one in (model, fast))
        assert relative_error(found, expected) < {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.int8: 0.05}[dtype]


def test_a_model_without_streams_is_not_compiled():
    *_, (autoencoder, _) = other_models()
    with pytest.raises(ConfigError, match=r"mode='compile' is for models that take streams, got a MaskedAutoencoder"):
        optimize(autoencoder, mode="compile")


def test_eager_copies_and_leaves_the_model_alone():
    model = tiny_model()
    fast = optimize(model, dtype=torch.bfloat16)
    assert (fast.dtype, model.dtype) == (available_dtype(model, torch.bfloat16), torch.float32)
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert relative_error(fast(random_video()).logits, model(random_video()).logits) < 0.05


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ({"mode": "tflite"}, "expected one of eager, compile, graphs, compile-graphs, openvino, onnx, got 'tflite'"),
        ({"dtype": torch.float16}, "float32"),
    ],
)
def test_unknown_modes_and_dtypes_are_refused(words, complaint):
    with pytest.raises(ConfigError, match=complaint):
        optimize(tiny_model(), **words)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("int8", marks=needs_vnni)])
def test_the_bound_has_the_models_own_matrix_multiplications(dtype, tmp_path):
    tiny_model(image_size=(64, 64)).save(tmp_path / "model")
    speed = measure(str(tmp_path / "model"), dtype, "eager", 2, 1, seconds=0.05)
    assert speed.frames_per_s > 0
    model = load(str(tmp_path / "model")).to(FLOATS.get(dtype, torch.float32))
    calls = matmuls(model, random_video(2, 1, 64, 64))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for func, args, kwargs in calls:
            func(*args, **kwargs)
    assert counter.get_total_flops() == 2 * flops_per_frame(model)
    assert speed.p95_ms >= speed.median_ms
    assert speed.to_dict()["times_the_bound"] == speed.times_the_bound


@pytest.mark.slow
@pytest.mark.parametrize("name", FEATURES)
def test_a_slow_dtype_is_timed_as_the_dtype_that_replaces_it(name, tmp_path, monkeypatch):
    pretend(name, monkeypatch.setattr)
    tiny_model().save(tmp_path / "model")
    speed = measure(str(tmp_path / "model"), "bfloat16", "eager", 1, 1, seconds=0.02)
    assert (speed.dtype, speed.computed_in) == ("bfloat16", "float32")
    assert speed.bound_frames_per_s > 0
    with pytest.raises(ConfigError, match="AVX-512 VNNI"):
        measure(str(tmp_path / "model"), "int8", "eager", 1, 1, seconds=0.02)


def test_bench_speed_prints_replaced_dtypes_and_unmeasured_cases(tmp_path, monkeypatch):
    fields = {field.name: 1 for field in dataclasses.fields(Speed)}
    speed = Speed(**{**fields, "model": "tiny", "dtype": "bfloat16", "computed_in": "float32", "mode": "eager"})
    monkeypatch.setattr("trecvit.bench.speed.speeds", lambda *_, **__: iter([speed, "no VNNI"]))
    words = [
        "-m",
        "tiny",
        "--mode",
        "eager",
        "--dtype",
        "bfloat16",
        "--dtype",
        "int8",
        "--save",
        str(tmp_path / "a.json"),
    ]
    result = CliRunner().invoke(app, ["bench", "speed", *words])
    assert "bfloat16 (computed in float32)" in result.stdout
    assert "trecvit: tiny int8 eager 1 1: no VNNI" in result.stderr
    assert result.exit_code == 1
    content = json.loads((tmp_path / "a.json").read_text())
    assert [one["computed_in"] for one in content["speeds"]] == ["float32"]
    assert content["not_measured"] == {"tiny int8 eager 1 1": "no VNNI"}


def times_faster(one, than, at_least):
    """Ratio of the best latencies of a streamed frame, measured in turns so that other load slows both.

    Beside other work it may take many rounds until both have had a moment to themselves.
    """
    frames, best_s = torch.zeros(1, 1, 3, 224, 224, dtype=torch.uint8), {one: float("inf"), than: float("inf")}
    with torch.inference_mode():
        for tried in range(120):
            for model in best_s:
                state = model.init_state(1)
                begun_s = time.perf_counter()
                model.step(frames, state)
                best_s[model] = min(best_s[model], time.perf_counter() - begun_s)
            if tried >= 10 and best_s[than] / best_s[one] > at_least:
                break
    return best_s[than] / best_s[one]


@pytest.mark.skipif(not supports("onednn"), reason="no oneDNN here")
@pytest.mark.slow
def test_packed_weights_are_not_slower_than_plain_ones():
    model = create_model("tiny", depth=2, width=384, mlp_width=1536, num_classes=0, num_heads=6).eval()
    # The gain depends on the machine's MKL: measured at 1.77 on one, at 1.13 to 1.16 on another, and at 0.95 to 1.07
    # from one minute to the next on an AVX2-only EPYC, by code that was faster there on another day.
    assert times_faster(optimize(model), model, 0.85) > 0.85


@needs_vnni
@pytest.mark.slow
def test_int8_is_faster_than_float32():
    model = create_model("base_k400", depth=2, num_classes=0).eval()
    by_dtype = [optimize(model, dtype=dtype) for dtype in (torch.int8, torch.float32)]
    assert times_faster(*by_dtype, 1.3) > 1.3  # measured: 2.0


@pytest.mark.slow
def test_every_combination_is_measured_or_yields_its_reason(tmp_path):
    tiny_model(image_size=(32, 32)).save(tmp_path / "model")
    refused, *found = speeds([str(tmp_path / "model")], dtypes=["float8"], seconds=0.02)
    assert "expected one of float32, bfloat16, int8" in refused
    found += speeds([str(tmp_path / "model")], dtypes=["float32"], batch_sizes=[1, 3], seconds=0.02)
    assert [type(speed) for speed in found] == [Speed, Speed]
    assert [speed.batch_size for speed in found] == [1, 3]
