"""The animation at the top of the README: points followed through a real video, and its classes named, frame by frame.

    python -m tools.animation VIDEO --tracker points --classifier motions --save docs/images/live.webp

The video's licence must allow its pictures in the documents; name its source beside the animation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL.Image

import trecvit
from trecvit.model.tracker import PointTracker
from trecvit.model.trecvit import TRecViT
from trecvit.runtime.follow import Trails, follow, grid_queries
from trecvit.runtime.stream import stream
from trecvit.video.decode import open_video
from trecvit.video.draw import draw_predictions
from trecvit.video.frames import Image

_FPS = 12  # of the animation


def drawn_frames(
    video: Path,
    tracker: PointTracker,
    classifier: TRecViT | None,
    *,
    grid: int,
    start_s: float,
    seconds: float,
    trail: int,
) -> Iterator[tuple[float, Image]]:
    """Yield times and frames with the points' trails and the most probable classes.

    Args:
        video: The file.
        tracker: Follows `grid` x `grid` points of the first frame.
        classifier: Names the classes, over all frames so far; None draws points only.
        grid: Points per side.
        start_s: Time of the first frame.
        seconds: Length of the part of the video.
        trail: Length of the trails in frames.
    """
    with open_video(video) as source:
        fps = source.info.rate_fps or 25.0
        part = takewhile(lambda frame: frame.time_s < start_s + seconds, source.frames(start_s=start_s))
        images = np.stack([frame.image for frame in part])
    queries = grid_queries(grid, (images.shape[1], images.shape[2]))
    trails = Trails(len(queries), trail)
    with open_video(images, untimed_fps=fps) as for_points, open_video(images, untimed_fps=fps) as for_classes:
        classes = (
            stream(classifier, for_classes, stride=classifier.preprocessing.stride_for(fps)) if classifier else None
        )
        for tracked in follow(tracker, for_points, queries):
            image = trails.draw(tracked)
            if classifier and classes:
                image = draw_predictions(image, next(classes).top(classifier.labels, 2))
            yield tracked.time_s, image


def write_animation(frames: Iterable[tuple[float, Image]], target: Path, *, width_px: int) -> int:
    """Write frames as an animated picture of 12 frames per second at most; return how many.

    Args:
        frames: Times and frames.
        target: A .webp or .gif file.
        width_px: Width of the animation.
    """
    pictures: list[PIL.Image.Image] = []
    for time_s, image in frames:
        if time_s * _FPS >= len(pictures) - 1e-6:
            picture = PIL.Image.fromarray(np.ascontiguousarray(image))
            pictures.append(picture.resize((width_px, round(image.shape[0] * width_px / image.shape[1]))))
    first, *others = pictures
    options: dict[str, Any] = {"quality": 60, "method": 6} if target.suffix == ".webp" else {"optimize": True}
    first.save(target, save_all=True, append_images=others, duration=round(1000 / _FPS), loop=0, **options)
    return len(pictures)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.animation", description="Write the README's animation.")
    parser.add_argument("video", type=Path)
    parser.add_argument("--tracker", default="points", help="a tracker for trecvit.load")
    parser.add_argument("--classifier", default="", help="a classifier for trecvit.load; none by default")
    parser.add_argument("--grid", type=int, default=10, help="points per side")
    parser.add_argument("--start", type=float, default=0.0, help="first second of the video")
    parser.add_argument("--seconds", type=float, default=5.0, help="length")
    parser.add_argument("--width", type=int, default=560, help="pixels")
    parser.add_argument("--trail", type=int, default=12, help="frames")
    parser.add_argument("--save", type=Path, default=Path("docs/images/live.webp"), help="a .webp or .gif file")
    args = parser.parse_args()
    tracker = cast(PointTracker, trecvit.load(args.tracker))
    classifier = cast(TRecViT, trecvit.load(args.classifier)) if args.classifier else None
    cut = {"start_s": args.start, "seconds": args.seconds}
    frames = drawn_frames(args.video, tracker, classifier, grid=args.grid, trail=args.trail, **cut)
    count = write_animation(frames, args.save, width_px=args.width)
    print(f"{args.save}: {count} frames, {args.save.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
