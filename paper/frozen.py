"""Frozen readouts (the paper's Tables 5 and 7), at a recipe's scale: TRecViT beside VideoMAE, both pre-trained alike.

Both learn from the same unlabelled clips, with the same masks, targets, updates and rates, and are then frozen. Probes
name what happens in videos, and a recurrent readout follows points; the same from random features of each.
Each pre-training is an ordinary run, `RUNS/MODEL/seed-N`: an interrupted one goes on, a finished one stays.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from paper.results import empty_figure, heading, scale
from paper.runs import train_once
from trecvit.baselines.mae import VideoMaeAutoencoder
from trecvit.baselines.video_transformers import fresh_videomae, videomae_encoder
from trecvit.bench.training import updates_in_turn
from trecvit.data.manifest import Manifest
from trecvit.data.tracked import TrackedVideo
from trecvit.errors import ConfigError
from trecvit.evaluate.features import Encoder, trecvit_encoder
from trecvit.evaluate.point_baselines import static_points
from trecvit.evaluate.tapvid import evaluate_tapvid
from trecvit.files import write_text
from trecvit.model.trecvit import TRecViT
from trecvit.processes import Processes
from trecvit.synthetic.track_scenes import TrackSceneConfig
from trecvit.train.initialise import load_trained
from trecvit.train.point_probe import PointProbePlan, held_out_videos, point_probe, training_clips
from trecvit.train.probe import ProbePlan, Report, fresh_trecvit, probe
from trecvit.train.recipe import Recipe, load_recipe

OURS, VIDEOMAE = "TRecViT", "VideoMAE"
MODELS = (OURS, VIDEOMAE)
PAPER_TOP1 = {OURS: (46.0, 53.9), VIDEOMAE: (45.8, 53.7)}
"""Of the attention readout, on Kinetics-400 and Something-Something-v2, in percent (Table 5: B and VideoMAE-L)."""
PAPER_AVERAGE_JACCARD = {OURS: (0.706, 0.783), VIDEOMAE: (0.703, 0.761)}
"""Of the recurrent readout, on DAVIS and Perception Test (Table 7)."""

_TUBELET = 2  # VideoMAE's
_NUM_POINTS = 32
_TIMED_CLIPS, _TIMED_UPDATES = 16, 5
_TRACKING = ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy")
_COLOURS = {OURS: "#2a6f97", VIDEOMAE: "#c8553d"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is trained.

    Attributes:
        path: The recipe, with `mae`.
        overrides: Words that replace values of it.
        runs: Folder of the pre-trainings and of what is found in each.
        seeds: Of a pre-training and of all that is found in it.
        probes: How the classifying probes are trained; its seeds play no part.
    """

    path: Path
    overrides: tuple[str, ...]
    runs: Path
    seeds: tuple[int, ...]
    probes: ProbePlan

    @cached_property
    def base(self) -> Recipe:
        """The recipe as it stands.

        Raises:
            ConfigError: when it pre-trains no TRecViT.
        """
        base = load_recipe(self.path, self.overrides)
        if base.mae is None or base.mae.network != "trecvit" or base.blocks.temporal_patch_size != 1:
            raise ConfigError(f"{self.path}: expected a recipe with `mae` for a TRecViT with one frame per patch")
        return base

    @cached_property
    def videomae_depth(self) -> int:
        """Layers with which a VideoMAE of these sizes has most nearly as many parameters as the TRecViT."""
        blocks = self.base.blocks
        attention, mlp = 4 * blocks.width**2, 2 * blocks.width * blocks.mlp_width
        with torch.device("meta"):
            ours = sum(weight.numel() for weight in TRecViT(blocks).parameters())
        embedding = 3 * _TUBELET * blocks.patch_size**2 * blocks.width
        return max(round((ours - embedding) / (attention + mlp)), 1)

    @cached_property
    def points(self) -> PointProbePlan:
        """How points are followed: easy scenes of the recipe's length and size; others need far more updates."""
        clips = self.base.preprocessing
        scenes = TrackSceneConfig(num_frames=clips.num_frames, image_size=clips.image_size, num_points=_NUM_POINTS)
        return PointProbePlan(scenes=scenes.easy())

    def recipe(self, model: str, seed: int) -> Recipe:
        """That of one pre-training."""
        words = [*self.overrides, f"seed={seed}"]
        if model == VIDEOMAE:
            words += ["mae.network=videomae", f"model.temporal_patch_size={_TUBELET}"]
            words += [f"model.depth={self.videomae_depth}"]
        return load_recipe(self.path, words)

    def folder(self, model: str, seed: int) -> Path:
        """That of one run."""
        return self.runs / model / f"seed-{seed}"


def run(
    plan: Plan,
    model: str,
    seed: int,
    data: tuple[Manifest, Manifest],
    clips: Callable[[], Sequence[TrackedVideo]],
    *,
    processes: Processes,
    report: Report,
) -> dict[str, Any]:
    """Pre-trains one model and looks for what its features tell, or reads what came out; the first process looks.

    Args:
        plan: What is trained.
        model: One of `MODELS`.
        seed: Of everything.
        data: What the classifying probes learn from and are tested on.
        clips: What the point readouts learn from, asked for when they are needed.
        processes: Those that share the pre-training, and the device.
        report: Told how far each part is.

    Returns:
        Parameters, and for "pretrained" and "random" features the top-1 of each probe and what is told of points.

    Raises:
        CheckpointError: when the folder holds a run of another recipe.
    """
    folder, recipe = plan.folder(model, seed), plan.recipe(model, seed)
    known, name = folder / "frozen.json", f"{model}, seed {seed}"
    pretraining = partial(report, f"{name}, pre-training")
    train_once(recipe, folder, processes=processes, report=lambda line: pretraining(line.step, line.num_steps))
    if processes.first and not known.exists():
        encoder, fresh = _encoders(recipe, folder, name, seed, processes.device)
        told, _ = probe(
            encoder,
            lambda _: fresh,
            *data,
            folder / "probe",
            replace(plan.probes, num_seeds=1),
            device=processes.device,
            report=lambda words, done, total: report(f"{name}, {words}", done, total),
        )
        found: dict[str, Any] = {"parameters": encoder.num_parameters, "clips_per_s": _clips_per_s(encoder)}
        for kind, one in (("pretrained", encoder), ("random", fresh)):
            found[kind] = {row["probe"]: row["mean"] for row in told["rows"] if row["features"] == kind}
            told_of = partial(report, f"{name}, points, {kind}")
            said = point_probe(one, clips(), plan.points, seed=seed, device=processes.device, report=told_of)
            found[kind] |= {metric: said[metric] for metric in _TRACKING}
        restored = json.loads((folder / "evaluation" / "result.json").read_text(encoding="utf-8"))
        found["explained"] = restored["explained"]
        write_text(known, json.dumps(found, indent=1) + "\n")
    processes.wait()
    content: dict[str, Any] = json.loads(known.read_text(encoding="utf-8"))
    return content


def _encoders(recipe: Recipe, folder: Path, name: str, seed: int, device: torch.device) -> tuple[Encoder, Encoder]:
    """What was pre-trained, and the same architecture with first weights."""
    trained = load_trained(recipe.autoencoder, folder / "model", device=device)
    if isinstance(trained, TRecViT):
        return trecvit_encoder(trained, name), trecvit_encoder(fresh_trecvit(trained, seed), f"{name}, random")
    assert isinstance(trained, VideoMaeAutoencoder), "one of two"
    network, clips = trained.network.videomae, recipe.preprocessing

    def encoder(network: Any, name: str) -> Encoder:
        return videomae_encoder(network, name, frame_stride=clips.frame_stride, frame_rate_fps=clips.frame_rate_fps)

    return encoder(network, name), encoder(fresh_videomae(network, seed), f"{name}, random")


def _clips_per_s(encoder: Encoder) -> float:
    """Clips whose features an encoder makes in a second, one at a time; the median of some."""
    clip = encoder.preprocessing
    video = torch.zeros(1, clip.num_frames, 3, *clip.image_size, dtype=torch.uint8)
    times_s = []
    with torch.inference_mode():
        for _ in range(_TIMED_CLIPS):
            begun_s = time.perf_counter()
            encoder.features(video)
            times_s.append(time.perf_counter() - begun_s)
    return 1.0 / statistics.median(times_s)


def clips_of(plan: Plan, report: Report) -> Callable[[], Sequence[TrackedVideo]]:
    """What the point readouts learn from, rendered when first asked for."""
    rendered: list[TrackedVideo] = []

    def clips() -> Sequence[TrackedVideo]:
        if not rendered:
            rendered.extend(training_clips(plan.points, lambda done, total: report("scenes with points", done, total)))
        return rendered

    return clips


def rows_of(plan: Plan, found: dict[tuple[str, int], dict[str, Any]], processes: Processes) -> list[dict[str, Any]]:
    """Two rows for each model, of pre-trained and of random features: means, deviations and the figures of each seed.

    Training steps/s are measured here, in turns.
    """
    recipes = {model: plan.recipe(model, plan.seeds[0]) for model in MODELS}
    timed = updates_in_turn(recipes, num_rounds=_TIMED_UPDATES, processes=processes)
    rows = []
    for model in MODELS:
        runs = [found[model, seed] for seed in plan.seeds]
        for kind in ("pretrained", "random"):
            names = runs[0][kind]
            row: dict[str, Any] = {"model": model, "features": kind, "parameters": runs[0]["parameters"]}
            row["clips_per_s"] = statistics.median(run["clips_per_s"] for run in runs)
            if kind == "pretrained":
                row["pretraining_steps_per_s"] = statistics.median(timed[model])
                row["paper_top1"] = PAPER_TOP1[model]
                row["paper_average_jaccard"] = PAPER_AVERAGE_JACCARD[model]
                row["explained"] = _spread([run["explained"] for run in runs])
            row |= {name: _spread([run[kind][name] for run in runs]) for name in names}
            rows.append(row)
    return rows


def _still_points(plan: PointProbePlan) -> dict[str, float]:
    """What points that stay where they are come to on the same scenes."""
    scores, _ = evaluate_tapvid(static_points, held_out_videos(plan), image_size=plan.scenes.image_size)
    means = scores.means()
    return {metric: means[metric] for metric in _TRACKING}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "by_seed": list(values)}


def to_dict(
    plan: Plan, data: tuple[Manifest, Manifest], rows: Sequence[dict[str, Any]], command: str
) -> dict[str, Any]:
    """All that came out, as plain JSON values."""
    return {
        **heading("frozen", command, scale(plan.base)),
        "recipe": plan.path.name,
        "seeds": list(plan.seeds),
        "videomae": f"{plan.videomae_depth} layers of the same width, tubelets of {_TUBELET} frames",
        "probes": asdict(plan.probes),
        "points": asdict(plan.points),
        "train_videos": len(data[0].videos),
        "test_videos": len(data[1].videos),
        "classes": data[1].num_classes,
        "still_points": _still_points(plan.points),
        "rows": list(rows),
    }


def draw(content: dict[str, Any], folder: Path) -> list[Path]:
    """Bars of what is told from frozen features, pre-trained beside random, and what is told without any."""
    panels = {
        "linear": "linear probe, top-1",
        "k-NN": "k-NN, top-1",
        "attention": "attention readout, top-1",
        "average_pts_within_thresh": "points: δ average",
        "average_jaccard": "points: average Jaccard",
    }
    figure = empty_figure(16, 3.4)
    all_axes: Any = figure.subplots(1, len(panels))
    for axes, (name, title) in zip(all_axes, panels.items(), strict=True):
        for place, row in enumerate(content["rows"]):
            told, random = row[name], row["features"] == "random"
            axes.bar(
                place,
                100 * told["mean"],
                yerr=100 * (told["deviation"] or 0.0),
                color=_COLOURS[row["model"]],
                alpha=0.35 if random else 1.0,
                capsize=3,
            )
        points = content["still_points"]
        level, words = (points[name], "still points") if name in points else (1 / content["classes"], "chance")
        axes.axhline(100 * level, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(
            words, (1.0, 100 * level), (0, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=8
        )
        axes.margins(y=0.12)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(
            range(len(content["rows"])),
            [row["model"] + ("\nrandom" if row["features"] == "random" else "") for row in content["rows"]],
            fontsize=8,
        )
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0].set_ylabel("%")
    path = folder / "frozen.png"
    figure.savefig(path, dpi=130)
    return [path]
