"""Options and arguments that several commands share, and the objects they name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from trecvit.cli.terminal import download_bar, notify
from trecvit.errors import ConfigError

if TYPE_CHECKING:
    from trecvit.data.manifest import Manifest
    from trecvit.model.tracker import PointTracker
    from trecvit.model.trecvit import TRecViT, VideoModel
    from trecvit.synthetic.track_scenes import TrackSceneConfig

_Model = TypeVar("_Model", bound="VideoModel")

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Pretrained name (motions is bundled), folder, or official .npz.")
]
TrackerOption = Annotated[
    str,
    typer.Option("--model", "-m", help="Pretrained name (points is bundled), folder, or TAPNext's .npz, .pt, .ckpt."),
]
WeightsArgument = Annotated[str, typer.Argument(help="Pretrained name, folder or official .npz.")]
DtypeOption = Annotated[str, typer.Option(help="float32, bfloat16, or int8 (dynamic quantisation; not with openvino).")]
ModeOption = Annotated[
    str,
    typer.Option(
        help="eager, compile (compiles first, up to a minute), graphs or compile-graphs (CUDA), openvino or onnx."
    ),
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")]
TrainingDeviceOption = Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if available.")]

SourceArgument = Annotated[
    str, typer.Argument(help="Video file, folder of images, .npy array, stream URL, or camera:0.")
]
LatestOption = Annotated[
    bool | None,
    typer.Option("--latest/--all", help="Live sources: the newest frame (default), skipping others, or every frame."),
]
ReconnectOption = Annotated[
    float, typer.Option("--reconnect", min=0, help="Live sources: seconds for which a lost one is tried again.")
]
SaveVideoOption = Annotated[Path | None, typer.Option(help="Write an annotated .mp4 or .webm.")]
DataArgument = Annotated[
    str,
    typer.Argument(
        help="A folder per class, a 'path label' list, Kinetics csv, Something-Something JSON, HMDB51, JHMDB or UCF101 "
        "with --split, or shards."
    ),
]
VideosOption = Annotated[str | None, typer.Option(help="Folder of the videos, if not the folder of the list.")]
LabelsOption = Annotated[
    str | None, typer.Option(help="kinetics400, something_something_v2, or a file with one class per line.")
]
SplitOption = Annotated[int | None, typer.Option(min=1, help="Official split of HMDB51, JHMDB or UCF101: 1, 2 or 3.")]
PartOption = Annotated[
    str | None,
    typer.Option(help="Part of --split: train, test, all, or fit and validation, which divide train."),
]
ClipsOption = Annotated[int, typer.Option(min=1, help="Clips per video.")]
CropsOption = Annotated[int, typer.Option(min=1, help="Crops per clip, 1 or 3.")]
DecodersOption = Annotated[int, typer.Option("--workers", min=0, help="Worker processes for decoding.")]
FootageOption = Annotated[list[Path] | None, typer.Option(help="Also test on clips made from these real videos.")]
PicturesOption = Annotated[
    Path | None, typer.Option(help="Folder for a picture per video: enlarged crops around the points, over time.")
]

RecipeArgument = Annotated[
    str, typer.Argument(help="A recipe file, or a packaged recipe by name, as in `trecvit train world`.")
]
OverridesArgument = Annotated[list[str] | None, typer.Argument(help="Values to replace: section.key=value ...")]
ScenesArgument = Annotated[
    str, typer.Argument(help="A tracking recipe; its scenes are rendered with held-out seeds and photographs.")
]
OptionalScenesArgument = Annotated[
    str | None, typer.Argument(help="A tracking recipe; its scenes are rendered with held-out seeds and photographs.")
]
RunOption = Annotated[Path, typer.Option("--to", help="Run folder; an interrupted run in it is resumed.")]
LearningRateOption = Annotated[float, typer.Option("--lr", help="Peak learning rate.")]

NewFolderArgument = Annotated[Path, typer.Argument(help="A new or empty folder.")]
SaveJsonOption = Annotated[Path | None, typer.Option(help="Write the results to a JSON file.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def check_rate(option: str, value: float) -> None:
    """Raise a ConfigError that names the option unless its value is a number above 0."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"{option}: expected a number above 0, got {value:g}")


def load_model(model: str, device: str) -> TRecViT:
    """Load the model that --model names, with a bar while it downloads."""
    from trecvit.model.trecvit import TRecViT
    from trecvit.weights.load import load_as

    with download_bar() as progress:
        return load_as(TRecViT, model, device=device, progress=progress)


def load_fast(model: str, device: str, dtype: str, mode: str) -> TRecViT:
    """Load a model and optimise it by --dtype and --mode; exported models (`trecvit export`) are loaded as they are."""
    from trecvit.accelerate.exported import is_exported, load_exported_as
    from trecvit.model.trecvit import TRecViT

    if is_exported(model):
        return load_exported_as(TRecViT, model)
    return fast(load_model(model, device), dtype, mode)


def absolute_model(model: str) -> str:
    """Return --model, absolute if it is a path: Ray's processes have other working folders."""
    from trecvit.weights.load import BUNDLED
    from trecvit.weights.zoo import ZOO

    return str(Path(model).absolute()) if model not in (*BUNDLED, *ZOO) and Path(model).exists() else model


def gpus_of_actor(device: str) -> int:
    """Return how many GPUs a Ray actor needs for --device.

    Raises:
        ConfigError: A numbered GPU, since Ray chooses it.
    """
    if ":" in device:
        raise ConfigError(f"--device: expected cpu or cuda with --ray, which chooses the GPU, got {device}")
    return int(device == "cuda")


def load_tracker(model: str, device: str) -> PointTracker:
    """`load_model` for point trackers."""
    from trecvit.model.tracker import PointTracker
    from trecvit.weights.load import load_as

    with download_bar() as progress:
        return load_as(PointTracker, model, device=device, progress=progress)


def load_fast_tracker(model: str, device: str, dtype: str, mode: str) -> PointTracker:
    """`load_fast` for point trackers."""
    from trecvit.accelerate.exported import is_exported, load_exported_as
    from trecvit.model.tracker import PointTracker

    if is_exported(model):
        return load_exported_as(PointTracker, model)
    return fast(load_tracker(model, device), dtype, mode)


def fast(network: _Model, dtype: str, mode: str) -> _Model:
    """Optimise a model by --dtype and --mode."""
    from trecvit.accelerate.kernels import DTYPES
    from trecvit.accelerate.optimize import optimize

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    return optimize(network, dtype=DTYPES[dtype], mode=mode)


def track_scenes_of(recipe: str) -> TrackSceneConfig:
    """Read the scenes of a recipe that trains a tracker.

    Raises:
        ConfigError: for another recipe.
    """
    from trecvit.train.recipe import load_recipe
    from trecvit.train.tasks.track import TrackTask

    task = load_recipe(recipe).task
    if not isinstance(task, TrackTask) or task.tracks.scenes is None:
        raise ConfigError(f"{recipe}: expected a recipe with tracks.scenes, such as track_world")
    return task.tracks.scenes


def default_part(split: int | None, part: str | None, default: str) -> str | None:
    """Return --part, or its default where --split is given."""
    return default if part is None and split is not None else part


def manifest_of(
    data: str,
    videos: str | None,
    labels: str | None,
    unknown: list[tuple[str, str]] | None = None,
    *,
    split: int | None = None,
    part: str | None = None,
    folder_of: Literal["train", "validation"] | None = None,
) -> Manifest:
    """List the videos of a data set and print remarks such as skipped files; see `trecvit.data.layouts.read_manifest`.

    Args:
        data: Its folder or list.
        videos: Folder of the videos of a list.
        labels: Names of the classes.
        unknown: Receives (video, class) of videos whose class does not exist.
        split: Official split, as `trecvit.data.layouts.DataSource` has it.
        part: Of that split.
        folder_of: The subfolder to read of a folder with `train/` and `val/`.
    """
    from trecvit.data.layouts import DataSource, read_manifest, split_of

    path = split_of(data, folder_of) if folder_of else data
    source = DataSource(path=path, videos=videos, labels=labels, split=split, part=part)
    manifest = read_manifest(source, unknown=unknown)
    for remark in manifest.remarks():
        notify(remark)
    return manifest
