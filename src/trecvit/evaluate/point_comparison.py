"""How well points are followed, beside two baselines in the same run: points that stay, and optical flow.

On held-out synthetic scenes, and on real frames under a moving camera, bare and with things that pass in front of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from trecvit.data.tracked import TrackedVideos
from trecvit.errors import DataError
from trecvit.evaluate.point_baselines import LucasKanade, still_points
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
        test: Which videos.
        tracker: Who followed the points.
        num_videos: How many videos.
        metrics: TAP-Vid's, by name, queries at the frame that first shows a point.
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
    pictures: Path | None = None,
    report: Callable[[int], None] = lambda _: None,
) -> list[Scored]:
    """Scores the tracker and the baselines on each set of videos, at the tracker's own size for it.

    Args:
        tracker: Whose `preprocessing` says the size of the frames that it sees.
        scenes: What the held-out scenes look like; the baselines see them in this size.
        num_scenes: How many.
        footage: Videos whose frames are moved; the baselines see them in 256 x 256 pixels.
        clips_per_video: Clips of each, with and without things in front.
        pictures: Folder for a picture of each video in a folder for each set: the tracker's answer, without baselines.
        report: Called with the number of scores.
    """
    size = scenes.image_size
    surfaces = photographs("held_out")
    tests: list[tuple[str, TrackedVideos, tuple[int, int]]] = [
        ("held-out scenes", TrackScenes(scenes, seed=_SEED, pictures=surfaces).videos(range(num_scenes)), size)
    ]
    if footage:
        for name, covers in (("moved footage", 0), ("moved footage, covered now and then", _COVERS)):
            moved = moved_footage(footage, clips_per_video=clips_per_video, seed=_SEED, num_covers=covers)
            tests.append((name, moved, (256, 256)))
    found = []
    for test, videos, native_px in tests:
        followed: tuple[tuple[str, Tracker, tuple[int, int]], ...] = (
            (type(tracker).__name__, tracker, tracker.preprocessing.image_size),
            (BASELINES[0], still_points, native_px),
            (BASELINES[1], LucasKanade(), native_px),
        )
        for name, follow, image_size in followed:
            show = saved_in(pictures / test if pictures and follow is tracker else None)
            scores, failures = evaluate_tapvid(follow, videos, image_size=image_size, device=tracker.device, show=show)
            if failures:
                raise DataError(f"{failures[0].name}: {failures[0].reason}")
            means = scores.means()
            metrics = {metric: means[metric] for metric in METRICS}
            found.append(Scored(test=test, tracker=name, num_videos=len(videos), metrics=metrics))
            report(len(found))
    return found


def to_dict(found: Sequence[Scored], *, scenes: TrackSceneConfig, footage: Sequence[str | Path]) -> dict[str, Any]:
    """As plain JSON values."""
    return {
        "protocol": "trecvit eval points, version 1",
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "scenes": asdict(scenes),
        "footage": [Path(path).name for path in footage],
        "scores": [asdict(one) for one in found],
    }
