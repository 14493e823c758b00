"""Real footage with known motion: a video frame moved by smooth affine maps, which give exact tracks.

The camera pans, zooms, rolls and shears over a still frame and stays within its border. Objects cut out of other frames
may move in front and occlude it. All else is at rest: this measures how well a tracker follows real surfaces, not real
motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from trecvit.data.tracked import TrackedVideo, TrackedVideos, resized_frame
from trecvit.draws import rng_without_stream
from trecvit.errors import DataError, InputError
from trecvit.synthetic.scene import Layer, Scene, invert
from trecvit.synthetic.sprites import Supply, premultiplied
from trecvit.synthetic.stage import Stage, WorldConfig
from trecvit.synthetic.track_scenes import filmed, single_piece, smooth_walk
from trecvit.video.decode import length_and_rate, read_frames_at


def moved_picture(
    picture: UInt8[np.ndarray, "_ _ 3"],
    *,
    name: str,
    seed: Sequence[int],
    num_frames: int = 24,
    image_size: tuple[int, int] = (256, 256),
    num_points: int = 64,
    speed: float = 1.0,
    noise_levels: float = 2.0,
    cover_pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]] = (),
    num_covers: int = 0,
) -> TrackedVideo:
    """Render a clip of a picture under a moving camera, with exact tracks.

    Args:
        picture: uint8 `[H, W, 3]`, at least 16 x 16.
        name: For messages and results.
        seed: Determines the clip, together with the pictures.
        num_frames: T, at least 2.
        image_size: Height and width of the clip's frames.
        num_points: Q.
        speed: Factor on the speed of camera and covers.
        noise_levels: Standard deviation of the sensor noise, in 8-bit levels.
        cover_pictures: Pictures to cut the covers from, which move in front.
        num_covers: Number of covers.

    Raises:
        InputError: A picture of a wrong shape, or covers without pictures to cut them from.
        ConfigError: An impossible number or size of frames.
    """
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < 16:
        raise InputError(f"picture: expected uint8 [H >= 16, W >= 16, 3], got {picture.dtype} {list(picture.shape)}")
    if num_covers and not cover_pictures:
        raise InputError(f"cover_pictures: expected pictures to cut {num_covers} covers from, got none")
    look = WorldConfig(num_frames=num_frames, image_size=image_size)
    supply = Supply(0, cover_pictures, picture_share=1.0, plain_share=0.0, surface_px=64)
    stage = Stage(rng_without_stream(*seed, 0), look, supply)
    layers = [moved_backdrop(stage, picture, speed)]
    for _ in range(num_covers):
        layers += single_piece(stage, speed)
    steady = np.zeros((num_frames, 2, 3))
    steady[:, 0] = 1
    scene = Scene(
        layers=tuple(layers),
        image_size=image_size,
        light=steady,
        noise_levels=noise_levels,
        noise_seed=(*seed, 1),
    )
    return filmed(scene, num_points, rng_without_stream(*seed, 2), name=name)


def moved_footage(
    videos: Sequence[str | Path],
    *,
    clips_per_video: int,
    num_frames: int = 24,
    image_size: tuple[int, int] = (256, 256),
    num_points: int = 64,
    num_covers: int = 2,
    speed: float = 1.0,
    seed: int = 0,
) -> TrackedVideos:
    """Make clips from frames spread evenly over each video; covers are cut from the other videos.

    Args:
        videos: Files, or any other source of `read_frames`. A single video also serves for the covers.
        clips_per_video: 1 or more.
        num_frames: See `moved_picture`.
        image_size: See `moved_picture`.
        num_points: See `moved_picture`.
        num_covers: See `moved_picture`.
        speed: See `moved_picture`.
        seed: 0 or more.

    Raises:
        DataError: No videos, or no clips of each.
        VideoError: A video cannot be opened; if one fails later, reading its clip raises.
    """
    if not videos or clips_per_video < 1:
        raise DataError(f"expected videos and 1 or more clips of each, got {len(videos)} and {clips_per_video}")
    lengths = [length_and_rate(video)[0] for video in videos]

    def read(video: int, position: float) -> UInt8[np.ndarray, "_ _ 3"]:
        frames, _ = read_frames_at(videos[video], [int(position * lengths[video])])
        picture: np.ndarray = frames[0]
        return picture

    def clip(video: int, clip_number: int, name: str) -> TrackedVideo:
        position = (clip_number + 0.5) / clips_per_video
        cover_videos = [number for number in range(len(videos)) if number != video] or [video]
        return moved_picture(
            read(video, position),
            name=name,
            seed=(seed, video, clip_number),
            num_frames=num_frames,
            image_size=image_size,
            num_points=num_points,
            speed=speed,
            cover_pictures=[read(number, position) for number in cover_videos] if num_covers else [],
            num_covers=num_covers,
        )

    named = [
        (video, number, f"{Path(str(source)).name}[{number}]")
        for video, source in enumerate(videos)
        for number in range(clips_per_video)
    ]
    return TrackedVideos(
        f"frames of {len(videos)} videos moved by known maps, {num_covers} covers, speed {speed:g}, seed {seed}",
        [(name, partial(clip, video, number, name)) for video, number, name in named],
    )


def moved_backdrop(
    stage: Stage, picture: UInt8[np.ndarray, "_ _ 3"], speed: float, *, stays_inside: bool = True
) -> Layer:
    """Draw the picture under a moving camera.

    Args:
        stage: For the frames and the random numbers.
        picture: The picture.
        speed: Factor on the camera's speed; 0 for a camera at rest.
        stays_inside: Whether the camera moves less where it would leave the picture, which is mirrored beyond.
    """
    height, width = picture.shape[:2]
    # The frame shows this fraction of the picture; the rest is room to move.
    shown = stage.between(0.5, 0.75)
    scale = float((stage.size / (width, height)).max()) / shown
    size = (round(height * scale), round(width * scale))
    texture = premultiplied(resized_frame(picture, size).astype(np.float32) / 255, np.ones(size, np.float32))
    shift = smooth_walk(stage.rng, stage.frames, (0.5 * speed * stage.unit,) * 2)
    angle, growth, *stretch = smooth_walk(
        stage.rng, stage.frames, (0.35 * speed, 0.25 * speed, 0.12 * speed, 0.12 * speed)
    ).T
    room = np.array([size[1], size[0]]) - stage.size
    middle = stage.size / 2 + stage.rng.uniform(0.25, 0.75, 2) * room - 0.5  # picture point at the frame's centre
    for part in np.linspace(1, 0, 41):
        maps = _camera(stage, middle, part * shift, part * angle, part * growth, [part * bend for bend in stretch])
        if not stays_inside or _stays_inside(stage, maps, size):
            break
    return Layer(texture=texture, transforms=maps, role="background", reflect=True)


def _camera(
    stage: Stage,
    middle: NDArray[Any],
    shift: NDArray[Any],
    angle: NDArray[Any],
    growth: NDArray[Any],
    stretch: Sequence[NDArray[Any]],
) -> Float[np.ndarray, "t 2 3"]:
    """Build maps from the picture to the frames; the point `middle` starts at the frame's centre."""
    cos, sin, zoom = np.cos(angle), np.sin(angle), np.exp(growth)
    turn = np.stack([np.stack([cos, -sin], axis=-1), np.stack([sin, cos], axis=-1)], axis=1)
    along, across = stretch
    squeeze = np.stack([np.stack([1 + along, across], axis=-1), np.stack([across, 1 - along], axis=-1)], axis=1)
    maps = np.empty((stage.frames, 2, 3))
    maps[:, :, :2] = zoom[:, None, None] * turn @ squeeze
    maps[:, :, 2] = stage.centre + shift - maps[:, :, :2] @ middle
    return maps


def _stays_inside(stage: Stage, maps: Float[np.ndarray, "t 2 3"], size: tuple[int, int]) -> bool:
    """Test whether the frames' corners lie within the picture's outermost pixel centres."""
    right, bottom = stage.size - 0.5
    corners = np.array([[-0.5, -0.5, 1], [right, -0.5, 1], [-0.5, bottom, 1], [right, bottom, 1]])
    view = invert(maps) @ corners.T  # [T, 2, 4]
    limits = np.array([size[1] - 1, size[0] - 1])[:, None]
    return bool(((view >= 0) & (view <= limits)).all())
