"""Long-video memorisation (the paper's section 5.4 and appendix F: Figures 7 to 9 and Table 6).

The frame to recall is a fixed one from the beginning, as in the paper, so a greater distance means a longer video.
Each run is an ordinary training run, `RUNS/MODEL/frames-T/seed-N`: interrupted ones resume, finished ones are reused.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from paper.forgetting import FORGETTINGS, MULTIPLES
from paper.memoriser import Memoriser
from paper.memory_task import HeldOutMemory, MemoryTask
from paper.recall import draw_memory, evaluate_memory, recall_in_streams
from paper.results import empty_figure, heading, scale
from paper.runs import train_once
from paper.vivit import VivitMemoriser
from trecvit.bench.training import updates_in_turn
from trecvit.errors import ConfigError
from trecvit.files import write_text
from trecvit.processes import Processes
from trecvit.train.networks import load_trained
from trecvit.train.recipe import Recipe, load_recipe

OURS, VIVIT = "TRecViT", "ViViT"
_NETWORKS: dict[str, tuple[str, ...]] = {
    OURS: ("memory.network=trecvit",),
    VIVIT: ("memory.network=vivit", "start.vit=''", "start.weights=''"),
}
LONGER = 1.5  # tested length over trained length (paper, Table 6: 96 and 64)
PAPER_TABLE_6 = {(96, VIVIT): 32.2, (96, OURS): 29.1, (64, VIVIT): 15.1, (64, OURS): 26.4}
"""(Frames in training, model) -> PSNR in dB on 96 frames."""

_TIMED_UPDATES = 9
_NUM_DRAWN = 4
_COLOURS, _GREY = {OURS: "#2a6f97", VIVIT: "#c8553d"}, "#8a8a8a"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Plan of the study.

    Attributes:
        path: The recipe, with a memory.
        overrides: Overrides of its values.
        runs: Folder of the run folders.
        seeds: Seeds of weights and of the order of videos.
    """

    path: Path
    overrides: tuple[str, ...]
    runs: Path
    seeds: tuple[int, ...]

    @property
    def base(self) -> Recipe:
        """The recipe, unchanged."""
        return load_recipe(self.path, self.overrides)

    @property
    def frame(self) -> int:
        """Number of the frame to recall, from 1."""
        base = self.base
        return base.preprocessing.num_frames - self.task(base).memory.offset

    @property
    def lengths(self) -> tuple[int, int]:
        """The recipe's length T, and 1.5 T."""
        num_frames = self.base.preprocessing.num_frames
        return num_frames, round(LONGER * num_frames)

    def task(self, recipe: Recipe) -> MemoryTask:
        """Return the recipe's task.

        Raises:
            ConfigError: for another task, and without clips to validate on.
        """
        if not isinstance(recipe.task, MemoryTask) or not recipe.task.evaluates:
            raise ConfigError(f"{self.path}: expected a recipe with `memory`, and clips to validate on")
        return recipe.task

    def offsets(self) -> tuple[int, ...]:
        """Return the default distances k: 1, a third of the recipe's, the recipe's, and that at 1.5 T."""
        short, long = (num_frames - self.frame for num_frames in self.lengths)
        return tuple(sorted({1, max(short // 3, 1), short, long}))

    def recipe(self, model: str, num_frames: int, seed: int) -> Recipe:
        """Load the recipe of one run: the same frame of clips of this length."""
        overrides = [
            *self.overrides,
            *_NETWORKS[model],
            f"preprocessing.num_frames={num_frames}",
            f"memory.offset={num_frames - self.frame}",
            f"seed={seed}",
        ]
        return load_recipe(self.path, overrides)

    def held_out(self, model: str, num_frames: int, seed: int) -> HeldOutMemory:
        """Clips that one run is tested on."""
        recipe = self.recipe(model, num_frames, seed)
        return self.task(recipe).held_out(recipe)

    def folder(self, model: str, num_frames: int, seed: int) -> Path:
        """Return the run folder."""
        return self.runs / model / f"frames-{num_frames}" / f"seed-{seed}"

    def trained(self, model: str, num_frames: int, seed: int) -> Memoriser | VivitMemoriser:
        """Load the model of a finished run."""
        architecture = self.recipe(model, num_frames, seed).architecture
        network = load_trained(architecture, self.folder(model, num_frames, seed) / "model")
        assert isinstance(network, (Memoriser, VivitMemoriser)), "a recipe with a memory trains a memoriser"
        return network.eval()

    def runs_for(self, offsets: Iterable[int]) -> list[tuple[str, int, int]]:
        """List model, frames and seed of all runs, short ones first."""
        lengths = sorted({*self.lengths, *(offset + self.frame for offset in offsets)})
        return [(model, length, seed) for seed in self.seeds for length in lengths for model in _NETWORKS]


def run(
    plan: Plan,
    model: str,
    num_frames: int,
    seed: int,
    *,
    processes: Processes,
    report: Callable[[int, int], None],
) -> dict[str, dict[str, float | int]]:
    """Train one model and test it in the first process, or read the stored results.

    Returns:
        Frames of the test clips -> metrics of `evaluate_memory`: for the trained length; if that is the recipe's own,
        also for the longer one.

    Raises:
        CheckpointError: when the folder holds a run of another recipe.
    """
    recipe, folder = plan.recipe(model, num_frames, seed), plan.folder(model, num_frames, seed)
    train_once(recipe, folder, processes=processes, report=lambda line: report(line.step, line.num_steps))
    cached = folder / "study.json"
    if processes.first and not cached.exists():
        trained = plan.trained(model, num_frames, seed).to(processes.device)
        tests = plan.lengths if num_frames == plan.lengths[0] else (num_frames,)
        results: dict[str, dict[str, float | int]] = {}
        for length in tests:
            clips, _ = plan.held_out(model, length, seed).read()
            results[str(length)] = evaluate_memory(trained, clips, length - plan.frame)
            results[str(length)]["parameters"] = sum(weight.numel() for weight in trained.parameters())
        write_text(cached, json.dumps(results) + "\n")
    processes.wait()
    content: dict[str, dict[str, float | int]] = json.loads(cached.read_text(encoding="utf-8"))
    return content


def speeds(plan: Plan, lengths: Sequence[int], processes: Processes) -> dict[tuple[str, int], float]:
    """Measure updates per second: the median over rounds in which all models and lengths take turns."""
    keys = {f"{model}, {length} frames": (model, length) for length in lengths for model in _NETWORKS}
    recipes = {name: plan.recipe(*key, seed=0) for name, key in keys.items()}
    timed = updates_in_turn(recipes, num_rounds=_TIMED_UPDATES, processes=processes)
    return {key: statistics.median(timed[name]) for name, key in keys.items()}


def memory_rows(
    plan: Plan,
    offsets: Sequence[int],
    tested: dict[tuple[str, int, int], dict[str, dict[str, float | int]]],
    steps_per_s: dict[tuple[str, int], float],
) -> list[dict[str, Any]]:
    """Make the rows of Figure 7, one per model and distance, and those of Table 6."""
    rows = []
    for offset in offsets:
        length = offset + plan.frame
        for model in _NETWORKS:
            row = {"part": "Figure 7", "model": model, "offset": offset, "num_frames": length}
            rows.append(
                {**row, **_over_seeds(plan, tested, model, length, length), "steps_per_s": steps_per_s[model, length]}
            )
    short, long = plan.lengths
    for length, paper in ((long, 96), (short, 64)):
        for model in _NETWORKS:
            row = {"part": "Table 6", "model": model, "trained_on": length, "tested_on": long}
            row["paper_psnr_db"] = PAPER_TABLE_6[paper, model]
            rows.append({**row, **_over_seeds(plan, tested, model, length, long)})
    return rows


def beyond_rows(
    plan: Plan, num_streams: int, *, device: torch.device, report: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Test the recipe's own TRecViT, first seed, in streams longer than its training clips."""
    length, seed = plan.lengths[0], plan.seeds[0]
    model = plan.trained(OURS, length, seed).to(device)
    assert isinstance(model, Memoriser), "a TRecViT memoriser"
    held_out = plan.held_out(OURS, length, seed)
    ways = [way for way in FORGETTINGS if held_out.has_cuts or not way.at_cuts]
    moments = [round(multiple * length) for multiple in MULTIPLES]
    multiple_of = dict(zip(moments, MULTIPLES, strict=True))
    recalled = recall_in_streams(
        model,
        held_out.streams(num_streams),
        ways,
        moments,
        num_frames=length,
        report=lambda seen: report(seen, moments[-1]),
    )
    return [{"part": "beyond", "model": OURS, "multiple": multiple_of[row.frames], **asdict(row)} for row in recalled]


def to_dict(plan: Plan, rows: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
    """Convert the results to plain JSON values."""
    return {
        **heading("memory", command, scale(plan.base)),
        "recipe": plan.path.name,
        "seeds": list(plan.seeds),
        "frame": plan.frame,
        "trained_on": plan.lengths[0],
        "rows": list(rows),
    }


def draw(plan: Plan, content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw all pictures: curves of the results, and Figures 8 and 9, frames recalled by both models."""
    drawn = draw_curves(content, folder)
    short, long = plan.lengths
    clips, _ = plan.held_out(OURS, long, plan.seeds[0]).read(_NUM_DRAWN)
    for name, trained_on in (("figure8.png", long), ("figure9.png", short)):
        models = {model: plan.trained(model, trained_on, plan.seeds[0]) for model in _NETWORKS}
        draw_memory(models, clips, long - plan.frame, folder / name)
        drawn.append(folder / name)
    return drawn


def draw_curves(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw Figure 7 and the streams past the trained length, from `to_dict`'s values alone."""
    swept, streamed = ([row for row in content["rows"] if row["part"] == part] for part in ("Figure 7", "beyond"))
    back, frame = content["trained_on"] - content["frame"], content["frame"]
    figures = {"figure7.png": empty_figure(10, 4), "beyond.png": empty_figure(14, 4)}

    left, right = figures["figure7.png"].subplots(1, 2)
    for model, colour in _COLOURS.items():
        own = [row for row in swept if row["model"] == model]
        for panel, name in ((left, "psnr_db"), (right, "steps_per_s")):
            _line(panel, own, "offset", name, marker="o", color=colour, label=model)
    own = [row for row in swept if row["model"] == OURS]
    _line(left, own, "offset", "last_psnr_db", linestyle=":", color=_GREY, label="last frame")
    _line(left, own, "offset", "constant_psnr_db", linestyle="--", color=_GREY, label="mean frame")
    left.set(xlabel="frames back, k", ylabel="PSNR, dB")
    right.set(xlabel="frames back, k", ylabel="training steps/s")
    right.set_ylim(bottom=0)
    left.legend(frameon=False)

    panels = figures["beyond.png"].subplots(1, 3)
    titles = {
        "psnr_db": f"PSNR with the frame {back} frames back, dB",
        "first_psnr_db": f"PSNR with frame {frame}, dB",
        "state_rms": "size of the states, rms",
    }
    ways: dict[str, list[dict[str, Any]]] = {}
    for row in streamed:
        ways.setdefault(row["forgetting"], []).append(row)
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for way, rows in ways.items():
            _line(panel, rows, "frames", name, marker="o", label=way)
        panel.set(xlabel="frames seen", title=title, xscale="log")
        panel.title.set_fontsize(10)
    for rows in list(ways.values())[:1]:  # the same for all ways
        _line(panels[0], rows, "frames", "constant_psnr_db", linestyle="--", color=_GREY, label="mean frame")
    panels[0].legend(frameon=False, fontsize=7)

    for name, figure in figures.items():
        for panel in figure.axes:
            panel.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / name, dpi=130)
    return [folder / name for name in figures]


def _line(panel: Any, rows: Sequence[dict[str, Any]], x: str, y: str, **style: Any) -> None:
    panel.plot([row[x] for row in rows], [row[y] for row in rows], **style)


def _over_seeds(
    plan: Plan,
    tested: dict[tuple[str, int, int], dict[str, dict[str, float | int]]],
    model: str,
    trained_on: int,
    tested_on: int,
) -> dict[str, Any]:
    """Summarise one model and length: PSNR of each seed and their mean, and the baselines without a model."""
    runs = [tested[model, trained_on, seed][str(tested_on)] for seed in plan.seeds]
    values = [run["psnr_db"] for run in runs]
    same = {name: runs[0][name] for name in ("constant_psnr_db", "last_psnr_db", "clips", "parameters")}
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"psnr_db": statistics.fmean(values), "deviation": deviation, "psnr_db_by_seed": values, **same}
