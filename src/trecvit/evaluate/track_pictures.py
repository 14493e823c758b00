"""The picture of the paper's Figure 6: points from near, over time, with the truth and what a tracker says."""

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
_WIDE_SHARE = 0.28  # of the picture's shorter side that a crop shows
_TRAIL_FRAMES = 8


def draw_tracks(
    video: TrackedVideo, queries: Queries, answer: TrackerOutput, *, num_points: int = 4, num_times: int = 6
) -> Image:
    """Points over time: white crosses are the truth, discs the tracker's answer, hollow when called hidden.

    A row is a point. It begins with the whole picture in the query's frame. The crops follow the truth or, while the
    point is hidden, stay where it was last seen; there the cross is faint. The points are those that are seen to move
    most, asked for in the video's first half if there are such, and not close to each other.

    Args:
        video: As the tracker saw it.
        queries: What it was asked.
        answer: What it said, of one video.
        num_points: Rows at most.
        num_times: Crops of each.

    Returns:
        uint8 `[H, W, 3]`.
    """
    predicted_xy = answer.points_xy[0].float().cpu().numpy()
    visible = answer.visible[0].cpu().numpy()
    rows: list[list[Image]] = []
    chosen = _chosen(video, queries, num_points)
    begin = round(float(queries.points_tyx[chosen, 0].max()))
    frames = np.unique(np.linspace(begin, video.num_frames - 1, num_times + 1).round().astype(int))[1:]
    for query in chosen:
        asked_at, track = round(float(queries.points_tyx[query, 0])), queries.tracks[query]
        truth_xy, truly_seen = video.tracks_xy[track], ~video.occluded[track]
        hue = len(rows) / num_points
        row = [_whole(video.video[asked_at], truth_xy[asked_at], hue)]
        for frame in frames:
            first = max(asked_at, frame - _TRAIL_FRAMES)
            seen = np.flatnonzero(truly_seen[: frame + 1])
            trail = Trail(predicted_xy[query, first : frame + 1], visible[query, first : frame + 1], hue)
            centre = truth_xy[seen[-1]]
            row.append(_crop(video.video[frame], centre, trail, truth_xy[frame], bool(truly_seen[frame])))
        rows.append(row)
    return draw_grid(rows, ["asked", *(f"frame {frame}" for frame in frames)])


def saved_in(folder: Path | None) -> Callable[[TrackedVideo, Queries, TrackerOutput], None]:
    """For `evaluate_tapvid`: draws each video's points into a file of its name; nothing without a folder."""
    if folder is None:
        return lambda *_: None
    folder.mkdir(parents=True, exist_ok=True)

    def save(video: TrackedVideo, queries: Queries, answer: TrackerOutput) -> None:
        name = video.name.replace("/", "_")
        PIL.Image.fromarray(draw_tracks(video, queries, answer)).save(folder / f"{name}.png")

    return save


def _chosen(video: TrackedVideo, queries: Queries, num_points: int) -> list[int]:
    """Queries of different tracks, the liveliest first, none close to one chosen before."""
    seen = ~video.occluded
    steps = np.linalg.norm(np.diff(video.tracks_xy, axis=1), axis=-1)
    moved = np.where(seen[:, 1:] & seen[:, :-1], steps, 0).sum(axis=1)
    apart_px = min(video.video.shape[1:3]) / 6
    asked_at = queries.points_tyx[:, 0]
    latest = max(float(asked_at.min()), (video.num_frames - 1) / 2)
    chosen: list[int] = []
    for query in np.argsort(-moved[queries.tracks], kind="stable"):
        others = queries.points_tyx[chosen, 1:]
        lies_apart = (np.linalg.norm(others - queries.points_tyx[query, 1:], axis=1) > apart_px).all()
        is_new = queries.tracks[query] not in queries.tracks[chosen]
        if len(chosen) < num_points and asked_at[query] <= latest and is_new and lies_apart:
            chosen.append(int(query))
    return chosen


def _whole(image: Image, point_xy: NDArray[Any], hue: float) -> Image:
    """The whole picture, squeezed into a square, with the point in it."""
    ratio = np.array([_CELL_PX / image.shape[1], _CELL_PX / image.shape[0]])
    resized = PIL.Image.fromarray(image).resize((_CELL_PX, _CELL_PX), PIL.Image.Resampling.BICUBIC)
    return draw_trails(np.array(resized), [Trail(point_xy[None] * ratio, np.array([True]), hue)])


def _crop(image: Image, centre_xy: NDArray[Any], trail: Trail, truth_xy: NDArray[Any], truly_seen: bool) -> Image:
    """What lies around a point, enlarged; black beyond the picture."""
    wide_px = _WIDE_SHARE * min(image.shape[:2])
    left, top = centre_xy - wide_px / 2
    scale = _CELL_PX / wide_px
    picture = PIL.Image.fromarray(image).transform(
        (_CELL_PX, _CELL_PX),
        PIL.Image.Transform.AFFINE,
        (1 / scale, 0, left, 0, 1 / scale, top),
        PIL.Image.Resampling.BICUBIC,
    )
    corner = np.array([left, top])
    near = Trail((trail.points_xy - corner) * scale, trail.visible, trail.hue)
    return draw_truth(draw_trails(np.array(picture), [near]), (truth_xy - corner) * scale, truly_seen)
