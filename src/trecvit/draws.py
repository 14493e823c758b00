"""Independent streams of random numbers: one per purpose, so that no two uses of a seed share draws."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """The purposes. Values are part of the results: changing one changes the numbers of a seed."""

    WORLD_SCENE = 0
    SURFACE = 1
    WORLD_NOISE = 2
    WORLD_PAIRS = 3
    SCENE_VIEW = 4
    RENDERED_EASY = 5
    TRACK_SCENE = 6
    TRACKED_POINTS = 7
    TRACK_NOISE = 8
    QUERIES = 9
    TRACK_EASY = 10
    PROBE = 11
    CLIP_MASK = 12
    TEST_MASK = 13
    SCENERY = 14
    AUGMENTATION = 15
    STEP = 16
    POINT_PROBE = 17
    FILE_ORDER = 18
    LONG_SCENE = 19
    LONG_QUERIES = 20
    STILL = 21


def rng(seed: int, stream: Stream, *index: int) -> np.random.Generator:
    """Return the generator of a seed, stream and index, independent of all others.

    Args:
        seed: Of a run or a data set.
        stream: The purpose.
        index: The item within the purpose, such as epoch and video; of constant length for a stream, because NumPy
            pads with zeros: (1,) and (1, 0) give the same numbers.
    """
    return np.random.default_rng([seed, stream, *index])


def rng_without_stream(*key: int) -> np.random.Generator:
    """The generator of test clips whose scores were published before streams had names.

    Its numbers are those of `rng` where the second part of the key is a stream's value: use `rng` for all else.
    """
    return np.random.default_rng(key)


def torch_seed(seed: int, stream: Stream, *index: int) -> int:
    """Return a seed for PyTorch's generators, see `rng`."""
    return int(np.random.SeedSequence([seed, stream, *index]).generate_state(1, np.uint64)[0])
