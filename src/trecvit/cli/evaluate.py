"""Commands that measure how well a model does."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trecvit.cli.app import app, eval_app
from trecvit.cli.options import (
    DataArgument,
    DeviceOption,
    JsonOption,
    LabelsOption,
    ModelOption,
    TrackerOption,
    VideosOption,
    check_rate,
    load_model,
    load_tracker,
    manifest_of,
)
from trecvit.cli.sources import expand_paths
from trecvit.cli.terminal import console, name_failures, print_facts, progress_bar, progress_bars
from trecvit.errors import ConfigError
from trecvit.files import check_output, only_writer, write_json

if TYPE_CHECKING:
    from trecvit.evaluate.features import Encoder
    from trecvit.model.tracker import Tracker


@eval_app.command("videos")
def eval_videos(
    data: DataArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder for result.json and scores.npz.")],
    model: ModelOption = "motions",
    videos: VideosOption = None,
    labels: LabelsOption = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips of each video.")] = 4,
    crops: Annotated[int, typer.Option(min=1, help="Crops of each clip, 1 or 3.")] = 3,
    views_at_once: Annotated[int, typer.Option(min=1, help="Views in one batch; fewer need less memory.")] = 12,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 1,
    device: DeviceOption = "cpu",
) -> None:
    """Classify every video of a data set: top-1, top-5, mean class accuracy, calibration, confusions.

    A video that cannot be read is listed by name and makes the exit code 1; it is never replaced by another.

    Several processes: torchrun --nproc-per-node 8 -m trecvit eval videos DATA --to FOLDER
    """
    from trecvit.evaluate.scores import write_result
    from trecvit.evaluate.videos import evaluate_videos, protocol, views_protocol
    from trecvit.processes import Processes, joined

    manifest = manifest_of(data, videos, labels)
    with joined():
        processes = Processes(device)
        with only_writer(to) if processes.first else nullcontext():
            network = load_model(model, str(processes.device))
            num_mine = len(processes.share.of(manifest.videos))
            with progress_bar("videos", num_mine, hidden=not processes.first) as advance:
                scores, failures = evaluate_videos(
                    network,
                    manifest,
                    num_clips=clips,
                    num_crops=crops,
                    views_at_once=views_at_once,
                    num_workers=workers,
                    processes=processes,
                    report=advance,
                )
            if not processes.first:
                return
            said = protocol(network, manifest, checkpoint=model, looked_at=views_protocol(clips, crops))
            result = write_result(to, scores, said, failures)
    shares = {name: f"{result[name]:.2%}" for name in ("top1", "top5", "mean_class_accuracy", "calibration_error")}
    print_facts({"videos": result["good"], "failed": len(failures), "missing": len(manifest.missing), **shares})
    print(to / "result.json")
    name_failures(failures)


@eval_app.command("early")
def eval_early(
    data: DataArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder for a result per readout and part.")],
    model: ModelOption = "motions",
    videos: VideosOption = None,
    labels: LabelsOption = None,
    half_life: Annotated[float, typer.Option(help="Of the exponential readout, in frames seen.")] = 8.0,
    window: Annotated[int, typer.Option(min=1, help="Of the windowed readout, in frames seen.")] = 16,
    device: DeviceOption = "cpu",
) -> None:
    """Stream every video of a data set: how often is the answer right after 25, 50, 75 and 100 % of it?"""
    from rich.table import Table

    from trecvit.evaluate.early import READOUTS, Readouts, evaluate_early
    from trecvit.evaluate.scores import write_result
    from trecvit.evaluate.videos import protocol

    network, manifest = load_model(model, device), manifest_of(data, videos, labels)
    parts = (0.25, 0.5, 0.75, 1.0)
    readouts = Readouts(half_life=half_life, window=window)
    with only_writer(to):
        with progress_bar("videos", len(manifest.videos)) as advance:
            found, failures = evaluate_early(network, manifest, parts=parts, readouts=readouts, report=advance)
        looked_at = {"sampler": "streamed once, middle crop", "half_life": half_life, "window": window}
        said = protocol(network, manifest, checkpoint=model, looked_at=looked_at)
        table = Table("readout", *(f"{part:.0%}" for part in parts), box=None, pad_edge=False)
        for name in READOUTS:
            top1 = []
            for part in parts:
                asked = {**said, "readout": name, "part": part}
                result = write_result(to / f"{name}_{part:.2f}", found[name, part], asked, failures)
                top1.append(f"{result['top1']:.1%}")
            table.add_row(name, *top1)
    console().print(table)
    name_failures(failures)


@eval_app.command("tapvid")
def eval_tapvid(
    data: Annotated[
        Path,
        typer.Argument(
            help="TAP-Vid's .pkl or a folder of them, Perception Test's .json, or a folder of .npz track files."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder for result.json.")],
    model: TrackerOption = "bootstapnext",
    baseline: Annotated[
        str | None,
        typer.Option(help="Instead of a model: still (points stay where they are) or lk (optical flow of OpenCV)."),
    ] = None,
    query_mode: Annotated[str, typer.Option(help="first, or strided.")] = "first",
    certainty: Annotated[
        bool, typer.Option("--certainty", help="Visible if probability x certainty > 1/2, as TAPIR has it.")
    ] = False,
    queries_at_once: Annotated[
        int | None, typer.Option(min=1, help="Points followed together.", show_default="all of a video")
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Perception Test: folder of its videos.")] = None,
    split: Annotated[str | None, typer.Option(help="Perception Test: train, valid or test.")] = None,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for a picture of each video: points from near, over time.")
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """Follow the points of TAP-Vid and its like: average Jaccard, δ-average and occlusion accuracy.

    A video that cannot be scored is listed by name and makes the exit code 1.
    """
    from trecvit.data.tapvid import read_tracked
    from trecvit.evaluate.tapvid import QUERY_MODES, evaluate_tapvid, tapvid_protocol, write_tapvid_result
    from trecvit.evaluate.track_pictures import saved_in

    if query_mode not in QUERY_MODES:
        raise ConfigError(f"--query-mode: expected {' or '.join(QUERY_MODES)}, got {query_mode!r}")
    name, tracker, image_size = _tracker(model, baseline, device)
    tracked = read_tracked(data, videos=videos, split=split, image_size=image_size)
    asked: dict[str, Any] = {
        "query_mode": query_mode,
        "use_certainty": certainty,
        "queries_at_once": queries_at_once,
        "image_size": image_size,
    }
    with only_writer(to), only_writer(pictures) if pictures else nullcontext():
        with progress_bar("videos", len(tracked)) as advance:
            scores, failures = evaluate_tapvid(
                tracker, tracked, **asked, device=device, report=advance, show=saved_in(pictures)
            )
        result = write_tapvid_result(to, scores, tapvid_protocol(tracked, tracker=name, **asked), failures)
    titles = {
        "average Jaccard": "average_jaccard",
        "δ-average": "average_pts_within_thresh",
        "occlusion accuracy": "occlusion_accuracy",
    }
    shares = {title: f"{result[metric]:.1%}" for title, metric in titles.items()}
    print_facts({"tracker": name, "videos": result["good"], "failed": len(failures), **shares})
    print(to / "result.json")
    name_failures(failures)


def _tracker(model: str, baseline: str | None, device: str) -> tuple[str, Tracker, tuple[int, int]]:
    """What is evaluated: its name, itself, and the size of the frames that it sees."""
    from trecvit.evaluate.point_baselines import LucasKanade, static_points
    from trecvit.evaluate.tapvid import IMAGE_SIZE

    if baseline is None:
        network = load_tracker(model, device)
        return model, network, network.preprocessing.image_size
    if baseline not in ("still", "lk"):
        raise ConfigError(f"--baseline: expected still or lk, got {baseline!r}")
    return baseline, static_points if baseline == "still" else LucasKanade(), IMAGE_SIZE


@eval_app.command("points")
def eval_points(
    recipe: Annotated[str, typer.Argument(help="Its scenes are rendered, with another seed and photographs.")],
    save: Annotated[Path, typer.Option(help="JSON file for the scores.")],
    model: TrackerOption = "points",
    scenes: Annotated[int, typer.Option(min=1, help="How many held-out scenes.")] = 100,
    num_frames: Annotated[int, typer.Option(min=2, help="Frames of a scene.")] = 24,
    footage: Annotated[list[Path] | None, typer.Option(help="Real videos whose frames are moved.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips of each of these videos.")] = 10,
    pictures: Annotated[
        Path | None, typer.Option(help="Folder for a picture of each scene and clip: points from near, over time.")
    ] = None,
    device: DeviceOption = "cpu",
) -> None:
    """A tracker beside points that stay and optical flow: average Jaccard, δ-average, occlusion accuracy."""
    from dataclasses import replace

    from rich.table import Table

    from trecvit.evaluate.point_comparison import METRICS, compare_trackers, to_dict
    from trecvit.train.recipe import load_recipe

    check_output(save)
    tracks = load_recipe(recipe).tracks
    if tracks is None or tracks.scenes is None:
        raise ConfigError(f"{recipe}: expected a recipe with tracks.scenes")
    look = replace(tracks.scenes, num_frames=num_frames)
    videos = expand_paths(footage)
    with progress_bar("scores", 9 if videos else 3) as advance:
        found = compare_trackers(
            load_tracker(model, device),
            scenes=look,
            num_scenes=scenes,
            footage=videos,
            clips_per_video=clips,
            pictures=pictures,
            report=advance,
        )
    write_json(save, to_dict(found, scenes=look, footage=videos))
    table = Table("videos", "tracker", "average Jaccard", "δ-average", "occlusion accuracy", box=None, pad_edge=False)
    for one in found:
        table.add_row(one.test, one.tracker, *(f"{one.metrics[metric]:.1%}" for metric in METRICS))
    console().print(table)


@eval_app.command("world")
def eval_world(
    model: ModelOption = "motions",
    clips: Annotated[int, typer.Option(min=36, help="Clips per test; an even number.")] = 1800,
    footage: Annotated[
        list[Path] | None, typer.Option(help="Real videos: also play the world's motions on their frames.")
    ] = None,
    seed: Annotated[int, typer.Option(min=1, help="Of the test scenes; recipes train on seed 0.")] = 1,
    save: Annotated[Path | None, typer.Option(help="Write the figures to a JSON file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Test a model of the world's motions on scenes, textures and footage that it never saw."""
    from trecvit.evaluate.world import report_world

    check_output(save)
    network = load_model(model, "cpu")
    num_tests = 3 if footage else 1
    with progress_bar("clips", num_tests * clips, hidden=as_json) as advance:
        report = report_world(network, num_clips=clips, seed=seed, footage=expand_paths(footage), report=advance)
    if save:
        write_json(save, report, indent=2)
    if as_json:
        print(json.dumps(report, indent=2))
        return
    _print_tests(report["tests"])


def _print_tests(tests: list[dict[str, Any]]) -> None:
    from rich.table import Table

    summary = Table("test", "clips", "top-1", "right or opposite", box=None, pad_edge=False)
    for test in tests:
        summary.add_row(test["name"], str(test["num_clips"]), f"{test['top1']:.1%}", f"{test['pair']:.1%}")
    console().print(summary)
    classes = Table("class", *(test["name"] for test in tests), "taken for", box=None, pad_edge=False)
    for label in tests[0]["by_class"]:
        shares = (f"{test['by_class'][label]:.0%}" if label in test["by_class"] else "" for test in tests)
        classes.add_row(label, *shares, tests[0]["confused_with"][label])
    console().print(classes)


@app.command()
def probe(
    data: Annotated[str, typer.Option("--data", help="Videos that the probes learn from, in any of the forms.")],
    validation: Annotated[str, typer.Option(help="Videos that they are tested on; of the same classes.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for the features, kept for the next time, and probe.json.")],
    model: ModelOption = "motions",
    videomae: Annotated[
        Path | None, typer.Option(help="Instead of a TRecViT: a folder of transformers' VideoMAE, to compare with.")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Of a VideoMAE's frames; a TRecViT knows its own.")] = 4,
    videos: VideosOption = None,
    labels: LabelsOption = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips of each video.")] = 1,
    crops: Annotated[int, typer.Option(min=1, help="Crops of each clip, 1 or 3.")] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Of the attention readout.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per update of the attention readout.")] = 32,
    learning_rate: Annotated[float, typer.Option("--lr", help="Its peak.")] = 3e-4,
    width: Annotated[int, typer.Option(min=0, help="Its width.", show_default="that of the features")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Runs that mean and deviation are of.")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """What is in a model's frozen features: linear, nearest-neighbour and attention probes, beside random features.

    Features are computed once and kept; a folder that holds those of another model, or of other videos, is refused. A
    video that cannot be read is listed by name and makes the exit code 1.
    """
    from rich.table import Table

    from trecvit.train.probe import ProbePlan
    from trecvit.train.probe import probe as run_probes

    check_rate("--lr", learning_rate)
    encoder, fresh = _videomae(videomae, stride, device) if videomae else _trecvit(model, device)
    plan = ProbePlan(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        width=width,
        num_clips=clips,
        num_crops=crops,
        num_seeds=seeds,
    )
    with progress_bars(hidden=as_json) as report:
        result, failures = run_probes(
            encoder,
            fresh,
            manifest_of(data, videos, labels, split="train").for_classifier(),
            manifest_of(validation, videos, labels, split="validation"),
            to,
            plan,
            num_workers=workers,
            device=device,
            report=report,
        )
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        table = Table("probe", "features", "top-1", "seconds", box=None, pad_edge=False)
        for row in sorted(result["rows"], key=lambda row: str(row["probe"])):
            spread = f"{row['mean']:.1%} ± {row['deviation']:.1%}"
            table.add_row(row["probe"], row["features"], spread, f"{row['seconds_per_seed']:.1f}")
        console().print(table)
        print(to / "probe.json")
    name_failures(failures)


def _trecvit(model: str, device: str) -> tuple[Encoder, Callable[[int], Encoder]]:
    """What is probed, and the same with the first weights of a seed."""
    from trecvit.evaluate.features import trecvit_encoder
    from trecvit.train.probe import fresh_trecvit

    network = load_model(model, device)
    return trecvit_encoder(network, model), lambda seed: trecvit_encoder(fresh_trecvit(network, seed), f"seed {seed}")


def _videomae(folder: Path, stride: int, device: str) -> tuple[Encoder, Callable[[int], Encoder]]:
    """Likewise."""
    from trecvit.baselines.video_transformers import fresh_videomae, load_videomae, videomae_encoder

    network = load_videomae(folder).to(device)

    def fresh(seed: int) -> Encoder:
        return videomae_encoder(fresh_videomae(network, seed), f"seed {seed}", frame_stride=stride)

    return videomae_encoder(network, str(folder), frame_stride=stride), fresh
