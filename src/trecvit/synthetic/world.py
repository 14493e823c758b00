"""The synthetic world: an endless supply of short clips whose class shows in motion alone.

Classes form pairs, and so do clips: items 2k and 2k + 1 show the same scene, once as the pair's first class and once as
its second. In all pairs but the last, the second clip is the first played backwards: both hold the same frames, and no
single frame separates them. In the last pair the two objects swap depth. Everything about a scene is drawn from the
seed and k; within a pair only the noise differs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from trecvit.draws import Stream, rng
from trecvit.errors import ConfigError, InputError
from trecvit.synthetic.camera import CAMERA_MOVES, hand
from trecvit.synthetic.plays import PLAYS
from trecvit.synthetic.scene import (
    Layer,
    Scene,
    compose,
    compose_transforms,
    expose,
    invert,
    render,
    scene_tracks,
)
from trecvit.synthetic.sprites import Supply
from trecvit.synthetic.stage import Play, Stage, WorldConfig

__all__ = ["LABELS", "NUM_SYMMETRIES", "PAIRS", "World", "WorldConfig", "mirrored"]

LABELS: tuple[str, ...] = (
    "moving left",
    "moving right",
    "rising",
    "falling",
    "approaching",
    "receding",
    "turning clockwise",
    "turning counter-clockwise",
    "appearing from behind something",
    "disappearing behind something",
    "opening",
    "closing",
    "colliding",
    "parting",
    "scattering",
    "gathering",
    "passing in front",
    "passing behind",
)
PAIRS: tuple[tuple[int, int], ...] = tuple((label, label + 1) for label in range(0, len(LABELS), 2))


NUM_SYMMETRIES = 8  # of a square: x mirrored, y mirrored, x and y swapped

# New label of each directional class; all other labels stay.
_MIRRORED_X = {0: 1, 1: 0, 6: 7, 7: 6}
_MIRRORED_Y = {2: 3, 3: 2, 6: 7, 7: 6}
_EXCHANGED = {0: 2, 1: 3, 2: 0, 3: 1, 6: 7, 7: 6}


def mirrored(
    videos: UInt8[Tensor, "b t 3 h w"], labels: Sequence[int], symmetry: int
) -> tuple[UInt8[Tensor, "b t 3 _ _"], tuple[int, ...]]:
    """Apply a symmetry of the square to clips and to their labels.

    Args:
        videos: Clips.
        labels: Their classes.
        symmetry: From 0 (identity) to `NUM_SYMMETRIES` - 1; 4 and above swap height and width.
    """
    if not 0 <= symmetry < NUM_SYMMETRIES:
        raise InputError(f"symmetry: expected 0 to {NUM_SYMMETRIES - 1}, got {symmetry}")
    if symmetry & 1:
        videos, labels = videos.flip(-1), [_MIRRORED_X.get(label, label) for label in labels]
    if symmetry & 2:
        videos, labels = videos.flip(-2), [_MIRRORED_Y.get(label, label) for label in labels]
    if symmetry & 4:
        videos, labels = videos.transpose(-1, -2), [_EXCHANGED.get(label, label) for label in labels]
    return videos, tuple(labels)


class World:
    """An endless, indexed supply of clips; an index always gives the same clip.

    Args:
        config: See `WorldConfig`.
        seed: 0 or more. Worlds with different seeds share no scene.
        pictures: uint8 `[H, W, 3]` for backgrounds and surfaces, or `[H, W, 4]` for cut-out objects.

    Attributes:
        config: As given.
        seed: As given.
        labels: The names of the classes.
    """

    def __init__(self, config: WorldConfig, *, seed: int, pictures: Sequence[NDArray[Any]] = ()) -> None:
        if seed < 0:
            raise ConfigError(f"seed: expected 0 or more, got {seed}")
        self.config = config
        self.seed = seed
        self.labels = LABELS
        surface_px = min(max(round(1.6 * max(config.image_size)), 96), 320)
        self._supply = Supply(
            seed,
            pictures,
            picture_share=config.picture_share,
            plain_share=config.plain_share,
            surface_px=surface_px,
        )

    def scene(self, index: int) -> Scene:
        """Build the scene of an item.

        Args:
            index: 0 or more. Items 18 k to 18 k + 17 hold each class once.
        """
        if index < 0:
            raise InputError(f"index: expected 0 or more, got {index}")
        first = self._first_of_pair(index // 2)
        if index % 2 == 0:
            return first
        return self._second_of_pair(first)

    def clip(self, index: int) -> tuple[UInt8[np.ndarray, "t h w 3"], int]:
        """Render an item: frames, uint8 RGB, and label."""
        scene = self.scene(index)
        return render(scene), scene.label

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "t 3 h w"], int]:
        scene = self.scene(index)
        return expose(compose(scene), scene), scene.label

    def pair(self, number: int) -> tuple[UInt8[Tensor, "2 t 3 h w"], tuple[int, int]]:
        """Render items `2 * number` and `2 * number + 1` for little more than the cost of one."""
        if number < 0:
            raise InputError(f"number: expected 0 or more, got {number}")
        first = self._first_of_pair(number)
        second = self._second_of_pair(first)
        clean = compose(first)
        second_clean = clean.flip(0) if first.partner_swap is None else compose(second)
        return torch.stack([expose(clean, first), expose(second_clean, second)]), (first.label, second.label)

    def tracks(
        self, index: int, query_points_tyx: NDArray[Any]
    ) -> tuple[Float[np.ndarray, "q t 2"], Bool[np.ndarray, "q t"]]:
        """Track points `[Q, 3]` of an item exactly: positions and visibility, see `scene_tracks`."""
        return scene_tracks(self.scene(index), query_points_tyx)

    def _first_of_pair(self, number: int) -> Scene:
        # Shuffled within blocks: classes stay balanced, and no stride through the items meets a single class.
        block, place = divmod(number, len(PAIRS))
        pair = int(rng(self.seed, Stream.WORLD_PAIRS, block).permutation(len(PAIRS))[place])
        stage = Stage(rng(self.seed, Stream.WORLD_SCENE, number), self.config, self._supply)
        return _film(stage, pair, noise_seed=(self.seed, Stream.WORLD_NOISE, 2 * number))

    @staticmethod
    def _second_of_pair(first: Scene) -> Scene:
        *rest, item = first.noise_seed
        return replace(first.partner(), noise_seed=(*rest, item + 1))


# ---- assembling a scene ----------------------------------------------------------------------------------------------


def _film(stage: Stage, pair: int, noise_seed: tuple[int, ...]) -> Scene:
    whole_scene_moves = pair < len(CAMERA_MOVES) and stage.chance(stage.config.whole_scene_share)
    camera = hand(stage)
    if whole_scene_moves:
        camera = compose_transforms(camera, CAMERA_MOVES[pair](stage))
    background = stage.backdrop(camera, irregular=whole_scene_moves)
    play = Play([]) if whole_scene_moves else PLAYS[pair](stage)
    layers = [background, *_distractors(stage, play, camera if whole_scene_moves else None), *play.layers]
    layers[1:] = [replace(layer, transforms=compose_transforms(camera, layer.transforms)) for layer in layers[1:]]
    last = len(layers) - 1
    return Scene(
        layers=tuple(layers),
        image_size=stage.config.image_size,
        light=stage.light(),
        blur_passes=int(stage.rng.choice([0, 0, 0, 0, 0, 1, 1, 2])),
        noise_levels=stage.config.noise * stage.between(0.0, 1.0) ** 2,
        noise_seed=noise_seed,
        label=PAIRS[pair][0],
        partner_label=PAIRS[pair][1],
        partner_swap=(last - 1, last) if play.swap_last_two else None,
    )


def _discs(layer: Layer) -> NDArray[Any]:
    """Return the centre and radius of a disc around the layer in each frame, `[T, 3]`."""
    _, height, width = layer.texture.shape
    linear = layer.transforms[:, :, :2]
    centre = linear @ np.array([(width - 1) / 2, (height - 1) / 2]) + layer.transforms[:, :, 2]
    extents = np.hypot(linear[:, 0], linear[:, 1]) * np.array([width, height])
    return np.concatenate([centre, 0.5 * np.hypot(extents[:, :1], extents[:, 1:])], axis=1)


def _distractors(stage: Stage, play: Play, camera: NDArray[Any] | None) -> list[Layer]:
    """Place objects without a role where they overlap none of the others.

    Under a moving camera they may lie anywhere that the camera sees.
    """
    occupied = [_discs(layer) for layer in play.layers]
    distractors: list[Layer] = []
    for _ in range(int(stage.rng.integers(0, stage.config.max_distractors + 1))):
        sprite = stage.object(0.1, 0.3)
        tries = stage.rng.uniform(-0.05, 1.05, (12, 2)) * stage.size
        if camera is not None:
            # Positions in the view of some frame, not only of the camera at rest.
            tries = (
                invert(camera)[stage.rng.integers(0, stage.frames, 12)]
                @ np.pad(tries, ((0, 0), (0, 1)), constant_values=1)[..., None]
            )
            tries = tries[..., 0]
        spot = next((point for point in tries if _free(point, sprite.radius_px + 0.03 * stage.unit, occupied)), None)
        if spot is None:
            continue
        path = stage.still(spot)
        if stage.chance(0.25):
            path = path + np.stack([stage.wobble(0.025 * stage.unit), stage.wobble(0.025 * stage.unit)], axis=1)
        layer = stage.place(sprite, path, role="distractor", angle=stage.between(0.0, 2 * math.pi))
        distractors.append(layer)
        occupied.append(_discs(layer))
    return distractors


def _free(point: NDArray[Any], radius: float, occupied: list[NDArray[Any]]) -> bool:
    return all((np.hypot(*(discs[:, :2] - point).T) > discs[:, 2] + radius).all() for discs in occupied)
