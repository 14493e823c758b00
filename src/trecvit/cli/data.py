"""Commands that render, check and pack data sets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trecvit.cli.app import data_app
from trecvit.cli.options import (
    DataArgument,
    LabelsOption,
    NewFolderArgument,
    PartOption,
    SplitOption,
    VideosOption,
    default_part,
    manifest_of,
)
from trecvit.cli.terminal import notify, print_facts, progress_bar
from trecvit.errors import ConfigError
from trecvit.files import only_writer, write_json

if TYPE_CHECKING:
    from trecvit.data.sparse_tracks import SparseVideos


@data_app.command("render")
def data_render(
    folder: NewFolderArgument,
    num_train: Annotated[int, typer.Option("--train", min=0, help="Number of training clips, even.")] = 360,
    num_validation: Annotated[int, typer.Option("--validation", min=0, help="Number of validation clips, even.")] = 72,
    size: Annotated[int, typer.Option(min=32, help="Height and width of the frames in pixels.")] = 96,
    frames: Annotated[int, typer.Option(min=2, help="Frames per clip.")] = 16,
    fps: Annotated[float, typer.Option(min=0.1, help="Frame rate.")] = 12.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    suffix: Annotated[str, typer.Option(help=".webm, .mp4, or .mkv (lossless).")] = ".webm",
    photographs: Annotated[bool, typer.Option(help="Also use scikit-image's photographs as textures.")] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder of your own pictures for textures; transparent ones become objects.")
    ] = None,
    easy: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of training scenes without distractors.")] = 0.0,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes for rendering.")] = 2,
) -> None:
    """Render a data set of the synthetic world as video files, in the layout of Something-Something-v2."""
    from trecvit.synthetic.pictures import load_pictures
    from trecvit.synthetic.pictures import photographs as read_photographs
    from trecvit.synthetic.render import render_data_set
    from trecvit.synthetic.world import World, WorldConfig

    surfaces = read_photographs("train") if photographs else []
    surfaces += load_pictures(pictures) if pictures else []
    world = World(WorldConfig(num_frames=frames, image_size=(size, size)), seed=seed, pictures=surfaces)
    with only_writer(folder), progress_bar("clips", num_train + num_validation) as advance:
        render_data_set(
            world,
            folder,
            num_clips={"train": num_train, "validation": num_validation},
            easy_share=easy,
            fps=fps,
            suffix=suffix,
            num_workers=workers,
            report=advance,
        )
    print(folder)


@data_app.command("check")
def data_check(
    data: DataArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder for the journal, report.json and clean.txt.")],
    videos: VideosOption = None,
    labels: LabelsOption = None,
    split: SplitOption = None,
    part: PartOption = None,
    masks: Annotated[Path | None, typer.Option(help="For BADJA's joints: a folder of masks per video.")] = None,
    min_frames: Annotated[int, typer.Option(min=1, help="Videos with fewer frames count as too short.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes for decoding.")] = 2,
) -> None:
    """Decode every video of a data set and list damaged, short, duplicate and missing ones.

    An interrupted check is resumed. Exit code 1 if there are any; for data in files, clean.txt lists the good videos.

    DATA may also be BADJA's folder of joints or a csv of TAP-Vid's points in first and last frames.
    """
    from trecvit.data.check import check_videos
    from trecvit.data.sparse_tracks import read_sparse

    if tracks := read_sparse(data, frames=videos, masks=masks):
        _check_sparse(tracks, to)
        return
    if masks is not None:
        raise ConfigError(f"--masks: expected BADJA's folder of joints with it, got {data}")
    unknown: list[tuple[str, str]] = []
    manifest = manifest_of(data, videos, labels, unknown, split=split, part=default_part(split, part, "all"))
    with only_writer(to), progress_bar("videos", len(manifest.videos)) as advance:
        report = check_videos(manifest, to, unknown=unknown, min_frames=min_frames, num_workers=workers, report=advance)
    counts = {
        "listed": report["listed"],
        "missing": len(report["missing"]),
        "cannot be decoded": len(report["failed"]),
        "too short": len(report["too_short"]),
        "duplicates": len(report["duplicates"]),
        "duplicates with different classes": sum(not group["agree"] for group in report["duplicates"]),
        "of an unknown class": len(unknown),
        "without a class": report["without_class"],
        "classes without a video": len(report["classes_without_video"]),
        "can be decoded": report["good"],
    }
    print_facts(counts)
    for failure in report["failed"][:10]:
        notify(f"{failure['name']}: {failure['reason']}")
    for name, label in unknown[:10]:
        notify(f"{name}: unknown class {label!r}")
    print(to / "report.json")
    if any(report[kind] for kind in ("missing", "failed", "too_short", "duplicates", "unknown_class")):
        raise typer.Exit(1)


def _check_sparse(tracks: SparseVideos, to: Path) -> None:
    """Check videos with sparse point tracks."""
    from trecvit.data.sparse_tracks import check_sparse

    with only_writer(to), progress_bar("videos", len(tracks.readers)) as advance:
        report = check_sparse(tracks, advance)
        write_json(to / "report.json", report, indent=2)
    outside = [video["name"] for video in report["videos"] if video["outside"]]
    print_facts(
        {
            "listed": report["listed"],
            "missing": len(report["missing"]),
            "cannot be read": len(report["failed"]),
            "with points outside the picture": len(outside),
            "can be read": report["good"],
        }
    )
    for entry in (*report["missing"], *report["failed"]):
        notify(f"{entry['name']}: {entry['reason']}")
    print(to / "report.json")
    if report["missing"] or report["failed"] or outside:
        raise typer.Exit(1)


@data_app.command("shard")
def data_shard(
    data: DataArgument,
    folder: NewFolderArgument,
    videos: VideosOption = None,
    labels: LabelsOption = None,
    split: SplitOption = None,
    part: PartOption = None,
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="Size of a shard in MB.")] = 1000,
) -> None:
    """Pack a data set into WebDataset tar shards."""
    from trecvit.data.shards import write_shards

    manifest = manifest_of(data, videos, labels, split=split, part=default_part(split, part, "train"))
    with progress_bar("videos", len(manifest.videos)) as advance:
        shards = write_shards(manifest, folder, shard_bytes=shard_mb * 1_000_000, report=advance)
    print(f"{folder}: {len(manifest.videos):,} videos in {len(shards):,} shards")
