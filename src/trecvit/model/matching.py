"""Where a point's first look is found again: what a tracker is told beside its tokens, and its last word on a place.

TAPNext (arXiv:2504.05579) has nothing of the kind: its tokens learn to find what they were asked for, from far more
videos than a few hours of a CPU can show. Here a few convolutions describe every place of a frame by a unit vector. The
query's place is described like any other, in its own frame, and its token is told, in the sines and cosines in which it
was told the query itself, where later frames look alike. The models for it are the cost volumes of TAP-Net
(arXiv:2211.03726), and those around a first guess from which TAPIR (arXiv:2306.08637) makes a better one.

Every frame is looked at by itself; what a stream remembers is one vector per point.

B videos (streams) · T frames · Q query points · D width of a token · S channels of a look ·
h w places, every fourth pixel · H W places, every second pixel · G groups of channels that are compared by themselves
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from trecvit.model.state import recurrent_dtype

_COARSE, _FINE = 64, 32  # channels
_GROUPS = 4
_REACH = 4  # places to each side of a guess
_STEPS_PX = (2.0, 0.75)  # of the raster, from place to place; one guess after the other
_HIDDEN = 128  # channels of what makes the next guess
_FIRST_SHARPNESS = 20.0
_FRAMES_AT_ONCE = 8  # bounds the memory that comparing every query with every place takes


class Looks(NamedTuple):
    """How every place of T frames looks: unit vectors, float32 at least."""

    coarse: Float[Tensor, "B T C h w"]
    fine: Float[Tensor, "B T F H W"]


class Similarity(NamedTuple):
    """Scores of places, for each query: by a softmax over all of a frame's, probabilities of being the query's."""

    coarse: Float[Tensor, "B Q T h w"]
    fine: Float[Tensor, "B Q T H W"]


class Matching(nn.Module):
    """Finds queries by their looks.

    Args:
        width: D.
        raster_px: Side of the square raster in which the tracker embeds and finds points.

    Attributes:
        look_width: S.
    """

    look_width = _COARSE + _FINE

    def __init__(self, width: int, raster_px: int) -> None:
        super().__init__()
        self.width, self.raster_px = width, raster_px
        self.first = nn.Conv2d(3, _FINE, 5, stride=2, padding=2)
        self.second = nn.Conv2d(_FINE, _FINE, 3, padding=1)
        self.third = nn.Conv2d(_FINE, _COARSE, 3, stride=2, padding=1)
        self.to_coarse = nn.Conv2d(_COARSE, _COARSE, 3, padding=1)
        self.to_fine = nn.Conv2d(_FINE, _FINE, 3, padding=1)
        self.context = nn.Conv2d(_COARSE, _FINE, 1)
        # For the token, of each group of the coarse look and of the fine one; then of both for `Similarity`.
        self.sharpness = nn.Parameter(torch.full((_GROUPS + 3,), math.log(_FIRST_SHARPNESS)))
        self.into_token = nn.Linear((_GROUPS + 1) * (width + 1), width)
        num_costs = _GROUPS * (2 * _REACH + 1) ** 2
        self.guess_in = nn.ModuleList(nn.Linear(num_costs + width, _HIDDEN) for _ in _STEPS_PX)
        self.guess_out = nn.ModuleList(nn.Linear(_HIDDEN, 2) for _ in _STEPS_PX)
        # At first nothing is told and no guess is changed, so that a trained tracker can go on with it.
        for name, parameter in self.named_parameters():
            if name.startswith(("into_token", "guess_out")):
                nn.init.zeros_(parameter)

    def look(self, frames: Float[Tensor, "B T 3 R C"]) -> Looks:
        """Describes every place of frames with values in [0,1]."""
        x = F.gelu(self.first(frames.flatten(0, 1) - 0.5))
        x = F.gelu(self.second(x))
        y = F.gelu(self.third(x))
        around = F.interpolate(self.context(y), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return Looks(
            *(_unit(maps).unflatten(0, frames.shape[:2]) for maps in (self.to_coarse(y), self.to_fine(x) + around))
        )

    def find_queries(
        self,
        looks: Looks,
        points_xy: Float[Tensor, "B Q 2"],
        frames_until: Int64[Tensor, "B Q"],
        known: Float[Tensor, "B Q S"],
    ) -> Float[Tensor, "B Q S"]:
        """The looks of the queries: of those that come in these frames, and what is known of the others.

        Args:
            looks: Of T frames.
            points_xy: Where each query is, from 0 to 1 over the picture's width and height.
            frames_until: In how many frames it comes; 0 is the first of these, a negative number one that has been.
            known: What this has returned for the frames before; zeros at first.
        """
        num_frames = looks.fine.shape[1]
        comes = (frames_until >= 0) & (frames_until < num_frames)
        frame = frames_until.clamp(0, num_frames - 1)[:, None, :, None]
        grid = (points_xy * 2 - 1).to(known.dtype)[:, None].expand(-1, num_frames, -1, -1).flatten(0, 1)[:, None]
        there = [
            F.grid_sample(maps.flatten(0, 1), grid, padding_mode="border", align_corners=False)[:, :, 0]
            for maps in looks
        ]
        seen = torch.cat(there, dim=1).transpose(1, 2).unflatten(0, (-1, num_frames))
        return torch.where(comes[..., None], seen.take_along_dim(frame, dim=1)[:, 0], known)

    def tell(
        self, looks: Looks, queries: Float[Tensor, "B Q S"], asked: Bool[Tensor, "B T Q"]
    ) -> tuple[Float[Tensor, "B T Q D"], Similarity | None]:
        """What the points' tokens are told of T frames.

        Args:
            looks: Of the frames.
            queries: See `find_queries`.
            asked: Whether a point's query has come. Before that, its token is told nothing.

        Returns:
            What is added to the tokens, and in training mode the scores to be learnt.
        """
        of_coarse, of_fine = queries.split([_COARSE, _FINE], dim=-1)
        told, scores = [], []
        sharpness = self.sharpness.exp().split([_GROUPS, 1, 1, 1])
        for frames in _pieces(looks):
            coarse, fine = _similarity(frames.coarse, of_coarse, _GROUPS), _similarity(frames.fine, of_fine, 1)
            places = [self._places(coarse, sharpness[0]), self._places(fine, sharpness[1])]
            told.append(self.into_token(torch.cat(places, dim=-1).to(self.into_token.weight.dtype)))
            if self.training:
                scores.append(Similarity(coarse.mean(dim=3) * sharpness[2], fine[:, :, :, 0] * sharpness[3]))
        tokens = torch.where(asked[..., None], torch.cat(told, dim=1), 0.0)
        if not scores:
            return tokens, None
        return tokens, Similarity(*(torch.cat(of, dim=1).transpose(1, 2) for of in zip(*scores, strict=True)))

    def _places(
        self, similarity: Float[Tensor, "B T Q G h w"], sharpness: Float[Tensor, " G"]
    ) -> Float[Tensor, "B T Q F"]:
        """Sines and cosines of where it looks alike, mean over a softmax, and how much alike at the best place."""
        probs = (similarity * sharpness[:, None, None]).flatten(-2).softmax(dim=-1).unflatten(-1, similarity.shape[-2:])
        of_x, of_y = (
            probs.sum(dim=axis) @ _waves(probs.shape[other], self.raster_px, self.width).to(probs)
            for axis, other in ((-2, -1), (-1, -2))
        )
        best = similarity.amax(dim=(-2, -1))
        return torch.cat([of_x.flatten(-2), of_y.flatten(-2), best], dim=-1)

    def refine(
        self,
        looks: Looks,
        queries: Float[Tensor, "B Q S"],
        asked: Bool[Tensor, "B T Q"],
        features: Float[Tensor, "B T Q D"],
        points_xy: Float[Tensor, "B T Q 2"],
    ) -> Float[Tensor, "B T Q 2"]:
        """Better places, from how the frame looks around a first guess and from what became of the point's token.

        Args:
            looks: Of the frames.
            queries: See `find_queries`.
            asked: Whether a point's query has come. Before that, nothing looks like it.
            features: The tokens after the blocks and the last norm.
            points_xy: First guesses, from 0 to 1 over the picture's width and height.
        """
        of_queries = queries[..., _COARSE:]
        pieces = zip(
            _pieces(looks), *(of.split(_FRAMES_AT_ONCE, dim=1) for of in (asked, features, points_xy)), strict=True
        )
        return torch.cat([self._refine(seen.fine, of_queries, *others) for seen, *others in pieces], dim=1)

    def _refine(
        self,
        fine: Float[Tensor, "B T F H W"],
        queries: Float[Tensor, "B Q F"],
        asked: Bool[Tensor, "B T Q"],
        features: Float[Tensor, "B T Q D"],
        points_xy: Float[Tensor, "B T Q 2"],
    ) -> Float[Tensor, "B T Q 2"]:
        axis = torch.arange(-_REACH, _REACH + 1, device=fine.device, dtype=fine.dtype)
        around = torch.cartesian_prod(axis, axis).flip(-1)
        of_queries = queries.unflatten(-1, (_GROUPS, -1))
        for step_px, into, out in zip(_STEPS_PX, self.guess_in, self.guess_out, strict=True):
            step = step_px / self.raster_px
            # What is looked at does not move the guess: its gradient is that of what was seen.
            grid = (points_xy.detach()[..., None, :] + around * step) * 2 - 1
            seen = F.grid_sample(fine.flatten(0, 1), grid.flatten(0, 1), align_corners=False)
            seen = seen.unflatten(0, fine.shape[:2]).unflatten(2, (_GROUPS, -1))
            costs = torch.einsum("bqgc,btgcqn->btqgn", of_queries, seen).flatten(-2) * _GROUPS
            costs = torch.where(asked[..., None], costs, 0.0)
            moved = out(F.gelu(into(torch.cat([costs.to(features.dtype), features], dim=-1))))
            points_xy = points_xy + moved.to(points_xy.dtype) * step
        return points_xy


def _pieces(looks: Looks) -> Iterator[Looks]:
    for coarse, fine in zip(*(maps.split(_FRAMES_AT_ONCE, dim=1) for maps in looks), strict=True):
        yield Looks(coarse, fine)


def _unit(maps: Float[Tensor, "F C h w"]) -> Float[Tensor, "F C h w"]:
    return F.normalize(maps.to(recurrent_dtype(maps.dtype)), dim=1)


def _similarity(
    maps: Float[Tensor, "B T C h w"], queries: Float[Tensor, "B Q C"], num_groups: int
) -> Float[Tensor, "B T Q G h w"]:
    """Products of both vectors in each group; their mean is the vectors' cosine."""
    keys = maps.unflatten(2, (num_groups, -1)).flatten(4)
    products: Tensor = torch.einsum("bqgc,btgcn->btqgn", queries.unflatten(-1, (num_groups, -1)), keys)
    similar: Tensor = products.mul(num_groups).unflatten(-1, maps.shape[-2:])
    return similar


def _waves(num_places: int, raster_px: int, width: int) -> Float[Tensor, "n F"]:
    """What `PointTokens` adds for the x (or the y) of each place's middle: half the width's sines and cosines."""
    at = (torch.arange(num_places, dtype=torch.float64) + 0.5) * (raster_px / num_places) - 0.5
    angles = at[:, None] * 10_000.0 ** -torch.linspace(0.0, 1.0, width // 4, dtype=torch.float64)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
