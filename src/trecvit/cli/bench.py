"""Commands that measure speed and memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from trecvit.cli.app import bench_app
from trecvit.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelOption,
    OverridesArgument,
    RecipeArgument,
    SaveJsonOption,
    ScenesArgument,
    fast,
    load_fast_tracker,
    load_model,
    track_scenes_of,
)
from trecvit.cli.outputs import check_file
from trecvit.cli.terminal import notify, print_facts, print_table, progress_bar
from trecvit.files import check_output, write_json

if TYPE_CHECKING:
    from trecvit.bench.speed import SharedSpeed, Speed
    from trecvit.model.tracker import PointTracker

_Names = list[str] | None
_Counts = list[int] | None
_Speed = TypeVar("_Speed", "Speed", "SharedSpeed")
_UNTRAINED = "tapnext_b"


@bench_app.command("stream")
def bench_stream(
    model: ModelOption = "motions",
    frames: Annotated[int, typer.Option(min=10, help="Length of the stream.")] = 10_000,
    as_json: JsonOption = False,
) -> None:
    """Stream random frames and check that memory stays constant; exit code 1 if it grew."""
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
        notify(f"memory grew by {memory.peak_bytes[-1] - memory.peak_bytes[0]:,} bytes")
        raise typer.Exit(1)


@bench_app.command("speed")
def bench_speed(
    models: Annotated[_Names, typer.Option("--model", "-m", help="Presets or models; all presets by default.")] = None,
    dtypes: Annotated[_Names, typer.Option("--dtype", help="float32, bfloat16, int8; default: the first two.")] = None,
    modes: Annotated[
        _Names, typer.Option("--mode", help="eager, compile, openvino, onnx, exported; default: all.")
    ] = None,
    batch_sizes: Annotated[_Counts, typer.Option("--batch", help="Batch sizes; default: 1.")] = None,
    frames: Annotated[_Counts, typer.Option(help="Frames per call: 1 (default) is a stream, more are a clip.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of each measurement.")] = 3.0,
    busy: Annotated[int, typer.Option(min=0, help="Instead, measure a stream beside this many busy processes.")] = 0,
    save: SaveJsonOption = None,
) -> None:
    """Measure frames/s of streams or clips, and the time relative to matrix multiplications alone (the bound).

    --model, --dtype, --mode, --batch and --frames may be repeated; every combination is measured.
    """
    from itertools import product

    from trecvit.bench.speed import shared_speeds, speeds

    check_output(save)
    if busy:
        chosen: list[Sequence[Any]] = [models or ["tiny"], dtypes or ["float32"], modes or ["eager", "compile"]]
        shared = shared_speeds(chosen[0], dtypes=chosen[1], modes=chosen[2], busy=busy, seconds=seconds)
        heading = f"frames/s of one stream, idle and beside {busy} busy programs"
        _measure(list(product(*chosen)), shared, _SHARED_TITLES, _shared_row, save, heading)
        return
    chosen = [
        models or ["tiny", "small", "base", "base_k400"],
        dtypes or ["float32", "bfloat16"],
        modes or ["eager", "compile", "openvino", "onnx", "exported"],
        batch_sizes or [1],
        frames or [1],
    ]
    measured = speeds(
        chosen[0], dtypes=chosen[1], modes=chosen[2], batch_sizes=chosen[3], frames=chosen[4], seconds=seconds
    )
    _measure(list(product(*chosen)), measured, _SPEED_TITLES, _speed_row, save)


_CASE = ("model", "dtype", "mode")
_SPEED_TITLES = (*_CASE, "batch", "frames", "median", "p95", "frames/s", "GFLOP/s", "of the bound", "memory")
_SHARED_TITLES = (*_CASE, "all threads", "chosen", "busy: all threads", "chosen", "of a fair share")


def _speed_row(speed: Speed) -> Sequence[str]:
    dtype = speed.dtype + (f" (computed in {speed.computed_in})" if speed.computed_in != speed.dtype else "")
    row = [speed.model, dtype, speed.mode, str(speed.batch_size), str(speed.num_frames), f"{speed.median_ms:.1f} ms"]
    row += [f"{speed.p95_ms:.1f} ms", f"{speed.frames_per_s:.1f}", f"{speed.gflop_per_s:.0f}"]
    return [*row, f"x {speed.times_the_bound:.2f}", f"{speed.memory_bytes / 1e6:.0f} MB"]


def _shared_row(speed: SharedSpeed) -> Sequence[str]:
    idle = (f"{speed.idle_fixed_fps:.1f}", f"{speed.idle_fps:.1f} ({speed.of_idle:.0%})")
    busy = (f"{speed.busy_fixed_fps:.1f}", f"{speed.busy_fps:.1f}", f"{speed.of_fair_share:.0%}")
    return (speed.model, speed.dtype, speed.mode, *idle, *busy)


def _measure(
    cases: Sequence[tuple[Any, ...]],
    measured: Iterator[_Speed | str],
    titles: Sequence[str],
    row_of: Callable[[_Speed], Sequence[str]],
    save: Path | None,
    heading: str | None = None,
) -> None:
    """Run all cases, save and print them; exit with code 1 if one could not be run."""
    rows, speeds, failed = [], [], {}
    with progress_bar("measurements", len(cases)) as advance:
        for number, (case, speed) in enumerate(zip(cases, measured, strict=True), start=1):
            advance(number)
            if isinstance(speed, str):
                name = " ".join(map(str, case))
                failed[name] = speed
                notify(f"{name}: {speed}")
                continue
            speeds.append(speed.to_dict())
            rows.append(row_of(speed))
    _save(save, {"speeds": speeds, **({"not_measured": failed} if failed else {})})
    if heading:
        print(heading)
    print_table(titles, rows)
    if failed:
        raise typer.Exit(1)


def _save(path: Path | None, content: dict[str, Any]) -> None:
    """Write results to a JSON file, together with the machine."""
    from trecvit.runtime.doctor import machine

    if path:
        write_json(path, {"machine": machine(), **content})


@bench_app.command("slots")
def bench_slots(
    recipe: ScenesArgument,
    model: Annotated[
        str, typer.Option("--model", "-m", help=f"As for `track`, or {_UNTRAINED}: TAPNext-B with random weights.")
    ] = "points",
    points: Annotated[int, typer.Option(min=1, help="Points per scene.")] = 16,
    empty: Annotated[_Counts, typer.Option(min=1, help="Empty slots; default: 1, 16, 64 and 256.")] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Number of scenes.")] = 8,
    num_frames: Annotated[int, typer.Option(min=2, help="Frames per scene.")] = 48,
    dtype: DtypeOption = "float32",
    save: SaveJsonOption = None,
) -> None:
    """Measure what empty slots of a live tracker cost in time and memory, and how they change its predictions.

    Timed in turns, frame by frame, with the same tracker without empty slots. On a busy machine compare the ratios.
    """
    from dataclasses import asdict, replace

    from trecvit.bench.slots import slot_costs
    from trecvit.runtime.doctor import load_average
    from trecvit.synthetic.pictures import photographs
    from trecvit.synthetic.track_scenes import TrackScenes

    check_output(save)
    scene_config = track_scenes_of(recipe)
    counts = sorted(set(empty or [1, 16, 64, 256]))
    trained = model != _UNTRAINED
    network = load_fast_tracker(model, "cpu", dtype, "eager") if trained else _untrained(dtype)
    size = network.preprocessing.image_size
    look = replace(scene_config, num_frames=num_frames, num_points=points, image_size=size)
    videos = TrackScenes(look, seed=1, pictures=photographs("held_out")).videos(range(scenes))
    with progress_bar("frames", scenes * num_frames * (1 + len(counts))) as advance:
        costs = slot_costs(network, videos, empty_slots=counts, trained=trained, report=advance)
    content = {
        "load_average": load_average(),
        "model": model,
        "dtype": dtype,
        "computed_in": "int8" if dtype == "int8" else str(network.dtype).removeprefix("torch."),
        "num_scenes": scenes,
        "scenes": asdict(look),
        "costs": [asdict(cost) for cost in costs],
    }
    _save(save, content)
    titles = ("empty slots", "median", "times as long", "GFLOP", "state")
    accuracy = ("moved, median", "99 %", "most", "seen otherwise", "average Jaccard") if trained else ()
    rows = []
    for cost in costs:
        row = [str(cost.empty_slots), f"{cost.median_ms:.1f} ms", f"{cost.times_as_long:.2f}"]
        row += [f"{cost.gflop:.2f}", f"{cost.state_bytes / 1e6:.2f} MB"]
        if (change := cost.answers) is not None:
            row += [f"{px:.2f} px" for px in (change.moved_median_px, change.moved_p99_px, change.moved_most_px)]
            row += [f"{change.seen_otherwise:.2%}", f"{change.average_jaccard:.1%}"]
        rows.append(row)
    print_table((*titles, *accuracy), rows)


def _untrained(dtype: str) -> PointTracker:
    """TAPNext-B with random weights."""
    from trecvit.model.tapnext import TAPNext, TrackerConfig

    return fast(TAPNext(TrackerConfig()), dtype, "eager")


@bench_app.command("train")
def bench_train(
    sizes: Annotated[_Names, typer.Option("--size", help="Presets; default: tiny, small and base.")] = None,
    frames: Annotated[_Counts, typer.Option(help="Frames per clip; default: 8 and 32.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per update.")] = 1,
    image_px: Annotated[int, typer.Option("--image-size", help="Height and width of the frames in pixels.")] = 224,
    bf16: Annotated[bool, typer.Option(help="Matrix multiplications in bfloat16.")] = False,
    device: DeviceOption = "cpu",
    save: SaveJsonOption = None,
) -> None:
    """Measure memory and speed of training updates by model size, clip length and recomputation of activations."""
    from dataclasses import asdict
    from typing import get_args

    from trecvit.bench.training import update_costs
    from trecvit.config import Recompute

    check_output(save)
    sizes, frames = sizes or ["tiny", "small", "base"], frames or [8, 32]
    rows, costs = [], []
    with progress_bar("measurements", len(get_args(Recompute)) * len(sizes) * len(frames)) as advance:
        for cost in update_costs(sizes, frames, batch_size=batch_size, image_px=image_px, bf16=bf16, device=device):
            costs.append(cost)
            advance(len(costs))
            cells = ("not enough", "", "")
            if cost.memory_bytes is not None and cost.updates_per_s is not None:
                memory, rate = f"{cost.memory_bytes / 1e9:.2f} GB", cost.updates_per_s
                cells = (memory, f"{rate:.3f}", f"{rate * batch_size:.3f}")
            rows.append((cost.size, str(cost.num_frames), cost.recompute, *cells))
    settings = {"device": device, "image_px": image_px, "bf16": bf16}
    _save(save, {**settings, "costs": [asdict(cost) for cost in costs]})
    print_table(("size", "frames", "recomputed", "memory", "updates/s", "clips/s"), rows)


@bench_app.command("serve")
def bench_serve(
    model: ModelOption = "motions",
    sessions: Annotated[_Counts, typer.Option(help="Sessions; default: 1, 4 and 16.")] = None,
    seconds: Annotated[float, typer.Option(min=0.5, help="Duration of each measurement.")] = 10.0,
    save: SaveJsonOption = None,
    plot: Annotated[Path | None, typer.Option(help="Draw throughput and latency into a .png or .svg file.")] = None,
) -> None:
    """Measure `trecvit serve` at full load, beside the model's own step and one process per session.

    Client and server share this machine. --sessions may be repeated.
    """
    from trecvit.bench.serving import draw_serving, serving_speeds
    from trecvit.runtime.doctor import load_average

    check_output(save)
    check_file("--plot", plot, suffixes=(".png", ".svg"))
    counts = sessions or [1, 4, 16]
    load_before = load_average()
    with progress_bar("measurements", 3 * len(counts)) as advance:
        speeds = serving_speeds(model, counts, seconds=seconds, report=advance)
    costs = [speed.to_dict() for speed in speeds]
    _save(save, {"model": model, "seconds": seconds, "load_average": load_before, "costs": costs})
    if plot:
        draw_serving(speeds, plot)
    server = ("sessions", "frames/s", "p50", "p95", "p99", "batch", "step in it")
    titles = (*server, "step alone", "alone", "overhead", "a process each", "gain")
    rows = []
    for speed in speeds:
        latencies = (f"{latency:.0f} ms" for latency in (speed.p50_ms, speed.p95_ms, speed.p99_ms))
        row = [str(speed.sessions), f"{speed.frames_per_s:.0f}", *latencies, f"{speed.mean_batch:.1f}"]
        row += [f"{speed.step_ms:.1f} ms", f"{speed.own_step_ms:.1f} ms", f"{speed.own_frames_per_s:.0f} frames/s"]
        row.append(f"{speed.overhead:.0%}")
        rows.append([*row, f"{speed.apart_frames_per_s:.0f} frames/s", f"{speed.gain:.1f} x"])
    print_table(titles, rows)


@bench_app.command("loader")
def bench_loader(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    workers: Annotated[_Counts, typer.Option(help="Worker processes; default: 0, 1 and 2.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Batches to time.")] = 20,
    device: DeviceOption = "cpu",
    save: SaveJsonOption = None,
) -> None:
    """Measure clips/s of the data loader (decoded and augmented, or rendered) and of the model."""
    from trecvit.bench.training import loader_speed
    from trecvit.train.recipe import load_recipe

    check_output(save)
    plan, counts = load_recipe(recipe, overrides or []), workers or [0, 1, 2]
    with progress_bar("measurements", len(counts) + 1) as advance:
        speed = loader_speed(plan, workers=counts, num_steps=steps, device=device, report=advance)
    _save(save, {"made": speed.made, "used": speed.used})
    how = "decoded and augmented" if plan.task.origin else "rendered"
    facts = {f"{how}, {count} workers": f"{rate:.1f} clips/s" for count, rate in speed.made.items()}
    print_facts({**facts, "the model takes": f"{speed.used:.1f} clips/s"})
