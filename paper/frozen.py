"""Readouts of frozen features (the paper's Tables 5 and 7): TRecViT beside VideoMAE, pre-trained alike, and frozen.

Both are pre-trained on the same unlabelled clips, with the same masks, targets, updates and rates. Probes classify
videos and a recurrent readout tracks points, from the frozen features and from those of random weights.
Each pre-training is an ordinary run, `RUNS/MODEL/seed-N`: interrupted ones resume, finished ones are reused.
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

from paper.point_probe import PointProbePlan, held_out_videos, point_probe, training_clips
from paper.results import empty_figure, heading, scale
from paper.runs import train_once
from paper.video_transformers import fresh_videomae, videomae_encoder
from paper.videomae import VideoMaeAutoencoder
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
from trecvit.train.networks import load_trained
from trecvit.train.probe import ProbePlan, Report, fresh_trecvit, probe
from trecvit.train.recipe import Recipe, load_recipe
from trecvit.train.tasks.mae import MaeTask

OURS, VIDEOMAE = "TRecViT", "VideoMAE"
MODELS = (OURS, VIDEOMAE)
PAPER_TOP1 = {OURS: (46.0, 53.9), VIDEOMAE: (45.8, 53.7)}
"""Top-1 of the attention readout on Kinetics-400 and Something-Something-v2, in percent (Table 5: B and VideoMAE-L)."""
PAPER_AVERAGE_JACCARD = {OURS: (0.706, 0.783), VIDEOMAE: (0.703, 0.761)}
"""Average Jaccard of the recurrent readout on DAVIS and Perception Test (Table 7)."""

_TUBELET = 2  # VideoMAE's
_NUM_POINTS = 32
_TIMED_CLIPS, _TIMED_UPDATES = 16, 5
_TRACKING = ("average_jaccard", "average_pts_within_thresh", "occlusion_accuracy")
_COLOURS = {OURS: "#2a6f97", VIDEOMAE: "#c8553d"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of the study.

    Attributes:
        path: The recipe, with `mae`.
        overrides: Overrides of its values.
        runs: Folder of the pre-trainings, with the results of each.
        seeds: Seeds of pre-trainings and their readouts.
        probes: Training of the classifying probes; its number of seeds is not used.
    """

    path: Path
    overrides: tuple[str, ...]
    runs: Path
    seeds: tuple[int, ...]
    probes: ProbePlan

    @cached_property
    def base(self) -> Recipe:
        """The recipe of the TRecViT.

        Raises:
            ConfigError: when it pre-trains no TRecViT.
        """
        base = load_recipe(self.path, self.overrides)
        task = base.task
        ours = isinstance(task, MaeTask) and task.mae.network == "trecvit"
        if not ours or base.blocks.temporal_patch_size != 1:
            raise ConfigError(f"{self.path}: expected a recipe with `mae` for a TRecViT with one frame per patch")
        return base

    @cached_property
    def videomae_depth(self) -> int:
        """Depth at which a VideoMAE of this width is closest to the TRecViT in parameters."""
        blocks = self.base.blocks
        attention, mlp = 4 * blocks.width**2, 2 * blocks.width * blocks.mlp_width
        with torch.device("meta"):
            ours = sum(weight.numel() for weight in TRecViT(blocks).parameters())
        embedding = 3 * _TUBELET * blocks.patch_size**2 * blocks.width
        return max(round((ours - embedding) / (attention + mlp)), 1)

    @cached_property
    def points(self) -> PointProbePlan:
        """Point tracking on easy scenes of the recipe's length and size; others need far more updates."""
        clips = self.base.preprocessing
        scenes = TrackSceneConfig(num_frames=clips.num_frames, image_size=clips.image_size, num_points=_NUM_POINTS)
        return PointProbePlan(scenes=scenes.easy())

    def recipe(self, model: str, seed: int) -> Recipe:
        """Load the recipe of one pre-training."""
        overrides = [*self.overrides, f"seed={seed}"]
        if model == VIDEOMAE:
            overrides += ["mae.network=videomae", f"model.temporal_patch_size={_TUBELET}"]
            overrides += [f"model.depth={self.videomae_depth}"]
        return load_recipe(self.path, overrides)

    def folder(self, model: str, seed: int) -> Path:
        """Return the run folder."""
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
    """Pre-train one model and train its readouts in the first process, or read the stored results.

    Args:
        plan: The study's plan.
        model: One of `MODELS`.
        seed: Seed of pre-training and readouts.
        data: Training and test videos of the classifying probes.
        clips: Returns the training clips of the point readouts.
        processes: Ranks that share the pre-training, and their device.
        report: Called with a description, the progress and the total of each part.

    Returns:
        Parameters, and for "pretrained" and "random" features the top-1 of each probe and the metrics of points.

    Raises:
        CheckpointError: when the folder holds a run of another recipe.
    """
    folder, recipe = plan.folder(model, seed), plan.recipe(model, seed)
    cached, name = folder / "frozen.json", f"{model}, seed {seed}"
    pretraining = partial(report, f"{name}, pre-training")
    train_once(recipe, folder, processes=processes, report=lambda line: pretraining(line.step, line.num_steps))
    if processes.first and not cached.exists():
        encoder, untrained = _encoders(recipe, folder, name, seed, processes.device)
        probed, _ = probe(
            encoder,
            lambda _: untrained,
            *data,
            folder / "probe",
            replace(plan.probes, num_seeds=1),
            device=processes.device,
            report=lambda part, done, total: report(f"{name}, {part}", done, total),
        )
        results: dict[str, Any] = {"parameters": encoder.num_parameters, "clips_per_s": _clips_per_s(encoder)}
        for kind, network in (("pretrained", encoder), ("random", untrained)):
            results[kind] = {row["probe"]: row["mean"] for row in probed["rows"] if row["features"] == kind}
            advance = partial(report, f"{name}, points, {kind}")
            tracked = point_probe(network, clips(), plan.points, seed=seed, device=processes.device, report=advance)
            results[kind] |= {metric: tracked[metric] for metric in _TRACKING}
        restored = json.loads((folder / "evaluation" / "result.json").read_text(encoding="utf-8"))
        results["explained"] = restored["explained"]
        write_text(cached, json.dumps(results, indent=1) + "\n")
    processes.wait()
    content: dict[str, Any] = json.loads(cached.read_text(encoding="utf-8"))
    return content


def _encoders(recipe: Recipe, folder: Path, name: str, seed: int, device: torch.device) -> tuple[Encoder, Encoder]:
    """Make encoders of the pre-trained network and of the same architecture with random weights."""
    trained = load_trained(recipe.architecture, folder / "model", device=device)
    if isinstance(trained, TRecViT):
        return trecvit_encoder(trained, name), trecvit_encoder(fresh_trecvit(trained, seed), f"{name}, random")
    assert isinstance(trained, VideoMaeAutoencoder), "one of two"
    network, clips = trained.network.videomae, recipe.preprocessing

    def encoder(network: Any, name: str) -> Encoder:
        return videomae_encoder(network, name, frame_stride=clips.frame_stride, frame_rate_fps=clips.frame_rate_fps)

    return encoder(network, name), encoder(fresh_videomae(network, seed), f"{name}, random")


def _clips_per_s(encoder: Encoder) -> float:
    """Measure an encoder's speed in clips per second, one clip at a time; the median of several."""
    clip = encoder.preprocessing
    video = torch.zeros(1, clip.num_frames, 3, *clip.image_size, dtype=torch.uint8)
    times_s = []
    with torch.inference_mode():
        for _ in range(_TIMED_CLIPS):
            start_s = time.perf_counter()
            encoder.features(video)
            times_s.append(time.perf_counter() - start_s)
    return 1.0 / statistics.median(times_s)


def clips_of(plan: Plan, report: Report) -> Callable[[], Sequence[TrackedVideo]]:
    """Return a function that renders the point readouts' training clips on its first call."""
    rendered: list[TrackedVideo] = []

    def clips() -> Sequence[TrackedVideo]:
        if not rendered:
            rendered.extend(training_clips(plan.points, lambda done, total: report("scenes with points", done, total)))
        return rendered

    return clips


def rows_of(plan: Plan, results: dict[tuple[str, int], dict[str, Any]], processes: Processes) -> list[dict[str, Any]]:
    """Make two rows for each model, of pre-trained and of random features: mean, deviation and the value of each seed.

    Training steps per second are measured here, with the models in turn.
    """
    recipes = {model: plan.recipe(model, plan.seeds[0]) for model in MODELS}
    timed = updates_in_turn(recipes, num_rounds=_TIMED_UPDATES, processes=processes)
    rows = []
    for model in MODELS:
        runs = [results[model, seed] for seed in plan.seeds]
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


def _static_baseline(plan: PointProbePlan) -> dict[str, float]:
    """Score the static baseline on the test scenes."""
    scores, _ = evaluate_tapvid(static_points, held_out_videos(plan), image_size=plan.scenes.image_size)
    means = scores.means()
    return {metric: means[metric] for metric in _TRACKING}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "by_seed": list(values)}


def to_dict(
    plan: Plan, data: tuple[Manifest, Manifest], rows: Sequence[dict[str, Any]], command: str
) -> dict[str, Any]:
    """Convert the results to plain JSON values."""
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
        "still_points": _static_baseline(plan.points),
        "rows": list(rows),
    }


def draw(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw bars of each metric on pre-trained and random features, and the level of a trivial baseline."""
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
            value, random = row[name], row["features"] == "random"
            axes.bar(
                place,
                100 * value["mean"],
                yerr=100 * (value["deviation"] or 0.0),
                color=_COLOURS[row["model"]],
                alpha=0.35 if random else 1.0,
                capsize=3,
            )
        points = content["still_points"]
        level, label = (points[name], "static baseline") if name in points else (1 / content["classes"], "chance")
        axes.axhline(100 * level, color="0.4", linestyle="--", linewidth=1)
        axes.annotate(
            label, (1.0, 100 * level), (0, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=8
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
