"""Scenes of layers, back to front, each moved by one affine map per frame: rendering and exact tracks.

Coordinates are `(x, y)` in pixels, and whole numbers are **pixel centres** in textures and frames alike: the top left
pixel has its centre at (0, 0), and a frame of width W spans -0.5 to W - 0.5. (TAP-Vid counts from pixel corners: add
0.5.) y points down, so a positive angle turns clockwise on screen.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from trecvit.errors import DataError, InputError


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Layer:
    """A flat textured object and its placement in every frame.

    Attributes:
        texture: RGBA `[4, h, w]`, float32 in [0, 1], colours multiplied by alpha.
        transforms: `[T, 2, 3]`; `transforms[t] @ (x, y, 1)` is the position in frame t, in pixels, of the texture's
            point (x, y).
        role: Its part in the scene: "background", "mover", "rest", "occluder", "part", "piece", "inside" or
            "distractor".
        reflect: Whether the texture continues mirrored beyond its border; it must be opaque then, and hides all behind.
    """

    texture: Tensor
    transforms: NDArray[Any]
    role: str
    reflect: bool = False

    def __post_init__(self) -> None:
        shape = tuple(self.texture.shape)
        if len(shape) != 3 or shape[0] != 4 or min(shape) < 2 or self.texture.dtype != torch.float32:
            raise DataError(
                f"layer {self.role!r}: expected a float32 texture [4, h >= 2, w >= 2], got {self.texture.dtype} {shape}"
            )
        if self.transforms.ndim != 3 or self.transforms.shape[1:] != (2, 3):
            raise DataError(f"layer {self.role!r}: expected transforms [T, 2, 3], got {self.transforms.shape}")

    def to_texture(
        self, points_xy: Float[np.ndarray, "q 2"], frame: int | Int[np.ndarray, " q"]
    ) -> Float[np.ndarray, "q 2"]:
        """Map points of a frame to the texture; `frame` is one for all points or one per point."""
        return _apply(invert(self.transforms)[frame], points_xy)

    def covers(self, points_xy: Float[np.ndarray, "q 2"], frame: int | Int[np.ndarray, " q"]) -> Bool[np.ndarray, " q"]:
        """Test where the layer hides the layers behind it (alpha above 1/2); `frame` as in `to_texture`."""
        if self.reflect:
            return np.ones(len(points_xy), bool)
        _, height, width = self.texture.shape
        x, y = self.to_texture(points_xy, frame).T
        # Clipped just outside the border, where alpha is 0: far points would overflow the integers.
        x, y = np.clip(x, -1.0, width), np.clip(y, -1.0, height)
        left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        alpha = np.pad(self.texture[3].numpy(), ((1, 2), (1, 2)))  # texel i is at i + 1
        right_part, low_part = x - left, y - top
        upper = alpha[top + 1, left + 1] * (1 - right_part) + alpha[top + 1, left + 2] * right_part
        lower = alpha[top + 2, left + 1] * (1 - right_part) + alpha[top + 2, left + 2] * right_part
        covered: np.ndarray = upper * (1 - low_part) + lower * low_part > 0.5
        return covered


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """Everything that determines one clip.

    Attributes:
        layers: Back to front.
        image_size: Height and width of the frames, in pixels.
        light: `[T, 2, 3]`; `light[t]` holds the gain (row 0) and the offset (row 1) of each colour in frame t.
        blur_passes: Number of passes of the filter (1, 2, 1) / 4, in both directions.
        noise_levels: Standard deviation of the sensor's noise, in 8-bit levels.
        noise_seed: Determines the noise alone.
        label: The class, -1 for none.
        partner_label: The class of the partner scene, which differs in the class alone, or -1.
        partner_swap: The two layers to swap for the partner; None if the partner is this scene played backwards.
    """

    layers: tuple[Layer, ...]
    image_size: tuple[int, int]
    light: NDArray[Any]
    label: int = -1
    partner_label: int = -1
    blur_passes: int = 0
    noise_levels: float = 0.0
    noise_seed: tuple[int, ...] = (0,)
    partner_swap: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise DataError("layers: expected at least one, got none")
        for layer in self.layers:
            if len(layer.transforms) != len(self.light):
                raise DataError(
                    f"layer {layer.role!r}: expected transforms for {len(self.light)} frames, as in `light`, "
                    f"got {len(layer.transforms)}"
                )

    @property
    def num_frames(self) -> int:
        """T."""
        return len(self.light)

    def reversed(self) -> Scene:
        """Play the scene backwards; label and noise stay."""
        layers = tuple(replace(layer, transforms=layer.transforms[::-1]) for layer in self.layers)
        return replace(self, layers=layers, light=self.light[::-1])

    def partner(self) -> Scene:
        """Build the other scene of the pair; the noise stays."""
        if self.partner_swap is None:
            scene = self.reversed()
        else:
            first, second = self.partner_swap
            layers = list(self.layers)
            layers[first], layers[second] = layers[second], layers[first]
            scene = replace(self, layers=tuple(layers))
        return replace(scene, label=self.partner_label, partner_label=self.label)


def invert(transforms: Float[np.ndarray, "t 2 3"]) -> Float[np.ndarray, "t 2 3"]:
    """Invert affine maps.

    Raises:
        DataError: A map is singular.
    """
    a, b, c, d = transforms[:, 0, 0], transforms[:, 0, 1], transforms[:, 1, 0], transforms[:, 1, 1]
    determinant = a * d - b * c
    if not (np.abs(determinant) > 1e-12).all():
        raise DataError("a layer's transform cannot be inverted: expected a non-zero determinant")
    inverse = np.empty_like(transforms, dtype=np.float64)
    inverse[:, 0, 0], inverse[:, 0, 1] = d / determinant, -b / determinant
    inverse[:, 1, 0], inverse[:, 1, 1] = -c / determinant, a / determinant
    inverse[:, :, 2] = -np.einsum("tij,tj->ti", inverse[:, :, :2], transforms[:, :, 2])
    return inverse


def _apply(matrix: Float[np.ndarray, "*q 2 3"], points_xy: Float[np.ndarray, "q 2"]) -> Float[np.ndarray, "q 2"]:
    """Apply one map to all points, or one to each."""
    moved: np.ndarray = (matrix[..., :2] @ points_xy[..., None])[..., 0] + matrix[..., 2]
    return moved


def compose_transforms(
    outer: Float[np.ndarray, "t 2 3"], inner: Float[np.ndarray, "t 2 3"]
) -> Float[np.ndarray, "t 2 3"]:
    """Compose affine maps: `inner` first, then `outer`."""
    joined: np.ndarray = outer[:, :, :2] @ inner
    joined[:, :, 2] += outer[:, :, 2]
    return joined


# ---- rendering -----------------------------------------------------------------------------------------------------


def render(scene: Scene) -> UInt8[np.ndarray, "t h w 3"]:
    """Render a scene: frames as uint8 RGB, with noise."""
    return expose(compose(scene), scene).permute(0, 2, 3, 1).contiguous().numpy()


def compose(scene: Scene) -> Float[Tensor, "t 3 h w"]:
    """Render a scene without noise: RGB with light, around [0, 1] and not yet clipped."""
    height, width = scene.image_size
    canvas = torch.zeros(scene.num_frames, 3, height, width)
    for layer in scene.layers:
        if layer.reflect:
            _draw_everywhere(canvas, layer)
        else:
            _draw(canvas, layer)
    for _ in range(scene.blur_passes):
        canvas = _smooth(canvas)
    light = torch.from_numpy(np.ascontiguousarray(scene.light, np.float32))[..., None, None]
    return canvas.mul_(light[:, 0]).add_(light[:, 1])


def expose(clean: Float[Tensor, "t 3 h w"], scene: Scene) -> UInt8[Tensor, "t 3 h w"]:
    """Add the scene's noise to the output of `compose` and quantise it to 8 bits; `clean` is not changed."""
    levels = clean * 255
    if scene.noise_levels > 0:
        frame = clean[0].numel()
        bank = _noise_bank(frame)
        starts = np.random.default_rng(scene.noise_seed).integers(0, len(bank) - frame, len(clean))
        for picture, start in zip(levels, starts.tolist(), strict=True):
            picture.add_(bank[start : start + frame].view_as(picture), alpha=scene.noise_levels)
    return levels.round_().clamp_(0, 255).to(torch.uint8)


@functools.lru_cache(maxsize=4)
def _noise_bank(frame: int) -> Float[Tensor, " n"]:
    """Draw normal noise to cut frames from at random offsets; new noise per frame would cost more than the scene."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal(8 * frame + 4096, dtype=np.float32))


def _smooth(canvas: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t 3 h w"]:
    for dim in (2, 3):
        last = canvas.shape[dim] - 1
        smooth = canvas * 0.5
        smooth.narrow(dim, 0, last).add_(canvas.narrow(dim, 1, last), alpha=0.25)
        smooth.narrow(dim, 1, last).add_(canvas.narrow(dim, 0, last), alpha=0.25)
        smooth.select(dim, 0).add_(canvas.select(dim, 0), alpha=0.25)
        smooth.select(dim, last).add_(canvas.select(dim, last), alpha=0.25)
        canvas = smooth
    return canvas


def _draw_everywhere(canvas: Float[Tensor, "t 3 h w"], layer: Layer) -> None:
    _, _, height, width = canvas.shape
    inverse = invert(layer.transforms)
    if (inverse == inverse[:1]).all():  # camera at rest: one frame is enough
        inverse = inverse[:1]
    corner = np.zeros((len(inverse), 2))
    canvas.copy_(_sample(layer.texture[:3], inverse, corner, (height, width), "reflection"))


def _draw(canvas: Float[Tensor, "t 3 h w"], layer: Layer) -> None:
    """Draw within boxes of one size that follow the layer from frame to frame."""
    frames, low, size = _boxes(layer, canvas.shape[2], canvas.shape[3])
    if not len(frames):
        return
    inverse = invert(layer.transforms[frames])
    (box_height, box_width), still = size, (low == low[:1]).all() and (inverse == inverse[:1]).all()
    if still:
        inverse, corners = inverse[:1], low[:1]
    else:
        corners = low
    patch = _sample(layer.texture, inverse, corners.astype(np.float64), size, "zeros")
    colours, clear = patch[:, :3], 1 - patch[:, 3:]
    if still and len(frames) == len(canvas):
        x, y = low[0].tolist()
        canvas[:, :, y : y + box_height, x : x + box_width].mul_(clear).add_(colours)
        return
    for number, (frame, (x, y)) in enumerate(zip(frames.tolist(), low.tolist(), strict=True)):
        shown = 0 if still else number
        canvas[frame, :, y : y + box_height, x : x + box_width].mul_(clear[shown]).add_(colours[shown])


def _boxes(layer: Layer, height: int, width: int) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Return the frames that the layer touches, the corners (x, y) of its boxes, and the boxes' height and width."""
    _, texture_height, texture_width = layer.texture.shape
    right, bottom = texture_width, texture_height
    # One pixel beyond the border, where the last texels still fade out.
    corners = np.array([[-1, -1, 1], [right, -1, 1], [-1, bottom, 1], [right, bottom, 1]], np.float64)
    spread = layer.transforms @ corners.T
    limit = np.array([width, height])
    low = np.clip(np.floor(spread.min(axis=2)).astype(np.int64), 0, limit)
    high = np.clip(np.ceil(spread.max(axis=2)).astype(np.int64) + 1, 0, limit)
    frames = np.nonzero((high > low).all(axis=1))[0]
    if not len(frames):
        return frames, low, (0, 0)
    size = (high[frames] - low[frames]).max(axis=0)
    low = np.minimum(low[frames], limit - size)
    return frames, low, (int(size[1]), int(size[0]))


def _sample(
    texture: Float[Tensor, "c h w"],
    inverse: Float[np.ndarray, "n 2 3"],
    corners: Float[np.ndarray, "n 2"],
    size: tuple[int, int],
    beyond: str,
) -> Float[Tensor, "n c bh bw"]:
    """Sample the texture under each pixel of boxes of one size."""
    channels, height, width = texture.shape
    # grid_sample expects the outer texel centres at -1 and 1.
    span = np.array([2 / (width - 1), 2 / (height - 1)])
    linear = inverse[:, :, :2] * span[:, None]
    origin = np.einsum("nij,nj->ni", linear, corners) + inverse[:, :, 2] * span - 1
    columns = linear[:, None, :, 0] * np.arange(size[1])[:, None] + origin[:, None]  # [n, bw, 2]
    rows = linear[:, None, :, 1] * np.arange(size[0])[:, None]  # [n, bh, 2]
    grid = torch.from_numpy(columns.astype(np.float32))[:, None] + torch.from_numpy(rows.astype(np.float32))[:, :, None]
    textures = texture.expand(len(inverse), channels, height, width)
    return F.grid_sample(textures, grid, mode="bilinear", padding_mode=beyond, align_corners=True)


# ---- tracks --------------------------------------------------------------------------------------------------------


def scene_tracks(
    scene: Scene, query_points_tyx: NDArray[Any]
) -> tuple[Float[np.ndarray, "q t 2"], Bool[np.ndarray, "q t"]]:
    """Track points through a scene exactly.

    Args:
        scene: Its layers must cover every query.
        query_points_tyx: `[Q, 3]`: frame (a whole number), y and x of points on the visible surface.

    Returns:
        Positions `(x, y)` in pixels in every frame, also of hidden points; and visibility: inside the frame and not
        behind another layer.

    Raises:
        InputError: The queries have a wrong shape or lie outside the video.
        DataError: No layer covers a query.
    """
    owner = visible_layers(scene, query_points_tyx)
    if (owner < 0).any():
        raise DataError(
            f"query {int(np.argmin(owner))}: expected a point on a layer of the scene, got one that no layer covers"
        )
    queries = np.asarray(query_points_tyx, np.float64)
    frames, start_xy = queries[:, 0].astype(np.int64), queries[:, [2, 1]]
    points_xy = np.empty((len(queries), scene.num_frames, 2))
    for number, layer in enumerate(scene.layers):
        owned = owner == number
        if owned.any():
            points_xy[owned] = _follow(layer, start_xy[owned], frames[owned])
    return points_xy, _visible(scene, owner, points_xy)


def visible_layers(scene: Scene, query_points_tyx: NDArray[Any]) -> Int[np.ndarray, " q"]:
    """Return the index of the visible layer at each of `[Q, 3]` points (frame, y, x); -1 where no layer is.

    Raises:
        InputError: The points have a wrong shape or lie outside the video.
    """
    queries = _checked(scene, np.asarray(query_points_tyx, np.float64))
    frames, points_xy = queries[:, 0].astype(np.int64), queries[:, [2, 1]]
    visible = np.full(len(queries), -1)
    for number, layer in enumerate(scene.layers):
        visible[layer.covers(points_xy, frames)] = number
    return visible


def _checked(scene: Scene, queries: np.ndarray) -> np.ndarray:
    if queries.ndim != 2 or queries.shape[1] != 3:
        raise InputError(f"query_points_tyx: expected shape [Q, 3], got {list(queries.shape)}")
    height, width = scene.image_size
    t, y, x = queries.T
    inside = (t >= 0) & (t < scene.num_frames) & (t == np.floor(t))
    inside &= (y >= -0.5) & (y <= height - 0.5) & (x >= -0.5) & (x <= width - 0.5)
    if not inside.all():
        first = int(np.argmin(inside))
        raise InputError(
            f"query_points_tyx[{first}]: expected (t, y, x) with a whole t, inside a video of {scene.num_frames} "
            f"frames of {height} x {width} pixels, got {queries[first].tolist()}"
        )
    return queries


def _follow(layer: Layer, start_xy: np.ndarray, frames: np.ndarray) -> np.ndarray:
    on_texture = layer.to_texture(start_xy, frames)
    followed: np.ndarray = np.einsum("tij,qj->qti", layer.transforms[:, :, :2], on_texture) + layer.transforms[:, :, 2]
    return followed


def _visible(scene: Scene, owner: np.ndarray, points_xy: np.ndarray) -> np.ndarray:
    height, width = scene.image_size
    x, y = points_xy[..., 0], points_xy[..., 1]
    visible: np.ndarray = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    for number, layer in enumerate(scene.layers):
        points, frames = np.nonzero(visible & (owner < number)[:, None])
        if len(points):
            visible[points, frames] = ~layer.covers(points_xy[points, frames], frames)
    return visible
