"""Commands that make the paper's tables and figures again."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from trecvit.cli.app import study_app
from trecvit.cli.options import DeviceOption, TrackerOption, load_tracker
from trecvit.cli.terminal import console, progress_bar, progress_bars


@study_app.command("efficiency")
def study_efficiency(
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

    from trecvit.study.efficiency import FRAMES, MODELS, costs, draw, frame_costs, to_dict

    chosen, lengths = models or MODELS, frames or FRAMES
    to.mkdir(parents=True, exist_ok=True)
    with progress_bar("counts", len(chosen) * len(lengths)) as advance:
        counted = list(costs(chosen, lengths, report=advance))
    content = to_dict(counted, frame_costs(counted))
    (to / "efficiency.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
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


@study_app.command("points")
def study_points(
    recipe: Annotated[Path, typer.Argument(help="Its scenes are rendered, with another seed and photographs.")],
    save: Annotated[Path, typer.Option(help="JSON file for the scores.")],
    model: TrackerOption = "points",
    scenes: Annotated[int, typer.Option(min=1, help="How many held-out scenes.")] = 100,
    num_frames: Annotated[int, typer.Option(min=2, help="Frames of a scene.")] = 24,
    footage: Annotated[list[Path] | None, typer.Option(help="Real videos whose frames are moved.")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips of each of these videos.")] = 10,
    device: DeviceOption = "cpu",
) -> None:
    """A tracker beside points that stay and optical flow: average Jaccard, δ-average, occlusion accuracy."""
    from dataclasses import replace

    from rich.table import Table

    from trecvit.errors import ConfigError
    from trecvit.study.points import METRICS, compare_trackers, to_dict
    from trecvit.train.recipe import load_recipe

    tracks = load_recipe(recipe).tracks
    if tracks is None or tracks.scenes is None:
        raise ConfigError(f"{recipe}: expected a recipe with tracks.scenes")
    look = replace(tracks.scenes, num_frames=num_frames)
    videos = footage or []
    with progress_bar("scores", 9 if videos else 3) as advance:
        found = compare_trackers(
            load_tracker(model, device),
            scenes=look,
            num_scenes=scenes,
            footage=videos,
            clips_per_video=clips,
            report=advance,
        )
    save.write_text(json.dumps(to_dict(found, scenes=look, footage=videos), indent=1) + "\n", encoding="utf-8")
    table = Table("videos", "tracker", "average Jaccard", "δ-average", "occlusion accuracy", box=None, pad_edge=False)
    for one in found:
        table.add_row(one.test, one.tracker, *(f"{one.metrics[metric]:.1%}" for metric in METRICS))
    console().print(table)


@study_app.command("ablations")
def study_ablations(
    recipe: Annotated[Path, typer.Argument(help="What is trained, of scenes, such as recipes/study_world.yaml.")],
    runs: Annotated[Path, typer.Option(help="Folder for the training runs; what is finished there is not done again.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for result.json, ablations.png and recurrence.png.")],
    only: Annotated[list[str] | None, typer.Option(help="Configurations; all by default.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds; 0, 1 and 2 by default.")] = None,
    clips: Annotated[int, typer.Option(min=2, help="Held-out clips of the test, even.")] = 900,
    finished: Annotated[
        bool, typer.Option("--finished", help="Train nothing; show the runs that are finished.")
    ] = False,
) -> None:
    """The paper's Tables 1, 2, 13, 14 and 15: other temporal parts, without gates, convolution or skip, other sizes.

    Every configuration is trained with every seed. Stop it at will; the same command goes on.
    """
    from rich.table import Table

    from trecvit.errors import DataError
    from trecvit.study.ablations import (
        GRIFFIN,
        OURS,
        PAPER_STEPS_PER_S,
        VARIANTS,
        draw,
        draw_recurrence,
        is_finished,
        recipe_of,
        speeds,
        to_dict,
    )
    from trecvit.study.ablations import run as run_one

    names, seeds = only or list(VARIANTS), seed or [0, 1, 2]
    for name in names:
        recipe_of(recipe, name, 0)  # refuses now what would fail after hours
    to.mkdir(parents=True, exist_ok=True)
    wanted = [(number, name) for number in seeds for name in names if not finished or is_finished(runs, name, number)]
    if not wanted:
        raise DataError(f"{runs}: no run is finished yet; leave out --finished to train them")
    tested = []
    with progress_bars() as report:
        for place, (number, name) in enumerate(wanted):
            report("runs", place, len(wanted))
            said = partial(report, f"{name}, seed {number}")
            tested.append(run_one(recipe, name, number, runs, num_clips=clips, report=said))
        report("runs", len(tested), len(tested))
        timed = [name for name in PAPER_STEPS_PER_S if any(one.name == name for one in tested)]
        content = to_dict(recipe, tested, speeds(recipe, timed), clips)
    (to / "result.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draw(content, to / "ablations.png")
    if {(seeds[0], OURS), (seeds[0], GRIFFIN)} <= set(wanted):
        draw_recurrence(recipe, runs, seeds[0], to / "recurrence.png")
    table = Table("configuration", "parameters", "top-1", "steps/s", box=None, pad_edge=False)
    for row in content["rows"]:
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.1%}"
        speed = f"{row['steps_per_s']:.2f}" if row["steps_per_s"] else ""
        table.add_row(row["name"], f"{row['parameters'] / 1e6:.2f} M", f"{row['mean']:.1%}{spread}", speed)
    console().print(table)
    print(to / "result.json")


@study_app.command("memory")
def study_memory(
    recipe: Annotated[Path, typer.Argument(help="What is trained, such as recipes/memory_world.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    runs: Annotated[
        Path, typer.Option(help="Folder for the training runs; what is finished there is not done again.")
    ] = Path("runs/memory_study"),
    to: Annotated[Path, typer.Option("--to", help="Folder for result.json and the pictures.")] = Path(
        "benchmarks/memory"
    ),
    offset: Annotated[
        list[int] | None, typer.Option(min=1, help="How many frames back; by default 1 to that at 1.5 T.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds; 0 by default.")] = None,
    streams: Annotated[int, typer.Option(min=1, help="Streams that go on past the trained length.")] = 16,
) -> None:
    """Long-video memorisation: the paper's Figures 7 to 9 and Table 6, and streams that go on for 100 x as long.

    TRecViT and ViViT are trained to return a frame of the past. Stop it at will; the same command goes on.
    """
    from rich.table import Table

    from trecvit.study.memory import Plan, beyond_rows, draw, memory_rows, speeds, to_dict
    from trecvit.study.memory import run as run_one

    plan = Plan(path=recipe, overrides=tuple(overrides or ()), runs=runs, seeds=tuple(seed or [0]))
    plan.memory(plan.base)  # refuses now what would fail after hours
    offsets = tuple(sorted(set(offset))) if offset else plan.offsets()
    wanted = plan.runs_for(offsets)
    to.mkdir(parents=True, exist_ok=True)
    tested = {}
    with progress_bars() as report:
        for place, (model, length, number) in enumerate(wanted):
            report("runs", place, len(wanted))
            said = partial(report, f"{model}, {length} frames, seed {number}")
            tested[model, length, number] = run_one(plan, model, length, number, report=said)
        report("runs", len(wanted), len(wanted))
        timed = speeds(plan, [some + plan.frame for some in offsets])
        rows = memory_rows(plan, offsets, tested, timed)
        rows += beyond_rows(plan, streams, report=partial(report, "frames past the trained length"))
    content = to_dict(plan, rows, _command())
    (to / "result.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
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
    for path in (to / "result.json", *draw(plan, content, to)):
        print(path)


@study_app.command("eigenvalues")
def study_eigenvalues(
    recipe: Annotated[Path, typer.Argument(help="What is trained, such as recipes/memory_world.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    runs: Annotated[
        Path, typer.Option(help="Folder for the training runs; what is finished there is not done again.")
    ] = Path("runs/eigenvalues"),
    to: Annotated[Path, typer.Option("--to", help="Folder for result.json and eigenvalues.png.")] = Path(
        "benchmarks/eigenvalues"
    ),
    seed: Annotated[list[int] | None, typer.Option(help="Seeds; 0 by default.")] = None,
) -> None:
    """The paper's Figure 2: the recurrence's eigenvalues before and after learning to memorise, from two ranges."""
    from rich.table import Table

    from trecvit.study.eigenvalues import RANGES, Plan, draw, to_dict
    from trecvit.study.eigenvalues import run as run_one

    plan = Plan(path=recipe, overrides=tuple(overrides or ()), runs=runs)
    wanted = [(low, number) for number in seed or [0] for low in RANGES]
    for low, number in wanted:
        plan.recipe(low, number)  # refuses now what would fail after hours
    to.mkdir(parents=True, exist_ok=True)
    rows = []
    with progress_bars() as report:
        for place, (low, number) in enumerate(wanted):
            report("runs", place, len(wanted))
            rows += run_one(plan, low, number, report=partial(report, f"from {low:g}, seed {number}"))
        report("runs", len(wanted), len(wanted))
    content = to_dict(plan, rows, _command())
    (to / "result.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
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
    for path in (to / "result.json", to / "eigenvalues.png"):
        print(path)


@study_app.command("report")
def study_report(
    page: Annotated[Path, typer.Option(help="The page, whose tables stand between marks.")] = Path("docs/results.md"),
    benchmarks: Annotated[Path, typer.Option(help="Folder of the result files.")] = Path("benchmarks"),
    check: Annotated[bool, typer.Option("--check", help="Change nothing; fail if a figure differs.")] = False,
) -> None:
    """Writes the tables of the results page from the studies' result files."""
    from trecvit.errors import DataError
    from trecvit.study.report import first_difference, rebuilt, write_page

    if not page.exists():
        raise DataError(f"{page}: expected the results page; run this where docs/ is, or say --page")
    if check:
        said = page.read_text(encoding="utf-8")
        if (built := rebuilt(said, benchmarks)) != said:
            raise DataError(f"{page}: {first_difference(said, built)}; run `trecvit study report`")
        print(f"{page}: as the result files say")
        return
    print(f"{page}: {'written anew' if write_page(page, benchmarks) else 'nothing to change'}")


def _command() -> str:
    """The command line as it was run."""
    return shlex.join(["trecvit", *sys.argv[1:]])
