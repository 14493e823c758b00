"""Losses of point trackers.

`classified_track_loss` is TAPNext's (arXiv:2504.05579; google-deepmind/tapnet, `tapnet/tapnext/losses.py`):
classification of a point's column and row, distance, and visibility. `regressed_track_loss` is TAP-Net's and TAPIR's
(arXiv:2306.08637; `tapnet/utils/model_utils.py`), for heads that regress places and a certainty. `matching_loss` is
added for a tracker that matches appearance features.

Every loss is a mean over unmasked elements; masked ones have zero gradient, whatever their values. (The tapnet
repository's PyTorch port takes the mean first and multiplies by the mask after it, to no effect.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from trecvit.model.matching import Similarity

TAPNEXT_HUBER_WEIGHT = 0.1
TAPNEXT_HUBER_DELTA_PX = 1.0
TAPNET_HUBER_WEIGHT = 0.05
TAPNET_HUBER_DELTA_PX = 4.0
TAPNET_SURE_WITHIN_PX = 6.0
MATCHING_WEIGHT = 0.3
_TAPNET_RASTER_PX = 256  # side of the picture that the three values above refer to


class ClassifiedTrackLoss(NamedTuple):
    """Means over unmasked elements, in float32.

    Attributes:
        total: The loss.
        classification: Cross-entropy of the column plus that of the row, in nats.
        huber: Of the distance in pixels of the raster.
        visibility: Binary cross-entropy, in nats.
    """

    total: Float[Tensor, ""]
    classification: Float[Tensor, ""]
    huber: Float[Tensor, ""]
    visibility: Float[Tensor, ""]


class RegressedTrackLoss(NamedTuple):
    """Means over unmasked elements, in float32.

    Attributes:
        total: The loss.
        huber: Of the distance in pixels of a 256 x 256 raster.
        visibility: Binary cross-entropy, in nats.
        certainty: Binary cross-entropy of being near, in nats.
    """

    total: Float[Tensor, ""]
    huber: Float[Tensor, ""]
    visibility: Float[Tensor, ""]
    certainty: Float[Tensor, ""]


def counted_frames(query_points_tyx: Float[Tensor, "B Q 3"], num_frames: int) -> Bool[Tensor, "B Q T"]:
    """Mask of the frames from each query's on: an online tracker has no information before it."""
    return torch.arange(num_frames, device=query_points_tyx.device) >= query_points_tyx[..., :1].round()


def classified_track_loss(
    *,
    points_xy: Float[Tensor, "B Q T 2"],
    coordinate_logits: Float[Tensor, "B Q T 2 R"],
    visible_logits: Float[Tensor, "B Q T"],
    target_xy: Float[Tensor, "B Q T 2"],
    visible: Bool[Tensor, "B Q T"],
    counted: Bool[Tensor, "B Q T"],
    image_size: tuple[int, int],
) -> ClassifiedTrackLoss:
    """TAPNext's loss: classification + 0.1 Huber (delta 1 px) + visibility.

    Places count where the point is visible, visibility in all counted frames. Distances and classes are those of the
    raster of R columns and R rows, for any size of the video.

    Args:
        points_xy: Predicted places in pixels of the video.
        coordinate_logits: Scores over the columns (x), then over the rows (y).
        visible_logits: Above 0: visible.
        target_xy: True places in pixels of the video; any value where not visible.
        visible: True visibility.
        counted: Mask of frames, see `counted_frames`.
        image_size: Height and width of the video.
    """
    raster_px = coordinate_logits.shape[-1]
    placed = visible & counted
    target = _on_raster(target_xy, image_size, raster_px, placed)
    # Bin i is the interval from i to i + 1.
    labels = target.floor().clamp(0, raster_px - 1).long()
    entropies = F.cross_entropy(coordinate_logits.float().flatten(0, -2), labels.flatten(), reduction="none")
    classification = _mean(entropies.view(labels.shape).sum(dim=-1), placed)
    # A soft-argmax lies between the centres of the outermost bins.
    reachable = target.clamp(0.5, raster_px - 0.5)
    distances = _distances(_on_raster(points_xy, image_size, raster_px, placed), reachable)
    huber = _mean(_huber(distances, TAPNEXT_HUBER_DELTA_PX), placed)
    visibility = _visibility(visible_logits, visible, counted)
    total = classification + TAPNEXT_HUBER_WEIGHT * huber + visibility
    return ClassifiedTrackLoss(total, classification, huber, visibility)


def regressed_track_loss(
    *,
    points_xy: Float[Tensor, "B Q T 2"],
    visible_logits: Float[Tensor, "B Q T"],
    certainty_logits: Float[Tensor, "B Q T"],
    target_xy: Float[Tensor, "B Q T 2"],
    visible: Bool[Tensor, "B Q T"],
    counted: Bool[Tensor, "B Q T"],
    image_size: tuple[int, int],
) -> RegressedTrackLoss:
    """TAPIR's loss: 0.05 Huber (delta 4 px) + visibility + certainty of being within 6 px, all of a 256 x 256 raster.

    Places and certainty count where the point is visible, visibility in all counted frames. The certainty has no
    gradient to the places.

    Args:
        points_xy: Predicted places in pixels of the video.
        visible_logits: Above 0: visible.
        certainty_logits: Above 0: near. (TAPIR's `expected_dist` has the other sign.)
        target_xy: True places in pixels of the video; any value where not visible.
        visible: True visibility.
        counted: Mask of frames, see `counted_frames`.
        image_size: Height and width of the video.
    """
    placed = visible & counted
    predicted, target = (_on_raster(xy, image_size, _TAPNET_RASTER_PX, placed) for xy in (points_xy, target_xy))
    distances = _distances(predicted, target)
    huber = _mean(_huber(distances, TAPNET_HUBER_DELTA_PX), placed)
    near = (distances.detach() <= TAPNET_SURE_WITHIN_PX).float()
    entropies = F.binary_cross_entropy_with_logits(certainty_logits.float(), near, reduction="none")
    certainty = _mean(entropies, placed)
    visibility = _visibility(visible_logits, visible, counted)
    total = TAPNET_HUBER_WEIGHT * huber + visibility + certainty
    return RegressedTrackLoss(total, huber, visibility, certainty)


def matching_loss(
    similarity: Similarity,
    *,
    target_xy: Float[Tensor, "B Q T 2"],
    visible: Bool[Tensor, "B Q T"],
    counted: Bool[Tensor, "B Q T"],
    image_size: tuple[int, int],
) -> Float[Tensor, ""]:
    """0.3 times the cross-entropies, coarse and fine, of each query's place in later frames; a choice of this project.

    The true place is distributed over the four cells around it, with bilinear weights.

    Args:
        similarity: Scores over places.
        target_xy: True places in pixels of the video; any value where not visible.
        visible: True visibility.
        counted: Mask of frames, see `counted_frames`.
        image_size: Height and width of the video.
    """
    placed = visible & counted
    grid = _on_raster(target_xy, image_size, 1, placed).flatten(0, 2)[:, None, None] * 2 - 1
    loss = torch.zeros((), device=grid.device)
    for scores in similarity:
        rows, columns = scores.shape[-2:]
        logs = scores.float().flatten(-2).log_softmax(dim=-1).view(-1, 1, rows, columns)
        at_target = F.grid_sample(logs, grid, padding_mode="border", align_corners=False)
        loss = loss + _mean(-at_target.view(placed.shape), placed)
    return MATCHING_WEIGHT * loss


def _on_raster(
    xy: Float[Tensor, "B Q T 2"], image_size: tuple[int, int], raster_px: int, placed: Bool[Tensor, "B Q T"]
) -> Float[Tensor, "B Q T 2"]:
    """Convert pixels of the video to those of the raster; masked entries become 0 so that NaN cannot leak."""
    height, width = image_size
    ratio = torch.tensor([raster_px / width, raster_px / height], device=xy.device)
    return torch.where(placed[..., None], xy.float() * ratio, 0.0)


def _distances(a: Float[Tensor, "B Q T 2"], b: Float[Tensor, "B Q T 2"]) -> Float[Tensor, "B Q T"]:
    # The root has no gradient at 0.
    return ((a - b).square().sum(dim=-1) + 1e-12).sqrt()


def _huber(distances: Float[Tensor, "B Q T"], delta: float) -> Float[Tensor, "B Q T"]:
    """Half the square up to delta, linear with slope delta beyond."""
    return torch.where(distances < delta, distances.square() / 2, delta * (distances - delta / 2))


def _visibility(
    logits: Float[Tensor, "B Q T"], visible: Bool[Tensor, "B Q T"], counted: Bool[Tensor, "B Q T"]
) -> Float[Tensor, ""]:
    return _mean(F.binary_cross_entropy_with_logits(logits.float(), visible.float(), reduction="none"), counted)


def _mean(values: Float[Tensor, "B Q T"], counted: Bool[Tensor, "B Q T"]) -> Float[Tensor, ""]:
    """Mean over unmasked elements; 0 without any."""
    return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
