"""Drawing of predictions and points on frames, readable from thumbnails to full HD."""

from __future__ import annotations

import colorsys
import math
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from trecvit.errors import InputError
from trecvit.video.frames import MAX_SIDE_PX, Image, check_short_side, scaled_size

_Font: TypeAlias = PIL.ImageFont.FreeTypeFont | PIL.ImageFont.ImageFont
_Colour: TypeAlias = tuple[int, int, int, int]

_PANEL: _Colour = (13, 17, 23, 184)
_TRACK: _Colour = (255, 255, 255, 38)
_FIRST_BAR: _Colour = (56, 189, 248, 255)
_OTHER_BAR: _Colour = (125, 143, 166, 255)
_BRIGHT: _Colour = (255, 255, 255, 255)
_MUTED: _Colour = (196, 205, 216, 255)
_RIM: _Colour = (13, 17, 23, 200)
_CLEAR: _Colour = (0, 0, 0, 0)
# Relative opacity of a trail where its point was hidden.
_HIDDEN_SHARE = 0.35
# Opacity of a point of certainty 0.
_UNCERTAIN_SHARE = 0.25
# Beyond any picture; farther points would overflow Pillow's coordinates.
_FARTHEST_PX = 10 * MAX_SIDE_PX

# Smaller text is illegible in any picture.
_MIN_TEXT_PX = 8
# Supersampling, since Pillow's shapes are not antialiased.
_SMOOTHING = 2
_TILE_PX = 64  # side of the tiles in which a picture is painted
_ELLIPSIS = "…"
_DASHES = str.maketrans("‐‑‒–—", "-----")


class _Layout(NamedTuple):
    """Measures of the panel in pixels, derived from the size of the picture."""

    text_px: int
    margin_px: int
    padding_px: int
    row_px: int
    bar_px: int
    width_px: int

    @classmethod
    def of(cls, height_px: int, width_px: int) -> _Layout:
        # Not proportional: small pictures need relatively larger letters.
        text_px = max(_MIN_TEXT_PX, round(3 + min(height_px, width_px) / 29))
        margin_px = max(2, text_px // 2)
        return cls(
            text_px=text_px,
            margin_px=margin_px,
            padding_px=max(3, round(text_px * 0.7)),
            row_px=round(text_px * 1.85),
            bar_px=max(2, round(text_px * 0.26)),
            # A part of a wide picture, the full width of a narrow one.
            width_px=min(width_px - 2 * margin_px, text_px * 22),
        )


def draw_predictions(image: Image, rows: Sequence[tuple[str, float]], *, title: str = "", footer: str = "") -> Image:
    """Draw a panel with labels, bars and percentages into the lower left of a frame.

    The last rows are left out if the picture is too low, and long labels end in "…". Accents are dropped, and scripts
    other than Latin appear as boxes. Pictures with a short side below about 160 pixels have little room for text: see
    `fit_for_display`.

    Args:
        image: `[H, W, 3]` uint8, RGB. It is not changed.
        rows: Label and probability in [0, 1], the likeliest first, which is highlighted.
        title: A line above the rows.
        footer: A smaller line below them.

    Returns:
        A new image of the same size.

    Raises:
        InputError: `image` is not uint8 `[H, W, 3]`, or a probability is not in [0, 1].
    """
    _check(image, rows)
    layout = _Layout.of(*image.shape[:2])
    room_px = image.shape[0] - 2 * layout.margin_px - 2 * layout.padding_px
    fixed_px = (layout.row_px if title else 0) + (layout.row_px if footer else 0)
    shown = rows[: max(0, (room_px - fixed_px) // layout.row_px)]
    height_px = fixed_px + len(shown) * layout.row_px + 2 * layout.padding_px
    if not (title or footer or shown) or height_px > image.shape[0] or layout.width_px < 2 * layout.padding_px:
        return image.copy()
    panel = _panel(layout, height_px, shown, title, footer)
    canvas = PIL.Image.fromarray(image)
    canvas.paste(panel, (layout.margin_px, image.shape[0] - layout.margin_px - height_px), panel)
    return np.array(canvas)


def fit_for_display(image: Image, min_short_side_px: int = 360) -> Image:
    """Enlarge a small frame for readable text; larger frames are returned unchanged.

    Args:
        image: `[H, W, 3]` uint8.
        min_short_side_px: Least short side of the result.

    Returns:
        `[H', W', 3]` uint8 with the same aspect. Thumbnails below 64 pixels are enlarged by nearest neighbour, others
        smoothly.

    Raises:
        InputError: `image` is not uint8 `[H, W, 3]`, or the side is impossible.
    """
    _check(image, ())
    check_short_side(min_short_side_px)
    short_side_px = min(image.shape[:2])
    if short_side_px >= min_short_side_px:
        return image
    height_px, width_px = scaled_size(image.shape[0], image.shape[1], min_short_side_px)
    filters = PIL.Image.Resampling
    smoothing = filters.NEAREST if short_side_px < 64 else filters.BICUBIC
    return np.array(PIL.Image.fromarray(image).resize((width_px, height_px), smoothing))


class Trail(NamedTuple):
    """Recent positions of one point, and its colour.

    Attributes:
        points_xy: [L, 2] in pixels of the picture, (0, 0) its upper left corner; the newest last. Non-finite points are
            not drawn.
        visible: bool [L]; False where the point is occluded.
        hue: On the colour wheel, from 0 (red) by 1/3 (green) and 2/3 (blue) to 1 (red again).
        certainty: Of the newest position, from 0 to 1; a point fades as it falls.
    """

    points_xy: npt.NDArray[Any]
    visible: npt.NDArray[np.bool_]
    hue: float
    certainty: float = 1.0


def draw_trails(image: Image, trails: Sequence[Trail]) -> Image:
    """Draw points with fading trails. A hidden point is hollow, its trail faint; an uncertain point is faint.

    Args:
        image: `[H, W, 3]` uint8, RGB. It is not changed.
        trails: Later trails are drawn over earlier ones, and points over all trails.

    Returns:
        A new image of the same size.

    Raises:
        InputError: `image` is not uint8 `[H, W, 3]`, or a trail's arrays do not fit each other.
    """
    _check(image, ())
    for trail in trails:
        if trail.points_xy.ndim != 2 or trail.points_xy.shape != (len(trail.visible), 2) or not len(trail.visible):
            raise InputError(
                f"trails: expected points_xy [L, 2] and visible [L], got {list(trail.points_xy.shape)} and "
                f"{list(trail.visible.shape)}"
            )

    def paint(brush: _Brush) -> None:
        for trail in trails:
            brush.trail(trail)
        # Hidden points first: they must not cover visible ones.
        for trail in sorted(trails, key=lambda trail: bool(trail.visible[-1])):
            opacity = _UNCERTAIN_SHARE + (1 - _UNCERTAIN_SHARE) * min(max(trail.certainty, 0.0), 1.0)
            brush.point(trail.points_xy[-1], rainbow(trail.hue), hollow=not trail.visible[-1], opacity=opacity)

    return _painted(image, paint)


def draw_truth(image: Image, point_xy: npt.NDArray[Any], visible: bool) -> Image:
    """Draw the true position of a point as a white cross, fainter where it is occluded.

    Args:
        image: `[H, W, 3]` uint8, RGB. It is not changed.
        point_xy: [2] in pixels of the picture.
        visible: Whether the point is visible.

    Returns:
        A new image of the same size.

    Raises:
        InputError: `image` is not uint8 `[H, W, 3]`.
    """
    _check(image, ())
    return _painted(image, lambda brush: brush.cross(point_xy, (*_BRIGHT[:3], 255 if visible else 110)))


class _Brush:
    """Brush for an enlarged layer, in pixels of the picture; sizes follow the picture's shorter side."""

    def __init__(self, layer: PIL.Image.Image, short_side_px: int) -> None:
        self._draw = PIL.ImageDraw.Draw(layer)
        self._radius = _SMOOTHING * max(3.5, short_side_px / 90)
        self._line_px = round(_SMOOTHING * max(1.5, short_side_px / 240))

    def trail(self, trail: Trail) -> None:
        """Draw the lines between a trail's points, the oldest first."""
        colour, places = rainbow(trail.hue), [_place(point) for point in trail.points_xy]
        for newer in range(1, len(places)):
            start, end = places[newer - 1], places[newer]
            if start is not None and end is not None:
                visible = trail.visible[newer - 1] and trail.visible[newer]
                alpha = round(255 * newer / len(places) * (1 if visible else _HIDDEN_SHARE))
                self._draw.line((*start, *end), fill=(*colour, alpha), width=self._line_px)

    def point(self, point_xy: npt.NDArray[Any], colour: tuple[int, int, int], *, hollow: bool, opacity: float) -> None:
        """Draw a disc with a dark rim, or a ring of the same size."""
        place = _place(point_xy)
        if place is None:
            return
        rim_px = self._line_px / 2 + 1
        self._disc(place, self._radius + rim_px, (*_RIM[:3], round(_RIM[3] * opacity)))
        self._disc(place, self._radius, (*colour, round(255 * opacity)))
        if hollow:
            self._disc(place, self._radius - self._line_px, _CLEAR)

    def cross(self, point_xy: npt.NDArray[Any], colour: _Colour) -> None:
        """Draw two strokes with dark rims and a free centre."""
        place = _place(point_xy)
        if place is None:
            return
        x, y = place
        near, far = 1.2 * self._radius, 3 * self._radius
        for stroke, rim_px in (((*_RIM[:3], colour[3]), 2), (colour, 0)):
            for right, down in ((1, 0), (-1, 0), (0, 1), (0, -1)):
                start, end = near - rim_px, far + rim_px
                line = (x + right * start, y + down * start, x + right * end, y + down * end)
                self._draw.line(line, fill=stroke, width=self._line_px + 2 * rim_px)

    def _disc(self, place: tuple[float, float], radius: float, colour: _Colour) -> None:
        x, y = place
        if radius > 0:
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _painted(image: Image, paint: Callable[[_Brush], None]) -> Image:
    """Draw a supersampled layer over an image."""
    height_px, width_px = image.shape[:2]
    layer = PIL.Image.new("RGBA", (width_px * _SMOOTHING, height_px * _SMOOTHING), _CLEAR)
    paint(_Brush(layer, min(height_px, width_px)))
    canvas = PIL.Image.fromarray(image)
    # By tiles: most of a picture is unchanged, and scaling all of it takes longer than tracking.
    for top in range(0, height_px, _TILE_PX):
        for left in range(0, width_px, _TILE_PX):
            box = (left, top, min(left + _TILE_PX, width_px), min(top + _TILE_PX, height_px))
            painted = layer.crop((_SMOOTHING * left, _SMOOTHING * top, _SMOOTHING * box[2], _SMOOTHING * box[3]))
            if painted.getbbox() is not None:
                small = painted.resize((box[2] - left, box[3] - top), PIL.Image.Resampling.BOX)
                canvas.paste(small, (left, top), small)
    return np.array(canvas)


def _place(point_xy: npt.NDArray[Any]) -> tuple[float, float] | None:
    """Convert a point to Pillow's coordinates, which start at pixel centres, on the enlarged layer."""
    x, y = point_xy * _SMOOTHING - 0.5
    return (float(x), float(y)) if abs(x) < _FARTHEST_PX and abs(y) < _FARTHEST_PX else None


def rainbow(hue: float) -> tuple[int, int, int]:
    """Convert a hue, as in `Trail`, to red, green and blue from 0 to 255."""
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1, 0.85, 1.0))
    return red, green, blue


def draw_caption(image: Image, text: str) -> Image:
    """Write a line into the lower left corner of a frame, on a dark box of its size.

    Args:
        image: `[H, W, 3]` uint8, RGB. It is not changed.
        text: The line, shortened if needed.

    Returns:
        A new image of the same size.

    Raises:
        InputError: `image` is not uint8 `[H, W, 3]`.
    """
    _check(image, ())
    height_px, width_px = image.shape[:2]
    layout = _Layout.of(height_px, width_px)
    font, padding_px = _font(max(_MIN_TEXT_PX, round(layout.text_px * 0.8))), layout.padding_px // 2
    canvas = PIL.Image.fromarray(image)
    draw = PIL.ImageDraw.Draw(canvas)
    room_px = width_px - 2 * layout.margin_px - 2 * padding_px
    text = _shortened(draw, text, font, room_px)
    left_px, top_px, right_px, bottom_px = draw.textbbox((0, 0), text, font=font)
    size_px = (int(right_px - left_px) + 2 * padding_px, int(bottom_px - top_px) + 2 * padding_px)
    box = _rounded_box(size_px, _PANEL, padding_px)
    corner = (layout.margin_px, height_px - layout.margin_px - size_px[1])
    canvas.paste(box, corner, box)
    draw.text((corner[0] + padding_px - left_px, corner[1] + padding_px - top_px), text, font=font, fill=_BRIGHT)
    return np.array(canvas)


def draw_grid(rows: Sequence[Sequence[Image]], titles: Sequence[str], *, row_titles: Sequence[str] = ()) -> Image:
    """Draw a grid of pictures of one size, with a title over each column and optionally before each row.

    Args:
        rows: One image per title in each row, uint8 `[H, W, 3]`.
        titles: Column titles, shortened to the columns' width.
        row_titles: Row titles, one for each row or none.

    Raises:
        InputError: An image is not uint8 `[H, W, 3]`, or sizes or numbers differ.
    """
    for image in (image for row in rows for image in row):
        _check(image, ())
    sizes = {image.shape for row in rows for image in row}
    if len(sizes) != 1 or any(len(row) != len(titles) for row in rows):
        raise InputError(
            f"rows: expected {len(titles)} images of one size in each, got {[len(row) for row in rows]} of sizes "
            f"{sorted(shape[:2] for shape in sizes)}"
        )
    if row_titles and len(row_titles) != len(rows):
        raise InputError(f"row_titles: expected one for each of {len(rows)} rows, got {len(row_titles)}")
    height_px, width_px = next(iter(sizes))[:2]
    text_px = max(_MIN_TEXT_PX, width_px // 12)
    gap_px, title_px = max(2, width_px // 40), 2 * text_px
    margin_px = gap_px
    if row_titles:
        margin_px += gap_px + math.ceil(max(_font(text_px).getlength(title) for title in row_titles))
    size_px = (len(titles) * (width_px + gap_px) + margin_px, len(rows) * (height_px + gap_px) + title_px)
    canvas = PIL.Image.new("RGB", size_px, (255, 255, 255))
    draw = PIL.ImageDraw.Draw(canvas)
    for row, title in enumerate(row_titles):
        top_px = title_px + row * (height_px + gap_px) + (height_px - text_px) // 2
        _line(draw, (gap_px, top_px), title, _font(text_px), _RIM, margin_px)
    for column, title in enumerate(titles):
        left_px = margin_px + column * (width_px + gap_px)
        _line(draw, (left_px, text_px // 3), title, _font(text_px), _RIM, width_px)
        for row, images in enumerate(rows):
            canvas.paste(PIL.Image.fromarray(images[column]), (left_px, title_px + row * (height_px + gap_px)))
    return np.array(canvas)


def _check(image: Image, rows: Sequence[tuple[str, float]]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise InputError(f"image: expected uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    for label, probability in rows:
        if not 0 <= probability <= 1:
            raise InputError(f"rows: expected probabilities from 0 to 1, got {probability} for {label!r}")


def _panel(
    layout: _Layout, height_px: int, rows: Sequence[tuple[str, float]], title: str, footer: str
) -> PIL.Image.Image:
    """Draw the panel as an image with transparency."""
    panel = _rounded_box((layout.width_px, height_px), _PANEL, layout.padding_px)
    draw = PIL.ImageDraw.Draw(panel)
    inner_px = layout.width_px - 2 * layout.padding_px
    top_px = layout.padding_px
    if title:
        _line(draw, (layout.padding_px, top_px), title, _font(layout.text_px), _MUTED, inner_px)
        top_px += layout.row_px
    for place, (label, probability) in enumerate(rows):
        _row(panel, layout, top_px, label, probability, first=place == 0)
        top_px += layout.row_px
    if footer:
        small = _font(max(_MIN_TEXT_PX, round(layout.text_px * 0.8)))
        _line(draw, (layout.padding_px, top_px + layout.text_px // 2), footer, small, _MUTED, inner_px)
    return panel


def _row(panel: PIL.Image.Image, layout: _Layout, top_px: int, label: str, probability: float, *, first: bool) -> None:
    draw = PIL.ImageDraw.Draw(panel)
    font = _font(layout.text_px)
    left_px, right_px = layout.padding_px, layout.width_px - layout.padding_px
    percentage = f"{probability * 100:.1f}%" if layout.width_px >= 12 * layout.text_px else f"{probability * 100:.0f}%"
    percentage_px = draw.textlength(percentage, font=font)
    colour = _BRIGHT if first else _MUTED
    room_px = right_px - left_px - percentage_px - layout.text_px / 2
    _line(draw, (left_px, top_px), label, font, colour, room_px)
    draw.text((right_px - percentage_px, top_px), percentage, font=font, fill=colour)
    bar_top_px = top_px + round(layout.text_px * 1.3)
    full_px = right_px - left_px
    track = _rounded_box((full_px, layout.bar_px), _TRACK, layout.bar_px / 2)
    panel.alpha_composite(track, (left_px, bar_top_px))
    # Even a tiny probability leaves a dot, so that no bar looks missing.
    filled_px = max(layout.bar_px, round(full_px * probability))
    bar = _rounded_box((filled_px, layout.bar_px), _FIRST_BAR if first else _OTHER_BAR, layout.bar_px / 2)
    panel.alpha_composite(bar, (left_px, bar_top_px))


def _line(
    draw: PIL.ImageDraw.ImageDraw, at: tuple[int, int], text: str, font: _Font, colour: _Colour, room_px: float
) -> None:
    draw.text(at, _shortened(draw, text, font, room_px), font=font, fill=colour)


def _shortened(draw: PIL.ImageDraw.ImageDraw, text: str, font: _Font, room_px: float) -> str:
    """Put text on one line and cut it to the given width."""
    # Pillow's font has no accented letters or dashes and would draw boxes: better "cafe" than "caf▯".
    letters = unicodedata.normalize("NFKD", " ".join(text.split())).translate(_DASHES)
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    if draw.textlength(text, font=font) <= room_px:
        return text
    while text and draw.textlength(text + _ELLIPSIS, font=font) > room_px:
        text = text[:-1]
    return text.rstrip() + _ELLIPSIS


def _rounded_box(size_px: tuple[int, int], colour: _Colour, radius_px: float) -> PIL.Image.Image:
    width_px, height_px = size_px
    large = PIL.Image.new("L", (width_px * _SMOOTHING, height_px * _SMOOTHING))
    corner = (large.width - 1, large.height - 1)
    PIL.ImageDraw.Draw(large).rounded_rectangle(((0, 0), corner), radius_px * _SMOOTHING, fill=colour[3])
    box = PIL.Image.new("RGBA", size_px, (*colour[:3], 0))
    box.putalpha(large.resize(size_px, PIL.Image.Resampling.BOX))
    return box


@lru_cache(maxsize=16)
def _font(size_px: int) -> _Font:
    return PIL.ImageFont.load_default(size_px)
