"""Maintainers' tools: bundling, damage, word frequencies."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

import pytest
import safetensors.torch
import torch
from models import tiny_model

from tools.bundle import bundle
from tools.damage import damage
from tools.wording import count, format_table, prose, summarise
from trecvit.weights.load import load

MODULE = '''
"""What is said here
comes to nothing."""
TEXT = "nothing in strings of code"
WIDTH = 3
"""Attributes speak too."""  # told in a comment, nothing more
'''


def test_words_of_docstrings_and_comments_are_counted():
    counts = count(prose(PurePosixPath("paper/module.py"), MODULE))
    assert counts == {"what is": 1, "say": 3, "come": 1, "nothing": 2, "words": 16}


def test_code_blocks_of_documents_are_not_counted():
    text = "It came.\n<!-- nothing -->\n```\nnothing\n```\nNothing."
    assert count(prose(PurePosixPath("README.md"), text)) == {
        "what is": 0,
        "say": 0,
        "come": 1,
        "nothing": 1,
        "words": 3,
    }


def test_frequencies_are_printed_in_total_and_by_room():
    files = [
        (PurePosixPath("src/trecvit/model/lru.py"), count("What is " + "word " * 498)),
        (PurePosixPath("README.md"), count("nothing " + "word " * 499)),
    ]
    rows = summarise(files)
    assert [name for name, _ in rows] == ["total", ".", "src/trecvit/model", files[0][0].as_posix(), "README.md"]
    total = format_table(rows, {"total": count("nothing nothing " + "word " * 998)}).splitlines()[1]
    assert " ".join(total.split()) == "total 0.0 → 1.0 0.0 → 0.0 0.0 → 0.0 2.0 → 1.0 1,000"


@pytest.mark.parametrize("which", ["model", "best"])
def test_a_run_is_bundled_in_half_precision_with_its_records(tmp_path, which):
    run, root = tmp_path / "run", tmp_path / "checkout"
    (root / "benchmarks" / "training").mkdir(parents=True)
    tiny_model().save(run / which)
    (run / "evaluation").mkdir()
    (run / "evaluation" / "result.json").write_text('{"top1": 0.4}')
    (run / "validation.jsonl").write_text('{"step": 1, "top1": 0.6}\n{"step": 2, "top1": 0.5}\n')
    for file in ("metrics.jsonl", "run.json"):
        (run / file).write_text(file)
    folder = bundle("named", "a_recipe", run, which, root=root)
    assert folder == root / "src/trecvit/weights/named"
    model = load(folder)
    assert model.provenance["recipe"] == "src/trecvit/recipes/a_recipe.yaml"
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    records = root / "benchmarks" / "training"
    assert (records / "a_recipe.metrics.jsonl").read_text() == "metrics.jsonl"
    assert json.loads((records / "a_recipe.result.json").read_text())["top1"] == {"model": 0.4, "best": 0.6}[which]


def test_every_nth_file_is_damaged_in_one_of_three_ways(tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.mp4").write_bytes(b"12345678")
    assert [path.name for path in damage(tmp_path, 2)] == ["1.mp4", "3.mp4", "5.mp4", "7.mp4"]
    contents = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    whole = b"12345678"
    assert contents == [whole, b"", whole, b"1234", whole, b"1234\0\x0078", whole, b"", whole]
