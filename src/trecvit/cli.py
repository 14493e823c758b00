"""The command line: the only place that prints or exits.

Heavy modules are imported inside the commands that need them, so that `trecvit --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trecvit.errors import ConfigError, Interrupted, TRecViTError, VideoError

if TYPE_CHECKING:
    from rich.console import Console

    from trecvit.data.clips import Failure
    from trecvit.data.manifest import Manifest
    from trecvit.model.trecvit import TRecViT
    from trecvit.runtime.stream import Update
    from trecvit.train.recipe import Recipe

app = typer.Typer(
    name="trecvit",
    help="TRecViT: causal video understanding. The same weights train on clips and stream frame by frame.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
data_app = typer.Typer(no_args_is_help=True, help="Make, check and pack data sets.")
eval_app = typer.Typer(no_args_is_help=True, help="Measure how well a model does.")
study_app = typer.Typer(no_args_is_help=True, help="Make the paper's tables and figures again.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure what a model costs.")
app.add_typer(data_app, name="data")
app.add_typer(eval_app, name="eval")
app.add_typer(bench_app, name="bench")
app.add_typer(study_app, name="study")

ModelOption = Annotated[
    str,
    typer.Option("--model", "-m", help="A name ('motions' ships with the package), a folder, or an original .npz."),
]
DtypeOption = Annotated[str, typer.Option(help="float32, or bfloat16 for faster matrix products where there are any.")]
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


def main() -> None:
    """Runs the command line. A user's error is one line on stderr and exit code 1; `--debug` shows where."""
    warnings.formatwarning = lambda message, *_, **__: f"trecvit: {message}\n"
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        app()
    except Interrupted as error:
        print(f"trecvit: {error}", file=sys.stderr)
        sys.exit(143)  # as a process that SIGTERM has ended
    except TRecViTError as error:
        if debug:
            raise
        print(f"trecvit: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that is not there or may not be written
        if debug:
            raise
        print(f"trecvit: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("trecvit: interrupted", file=sys.stderr)
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from trecvit import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def classify(
    sources: Annotated[list[str], typer.Argument(help="Video files, folders of images, .npy arrays or stream URLs.")],
    model: ModelOption = "motions",
    clips: Annotated[int, typer.Option(min=1, help="Clips per video to average over.")] = 4,
    top: Annotated[int, typer.Option(min=1, help="How many classes to name.")] = 5,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    mode: ModeOption = "eager",
    as_json: JsonOption = False,
) -> None:
    """Say what happens in whole videos.

    A file that cannot be read is listed, the others are still done, and the exit code is 1.
    """
    from rich.table import Table

    from trecvit.runtime.predict import classify as classify_video

    network = _load_fast(model, device, dtype, mode)
    table = Table("video", "class", "probability", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    failures = 0
    with _progress("videos", len(sources), hidden=as_json or len(sources) == 1) as advance:
        for number, source in enumerate(sources, start=1):
            try:
                answer = classify_video(network, source, num_clips=clips, top_k=top)
            except VideoError as error:
                failures += 1
                _complain(str(error))
                if as_json:
                    print(json.dumps({"source": source, "error": str(error)}))
                continue
            finally:
                advance(number)
            if as_json:
                best = [
                    {"label": label, "probability": round(probability, 6)}
                    for label, probability in zip(answer.labels, answer.probs, strict=True)
                ]
                print(json.dumps({"source": source, "frames": answer.num_video_frames, "top": best}), flush=True)
            for rank, (label, probability) in enumerate(zip(answer.labels, answer.probs, strict=True)):
                table.add_row("" if rank else source, label, f"{probability:6.1%} {_bar(probability)}")
    if not as_json and table.row_count:
        _console().print(table)
    if failures:
        _complain(f"{failures} of {len(sources)} videos could not be read")
        raise typer.Exit(1)


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
    Memory does not grow with the length of the video.
    """
    network = _load_fast(model, device, dtype, mode)
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

    network = _load("motions", "cpu")
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
    _console(stderr=True).print(f"{right} of {len(truths)} scenes were named right at their last frame.")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A name, a folder or an original .npz.")], as_json: JsonOption = False
) -> None:
    """Say what a model is: architecture, size, cost per frame, classes, origin."""
    from trecvit.runtime.describe import describe

    facts = describe(_load(model, "cpu"))
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    _print_facts(facts)


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

    with _download_progress() as progress:
        written = convert_weights(source, target, labels=labels, progress=progress)
    print(written)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, such as recipes/world.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    to: Annotated[Path, typer.Option(help="The run folder; an interrupted run in it is continued.")] = Path(
        "runs/train"
    ),
    parallel: Annotated[str, typer.Option(help="Under torchrun: ddp, or fsdp to spread the weights.")] = "ddp",
    device: TrainingDeviceOption = "auto",
) -> None:
    """Train a model by a recipe. Interrupted, the same command goes on where it stopped.

    Several processes: torchrun --nproc-per-node 8 -m trecvit train RECIPE --to FOLDER
    """
    from trecvit.train.recipe import load_recipe

    _run_training(load_recipe(recipe, overrides or []), to, device, parallel)


@app.command()
def finetune(
    data: Annotated[
        str, typer.Option("--data", help="A folder with a folder of videos for each class, or any other form of data.")
    ],
    to: Annotated[Path, typer.Option("--to", help="The run folder; an interrupted run in it is continued.")],
    model: ModelOption = "motions",
    validation: Annotated[str | None, typer.Option(help="Videos to test the result on, in any of the forms.")] = None,
    videos: VideosOption = None,
    labels: LabelsOption = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the videos.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per update.")] = 8,
    learning_rate: Annotated[float, typer.Option("--lr", help="The peak.")] = 5e-4,
    flip: Annotated[bool, typer.Option(help="Mirror half of the clips, but for classes that speak of sides.")] = True,
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Same architecture, but fresh weights: to compare.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: TrainingDeviceOption = "auto",
) -> None:
    """Teach a trained model the classes of your own videos: a folder of videos for each class is enough.

    Interrupted, the same command goes on where it stopped. The recipe it makes is in the run folder, and so are the
    curves; with --validation, FOLDER/best is the model that did best on it.
    """
    from trecvit.data.manifest import DataSource, read_manifest
    from trecvit.train.recipe import recipe_from_dict

    where = {"videos": videos, "labels": labels}
    manifest = read_manifest(DataSource(path=data, **where))
    trained = _load(model, "cpu")
    steps = epochs * (len(manifest.videos) // batch_size)
    clips = {
        "train": {"path": data, **where},
        "validation": {"path": validation, **where} if validation else None,
        "validate_every": len(manifest.videos) // batch_size if validation else 0,
        "augmentation": {"scale": [0.875, 1.33], "flip": flip and bool(manifest.labels)},
    }
    plan = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate, "warmup_steps": steps // 10}
    recipe = recipe_from_dict(
        {
            "model": {**trained.config.to_dict(), "num_classes": manifest.num_classes},
            "preprocessing": trained.preprocessing.to_dict(),
            "videos": clips,
            "start": {} if scratch else {"weights": model},
            "optimisation": plan,
            "num_workers": workers,
            "seed": seed,
            "log_every": 5,
            "checkpoint_every": 50,
        }
    )
    _run_training(recipe, to, device)


@app.command()
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, drawn over each other.")],
    save: Annotated[Path, typer.Option(help="The picture to write, a .png file.")] = Path("curves.png"),
    figures: Annotated[Path | None, typer.Option(help="Also write where the runs have come to, as JSON.")] = None,
) -> None:
    """Draw loss and accuracy of training runs, finished or not, and say where they have come to."""
    from rich.table import Table

    from trecvit.train.run_folder import draw_curves, outcome

    found = {run.name: outcome(run) for run in runs}
    draw_curves({run.name: run for run in runs}, save)
    if figures:
        figures.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = Table("run", "steps", "loss", "best top-1 on the way", "top-1", box=None, pad_edge=False)
    for name, at in found.items():
        tops = (f"{at[key]:.1%}" if key in at else "" for key in ("best_top1", "top1"))
        table.add_row(name, str(at["steps"]), f"{at['loss']:.3f}", *tops)
    _console().print(table)
    print(save)


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
    from trecvit.data.render import render_data_set
    from trecvit.data.textures import load_pictures
    from trecvit.data.textures import photographs as read_photographs
    from trecvit.data.world import World, WorldConfig

    surfaces = read_photographs("train") if photographs else []
    surfaces += load_pictures(pictures) if pictures else []
    world = World(WorldConfig(num_frames=frames, image_size=(size, size)), seed=seed, pictures=surfaces)
    with _progress("clips", num_train + num_validation) as advance:
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
    manifest = _manifest(data, videos, labels, unknown)
    with _progress("videos", len(manifest.videos)) as advance:
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
    _print_facts(counts)
    for failure in report["failed"][:10]:
        _complain(f"{failure['name']}: {failure['reason']}")
    for name, label in unknown[:10]:
        _complain(f"{name}: there is no class {label!r}")
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

    manifest = _manifest(data, videos, labels)
    with _progress("videos", len(manifest.videos)) as advance:
        shards = write_shards(manifest, folder, shard_bytes=shard_mb * 1_000_000, report=advance)
    print(f"{folder}: {len(manifest.videos):,} videos in {len(shards):,} shards")


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

    manifest = _manifest(data, videos, labels)
    with joined():
        processes = Processes(device)
        network = _load(model, str(processes.device))
        num_mine = len(processes.share.of(manifest.videos))
        with _progress("videos", num_mine, hidden=not processes.first) as advance:
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
    _print_facts({"videos": result["good"], "failed": len(failures), "missing": len(manifest.missing), **shares})
    print(to / "result.json")
    _name_failures(failures)


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

    network, manifest = _load(model, device), _manifest(data, videos, labels)
    parts = (0.25, 0.5, 0.75, 1.0)
    readouts = Readouts(half_life=half_life, window=window)
    with _progress("videos", len(manifest.videos)) as advance:
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
    _console().print(table)
    _name_failures(failures)


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

    network = _load(model, "cpu")
    num_tests = 3 if footage else 1
    with _progress("clips", num_tests * clips, hidden=as_json) as advance:
        report = report_world(network, num_clips=clips, seed=seed, footage=footage or [], report=advance)
    if save:
        save.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print(json.dumps(report, indent=2))
        return
    _print_tests(report["tests"])


@bench_app.command("stream")
def bench_stream(
    model: ModelOption = "motions",
    frames: Annotated[int, typer.Option(min=10, help="Length of the stream.")] = 10_000,
    as_json: JsonOption = False,
) -> None:
    """Stream random frames and check that memory stays flat; exit code 1 if it grew."""
    from trecvit.runtime.bench import stream_memory

    network = _load(model, "cpu")
    with _progress("frames", frames, hidden=as_json) as advance:
        memory = stream_memory(network, num_frames=frames, report=advance)
    if as_json:
        print(json.dumps({**memory.__dict__, "is_flat": memory.is_flat}))
    else:
        for count, peak, state in zip(memory.frames, memory.peak_bytes, memory.state_bytes, strict=True):
            print(f"{count:>8,} frames  peak memory {peak / 1e6:8.1f} MB  state {state:,} bytes")
        print(f"{memory.frames_per_s:.1f} frames/s")
    if not memory.is_flat:
        _complain(f"memory grew by {memory.peak_bytes[-1] - memory.peak_bytes[0]:,} bytes")
        raise typer.Exit(1)


@bench_app.command("speed")
def bench_speed(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A preset or a trained model; tiny, small, base, base_k400."),
    ] = None,
    dtypes: Annotated[list[str] | None, typer.Option("--dtype", help="float32, bfloat16; both by default.")] = None,
    modes: Annotated[list[str] | None, typer.Option("--mode", help="eager, compile, openvino; all by default.")] = None,
    batch_sizes: Annotated[list[int] | None, typer.Option("--batch", help="Streams at once; 1 by default.")] = None,
    frames: Annotated[
        list[int] | None, typer.Option(help="Frames of a call: 1 is a stream with its state, the default; more a clip.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each is timed.")] = 3.0,
    save: Annotated[Path | None, typer.Option(help="Write the figures to a JSON file.")] = None,
) -> None:
    """How fast models run, frame after frame or clip by clip, beside what their matrix products alone would take."""
    from itertools import product

    from rich.table import Table

    from trecvit.runtime.doctor import machine
    from trecvit.runtime.speed import Speed, speeds

    chosen = (
        models or ["tiny", "small", "base", "base_k400"],
        dtypes or ["float32", "bfloat16"],
        modes or ["eager", "compile", "openvino"],
        batch_sizes or [1],
        frames or [1],
    )
    cases = list(product(*chosen))
    titles = (
        "model",
        "dtype",
        "mode",
        "batch",
        "frames",
        "median",
        "p95",
        "frames/s",
        "GFLOP/s",
        "of the bound",
        "memory",
    )
    table = Table(*titles, box=None, pad_edge=False)
    found, failed = [], 0
    with _progress("measurements", len(cases)) as advance:
        measured = speeds(
            chosen[0], dtypes=chosen[1], modes=chosen[2], batch_sizes=chosen[3], frames=chosen[4], seconds=seconds
        )
        for number, (case, speed) in enumerate(zip(cases, measured, strict=True), start=1):
            advance(number)
            if not isinstance(speed, Speed):
                failed += 1
                _complain(f"{' '.join(map(str, case))}: {speed}")
                continue
            found.append(speed.to_dict())
            times = (f"{speed.median_ms:.1f} ms", f"{speed.p95_ms:.1f} ms", f"{speed.frames_per_s:.1f}")
            rest = (f"{speed.gflop_per_s:.0f}", f"x {speed.times_the_bound:.2f}", f"{speed.memory_bytes / 1e6:.0f} MB")
            table.add_row(*map(str, case), *times, *rest)
    if save:
        save.write_text(json.dumps({"machine": machine(), "speeds": found}, indent=1) + "\n", encoding="utf-8")
    _console().print(table)
    if failed:
        raise typer.Exit(1)


@bench_app.command("train")
def bench_train(
    sizes: Annotated[list[str] | None, typer.Option("--size", help="Presets; tiny, small and base by default.")] = None,
    frames: Annotated[list[int] | None, typer.Option(help="Frames per clip; 8 and 32 by default.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips of an update.")] = 1,
    image_px: Annotated[int, typer.Option("--image-size", help="Side of the frames in pixels.")] = 224,
    bf16: Annotated[bool, typer.Option(help="Matrix products in bfloat16.")] = False,
    device: DeviceOption = "cpu",
    save: Annotated[Path | None, typer.Option(help="Write the figures to a JSON file.")] = None,
) -> None:
    """Memory and speed of training updates: sizes, clip lengths, with and without activation checkpointing."""
    from dataclasses import asdict

    from rich.table import Table

    from trecvit.runtime.doctor import machine
    from trecvit.train.bench import update_costs

    sizes, frames = sizes or ["tiny", "small", "base"], frames or [8, 32]
    table = Table("size", "frames", "checkpointing", "memory", "updates/s", "clips/s", box=None, pad_edge=False)
    costs = []
    with _progress("measurements", 2 * len(sizes) * len(frames)) as advance:
        for cost in update_costs(sizes, frames, batch_size=batch_size, image_px=image_px, bf16=bf16, device=device):
            costs.append(cost)
            advance(len(costs))
            words = ("not enough", "", "")
            if cost.memory_bytes is not None and cost.updates_per_s is not None:
                memory, rate = f"{cost.memory_bytes / 1e9:.2f} GB", cost.updates_per_s
                words = (memory, f"{rate:.3f}", f"{rate * batch_size:.3f}")
            table.add_row(cost.size, str(cost.num_frames), "on" if cost.checkpointing else "off", *words)
    if save:
        content = {"machine": machine(), "device": device, "image_px": image_px, "bf16": bf16}
        content["costs"] = [asdict(cost) for cost in costs]
        save.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _console().print(table)


@bench_app.command("loader")
def bench_loader(
    recipe: Annotated[Path, typer.Argument(help="A recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    workers: Annotated[list[int] | None, typer.Option(help="Worker processes to try; 0, 1 and 2 by default.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to time.")] = 20,
    device: DeviceOption = "cpu",
    save: Annotated[Path | None, typer.Option(help="Write the figures to a JSON file.")] = None,
) -> None:
    """Clips per second that are decoded and augmented, or rendered, beside what the model takes."""
    from trecvit.runtime.doctor import machine
    from trecvit.train.bench import loader_speed
    from trecvit.train.recipe import load_recipe

    plan, counts = load_recipe(recipe, overrides or []), workers or [0, 1, 2]
    with _progress("measurements", len(counts) + 1) as advance:
        speed = loader_speed(plan, workers=counts, num_steps=steps, device=device, report=advance)
    if save:
        content = {"machine": machine(), "made": speed.made, "used": speed.used}
        save.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    how = "rendered" if plan.scenes else "decoded and augmented"
    facts = {f"{how}, {count} workers": f"{rate:.1f} clips/s" for count, rate in speed.made.items()}
    _print_facts({**facts, "the model takes": f"{speed.used:.1f} clips/s"})


@study_app.command("efficiency")
def study_efficiency(
    to: Annotated[Path, typer.Option("--to", help="Folder for efficiency.json, .png and .svg.")],
    models: Annotated[list[str] | None, typer.Option("--model", help="Names; all by default.")] = None,
    frames: Annotated[list[int] | None, typer.Option(help="Lengths; 8 to 64 by default.")] = None,
) -> None:
    """Parameters, operations and peak memory as videos grow longer, of TRecViT and of what it is compared with.

    Nothing is computed, only counted, so this runs anywhere. All models and lengths took twenty minutes on two cores
    beside other work.
    """
    from rich.table import Table

    from trecvit.study.efficiency import FRAMES, MODELS, costs, draw, frame_costs, to_dict

    chosen, lengths = models or MODELS, frames or FRAMES
    to.mkdir(parents=True, exist_ok=True)
    with _progress("counts", len(chosen) * len(lengths)) as advance:
        counted = list(costs(chosen, lengths, report=advance))
    content = to_dict(counted, frame_costs(counted))
    (to / "efficiency.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    titles = ("model", "frames", "parameters", "TFLOP", "inference", "training step", "with fused attention")
    table = Table(*titles, box=None, pad_edge=False)
    for one in counted:
        memory = (one.inference_bytes, one.training_bytes or 0, one.fused_training_bytes or 0)
        row = (
            f"{one.parameters / 1e6:.1f} M",
            f"{one.inference_flop / 1e12:.2f}",
            *(f"{m / 1e9:.2f} GB" for m in memory),
        )
        table.add_row(one.model, str(one.num_frames), *row)
    _console().print(table)
    for path in draw(counted, to):
        print(path)


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
    _console().print(table)
    if any(finding.works is False for finding in findings):
        raise typer.Exit(1)


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
    from fractions import Fraction

    from trecvit.runtime.predict import class_labels
    from trecvit.runtime.stream import annotate
    from trecvit.runtime.stream import stream as stream_video
    from trecvit.video.decode import probe
    from trecvit.video.encode import VideoWriter

    if save and Path(source).exists() and save.exists() and save.samefile(source):
        raise ConfigError(f"{save} is the video to be read and would be overwritten; give --save another name")
    labels = class_labels(network)
    about = probe(source)
    rate = float(about.average_fps) if about.average_fps else None
    stride = stride or network.preprocessing.stride_for(rate)
    answers: list[str] = []
    previous = ""
    damage: VideoError | None = None

    def readable() -> Iterator[Update]:
        nonlocal damage
        try:
            yield from stream_video(network, source, stride=stride, restart_every=restart_every)
        except VideoError as error:
            damage = error  # what could be read is shown and saved all the same

    saving = VideoWriter(save, about.average_fps or Fraction(25)) if save else nullcontext()
    with _view(source, about.stated_frames, as_json=as_json) as show, saving as writer:
        for update in readable():
            best = update.top(labels, top)
            if update.is_new:
                if update.frames_seen == 1 and previous:
                    answers.append(previous)
                previous = best[0][0]
                show(update, best)
            if writer:
                truth = f"truth: {truths[min(len(answers), len(truths) - 1)]}" if truths else ""
                writer.write(annotate(update, labels, top_k=top, footer=truth), update.time_s)
    if damage:
        raise damage
    if save:
        _console(stderr=True).print(f"wrote {save}", highlight=False)
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

    import time

    from rich.live import Live
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    begun_s, looked_at = time.perf_counter(), 0
    with Live(console=_console(), refresh_per_second=12) as live:

        def draw(update: Update, best: list[tuple[str, float]]) -> None:
            nonlocal looked_at
            looked_at += 1
            table = Table.grid(padding=(0, 2))
            for rank, (label, probability) in enumerate(best):
                style = "bold cyan" if rank == 0 else "dim"
                table.add_row(*(Text(words, style) for words in (label, f"{probability:6.1%}", _bar(probability))))
            speed = looked_at / (time.perf_counter() - begun_s)
            place = f"frame {update.index + 1}" + (f" of {num_frames}" if num_frames else "")
            words = f"{place} · {update.time_s:.1f} s · {speed:.0f} frames/s"
            live.update(Panel(table, title=Text(source), subtitle=words, width=min(_console().width, 90)))

        yield draw


def _run_training(recipe: Recipe, to: Path, device: str, parallel: str = "ddp") -> None:
    """Trains with a bar where somebody looks, else with a line now and then; prints where the model is."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from trecvit.processes import Processes, joined
    from trecvit.train.loop import Progress, train

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with joined():
        processes = Processes(device)
        looked_at = sys.stderr.isatty() and processes.first
        bar = Bar(*columns, console=_console(stderr=True), disable=not looked_at)
        task = bar.add_task("", total=None)

        def report(line: Progress) -> None:
            words = f"loss {line.loss:.3f}  accuracy {line.accuracy:.1%}  {line.clips_per_s:.1f} clips/s"
            words += f"  {line.failed} unreadable" if line.failed else ""
            bar.update(task, completed=line.step, total=line.num_steps, description=words)
            if not sys.stderr.isatty():
                left_s = (line.num_steps - line.step) * line.elapsed_s / max(line.step - line.first_step, 1)
                print(f"step {line.step}/{line.num_steps}  {words}  {left_s / 60:.1f} min left", flush=True)

        with bar:
            train(recipe, to, processes=processes, parallel=parallel, report=report)
    if processes.first:
        print(to / "model")


def _name_failures(failures: Sequence[Failure]) -> None:
    """Lists videos that could not be read, and makes the exit code 1 if there are any."""
    for failure in failures:
        _complain(f"{failure.name}: {failure.reason}")
    if failures:
        raise typer.Exit(1)


def _manifest(
    data: str, videos: str | None, labels: str | None, unknown: list[tuple[str, str]] | None = None
) -> Manifest:
    from trecvit.data.manifest import DataSource, read_manifest

    return read_manifest(DataSource(path=data, videos=videos, labels=labels), unknown=unknown)


def _load(model: str, device: str) -> TRecViT:
    from trecvit.weights.load import load

    with _download_progress() as progress:
        return load(model, device=device, progress=progress)


def _load_fast(model: str, device: str, dtype: str, mode: str) -> TRecViT:
    from trecvit.runtime.fast import DTYPES, optimize

    if dtype not in DTYPES:
        raise ConfigError(f"--dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    return optimize(_load(model, device), dtype=DTYPES[dtype], mode=mode)


@contextmanager
def _download_progress() -> Iterator[Callable[[int, int | None], None]]:
    """A bar that appears with the first bytes of a download."""
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        "downloading",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=_console(stderr=True),
    )
    task = None

    def advance(done_bytes: int, total_bytes: int | None) -> None:
        nonlocal task
        if task is None:
            bar.start()
            task = bar.add_task("download", total=total_bytes)
        bar.update(task, completed=done_bytes, total=total_bytes)

    try:
        yield advance
    finally:
        if task is not None:
            bar.stop()


@contextmanager
def _progress(what: str, total: int, *, hidden: bool = False) -> Iterator[Callable[..., None]]:
    """A bar on stderr for long work, with the time left; nothing where nobody looks.

    It is moved by the number of things done and, where some can fail, of those that failed.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=_console(stderr=True), disable=hidden or not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task(what, total=total)

        def advance(done: int, failed: int = 0) -> None:
            bar.update(task, completed=done, description=f"{what}, {failed} failed" if failed else what)

        yield advance


def _print_facts(facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if isinstance(value, dict):
            words = "\n".join(f"{key}: {item}" for key, item in value.items())
        elif isinstance(value, list):
            words = ", ".join(str(item) for item in value)
        else:
            words = f"{value:,}" if isinstance(value, int) else str(value)
        table.add_row(Text(name, "bold"), words)
    _console().print(table, highlight=False)


def _print_tests(tests: list[dict[str, Any]]) -> None:
    from rich.table import Table

    summary = Table("test", "clips", "top-1", "right or opposite", box=None, pad_edge=False)
    for test in tests:
        summary.add_row(test["name"], str(test["num_clips"]), f"{test['top1']:.1%}", f"{test['pair']:.1%}")
    _console().print(summary)
    classes = Table("class", *(test["name"] for test in tests), "taken for", box=None, pad_edge=False)
    for label in tests[0]["by_class"]:
        shares = (f"{test['by_class'][label]:.0%}" if label in test["by_class"] else "" for test in tests)
        classes.add_row(label, *shares, tests[0]["confused_with"][label])
    _console().print(classes)


def _bar(probability: float, width: int = 20) -> str:
    return "█" * round(probability * width)


def _complain(words: str) -> None:
    print(f"trecvit: {words}", file=sys.stderr)


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    # Names of files and classes may hold brackets, so no markup; in files and pipes nothing is to be folded.
    width = None if (sys.stderr if stderr else sys.stdout).isatty() else 160
    return Console(stderr=stderr, markup=False, width=width)
