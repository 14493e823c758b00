"""Result files as tables in Markdown: what was measured here, beside what the paper says of the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Build = Callable[[dict[str, Any]], str]
"""Makes a table of a result file's content."""

NOT_MEASURED = "not measured yet"
METRICS = {
    "average_jaccard": "average Jaccard",
    "average_pts_within_thresh": "δ-average",
    "occlusion_accuracy": "occlusion accuracy",
}

# Figures 3 and 5 as the authors drew them for the reviewers (github.com/Karami-m/TRecViT-Submission), read off the
# pictures: operations to about 0.1 TFLOP, memory to about 1 GB, worse where curves lie on each other. They are of a
# training step: three times the operations of Table 3. Of the LSTM, XLA counts one turn of the loop and not all.
_READ_OFF: dict[tuple[str, int], tuple[str, str]] = {
    ("TRecViT-B", 32): ("4.3", "14"),
    ("TRecViT-B", 64): ("8.5", "24"),
    ("ViViT-L", 32): ("23.2", "138"),
    ("ViViT-L", 64): ("70.0", "510"),
    ("ViViT-B", 32): ("7.6", "53"),
    ("ViViT-B", 64): ("24.0", "198"),
    ("ViViT-L, factorised self-attention", 32): ("7.4", ""),
    ("ViViT-L, factorised self-attention", 64): ("14.7", "28 to 30"),
    ("ViT-LSTM", 32): ("3.4", ""),
    ("ViT-LSTM", 64): ("6.8", "22 to 23"),
    ("ViT-Conv1D", 32): ("4.4", ""),
    ("ViT-Conv1D", 64): ("8.9", "15"),
}
FIGURE_3 = (
    "TRecViT-B",
    "ViViT-L",
    "ViViT-B",
    "ViViT-L, factorised self-attention",
    "ViViT-L, factorised encoder",
)
FIGURE_5 = ("TRecViT-B", "ViT-LSTM", "ViT-Conv1D")
_FIGURE_FRAMES = (32, 64)


def table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def share(value: float, digits: int = 1) -> str:
    """Of 1, in percent."""
    return f"{100 * value:.{digits}f} %"


def on(machine: dict[str, Any]) -> str:
    """Where and when something was measured."""
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return f"{machine['processor']}, {threads}, torch {machine['torch']}, {machine['date']}"


def _not_among(name: str) -> str:
    return f"{name}: {NOT_MEASURED}, the study has been run in part."


def comparison(name: str) -> Build:
    """One of the paper's comparisons, from what `scripts/paper ablations` or `from-scratch` writes."""

    def build(content: dict[str, Any]) -> str:
        lines, paper_timed = [], name == "Table 2"
        for row in content["rows"]:
            if row["table"] == name:
                paper = "" if row["paper_top1"] is None else row["paper_top1"]
                spread = "" if row["top1_deviation"] is None else f" ± {share(row['top1_deviation'])}"
                line = [row["label"], paper, share(row["top1"]) + spread, f"{row['parameters'] / 1e6:.2f} M"]
                line += [row["paper_steps_per_s"]] if paper_timed else []
                lines.append([*line, f"{row['steps_per_s']:.1f}"])
        titles = ["", "paper, top-1 on SSv2", "here, top-1 of 18", "here, parameters"]
        titles += ["paper, steps/s"] if paper_timed else []
        return table([*titles, "here, steps/s"], lines) if lines else _not_among(name)

    return build


def inference_costs(content: dict[str, Any]) -> str:
    """The cost columns of the paper's Table 3."""
    costs = {(cost["model"], cost["num_frames"]): cost for cost in content["costs"]}
    lines = []
    for said in content["paper"]:
        cost = costs[said["model"], said["num_frames"]]
        ours = (cost["parameters"] / 1e6, cost["inference_flop"] / 1e12, cost["inference_bytes"] / 1e9)
        pairs = zip((said["parameters_m"], said["tflop"], said["gb"]), ours, strict=True)
        lines.append(
            [said["model"], said["num_frames"], *(cell for paper, here in pairs for cell in (paper, _rounded(here)))]
        )
    columns = [f"{what}, {who}" for what in ("M parameters", "TFLOP", "GB") for who in ("paper", "here")]
    return table(["model", "frames", *columns], lines)


def _rounded(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def training_costs(models: Sequence[str]) -> Build:
    """What the paper's Figures 3 and 5 draw, at two of its lengths."""

    def build(content: dict[str, Any]) -> str:
        costs = {(cost["model"], cost["num_frames"]): cost for cost in content["costs"]}
        lines = []
        for model in models:
            for frames in _FIGURE_FRAMES:
                cost, (tflop, gigabytes) = costs[model, frames], _READ_OFF.get((model, frames), ("", ""))
                here = [cost[key] / 1e9 for key in ("training_bytes", "fused_training_bytes")]
                lines.append(
                    [model, frames, tflop, _rounded(cost["training_flop"] / 1e12), gigabytes, *map(_rounded, here)]
                )
        titles = ["model", "frames", "TFLOP, paper, read off", "TFLOP, here", "GB, paper, read off", "GB, here"]
        return table([*titles, "GB, here, with fused attention"], lines)

    return build


def cost_ratios(content: dict[str, Any]) -> str:
    """What the paper's text says of Figure 3: how many times what TRecViT needs ViViT-L needs."""
    costs = {(cost["model"], cost["num_frames"]): cost for cost in content["costs"]}
    lines = []
    for said in content["paper_ratios"]:
        theirs, ours = (costs[model, said["num_frames"]] for model in ("ViViT-L", "TRecViT-B"))
        times = {key: f"{theirs[key] / ours[key]:.1f}" for key in theirs if key in _COMPARED}
        lines.append([
            said["num_frames"], times["inference_flop"], said["operations"], times["training_bytes"], said["memory"],
            times["fused_training_bytes"], times["parameters"],
        ])  # fmt: skip
    titles = (
        "frames", "ViViT-L's operations over ours", "paper, about", "its training memory over ours", "paper, about",
        "with fused attention", "its parameters",
    )  # fmt: skip
    return table(titles, lines)


_COMPARED = ("inference_flop", "training_bytes", "fused_training_bytes", "parameters")


def points(content: dict[str, Any]) -> str:
    """A tracker beside two baselines."""
    lines = [
        (one["test"], one["num_videos"], one["tracker"], *(share(one["metrics"][metric]) for metric in METRICS))
        for one in content["scores"]
    ]
    return table(("videos", "number", "tracker", *METRICS.values()), lines)


def points_command(content: dict[str, Any]) -> str:
    """The command line that a file of trackers' scores was written by."""
    scores, num_footage = content["scores"], len(content["footage"])
    line = f"trecvit eval points track_world --scenes {scores[0]['num_videos']} "
    if num_footage:
        line += f"--clips {scores[-1]['num_videos'] // num_footage} --footage VIDEO --footage VIDEO … "
    return line + "--save benchmarks/points.json"


def points_scale(content: dict[str, Any]) -> str:
    """What was tracked, in words."""
    height, width = content["scenes"]["image_size"]
    return (
        f"Clips of {content['scenes']['num_frames']} frames, scenes of {height} × {width}, "
        f"{len(content['footage'])} real videos that the package does not ship"
    )


def slots(contents: Sequence[dict[str, Any]]) -> str:
    """Trackers with empty slots beside the same without."""
    lines = []
    for content in contents:
        for cost in content["costs"]:
            line = [content["model"], cost["empty_slots"], f"{cost['times_as_long']:.2f} ×", f"{cost['gflop']:.2f}"]
            line += [f"{cost['state_bytes'] / 1e6:.2f} MB"]
            if (told := cost["answers"]) is None:
                lines.append([*line, "", "", ""])
                continue
            moved = (told[f"moved_{which}_px"] for which in ("median", "p99", "most"))
            line += [" / ".join(f"{px:.2f}" for px in moved) + " px", share(told["seen_otherwise"], 2)]
            lines.append([*line, share(told["average_jaccard"])])
    titles = ("model", "empty slots", "time of a frame", "GFLOP", "state", "points moved: median / 99 % / most")
    return table((*titles, "visibility differs", "average Jaccard"), lines)


def slots_scale(content: dict[str, Any]) -> str:
    """What a file of slots' costs was measured on, in words."""
    scenes = content["scenes"]
    height, width = scenes["image_size"]
    return (
        f"{content['num_scenes']} scene{'s' if content['num_scenes'] > 1 else ''} of {scenes['num_frames']} frames of "
        f"{height} × {width}, {scenes['num_points']} points, {content['dtype']}; without empty slots "
        f"{content['costs'][0]['median_ms']:,.0f} ms a frame; load average {content['load_average']}; "
        f"{on(content['machine'])}"
    )


def streaming_speed(content: dict[str, Any]) -> str:
    """Frames per second, one frame after another."""
    lines = [
        (one["model"], one["dtype"], one["mode"], f"{one['frames_per_s']:.1f}")
        for one in content["speeds"]
        if one["model"].startswith("base") and (one["batch_size"], one["num_frames"]) == (1, 1)
    ]
    return table(("model", "dtype", "mode", "here, frames/s"), lines)


def classified(content: dict[str, Any]) -> str:
    """What `trecvit eval videos` found of a trained classifier."""
    views = content["protocol"]
    line = [f"{content['videos']:,}", f"{views['clips']} × {views['crops']}", share(content["top1"])]
    return table(("held-out videos", "clips × crops", "here, top-1"), [line])


def probed(content: dict[str, Any]) -> str:
    """What frozen features tell of videos, pre-trained beside random ones."""
    lines = []
    for row in content["rows"]:
        paper = row.get("paper_top1", ("", ""))
        found = [_spread(row[name]) for name in ("linear", "k-NN", "attention")]
        lines.append([row["model"], row["features"], f"{row['parameters'] / 1e6:.2f} M", *paper, *found])
    titles = ("model", "features", "here, parameters", "paper, K400", "paper, SSv2", "here, linear probe", "here, k-NN")
    return table((*titles, "here, attention readout"), lines)


def pretrained(content: dict[str, Any]) -> str:
    """How the encoders were made, and what they cost."""
    lines = [
        (
            row["model"],
            _spread(row["explained"]),
            f"{row['pretraining_steps_per_s']:.2f}",
            f"{row['clips_per_s']:.1f}",
        )
        for row in content["rows"]
        if row["features"] == "pretrained"
    ]
    return table(("model", "explained of what was hidden", "pre-training, steps/s", "features, clips/s"), lines)


def probed_points(content: dict[str, Any]) -> str:
    """What a recurrent readout tells of points, from the same features."""
    lines = []
    for row in content["rows"]:
        paper = row.get("paper_average_jaccard", ("", ""))
        lines.append([row["model"], row["features"], *paper, *(_spread(row[metric]) for metric in METRICS)])
    lines.append(["still points", "", "", "", *(share(content["still_points"][metric]) for metric in METRICS)])
    return table(("model", "features", "paper, DAVIS", "paper, Perception Test", *METRICS.values()), lines)


def _spread(value: dict[str, Any]) -> str:
    """A mean over seeds, and the deviation if there were several."""
    deviation = "" if value["deviation"] is None else f" ± {share(value['deviation'])}"
    return share(value["mean"]) + deviation


def recalled(content: dict[str, Any]) -> str:
    """A frame of the past, trained on clips of one length or another and tested on the longer."""
    lines = [
        (
            row["model"],
            row["trained_on"],
            row["tested_on"],
            row["paper_psnr_db"],
            *_decibels(row, "psnr_db", "last_psnr_db", "constant_psnr_db"),
        )
        for row in _of_part(content, "Table 6")
    ]
    titles = ("model", "trained on", "tested on", "paper, dB", "here, dB")
    return table((*titles, "the last frame instead", "the mean frame"), lines)


def recalled_over_distance(content: dict[str, Any]) -> str:
    """How well, and how fast the training is, by how far back the frame lies."""
    lines = [
        (
            row["offset"],
            row["model"],
            f"{row['parameters'] / 1e6:.2f} M",
            *_decibels(row, "psnr_db", "last_psnr_db", "constant_psnr_db"),
            f"{row['steps_per_s']:.2f}",
        )
        for row in _of_part(content, "Figure 7")
    ]
    titles = ("frames back", "model", "parameters", "PSNR, dB", "the last frame instead", "the mean frame")
    return table((*titles, "training steps/s"), lines)


def recalled_beyond(content: dict[str, Any]) -> str:
    """What streams are worth after the length that was trained."""
    lines = [
        (
            row["forgetting"],
            f"{row['frames']:,}",
            *_decibels(row, "psnr_db", "first_psnr_db", "constant_psnr_db"),
            f"{row['state_rms']:.2f}",
        )
        for row in _of_part(content, "beyond")
    ]
    behind = content["trained_on"] - content["frame"]
    titles = ("states are", "frames seen", f"PSNR, {behind} frames back", f"PSNR, frame {content['frame']}")
    return table((*titles, "the mean frame", "states, rms"), lines)


def named_beyond(content: dict[str, Any]) -> str:
    """How many clips of endless streams a classifier names right."""
    names = dict.fromkeys(row["forgetting"] for row in content["rows"])
    lines = []
    for name in names:
        rows = [row for row in content["rows"] if row["forgetting"] == name]
        lines.append([name, *(share(row["top1"]) for row in rows), f"{rows[-1]['state_rms']:.2f}"])
    seen = [f"{row['first_clip']} to {row['last_clip']}" for row in content["rows"] if row["forgetting"] == name]
    return table(("states are", *(f"clips {clips}" for clips in seen), "states in the end, rms"), lines)


def eigenvalues(content: dict[str, Any]) -> str:
    """Distributions at the start and at the end of training."""
    lines = [
        (
            f"{row['min_radius']:g} to {row['max_radius']:g}",
            row["seed"],
            row["moment"],
            f"{row['mean']:.3f}",
            *(f"{row['quantiles'][quantile]:.3f}" for quantile in ("0", "0.05", "0.5", "0.95")),
            share(row["below_min_radius"]),
        )
        for row in content["rows"]
    ]
    titles = ("drawn from", "seed", "of training", "mean", "least", "5 %", "median", "95 %", "below the range")
    return table(titles, lines)


def _of_part(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in content["rows"] if row["part"] == name]


def _decibels(row: dict[str, Any], *names: str) -> list[str]:
    return [f"{row[name]:.1f}" for name in names]


def restored(content: dict[str, Any]) -> str:
    """How well an autoencoder restores what is hidden."""
    line = [content["clips"], share(content["protocol"]["mask_ratio"], 0), share(content["explained"])]
    line += [f"{content[key]:.1f} dB" for key in ("psnr_db", "flat_psnr_db")]
    flat = "the same of flat patches with their true means"
    return table(("held-out clips", "hidden", "here, explained of it", "here, PSNR", flat), [line])
