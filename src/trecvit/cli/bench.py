"""Commands that measure what a model costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trecvit.cli.app import bench_app
from trecvit.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    fast,
    load_fast_tracker,
    load_model,
)
from trecvit.cli.terminal import complain, console, print_facts, progress_bar
from trecvit.files import check_output, write_json

if TYPE_CHECKING:
    from trecvit.model.tracker import PointTracker

_UNTRAINED = "tapnext_b"


@bench_app.command("stream")
def bench_stream(
    model: ModelOption = "motions",
    frames: Annotated[int, typer.Option(min=10, help="Length of the stream.")] = 10_000,
    as_json: JsonOption = False,
) -> None:
    """Stream random frames and check that memory stays flat; exit code 1 if it grew."""
    from trecvit.bench.memory import stream_memory

    network = load_model(model, "cpu")
    with progress_bar("frames", frames, hidden=as_json) as advance:
        memory = stream_memory(network, num_frames=frames, report=advance)
    if as_json:
        print(json.dumps({**memory.__dict__, "is_flat": memory.is_flat}))
    else:
        for count, peak, state in zip(memory.frames, memory.peak_bytes, memory.state_bytes, strict=True):
            print(f"{count:>8,} frames  peak memory {peak / 1e6:8.1f} MB  state {state:,} bytes")
        print(f"{memory.frames_per_s:.1f} frames/s")
    if not memory.is_flat:
        complain(f"memory grew by {memory.peak_bytes[-1] - memory.peak_bytes[0]:,} bytes")
        raise typer.Exit(1)


@bench_app.command("speed")
def bench_speed(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="A preset or a trained model; tiny, small, base, base_k400."),
    ] = None,
    dtypes: Annotated[
        list[str] | None, typer.Option("--dtype", help="float32, bfloat16, int8; the first two by default.")
    ] = None,
    modes: Annotated[
        list[str] | None, typer.Option("--mode", help="eager, compile, openvino, exported; all by default.")
    ] = None,
    batch_sizes: Annotated[list[int] | None, typer.Option("--batch", help="Streams at once; 1 by default.")] = None,
    frames: Annotated[
        list[int] | None, typer.Option(help="Frames of a call: 1 is a stream with its state, the default; more a clip.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each is timed.")] = 3.0,
    busy: Annotated[
        int, typer.Option(min=0, help="Instead: how one stream runs beside so many programs that keep a core busy.")
    ] = 0,
    save: Annotated[Path | None, typer.Option(help="Write the figures to a JSON file.")] = None,
) -> None:
    """How fast models run, frame after frame or clip by clip, beside what their matrix products alone would take."""
    check_output(save)
    if busy:
        _bench_shared(models or ["tiny"], dtypes or ["float32"], modes or ["eager", "compile"], busy, seconds, save)
        return
    from itertools import product

    from rich.table import Table

    from trecvit.bench.speed import Speed, speeds
    from trecvit.runtime.doctor import machine

    chosen = (
        models or ["tiny", "small", "base", "base_k400"],
        dtypes or ["float32", "bfloat16"],
        modes or ["eager", "compile", "openvino", "exported"],
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
    found, failed = [], {}
    with progress_bar("measurements", len(cases)) as advance:
        measured = speeds(
            chosen[0], dtypes=chosen[1], modes=chosen[2], batch_sizes=chosen[3], frames=chosen[4], seconds=seconds
        )
        for number, (case, speed) in enumerate(zip(cases, measured, strict=True), start=1):
            advance(number)
            if not isinstance(speed, Speed):
                failed[" ".join(map(str, case))] = speed
                complain(f"{' '.join(map(str, case))}: {speed}")
                continue
            found.append(speed.to_dict())
            times = (f"{speed.median_ms:.1f} ms", f"{speed.p95_ms:.1f} ms", f"{speed.frames_per_s:.1f}")
            rest = (f"{speed.gflop_per_s:.0f}", f"x {speed.times_the_bound:.2f}", f"{speed.memory_bytes / 1e6:.0f} MB")
            model, dtype, *others = map(str, case)
            if speed.computed_in != dtype:
                dtype += f" (computed in {speed.computed_in})"
            table.add_row(model, dtype, *others, *times, *rest)
    if save:
        content = {"machine": machine(), "speeds": found, **({"not_measured": failed} if failed else {})}
        write_json(save, content)
    console().print(table)
    if failed:
        raise typer.Exit(1)


def _bench_shared(
    models: list[str], dtypes: list[str], modes: list[str], busy: int, seconds: float, save: Path | None
) -> None:
    from rich.table import Table

    from trecvit.bench.speed import SharedSpeed, shared_speeds
    from trecvit.runtime.doctor import machine

    titles = ("model", "dtype", "mode", "all threads", "chosen", "beside: all threads", "chosen", "of a fair share")
    table = Table(*titles, box=None, pad_edge=False)
    found, failed = [], {}
    cases = [f"{model} {dtype} {mode}" for model in models for dtype in dtypes for mode in modes]
    with progress_bar("measurements", len(cases)) as advance:
        measured = shared_speeds(models, dtypes=dtypes, modes=modes, busy=busy, seconds=seconds)
        for number, (case, speed) in enumerate(zip(cases, measured, strict=True), start=1):
            advance(number)
            if not isinstance(speed, SharedSpeed):
                failed[case] = speed
                complain(f"{case}: {speed}")
                continue
            found.append(speed.to_dict())
            idle = (f"{speed.idle_fixed_fps:.1f}", f"{speed.idle_fps:.1f} ({speed.of_idle:.0%})")
            beside = (f"{speed.busy_fixed_fps:.1f}", f"{speed.busy_fps:.1f}", f"{speed.of_fair_share:.0%}")
            table.add_row(speed.model, speed.dtype, speed.mode, *idle, *beside)
    if save:
        content = {"machine": machine(), "speeds": found, **({"not_measured": failed} if failed else {})}
        write_json(save, content)
    console().print(f"frames/s of one stream, idle and beside {busy} busy programs")
    console().print(table)
    if failed:
        raise typer.Exit(1)


@bench_app.command("slots")
def bench_slots(
    recipe: Annotated[str, typer.Argument(help="Its scenes are rendered, with another seed and photographs.")],
    model: Annotated[
        str,
        typer.Option("--model", "-m", help=f"As `track` has it; {_UNTRAINED}: TAPNext's size, untrained, to time it."),
    ] = "points",
    points: Annotated[int, typer.Option(min=1, help="Points of a scene.")] = 16,
    empty: Annotated[
        list[int] | None, typer.Option(min=1, help="Empty slots beside them; 1, 16, 64 and 256 by default.")
    ] = None,
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 8,
    num_frames: Annotated[int, typer.Option(min=2, help="Frames of a scene.")] = 48,
    dtype: DtypeOption = "float32",
    save: Annotated[Path | None, typer.Option(help="Write the figures to a JSON file.")] = None,
) -> None:
    """Empty slots of a live tracker: what they cost in time and memory, and how they change the points' answers.

    Measured in turns, frame by frame, beside the same tracker without empty slots. On a busy machine look at the
    ratios: other processes hit all alike.
    """
    from dataclasses import asdict, replace

    from rich.table import Table

    from trecvit.bench.slots import slot_costs
    from trecvit.errors import ConfigError
    from trecvit.runtime.doctor import load_average, machine
    from trecvit.synthetic.pictures import photographs
    from trecvit.synthetic.track_scenes import TrackScenes
    from trecvit.train.recipe import load_recipe

    check_output(save)
    tracks = load_recipe(recipe).tracks
    if tracks is None or tracks.scenes is None:
        raise ConfigError(f"{recipe}: expected a recipe with tracks.scenes")
    counts = sorted(set(empty or [1, 16, 64, 256]))
    trained = model != _UNTRAINED
    network = load_fast_tracker(model, "cpu", dtype, "eager") if trained else _untrained(dtype)
    size = network.preprocessing.image_size
    look = replace(tracks.scenes, num_frames=num_frames, num_points=points, image_size=size)
    videos = TrackScenes(look, seed=1, pictures=photographs("held_out")).videos(range(scenes))
    with progress_bar("frames", scenes * num_frames * (1 + len(counts))) as advance:
        costs = slot_costs(network, videos, empty_slots=counts, trained=trained, report=advance)
    if save:
        content = {
            "machine": machine(),
            "load_average": load_average(),
            "model": model,
            "dtype": dtype,
            "computed_in": "int8" if dtype == "int8" else str(network.dtype).removeprefix("torch."),
            "num_scenes": scenes,
            "scenes": asdict(look),
            "costs": [asdict(cost) for cost in costs],
        }
        write_json(save, content)
    titles = ("empty slots", "median", "times as long", "GFLOP", "state")
    answered = ("moved, median", "99 %", "most", "seen otherwise", "average Jaccard") if trained else ()
    table = Table(*titles, *answered, box=None, pad_edge=False)
    for cost in costs:
        row = [str(cost.empty_slots), f"{cost.median_ms:.1f} ms", f"{cost.times_as_long:.2f}"]
        row += [f"{cost.gflop:.2f}", f"{cost.state_bytes / 1e6:.2f} MB"]
        if (told := cost.answers) is not None:
            row += [f"{px:.2f} px" for px in (told.moved_median_px, told.moved_p99_px, told.moved_most_px)]
            row += [f"{told.seen_otherwise:.2%}", f"{told.average_jaccard:.1%}"]
        table.add_row(*row)
    console().print(table)


def _untrained(dtype: str) -> PointTracker:
    """TAPNext in its published size, whose answers mean nothing."""
    from trecvit.model.tapnext import TAPNext, TrackerConfig

    return fast(TAPNext(TrackerConfig()), dtype, "eager")


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
    """Memory and speed of training updates: sizes, clip lengths, by what is computed again in the backward pass."""
    from dataclasses import asdict
    from typing import get_args

    from rich.table import Table

    from trecvit.bench.training import update_costs
    from trecvit.config import Recompute
    from trecvit.runtime.doctor import machine

    check_output(save)
    sizes, frames = sizes or ["tiny", "small", "base"], frames or [8, 32]
    table = Table("size", "frames", "recomputed", "memory", "updates/s", "clips/s", box=None, pad_edge=False)
    costs = []
    with progress_bar("measurements", len(get_args(Recompute)) * len(sizes) * len(frames)) as advance:
        for cost in update_costs(sizes, frames, batch_size=batch_size, image_px=image_px, bf16=bf16, device=device):
            costs.append(cost)
            advance(len(costs))
            words = ("not enough", "", "")
            if cost.memory_bytes is not None and cost.updates_per_s is not None:
                memory, rate = f"{cost.memory_bytes / 1e9:.2f} GB", cost.updates_per_s
                words = (memory, f"{rate:.3f}", f"{rate * batch_size:.3f}")
            table.add_row(cost.size, str(cost.num_frames), cost.recompute, *words)
    if save:
        content = {"machine": machine(), "device": device, "image_px": image_px, "bf16": bf16}
        content["costs"] = [asdict(cost) for cost in costs]
        write_json(save, content)
    console().print(table)


@bench_app.command("loader")
def bench_loader(
    recipe: Annotated[str, typer.Argument(help="A recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    workers: Annotated[list[int] | None, typer.Option(help="Worker processes to try; 0, 1 and 2 by default.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to time.")] = 20,
    device: DeviceOption = "cpu",
    save: Annotated[Path | None, typer.Option(help="Write the figures to a JSON file.")] = None,
) -> None:
    """Clips per second that are decoded and augmented, or rendered, beside what the model takes."""
    from trecvit.bench.training import loader_speed
    from trecvit.runtime.doctor import machine
    from trecvit.train.recipe import load_recipe

    check_output(save)
    plan, counts = load_recipe(recipe, overrides or []), workers or [0, 1, 2]
    with progress_bar("measurements", len(counts) + 1) as advance:
        speed = loader_speed(plan, workers=counts, num_steps=steps, device=device, report=advance)
    if save:
        content = {"machine": machine(), "made": speed.made, "used": speed.used}
        write_json(save, content)
    how = "rendered" if plan.scenes else "decoded and augmented"
    facts = {f"{how}, {count} workers": f"{rate:.1f} clips/s" for count, rate in speed.made.items()}
    print_facts({**facts, "the model takes": f"{speed.used:.1f} clips/s"})
