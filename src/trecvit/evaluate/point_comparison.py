"""Accuracy of a point tracker beside the static and the optical-flow baseline, on the same videos.

Videos are held-out synthetic scenes, and real frames under a moving camera, with and without occluders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from trecvit.data.tracked import TrackedVideos
from trecvit.errors import DataError
from trecvit.evaluate.point_baselines import LucasKanade, static_points
from trecvit.evaluate.still_camera import StillScores
from trecvit.evaluate.tapvid import evaluate_tapvid
from trecvit.evaluate.track_pictures import saved_in
from trecvit.model.tracker import PointTracker, Tracker
from trecvit.synthetic.footage import moved_footage
from trecvit.synthetic.pictures import photographs
from trecvit.synthetic.track_scenes import TrackSceneConfig, TrackScenes

METRICS = ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy")
BASELINES = ("still points", "Lucas–Kanade")
_COVERS = 3
_SEED = 1  # recipes train on seed 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One tracker on one set of videos.

    Attributes:
        test: Name of the set of videos.
        tracker: Name of the tracker.
        num_videos: Videos in the set.
        metrics: TAP-Vid's, by name, with queries in the frame that first shows a point.
    """

    test: str
    tracker: str
    num_videos: int
    metrics: dict[str, float]


def compare_trackers(
    tracker: PointTracker,
    *,
    scenes: TrackSceneConfig,
    num_scenes: int,
    footage: Sequence[str | Path],
    clips_per_video: int,
    long_frames: int = 0,
    num_long: int = 1,
    pictures: Path | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> list[Scored]:
    """Score the tracker and both baselines on each set of videos.

    Args:
        tracker: Sees frames of the size in its `preprocessing`.
        scenes: Configuration of the held-out scenes; the baselines see them in this size.
        num_scenes: Number of scenes.
        footage: Videos whose frames are moved; the baselines see them in 256 x 256 pixels.
        clips_per_video: Clips of each, with and without occluders.
        long_frames: Length of clips of a second kind, of the same sets; 0: none.
        num_long: Number of such scenes, and of such clips per video.
        pictures: Folder for a picture of the tracker's predictions for each video, in one folder per set.
        report: Called with the number of scores so far.
    """
    tests = _tests(scenes, num_scenes, footage, clips_per_video, 24)
    if long_frames:
        long_scenes = replace(scenes, num_frames=long_frames)
        longer = _tests(long_scenes, num_long, footage, num_long, long_frames)
        tests += [(f"{name}, {long_frames} frames", videos, size) for name, videos, size in longer]
    scored = []
    for test, videos, native_px in tests:
        for name, track, image_size in trackers_beside(tracker, native_px):
            show = saved_in(pictures / test if pictures and track is tracker else None)
            scores, failures = evaluate_tapvid(track, videos, image_size=image_size, device=tracker.device, show=show)
            if failures:
                raise DataError(f"{failures[0].name}: {failures[0].reason}")
            means = scores.means()
            metrics = {metric: means[metric] for metric in METRICS}
            scored.append(Scored(test=test, tracker=name, num_videos=len(videos), metrics=metrics))
            report(len(scored))
    return scored


def trackers_beside(
    tracker: PointTracker, native_px: tuple[int, int]
) -> tuple[tuple[str, Tracker, tuple[int, int]], ...]:
    """The tracker and both baselines: name, tracker and size of the frames that it sees."""
    return (
        (type(tracker).__name__, tracker, tracker.preprocessing.image_size),
        (BASELINES[0], static_points, native_px),
        (BASELINES[1], LucasKanade(), native_px),
    )


def _tests(
    scenes: TrackSceneConfig, num_scenes: int, footage: Sequence[str | Path], clips_per_video: int, num_frames: int
) -> list[tuple[str, TrackedVideos, tuple[int, int]]]:
    """Name, videos and their own size of each set."""
    held_out = TrackScenes(scenes, seed=_SEED, pictures=photographs("held_out")).videos(range(num_scenes))
    tests = [("held-out scenes", held_out, scenes.image_size)]
    for name, covers in (("moved footage", 0), ("moved footage, covered now and then", _COVERS)) if footage else ():
        moved = moved_footage(
            footage, clips_per_video=clips_per_video, num_frames=num_frames, seed=_SEED, num_covers=covers
        )
        tests.append((name, moved, (256, 256)))
    return tests


def to_dict(
    scored: Sequence[Scored],
    *,
    scenes: TrackSceneConfig,
    footage: Sequence[str | Path],
    still_camera: Sequence[StillScores] = (),
) -> dict[str, Any]:
    """Convert to plain JSON values."""
    return {
        "protocol": "trecvit eval points, version 1",
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "scenes": asdict(scenes),
        "footage": [Path(path).name for path in footage],
        "scores": [asdict(score) for score in scored],
        "still_camera": [asdict(score) for score in still_camera],
    }
