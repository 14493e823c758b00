"""Commands that run, describe, convert and export a model."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trecvit.cli.app import FILES, USE, app
from trecvit.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    LabelsOption,
    LatestOption,
    ModelOption,
    ModeOption,
    NewFolderArgument,
    ReconnectOption,
    SaveVideoOption,
    SourceArgument,
    WeightsArgument,
    absolute_model,
    gpus_of_actor,
    load_fast,
    load_model,
)
from trecvit.cli.outputs import check_file, check_folder
from trecvit.cli.recording import Recording, video_writer
from trecvit.cli.sources import expand_one, expand_source, open_source
from trecvit.cli.terminal import (
    console,
    download_bar,
    full_bar,
    live_panel,
    notify,
    print_facts,
    print_json,
    print_table,
    probability_bar,
    progress_bar,
    row_printer,
)
from trecvit.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from trecvit.model.trecvit import TRecViT
    from trecvit.runtime.predict import Prediction
    from trecvit.runtime.stream import Update
    from trecvit.video.decode import Video

_Show = Callable[["Update", list[tuple[str, float]]], None]
_View = Callable[[str, int | None], AbstractContextManager[_Show]]


@app.command(rich_help_panel=USE)
def classify(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help='Video files, folders of images, .npy arrays, URLs of finite videos, or "*.mp4" patterns.'),
    ] = None,
    model: ModelOption = "motions",
    clips: Annotated[int, typer.Option(min=1, help="Clips per video, averaged.")] = 4,
    top: Annotated[int, typer.Option(min=1, help="Number of classes to print.")] = 5,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    mode: ModeOption = "eager",
    as_json: JsonOption = False,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--ray",
            metavar="MANIFEST",
            help="Instead of SOURCES: a folder of videos, a list of paths, or shards, classified on a Ray cluster.",
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="With --ray: folder of the results; the same command resumes.")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="With --ray: processes. Default: one for each CPU or GPU.")
    ] = None,
) -> None:
    """Classify whole videos; for cameras and live streams see `trecvit stream`.

    Each result is printed as soon as it is computed. Unreadable files are listed and make the exit code 1.
    With --ray, results are written to a folder, and videos that have one there are not classified again.
    """
    if corpus is not None:
        if sources or to is None:
            raise ConfigError(f"--ray {corpus}: expected --to FOLDER and no SOURCES, got others; see --help")
        key = {"model": absolute_model(model), "clips": clips, "top": top, "dtype": dtype, "mode": mode}
        load = partial(load_fast, absolute_model(model), device, dtype, mode)
        _classify_on_ray(corpus, to, key, load, actors=actors, num_gpus=gpus_of_actor(device), as_json=as_json)
        return
    if not sources or to is not None or actors is not None:
        raise ConfigError("expected SOURCES without --to and --actors, or --ray MANIFEST, got others; see --help")
    from trecvit.runtime.predict import class_labels
    from trecvit.runtime.predict import classify as classify_video

    videos = [video for source in sources for video in _expanded(source)]
    network = load_fast(model, device, dtype, mode)
    show = _print_prediction if as_json else _prediction_table(list(map(str, videos)), class_labels(network))
    failures = 0
    many = len(videos) > 1
    with progress_bar("videos" if many else "reading", len(videos) if many else None, hidden=as_json) as advance:
        for number, video in enumerate(videos, start=1):
            try:
                if isinstance(video, VideoError):
                    raise video
                prediction = classify_video(network, video, num_clips=clips, top_k=top)
            except VideoError as error:
                failures += 1
                notify(str(error))
                if as_json:
                    source = error.source if video is error else video
                    print(json.dumps({"source": source, "error": str(error)}), flush=True)
                continue
            finally:
                advance(number)
            show(video, prediction)
    if failures:
        notify(f"{failures} of {len(videos)} videos could not be read")
        raise typer.Exit(1)


def _classify_on_ray(
    corpus: str,
    to: Path,
    key: dict[str, Any],
    load: Callable[[], TRecViT],
    *,
    actors: int | None,
    num_gpus: int,
    as_json: bool,
) -> None:
    """Classify the videos of a manifest that have no result in a folder yet."""
    from trecvit.data.layouts import read_unlabelled
    from trecvit.runtime.cluster import cluster
    from trecvit.runtime.corpus import classify_corpus, open_results

    check_folder("--to", to)
    manifest = read_unlabelled(corpus)
    for remark in manifest.remarks():
        notify(remark)
    total = len(manifest.videos) + len(manifest.missing)
    failures = 0
    with open_results(to, key) as results, cluster():
        done = sum(video.name in results.sources for video in manifest.videos)
        if done:
            notify(f"{done} of {total} videos have a result in {to}")
        rows = classify_corpus(
            manifest, load, results, num_clips=key["clips"], top_k=key["top"], num_actors=actors, num_gpus=num_gpus
        )
        with progress_bar("videos", total, hidden=as_json) as advance:
            advance(done)
            for number, row in enumerate(rows, start=done + 1):
                if "error" in row:
                    failures += 1
                    notify(row["error"])
                if as_json:
                    print(json.dumps(row), flush=True)
                advance(number, failures)
    if not as_json:
        print(to)
    if failures:
        notify(f"{failures} of {total} videos could not be read")
        raise typer.Exit(1)


def _expanded(source: str) -> Sequence[str | VideoError]:
    """The videos that an argument names; a pattern without a match counts as an unreadable video."""
    try:
        return expand_source(source)
    except VideoError as error:
        return [error]


def _print_prediction(video: str, prediction: Prediction) -> None:
    print(json.dumps(prediction.to_dict(video)), flush=True)


def _prediction_table(videos: Sequence[str], labels: Sequence[str]) -> Callable[[str, Prediction], None]:
    """Print predictions as rows of one table, as they are computed."""
    from rich.cells import cell_len

    length = full_bar()
    columns = {"video": videos, "class": labels, "probability": [f"{1:6.1%} {probability_bar(1, length)}"]}
    print_rows = row_printer(list(columns), [max(map(cell_len, (title, *cells))) for title, cells in columns.items()])

    def show(video: str, prediction: Prediction) -> None:
        best = zip(prediction.labels, prediction.probs, strict=True)
        print_rows(
            [
                ("" if rank else video, label, f"{probability:6.1%} {probability_bar(probability, length)}")
                for rank, (label, probability) in enumerate(best)
            ]
        )

    return show


@app.command(rich_help_panel=USE)
def stream(
    source: SourceArgument,
    model: ModelOption = "motions",
    top: Annotated[int, typer.Option(min=1, help="Number of classes to show.")] = 3,
    stride: Annotated[int | None, typer.Option(min=1, help="Use every n-th frame; default: as in training.")] = None,
    restart_every: Annotated[int | None, typer.Option(min=1, help="Reset the state after n used frames.")] = None,
    latest: LatestOption = None,
    reconnect: ReconnectOption = 60.0,
    save: SaveVideoOption = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    mode: ModeOption = "eager",
    as_json: JsonOption = False,
) -> None:
    """Classify a video or live stream frame by frame, with constant memory.

    Shows a live view on a terminal; otherwise, or with --json, prints one JSON line per frame. Ctrl-C ends it and
    keeps the video saved so far. A camera or stream that is lost is opened again, and the state is kept.
    """
    source = expand_one(source)
    _check_saved(save, source, model)
    network = load_fast(model, device, dtype, mode)
    show = _print_lines if as_json or not sys.stdout.isatty() else _live_view
    opening = open_source(source, latest=latest, reconnect_s=reconnect)
    _run_stream(network, source, opening, top=top, stride=stride, restart_every=restart_every, save=save, show=show)


@app.command(rich_help_panel=USE)
def demo(
    video: Annotated[str | None, typer.Argument(help="Your video; by default one is rendered.")] = None,
    save: Annotated[Path, typer.Option(help="The annotated .mp4 or .webm to write.")] = Path("demo.mp4"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rendered scenes.")] = 2026,
) -> None:
    """Stream a video through the bundled model and write an annotated video."""
    import tempfile

    from trecvit.runtime.demo import render_scenes
    from trecvit.video.decode import open_video

    video = video and expand_one(video)
    _check_saved(save, video or "")
    network = load_model("motions", "cpu")
    restart_every = network.preprocessing.num_frames  # a scene lasts as long as a training clip
    if video is not None:
        opening = open_video(video)
        predictions = _run_stream(
            network, video, opening, stride=None, restart_every=restart_every, save=save, show=_demo_view
        )
        if not sys.stdout.isatty():
            frequent = Counter(predictions).most_common(3)
            classes = ", ".join(f"{label} ({count} times)" for label, count in frequent)
            print(f"{video}: classified {len(predictions)} times, every {restart_every} used frames: {classes}")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scenes.mp4"
        truths = render_scenes(path, seed=seed)
        predictions = _run_stream(
            network,
            str(path),
            open_video(path),
            stride=None,
            restart_every=restart_every,
            save=save,
            show=_demo_view,
            truths=truths,
        )
    if not sys.stdout.isatty():
        for number, (prediction, truth) in enumerate(zip(predictions, truths, strict=True), start=1):
            print(f"scene {number}: {prediction}" + ("" if prediction == truth else f" (truth: {truth})"))
    right = sum(prediction == truth for prediction, truth in zip(predictions, truths, strict=True))
    console(stderr=True).print(f"{right} of {len(truths)} scenes were classified correctly at their last frame.")


@app.command(rich_help_panel=USE)
def info(model: WeightsArgument, as_json: JsonOption = False) -> None:
    """Describe a model: architecture, size, cost per frame, classes, provenance."""
    from trecvit.runtime.describe import describe
    from trecvit.weights.load import load

    with download_bar() as progress:
        facts = describe(load(model, progress=progress))
    if as_json:
        print_json(facts)
    else:
        print_facts(facts)


@app.command(rich_help_panel=FILES)
def convert(
    source: WeightsArgument,
    target: Annotated[Path, typer.Argument(help="A .npz file for the official format, else a folder.")],
    labels: LabelsOption = None,
) -> None:
    """Convert weights between the official .npz format and a folder, bit-exactly."""
    from trecvit.weights.load import convert as convert_weights

    if target.suffix == ".npz":
        check_file("TARGET", target, inputs=[source])
    else:
        check_folder("TARGET", target)
    with download_bar() as progress:
        written = convert_weights(source, target, labels=labels, progress=progress)
    print(written)


@app.command("export", rich_help_panel=FILES)
def export_model(
    source: WeightsArgument,
    folder: NewFolderArgument,
    mode: Annotated[
        str,
        typer.Option("--format", "--mode", help="compile (for this kind of processor, AOTInductor), openvino or onnx."),
    ] = "compile",
    dtype: DtypeOption = "float32",
    batch_size: Annotated[int, typer.Option("--batch", min=0, help="Batch size; 0 with onnx: any.")] = 1,
    frames: Annotated[list[int] | None, typer.Option(help="Frames per call: 1 (default) to stream, or a clip.")] = None,
    points: Annotated[int, typer.Option(min=1, help="With onnx: the most points of a tracker at a time.")] = 16,
    weights: Annotated[
        str, typer.Option(help="With onnx: float32, or float16 for half of the file's size.")
    ] = "float32",
) -> None:
    """Export a model ahead of time, so that `trecvit stream VIDEO -m FOLDER` starts without compiling.

    A compiled graph has a fixed batch size and number of frames; repeat --frames for several graphs. With openvino the
    folder also holds stream.xml, a stateful model that runs without Python. With onnx it is the step of one frame, of a
    classifier or a point tracker, for any ONNX runtime, with a manifest that describes it.
    """
    from trecvit.accelerate.exported import export
    from trecvit.accelerate.kernels import FLOATS
    from trecvit.weights.load import load

    if dtype not in FLOATS:
        raise ConfigError(f"--dtype: expected one of {', '.join(FLOATS)}, got {dtype!r}")
    check_folder("FOLDER", folder, empty=True)
    with download_bar() as progress:
        network = load(source, progress=progress)
    written = export(
        network,
        folder,
        mode=mode,
        dtype=FLOATS[dtype],
        batch_size=batch_size or None,
        frames=frames or [1],
        num_points=points,
        weights=weights,
    )
    print(written)


@app.command(rich_help_panel=USE)
def doctor() -> None:
    """Check this installation and machine, and explain failures."""
    from rich.text import Text

    from trecvit.runtime.doctor import examine

    findings = examine()
    marks = {True: Text("ok", "green"), False: Text("no", "red"), None: Text("–", "yellow")}
    print_table(("", "check", "finding"), ((marks[finding.works], finding.name, finding.words) for finding in findings))
    if any(finding.works is False for finding in findings):
        raise typer.Exit(1)


def _check_saved(save: Path | None, *inputs: str) -> None:
    from trecvit.video.encode import SUFFIXES

    check_file("--save", save, suffixes=SUFFIXES, inputs=inputs)


def _run_stream(
    network: TRecViT,
    source: str,
    opening: AbstractContextManager[Video],
    *,
    top: int = 3,
    stride: int | None,
    restart_every: int | None,
    save: Path | None,
    show: _View,
    truths: list[str] | None = None,
) -> list[str]:
    """Stream to a view and to a video; return the top class before restarts and at the end."""
    from trecvit.runtime.predict import class_labels
    from trecvit.runtime.stream import annotate
    from trecvit.runtime.stream import stream as stream_video

    labels = class_labels(network)
    predictions: list[str] = []
    previous = ""
    with Recording() as recording, opening as video:
        info, plan = video.info, network.preprocessing
        if not stride and info.average_fps is None and plan.frame_rate_fps is not None:
            notify(f"{source}: frame rate unknown, using a stride of {plan.frame_stride} frames; set it with --stride")
        stride = stride or plan.stride_for(info.rate_fps)
        updates = stream_video(network, video, stride=stride, restart_every=restart_every)
        view = show(source, info.stated_frames)
        with view as draw, video_writer(save, info.average_fps) as writer, recording.kept():
            for update in recording.until_stopped(updates):
                best = update.top(labels, top)
                if update.is_new:
                    if update.frames_seen == 1 and previous:
                        predictions.append(previous)
                    previous = best[0][0]
                    draw(update, best)
                if writer:
                    truth = f"truth: {truths[min(len(predictions), len(truths) - 1)]}" if truths else ""
                    writer.write(annotate(update, labels, top_k=top, footer=truth), update.time_s)
        recording.report(save)
    return [*predictions, previous]


@contextmanager
def _print_lines(_source: str, _num_frames: int | None) -> Iterator[_Show]:
    """Yield a function that prints one JSON line per update."""

    def print_line(update: Update, best: list[tuple[str, float]]) -> None:
        line = {
            "frame": update.index,
            "time_s": round(update.time_s, 4),
            "frames_seen": update.frames_seen,
            "top": [{"label": label, "probability": round(probability, 6)} for label, probability in best],
        }
        print(json.dumps(line), flush=True)

    yield print_line


@contextmanager
def _live_view(source: str, num_frames: int | None) -> Iterator[_Show]:
    """Yield a function that shows updates in a panel on the terminal."""
    from rich.table import Table
    from rich.text import Text

    length = full_bar()
    with live_panel(source, num_frames) as draw_panel:

        def draw(update: Update, best: list[tuple[str, float]]) -> None:
            table = Table.grid(padding=(0, 2))
            for rank, (label, probability) in enumerate(best):
                style = "bold cyan" if rank == 0 else "dim"
                cells = (label, f"{probability:6.1%}", probability_bar(probability, length))
                table.add_row(*(Text(cell, style) for cell in cells))
            draw_panel(table, update.index, update.time_s)

        yield draw


@contextmanager
def _demo_view(source: str, num_frames: int | None) -> Iterator[_Show]:
    """Yield a function that shows updates in a panel on a terminal, and nowhere else."""
    if sys.stdout.isatty():
        with _live_view(source, num_frames) as draw:
            yield draw
    else:
        yield lambda update, best: None
