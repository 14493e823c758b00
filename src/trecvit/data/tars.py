"""Reading tar shards in WebDataset's layout by their headers."""

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
    """The content of one tar.

    Attributes:
        videos: Each video's part of the file, by key.
        classes: Class indices by key, where stated.
        skipped: Names of skipped members by reason; see `trecvit.data.folders.passed_over`.
    """

    videos: dict[str, FilePart] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def read_tar(path: Path) -> Tar:
    """List the videos of a tar and their class indices: members `{key}.mp4` and `{key}.cls`.

    A key ends at the first dot of a file name, as in WebDataset; where that would give two videos one key, or a `.cls`
    has the longer name, it ends at the video's suffix. Hidden members and members that are not videos are skipped. A
    truncated tar gives its complete videos.

    Raises:
        DataError: The file is not a tar, a class is not a number, or two videos have one key.
    """
    tar = Tar()
    videos: dict[str, FilePart] = {}
    try:
        num_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
        if head[257:262] != b"ustar" and (kind := kind_of(head)):
            raise DataError(f"{path}: expected {_EXPECTED}, got {kind}")
        with tarfile.open(path, "r:") as archive:
            try:
                for member in archive:
                    _take(tar, videos, path, archive, member, num_bytes)
            except tarfile.ReadError:
                pass  # members before the cut are sound: every header has a checksum
            if not _has_end_mark(path, archive.offset):
                tar.skipped["cut_short"].append(path.name)
    except (OSError, tarfile.TarError) as exc:
        raise DataError(f"{path}: expected {_EXPECTED}: {exc}") from exc
    _name_by_key(tar, videos)
    return tar


def _take(
    tar: Tar,
    videos: dict[str, FilePart],
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
    # The data of a sparse file is not contiguous.
    if not member.isreg() or member.issparse():
        tar.skipped["odd_members"].append(f"{path.name}:{name}")
    elif member.offset_data + member.size > num_bytes:
        tar.skipped["cut_off"].append(f"{path.name}:{name}")
    elif suffix.lower() == "cls":
        content = _content(archive, member, 32)
        if not re.fullmatch(rb"\s*(-1|[0-9]+)\s*", content):
            raise DataError(f"{path}: expected {_EXPECTED}, got {content!r} as the class index in {name}")
        tar.classes[stem] = int(content)
    elif is_video(name, _content(archive, member, 32) if suffix.lower() == "webp" else None):
        if stem in videos:
            raise DataError(f"{path}: expected one video per key, got {videos[stem].name} and {name}; rename one")
        videos[stem] = FilePart(path, member.offset_data, member.size, name=name)
    else:
        tar.skipped["not_videos"].append(f"{path.name}:{name}")


def _has_end_mark(path: Path, offset: int) -> bool:
    """Test for the end mark of a tar at this offset: tarfile also stops at a damaged header."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, num_bytes: int) -> bytes:
    file = archive.extractfile(member)
    return file.read(num_bytes) if file is not None else b""


def _name_by_key(tar: Tar, videos: dict[str, FilePart]) -> None:
    keys = {stem: _key(stem) for stem in videos}
    num_videos = Counter(keys.values())
    for stem, part in videos.items():
        key = keys[stem]
        label = tar.classes.get(stem, tar.classes.get(key))
        name = key if stem not in tar.classes and num_videos[key] == 1 else stem
        tar.videos[name] = part
        if label is not None:
            tar.classes[name] = label


def _key(stem: str) -> str:
    """Apply WebDataset's rule: the key ends at the first dot of the file name."""
    folder, slash, file = stem.rpartition("/")
    return folder + slash + file.partition(".")[0]
