"""Layouts of data sets on disk, each read into a `Manifest`.

Kinetics (the official csv), Something-Something-v2 (its JSON lists), `path label` lists as SlowFast, VideoMAE and
V-JEPA read them, the official splits of HMDB51, JHMDB and UCF101, a folder per class, and tar shards as WebDataset
writes them. Reading a layout decodes no video: see `trecvit.data.check`.
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
from trecvit.data.official_splits import (
    PARTS,
    SplitLists,
    clips_of,
    find_split_lists,
    folder_of_videos,
    part_named_by,
)
from trecvit.data.path_lists import is_text, read_path_list
from trecvit.data.tars import Tar, read_tar
from trecvit.data.text import read_json, read_text, split_lines
from trecvit.download import cache_folder, download
from trecvit.errors import ConfigError, DataError
from trecvit.video.frames import VIDEO_SUFFIXES

_ANIMATED = (".gif", ".webp", ".apng")

Unknown = list[tuple[str, str]]  # names of videos, and their unknown classes

Format = Literal["kinetics", "something", "list", "hmdb51", "ucf101", "folders", "shards", "unlabelled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """The location and layout of one split of a data set.

    Attributes:
        path: The list (Kinetics' csv, Something-Something's JSON, a `path label` list), the folder of classes or of
            videos without any, the folder of HMDB51, JHMDB or UCF101 with their lists of splits, or the shards: a
            folder of them, one file, or a pattern such as "train-{000..099}.tar", also as a URL.
        videos: Folder of the videos, for the formats with a list; the list's own folder by default.
        format: One of "kinetics", "something", "list", "hmdb51" (also JHMDB), "ucf101", "folders", "shards",
            "unlabelled"; detected from `path` by default. "unlabelled" takes all videos in a folder, at any depth, or a
            list of paths.
        labels: "kinetics400", "something_something_v2", or a file of class names: lines in index order, or
            Something-Something's JSON. By default those of the data set.
        split: Number of an official split of HMDB51, JHMDB or UCF101: 1, 2 or 3.
        part: Of that split: "train", "test", "all", or "fit" and "validation", into which the training clips are
            divided; see `trecvit.data.official_splits.clips_of`.
    """

    path: str
    videos: str | None = None
    format: str | None = None
    labels: str | None = None
    split: int | None = None
    part: str | None = None

    def __post_init__(self) -> None:
        if self.split is not None and (type(self.split) is not int or self.split < 1):
            raise ConfigError(f"split: expected the number of a split, 1 or more, got {self.split!r}")
        if self.part is not None and self.part not in PARTS:
            raise ConfigError(
                f"part: expected one of {', '.join(PARTS)}, got {self.part!r}{nearest(str(self.part), PARTS)}"
            )
        if self.format is not None and self.format not in get_args(Format):
            raise ConfigError(
                f"format: expected one of {', '.join(get_args(Format))}, got {self.format!r}"
                f"{nearest(self.format, get_args(Format))}"
            )

    @classmethod
    def from_value(cls, value: Any) -> DataSource:
        """Build from a recipe's value: a mapping of the fields, or the path alone."""
        if isinstance(value, (str, Path)):
            return cls(path=str(value))
        if not isinstance(value, Mapping):
            raise ConfigError(f"expected a path or a mapping with `path`, got {value!r}")
        refuse_unknown(cls, value)
        return cls(**value)


def read_manifest(source: DataSource | str | Path, *, unknown: Unknown | None = None) -> Manifest:
    """Read one split of a data set in any supported layout.

    Args:
        source: Location and layout; a path if the rest can be detected.
        unknown: If given, collects the videos of unknown classes, which are left out; else they raise.

    Raises:
        DataError: A list has a wrong format or unknown classes, or there is no video.
    """
    if not isinstance(source, DataSource):
        source = DataSource(path=str(source))
    names = read_labels(source.labels) if source.labels else None
    if source.format in (None, "hmdb51", "ucf101") and (lists := find_split_lists(source.path)):
        return _read_official_split(source, lists, names, unknown)
    if source.format in ("hmdb51", "ucf101") or source.split is not None or source.part is not None:
        raise DataError(
            f"{source.path}: expected a folder with the official splits of HMDB51, JHMDB (clap_test_split1.txt …) or "
            "UCF101 (trainlist01.txt …), got none of these files in it; check the path, or leave out `split` and `part`"
        )
    if source.format is None and Path(source.path).is_dir():
        return _read_folder(source.path, names, unknown)
    form = source.format or _detected_format(source.path)
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
    """Return the folder of a split, if the path is a data set with splits (`split_folders`); else the path itself."""
    if "://" in path:
        return path
    return str(split_folders(path).get(split, path))


def read_kinetics(
    path: str | Path, videos: str | Path, *, labels: Sequence[str] | None = None, unknown: Unknown | None = None
) -> Manifest:
    """Read Kinetics' official csv: columns label, youtube_id, time_start, time_end; the test list has no label.

    Args:
        path: The csv.
        videos: Folder with files `{youtube_id}_{start:06}_{end:06}.mp4`, at any depth: all in one folder or in one
            per class.
        labels: Class names in index order. By default those of Kinetics-400 if the csv has no others, else the names in
            the csv, sorted.
        unknown: See `read_manifest`.
    """
    path = Path(path)
    columns = {"youtube_id", "time_start", "time_end"}
    expected = f"a csv with the columns {', '.join(sorted(columns))}"
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, expected), newline="")))
    except csv.Error as exc:
        raise DataError(f"{path}: expected {expected}: {exc}") from exc
    if not rows or not columns <= set(rows[0]):
        raise DataError(f"{path}: expected {expected}")
    for row in rows:
        row["label"] = (row.get("label") or "").strip()
    csv_labels = {row["label"] for row in rows if row["label"]}
    if labels is None:
        kinetics = class_names("kinetics400")
        labels = kinetics if csv_labels <= set(kinetics) else sorted(csv_labels)
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
    """Read Something-Something-v2's JSON lists: `id` and, except in the test list, `template`.

    Args:
        path: `train.json`, `validation.json` or `test.json`, under any name.
        videos: Folder with files `{id}.webm`.
        labels: Class names in index order. By default those of `labels.json`, or of the only JSON file whose name ends
            so, in the list's folder; else the 174 of the data set.
        unknown: See `read_manifest`.
    """
    path = Path(path)
    entries = read_json(path)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise DataError(f"{path}: expected a JSON list of objects with `id` and `template`")
    if labels is None:
        files = visible_files(path.parent, "labels.json")
        files = [file for file in files if file.name == "labels.json"] or files
        if len(files) > 1:
            raise DataError(
                f"{path}: expected one file *labels.json in its folder, got {len(files)}; choose one with `labels`"
            )
        labels = read_labels(files[0]) if files else class_names("something_something_v2")
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
    path: str | Path,
    videos: str | Path,
    *,
    labels: Sequence[str] | None = None,
    unknown: Unknown | None = None,
    is_labelled: bool = True,
) -> Manifest:
    """Read a text file with a path and a class index per line, as for SlowFast, VideoMAE and V-JEPA.

    The index follows the last tab, space or comma, so paths may contain them. Empty lines are ignored. A path may name
    a folder of frames. A path in quotes is literal, with `""` for a quote; bytes that are not UTF-8 are kept.

    Args:
        path: The list.
        videos: Folder that relative paths start from.
        labels: Class names in index order; by default those of `labels.txt` in the list's folder.
        unknown: See `read_manifest`.
        is_labelled: Whether each line has a class index; else it may be absent.
    """
    path, videos = Path(path), Path(videos)
    if labels is None and (default := path.parent / "labels.txt").is_file() and default != path:
        labels = read_labels(default)
    listed: list[Video] = []
    missing: list[str] = []
    for line, name, label in read_path_list(path, is_labelled=is_labelled):
        if labels is not None and not _in_range(labels, label, f"{path}, line {line}", name, unknown):
            continue
        file = videos / name
        if file.exists():
            listed.append(Video(name, file, label))
        elif is_text(name):
            missing.append(name)
        else:
            raise DataError(f"{path}, line {line}: expected a list as text in UTF-8, got {name!r}; save it as UTF-8")
    if not listed and missing:
        raise DataError(
            f"{path}: expected at least one video, found none: {len(missing)} are listed without a file, such as "
            f"{missing[0]}; looked in {videos}, give their folder with `videos`"
        )
    return Manifest(tuple(listed), tuple(labels or ()), tuple(missing), str(path))


def read_folders(
    folder: str | Path, *, labels: Sequence[str] | None = None, unknown: Unknown | None = None
) -> Manifest:
    """Read a folder per class, with videos at any depth.

    Hidden files and folders are skipped, and each real folder is read once (`list_videos`). A class folder without a
    video keeps its index, so that indices do not depend on the videos present.

    Args:
        folder: The folder of class folders.
        labels: Class names in index order, one per folder; by default the folders' names, sorted.
        unknown: See `read_manifest`.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: expected a folder with a subfolder of videos for each class; check the path")
    return _as_classes(list_videos(folder), labels, unknown)


def read_unlabelled(path: str | Path) -> Manifest:
    """Read videos without classes: all in a folder, at any depth but not in hidden folders, or of a list or shards.

    The lines of a list may have no class index.
    """
    if Path(path).is_dir():
        listing = list_videos(path)
        if listing.videos or not shard_paths(str(path)):
            return _without_classes(listing)
    elif _detected_format(str(path)) == "list":
        return read_list(path, _default_videos(Path(path)), is_labelled=False).unlabelled()
    return read_manifest(path).unlabelled()


def read_shards(
    shards: Sequence[Path],
    *,
    labels: Sequence[str] | None = None,
    source: str | None = None,
    unknown: Unknown | None = None,
) -> Manifest:
    """Read tar files as WebDataset writes them: members `{key}.mp4` and, with the class index as text, `{key}.cls`.

    Videos are not unpacked: their positions in the shards give random access.

    Args:
        shards: The tar files.
        labels: Class names in index order; by default those of `labels.txt` in the folder of the first shard.
        source: For messages.
        unknown: See `read_manifest`.

    Raises:
        DataError: A file is not a consistent tar; see `read_tar`.
    """
    return _of_tars({shard: read_tar(shard) for shard in shards}, {}, labels, source, unknown)


def shard_paths(pattern: str) -> list[Path]:
    """List the shards of a folder, a file or a pattern such as "train-{000..099}.tar"; URLs are downloaded once.

    Raises:
        DataError: A shard does not exist.
        DownloadError: A shard cannot be downloaded.
    """
    if Path(pattern).is_dir():
        return sorted(file for file in Path(pattern).iterdir() if _is_shard(file))
    names = [pattern]
    if span := re.search(r"\{(\d+)\.\.(\d+)\}", pattern):
        first, last = span.groups()
        names = [pattern.replace(span[0], str(number).zfill(len(first))) for number in range(int(first), int(last) + 1)]
    if "://" in pattern:
        cache = cache_folder() / "shards"
        # Shards of different data sets often share names, so the URL's hash goes into the path.
        folders = [cache / hashlib.sha256(name.encode()).hexdigest()[:12] for name in names]
        return [download(name, folder / name.rsplit("/", 1)[-1]) for name, folder in zip(names, folders, strict=True)]
    for name in names:
        if not Path(name).is_file():
            raise DataError(f"{name}: expected a shard, got no such file; check the path or the range in {pattern!r}")
    return [Path(name) for name in names]


# ---- pieces --------------------------------------------------------------------------------------------------------


def _detected_format(path: str) -> Format:
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix == ".tar":
        return "shards"
    if not file.is_file():
        problem = "a special file" if file.exists() else "no such file or folder"
        raise DataError(f"{path}: expected a data set, got {problem}; check the path")
    if suffix in VIDEO_SUFFIXES:
        raise DataError(f"{path}: expected a data set, got a video; give the folder that holds it, or a list of videos")
    if suffix == ".json":
        return "something"
    text = read_text(file, "a data set", errors="surrogateescape")
    return "kinetics" if "youtube_id" in split_lines(text)[0] else "list"


def _read_folder(folder: str, labels: Sequence[str] | None, unknown: Unknown | None) -> Manifest:
    """Read a folder in the layout that it turns out to have."""
    listing = list_videos(folder)
    if not listing.videos and shard_paths(folder):
        return _read_shard_folder(folder, labels, unknown)
    if splits := splits_of(listing):
        names = ", ".join(f"{place} ({split})" for split, place in splits.items())
        raise DataError(
            f"{folder}: expected a folder for each class, got one for each split; choose one: {names}; or set "
            "`format: folders` if they are classes, `format: unlabelled` for all videos without classes"
        )
    if not listing.videos and not listing.missing and not listing.folders:
        skipped = f"; {passed_over(listing.skipped)}" if listing.skipped else ""
        raise DataError(f"{folder}: expected a folder of videos for each class, found no folder in it{skipped}")
    if listing.videos and not any("/" in name for name in listing.videos):
        return _without_classes(listing)
    return _as_classes(listing, labels, unknown)


def _read_official_split(
    source: DataSource, lists: SplitLists, labels: Sequence[str] | None, unknown: Unknown | None
) -> Manifest:
    """Read a part of an official split. A file belongs to a clip by its class folder and its name without the suffix.

    A clip without a video may be a folder of frames of its name.
    """
    split, part = _chosen_part(source, lists)
    classes, listed = lists.read(split)
    folder = Path(source.videos) if source.videos else folder_of_videos(lists, classes)
    files = _files_by_stem(folder, in_class=True)
    names = {clip: f"{clip.class_name}/{clip.stem}" for clip in listed}
    numbers = _numbers(labels if labels is not None else classes)
    videos: list[Video] = []
    missing: list[str] = []
    for clip in clips_of(listed, part):
        name = names[clip]
        if (label := _number(numbers, clip.class_name, clip.where, name, unknown)) < 0:
            continue
        if file := files.get(name) or next(filter(Path.is_dir, [folder / name]), None):
            videos.append(Video(name, file, label))
        else:
            missing.append(name)
    skipped = {
        "unlisted": sorted(files.keys() - names.values()),
        "neither_part": [names[clip] for clip in listed if not clip.part and part != "all" and names[clip] in files],
    }
    where = f"{lists.folder}, split {split}, {part}"
    return Manifest(
        tuple(videos),
        tuple(labels if labels is not None else classes),
        tuple(missing),
        where,
        {reason: found for reason, found in skipped.items() if found},
    )


def _chosen_part(source: DataSource, lists: SplitLists) -> tuple[int, str]:
    if source.format not in (None, lists.form):
        raise DataError(f"{source.path}: expected lists in the form of {source.format}, got those of {lists.form}")
    split, part = source.split, source.part
    if named := part_named_by(source.path):
        if split not in (None, named[0]) or part not in (None, named[1]):
            raise DataError(
                f"{source.path}: expected the split and part that the file's name gives ({named[0]}, {named[1]}), got "
                f"{split} and {part}; leave them out, or give the folder of the lists"
            )
        return named
    if split is None or part is None:
        choices = {"split": map(str, sorted(lists.files))} if split is None else {"part": PARTS}
        [(absent, values)] = choices.items()
        raise DataError(
            f"{source.path}: expected `{absent}`, one of {', '.join(values)}, got none; the lists in {lists.folder} "
            "have official splits (to read videos as a folder per class, give the folder of the class folders)"
        )
    return split, part


def _as_classes(listing: Listing, labels: Sequence[str] | None, unknown: Unknown | None) -> Manifest:
    folder = str(listing.root)
    if not listing.folders:
        raise DataError(f"{folder}: expected a folder of videos for each class, found no folder in it")
    # Files of class names cannot represent blanks at the ends.
    folders = sorted(listing.folders, key=str.strip)
    classes = [name.strip() for name in folders]
    if labels is None:
        check_labels(classes, [str(listing.root / name) for name in folders])
    numbers = _numbers(labels if labels is not None else classes)
    videos, outside = [], []
    for name in listing.videos:
        class_folder, slash, _ = name.partition("/")
        if not slash:
            outside.append(name)
        elif (number := _number(numbers, class_folder.strip(), str(listing.root / class_folder), name, unknown)) >= 0:
            videos.append(Video(name, listing.root / name, number))
    skipped = {**listing.skipped, **({"outside_classes": outside} if outside else {})}
    names = tuple(labels if labels is not None else classes)
    return Manifest(tuple(videos), names, tuple(listing.missing), folder, skipped)


def _without_classes(listing: Listing) -> Manifest:
    videos = tuple(Video(name, listing.root / name, NO_LABEL) for name in listing.videos)
    return Manifest(videos, (), tuple(listing.missing), str(listing.root), listing.skipped)


def _is_shard(file: Path) -> bool:
    return file.suffix.lower() == ".tar" and not is_hidden(file.name) and file.is_file()


def _read_shard_folder(pattern: str, labels: Sequence[str] | None, unknown: Unknown | None) -> Manifest:
    """Read shards by a pattern; in a folder, tars that are not part of the data set are skipped."""
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
    # A backup beside the shards may hold the same videos again, but without their classes.
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
    all_skipped: dict[str, list[str]] = defaultdict(list)
    videos = []
    for tar in tars.values():
        videos += [Video(key, part, tar.classes.get(key, NO_LABEL)) for key, part in tar.videos.items()]
    for names_by_reason in (skipped, *(tar.skipped for tar in tars.values())):
        for reason, names in names_by_reason.items():
            all_skipped[reason] += names
    first = next(iter(tars), None)
    if labels is None and first and (default := first.parent / "labels.txt").is_file():
        labels = read_labels(default)
    if labels is not None:
        videos = [video for video in videos if _in_range(labels, video.label, str(video.source), video.name, unknown)]
    all_skipped = {reason: names for reason, names in all_skipped.items() if names}
    return Manifest(tuple(videos), tuple(labels or ()), (), source or str(first or "no shards"), all_skipped)


def _default_videos(path: Path) -> Path:
    folder = path.parent / "videos"
    return folder if folder.is_dir() else path.parent


def _numbers(labels: Sequence[str]) -> dict[str, int]:
    return {label: number for number, label in enumerate(labels)}


def _number(numbers: Mapping[str, int], label: str, where: str, video: str, unknown: Unknown | None) -> int:
    """Return the index of a class; -1 for an unknown class, if those are collected."""
    if label in numbers:
        return numbers[label]
    if unknown is None:
        raise DataError(
            f"{where}: expected one of {len(numbers)} classes, got {label!r}{nearest(label, list(numbers))}"
        )
    unknown.append((video, label))
    return -1


def _in_range(labels: Sequence[str], number: int, where: str, video: str, unknown: Unknown | None) -> bool:
    """Test whether a class index is valid; others raise or are collected as unknown."""
    if number < len(labels):
        return True
    if unknown is None:
        raise DataError(f"{where}: expected a class from 0 to {len(labels) - 1}, got {number}")
    unknown.append((video, str(number)))
    return False


def _files_by_stem(folder: str | Path, *, in_class: bool = False) -> dict[str, Path]:
    """List the videos of a folder by their names without suffix, or by those after "class folder/"."""
    if not Path(folder).is_dir():
        raise DataError(f"{folder}: expected the folder of the videos; give it with `videos`")
    by_stem: dict[str, Path] = {}
    names = list_videos(folder).videos
    # An animated picture beside a video of the same name is its preview.
    for name in sorted(names, key=lambda name: Path(name).suffix.lower() in _ANIMATED):
        file = Path(folder) / name
        stem = f"{name.split('/')[0]}/{file.stem}" if in_class and "/" in name else file.stem
        if stem in by_stem and file.suffix.lower() in _ANIMATED:
            continue
        if stem in by_stem:
            raise DataError(f"{folder}: expected one file for each video, got {by_stem[stem]} and {file}; remove one")
        by_stem[stem] = file
    return by_stem


def _matched(
    entries: Iterable[tuple[str, int]],
    files: Mapping[str, Path],
    labels: Sequence[str],
    path: Path,
    folder: str | Path,
) -> Manifest:
    videos: list[Video] = []
    missing: list[str] = []
    for name, label in entries:
        if name in files:
            videos.append(Video(name, files[name], label))
        else:
            missing.append(name)
    if not videos and missing:
        raise DataError(f"{folder}: expected the videos of {path}, got none of {len(missing)}, such as {missing[0]}.*")
    return Manifest(tuple(videos), tuple(labels), tuple(missing), str(path))
