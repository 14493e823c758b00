"""Fingerprints of a run's data: a few numbers that reveal other data and name the difference.

A fingerprint is {"files": number of files, "classes": {class: number of files}, "sha256": hash of names, classes and
sizes}. Rendered clips have none: the recipe determines them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trecvit.data.folders import is_hidden
from trecvit.data.manifest import Manifest

_NO_CLASS = "without a class"
_NAMED = 5  # classes in a message


def difference(before_by_split: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the difference between a task's fingerprints then and now; empty if they are the same."""
    words = []
    for split in dict.fromkeys([*before_by_split, *now]):
        before, after = before_by_split.get(split), now.get(split)
        if before is None or after is None:
            words.append(f"{split} data that {'were not there' if before is None else 'are gone'}")
        elif before["sha256"] != after["sha256"]:
            words.append(f"{split} data: {_split_difference(before, after)}")
    return "; ".join(words)


def _split_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    counts = [fingerprint["classes"] for fingerprint in (before, after)]
    classes = [name for name in dict.fromkeys([*counts[0], *counts[1]]) if counts[0].get(name) != counts[1].get(name)]
    words = [] if before["files"] == after["files"] else [f"{before['files']} files before, {after['files']} now"]
    for name in classes[:_NAMED]:
        if name not in counts[1]:
            words.append(f"class {name!r} is gone")
        elif name not in counts[0]:
            words.append(f"class {name!r} is new ({counts[1][name]})")
        else:
            words.append(f"class {name!r} {counts[0][name]} before, {counts[1][name]} now")
    if len(classes) > _NAMED:
        words.append(f"and {len(classes) - _NAMED} more classes")
    same_counts = f"{after['files']} files as before, as many in each class, but other names, sizes or classes"
    return ", ".join(words) or same_counts


def videos_fingerprint(manifest: Manifest) -> dict[str, Any]:
    """Fingerprint of videos, and of their classes if they have any."""
    counts = Counter(video.label for video in manifest.videos)
    names = dict(enumerate(manifest.labels))
    # Also classes without a video: each is an output of the model.
    classes = {
        names.get(label, str(label)): counts[label] for label in range(len(names) or max(counts, default=-1) + 1)
    }
    if counts[-1]:
        classes[_NO_CLASS] = counts[-1]
    return {"files": len(manifest.videos), "classes": classes, "sha256": manifest.digest()}


def files_fingerprint(folder: str) -> dict[str, Any]:
    """Fingerprint of the files of a folder and of its subfolders, hidden ones excepted."""
    root = Path(folder)
    names = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    files = [name for name in names if not any(map(is_hidden, name.parts))]
    lines = "".join(f"{name.as_posix()}\0{(root / name).stat().st_size}\n" for name in files)
    digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    return {"files": len(files), "classes": {}, "sha256": digest}
