"""Frequencies of four word families in docstrings, comments and documents: `python -m tools.wording [PATH ...]`.

Each family stands for roundabout English, where an established term would be shorter. Paths are folders, Python files
and Markdown files; by default `src`. `--against REVISION` shows a git revision's frequencies beside them.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

FAMILIES = {
    "what is": r"what (?:is|a|an|it)",
    "say": r"say(?:s|ing)?|said|tell(?:s|ing)?|told|ask(?:s|ed|ing)?|speak(?:s|ing)?|spoken?",
    "come": r"comes?|coming|came",
    "nothing": r"nothing",
}
_PATTERNS = {name: re.compile(rf"\b(?:{pattern})\b") for name, pattern in FAMILIES.items()}
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_WORST = 15


def prose(path: PurePosixPath, text: str) -> str:
    """Select a document's text: docstrings and comments of Python, all of Markdown but its code blocks."""
    if path.suffix == ".md":
        return re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    # Docstrings of attributes too: every string that stands as a statement.
    docstrings = [
        node.value.value
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return "\n".join(docstrings + comments)


def count(text: str) -> Counter[str]:
    """Count the words and the members of each family."""
    text = re.sub(r"\s+", " ", text.lower())
    counts = Counter({name: len(pattern.findall(text)) for name, pattern in _PATTERNS.items()})
    counts["words"] = len(_WORD.findall(text))
    return counts


def room(path: PurePosixPath) -> str:
    """Name the folder that a file belongs to: `src/trecvit/model`, `paper`, `docs`."""
    return "/".join(path.parts[: 3 if path.parts[0] == "src" else 1][: len(path.parts) - 1]) or "."


def summarise(files: Iterable[tuple[PurePosixPath, Counter[str]]]) -> list[tuple[str, Counter[str]]]:
    """Group counts: the total, each room, then the files with the most members."""
    files = list(files)
    rooms: dict[str, Counter[str]] = {}
    for path, counts in files:
        rooms.setdefault(room(path), Counter()).update(counts)
    worst = sorted(files, key=lambda file: -_members(file[1]))[:_WORST]
    total = sum((counts for _, counts in files), Counter())
    return [("total", total), *sorted(rooms.items()), *((str(path), counts) for path, counts in worst)]


def format_table(rows: Iterable[tuple[str, Counter[str]]], before: dict[str, Counter[str]] | None = None) -> str:
    """Format counts as lines: each family's frequency, beside an older revision's, and the number of words."""
    lines = [f"{'per 1,000 words':44}" + "".join(f"{name:>14}" for name in (*FAMILIES, "words"))]
    for name, counts in rows:
        old = (before or {}).get(name)
        cells = [f"{_rate(old, family) + ' → ' if old else ''}{_rate(counts, family)}" for family in FAMILIES]
        lines.append(f"{name:44}" + "".join(f"{cell:>14}" for cell in (*cells, f"{counts['words']:,}")))
    return "\n".join(lines)


def _members(counts: Counter[str]) -> int:
    return sum(counts[family] for family in FAMILIES)


def _rate(counts: Counter[str], family: str) -> str:
    return f"{1000 * counts[family] / max(counts['words'], 1):.1f}"


def _working_tree(paths: Iterable[str]) -> Iterator[tuple[PurePosixPath, str]]:
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise SystemExit(f"expected a file or folder, got {name}")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix in (".py", ".md"):
                yield PurePosixPath(file), file.read_text(encoding="utf-8")


def _revision(revision: str, paths: Iterable[str]) -> Iterator[tuple[PurePosixPath, str]]:
    for name in _git("ls-tree", "-r", "--name-only", "-z", revision, "--", *paths).split("\0"):
        if name.endswith((".py", ".md")):
            yield PurePosixPath(name), _git("show", f"{revision}:./{name}")


def _git(*words: str) -> str:
    return subprocess.check_output(["git", *words], text=True, encoding="utf-8")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tools.wording", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="*", default=["src"], help="folders, Python and Markdown files; default: src")
    parser.add_argument("--against", metavar="REVISION", help="show a git revision's rates before today's")
    args = parser.parse_args()
    rows = summarise((path, count(prose(path, text))) for path, text in _working_tree(args.paths))
    before = None
    if args.against:
        files = [(path, count(prose(path, text))) for path, text in _revision(args.against, args.paths)]
        before = dict(summarise(files)) | {str(path): counts for path, counts in files}
    print(format_table(rows, before))


if __name__ == "__main__":
    main()
