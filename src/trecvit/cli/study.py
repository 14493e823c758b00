"""Commands that make the paper's tables and figures again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trecvit.cli.app import study_app
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
