"""Commands that make the paper's tables and figures again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trecvit.cli.app import study_app
from trecvit.cli.options import DeviceOption, TrackerOption, load_tracker
from trecvit.cli.terminal import console, progress_bar


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
