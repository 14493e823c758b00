"""Writes clips with tracks as `trecvit.data.tapvid.read_track_files` reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trecvit.data.tracked import TrackedVideo


def write_track_file(path: Path, video: TrackedVideo) -> None:
    """One `.npz` file; the name of the video is that of the file."""
    arrays = {"video": video.video, "target_points": video.tracks_xy, "occluded": video.occluded}
    if video.query_points_tyx is not None:
        arrays["query_points"] = video.query_points_tyx
    np.savez_compressed(path, **arrays)
