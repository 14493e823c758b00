"""Tar shards in WebDataset's layout: a few large files instead of very many small ones."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

from trecvit.data.class_names import write_labels
from trecvit.data.folders import VIDEO_SUFFIXES
from trecvit.data.manifest import Manifest, Video
from trecvit.errors import DataError
from trecvit.video.decode import FilePart


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
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder}: expected a new or an empty folder; remove it or give another")
    for video in manifest.videos:
        if Path(video.source.name).suffix.lower() not in VIDEO_SUFFIXES:
            raise DataError(f"{video.source}: expected a file with one of {' '.join(VIDEO_SUFFIXES)}")
    # Under another name until all is written: what an interrupted run leaves must not look like a smaller data set.
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    names: list[str] = []
    number = 0
    while number < len(manifest.videos):
        names.append(f"shard-{len(names):06d}.tar")
        with tarfile.open(part / names[-1], "w") as tar:
            while number < len(manifest.videos) and tar.offset < shard_bytes:
                _add(tar, manifest.videos[number], number)
                number += 1
                report(number)
    if manifest.labels:
        write_labels(part / "labels.txt", manifest.labels)
    if folder.exists():
        folder.rmdir()
    part.rename(folder)
    return [folder / name for name in names]


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
        raise DataError(f"{source}: could not be read: {exc}; `trecvit data check` finds all such videos") from exc
    label = str(video.label).encode()
    member = tarfile.TarInfo(f"{key}.cls")
    member.size = len(label)
    tar.addfile(member, io.BytesIO(label))
