"""Tar shards in WebDataset's layout, read by their headers alone."""

from __future__ import annotations

import re
import tarfile
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trecvit.data.folders import is_hidden, is_video
from trecvit.data.text import kind_of
from trecvit.errors import DataError
from trecvit.video.sources import FilePart

_EXPECTED = "a tar of videos and their classes"


@dataclass
class Tar:
    """What one tar holds.

    Attributes:
        videos: Where each video lies, by its key.
        classes: The number of the class of each key that states one.
        skipped: Names of what was passed over, by the reason; see `trecvit.data.folders.passed_over`.
    """

    videos: dict[str, FilePart] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def read_tar(path: Path) -> Tar:
    """Finds the videos of a tar and the numbers of their classes, members `{key}.mp4` and `{key}.cls`.

    A key ends at the first dot of a file's name, as in WebDataset; where this would give two videos one key, or there
    is a `.cls` of the longer name, it ends at the video's suffix. Hidden members, what macOS adds, and members that are
    no videos are passed over. Of a tar that is cut short, the whole videos are taken.

    Raises:
        DataError: For a file that is no tar, a class that is no number, or two videos of one key.
    """
    tar = Tar()
    found: dict[str, FilePart] = {}
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
        if head[257:262] != b"ustar" and (kind := kind_of(head)):
            raise DataError(f"{path}: expected {_EXPECTED}, got {kind}")
        with tarfile.open(path, "r:") as archive:
            try:
                for member in archive:
                    _take(tar, found, path, archive, member, num_bytes)
            except tarfile.ReadError:
                pass  # what lies before the cut is sound: every header has a check sum
            if not _ends_here(path, archive.offset):
                tar.skipped["cut_short"].append(path.name)
    except (OSError, tarfile.TarError) as exc:
        raise DataError(f"{path}: expected {_EXPECTED}: {exc}") from exc
    _name_by_key(tar, found)
    return tar


def _take(
    tar: Tar,
    found: dict[str, FilePart],
    path: Path,
    archive: tarfile.TarFile,
    member: tarfile.TarInfo,
    num_bytes: int,
) -> None:
    parts = [part for part in PurePosixPath(member.name).parts if part not in ("/", ".")]
    if member.isdir() or not parts:
        return
    name = "/".join(parts)
    if any(is_hidden(part) for part in parts):
        tar.skipped["hidden"].append(f"{path.name}:{name}")
        return
    stem, _, suffix = name.rpartition(".")
    # The parts of a sparse file do not lie where those of others do.
    if not member.isreg() or member.issparse():
        tar.skipped["odd_members"].append(f"{path.name}:{name}")
    elif member.offset_data + member.size > num_bytes:
        tar.skipped["cut_off"].append(f"{path.name}:{name}")
    elif suffix.lower() == "cls":
        content = _content(archive, member, 32)
        if not re.fullmatch(rb"\s*(-1|[0-9]+)\s*", content):
            raise DataError(f"{path}: expected {_EXPECTED}: {name} holds {content!r}, not the number of a class")
        tar.classes[stem] = int(content)
    elif is_video(name, _content(archive, member, 32) if suffix.lower() == "webp" else None):
        if stem in found:
            raise DataError(f"{path}: {name} is a second video of its key; rename one of the two")
        found[stem] = FilePart(path, member.offset_data, member.size, name=name)
    else:
        tar.skipped["not_videos"].append(f"{path.name}:{name}")


def _ends_here(path: Path, place: int) -> bool:
    """Whether the mark of a tar's end is at this byte; tarfile stops at any damaged header as if it were the end."""
    with path.open("rb") as file:
        file.seek(place)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, num_bytes: int) -> bytes:
    file = archive.extractfile(member)
    return file.read(num_bytes) if file is not None else b""


def _name_by_key(tar: Tar, found: dict[str, FilePart]) -> None:
    keys = {stem: _key(stem) for stem in found}
    of_key = Counter(keys.values())
    for stem, part in found.items():
        key = keys[stem]
        label = tar.classes.get(stem, tar.classes.get(key))
        name = key if stem not in tar.classes and of_key[key] == 1 else stem
        tar.videos[name] = part
        if label is not None:
            tar.classes[name] = label


def _key(stem: str) -> str:
    """WebDataset's rule: the key ends at the first dot of the file's own name."""
    folder, slash, file = stem.rpartition("/")
    return folder + slash + file.partition(".")[0]
