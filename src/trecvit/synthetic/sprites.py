"""Sprites, and the supply of surfaces and pictures that sprites and backgrounds are drawn from.

A `Sprite` has a texture `[4, h, w]` with colours premultiplied by alpha, so that edges stay clean when it is sampled
between pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from trecvit.draws import Stream, rng
from trecvit.errors import DataError, InputError
from trecvit.synthetic.outlines import outline
from trecvit.synthetic.pictures import LONG_SIDE_PX
from trecvit.synthetic.surfaces import NUM_IRREGULAR, NUM_KINDS, palette, recolour, surface

_Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sprite:
    """A textured shape.

    Attributes:
        texture: Premultiplied RGBA, float32 in [0, 1].
        radius: Distance from the texture's centre to its farthest opaque point, in texture pixels.
        scale: Image pixels per texture pixel at the requested size.
        colour: Mean colour of the opaque part.
    """

    texture: Float[Tensor, "4 h w"]
    radius: float
    scale: float
    colour: Float[np.ndarray, " 3"]

    @property
    def radius_px(self) -> float:
        """`radius` in image pixels, at the requested size."""
        return self.radius * self.scale


_FINEST_PX = 144  # larger sprites are drawn at this size and magnified
_OVERSAMPLING = 4


def _mask(rng: np.random.Generator, kind: str, height: int, width: int) -> tuple[Image.Image, float]:
    """Draw an antialiased shape with a border of one transparent pixel; return its radius about the centre too."""
    fine = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    draw = ImageDraw.Draw(fine)
    half = np.array([width / 2 - 1, height / 2 - 1])
    # Pillow also paints the outline's own pixels: half a fine pixel more on every side.
    shrink = 1 - 0.5 / _OVERSAMPLING / half
    radius = 0.0
    for points, is_filled in outline(rng, kind):
        scaled = points * half
        radius = max(radius, float(np.hypot(scaled[:, 0], scaled[:, 1]).max()))
        corners = (half + 1 + scaled * shrink) * _OVERSAMPLING - 0.5
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=255 if is_filled else 0)
    return fine.reduce(_OVERSAMPLING), radius


def _shade(rng: np.random.Generator, colours: _Array, mask: Image.Image) -> _Array:
    """Shade a flat cut-out: light from one side, a rim."""
    height, width = colours.shape[:2]
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    angle = rng.uniform(0, 2 * math.pi)
    kind = rng.random()
    if kind < 0.35:
        light = 1 + np.float32(rng.uniform(0.1, 0.35)) * (math.cos(angle) * x + math.sin(angle) * y)
        colours = colours * light[..., None]
    elif kind < 0.6:
        distance = (x - 0.4 * math.cos(angle)) ** 2 + (y - 0.4 * math.sin(angle)) ** 2
        colours = colours * (1.2 - np.float32(rng.uniform(0.25, 0.5)) * distance)[..., None]
    if rng.random() < 0.4:
        soft = np.asarray(mask.filter(ImageFilter.BoxBlur(max(1, min(height, width) // 14))), np.float32) / 255
        rim = np.clip((soft - 0.5) * rng.uniform(2, 6), 0, 1)[..., None]
        ink = palette(rng, 1)[0] * rng.choice([0.1, 0.4, 1.3])
        colours = colours * rim + ink * (1 - rim)
    shaded: _Array = np.clip(colours, 0, 1).astype(np.float32)
    return shaded


def premultiplied(colours: Float[np.ndarray, "h w 3"], alpha: Float[np.ndarray, "h w"]) -> Float[Tensor, "4 h w"]:
    """Join colours and alpha, both in [0, 1], into a texture."""
    height, width = alpha.shape
    texture = np.empty((4, height, width), np.float32)
    np.multiply(colours.transpose(2, 0, 1), alpha, out=texture[:3])
    texture[3] = alpha
    return torch.from_numpy(texture)


class Supply:
    """An endless supply of surfaces and sprites, from a bank of procedural surfaces and a pool of pictures.

    The bank is filled on demand. An entry depends on the seed and its number only, not on the order of scenes.

    Args:
        seed: 0 or more.
        pictures: uint8 `[H, W, 3]`, or `[H, W, 4]` for cut-outs.
        picture_share: Share of surfaces taken from pictures, if there are any.
        plain_share: Share of surfaces of one colour.
        surface_px: Side of the surfaces in the bank.
    """

    BANK = 130

    def __init__(
        self, seed: int, pictures: Sequence[NDArray[Any]], *, picture_share: float, plain_share: float, surface_px: int
    ) -> None:
        self.seed = seed
        self.picture_share = picture_share
        self.plain_share = plain_share
        self.surface_px = surface_px
        self._bank: dict[int, Image.Image] = {}
        self._pictures: list[Image.Image] = []
        self._cut_outs: list[Image.Image] = []
        for number, picture in enumerate(pictures):
            self._add_picture(number, np.asarray(picture))

    def _add_picture(self, number: int, picture: NDArray[Any]) -> None:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4) or min(picture.shape) < 1:
            raise InputError(
                f"pictures[{number}]: expected uint8 [H, W, 3] or [H, W, 4], got {picture.dtype} {list(picture.shape)}"
            )
        if min(picture.shape[:2]) < 8:
            raise InputError(f"pictures[{number}]: expected at least 8 x 8 px, got {list(picture.shape[:2])}")
        image = Image.fromarray(np.ascontiguousarray(picture))
        image.thumbnail((LONG_SIDE_PX, LONG_SIDE_PX))
        if picture.shape[2] == 3:
            self._pictures.append(image)
            return
        box = image.getchannel("A").point(lambda value: 255 if value > 127 else 0).getbbox()
        if box is None:
            raise DataError(f"pictures[{number}]: expected an opaque part, got a transparent picture; remove it")
        self._cut_outs.append(image.crop(box))

    def _source(self, rng: np.random.Generator, irregular: bool) -> tuple[Image.Image, float]:
        """Draw a picture or a procedural surface, and the strength of its `recolour`."""
        if self._pictures and rng.random() < self.picture_share:
            return self._pictures[int(rng.integers(len(self._pictures)))], 0.15 if rng.random() < 0.7 else 0.6
        number = int(rng.integers(self.BANK))
        if irregular and number % NUM_KINDS >= NUM_IRREGULAR:
            number -= NUM_IRREGULAR
        return self._procedural(number), 1.0

    def _procedural(self, number: int) -> Image.Image:
        if number not in self._bank:
            colours = surface(rng(self.seed, Stream.SURFACE, number), self.surface_px, number)
            self._bank[number] = Image.fromarray((colours * 255).astype(np.uint8))
        return self._bank[number]

    def surface(
        self,
        rng: np.random.Generator,
        height: int,
        width: int,
        *,
        zoom: tuple[float, float] = (0.2, 0.9),
        irregular: bool = False,
    ) -> Float[np.ndarray, "h w 3"]:
        """Cut a random piece out of a random source, float32 in [0, 1].

        Args:
            rng: Source of randomness.
            height: In pixels.
            width: In pixels.
            zoom: Range of the piece's size, relative to the largest that fits into the source.
            irregular: Exclude periodic patterns, whose motion is ambiguous.
        """
        if not irregular and self.plain_share and rng.random() < self.plain_share:
            return np.full((height, width, 3), rng.uniform(0.05, 0.95, 3), np.float32)
        source, strength = self._source(rng, irregular)
        part = min(source.width / width, source.height / height) * rng.uniform(*zoom)
        reach_x, reach_y = width * part, height * part
        left, top = rng.uniform(0, source.width - reach_x), rng.uniform(0, source.height - reach_y)
        box = (left, top, min(left + reach_x, source.width), min(top + reach_y, source.height))
        piece = source.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        colours = np.asarray(piece, np.float32) / np.float32(255)
        if rng.random() < 0.5:
            colours = colours[:, ::-1]
        return recolour(rng, colours, strength)

    def background(
        self, rng: np.random.Generator, height: int, width: int, *, irregular: bool = False
    ) -> Float[Tensor, "4 h w"]:
        """Draw an opaque texture, see `surface`; an irregular one has some contrast."""
        colours = self.surface(rng, height, width, zoom=(0.45, 1.0), irregular=irregular)
        spread = float(colours.std(axis=(0, 1)).max())
        if irregular and spread < 0.12:  # without contrast its motion would be invisible
            mean = colours.mean(axis=(0, 1))
            colours = np.clip(mean + (colours - mean) * np.float32(min(0.12 / max(spread, 1e-3), 5.0)), 0, 1)
        return premultiplied(colours, np.ones((height, width), np.float32))

    def sprite(
        self,
        rng: np.random.Generator,
        kind: str,
        size_px: tuple[float, float],
        *,
        unlike: Sequence[NDArray[Any]] = (),
        cut_outs: bool = False,
    ) -> Sprite:
        """Draw a shape with a surface.

        Args:
            rng: Source of randomness.
            kind: One of `SHAPES` or `TURNABLE`.
            size_px: Height and width of its box, in image pixels.
            unlike: Mean colours `[3]` to stand out from.
            cut_outs: Whether a cut-out picture may replace the shape, if there are any.
        """
        if cut_outs and self._cut_outs and rng.random() < max(self.picture_share, 0.5):
            return self._cut_out(rng, max(size_px))
        scale = max(1.0, max(size_px) / _FINEST_PX)
        height, width = (max(8, round(side / scale) + 2) for side in size_px)
        mask, radius = _mask(rng, kind, height, width)
        alpha = np.asarray(mask, np.float32) / np.float32(255)
        for attempt in range(3):
            colours = self.surface(rng, height, width)
            colour = colours.mean(axis=(0, 1))
            if attempt == 2:
                colours = _stand_out(colours, colour, unlike)
            elif any(np.abs(colour - other).sum() < 0.6 for other in unlike):
                continue
            break
        shaded = _shade(rng, colours, mask)
        return Sprite(texture=premultiplied(shaded, alpha), radius=radius, scale=scale, colour=shaded.mean(axis=(0, 1)))

    def _cut_out(self, rng: np.random.Generator, diameter_px: float) -> Sprite:
        picture = self._cut_outs[int(rng.integers(len(self._cut_outs)))]
        shrink = min(diameter_px, _FINEST_PX) / max(picture.size)
        size = (max(8, round(picture.width * shrink)), max(8, round(picture.height * shrink)))
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR), np.float32) / np.float32(255)
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        pixels = np.pad(pixels, ((1, 1), (1, 1), (0, 0)))
        alpha = pixels[..., 3]
        height, width = alpha.shape
        rows, columns = np.nonzero(alpha > 0.5)
        radius = float(np.hypot(rows - (height - 1) / 2, columns - (width - 1) / 2).max()) if len(rows) else width / 2
        colours = recolour(rng, pixels[..., :3], 0.15)
        colour = (colours * alpha[..., None]).sum(axis=(0, 1)) / max(float(alpha.sum()), 1.0)
        return Sprite(
            texture=premultiplied(colours, alpha), radius=radius, scale=diameter_px / max(size), colour=colour
        )


def _stand_out(colours: _Array, colour: NDArray[Any], unlike: Sequence[NDArray[Any]]) -> _Array:
    """Shift the brightness as far from that of `unlike` as possible."""
    brightness = np.array([float(np.mean(other)) for other in unlike])
    goal = max(np.linspace(0.1, 0.9, 9), key=lambda level: float(np.abs(brightness - level).min()))
    shifted: _Array = np.clip((colours - colour) * 0.8 + np.float32(goal), 0, 1)
    return shifted


def shatter(rng: np.random.Generator, sprite: Sprite, pieces: int) -> Iterator[tuple[Sprite, NDArray[np.float64]]]:
    """Break a sprite into pieces.

    Args:
        rng: Source of randomness.
        sprite: The whole.
        pieces: Largest number; tiny pieces are left out.

    Yields:
        Each piece, and the offset of its centre from the sprite's centre, (x, y) in texture pixels.
    """
    _, height, width = sprite.texture.shape
    alpha = sprite.texture[3].numpy()
    x, y = np.arange(width, dtype=np.float64)[None, :], np.arange(height, dtype=np.float64)[:, None]
    angle = (np.arange(pieces) + rng.uniform(-0.3, 0.3, pieces)) * (2 * math.pi / pieces) + rng.uniform(0, 2 * math.pi)
    reach = sprite.radius * rng.uniform(0.35, 0.7, pieces)
    seeds = np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach[:, None] + [(width - 1) / 2, (height - 1) / 2]
    nearest = np.argmin((x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2, axis=-1)
    for piece in range(pieces):
        rows, columns = np.nonzero((nearest == piece) & (alpha > 0.5))
        if len(rows) < 12:
            continue
        top, bottom = max(int(rows.min()) - 1, 0), int(rows.max()) + 2
        left, right = max(int(columns.min()) - 1, 0), int(columns.max()) + 2
        mask = torch.from_numpy((nearest == piece)[top:bottom, left:right].astype(np.float32))
        texture = torch.nn.functional.pad(sprite.texture[:, top:bottom, left:right] * mask, (1, 1, 1, 1))
        centre = np.array([left - 1 + (texture.shape[2] - 1) / 2, top - 1 + (texture.shape[1] - 1) / 2])
        radius = 0.5 * math.hypot(right - left, bottom - top)
        part = Sprite(texture=texture, radius=radius, scale=sprite.scale, colour=sprite.colour)
        yield part, centre - [(width - 1) / 2, (height - 1) / 2]
