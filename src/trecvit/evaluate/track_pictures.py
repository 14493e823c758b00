"""Pictures of tracked points over time, as in the paper's Figure 6: enlarged crops with truth and prediction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from trecvit.data.tracked import TrackedVideo
from trecvit.evaluate.tapvid import Queries
from trecvit.model.tracker import TrackerOutput
from trecvit.video.draw import Trail, draw_grid, draw_trails, draw_truth
from trecvit.video.frames import Image

_CELL_PX = 240
_CROP_SHARE = 0.28  # side of a crop over the picture's shorter side
_TRAIL_FRAMES = 8


def draw_tracks(
    video: TrackedVideo, queries: Queries, output: TrackerOutput, *, num_points: int = 4, num_times: int = 6
) -> Image:
    """Draw one row of crops per point: white crosses for the truth, discs for predictions, hollow if predicted hidden.

    A row begins with the whole picture in the query's frame. The crops follow the truth; while the point is hidden
    they stay at its last visible place, and the cross is faint. Points are chosen by visible motion, with queries in
    the video's first half if there are any, and apart from each other.

    Args:
        video: As the tracker saw it.
        queries: Its queries.
        output: Its predictions for this video, with B = 1.
        num_points: Largest number of rows.
        num_times: Crops of each row.

    Returns:
        uint8 `[H,W,3]`.
    """
    predicted_xy = output.points_xy[0].float().cpu().numpy()
    visible = output.visible[0].cpu().numpy()
    rows: list[list[Image]] = []
    chosen = _chosen(video, queries, num_points)
    begin = round(float(queries.points_tyx[chosen, 0].max()))
    frames = np.unique(np.linspace(begin, video.num_frames - 1, num_times + 1).round().astype(int))[1:]
    for query in chosen:
        query_frame, track = round(float(queries.points_tyx[query, 0])), queries.tracks[query]
        truth_xy, truly_seen = video.tracks_xy[track], ~video.occluded[track]
        hue = len(rows) / num_points
        row = [_whole(video.video[query_frame], truth_xy[query_frame], hue)]
        for frame in frames:
            first = max(query_frame, frame - _TRAIL_FRAMES)
            seen = np.flatnonzero(truly_seen[: frame + 1])
            trail = Trail(predicted_xy[query, first : frame + 1], visible[query, first : frame + 1], hue)
            centre = truth_xy[seen[-1]]
            row.append(_crop(video.video[frame], centre, trail, truth_xy[frame], bool(truly_seen[frame])))
        rows.append(row)
    return draw_grid(rows, ["query", *(f"frame {frame}" for frame in frames)])


def saved_in(folder: Path | None) -> Callable[[TrackedVideo, Queries, TrackerOutput], None]:
    """Make a `show` for `evaluate_tapvid` that draws each video's points into a file; without a folder, a no-op."""
    if folder is None:
        return lambda *_: None
    folder.mkdir(parents=True, exist_ok=True)

    def save(video: TrackedVideo, queries: Queries, output: TrackerOutput) -> None:
        name = video.name.replace("/", "_")
        PIL.Image.fromarray(draw_tracks(video, queries, output)).save(folder / f"{name}.png")

    return save


def _chosen(video: TrackedVideo, queries: Queries, num_points: int) -> list[int]:
    """Choose queries of different tracks and distant places, those with most visible motion first."""
    seen = ~video.occluded
    steps = np.linalg.norm(np.diff(video.tracks_xy, axis=1), axis=-1)
    moved = np.where(seen[:, 1:] & seen[:, :-1], steps, 0).sum(axis=1)
    apart_px = min(video.video.shape[1:3]) / 6
    query_frames = queries.points_tyx[:, 0]
    latest = max(float(query_frames.min()), (video.num_frames - 1) / 2)
    chosen: list[int] = []
    for query in np.argsort(-moved[queries.tracks], kind="stable"):
        others = queries.points_tyx[chosen, 1:]
        lies_apart = (np.linalg.norm(others - queries.points_tyx[query, 1:], axis=1) > apart_px).all()
        is_new = queries.tracks[query] not in queries.tracks[chosen]
        if len(chosen) < num_points and query_frames[query] <= latest and is_new and lies_apart:
            chosen.append(int(query))
    return chosen


def _whole(image: Image, point_xy: NDArray[Any], hue: float) -> Image:
    """Resize the whole picture to a square and draw the point."""
    ratio = np.array([_CELL_PX / image.shape[1], _CELL_PX / image.shape[0]])
    resized = PIL.Image.fromarray(image).resize((_CELL_PX, _CELL_PX), PIL.Image.Resampling.BICUBIC)
    return draw_trails(np.array(resized), [Trail(point_xy[None] * ratio, np.array([True]), hue)])


def _crop(image: Image, centre_xy: NDArray[Any], trail: Trail, truth_xy: NDArray[Any], truly_seen: bool) -> Image:
    """Enlarge the surroundings of a point; black outside the picture."""
    side_px = _CROP_SHARE * min(image.shape[:2])
    left, top = centre_xy - side_px / 2
    scale = _CELL_PX / side_px
    picture = PIL.Image.fromarray(image).transform(
        (_CELL_PX, _CELL_PX),
        PIL.Image.Transform.AFFINE,
        (1 / scale, 0, left, 0, 1 / scale, top),
        PIL.Image.Resampling.BICUBIC,
    )
    corner = np.array([left, top])
    near = Trail((trail.points_xy - corner) * scale, trail.visible, trail.hue)
    return draw_truth(draw_trails(np.array(picture), [near]), (truth_xy - corner) * scale, truly_seen)
