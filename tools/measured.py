"""Texts between marks in the README, the model cards and docs/: figures of result files, and the file tree.

The results page's are in `paper.report`.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

from paper import tables
from paper.results import read_result
from paper.tables import on, share, table
from trecvit.errors import DataError

_TRAINING = "benchmarks/training"
_PACKAGE_ROOMS = "video model data synthetic weights evaluate train train/tasks accelerate runtime serve bench cli"
_ROOMS = ("src/trecvit", *(f"src/trecvit/{room}" for room in _PACKAGE_ROOMS.split()))
_LATER = (
    f"{tables.NOT_MEASURED.capitalize()}: `trecvit eval points --first-last tapvid_points.csv --videos davis/frames "
    "--save benchmarks/davis_last_frames.json`."
)
_COMPARED_FRAMES = (32, 64)  # the lengths in the paper's Table 3


def readme(root: Path) -> dict[str, str]:
    """Accuracy of the bundled classifier."""
    report = _read(root, "motions")
    training = _log(root, "world_files")[-1]
    cpus = json.loads((root / _TRAINING / "world_files.run.json").read_text(encoding="utf-8"))["cpus"]
    tests = [(test["name"], test) for test in report["tests"]]
    tests.append(("the same without mixing over time", _read(root, "motions_without_time")["tests"][0]))
    rows = [(name, f"{test['num_clips']:,}", share(test["top1"]), share(test["pair"])) for name, test in tests]
    text = table(("test", "clips", "top-1 of 18", "right class above its opposite"), rows)
    text += (
        f"\n\nMeasured by `trecvit eval world --clips {report['tests'][0]['num_clips']} --footage VIDEO "
        f"--footage VIDEO … --save benchmarks/motions.json`;\n{_footage(report)}, torch {report['torch']}. "
        f"Trained for {_duration(training)} on {cpus} CPU cores."
    )
    return {"motions": text}


def architecture(root: Path) -> dict[str, str]:
    """The file tree: the first line of each module."""
    lines = ["```"]
    for room in (*_ROOMS, "paper", "tools", "tools/gpu"):
        lines.append(f"{room}/")
        for path in sorted((root / room).glob("*.py")):
            names_rows = path.name != "__init__.py" or path.parent.name == "tasks"
            if names_rows and path.name != "__main__.py":
                summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]
                lines.append(f"  {path.name:24}{summary.rstrip('.')}")
    return {"files": "\n".join([*lines, "```"])}


def motions_card(root: Path) -> dict[str, str]:
    """The same, and the accuracy of each class."""
    held_out = _read(root, "motions")["tests"][0]
    rows = [(label, share(top1, 0), held_out["confused_with"][label]) for label, top1 in held_out["by_class"].items()]
    classes = table(("class, held-out scenes", "top-1", "most often taken for"), rows)
    return {"motions": f"{readme(root)['motions']}\n\n{classes}"}


def points_card(root: Path) -> dict[str, str]:
    """Accuracy of the bundled tracker, and its training."""
    points = _read(root, "points")
    training = _log(root, "track_streams")[-1]
    cpus = json.loads((root / _TRAINING / "track_streams.run.json").read_text(encoding="utf-8"))["cpus"]
    text = tables.points(points) + (
        f"\n\nMeasured by `{tables.points_command(points)}`;\n{_footage(points)}, clips of "
        f"{points['scenes']['num_frames']} frames unless a row names another length, torch {points['torch']}.\n"
        f"Trained for {_duration(training)} on {cpus} CPU cores, beside other work."
    )
    still = f"{tables.still_camera(points)}\n\nOf the same run; the most textured points of the background."
    return {"points": text, "still camera": still}


def tracking(root: Path) -> dict[str, str]:
    """The bundled tracker, on synthetic scenes and on real videos, and the cost of empty slots."""
    slots = [_read(root, f"slots/{name}") for name in ("points", "tapnext_b")]
    scales = (f"`{content['model']}`: {tables.slots_scale(content)}." for content in slots)
    badja, davis = _read(root, "badja"), read_result(root / "benchmarks" / "davis_last_frames.json")
    real = {"joints": f"{tables.joints(badja)}\n\ntorch {badja['torch']}, {badja['date']}.", "last frames": _LATER}
    if davis is not None:
        about = f"{davis['videos']} videos, torch {davis['torch']}, {davis['date']}."
        real["last frames"] = f"{tables.last_frames(davis)}\n\n{about}"
    return points_card(root) | real | {"slots": tables.slots(slots) + "\n\n" + "  \n".join(scales)}


def performance(root: Path) -> dict[str, str]:
    """Speed of inference and of training, beside the original's and beside other video transformers."""
    int8 = _read(root, "int8")
    texts = {"int8": _speeds(int8)}
    # On a processor without AMX and on one with it; each beside the original on the same.
    for folder, suffix in (("", ""), ("amx/", " with AMX")):
        speed = _read(root, f"{folder}speed")
        kinds = {"our fastest, streaming": speed["speeds"]}
        if not folder:
            kinds["int8"] = [line for line in int8["speeds"] if line["dtype"] == "int8"]
        texts[f"speed{suffix}"] = _speeds(speed)
        texts[f"original{suffix}"] = _beside_original(_read(root, f"{folder}original"), kinds)
    texts["streams"] = _streams(_read(root, "streams"))
    texts["clips"] = _clips(_read(root, "clips"))
    texts["updates"] = _updates(_read(root, "updates"))
    texts["efficiency"] = _efficiency(_read(root, "efficiency/efficiency"))
    return texts


def serving(root: Path) -> dict[str, str]:
    """Throughput and latency of the server, with the plot that the same command draws."""
    result, plot = "benchmarks/serving.json", "docs/images/serving.png"
    command = f"`trecvit bench serve --seconds 20 --save {result} --plot {plot}`"
    content = read_result(root / result)
    if content is None:
        return {"serving": f"{tables.NOT_MEASURED.capitalize()}: {command}."}
    rows = [
        (
            line["sessions"], f"{line['frames_per_s']:.0f}", f"{line['p50_ms']:.1f} ms", f"{line['p95_ms']:.1f} ms",
            f"{line['p99_ms']:.1f} ms", f"{line['mean_batch']:.1f}", f"{line['own_step_ms']:.1f} ms",
            f"{line['own_frames_per_s']:.0f}", share(line["overhead"], 0), f"{line['apart_frames_per_s']:.0f}",
            f"{line['gain']:.1f} ×",
        )
        for line in content["costs"]
    ]  # fmt: skip
    titles = (
        "sessions", "frames/s", "frame to answer, p50", "p95", "p99", "streams per step", "`model.step` alone",
        "frames/s of it", "overhead", "one process per session, frames/s", "gain",
    )  # fmt: skip
    image = f"![Frames per second and latency over the number of sessions]({Path(plot).relative_to('docs')})"
    about = f"`{content['model']}`, {content['seconds']:g} s each, measured by {command}"
    return {"serving": f"{table(titles, rows)}\n\n{image}\n\n{about};\n{on(content['machine'])}."}


def training(root: Path) -> dict[str, str]:
    """Fine-tuning beside training from scratch."""
    runs = _read(root, "finetune")
    rows = [(name, share(run["top1"]), share(run["best_top1"]), f"{run['steps']}") for name, run in runs.items()]
    titles = ("from", "top-1 after the last step, 4 × 3 views", "best during training, one view", "steps")
    return {"finetune": table(titles, rows)}


def _speeds(content: dict[str, Any]) -> str:
    rows = [
        (
            line["model"], line["dtype"], line["mode"], f"{line['median_ms']:.1f} ms", f"{line['p95_ms']:.1f} ms",
            f"{line['frames_per_s']:.1f}", f"{line['gflop_per_s']:.0f}", f"{line['bound_frames_per_s']:.1f}",
            f"{line['times_the_bound']:.2f} ×", f"{line['memory_bytes'] / 1e6:.0f} MB", f"{line['ready_s']:.0f} s",
        )
        for line in content["speeds"]
    ]  # fmt: skip
    titles = (
        "model", "dtype", "mode", "median", "p95", "frames/s", "GFLOP/s", "matmul bound, frames/s", "time / bound",
        "memory", "warm-up",
    )  # fmt: skip
    return _on(table(titles, rows), content)


def _beside_original(original: dict[str, Any], kinds: dict[str, list[dict[str, Any]]]) -> str:
    rows = []
    for theirs in original["speeds"]:
        row = [theirs["model"], f"{theirs['frames_per_s']:.1f}"]
        for ours in kinds.values():
            best = max((line["frames_per_s"] for line in ours if line["model"] == theirs["model"]), default=None)
            row += [f"{best:.1f}", f"{best / theirs['frames_per_s']:.1f} ×"] if best else ["", ""]
        rows.append(row)
    titles = ["size", "original, frames/s"]
    for kind in kinds:
        titles += [f"{kind}, frames/s", "over the original"]
    return f"{table(titles, rows)}\n\njax {original['jax']}, {original['date']}."


def _streams(content: dict[str, Any]) -> str:
    rows = [
        (
            line["model"], line["batch_size"], f"{line['median_ms']:.1f} ms", f"{line['frames_per_s']:.1f}",
            f"{line['times_the_bound']:.2f} ×", f"{line['state_bytes']:,}", f"{line['memory_bytes'] / 1e6:.0f} MB",
        )
        for line in content["speeds"]
    ]  # fmt: skip
    titles = (
        "model",
        "streams",
        "step of all",
        "throughput, frames/s",
        "time / bound",
        "state bytes per stream",
        "memory",
    )
    return _on(table(titles, rows), content)


def _clips(content: dict[str, Any]) -> str:
    rows = [
        (
            line["model"], line["dtype"], line["num_frames"], f"{line['median_ms']:.0f} ms",
            f"{line['frames_per_s']:.1f}", f"{line['times_the_bound']:.2f} ×", f"{line['memory_bytes'] / 1e6:.0f} MB",
        )
        for line in content["speeds"]
    ]  # fmt: skip
    titles = ("model", "dtype", "frames of the clip", "median", "frames/s", "time / bound", "memory")
    return _on(table(titles, rows), content)


def _updates(content: dict[str, Any]) -> str:
    rows = [
        (
            cost["size"], cost["num_frames"], cost["recompute"],
            "not enough" if cost["memory_bytes"] is None else f"{cost['memory_bytes'] / 1e9:.2f} GB",
            "" if cost["updates_per_s"] is None else f"{cost['updates_per_s']:.3f}",
        )
        for cost in content["costs"]
    ]  # fmt: skip
    scale = f"{content['costs'][0]['batch_size']} clip per update, {content['image_px']}×{content['image_px']} pixels, "
    scale += f"{'bfloat16' if content['bf16'] else 'float32'}, {content['device']}; "
    titles = ("size", "frames per clip", "recomputed", "memory of an update", "updates/s")
    return f"{table(titles, rows)}\n\n{scale}{on(content['machine'])}."


def _efficiency(content: dict[str, Any]) -> str:
    paper = {(line["model"], line["num_frames"]): line for line in content["paper"]}
    rows = []
    for cost in content["costs"]:
        if cost["num_frames"] in _COMPARED_FRAMES:
            printed = paper.get((cost["model"], cost["num_frames"]), {"parameters_m": "", "tflop": "", "gb": ""})
            rows.append((
                cost["model"], cost["num_frames"], f"{cost['parameters'] / 1e6:.1f} M", printed["parameters_m"],
                f"{cost['inference_flop'] / 1e12:.2f}", printed["tflop"], _gb(cost["inference_bytes"]), printed["gb"],
                _gb(cost["fused_inference_bytes"]), _gb(cost["training_bytes"]), _gb(cost["fused_training_bytes"]),
            ))  # fmt: skip
    titles = (
        "model", "frames", "parameters", "paper", "TFLOP", "paper", "inference, GB", "paper", "fused attention",
        "training step, GB", "fused attention",
    )  # fmt: skip
    per_frame = [
        (
            cost["model"],
            "the state" if cost["window"] == 1 else f"{cost['window']} frames",
            f"{cost['flop'] / 1e9:,.0f}",
            f"{cost['kept_bytes'] / 1e6:.1f} MB",
        )
        for cost in content["per_new_frame"]
        if cost["window"] in (1, 32)
    ]
    return "\n\n".join([
        table(titles, rows),
        tables.cost_ratios(content),
        "Cost of each new frame of an endless video, given the memory of earlier frames:",
        table(("model", "memory", "GFLOP per new frame", "its size"), per_frame),
        f"torch {content['torch']}; the paper's figures are XLA's counts.",
    ])  # fmt: skip


def _footage(content: dict[str, Any]) -> str:
    return f"{len(content['footage'])} real videos that the package does not ship"


def _gb(value: float) -> str:
    return f"{value / 1e9:.2f}" if value < 1e10 else f"{value / 1e9:.0f}"


def _on(text: str, content: dict[str, Any]) -> str:
    return f"{text}\n\n{on(content['machine'])}."


def _read(root: Path, name: str) -> dict[str, Any]:
    path = root / "benchmarks" / f"{name}.json"
    content = read_result(path)
    if content is None:
        raise DataError(f"{path}: expected a result file; measure it, or restore it from git")
    return content


def _log(root: Path, recipe: str) -> list[dict[str, Any]]:
    """The lines of a training's log.

    Raises:
        DataError: for a resumed run, whose log does not hold the training's whole duration.
    """
    path = root / _TRAINING / f"{recipe}.metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if lines[-1]["first_step"] != 0:
        raise DataError(
            f"{path}: expected the log of an uninterrupted run, got one resumed at {lines[-1]['first_step']}"
        )
    return lines


def _duration(line: dict[str, Any]) -> str:
    return f"{line['step']:,} steps in {line['elapsed_s'] / 60:.0f} minutes"
