"""`load` for pretrained models in every format, and `convert` between formats."""

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
from trecvit.model.local_tracker import LocalTracker
from trecvit.model.mae import MaskedAutoencoder
from trecvit.model.readout_tracker import ReadoutTracker
from trecvit.model.tapnext import TAPNext
from trecvit.model.tracker import PointTracker
from trecvit.model.trecvit import TRecViT, VideoModel
from trecvit.pretrained import CONFIG_FILE, WEIGHTS_FILE, Dtype, as_dtype, build, read_description
from trecvit.processes import usable_device
from trecvit.weights.official import read_backbone, read_official, write_official
from trecvit.weights.tapnext import TORCH_SUFFIXES, is_tapnext_npz, read_tapnext
from trecvit.weights.zoo import ZOO, zoo_path

ARCHITECTURES: dict[str, type[TRecViT] | type[TAPNext] | type[ReadoutTracker] | type[LocalTracker]] = {
    "TRecViT": TRecViT,
    "TAPNext": TAPNext,
    "ReadoutTracker": ReadoutTracker,
    "LocalTracker": LocalTracker,
}
_Model = TypeVar("_Model", bound=VideoModel)

# A classifier of 18 motions of the synthetic world, and a small tracker.
BUNDLED = ("motions", "points")


def load(
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: Dtype = None,
    progress: Progress | None = None,
    **overrides: Any,
) -> TRecViT | PointTracker:
    """Load a pretrained model for inference.

    Args:
        source: "motions" or "points" (bundled), a name of the zoo (downloaded once), a folder written by `save`, an official `.npz` file, or a TAPNext `.npz`, `.pt` or `.ckpt`.
        device: Device of the weights.
        dtype: Their dtype, as torch.dtype or by name; by default float32. "auto" keeps the dtype stored in a folder.
        progress: Called during a download with (bytes on disk, total bytes or None).
        overrides: For an official file, fields of `ModelConfig` that its arrays do not determine, such as `image_size`
            when the positions are not a square grid. For a TAPNext file only `image_size`: the size to which frames
            are resized, if the weights were trained at another one than that of their positions.

    Returns:
        A `TRecViT` or a `PointTracker` (`LocalTracker`, `TAPNext` or `ReadoutTracker`); see `load_as`.

    Raises:
        CheckpointError: No such source, or it is damaged, hostile or incomplete. Models are loaded whole or not at all.
        TypeError: An argument that is neither listed here nor a field of `ModelConfig`.
        ConfigError: The device is not available, or the dtype is not floating-point.
        DownloadError: A file of the zoo could not be downloaded; the message gives the place for a copy.
    """
    _check_override_names(overrides)
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
            f"{path}: expected a folder with {WEIGHTS_FILE} and {CONFIG_FILE}, an official .npz file, or a TAPNext's "
            f"({', '.join(TORCH_SUFFIXES)}); other pickled checkpoints can run code and are not opened"
        )
    names = (*BUNDLED, *ZOO)
    raise CheckpointError(
        f"{source}: expected a file, a folder or a pretrained name, got none of them{nearest(str(source), names)}; "
        f"the names are {', '.join(names)}"
    )


def _load_folder(folder: Path, device: torch.device | str, dtype: Dtype) -> TRecViT | PointTracker:
    architecture = read_description(folder)["architecture"]
    if architecture not in ARCHITECTURES:
        names = " or ".join(map(repr, ARCHITECTURES))
        raise CheckpointError(f"{folder / CONFIG_FILE}: expected architecture {names}, got {architecture!r}")
    return ARCHITECTURES[architecture].load(folder, device=device, dtype=dtype)


def load_as(
    kind: type[_Model],
    source: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: Dtype = None,
    progress: Progress | None = None,
) -> _Model:
    """`load` for a given class of model.

    Raises:
        CheckpointError: As `load`, and for a model of another class.
    """
    model = load(source, device=device, dtype=dtype, progress=progress)
    if not isinstance(model, kind):
        raise CheckpointError(f"{source}: expected a {kind.__name__}, got a {type(model).__name__}")
    return model


def build_untrained(
    config: Architecture,
    *,
    preprocessing: Preprocessing | None = None,
    labels: Sequence[str] = (),
    provenance: Mapping[str, str] | None = None,
) -> VideoModel:
    """Build an untrained model from its config; only a TRecViT has labels."""
    # `load` has no name for an autoencoder, which is saved as a TRecViT's folder.
    kinds: tuple[Any, ...] = (*ARCHITECTURES.values(), MaskedAutoencoder)
    kind = next(kind for kind in kinds if kind.config_class is type(config))
    optional = {"labels": labels} if labels else {}
    model: VideoModel = kind(config, preprocessing=preprocessing, provenance=provenance, **optional)
    return model


def convert(
    source: str | Path, target: str | Path, *, labels: str | Path | None = None, progress: Progress | None = None
) -> Path:
    """Convert weights to an official `.npz` if `target` has that suffix, else to a folder.

    Float32 weights are kept bit-exactly in both directions.

    Args:
        source: As for `load`.
        target: The file or folder to write.
        labels: Class names for a folder, as for `read_labels`.
        progress: As for `load`.

    Raises:
        CheckpointError: As `load`, and if the official format cannot hold the model or class names. Trackers are
            written as folders only.
        ConfigError: The number of names is not that of classes; see `Pretrained.relabel`.
        DataError: The names cannot be read.
    """
    names = None if labels is None else read_labels(labels)
    model = load(source, progress=progress)
    target = Path(target)
    if target.suffix != ".npz":
        if names is not None:
            model.relabel(names)
        return model.save(target)
    if names is not None:
        raise CheckpointError(f"{target}: expected a folder, since the official format holds no class names")
    if not isinstance(model, TRecViT):
        raise CheckpointError(f"{target}: a {type(model).__name__} is written as a folder only")
    for field, value in (
        ("temporal_mixer", "lru"),
        ("temporal_from", 0),
        ("temporal_skip", True),
        ("lru_gates", True),
        ("gelu", "tanh"),
    ):
        if getattr(model.config, field) != value:
            raise CheckpointError(f"the official format does not support {field}={getattr(model.config, field)!r}")
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
    """Load the backbone, with the names of the file's other arrays in its provenance."""
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
        raise CheckpointError(f"{path}: expected only image_size for a TAPNext file, got also {', '.join(unknown)}")
    config, tensors = read_tapnext(path)
    preprocessing = TAPNext.preprocessing_for(config.image_size if image_size is None else image_size)
    return build(
        lambda: TAPNext(config, preprocessing=preprocessing, provenance=provenance),
        tensors,
        source=str(path),
        device=device,
        dtype=dtype,
    )


def _check_override_names(overrides: dict[str, Any]) -> None:
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in overrides:
        if name not in fields:
            hint = nearest(name, ("source", "device", "dtype", "progress", *fields))
            raise TypeError(
                f"load: unexpected argument {name!r}{hint}; it takes device, dtype, progress, and fields of "
                "ModelConfig that an official file does not determine"
            )


def _refuse_overrides(source: str | Path, overrides: dict[str, Any]) -> None:
    if overrides:
        raise CheckpointError(
            f"{source}: expected no overrides, since it has a {CONFIG_FILE}; got {', '.join(overrides)}"
        )
