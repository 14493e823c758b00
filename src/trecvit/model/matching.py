"""Match each query's appearance in later frames, condition its token on the match, and refine the prediction.

TAPNext (arXiv:2504.05579) has no such part: its tokens learn to find their points from far more videos than a CPU can
train on in a few hours. Here a few convolutions compute a descriptor, a unit vector, for every place of a frame. The
descriptor at the query's position is compared with those of later frames, and the best match is added to its token, in
the sines and cosines in which `PointTokens` embeds the query. The models for it are the cost volumes of TAP-Net
(arXiv:2211.03726), and TAPIR's (arXiv:2306.08637) around a first estimate, which they refine.

Frames are processed one by one; a stream's state holds one descriptor per point.

B videos (streams) · T frames · Q query points · D width of a token · S channels of a query's descriptors ·
h w places, every fourth pixel · H W places, every second pixel · G groups of channels that are compared separately
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Real
from torch import Tensor, nn

from trecvit.model.state import recurrent_dtype

_COARSE, _FINE = 64, 32  # channels
_GROUPS = 4
_REACH = 4  # places on each side of an estimate
_STEPS_PX = (2.0, 0.75)  # distance of these places in pixels of the raster; one refinement for each
_HIDDEN = 128  # channels of a refinement's MLP
_INITIAL_SHARPNESS = 20.0
_FRAMES_AT_ONCE = 8  # bounds the memory of comparing every query with every place


class Descriptors(NamedTuple):
    """Unit vectors for every place of T frames, float32 at least."""

    coarse: Float[Tensor, "B T C h w"]
    fine: Float[Tensor, "B T F H W"]


class Similarity(NamedTuple):
    """Scores of all places for each query; their softmax over a frame are probabilities of the query's position."""

    coarse: Float[Tensor, "B Q T h w"]
    fine: Float[Tensor, "B Q T H W"]


class Matching(nn.Module):
    """Match queries by appearance.

    Args:
        width: D.
        raster_px: Side of the square raster in which the tracker embeds queries and predicts points.

    Attributes:
        descriptor_width: S.
    """

    descriptor_width = _COARSE + _FINE

    def __init__(self, width: int, raster_px: int) -> None:
        super().__init__()
        self.width, self.raster_px = width, raster_px
        self.first = nn.Conv2d(3, _FINE, 5, stride=2, padding=2)
        self.second = nn.Conv2d(_FINE, _FINE, 3, padding=1)
        self.third = nn.Conv2d(_FINE, _COARSE, 3, stride=2, padding=1)
        self.to_coarse = nn.Conv2d(_COARSE, _COARSE, 3, padding=1)
        self.to_fine = nn.Conv2d(_FINE, _FINE, 3, padding=1)
        self.context = nn.Conv2d(_COARSE, _FINE, 1)
        # Of each group of the coarse descriptors and of the fine ones, for the token; then of both, for `Similarity`.
        self.sharpness = nn.Parameter(torch.full((_GROUPS + 3,), math.log(_INITIAL_SHARPNESS)))
        self.into_token = nn.Linear((_GROUPS + 1) * (width + 1), width)
        num_costs = _GROUPS * (2 * _REACH + 1) ** 2
        self.guess_in = nn.ModuleList(nn.Linear(num_costs + width, _HIDDEN) for _ in _STEPS_PX)
        self.guess_out = nn.ModuleList(nn.Linear(_HIDDEN, 2) for _ in _STEPS_PX)
        # Initially tokens and estimates stay unchanged, so that matching can be added to a trained tracker.
        for name, parameter in self.named_parameters():
            if name.startswith(("into_token", "guess_out")):
                nn.init.zeros_(parameter)

    def describe(self, frames: Float[Tensor, "B T 3 R C"]) -> Descriptors:
        """Compute descriptors of frames with values in [0,1]."""
        x = F.gelu(self.first(frames.flatten(0, 1) - 0.5))  # [BT, F, H, W]
        x = F.gelu(self.second(x))
        y = F.gelu(self.third(x))  # [BT, C, h, w]
        context = F.interpolate(self.context(y), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return Descriptors(
            *(_unit(maps).unflatten(0, frames.shape[:2]) for maps in (self.to_coarse(y), self.to_fine(x) + context))
        )

    def describe_queries(
        self,
        descriptors: Descriptors,
        points_xy: Float[Tensor, "B Q 2"],
        frames_until: Real[Tensor, "B Q"],
        previous: Float[Tensor, "B Q S"],
    ) -> Float[Tensor, "B Q S"]:
        """Sample the descriptors of the queries in these frames; keep those of all others.

        Args:
            descriptors: Of T frames.
            points_xy: Position of each query, from 0 to 1 over the picture's width and height.
            frames_until: Number of frames until each query; 0 is the first of these, negative is past.
            previous: Result for the frames before; initially zeros.
        """
        num_frames = descriptors.fine.shape[1]
        is_here = (frames_until >= 0) & (frames_until < num_frames)
        frame = frames_until.clamp(0, num_frames - 1).long()[:, None, :, None]  # [B, 1, Q, 1]
        # Sampled in all T frames, then gathered: [BT, 1, Q, 2].
        grid = (points_xy * 2 - 1).to(previous.dtype)[:, None].expand(-1, num_frames, -1, -1).flatten(0, 1)[:, None]
        sampled = [
            F.grid_sample(maps.flatten(0, 1), grid, padding_mode="border", align_corners=False)[:, :, 0]
            for maps in descriptors
        ]  # [BT, C, Q] and [BT, F, Q]
        in_frames = torch.cat(sampled, dim=1).transpose(1, 2).unflatten(0, (-1, num_frames))  # [B, T, Q, S]
        return torch.where(is_here[..., None], in_frames.take_along_dim(frame, dim=1)[:, 0], previous)

    def condition(
        self, descriptors: Descriptors, queries: Float[Tensor, "B Q S"], is_queried: Bool[Tensor, "B T Q"]
    ) -> tuple[Float[Tensor, "B T Q D"], Similarity | None]:
        """Embed the matches in T frames for the points' tokens.

        Args:
            descriptors: Of the frames.
            queries: See `describe_queries`.
            is_queried: Whether a frame is a point's query frame or later; before it, its embedding is zero.

        Returns:
            Embeddings to add to the tokens, and in training mode the scores for the loss.
        """
        coarse_queries, fine_queries = queries.split([_COARSE, _FINE], dim=-1)
        embeddings, scores = [], []
        sharpness = self.sharpness.exp().split([_GROUPS, 1, 1, 1])
        for frames in _pieces(descriptors):
            coarse = _similarity(frames.coarse, coarse_queries, _GROUPS)
            fine = _similarity(frames.fine, fine_queries, 1)
            matches = [self._match(coarse, sharpness[0]), self._match(fine, sharpness[1])]
            embeddings.append(self.into_token(torch.cat(matches, dim=-1).to(self.into_token.weight.dtype)))
            if self.training:
                scores.append(Similarity(coarse.mean(dim=3) * sharpness[2], fine[:, :, :, 0] * sharpness[3]))
        tokens = torch.where(is_queried[..., None], torch.cat(embeddings, dim=1), 0.0)
        if not scores:
            return tokens, None
        return tokens, Similarity(*(torch.cat(level, dim=1).transpose(1, 2) for level in zip(*scores, strict=True)))

    def _match(
        self, similarity: Float[Tensor, "B T Q G h w"], sharpness: Float[Tensor, " G"]
    ) -> Float[Tensor, "B T Q F"]:
        """Embed the match: expected sines and cosines of its position under a softmax, and the highest similarity."""
        probs = (similarity * sharpness[:, None, None]).flatten(-2).softmax(dim=-1).unflatten(-1, similarity.shape[-2:])
        # A position's embedding is one of x and one of y, so their expectations need the marginals only.
        of_x, of_y = (
            probs.sum(dim=axis) @ _waves(probs.shape[other], self.raster_px, self.width).to(probs)
            for axis, other in ((-2, -1), (-1, -2))
        )
        best = similarity.amax(dim=(-2, -1))
        return torch.cat([of_x.flatten(-2), of_y.flatten(-2), best], dim=-1)

    def refine(
        self,
        descriptors: Descriptors,
        queries: Float[Tensor, "B Q S"],
        is_queried: Bool[Tensor, "B T Q"],
        features: Float[Tensor, "B T Q D"],
        points_xy: Float[Tensor, "B T Q 2"],
    ) -> Float[Tensor, "B T Q 2"]:
        """Refine estimates of the points, from the similarity around them and from the points' tokens.

        Args:
            descriptors: Of the frames.
            queries: See `describe_queries`.
            is_queried: Whether a frame is a point's query frame or later; before it, all similarities are zero.
            features: The points' tokens after the blocks and the last norm.
            points_xy: Estimates, from 0 to 1 over the picture's width and height.
        """
        fine_queries = queries[..., _COARSE:]
        inputs = (tensor.split(_FRAMES_AT_ONCE, dim=1) for tensor in (is_queried, features, points_xy))
        pieces = zip(_pieces(descriptors), *inputs, strict=True)
        return torch.cat([self._refine(frames.fine, fine_queries, *rest) for frames, *rest in pieces], dim=1)

    def _refine(
        self,
        fine: Float[Tensor, "B T F H W"],
        queries: Float[Tensor, "B Q F"],
        is_queried: Bool[Tensor, "B T Q"],
        features: Float[Tensor, "B T Q D"],
        points_xy: Float[Tensor, "B T Q 2"],
    ) -> Float[Tensor, "B T Q 2"]:
        axis = torch.arange(-_REACH, _REACH + 1, device=fine.device, dtype=fine.dtype)
        offsets = torch.cartesian_prod(axis, axis).flip(-1)  # [n, 2], (x, y)
        grouped_queries = queries.unflatten(-1, (_GROUPS, -1))
        for step_px, into, out in zip(_STEPS_PX, self.guess_in, self.guess_out, strict=True):
            step = step_px / self.raster_px
            # Detached: no gradient through the positions of sampling, only through the sampled values.
            grid = (points_xy.detach()[..., None, :] + offsets * step) * 2 - 1  # [B, T, Q, n, 2]
            sampled = F.grid_sample(fine.flatten(0, 1), grid.flatten(0, 1), align_corners=False)  # [BT, F, Q, n]
            sampled = sampled.unflatten(0, fine.shape[:2]).unflatten(2, (_GROUPS, -1))  # [B, T, G, F/G, Q, n]
            costs = torch.einsum("bqgc,btgcqn->btqgn", grouped_queries, sampled).flatten(-2) * _GROUPS
            costs = torch.where(is_queried[..., None], costs, 0.0)
            offset = out(F.gelu(into(torch.cat([costs.to(features.dtype), features], dim=-1))))
            points_xy = points_xy + offset.to(points_xy.dtype) * step
        return points_xy


def _pieces(descriptors: Descriptors) -> Iterator[Descriptors]:
    for coarse, fine in zip(*(maps.split(_FRAMES_AT_ONCE, dim=1) for maps in descriptors), strict=True):
        yield Descriptors(coarse, fine)


def _unit(maps: Float[Tensor, "F C h w"]) -> Float[Tensor, "F C h w"]:
    return F.normalize(maps.to(recurrent_dtype(maps.dtype)), dim=1)


def _similarity(
    maps: Float[Tensor, "B T C h w"], queries: Float[Tensor, "B Q C"], num_groups: int
) -> Float[Tensor, "B T Q G h w"]:
    """Compute the scalar products in each group; their mean over the groups is the vectors' cosine."""
    keys = maps.unflatten(2, (num_groups, -1)).flatten(4)  # [B, T, G, C/G, hw]
    products: Tensor = torch.einsum("bqgc,btgcn->btqgn", queries.unflatten(-1, (num_groups, -1)), keys)
    similarity: Tensor = products.mul(num_groups).unflatten(-1, maps.shape[-2:])
    return similarity


def _waves(num_places: int, raster_px: int, width: int) -> Float[Tensor, "n F"]:
    """Embed the x (or the y) of each place's centre as `PointTokens` does: half the width's sines and cosines."""
    centres = (torch.arange(num_places, dtype=torch.float64) + 0.5) * (raster_px / num_places) - 0.5
    angles = centres[:, None] * 10_000.0 ** -torch.linspace(0.0, 1.0, width // 4, dtype=torch.float64)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
