"""Pretrained weights by name: address, licence and file name in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trecvit.config import nearest
from trecvit.download import Progress, cache_folder, download
from trecvit.errors import CheckpointError

# Quoted from the README of google-deepmind/trecvit, which states no separate licence for the weights.
_LICENCE = "google-deepmind/trecvit: software Apache-2.0, all other materials CC-BY 4.0"
# From the READMEs of google-deepmind/tapnet and of its tapnextpp folder.
_TAPNET_LICENCE = "google-deepmind/tapnet: checkpoints Apache-2.0"


@dataclass(frozen=True, kw_only=True, slots=True)
class ZooEntry:
    """One published file of weights."""

    name: str
    """Name for `trecvit.load`."""
    url: str
    """Address published by its authors."""
    filename: str
    """Its name in the cache folder."""
    licence: str
    """Licence as stated by its authors."""
    description: str
    """One-line description."""
    classes: str = ""
    """Data set of its class names (`trecvit.data.class_names`), or empty."""
    backbone_only: bool = False
    """Whether the file also holds arrays whose meaning is not published."""
    image_size: tuple[int, int] | None = None
    """Height and width in pixels of a tracker's frames, if the file does not determine it."""


ZOO: dict[str, ZooEntry] = {
    entry.name: entry
    for entry in (
        ZooEntry(
            name="base_k400",
            url="https://storage.googleapis.com/trecvit/model_checkpoints/trecvit_B_k400.npz",
            filename="trecvit_B_k400.npz",
            licence=_LICENCE,
            description="TRecViT-B trained on Kinetics-400: 400 classes, 32 frames of 224x224, 136.8 M parameters",
            classes="kinetics400",
        ),
        ZooEntry(
            name="base_mae",
            url="https://storage.googleapis.com/dm-perception-test/trecvit/trecvit_B_mae.npz",
            filename="trecvit_B_mae.npz",
            licence=_LICENCE,
            description="TRecViT-B self-supervised by masked auto-encoding on Kinetics-400; no head",
            backbone_only=True,
        ),
        ZooEntry(
            name="bootstapnext",
            url="https://storage.googleapis.com/dm-tapnet/tapnext/bootstapnext_ckpt.npz",
            filename="bootstapnext_ckpt.npz",
            licence=_TAPNET_LICENCE,
            description="BootsTAPNext-B: tracks any points, 256x256, 194 M parameters",
        ),
        ZooEntry(
            name="tapnextpp",
            url="https://storage.googleapis.com/dm-tapnet/tapnextpp/tapnextpp_ckpt.pt",
            filename="tapnextpp_ckpt.pt",
            licence=_TAPNET_LICENCE,
            description="TAPNext++: fine-tuned for long videos and reappearing points; 2.5 GB to download",
        ),
        ZooEntry(
            name="tapnextpp_512",
            url="https://storage.googleapis.com/gresearch/tapnextpp/tapnextpp_512.ckpt",
            filename="tapnextpp_512.ckpt",
            licence=_TAPNET_LICENCE,
            description="TAPNext++ for frames of 512x512; 2.5 GB to download",
            image_size=(512, 512),
        ),
    )
}


def zoo_path(name: str, *, progress: Progress | None = None) -> Path:
    """Return the file of the weights `name`, after downloading it to the cache folder if missing.

    Args:
        name: A key of `ZOO`.
        progress: Called with (bytes on disk, total bytes or None) while it downloads.

    Raises:
        CheckpointError: No weights have this name.
        DownloadError: They could not be downloaded; the message gives the place for a copy.
    """
    entry = ZOO.get(name)
    if entry is None:
        hint = nearest(name.lower(), ZOO)
        raise CheckpointError(f"expected a pretrained name, got {name!r}{hint}; the names are {', '.join(ZOO)}")
    return download(entry.url, cache_folder() / entry.filename, progress=progress)
