"""Options that several commands have, and what they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from trecvit.cli.terminal import complain, download_bar
from trecvit.errors import ConfigError

if TYPE_CHECKING:
    from trecvit.data.manifest import Manifest
    from trecvit.model.tracker import PointTracker
    from trecvit.model.trecvit import TRecViT, VideoModel

_Model = TypeVar("_Model", bound="VideoModel")

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="A name ('motions' ships with the package), a folder, or an original .npz."),
]
TrackerOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="A name ('tapnextpp', …), a folder, or an original .npz, .pt or .ckpt of TAPNext."
    ),
]
DtypeOption = Annotated[
    str,
    typer.Option(help="float32, or bfloat16 for faster matrix products where there are any; int8 (not with openvino)."),
]
ModeOption = Annotated[str, typer.Option(help="eager, compile (waits for the compiler first), or openvino.")]
DeviceOption = Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, mps.")]
TrainingDeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")]
DataArgument = Annotated[
    str,
    typer.Argument(
        help="A folder per class, a 'path label' list, Kinetics' csv, Something-Something's JSON, or tar shards."
    ),
]
VideosOption = Annotated[str | None, typer.Option(help="Folder of the videos, where a list is not beside them.")]
LabelsOption = Annotated[
    str | None, typer.Option(help="kinetics400, something_something_v2, or a file with a class per line.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]


def check_rate(option: str, value: float) -> None:
    """Raises a ConfigError that names the option unless it is a number above 0."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"{option}: expected a number above 0, got {value:g}")


def load_model(model: str, device: str) -> TRecViT:
    """Whatever --model names, with a bar if it has to be fetched."""
    from trecvit.model.trecvit import TRecViT
    from trecvit.weights.load import load_as

    with download_bar() as progress:
        return load_as(TRecViT, model, device=device, progress=progress)


def load_fast(model: str, device: str, dtype: str, mode: str) -> TRecViT:
    """Likewise, made fast as --dtype and --mode say; what `trecvit export` wrote is as fast as it was made."""
    from trecvit.accelerate.exported import is_exported, load_exported

    if is_exported(model):
        return load_exported(model)
    return fast(load_model(model, device), dtype, mode)


def load_tracker(model: str, device: str) -> PointTracker:
    """`load_model` for point trackers."""
    from trecvit.model.tracker import PointTracker
    from trecvit.weights.load import load_as

    with download_bar() as progress:
        return load_as(PointTracker, model, device=device, progress=progress)


def load_fast_tracker(model: str, device: str, dtype: str, mode: str) -> PointTracker:
    """`load_fast` for point trackers."""
    return fast(load_tracker(model, device), dtype, mode)


def fast(network: _Model, dtype: str, mode: str) -> _Model:
    """A model made fast as --dtype and --mode say."""
    from trecvit.accelerate.kernels import DTYPES
    from trecvit.accelerate.optimize import optimize

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    return optimize(network, dtype=DTYPES[dtype], mode=mode)


def manifest_of(
    data: str,
    videos: str | None,
    labels: str | None,
    unknown: list[tuple[str, str]] | None = None,
    *,
    split: Literal["train", "validation"] | None = None,
) -> Manifest:
    """The videos of a data set, see `trecvit.data.layouts.read_manifest`; says what was passed over.

    Args:
        data: Where it is.
        videos: Folder of the videos of a list.
        labels: Names of the classes.
        unknown: Takes videos of classes that there are not.
        split: What to take of a folder with splits.
    """
    from trecvit.data.layouts import DataSource, read_manifest, split_of

    path = split_of(data, split) if split else data
    manifest = read_manifest(DataSource(path=path, videos=videos, labels=labels), unknown=unknown)
    for remark in manifest.remarks():
        complain(remark)
    return manifest
