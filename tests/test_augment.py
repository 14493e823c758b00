from __future__ import annotations

import numpy as np
import pytest

from trecvit.data.augment import _OPERATIONS, Augmentation, opposite, rand_augment
from trecvit.data.class_names import class_names
from trecvit.errors import ConfigError
from trecvit.synthetic.world import LABELS


def still(frames: int = 4, height: int = 40, width: int = 56) -> np.ndarray:
    picture = np.random.default_rng(5).integers(40, 200, (height, width, 3), np.uint8)
    return np.repeat(picture[None], frames, axis=0)


@pytest.mark.parametrize("name", sorted(_OPERATIONS))
@pytest.mark.parametrize("sign", [-1, 1])
def test_every_frame_of_a_clip_is_treated_alike(name, sign):
    frames = still()
    out = _OPERATIONS[name](frames, 0.7, sign)
    assert out.shape == frames.shape
    assert out.dtype == np.uint8
    assert (out == out[:1]).all()
    assert (out == frames).all() == (name == "identity")


@pytest.mark.parametrize("name", ["auto_contrast", "equalise", "contrast", "brightness", "colour"])
def test_colours_depend_on_the_clip_and_not_on_the_frame(name):
    """The same pixel value becomes the same value whichever frame it is in, or the clip would flicker."""
    rng = np.random.default_rng(0)
    shades = rng.integers(60, 190, 4)
    frames = np.stack([np.repeat(rng.integers(s - 50, s + 50, (8, 8, 1), np.uint8), 3, axis=2) for s in shades])
    out = _OPERATIONS[name](frames, 0.8, 1)
    for value in np.unique(frames):
        assert len(np.unique(out[(frames == value).all(axis=-1)])) == 1


def test_geometry_moves_the_picture_the_way_it_says():
    frames = np.zeros((2, 41, 41, 3), np.uint8)
    frames[:, 20, 30] = 255  # right of the middle
    turned = _OPERATIONS["rotate"](frames, 1.0, 1)[0, :, :, 0].astype(int)
    row, column = np.unravel_index(np.where(turned == 128, 0, turned).argmax(), turned.shape)
    assert row < 20  # Pillow turns counter-clockwise
    assert 26 <= column <= 30
    for name, (rows, columns) in {"translate_x": (0, -1), "translate_y": (-1, 0)}.items():
        moved = _OPERATIONS[name](frames, 0.2, 1)[0, :, :, 0].astype(int)
        row, column = np.unravel_index(np.where(moved == 128, 0, moved).argmax(), moved.shape)
        assert (np.sign(row - 20), np.sign(column - 30)) == (rows, columns)
    middle = np.zeros((1, 41, 41, 3), np.uint8)
    middle[:, 20, 20] = 255
    for name in ("rotate", "shear_x", "shear_y"):
        kept = _OPERATIONS[name](middle, 1.0, 1)[0, :, :, 0].astype(int)
        assert np.unravel_index(np.where(kept == 128, 0, kept).argmax(), kept.shape) == (20, 20)


def test_magnitude_nought_changes_next_to_nothing_and_ten_changes_much():
    frames = still()
    for seed in range(20):
        weak, strong = (rand_augment(frames, np.random.default_rng(seed), 2, magnitude) for magnitude in (0.0, 10.0))
        assert weak.shape == strong.shape == frames.shape
    kinds = {"brightness", "rotate", "translate_x", "shear_y", "posterise", "colour", "contrast", "sharpness"}
    for name in kinds:
        assert np.abs(_OPERATIONS[name](frames, 0.0, 1).astype(int) - frames).max() <= 1, name
        assert np.abs(_OPERATIONS[name](frames, 1.0, 1).astype(int) - frames).mean() > 3, name


def test_the_same_seed_gives_the_same_clip():
    plan = Augmentation(scale=(0.875, 1.33), flip=True, rand_augment_ops=2)
    frames = np.random.default_rng(1).integers(0, 256, (3, 64, 80, 3), np.uint8)
    clips = [plan(frames, np.random.default_rng(seed), (32, 32), may_flip=True)[0] for seed in (3, 3, 4)]
    assert clips[0].shape == (3, 32, 32, 3)
    assert clips[0].flags.c_contiguous
    assert np.array_equal(clips[0], clips[1])
    assert not np.array_equal(clips[0], clips[2])


def test_crops_reach_every_corner():
    frames = np.zeros((1, 6, 7, 3), np.uint8)
    frames[0, :, :, 0], frames[0, :, :, 1] = np.arange(6)[:, None], np.arange(7)
    plan = Augmentation()
    corners = {
        tuple(plan(frames, np.random.default_rng(seed), (4, 4), may_flip=False)[0][0, 0, 0, :2]) for seed in range(200)
    }
    assert corners == {(top, left) for top in range(3) for left in range(4)}


def test_only_classes_without_sides_are_mirrored():
    names = class_names("something_something_v2")
    assert Augmentation().mirrored_labels(names) == (None,) * len(names)
    mirrored_labels = Augmentation(flip=True).mirrored_labels(names)
    sided = [name for name, mirrored in zip(names, mirrored_labels, strict=True) if mirrored is None]
    assert len(sided) == sum(bool({"left", "right"} & set(name.lower().split())) for name in names) > 0
    assert "Pushing something from left to right" in sided
    assert "Putting something upright on the table" not in sided  # "right" within a word is no side
    assert all(mirrored in (None, number) for number, mirrored in enumerate(mirrored_labels))
    frames = np.arange(8, dtype=np.uint8)[None, None, :, None].repeat(8, 1).repeat(3, 3)
    plan = Augmentation(flip=True)
    for may_flip, ways in ((False, {False}), (True, {False, True})):
        seen = set()
        for seed in range(30):
            clip, flipped = plan(frames, np.random.default_rng(seed), (8, 8), may_flip=may_flip)
            assert flipped == bool(clip[0, 0, 0, 0])
            seen.add(flipped)
        assert seen == ways


def test_a_class_with_an_opposite_becomes_it_in_a_mirror_if_that_is_asked_for():
    labels = ("moving left", "moving right", "turning clockwise", "Turning counter-clockwise", "jumping", "going left")
    mirrored = Augmentation(flip=True, flip_sided=True).mirrored_labels(labels)
    # The opposite of the third is named otherwise, and the last has none: neither may be mirrored.
    assert mirrored == (1, 0, None, None, 4, None)
    assert opposite("Turning counter-clockwise, from left to Right") == "Turning clockwise, from right to Left"
    assert Augmentation(flip=True, flip_sided=True).mirrored_labels(LABELS)[:8] == (1, 0, 2, 3, 4, 5, 7, 6)
    with pytest.raises(ConfigError, match="flip=false"):
        Augmentation(flip_sided=True)


def test_scale_jitter_of_table_9_never_leaves_less_than_a_crop():
    plan = Augmentation(scale=(0.875, 1.33))
    rng = np.random.default_rng(0)
    sides = [plan.short_side_px(rng, (224, 224)) for _ in range(2000)]
    assert min(sides) == 224
    assert max(sides) in (339, 340)
    assert Augmentation().short_side_px(rng, (224, 224)) == 256
    assert Augmentation(resize_px=100).short_side_px(rng, (224, 224)) == 224


@pytest.mark.parametrize(
    "fields",
    [{"scale": (1.3, 0.8)}, {"scale": (0.0, 1.0)}, {"rand_augment_magnitude": 11.0}, {"rand_augment_ops": -1}],
)
def test_impossible_augmentations_are_refused(fields):
    with pytest.raises(ConfigError, match="expected"):
        Augmentation(**fields)


@pytest.mark.parametrize(
    "label", ["swipe_left", "TurnRight", "moving leftwards", "rotate_clockwise", "LEFT", "turnleft"]
)
def test_a_side_is_noticed_however_it_is_written(label):
    assert Augmentation(flip=True).mirrored_labels([label, "bright", "standing upright", "leftovers"]) == (
        None,
        1,
        2,
        3,
    )


def test_opposites_are_found_however_they_are_written():
    labels = ["swipe_left", "swipe_right", "TurnLeft", "TurnRight", "anticlockwise", "clockwise"]
    # Of clockwise and anticlockwise only one way leads to a name that is there; the other is not guessed.
    assert Augmentation(flip=True, flip_sided=True).mirrored_labels(labels) == (1, 0, 3, 2, 5, None)
