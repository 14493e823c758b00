"""Manifests: the videos of a data set with their class indices, whatever its layout on disk."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from trecvit.data.class_names import check_labels
from trecvit.data.folders import passed_over
from trecvit.errors import DataError
from trecvit.video.sources import FilePart
from trecvit.video.stills import IMAGE_SUFFIXES

NO_LABEL = -1


@dataclass(frozen=True, slots=True)
class Video:
    """One video of a data set.

    Attributes:
        name: Unique within the data set.
        source: The file, a folder of its frames, or its part of a tar shard.
        label: Class index, or `NO_LABEL`.
    """

    name: str
    source: Path | FilePart
    label: int

    @property
    def num_bytes(self) -> int:
        """Size in bytes of the file, the tar member, or all frames; -1 if it cannot be read."""
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
        videos: Videos with an existing file.
        labels: Class names; empty if the list has class indices only.
        missing: Names of listed videos without a file: Kinetics always lacks some.
        source: Its origin, for messages.
        skipped: Names of skipped entries by reason, such as "not_videos", "hidden", "read_already"; see `remarks`.
    """

    videos: tuple[Video, ...]
    labels: tuple[str, ...]
    missing: tuple[str, ...]
    source: str
    skipped: Mapping[str, Sequence[str]] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.videos:
            missing = (
                f": {len(self.missing)} are listed without a file, such as {self.missing[0]}" if self.missing else ""
            )
            skipped = f"; {passed_over(self.skipped)}" if self.skipped else ""
            raise DataError(f"{self.source}: expected at least one video, found none{missing}{skipped}{self._hint()}")
        check_labels(self.labels, [f"{self.source}, class {number}" for number in range(len(self.labels))])
        [(name, count)] = Counter(video.name for video in self.videos).most_common(1)
        if count > 1:
            raise DataError(
                f"{self.source}: expected unique names, got {name!r} {count} times; rename or remove the copies"
            )

    @property
    def num_classes(self) -> int:
        """Number of class names, or one more than the largest label."""
        return len(self.labels) or max(video.label for video in self.videos) + 1

    def remarks(self) -> list[str]:
        """Return warnings for the user, one line each: skipped entries, empty classes."""
        lines = [passed_over(self.skipped)] if self.skipped else []
        used = {video.label for video in self.videos}
        if used != {NO_LABEL} and (empty := sorted(set(range(len(self.labels))) - used)):
            names = ", ".join([repr(self.labels[number]) for number in empty[:5]] + ["…"] * (len(empty) > 5))
            lines.append(f"{len(empty)} of {len(self.labels)} classes have no video: {names}")
        return [f"{self.source}: {line}" for line in lines]

    def for_classifier(self) -> Manifest:
        """Return this manifest if a classifier can be trained on it.

        Raises:
            DataError: A video has no class, or all have the same class.
        """
        without = [video.name for video in self.videos if video.label < 0]
        if without:
            raise DataError(f"{self.source}: {len(without)} videos have no class, such as {without[0]}")
        used = {video.label for video in self.videos}
        if len(used) == 1:
            (number,) = used
            name = repr(self.labels[number]) if self.labels else f"class {number}"
            raise DataError(
                f"{self.source}: expected videos of two or more classes, got 1 ({name}); give the folder with a "
                "subfolder for each class, or a list with several class indices"
            )
        return self

    def _hint(self) -> str:
        """Return advice for a data set that has pictures instead of videos."""
        pictures = [name for name in self.skipped.get("not_videos", ()) if name.lower().endswith(IMAGE_SUFFIXES)]
        if not pictures:
            return ""
        return (
            f". For videos as folders of frames, such as {pictures[0]}, give a list of the folders with class indices"
        )

    def digest(self) -> str:
        """Compute SHA-256 over the class names and each video's name, label and size in bytes, as hexadecimal text.

        It identifies the data of a run without reading them, and does not depend on the location of the data set:
        absolute names count from their common folder.
        """
        names = [video.name for video in self.videos]
        if all(map(os.path.isabs, names)):
            root = os.path.commonpath([os.path.dirname(name) for name in names])
            names = [Path(name).relative_to(root).as_posix() for name in names]
        # File names may contain anything but NUL, even bytes that are not UTF-8.
        fields = [len(self.labels), *self.labels]
        for name, video in zip(names, self.videos, strict=True):
            fields += [name, video.label, video.num_bytes]
        text = "\0".join(str(field) for field in fields)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def spread(self, most: int) -> Manifest:
        """Select at most this many videos, evenly over the list."""
        count = min(most, len(self.videos))
        places = [round(number * (len(self.videos) - 1) / max(count - 1, 1)) for number in range(count)]
        return replace(self, videos=tuple(self.videos[place] for place in places))

    def unlabelled(self) -> Manifest:
        """Return the same videos without their classes."""
        return replace(self, videos=tuple(replace(video, label=NO_LABEL) for video in self.videos), labels=())
