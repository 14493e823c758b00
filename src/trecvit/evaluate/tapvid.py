"""TAP-Vid benchmark (Doersch et al. 2022, arXiv:2211.03726): accuracy of tracked points and of their visibility.

A tracker is any callable: video uint8 `[B,T,3,H,W]` and queries (frame, y, x) float32 `[B,Q,3]` -> `TrackerOutput`.
Points are in pixels of that video; the origin is the outer corner of the top left pixel (see `trecvit.data.tracked`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from trecvit.data.clips import Failure
from trecvit.data.tracked import TrackedVideo, TrackedVideos
from trecvit.errors import DataError, InputError, VideoError
from trecvit.files import write_json
from trecvit.model.tracker import Tracker, TrackerOutput, track_both_ways

THRESHOLDS_PX = (1, 2, 4, 8, 16)
QUERY_MODES = ("first", "strided")
QUERY_STRIDE = 5
IMAGE_SIZE = (256, 256)  # the thresholds are pixels of this raster

QueryMode = Literal["first", "strided"]


# ---- the metrics ---------------------------------------------------------------------------------------------------


def tapvid_metrics(
    *,
    query_points_tyx: NDArray[Any],
    gt_occluded: NDArray[Any],
    gt_tracks_xy: NDArray[Any],
    pred_occluded: NDArray[Any],
    pred_tracks_xy: NDArray[Any],
    query_mode: str,
) -> dict[str, Float[np.ndarray, " b"]]:
    """Compute the benchmark's metrics of each video of a batch, in [0, 1]; a data set's are means over its videos.

    The query's frame never counts; in mode `first` neither do the frames before it. "Visible" and "hidden" are the
    truth; "predicted visible" is the prediction.

    - `occlusion_accuracy` (OA): share of points with correctly predicted visibility.
    - `pts_within_{d}`, d in 1, 2, 4, 8, 16: share of visible points placed less than d pixels off, whatever the
      predicted visibility; `average_pts_within_thresh` (δ_avg) is the mean of the five.
    - `jaccard_{d}`: true positives / (visible + false positives). True positives are visible, predicted visible and
      less than d off; false positives are predicted visible, but hidden or too far off. `average_jaccard` (AJ) is the
      mean of the five.

    Args:
        query_points_tyx: `[B,Q,3]`, (frame, y, x); only the frame is used.
        gt_occluded: bool `[B,Q,T]`.
        gt_tracks_xy: `[B,Q,T,2]` in pixels of a 256 x 256 raster.
        pred_occluded: bool `[B,Q,T]`.
        pred_tracks_xy: `[B,Q,T,2]`, in the same pixels.
        query_mode: "first" or "strided".

    Returns:
        Name -> float64 `[B]`. Metrics over no point are NaN, as in the benchmark's own code.

    Raises:
        InputError: for inconsistent shapes, frames outside the video, or an unknown mode.
    """
    gt_hidden, pred_hidden = np.asarray(gt_occluded, bool), np.asarray(pred_occluded, bool)
    counted = _counted(query_points_tyx, gt_hidden.shape, query_mode)
    for name, array, shape in (
        ("gt_tracks_xy", gt_tracks_xy, (*gt_hidden.shape, 2)),
        ("pred_occluded", pred_hidden, gt_hidden.shape),
        ("pred_tracks_xy", pred_tracks_xy, (*gt_hidden.shape, 2)),
    ):
        if array.shape != shape:
            raise InputError(f"{name}: expected {list(shape)} as gt_occluded has it, got {list(array.shape)}")
    visible, pred_visible = ~gt_hidden & counted, ~pred_hidden & counted
    squared_error = np.square(np.asarray(pred_tracks_xy) - gt_tracks_xy).sum(axis=-1)

    def count(points: Bool[np.ndarray, "b q t"]) -> Int[np.ndarray, " b"]:
        counts: np.ndarray = points.sum(axis=(1, 2))
        return counts

    with np.errstate(invalid="ignore"):
        metrics = {"occlusion_accuracy": count((pred_hidden == gt_hidden) & counted) / count(counted)}
        for threshold in THRESHOLDS_PX:
            near = squared_error < threshold**2
            false_positives = pred_visible & ~(visible & near)
            metrics[f"pts_within_{threshold}"] = count(visible & near) / count(visible)
            metrics[f"jaccard_{threshold}"] = count(visible & near & pred_visible) / (
                count(visible) + count(false_positives)
            )
    metrics["average_jaccard"] = np.mean([metrics[f"jaccard_{d}"] for d in THRESHOLDS_PX], axis=0)
    metrics["average_pts_within_thresh"] = np.mean([metrics[f"pts_within_{d}"] for d in THRESHOLDS_PX], axis=0)
    return metrics


def _counted(queries: NDArray[Any], shape: tuple[int, ...], query_mode: str) -> Bool[np.ndarray, "b q t"]:
    """Return which points of which frames count."""
    if query_mode not in QUERY_MODES:
        raise InputError(f"query_mode: expected one of {', '.join(QUERY_MODES)}, got {query_mode!r}")
    if len(shape) != 3 or queries.shape != (*shape[:2], 3):
        raise InputError(
            f"expected gt_occluded [B, Q, T] and query_points_tyx [B, Q, 3], got {list(shape)} and "
            f"{list(queries.shape)}"
        )
    query_frames = np.round(queries[..., :1]).astype(np.int64)
    if ((query_frames < 0) | (query_frames >= shape[2])).any():
        raise InputError(f"query_points_tyx: expected frames from 0 to {shape[2] - 1}, got {int(query_frames.max())}")
    frames = np.arange(shape[2])
    counted: np.ndarray = frames > query_frames if query_mode == "first" else frames != query_frames
    return counted


# ---- the queries ---------------------------------------------------------------------------------------------------


class Queries(NamedTuple):
    """Queries of one video.

    Attributes:
        points_tyx: float32 `[Q,3]`, (frame, y, x).
        tracks: `[Q]`, the index of each query's track.
    """

    points_tyx: NDArray[np.float32]
    tracks: NDArray[np.int64]


def queries_first(video: TrackedVideo) -> Queries:
    """Query each track in its first visible frame; never visible ones are skipped."""
    seen = ~video.occluded
    tracks = np.nonzero(seen.any(axis=1))[0]
    return _queries(video, tracks, seen[tracks].argmax(axis=1))


def queries_strided(video: TrackedVideo, stride: int = QUERY_STRIDE) -> Queries:
    """Query each track in every `stride`-th frame of the video in which it is visible."""
    offsets, tracks = np.nonzero(~video.occluded[:, ::stride].T)
    return _queries(video, tracks, offsets * stride)


def _queries(video: TrackedVideo, tracks: NDArray[np.int64], frames: NDArray[np.int64]) -> Queries:
    x, y = video.tracks_xy[tracks, frames].T
    return Queries(np.stack([frames, y, x], axis=1).astype(np.float32), tracks)


# ---- the protocol --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TapvidScores:
    """One row per video.

    Attributes:
        names: Names of the M videos.
        num_queries: `[M]`.
        metrics: Name as in `tapvid_metrics` -> `[M]`.
    """

    names: tuple[str, ...]
    num_queries: tuple[int, ...]
    metrics: dict[str, NDArray[np.float64]]

    def means(self) -> dict[str, float]:
        """Average each metric over the videos: the benchmark's numbers."""
        return {name: float(values.mean()) for name, values in self.metrics.items()}

    def per_video(self) -> list[dict[str, Any]]:
        """Return a row of plain JSON values for each video."""
        return [
            {
                "video": name,
                "queries": self.num_queries[row],
                **{metric: float(values[row]) for metric, values in self.metrics.items()},
            }
            for row, name in enumerate(self.names)
        ]


@torch.inference_mode()
def evaluate_tapvid(
    tracker: Tracker,
    videos: TrackedVideos,
    *,
    query_mode: QueryMode = "first",
    use_certainty: bool = False,
    queries_at_once: int | None = None,
    image_size: tuple[int, int] = IMAGE_SIZE,
    device: torch.device | str = "cpu",
    report: Callable[[int, int], None] = lambda *_: None,
    show: Callable[[TrackedVideo, Queries, TrackerOutput], None] = lambda *_: None,
) -> tuple[TapvidScores, list[Failure]]:
    """Score a tracker on every video, resized to `image_size`; the benchmark's is 256 x 256 pixels.

    Args:
        tracker: See the top of this file.
        videos: From one of the readers of `trecvit.data.tapvid`, or scenes of `trecvit.synthetic.track_scenes`.
        query_mode: "first" queries each track once, in its first visible frame, and scores the later frames;
            "strided" queries it in every fifth frame that shows it, and scores all other frames: those before the query
            are tracked on the reversed video.
        use_certainty: Predict visible where sigmoid(visible_logits) * certainty > 0.5, as MooG and TAPIR do, instead
            of by `visible_logits` alone.
        queries_at_once: Points tracked together; by default all of a video. Points that attend to each other change
            each other's tracks, so this is part of the protocol.
        image_size: Height and width that the tracker sees. Scores are always in pixels of the 256 x 256 raster.
        device: The tracker's device.
        report: Called with the number of videos done, and of those that failed.
        show: Called with each video as the tracker saw it, its queries and its predictions.

    Returns:
        The scores, and the videos without a score: unreadable, or with no visible point to score.

    Raises:
        InputError: for an invalid argument, or a tracker's output of wrong shape.
        DataError: when no video has a score.
    """
    if query_mode not in QUERY_MODES:
        raise InputError(f"query_mode: expected one of {', '.join(QUERY_MODES)}, got {query_mode!r}")
    if queries_at_once is not None and queries_at_once < 1:
        raise InputError(f"queries_at_once: expected 1 or more, or None for all, got {queries_at_once}")
    names: list[str] = []
    num_queries: list[int] = []
    rows: list[dict[str, NDArray[np.float64]]] = []
    failures: list[Failure] = []
    for done, name in enumerate(videos.names, start=1):
        try:
            video = videos[done - 1].resized(image_size)
            queries = queries_first(video) if query_mode == "first" else queries_strided(video)
            _refuse_if_nothing_counts(video, queries, query_mode)
        except (DataError, VideoError) as exc:
            failures.append(Failure(name, str(exc)))
        else:
            pixels = torch.from_numpy(video.video).permute(0, 3, 1, 2)[None].to(device)
            points_tyx = torch.from_numpy(queries.points_tyx)[None].to(device)
            track = partial(track_both_ways, tracker) if query_mode == "strided" else tracker
            output = _track(track, pixels, points_tyx, queries_at_once or len(queries.tracks))
            show(video, queries, output)
            rows.append(_score(video, queries, output, query_mode, use_certainty))
            names.append(name)
            num_queries.append(len(queries.tracks))
        report(done, len(failures))
    if not rows:
        first = f"; the first, {failures[0].name}: {failures[0].reason}" if failures else ""
        raise DataError(f"{videos.source}: none of {len(videos)} videos could be scored{first}")
    metrics = {metric: np.concatenate([row[metric] for row in rows]) for metric in rows[0]}
    return TapvidScores(tuple(names), tuple(num_queries), metrics), failures


def _refuse_if_nothing_counts(video: TrackedVideo, queries: Queries, query_mode: QueryMode) -> None:
    hidden = video.occluded[queries.tracks]
    counted = _counted(queries.points_tyx[None], (1, *hidden.shape), query_mode)[0]
    if not (counted & ~hidden).any():
        raise DataError(f"{video.name}: no point is visible in a frame that counts in mode {query_mode!r}")


def _track(tracker: Tracker, video: Tensor, query_points_tyx: Tensor, queries_at_once: int) -> TrackerOutput:
    """Track all queries, so many at a time."""
    expected = (video.shape[0], query_points_tyx.shape[1], video.shape[1])
    parts = [tracker(video, queries) for queries in query_points_tyx.split(queries_at_once, dim=1)]
    tracks = TrackerOutput(
        torch.cat([part.points_xy for part in parts], dim=1),
        torch.cat([part.visible_logits for part in parts], dim=1),
        torch.cat([part.certainty for part in parts], dim=1),
    )
    for name in ("points_xy", "visible_logits", "certainty"):
        tensor, shape = getattr(tracks, name), (*expected, 2) if name == "points_xy" else expected
        if tensor.shape != shape:
            raise InputError(f"the tracker's {name}: expected {list(shape)}, got {list(tensor.shape)}")
    return tracks


def _score(
    video: TrackedVideo, queries: Queries, output: TrackerOutput, query_mode: QueryMode, use_certainty: bool
) -> dict[str, NDArray[np.float64]]:
    height, width = video.video.shape[1:3]
    to_raster = np.array([IMAGE_SIZE[1] / width, IMAGE_SIZE[0] / height])
    visible = output.visible_logits > 0
    if use_certainty:
        visible = output.visible_logits.float().sigmoid() * output.certainty.float() > 0.5
    return tapvid_metrics(
        query_points_tyx=queries.points_tyx[None],
        gt_occluded=video.occluded[queries.tracks][None],
        gt_tracks_xy=video.tracks_xy[queries.tracks][None] * to_raster,
        pred_occluded=~visible.cpu().numpy(),
        pred_tracks_xy=output.points_xy.float().cpu().numpy() * to_raster,
        query_mode=query_mode,
    )


# ---- results -------------------------------------------------------------------------------------------------------


def tapvid_protocol(
    videos: TrackedVideos,
    *,
    tracker: str,
    query_mode: QueryMode,
    use_certainty: bool = False,
    queries_at_once: int | None = None,
    image_size: tuple[int, int] = IMAGE_SIZE,
) -> dict[str, Any]:
    """Describe a run of `evaluate_tapvid` so that it can be repeated, as plain JSON values.

    Args:
        videos: The data.
        tracker: Name of the tracker, such as the checkpoint that the user gave.
        query_mode: As given to `evaluate_tapvid`, as are the others.
        use_certainty: Likewise.
        queries_at_once: Likewise.
        image_size: Likewise.
    """
    return {
        "tracker": tracker,
        "data": videos.source,
        "listed": len(videos),
        "query_mode": query_mode,
        "query_stride": QUERY_STRIDE if query_mode == "strided" else None,
        "frames_scored": "after the query's" if query_mode == "first" else "all but the query's",
        "tracked_backwards": query_mode == "strided",
        "image_size": list(image_size),
        "resized_by": "Lanczos, aspect not kept",
        "raster": list(IMAGE_SIZE),
        "thresholds_px": list(THRESHOLDS_PX),
        "visible_if": "sigmoid(visible_logits) * certainty > 0.5" if use_certainty else "visible_logits > 0",
        "queries_at_once": queries_at_once,
        "averaged": "over the points of a video, then over videos",
        "trecvit": version("trecvit"),
        "torch": torch.__version__,
    }


def write_tapvid_result(
    folder: str | Path, scores: TapvidScores, protocol: Mapping[str, Any], failures: Sequence[Failure]
) -> dict[str, Any]:
    """Write `result.json`, means first, then a row per video; return its content.

    Args:
        folder: Created if missing.
        scores: Of the videos with a score.
        protocol: How the scores were computed; see `tapvid_protocol`.
        failures: The other videos.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    result = {
        "protocol": dict(protocol),
        "good": len(scores.names),
        "failed": [{"name": failure.name, "reason": failure.reason} for failure in failures],
        **scores.means(),
        "per_video": scores.per_video(),
    }
    write_json(folder / "result.json", result)
    return result
