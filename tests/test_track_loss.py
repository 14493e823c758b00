"""Losses of point trackers: values worked by hand, and no gradient from what does not count."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trecvit.train.track_loss import (
    classified_track_loss,
    counted_frames,
    regressed_track_loss,
)

B, Q, T, R = 2, 3, 5, 16
SIZE = (32, 64)
PREDICTIONS = ("points_xy", "coordinate_logits", "visible_logits", "certainty_logits")


def case(seed: int = 0) -> dict[str, Tensor]:
    """Random predictions and targets, on the raster and off it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    return {
        "points_xy": draw(B, Q, T, 2) * torch.tensor([64.0, 32.0]),
        "coordinate_logits": draw(B, Q, T, 2, R) * 4,
        "visible_logits": draw(B, Q, T) * 4 - 2,
        "certainty_logits": draw(B, Q, T) * 4 - 2,
        "target_xy": draw(B, Q, T, 2) * torch.tensor([70.0, 40.0]) - 3,
        "visible": draw(B, Q, T) < 0.6,
        "counted": draw(B, Q, T) < 0.7,
    }


def classified(values: dict[str, Tensor]):
    return classified_track_loss(**{k: v for k, v in values.items() if k != "certainty_logits"}, image_size=SIZE)


def regressed(values: dict[str, Tensor]):
    return regressed_track_loss(**{k: v for k, v in values.items() if k != "coordinate_logits"}, image_size=SIZE)


def one(**values: object) -> dict[str, Tensor]:
    """One point in one frame, in a video of 16 x 16 pixels, all of it counted unless said otherwise."""
    given = {"visible": True, "counted": True, "visible_logits": 0.0, **values}
    shapes = {"points_xy": (1, 1, 1, 2), "target_xy": (1, 1, 1, 2), "coordinate_logits": (1, 1, 1, 2, R)}
    return {name: torch.as_tensor(value).reshape(shapes.get(name, (1, 1, 1))) for name, value in given.items()}


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "column", "row"),
    [
        ([3.2, 7.9], 3, 7),
        ([0.0, 16.0], 0, 15),
        ([-5.0, 99.0], 0, 15),
        ([4.001, 3.999], 4, 3),
    ],
)
def test_the_class_is_the_bin_that_holds_the_place(target: list[float], column: int, row: int) -> None:
    logits = torch.randn(2, R)
    values = one(points_xy=target, target_xy=target, coordinate_logits=logits)
    loss = classified_track_loss(**values, image_size=(16, 16))
    expected = -logits[0].log_softmax(0)[column] - logits[1].log_softmax(0)[row]
    assert loss.classification == pytest.approx(expected.item(), rel=1e-5)


def test_classes_do_not_depend_on_the_size_of_the_video() -> None:
    """The same place, as a part of the picture, in a video of 32 x 64."""
    logits = torch.randn(2, R)
    small = one(points_xy=[2.5, 9.0], target_xy=[3.3, 7.9], coordinate_logits=logits)
    large = one(points_xy=[10.0, 18.0], target_xy=[13.2, 15.8], coordinate_logits=logits)
    found = classified_track_loss(**small, image_size=(16, 16)), classified_track_loss(**large, image_size=SIZE)
    assert torch.allclose(torch.stack(found[0]), torch.stack(found[1]), rtol=1e-5)


def test_tapnext_values_worked_by_hand() -> None:
    """All bins alike: log 16 each. 3 px and 4 px off: 5 - 1/2. Unsure of a visible point: log 2."""
    values = one(points_xy=[5.0, 9.0], target_xy=[8.0, 5.0], coordinate_logits=torch.zeros(2, R))
    loss = classified_track_loss(**values, image_size=(16, 16))
    assert loss.classification == pytest.approx(2 * math.log(16))
    assert loss.huber == pytest.approx(4.5)
    assert loss.visibility == pytest.approx(math.log(2))
    assert loss.total == pytest.approx(2 * math.log(16) + 0.1 * 4.5 + math.log(2))
    near = one(points_xy=[8.3, 5.4], target_xy=[8.0, 5.0], coordinate_logits=torch.zeros(2, R))
    assert classified_track_loss(**near, image_size=(16, 16)).huber == pytest.approx(0.5 * 0.25, rel=1e-5)


def test_a_target_at_the_border_can_be_reached() -> None:
    values = one(points_xy=[15.5, 0.5], target_xy=[16.0, 0.0], coordinate_logits=torch.zeros(2, R))
    assert classified_track_loss(**values, image_size=(16, 16)).huber < 1e-6


def test_tapir_values_worked_by_hand() -> None:
    """In a video of 128 x 128, 1 px is 2 of the raster."""
    certainty = torch.tensor(1.5)
    for error_px, huber, near in ((1.0, 0.5 * 4, True), (2.9, 4 * (5.8 - 2), True), (3.1, 4 * (6.2 - 2), False)):
        values = one(
            points_xy=[50.0 + error_px, 60.0], target_xy=[50.0, 60.0], certainty_logits=certainty, visible_logits=-1.0
        )
        loss = regressed_track_loss(**values, image_size=(128, 128))
        assert loss.huber == pytest.approx(huber, rel=1e-5)
        assert loss.certainty == pytest.approx(math.log1p(math.exp(-1.5 if near else 1.5)), rel=1e-5)
        assert loss.visibility == pytest.approx(math.log1p(math.exp(1)), rel=1e-5)
        assert loss.total == pytest.approx((0.05 * loss.huber + loss.certainty + loss.visibility).item())


def test_means_are_over_what_counts() -> None:
    """By a slow loop over the elements."""
    values = case()
    loss, other = classified(values), regressed(values)
    sums = {"classification": 0.0, "huber": 0.0, "visibility": 0.0, "tapir": 0.0, "certainty": 0.0}
    placed = counted = 0
    for b in range(B):
        for q in range(Q):
            for t in range(T):
                if not values["counted"][b, q, t]:
                    continue
                counted += 1
                seen = bool(values["visible"][b, q, t])
                logit = values["visible_logits"][b, q, t].item()
                sums["visibility"] += math.log1p(math.exp(-logit if seen else logit))
                if not seen:
                    continue
                placed += 1
                target = values["target_xy"][b, q, t]
                said = values["points_xy"][b, q, t]
                raster = target * torch.tensor([R / 64, R / 32])
                for axis in range(2):
                    label = min(max(math.floor(raster[axis].item()), 0), R - 1)
                    sums["classification"] -= (
                        values["coordinate_logits"][b, q, t, axis].log_softmax(0)[label].item()
                    )  # fmt: skip
                distance = (said * torch.tensor([R / 64, R / 32]) - raster.clamp(0.5, R - 0.5)).norm().item()
                sums["huber"] += distance**2 / 2 if distance < 1 else distance - 0.5
                distance = ((said - target) * torch.tensor([4.0, 8.0])).norm().item()
                sums["tapir"] += distance**2 / 2 if distance < 4 else 4 * (distance - 2)
                logit = values["certainty_logits"][b, q, t].item()
                sums["certainty"] += math.log1p(math.exp(-logit if distance <= 6 else logit))
    assert 5 < placed < counted < B * Q * T
    assert loss.classification == pytest.approx(sums["classification"] / placed, rel=1e-5)
    assert loss.huber == pytest.approx(sums["huber"] / placed, rel=1e-5)
    assert loss.visibility == pytest.approx(sums["visibility"] / counted, rel=1e-5)
    assert other.huber == pytest.approx(sums["tapir"] / placed, rel=1e-5)
    assert other.certainty == pytest.approx(sums["certainty"] / placed, rel=1e-5)
    assert other.visibility == loss.visibility


# ---- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_of", [classified, regressed])
def test_what_does_not_count_has_no_gradient(loss_of) -> None:
    values = case()
    for name in PREDICTIONS:
        values[name].requires_grad_()
    loss_of(values).total.backward()
    placed = values["visible"] & values["counted"]
    for name in PREDICTIONS:
        gradient = values[name].grad
        if gradient is None:
            assert name == ("certainty_logits" if loss_of is classified else "coordinate_logits")
            continue
        matters = values["counted"] if name == "visible_logits" else placed
        moved = gradient.reshape(B, Q, T, -1).abs().amax(dim=-1)
        assert (moved[~matters] == 0).all(), name
        assert (moved[matters] > 0).all(), name


@pytest.mark.parametrize("loss_of", [classified, regressed])
@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30])
def test_what_does_not_count_may_be_anything(loss_of, junk: float) -> None:
    values, clean = case(), case()
    placed = values["visible"] & values["counted"]
    values["target_xy"][~placed] = junk
    for tensors in (values, clean):
        tensors["points_xy"].requires_grad_()
        loss_of(tensors).total.backward()
    assert torch.equal(torch.stack(loss_of(values)), torch.stack(loss_of(clean)))
    assert torch.equal(values["points_xy"].grad, clean["points_xy"].grad)


@pytest.mark.parametrize("loss_of", [classified, regressed])
def test_nothing_that_counts_is_zero(loss_of) -> None:
    values = case()
    values["counted"][:] = False
    values["points_xy"].requires_grad_()
    loss = loss_of(values)
    loss.total.backward()
    assert loss.total == 0
    assert (values["points_xy"].grad == 0).all()


def test_an_exact_answer_has_a_gradient_of_zero_and_not_nan() -> None:
    values = case()
    values["target_xy"] = values["points_xy"].clone()
    values["points_xy"].requires_grad_()
    regressed(values).total.backward()
    assert values["points_xy"].grad.abs().max() < 1e-5


def test_certainty_does_not_move_the_place() -> None:
    values = case()
    values["points_xy"].requires_grad_()
    loss = regressed(values)
    assert not loss.certainty.requires_grad
    (only,) = torch.autograd.grad(loss.huber * 0.05, values["points_xy"], retain_graph=True)
    (whole,) = torch.autograd.grad(loss.total, values["points_xy"])
    assert torch.equal(only, whole)


@pytest.mark.parametrize("loss_of", [classified, regressed])
def test_gradients_are_those_of_the_formula(loss_of) -> None:
    values = case(3)
    for name in PREDICTIONS:
        values[name].requires_grad_()
    loss_of(values).total.backward()
    generator = torch.Generator().manual_seed(1)
    for name in PREDICTIONS:
        if values[name].grad is None:
            continue
        direction = torch.randn(values[name].shape, generator=generator)
        direction /= direction.norm()
        with torch.no_grad():
            shifted = [loss_of({**values, name: values[name] + sign * 1e-2 * direction}).total for sign in (1, -1)]
        slope = (shifted[0] - shifted[1]) / 2e-2
        assert slope.item() == pytest.approx((values[name].grad * direction).sum().item(), rel=0.02, abs=2e-3)


def test_half_precision_is_summed_in_float32() -> None:
    values = case()
    halved = {name: value.bfloat16() if value.is_floating_point() else value for name, value in values.items()}
    found = classified(halved)
    assert found.total.dtype == torch.float32
    assert found.total == pytest.approx(classified(values).total.item(), rel=0.05)


def test_frames_from_the_query_on_count() -> None:
    queries = torch.tensor([[[0.0, 5, 5], [2, 1, 1], [3, 0, 0], [math.inf, 0, 0]]])
    assert counted_frames(queries, 4)[0].tolist() == [
        [True] * 4,
        [False, False, True, True],
        [False] * 3 + [True],
        [False] * 4,
    ]
