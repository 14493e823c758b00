"""Commands that train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trecvit.cli.app import TRAIN, app
from trecvit.cli.options import (
    DecodersOption,
    LabelsOption,
    LearningRateOption,
    ModelOption,
    OverridesArgument,
    RecipeArgument,
    RunOption,
    SplitOption,
    TrainingDeviceOption,
    VideosOption,
    check_rate,
    load_model,
)
from trecvit.cli.terminal import console, notify, print_table
from trecvit.errors import Interrupted
from trecvit.files import check_output, write_json

if TYPE_CHECKING:
    from trecvit.train.recipe import Recipe


@app.command(rich_help_panel=TRAIN)
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    to: RunOption = Path("runs/train"),
    parallel: Annotated[str, typer.Option(help="Under torchrun: ddp, or fsdp to shard the weights.")] = "ddp",
    device: TrainingDeviceOption = "auto",
) -> None:
    """Train a model by a recipe. An interrupted run (Ctrl-C included) is resumed by the same command.

    On several GPUs: torchrun --nproc-per-node 8 -m trecvit train RECIPE --to FOLDER
    """
    from trecvit.train.recipe import load_recipe

    _run_training(load_recipe(recipe, overrides or []), to, device, parallel)


@app.command(rich_help_panel=TRAIN)
def finetune(
    data: Annotated[
        str, typer.Option("--data", help="Folder with one folder of videos per class, or any other form of data.")
    ],
    to: RunOption,
    model: ModelOption = "motions",
    validation: Annotated[str | None, typer.Option(help="Validation videos, in any form of data.")] = None,
    videos: VideosOption = None,
    labels: LabelsOption = None,
    split: SplitOption = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training videos.")] = 20,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips per update.")] = 8,
    learning_rate: LearningRateOption = 5e-4,
    flip: Annotated[bool, typer.Option(help="Random horizontal flips, except for classes that name a side.")] = True,
    scratch: Annotated[bool, typer.Option("--scratch", help="Start from random weights, for comparison.")] = False,
    workers: DecodersOption = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: TrainingDeviceOption = "auto",
) -> None:
    """Fine-tune a trained model on your own classes: one folder of videos per class is enough.

    An interrupted run (Ctrl-C included) is resumed by the same command. The run folder holds the recipe and the
    curves and, with --validation, the best model in FOLDER/best. A data folder with train/ and val/ is split by them.
    With --split, a sixth of the official training clips is held out for validation; test clips are not read.
    """
    from trecvit.data.layouts import DataSource, read_manifest, split_of
    from trecvit.train.recipe import recipe_from_dict

    check_rate("--lr", learning_rate)
    folder, source = data, {"videos": videos, "labels": labels, "split": split}
    data, held_out = split_of(folder, "train"), split_of(validation or folder, "validation")
    if validation or held_out != folder or split is not None:
        validation = held_out
    parts = {"train": "fit", "validation": "validation"} if split is not None else {}
    if data != folder:
        notify(f"{folder}: training on {data}, " + (f"validation on {validation}" if validation else "no validation"))
    sources = {
        side: {"path": path, **source, "part": parts.get(side)}
        for side, path in (("train", data), ("validation", validation))
        if path
    }
    manifest = read_manifest(DataSource.from_value(sources["train"])).for_classifier()
    trained = load_model(model, "cpu")
    steps = epochs * (len(manifest.videos) // batch_size)
    clips = {
        **sources,
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


@app.command(rich_help_panel=TRAIN)
def curves(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, drawn in one plot.")],
    save: Annotated[Path, typer.Option(help="The .png file to write.")] = Path("curves.png"),
    figures: Annotated[Path | None, typer.Option(help="Also write the latest figures of each run as JSON.")] = None,
) -> None:
    """Plot loss and accuracy of training runs, finished or not, and print their latest figures."""
    from trecvit.train.run_folder import draw_curves, outcome, score_in

    for path in (save, figures):
        check_output(path)
    outcomes = {run.name: outcome(run) for run in runs}
    draw_curves({run.name: run for run in runs}, save)
    if figures:
        write_json(figures, outcomes)
    rows = []
    for name, values in outcomes.items():
        score = score_in(values) or score_in(values, "best_") or "top1"
        cells = (f"{score} {values[key]:.1%}" if key in values else "" for key in (f"best_{score}", score))
        rows.append((name, str(values["steps"]), f"{values['loss']:.3f}", *cells))
    print_table(("run", "steps", "loss", "best so far", "final"), rows)
    print(save)


def _run_training(recipe: Recipe, to: Path, device: str, parallel: str = "ddp") -> None:
    """Train with a bar on terminals, else with a line per report; print the folder of the model."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as ProgressBar

    from trecvit.processes import Processes, joined
    from trecvit.train.loop import Progress, train
    from trecvit.train.run_folder import resolved, steps_if_finished

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with joined():
        processes = Processes(device)
        is_shown = sys.stderr.isatty() and processes.first
        bar = ProgressBar(*columns, console=console(stderr=True), disable=not is_shown)
        task = bar.add_task("", total=None)

        started = False

        def report(line: Progress) -> None:
            nonlocal started
            if not started and recipe.optimisation.bf16 == "auto":
                chosen = "bfloat16" if resolved(to, recipe).optimisation.bf16 else "float32"
                notify(f"matrix multiplications in {chosen}, chosen by optimisation.bf16=auto")
            started = True
            shares = "  ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in line.figures.items())
            status = f"loss {line.loss:.3f}  {shares}  {line.clips_per_s:.1f} clips/s"
            status += f"  {line.failed} unreadable" if line.failed else ""
            bar.update(task, completed=line.step, total=line.num_steps, description=status)
            if not sys.stderr.isatty():
                left_s = (line.num_steps - line.step) * line.elapsed_s / max(line.step - line.first_step, 1)
                print(f"step {line.step}/{line.num_steps}  {status}  {left_s / 60:.1f} min left", flush=True)

        finished_steps = steps_if_finished(to, recipe) if processes.first else None
        try:
            with bar:
                train(recipe, to, processes=processes, parallel=parallel, report=report)
        except Interrupted as stop:
            if processes.first:
                raise
            raise typer.Exit(128 + stop.signal_number) from stop  # the first process prints the message
        except KeyboardInterrupt as stop:
            raise Interrupted.by(stop, f"{to}: stopped at once; run the same command to resume") from stop
    if processes.first:
        if finished_steps is not None and not started:
            notify(f"already finished ({finished_steps} steps): {to / 'model'}; give another --to to train again")
        _print_result(to)
        print(to / "model")


def _print_result(run: Path) -> None:
    """Print how good a finished run's model is, and where its pictures are."""
    from trecvit.train.run_folder import label_of, outcome, pictures_of, score_in

    values = outcome(run)
    if score := score_in(values):
        print(f"{label_of(score)} on the validation data: {values[score]:.1%}")
        if (best := values.get(f"best_{score}")) is not None and (run / "best").is_dir():
            print(f"best during training: {best:.1%}, {run / 'best'}")
    else:
        notify("not tested, because there were no validation data")
    for picture in pictures_of(run):
        print(picture)
