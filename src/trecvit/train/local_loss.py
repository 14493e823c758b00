"""Loss of a tracker that matches locally: places after each refinement, visibility, certainty, and the matches."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from trecvit.model.local_matching import REACH, STRIDES_PX, WINDOW
from trecvit.model.tracker import TrackerOutput

SURE_WITHIN_PX = 6.0  # as TAPIR's certainty, in frames whose pixels are those of the raster of 256 x 256
_HIDDEN_WEIGHT = 0.5
_WINDOW_WEIGHT = 0.3
_FRAME_WEIGHT = 0.1
_SOFT_PX = 0.3
_LOST_PX, _VISIBILITY_WEIGHT = 12.0, 2.0
_COMPANY_WEIGHT = 0.2
_CHOICE_SOFT_PX, _CHOICE_POWER = 0.3, 5.0
_REACHED_PX = 24.0  # from the last place; as far as the coarsest window reaches
_FAR_PX = 16.0  # no jump counts as more


class LocalTrackLoss(NamedTuple):
    """Means over unmasked elements.

    Attributes:
        total: The loss.
        place: Of log(1 + distance in pixels), and of the distance of points in reach; of hidden points less so.
        visibility: Binary cross-entropy, in nats.
        choice: Cross-entropies of the best candidates, and the error of moving with the others, weighted.
        certainty: Binary cross-entropy of being within 6 px, in nats.
        matches: Cross-entropies of the true place in the windows and in the frame, weighted.
    """

    total: Float[Tensor, ""]
    place: Float[Tensor, ""]
    choice: Float[Tensor, ""]
    visibility: Float[Tensor, ""]
    certainty: Float[Tensor, ""]
    matches: Float[Tensor, ""]


def local_track_loss(
    out: TrackerOutput,
    *,
    target_xy: Float[Tensor, "B Q T 2"],
    visible: Bool[Tensor, "B Q T"],
    counted: Bool[Tensor, "B Q T"],
    after: Bool[Tensor, "B Q T"],
    image_size: tuple[int, int],
) -> LocalTrackLoss:
    """Loss of a `LocalTracker` in training mode.

    The logarithm makes an error of half a pixel matter in a point that is held, and leaves no more than its choice of
    candidates to a point that is lost. Alone it would pay for precision with jumps, which cost a stream the point: so
    the distance itself is added for points that the windows reach. The true place of a hidden point is known in scenes
    that are rendered.

    Args:
        out: Its output.
        target_xy: True places in pixels, also of hidden points.
        visible: True visibility.
        counted: Frames from each query's on, see `trecvit.train.track_loss.counted_frames`.
        after: Those after it, where places are predicted.
        image_size: Height and width of the frames.
    """
    assert out.local is not None, "of a LocalTracker in training mode"
    assert out.certainty_logits is not None, "as every LocalTracker has"
    weight = after * torch.where(visible, 1.0, _HIDDEN_WEIGHT)
    offsets = out.local.places_xy - target_xy
    distances = (offsets.square().sum(dim=-1) + _SOFT_PX**2).sqrt() - _SOFT_PX  # [R,B,Q,T]
    rounds = torch.linspace(0.5, 1.0, len(distances), device=weight.device)[:, None, None, None]
    held = (target_xy - out.local.centres_xy[0]).norm(dim=-1) < _REACHED_PX
    errors = distances.log1p() + held * distances.clamp(max=_FAR_PX)
    place = (errors * rounds * weight).sum() / (rounds.sum() * weight.sum().clamp(min=1))
    choice = _choice_loss(out.local.candidates_xy, out.local.choice_logits, target_xy, weight)
    choice = choice + _choice_loss(out.local.refined_xy, out.local.refined_logits, target_xy, weight)
    others_px = (out.local.candidates_xy[:, :, -1] - target_xy).norm(dim=-1)
    choice = choice + _COMPANY_WEIGHT * (others_px.log1p() * weight).sum() / weight.sum().clamp(min=1)
    truth = visible.float()
    entropies = F.binary_cross_entropy_with_logits(out.visible_logits.float(), truth, reduction="none")
    # What is seen elsewhere does not show at the place of a point that is lost.
    is_lost = visible & (distances[-1].detach() > _LOST_PX)
    visibility = _VISIBILITY_WEIGHT * _mean(entropies, counted & ~is_lost)
    near = (distances[-1].detach() < SURE_WITHIN_PX).float()
    entropies = F.binary_cross_entropy_with_logits(out.certainty_logits.float(), near, reduction="none")
    certainty = _mean(entropies, visible & after)
    matches = _WINDOW_WEIGHT * _window_loss(out, target_xy, visible & counted)
    matches = matches + _FRAME_WEIGHT * _frame_loss(out, target_xy, visible & counted, image_size)
    total = place + choice + visibility + certainty + matches
    return LocalTrackLoss(total, place, choice, visibility, certainty, matches)


def _choice_loss(
    candidates_xy: Float[Tensor, "B Q K T 2"], logits: Float[Tensor, "B Q T K"], target_xy: Tensor, weight: Tensor
) -> Tensor:
    """Mean cross-entropy between the scores of candidates and their closeness to the truth."""
    errors = (candidates_xy.detach() - target_xy[:, :, None]).norm(dim=-1).transpose(2, 3)  # [B,Q,T,K]
    closeness = (-_CHOICE_POWER * (errors + _CHOICE_SOFT_PX).log()).softmax(dim=-1)
    entropies = -(closeness * logits.float().log_softmax(dim=-1)).sum(dim=-1)
    mean: Tensor = (entropies * weight).sum() / weight.sum().clamp(min=1)
    return mean


def _window_loss(out: TrackerOutput, target_xy: Tensor, placed: Tensor) -> Tensor:
    """Mean cross-entropy of the true place in each window that has it."""
    assert out.local is not None
    windows = len(out.local.centres_xy)
    refined = windows - len(STRIDES_PX)
    strides = [*STRIDES_PX, *(STRIDES_PX[number % 2] for number in range(refined))]
    sides = torch.tensor(strides, device=target_xy.device, dtype=target_xy.dtype)[:, None, None, None, None]
    cells = (target_xy - out.local.centres_xy) / sides  # [W,B,Q,T,2]
    inside = (cells.abs().amax(dim=-1) <= REACH) & placed
    # One row per window that has its point: at most W B Q T.
    rows = out.local.window_logits[inside].float().log_softmax(dim=-1)
    return -_at(rows.unflatten(-1, (WINDOW, WINDOW)), cells[inside] + REACH).sum() / inside.sum().clamp(min=1)


def _frame_loss(out: TrackerOutput, target_xy: Tensor, placed: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Mean cross-entropy of the true place in the whole frame."""
    assert out.local is not None
    side = STRIDES_PX[2]
    rows = out.local.frame_logits[placed].float().log_softmax(dim=-1)
    grid = rows.unflatten(-1, (image_size[0] // side, image_size[1] // side))
    return -_at(grid, target_xy[placed] / side - 0.5).sum() / placed.sum().clamp(min=1)


def _at(maps: Float[Tensor, "N h w"], cells_xy: Float[Tensor, "N 2"]) -> Float[Tensor, " N"]:
    """Interpolate each map at one place, (0, 0) is the first cell's centre."""
    rows, columns = maps.shape[1:]
    x = cells_xy[:, 0].clamp(0, columns - 1)
    y = cells_xy[:, 1].clamp(0, rows - 1)
    left, top = x.floor().long().clamp(max=columns - 2), y.floor().long().clamp(max=rows - 2)
    right_part, low_part = x - left, y - top
    number = torch.arange(len(maps), device=maps.device)
    upper = maps[number, top, left] * (1 - right_part) + maps[number, top, left + 1] * right_part
    lower = maps[number, top + 1, left] * (1 - right_part) + maps[number, top + 1, left + 1] * right_part
    return upper * (1 - low_part) + lower * low_part


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
