"""What data a run is of, in few numbers: enough to notice other data, and to name what differs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trecvit.data.folders import is_hidden
from trecvit.data.layouts import read_manifest
from trecvit.data.manifest import Manifest
from trecvit.train.recipe import Recipe

_NO_CLASS = "without a class"
_NAMED = 5  # classes that a message names


def data_of(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The files that a run reads: {"training": ..., "validation": ..., "pictures": ...}, as plain JSON values.

    Each has the number of files, the number in each class, and a hash of names, classes and sizes. What the synthetic
    world renders is determined by the recipe and is not in it.
    """
    found: dict[str, dict[str, Any]] = {}
    if recipe.videos is not None:
        sources = {"training": recipe.videos.train, "validation": recipe.videos.validation}
        for split, source in sources.items():
            if source is not None:
                manifest = read_manifest(source)
                found[split] = _of_videos(manifest.unlabelled() if recipe.mae or recipe.memory else manifest)
    folders: dict[str, str] = {}
    if recipe.tracks is not None:
        folders = {"training": recipe.tracks.files, "validation": recipe.tracks.validation_files}
    world = recipe.scenes or recipe.tracks
    folders["pictures"] = world.pictures if world is not None else ""
    return found | {split: _of_files(Path(folder)) for split, folder in folders.items() if folder}


def difference(began_with: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """In words what differs between two summaries by `data_of`; nothing if they are the same."""
    words = []
    for split in dict.fromkeys([*began_with, *now]):
        before, after = began_with.get(split), now.get(split)
        if before is None or after is None:
            words.append(f"{split} data that {'were not there' if before is None else 'are gone'}")
        elif before["sha256"] != after["sha256"]:
            words.append(f"{split} data: {_difference_of_one(before, after)}")
    return "; ".join(words)


def _difference_of_one(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    counts = [summary["classes"] for summary in (before, after)]
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


def _of_videos(manifest: Manifest) -> dict[str, Any]:
    counts = Counter(video.label for video in manifest.videos)
    names = dict(enumerate(manifest.labels))
    # Also classes without a video: each decides what the model's outputs are.
    classes = {
        names.get(label, str(label)): counts[label] for label in range(len(names) or max(counts, default=-1) + 1)
    }
    if counts[-1]:
        classes[_NO_CLASS] = counts[-1]
    return {"files": len(manifest.videos), "classes": classes, "sha256": manifest.digest()}


def _of_files(folder: Path) -> dict[str, Any]:
    entries = folder.iterdir() if folder.is_dir() else ()
    files = sorted(path for path in entries if path.is_file() and not is_hidden(path.name))
    lines = "".join(f"{path.name}\0{path.stat().st_size}\n" for path in files)
    digest = hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()
    return {"files": len(files), "classes": {}, "sha256": digest}
