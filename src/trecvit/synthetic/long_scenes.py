"""Long scenes for training trackers as they stream: pictures under a camera at rest or moving, and things in front.

A frame is as large as a part of a video in the benchmark's raster of 256 x 256 pixels would be: a tracker without
positions that is trained on such parts tracks whole frames. In many scenes the camera and most things are at rest, in
others all moves. Frames are blurred, exposed and compressed as real ones are.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image

from trecvit.data.folders import is_hidden
from trecvit.data.tracked import TrackedVideo, resized_frame
from trecvit.draws import Stream, rng
from trecvit.errors import ConfigError, DataError, VideoError
from trecvit.synthetic.camera import similarity
from trecvit.synthetic.footage import moved_backdrop
from trecvit.synthetic.pictures import PICTURE_SUFFIXES, read_picture
from trecvit.synthetic.scene import Layer, Scene, compose_transforms
from trecvit.synthetic.sprites import Supply
from trecvit.synthetic.stage import Stage, WorldConfig
from trecvit.synthetic.track_scenes import filmed, smooth_walk, thing
from trecvit.video.decode import length_and_rate, read_frames_at
from trecvit.video.frames import VIDEO_SUFFIXES

_FRAMES_PER_VIDEO = 2
_SHORT_SIDE_PX = 288
_MOST_PICTURES = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class LongSceneConfig:
    """Appearance of the scenes.

    Attributes:
        image_size: Height and width of the frames in pixels, each a multiple of 8.
        num_points: Q, tracks per scene.
        still_share: Share of scenes whose camera is at rest.
        rest_share: Share of things at rest, where points are hidden by what passes, or hide others for ever.
        max_things: Largest number of things in front; a fence or a flock is one.
        camera_speed: Largest factor on the speed of `trecvit.synthetic.footage`'s camera.
        speed: Largest factor on the speed of things.
        noise: Largest standard deviation of the sensor noise, in 8-bit levels.
        picture_share: Share of backgrounds and things cut from pictures, if there are any.
    """

    image_size: tuple[int, int] = (128, 128)
    num_points: int = 32
    still_share: float = 0.4
    rest_share: float = 0.3
    max_things: int = 5
    camera_speed: float = 2.0
    speed: float = 2.0
    noise: float = 6.0
    picture_share: float = 0.85

    def __post_init__(self) -> None:
        if self.num_points < 1 or self.max_things < 0:
            raise ConfigError(f"expected num_points >= 1 and max_things >= 0, got {self.num_points}, {self.max_things}")
        for name in ("still_share", "rest_share", "picture_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: expected 0 to 1, got {getattr(self, name)}")


class LongScenes:
    """An endless, indexed supply of scenes of any length; an index and a length always give the same scene.

    Args:
        config: See `LongSceneConfig`.
        seed: 0 or more.
        pictures: uint8 `[H, W, 3]`, for backgrounds and things.
    """

    def __init__(self, config: LongSceneConfig, *, seed: int, pictures: Sequence[NDArray[Any]] = ()) -> None:
        self.config, self.seed = config, seed
        self.pictures = [picture for picture in pictures if picture.shape[2] == 3 and min(picture.shape[:2]) >= 64]
        self._supply = Supply(
            seed,
            pictures,
            picture_share=config.picture_share,
            plain_share=0.03,
            surface_px=2 * max(config.image_size),
        )

    def video(self, index: int, num_frames: int) -> TrackedVideo:
        """Render a scene with its points; each has a query in a random frame that shows it."""
        draws = rng(self.seed, Stream.LONG_SCENE, index, num_frames)
        look = WorldConfig(num_frames=num_frames, image_size=self.config.image_size, noise=self.config.noise)
        stage = Stage(draws, look, self._supply)
        layers = [self._background(stage)]
        for _ in range(int(draws.integers(0, self.config.max_things + 1))):
            layers += self._thing(stage)
        scene = Scene(
            layers=tuple(layers),
            image_size=self.config.image_size,
            light=stage.light(),
            blur_passes=int(draws.choice([0, 0, 0, 1, 2])),
            noise_levels=self.config.noise * stage.between(0.0, 1.0) ** 2,
            noise_seed=(self.seed, Stream.LONG_SCENE, index),
        )
        video = filmed(scene, self.config.num_points, draws, name=f"long scene {index}")
        return replace(video, video=_as_recorded(video.video, draws))

    def _background(self, stage: Stage) -> Layer:
        still = stage.chance(self.config.still_share)
        speed = 0.0 if still else self.config.camera_speed * stage.between(0.0, 1.0)
        if self.pictures and stage.chance(self.config.picture_share):
            picture = self.pictures[int(stage.rng.integers(len(self.pictures)))]
            layer = moved_backdrop(stage, picture, speed, stays_inside=False)
        else:
            shift = smooth_walk(stage.rng, stage.frames, (0.5 * speed * stage.unit,) * 2)
            rest = np.zeros(stage.frames)
            layer = stage.backdrop(similarity(stage, shift, rest, rest + 1, stage.centre), irregular=True)
        if not still and stage.chance(0.3):  # a hand-held camera
            layer = replace(layer, transforms=_shaken(layer.transforms, stage, 0.01 * stage.unit * stage.rng.random()))
        return layer

    def _thing(self, stage: Stage) -> list[Layer]:
        """Draw a thing that moves, rests, or moves and stops."""
        layers = thing(stage, self.config.speed * stage.between(0.0, 1.0))
        kind = stage.rng.random()
        if kind < self.config.rest_share:
            layers = [replace(layer, transforms=layer.transforms[:1].repeat(stage.frames, axis=0)) for layer in layers]
        elif kind < 2 * self.config.rest_share:
            order = _paused(stage)
            layers = [replace(layer, transforms=layer.transforms[order]) for layer in layers]
        return layers


def _paused(stage: Stage) -> NDArray[np.int64]:
    """The moments of a movement that each frame shows: it stops at a random frame and may resume after another."""
    stop, length = int(stage.rng.integers(stage.frames)), int(stage.rng.integers(stage.frames))
    frames = np.arange(stage.frames)
    order: NDArray[np.int64] = np.where(frames < stop, frames, np.maximum(stop, frames - length))
    return order


def _shaken(transforms: NDArray[Any], stage: Stage, by_px: float) -> NDArray[Any]:
    shifts = np.tile(np.eye(2, 3), (stage.frames, 1, 1))
    shifts[:, :, 2] = by_px * stage.rng.standard_normal((stage.frames, 2))
    return compose_transforms(shifts, transforms)


def _as_recorded(video: UInt8[np.ndarray, "t h w 3"], draws: np.random.Generator) -> UInt8[np.ndarray, "t h w 3"]:
    """Frames as a camera of lower resolution gives them, and as compression leaves them."""
    size = video.shape[1:3]
    coarser = draws.choice([1.0, math.exp(draws.uniform(0.0, 1.0))], p=[0.6, 0.4])
    if coarser > 1.1:
        small = (max(16, round(size[0] / coarser)), max(16, round(size[1] / coarser)))
        video = np.stack([resized_frame(resized_frame(frame, small), size) for frame in video])
    if draws.random() < 0.5:
        quality = int(draws.integers(25, 90))
        video = np.stack([_compressed(frame, quality) for frame in video])
    return video


def _compressed(frame: UInt8[np.ndarray, "h w 3"], quality: int) -> UInt8[np.ndarray, "h w 3"]:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer))


def pictures_of(folder: str | Path) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """Read the pictures of a folder and its subfolders, and of each video a frame of its first and its second half.

    Args:
        folder: Hidden files and folders and other kinds are skipped. Of very many files an even choice is read.

    Raises:
        DataError: The folder does not exist, or has neither pictures nor videos.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of videos and pictures, got no such folder; check the path")
    known = (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES)
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in known)
    files = [path for path in found if not any(map(is_hidden, path.relative_to(root).parts))]
    if not files:
        raise DataError(f"{root}: expected videos or pictures, got none")
    chosen = [files[number] for number in sorted({*np.linspace(0, len(files) - 1, _MOST_PICTURES, dtype=int).tolist()})]
    pictures: list[UInt8[np.ndarray, "_ _ 3"]] = []
    for path in chosen:
        if path.suffix.lower() in PICTURE_SUFFIXES:
            pictures.append(read_picture(path)[..., :3])
            continue
        try:
            length, _ = length_and_rate(path)
            frames = [int(length * (part + 0.5) / _FRAMES_PER_VIDEO) for part in range(_FRAMES_PER_VIDEO)]
            pictures += list(read_frames_at(path, frames, short_side_px=_SHORT_SIDE_PX)[0])
        except VideoError as exc:
            raise DataError(f"{path}: expected a readable video: {exc}; replace or remove it") from exc
    return pictures
