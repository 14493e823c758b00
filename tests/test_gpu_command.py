"""`scripts/gpu`: every case in tiny sizes on the CPU, and the command around cases that fail, crash or hang."""

from __future__ import annotations

import json
import os
import sys

import pytest
import torch

from tools.gpu import child, command, correctness, kernels, streaming, training
from tools.gpu.device import Target, copy_bytes_per_s, matmul_flop_per_s
from tools.gpu.results import Results, code_hash
from tools.gpu.stand_in import _Finder

SMALL = Target(torch.device("cpu"), small=True)
FULL = Target(torch.device("cpu"), small=False)
FAKE_TORCH = """
__version__ = "fake"
class Tensor: ...
class device:
    def __init__(self, name): self.type = name
"""
PARTS = {"correctness": correctness, "kernels": kernels, "streaming": streaming, "training": training}


def run(module, wanted):
    for name, case in module.cases(SMALL).items():
        if wanted(name):
            outcome = child._outcome(case)
            assert "failed" not in outcome, (name, outcome)
            assert outcome["result"]["line"], name
            json.dumps(outcome)


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_every_case_runs_in_tiny_sizes(part, monkeypatch):
    monkeypatch.delenv("TAPNET_CLONE", raising=False)
    # The tests that a case runs are tests already.
    run(PARTS[part], lambda name: not name.endswith(" tests"))


@pytest.mark.slow
def test_memory_is_measured_in_tiny_sizes():
    pytest.importorskip("transformers")
    from tools.gpu import memory

    run(memory, lambda name: "bfloat16" in name)


@pytest.mark.slow
def test_a_case_reports_failed_tests():
    good = correctness._tests(["tests/test_scan.py", "-k", "bounded"], SMALL)
    assert (good["passed"], good["failures"]) == (1, {})
    assert "failed" not in good
    nothing = correctness._tests(["tests/test_scan.py", "-k", "no_such_test"], SMALL)
    assert "0 of 0 tests" in nothing["failed"]


def test_full_sizes_are_those_of_the_issue():
    names = set(streaming.cases(FULL))
    assert {"base graphs", "base_k400 eager", "tapnext_b 1024 points graphs", "tapnext_b 256 points compile"} <= names
    recipe = training.recipe_of("nothing", True, 8, FULL)
    assert (recipe.preprocessing.num_frames, recipe.preprocessing.image_size) == (32, (224, 224))
    assert recipe.optimisation.compile
    for part, case, *_ in command.GOALS:
        assert case in PARTS[part].cases(FULL), case


def test_bytes_are_counted_once_per_tensor():
    problem = kernels.Problem((2, 3, 4, 16), torch.bfloat16, SMALL)
    elements, state = 2 * 3 * 4 * 16, 2 * 4 * 16 * 4
    assert problem.forward_bytes == elements * (3 * 2 + 4) + state
    assert problem.backward_bytes == elements * (3 * 2 + 3 * 2 + 4 + 4) + 2 * state


def test_a_large_error_or_one_that_is_no_number_fails():
    assert "failed" not in correctness._worst({"a": 1e-6, "b": 1e-7}, 1e-5)
    assert correctness._worst({"a": 1e-6, "b": 1e-4}, 1e-5)["failed"].startswith("b:")
    assert correctness._worst({"a": float("nan"), "b": 1.0}, 1e-5)["failed"].startswith("a:")


def test_limits_are_positive():
    assert copy_bytes_per_s(SMALL) > 1e6
    assert matmul_flop_per_s(SMALL) > 1e6


def test_results_are_kept_for_the_same_machine_and_code(tmp_path):
    results = Results.read(tmp_path / "part.json", "this machine")
    assert results.left(["a", "b", "c"]) == ["a", "b", "c"]
    results.add("a", {"failed": "no"}, 1.0, {"device": "x"})
    results.add("b", {"result": {"value": 1}}, 1.0, {"device": "x"})
    again = Results.read(tmp_path / "part.json", "this machine")
    assert again.left(["a", "b", "c"]) == ["c", "a"]
    assert Results.read(tmp_path / "part.json", "another").left(["a", "b", "c"]) == ["a", "b", "c"]
    assert code_hash("tools/gpu/kernels.py") != code_hash("tools/gpu/memory.py")


def test_a_missing_package_can_be_imported(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, _Finder("no_such_package")])
    import no_such_package.part.deep as deep
    from no_such_package import Something

    assert issubclass(Something, Exception)
    assert Something.first | Something.second
    assert deep.__name__ == "no_such_package.part.deep"
    for name in [name for name in sys.modules if name.startswith("no_such_package")]:
        del sys.modules[name]


@pytest.mark.slow
def test_cases_that_fail_crash_or_hang_cost_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "MODULE", "tests.gpu_part_{}")
    monkeypatch.setattr(command, "PARTS", {"trial": (1.0, 4.0, ())})
    monkeypatch.setenv("TRIAL_FOLDER", str(tmp_path))
    # Six processes that import no real PyTorch, which would take most of the time.
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(FAKE_TORCH)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))

    def call(*options):
        arguments = ["gpu", "--device", "cpu", "--small", "--to", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            command.main()
        cases = json.loads((tmp_path / "trial.json").read_text())["cases"]
        return ended.value.code, cases, capsys.readouterr().out

    code, cases, out = call("--minutes", "5")
    assert code == 1
    assert {name for name, case in cases.items() if "failed" in case} == {"flaky", "crash", "fatal", "hang", "missed"}
    assert cases["good"]["result"]["value"] == 1
    assert cases["last"]["result"]["value"] == 2
    assert "expected a second time, got the first (gpu_part_trial.py:" in cases["flaky"]["failed"]
    assert "ended with 9" in cases["crash"]["failed"]
    assert "illegal memory access" in cases["fatal"]["failed"]
    assert "stopped after 4 s" in cases["hang"]["failed"]
    assert cases["missed"]["result"]["line"] == "far"
    assert "5 cases failed, 0 not run" in out
    code, cases, out = call("--minutes", "1", "--only", "l")  # good is done; flaky and fatal are tried again
    assert cases["flaky"]["result"]["line"] == "second time"
    assert "good: well" not in out
