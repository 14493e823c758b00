"""Commands that make the paper's tables and figures again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paper.video_transformers import load_videomae_encoders
from trecvit.cli.evaluate import OTHER_ENCODERS, probe
from trecvit.cli.options import (
    DeviceOption,
    ModelOption,
    TrainingDeviceOption,
    load_model,
)
from trecvit.cli.terminal import console, progress_bar, progress_bars
from trecvit.cli.train import train
from trecvit.files import only_writer, write_json

if TYPE_CHECKING:
    from paper.plan import Plan
    from trecvit.processes import Processes

app = typer.Typer(
    name="paper",
    help="Reproduce the paper's tables and figures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
# The package's own commands, here with the paper's tasks and encoders.
OTHER_ENCODERS["videomae"] = load_videomae_encoders
app.command("train")(train)
app.command("probe")(probe)


@app.command("efficiency")
def efficiency(
    to: Annotated[Path, typer.Option("--to", help="Folder for efficiency.json, .png and .svg.")],
    models: Annotated[list[str] | None, typer.Option("--model", help="Names; all by default.")] = None,
    frames: Annotated[
        list[int] | None, typer.Option(help="Lengths; 8 to 1024 by default, training steps up to 64.")
    ] = None,
) -> None:
    """Parameters, operations and peak memory as videos grow longer, of TRecViT and of what it is compared with.

    Nothing is computed, only counted, so this runs anywhere; all models and lengths take some tens of minutes.
    """
    from rich.table import Table

    from paper.efficiency import FRAMES, MODELS, costs, draw, frame_costs, to_dict

    chosen, lengths = models or MODELS, frames or FRAMES
    to.mkdir(parents=True, exist_ok=True)
    with only_writer(to), progress_bar("counts", len(chosen) * len(lengths)) as advance:
        counted = list(costs(chosen, lengths, report=advance))
    content = to_dict(counted, frame_costs(counted))
    write_json(to / "efficiency.json", content)
    titles = ("model", "frames", "parameters", "TFLOP", "inference", "training step", "with fused attention")
    table = Table(*titles, box=None, pad_edge=False)
    for one in counted:
        memory = (one.inference_bytes, one.training_bytes, one.fused_training_bytes)
        row = (
            f"{one.parameters / 1e6:.1f} M",
            f"{one.inference_flop / 1e12:.2f}",
            *("" if m is None else f"{m / 1e9:.2f} GB" for m in memory),
        )
        table.add_row(one.model, str(one.num_frames), *row)
    console().print(table)
    for path in draw(counted, to):
        print(path)


_StudyRecipe = Annotated[
    Path, typer.Argument(help="With videos and videos.validation, such as paper/recipes/study_world.yaml.")
]
_MemoryRecipe = Annotated[Path, typer.Argument(help="With a memory, such as paper/recipes/memory_world.yaml.")]
_Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value ..., before what the plan changes.")]
_Runs = Annotated[Path, typer.Option(help="Folder for the run folders; finished runs in it are not trained again.")]
_To = Annotated[Path, typer.Option("--to", help="Folder for result.json and the pictures.")]
_Only = Annotated[list[str] | None, typer.Option(help="Names of variants; all by default.")]
_Seeds = Annotated[str, typer.Option(help="Numbers with commas between them.")]
_Steps = Annotated[int | None, typer.Option(min=1, help="Updates of each run, if not as the recipe says.")]


@app.command("ablations")
def ablations(
    recipe: _StudyRecipe,
    runs: _Runs,
    to: _To,
    overrides: _Overrides = None,
    only: _Only = None,
    seeds: _Seeds = "0,1,2",
    steps: _Steps = None,
    device: TrainingDeviceOption = "auto",
) -> None:
    """The paper's Tables 1, 2, 13, 14 and 15: every variant of the model trained alike, mean and deviation over seeds.

    Interrupted, the same command goes on where it stopped. Several processes share each training under torchrun.
    """
    from paper.comparison import draw_bars
    from paper.plan import ABLATIONS

    _compare(ABLATIONS, recipe, overrides, runs, to, only, seeds, steps, device, ("ablations.png", draw_bars))


@app.command("from-scratch")
def from_scratch(
    recipe: _StudyRecipe,
    runs: _Runs,
    to: _To,
    overrides: _Overrides = None,
    only: _Only = None,
    seeds: _Seeds = "0,1,2",
    steps: _Steps = None,
    device: TrainingDeviceOption = "auto",
) -> None:
    """The paper's Figure 4: TRecViT beside models of the flattened video, all from nothing, accuracy over training.

    Interrupted, the same command goes on where it stopped. Several processes share each training under torchrun.
    """
    from paper.comparison import draw_accuracy_curves
    from paper.plan import FROM_SCRATCH

    picture = ("from_scratch.png", draw_accuracy_curves)
    _compare(FROM_SCRATCH, recipe, overrides, runs, to, only, seeds, steps, device, picture)


def _compare(
    plan: Plan,
    recipe: Path,
    overrides: list[str] | None,
    runs: Path,
    to: Path,
    only: list[str] | None,
    seeds: str,
    steps: int | None,
    device: str,
    picture: tuple[str, Callable[[list[dict[str, Any]], Path], Path]],
) -> None:
    """Trains what is not trained yet, measures, writes, draws and prints."""
    from paper import comparison
    from paper.plan import FROM_SCRATCH
    from paper.results import write_result
    from trecvit.train.loop import Progress

    numbers = _numbers(seeds)
    plan = plan.only(only) if only else plan
    chosen = comparison.runs_of(plan, recipe, runs, overrides=overrides or (), seeds=numbers, num_steps=steps)
    if plan.name == FROM_SCRATCH.name:
        comparison.require_curves(chosen)
    with _together(device, runs, to) as (processes, advance):
        name, draw = picture
        done = 0

        def report(run: comparison.Run, line: Progress) -> None:
            before = numbers.index(run.seed) * line.num_steps
            what = f"{run.variant.name}, {len(numbers)} seeds"
            advance(what, before + line.step, len(numbers) * line.num_steps)

        def finished(run: comparison.Run, took_s: float) -> None:
            nonlocal done
            done += 1
            advance("runs", done, len(chosen))
            took = f"{took_s / 60:.1f} min" if took_s else "finished before"
            print(f"{run.folder}  {took}  {done}/{len(chosen)}", flush=True)

        advance("runs", 0, len(chosen))
        comparison.train_all(chosen, processes=processes, report=report, finished=finished)
        measured = comparison.measure(chosen, processes=processes, report=lambda rounds: advance("timing", rounds, 11))
        if not processes.first:
            return
        of_seeds = comparison.look_at_ours(chosen)
    content = comparison.to_dict(plan, chosen, measured, of_seeds, _command())
    result = write_result(to, content)
    draw(content["rows"], to / name)
    _print_rows(content["rows"])
    print(content["scale"])
    for path in (result, to / name, *comparison.draw_recurrence(chosen, of_seeds, to)):
        print(path)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    titles = ("paper", "variant", "top-1 here", "top-1 in the paper", "parameters", "training steps/s")
    table = Table(*titles, box=None, pad_edge=False)
    for row in rows:
        spread = "" if row["top1_deviation"] is None else f" ± {100 * row['top1_deviation']:.1f}"
        said = "" if row["paper_top1"] is None else f"{row['paper_top1']:.1f} %"
        table.add_row(
            row["table"],
            row["label"],
            f"{100 * row['top1']:.1f}{spread} %",
            said,
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['steps_per_s']:.2f}",
        )
    console().print(table)


@app.command("frozen")
def frozen(
    recipe: Annotated[Path, typer.Argument(help="With a mae, such as paper/recipes/frozen_world.yaml.")],
    data: Annotated[str, typer.Option("--data", help="Videos that the probes learn from, in any of the forms.")],
    validation: Annotated[str, typer.Option(help="Videos that they are tested on; of the same classes.")],
    runs: _Runs,
    to: _To,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    seeds: _Seeds = "0,1,2",
    epochs: Annotated[int, typer.Option(min=1, help="Of the attention readout.")] = 30,
    device: TrainingDeviceOption = "auto",
) -> None:
    """The paper's Tables 5 and 7: TRecViT and VideoMAE pre-trained alike, frozen, and probed, beside random features.

    Stop it at will; the same command goes on. Several processes share each pre-training under torchrun.
    """
    from rich.table import Table

    from paper.frozen import MODELS, Plan, clips_of, draw, rows_of, to_dict
    from paper.frozen import run as run_one
    from paper.results import write_result
    from trecvit.data.layouts import read_manifest
    from trecvit.train.probe import ProbePlan

    plan = Plan(
        path=recipe,
        overrides=tuple(overrides or ()),
        runs=runs,
        seeds=_numbers(seeds),
        probes=ProbePlan(epochs=epochs),
    )
    wanted = [(model, seed) for seed in plan.seeds for model in MODELS]
    for model, seed in wanted:
        plan.recipe(model, seed)  # refuses now what would fail after hours
    both = (read_manifest(data), read_manifest(validation))
    found = {}
    with _together(device, runs, to) as (processes, report):
        clips = clips_of(plan, report)
        for place, (model, seed) in enumerate(wanted):
            report("runs", place, len(wanted))
            found[model, seed] = run_one(plan, model, seed, both, clips, processes=processes, report=report)
        report("runs", len(wanted), len(wanted))
        rows = rows_of(plan, found, processes)
        if not processes.first:
            return
    content = to_dict(plan, both, rows, _command())
    result = write_result(to, content)
    draw(content, to / "frozen.png")
    names = ("linear", "k-NN", "attention", "average_pts_within_thresh", "average_jaccard")
    titles = ("linear", "k-NN", "attention", "δ average", "average Jaccard")
    table = Table("model", "features", "parameters", *titles, box=None, pad_edge=False)
    for row in rows:
        spreads = (f"{row[name]['mean']:.1%} ± {row[name]['deviation'] or 0:.1%}" for name in names)
        table.add_row(row["model"], row["features"], f"{row['parameters'] / 1e6:.2f} M", *spreads)
    console().print(table)
    for path in (result, to / "frozen.png"):
        print(path)


@app.command("memory")
def memory(
    recipe: _MemoryRecipe,
    runs: _Runs,
    to: _To,
    overrides: _Overrides = None,
    offset: Annotated[
        list[int] | None, typer.Option(min=1, help="How many frames back; by default 1 to that at 1.5 T.")
    ] = None,
    seeds: _Seeds = "0",
    streams: Annotated[int, typer.Option(min=1, help="Streams that go on past the trained length.")] = 16,
    device: TrainingDeviceOption = "auto",
) -> None:
    """Long-video memorisation: the paper's Figures 7 to 9 and Table 6, and streams that go on for 100 x as long.

    TRecViT and ViViT are trained to return a frame of the past. Stop it at will; the same command goes on. Several
    processes share each training under torchrun.
    """
    from rich.table import Table

    from paper.memory import Plan, beyond_rows, draw, memory_rows, speeds, to_dict
    from paper.memory import run as run_one
    from paper.results import write_result

    plan = Plan(path=recipe, overrides=tuple(overrides or ()), runs=runs, seeds=_numbers(seeds))
    plan.task(plan.base)  # refuses now what would fail after hours
    offsets = tuple(sorted(set(offset))) if offset else plan.offsets()
    wanted = plan.runs_for(offsets)
    tested = {}
    with _together(device, runs, to) as (processes, report):
        for place, (model, length, number) in enumerate(wanted):
            report("runs", place, len(wanted))
            said = partial(report, f"{model}, {length} frames, seed {number}")
            tested[model, length, number] = run_one(plan, model, length, number, processes=processes, report=said)
        report("runs", len(wanted), len(wanted))
        timed = speeds(plan, [some + plan.frame for some in offsets], processes)
        if not processes.first:
            return
        rows = memory_rows(plan, offsets, tested, timed)
        said = partial(report, "frames past the trained length")
        rows += beyond_rows(plan, streams, device=processes.device, report=said)
    content = to_dict(plan, rows, _command())
    result = write_result(to, content)
    table = Table(
        "", "model", "frames", "back", "PSNR", "last frame", "mean frame", "steps/s", box=None, pad_edge=False
    )
    for row in rows:
        frames = row["frames"] if row["part"] == "beyond" else row.get("num_frames", row.get("tested_on"))
        name = f"trained on {row['trained_on']}" if row["part"] == "Table 6" else row.get("forgetting", "")
        figures = (f"{row[key]:.1f} dB" for key in ("psnr_db", "last_psnr_db", "constant_psnr_db"))
        speed = f"{row['steps_per_s']:.2f}" if "steps_per_s" in row else ""
        table.add_row(
            row["part"], f"{row['model']} {name}".strip(), str(frames), str(row.get("offset", "")), *figures, speed
        )
    console().print(table)
    for path in (result, *draw(plan, content, to)):
        print(path)


@app.command("eigenvalues")
def eigenvalues(
    recipe: _MemoryRecipe,
    runs: _Runs,
    to: _To,
    overrides: _Overrides = None,
    seeds: _Seeds = "0",
    device: TrainingDeviceOption = "auto",
) -> None:
    """The paper's Figure 2: the recurrence's eigenvalues before and after learning to memorise, from two ranges.

    Stop it at will; the same command goes on. Several processes share each training under torchrun.
    """
    from rich.table import Table

    from paper.eigenvalues import RANGES, Plan, draw, to_dict
    from paper.eigenvalues import run as run_one
    from paper.results import write_result

    plan = Plan(path=recipe, overrides=tuple(overrides or ()), runs=runs)
    wanted = [(low, number) for number in _numbers(seeds) for low in RANGES]
    for low, number in wanted:
        plan.recipe(low, number)  # refuses now what would fail after hours
    rows = []
    with _together(device, runs, to) as (processes, report):
        for place, (low, number) in enumerate(wanted):
            report("runs", place, len(wanted))
            said = partial(report, f"from {low:g}, seed {number}")
            rows += run_one(plan, low, number, processes=processes, report=said)
        report("runs", len(wanted), len(wanted))
        if not processes.first:
            return
    content = to_dict(plan, rows, _command())
    result = write_result(to, content)
    draw(content, to / "eigenvalues.png")
    table = Table(
        "drawn from", "seed", "", "mean", "5 %", "median", "95 %", "below the range", box=None, pad_edge=False
    )
    for row in rows:
        quantiles = (f"{row['quantiles'][share]:.3f}" for share in ("0.05", "0.5", "0.95"))
        drawn = f"{row['min_radius']:g} to {row['max_radius']:g}"
        below = f"{row['below_min_radius']:.1%}"
        table.add_row(drawn, str(row["seed"]), row["moment"], f"{row['mean']:.3f}", *quantiles, below)
    console().print(table)
    for path in (result, to / "eigenvalues.png"):
        print(path)


@app.command("endless")
def endless(
    to: _To,
    model: ModelOption = "motions",
    streams: Annotated[int, typer.Option(min=1, help="How many, all at once.")] = 24,
    clips: Annotated[int, typer.Option(min=1, help="Of each stream, one after another.")] = 100,
    device: DeviceOption = "cpu",
) -> None:
    """Not in the paper: a classifier of the world's motions in streams of 100 x the length of its training clips."""
    from rich.table import Table

    from paper.endless import ENDS, answers, draw, to_dict, world_streams
    from paper.results import write_result

    network = load_model(model, device)
    ends = sorted({*(end for end in ENDS if end < clips), clips})
    with only_writer(to), progress_bar("clips of each stream", clips) as advance:
        rows = list(answers(network, world_streams(network, streams, clips), ends=ends, report=advance))
    content = to_dict(network, model, rows, streams, _command())
    result = write_result(to, content)
    table = Table("states are", "clips", "named right", "states, rms", box=None, pad_edge=False)
    for row in rows:
        seen = f"{row.first_clip} to {row.last_clip}"
        table.add_row(row.forgetting, seen, f"{row.top1:.1%} of {row.clips}", f"{row.state_rms:.2f}")
    console().print(table)
    for path in (result, draw(content, to / "endless.png")):
        print(path)


@contextmanager
def _together(device: str, *folders: Path) -> Iterator[tuple[Processes, Callable[[str, int, int], None]]]:
    """The processes of one job, and bars of what is being done; the first of them shows these and holds the folders."""
    from trecvit.processes import Processes, joined

    with joined():
        processes = Processes(device)
        with ExitStack() as stack:
            for folder in folders if processes.first else ():
                stack.enter_context(only_writer(folder))
            yield processes, stack.enter_context(progress_bars(hidden=not processes.first))


def _numbers(seeds: str) -> tuple[int, ...]:
    """Those of `--seeds`, each once."""
    from trecvit.errors import ConfigError

    try:
        return tuple(dict.fromkeys(int(number) for number in seeds.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds: expected whole numbers with commas between them, got {seeds!r}") from None


def _command() -> str:
    """The command line as it was run."""
    return shlex.join(["scripts/paper", *sys.argv[1:]])
