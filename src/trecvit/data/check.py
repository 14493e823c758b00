"""A check of every video of a data set before training: undecodable, too short or duplicate videos.

Each video's outcome is appended to a journal at once, so an interrupted check resumes, and an unchanged file is never
decoded twice.
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
    """The result of checking one video.

    Attributes:
        name: As in the manifest.
        stamp: Size and modification time of the file, to detect changes.
        num_frames: Number of decoded frames.
        width_px: Of the upright picture; 0 if no frame could be decoded.
        height_px: See `width_px`.
        fps: Average frame rate, or 0 if unknown.
        content: A hash of the file's bytes.
        error: Why it cannot be decoded to its end, or empty.
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
    """Decode every video and write `journal.jsonl`, `report.json` and, for data in files, `clean.txt`.

    `clean.txt` is a `path label` list of the good videos, for training. Of files with the same content it has the
    first, or none if their classes differ.

    Args:
        manifest: The videos to check.
        folder: Output folder; an interrupted check of the same data is resumed there.
        unknown: Listed videos of unknown classes, as collected by `read_manifest`; they are reported.
        min_frames: Videos with fewer frames count as too short.
        num_workers: Number of decoding processes.
        report: Called with the number of videos done and the number of failures so far.

    Returns:
        The content of report.json.

    Raises:
        DataError: For impossible arguments, or a folder whose journal is not one.
    """
    if min_frames < 1 or num_workers < 1:
        raise DataError(f"expected min_frames >= 1 and num_workers >= 1, got {min_frames} and {num_workers}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = _journal(folder / "journal.jsonl")
    listed = {video.name: video for video in manifest.videos}
    outcomes = {
        name: outcome
        for name, outcome in outcomes.items()
        if name in listed and outcome.stamp == _stamp(listed[name].source)
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
    """Decode one video to its end; damage is part of the outcome and raises no error."""
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
    """Decode in parallel and yield outcomes as they finish; a video that kills its process gives an outcome too."""
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
    checked = [outcomes[video.name] for video in manifest.videos]
    good = [outcome for outcome in checked if not outcome.error]
    per_class = [0] * manifest.num_classes
    for outcome in good:
        if label_of[outcome.name] >= 0:
            per_class[label_of[outcome.name]] += 1
    return {
        "source": manifest.source,
        "listed": len(manifest.videos) + len(manifest.missing),
        "found": len(checked),
        "good": len(good),
        "frames": sum(outcome.num_frames for outcome in good),
        "min_frames": min_frames,
        "failed": [{"name": outcome.name, "reason": outcome.error} for outcome in checked if outcome.error],
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
    """Read the outcomes of an earlier check; an incomplete last line is dropped."""
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[-1]:
        write_text(path, "".join(f"{line}\n" for line in lines[:-1]))
    try:
        outcomes: Iterable[Outcome] = [Outcome(**json.loads(line)) for line in lines[:-1]]
    except (TypeError, ValueError) as exc:
        raise DataError(f"{path}: expected the journal of a check: {exc}; remove it or choose another folder") from exc
    return {outcome.name: outcome for outcome in outcomes}


def _hash(source: Path | FilePart) -> str:
    """Hash the bytes of a file or a part of one, or the names and bytes of a folder's files."""
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
            status = max(
                (file.stat() for file in path.iterdir()),
                key=lambda file_status: file_status.st_mtime_ns,
                default=status,
            )
    except OSError:
        return "cannot be read"
    place = f"@{source.start_bytes}" if isinstance(source, FilePart) else ""
    return f"{status.st_size}:{status.st_mtime_ns}{place}"
