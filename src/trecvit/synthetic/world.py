"""The synthetic world: endless short clips whose classes only their motion tells.

Classes come in pairs, and so do clips: items 2k and 2k + 1 show the same scene, once as the pair's first class and once
as its second. For all pairs but the last the second is the first played backwards, so both hold the very same frames
and no single frame can tell them apart; for the last the two objects change places in depth. Everything about a scene
is drawn from the seed and k; only the noise differs between the two.
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


NUM_SYMMETRIES = 8  # of a square: mirrored or not in x and in y, and x and y exchanged or not

# What the classes that know a direction become; all others stay what they are.
_MIRRORED_X = {0: 1, 1: 0, 6: 7, 7: 6}
_MIRRORED_Y = {2: 3, 3: 2, 6: 7, 7: 6}
_EXCHANGED = {0: 2, 1: 3, 2: 0, 3: 1, 6: 7, 7: 6}


def mirrored(
    videos: UInt8[Tensor, "b t 3 h w"], labels: Sequence[int], symmetry: int
) -> tuple[UInt8[Tensor, "b t 3 _ _"], tuple[int, ...]]:
    """The same clips seen in a mirror or turned by quarters, and the classes of what they show then.

    Args:
        videos: Clips.
        labels: Their classes.
        symmetry: From 0, which changes nothing, to `NUM_SYMMETRIES` - 1. From 4 on height and width change places.
    """
    if not 0 <= symmetry < NUM_SYMMETRIES:
        raise InputError(f"symmetry must be from 0 to {NUM_SYMMETRIES - 1}, not {symmetry}")
    if symmetry & 1:
        videos, labels = videos.flip(-1), [_MIRRORED_X.get(label, label) for label in labels]
    if symmetry & 2:
        videos, labels = videos.flip(-2), [_MIRRORED_Y.get(label, label) for label in labels]
    if symmetry & 4:
        videos, labels = videos.transpose(-1, -2), [_EXCHANGED.get(label, label) for label in labels]
    return videos, tuple(labels)


class World:
    """Clips without end: any index from 0 on is one, and the same one every time.

    Args:
        config: See `WorldConfig`.
        seed: At least 0. Worlds with different seeds share no scene.
        pictures: uint8 `[H, W, 3]` for backgrounds and surfaces, or `[H, W, 4]` for cut-out objects.

    Attributes:
        config: As given.
        seed: As given.
        labels: The names of the classes.
    """

    def __init__(self, config: WorldConfig, *, seed: int, pictures: Sequence[NDArray[Any]] = ()) -> None:
        if seed < 0:
            raise ConfigError(f"seed must be 0 or more, not {seed}")
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
        """The scene of an item.

        Args:
            index: 0 or more. Of the 18 items from any multiple of 18 on, each class has one.
        """
        if index < 0:
            raise InputError(f"index must be 0 or more, not {index}")
        first = self._first_of_pair(index // 2)
        if index % 2 == 0:
            return first
        return self._second_of_pair(first)

    def clip(self, index: int) -> tuple[UInt8[np.ndarray, "t h w 3"], int]:
        """Frames of an item, uint8 RGB, and its label."""
        scene = self.scene(index)
        return render(scene), scene.label

    def __getitem__(self, index: int) -> tuple[UInt8[Tensor, "t 3 h w"], int]:
        scene = self.scene(index)
        return expose(compose(scene), scene), scene.label

    def pair(self, number: int) -> tuple[UInt8[Tensor, "2 t 3 h w"], tuple[int, int]]:
        """Items `2 * number` and `2 * number + 1` at little more than the cost of one."""
        if number < 0:
            raise InputError(f"number must be 0 or more, not {number}")
        first = self._first_of_pair(number)
        second = self._second_of_pair(first)
        clean = compose(first)
        other = clean.flip(0) if first.partner_swap is None else compose(second)
        return torch.stack([expose(clean, first), expose(other, second)]), (first.label, second.label)

    def tracks(
        self, index: int, query_points_tyx: NDArray[Any]
    ) -> tuple[Float[np.ndarray, "q t 2"], Bool[np.ndarray, "q t"]]:
        """Exact tracks of points `[Q, 3]` of an item, and where they can be seen; see `scene_tracks`."""
        return scene_tracks(self.scene(index), query_points_tyx)

    def _first_of_pair(self, number: int) -> Scene:
        # Pairs are shuffled within blocks: balanced, and no stride through the items meets one class only.
        block, place = divmod(number, len(PAIRS))
        pair = int(rng(self.seed, Stream.WORLD_PAIRS, block).permutation(len(PAIRS))[place])
        stage = Stage(rng(self.seed, Stream.WORLD_SCENE, number), self.config, self._supply)
        return _film(stage, pair, noise_seed=(self.seed, Stream.WORLD_NOISE, 2 * number))

    @staticmethod
    def _second_of_pair(first: Scene) -> Scene:
        *rest, item = first.noise_seed
        return replace(first.partner(), noise_seed=(*rest, item + 1))


# ---- a scene, from the play to the camera ---------------------------------------------------------------------------


def _film(stage: Stage, pair: int, noise_seed: tuple[int, ...]) -> Scene:
    whole = pair < len(CAMERA_MOVES) and stage.chance(stage.config.whole_scene_share)
    camera = hand(stage)
    if whole:
        camera = compose_transforms(camera, CAMERA_MOVES[pair](stage))
    background = stage.backdrop(camera, irregular=whole)
    play = Play([]) if whole else PLAYS[pair](stage)
    layers = [background, *_distractors(stage, play, camera if whole else None), *play.layers]
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
    """Centre and radius of the room a layer takes in each frame, `[T, 3]`."""
    _, height, width = layer.texture.shape
    linear = layer.transforms[:, :, :2]
    centre = linear @ np.array([(width - 1) / 2, (height - 1) / 2]) + layer.transforms[:, :, 2]
    extents = np.hypot(linear[:, 0], linear[:, 1]) * np.array([width, height])
    return np.concatenate([centre, 0.5 * np.hypot(extents[:, :1], extents[:, 1:])], axis=1)


def _distractors(stage: Stage, play: Play, camera: NDArray[Any] | None) -> list[Layer]:
    """Objects with no part in it, out of everything's way; under a moving camera they may lie anywhere."""
    taken = [_discs(layer) for layer in play.layers]
    found: list[Layer] = []
    for _ in range(int(stage.rng.integers(0, stage.config.max_distractors + 1))):
        sprite = stage.object(0.1, 0.3)
        tries = stage.rng.uniform(-0.05, 1.05, (12, 2)) * stage.size
        if camera is not None:
            # Where the camera looks in some frame, not only where it would look at rest.
            tries = (
                invert(camera)[stage.rng.integers(0, stage.frames, 12)]
                @ np.pad(tries, ((0, 0), (0, 1)), constant_values=1)[..., None]
            )
            tries = tries[..., 0]
        spot = next((point for point in tries if _free(point, sprite.radius_px + 0.03 * stage.unit, taken)), None)
        if spot is None:
            continue
        path = stage.still(spot)
        if stage.chance(0.25):
            path = path + np.stack([stage.wobble(0.025 * stage.unit), stage.wobble(0.025 * stage.unit)], axis=1)
        layer = stage.place(sprite, path, role="distractor", angle=stage.between(0.0, 2 * math.pi))
        found.append(layer)
        taken.append(_discs(layer))
    return found


def _free(point: NDArray[Any], radius: float, taken: list[NDArray[Any]]) -> bool:
    return all((np.hypot(*(discs[:, :2] - point).T) > discs[:, 2] + radius).all() for discs in taken)
