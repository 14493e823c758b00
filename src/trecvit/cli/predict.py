"""Commands that run a trained model, or say what it is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trecvit.cli.app import app
from trecvit.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    ModeOption,
    load_fast,
    load_model,
)
from trecvit.cli.outputs import check_file, check_folder
from trecvit.cli.recording import Recording, video_writer
from trecvit.cli.sources import expand_one, expand_source
from trecvit.cli.terminal import (
    bar_letters,
    bar_of,
    complain,
    console,
    download_bar,
    live_panel,
    print_facts,
    progress_bar,
    row_printer,
)
from trecvit.errors import ConfigError, VideoError

if TYPE_CHECKING:
    from trecvit.model.trecvit import TRecViT
    from trecvit.runtime.predict import Prediction
    from trecvit.runtime.stream import Update


@app.command()
def classify(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Video files, folders of images, .npy arrays, URLs of videos that have an end, or patterns such as "
            '"*.mp4".'
        ),
    ],
    model: ModelOption = "motions",
    clips: Annotated[int, typer.Option(min=1, help="Clips per video to average over.")] = 4,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    mode: ModeOption = "eager",
    as_json: JsonOption = False,
) -> None:
    """Say what happens in whole videos. For cameras and live streams, which have no end: trecvit stream.

    Each answer is printed when it is there. A file that cannot be read is listed, the others are still done, and the
    exit code is 1.
    """
    from trecvit.runtime.predict import class_labels
    from trecvit.runtime.predict import classify as classify_video

    videos = [video for source in sources for video in _expanded(source)]
    network = load_fast(model, device, dtype, mode)
    show = _print_answer if as_json else _answer_table(list(map(str, videos)), class_labels(network))
    failures = 0
    many = len(videos) > 1
    with progress_bar("videos" if many else "reading", len(videos) if many else None, hidden=as_json) as advance:
        for number, video in enumerate(videos, start=1):
            try:
                if isinstance(video, VideoError):
                    raise video
                answer = classify_video(network, video, num_clips=clips, top_k=top)
            except VideoError as error:
                failures += 1
                complain(str(error))
                if as_json:
                    source = error.source if video is error else video
                    print(json.dumps({"source": source, "error": str(error)}), flush=True)
                continue
            finally:
                advance(number)
            show(video, answer)
    if failures:
        complain(f"{failures} of {len(videos)} videos could not be read")
        raise typer.Exit(1)


def _expanded(source: str) -> Sequence[str | VideoError]:
    """The videos that an argument names; a pattern that matches none is one that cannot be read."""
    try:
        return expand_source(source)
    except VideoError as error:
        return [error]


def _print_answer(video: str, answer: Prediction) -> None:
    best = [
        {"label": label, "probability": round(probability, 6)}
        for label, probability in zip(answer.labels, answer.probs, strict=True)
    ]
    print(json.dumps({"source": video, "frames": answer.num_video_frames, "top": best}), flush=True)


def _answer_table(videos: Sequence[str], labels: Sequence[str]) -> Callable[[str, Prediction], None]:
    """Prints answers as they come, as rows of one table."""
    from rich.cells import cell_len

    letters = bar_letters()
    columns = {"video": videos, "class": labels, "probability": [f"{1:6.1%} {bar_of(1, letters)}"]}
    print_rows = row_printer(list(columns), [max(map(cell_len, (title, *cells))) for title, cells in columns.items()])

    def show(video: str, answer: Prediction) -> None:
        best = zip(answer.labels, answer.probs, strict=True)
        print_rows(
            [
                ("" if rank else video, label, f"{probability:6.1%} {bar_of(probability, letters)}")
                for rank, (label, probability) in enumerate(best)
            ]
        )

    return show


@app.command()
def stream(
    source: Annotated[str, typer.Argument(help="A video file, folder of images, .npy array or stream URL.")],
    model: ModelOption = "motions",
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 3,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Look at every so many frames.", show_default="as in training")
    ] = None,
    restart_every: Annotated[
        int | None,
        typer.Option(min=1, help="Forget everything after so many frames looked at.", show_default="never"),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write an annotated .mp4 or .webm.")] = None,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    mode: ModeOption = "eager",
    as_json: JsonOption = False,
) -> None:
    """Watch a video frame by frame and say after each frame what is happening.

    Prints one JSON line per frame looked at when the output is not a terminal or with --json, else a live view.
    Memory does not grow with the length of the video. Ctrl-C ends it; what was saved until then is kept.
    """
    source = expand_one(source)
    _check_saved(save, source, model)
    network = load_fast(model, device, dtype, mode)
    _run_stream(network, source, top=top, stride=stride, restart_every=restart_every, save=save, as_json=as_json)


@app.command()
def demo(
    video: Annotated[str | None, typer.Argument(help="Your video; without one, a video is rendered here.")] = None,
    save: Annotated[Path, typer.Option(help="Where the annotated video goes (.mp4 or .webm).")] = Path("demo.mp4"),
    seed: Annotated[int, typer.Option(min=0, help="Which scenes are rendered.")] = 2026,
) -> None:
    """Stream a video through the bundled model and write it with the answers drawn in."""
    import tempfile

    from trecvit.runtime.demo import render_scenes

    video = video and expand_one(video)
    _check_saved(save, video or "")
    network = load_model("motions", "cpu")
    restart_every = network.preprocessing.num_frames  # a scene lasts as long as a training clip
    if video is not None:
        _run_stream(network, video, top=3, stride=None, restart_every=restart_every, save=save, as_json=False)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scenes.mp4"
        truths = render_scenes(path, seed=seed)
        answers = _run_stream(
            network, str(path), top=3, stride=None, restart_every=restart_every, save=save, as_json=False, truths=truths
        )
    right = sum(answer == truth for answer, truth in zip(answers, truths, strict=True))
    console(stderr=True).print(f"{right} of {len(truths)} scenes were named right at their last frame.")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A name, a folder or an original .npz.")], as_json: JsonOption = False
) -> None:
    """Say what a model is: architecture, size, cost per frame, classes, origin."""
    from trecvit.runtime.describe import describe
    from trecvit.weights.load import load

    with download_bar() as progress:
        facts = describe(load(model, progress=progress))
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    print_facts(facts)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A name, a folder or an original .npz.")],
    target: Annotated[Path, typer.Argument(help="A .npz file for the original format, else a folder.")],
    labels: Annotated[
        str | None, typer.Option(help="Class names for a folder: kinetics400, something_something_v2, or a text file.")
    ] = None,
) -> None:
    """Rewrite weights in the other format, exact to the bit."""
    from trecvit.weights.load import convert as convert_weights

    if target.suffix == ".npz":
        check_file("TARGET", target, inputs=[source])
    else:
        check_folder("TARGET", target)
    with download_bar() as progress:
        written = convert_weights(source, target, labels=labels, progress=progress)
    print(written)


@app.command("export")
def export_model(
    source: Annotated[str, typer.Argument(help="A name, a folder or an original .npz.")],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    mode: Annotated[
        str, typer.Option(help="compile: a library for this kind of processor. openvino: OpenVINO's files.")
    ] = "compile",
    dtype: DtypeOption = "float32",
    batch_size: Annotated[int, typer.Option("--batch", min=1, help="Streams or clips at once.")] = 1,
    frames: Annotated[
        list[int] | None, typer.Option(help="Frames of a call: 1, the default, to stream; the length of clips.")
    ] = None,
) -> None:
    """Compile a model once and keep the result: `trecvit stream VIDEO -m FOLDER` then starts at once.

    A graph holds for its batch and number of frames only; give --frames several times for several. With openvino the
    folder also holds stream.xml, which keeps the state inside and needs no Python.
    """
    from trecvit.accelerate.exported import export
    from trecvit.accelerate.kernels import FLOATS

    if dtype not in FLOATS:
        raise ConfigError(f"--dtype: expected one of {', '.join(FLOATS)}, got {dtype!r}")
    check_folder("FOLDER", folder, empty=True)
    network = load_model(source, "cpu")
    print(export(network, folder, mode=mode, dtype=FLOATS[dtype], batch_size=batch_size, frames=frames or [1]))


@app.command()
def doctor() -> None:
    """Say what works on this machine, what does not, and why."""
    from rich.table import Table
    from rich.text import Text

    from trecvit.runtime.doctor import examine

    table = Table("", "what", "finding", box=None, pad_edge=False)
    findings = examine()
    marks = {True: Text("ok", "green"), False: Text("no", "red"), None: Text("–", "yellow")}
    for finding in findings:
        table.add_row(marks[finding.works], finding.name, finding.words)
    console().print(table)
    if any(finding.works is False for finding in findings):
        raise typer.Exit(1)


def _check_saved(save: Path | None, *inputs: str) -> None:
    from trecvit.video.encode import SUFFIXES

    check_file("--save", save, suffixes=SUFFIXES, inputs=inputs)


def _run_stream(
    network: TRecViT,
    source: str,
    *,
    top: int,
    stride: int | None,
    restart_every: int | None,
    save: Path | None,
    as_json: bool,
    truths: list[str] | None = None,
) -> list[str]:
    """Streams to the terminal or as JSON lines, and to a video. Returns the answers before restarts and at the end."""
    from trecvit.runtime.predict import class_labels
    from trecvit.runtime.stream import annotate
    from trecvit.runtime.stream import stream as stream_video
    from trecvit.video.decode import open_video

    labels = class_labels(network)
    answers: list[str] = []
    previous = ""
    with Recording() as recording, open_video(source) as video:
        about, plan = video.info, network.preprocessing
        if not stride and about.average_fps is None and plan.frame_rate_fps is not None:
            complain(
                f"{source}: frame rate unknown, using a stride of {plan.frame_stride} frames; set it with --stride"
            )
        stride = stride or plan.stride_for(about.rate_fps)
        updates = stream_video(network, video, stride=stride, restart_every=restart_every)
        view = _view(source, about.stated_frames, as_json=as_json)
        with view as show, video_writer(save, about.average_fps) as writer, recording.kept():
            for update in recording.until_stopped(updates):
                best = update.top(labels, top)
                if update.is_new:
                    if update.frames_seen == 1 and previous:
                        answers.append(previous)
                    previous = best[0][0]
                    show(update, best)
                if writer:
                    truth = f"truth: {truths[min(len(answers), len(truths) - 1)]}" if truths else ""
                    writer.write(annotate(update, labels, top_k=top, footer=truth), update.time_s)
        recording.report(save)
    return [*answers, previous]


@contextmanager
def _view(
    source: str, num_frames: int | None, *, as_json: bool
) -> Iterator[Callable[[Update, list[tuple[str, float]]], None]]:
    """Shows updates: a live panel on a terminal, else one JSON line each."""
    if as_json or not sys.stdout.isatty():

        def print_line(update: Update, best: list[tuple[str, float]]) -> None:
            line = {
                "frame": update.index,
                "time_s": round(update.time_s, 4),
                "frames_seen": update.frames_seen,
                "top": [{"label": label, "probability": round(probability, 6)} for label, probability in best],
            }
            print(json.dumps(line), flush=True)

        yield print_line
        return

    from rich.table import Table
    from rich.text import Text

    letters = bar_letters()
    with live_panel(source, num_frames) as draw_panel:

        def draw(update: Update, best: list[tuple[str, float]]) -> None:
            table = Table.grid(padding=(0, 2))
            for rank, (label, probability) in enumerate(best):
                style = "bold cyan" if rank == 0 else "dim"
                cells = (label, f"{probability:6.1%}", bar_of(probability, letters))
                table.add_row(*(Text(words, style) for words in cells))
            draw_panel(table, update.index, update.time_s)

        yield draw
