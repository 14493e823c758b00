"""Video files in folders: which files are videos, which entries are the system's, and which folders are splits."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trecvit.errors import DataError
from trecvit.video.frames import VIDEO_SUFFIXES

# What operating systems, archivers and network drives leave in folders, beside the names that begin with a dot.
_SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "icon\r", "paxheaders", "lost+found", "__pycache__"),
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini"),
        *("$recycle.bin", "recycler", "system volume information"),
        *("@eadir", "@__thumb", "#recycle", "#snapshot"),
    }
)

# Names of splits as torchvision, Ultralytics and the mirrors of Kinetics have them: "val", "test_set", "train_256".
_SPLITS = {"train": r"train(ing)?", "validation": r"val(id(ation)?)?|dev|eval", "test": r"test(ing)?"}
_SPLIT_ENDS = r"([ _-]?(set|data|split|\d+(px|p)?))?"

# Why something was passed over, in the singular and the plural.
_REASONS = {
    "not_videos": ("file that is no video", "files that are no videos"),
    "hidden": ("hidden or system entry", "hidden or system entries"),
    "read_already": ("link to a folder that is read already", "links to folders that are read already"),
    "outside_classes": ("video outside of the class folders", "videos outside of the class folders"),
    "not_shards": ("tar that is no shard of the data set", "tars that are no shards of the data set"),
    "cut_short": ("damaged rest of a tar", "damaged rests of tars"),
    "cut_off": ("tar member that is cut off", "tar members that are cut off"),
    "odd_members": ("tar member that is no plain file", "tar members that are no plain files"),
}


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or left by a system: `._a.mp4`, `__MACOSX`, `Thumbs.db` …"""
    return name.startswith((".", "PaxHeaders.")) or name.casefold() in _SYSTEM_NAMES


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """The files of a folder that end so and are not hidden, sorted."""
    return sorted(path for path in folder.glob(f"*{suffix}") if not is_hidden(path.name))


def is_video(name: str, head: bytes | None) -> bool:
    """Whether a file is taken as a video: by its suffix, a WebP only if it is animated.

    Args:
        name: Of the file.
        head: Its first 21 bytes or more, or None if they cannot be read.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix != ".webp":
        return suffix in VIDEO_SUFFIXES
    # Download tools put a still picture in WebP beside each video.
    return head is not None and head[8:16] == b"WEBPVP8X" and bool(head[20:21]) and bool(head[20] & 0b10)


def passed_over(skipped: Mapping[str, Sequence[str]]) -> str:
    """One line on what was skipped: "passed over 12 files that are no videos: .txt (10), .jpg (2); …"."""
    parts = []
    for reason, names in skipped.items():
        said = _REASONS[reason][len(names) > 1]
        if reason == "not_videos":
            suffixes = Counter(PurePosixPath(name).suffix.lower() or PurePosixPath(name).name for name in names)
            kinds = [f"{suffix} ({count})" for suffix, count in suffixes.most_common(8)]
            examples = ", ".join(kinds + ["…"] * (len(suffixes) > 8))
        else:
            examples = ", ".join([*names[:3], *["…"] * (len(names) > 3)])
        parts.append(f"{len(names):,} {said}: {examples}")
    return "passed over " + "; ".join(parts) if parts else ""


@dataclass
class Listing:
    """The videos below a folder. All names are relative to it, with "/" between their parts.

    Attributes:
        root: The folder.
        videos: Names of the videos, sorted part by part.
        folders: Names of the folders directly in it that were read, sorted.
        missing: Names of links to videos that are not there.
        skipped: Names of what was passed over, by the reason; see `passed_over`.
    """

    root: Path
    videos: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def list_videos(folder: str | Path) -> Listing:
    """Finds the videos in a folder at any depth, without what is hidden.

    Links to files and folders are followed, but each real folder is read once: under its own place, else under the
    first link to it. A link to the folder itself or to one around it is passed over.

    Raises:
        DataError: When the folder, or one in it, cannot be read.
    """
    listing = Listing(Path(folder))
    real = listing.root.resolve()
    seen = {_identity(place) for place in (real, *real.parents)}

    def is_new(name: str) -> bool:
        identity = _identity(listing.root / name)
        if identity in seen:
            listing.skipped["read_already"].append(name)
            listing.folders = [folder for folder in listing.folders if folder != name]
            return False
        seen.add(identity)
        return True

    folders: list[str] = [""]
    links: list[str] = []
    while folders or links:
        if not folders:  # all that is reached without a link has been read
            # The nearest to the top first: a class folder that is a link is that class.
            links.sort(key=lambda name: (name.count("/"), _parts(name)))
            folders, links = [name for name in links if is_new(name)], []
            continue
        found, linked = _read_folder(listing, folders.pop())
        folders += [name for name in found if is_new(name)]
        links += linked
    for names in (listing.videos, listing.missing, *listing.skipped.values()):
        names.sort(key=_parts)
    listing.folders.sort()
    listing.skipped = {reason: listing.skipped[reason] for reason in _REASONS if listing.skipped[reason]}
    return listing


def split_folders(folder: str | Path) -> dict[str, Path]:
    """The splits of a data set that is laid out as torchvision and Ultralytics do: `train/cat/…`, `val/cat/…`.

    A folder is such a data set if all of its folders that hold videos are named like splits, in any case, and hold
    class folders; or if there are several of them. So a class called "train" beside "bus" stays a class.

    Returns:
        The folders by "train", "validation" and "test"; nothing for any other folder, or what is no folder.

    Raises:
        DataError: When the folder, or one in it, cannot be read.
    """
    return splits_of(list_videos(folder)) if Path(folder).is_dir() else {}


def splits_of(listing: Listing) -> dict[str, Path]:
    """`split_folders` of a folder that has been listed."""
    with_videos = sorted({name.split("/")[0] for name in listing.videos if "/" in name})
    with_classes = {name.split("/")[0] for name in listing.videos if name.count("/") > 1}
    splits: dict[str, list[str]] = defaultdict(list)
    for name in with_videos:
        if (split := _split_named(name)) and (name in with_classes or len(with_videos) > 1):
            splits[split].append(name)
    is_all = sum(map(len, splits.values())) == len(with_videos)
    has_several = len(splits) > 1 and all(with_classes & set(names) for names in splits.values())
    if not splits or not (is_all or has_several):
        return {}
    for split, names in splits.items():
        if len(names) > 1:
            raise DataError(
                f"{listing.root}: expected one folder for each split, got {' and '.join(names)} for {split}; "
                "give one of them, or move the others away"
            )
    return {split: listing.root / names[0] for split, names in splits.items()}


def _split_named(name: str) -> str:
    """Which split a folder of this name is, or nothing."""
    return next((split for split, names in _SPLITS.items() if re.fullmatch(f"({names}){_SPLIT_ENDS}", name, re.I)), "")


def _read_folder(listing: Listing, folder: str) -> tuple[list[str], list[str]]:
    """Adds the files of one folder to a listing; returns the folders in it and the links to folders."""
    folders: list[str] = []
    links: list[str] = []
    try:
        entries = list(os.scandir(listing.root / folder))
    except OSError as error:
        raise DataError(f"{error.filename}: the folder cannot be read: {error.strerror}") from error
    for entry in entries:
        name = f"{folder}/{entry.name}" if folder else entry.name
        kind = _kind(entry)
        if is_hidden(entry.name):
            listing.skipped["hidden"].append(name)
        elif kind == "folder":
            (links if entry.is_symlink() else folders).append(name)
            if not folder:
                listing.folders.append(name)
        elif kind == "file" and is_video(name, _head(entry.path) if name.lower().endswith(".webp") else None):
            listing.videos.append(name)
        elif kind == "broken link" and PurePosixPath(name).suffix.lower() in VIDEO_SUFFIXES:
            listing.missing.append(name)
        else:
            listing.skipped["not_videos"].append(name)
    return folders, links


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "folder"
        if entry.is_file():
            return "file"
    except OSError:  # such as a link to itself
        pass
    return "broken link" if entry.is_symlink() else "something else"


def _head(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(32)
    except OSError:
        return None


def _identity(path: Path) -> tuple[int, int]:
    """The same for all paths to one folder, through links and mounts alike."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: the folder cannot be read: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _parts(name: str) -> list[str]:
    return name.split("/")
