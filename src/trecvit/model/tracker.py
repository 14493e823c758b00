"""What every point tracker takes and gives: queries in, points out, and tracking backwards in time.

Coordinates are pixels of the caller's frames: (0, 0) is the upper left corner of the upper left pixel and (W, H) the
lower right one of the lower right pixel, as in TAP-Vid (arXiv:2211.03726).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from trecvit.errors import InputError

NEVER = torch.iinfo(torch.int64).max
"""The frame of a query that has not come."""


class TrackerOutput(NamedTuple):
    """What a tracker says of Q points in T frames.

    In frames before a point's query it has been told nothing, and what it says there means nothing.

    Attributes:
        points_xy: Where each point is, in pixels of the frames given.
        visible_logits: Above 0 where the point is seen, below where something hides it or it is out of the picture.
        certainty: From 0 to 1, how much of the tracker's belief lies close to `points_xy`.
        coordinate_logits: The scores that `points_xy` was read off: of x and of y, over R columns and R rows into which
            the picture is divided. None for a tracker that has no such scores.
    """

    points_xy: Float[Tensor, "B Q T 2"]
    visible_logits: Float[Tensor, "B Q T"]
    certainty: Float[Tensor, "B Q T"]
    coordinate_logits: Float[Tensor, "B Q T 2 R"] | None = None

    @property
    def visible(self) -> Bool[Tensor, "B Q T"]:
        """Whether each point is seen. TAP-Vid's results use this, or sigmoid(visible_logits) * certainty > 0.5."""
        return self.visible_logits > 0


Tracker = Callable[[Tensor, Tensor], TrackerOutput]


def track_both_ways(
    tracker: Tracker, video: Shaped[Tensor, "B T 3 H W"], query_points_tyx: Shaped[Tensor, "B Q 3"]
) -> TrackerOutput:
    """Tracks every point over the whole video, also in the frames before its query.

    A tracker is causal, so those are tracked in the video played backwards (as TAP-Vid's "strided" queries need it).
    Twice the work of `tracker(video, query_points_tyx)`, whose answer it keeps from each query's frame on.

    Args:
        tracker: Such as a `TAPNext`.
        video: As the tracker takes it.
        query_points_tyx: Likewise.

    Raises:
        InputError: as the tracker does.
    """
    ahead = tracker(video, query_points_tyx)
    num_frames = video.shape[1]
    if not query_points_tyx.is_floating_point():
        query_points_tyx = query_points_tyx.double()  # whole numbers have no infinity, which says that nothing is asked
    frame = query_points_tyx[..., 0]
    mirrored = torch.where(frame < num_frames, num_frames - 1 - frame, math.inf)
    back = tracker(video.flip(1), torch.cat([mirrored[..., None], query_points_tyx[..., 1:]], dim=-1))
    is_before = torch.arange(num_frames, device=frame.device) < frame[..., None]

    def join(ahead: Tensor, back: Tensor) -> Tensor:
        return torch.where(is_before.view(*is_before.shape, *[1] * (ahead.dim() - 3)), back.flip(2), ahead)

    scores, back_scores = ahead.coordinate_logits, back.coordinate_logits
    return TrackerOutput(
        join(ahead.points_xy, back.points_xy),
        join(ahead.visible_logits, back.visible_logits),
        join(ahead.certainty, back.certainty),
        join(scores, back_scores) if scores is not None and back_scores is not None else None,
    )


def read_queries(
    query_points_tyx: Tensor, image_size: tuple[int, int]
) -> tuple[Int64[Tensor, "B Q"], Float[Tensor, "B Q 2"]]:
    """Frames and places (y, x) of queries; `NEVER` and (0, 0) for those whose frame is infinite.

    Raises:
        InputError: unless there are three numbers per query, a whole frame >= 0 (or infinity) and a place in a picture
            of this height and width.
    """
    if query_points_tyx.dim() != 3 or query_points_tyx.shape[2] != 3:
        raise InputError(f"query_points_tyx: expected [B,Q,3] of (t, y, x), got {tuple(query_points_tyx.shape)}")
    if query_points_tyx.is_complex() or query_points_tyx.dtype == torch.bool:
        raise InputError(f"query_points_tyx: expected numbers, got {query_points_tyx.dtype}")
    # In float64 whole numbers of every size that a video has frames stay what they are.
    frames, places = query_points_tyx[..., 0].double(), query_points_tyx[..., 1:]
    never = frames == math.inf
    whole = never | ((frames >= 0) & (frames == frames.floor()))
    if not bool(whole.all()):
        raise InputError(
            f"query_points_tyx: expected t to be a frame's number from 0, or infinity for a query that may come later, "
            f"got {frames[~whole][0].item():g}"
        )
    limits = torch.tensor(image_size, device=places.device)
    inside = never | ((places >= 0) & (places <= limits)).all(dim=-1)
    if not bool(inside.all()):
        y, x = places[~inside][0].tolist()
        raise InputError(
            f"query_points_tyx: expected (t, y, x) with y in 0..{image_size[0]} and x in 0..{image_size[1]} pixels of "
            f"the frames, got y={y:g}, x={x:g}"
        )
    known_frames = frames.masked_fill(never, 0).long()
    return known_frames.masked_fill(never, NEVER), places.float().masked_fill(never[..., None], 0.0)
