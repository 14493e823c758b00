"""Lucas–Kanade flow of single points on remembered patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trecvit.model import local_flow
from trecvit.model.local_flow import PATCH_SIDE, PATCH_WIDTH, SIZES_PX, follow, grey_pyramid, patches_around

SIDE = 96
PLACES = torch.tensor([[[48.0, 48.0], [40.3, 51.9], [30.0, 60.5]]])


def picture(shift_xy: tuple[float, float] = (0.0, 0.0), light: float = 0.0) -> torch.Tensor:
    """Waves of several lengths, shifted exactly: grey as RGB, [1,3,H,W]."""
    y, x = torch.meshgrid(*[torch.arange(SIDE, dtype=torch.float64) + 0.5] * 2, indexing="ij")
    x, y = x - shift_xy[0], y - shift_xy[1]
    waves = (x / 5 + y / 9).sin() + (y / 4 - x / 11).cos() + (x / 17).sin() * (y / 13).cos()
    return (0.5 + light + 0.1 * waves).float().expand(1, 3, -1, -1)


def test_patches_are_sampled_as_pytorch_samples():
    level = torch.rand(2, 20, 30)
    places = torch.rand(2, 7, 2) * torch.tensor([34.0, 24.0]) - 2  # some outside
    side = 5
    got = local_flow._sampled(level, places, side)
    axis = torch.arange(side) - side // 2
    grid = places[:, :, None, None] + torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    grid = grid / torch.tensor([30, 20]) * 2 - 1
    options = {"padding_mode": "border", "align_corners": False}
    expected = F.grid_sample(level[:, None], grid.flatten(1, 2), **options)[:, 0].unflatten(1, (7, side))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.4, -0.7), (3.2, 1.1), (-7.5, 6.0)])
@pytest.mark.parametrize("light", [0.0, -0.15])
def test_a_shift_is_found_to_a_tenth_of_a_pixel_in_changed_light_too(shift, light):
    patches = patches_around(grey_pyramid(picture()), PLACES)
    flow = follow(grey_pyramid(picture(shift, light)), patches, PLACES)
    torch.testing.assert_close(flow.places_xy, PLACES + torch.tensor(shift), rtol=0, atol=0.1)
    assert flow.read[..., 1].max() < 0.1  # deviation in the finest size


def test_it_solves_the_equations_of_lucas_and_kanade():
    before, after = picture(), picture((0.6, -0.3))
    patches = patches_around(grey_pyramid(before), PLACES)
    got = follow(grey_pyramid(after), patches, PLACES, num_sizes=1).places_xy
    grey = after[0].mean(dim=0).numpy()
    for point, place in enumerate(PLACES[0].numpy()):
        patch = patches.unflatten(-1, (len(SIZES_PX), PATCH_SIDE, PATCH_SIDE))[0, point, 0].numpy().astype(np.float64)
        down, across = (gradient[1:-1, 1:-1] for gradient in np.gradient(patch))
        inner = patch[1:-1, 1:-1]
        reach = len(inner) // 2
        at = place.astype(np.float64)
        for _ in range(2):
            there = np.empty_like(inner)
            for row in range(len(inner)):
                for column in range(len(inner)):
                    x, y = at[0] + column - reach - 0.5, at[1] + row - reach - 0.5
                    left, top = int(np.floor(x)), int(np.floor(y))
                    u, v = x - left, y - top
                    upper = (1 - u) * grey[top, left] + u * grey[top, left + 1]
                    lower = (1 - u) * grey[top + 1, left] + u * grey[top + 1, left + 1]
                    there[row, column] = (1 - v) * upper + v * lower
            change = (inner - inner.mean()) - (there - there.mean())
            system = np.array(
                [[(across**2).sum(), (across * down).sum()], [(across * down).sum(), (down**2).sum()]]
            ) + local_flow._STIFFNESS * np.eye(2)
            at = at + np.linalg.solve(system, [(across * change).sum(), (down * change).sum()])
        np.testing.assert_allclose(got[0, point].numpy(), at, atol=2e-3)


def test_without_a_pattern_points_stay():
    flat = torch.full((1, 3, SIDE, SIDE), 0.5)
    patches = patches_around(grey_pyramid(flat), PLACES)
    flow = follow(grey_pyramid(flat + 0.002 * torch.randn_like(flat)), patches, PLACES)
    assert (flow.places_xy - PLACES).abs().max() < 1.0
    patterned = follow(grey_pyramid(picture()), patches_around(grey_pyramid(picture()), PLACES), PLACES)
    assert flow.read[..., 2].max() < patterned.read[..., 2].min()


def test_frames_and_points_do_not_change_each_other():
    frames = torch.cat([picture(), picture((2.0, 1.0))])
    places = torch.cat([PLACES, PLACES + 5])
    pyramid = grey_pyramid(frames)
    patches = patches_around(pyramid, places)
    assert patches.shape == (2, 3, PATCH_WIDTH)
    both = follow(pyramid, patches.roll(1, 0), places)
    for row in range(2):
        alone = [level[row : row + 1] for level in pyramid]
        one = follow(alone, patches.roll(1, 0)[row : row + 1, 1:2], places[row : row + 1, 1:2])
        torch.testing.assert_close(both.places_xy[row : row + 1, 1:2], one.places_xy, rtol=0, atol=1e-4)
