"""Rendering and tracks: dots painted on textures appear at the tracks' positions and only while visible."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trecvit.errors import DataError, InputError
from trecvit.synthetic.scene import Layer, Scene, compose, compose_transforms, invert, render, scene_tracks

FRAMES, SIZE = 6, (60, 80)


def plain(height: int, width: int, colour: tuple[float, float, float]) -> torch.Tensor:
    texture = torch.ones(4, height, width)
    texture[:3] = torch.tensor(colour)[:, None, None]
    return texture


def moved(*, start: tuple[float, float], step: tuple[float, float] = (0, 0), scale: float = 1.0, turn: float = 0.0):
    """Transforms [FRAMES, 2, 3] of something that glides, and turns a little more in each frame."""
    maps = np.zeros((FRAMES, 2, 3))
    for frame in range(FRAMES):
        angle = turn * frame
        maps[frame, :, :2] = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        maps[frame, :, 2] = np.array(start) + frame * np.array(step)
    return maps


def even_light() -> np.ndarray:
    light = np.zeros((FRAMES, 2, 3))
    light[:, 0] = 1
    return light


def scene_of(*layers: Layer) -> Scene:
    return Scene(layers=layers, image_size=SIZE, light=even_light(), label=0, partner_label=1)


def backdrop(**keywords: object) -> Layer:
    maps = moved(start=(0, 0))
    return Layer(texture=plain(70, 90, (0.2, 0.2, 0.2)), transforms=maps, role="background", reflect=True)


def dot(texture: torch.Tensor, x: int, y: int, colour: tuple[float, float, float]) -> None:
    """A disc of radius 2 around a texture pixel."""
    rows, columns = np.mgrid[: texture.shape[1], : texture.shape[2]]
    texture[:3, torch.from_numpy((rows - y) ** 2 + (columns - x) ** 2 <= 6)] = torch.tensor(colour)[:, None]


def centre_of(frame: np.ndarray, channel: int) -> np.ndarray | None:
    """Centre (x, y) of the pixels that are bright in one colour only."""
    others = [other for other in range(3) if other != channel]
    strength = np.clip(frame[..., channel].astype(float) - frame[..., others].max(axis=-1) - 60, 0, None)
    if (strength > 0).sum() < 4:
        return None
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    return np.array([(x * strength).sum(), (y * strength).sum()]) / strength.sum()


def test_whole_numbers_are_pixel_centres() -> None:
    texture = plain(3, 3, (1.0, 0.0, 0.0))
    layer = Layer(texture=texture, transforms=moved(start=(10, 20)), role="mover")
    frames = render(scene_of(backdrop(), layer))
    red = frames[0, ..., 0] > 200
    assert np.argwhere(red).min(axis=0).tolist() == [20, 10]
    assert np.argwhere(red).max(axis=0).tolist() == [22, 12]
    assert (frames[0][~red] == 51).all()


def test_still_and_moving_renderings_agree() -> None:
    """A layer at rest is drawn once for all frames; one different frame takes the general path."""
    texture = torch.rand(4, 12, 15, generator=torch.Generator().manual_seed(0))
    texture[:3] *= texture[3:]
    still = moved(start=(20.3, 10.7), scale=1.3)
    nearly = still.copy()
    nearly[-1, 0, 2] += 1
    one, two = (
        compose(scene_of(backdrop(), Layer(texture=texture, transforms=maps, role="mover"))) for maps in (still, nearly)
    )
    assert torch.allclose(one[:-1], two[:-1], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    start=st.tuples(st.floats(-40, 90), st.floats(-40, 70)),
    step=st.tuples(st.floats(-15, 15), st.floats(-15, 15)),
    scale=st.floats(0.4, 2.5),
    turn=st.floats(-0.6, 0.6),
)
def test_boxes_lose_nothing(start: tuple[float, float], step: tuple[float, float], scale: float, turn: float) -> None:
    """Drawing inside following boxes equals looking up every pixel of every frame, slowly."""
    texture = torch.rand(4, 9, 14, generator=torch.Generator().manual_seed(1))
    texture[:3] *= texture[3:]
    maps = moved(start=start, step=step, scale=scale, turn=turn)
    drawn = compose(scene_of(backdrop(), Layer(texture=texture, transforms=maps, role="mover")))
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    padded = np.pad(texture.numpy(), ((0, 0), (2, 3), (2, 3)))
    for frame in (0, FRAMES - 1):
        u, v = np.einsum("ij,jhw->ihw", invert(maps)[frame], np.stack([x, y, np.ones_like(x)]))
        u, v = np.clip(u, -1.5, 15), np.clip(v, -1.5, 10)
        left, top = np.floor(u).astype(int), np.floor(v).astype(int)
        fx, fy = u - left, v - top
        look = lambda dy, dx: padded[:, top + 2 + dy, left + 2 + dx]  # noqa: B023, E731
        value = (look(0, 0) * (1 - fx) + look(0, 1) * fx) * (1 - fy) + (look(1, 0) * (1 - fx) + look(1, 1) * fx) * fy
        expected = 0.2 * (1 - value[3]) + value[:3]
        assert np.abs(drawn[frame].numpy() - expected).max() < 2e-3


def test_tracks_follow_painted_dots() -> None:
    cloth = plain(90, 120, (0.3, 0.3, 0.3))
    dot(cloth, 30, 25, (0.0, 0.0, 1.0))
    board = plain(30, 40, (0.6, 0.6, 0.6))
    dot(board, 10, 12, (1.0, 0.0, 0.0))
    dot(board, 33, 20, (0.0, 1.0, 0.0))
    layers = (
        Layer(texture=cloth, transforms=moved(start=(-15, -10), step=(1.5, 1)), role="background", reflect=True),
        Layer(texture=board, transforms=moved(start=(25, 12), step=(2, 1.3), scale=1.1, turn=0.1), role="mover"),
    )
    scene = scene_of(*layers)
    frames = render(scene)
    dots = ((0, layers[1], (10, 12)), (1, layers[1], (33, 20)), (2, layers[0], (30, 25)))
    for channel, layer, spot in dots:
        for query_frame in (0, 2, 5):
            x, y = layer.transforms[query_frame] @ (*spot, 1)
            points_xy, visible = scene_tracks(scene, np.array([[query_frame, y, x]]))
            for frame in range(FRAMES):
                centre = centre_of(frames[frame], channel)
                if visible[0, frame] and (points_xy[0, frame] > 3).all() and (points_xy[0, frame] < [76, 56]).all():
                    assert centre is not None
                    assert np.hypot(*(centre - points_xy[0, frame])) < 0.5


def test_visibility_behind_an_occluder_and_outside() -> None:
    ball = plain(5, 5, (1.0, 0.0, 0.0))
    wall = plain(60, 14, (0.5, 0.5, 0.5))
    scene = scene_of(
        backdrop(),
        Layer(texture=ball, transforms=moved(start=(10, 30), step=(15, 0)), role="mover"),
        Layer(texture=wall, transforms=moved(start=(34, 0)), role="occluder"),
    )
    points_xy, visible = scene_tracks(scene, np.array([[0, 32.0, 12.0], [0, 5.0, 40.0], [0, 5.0, 70.0]]))
    assert np.allclose(points_xy[0, :, 0], 12 + 15 * np.arange(6))
    # x = 12, 27, 42 (behind the wall, 33.5 to 47.5), 57, 72, 87 (outside)
    assert visible[0].tolist() == [True, True, False, True, True, False]
    assert visible[1].all()  # a point of the wall itself
    assert visible[2].all()  # a point of the background, never covered
    frames = render(scene)
    assert (centre_of(frames[2], 0)) is None
    assert (centre_of(frames[3], 0)) is not None


def test_half_transparent_layers_hide_by_their_alpha() -> None:
    for alpha, hidden in ((0.4, False), (0.6, True)):
        glass = plain(60, 80, (0.0, 0.0, 0.0)) * alpha
        late = moved(start=(0, 0))
        late[:3, 0, 2] = 500
        scene = scene_of(backdrop(), Layer(texture=glass, transforms=late, role="occluder"))
        _, visible = scene_tracks(scene, np.array([[0, 20.0, 20.0]]))
        assert visible[0].tolist() == [True] * 3 + [not hidden] * 3


def test_reflecting_background_fills_the_frame() -> None:
    texture = torch.rand(4, 20, 20, generator=torch.Generator().manual_seed(2))
    texture[3] = 1
    layer = Layer(texture=texture, transforms=moved(start=(30, 20)), role="background", reflect=True)
    frame = compose(scene_of(layer))[0]
    assert torch.allclose(frame[:, 20:40, 30:50], texture[:3], atol=1e-5)
    assert torch.allclose(frame[:, 20:40, 29], texture[:3, :, 1], atol=1e-5)
    points_xy, visible = scene_tracks(scene_of(layer), np.array([[0, 1.0, 1.0]]))
    assert np.allclose(points_xy[0], 1.0)
    assert visible.all()


@pytest.mark.parametrize("query", [[6, 1, 1], [-1, 1, 1], [0.5, 1, 1], [0, 60, 1], [0, 1, 80], [0, -2, 1]])
def test_queries_outside_are_refused(query: list[float]) -> None:
    with pytest.raises(InputError, match=r"query_points_tyx\[1\]"):
        scene_tracks(scene_of(backdrop()), np.array([[0, 1, 1], query], float))


def test_queries_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[Q, 3\]"):
        scene_tracks(scene_of(backdrop()), np.zeros((4, 2)))


def test_queries_on_nothing_are_refused() -> None:
    layer = Layer(texture=plain(5, 5, (1.0, 1.0, 1.0)), transforms=moved(start=(10, 10)), role="mover")
    with pytest.raises(DataError, match="query 1"):
        scene_tracks(scene_of(layer), np.array([[0, 12, 12], [0, 40, 40]], float))


def test_no_queries_give_no_tracks() -> None:
    points_xy, visible = scene_tracks(scene_of(backdrop()), np.zeros((0, 3)))
    assert points_xy.shape == (0, FRAMES, 2)
    assert visible.shape == (0, FRAMES)


def test_affine_helpers() -> None:
    maps = moved(start=(3, -2), step=(1, 2), scale=0.7, turn=0.4)
    both = compose_transforms(maps, invert(maps))
    assert np.allclose(both, np.array([[1, 0, 0], [0, 1, 0]]))
    flat = np.zeros((1, 2, 3))
    with pytest.raises(DataError, match="cannot be inverted"):
        invert(flat)


def test_what_does_not_hold_together_is_refused() -> None:
    with pytest.raises(DataError, match="texture"):
        Layer(texture=torch.ones(3, 5, 5), transforms=moved(start=(0, 0)), role="mover")
    with pytest.raises(DataError, match="transforms"):
        Layer(texture=torch.ones(4, 5, 5), transforms=np.zeros((6, 3, 3)), role="mover")
    with pytest.raises(DataError, match="layer"):
        scene_of()
    with pytest.raises(DataError, match="frames"):
        replace(scene_of(backdrop()), light=even_light()[:-1])


def test_light_and_blur() -> None:
    light = even_light()
    light[3, 0] = 0.5
    light[3, 1, 2] = 0.1
    scene = replace(scene_of(backdrop()), light=light, blur_passes=2)
    frames = compose(scene)
    assert torch.allclose(frames[0], torch.full((3, *SIZE), 0.2), atol=1e-6)
    assert torch.allclose(frames[3, :, 5, 5], torch.tensor([0.1, 0.1, 0.2]), atol=1e-6)
    spot = Layer(texture=plain(3, 3, (1.0, 1.0, 1.0)), transforms=moved(start=(20, 20)), role="mover")
    sharp, soft = (compose(replace(scene_of(backdrop(), spot), blur_passes=passes)) for passes in (0, 1))
    assert torch.allclose(sharp.sum(), soft.sum(), rtol=1e-5)
    assert soft.max() <= sharp.max()
    assert soft[0, 0, 19, 21] > sharp[0, 0, 19, 21]
