"""Point trackers on real videos with sparse annotations: PCK-T of BADJA's joints, and TAP-Vid's metrics in last frames.

All trackers see the same videos, each in frames of its own size: the tracker, static points and Lucas–Kanade.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from trecvit.data.clips import Failure
from trecvit.data.sparse_tracks import SparseTracks, SparseVideos
from trecvit.errors import DataError, VideoError
from trecvit.evaluate.point_baselines import LucasKanade, static_points
from trecvit.evaluate.point_comparison import BASELINES
from trecvit.evaluate.tapvid import IMAGE_SIZE, tapvid_metrics
from trecvit.model.tracker import PointTracker, Tracker
from trecvit.video.draw import Trail, draw_grid, draw_trails, draw_truth
from trecvit.video.frames import Image

PCK_SHARE = 0.2
PCK_RASTER = (320, 512)  # height and width in which PIPs' evaluation measures distances and areas
_CELL_WIDTH_PX = 400
_NUM_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class Predicted:
    """A tracker's predictions in the annotated frames of a video.

    Attributes:
        points_xy: `[Q,F,2]`, as shares of the picture's width and height.
        visible: `[Q,F]`.
    """

    points_xy: Float[np.ndarray, "q f 2"]
    visible: Bool[np.ndarray, "q f"]


Score = Callable[[SparseTracks, Predicted], dict[str, float]]


def pck_t(tracks: SparseTracks, predicted: Predicted) -> dict[str, float]:
    """Compute PCK-T: the share of joints less than 0.2 times the root of the mask's area from their annotation.

    Counted are visible joints in all annotated frames after the first, as in the evaluation of PIPs (Harley et al.
    2022, arXiv:2204.04153, `test_on_badja.py`), distances and areas in pixels of 512 x 320.

    Returns:
        `pck_t` of the joints that are visible in the first annotated frame, where tracking starts; and `pck_t_all` of
        all joints, as PIPs counts: a joint that is hidden at first starts at its listed place, often (0, 0).

    Raises:
        DataError: There are no masks, or no joint is counted.
    """
    if tracks.mask_shares is None:
        raise DataError(f"{tracks.video.name}: expected a mask for each annotated frame, got none")
    height_px, width_px = PCK_RASTER
    errors = np.linalg.norm((predicted.points_xy - _truth(tracks)) * (width_px, height_px), axis=-1)
    within = errors < PCK_SHARE * np.sqrt(tracks.mask_shares * height_px * width_px)
    visible = ~tracks.video.occluded[:, tracks.frames]
    counted = visible & (np.arange(len(tracks.frames)) > 0)
    from_start = counted & visible[:, :1]
    if not from_start.any():
        raise DataError(f"{tracks.video.name}: expected joints that are visible in the first frame and later, got none")
    return {"pck_t": float(within[from_start].mean()), "pck_t_all": float(within[counted].mean())}


def last_frame(tracks: SparseTracks, predicted: Predicted) -> dict[str, float]:
    """Compute TAP-Vid's metrics in the last frame alone, in pixels of its 256 x 256 raster.

    Returns:
        As `tapvid_metrics`; NaN for those of visible points where no point is visible in the last frame.
    """
    ends = [0, -1]
    height_px, width_px = IMAGE_SIZE
    queries = np.zeros((1, len(tracks.video.tracks_xy), 3))
    metrics = tapvid_metrics(
        query_points_tyx=queries,
        gt_occluded=tracks.video.occluded[None][..., ends],
        gt_tracks_xy=_truth(tracks)[None, :, ends] * (width_px, height_px),
        pred_occluded=~predicted.visible[None][..., ends],
        pred_tracks_xy=predicted.points_xy[None, :, ends] * (width_px, height_px),
        query_mode="first",
    )
    return {name: float(value) for name, [value] in metrics.items()}


@dataclass(frozen=True)
class SparseScores:
    """Scores of several trackers on the same videos.

    Attributes:
        trackers: Their names.
        videos: Names of the videos with scores.
        metrics: Tracker -> metric -> `[M]`, a value per video; NaN where there is none.
        failures: Videos that could not be read or scored.
    """

    trackers: tuple[str, ...]
    videos: tuple[str, ...]
    metrics: Mapping[str, Mapping[str, NDArray[np.float64]]]
    failures: tuple[Failure, ...] = field(default=())

    def means(self, tracker: str) -> dict[str, float]:
        """Average each metric over the videos that have it."""
        return {
            name: float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
            for name, values in self.metrics[tracker].items()
        }


def compare_on_sparse(
    tracker: PointTracker,
    name: str,
    videos: SparseVideos,
    score: Score,
    *,
    pictures: Path | None = None,
    report: Callable[[int, int], None] = lambda *_: None,
) -> SparseScores:
    """Score a tracker, static points and Lucas–Kanade on every video.

    Args:
        tracker: Sees frames of the size in its `preprocessing`; the baselines see 256 x 256 pixels.
        name: Its name in the results.
        videos: The videos.
        score: `pck_t` or `last_frame`.
        pictures: Folder for a picture of each video: a row per tracker, predictions and annotations over time.
        report: Called with the number of videos done, and of those that failed.

    Raises:
        DataError: No video has a score.
        MissingPackageError: OpenCV is not installed.
    """
    trackers: tuple[tuple[str, Tracker, tuple[int, int]], ...] = (
        (name, tracker, tracker.preprocessing.image_size),
        (BASELINES[0], static_points, IMAGE_SIZE),
        (BASELINES[1], LucasKanade(), IMAGE_SIZE),
    )
    scored: list[str] = []
    failures: list[Failure] = []
    rows: dict[str, list[dict[str, float]]] = {title: [] for title, _, _ in trackers}
    for done, (video_name, read) in enumerate(videos.readers.items(), start=1):
        try:
            tracks = read()
            predictions = {
                title: predict(track, tracks, image_size, tracker.device) for title, track, image_size in trackers
            }
            scores = {title: score(tracks, predicted) for title, predicted in predictions.items()}
        except (DataError, VideoError) as exc:
            failures.append(Failure(video_name, str(exc)))
        else:
            scored.append(video_name)
            for title, of_video in scores.items():
                rows[title].append(of_video)
            if pictures:
                pictures.mkdir(parents=True, exist_ok=True)
                PIL.Image.fromarray(draw_comparison(tracks, predictions)).save(pictures / f"{video_name}.png")
        report(done, len(failures))
    if not scored:
        raise DataError(f"{videos.source}: no video has a score; the first, {failures[0].name}: {failures[0].reason}")
    metrics = {
        title: {metric: np.array([row[metric] for row in of_videos]) for metric in of_videos[0]}
        for title, of_videos in rows.items()
    }
    return SparseScores(tuple(rows), tuple(scored), metrics, tuple(failures))


@torch.inference_mode()
def predict(
    tracker: Tracker, tracks: SparseTracks, image_size: tuple[int, int], device: torch.device | str
) -> Predicted:
    """Track all points from frame 0 and return the predictions in the annotated frames.

    Points that are hidden in frame 0 are tracked apart from the others, lest they change the others' predictions.
    """
    video = tracks.video.resized(image_size)
    pixels = torch.from_numpy(video.video).permute(0, 3, 1, 2)[None].to(device)
    starts_tyx = np.concatenate([np.zeros((len(video.tracks_xy), 1)), video.tracks_xy[:, 0, ::-1]], axis=1)
    hidden = video.occluded[:, 0]
    points = np.zeros((len(hidden), len(tracks.frames), 2))
    visible = np.zeros(points.shape[:2], bool)
    for group in (~hidden, hidden):
        if group.any():
            queries = torch.from_numpy(starts_tyx[group].astype(np.float32))[None].to(device)
            output = tracker(pixels, queries)
            points[group] = output.points_xy[0].double().cpu().numpy()[:, tracks.frames]
            visible[group] = output.visible[0].cpu().numpy()[:, tracks.frames]
    return Predicted(points / (image_size[1], image_size[0]), visible)


def _truth(tracks: SparseTracks) -> Float[np.ndarray, "q f 2"]:
    height, width = tracks.video.video.shape[1:3]
    truth: np.ndarray = tracks.video.tracks_xy[:, tracks.frames].astype(np.float64) / (width, height)
    return truth


# ---- results and pictures ------------------------------------------------------------------------------------------


def to_dict(scores: SparseScores, videos: SparseVideos, *, test: str, metrics: Sequence[str]) -> dict[str, Any]:
    """Convert to plain JSON values.

    Args:
        scores: The scores.
        videos: The data.
        test: Name of the protocol.
        metrics: Metrics to write, by name.
    """

    def plain(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "protocol": test,
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "videos": len(scores.videos),
        "left_out": dict(videos.left_out),
        "failed": [{"name": failure.name, "reason": failure.reason} for failure in scores.failures],
        "means": {
            tracker: {metric: plain(scores.means(tracker)[metric]) for metric in metrics} for tracker in scores.trackers
        },
        "per_video": [
            {
                "video": video,
                "tracker": tracker,
                **{metric: plain(float(scores.metrics[tracker][metric][row])) for metric in metrics},
            }
            for row, video in enumerate(scores.videos)
            for tracker in scores.trackers
        ],
    }


def draw_comparison(tracks: SparseTracks, predictions: Mapping[str, Predicted]) -> Image:
    """Draw a row per tracker: the first annotated frame, and others up to the last.

    White crosses are annotations, discs predictions, hollow if predicted hidden, with a line between the two. Drawn
    are the points that are visible in the first frame, where they are visible.

    Returns:
        uint8 `[H,W,3]`.
    """
    columns = np.unique(np.linspace(0, len(tracks.frames) - 1, _NUM_COLUMNS).round().astype(int))
    height, width = tracks.video.video.shape[1:3]
    cell = np.array([_CELL_WIDTH_PX, round(_CELL_WIDTH_PX * height / width)])
    truth = _truth(tracks) * cell
    rows = []
    for predicted in predictions.values():
        row = []
        for column in columns:
            frame = tracks.frames[column]
            picture = PIL.Image.fromarray(tracks.video.video[frame]).resize(tuple(cell), PIL.Image.Resampling.LANCZOS)
            drawn = np.flatnonzero(~tracks.video.occluded[:, 0] & ~tracks.video.occluded[:, frame])
            trails = [
                Trail(
                    np.stack([truth[point, column], predicted.points_xy[point, column] * cell]),
                    np.array([True, predicted.visible[point, column]]),
                    point / len(truth),
                )
                for point in drawn
            ]
            image = draw_trails(np.array(picture), trails)
            for point in drawn:
                image = draw_truth(image, truth[point, column], True)
            row.append(image)
        rows.append(row)
    titles = [f"frame {tracks.frames[column]}" for column in columns]
    return draw_grid(rows, titles, row_titles=list(predictions))
