"""Commands that train."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trecvit.cli.app import app
from trecvit.cli.options import (
    LabelsOption,
    ModelOption,
    TrainingDeviceOption,
    VideosOption,
    check_rate,
    load_model,
)
from trecvit.cli.terminal import complain, console
from trecvit.errors import Interrupted
from trecvit.files import check_output, write_text

if TYPE_CHECKING:
    from trecvit.train.recipe import Recipe


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe, or the name of one of the package, such as world.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value ...")] = None,
    to: Annotated[Path, typer.Option(help="The run folder; an interrupted run in it is continued.")] = Path(
        "runs/train"
    ),
    parallel: Annotated[str, typer.Option(help="Under torchrun: ddp, or fsdp to spread the weights.")] = "ddp",
    device: TrainingDeviceOption = "auto",
) -> None:
    """Train a model by a recipe. Interrupted, also by Ctrl-C, the same command goes on where it stopped.

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

    Interrupted, also by Ctrl-C, the same command goes on where it stopped. The recipe it makes is in the run folder,
    and so are the curves; with --validation, FOLDER/best is the model that did best on it. Of a folder with train/ and
    val/, each with a folder for each class, these are taken.
    """
    from trecvit.data.layouts import DataSource, read_manifest, split_of
    from trecvit.train.recipe import recipe_from_dict

    check_rate("--lr", learning_rate)
    given, where = data, {"videos": videos, "labels": labels}
    data, held_out = split_of(given, "train"), split_of(validation or given, "validation")
    if validation or held_out != given:
        validation = held_out
    if data != given:
        complain(f"{given}: training on {data}, validation on {validation or 'nothing'}")
    manifest = read_manifest(DataSource(path=data, **where)).for_classifier()
    trained = load_model(model, "cpu")
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

    for path in (save, figures):
        check_output(path)
    found = {run.name: outcome(run) for run in runs}
    draw_curves({run.name: run for run in runs}, save)
    if figures:
        write_text(figures, json.dumps(found, indent=1) + "\n")
    table = Table("run", "steps", "loss", "best on the way", "at the end", box=None, pad_edge=False)
    for name, at in found.items():
        scores = ("average_jaccard", "explained")
        score = next((name for name in scores if {name, f"best_{name}"} & at.keys()), "top1")
        said = (f"{score} {at[key]:.1%}" if key in at else "" for key in (f"best_{score}", score))
        table.add_row(name, str(at["steps"]), f"{at['loss']:.3f}", *said)
    console().print(table)
    print(save)


def _run_training(recipe: Recipe, to: Path, device: str, parallel: str = "ddp") -> None:
    """Trains with a bar where somebody looks, else with a line now and then; prints where the model is."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from trecvit.processes import Processes, joined
    from trecvit.train.loop import Progress, train
    from trecvit.train.run_folder import as_begun, steps_if_finished

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with joined():
        processes = Processes(device)
        looked_at = sys.stderr.isatty() and processes.first
        bar = Bar(*columns, console=console(stderr=True), disable=not looked_at)
        task = bar.add_task("", total=None)

        begun = False

        def report(line: Progress) -> None:
            nonlocal begun
            if not begun and recipe.optimisation.bf16 == "auto":
                chosen = "bfloat16" if as_begun(to, recipe).optimisation.bf16 else "float32"
                complain(f"matrix products in {chosen}, as optimisation.bf16=auto has chosen")
            begun = True
            shares = "  ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in line.figures.items())
            words = f"loss {line.loss:.3f}  {shares}  {line.clips_per_s:.1f} clips/s"
            words += f"  {line.failed} unreadable" if line.failed else ""
            bar.update(task, completed=line.step, total=line.num_steps, description=words)
            if not sys.stderr.isatty():
                left_s = (line.num_steps - line.step) * line.elapsed_s / max(line.step - line.first_step, 1)
                print(f"step {line.step}/{line.num_steps}  {words}  {left_s / 60:.1f} min left", flush=True)

        finished_steps = steps_if_finished(to, recipe) if processes.first else None
        try:
            with bar:
                train(recipe, to, processes=processes, parallel=parallel, report=report)
        except Interrupted as stop:
            if processes.first:
                raise
            raise typer.Exit(128 + stop.signal_number) from stop  # one line is enough
        except KeyboardInterrupt as stop:
            raise Interrupted.by(stop, f"{to}: stopped at once; start it again to go on from where it was") from stop
    if processes.first:
        if finished_steps is not None and not begun:
            complain(
                f"already finished ({finished_steps} steps): {to / 'model'}; nothing was trained. Give another --to to "
                "train anew"
            )
        print(to / "model")
