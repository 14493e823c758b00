"""The results page: its tables, written from the result files of the studies and from nothing else.

The page's words are written by hand and say what the paper reports. Between marks stand the tables of what was measured
here, or that it was not. Each is rebuilt from its file, so a figure that is in none of them does not stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from trecvit.errors import DataError

COMMAND = "trecvit study report"
_END = "<!-- end of figures -->"


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def share(value: float, digits: int = 1) -> str:
    """Of 1, in percent."""
    return f"{100 * value:.{digits}f} %"


def on(machine: dict[str, Any]) -> str:
    """Where and when something was measured."""
    return f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}"


def fill(page: str, name: str, text: str, *, by: str) -> str:
    """The page with another text between the marks of that name.

    Args:
        page: The whole page.
        name: Of the marks.
        text: What goes between them.
        by: The command that the opening mark names.

    Raises:
        DataError: when there is not exactly one pair of such marks.
    """
    marks = rf"(<!-- {re.escape(by)}: {re.escape(name)} -->\n).*?\n?({re.escape(_END)})"
    filled, count = re.subn(marks, lambda found: found[1] + text + "\n" + found[2], page, flags=re.DOTALL)
    if count != 1:
        raise DataError(f"expected one pair of marks `<!-- {by}: {name} -->` … `{_END}`, found {count}")
    return filled


def write_page(page: Path, benchmarks: Path) -> bool:
    """Rebuilds the page's tables; says whether anything on it changed.

    Args:
        page: Markdown with marks.
        benchmarks: Folder of the result files.

    Raises:
        DataError: when a mark is not there.
    """
    before = page.read_text(encoding="utf-8")
    after = rebuilt(before, benchmarks)
    page.write_text(after, encoding="utf-8")
    return after != before


def rebuilt(page: str, benchmarks: Path) -> str:
    """The page's text with all tables written anew, see `write_page`."""
    for name, (file, build) in _SECTIONS.items():
        path = benchmarks / file
        text = f"Not measured yet: there is no `benchmarks/{file}`."
        if path.exists():
            text = build(json.loads(path.read_text(encoding="utf-8")))
        page = fill(page, name, text, by=COMMAND)
    return page


def first_difference(page: str, other: str) -> str:
    """The first line that two versions of a page do not share, as words."""
    ours, theirs = page.split("\n"), other.split("\n")
    number = next((at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
    said, expected = (lines[number] if number < len(lines) else "nothing" for lines in (ours, theirs))
    return f"line {number + 1} says {said!r}, the result files {expected!r}"


# ---- the tables ----------------------------------------------------------------------------------------------------


def _comparison(name: str) -> Callable[[dict[str, Any]], str]:
    def build(content: dict[str, Any]) -> str:
        lines, timed = [], name == "Table 2"
        for row in content["rows"]:
            if row["table"] == name:
                paper = "" if row["paper_top1"] is None else row["paper_top1"]
                spread = "" if row["top1_deviation"] is None else f" ± {share(row['top1_deviation'])}"
                line = [row["label"], paper, share(row["top1"]) + spread, f"{row['parameters'] / 1e6:.2f} M"]
                lines.append([*line, row["paper_steps_per_s"], f"{row['steps_per_s']:.1f}"] if timed else line)
        titles = ["", "paper, top-1 on SSv2", "here, top-1 of 18", "parameters"]
        written = table([*titles, "paper, steps/s", "here, steps/s"] if timed else titles, lines)
        return f"{written}\n\n{content['scale']}; {on(content['machine'])}."

    return build


def _costs(content: dict[str, Any]) -> str:
    costs = {(cost["model"], cost["num_frames"]): cost for cost in content["costs"]}
    lines = []
    for said in content["paper"]:
        cost = costs[said["model"], said["num_frames"]]
        ours = (cost["parameters"] / 1e6, cost["inference_flop"] / 1e12, cost["inference_bytes"] / 1e9)
        pairs = zip((said["parameters_m"], said["tflop"], said["gb"]), ours, strict=True)
        cells = [cell for paper, here in pairs for cell in ("" if paper is None else paper, f"{here:.2f}")]
        lines.append([said["model"], said["num_frames"], *cells])
    titles = [
        "",
        "frames",
        *(f"{what}, {who}" for what in ("M parameters", "TFLOP", "GB") for who in ("paper", "here")),
    ]
    return table(titles, lines) + f"\n\ntorch {content['torch']}."


def _points(content: dict[str, Any]) -> str:
    metrics = ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy")
    lines = [
        (one["test"], one["tracker"], *(share(one["metrics"][metric]) for metric in metrics))
        for one in content["scores"]
    ]
    return table(("videos", "tracker", "average Jaccard", "δ-average", "occlusion accuracy"), lines)


def _frozen(content: dict[str, Any]) -> str:
    lines = [
        (row["probe"], row["features"], f"{share(row['mean'])} ± {share(row['deviation'])}") for row in content["rows"]
    ]
    return table(("probe", "features", "top-1 of 18"), lines) + (
        f"\n\n{content['encoder_parameters'] / 1e6:.2f} M parameters; torch {content['protocol']['torch']}."
    )


_SECTIONS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    **{f"Table {number}": ("ablations/result.json", _comparison(f"Table {number}")) for number in (1, 2, 13, 14, 15)},
    "Figure 4": ("from_scratch/result.json", _comparison("Figure 4")),
    "Table 3": ("efficiency/efficiency.json", _costs),
    "Table 5": ("frozen.json", _frozen),
    "Table 7": ("points.json", _points),
}
