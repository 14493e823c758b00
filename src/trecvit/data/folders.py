"""Video files in folders: recognising videos, system entries and split folders."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from trecvit.errors import DataError
from trecvit.video.frames import VIDEO_SUFFIXES

# Entries that operating systems, archivers and network drives leave, besides names that begin with a dot.
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

# Reasons for skipping an entry, singular and plural.
_REASONS = {
    "not_videos": ("file that is no video", "files that are no videos"),
    "hidden": ("hidden or system entry", "hidden or system entries"),
    "read_already": ("link to a folder that is read already", "links to folders that are read already"),
    "outside_classes": ("video outside of the class folders", "videos outside of the class folders"),
    "unlisted": ("video that no list names", "videos that no list names"),
    "neither_part": ("video that is listed for neither part", "videos that are listed for neither part"),
    "not_shards": ("tar that is no shard of the data set", "tars that are no shards of the data set"),
    "cut_short": ("damaged rest of a tar", "damaged rests of tars"),
    "cut_off": ("tar member that is cut off", "tar members that are cut off"),
    "odd_members": ("tar member that is no plain file", "tar members that are no plain files"),
}


def is_hidden(name: str) -> bool:
    """Test whether a file or folder name is hidden or a system's: `._a.mp4`, `__MACOSX`, `Thumbs.db` …"""
    return name.startswith((".", "PaxHeaders.")) or name.casefold() in _SYSTEM_NAMES


def visible_files(folder: Path, suffix: str) -> list[Path]:
    """List the visible files of a folder with this suffix, sorted."""
    return sorted(path for path in folder.glob(f"*{suffix}") if not is_hidden(path.name))


def is_video(name: str, head: bytes | None) -> bool:
    """Test whether a file counts as a video: by its suffix, and a WebP only if animated.

    Args:
        name: Of the file.
        head: Its first 21 bytes or more, or None if they cannot be read.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix != ".webp":
        return suffix in VIDEO_SUFFIXES
    # Download tools store a still thumbnail in WebP beside each video.
    return head is not None and head[8:16] == b"WEBPVP8X" and bool(head[20:21]) and bool(head[20] & 0b10)


def passed_over(skipped: Mapping[str, Sequence[str]]) -> str:
    """Summarise skipped entries: "passed over 12 files that are no videos: .txt (10), .jpg (2); …"."""
    parts = []
    for reason, names in skipped.items():
        description = _REASONS[reason][len(names) > 1]
        if reason == "not_videos":
            suffixes = Counter(PurePosixPath(name).suffix.lower() or PurePosixPath(name).name for name in names)
            kinds = [f"{suffix} ({count})" for suffix, count in suffixes.most_common(8)]
            examples = ", ".join(kinds + ["…"] * (len(suffixes) > 8))
        else:
            examples = ", ".join([*names[:3], *["…"] * (len(names) > 3)])
        parts.append(f"{len(names):,} {description}: {examples}")
    return "passed over " + "; ".join(parts) if parts else ""


@dataclass
class Listing:
    """The videos below a folder. All names are relative to it, with "/" as separator.

    Attributes:
        root: The folder.
        videos: Names of the videos, sorted part by part.
        folders: Names of its direct subfolders that were read, sorted.
        missing: Names of broken links to videos.
        skipped: Names of skipped entries by reason; see `passed_over`.
    """

    root: Path
    videos: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    skipped: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def list_videos(folder: str | Path) -> Listing:
    """List the videos in a folder at any depth, without hidden entries.

    Links to files and folders are followed, but each real folder is read once: under its own path, else under the first
    link to it. A link to the folder itself or to one of its parents is skipped.

    Raises:
        DataError: The folder, or one below it, cannot be read.
    """
    listing = Listing(Path(folder))
    real = listing.root.resolve()
    visited = {_identity(place) for place in (real, *real.parents)}

    def is_new(name: str) -> bool:
        identity = _identity(listing.root / name)
        if identity in visited:
            listing.skipped["read_already"].append(name)
            listing.folders = [folder for folder in listing.folders if folder != name]
            return False
        visited.add(identity)
        return True

    folders: list[str] = [""]
    links: list[str] = []
    while folders or links:
        if not folders:  # everything reachable without a link has been read
            # Shallowest first: a class folder that is a link stays that class.
            links.sort(key=lambda name: (name.count("/"), _parts(name)))
            folders, links = [name for name in links if is_new(name)], []
            continue
        subfolders, linked = _read_folder(listing, folders.pop())
        folders += [name for name in subfolders if is_new(name)]
        links += linked
    for names in (listing.videos, listing.missing, *listing.skipped.values()):
        names.sort(key=_parts)
    listing.folders.sort()
    listing.skipped = {reason: listing.skipped[reason] for reason in _REASONS if listing.skipped[reason]}
    return listing


def split_folders(folder: str | Path) -> dict[str, Path]:
    """Find the splits of a data set in the layout of torchvision and Ultralytics: `train/cat/…`, `val/cat/…`.

    A folder is such a data set if all its subfolders with videos have names of splits, in upper or lower case, and hold
    class folders; or if it has several such subfolders. So a class "train" beside "bus" stays a class.

    Returns:
        Folders by "train", "validation" and "test"; empty for other folders and for paths that are not folders.

    Raises:
        DataError: The folder, or one below it, cannot be read, or two folders are the same split.
    """
    return splits_of(list_videos(folder)) if Path(folder).is_dir() else {}


def splits_of(listing: Listing) -> dict[str, Path]:
    """Find the splits in a listing, see `split_folders`."""
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
    """Return the split that a folder name stands for, or an empty string."""
    return next((split for split, names in _SPLITS.items() if re.fullmatch(f"({names}){_SPLIT_ENDS}", name, re.I)), "")


def _read_folder(listing: Listing, folder: str) -> tuple[list[str], list[str]]:
    """Add the files of one folder to a listing; return its subfolders and its links to folders."""
    folders: list[str] = []
    links: list[str] = []
    try:
        entries = list(os.scandir(listing.root / folder))
    except OSError as error:
        raise DataError(f"{error.filename}: expected a readable folder: {error.strerror}") from error
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
    """Return an identity that all paths to a folder share, through links and mounts too."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: expected a readable folder: {error.strerror}") from error
    return status.st_dev, status.st_ino


def _parts(name: str) -> list[str]:
    return name.split("/")
