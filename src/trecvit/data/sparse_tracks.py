"""Point tracks that are annotated in a few frames: BADJA's joints, and TAP-Vid's points in first and last frames."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trecvit.data.folders import visible_files
from trecvit.data.text import read_json, read_text
from trecvit.data.tracked import TrackedVideo
from trecvit.errors import DataError, VideoError
from trecvit.video.decode import read_frames
from trecvit.video.stills import image_paths

# BADJA annotates these of the 37 joints of its animal model: three of each leg, neck, three of the tail, jaw, nose and
# ears. Some files also have joint 34, the chin, which PIPs' evaluation leaves out.
BADJA_JOINTS = (8, 9, 10, 12, 13, 14, 15, 18, 19, 20, 22, 23, 24, 25, 28, 31, 32, 33, 35, 36)
_NUM_JOINTS = 37
_DAVIS_SIZE = (1080, 1920)  # BADJA's joints on DAVIS are in pixels of its full resolution
_TAPVID_SIZE = (480, 854)  # the table's points are in pixels of DAVIS's 480p


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SparseTracks:
    """A video whose points are annotated in some frames only.

    Attributes:
        video: The frames from the first annotated one on. `occluded` is True where a point is hidden or not annotated.
            All points have a position in frame 0.
        frames: Annotated frames, rising from 0.
        mask_shares: float64, one for each of `frames`: the share of the picture that the object covers; None without
            masks.
    """

    video: TrackedVideo
    frames: tuple[int, ...]
    mask_shares: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class SparseVideos:
    """Videos with sparse tracks, read on access.

    Attributes:
        source: Their origin, for messages and results.
        readers: A function for each video by its name, which raises DataError or VideoError.
        left_out: The reason for each annotated video that cannot be used, by name.
    """

    source: str
    readers: Mapping[str, Callable[[], SparseTracks]]
    left_out: Mapping[str, str]

    def __post_init__(self) -> None:
        if not self.readers:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in [*self.left_out.items()][:3])
            raise DataError(f"{self.source}: expected at least one video, got none: {reasons or 'it is empty'}")


def read_sparse(
    path: str | Path, *, frames: str | Path | None = None, masks: str | Path | None = None
) -> SparseVideos | None:
    """Read a folder of BADJA's files or a table of first and last frames; None for any other path.

    Args:
        path: See `read_badja` and `read_first_last`.
        frames: Likewise.
        masks: Likewise; for BADJA only.

    Raises:
        DataError: See these readers, or a table without `frames`.
    """
    path = Path(path)
    if path.is_dir():
        files = visible_files(path, ".json")
        return (
            read_badja(path, frames=frames, masks=masks) if files and '"segmentation_path"' in _head(files[0]) else None
        )
    if path.suffix.lower() != ".csv" or not path.is_file() or "video_idx" not in _head(path):
        return None
    if frames is None:
        raise DataError(f"{path}: expected `videos`, the folder of the frames of each video, got none; give it")
    return read_first_last(path, frames=frames)


def check_sparse(videos: SparseVideos, report: Callable[[int, int], None] = lambda *_: None) -> dict[str, Any]:
    """Read every video with its annotations to the end.

    Args:
        videos: The videos.
        report: Called with the number of videos done, and of those that failed.

    Returns:
        Plain JSON values: `listed`, `good`, `frames`, `missing` and `failed` with reasons, and for each video its
        frames, points, annotated frames, visible annotations, and those outside the picture.
    """
    good, failed = [], []
    for done, (name, read) in enumerate(videos.readers.items(), start=1):
        try:
            tracks = read()
        except (DataError, VideoError) as exc:
            failed.append({"name": name, "reason": str(exc)})
        else:
            height, width = tracks.video.video.shape[1:3]
            places = tracks.video.tracks_xy[~tracks.video.occluded]
            good.append(
                {
                    "name": name,
                    "frames": tracks.video.num_frames,
                    "points": len(tracks.video.tracks_xy),
                    "annotated_frames": len(tracks.frames),
                    "visible": len(places),
                    "outside": int(((places < 0) | (places > (width, height))).any(axis=1).sum()),
                }
            )
        report(done, len(failed))
    return {
        "source": videos.source,
        "listed": len(videos.readers) + len(videos.left_out),
        "good": len(good),
        "frames": sum(video["frames"] for video in good),
        "missing": [{"name": name, "reason": reason} for name, reason in videos.left_out.items()],
        "failed": failed,
        "videos": good,
    }


def _head(file: Path) -> str:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(4096)


# ---- BADJA ---------------------------------------------------------------------------------------------------------


def read_badja(
    annotations: str | Path, *, frames: str | Path | None = None, masks: str | Path | None = None
) -> SparseVideos:
    """Read the joints of BADJA (Biggs et al., ACCV 2018): a JSON file per animal, about every fifth frame annotated.

    A file is a list of objects with `image_path`, `segmentation_path`, `joints` (37 pairs of row and column) and
    `visibility` (37 booleans). Joints on DAVIS are in pixels of 1920 x 1080, others in those of their own frames.

    Args:
        annotations: Folder of the files.
        frames: Folder with a folder of frames, or a video, for each animal, named as its file. By default the paths in
            the files count from the parent of `annotations`, as in BADJA's own folder.
        masks: Likewise for the masks: pixels above 0 belong to the animal.

    Returns:
        The animals with frames and a mask for each annotated frame; the others are `left_out`.

    Raises:
        DataError: There is no such file, or one has another layout.
    """
    annotations = Path(annotations)
    files = visible_files(annotations, ".json") if annotations.is_dir() else []
    if not files:
        raise DataError(f"{annotations}: expected a folder with BADJA's .json files, got none")
    readers: dict[str, Callable[[], SparseTracks]] = {}
    left_out: dict[str, str] = {}
    for file in files:
        entries = _badja_entries(file)
        pictures = _location(frames, file, entries[0]["image_path"])
        covers = _location(masks, file, entries[0]["segmentation_path"])
        if not pictures.exists():
            left_out[file.stem] = f"no frames in {pictures}"
        elif absent := [mask for mask in _mask_files(covers, entries) if not mask.is_file()]:
            left_out[file.stem] = f"no mask for {len(absent)} of {len(entries)} frames, such as {absent[0]}"
        else:
            readers[file.stem] = partial(_badja_animal, file, entries, pictures, covers)
    return SparseVideos(str(annotations), readers, left_out)


def _badja_entries(file: Path) -> list[dict[str, Any]]:
    entries = read_json(file)
    try:
        for entry in entries:
            joints, visible = np.asarray(entry["joints"], float), np.asarray(entry["visibility"])
            if joints.shape != (_NUM_JOINTS, 2) or visible.shape != (_NUM_JOINTS,) or visible.dtype != bool:
                raise ValueError(f"joints {list(joints.shape)} and visibility {visible.dtype} {list(visible.shape)}")
            for key in ("image_path", "segmentation_path"):
                if not Path(entry[key]).stem.isdecimal():
                    raise ValueError(f"{key} {entry[key]!r} without a frame's number")
        entries = sorted(entries, key=lambda entry: int(Path(entry["image_path"]).stem))
    except (KeyError, TypeError, ValueError) as exc:
        raise DataError(
            f"{file}: expected a list of objects with image_path, segmentation_path, joints [37, 2] and visibility "
            f"[37], got {exc!r}"
        ) from exc
    if len({entry["image_path"] for entry in entries}) != len(entries) or len(entries) < 2:
        raise DataError(f"{file}: expected two or more frames, each once, got {len(entries)}")
    return list(entries)


def _location(given: str | Path | None, file: Path, listed: str) -> Path:
    """Return the folder of an animal's frames or masks, or its video."""
    if given is None:
        return (file.parent.parent / listed).parent
    folder = Path(given) / file.stem
    videos = [path for path in Path(given).glob("*.*") if path.stem == file.stem and path.is_file()]
    return folder if folder.exists() or len(videos) != 1 else videos[0]


def _mask_files(folder: Path, entries: Sequence[Mapping[str, Any]]) -> list[Path]:
    return [folder / f"{Path(entry['segmentation_path']).stem}.png" for entry in entries]


def _badja_animal(file: Path, entries: Sequence[Mapping[str, Any]], pictures: Path, covers: Path) -> SparseTracks:
    places = [_place_of(pictures, Path(entry["image_path"]).stem) for entry in entries]
    pixels = _read_pixels(pictures, places[0], places[-1] + 1)
    height, width = pixels.shape[1:3]
    on_davis = "DAVIS" in Path(entries[0]["image_path"]).parts
    scale = np.divide((height, width), _DAVIS_SIZE) if on_davis else np.ones(2)
    joints = np.array([entry["joints"] for entry in entries], float)[:, BADJA_JOINTS]
    visible = np.array([entry["visibility"] for entry in entries])[:, BADJA_JOINTS]
    annotated = tuple(place - places[0] for place in places)
    tracks = np.zeros((len(BADJA_JOINTS), len(pixels), 2), np.float32)
    # Rows and columns number pixels, whose centres are half a pixel from their corners.
    tracks[:, annotated] = ((joints + 0.5) * scale)[..., ::-1].swapaxes(0, 1)
    occluded = np.ones(tracks.shape[:2], bool)
    occluded[:, annotated] = ~visible.T
    shares = [_mask_share(mask) for mask in _mask_files(covers, entries)]
    video = TrackedVideo(name=file.stem, video=pixels, tracks_xy=tracks, occluded=occluded)
    return SparseTracks(video=video, frames=annotated, mask_shares=np.array(shares))


def _place_of(pictures: Path, stem: str) -> int:
    """Return a frame's index: that of the image with this name, or in a video the number itself."""
    if not pictures.is_dir():
        return int(stem)
    stems = [path.stem for path in image_paths(pictures)]
    if stem not in stems:
        raise DataError(f"{pictures}: expected the frame {stem}, as in the annotations, got no such image")
    return stems.index(stem)


def _mask_share(file: Path) -> float:
    try:
        with Image.open(file) as picture:
            mask = np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as exc:
        raise DataError(f"{file}: expected a mask as a picture: {exc}") from exc
    inside = mask > 0 if mask.ndim == 2 else (mask[..., :3] > 0).any(axis=-1)
    return float(inside.mean())


# ---- first and last frames -----------------------------------------------------------------------------------------

_COLUMNS = ("video_idx", "query_frame", "query_x", "query_y", "track_end_x", "track_end_y", "total_frames")


def read_first_last(table: str | Path, *, frames: str | Path, names: str | Path | None = None) -> SparseVideos:
    """Read a table of TAP-Vid points in their query's frame and in the last frame of the video.

    Columns: `video_idx`, `query_frame`, `query_x`, `query_y`, `track_end_x`, `track_end_y`, `total_frames`; others are
    ignored. Positions are pixels of 854 x 480; (0, 0) at the end means not visible in the last frame.

    Args:
        table: The csv.
        frames: Folder with a folder of frames, or a video, for each name.
        names: JSON list of the videos' names, by `video_idx`; by default the only `*names.json` beside the table.

    Returns:
        The videos with frames; the others are `left_out`.

    Raises:
        DataError: A file is missing or has another layout, or points have different query frames.
    """
    table, frames = Path(table), Path(frames)
    videos = _table_of_points(table, _video_names(table, names))
    readers: dict[str, Callable[[], SparseTracks]] = {}
    left_out: dict[str, str] = {}
    for name, points in videos.items():
        pictures = _location(frames, Path(f"{name}.csv"), "")
        if pictures.exists():
            readers[name] = partial(_first_last_video, table, name, points, pictures)
        else:
            left_out[name] = f"no frames in {pictures}"
    return SparseVideos(str(table), readers, left_out)


def _video_names(table: Path, names: str | Path | None) -> list[str]:
    if names is None:
        found = visible_files(table.parent, "names.json")
        if len(found) != 1:
            raise DataError(
                f"{table}: expected one *names.json beside it, with the names of the videos, got {len(found)}; give it"
            )
        names = found[0]
    content = read_json(Path(names))
    if not isinstance(content, list) or not all(isinstance(name, str) and name for name in content):
        raise DataError(f"{names}: expected a JSON list of the videos' names")
    return content


def _table_of_points(table: Path, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Read the rows of each video as an array [Q, 6]: query frame, x, y, last x, last y, number of frames."""
    rows = csv.DictReader(io.StringIO(read_text(table, "a csv of points"), newline=""))
    if absent := [column for column in _COLUMNS if column not in (rows.fieldnames or ())]:
        raise DataError(f"{table}: expected the columns {', '.join(_COLUMNS)}, got no {', '.join(absent)}")
    points: dict[str, list[list[float]]] = defaultdict(list)
    for line, row in enumerate(rows, start=2):
        try:
            index = int(row["video_idx"])
            values = [float(row[column]) for column in _COLUMNS[1:]]
            if not (0 <= index < len(names) and np.isfinite(values).all()):
                raise ValueError(f"video {index} of {len(names)}")
        except (TypeError, ValueError) as exc:
            raise DataError(f"{table}, line {line}: expected a video's index and numbers, got {row}: {exc}") from exc
        points[names[index]].append(values)
    arrays = {name: np.array(values) for name, values in points.items()}
    for name, array in arrays.items():
        if (array[:, [0, 5]] != array[0, [0, 5]]).any() or not 0 <= array[0, 0] < array[0, 5] - 1:
            raise DataError(
                f"{table}: {name}: expected one query frame before the last and one number of frames for all points"
            )
    return arrays


def _first_last_video(table: Path, name: str, points: NDArray[np.float64], pictures: Path) -> SparseTracks:
    first, total = int(points[0, 0]), int(points[0, 5])
    pixels = _read_pixels(pictures, 0, None)
    if len(pixels) != total:
        raise DataError(f"{pictures}: expected {total} frames, as in {table}, got {len(pixels)}")
    pixels = pixels[first:]
    scale = np.divide((pixels.shape[2], pixels.shape[1]), _TAPVID_SIZE[::-1])
    tracks = np.zeros((len(points), len(pixels), 2), np.float32)
    tracks[:, 0], tracks[:, -1] = points[:, 1:3] * scale, points[:, 3:5] * scale
    occluded = np.ones(tracks.shape[:2], bool)
    occluded[:, 0], occluded[:, -1] = False, (points[:, 3:5] == 0).all(axis=1)
    video = TrackedVideo(name=name, video=pixels, tracks_xy=tracks, occluded=occluded)
    return SparseTracks(video=video, frames=(0, len(pixels) - 1))


def _read_pixels(source: Path, start: int, stop: int | None) -> NDArray[np.uint8]:
    frames = [
        frame.image for frame in islice(read_frames(source, start_frame=start), None if stop is None else stop - start)
    ]
    if stop is not None and len(frames) < stop - start:
        raise DataError(f"{source}: expected {stop} frames or more, got {start + len(frames)}")
    return np.stack(frames)
