"""Points that come and go on a live stream: whoever is lost for a second makes room for a new point.

    python examples/track_live.py SOURCE [MODEL]

SOURCE is a video file, a folder of images or the address of a camera; MODEL whatever `trecvit.load` takes, by default
bootstapnext. Prints a line when a point is given up.
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
    last_seen_s: dict[int, float] = {}
    for frame in read_frames(source):
        height, width = frame.image.shape[:2]
        while len(live.ids) < MAX_POINTS:
            last_seen_s[live.add(rng.uniform(0, width), rng.uniform(0, height))] = frame.time_s
        points_xy, visible, _ = live.update(frame.image)
        for point, place, is_seen in zip(live.ids, points_xy, visible, strict=True):
            if is_seen:
                last_seen_s[point] = frame.time_s
            elif frame.time_s - last_seen_s[point] > PATIENCE_S:
                print(f"{frame.time_s:.2f} s: gave up point {point}, last thought to be at {place.round(1)}")
                live.remove(point)
                del last_seen_s[point]


if __name__ == "__main__":
    main(*sys.argv[1:])
