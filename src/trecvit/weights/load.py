"""`load`: one door for all weights, and `convert` between the formats."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, TypeVar

import torch

from trecvit.config import Architecture, ImageSize, ModelConfig, Preprocessing, nearest
from trecvit.data.class_names import class_names, read_labels
from trecvit.download import Progress
from trecvit.errors import CheckpointError
from trecvit.model.mae import MaskedAutoencoder
from trecvit.model.memorise import Memoriser
from trecvit.model.readout_tracker import ReadoutTracker
from trecvit.model.tapnext import TAPNext
from trecvit.model.tracker import PointTracker
from trecvit.model.trecvit import TRecViT, VideoModel
from trecvit.pretrained import CONFIG_FILE, WEIGHTS_FILE, Dtype, as_dtype, build, read_description
from trecvit.processes import usable_device
from trecvit.weights.official import read_backbone, read_official, write_official
from trecvit.weights.tapnext import TORCH_SUFFIXES, is_tapnext_npz, read_tapnext
from trecvit.weights.zoo import ZOO, zoo_path

ARCHITECTURES: dict[str, type[TRecViT] | type[TAPNext] | type[ReadoutTracker]] = {
    "TRecViT": TRecViT,
    "TAPNext": TAPNext,
    "ReadoutTracker": ReadoutTracker,
}
_Model = TypeVar("_Model", bound=VideoModel)

BUNDLED = ("motions", "points")  # what ships with the package: 18 motions of the synthetic world; a small tracker


def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: Dtype = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> TRecViT | PointTracker:
    """A pretrained model, ready for inference.

    Args:
        source: "motions" or "points" (they ship with the package), a name from the zoo (downloaded once), a folder
            written by `save`, an original `.npz` file, or a TAPNext's `.npz`, `.pt` or `.ckpt`.
        device: Where the weights go.
        dtype: What they become, as torch.dtype or by name; by default float32. "auto" leaves what a folder holds.
        progress: For a download, called with (bytes on disk, bytes in all or None).
        overrides: For an original file, fields of `ModelConfig` that its arrays leave open, such as `image_size` when
            the positions are not a square grid. For a TAPNext's, `image_size` alone: to what size frames are brought,
            where the weights were made for another than their positions', which may be resized.

    Returns:
        A `TRecViT`, or a `PointTracker`, which a `TAPNext` is or a `ReadoutTracker`; see `load_as`.

    Raises:
        CheckpointError: when there is no such thing, or it is damaged, hostile or incomplete. Nothing is loaded half.
        TypeError: for an argument that is none of these and no field of `ModelConfig`.
        ConfigError: when there is no such device here, or for what is no floating-point dtype.
        DownloadError: when a file of the zoo could not be fetched; says where to put a copy.
    """
    _refuse_misspelt(overrides)
    device, dtype = usable_device(device), as_dtype(dtype)
    if isinstance(source, str) and source in BUNDLED:
        _refuse_overrides(source, overrides)
        with as_file(files("trecvit.weights") / source) as folder:
            return _load_folder(folder, device, dtype)
    if isinstance(source, str) and source in ZOO:
        return _load_from_zoo(source, device, dtype, progress, overrides)
    path = Path(source)
    if path.is_dir():
        _refuse_overrides(source, overrides)
        return _load_folder(path, device, dtype)
    if path.exists() and path.suffix.lower() in (".npz", *TORCH_SUFFIXES):
        return _load_file(path, device, dtype, overrides, labels=(), provenance={"source": path.name})
    if path.suffix.lower() == ".safetensors" and path.exists():
        raise CheckpointError(f"{path}: expected the folder that holds {WEIGHTS_FILE} and {CONFIG_FILE}, got one file")
    if path.exists():
        raise CheckpointError(
            f"{path}: expected a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, an original .npz file, or a TAPNext's "
            f"({', '.join(TORCH_SUFFIXES)}); other pickled checkpoints can run code and are not opened"
        )
    names = (*BUNDLED, *ZOO)
    raise CheckpointError(
        f"{source}: no such file or folder, and no pretrained model of that name{nearest(str(source), names)}; "
        f"the names are {', '.join(names)}"
    )


def _load_folder(folder: Path, device: torch.device | str, dtype: Dtype) -> TRecViT | PointTracker:
    architecture = read_description(folder)["architecture"]
    if architecture not in ARCHITECTURES:
        known = " or ".join(map(repr, ARCHITECTURES))
        raise CheckpointError(f"{folder / CONFIG_FILE}: expected architecture {known}, got {architecture!r}")
    return ARCHITECTURES[architecture].load(folder, device=device, dtype=dtype)


def load_as(
    kind: type[_Model],
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: Dtype = None,
    progress: Progress | None = None,
) -> _Model:
    """`load` where only one kind of model will do.

    Raises:
        CheckpointError: also when it is a model of another kind.
    """
    model = load(source, device=device, dtype=dtype, progress=progress)
    if not isinstance(model, kind):
        raise CheckpointError(f"{source}: expected a {kind.__name__}, this is a {type(model).__name__}")
    return model


def blank(
    config: Architecture,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> VideoModel:
    """The model that a description is one of, with first weights; only a TRecViT has labels."""
    # `load` has no names for these: a saved autoencoder is a TRecViT's folder, and who memorises answers with pictures.
    kinds: tuple[Any, ...] = (*ARCHITECTURES.values(), MaskedAutoencoder, Memoriser)
    kind = next(kind for kind in kinds if kind.config_class is type(config))
    named = {"labels": labels} if labels else {}
    made: VideoModel = kind(config, preprocessing=preprocessing, provenance=provenance, **named)
    return made


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
        CheckpointError: as `load`, and when the official format has no place for the model or for names. A TAPNext
            becomes a folder only.
        ConfigError: when the names are not one per class, see `Pretrained.relabel`.
        DataError: when the names cannot be read.
    """
    names = None if labels is None else read_labels(labels)
    model = load(source, progress=progress)
    target = Path(target)
    if target.suffix != ".npz":
        if names is not None:
            model.relabel(names)
        return model.save(target)
    if names is not None:
        raise CheckpointError(f"{target}: the original format holds no class names; convert to a folder instead")
    if not isinstance(model, TRecViT):
        raise CheckpointError(f"{target}: a {type(model).__name__} is written as a folder only")
    for field, value in (("temporal_mixer", "lru"), ("temporal_skip", True), ("lru_gates", True), ("gelu", "tanh")):
        if getattr(model.config, field) != value:
            raise CheckpointError(f"the original format knows no {field}={getattr(model.config, field)!r}")
    write_official(target, model.config, model.state_dict())
    return target


def _load_from_zoo(
    name: str,
    device: torch.device | str,
    dtype: Dtype,
    progress: Progress | None,
    overrides: dict[str, Any],
) -> TRecViT | TAPNext:
    entry = ZOO[name]
    path = zoo_path(name, progress=progress)
    labels = class_names(entry.classes) if entry.classes else ()
    provenance = {"source": entry.url, "licence": entry.licence, "description": entry.description}
    if entry.backbone_only:
        return _load_backbone(path, device, dtype, provenance=provenance, **overrides)
    if entry.image_size is not None:
        overrides = {"image_size": entry.image_size, **overrides}
    return _load_file(path, device, dtype, overrides, labels=labels, provenance=provenance)


def _load_file(
    path: Path,
    device: torch.device | str,
    dtype: Dtype,
    overrides: dict[str, Any],
    *,
    labels: tuple[str, ...],
    provenance: dict[str, str],
) -> TRecViT | TAPNext:
    if path.suffix.lower() != ".npz" or is_tapnext_npz(path):
        return _load_tapnext(path, device, dtype, provenance=provenance, **overrides)
    config, tensors = read_official(path, **overrides)
    return build(
        lambda: TRecViT(config, labels=labels, provenance=provenance),
        tensors,
        source=str(path),
        device=device,
        dtype=dtype,
    )


def _load_backbone(
    path: Path,
    device: torch.device | str,
    dtype: Dtype,
    *,
    provenance: dict[str, str],
    **overrides: Any,
) -> TRecViT:
    """The model without a head, and in its provenance by name what of the file is not in it."""
    config, tensors, others = read_backbone(path, **overrides)
    if others:
        provenance = {**provenance, "not taken": ", ".join(others)}
    return build(lambda: TRecViT(config, provenance=provenance), tensors, source=str(path), device=device, dtype=dtype)


def _load_tapnext(
    path: Path,
    device: torch.device | str,
    dtype: Dtype,
    *,
    provenance: dict[str, str],
    image_size: ImageSize | None = None,
    **unknown: Any,
) -> TAPNext:
    if unknown:
        raise CheckpointError(f"{path}: a TAPNext's file leaves only image_size open; got also {', '.join(unknown)}")
    config, tensors = read_tapnext(path)
    preprocessing = TAPNext.preprocessing_for(config.image_size if image_size is None else image_size)
    return build(
        lambda: TAPNext(config, preprocessing=preprocessing, provenance=provenance),
        tensors,
        source=str(path),
        device=device,
        dtype=dtype,
    )


def _refuse_misspelt(overrides: dict[str, Any]) -> None:
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in overrides:
        if name not in fields:
            hint = nearest(name, ("source", "device", "dtype", "progress", *fields))
            raise TypeError(
                f"load: unexpected argument {name!r}{hint}; it takes device, dtype, progress, and fields of "
                "ModelConfig that an original file leaves open"
            )


def _refuse_overrides(source: str | Path, overrides: dict[str, Any]) -> None:
    if overrides:
        raise CheckpointError(f"{source}: its own {CONFIG_FILE} says what it is; got also {', '.join(overrides)}")
