"""False alarms of a classifier with a class "nothing of these": `python -m tools.false_alarms MODEL VIDEO …`.

Each video is streamed in windows of a training clip's length, one after another. A window counts as an alarm if its
last prediction is an action. The videos are such that every alarm is false, or are read as such.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from trecvit.files import write_json
from trecvit.model.trecvit import TRecViT
from trecvit.runtime.stream import stream
from trecvit.video.decode import open_video
from trecvit.weights.load import load_as


def alarms(model: TRecViT, video: Path, nothing: str) -> dict[str, Any]:
    """Count the windows of a video, and those that end with an action.

    Args:
        model: A classifier with a class of that name.
        video: The file.
        nothing: Name of the class.
    """
    with open_video(video) as opened:
        num_frames, fps = opened.length_and_rate()
    stride = model.preprocessing.stride_for(fps)
    window = model.preprocessing.num_frames
    ends = [
        update.top(model.labels, 1)[0][0]
        for update in stream(model, video, stride=stride, restart_every=window)
        if update.is_new and update.frames_seen == window
    ]
    found = Counter(label for label in ends if label != nothing)
    minutes = len(ends) * window * stride / (fps or 30.0) / 60
    return {
        "video": video.name,
        "seconds": round(num_frames / (fps or 30.0), 1),
        "windows": len(ends),
        "alarms": sum(found.values()),
        "per_minute": round(sum(found.values()) / minutes, 1) if minutes else None,
        "taken_for": dict(found.most_common(3)),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tools.false_alarms", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a name or folder for trecvit.load")
    parser.add_argument("videos", nargs="+", type=Path, help="videos without any of the model's actions")
    parser.add_argument("--nothing", default="nothing of these", help="name of the class")
    parser.add_argument("--save", type=Path, help="JSON file to write")
    args = parser.parse_args()
    model = load_as(TRecViT, args.model)
    rows = []
    for video in args.videos:
        rows.append(alarms(model, video, args.nothing))
        print(json.dumps(rows[-1]), flush=True)
    if args.save:
        write_json(args.save, {"model": args.model, "videos": rows}, indent=2)


if __name__ == "__main__":
    main()
