"""What things in the synthetic world look like: surfaces, outlines, and pictures to cut them from.

Surfaces are RGB arrays `[h, w, 3]`, float32 in [0, 1]. What a scene shows is a `Sprite`: a texture `[4, h, w]` whose
colours are already multiplied by its alpha, so that edges stay clean when it is sampled between pixels.

Everything random here takes a `numpy.random.Generator` and depends on nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, UnidentifiedImageError
from torch import Tensor

from trecvit.data.folders import is_hidden
from trecvit.errors import DataError, InputError, MissingPackageError

_Array = NDArray[np.float32]

_LONG_SIDE_PX = 512  # pictures are stored no larger: a pool of them lives in every worker of a loader
_PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_PHOTOGRAPHS: dict[str, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "cell.png",
        "clock_motion.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "hubble_deep_field.jpg",
        "moon.png",
        "motorcycle_left.png",
        "text.png",
    ),
    "held_out": ("chelsea.png", "gravel.png", "ihc.png", "page.png", "retina.jpg", "rocket.jpg"),
}


# ---- pictures ------------------------------------------------------------------------------------------------------


def photographs(split: Literal["train", "held_out"]) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """The photographs that come inside the scikit-image wheel; nothing is downloaded.

    Args:
        split: The two splits share no photograph, by name and for good, so that a model trained with the one can be
            tested on pictures it has never seen.

    Returns:
        Pictures with a long side of at most 512 px.

    Raises:
        MissingPackageError: scikit-image is not installed.
        DataError: This scikit-image does not bring one of the photographs.
    """
    if split not in _PHOTOGRAPHS:
        raise InputError(f"split must be one of {sorted(_PHOTOGRAPHS)}, not {split!r}")
    try:
        import skimage
    except ImportError as error:
        raise MissingPackageError("scikit-image", needed_for="photographs()", extra="photos") from error
    folder = Path(skimage.__file__).parent / "data"
    return [_read_picture(folder / name)[..., :3] for name in _PHOTOGRAPHS[split]]


def load_pictures(folder: str | Path) -> list[UInt8[np.ndarray, "_ _ _"]]:
    """Read every picture of a folder, in the order of their names.

    Args:
        folder: Files with other endings than those of pictures are passed over; folders inside are not entered.

    Returns:
        Arrays `[H, W, 3]`, or `[H, W, 4]` where a picture has transparent parts: those become cut-outs. The long side
        is at most 512 px.

    Raises:
        DataError: The folder does not exist, holds no picture, or a picture cannot be read; the message names it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of pictures, and there is no such folder")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in _PICTURE_ENDINGS and not is_hidden(path.name)
    )
    if not paths:
        raise DataError(f"{folder}: expected pictures ({' '.join(_PICTURE_ENDINGS)}), and there is none")
    return [_read_picture(path) for path in paths]


def _read_picture(path: Path) -> UInt8[np.ndarray, "h w c"]:
    try:
        with Image.open(path) as image:
            see_through = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            picture = image.convert("RGBA" if see_through else "RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: this picture cannot be read ({error}). Replace or remove it") from error
    picture.thumbnail((_LONG_SIDE_PX, _LONG_SIDE_PX))
    pixels = np.array(picture)
    if see_through and pixels[..., 3].min() >= 250:
        return pixels[..., :3].copy()
    return pixels


# ---- procedural surfaces -------------------------------------------------------------------------------------------


def palette(rng: np.random.Generator, colours: int) -> _Array:
    """Colours `[colours, 3]` that go together: one family of hues, with light and dark among them."""
    hue, spread = rng.uniform(0, 1), rng.choice([0.05, 0.15, 0.5])
    hues = hue + rng.uniform(-spread, spread, colours)
    saturation = rng.uniform(0, rng.choice([0.25, 0.6, 1.0]), colours)
    value = rng.permutation(np.linspace(rng.uniform(0.05, 0.45), rng.uniform(0.6, 1.0), colours))
    wheel = np.clip(np.abs((hues[:, None] * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    mixed: _Array = (value[:, None] * (1 - saturation[:, None] * (1 - wheel))).astype(np.float32)
    return mixed


def _paint(field: NDArray[Any], colours: _Array) -> _Array:
    """Colour a field in [0, 1] with a ramp through the colours."""
    stops = np.linspace(0, 255, len(colours))
    ramp = np.stack([np.interp(np.arange(256), stops, colours[:, c]) for c in range(3)], axis=1).astype(np.float32)
    painted: _Array = ramp[(np.clip(field, 0, 1) * 255).astype(np.uint8)]
    return painted


def _axes(size: int) -> tuple[_Array, _Array]:
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return line[None, :], line[:, None]


def _noise(rng: np.random.Generator, size: int, cells: int, octaves: int = 1) -> _Array:
    """Smooth noise `[size, size]` in [0, 1]; `cells` bumps along a side in the coarsest octave."""
    total = np.zeros((size, size), np.float32)
    for octave in range(octaves):
        side = cells * 2**octave + 1
        if side > size // 3:  # finer would flicker when the texture is shrunk
            break
        grid = rng.standard_normal((side, side), dtype=np.float32)
        total += np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)) * 0.55**octave
    low, high = float(total.min()), float(total.max())
    scaled: _Array = (total - low) / max(high - low, 1e-6)
    return scaled


def _clouds(rng: np.random.Generator, size: int) -> _Array:
    return _paint(_noise(rng, size, int(rng.integers(2, 9)), int(rng.integers(1, 6))), palette(rng, 4))


def _nature(rng: np.random.Generator, size: int) -> _Array:
    """Noise with the spectrum of photographs (amplitude falls with frequency), its colours nearly in step."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequency[0, 0] = 1
    fall = np.exp(-((frequency / 0.3) ** 2)) / frequency ** rng.uniform(1.0, 1.7)
    fall[0, 0] = 0
    planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, size, size))) * fall, s=(size, size))
    planes /= planes.std() + 1e-9
    planes[1:] = planes[:1] + rng.uniform(0.1, 0.6) * planes[1:]
    tint = palette(rng, 1)[0] * 0.6 + 0.2
    surface: _Array = np.clip(tint + 0.2 * planes.transpose(1, 2, 0), 0, 1).astype(np.float32)
    return surface


def _waves(rng: np.random.Generator, size: int) -> _Array:
    angle, waves = rng.uniform(0, math.pi), rng.uniform(2, size / 14)
    return math.cos(angle) * _axes(size)[0] * waves * math.pi + math.sin(angle) * _axes(size)[1] * waves * math.pi


def _stripes(rng: np.random.Generator, size: int) -> _Array:
    phase = _waves(rng, size) + rng.choice([0, 0, 2, 6]) * _noise(rng, size, 3)
    return _paint(0.5 + 0.5 * np.tanh(rng.uniform(0.5, 4) * np.sin(phase)), palette(rng, int(rng.integers(2, 4))))


def _plaid(rng: np.random.Generator, size: int) -> _Array:
    across = 0.5 + 0.5 * np.tanh(rng.uniform(1, 4) * np.sin(_axes(size)[0] * rng.uniform(6, size / 6)))
    down = 0.5 + 0.5 * np.tanh(rng.uniform(1, 4) * np.sin(_axes(size)[1] * rng.uniform(6, size / 6)))
    return _paint(rng.uniform(0.3, 0.7) * (across + down), palette(rng, 3))


def _checks(rng: np.random.Generator, size: int) -> _Array:
    one, two = _waves(rng, size), _waves(rng, size)
    return _paint(0.5 + 0.5 * np.tanh(rng.uniform(2, 6) * np.sin(one) * np.sin(two)), palette(rng, 2))


def _rings(rng: np.random.Generator, size: int) -> _Array:
    x, y = _axes(size)
    radius = np.hypot(x - rng.uniform(-1.5, 1.5), (y - rng.uniform(-1.5, 1.5)) * rng.uniform(0.3, 1))
    field = np.sin(radius * rng.uniform(8, size / 7) + rng.uniform(1, 8) * _noise(rng, size, 3, 2))
    return _paint(0.5 + 0.5 * field, palette(rng, 3))


def _bricks(rng: np.random.Generator, size: int) -> _Array:
    x, y = np.meshgrid(np.arange(size), np.arange(size))
    height = int(rng.integers(size // 16, size // 5))
    width = int(height * rng.uniform(1, 2.6))
    row = y // height
    column = (x + row * (width // 2)) // width
    tones = rng.uniform(0.35, 0.95, 4096)[(row * 61 + column * 7) % 4096]
    joint = max(1, height // 8)
    mortar = ((y % height) < joint) | (((x + row * (width // 2)) % width) < joint)
    colours = palette(rng, 2)
    surface = np.where(mortar[..., None], colours[0], colours[1] * tones[..., None].astype(np.float32))
    grain: _Array = surface * (0.75 + 0.35 * _noise(rng, size, 12, 2)[..., None])
    return grain


def _cells(rng: np.random.Generator, size: int) -> _Array:
    count = int(rng.integers(8, 60))
    x, y = _axes(size)
    first, second = np.full((2, size, size), 9.0, np.float32)
    nearest = np.zeros((size, size), np.int64)
    for cell, (cx, cy) in enumerate(rng.uniform(-1.1, 1.1, (count, 2)).astype(np.float32)):
        distance = np.hypot(x - cx, y - cy)
        closer = distance < first
        second = np.where(closer, first, np.minimum(second, distance))
        first = np.where(closer, distance, first)
        nearest[closer] = cell
    surface = palette(rng, 5)[rng.integers(0, 5, count)][nearest] * rng.uniform(0.8, 1.1, (count, 1))[nearest]
    edge = np.clip((second - first) * rng.choice([12, 40]), 0, 1)[..., None] if rng.random() < 0.6 else 1.0
    joined: _Array = (surface * edge).astype(np.float32)
    return joined


def _plain(rng: np.random.Generator, size: int) -> _Array:
    x, y = _axes(size)
    slope = 0.5 + 0.35 * (rng.uniform(-1, 1) * x + rng.uniform(-1, 1) * y)
    return _paint(slope + rng.uniform(0, 0.15) * (_noise(rng, size, 10, 3) - 0.5), palette(rng, 2))


def _spots(rng: np.random.Generator, size: int) -> _Array:
    colours = palette(rng, 4)
    canvas = Image.fromarray((_paint(_noise(rng, size * 2, 3), colours[:2]) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    radius = rng.uniform(0.02, 0.09) * 2 * size
    for x, y, r in rng.uniform(0, 1, (int(rng.integers(15, 120)), 3)):
        reach = radius * (0.5 + r)
        box = (x * 2 * size - reach, y * 2 * size - reach, x * 2 * size + reach, y * 2 * size + reach)
        draw.ellipse(box, fill=_rgb(colours[2 + int(r * 2)]))
    return np.asarray(canvas.reduce(2), np.float32) / np.float32(255)


def _clutter(rng: np.random.Generator, size: int) -> _Array:
    """Overlapping shapes of all kinds and colours, as on a full table."""
    canvas = Image.fromarray((_clouds(rng, size * 2) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    colours = np.concatenate([palette(rng, 4), palette(rng, 4)])
    for _ in range(int(rng.integers(8, 40))):
        centre, reach = rng.uniform(0, 2 * size, 2), rng.uniform(0.04, 0.3) * size
        fill = _rgb(colours[int(rng.integers(8))] * rng.uniform(0.6, 1))
        for points, inside in outline(rng, str(rng.choice(SHAPES))):
            turned = (points * rng.uniform(0.4, 1, 2)) @ _turn(rng.uniform(0, 2 * math.pi)).T
            draw.polygon([(float(x), float(y)) for x, y in turned * reach + centre], fill=fill if inside else (0, 0, 0))
    return np.asarray(canvas.reduce(2), np.float32) / np.float32(255)


def _rgb(colour: NDArray[Any]) -> tuple[int, int, int]:
    red, green, blue = (int(255 * min(max(float(part), 0.0), 1.0)) for part in colour)
    return red, green, blue


_IRREGULAR = (_clouds, _nature, _clutter, _cells, _nature, _spots, _clutter)
_REGULAR = (_stripes, _plain, _plaid, _bricks, _checks, _rings)
_SURFACES: tuple[Callable[[np.random.Generator, int], _Array], ...] = (*_IRREGULAR, *_REGULAR)


def surface(rng: np.random.Generator, size: int, kind: int | None = None) -> Float[np.ndarray, "s s 3"]:
    """Draw a procedural surface, float32 in [0, 1].

    Args:
        rng: Where every choice comes from.
        size: Side in pixels, at least 64.
        kind: Which of the kinds, counted round; drawn when None.
    """
    if size < 64:
        raise InputError(f"a surface's side must be at least 64 px, not {size}")
    kind = int(rng.integers(len(_SURFACES))) if kind is None else kind
    return np.clip(_SURFACES[kind % len(_SURFACES)](rng, size), 0, 1).astype(np.float32)


def recolour(
    rng: np.random.Generator, colours: Float[np.ndarray, "h w 3"], strength: float
) -> Float[np.ndarray, "h w 3"]:
    """Turn the hue, change the saturation and the brightness: strength 1 for anything, 0.2 for another lamp."""
    turn = strength * rng.uniform(-math.pi, math.pi)
    cos, sin, third = math.cos(turn), math.sin(turn), math.sqrt(1 / 3)
    hue = cos * np.eye(3) + (1 - cos) / 3 + sin * third * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    colour_kept = 1 - strength * rng.uniform(-0.3, 0.8)
    mix = (colour_kept * hue + (1 - colour_kept) / 3) * (1 + strength * rng.uniform(-0.45, 0.35))
    shift = strength * rng.uniform(-0.15, 0.2)
    changed: _Array = np.clip(colours @ mix.T.astype(np.float32) + np.float32(shift), 0, 1)
    return changed


# ---- outlines ------------------------------------------------------------------------------------------------------

SHAPES = ("ellipse", "box", "round_box", "polygon", "shard", "star", "blob", "ell", "arrow", "letter", "ring", "cross")
# Seen turned by any angle short of a full turn, these do not look as before.
TURNABLE = ("shard", "ell", "arrow", "letter", "blob", "drop")

_LETTERS: tuple[tuple[tuple[float, float], ...], ...] = (
    ((0, 0), (5, 0), (5, 1), (1.2, 1), (1.2, 2), (4, 2), (4, 3), (1.2, 3), (1.2, 5), (0, 5)),  # F
    ((0, 0), (5, 0), (5, 1.3), (3.2, 1.3), (3.2, 5), (1.8, 5), (1.8, 1.3), (0, 1.3)),  # T
    ((0, 0), (4, 0), (4, 3), (1.3, 3), (1.3, 5), (0, 5)),  # P without its eye
    ((0, 0), (4, 0), (4, 1), (1.2, 1), (1.2, 2), (4, 2), (4, 3), (1.2, 3), (1.2, 4), (4, 4), (4, 5), (0, 5)),  # E
    ((0, 0), (1.3, 0), (1.3, 2), (2.7, 2), (2.7, 0), (4, 0), (4, 5), (2.7, 5), (2.7, 3.2), (0, 3.2)),  # 4
    ((0, 0), (1.4, 0), (2.5, 3), (3.6, 0), (5, 0), (3.2, 5), (1.8, 5)),  # V
    ((0, 1.5), (1, 1.5), (1, 0), (2.2, 0), (2.2, 3.8), (4, 3.8), (4, 5), (1, 5), (1, 2.6), (0, 2.6)),  # t
    ((0, 0), (5, 0), (5, 5), (3.8, 5), (3.8, 1.2), (1.2, 1.2), (1.2, 3), (0, 3)),  # a hook
)
_ELL = ((0.0, 0.0), (0.42, 0.0), (0.42, 0.6), (1.0, 0.6), (1.0, 1.0), (0.0, 1.0))
_ARROW = ((0.0, 0.34), (0.55, 0.34), (0.55, 0.0), (1.0, 0.5), (0.55, 1.0), (0.55, 0.66), (0.0, 0.66))
_CROSS = (
    *((0.35, 0.0), (0.65, 0.0), (0.65, 0.35), (1.0, 0.35), (1.0, 0.65), (0.65, 0.65)),
    *((0.65, 1.0), (0.35, 1.0), (0.35, 0.65), (0.0, 0.65), (0.0, 0.35), (0.35, 0.35)),
)


def _turn(angle: float) -> NDArray[np.float64]:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def _round(radius: NDArray[Any] | float, points: int = 40) -> NDArray[np.float64]:
    angle = np.arange(points) * (2 * math.pi / points)
    circle: NDArray[np.float64] = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.reshape(radius, (-1, 1))
    return circle


def _star(rng: np.random.Generator, corners: int, depth: float) -> NDArray[np.float64]:
    radius = np.tile([1.0, depth], corners)
    return _round(radius, 2 * corners) @ _turn(rng.uniform(0, 2 * math.pi)).T


def _blob(rng: np.random.Generator) -> NDArray[np.float64]:
    angle = np.arange(48) * (2 * math.pi / 48)
    radius = np.ones(48)
    for wave in range(1, 5):
        radius += rng.uniform(0.12, 0.36) / wave**0.7 * np.cos(wave * angle + rng.uniform(0, 2 * math.pi))
    return _round(np.maximum(radius, 0.35), 48)


def _shard(rng: np.random.Generator) -> NDArray[np.float64]:
    corners = int(rng.integers(3, 7))
    angle = (np.arange(corners) + rng.uniform(-0.35, 0.35, corners)) * (2 * math.pi / corners)
    radius = rng.uniform(0.45, 1, corners)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius[:, None]


def _round_box(rng: np.random.Generator) -> NDArray[np.float64]:
    power = rng.uniform(0.25, 0.7)
    circle = _round(1.0, 48)
    rounded: NDArray[np.float64] = np.sign(circle) * np.abs(circle) ** power
    return rounded


def outline(rng: np.random.Generator, kind: str) -> list[tuple[NDArray[np.float64], bool]]:
    """The polygons of a shape that fills the square from -1 to 1.

    Args:
        rng: Where the details come from.
        kind: One of `SHAPES` or `TURNABLE`.

    Returns:
        Polygons `[points, 2]` as (x, y) in the order of painting; the flag says filled (True) or cut out (False).
    """
    makers: dict[str, Callable[[], NDArray[np.float64]]] = {
        "ellipse": lambda: _round(1.0),
        "ring": lambda: _round(1.0),
        "box": lambda: np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]]),
        "round_box": lambda: _round_box(rng),
        "polygon": lambda: _round(1.0, int(rng.integers(3, 9))) @ _turn(rng.uniform(0, 2 * math.pi)).T,
        "shard": lambda: _shard(rng),
        "star": lambda: _star(rng, int(rng.integers(4, 9)), rng.uniform(0.4, 0.7)),
        "blob": lambda: _blob(rng),
        "ell": lambda: np.array(_ELL),
        "arrow": lambda: np.array(_ARROW),
        "cross": lambda: np.array(_CROSS),
        "letter": lambda: np.array(_LETTERS[int(rng.integers(len(_LETTERS)))]),
        "drop": lambda: np.concatenate([_round(1.0, 40)[5:36], [[1.9, 0.0]]]),
    }
    points = makers[kind]()
    low, high = points.min(axis=0), points.max(axis=0)
    polygons = [((points - low) / (high - low) * 2 - 1, True)]
    if kind == "ring":
        polygons.append((_round(rng.uniform(0.35, 0.65)), False))
    return polygons


# ---- sprites -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Sprite:
    """Something to show.

    Attributes:
        texture: Premultiplied RGBA, float32 in [0, 1].
        radius: From the texture's centre to its farthest opaque point, in texture pixels.
        scale: Image pixels per texture pixel at the size that was asked for.
        colour: Mean colour of the opaque part.
    """

    texture: Float[Tensor, "4 h w"]
    radius: float
    scale: float
    colour: Float[np.ndarray, " 3"]

    @property
    def radius_px(self) -> float:
        """`radius` in image pixels, at the size that was asked for."""
        return self.radius * self.scale


_FINEST_PX = 144  # larger things are drawn at this size and magnified
_OVERSAMPLING = 4


def _mask(rng: np.random.Generator, kind: str, height: int, width: int) -> tuple[Image.Image, float]:
    """An antialiased shape that leaves one transparent pixel all around, and its radius about the centre."""
    fine = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    draw = ImageDraw.Draw(fine)
    half = np.array([width / 2 - 1, height / 2 - 1])
    # Pillow counts pixel centres and paints the outline's own pixels too: half a fine pixel more on every side.
    shrink = 1 - 0.5 / _OVERSAMPLING / half
    radius = 0.0
    for points, inside in outline(rng, kind):
        scaled = points * half
        radius = max(radius, float(np.hypot(scaled[:, 0], scaled[:, 1]).max()))
        corners = (half + 1 + scaled * shrink) * _OVERSAMPLING - 0.5
        draw.polygon([(float(x), float(y)) for x, y in corners], fill=255 if inside else 0)
    return fine.reduce(_OVERSAMPLING), radius


def _shade(rng: np.random.Generator, colours: _Array, mask: Image.Image) -> _Array:
    """Make a flat cut-out look like a thing: a light from one side, a rim."""
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
    """Surfaces and sprites without end, from a bank of procedural surfaces and a pool of pictures.

    The bank is filled as its entries are first asked for. An entry depends on the seed and its number only, so the
    order in which scenes are made does not matter.

    Args:
        seed: At least 0.
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
            self._take(number, np.asarray(picture))

    def _take(self, number: int, picture: NDArray[Any]) -> None:
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4) or min(picture.shape) < 1:
            raise InputError(
                f"pictures[{number}] must be uint8 [H, W, 3] or [H, W, 4], not {picture.dtype} {list(picture.shape)}"
            )
        if min(picture.shape[:2]) < 8:
            raise InputError(f"pictures[{number}] must be at least 8 px high and wide, not {list(picture.shape[:2])}")
        image = Image.fromarray(np.ascontiguousarray(picture))
        image.thumbnail((_LONG_SIDE_PX, _LONG_SIDE_PX))
        if picture.shape[2] == 3:
            self._pictures.append(image)
            return
        box = image.getchannel("A").point(lambda value: 255 if value > 127 else 0).getbbox()
        if box is None:
            raise DataError(f"pictures[{number}] is transparent everywhere: nothing of it could be seen. Remove it")
        self._cut_outs.append(image.crop(box))

    def _source(self, rng: np.random.Generator, irregular: bool) -> tuple[Image.Image, float]:
        """A picture or a procedural surface, and how freely its colours may be changed."""
        if self._pictures and rng.random() < self.picture_share:
            return self._pictures[int(rng.integers(len(self._pictures)))], 0.15 if rng.random() < 0.7 else 0.6
        number = int(rng.integers(self.BANK))
        if irregular and number % len(_SURFACES) >= len(_IRREGULAR):
            number -= len(_IRREGULAR)
        if number not in self._bank:
            made = surface(np.random.default_rng([self.seed, 1, number]), self.surface_px, number)
            self._bank[number] = Image.fromarray((made * 255).astype(np.uint8))
        return self._bank[number], 1.0

    def surface(
        self,
        rng: np.random.Generator,
        height: int,
        width: int,
        *,
        zoom: tuple[float, float] = (0.2, 0.9),
        irregular: bool = False,
    ) -> Float[np.ndarray, "h w 3"]:
        """A random piece of a random source, float32 in [0, 1].

        Args:
            rng: Where every choice comes from.
            height: In pixels.
            width: In pixels.
            zoom: The piece's part of what fits into its source, drawn from this range.
            irregular: Nothing that repeats: shifted by its period, a pattern looks as if it moved the other way.
        """
        if not irregular and self.plain_share and rng.random() < self.plain_share:
            return np.full((height, width, 3), rng.uniform(0.05, 0.95, 3), np.float32)
        source, freedom = self._source(rng, irregular)
        part = min(source.width / width, source.height / height) * rng.uniform(*zoom)
        reach_x, reach_y = width * part, height * part
        left, top = rng.uniform(0, source.width - reach_x), rng.uniform(0, source.height - reach_y)
        box = (left, top, min(left + reach_x, source.width), min(top + reach_y, source.height))
        piece = source.resize((width, height), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
        colours = np.asarray(piece, np.float32) / np.float32(255)
        if rng.random() < 0.5:
            colours = colours[:, ::-1]
        return recolour(rng, colours, freedom)

    def background(
        self, rng: np.random.Generator, height: int, width: int, *, irregular: bool = False
    ) -> Float[Tensor, "4 h w"]:
        """An opaque texture; see `surface`. If it is to be irregular, it also has some contrast."""
        colours = self.surface(rng, height, width, zoom=(0.45, 1.0), irregular=irregular)
        spread = float(colours.std(axis=(0, 1)).max())
        if irregular and spread < 0.12:  # on an empty wall nobody could see it move
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
        """A thing with a surface of its own.

        Args:
            rng: Where every choice comes from.
            kind: One of `SHAPES` or `TURNABLE`.
            size_px: Height and width of its box, in image pixels.
            unlike: Mean colours `[3]` it must stand out from.
            cut_outs: Whether a cut-out picture may take the place of the shape, if there are any.
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
    """Shift the brightness as far from the others' as possible."""
    others = np.array([float(np.mean(other)) for other in unlike])
    goal = max(np.linspace(0.1, 0.9, 9), key=lambda level: float(np.abs(others - level).min()))
    shifted: _Array = np.clip((colours - colour) * 0.8 + np.float32(goal), 0, 1)
    return shifted


def shatter(rng: np.random.Generator, sprite: Sprite, pieces: int) -> Iterator[tuple[Sprite, NDArray[np.float64]]]:
    """Break a sprite into pieces.

    Args:
        rng: Where the cracks come from.
        sprite: What to break.
        pieces: How many at most; a piece that would be all but invisible is left out.

    Yields:
        Each piece, and where its texture's centre lies from the sprite's centre, (x, y) in texture pixels.
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
