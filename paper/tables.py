"""Markdown tables of result files, beside the paper's figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Build = Callable[[dict[str, Any]], str]
"""Function from a result file's content to the text of a block."""

NOT_MEASURED = "not measured yet"
METRICS = {
    "average_jaccard": "average Jaccard",
    "average_pts_within_thresh": "δ-average",
    "occlusion_accuracy": "occlusion accuracy",
}

# Figures 3 and 5 as the authors drew them for the reviewers (github.com/Karami-m/TRecViT-Submission), read off the
# pictures: operations to about 0.1 TFLOP, memory to about 1 GB, less exact where curves overlap. They are of a training
# step, with three times the operations of Table 3. XLA counts only one turn of the LSTM's loop.
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
_TRACKERS = {"still points": "static baseline", "LocalTracker": "`points`"}  # name in result files -> in tables
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
    """Format a Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def share(value: float, digits: int = 1) -> str:
    """Format a share of 1 in percent."""
    return f"{100 * value:.{digits}f} %"


def on(machine: dict[str, Any]) -> str:
    """Name the machine and date of a measurement."""
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    return f"{machine['processor']}, {threads}, torch {machine['torch']}, {machine['date']}"


def inference_costs(content: dict[str, Any]) -> str:
    """Make the cost columns of the paper's Table 3."""
    costs = {(cost["model"], cost["num_frames"]): cost for cost in content["costs"]}
    lines = []
    for printed in content["paper"]:
        cost = costs[printed["model"], printed["num_frames"]]
        ours = (cost["parameters"] / 1e6, cost["inference_flop"] / 1e12, cost["inference_bytes"] / 1e9)
        pairs = zip((printed["parameters_m"], printed["tflop"], printed["gb"]), ours, strict=True)
        cells = (cell for paper, here in pairs for cell in (paper, _rounded(here)))
        lines.append([printed["model"], printed["num_frames"], *cells])
    columns = [f"{unit}, {source}" for unit in ("M parameters", "TFLOP", "GB") for source in ("paper", "here")]
    return table(["model", "frames", *columns], lines)


def _rounded(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def training_costs(models: Sequence[str]) -> Build:
    """Make the table of the paper's Figure 3 or 5, at two of its lengths."""

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
    """Make the ratios of ViViT-L's costs to TRecViT's that the paper's text gives for Figure 3."""
    costs = {(cost["model"], cost["num_frames"]): cost for cost in content["costs"]}
    lines = []
    for printed in content["paper_ratios"]:
        theirs, ours = (costs[model, printed["num_frames"]] for model in ("ViViT-L", "TRecViT-B"))
        times = {key: f"{theirs[key] / ours[key]:.1f}" for key in theirs if key in _COMPARED}
        lines.append([
            printed["num_frames"], times["inference_flop"], printed["operations"], times["training_bytes"],
            printed["memory"], times["fused_training_bytes"], times["parameters"],
        ])  # fmt: skip
    titles = (
        "frames", "ViViT-L's operations over ours", "paper, about", "its training memory over ours", "paper, about",
        "with fused attention", "its parameters",
    )  # fmt: skip
    return table(titles, lines)


_COMPARED = ("inference_flop", "training_bytes", "fused_training_bytes", "parameters")


def points(content: dict[str, Any]) -> str:
    """Make the table of a tracker beside two baselines."""
    lines = [
        (
            line["test"],
            line["num_videos"],
            _TRACKERS.get(line["tracker"], line["tracker"]),
            *(share(line["metrics"][metric]) for metric in METRICS),
        )
        for line in content["scores"]
    ]
    return table(("videos", "number", "tracker", *METRICS.values()), lines)


def points_command(content: dict[str, Any]) -> str:
    """Reconstruct the command line that wrote a file of trackers' scores."""
    num_footage = len(content["footage"])
    long = [score for score in content["scores"] if score["test"].endswith(" frames")]
    short = [score for score in content["scores"] if score not in long]
    line = f"trecvit eval points track_world --scenes {short[0]['num_videos']} "
    if num_footage:
        line += f"--clips {short[-1]['num_videos'] // num_footage} --footage VIDEO --footage VIDEO … "
    if long:
        line += f"--long-frames {long[0]['test'].split()[-2]} --long {long[0]['num_videos']} "
    line += "--still-camera VIDEO " * len({row["video"] for row in content.get("still_camera", ())})
    return line + "--save benchmarks/points.json"


PIPS_ON_BADJA = {"bear": 76.1, "camel": 91.6, "cows": 87.7, "dog": 45.4, "horsejump-high": 60.9}
"""PCK-T in percent, from the README of github.com/aharley/pips (new reference model, December 2022)."""


def joints(content: dict[str, Any]) -> str:
    """Make the table of PCK-T on BADJA, a row per animal, beside the published figures of PIPs."""
    trackers = [*content["means"]]
    found = {(line["video"], line["tracker"]): line for line in content["per_video"]}
    animals = dict.fromkeys(line["video"] for line in content["per_video"])
    lines = [
        (
            animal,
            *(share(found[animal, tracker]["pck_t"]) for tracker in trackers),
            *(share(found[animal, tracker]["pck_t_all"]) for tracker in trackers),
            PIPS_ON_BADJA.get(animal, ""),
        )
        for animal in animals
    ]
    means = [share(content["means"][tracker][metric]) for metric in ("pck_t", "pck_t_all") for tracker in trackers]
    of_pips = [PIPS_ON_BADJA[animal] for animal in animals if animal in PIPS_ON_BADJA]
    lines.append(("mean", *means, f"{sum(of_pips) / len(of_pips):.1f}"))
    names = [_TRACKERS.get(tracker, tracker) for tracker in trackers]
    titles = ("animal", *names, *(f"{name}, all joints" for name in names), "PIPs, published, all joints")
    return table(titles, lines)


def last_frames(content: dict[str, Any]) -> str:
    """Make the table of TAP-Vid's metrics in the last frame."""
    metrics = {f"pts_within_{px}": f"within {px} px" for px in (1, 2, 4, 8, 16)} | METRICS
    lines = [
        (_TRACKERS.get(tracker, tracker), *(share(means[metric]) for metric in metrics))
        for tracker, means in content["means"].items()
    ]
    return table(("tracker", *metrics.values()), lines)


def still_camera(content: dict[str, Any]) -> str:
    """Make the table of a tracker beside two baselines on the background of a still camera."""
    lines = [
        (
            f"{row['num_frames']} frames, {row['num_points']} points", _TRACKERS.get(row["tracker"], row["tracker"]),
            share(row["within_4_px"]), share(row["within_4_px_last_quarter"]), share(row["survival"]),
            f"{row['jumps_per_100_frames']:.2f}", share(row["seen"]),
        )
        for row in content["still_camera"]
    ]  # fmt: skip
    titles = ("video", "tracker", "within 4 px", "last quarter", "until 16 px off", "jumps in 100 frames", "seen")
    return table(titles, lines)


def points_scale(content: dict[str, Any]) -> str:
    """Describe the videos of a file of trackers' scores."""
    height, width = content["scenes"]["image_size"]
    return (
        f"Clips of {content['scenes']['num_frames']} frames, scenes of {height} × {width}, "
        f"{len(content['footage'])} real videos that the package does not ship"
    )


def slots(contents: Sequence[dict[str, Any]]) -> str:
    """Make the table of trackers with and without empty slots."""
    lines = []
    for content in contents:
        for cost in content["costs"]:
            line = [content["model"], cost["empty_slots"], f"{cost['times_as_long']:.2f} ×", f"{cost['gflop']:.2f}"]
            line += [f"{cost['state_bytes'] / 1e6:.2f} MB"]
            if (predictions := cost["answers"]) is None:
                lines.append([*line, "", "", ""])
                continue
            moved = (predictions[f"moved_{quantile}_px"] for quantile in ("median", "p99", "most"))
            line += [" / ".join(f"{px:.2f}" for px in moved) + " px", share(predictions["seen_otherwise"], 2)]
            lines.append([*line, share(predictions["average_jaccard"])])
    titles = ("model", "empty slots", "time per frame", "GFLOP", "state", "points moved: median / 99 % / most")
    return table((*titles, "visibility differs", "average Jaccard"), lines)


def slots_scale(content: dict[str, Any]) -> str:
    """Describe the scenes and the machine of a file of slots' costs."""
    scenes = content["scenes"]
    height, width = scenes["image_size"]
    return (
        f"{content['num_scenes']} scene{'s' if content['num_scenes'] > 1 else ''} of {scenes['num_frames']} frames of "
        f"{height} × {width}, {scenes['num_points']} points, {content['dtype']}; without empty slots "
        f"{content['costs'][0]['median_ms']:,.0f} ms a frame; load average {content['load_average']}; "
        f"{on(content['machine'])}"
    )


def streaming_speed(content: dict[str, Any]) -> str:
    """Make the table of frames per second in one stream, of the paper's size."""
    lines = [
        (line["model"], line["dtype"], line["mode"], f"{line['frames_per_s']:.1f}")
        for line in content["speeds"]
        if line["model"].startswith("base") and (line["batch_size"], line["num_frames"]) == (1, 1)
    ]
    return table(("model", "dtype", "mode", "here, frames/s"), lines)


def recalled(content: dict[str, Any]) -> str:
    """Make the table of recalled frames, for both training lengths, tested at the longer one."""
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
    return table((*titles, "last-frame baseline", "mean-frame baseline"), lines)


def recalled_over_distance(content: dict[str, Any]) -> str:
    """Make the table of recall and training speed over the distance of the recalled frame."""
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
    titles = ("frames back", "model", "parameters", "PSNR, dB", "last-frame baseline", "mean-frame baseline")
    return table((*titles, "training steps/s"), lines)


def recalled_beyond(content: dict[str, Any]) -> str:
    """Make the table of recall past the trained length: a row per treatment of states, a column per length."""
    rows = _of_part(content, "beyond")
    lengths = sorted({row["frames"] for row in rows})
    decibels = {(row["forgetting"], row["frames"]): _decibels(row, "psnr_db", "constant_psnr_db") for row in rows}
    names = [*dict.fromkeys(row["forgetting"] for row in rows)]
    lines = [[name, *(decibels[name, frames][0] for frames in lengths)] for name in names]
    lines.append(["mean-frame baseline", *(decibels[names[0], frames][1] for frames in lengths)])
    behind = content["trained_on"] - content["frame"]
    return table(
        (f"states are; PSNR, {behind} frames back", *(f"after {frames:,} frames" for frames in lengths)), lines
    )


def named_beyond(content: dict[str, Any]) -> str:
    """Make the table of a classifier's accuracy in endless streams."""
    names = dict.fromkeys(row["forgetting"] for row in content["rows"])
    lines = []
    for name in names:
        rows = [row for row in content["rows"] if row["forgetting"] == name]
        lines.append([name, *(share(row["top1"]) for row in rows), f"{rows[-1]['state_rms']:.2f}"])
    seen = [f"{row['first_clip']} to {row['last_clip']}" for row in content["rows"] if row["forgetting"] == name]
    return table(("states are", *(f"clips {clips}" for clips in seen), "final states, rms"), lines)


def _of_part(content: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [row for row in content["rows"] if row["part"] == name]


def _decibels(row: dict[str, Any], *names: str) -> list[str]:
    return [f"{row[name]:.1f}" for name in names]
