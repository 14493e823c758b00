"""Layouts of data sets on disk, each read into a `Manifest`.

Kinetics (the official csv), Something-Something-v2 (its JSON lists), `path label` lists as SlowFast, VideoMAE and
V-JEPA read them, a folder per class, and tar shards as WebDataset writes them. Nothing is decoded here: a manifest says
what there should be and which files are there; `trecvit.data.check` looks into them.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from trecvit.config import nearest, refuse_unknown
from trecvit.data.class_names import check_labels, class_names, plain, read_labels
from trecvit.data.folders import (
    Listing,
    is_hidden,
    list_videos,
    passed_over,
    split_folders,
    splits_of,
    visible_files,
)
from trecvit.data.manifest import NO_LABEL, Manifest, Video
from trecvit.data.path_lists import is_text, read_path_list
from trecvit.data.tars import Tar, read_tar
from trecvit.data.text import read_json, read_text, split_lines
from trecvit.download import cache_folder, download
from trecvit.errors import ConfigError, DataError
from trecvit.video.frames import VIDEO_SUFFIXES

_ANIMATED = (".gif", ".webp", ".apng")

Unknown = list[tuple[str, str]]  # names of videos, and what their classes are said to be

Format = Literal["kinetics", "something", "list", "folders", "shards", "unlabelled"]


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
    names = read_labels(source.labels) if source.labels else None
    if source.format is None and Path(source.path).is_dir():
        return _read_folder(source.path, names, unknown)
    form = source.format or _recognised(source.path)
    if form == "folders":
        return read_folders(source.path, labels=names, unknown=unknown)
    if form == "unlabelled":
        return read_unlabelled(source.path)
    if form == "shards":
        return _read_shard_folder(source.path, names, unknown)
    videos = source.videos or _default_videos(Path(source.path))
    if form == "kinetics":
        return read_kinetics(source.path, videos, labels=names, unknown=unknown)
    if form == "something":
        return read_something(source.path, videos, labels=names, unknown=unknown)
    return read_list(source.path, videos, labels=names, unknown=unknown)


def split_of(path: str, split: Literal["train", "validation", "test"]) -> str:
    """The folder of a split, if the path is a data set with splits (`split_folders`); else the path itself."""
    if "://" in path:
        return path
    return str(split_folders(path).get(split, path))


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
    needed = {"youtube_id", "time_start", "time_end"}
    expected = f"a csv with the columns {', '.join(sorted(needed))}"
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, expected), newline="")))
    except csv.Error as exc:
        raise DataError(f"{path}: expected {expected}: {exc}") from exc
    if not rows or not needed <= set(rows[0]):
        raise DataError(f"{path}: expected {expected}")
    for row in rows:
        row["label"] = (row.get("label") or "").strip()
    found = {row["label"] for row in rows if row["label"]}
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
        if row["label"] and (label := _number(numbers, row["label"], f"{path}, line {line}", name, unknown)) < 0:
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
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise DataError(f"{path}: expected a JSON list of objects with `id` and `template`")
    if labels is None:
        beside = visible_files(path.parent, "labels.json")
        exact = [file for file in beside if file.name == "labels.json"] or beside
        if len(exact) > 1:
            raise DataError(f"{path}: {len(exact)} files beside it end in labels.json; say which with `labels`")
        labels = read_labels(exact[0]) if exact else class_names("something_something_v2")
    numbers = _numbers(labels)
    named = []
    for place, entry in enumerate(entries):
        name, template, label = str(entry["id"]), entry.get("template"), NO_LABEL
        where = f"{path}, entry {place}"
        if template and (label := _number(numbers, plain(template), where, name, unknown)) < 0:
            continue
        named.append((name, label))
    return _matched(named, _files_by_stem(videos), labels, path, videos)


def read_list(
    path: str | Path, videos: str | Path, *, labels: Sequence[str] | None = None, unknown: Unknown | None = None
) -> Manifest:
    """A text file with a path and a class number per line, as SlowFast, VideoMAE and V-JEPA read them.

    The number is what stands after the last tab, space or comma, so paths may hold all of them. Empty lines are
    nothing. A path may also name a folder of frames. A path in quotes is taken as it is, with `""` for a quote within;
    bytes that are not UTF-8 are those of the file's name.

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
    for line, name, label in read_path_list(path):
        if labels is not None and not _in_range(labels, label, f"{path}, line {line}", name, unknown):
            continue
        file = videos / name
        if file.exists():
            found.append(Video(name, file, label))
        elif is_text(name):
            missing.append(name)
        else:
            raise DataError(f"{path}, line {line}: expected a list as text in UTF-8, got {name!r}; save it as UTF-8")
    if not found and missing:
        raise DataError(
            f"{path}: expected at least one video, found none: {len(missing)} are listed without a file, such as "
            f"{missing[0]}; looked in {videos}, say with `videos` where they are"
        )
    return Manifest(tuple(found), tuple(labels or ()), tuple(missing), str(path))


def read_folders(
    folder: str | Path, *, labels: Sequence[str] | None = None, unknown: Unknown | None = None
) -> Manifest:
    """A folder per class with the videos in it, at any depth.

    Hidden files and folders are passed over, each real folder is read once (`list_videos`). A class folder without a
    video keeps its number, so that the numbers do not depend on which videos are there.

    Args:
        folder: The folder of classes.
        labels: Names in the order of their numbers, one for each folder; the folders' names, sorted, by default.
        unknown: See `read_manifest`.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: expected a folder with a folder of videos for each class")
    return _as_classes(list_videos(folder), labels, unknown)


def read_unlabelled(folder: str | Path) -> Manifest:
    """All videos in a folder, at any depth but not in hidden folders, without classes."""
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: expected a folder of videos")
    return _without_classes(list_videos(folder))


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

    Raises:
        DataError: For a file that is no tar, or does not hold together; see `read_tar`.
    """
    return _of_tars({shard: read_tar(shard) for shard in shards}, {}, labels, source, unknown)


def shard_paths(pattern: str) -> list[Path]:
    """The shards that a folder, a file or a pattern such as "train-{000..099}.tar" names; addresses are fetched once.

    Raises:
        DataError: When one is not there.
        DownloadError: When one cannot be fetched.
    """
    if Path(pattern).is_dir():
        return sorted(file for file in Path(pattern).iterdir() if _is_shard(file))
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


# ---- pieces --------------------------------------------------------------------------------------------------------


def _recognised(path: str) -> Format:
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix == ".tar":
        return "shards"
    if not file.is_file():
        what = "this is no file" if file.exists() else "there is no such file or folder"
        raise DataError(f"{path}: expected a data set, and {what}; check the path")
    if suffix in VIDEO_SUFFIXES:
        raise DataError(f"{path}: expected a data set, got a video; give the folder that holds it, or a list of videos")
    if suffix == ".json":
        return "something"
    text = read_text(file, "a data set", errors="surrogateescape")
    return "kinetics" if "youtube_id" in split_lines(text)[0] else "list"


def _read_folder(folder: str, labels: Sequence[str] | None, unknown: Unknown | None) -> Manifest:
    """A folder, in the form that it is found to have."""
    listing = list_videos(folder)
    if not listing.videos and shard_paths(folder):
        return _read_shard_folder(folder, labels, unknown)
    if splits := splits_of(listing):
        names = ", ".join(f"{place} ({split})" for split, place in splits.items())
        raise DataError(
            f"{folder}: expected a folder for each class, got one for each split; give one of them: {names}; or say "
            "`format: folders` where they are classes, `format: unlabelled` for all videos without classes"
        )
    if not listing.videos and not listing.missing and not listing.folders:
        others = f"; {passed_over(listing.skipped)}" if listing.skipped else ""
        raise DataError(f"{folder}: expected a folder of videos for each class, found no folder in it{others}")
    if listing.videos and not any("/" in name for name in listing.videos):
        return _without_classes(listing)
    return _as_classes(listing, labels, unknown)


def _as_classes(listing: Listing, labels: Sequence[str] | None, unknown: Unknown | None) -> Manifest:
    folder = str(listing.root)
    if not listing.folders:
        raise DataError(f"{folder}: expected a folder of videos for each class, found no folder in it")
    # Files of names cannot hold blanks at the ends.
    folders = sorted(listing.folders, key=str.strip)
    classes = [name.strip() for name in folders]
    if labels is None:
        check_labels(classes, [str(listing.root / name) for name in folders])
    numbers = _numbers(labels if labels is not None else classes)
    found, outside = [], []
    for name in listing.videos:
        of, slash, _ = name.partition("/")
        if not slash:
            outside.append(name)
        elif (number := _number(numbers, of.strip(), str(listing.root / of), name, unknown)) >= 0:
            found.append(Video(name, listing.root / name, number))
    skipped = {**listing.skipped, **({"outside_classes": outside} if outside else {})}
    names = tuple(labels if labels is not None else classes)
    return Manifest(tuple(found), names, tuple(listing.missing), folder, skipped)


def _without_classes(listing: Listing) -> Manifest:
    videos = tuple(Video(name, listing.root / name, NO_LABEL) for name in listing.videos)
    return Manifest(videos, (), tuple(listing.missing), str(listing.root), listing.skipped)


def _is_shard(file: Path) -> bool:
    return file.suffix.lower() == ".tar" and not is_hidden(file.name) and file.is_file()


def _read_shard_folder(pattern: str, labels: Sequence[str] | None, unknown: Unknown | None) -> Manifest:
    """Shards by a pattern; in a folder, tars that are none of the data set's are passed over."""
    paths = shard_paths(pattern)
    if not Path(pattern).is_dir():
        return read_shards(paths, labels=labels, source=pattern, unknown=unknown)
    skipped: dict[str, list[str]] = {"hidden": [], "not_videos": []}
    for file in sorted(Path(pattern).iterdir()):
        if is_hidden(file.name):
            skipped["hidden"].append(file.name)
        elif file not in paths and file.name != "labels.txt" and file.is_file():
            skipped["not_videos"].append(file.name)
    tars = {path: read_tar(path) for path in paths if tarfile.is_tarfile(path)}
    labelled = any(tar.classes for tar in tars.values())
    # A backup beside the shards may hold the same videos once more, but not with their classes.
    shards = {path: tar for path, tar in tars.items() if tar.videos and (tar.classes or not labelled)}
    skipped["not_shards"] = [path.name for path in paths if path not in shards]
    return _of_tars(shards, skipped, labels, pattern, unknown)


def _of_tars(
    tars: Mapping[Path, Tar],
    skipped: Mapping[str, Sequence[str]],
    labels: Sequence[str] | None,
    source: str | None,
    unknown: Unknown | None,
) -> Manifest:
    passed: dict[str, list[str]] = defaultdict(list)
    found = []
    for tar in tars.values():
        found += [Video(key, part, tar.classes.get(key, NO_LABEL)) for key, part in tar.videos.items()]
    for some in (skipped, *(tar.skipped for tar in tars.values())):
        for reason, names in some.items():
            passed[reason] += names
    first = next(iter(tars), None)
    if labels is None and first and (beside := first.parent / "labels.txt").is_file():
        labels = read_labels(beside)
    if labels is not None:
        found = [video for video in found if _in_range(labels, video.label, str(video.source), video.name, unknown)]
    passed = {reason: names for reason, names in passed.items() if names}
    return Manifest(tuple(found), tuple(labels or ()), (), source or str(first or "no shards"), passed)


def _default_videos(path: Path) -> Path:
    beside = path.parent / "videos"
    return beside if beside.is_dir() else path.parent


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


def _files_by_stem(folder: str | Path) -> dict[str, Path]:
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: expected the folder of the videos; say where it is with `videos`")
    found: dict[str, Path] = {}
    files = [Path(folder) / name for name in list_videos(folder).videos]
    # An animated picture beside a video of the same name is its preview.
    for file in sorted(files, key=lambda file: file.suffix.lower() in _ANIMATED):
        if file.stem in found and file.suffix.lower() in _ANIMATED:
            continue
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
