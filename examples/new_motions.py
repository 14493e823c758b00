"""Render a small data set of six motions that are new to the bundled model, to fine-tune it on.

    python examples/new_motions.py new_motions
    trecvit finetune --data new_motions/train --validation new_motions/validation --to runs/new_motions

Each class is a folder of short videos: 12 for training, 40 for validation. Objects, textures and backgrounds differ
from video to video; only the motion determines the class.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np

from trecvit.synthetic.outlines import SHAPES
from trecvit.synthetic.scene import Layer, Scene, render
from trecvit.synthetic.sprites import Supply
from trecvit.synthetic.stage import Stage, WorldConfig
from trecvit.video.encode import VideoWriter

SIZE, FRAMES, FPS = 64, 8, Fraction(6)
CLIPS = {"train": 12, "validation": 40}  # per class

# Offset (x, y) in frame sizes and scale of the object, for times from 0 to 1 and a phase.
Motion = Callable[[np.ndarray, float], tuple[np.ndarray, np.ndarray, np.ndarray]]


def circling(direction: float) -> Motion:
    def motion(time: np.ndarray, phase: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        angle = 2 * math.pi * (phase + direction * time)
        return 0.22 * np.cos(angle), 0.22 * np.sin(angle), np.ones_like(time)

    return motion


def bouncing(time: np.ndarray, phase: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return 0 * time, 0.25 - 0.5 * np.abs(np.sin(2 * math.pi * (time + phase))), np.ones_like(time)


def swinging(time: np.ndarray, phase: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    side = np.sin(2 * math.pi * (time + phase))
    return 0.28 * side, -0.1 * side**2, np.ones_like(time)


def pulsing(time: np.ndarray, phase: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return 0 * time, 0 * time, 1 + 0.45 * np.sin(2 * math.pi * (time + phase))


def trembling(time: np.ndarray, phase: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps = np.arange(len(time)) + round(2 * phase)
    return 0.06 * (-1.0) ** steps, 0.04 * (-1.0) ** (steps // 2), np.ones_like(time)


MOTIONS: dict[str, Motion] = {
    "circling clockwise": circling(1.0),
    "circling counter-clockwise": circling(-1.0),
    "bouncing": bouncing,
    "swinging": swinging,
    "pulsing": pulsing,
    "trembling": trembling,
}


def scene(motion: Motion, seed: tuple[int, ...], supply: Supply) -> Scene:
    stage = Stage(np.random.default_rng(seed), WorldConfig(num_frames=FRAMES, image_size=(SIZE, SIZE)), supply)
    background = supply.background(stage.rng, SIZE, SIZE)
    stage.colours.append(background[:3].mean(dim=(1, 2)).numpy())
    identity = np.tile(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), (FRAMES, 1, 1))
    x, y, scale = motion(np.linspace(0, 1, FRAMES, endpoint=False), stage.between(0.0, 1.0))
    position = stage.centre + stage.rng.uniform(-0.08, 0.08, 2) * SIZE
    mover = stage.place(
        stage.object(0.25, 0.4, SHAPES),
        position + SIZE * np.stack([x, y], axis=1),
        role="mover",
        angle=stage.between(0.0, 2 * math.pi),
        scale=scale,
    )
    layers = (Layer(texture=background, transforms=identity, role="background", reflect=True), mover)
    light = np.tile(np.array([[1.0] * 3, [0.0] * 3]), (FRAMES, 1, 1))
    return Scene(
        layers=layers, image_size=(SIZE, SIZE), light=light, label=0, partner_label=0, noise_levels=3.0, noise_seed=seed
    )


def main(folder: Path) -> None:
    supply = Supply(7, [], picture_share=0.0, plain_share=0.3, surface_px=128)
    for split_index, (split, count) in enumerate(CLIPS.items()):
        for label, (name, motion) in enumerate(MOTIONS.items()):
            target = folder / split / name
            target.mkdir(parents=True, exist_ok=True)
            for clip in range(count):
                with VideoWriter(target / f"{clip:02d}.mp4", FPS) as writer:
                    for frame in render(scene(motion, (7, split_index, label, clip), supply)):
                        writer.write(frame)
    print(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
