"""Writing tar shards in WebDataset's layout: a few large files instead of many small ones."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

from trecvit.data.class_names import write_labels
from trecvit.data.manifest import Manifest, Video
from trecvit.errors import DataError
from trecvit.files import emptied_on_error, empty, is_empty, only_writer, storage_error, writing
from trecvit.video.frames import VIDEO_SUFFIXES
from trecvit.video.sources import FilePart


def write_shards(
    manifest: Manifest,
    folder: str | Path,
    *,
    shard_bytes: int = 1_000_000_000,
    report: Callable[[int], None] = lambda _: None,
) -> list[Path]:
    """Write `shard-000000.tar` … and `labels.txt`, with the videos' bytes unchanged.

    A video becomes the members `{key}.mp4`, with its own suffix, and `{key}.cls`, its class index as text. The key is
    its position in the manifest and its name, without characters that WebDataset would misread. Dates and owners are
    left out, so that the same data give the same bytes.

    Args:
        manifest: The videos.
        folder: A new or empty folder.
        shard_bytes: Size at which a shard is closed.
        report: Called with the number of videos written so far.

    Raises:
        DataError: The folder is not empty, a video is a folder of frames, or a file cannot be read.
    """
    folder = Path(folder)
    if not is_empty(folder):
        raise DataError(f"{folder}: expected a new or empty folder; remove it or choose another")
    for video in manifest.videos:
        if Path(video.source.name).suffix.lower() not in VIDEO_SUFFIXES:
            raise DataError(f"{video.source}: expected a file with a suffix of {' '.join(VIDEO_SUFFIXES)}")
    # Renamed at the end: an interrupted run must not leave what looks like a smaller data set.
    part = folder.with_name(folder.name + ".part")
    with only_writer(part), emptied_on_error(part):
        empty(part)
        names = _write_all(manifest, part, shard_bytes, report)
    if folder.exists():
        folder.rmdir()
    part.rename(folder)
    return [folder / name for name in names]


def _write_all(manifest: Manifest, folder: Path, shard_bytes: int, report: Callable[[int], None]) -> list[str]:
    """Write all files of a data set and return the names of the shards."""
    names: list[str] = []
    number = 0
    while number < len(manifest.videos):
        names.append(f"shard-{len(names):06d}.tar")
        path = folder / names[-1]
        with writing(path), tarfile.open(path, "w") as tar:
            while number < len(manifest.videos) and tar.offset < shard_bytes:
                _add(tar, manifest.videos[number], number)
                number += 1
                report(number)
    if manifest.labels:
        write_labels(folder / "labels.txt", manifest.labels)
    return names


def _add(tar: tarfile.TarFile, video: Video, number: int) -> None:
    source = video.source
    stem = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in Path(video.name).stem)
    key = f"{number:09d}_{stem[:80]}"
    member = tarfile.TarInfo(f"{key}{Path(source.name).suffix.lower()}")
    try:
        # Copied in blocks: a video may not fit into memory.
        if isinstance(source, FilePart):
            member.size = source.num_bytes
            with source.path.open("rb") as file:
                file.seek(source.start_bytes)
                tar.addfile(member, file)
        else:
            member.size = source.stat().st_size
            with source.open("rb") as file:
                tar.addfile(member, file)
    except OSError as exc:
        if storage_error(exc) is not None:  # an error of the shard, not of the video
            raise
        raise DataError(
            f"{source}: expected a readable file: {exc}; find all such videos with `trecvit data check`"
        ) from exc
    label = str(video.label).encode()
    member = tarfile.TarInfo(f"{key}.cls")
    member.size = len(label)
    tar.addfile(member, io.BytesIO(label))
