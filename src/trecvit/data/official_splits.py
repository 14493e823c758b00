"""Official splits of HMDB51, JHMDB and UCF101: lists of the clips that train a model and of those that test it.

HMDB51 and JHMDB have a text file per class and split, `clap_test_split1.txt`, with lines `clip.avi 1`: 1 is training, 2
is test, 0 is neither. UCF101 has `trainlist01.txt` and `testlist01.txt` per split, with lines `Class/clip.avi`, and
`classInd.txt` with lines `1 Class`. Names end in `.avi`; the files at hand may be of any format.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from trecvit.data.folders import is_hidden, is_video
from trecvit.data.text import read_text, split_lines
from trecvit.errors import DataError
from trecvit.video.frames import VIDEO_SUFFIXES

Form = Literal["hmdb51", "ucf101"]
Part = Literal["train", "test", "fit", "validation", "all"]
PARTS: tuple[str, ...] = get_args(Part)

_CLASS_LIST = re.compile(r"(.+)_test_split(\d+)\.txt")
_UCF_LIST = re.compile(r"(train|test)list(\d+)\.txt")
_PARTS_BY_NUMBER = {"1": "train", "2": "test", "0": ""}

# The end of a clip's name that differs between clips of one source video: HMDB51's `_clap_u_nm_np1_fr_goo_0` describes
# body part, camera, persons, view, quality and rank, UCF101's `_c01` is the rank.
_CLIP_END = re.compile(r"(_[a-z]_[a-z]+_np\d+_[a-z]+_[a-z]+)?_c?\d+$")

# Validation clips: one in six training clips of each class, no more than one in four, whole source videos.
_VALIDATION_SHARE, _LARGEST_SHARE = 1 / 6, 1 / 4


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of a split.

    Attributes:
        class_name: As in the lists, which is also the name of the clip's folder.
        stem: Its name without the suffix.
        part: "train", "test", or empty for a clip of neither part.
        where: File and line, for messages.
    """

    class_name: str
    stem: str
    part: str
    where: str


@dataclass(frozen=True, slots=True)
class SplitLists:
    """The lists of all splits of a data set.

    Attributes:
        folder: The folder of the lists.
        form: "hmdb51", also for JHMDB, or "ucf101".
        files: The lists of each split, by its number.
    """

    folder: Path
    form: Form
    files: dict[int, tuple[Path, ...]]

    def read(self, split: int) -> tuple[tuple[str, ...], list[Clip]]:
        """Read the lists of one split.

        Returns:
            The class names in index order, and all clips, in the order of the lists.

        Raises:
            DataError: There is no such split, a list of it is missing or has a wrong line, or a clip is listed both for
                training and for testing.
        """
        if split not in self.files:
            raise DataError(
                f"{self.folder}: expected one of the splits {', '.join(map(str, sorted(self.files)))}, got {split}; "
                "choose one with `split`"
            )
        classes, clips = self._read_hmdb51(split) if self.form == "hmdb51" else self._read_ucf101(split)
        _refuse_two_parts(clips)
        return classes, clips

    def _read_hmdb51(self, split: int) -> tuple[tuple[str, ...], list[Clip]]:
        classes = {number: {_class_of(file) for file in files} for number, files in self.files.items()}
        if absent := sorted(set().union(*classes.values()) - classes[split]):
            raise DataError(
                f"{self.folder}: expected a list of each class for split {split}, got none of {', '.join(absent)}"
            )
        clips = []
        for file in self.files[split]:
            for number, line in enumerate(_lines(file), start=1):
                where = f"{file}, line {number}"
                matched = re.fullmatch(r"(.+?)\s+([012])", line.strip())
                if matched:
                    clips.append(Clip(_class_of(file), _stem(matched[1]), _PARTS_BY_NUMBER[matched[2]], where))
                elif line.strip():
                    raise DataError(
                        f"{where}: expected a clip and 1 (training), 2 (test) or 0 (neither), got {line[:200]!r}"
                    )
        return tuple(sorted(classes[split])), clips

    def _read_ucf101(self, split: int) -> tuple[tuple[str, ...], list[Clip]]:
        index_file = self.folder / "classInd.txt"
        numbers = _class_numbers(index_file) if index_file.is_file() else None
        parts = {_ucf_part(file) for file in self.files[split]}
        if absent := {"train", "test"} - parts:
            raise DataError(f"{self.folder}: expected {absent.pop()}list{split:02d}.txt, got no such file")
        clips = []
        for file in self.files[split]:
            for number, line in enumerate(_lines(file), start=1):
                if not line.strip():
                    continue
                where = f"{file}, line {number}"
                matched = re.fullmatch(r"([^/]+)/(.+?)(?:\s+(\d+))?", line.strip())
                if not matched:
                    raise DataError(f"{where}: expected Class/clip.avi and its class index, got {line[:200]!r}")
                name, clip, index = matched.groups()
                if numbers is not None and (name not in numbers or index not in (None, str(numbers[name]))):
                    raise DataError(
                        f"{where}: expected a class of {index_file.name} with its index "
                        f"{numbers.get(name, '')}".rstrip()
                        + f", got {line.strip()[:200]!r}"
                    )
                clips.append(Clip(name, _stem(clip), _ucf_part(file), where))
        classes = sorted(numbers, key=numbers.__getitem__) if numbers else sorted({clip.class_name for clip in clips})
        return tuple(classes), clips


def find_split_lists(path: str | Path) -> SplitLists | None:
    """Find the lists of official splits: in a folder, in its direct subfolders, or beside one of UCF101's lists.

    Raises:
        DataError: Several folders hold such lists.
    """
    path = Path(path)
    if not path.is_dir():
        return _lists_in(path.parent) if _UCF_LIST.fullmatch(path.name) and path.is_file() else None
    if own := _lists_in(path):
        return own
    found = [lists for folder in _subfolders(path) if (lists := _lists_in(folder))]
    if len(found) > 1:
        raise DataError(
            f"{path}: expected the lists of one data set, got those in {' and '.join(str(at.folder) for at in found)}; "
            "give the folder of the lists, and that of the videos with `videos`"
        )
    return found[0] if found else None


def part_named_by(path: str | Path) -> tuple[int, str] | None:
    """Return split and part that the path of one of UCF101's lists names: `trainlist01.txt` is (1, "train")."""
    matched = _UCF_LIST.fullmatch(Path(path).name)
    return (int(matched[2]), matched[1]) if matched and Path(path).is_file() else None


def clips_of(clips: Sequence[Clip], part: str) -> list[Clip]:
    """Select the clips of a part of a split.

    The official training clips ("train") are also divided into "fit" and "validation", so that a model can be chosen
    without the test clips. Validation has about one in six clips of each class; clips of the same source video are
    on the same side, and the choice depends on their names alone.

    Args:
        clips: Of one split.
        part: "train", "test", "fit", "validation", or "all" for all that are listed.
    """
    if part == "all":
        return list(clips)
    if part in ("train", "test"):
        return [clip for clip in clips if clip.part == part]
    trained = [clip for clip in clips if clip.part == "train"]
    held_out = _held_out_sources(trained)
    return [clip for clip in trained if (_source(clip) in held_out) == (part == "validation")]


def folder_of_videos(lists: SplitLists, classes: Sequence[str]) -> Path:
    """Find the folder that holds a folder of videos per class: near the lists.

    Raises:
        DataError: There is none, or there are several.
    """
    for near in (lists.folder, lists.folder.parent):
        found = [folder for folder in (near, *_subfolders(near)) if _has_videos(folder, classes)]
        if len(found) > 1:
            raise DataError(
                f"{near}: expected one folder with a folder of videos per class, got "
                f"{' and '.join(map(str, found))}; choose one with `videos`"
            )
        if found:
            return found[0]
    raise DataError(
        f"{lists.folder.parent}: expected a folder with a folder of videos per class, such as {classes[0]}, near "
        f"{lists.folder}; give it with `videos`"
    )


# ---- pieces --------------------------------------------------------------------------------------------------------


def _lists_in(folder: Path) -> SplitLists | None:
    files: dict[Form, dict[int, list[Path]]] = {"hmdb51": defaultdict(list), "ucf101": defaultdict(list)}
    for name in _names(folder):
        if matched := _CLASS_LIST.fullmatch(name):
            files["hmdb51"][int(matched[2])].append(folder / name)
        elif matched := _UCF_LIST.fullmatch(name):
            files["ucf101"][int(matched[2])].append(folder / name)
    forms = [form for form, by_split in files.items() if by_split]
    if len(forms) > 1:
        raise DataError(f"{folder}: expected lists of HMDB51's form or of UCF101's, got both; move one of them away")
    if not forms:
        return None
    return SplitLists(folder, forms[0], {split: tuple(paths) for split, paths in files[forms[0]].items()})


def _names(folder: Path) -> list[str]:
    """List the visible entries of a folder, sorted."""
    try:
        return sorted(name for name in os.listdir(folder) if not is_hidden(name))
    except OSError as error:
        raise DataError(f"{folder}: expected a readable folder: {error.strerror}") from error


def _subfolders(folder: Path) -> list[Path]:
    return [folder / name for name in _names(folder) if (folder / name).is_dir()]


def _class_of(file: Path) -> str:
    matched = _CLASS_LIST.fullmatch(file.name)
    assert matched, "only such files are listed"
    return matched[1]


def _ucf_part(file: Path) -> str:
    return "train" if file.name.startswith("train") else "test"


def _lines(file: Path) -> list[str]:
    return split_lines(read_text(file, "a list of clips as text", errors="surrogateescape"))


def _class_numbers(file: Path) -> dict[str, int]:
    """Read `classInd.txt`: class names and their indices, from 1."""
    numbers: dict[str, int] = {}
    for number, line in enumerate(_lines(file), start=1):
        if not line.strip():
            continue
        index, _, name = line.strip().partition(" ")
        if index != str(len(numbers) + 1) or not name.strip() or name.strip() in numbers:
            raise DataError(
                f"{file}, line {number}: expected the index {len(numbers) + 1} and a new class, got {line[:200]!r}"
            )
        numbers[name.strip()] = len(numbers) + 1
    return numbers


def _stem(name: str) -> str:
    """Drop the suffix of a video; the rest of a name may contain dots."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name


def _refuse_two_parts(clips: Sequence[Clip]) -> None:
    first: dict[str, Clip] = {}
    for clip in clips:
        other = first.setdefault(clip.stem, clip) if clip.part else clip
        if other.part != clip.part:
            raise DataError(
                f"{clip.where}: expected each clip in one part of a split, got {clip.stem} for {clip.part} here and "
                f"for {other.part} in {other.where}; correct the lists"
            )


def _source(clip: Clip) -> tuple[str, str]:
    """Return what all clips of one source video share: their class, and the beginning of their names."""
    return clip.class_name, _CLIP_END.sub("", clip.stem)


def _held_out_sources(clips: Sequence[Clip]) -> set[tuple[str, str]]:
    sizes: dict[str, dict[tuple[str, str], int]] = defaultdict(lambda: defaultdict(int))
    for clip in clips:
        sizes[clip.class_name][_source(clip)] += 1
    held_out = set()
    for sources in sizes.values():
        total, taken = sum(sources.values()), 0
        in_random_order = sorted(sources, key=lambda source: _digest(source[1]))
        # A source video of most clips is left for training; where all are large, the smallest is held out.
        small = [source for source in in_random_order if sources[source] <= _LARGEST_SHARE * total]
        for source in small or sorted(in_random_order, key=sources.__getitem__)[: len(sources) > 1]:
            if taken < _VALIDATION_SHARE * total and (not taken or taken + sources[source] <= _LARGEST_SHARE * total):
                held_out.add(source)
                taken += sources[source]
    return held_out


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()


def _has_videos(folder: Path, classes: Sequence[str]) -> bool:
    for name in classes:
        if (folder / name).is_dir():
            for _, folders, files in os.walk(folder / name):
                folders[:] = [subfolder for subfolder in folders if not is_hidden(subfolder)]
                if any(not is_hidden(file) and is_video(file, None) for file in files):
                    return True
    return False
