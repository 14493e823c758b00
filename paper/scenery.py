"""Endless rendered videos for memorisation: a camera that moves over surfaces, shot after shot.

After at most a dozen frames a frame's content has left the picture almost completely, so that it must be remembered and
cannot be inferred. Seed and index determine a video.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from trecvit.draws import Stream, rng
from trecvit.errors import ConfigError, InputError
from trecvit.synthetic.camera import similarity
from trecvit.synthetic.scene import Scene, render
from trecvit.synthetic.sprites import Supply
from trecvit.synthetic.stage import Stage, WorldConfig

_WOBBLE = 0.06  # roll in radians, and relative zoom, within a shot


@dataclass(frozen=True, kw_only=True, slots=True)
class SceneryConfig:
    """Appearance of the videos.

    Attributes:
        image_size: Height and width of the frames in pixels, each from 32 to 1024.
        min_shot_frames: Fewest frames between two cuts, at least 2.
        max_shot_frames: Most.
        min_pan: Slowest motion of the camera per frame, relative to the frame's smaller side.
        max_pan: Fastest motion.
        light_drift: Largest relative change of brightness within a shot, below 0.5.
        picture_share: Share of surfaces that come from pictures, if there are any.
    """

    image_size: tuple[int, int] = (96, 96)
    min_shot_frames: int = 6
    max_shot_frames: int = 16
    min_pan: float = 0.08
    max_pan: float = 0.25
    light_drift: float = 0.12
    picture_share: float = 0.5

    def __post_init__(self) -> None:
        self.world(2)  # checks the common fields
        if not 2 <= self.min_shot_frames <= self.max_shot_frames <= 1000:
            raise ConfigError(
                "min_shot_frames and max_shot_frames: expected 2 up to 1000 frames, the smaller number first, got "
                f"{self.min_shot_frames} and {self.max_shot_frames}"
            )
        if not 0.0 <= self.min_pan <= self.max_pan <= 1.0:
            raise ConfigError(
                f"min_pan and max_pan: expected 0 up to 1, the smaller first, got {self.min_pan} and {self.max_pan}"
            )

    def world(self, num_frames: int) -> WorldConfig:
        """Settings of the `Stage` of a shot."""
        return WorldConfig(
            num_frames=num_frames,
            image_size=self.image_size,
            light_drift=self.light_drift,
            picture_share=self.picture_share,
        )


class Scenery:
    """Endless videos, each determined by its index from 0 on.

    Args:
        config: See `SceneryConfig`.
        seed: 0 or more. Different seeds share no shot and no procedural surface.
        pictures: Textures, uint8 `[H, W, 3]`.

    Attributes:
        config: As given.
        seed: As given.
    """

    def __init__(self, config: SceneryConfig, *, seed: int, pictures: Sequence[NDArray[Any]] = ()) -> None:
        if seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {seed}")
        self.config, self.seed = config, seed
        self._supply = Supply(
            seed,
            pictures,
            picture_share=config.picture_share,
            plain_share=0.0,
            surface_px=min(max(round(2.0 * max(config.image_size)), 128), 384),
        )

    def shots(self, video: int) -> Iterator[UInt8[np.ndarray, "t h w 3"]]:
        """Yield the shots of a video endlessly. The first starts at a random frame of it."""
        if video < 0:
            raise InputError(f"video must be 0 or more, not {video}")
        index = 0
        while True:
            draws = rng(self.seed, Stream.SCENERY, video, index)
            num_frames = int(draws.integers(self.config.min_shot_frames, self.config.max_shot_frames + 1))
            frames = self._shot(draws, num_frames)
            yield frames if index else frames[int(draws.integers(num_frames)) :]
            index += 1

    def frames(self, video: int) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], bool]]:
        """Yield the frames of a video endlessly, each with whether it is the first after a cut."""
        for index, shot in enumerate(self.shots(video)):
            for frame_index, frame in enumerate(shot):
                yield frame, frame_index == 0 and index > 0

    def clip(self, video: int, num_frames: int) -> UInt8[Tensor, "t 3 h w"]:
        """The first frames of a video."""
        frames = [frame for frame, _ in islice(self.frames(video), num_frames)]
        return torch.from_numpy(np.stack(frames)).movedim(3, 1).contiguous()

    def _shot(self, draws: np.random.Generator, num_frames: int) -> UInt8[np.ndarray, "t h w 3"]:
        stage = Stage(draws, self.config.world(num_frames), self._supply)
        heading = stage.between(0.0, 2 * math.pi)
        pan_px = stage.between(self.config.min_pan, self.config.max_pan) * stage.unit
        way = pan_px * np.arange(num_frames)[:, None] * np.array([math.cos(heading), math.sin(heading)])
        camera = similarity(stage, way, stage.wobble(_WOBBLE), 1 + stage.wobble(_WOBBLE), stage.centre)
        surface = stage.backdrop(camera, irregular=True)
        return render(Scene(layers=(surface,), image_size=self.config.image_size, light=stage.light()))
