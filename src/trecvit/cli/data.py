"""Commands that make, check and pack data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trecvit.cli.app import data_app
from trecvit.cli.options import (
    DataArgument,
    LabelsOption,
    VideosOption,
    manifest_of,
)
from trecvit.cli.terminal import complain, print_facts, progress_bar
from trecvit.files import only_writer


@data_app.command("render")
def data_render(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    num_train: Annotated[int, typer.Option("--train", min=0, help="Training clips, an even number.")] = 360,
    num_validation: Annotated[int, typer.Option("--validation", min=0, help="Validation clips, an even number.")] = 72,
    size: Annotated[int, typer.Option(min=32, help="Side of the frames in pixels.")] = 96,
    frames: Annotated[int, typer.Option(min=2, help="Frames per clip.")] = 16,
    fps: Annotated[float, typer.Option(min=0.1, help="Frames per second of the files.")] = 12.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    suffix: Annotated[str, typer.Option(help=".webm, .mp4, or .mkv without loss.")] = ".webm",
    photographs: Annotated[bool, typer.Option(help="Cut surfaces from scikit-image's photographs too.")] = False,
    pictures: Annotated[
        Path | None, typer.Option(help="A folder of your own pictures, for surfaces; see-through ones become objects.")
    ] = None,
    easy: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of training scenes with nothing in them but what happens.")
    ] = 0.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render.")] = 2,
) -> None:
    """Write the synthetic world as real video files, in the layout of Something-Something-v2."""
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
    to: Annotated[Path, typer.Option("--to", help="Folder for the journal, the report and the clean list.")],
    videos: VideosOption = None,
    labels: LabelsOption = None,
    min_frames: Annotated[int, typer.Option(min=1, help="Call videos with fewer frames too short.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that decode.")] = 2,
) -> None:
    """Decode every video of a data set and list what is damaged, too short, double or missing.

    Goes on where it was interrupted. Exit code 1 if anything is wrong; for data in files clean.txt lists what is good.
    """
    from trecvit.data.check import check_videos

    unknown: list[tuple[str, str]] = []
    manifest = manifest_of(data, videos, labels, unknown)
    with only_writer(to), progress_bar("videos", len(manifest.videos)) as advance:
        report = check_videos(manifest, to, unknown=unknown, min_frames=min_frames, num_workers=workers, report=advance)
    counts = {
        "listed": report["listed"],
        "missing": len(report["missing"]),
        "cannot be decoded": len(report["failed"]),
        "too short": len(report["too_short"]),
        "there more than once": len(report["duplicates"]),
        "of these, with different classes": sum(not group["agree"] for group in report["duplicates"]),
        "of a class that there is not": len(unknown),
        "without a class": report["without_class"],
        "classes without a video": len(report["classes_without_video"]),
        "can be decoded": report["good"],
    }
    print_facts(counts)
    for failure in report["failed"][:10]:
        complain(f"{failure['name']}: {failure['reason']}")
    for name, label in unknown[:10]:
        complain(f"{name}: there is no class {label!r}")
    print(to / "report.json")
    if any(report[kind] for kind in ("missing", "failed", "too_short", "duplicates", "unknown_class")):
        raise typer.Exit(1)


@data_app.command("shard")
def data_shard(
    data: DataArgument,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    videos: VideosOption = None,
    labels: LabelsOption = None,
    shard_mb: Annotated[int, typer.Option("--shard-mb", min=1, help="Close a shard at this size.")] = 1000,
) -> None:
    """Pack a data set into tar shards, as WebDataset reads and writes them."""
    from trecvit.data.shards import write_shards

    manifest = manifest_of(data, videos, labels)
    with progress_bar("videos", len(manifest.videos)) as advance:
        shards = write_shards(manifest, folder, shard_bytes=shard_mb * 1_000_000, report=advance)
    print(f"{folder}: {len(manifest.videos):,} videos in {len(shards):,} shards")
