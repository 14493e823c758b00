"""Files of the point-tracking benchmarks, and of Kubric clips (MOVi-E and others) with tracks.

- TAP-Vid's pickles (DAVIS, Kinetics, RGB-stacking, RoboTAP): `read_tapvid`.
- Perception Test's JSON and videos: `read_perception_test`.
- One `.npz` per clip, with the names of Kubric's point-tracking challenge: `read_track_files`.

`read_tracked` reads any of them, from local files only. A pickle can run any program when it is loaded: these readers
accept arrays and plain containers and refuse all else.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from trecvit.data.folders import visible_files
from trecvit.data.text import read_json
from trecvit.data.tracked import TrackedVideo, TrackedVideos, resized_frame
from trecvit.errors import DataError
from trecvit.video.decode import read_frames


def read_tracked(
    path: str | Path,
    *,
    videos: str | Path | None = None,
    split: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> TrackedVideos:
    """Read a benchmark of any supported format.

    Args:
        path: TAP-Vid's `.pkl` or a folder of them, Perception Test's `.json`, or a folder of `.npz` track files.
        videos: For Perception Test: the folder of its videos.
        split: For Perception Test: read only this split.
        image_size: Height and width to resize frames to while reading; ignored for track files.

    Raises:
        DataError: The path is none of these, or see the readers below.
    """
    path = Path(path)
    if path.suffix == ".json":
        if videos is None:
            raise DataError(f"{path}: expected `videos`, the folder of Perception Test's videos, got none; give it")
        return read_perception_test(path, videos, split=split, image_size=image_size)
    if videos is not None or split is not None:
        raise DataError(
            f"{path}: expected Perception Test's .json with `videos` or `split`, got another path; leave them out"
        )
    if path.suffix == ".pkl" or visible_files(path, ".pkl"):
        return read_tapvid(path, image_size=image_size)
    if visible_files(path, ".npz"):
        return read_track_files(path)
    raise DataError(
        f"{path}: expected TAP-Vid's .pkl or a folder of them, Perception Test's .json, or a folder of .npz track files"
    )


# ---- TAP-Vid -------------------------------------------------------------------------------------------------------


def read_tapvid(path: str | Path, *, image_size: tuple[int, int] | None = None) -> TrackedVideos:
    """Read one of TAP-Vid's pickles, or a folder of them, such as the shards `0000_of_0010.pkl` of Kinetics.

    A file holds a dictionary from names to videos (DAVIS, RoboTAP), or a list of videos (Kinetics, RGB-stacking), named
    by their index. Each is a dictionary with

    - `video`: uint8 `[T, H, W, 3]`, or T frames as JPEG files (bytes);
    - `points`: floats `[N, T, 2]`, (x, y) as fractions of width and height;
    - `occluded`: bool `[N, T]`.

    Args:
        path: A file, or a folder of `.pkl` files, read in the order of their names. One file of a folder is in memory
            at a time, and each is read once more to count its videos.
        image_size: Height and width to resize frames to while reading; by default they keep their size.

    Raises:
        DataError: There is no pickle, or one is damaged, has another layout, or holds more than arrays and containers.
            An inconsistent video raises on access.
    """
    path = Path(path)
    files = visible_files(path, ".pkl") if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: expected .pkl files in this folder, got none")
    shards = _Shards()
    return TrackedVideos(
        str(path),
        [
            (name, partial(_tapvid_video, shards, file, name, image_size))
            for file in files
            for name in shards.entries(file)
        ],
    )


class _Shards:
    """Pickle files with a cache of the last one read."""

    def __init__(self) -> None:
        self._file: Path | None = None
        self._entries: dict[str, Any] = {}

    def entries(self, file: Path) -> dict[str, Any]:
        """Read the entries of a file by name."""
        if file != self._file:
            self._file, self._entries = None, {}  # free the old file first
            content = load_plain_pickle(file)
            if isinstance(content, list | tuple):
                content = {f"{file.stem}[{number}]": entry for number, entry in enumerate(content)}
            if not isinstance(content, dict):
                raise DataError(f"{file}: expected a dictionary or a list of videos, got {type(content).__name__}")
            self._file, self._entries = file, {str(name): entry for name, entry in content.items()}
        return self._entries


def _tapvid_video(shards: _Shards, file: Path, name: str, image_size: tuple[int, int] | None) -> TrackedVideo:
    entry = shards.entries(file)[name]
    missing = {"video", "points", "occluded"} - (entry.keys() if isinstance(entry, dict) else set())
    if missing:
        raise DataError(f"{file}: {name}: expected video, points and occluded, got no {', '.join(sorted(missing))}")
    return _from_fractions(
        f"{file}: {name}",
        name,
        _stacked(f"{file}: {name}", entry["video"], image_size),
        np.asarray(entry["points"]),
        np.asarray(entry["occluded"]),
    )


def _from_fractions(
    label: str, name: str, video: UInt8[np.ndarray, "t h w 3"], points: NDArray[Any], occluded: NDArray[Any]
) -> TrackedVideo:
    """Build a tracked video from points (x, y) as fractions of width and height."""
    if points.dtype.kind != "f" or points.shape != (*occluded.shape, 2) or occluded.shape[-1:] != (len(video),):
        raise DataError(
            f"{label}: expected points [N, {len(video)}, 2] of floats and occluded [N, {len(video)}], got "
            f"{points.dtype} {list(points.shape)} and {list(occluded.shape)}"
        )
    size = np.array([video.shape[2], video.shape[1]])
    return TrackedVideo(
        name=name, video=video, tracks_xy=(points * size).astype(np.float32), occluded=occluded.astype(bool)
    )


def _stacked(label: str, frames: Iterable[Any], image_size: tuple[int, int] | None) -> UInt8[np.ndarray, "t h w 3"]:
    """Stack frames, arrays or JPEG files, each resized first."""
    images: list[NDArray[np.uint8]] = []
    for number, frame in enumerate(frames):
        image = _decoded(f"{label}: frame {number}", frame) if isinstance(frame, bytes) else np.asarray(frame)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"{label}: frame {number}: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
        images.append(image if image_size is None else resized_frame(image, image_size))
    if not images or any(image.shape != images[0].shape for image in images):
        raise DataError(f"{label}: expected frames of one size, got {sorted({image.shape for image in images})}")
    return np.stack(images)


def _decoded(label: str, jpeg: bytes) -> UInt8[np.ndarray, "h w 3"]:
    try:
        with Image.open(io.BytesIO(jpeg)) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise DataError(f"{label}: expected a JPEG file: {exc}") from exc


# ---- safe pickles --------------------------------------------------------------------------------------------------


def load_plain_pickle(file: str | Path) -> Any:
    """Load a pickle of arrays, numbers, text, bytes and plain containers.

    Raises:
        DataError: It refers to anything else, which is not run; or it is damaged or does not exist.
    """
    try:
        with Path(file).open("rb") as opened:
            return _PlainUnpickler(opened).load()
    except DataError as exc:
        raise DataError(f"{file}: {exc}") from exc
    except Exception as exc:  # a damaged pickle raises many types of errors
        raise DataError(f"{file}: expected a readable pickle: {type(exc).__name__}: {exc}") from exc


def _latin1(text: str, encoding: str) -> bytes:
    """Decode bytes of pickles of protocol 2 and below: the permitted use of `_codecs.encode`."""
    if encoding != "latin1":
        raise DataError(f"expected text encoded as latin1, got {encoding!r}")
    return text.encode("latin1")


# The functions that rebuild an array; their modules depend on NumPy's version.
_REBUILD_ARRAY = np.empty(0).__reduce__()[0]
_ARRAY_FROM_BUFFER = np.empty(0).__reduce_ex__(5)[0]
_PERMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy._core.multiarray", "_reconstruct"): _REBUILD_ARRAY,
    ("numpy.core.numeric", "_frombuffer"): _ARRAY_FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _ARRAY_FROM_BUFFER,
    ("_codecs", "encode"): _latin1,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return _PERMITTED[module_name, global_name]
        except KeyError:
            raise DataError(
                f"expected arrays and plain containers only, got {module_name}.{global_name}, "
                "which could run any program"
            ) from None


# ---- Perception Test -----------------------------------------------------------------------------------------------


def read_perception_test(
    annotations: str | Path,
    videos: str | Path,
    *,
    split: str | None = None,
    image_size: tuple[int, int] | None = None,
) -> TrackedVideos:
    """Read the point tracks of the Perception Test (arXiv:2305.13786).

    The annotations are one JSON file: video's name -> `metadata` (`video_id`, `split`, `num_frames`, …) and
    `point_tracking`, a list of tracks with `frame_ids` `[N]`, the frames that show the point, and `points` `[2, N]`,
    rows y and x as fractions of height and width. In all other frames the point is occluded.

    Args:
        annotations: The JSON file, such as `point_tracking_valid.json`.
        videos: Folder of the files `{video_id}.mp4`.
        split: Read only this split.
        image_size: Height and width to resize frames to while reading; by default they keep their size, and a video may
            take gigabytes.

    Returns:
        The videos that have point tracks.

    Raises:
        DataError: The annotations are damaged or have another layout, or no video is left. A video whose length differs
            from the annotations raises on access.
    """
    annotations, videos = Path(annotations), Path(videos)
    content = read_json(annotations)
    try:
        entries = [
            (str(entry["metadata"]["video_id"]), int(entry["metadata"]["num_frames"]), entry["point_tracking"])
            for entry in content.values()
            if entry.get("point_tracking") and split in (None, entry["metadata"]["split"])
        ]
    except (ValueError, AttributeError, KeyError, TypeError) as exc:
        raise DataError(f"{annotations}: expected Perception Test's annotations: {exc!r}") from exc
    if not entries:
        raise DataError(
            f"{annotations}: expected videos with point tracks{f' in split {split!r}' if split else ''}, got none"
        )
    return TrackedVideos(
        str(annotations),
        [
            (name, partial(_perception_video, videos / f"{name}.mp4", name, num_frames, tracks, image_size))
            for name, num_frames, tracks in entries
        ],
    )


def _perception_video(
    file: Path, name: str, num_frames: int, tracks: list[Mapping[str, Any]], image_size: tuple[int, int] | None
) -> TrackedVideo:
    points = np.zeros((len(tracks), num_frames, 2))
    occluded = np.ones((len(tracks), num_frames), bool)
    for number, track in enumerate(tracks):
        try:
            frames, rows_yx = np.asarray(track["frame_ids"], np.int64), np.asarray(track["points"], np.float64)
            if rows_yx.shape != (2, len(frames)) or (frames < 0).any():
                raise ValueError(f"points {list(rows_yx.shape)}, not [2, {len(frames)}], or frames below 0")
            points[number, frames] = rows_yx[::-1].T
            occluded[number, frames] = False
        except (KeyError, TypeError, ValueError, IndexError) as exc:
            raise DataError(f"{name}: track {number}: expected frame_ids [N] and points [2, N]: {exc!r}") from exc
    video = _stacked(name, (frame.image for frame in read_frames(file)), image_size)
    if len(video) != num_frames:
        raise DataError(f"{file}: expected {num_frames} frames, as in the annotations, got {len(video)}")
    return _from_fractions(name, name, video, points, occluded)


# ---- clips with tracks, one per file -------------------------------------------------------------------------------


def read_track_files(folder: str | Path) -> TrackedVideos:
    """Read clips with tracks, a `.npz` file each, in the order of their names.

    The arrays are those that Kubric's point-tracking challenge makes from MOVi-E (`create_point_tracking_dataset`,
    without a batch axis), so `numpy.savez(path, **clip)` exports a clip:

    - `video`: uint8 `[T, H, W, 3]`, or floats from -1 (black) to 1 (white);
    - `target_points`: floats `[Q, T, 2]`, (x, y) in pixels from the outer corner of the top left pixel;
    - `occluded`: bool `[Q, T]`, hidden or outside the frame;
    - `query_points`, optional: floats `[Q, 3]`, (frame, y, x).

    Raises:
        DataError: There is no such file. A damaged file or one of another layout raises on access.
    """
    folder = Path(folder)
    files = visible_files(folder, ".npz")
    if not files:
        raise DataError(f"{folder}: expected .npz files with tracks in this folder, got none")
    return TrackedVideos(str(folder), [(file.stem, partial(_track_file, file)) for file in files])


def _track_file(file: Path) -> TrackedVideo:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            video, points, occluded = (arrays[key] for key in ("video", "target_points", "occluded"))
            queries = arrays["query_points"].astype(np.float32) if "query_points" in arrays else None
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as exc:
        raise DataError(f"{file}: expected the arrays video, target_points and occluded: {exc}") from exc
    if video.dtype.kind == "f":
        if not np.abs(video).max(initial=0) <= 1:
            raise DataError(f"{file}: video: expected floats from -1 to 1, got others")
        video = ((video.astype(np.float32) + 1) * 127.5).round().astype(np.uint8)
    return TrackedVideo(
        name=file.stem,
        video=video,
        tracks_xy=points.astype(np.float32),
        occluded=occluded.astype(bool),
        query_points_tyx=queries,
    )
