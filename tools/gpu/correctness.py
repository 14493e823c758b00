"""Correctness on the device: the tests against oracles and originals, and cases that only a GPU can run."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from tools.gpu.child import Case
from tools.gpu.device import Target, relative_error
from tools.gpu.kernels import Problem
from tools.gpu.results import ROOT
from tools.gpu.streaming import tracker_config
from tools.gpu.training import recipe_of
from trecvit.accelerate.optimize import optimize
from trecvit.config import model_config
from trecvit.model.scan import gated_scan, gated_scan_reference
from trecvit.model.tapnext import TAPNext
from trecvit.model.trecvit import TRecViT

# Files of tests that compute on the device that TRECVIT_TEST_DEVICE names, and pytest's other arguments.
TESTS: dict[str, list[str]] = {
    "scan": ["tests/test_scan.py"],
    "kernels": ["tests/test_scan_triton.py", "-k", "not compile_for_nvidia"],
    "model": ["tests/test_trecvit.py", "tests/test_official.py"],
    "streams": ["tests/test_streaming.py"],
    "trackers": ["tests/test_tapnext.py"],
}
_NAMES = ("states", "last", "d x", "d input_gate", "d recurrence_gate", "d a_param", "d hidden")
# Largest relative errors, by the norm. float32 is compared with float64, bfloat16 with the same rounded inputs.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
_MODEL_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def cases(target: Target) -> dict[str, Case]:
    """Return the cases, the most important first."""
    made: dict[str, Case] = {}
    for dtype in (torch.float32, torch.bfloat16):
        made[f"scan at full size {dtype}".replace("torch.", "")] = partial(_scan, dtype, target)
    made["kernels tests"] = partial(_tests, TESTS["kernels"], target)
    made["70,000 streams"] = partial(_many_streams, target)
    made["more than 2^31 elements"] = partial(_large, target)
    for mode in ("graphs", "compile-graphs"):
        made[f"states are values: {mode}"] = partial(_values, mode, target)
    for dtype in (torch.float32, torch.bfloat16):
        for name in ("classifier", "tracker"):
            made[f"gradients of a {name} {dtype}".replace("torch.", "")] = partial(_gradients, name, dtype, target)
    for name in ("scan", "model", "streams", "trackers"):
        made[f"{name} tests"] = partial(_tests, TESTS[name], target)
    made["70,000 frames at once"] = partial(_many_frames, target)
    made["training step"] = partial(_training, target)
    made["one process of NCCL"] = partial(_nccl, target)
    return made


def _tests(arguments: list[str], target: Target) -> dict[str, Any]:
    """Run pytest in a process of its own."""
    device = target.device.type if target.is_cuda else "cpu"
    parallel = ["-n", "4", "--dist", "worksteal"] if find_spec("xdist") and target.is_cuda else []
    which = ["-m", "not slow"] if target.small else []
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Warnings of another PyTorch than the tests' own are no failures.
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-W",
            "default",
            "-p",
            "no:cacheprovider",
            f"--junitxml={report}",
        ]
        done = subprocess.run(
            [*command, *parallel, *which, *arguments], cwd=ROOT, capture_output=True, text=True, check=False,
            env={**os.environ, "TRECVIT_TEST_DEVICE": device},
        )  # fmt: skip
        if not report.exists():
            raise RuntimeError(f"pytest wrote no report: {(done.stdout + done.stderr)[-400:]}")
        tests = list(ET.parse(report).getroot().iter("testcase"))
    failures = {
        f"{test.get('name')}": str(problem.get("message"))[:200]
        for test in tests
        for problem in test
        if problem.tag in ("failure", "error")
    }
    skipped = sum(problem.tag == "skipped" for test in tests for problem in test)
    counts = {"passed": len(tests) - len(failures) - skipped, "skipped": skipped}
    found: dict[str, Any] = {"line": f"{counts['passed']} passed, {skipped} skipped", **counts, "failures": failures}
    if failures or not counts["passed"]:
        names = ", ".join(failures) or (done.stdout + done.stderr)[-300:]
        found["failed"] = f"{len(failures)} of {len(tests)} tests: {names}"[:600]
    return found


def _outcome(scan: Callable[..., Any], leaves: list[Tensor], fresh: Tensor, grad_states: Tensor) -> list[Tensor]:
    states, last = scan(*leaves, fresh)
    gradients = torch.autograd.grad((states * grad_states).sum() + last.sum(), leaves)
    return [states.detach(), last.detach(), *gradients]


def _worst(errors: dict[str, float], tolerance: float) -> dict[str, Any]:
    """A result with all errors, failed if one is too large or not a number."""
    name = max(errors, key=lambda key: errors[key] if errors[key] == errors[key] else float("inf"))
    found: dict[str, Any] = {"line": f"largest error {errors[name]:.1e} ({name})", "errors": errors}
    if not errors[name] <= tolerance:
        found["failed"] = f"{name}: relative error {errors[name]:.2e}, expected at most {tolerance:g}"
    return found


def _scan(dtype: torch.dtype, target: Target) -> dict[str, Any]:
    """States and every gradient of a layer of `base` against the reference in float64."""
    problem = Problem(target.pick((2, 32, 197, 768), (2, 3, 2, 16)), dtype, target)
    # As after rounding the inputs; streams that are not fresh continue.
    exact = [tensor.detach().double().requires_grad_() for tensor in problem.leaves()]
    want = _outcome(gated_scan_reference, exact, problem.fresh, problem.grad_states.double())
    got = _outcome(gated_scan, problem.leaves(), problem.fresh, problem.grad_states)
    errors = {name: relative_error(*pair) for name, *pair in zip(_NAMES, got, want, strict=True)}
    return _worst(errors, _TOLERANCE[dtype])


def _many_streams(target: Target) -> dict[str, Any]:
    """More programs than an axis of a launch but the first may have."""
    problem = Problem((target.pick(70_000, 5), 2, 1, 32), torch.float32, target)
    got, want = (
        _outcome(scan, problem.leaves(), problem.fresh, problem.grad_states)
        for scan in (gated_scan, gated_scan_reference)
    )
    errors = {name: relative_error(*pair) for name, *pair in zip(_NAMES, got, want, strict=True)}
    return _worst(errors, 1e-4)  # both in float32; a_param's gradient is a sum over all streams


def _large(target: Target) -> dict[str, Any]:
    """Offsets beyond 2^31: the last stream of many against the same stream alone."""
    shape = target.pick((15, 256, 769, 768), (2, 3, 2, 16))  # 2.27e9 elements
    elements = torch.Size(shape).numel()
    needed = elements * (3 * 2 * 2 + 3 * 4)  # inputs and their gradients, states, their gradient and its copy
    if not target.has_bytes(needed):
        return {"line": f"skipped: needs {needed / 1e9:.0f} GB", "skipped": True}
    problem = Problem(shape, torch.bfloat16, target)
    leaves = problem.leaves()
    states, _ = gated_scan(*[*leaves, problem.fresh])
    got = torch.autograd.grad(states, leaves, problem.grad_states)
    errors: dict[str, float] = {}
    for place in (0, len(problem.hidden) // 2, -1):
        row = slice(place, place + 1 or None)
        own = [leaf.detach()[row].requires_grad_() if leaf.dim() > 1 else leaf for leaf in leaves]
        alone, _ = gated_scan(*[*own, problem.fresh[row]])
        wanted = torch.autograd.grad(alone, own, problem.grad_states[row])
        errors[f"states {place}"] = relative_error(states[row, -1], alone[:, -1])
        for name, gradient, want in zip(_NAMES[2:5], got, wanted, strict=False):
            errors[f"{name} {place}"] = relative_error(gradient[row, ::64], want[:, ::64])
    return {**_worst(errors, 1e-6), "elements": elements}


def _classifier(target: Target) -> TRecViT:
    small = {"width": 24, "depth": 2, "num_heads": 2, "mlp_width": 32, "head_width": 16, "image_size": (32, 32)}
    torch.manual_seed(0)
    return TRecViT(model_config("tiny", num_classes=10, **target.pick({}, small))).eval()


def _tracker(target: Target) -> TAPNext:
    torch.manual_seed(0)
    config = tracker_config(Target(target.device, small=True))
    if not target.small:
        config = config.replace(blocks=config.blocks.replace(width=192, num_heads=3, mlp_width=384, depth=4))
    return TAPNext(config).eval()


def _inputs(model: TRecViT | TAPNext, batch_size: int, num_frames: int) -> list[Any]:
    size = model.preprocessing.image_size
    video = torch.randint(0, 256, (batch_size, num_frames, 3, *size), dtype=torch.uint8)
    if isinstance(model, TRecViT):
        return [video]
    places = torch.rand(batch_size, 7, 2) * torch.tensor(size)
    return [video, torch.cat([torch.zeros(batch_size, 7, 1), places], dim=2)]


def _gradients(kind: str, dtype: torch.dtype, target: Target) -> dict[str, Any]:
    """Outputs and every gradient of a model against the CPU in float64; in bfloat16 by autocast, as in training."""
    model: Any = _classifier(target) if kind == "classifier" else _tracker(target)
    inputs = _inputs(model, 2, 3)

    def outcome(network: Any, arguments: list[Tensor]) -> dict[str, Tensor]:
        with torch.autocast(arguments[0].device.type, torch.bfloat16, enabled=dtype == torch.bfloat16 and not exact):
            out = network(*arguments)
        result = out[0] if kind == "classifier" else out.coordinate_logits
        weights = dict(network.named_parameters())
        loss = result.double().square().mean()
        gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        parts = {name: grad for name, grad in zip(weights, gradients, strict=True) if grad is not None}
        return {"output": result, **parts}

    exact = True
    double = [tensor.double() if tensor.is_floating_point() else tensor for tensor in inputs]
    want = {name: part.detach().clone() for name, part in outcome(model.double(), double).items()}
    exact = False
    got = outcome(model.float().to(target.device), [tensor.to(target.device) for tensor in inputs])
    if dtype == torch.bfloat16:  # single gradients may be small differences of rounded numbers
        got, want = (
            {
                "output": parts.pop("output"),
                "all gradients": torch.cat([part.flatten().cpu() for part in parts.values()]),
            }
            for parts in (got, want)
        )
    errors = {name: relative_error(got[name], want[name]) for name in want}
    return _worst(errors, _MODEL_TOLERANCE[dtype])


@torch.inference_mode()
def _values(mode: str, target: Target) -> dict[str, Any]:
    """Streams with CUDA graphs: the plain model's outputs, and states that later steps leave as they are."""
    errors: dict[str, float] = {}
    for name, plain in (("classifier", _classifier(target)), ("tracker", _tracker(target))):
        model: Any = plain.to(target.device)
        fast = optimize(model, mode=mode if target.is_cuda else "eager")
        video, *queries = (tensor.to(target.device) for tensor in _inputs(model, 3, 5))
        states = [model.init_state(*queries) if queries else model.init_state(3)]
        mine = [fast.init_state(*queries) if queries else fast.init_state(3)]
        outs, copies = [], []
        for frame in range(video.shape[1]):
            want, after = model.step(video[:, frame : frame + 1], states[-1])
            got, mine_after = fast.step(video[:, frame : frame + 1], mine[-1])
            states.append(after)
            mine.append(mine_after)
            outs.append((got, want))
            copies.append([tensor.clone() for tensor in (got[0], *mine_after._tensors().values())])
        for frame, (got, want) in enumerate(outs):
            errors[f"{name} output {frame}"] = relative_error(got[0], want[0])
            kept = [got[0], *mine[frame + 1]._tensors().values()]
            if not all(torch.equal(*pair) for pair in zip(kept, copies[frame], strict=True)):
                return {"failed": f"{name}: a later step changed the output or the state of frame {frame}"}
        for key, tensor in states[-1]._tensors().items():
            errors[f"{name} {key}"] = relative_error(mine[-1]._tensors()[key], tensor)
        again, _ = fast.step(video[:, 2:3], mine[2])  # back to an earlier state
        errors[f"{name} again"] = relative_error(again[0], outs[2][1][0])
        one, _ = fast.step(video[:1, 2:3], mine[2].select([0]))  # another number of streams
        errors[f"{name} one stream"] = relative_error(one[0], outs[2][1][0][:1])
    return _worst(errors, 1e-4)


@torch.inference_mode()
def _many_frames(target: Target) -> dict[str, Any]:
    """Attention on more frames than an axis of a launch may have."""
    model = _classifier(Target(target.device, small=True)).to(target.device)
    video = torch.randint(0, 256, (target.pick(70_000, 5), 1, 3, 32, 32), dtype=torch.uint8, device=target.device)
    out = model(video)
    errors = {
        f"rows from {row}": relative_error(out[0][row:][:3], model(video[row:][:3])[0]) for row in (0, len(video) - 3)
    }
    return _worst(errors, 1e-4)


def _training(target: Target) -> dict[str, Any]:
    """Losses of the training loop's updates on the device against the CPU, in float32."""
    from dataclasses import replace

    from trecvit.bench.training import Updates
    from trecvit.processes import Processes

    recipe = recipe_of("nothing", False, 2, Target(target.device, small=True))
    recipe = replace(recipe, optimisation=replace(recipe.optimisation, bf16=False))
    losses: dict[str, list[float]] = {}
    for device in ("cpu", str(target.device)):
        torch.manual_seed(0)
        with TemporaryDirectory() as folder:
            updates = Updates(recipe, Processes(device), Path(folder))
            losses[device] = [float(updates()[0]) for _ in range(3)]
    errors = {
        f"update {index}": abs(got - want) / abs(want)
        for index, (got, want) in enumerate(zip(losses[str(target.device)], losses["cpu"], strict=True))
    }
    return _worst(errors, 1e-3)


def _nccl(target: Target) -> dict[str, Any]:
    """The collectives that training uses, in a job of one process, and a model under DDP and FSDP2."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    from trecvit.processes import joined

    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531"}
    os.environ.update(alone)
    try:
        with joined():
            total = torch.ones(3, device=target.device)
            dist.all_reduce(total)
            dist.barrier()
            model = _classifier(Target(target.device, small=True)).to(target.device)
            video = _inputs(model, 2, 2)[0].to(target.device)
            want = float(model(video)[0].detach().square().sum())
            ddp = DistributedDataParallel(model, device_ids=[target.device] if target.is_cuda else None)
            loss = ddp(video)[0].square().sum()
            loss.backward()
            errors = {"DDP": abs(float(loss.detach()) - want) / want}
            model = _classifier(Target(target.device, small=True)).to(target.device)
            mesh = init_device_mesh(target.device.type, (1,))
            for block in model.blocks:
                fully_shard(block, mesh=mesh)
            sharded: Any = fully_shard(model, mesh=mesh)
            with warnings.catch_warnings():  # of an output that is a view, which is not written to here
                warnings.filterwarnings("ignore", "FSDP2-wrapped module")
                loss = sharded(video)[0].square().sum()
            loss.backward()
            errors["FSDP2"] = abs(float(loss.detach()) - want) / want
        return _worst(errors, 1e-4)
    finally:
        for name in alone:
            os.environ.pop(name, None)
