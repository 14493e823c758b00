"""A rendered video for the demo: consecutive scenes of the synthetic world."""

from __future__ import annotations

from pathlib import Path

from trecvit.synthetic.world import LABELS, World, WorldConfig
from trecvit.video.encode import VideoWriter

_SCENE_FRAMES = 16
_SCENE_FPS = 12
_SIDE_PX = 288


def render_scenes(path: Path, *, seed: int) -> list[str]:
    """Write a video with one scene of each pair of opposite motions; return the label of each scene.

    Args:
        path: An `.mp4` or `.webm` file.
        seed: Seed of the scenes; its parity selects the motion of each pair.
    """
    world = World(WorldConfig(num_frames=_SCENE_FRAMES, image_size=(_SIDE_PX, _SIDE_PX)), seed=1_000_000 + seed)
    truths = []
    with VideoWriter(path, _SCENE_FPS) as writer:
        for number in range(len(LABELS) // 2):
            frames, label = world.clip(2 * number + (seed + number) % 2)
            truths.append(LABELS[label])
            for frame in frames:
                writer.write(frame)
    return truths
