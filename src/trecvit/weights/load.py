"""`load`: one door for all weights, and `convert` between the formats."""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch

from trecvit.config import nearest
from trecvit.data.class_names import class_names
from trecvit.data.manifest import read_labels
from trecvit.download import Progress
from trecvit.errors import CheckpointError
from trecvit.model.trecvit import TRecViT
from trecvit.pretrained import CONFIG_FILE, WEIGHTS_FILE, build
from trecvit.processes import usable_device
from trecvit.weights.official import read_official, write_official
from trecvit.weights.zoo import ZOO, zoo_path

BUNDLED = "motions"  # the model that ships with the package: 18 motions of the synthetic world


def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> TRecViT:
    """A pretrained model, ready for inference.

    Args:
        source: "motions" (ships with the package), a name from the zoo (downloaded once), a folder written by
            `save`, or an original `.npz` file.
        device: Where the weights go.
        dtype: What they become; by default float32.
        progress: For a download, called with (bytes on disk, bytes in all or None).
        overrides: For an original file, fields of `ModelConfig` that its arrays leave open, such as `image_size` when
            the positions are not a square grid.

    Raises:
        CheckpointError: when there is no such thing, or it is damaged, hostile or incomplete. Nothing is loaded half.
        ConfigError: when there is no such device here.
        DownloadError: when a file of the zoo could not be fetched; says where to put a copy.
    """
    device = usable_device(device)
    if isinstance(source, str) and source == BUNDLED:
        _refuse_overrides(source, overrides)
        with as_file(files("trecvit.weights") / BUNDLED) as folder:
            return TRecViT.load(folder, device=device, dtype=dtype)
    if isinstance(source, str) and source in ZOO:
        return _load_from_zoo(source, device, dtype, progress, overrides)
    path = Path(source)
    if path.is_dir():
        _refuse_overrides(source, overrides)
        return TRecViT.load(path, device=device, dtype=dtype)
    if path.suffix == ".npz" and path.exists():
        return _load_official(path, device, dtype, overrides, labels=(), provenance={"source": path.name})
    if path.exists():
        raise CheckpointError(
            f"{path}: expected a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, or an original .npz file; "
            "pickled checkpoints can run code and are not opened"
        )
    names = (BUNDLED, *ZOO)
    raise CheckpointError(
        f"{source}: no such file or folder, and no pretrained model of that name{nearest(str(source), names)}; "
        f"the names are {', '.join(names)}"
    )


def convert(
    source: str | Path, target: str | Path, *, labels: str | Path | None = None, progress: Progress | None = None
) -> Path:
    """Rewrites weights in the other format: an official `.npz` where `target` ends so, else a folder.

    Both directions keep every bit of float32 weights.

    Args:
        source: As for `load`.
        target: The file or folder to write.
        labels: Class names for a folder, as `read_labels` takes them.
        progress: As for `load`.

    Raises:
        CheckpointError: as `load`, and when the official format has no place for the model or for names.
        ConfigError: when the number of names is not the number of classes.
        DataError: when the names cannot be read.
    """
    model = load(source, progress=progress)
    target = Path(target)
    if target.suffix != ".npz":
        if labels is not None:
            model.relabel(read_labels(labels))
        return model.save(target)
    if labels is not None:
        raise CheckpointError(f"{target}: the original format holds no class names; convert to a folder instead")
    if model.config.temporal_mixer != "lru":
        raise CheckpointError(f"the original format knows no temporal_mixer={model.config.temporal_mixer!r}")
    write_official(target, model.config, model.state_dict())
    return target


def _load_from_zoo(
    name: str,
    device: torch.device | str,
    dtype: torch.dtype | None,
    progress: Progress | None,
    overrides: dict[str, Any],
) -> TRecViT:
    entry = ZOO[name]
    path = zoo_path(name, progress=progress)
    labels = class_names(entry.classes) if entry.classes else ()
    provenance = {"source": entry.url, "licence": entry.licence, "description": entry.description}
    return _load_official(path, device, dtype, overrides, labels=labels, provenance=provenance)


def _load_official(
    path: Path,
    device: torch.device | str,
    dtype: torch.dtype | None,
    overrides: dict[str, Any],
    *,
    labels: tuple[str, ...],
    provenance: dict[str, str],
) -> TRecViT:
    config, tensors = read_official(path, **overrides)
    return build(
        lambda: TRecViT(config, labels=labels, provenance=provenance),
        tensors,
        source=str(path),
        device=device,
        dtype=dtype,
    )


def _refuse_overrides(source: str | Path, overrides: dict[str, Any]) -> None:
    if overrides:
        raise CheckpointError(f"{source}: its own {CONFIG_FILE} says what it is; got also {', '.join(overrides)}")
