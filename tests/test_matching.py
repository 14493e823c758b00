"""Matching by appearance: shifted pictures match where they moved, refinement equals a slow reference, and only visible
queried points have a loss. Streams, slots and gradients: tests/test_tapnext.py.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from models import assert_same_tracks, random_video, relative_error, run_tracker, tiny_tracker
from torch import Tensor

from trecvit.accelerate.optimize import optimize
from trecvit.model.matching import Descriptors, Matching, Similarity
from trecvit.train.initialise import load_weights_from
from trecvit.train.track_loss import MATCHING_WEIGHT, matching_loss

SIZE = 64
TRACKER = tiny_tracker(matching=True)
MATCHING = TRACKER.matching
NOW = torch.tensor([[0, 0, 0]])
MIDDLES_XY = (  # of places, coarse and fine
    torch.tensor([[[30.0, 26.0], [22.0, 34.0], [34.0, 38.0]]]),
    torch.tensor([[[31.0, 27.0], [21.0, 35.0], [33.0, 39.0]]]),
)


def shifted_video(columns: int, rows: int) -> Tensor:
    """A frame and the same one moved to the right and down, in [0,1]."""
    frame = random_video(1, 1, SIZE, SIZE).float() / 255
    return torch.cat([frame, frame.roll((rows, columns), (-2, -1))], dim=1)


def descriptors_and_queries(video: Tensor, places_xy: Tensor) -> tuple[Descriptors, Tensor]:
    with torch.no_grad():
        descriptors = MATCHING.describe(video)
        return descriptors, MATCHING.describe_queries(
            descriptors, places_xy, NOW, torch.zeros(1, 3, MATCHING.descriptor_width)
        )


@pytest.mark.parametrize("shift", [(8, 4), (-4, 12), (0, 0)])
@pytest.mark.parametrize("level", [0, 1], ids=["coarse", "fine"])
def test_shifted_pictures_match_where_they_moved(level, shift):
    """Shifts by whole coarse places, so that random convolutions give equal descriptors."""
    places_xy = MIDDLES_XY[level]
    descriptors, queries = descriptors_and_queries(shifted_video(*shift), places_xy / SIZE)
    with torch.no_grad():
        _, scores = (
            copy.deepcopy(MATCHING).train().condition(descriptors, queries, torch.ones(1, 2, 3, dtype=torch.bool))
        )
    maps, sharpness = scores[level][0], MATCHING.sharpness[-2:].detach().exp()[level]
    side = SIZE // maps.shape[-1]
    for frame, moved in enumerate(((0, 0), shift)):
        cosines, best = (maps[:, frame].flatten(1) / sharpness).max(dim=1)
        found = (torch.stack([best % (SIZE // side), best // (SIZE // side)], dim=-1) + 0.5) * side
        assert torch.equal(found, places_xy[0] + torch.tensor(moved))
        assert torch.allclose(cosines, torch.ones(3), atol=1e-5)


def test_a_match_is_embedded_as_sines_and_cosines_of_its_position(monkeypatch):
    """With a softmax so sharp that only the best place counts."""
    descriptors, queries = descriptors_and_queries(shifted_video(8, 4), MIDDLES_XY[1] / SIZE)
    matching, inputs = copy.deepcopy(MATCHING), []
    monkeypatch.setattr(matching, "into_token", _Spy(inputs, matching.into_token))
    with torch.no_grad():
        matching.sharpness.fill_(math.log(1e5))
        matching.condition(descriptors, queries, torch.ones(1, 2, 3, dtype=torch.bool))
    x, y = (MIDDLES_XY[1][0] + torch.tensor([8.0, 4.0]) - 0.5).unbind(dim=-1)  # the first pixel's middle is 0
    frequencies = torch.tensor([10_000.0 ** (-i / 3) for i in range(4)])  # a quarter of 16 channels
    waves = [wave(axis[:, None] * frequencies) for axis in (x, y) for wave in (torch.sin, torch.cos)]
    of_fine = inputs[0][0, 1, :, -17:]
    assert torch.allclose(
        of_fine, torch.cat([*waves, torch.ones(3, 1)], dim=1), atol=1e-4
    )  # the last is the similarity


class _Spy(torch.nn.Module):
    def __init__(self, inputs: list[Tensor], inner: torch.nn.Linear) -> None:
        super().__init__()
        self.inputs, self.inner, self.weight = inputs, inner, inner.weight

    def forward(self, x: Tensor) -> Tensor:
        self.inputs.append(x)
        return self.inner(x)


def test_refinement_equals_a_slow_reference():
    descriptors, queries = descriptors_and_queries(shifted_video(2, -2), torch.rand(1, 3, 2))
    features = torch.randn(1, 2, 3, TRACKER.config.blocks.width)
    guesses = torch.rand(1, 2, 3, 2) * 0.5 + 0.25
    is_queried = torch.tensor([[[True, True, False], [True, True, True]]])
    got = MATCHING.refine(descriptors, queries, is_queried, features, guesses)
    for frame in range(2):
        for point in range(3):
            place = guesses[0, frame, point]
            for index, step_px in enumerate((2.0, 0.75)):
                costs = [
                    4
                    * group_product(
                        descriptors.fine[0, frame], queries[0, point, 64:], group, place + step_px / 64 * offset
                    )
                    if is_queried[0, frame, point]
                    else torch.zeros(())
                    for group in range(4)
                    for offset in (torch.tensor([x, y]) for y in range(-4, 5) for x in range(-4, 5))
                ]
                hidden = F.gelu(MATCHING.guess_in[index](torch.cat([torch.stack(costs), features[0, frame, point]])))
                place = place + MATCHING.guess_out[index](hidden) * step_px / TRACKER.config.raster_px
            assert relative_error(got[0, frame, point], place) < 1e-5


def group_product(maps: Tensor, query: Tensor, group: int, place_xy: Tensor) -> Tensor:
    """Scalar product of 8 channels, bilinear between the centres of places; zero outside the picture."""
    channels = slice(8 * group, 8 * group + 8)
    x, y = (place_xy * maps.shape[-1] - 0.5).tolist()
    total = torch.zeros(())
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < maps.shape[1] and 0 <= column < maps.shape[2]:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                total = total + weight * (maps[channels, row, column] * query[channels]).sum()
    return total


@pytest.mark.slow
def test_the_gradient_of_a_refined_point():
    """With constant places of sampling; the first refinement is zero here."""
    matching = Matching(8, 16).double()
    torch.nn.init.normal_(matching.guess_out[1].weight)
    is_queried = torch.ones(1, 1, 2, dtype=torch.bool)
    guesses, features = torch.rand(1, 1, 2, 2).double(), torch.randn(1, 1, 2, 8).double()

    def refined(fine: Tensor, queries: Tensor, features: Tensor) -> Tensor:
        return matching.refine(Descriptors(fine[:, :, :64], fine), queries, is_queried, features, guesses)

    fine = torch.randn(1, 1, 32, 4, 4).double().requires_grad_()
    queries = torch.randn(1, 2, 96).double().requires_grad_()
    assert torch.autograd.gradcheck(refined, (fine, queries, features.requires_grad_()))


def test_clips_longer_than_one_piece_are_streams_too():
    video = random_video(1, 19, 32, 32)
    queries = torch.tensor([[[0, 5.0, 20.0], [9, 30.5, 1.0], [17, 16.0, 16.0]]])
    got, _ = run_tracker(TRACKER, video, TRACKER.init_state(queries), list(range(1, 19)))
    assert_same_tracks(got, TRACKER(video, queries))


def test_matching_added_to_a_trained_tracker_changes_no_prediction():
    """New parts are initially neutral, trained weights are kept."""
    trained, model = tiny_tracker(), type(TRACKER)(TRACKER.config).eval()
    words = load_weights_from(model, trained, source="x")
    assert "matching.first.weight" in words
    video, queries = random_video(1, 5, 32, 32), torch.tensor([[[0, 5.0, 20.0], [2, 30.0, 1.0]]])
    assert_same_tracks(model(video, queries), trained(video, queries))


def test_bfloat16_and_packed_weights_stay_near():
    fast = optimize(TRACKER, dtype=torch.bfloat16)
    video, queries = random_video(1, 5, 32, 32), torch.tensor([[[0, 5.0, 20.0], [2, 30.0, 1.0]]])
    exact, got = TRACKER(video, queries), fast(video, queries)
    assert got.points_xy.dtype == torch.float32
    assert relative_error(got.points_xy, exact.points_xy) < 0.1


# ---- the loss ----


def test_scores_are_returned_in_training_only():
    video, queries = random_video(1, 3, 32, 32), torch.zeros(1, 2, 3)
    assert TRACKER(video, queries).similarity is None
    tracker = tiny_tracker(matching=True).train()
    scores = tracker(video, queries).similarity
    assert scores.coarse.shape == (1, 2, 3, 8, 8)
    assert scores.fine.shape == (1, 2, 3, 16, 16)


def test_the_loss_computed_by_hand():
    """Uniform scores cost log 16 and log 64; a target at a place's centre is that place, else shared between places."""
    none = Similarity(torch.zeros(1, 1, 1, 4, 4), torch.zeros(1, 1, 1, 8, 8))
    seen = {"visible": torch.ones(1, 1, 1).bool(), "counted": torch.ones(1, 1, 1).bool(), "image_size": (16, 16)}
    middle = torch.tensor([[[[6.0, 10.0]]]])
    expected = MATCHING_WEIGHT * (math.log(16) + math.log(64))
    assert matching_loss(none, target_xy=middle, **seen).item() == pytest.approx(expected)
    sure = torch.zeros(1, 1, 1, 4, 4)
    sure[..., 2, 1] = 50.0  # row 2 holds y from 8 to 12, column 1 x from 4 to 8
    one = Similarity(sure, none.fine)
    assert matching_loss(one, target_xy=middle, **seen).item() == pytest.approx(MATCHING_WEIGHT * math.log(64))
    between = matching_loss(one, target_xy=middle + torch.tensor([2.0, 0.0]), **seen).item()
    assert between == pytest.approx(MATCHING_WEIGHT * (math.log(64) + 25), rel=1e-4)


def test_invisible_points_have_no_gradient():
    coarse, fine = torch.randn(1, 2, 3, 4, 4, requires_grad=True), torch.randn(1, 2, 3, 8, 8, requires_grad=True)
    visible = torch.tensor([[[True, True, False], [True, True, True]]])
    counted = torch.tensor([[[True, True, True], [False, True, True]]])
    target = torch.rand(1, 2, 3, 2) * 16
    target[0, 0, 2] = math.nan
    loss = matching_loss(
        Similarity(coarse, fine), target_xy=target, visible=visible, counted=counted, image_size=(16, 16)
    )
    for gradient in torch.autograd.grad(loss, (coarse, fine)):
        has = gradient.flatten(3).abs().sum(dim=3) > 0
        assert torch.equal(has, visible & counted)
        assert torch.isfinite(gradient).all()
