"""Pictures as surfaces of the synthetic world: scikit-image's photographs, or a folder of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from trecvit.data.folders import is_hidden
from trecvit.errors import DataError, InputError, MissingPackageError

LONG_SIDE_PX = 512  # every worker of a loader holds all pictures
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
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
    """Load the photographs inside the scikit-image wheel, without a download.

    Args:
        split: The two splits share no photograph and never change, so that a model trained on one can be tested on
            unseen pictures.

    Returns:
        Pictures with a long side of at most 512 px.

    Raises:
        MissingPackageError: scikit-image is not installed.
        DataError: The installed scikit-image lacks one of the photographs.
    """
    if split not in _PHOTOGRAPHS:
        raise InputError(f"split: expected one of {sorted(_PHOTOGRAPHS)}, got {split!r}")
    try:
        import skimage
    except ImportError as error:
        raise MissingPackageError("scikit-image", needed_for="photographs()", extra="photos") from error
    folder = Path(skimage.__file__).parent / "data"
    return [read_picture(folder / name)[..., :3] for name in _PHOTOGRAPHS[split]]


def load_pictures(folder: str | Path) -> list[UInt8[np.ndarray, "_ _ _"]]:
    """Read all pictures of a folder, sorted by name.

    Args:
        folder: Other files and subfolders are skipped.

    Returns:
        Arrays `[H, W, 3]`, or `[H, W, 4]` for pictures with transparent parts, which become cut-outs. The long side is
        at most 512 px.

    Raises:
        DataError: The folder does not exist or holds no picture, or a picture cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder of pictures, got no such folder; check the path")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and not is_hidden(path.name)
    )
    if not paths:
        raise DataError(f"{folder}: expected pictures ({' '.join(PICTURE_SUFFIXES)}), got none")
    return [read_picture(path) for path in paths]


def read_picture(path: Path) -> UInt8[np.ndarray, "h w c"]:
    """Read one picture, see `load_pictures`."""
    try:
        with Image.open(path) as image:
            transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
            picture = image.convert("RGBA" if transparent else "RGB")
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: expected a readable picture: {error}; replace or remove it") from error
    picture.thumbnail((LONG_SIDE_PX, LONG_SIDE_PX))
    pixels = np.array(picture)
    if transparent and pixels[..., 3].min() >= 250:
        return pixels[..., :3].copy()
    return pixels
