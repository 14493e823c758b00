"""Surfaces, shapes, and pictures from files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trecvit.errors import DataError, InputError, MissingPackageError
from trecvit.synthetic.outlines import SHAPES, TURNABLE, outline
from trecvit.synthetic.pictures import load_pictures, photographs
from trecvit.synthetic.sprites import Supply, premultiplied, shatter
from trecvit.synthetic.surfaces import palette, recolour, surface
from trecvit.synthetic.world import World, WorldConfig


@pytest.fixture
def supply() -> Supply:
    return Supply(5, (), picture_share=0.5, plain_share=0.0, surface_px=96)


@pytest.mark.parametrize("kind", range(13))
def test_surfaces(kind: int) -> None:
    for size in (64, 97):
        made = surface(np.random.default_rng(kind), size, kind)
        assert made.shape == (size, size, 3)
        assert made.dtype == np.float32
        assert 0 <= made.min() <= made.max() <= 1
    assert np.array_equal(made, surface(np.random.default_rng(kind), 97, kind))


@pytest.mark.parametrize("kind", sorted({*SHAPES, *TURNABLE}))
def test_shapes_fill_their_box(kind: str) -> None:
    for seed in range(5):
        points, filled = outline(np.random.default_rng(seed), kind)[0]
        assert filled
        assert np.allclose(points.min(axis=0), -1)
        assert np.allclose(points.max(axis=0), 1)


@pytest.mark.parametrize("kind", sorted({*SHAPES, *TURNABLE}))
def test_sprites(supply: Supply, kind: str) -> None:
    sprite = supply.sprite(np.random.default_rng(2), kind, (30.0, 44.0))
    alpha = sprite.texture[3].numpy()
    assert sprite.texture.shape == (4, 32, 46)
    assert alpha.max() == 1
    assert (alpha[[0, -1]] == 0).all()
    assert (alpha[:, [0, -1]] == 0).all()
    assert (sprite.texture[:3].numpy() <= alpha + 1e-6).all()  # premultiplied
    rows, columns = np.nonzero(alpha > 0.5)
    farthest = np.hypot(rows - 15.5, columns - 22.5).max()
    assert abs(sprite.radius - farthest) < 3
    assert sprite.scale == 1


def test_large_sprites_are_magnified(supply: Supply) -> None:
    sprite = supply.sprite(np.random.default_rng(2), "box", (300.0, 600.0))
    assert max(sprite.texture.shape) <= 150
    assert abs(sprite.radius_px - np.hypot(150, 300)) < 10


def test_sprites_stand_out(supply: Supply) -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        grey = np.full(3, rng.uniform(0.1, 0.9), np.float32)
        sprite = supply.sprite(rng, "box", (30.0, 30.0), unlike=[grey])
        inside = sprite.texture[:3, 8:-8, 8:-8].numpy()
        assert np.abs(inside - grey[:, None, None]).sum(axis=0).mean() > 0.2


def test_pieces_join_to_the_whole(supply: Supply) -> None:
    rng = np.random.default_rng(4)
    whole = supply.sprite(rng, "ellipse", (40.0, 40.0))
    joined = np.zeros((4, 60, 60), np.float32)
    pieces = list(shatter(rng, whole, 5))
    for piece, offset in pieces:
        _, height, width = piece.texture.shape
        left, top = (offset - np.array([width - 1, height - 1]) / 2 + 29.5).round().astype(int)
        joined[:, top : top + height, left : left + width] += piece.texture.numpy()
    assert 4 <= len(pieces) <= 5
    difference = np.abs(joined[:, 9:51, 9:51] - whole.texture.numpy())
    assert (difference[:, whole.texture[3] > 0.5]).max() < 1e-6


def test_recolour_and_palette_stay_in_range() -> None:
    rng = np.random.default_rng(0)
    colours = palette(rng, 6)
    assert colours.shape == (6, 3)
    assert 0 <= colours.min() <= colours.max() <= 1
    for strength in (0.0, 0.3, 1.0):
        changed = recolour(rng, surface(rng, 64), strength)
        assert 0 <= changed.min() <= changed.max() <= 1
    same = surface(rng, 64)
    assert np.allclose(recolour(rng, same, 0.0), same, atol=1e-5)


def test_bank_does_not_depend_on_the_order(supply: Supply) -> None:
    other = Supply(5, (), picture_share=0.5, plain_share=0.0, surface_px=96)
    for seed in (1, 2, 3):
        supply.surface(np.random.default_rng(seed), 20, 20)
    for seed in (3, 1, 2):
        one = supply.surface(np.random.default_rng(seed), 20, 30)
        two = other.surface(np.random.default_rng(seed), 20, 30)
        assert one.shape == (20, 30, 3)
        assert np.array_equal(one, two)


def test_premultiplied() -> None:
    texture = premultiplied(np.full((2, 3, 3), 0.5, np.float32), np.full((2, 3), 0.5, np.float32))
    assert texture.shape == (4, 2, 3)
    assert (texture[:3] == 0.25).all()
    assert (texture[3] == 0.5).all()


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_photographs_are_split_by_name() -> None:
    pytest.importorskip("skimage")
    train, held_out = photographs("train"), photographs("held_out")
    assert len(train) == 12
    assert len(held_out) == 6
    for picture in (*train, *held_out):
        assert picture.dtype == np.uint8
        assert picture.ndim == 3
        assert picture.shape[2] == 3
        assert max(picture.shape) <= 512
    with pytest.raises((InputError, TypeError), match="split"):
        photographs("test")  # type: ignore[arg-type]


def test_photographs_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(MissingPackageError, match=r"trecvit\[photos\]"):
        photographs("train")


def test_folder_of_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (700, 1000, 3), np.uint8)).save(tmp_path / "b.jpg")
    cut_out = np.zeros((30, 40, 4), np.uint8)
    cut_out[5:20, 8:30] = (250, 10, 10, 255)
    Image.fromarray(cut_out).save(tmp_path / "a.png")
    opaque = np.full((20, 20, 4), 255, np.uint8)
    Image.fromarray(opaque).save(tmp_path / "c.png")
    Image.fromarray(rng.integers(0, 255, (24, 32), np.uint8)).save(tmp_path / "d.PNG")
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / "._a.png").write_bytes(b"what macOS leaves beside a file")
    pictures = load_pictures(tmp_path)
    assert [picture.shape for picture in pictures] == [(30, 40, 4), (358, 512, 3), (20, 20, 3), (24, 32, 3)]
    world = World(WorldConfig(picture_share=1.0), seed=0, pictures=pictures)
    assert world.clip(0)[0].shape == (16, 96, 96, 3)


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"torn\.png"):
        load_pictures(tmp_path)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load_pictures(tmp_path / "nowhere")
    with pytest.raises(DataError, match="got none"):
        load_pictures(tmp_path)


def test_invisible_cut_outs_are_refused() -> None:
    with pytest.raises(DataError, match=r"pictures\[0\]"):
        World(WorldConfig(), seed=0, pictures=[np.zeros((20, 20, 4), np.uint8)])


def test_backgrounds_that_move_are_not_empty() -> None:
    grey = np.repeat(np.linspace(105, 140, 80).astype(np.uint8)[:, None, None], 80, axis=1).repeat(3, axis=2)
    supply = Supply(0, [grey], picture_share=1.0, plain_share=0.0, surface_px=96)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        texture = supply.background(rng, 60, 70, irregular=True)
        assert texture.shape == (4, 60, 70)
        assert (texture[3] == 1).all()
        assert texture[:3].std(dim=(1, 2)).max() > 0.08


def test_plain_surfaces_have_one_colour_unless_motion_must_show():
    supply = Supply(0, (), picture_share=0.5, plain_share=1.0, surface_px=96)
    rng = np.random.default_rng(0)
    assert np.ptp(supply.surface(rng, 20, 30), axis=(0, 1)).max() == 0
    assert np.ptp(supply.surface(rng, 20, 30, irregular=True), axis=(0, 1)).max() > 0.02
