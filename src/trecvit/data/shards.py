"""Tar shards in WebDataset's layout: a few large files instead of very many small ones."""

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
    """Writes `shard-000000.tar` … and `labels.txt`. The videos' bytes are kept as they are.

    Each video becomes the members `{key}.mp4`, under its own suffix, and `{key}.cls`, the number of its class as text;
    the key is its place in the manifest and its name, with everything that WebDataset would misread replaced. Dates
    and owners are left out, so that the same data give the same bytes.

    Args:
        manifest: What to pack.
        folder: A new or an empty one.
        shard_bytes: A shard is closed once it is as long as this.
        report: Called with the number of videos written.

    Raises:
        DataError: For a folder that is not empty, folders of frames, or a file that cannot be read.
    """
    folder = Path(folder)
    if not is_empty(folder):
        raise DataError(f"{folder}: expected a new or an empty folder; remove it or give another")
    for video in manifest.videos:
        if Path(video.source.name).suffix.lower() not in VIDEO_SUFFIXES:
            raise DataError(f"{video.source}: expected a file with one of {' '.join(VIDEO_SUFFIXES)}")
    # Under another name until all is written: what an interrupted run leaves must not look like a smaller data set.
    part = folder.with_name(folder.name + ".part")
    with only_writer(part), emptied_on_error(part):
        empty(part)
        names = _write_all(manifest, part, shard_bytes, report)
    if folder.exists():
        folder.rmdir()
    part.rename(folder)
    return [folder / name for name in names]


def _write_all(manifest: Manifest, folder: Path, shard_bytes: int, report: Callable[[int], None]) -> list[str]:
    """Writes all files of a data set and returns the names of the shards."""
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
        # In blocks: a video may be larger than the memory.
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
        if storage_error(exc) is not None:  # of the shard, not of the video
            raise
        raise DataError(f"{source}: could not be read: {exc}; `trecvit data check` finds all such videos") from exc
    label = str(video.label).encode()
    member = tarfile.TarInfo(f"{key}.cls")
    member.size = len(label)
    tar.addfile(member, io.BytesIO(label))
