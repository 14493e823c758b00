"""Looks into every video of a data set before a training does: what cannot be decoded, is too short, or is there twice.

The outcome of each video goes into a journal as soon as it is known, so a check that was interrupted goes on where it
stopped, and a file that has not changed is never decoded twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trecvit.data.class_names import write_labels
from trecvit.data.folders import is_hidden
from trecvit.data.layouts import Unknown
from trecvit.data.manifest import Manifest, Video
from trecvit.data.path_lists import write_list
from trecvit.errors import DataError, VideoError
from trecvit.files import write_json, write_text
from trecvit.video.decode import open_video
from trecvit.video.sources import FilePart
from trecvit.workers import worker_pool

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was found in one video.

    Attributes:
        name: As in the manifest.
        stamp: Size and time of the file, to notice when it changes.
        num_frames: Frames that could be decoded.
        width_px: Of the upright picture; 0 if there is none.
        height_px: Likewise.
        fps: Average frame rate, or 0 if the file does not tell.
        content: A hash of the file's bytes.
        error: Why it cannot be decoded to its end, or nothing.
    """

    name: str
    stamp: str
    num_frames: int
    width_px: int
    height_px: int
    fps: float
    content: str
    error: str


def check_videos(
    manifest: Manifest,
    folder: str | Path,
    *,
    unknown: Unknown | None = None,
    min_frames: int = 1,
    num_workers: int = 2,
    report: Callable[[int, int], None] = lambda *_: None,
) -> dict[str, Any]:
    """Decodes every video and writes `journal.jsonl`, `report.json` and, for data in files, `clean.txt`.

    `clean.txt` is a `path label` list of what is good, to be trained on. Of files with the same content it has the
    first; if they disagree about the class it has none of them.

    Args:
        manifest: What to check.
        folder: Where to write; one that holds an interrupted check of the same data is continued.
        unknown: Listed videos whose class there is not, as `read_manifest` noted them; they are reported.
        min_frames: What a video must have so as not to be called too short.
        num_workers: Processes that decode.
        report: Called with the number of videos done and the number of failures so far.

    Returns:
        What report.json says.

    Raises:
        DataError: For impossible arguments.
    """
    if min_frames < 1 or num_workers < 1:
        raise DataError(f"expected min_frames >= 1 and num_workers >= 1, got {min_frames} and {num_workers}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = _journal(folder / "journal.jsonl")
    wanted = {video.name: video for video in manifest.videos}
    outcomes = {
        name: outcome
        for name, outcome in outcomes.items()
        if name in wanted and outcome.stamp == _stamp(wanted[name].source)
    }
    failed = sum(1 for outcome in outcomes.values() if outcome.error)
    report(len(outcomes), failed)
    todo = [video for video in manifest.videos if video.name not in outcomes]
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as journal:
        for outcome in _decode_all(todo, num_workers):
            outcomes[outcome.name] = outcome
            failed += bool(outcome.error)
            journal.write(json.dumps(asdict(outcome)) + "\n")
            journal.flush()
            report(len(outcomes), failed)
    summary = _summary(manifest, outcomes, min_frames)
    summary["unknown_class"] = [{"name": name, "class": label} for name, label in unknown or ()]
    write_json(folder / "report.json", summary)
    bad = {entry["name"] for kind in ("failed", "too_short") for entry in summary[kind]}
    for group in summary["duplicates"]:
        bad |= set(group["names"][1:] if group["agree"] else group["names"])
    good = [video for video in manifest.videos if video.name not in bad]
    if not any(isinstance(video.source, FilePart) for video in manifest.videos):
        write_list(folder / "clean.txt", ((str(Path(str(video.source)).absolute()), video.label) for video in good))
        if manifest.labels:
            write_labels(folder / "labels.txt", manifest.labels)
    return summary


def decode_whole(video: Video) -> Outcome:
    """Decodes one video to its end and says what was found; no damage makes it raise."""
    content, num_frames, width_px, height_px, fps, error = "", 0, 0, 0, 0.0, ""
    try:
        content = _hash(video.source)
        with open_video(video.source) as opened:
            info = opened.info
            width_px, height_px, fps = info.width_px, info.height_px, info.rate_fps or 0.0
            for _ in opened.frames(short_side_px=16):
                num_frames += 1
    except VideoError as exc:
        error = exc.reason
    except OSError as exc:
        error = f"the file could not be read: {exc}"
    return Outcome(video.name, _stamp(video.source), num_frames, width_px, height_px, fps, content, error)


def _decode_all(videos: list[Video], num_workers: int) -> Iterator[Outcome]:
    """In parallel, in whatever order they are done. A video that kills its process is an outcome like others."""
    suspects: list[Video] = []
    waiting = deque(videos)
    while waiting:
        with worker_pool(num_workers) as pool:
            running: dict[Future[Outcome], Video] = {}
            try:
                pool.submit(int).result()
            except BrokenProcessPool as exc:
                raise DataError(
                    "no worker process can be started; a script must keep its own calls under `if __name__ == "
                    "'__main__':`, and each worker needs memory of its own"
                ) from exc
            try:
                while waiting or running:
                    while waiting and len(running) < 4 * num_workers:
                        future = pool.submit(decode_whole, waiting[0])
                        running[future] = waiting.popleft()
                    yield from _collect(running)
            except BrokenProcessPool:
                suspects += running.values()
    for video in suspects:
        try:
            with worker_pool(1) as pool:
                yield pool.submit(decode_whole, video).result()
        except BrokenProcessPool:
            yield Outcome(video.name, _stamp(video.source), 0, 0, 0, 0.0, "", "the decoder crashed on it")


def _collect(running: dict[Future[Outcome], Video]) -> Iterator[Outcome]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        outcome = future.result()
        del running[future]
        yield outcome


def _summary(manifest: Manifest, outcomes: dict[str, Outcome], min_frames: int) -> dict[str, Any]:
    label_of = {video.name: video.label for video in manifest.videos}
    same: dict[str, list[str]] = defaultdict(list)
    for video in manifest.videos:
        if not outcomes[video.name].error:
            same[outcomes[video.name].content].append(video.name)
    found = [outcomes[video.name] for video in manifest.videos]
    good = [outcome for outcome in found if not outcome.error]
    per_class = [0] * manifest.num_classes
    for outcome in good:
        if label_of[outcome.name] >= 0:
            per_class[label_of[outcome.name]] += 1
    return {
        "source": manifest.source,
        "listed": len(manifest.videos) + len(manifest.missing),
        "found": len(found),
        "good": len(good),
        "frames": sum(outcome.num_frames for outcome in good),
        "min_frames": min_frames,
        "failed": [{"name": outcome.name, "reason": outcome.error} for outcome in found if outcome.error],
        "too_short": [
            {"name": outcome.name, "frames": outcome.num_frames} for outcome in good if outcome.num_frames < min_frames
        ],
        "duplicates": [
            {"names": names, "agree": len({label_of[name] for name in names}) == 1}
            for names in same.values()
            if len(names) > 1
        ],
        "missing": list(manifest.missing),
        "passed_over": {reason: list(names) for reason, names in manifest.skipped.items()},
        "without_class": sum(label < 0 for label in label_of.values()),
        "classes_without_video": [
            manifest.labels[number] if manifest.labels else str(number)
            for number, count in enumerate(per_class)
            if not count
        ],
    }


def _journal(path: Path) -> dict[str, Outcome]:
    """What an earlier check found; a last line that was cut off by an interruption is nothing."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[-1]:
        write_text(path, "".join(f"{line}\n" for line in lines[:-1]))
    try:
        outcomes: Iterable[Outcome] = [Outcome(**json.loads(line)) for line in lines[:-1]]
    except (TypeError, ValueError) as exc:
        raise DataError(f"{path}: not the journal of a check ({exc}); remove it or give another folder") from exc
    return {outcome.name: outcome for outcome in outcomes}


def _hash(source: Path | FilePart) -> str:
    """Of the bytes of a file, a part of a file, or the names and bytes of a folder's files, read in blocks."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(source, FilePart):
        _add_bytes(digest, source.path, source.start_bytes, source.num_bytes)
    elif source.is_dir():
        for file in sorted(file for file in source.iterdir() if file.is_file() and not is_hidden(file.name)):
            digest.update(os.fsencode(file.name) + b"\0")
            _add_bytes(digest, file)
    else:
        _add_bytes(digest, source)
    return digest.hexdigest()


def _add_bytes(digest: hashlib.blake2b, path: Path, start: int = 0, num_bytes: int | None = None) -> None:
    left = sys.maxsize if num_bytes is None else num_bytes
    with path.open("rb") as file:
        file.seek(start)
        while left and (block := file.read(min(left, _BLOCK_BYTES))):
            digest.update(block)
            left -= len(block)


def _stamp(source: Path | FilePart) -> str:
    path = source.path if isinstance(source, FilePart) else source
    try:
        status = path.stat()
        if path.is_dir():
            status = max((file.stat() for file in path.iterdir()), key=lambda one: one.st_mtime_ns, default=status)
    except OSError:
        return "cannot be read"
    place = f"@{source.start_bytes}" if isinstance(source, FilePart) else ""
    return f"{status.st_size}:{status.st_mtime_ns}{place}"
