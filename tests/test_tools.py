"""Maintainers' tools: word frequencies."""

from __future__ import annotations

from pathlib import PurePosixPath

from tools.wording import count, format_table, prose, summarise

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
