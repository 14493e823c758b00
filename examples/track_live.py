"""Track points on a live stream; a point that is hidden for a second is replaced by a new one.

    python examples/track_live.py SOURCE [MODEL]

SOURCE is a video file, a folder of images or the URL of a camera; MODEL is any tracker for `trecvit.load`, by default
bootstapnext. Prints a line for each point that is replaced.
"""

from __future__ import annotations

import sys

import numpy as np

import trecvit
from trecvit.video.decode import read_frames

MAX_POINTS = 8
PATIENCE_S = 1.0


def main(source: str, model: str = "bootstapnext") -> None:
    live = trecvit.LiveTracker(trecvit.load(model), max_points=MAX_POINTS)
    rng = np.random.default_rng(0)
    last_visible_s: dict[int, float] = {}
    for frame in read_frames(source):
        height, width = frame.image.shape[:2]
        while len(live.ids) < MAX_POINTS:
            last_visible_s[live.add(rng.uniform(0, width), rng.uniform(0, height))] = frame.time_s
        points_xy, visible, _ = live.update(frame.image)
        for point_id, point_xy, is_visible in zip(live.ids, points_xy, visible, strict=True):
            if is_visible:
                last_visible_s[point_id] = frame.time_s
            elif frame.time_s - last_visible_s[point_id] > PATIENCE_S:
                print(f"{frame.time_s:.2f} s: removed point {point_id}, last predicted at {point_xy.round(1)}")
                live.remove(point_id)
                del last_visible_s[point_id]


if __name__ == "__main__":
    main(*sys.argv[1:])
