"""Figures of the recipe `actions`: `benchmarks/actions/` as tables.

The files are those of the commands in docs/notes/actions.md: `split1.json` … are the runs' `evaluation/result.json`, `shipped1.json`
is that of `trecvit eval videos`, `early1.json` … are the shares that `trecvit eval early` prints, and
`false_alarms.json` is of `tools.false_alarms`.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from paper.tables import share, table
from trecvit.train.videos import NOTHING

_FOLDER = Path("benchmarks/actions")
# Means of the three splits, as the papers print them.
_PUBLISHED = {
    "published: dense trajectories (Jhuang et al. 2013)": 56.6,
    "published: P-CNN, pose (Chéron et al. 2015)": 61.1,
}


def card(root: Path) -> dict[str, str]:
    """All figures of the page."""
    texts = [_accuracy(root), _classes(root)]
    if early := _by_split(root, "early"):
        titles = ("after", *next(iter(early.values())))
        texts.append(table(titles, [(f"split {split}", *map(share, parts.values())) for split, parts in early.items()]))
    if (alarms := root / _FOLDER / "false_alarms.json").exists():
        texts.append(_alarms(json.loads(alarms.read_text(encoding="utf-8"))["videos"]))
    return {"actions": "\n\n".join(texts)}


def _accuracy(root: Path) -> str:
    """Accuracy on each measured split and their mean."""
    found = _by_split(root, "split")
    rows = [(f"split {split}", *_row(result)) for split, result in found.items()]
    if len(found) > 1:
        top1 = [result["top1"] for result in found.values()]
        mean = f"{share(statistics.mean(top1))} ± {100 * statistics.stdev(top1):.1f}"
        rows.append((f"mean of {len(found)} splits", "", mean, "", ""))
    if shipped := _by_split(root, "shipped"):
        as_shipped = "in 8 bits, with a constant logit for nothing"
        rows += [(f"split {split}, {as_shipped}", *_row(result)) for split, result in shipped.items()]
    rows += [(name, "", f"{top1} %", "", "") for name, top1 in _PUBLISHED.items()]
    return table(("test clips of", "clips", "top-1", "top-5", "mean class accuracy"), rows)


def _row(result: dict[str, Any]) -> tuple[str, ...]:
    return (str(result["videos"]), *(share(result[name]) for name in ("top1", "top5", "mean_class_accuracy")))


def _classes(root: Path) -> str:
    """Accuracy of each class over all measured splits, the best first."""
    rows: dict[str, list[tuple[int, float, str]]] = {}
    for result in _by_split(root, "split").values():
        for entry in result["per_class"]:
            rows.setdefault(entry["class"], []).append((entry["videos"], entry["top1"], entry["most_taken_for"]))
    means = {
        name: sum(videos * top1 for videos, top1, _ in parts) / sum(videos for videos, _, _ in parts)
        for name, parts in rows.items()
    }
    taken_for = {name: sorted({other for _, _, other in parts if other}) for name, parts in rows.items()}
    ordered = sorted(means, key=lambda name: -means[name])
    titles = ("action", "top-1", "most often taken for, in one of the splits")
    return table(titles, [(name, share(means[name], 0), ", ".join(taken_for[name])) for name in ordered])


def _alarms(videos: list[dict[str, Any]]) -> str:
    rows = [
        (
            entry["video"], f"{entry['seconds']:.0f} s", str(entry["alarms"]), str(entry["per_minute"]),
            ", ".join(f"{name} {count}" for name, count in entry["taken_for"].items()),
        )
        for entry in videos
    ]  # fmt: skip
    return table(("video", "length", f"windows that are not “{NOTHING}”", "per minute", "taken for"), rows)


def _by_split(root: Path, kind: str) -> dict[int, dict[str, Any]]:
    files = {int(path.stem.removeprefix(kind)): path for path in (root / _FOLDER).glob(f"{kind}[123].json")}
    return {split: json.loads(files[split].read_text(encoding="utf-8")) for split in sorted(files)}
