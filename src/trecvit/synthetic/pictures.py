"""Pictures that the synthetic world takes surfaces from: scikit-image's photographs, or a folder of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from trecvit.data.folders import is_hidden
from trecvit.errors import DataError, InputError, MissingPackageError

LONG_SIDE_PX = 512  # pictures are stored no larger: a pool of them lives in every worker of a loader
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
    picture.thumbnail((LONG_SIDE_PX, LONG_SIDE_PX))
    pixels = np.array(picture)
    if see_through and pixels[..., 3].min() >= 250:
        return pixels[..., :3].copy()
    return pixels
