"""The paper's ablations (Tables 1, 2, 13, 14, 15) at whatever scale a recipe has.

Each configuration is an ordinary training run, `RUNS/NAME/seed-N`: an interrupted one goes on, a finished one
stays.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trecvit.data.textures import photographs
from trecvit.errors import ConfigError
from trecvit.evaluate.world import accuracy, world_clips
from trecvit.files import write_text
from trecvit.model.lru import RGLRU
from trecvit.model.trecvit import TRecViT
from trecvit.processes import Processes
from trecvit.runtime.doctor import machine
from trecvit.train.bench import updates_per_s
from trecvit.train.loop import train
from trecvit.train.recipe import Recipe, load_recipe

OURS, GRIFFIN = "lru", "radius-0.9"
VARIANTS: dict[str, tuple[str, ...]] = {
    OURS: (),
    "attention": ("model.temporal_mixer=attention",),
    "lstm": ("model.temporal_mixer=lstm",),
    "conv": ("model.temporal_mixer=conv",),
    "no-gates": ("model.lru_gates=false",),
    "no-conv": ("model.conv_width=0",),
    "no-skip": ("model.temporal_skip=false",),
    GRIFFIN: ("model.min_radius=0.9",),
    "frames-2": ("model.temporal_patch_size=2",),
    "frames-4": ("model.temporal_patch_size=4",),
    "frames-8": ("model.temporal_patch_size=8",),
    "conv-2": ("model.conv_width=2",),
    "conv-8": ("model.conv_width=8",),
    "radius-0.7": ("model.min_radius=0.7",),
    "radius-0.8": ("model.min_radius=0.8",),
}
"""What each configuration changes in the recipe."""

_SLOWER = {"no-skip": 0.1}  # paper, Table 1: "lower lr"; how much lower it does not say
TABLES: dict[str, tuple[tuple[str, str, float], ...]] = {
    "Table 1": (
        ("λ in [0.6, 0.999]", OURS, 66.7),
        ("λ in [0.9, 0.999], as Griffin", GRIFFIN, 66.2),
        ("no skip connection, a tenth of the rate", "no-skip", 15.5),
        ("no input and recurrence gate", "no-gates", 66.0),
        ("no convolution", "no-conv", 64.9),
    ),
    "Table 2": (
        ("gated LRU", OURS, 66.7),
        ("attention", "attention", 62.4),
        ("LSTM", "lstm", 63.7),
        ("Conv1D", "conv", 40.3),
    ),
    "Table 13": (
        ("1 frame per patch", OURS, 66.8),
        ("2 frames per patch", "frames-2", 64.5),
        ("4 frames per patch", "frames-4", 61.5),
        ("8 frames per patch", "frames-8", 57.7),
    ),
    "Table 14": (
        ("2 taps", "conv-2", 66.4),
        ("4 taps", OURS, 66.8),
        ("8 taps", "conv-8", 65.7),
    ),
    "Table 15": (
        ("λ from 0.6", OURS, 66.8),
        ("λ from 0.7", "radius-0.7", 66.6),
        ("λ from 0.8", "radius-0.8", 66.5),
        ("λ from 0.9", GRIFFIN, 66.2),
    ),
}
"""Rows of the paper's tables: what it says, the configuration, and the paper's top-1 on SSv2 in percent."""

PAPER_STEPS_PER_S = {OURS: 8.9, "attention": 8.3, "lstm": 6.0, "conv": 10.5}  # Table 2
_TEST_SEED = 1
_TIMED_UPDATES, _ROUNDS = 5, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Tested:
    """One configuration with one seed.

    Attributes:
        name: Of `VARIANTS`.
        seed: Of weights and training clips.
        parameters: Of the model.
        top1: Share of the held-out clips.
        pair: Share of them where the right class is likelier than its opposite.
    """

    name: str
    seed: int
    parameters: int
    top1: float
    pair: float


def recipe_of(path: str | Path, name: str, seed: int) -> Recipe:
    """The recipe of one run.

    Raises:
        ConfigError: when there is no such configuration, or the recipe's clips are not scenes.
    """
    if name not in VARIANTS:
        raise ConfigError(f"expected one of {', '.join(VARIANTS)}, got {name!r}")
    recipe = load_recipe(path, [*VARIANTS[name], f"seed={seed}"])
    if name in _SLOWER:
        plan, factor = recipe.optimisation, _SLOWER[name]
        rates = {"learning_rate": plan.learning_rate * factor, "muon_learning_rate": plan.muon_learning_rate * factor}
        slower = [f"optimisation.{key}={rate}" for key, rate in rates.items()]
        recipe = load_recipe(path, [*VARIANTS[name], f"seed={seed}", *slower])
    return recipe


def is_finished(runs: Path, name: str, seed: int) -> bool:
    """Whether a run has been trained to its end."""
    return (_folder(runs, name, seed) / "model").exists()


def run(
    path: str | Path, name: str, seed: int, runs: Path, *, num_clips: int, report: Callable[[int, int], None]
) -> Tested:
    """Trains and tests one configuration, or reads what came out.

    Args:
        path: The recipe, of scenes.
        name: Of `VARIANTS`.
        seed: Of weights and training clips.
        runs: The run's folder is within.
        num_clips: Held-out clips of the recipe's scenes with another seed; even.
        report: Called with the number of updates done and the number in all.
    """
    recipe, folder = recipe_of(path, name, seed), _folder(runs, name, seed)
    if recipe.scenes is None:
        raise ConfigError(f"{path}: expected a recipe of scenes, which there are held-out ones of")
    known = folder / f"test-{num_clips}.json"
    if not known.exists():
        model = train(recipe, folder, report=lambda line: report(line.step, line.num_steps))
        assert isinstance(model, TRecViT), "a recipe of scenes trains a classifier"
        pictures = photographs("held_out") if recipe.scenes.photographs else []
        clips = world_clips(recipe.scenes.world, num_clips=num_clips, seed=_TEST_SEED, pictures=pictures)
        found = accuracy(model.eval(), clips, name="held-out scenes")
        parameters = sum(weight.numel() for weight in model.parameters())
        content = {"parameters": parameters, "top1": found.top1, "pair": found.pair}
        write_text(known, json.dumps(content) + "\n")
    return Tested(name=name, seed=seed, **json.loads(known.read_text(encoding="utf-8")))


def speeds(path: str | Path, names: Sequence[str]) -> dict[str, float]:
    """Updates per second: the median of some rounds, in each of which all have their turn."""
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(_ROUNDS):
        for name in names:
            found[name].append(updates_per_s(recipe_of(path, name, 0), _TIMED_UPDATES, Processes()))
    return {name: statistics.median(some) for name, some in found.items()}


def to_dict(
    path: str | Path, tested: Sequence[Tested], steps_per_s: dict[str, float], num_clips: int
) -> dict[str, Any]:
    """All that came out, as plain JSON values: a row per configuration."""
    recipe = load_recipe(path)
    rows = []
    for name in dict.fromkeys(one.name for one in tested):
        runs = [one for one in tested if one.name == name]
        top1 = [one.top1 for one in runs]
        rows.append(
            {
                "name": name,
                "changes": list(VARIANTS[name]),
                "rates": _SLOWER.get(name, 1.0),
                "parameters": runs[0].parameters,
                "seeds": [one.seed for one in runs],
                "top1": top1,
                "mean": statistics.fmean(top1),
                "deviation": statistics.stdev(top1) if len(top1) > 1 else None,
                "pair": statistics.fmean(one.pair for one in runs),
                "steps_per_s": steps_per_s.get(name),
            }
        )
    return {
        "study": "ablations",
        "recipe": Path(path).name,
        "num_steps": recipe.optimisation.num_steps,
        "batch_size": recipe.optimisation.batch_size,
        "num_frames": recipe.preprocessing.num_frames,
        "image_size": list(recipe.preprocessing.image_size),
        "test_clips": num_clips,
        "test_seed": _TEST_SEED,
        "machine": machine(),
        "rows": rows,
    }


def draw(content: dict[str, Any], path: Path) -> None:
    """The tables as bars, ours with the deviation over seeds beside the paper's."""
    from matplotlib.figure import Figure

    rows = {row["name"]: row for row in content["rows"]}
    known = {name: [line for line in lines if line[1] in rows] for name, lines in TABLES.items()}
    tables = {name: lines for name, lines in known.items() if lines}
    figure = Figure(figsize=(9, 0.5 + sum(0.5 + 0.42 * len(lines) for lines in tables.values())), layout="constrained")
    heights = [len(lines) + 1 for lines in tables.values()]
    panels: Any = figure.subplots(len(tables), 1, height_ratios=heights, squeeze=False, sharex=True)[:, 0]
    for panel, (title, lines) in zip(panels, tables.items(), strict=True):
        places = range(len(lines))
        ours = [rows[name] for _, name, _ in lines]
        panel.barh(
            [place - 0.2 for place in places],
            [100 * row["mean"] for row in ours],
            0.38,
            xerr=[100 * (row["deviation"] or 0.0) for row in ours],
            color="#2a6f97",
            label=f"synthetic world, {content['num_steps']} steps",
        )
        panel.barh(
            [place + 0.2 for place in places],
            [paper for *_, paper in lines],
            0.38,
            color="#c9c9c9",
            label="paper, SSv2",
        )
        panel.set_yticks(list(places), [label for label, *_ in lines])
        panel.invert_yaxis()
        panel.set_title(title, loc="left", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, loc="lower right", fontsize=8)
    panels[-1].set_xlabel("top-1, %")
    figure.savefig(path, dpi=130)


# ---- what the recurrence has become --------------------------------------------------------------------------------


def radii(model: nn.Module) -> list[Tensor]:
    """sigmoid(lambda) of each block's channels: the eigenvalues where the recurrence gate is 1/c."""
    return [torch.sigmoid(-part.a_param.detach().float()) for part in model.modules() if isinstance(part, RGLRU)]


@torch.inference_mode()
def gates(model: TRecViT, videos: Tensor) -> dict[str, list[Tensor]]:
    """The gates of each block, from 0 to 1, at all channels, patches and frames of some clips uint8 [B,T,3,H,W]."""
    found: dict[str, list[Tensor]] = {"input": [], "recurrence": []}

    def listen(kind: str, module: nn.Module) -> RemovableHandle:
        return module.register_forward_hook(lambda _module, _inputs, out: found[kind].append(out.sigmoid().flatten()))

    recurrences = [part for part in model.modules() if isinstance(part, RGLRU)]
    hooks = [listen("input", part.input_gate) for part in recurrences]
    hooks += [listen("recurrence", part.a_gate) for part in recurrences]
    model(videos)
    for hook in hooks:
        hook.remove()
    return found


def draw_recurrence(path: str | Path, runs: Path, seed: int, picture: Path) -> None:
    """Eigenvalues at the start and at the end for both ranges, and the gates of each block after training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    panels: Any = figure.subplots(2, 2)
    for panel, name in zip(panels[0], (OURS, GRIFFIN), strict=True):
        recipe = recipe_of(path, name, seed)
        torch.manual_seed(seed)
        first = TRecViT(recipe.blocks)
        for model, label, colour in (
            (first, "at first", "#c9c9c9"),
            (_trained(runs, name, seed), "trained", "#2a6f97"),
        ):
            panel.hist(torch.cat(radii(model)).numpy(), bins=60, range=(0.5, 1.0), alpha=0.7, color=colour, label=label)
        panel.set_title(f"σ(λ), drawn from [{recipe.blocks.min_radius:g}, {recipe.blocks.max_radius:g}]", fontsize=10)
        panel.legend(frameon=False)
    scenes = recipe_of(path, OURS, seed).scenes
    assert scenes is not None, "the study is of scenes"
    videos, _ = next(world_clips(scenes.world, num_clips=16, seed=_TEST_SEED, pictures=photographs("held_out")))
    for panel, (kind, blocks) in zip(panels[1], gates(_trained(runs, OURS, seed), videos).items(), strict=True):
        for number, gate in enumerate(blocks, start=1):
            panel.hist(gate.numpy(), bins=60, range=(0.0, 1.0), histtype="step", label=f"block {number}", density=True)
        panel.set_title(f"{kind} gate on held-out clips, trained", fontsize=10)
        panel.legend(frameon=False, fontsize=8)
    for panel in panels.flat:
        panel.spines[["top", "right"]].set_visible(False)
        panel.set_yticks([])
    figure.savefig(picture, dpi=120)


def _trained(runs: Path, name: str, seed: int) -> TRecViT:
    return TRecViT.load(_folder(runs, name, seed) / "model").eval()


def _folder(runs: Path, name: str, seed: int) -> Path:
    return runs / name / f"seed-{seed}"
