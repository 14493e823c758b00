"""Commands that reproduce the paper's tables and figures."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from paper.video_transformers import load_videomae_encoders
from trecvit.cli.evaluate import OTHER_ENCODERS, probe
from trecvit.cli.options import DeviceOption, ModelOption, TrainingDeviceOption, load_model
from trecvit.cli.terminal import console, progress_bar, progress_bars
from trecvit.cli.train import train
from trecvit.errors import ConfigError
from trecvit.files import only_writer, write_json

if TYPE_CHECKING:
    from paper import comparison
    from trecvit.processes import Processes
    from trecvit.train.loop import Progress

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

_Report = Callable[[str, int, int], None]
_Item = TypeVar("_Item")

_StudyRecipe = Annotated[
    Path, typer.Argument(help="With videos and videos.validation, such as paper/recipes/study_world.yaml.")
]
_MaeRecipe = Annotated[Path, typer.Argument(help="With a mae, such as paper/recipes/frozen_world.yaml.")]
_MemoryRecipe = Annotated[Path, typer.Argument(help="With a memory, such as paper/recipes/memory_world.yaml.")]
_Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value ..., before the study's changes.")]
_Runs = Annotated[Path, typer.Option(help="Folder of the run folders; finished runs in it are reused.")]
_To = Annotated[Path, typer.Option("--to", help="Folder for the result file and the pictures.")]
_Only = Annotated[list[str] | None, typer.Option(help="Names of variants; all by default.")]
_Seeds = Annotated[str, typer.Option(help="Integers, separated by commas.")]
_Steps = Annotated[int | None, typer.Option(min=1, help="Updates of each run, instead of the recipe's.")]


@app.command()
def efficiency(
    to: _To,
    models: Annotated[list[str] | None, typer.Option("--model", help="Names; all by default.")] = None,
    frames: Annotated[
        list[int] | None, typer.Option(help="Lengths; by default 8 to 1024, training steps up to 64.")
    ] = None,
) -> None:
    """Count parameters, operations and peak memory over video length, of TRecViT and other video models.

    Counted, not run, so any machine will do; all models and lengths take some tens of minutes.
    """
    from paper.efficiency import FRAMES, MODELS, costs, draw, frame_costs, to_dict

    models, frames = models or list(MODELS), frames or list(FRAMES)
    to.mkdir(parents=True, exist_ok=True)
    with only_writer(to), progress_bar("counts", len(models) * len(frames)) as advance:
        counted = list(costs(models, frames, report=advance))
    result = to / "efficiency.json"
    write_json(result, to_dict(counted, frame_costs(counted)))
    titles = ("model", "frames", "parameters", "TFLOP", "inference", "training step", "with fused attention")
    rows = []
    for cost in counted:
        memory = (cost.inference_bytes, cost.training_bytes, cost.fused_training_bytes)
        gigabytes = ("" if peak is None else f"{peak / 1e9:.2f} GB" for peak in memory)
        flop = f"{cost.inference_flop / 1e12:.2f}"
        rows.append((cost.model, str(cost.num_frames), _millions(cost.parameters), flop, *gigabytes))
    _print(titles, rows, [result, *draw(counted, to)])


def _comparison(study: str) -> Callable[..., None]:
    """Make the command of one comparison; all have the same options."""

    def command(
        recipe: _StudyRecipe,
        runs: _Runs,
        to: _To,
        overrides: _Overrides = None,
        only: _Only = None,
        seeds: _Seeds = "0,1,2",
        steps: _Steps = None,
        device: TrainingDeviceOption = "auto",
    ) -> None:
        from paper import comparison
        from paper.plan import FROM_SCRATCH, PLANS
        from paper.results import write_result

        numbers = _integers(seeds)
        plan = PLANS[study].only(only) if only else PLANS[study]
        chosen = comparison.runs_of(plan, recipe, runs, overrides=overrides or (), seeds=numbers, num_steps=steps)
        if study == FROM_SCRATCH.name:
            comparison.require_curves(chosen)
        with _job(device, runs, to) as (processes, report):
            _train_all(chosen, numbers, processes, report)
            measured = comparison.measure(chosen, processes=processes, report=partial(report, "timing"))
            if not processes.first:
                return
            recurrences = comparison.look_at_ours(chosen)
        content = comparison.to_dict(plan, chosen, measured, recurrences, _command())
        paths = [write_result(to, content), *comparison.draw(content, to)]
        _print_comparison(content, [*paths, *comparison.draw_recurrence(chosen, recurrences, to)])

    return command


_RESUMING = (
    "Interrupted, it resumes when the same command is run again. Under torchrun several processes share each training."
)
app.command(
    "ablations",
    help="Train every variant of the paper's Tables 1, 2, 13, 14 and 15 alike; mean and deviation over seeds.\n\n"
    + _RESUMING,
)(_comparison("ablations"))
app.command(
    "from-scratch",
    help="Train TRecViT and models of the flattened video from random weights (the paper's Figure 4); accuracy over "
    "training.\n\n" + _RESUMING,
)(_comparison("from-scratch"))


def _train_all(runs: Sequence[comparison.Run], seeds: Sequence[int], processes: Processes, report: _Report) -> None:
    """Train with a bar for each variant, and a line for each finished run."""
    from paper import comparison

    num_finished = 0

    def advance(run: comparison.Run, line: Progress) -> None:
        step = seeds.index(run.seed) * line.num_steps + line.step
        report(f"{run.variant.name}, {len(seeds)} seeds", step, len(seeds) * line.num_steps)

    def finished(run: comparison.Run, elapsed_s: float) -> None:
        nonlocal num_finished
        num_finished += 1
        report("runs", num_finished, len(runs))
        duration = f"{elapsed_s / 60:.1f} min" if elapsed_s else "finished before"
        print(f"{run.folder}  {duration}  {num_finished}/{len(runs)}", flush=True)

    report("runs", 0, len(runs))
    comparison.train_all(runs, processes=processes, report=advance, finished=finished)


def _print_comparison(content: dict[str, Any], paths: Sequence[Path]) -> None:
    titles = ("paper", "variant", "top-1 here", "top-1 in the paper", "parameters", "training steps/s")
    rows = []
    for row in content["rows"]:
        spread = "" if row["top1_deviation"] is None else f" ± {100 * row['top1_deviation']:.1f}"
        here = f"{100 * row['top1']:.1f}{spread} %"
        paper = "" if row["paper_top1"] is None else f"{row['paper_top1']:.1f} %"
        speed = f"{row['steps_per_s']:.2f}"
        rows.append((row["table"], row["label"], here, paper, _millions(row["parameters"]), speed))
    _print(titles, rows, [content["scale"], *paths])


@app.command()
def frozen(
    recipe: _MaeRecipe,
    data: Annotated[str, typer.Option("--data", help="Videos to train the probes on, in any of the layouts.")],
    validation: Annotated[str, typer.Option(help="Videos of the same classes to test them on.")],
    runs: _Runs,
    to: _To,
    overrides: _Overrides = None,
    seeds: _Seeds = "0,1,2",
    epochs: Annotated[int, typer.Option(min=1, help="Of the attention readout.")] = 30,
    device: TrainingDeviceOption = "auto",
) -> None:
    """Probe frozen TRecViT and VideoMAE, pre-trained alike, and random features (the paper's Tables 5 and 7).

    Interrupted, it resumes when the same command is run again. Under torchrun several processes share each training.
    """
    from paper import frozen
    from paper.results import write_result
    from trecvit.data.layouts import read_manifest
    from trecvit.train.probe import ProbePlan

    probes = ProbePlan(epochs=epochs)
    plan = frozen.Plan(path=recipe, overrides=tuple(overrides or ()), runs=runs, seeds=_integers(seeds), probes=probes)
    keys = [(model, seed) for seed in plan.seeds for model in frozen.MODELS]
    for key in keys:
        plan.recipe(*key)  # an invalid recipe fails before the first training
    manifests = (read_manifest(data), read_manifest(validation))
    with _job(device, runs, to) as (processes, report):
        clips = frozen.clips_of(plan, report)
        results = {
            key: frozen.run(plan, *key, manifests, clips, processes=processes, report=report)
            for key in _counted(keys, report)
        }
        rows = frozen.rows_of(plan, results, processes)
        if not processes.first:
            return
    content = frozen.to_dict(plan, manifests, rows, _command())
    names = ("linear", "k-NN", "attention", "average_pts_within_thresh", "average_jaccard")
    titles = ("model", "features", "parameters", "linear", "k-NN", "attention", "δ average", "average Jaccard")
    lines = []
    for row in rows:
        spreads = (f"{row[name]['mean']:.1%} ± {row[name]['deviation'] or 0:.1%}" for name in names)
        lines.append((row["model"], row["features"], _millions(row["parameters"]), *spreads))
    _print(titles, lines, [write_result(to, content), *frozen.draw(content, to)])


@app.command()
def memory(
    recipe: _MemoryRecipe,
    runs: _Runs,
    to: _To,
    overrides: _Overrides = None,
    offset: Annotated[
        list[int] | None, typer.Option(min=1, help="How many frames back; by default from 1 to that at 1.5 T.")
    ] = None,
    seeds: _Seeds = "0",
    streams: Annotated[int, typer.Option(min=1, help="Streams that continue past the trained length.")] = 16,
    device: TrainingDeviceOption = "auto",
) -> None:
    """Train TRecViT and ViViT to recall a past frame (the paper's Figures 7 to 9 and Table 6), and test long streams.

    The streams are 100 times as long as the training clips. Interrupted, it resumes when the same command is run
    again. Under torchrun several processes share each training.
    """
    from paper import memory
    from paper.results import write_result

    plan = memory.Plan(path=recipe, overrides=tuple(overrides or ()), runs=runs, seeds=_integers(seeds))
    plan.task(plan.base)  # an invalid recipe fails before the first training
    offsets = tuple(sorted(set(offset))) if offset else plan.offsets()
    tested = {}
    with _job(device, runs, to) as (processes, report):
        for key in _counted(plan.runs_for(offsets), report):
            advance = partial(report, "{}, {} frames, seed {}".format(*key))
            tested[key] = memory.run(plan, *key, processes=processes, report=advance)
        timed = memory.speeds(plan, [back + plan.frame for back in offsets], processes)
        if not processes.first:
            return
        advance = partial(report, "frames past the trained length")
        rows = memory.memory_rows(plan, offsets, tested, timed)
        rows += memory.beyond_rows(plan, streams, device=processes.device, report=advance)
    content = memory.to_dict(plan, rows, _command())
    titles = ("", "model", "frames", "back", "PSNR", "last frame", "mean frame", "steps/s")
    lines = []
    for row in rows:
        frames = row["frames"] if row["part"] == "beyond" else row.get("num_frames", row.get("tested_on"))
        detail = f"trained on {row['trained_on']}" if row["part"] == "Table 6" else row.get("forgetting", "")
        decibels = (f"{row[key]:.1f} dB" for key in ("psnr_db", "last_psnr_db", "constant_psnr_db"))
        speed = f"{row['steps_per_s']:.2f}" if "steps_per_s" in row else ""
        model = f"{row['model']} {detail}".strip()
        lines.append((row["part"], model, str(frames), str(row.get("offset", "")), *decibels, speed))
    _print(titles, lines, [write_result(to, content), *memory.draw(plan, content, to)])


@app.command()
def eigenvalues(
    recipe: _MemoryRecipe,
    runs: _Runs,
    to: _To,
    overrides: _Overrides = None,
    seeds: _Seeds = "0",
    device: TrainingDeviceOption = "auto",
) -> None:
    """Measure the recurrence's eigenvalues before and after training on memorisation (the paper's Figure 2).

    They are initialised in two ranges. Interrupted, it resumes when the same command is run again. Under torchrun
    several processes share each training.
    """
    from paper import eigenvalues
    from paper.results import write_result

    plan = eigenvalues.Plan(path=recipe, overrides=tuple(overrides or ()), runs=runs)
    keys = [(min_radius, seed) for seed in _integers(seeds) for min_radius in eigenvalues.RANGES]
    for key in keys:
        plan.recipe(*key)  # an invalid recipe fails before the first training
    rows = []
    with _job(device, runs, to) as (processes, report):
        for key in _counted(keys, report):
            advance = partial(report, "from {:g}, seed {}".format(*key))
            rows += eigenvalues.run(plan, *key, processes=processes, report=advance)
        if not processes.first:
            return
    content = eigenvalues.to_dict(plan, rows, _command())
    titles = ("initial range", "seed", "", "mean", "5 %", "median", "95 %", "below the range")
    lines = []
    for row in rows:
        quantiles = (f"{row['quantiles'][share]:.3f}" for share in ("0.05", "0.5", "0.95"))
        range_, mean = f"{row['min_radius']:g} to {row['max_radius']:g}", f"{row['mean']:.3f}"
        lines.append((range_, str(row["seed"]), row["moment"], mean, *quantiles, f"{row['below_min_radius']:.1%}"))
    _print(titles, lines, [write_result(to, content), *eigenvalues.draw(content, to)])


@app.command()
def endless(
    to: _To,
    model: ModelOption = "motions",
    streams: Annotated[int, typer.Option(min=1, help="Streams in one batch.")] = 24,
    clips: Annotated[int, typer.Option(min=1, help="Clips of each stream, one after another.")] = 100,
    device: DeviceOption = "cpu",
) -> None:
    """Classify motions in streams of 100 times the length of the training clips; not in the paper."""
    from paper import endless
    from paper.results import write_result

    network = load_model(model, device)
    ends = sorted({*(end for end in endless.ENDS if end < clips), clips})
    with only_writer(to), progress_bar("clips of each stream", clips) as advance:
        batches = endless.world_streams(network, streams, clips)
        rows = list(endless.accuracies(network, batches, ends=ends, report=advance))
    content = endless.to_dict(network, model, rows, streams, _command())
    lines = [
        (
            row.forgetting,
            f"{row.first_clip} to {row.last_clip}",
            f"{row.top1:.1%} of {row.clips}",
            f"{row.state_rms:.2f}",
        )
        for row in rows
    ]
    titles = ("states are", "clips", "top-1", "states, rms")
    _print(titles, lines, [write_result(to, content), *endless.draw(content, to)])


def _print(titles: Sequence[str], rows: Iterable[Sequence[str]], last: Iterable[object]) -> None:
    """Print a table, then one line each of the other things."""
    from rich.table import Table

    table = Table(*titles, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console().print(table)
    for line in last:
        print(line)


@contextmanager
def _job(device: str, *folders: Path) -> Iterator[tuple[Processes, _Report]]:
    """Join the job's processes; the first one locks the folders and shows progress bars."""
    from trecvit.processes import Processes, joined

    with joined():
        processes = Processes(device)
        with ExitStack() as stack:
            for folder in folders if processes.first else ():
                stack.enter_context(only_writer(folder))
            yield processes, stack.enter_context(progress_bars(hidden=not processes.first))


def _counted(items: Sequence[_Item], report: _Report) -> Iterator[_Item]:
    """Yield the items; report how many are done."""
    for done, item in enumerate(items):
        report("runs", done, len(items))
        yield item
    report("runs", len(items), len(items))


def _integers(seeds: str) -> tuple[int, ...]:
    """Parse `--seeds`; each once."""
    try:
        return tuple(dict.fromkeys(int(number) for number in seeds.split(",")))
    except ValueError:
        raise ConfigError(f"--seeds: expected integers separated by commas, got {seeds!r}") from None


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _command() -> str:
    """Return the command line as it was typed."""
    return shlex.join(["scripts/paper", *sys.argv[1:]])
