"""Data sets as people have them on disk, brought to one form: a list of videos with the numbers of their classes.

Kinetics (the official csv), Something-Something-v2 (its JSON lists), `path label` lists as SlowFast, VideoMAE and
V-JEPA read them, a folder per class, and tar shards as WebDataset writes them. Nothing is decoded here: a manifest says
what there should be and which files are there; `trecvit.data.check` looks into them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from trecvit.config import nearest, refuse_unknown
from trecvit.data.class_names import class_names
from trecvit.download import cache_folder, download
from trecvit.errors import ConfigError, DataError
from trecvit.files import write_text
from trecvit.video.decode import FilePart

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".mov", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp")
NO_LABEL = -1

Unknown = list[tuple[str, str]]  # names of videos, and what their classes are said to be

Format = Literal["kinetics", "something", "list", "folders", "shards", "unlabelled"]


@dataclass(frozen=True, slots=True)
class Video:
    """One video of a data set.

    Attributes:
        name: Its own within the data set.
        source: The file, a folder of its frames, or its place in a tar shard.
        label: The number of its class, or `NO_LABEL`.
    """

    name: str
    source: Path | FilePart
    label: int

    @property
    def num_bytes(self) -> int:
        """Size in bytes: of the file, the tar member, or the frames together; -1 if it cannot be read."""
        if isinstance(self.source, FilePart):
            return self.source.num_bytes
        try:
            if self.source.is_dir():
                entries = [entry for entry in os.scandir(self.source) if not entry.name.startswith(".")]
                return sum(entry.stat().st_size for entry in entries if entry.is_file())
            return self.source.stat().st_size
        except OSError:
            return -1


@dataclass(frozen=True)
class Manifest:
    """The videos of one split, in the order of its list.

    Attributes:
        videos: Those whose file is there.
        labels: The names of the classes; empty if the list has numbers only.
        missing: Names of listed videos without a file: Kinetics always lacks some.
        source: Where it was read from, for messages.
    """

    videos: tuple[Video, ...]
    labels: tuple[str, ...]
    missing: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if not self.videos:
            first = (
                f": {len(self.missing)} are listed without a file, such as {self.missing[0]}" if self.missing else ""
            )
            raise DataError(f"{self.source}: expected at least one video, found none{first}")
        [(name, count)] = Counter(video.name for video in self.videos).most_common(1)
        if count > 1:
            raise DataError(f"{self.source}: {name!r} is listed {count} times; every video must have a name of its own")

    @property
    def num_classes(self) -> int:
        """How many classes there are: the named ones, or one more than the largest number."""
        return len(self.labels) or max(video.label for video in self.videos) + 1

    def digest(self) -> str:
        """SHA-256 of the class names and of each video's name, label and size in bytes, as hexadecimal text.

        Identifies the data of a run without reading them. It does not depend on where the data set lies: absolute
        names count from their common folder.
        """
        names = [video.name for video in self.videos]
        if all(map(os.path.isabs, names)):
            root = os.path.commonpath([os.path.dirname(name) for name in names])
            names = [Path(name).relative_to(root).as_posix() for name in names]
        # File names may hold anything but NUL, also bytes that are not UTF-8.
        fields = [len(self.labels), *self.labels]
        for name, video in zip(names, self.videos, strict=True):
            fields += [name, video.label, video.num_bytes]
        text = "\0".join(str(field) for field in fields)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def spread(self, most: int) -> Manifest:
        """At most so many of the videos, evenly over the list."""
        count = min(most, len(self.videos))
        places = [round(number * (len(self.videos) - 1) / max(count - 1, 1)) for number in range(count)]
        return replace(self, videos=tuple(self.videos[place] for place in places))

    def unlabelled(self) -> Manifest:
        """The same videos without their classes."""
        return replace(self, videos=tuple(replace(video, label=NO_LABEL) for video in self.videos), labels=())


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """Where one split of a data set is.

    Attributes:
        path: The list (Kinetics' csv, Something-Something's JSON, a `path label` list), the folder of classes or of
            videos without any, or the shards: a folder of them, one file, or a pattern such as "train-{000..099}.tar",
            also as an address.
        videos: Folder of the videos, for the formats with a list; the list's own folder by default.
        format: One of "kinetics", "something", "list", "folders", "shards", "unlabelled"; found out from `path` by
            default. "unlabelled" takes all videos in a folder, at any depth.
        labels: "kinetics400", "something_something_v2", or a file with the names of the classes: lines in the order of
            their numbers, or Something-Something's JSON. What the data say themselves by default.
    """

    path: str
    videos: str | None = None
    format: str | None = None
    labels: str | None = None

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in get_args(Format):
            raise ConfigError(
                f"format: expected one of {', '.join(get_args(Format))}, got {self.format!r}"
                f"{nearest(self.format, get_args(Format))}"
            )

    @classmethod
    def from_value(cls, value: Any) -> DataSource:
        """From a recipe: a mapping of the fields, or the path alone."""
        if isinstance(value, (str, Path)):
            return cls(path=str(value))
        if not isinstance(value, Mapping):
            raise ConfigError(f"expected a path or a mapping with `path`, got {value!r}")
        refuse_unknown(cls, value)
        return cls(**value)


def read_manifest(source: DataSource | str | Path, *, unknown: Unknown | None = None) -> Manifest:
    """Reads one split of a data set in whatever form it is.

    Args:
        source: Where it is; a path alone if everything else can be found out from it.
        unknown: If given, videos of a class that there is not are left out and noted here, instead of refused.

    Raises:
        DataError: When a list is not what its format asks for, names classes that are not known, or no video is there.
    """
    if not isinstance(source, DataSource):
        source = DataSource(path=str(source))
    form = source.format or _recognised(source.path)
    names = read_labels(source.labels) if source.labels else None
    if form == "folders":
        return read_folders(source.path, labels=names, unknown=unknown)
    if form == "unlabelled":
        return read_unlabelled(source.path)
    if form == "shards":
        return read_shards(shard_paths(source.path), labels=names, source=source.path, unknown=unknown)
    videos = source.videos or _default_videos(Path(source.path))
    if form == "kinetics":
        return read_kinetics(source.path, videos, labels=names, unknown=unknown)
    if form == "something":
        return read_something(source.path, videos, labels=names, unknown=unknown)
    return read_list(source.path, videos, labels=names, unknown=unknown)


def read_kinetics(
    path: str | Path, videos: str | Path, *, labels: Sequence[str] | None = None, unknown: Unknown | None = None
) -> Manifest:
    """Kinetics' official csv: columns label, youtube_id, time_start, time_end; the test list has no label.

    Args:
        path: The csv.
        videos: Folder with files `{youtube_id}_{start:06}_{end:06}.mp4`, at any depth: all in one folder or in one
            per class.
        labels: Names in the order of their numbers. By default those of Kinetics-400 if the csv has no others, else
            the names of the csv, sorted.
        unknown: See `read_manifest`.
    """
    path = Path(path)
    with _opened(path) as lines:
        rows = list(csv.DictReader(lines))
    needed = {"youtube_id", "time_start", "time_end"}
    if not rows or not needed <= set(rows[0]):
        raise DataError(f"{path}: expected a csv with the columns {', '.join(sorted(needed))}")
    found = {row["label"] for row in rows if row.get("label")}
    if labels is None:
        known = class_names("kinetics400")
        labels = known if found <= set(known) else sorted(found)
    numbers = _numbers(labels)
    files = _files_by_stem(videos)
    entries = []
    for line, row in enumerate(rows, start=2):
        try:
            name = f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"
        except (TypeError, ValueError):
            raise DataError(f"{path}, line {line}: expected whole seconds, got {row}") from None
        label = NO_LABEL
        if row.get("label") and (label := _number(numbers, row["label"], f"{path}, line {line}", name, unknown)) < 0:
            continue
        entries.append((name, label))
    return _matched(entries, files, labels, path, videos)


def read_something(
    path: str | Path, videos: str | Path, *, labels: Sequence[str] | None = None, unknown: Unknown | None = None
) -> Manifest:
    """Something-Something-v2's JSON lists: `id` and, but for the test list, `template`.

    Args:
        path: `train.json`, `validation.json` or `test.json` under whatever name.
        videos: Folder with files `{id}.webm`.
        labels: Names in the order of their numbers. By default those of `labels.json`, or of any one JSON file whose
            name ends so, beside the list; else the 174 of the data set.
        unknown: See `read_manifest`.
    """
    path = Path(path)
    entries = _json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise DataError(f"{path}: expected a JSON list of objects with `id` and `template`")
    if labels is None:
        beside = sorted(path.parent.glob("*labels.json"))
        exact = [file for file in beside if file.name == "labels.json"] or beside
        if len(exact) > 1:
            raise DataError(f"{path}: {len(exact)} files beside it end in labels.json; say which with `labels`")
        labels = read_labels(exact[0]) if exact else class_names("something_something_v2")
    numbers = _numbers(labels)
    named = []
    for place, entry in enumerate(entries):
        name, template, label = str(entry["id"]), entry.get("template"), NO_LABEL
        where = f"{path}, entry {place}"
        if template and (label := _number(numbers, _plain(template), where, name, unknown)) < 0:
            continue
        named.append((name, label))
    return _matched(named, _files_by_stem(videos), labels, path, videos)


def read_list(
    path: str | Path, videos: str | Path, *, labels: Sequence[str] | None = None, unknown: Unknown | None = None
) -> Manifest:
    """A text file with a path and a class number per line, as SlowFast, VideoMAE and V-JEPA read them.

    The number is what stands after the last tab, space or comma, so paths may hold all of them. Empty lines are
    nothing. A path may also name a folder of frames.

    Args:
        path: The list.
        videos: Folder that relative paths start from.
        labels: Names in the order of the numbers; those of `labels.txt` beside the list by default.
        unknown: See `read_manifest`.
    """
    path, videos = Path(path), Path(videos)
    if labels is None and (beside := path.parent / "labels.txt").is_file() and beside != path:
        labels = read_labels(beside)
    found: list[Video] = []
    missing: list[str] = []
    with _opened(path) as lines:
        for line, text in enumerate(lines, start=1):
            if not text.strip():
                continue
            name, label = _path_and_label(text.rstrip("\r\n"), f"{path}, line {line}")
            if labels is not None and not _in_range(labels, label, f"{path}, line {line}", name, unknown):
                continue
            file = videos / name
            if file.exists():
                found.append(Video(name, file, label))
            else:
                missing.append(name)
    return Manifest(tuple(found), tuple(labels or ()), tuple(missing), str(path))


def read_folders(
    folder: str | Path, *, labels: Sequence[str] | None = None, unknown: Unknown | None = None
) -> Manifest:
    """A folder per class with the videos in it, at any depth.

    Args:
        folder: The folder of classes.
        labels: Names in the order of their numbers, one for each folder; the folders' names, sorted, by default.
        unknown: See `read_manifest`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with a folder of videos for each class")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise DataError(f"{folder}: expected a folder of videos for each class, found no folder in it")
    numbers = _numbers(labels if labels is not None else classes)
    found = []
    for name in classes:
        for file in sorted(file for file in _walk(folder / name) if file.suffix.lower() in VIDEO_SUFFIXES):
            video = file.relative_to(folder).as_posix()
            if (number := _number(numbers, name, str(folder / name), video, unknown)) >= 0:
                found.append(Video(video, file, number))
    return Manifest(tuple(found), tuple(labels if labels is not None else classes), (), str(folder))


def read_unlabelled(folder: str | Path) -> Manifest:
    """All videos in a folder, at any depth but not in hidden folders, without classes."""
    folder = Path(folder)
    names = sorted(file.relative_to(folder) for file in _walk(folder) if file.suffix.lower() in VIDEO_SUFFIXES)
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    return Manifest(tuple(Video(name.as_posix(), folder / name, NO_LABEL) for name in shown), (), (), str(folder))


def read_shards(
    shards: Sequence[Path],
    *,
    labels: Sequence[str] | None = None,
    source: str | None = None,
    unknown: Unknown | None = None,
) -> Manifest:
    """Tar files as WebDataset writes them: members `{key}.mp4` and, with the class's number as text, `{key}.cls`.

    The videos stay where they are; their places in the shards are noted, so any can be had at once.

    Args:
        shards: The tar files.
        labels: Names in the order of the numbers; those of `labels.txt` beside the first shard by default.
        source: For messages.
        unknown: See `read_manifest`.
    """
    found: list[Video] = []
    for shard in shards:
        found += _read_shard(shard)
    if labels is None and shards and (beside := shards[0].parent / "labels.txt").is_file():
        labels = read_labels(beside)
    if labels is not None:
        found = [video for video in found if _in_range(labels, video.label, str(video.source), video.name, unknown)]
    return Manifest(tuple(found), tuple(labels or ()), (), source or str(shards[0] if shards else "no shards"))


def shard_paths(pattern: str) -> list[Path]:
    """The shards that a folder, a file or a pattern such as "train-{000..099}.tar" names; addresses are fetched once.

    Raises:
        DataError: When one is not there.
        DownloadError: When one cannot be fetched.
    """
    if Path(pattern).is_dir():
        return sorted(Path(pattern).glob("*.tar"))
    names = [pattern]
    if span := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = span.groups()
        names = [pattern.replace(span[0], str(number).zfill(len(first))) for number in range(int(first), int(last) + 1)]
    if "://" in pattern:
        kept = cache_folder() / "shards"
        # Shards of different data sets often have the same names, so the address goes into the path.
        folders = [kept / hashlib.sha256(name.encode()).hexdigest()[:12] for name in names]
        return [download(name, folder / name.rsplit("/", 1)[-1]) for name, folder in zip(names, folders, strict=True)]
    for name in names:
        if not Path(name).is_file():
            raise DataError(f"{name}: there is no such shard; check the path or the numbers in {pattern!r}")
    return [Path(name) for name in names]


def read_labels(name: str | Path) -> tuple[str, ...]:
    """Names of classes in the order of their numbers.

    Args:
        name: "kinetics400", "something_something_v2", a text file with a name per line, or a JSON file: a list of
            names, or Something-Something's object of names and numbers.

    Raises:
        DataError: When it is none of these, or the numbers have gaps.
    """
    path = Path(name)
    if not path.is_file():
        return class_names(str(name))
    if path.suffix != ".json":
        try:
            return tuple(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as exc:
            raise DataError(f"{path}: expected one class name per line, as text: {exc}") from exc
    content = _json(path)
    if isinstance(content, list) and all(isinstance(label, str) for label in content):
        return tuple(content)
    try:
        by_number = {int(number): _plain(label) for label, number in content.items()}
        return tuple(by_number[number] for number in range(len(content)))
    except (AttributeError, KeyError, TypeError, ValueError):
        raise DataError(f"{path}: expected a list of names, or an object of names and numbers from 0 on") from None


def write_labels(path: Path, labels: Sequence[str]) -> None:
    """Writes names as `read_labels` reads them, one per line."""
    write_text(path, "".join(f"{label}\n" for label in labels))


def label_hash(labels: Sequence[str]) -> str:
    """A short hash of the classes' names in their order, to tell whether two label maps are the same."""
    return hashlib.sha256("\n".join(labels).encode()).hexdigest()[:16]


# ---- pieces --------------------------------------------------------------------------------------------------------


def _recognised(path: str) -> Format:
    suffix = Path(path).suffix.lower()
    if suffix == ".tar":
        return "shards"
    if Path(path).is_dir():
        return _recognised_folder(Path(path))
    if not Path(path).is_file():
        raise DataError(f"{path}: there is no such file or folder; check the path")
    if suffix == ".json":
        return "something"
    with _opened(Path(path)) as lines:
        return "kinetics" if "youtube_id" in next(iter(lines), "") else "list"


def _recognised_folder(folder: Path) -> Format:
    entries = list(folder.iterdir())
    if any(entry.suffix == ".tar" for entry in entries):
        return "shards"
    has_folders = any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)
    has_videos = any(entry.suffix.lower() in VIDEO_SUFFIXES for entry in entries)
    return "unlabelled" if has_videos and not has_folders else "folders"


def _default_videos(path: Path) -> Path:
    beside = path.parent / "videos"
    return beside if beside.is_dir() else path.parent


def _opened(path: Path) -> Any:
    try:
        return io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{path}: expected a list as text: {exc}") from exc


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as exc:
        raise DataError(f"{path}: expected JSON: {exc}") from exc


def _plain(template: str) -> str:
    """A template without the brackets around its placeholders, as the class names have it."""
    return template.replace("[", "").replace("]", "")


def _numbers(labels: Sequence[str]) -> dict[str, int]:
    return {label: number for number, label in enumerate(labels)}


def _number(numbers: Mapping[str, int], label: str, where: str, video: str, unknown: Unknown | None) -> int:
    """The number of a class; of one that there is not -1, if it may be noted as unknown."""
    if label in numbers:
        return numbers[label]
    if unknown is None:
        raise DataError(f"{where}: {label!r} is none of the {len(numbers)} classes{nearest(label, list(numbers))}")
    unknown.append((video, label))
    return -1


def _in_range(labels: Sequence[str], number: int, where: str, video: str, unknown: Unknown | None) -> bool:
    """Whether there is a class of this number; one that there is not may be noted as unknown."""
    if number < len(labels):
        return True
    if unknown is None:
        raise DataError(f"{where}: expected a class from 0 to {len(labels) - 1}, got {number}")
    unknown.append((video, str(number)))
    return False


def _path_and_label(text: str, where: str) -> tuple[str, int]:
    for separator in ("\t", " ", ","):
        name, found, label = text.rstrip().rpartition(separator)
        if found and re.fullmatch(r"-1|\d+", label.strip()):
            return name.strip().rstrip(",").strip('"'), int(label)
    raise DataError(f"{where}: expected a path and the number of its class, got {text!r}")


def _walk(folder: str | Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: the folder cannot be read: {error}") from error

    for parent, _, files in os.walk(folder, onerror=refuse, followlinks=True):
        for file in files:
            yield Path(parent) / file


def _files_by_stem(folder: str | Path) -> dict[str, Path]:
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: expected the folder of the videos; say where it is with `videos`")
    found: dict[str, Path] = {}
    for file in sorted(_walk(folder)):
        if file.suffix.lower() in VIDEO_SUFFIXES:
            if file.stem in found:
                raise DataError(f"{folder}: two files for one video: {found[file.stem]} and {file}; remove one")
            found[file.stem] = file
    return found


def _matched(
    entries: Iterable[tuple[str, int]],
    files: Mapping[str, Path],
    labels: Sequence[str],
    path: Path,
    videos: str | Path,
) -> Manifest:
    found: list[Video] = []
    missing: list[str] = []
    for name, label in entries:
        if name in files:
            found.append(Video(name, files[name], label))
        else:
            missing.append(name)
    if not found and missing:
        raise DataError(f"{videos}: none of the {len(missing)} videos of {path} is there, such as {missing[0]}.*")
    return Manifest(tuple(found), tuple(labels), tuple(missing), str(path))


def _read_shard(shard: Path) -> list[Video]:
    """The videos of one tar, by its headers alone."""
    parts: dict[str, FilePart] = {}
    classes: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                # WebDataset's rule: the key ends at the first dot of the file's own name.
                folder, slash, file = member.name.rpartition("/")
                key, _, suffix = file.partition(".")
                key = folder + slash + key
                if f".{suffix.lower()}" in VIDEO_SUFFIXES:
                    if key in parts or not member.isreg():
                        raise DataError(f"{shard}: {member.name} is no plain file, or a second video of its key")
                    parts[key] = FilePart(shard, member.offset_data, member.size, name=member.name)
                elif Path(file).suffix.lower() in VIDEO_SUFFIXES:
                    raise DataError(f"{shard}: {member.name} has dots in its key, which ends at the first of them")
                elif suffix == "cls" and (content := tar.extractfile(member)) is not None:
                    classes[key] = int(content.read())
    except (OSError, tarfile.TarError, ValueError) as exc:
        raise DataError(f"{shard}: expected a tar of videos and their classes: {exc}") from exc
    return [Video(key, part, classes.get(key, NO_LABEL)) for key, part in parts.items()]
