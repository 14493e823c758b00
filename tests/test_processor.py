"""Features of the processor: queried in one module, on every machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import trecvit
from trecvit import processor


def test_only_one_file_queries():
    queries = r"torch\.cpu\.(_is|get_cap)|get_cpu_capability|_is_mkldnn|backends\.(mkl|mkldnn)\.is_available|_is_amx"
    source = Path(trecvit.__file__).parent
    asking = {path.name for path in source.rglob("*.py") if re.search(queries, path.read_text(encoding="utf-8"))}
    assert asking == {"processor.py"}


def test_features_lists_what_supports_confirms():
    assert processor.features() == [feature for feature in processor.FEATURES if processor.supports(feature)]


@pytest.mark.parametrize("feature", ["bfloat16", "amx", "int8"])
def test_a_torch_without_queries_for_instructions_has_none(feature, monkeypatch):
    for name in [name for name in dir(torch.cpu) if name.startswith("_is_")]:
        monkeypatch.delattr(torch.cpu, name)
    assert processor._try(feature) is False


@pytest.mark.parametrize("feature", processor.FEATURES)
def test_a_build_without_kernels_has_no_feature(feature, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "onednn", torch.ops.no_such_library)
    assert processor._try(feature) is (feature == "amx" and torch.cpu._is_amx_tile_supported())


@pytest.mark.parametrize("library", ["mkldnn", "mkl"])
def test_missing_operations_are_unsupported(library, monkeypatch):
    monkeypatch.setattr(torch.ops, library, torch.ops.no_such_library)
    assert processor._try({"mkldnn": "onednn", "mkl": "mkl"}[library]) is False


def test_sums_that_overflow_are_not_int8(monkeypatch):
    """oneDNN without VNNI saturates; the processor's own flag ignores limits set for oneDNN."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    linear = torch.ops.onednn.qlinear_pointwise

    class Saturating:
        @staticmethod
        def default(*args):
            return linear.default(*args).clamp(max=2**15)

    monkeypatch.setattr(torch.ops.onednn, "qlinear_pointwise", Saturating)
    assert processor._try("int8") is False


def test_an_instruction_set_without_a_query_is_unknown(monkeypatch):
    assert processor.instruction_set() == torch.backends.cpu.get_cpu_capability()
    monkeypatch.delattr(torch.backends.cpu, "get_cpu_capability")
    assert processor.instruction_set() == "unknown"
