"""Match each point's appearance around its last place: a pyramid of descriptors, templates and local correlation.

A few convolutions describe every place of a frame by vectors of length 1, in cells of 2, 4 and 8 pixels. A point's
template holds the 3 x 3 descriptors around it in each level; correlated with the cells around a place it gives a cost
volume, as in TAPIR (arXiv:2306.08637) and CoTracker3 (arXiv:2410.11831). All places of a window have the same distance
to the cells' centres, so that one gather of whole cells serves all of them.

B videos (streams) · T frames · Q query points · C channels of a level · L levels · n cells of a window
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from trecvit.config import ModelConfig
from trecvit.model.initial import normal_, set_
from trecvit.model.state import recurrent_dtype
from trecvit.model.trecvit import Tokenizer

STRIDES_PX = (2, 4, 8)
REACH = 3  # cells of a window on each side of its centre
WINDOW = 2 * REACH + 1
PATCH, APART = 3, 2  # descriptors on a template's side, and their distance in cells
_HIDDEN = 64
_INITIAL_SHARPNESS = 40.0
_FILTER_SIGMAS_PX, _FILTER_NORM = (1.3, 2.6), 4.0
_AROUND, _NOISE_ENERGY = 7, 1e-4  # side in cells; a filter's response to noise of half an 8-bit level
CONTEXT_WIDTH = 16  # channels of the next coarser level in a description
_EPS = 1e-5


class Level(NamedTuple):
    """Descriptors of frames in cells of one size, with a border of zeros one cell wide.

    Attributes:
        cells: Of B frames, row by row.
        size: Rows and columns, without the border.
        stride_px: Side of a cell in pixels.
    """

    cells: Float[Tensor, "B n C"]
    size: tuple[int, int]
    stride_px: int


class Window(NamedTuple):
    """The descriptors of whole cells around places: one row and one column more than a window.

    Attributes:
        cells: `[B, Q, WINDOW + 1, WINDOW + 1, C]`.
        part_xy: Distance, from 0 to 1 cells, of the places' window from these cells' centres.
    """

    cells: Float[Tensor, "B Q rows columns C"]
    part_xy: Float[Tensor, "B Q 2"]


class Residual(nn.Module):
    """Two convolutions with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.second.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Float[Tensor, "F C h w"]) -> Float[Tensor, "F C h w"]:
        """Compute the block; inputs and outputs are not negative."""
        return F.relu(x + self.second(F.relu(self.first(x))))


class FramePyramid(Tokenizer):
    """Descriptors of frames, in the place of a tokenizer: the tokens are the points.

    Args:
        config: Of the blocks; `patch_size` is the largest cell.
        channels: Of the levels of 2, 4 and 8 pixels.
    """

    def __init__(self, config: ModelConfig, channels: tuple[int, int, int]) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.positions, self.cls, self.time = None, None, None
        fine, middle, coarse = channels
        self.embedding = nn.Conv2d(3, fine, 7, stride=2, padding=3)  # type: ignore[assignment]
        self.fine = nn.Conv2d(fine, fine, 3, padding=1)
        self.to_middle = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.middle = nn.Sequential(Residual(middle), Residual(middle))
        self.to_coarse = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.coarse = nn.Sequential(Residual(coarse), Residual(coarse))
        self.coarse_to_middle = nn.Conv2d(coarse, CONTEXT_WIDTH, 1)
        self.middle_to_fine = nn.Conv2d(middle, CONTEXT_WIDTH, 1)
        self.describe_fine = nn.Conv2d(fine + CONTEXT_WIDTH, fine + CONTEXT_WIDTH, 1)
        self.describe_middle = nn.Conv2d(middle + CONTEXT_WIDTH, middle + CONTEXT_WIDTH, 1)
        self.describe_coarse = nn.Conv2d(coarse, coarse, 1)
        self._begin_with_known_filters()

    def _begin_with_known_filters(self) -> None:
        """Begin with what descriptors by hand are made of; training changes all of it.

        Random strided filters describe a place differently after it moved by half a cell. Half-rectified gradients and
        colours, blurred before each halving, do not: DAISY (Tola, Lepetit and Fua, 2010) is made of such.
        """
        set_(self.embedding.weight, lambda: _oriented_filters(len(self.embedding.weight)))
        for blurring in (self.fine, self.to_middle, self.to_coarse):
            set_(blurring.weight, partial(_blurred_mixtures, blurring.out_channels, blurring.in_channels))
        for maps in (self.describe_fine, self.describe_middle, self.describe_coarse):
            nn.init.dirac_(maps.weight)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                assert layer.bias is not None, "as above"
                nn.init.zeros_(layer.bias)

    def levels(self, frames: Float[Tensor, "B T 3 H W"]) -> list[list[Level]]:
        """Describe frames with values in [0,1]: for each of T frames its levels, from fine to coarse."""
        num_frames = frames.shape[1]
        pixels = (frames.flatten(0, 1) - 0.5).contiguous(memory_format=torch.channels_last)
        fine = F.relu(_of_local_contrast(self.embedding(pixels)))
        fine = F.relu(self.fine(fine))
        middle = self.middle(F.relu(_standardised(self.to_middle(fine))))
        coarse = self.coarse(F.relu(_standardised(self.to_coarse(middle))))
        around_middle = _twice(_standardised(self.coarse_to_middle(coarse)))
        around_fine = _twice(_standardised(self.middle_to_fine(middle)))
        maps = [
            self.describe_fine(torch.cat([_standardised(fine), around_fine], dim=1)),
            self.describe_middle(torch.cat([_standardised(middle), around_middle], dim=1)),
            self.describe_coarse(coarse),
        ]
        described = [_cells(level, num_frames) for level in maps]
        return [
            [
                Level(cells[frame], (level.shape[2], level.shape[3]), stride)
                for cells, level, stride in zip(described, maps, STRIDES_PX, strict=True)
            ]
            for frame in range(num_frames)
        ]


def _oriented_filters(count: int) -> Float[Tensor, "C 3 7 7"]:
    """Derivatives of a Gaussian in directions all around, then spots of colour; each with its negative, for ReLU."""
    axis = torch.arange(7.0) - 3.0
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    blur, wide = (torch.exp(-(x.square() + y.square()) / (2 * sigma**2)) for sigma in _FILTER_SIGMAS_PX)
    spot = blur / blur.sum() - wide / wide.sum()
    colours = torch.tensor([[0.299, 0.587, 0.114], [0.7, -0.7, 0.0], [-0.5, -0.5, 1.0]])
    pairs = max(count // 2 - len(colours), 0)
    angles = [math.pi * number / max(pairs, 1) for number in range(pairs)]
    filters = [(math.cos(angle) * x + math.sin(angle) * y) * blur * colours[0, :, None, None] for angle in angles]
    filters += [colour[:, None, None] * spot for colour in colours]
    known = torch.stack([signed for plane in filters for signed in (plane, -plane)])[:count]
    more = torch.randn(count - len(known), 3, 7, 7) * spot  # of an odd number of channels
    # What follows divides by the deviation: the larger a filter, the more slowly it is trained.
    unit = F.normalize(torch.cat([known, more]).flatten(1), dim=1)
    filters_in_length: Tensor = unit.unflatten(1, (3, 7, 7)) * _FILTER_NORM
    return filters_in_length


def _blurred_mixtures(outputs: int, inputs: int) -> Float[Tensor, "O I 3 3"]:
    """A copy of each channel, then random mixtures of them, all blurred by a binomial."""
    copies = torch.eye(outputs, inputs)
    copies[inputs:] = torch.randn(max(outputs - inputs, 0), inputs) * inputs**-0.5
    axis = torch.tensor([0.25, 0.5, 0.25])
    return copies[:, :, None, None] * axis[:, None] * axis


def _twice(maps: Float[Tensor, "F C h w"]) -> Float[Tensor, "F C h2 w2"]:
    return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)


def _of_local_contrast(maps: Float[Tensor, "F C h w"]) -> Float[Tensor, "F C h w"]:
    """Divide by the energy around each place: else weak patterns would be lost beside strong ones."""
    energy = maps.square().mean(dim=1, keepdim=True)
    around = F.avg_pool2d(energy, _AROUND, stride=1, padding=_AROUND // 2, count_include_pad=False)
    return maps * (around + _NOISE_ENERGY).rsqrt()


def _standardised(maps: Float[Tensor, "F C h w"]) -> Float[Tensor, "F C h w"]:
    """Give each channel mean 0 and variance 1 in each frame: else all its descriptors would be alike at first."""
    variance, mean = torch.var_mean(maps, dim=(2, 3), keepdim=True, correction=0)
    return (maps - mean) * (variance + _EPS).rsqrt()


def _cells(maps: Float[Tensor, "F C h w"], num_frames: int) -> tuple[Float[Tensor, "B n C"], ...]:
    """Vectors of length 1 with a border of zeros, for each of T frames."""
    rows = _standardised(maps).permute(0, 2, 3, 1)
    rows = F.normalize(rows.to(recurrent_dtype(maps.dtype)), dim=3)
    bordered = F.pad(rows, (0, 0, 1, 1, 1, 1)).flatten(1, 2)  # [BT,n,C]
    frames: tuple[Tensor, ...] = bordered.view(-1, num_frames, *bordered.shape[1:]).unbind(dim=1)
    return frames


def window_around(level: Level, points_xy: Float[Tensor, "B Q 2"]) -> Window:
    """Gather the cells around places in pixels; cells outside of the frame are zero."""
    rows, columns = level.size
    centred = points_xy / level.stride_px - 0.5
    first = centred.floor()
    steps = torch.arange(-REACH, REACH + 2, device=points_xy.device)
    # The border's index is 0 or the last one, for all cells outside.
    x = (first[..., :1].long() + steps + 1).clamp(0, columns + 1)  # [B,Q,columns of the window]
    y = (first[..., 1:].long() + steps + 1).clamp(0, rows + 1)
    index = y[..., :, None] * (columns + 2) + x[..., None, :]
    return Window(_gather(level.cells, index), centred - first)


def _gather(cells: Float[Tensor, "B n C"], index: Int64[Tensor, "B Q r c"]) -> Float[Tensor, "B Q r c C"]:
    batch_size, num_cells, width = cells.shape
    starts = torch.arange(batch_size, device=index.device)[:, None, None, None] * num_cells
    chosen = cells.reshape(-1, width).index_select(0, (index + starts).flatten())
    return chosen.view(*index.shape, width)


def _between(values: Float[Tensor, "B Q r c K"], part_xy: Float[Tensor, "B Q 2"]) -> Float[Tensor, "B Q r1 c1 K"]:
    """Interpolate bilinearly between neighbouring cells: one row and one column less. No gradient to `part_xy`."""
    x, y = (part[..., None, None] for part in part_xy.detach().to(values.dtype).unsqueeze(-1).unbind(dim=2))
    if not (torch.is_grad_enabled() and values.requires_grad):
        return _lerp(values, x, y)
    between: Tensor = _Between.apply(values, x, y)  # type: ignore[no-untyped-call]
    return between


def _lerp(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    along = torch.lerp(values[:, :, :, :-1], values[:, :, :, 1:], x)
    return torch.lerp(along[:, :, :-1], along[:, :, 1:], y)


class _Between(torch.autograd.Function):
    """Two linear interpolations, whose gradients autograd alone would write into zeros for each slice."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x, y)
        return _lerp(values, x, y)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grad_outputs
        x, y = ctx.saved_tensors
        return _spread(_spread(grad, y, dim=2), x, dim=3), None, None


def _spread(grad: Tensor, part: Tensor, dim: int) -> Tensor:
    """Gradient of the interpolation between neighbours on an axis."""
    length = grad.shape[dim]
    later = grad * part
    spread = F.pad(grad - later, (0, 0) * (grad.dim() - 1 - dim) + (0, 1))
    spread.narrow(dim, 1, length).add_(later)
    return spread


def described(window: Window) -> Float[Tensor, "B Q r c C"]:
    """The descriptors at a window's WINDOW x WINDOW places, of length 1; zero outside of the frame."""
    between = _between(window.cells, window.part_xy)
    # Interpolation shortens vectors where neighbours differ: there a perfect match would score less than a poor one.
    return between * (between.square().sum(dim=-1, keepdim=True) + _EPS).rsqrt()


def template_of(places: Float[Tensor, "B Q r c C"]) -> Float[Tensor, "B Q n C"]:
    """The PATCH x PATCH descriptors around the centre of a window of `described` places."""
    middle, reach = WINDOW // 2, APART * (PATCH // 2)
    axis = slice(middle - reach, middle + reach + 1, APART)
    return places[:, :, axis, axis].flatten(2, 3)


def correlate(places: Float[Tensor, "B Q r c C"], templates: Float[Tensor, "B Q K C"]) -> Float[Tensor, "B Q n K"]:
    """Cosines of each of a window's `described` places with each of a point's K template vectors."""
    return torch.matmul(places.flatten(2, 3), templates.transpose(2, 3))


def window_offsets(device: torch.device, dtype: torch.dtype) -> Float[Tensor, "n 2"]:
    """Offsets (x, y) in cells of a window's places from its centre."""
    axis = torch.arange(-REACH, REACH + 1, device=device, dtype=dtype)
    return torch.cartesian_prod(axis, axis).flip(-1)


def _neighbours(device: torch.device) -> Bool[Tensor, "n n"]:
    """Which of a window's places are beside which, or the same."""
    offsets = window_offsets(device, torch.float32)
    return (offsets[:, None] - offsets).abs().amax(dim=-1) <= 1


class Match(NamedTuple):
    """Where one level finds the points.

    Attributes:
        offset_xy: Expected offset from the window's centre, in cells.
        hidden: For the tokens.
        logits: Scores of the window's places.
    """

    offset_xy: Float[Tensor, "B Q 2"]
    hidden: Float[Tensor, "B Q F"]
    logits: Float[Tensor, "B Q n"]


class LevelMatcher(nn.Module):
    """Read a level's cost volumes: of the first template of a point, and of its slowly updated one.

    At first the score of a place is the mean cosine of its PATCH x PATCH descriptors with the templates', each with the
    one at its own place; weights and an MLP learn what else patterns in the costs mean.
    """

    hidden_width = _HIDDEN + 5

    def __init__(self) -> None:
        super().__init__()
        num_costs = WINDOW**2 * 2 * PATCH**2
        self.scores = nn.Linear(num_costs, WINDOW**2)
        self.costs_in = nn.Linear(num_costs, _HIDDEN)
        self.costs_between = nn.Linear(_HIDDEN, _HIDDEN)
        self.scores_out = nn.Linear(_HIDDEN, WINDOW**2)
        normal_(self.costs_in.weight, 3 * num_costs**-0.5)
        set_(self.scores.weight, lambda: _INITIAL_SHARPNESS * _aligned())
        for parameter in (self.scores.bias, self.scores_out.weight, self.scores_out.bias):
            nn.init.zeros_(parameter)

    def forward(self, costs: Float[Tensor, "B Q n K"], prior: Float[Tensor, " n"] | None = None) -> Match:
        """Match K template vectors per point, those of the first template before those of the second."""
        middle = PATCH**2 // 2
        flat = costs.flatten(2).to(self.costs_in.weight.dtype)
        hidden = F.gelu(self.costs_in(flat), approximate="tanh")
        hidden = F.gelu(self.costs_between(hidden), approximate="tanh")
        logits = self.scores(flat) + self.scores_out(hidden)
        if prior is not None:
            logits = logits + prior
        offsets = window_offsets(logits.device, logits.dtype)
        # Of the best place and its neighbours alone, as in TAPIR: a second place must not pull.
        is_near = _neighbours(logits.device)[logits.argmax(dim=-1)]
        offset_xy = logits.masked_fill(~is_near, -torch.inf).softmax(dim=-1) @ offsets
        here = costs[:, :, WINDOW**2 // 2, [middle, middle + PATCH**2]]
        best = logits.detach().amax(dim=-1, keepdim=True) / _INITIAL_SHARPNESS
        read = torch.cat([hidden, here, best, offset_xy.detach() / REACH], dim=-1)
        return Match(offset_xy, read, logits)


def _aligned() -> Float[Tensor, "n nK"]:
    """Weights that average, for each place, the costs of its neighbours with the template's vectors at their places."""
    weights = torch.zeros(WINDOW, WINDOW, WINDOW, WINDOW, 2, PATCH, PATCH)
    margin = PATCH // 2
    for y in range(WINDOW):
        for x in range(WINDOW):
            for row in range(PATCH):
                for column in range(PATCH):
                    there = (y + APART * (row - margin), x + APART * (column - margin))
                    if min(there) >= 0 and max(there) < WINDOW:
                        weights[y, x, there[0], there[1], :, row, column] = 1
            weights[y, x] /= weights[y, x].sum()
    return weights.flatten(0, 1).flatten(1)
