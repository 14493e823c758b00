"""Commands that measure accuracy."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trecvit.cli.app import MEASURE, app, eval_app
from trecvit.cli.options import (
    ClipsOption,
    CropsOption,
    DataArgument,
    DecodersOption,
    DeviceOption,
    FootageOption,
    JsonOption,
    LabelsOption,
    LearningRateOption,
    ModelOption,
    OptionalScenesArgument,
    PartOption,
    PicturesOption,
    SaveJsonOption,
    SplitOption,
    TrackerOption,
    VideosOption,
    check_rate,
    default_part,
    load_model,
    load_tracker,
    manifest_of,
    track_scenes_of,
)
from trecvit.cli.sources import expand_paths
from trecvit.cli.terminal import (
    notify,
    print_facts,
    print_json,
    print_table,
    progress_bar,
    progress_bars,
    report_failures,
)
from trecvit.errors import ConfigError
from trecvit.files import check_output, only_writer, write_json

if TYPE_CHECKING:
    from trecvit.evaluate.features import Encoder
    from trecvit.model.tracker import Tracker

_TRACKING_METRICS = {
    "average Jaccard": "average_jaccard",
    "δ-average": "average_pts_within_thresh",
    "occlusion accuracy": "occlusion_accuracy",
}


@eval_app.command("videos")
def eval_videos(
    data: DataArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder for result.json and scores.npz.")],
    model: ModelOption = "motions",
    videos: VideosOption = None,
    labels: LabelsOption = None,
    split: SplitOption = None,
    part: PartOption = None,
    clips: ClipsOption = 4,
    crops: CropsOption = 3,
    views_at_once: Annotated[int, typer.Option(min=1, help="Batch size in views (a crop of a clip).")] = 12,
    workers: DecodersOption = 1,
    device: DeviceOption = "cpu",
) -> None:
    """Classify every video of a data set: top-1, top-5, mean class accuracy, calibration, confusion matrix.

    Unreadable videos are listed and make the exit code 1; they are never replaced by others.

    On several GPUs: torchrun --nproc-per-node 8 -m trecvit eval videos DATA --to FOLDER
    """
    from trecvit.evaluate.scores import write_result
    from trecvit.evaluate.videos import evaluate_videos, protocol, views_protocol
    from trecvit.processes import Processes, joined

    manifest = manifest_of(data, videos, labels, split=split, part=default_part(split, part, "test"))
    with joined():
        processes = Processes(device)
        with only_writer(to) if processes.first else nullcontext():
            network = load_model(model, str(processes.device))
            num_videos = len(processes.share.of(manifest.videos))
            with progress_bar("videos", num_videos, hidden=not processes.first) as advance:
                scores, failures = evaluate_videos(
                    network,
                    manifest,
                    num_clips=clips,
                    num_crops=crops,
                    views_at_once=views_at_once,
                    num_workers=workers,
                    processes=processes,
                    report=advance,
                )
            if not processes.first:
                return
            settings = protocol(network, manifest, checkpoint=model, looked_at=views_protocol(clips, crops))
            result = write_result(to, scores, settings, failures)
    shares = {name: f"{result[name]:.2%}" for name in ("top1", "top5", "mean_class_accuracy", "calibration_error")}
    print_facts({"videos": result["good"], "failed": len(failures), "missing": len(manifest.missing), **shares})
    print(to / "result.json")
    report_failures(failures)


@eval_app.command("early")
def eval_early(
    data: DataArgument,
    to: Annotated[Path, typer.Option("--to", help="Folder for a result per readout and share of the video.")],
    model: ModelOption = "motions",
    videos: VideosOption = None,
    labels: LabelsOption = None,
    split: SplitOption = None,
    part: PartOption = None,
    half_life: Annotated[float, typer.Option(help="Half-life of the exponential readout, in frames.")] = 8.0,
    window: Annotated[int, typer.Option(min=1, help="Length of the windowed readout, in frames.")] = 16,
    device: DeviceOption = "cpu",
) -> None:
    """Early recognition: stream every video and report top-1 after 25, 50, 75 and 100 % of it."""
    from trecvit.evaluate.early import READOUTS, Readouts, evaluate_early
    from trecvit.evaluate.scores import write_result
    from trecvit.evaluate.videos import protocol

    network = load_model(model, device)
    manifest = manifest_of(data, videos, labels, split=split, part=default_part(split, part, "test"))
    shares = (0.25, 0.5, 0.75, 1.0)
    readouts = Readouts(half_life=half_life, window=window)
    with only_writer(to):
        with progress_bar("videos", len(manifest.videos)) as advance:
            scores, failures = evaluate_early(network, manifest, parts=shares, readouts=readouts, report=advance)
        sampling = {"sampler": "streamed once, middle crop", "half_life": half_life, "window": window}
        settings = protocol(network, manifest, checkpoint=model, looked_at=sampling)
        rows = []
        for name in READOUTS:
            rows.append([name])
            for share in shares:
                content = {**settings, "readout": name, "part": share}
                result = write_result(to / f"{name}_{share:.2f}", scores[name, share], content, failures)
                rows[-1].append(f"{result['top1']:.1%}")
    print_table(("readout", *(f"{share:.0%}" for share in shares)), rows)
    report_failures(failures)


@eval_app.command("tapvid")
def eval_tapvid(
    data: Annotated[
        Path,
        typer.Argument(help="TAP-Vid .pkl or a folder of them, Perception Test .json, or a folder of .npz tracks."),
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder for result.json.")],
    model: TrackerOption = "bootstapnext",
    baseline: Annotated[
        str | None, typer.Option(help="Instead of a model: still (static points) or lk (OpenCV's Lucas–Kanade).")
    ] = None,
    query_mode: Annotated[str, typer.Option(help="first or strided, as in TAP-Vid.")] = "first",
    certainty: Annotated[bool, typer.Option("--certainty", help="Visible: probability x certainty > 1/2.")] = False,
    queries_at_once: Annotated[int | None, typer.Option(min=1, help="Points per forward pass; default: all.")] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of the videos (Perception Test).")] = None,
    split: Annotated[str | None, typer.Option(help="train, valid or test (Perception Test).")] = None,
    pictures: PicturesOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Point tracking on TAP-Vid and similar data: average Jaccard, δ-average and occlusion accuracy.

    Videos that cannot be scored are listed and make the exit code 1.
    """
    from trecvit.data.tapvid import read_tracked
    from trecvit.evaluate.tapvid import QUERY_MODES, evaluate_tapvid, tapvid_protocol, write_tapvid_result
    from trecvit.evaluate.track_pictures import saved_in

    if query_mode not in QUERY_MODES:
        raise ConfigError(f"--query-mode: expected {' or '.join(QUERY_MODES)}, got {query_mode!r}")
    name, tracker, image_size = _tracker(model, baseline, device)
    tracked = read_tracked(data, videos=videos, split=split, image_size=image_size)
    settings: dict[str, Any] = {
        "query_mode": query_mode,
        "use_certainty": certainty,
        "queries_at_once": queries_at_once,
        "image_size": image_size,
    }
    with only_writer(to), only_writer(pictures) if pictures else nullcontext():
        with progress_bar("videos", len(tracked)) as advance:
            scores, failures = evaluate_tapvid(
                tracker, tracked, **settings, device=device, report=advance, show=saved_in(pictures)
            )
        result = write_tapvid_result(to, scores, tapvid_protocol(tracked, tracker=name, **settings), failures)
    shares = {title: f"{result[metric]:.1%}" for title, metric in _TRACKING_METRICS.items()}
    print_facts({"tracker": name, "videos": result["good"], "failed": len(failures), **shares})
    print(to / "result.json")
    report_failures(failures)


def _tracker(model: str, baseline: str | None, device: str) -> tuple[str, Tracker, tuple[int, int]]:
    """Name, tracker and image size for --model or --baseline."""
    from trecvit.evaluate.point_baselines import LucasKanade, static_points
    from trecvit.evaluate.tapvid import IMAGE_SIZE

    if baseline is None:
        network = load_tracker(model, device)
        return model, network, network.preprocessing.image_size
    if baseline not in ("still", "lk"):
        raise ConfigError(f"--baseline: expected still or lk, got {baseline!r}")
    return baseline, static_points if baseline == "still" else LucasKanade(), IMAGE_SIZE


@eval_app.command("points")
def eval_points(
    save: Annotated[Path, typer.Option(help="Write the results to this JSON file.")],
    recipe: OptionalScenesArgument = None,
    badja: Annotated[Path | None, typer.Option(help="Instead of scenes: folder of BADJA's joint annotations.")] = None,
    first_last: Annotated[
        Path | None, typer.Option(help="Instead of scenes: csv of TAP-Vid's points in first and last frames.")
    ] = None,
    videos: Annotated[
        Path | None, typer.Option(help="With --badja or --first-last: a folder of frames per video.")
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="With --badja: a folder of masks per video.")] = None,
    model: TrackerOption = "points",
    num_scenes: Annotated[int, typer.Option("--scenes", min=1, help="Number of held-out scenes.")] = 100,
    num_frames: Annotated[int, typer.Option(min=2, help="Frames per scene.")] = 24,
    footage: FootageOption = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips per video of --footage.")] = 10,
    still_camera: Annotated[
        list[Path] | None,
        typer.Option(help="Videos of a camera at rest, whose background must stay in place; may be repeated."),
    ] = None,
    long_frames: Annotated[int, typer.Option(min=0, help="Also score clips of so many frames; 0: none.")] = 0,
    num_long: Annotated[int, typer.Option("--long", min=1, help="Such scenes, and such clips per video.")] = 1,
    pictures: PicturesOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Compare a tracker with static points and Lucas–Kanade.

    On synthetic scenes of RECIPE: Jaccard, δ-average, occlusion. With --badja: PCK-T of animals' joints. With
    --first-last: the same as TAP-Vid's, in the last frame of each video.
    """
    from dataclasses import replace

    from trecvit.evaluate.point_comparison import compare_trackers, to_dict, trackers_beside
    from trecvit.evaluate.still_camera import still_camera_scores
    from trecvit.evaluate.tapvid import IMAGE_SIZE

    check_output(save)
    if sum(option is not None for option in (recipe, badja, first_last)) != 1:
        raise ConfigError("expected one of RECIPE, --badja and --first-last; give the one to test on")
    if recipe is None:
        _eval_sparse_points(save, badja, first_last, videos, masks, model, pictures, device)
        return
    if videos or masks:
        raise ConfigError("--videos, --masks: expected --badja or --first-last with them, got a recipe")
    look = replace(track_scenes_of(recipe), num_frames=num_frames)
    filmed, still = expand_paths(footage), expand_paths(still_camera)
    tracker = load_tracker(model, device)
    at_rest = []
    if still:
        with progress_bar("still camera", 3 * len(still)) as advance:
            at_rest = still_camera_scores(trackers_beside(tracker, IMAGE_SIZE), still, report=advance)
    with progress_bar("scores", (9 if filmed else 3) * (2 if long_frames else 1)) as advance:
        scores = compare_trackers(
            tracker,
            scenes=look,
            num_scenes=num_scenes,
            footage=filmed,
            clips_per_video=clips,
            long_frames=long_frames,
            num_long=num_long,
            pictures=pictures,
            report=advance,
        )
    write_json(save, to_dict(scores, scenes=look, footage=filmed, still_camera=at_rest))
    shares = ([f"{row.metrics[metric]:.1%}" for metric in _TRACKING_METRICS.values()] for row in scores)
    rows = ((row.test, row.tracker, *cells) for row, cells in zip(scores, shares, strict=True))
    print_table(("videos", "tracker", *_TRACKING_METRICS), rows)
    if at_rest:
        print_table(
            (
                "still camera",
                "tracker",
                "within 4 px",
                "last quarter",
                "until 16 px off",
                "jumps in 100 frames",
                "seen",
            ),
            (
                (
                    f"{row.video}, {row.num_frames} frames",
                    row.tracker,
                    *(f"{share:.1%}" for share in (row.within_4_px, row.within_4_px_last_quarter, row.survival)),
                    f"{row.jumps_per_100_frames:.2f}",
                    f"{row.seen:.1%}",
                )
                for row in at_rest
            ),
        )


def _eval_sparse_points(
    save: Path,
    badja: Path | None,
    first_last: Path | None,
    frames: Path | None,
    masks: Path | None,
    model: str,
    pictures: Path | None,
    device: str,
) -> None:
    """Compare trackers on real videos with sparse annotations, and print each video's main metric and all means."""
    from trecvit.data.sparse_tracks import read_badja, read_first_last
    from trecvit.evaluate import sparse_points
    from trecvit.evaluate.tapvid import THRESHOLDS_PX

    if badja is not None:
        tracks, score, option = read_badja(badja, frames=frames, masks=masks), sparse_points.pck_t, "--badja"
        metrics = {"PCK-T": "pck_t", "PCK-T, all joints": "pck_t_all"}
    else:
        if first_last is None or frames is None or masks is not None:
            raise ConfigError("--first-last: expected --videos, the folder of the frames, and no --masks")
        tracks, score, option = read_first_last(first_last, frames=frames), sparse_points.last_frame, "--first-last"
        within = {f"< {px} px": f"pts_within_{px}" for px in THRESHOLDS_PX}
        metrics = {"δ-average": "average_pts_within_thresh", **within, **_TRACKING_METRICS}
    for name, reason in tracks.left_out.items():
        notify(f"left out: {name}: {reason}")
    with progress_bar("videos", len(tracks.readers)) as advance:
        scores = sparse_points.compare_on_sparse(
            load_tracker(model, device), model, tracks, score, pictures=pictures, report=advance
        )
    protocol = f"trecvit eval points {option}, version 1"
    write_json(save, sparse_points.to_dict(scores, tracks, test=protocol, metrics=[*metrics.values()]), indent=2)
    main, *_ = metrics
    of_videos = (
        (video, *(_percent(float(scores.metrics[tracker][metrics[main]][row])) for tracker in scores.trackers))
        for row, video in enumerate(scores.videos)
    )
    print_table((main, *scores.trackers), of_videos)
    means = {tracker: scores.means(tracker) for tracker in scores.trackers}
    of_trackers = ((tracker, *(_percent(means[tracker][metric]) for metric in metrics.values())) for tracker in means)
    print_table((f"mean of {len(scores.videos)}", *metrics), of_trackers)
    report_failures(list(scores.failures))


def _percent(share: float) -> str:
    return "" if isnan(share) else f"{share:.1%}"


@eval_app.command("world")
def eval_world(
    model: ModelOption = "motions",
    clips: Annotated[int, typer.Option(min=36, help="Clips per test, an even number.")] = 1800,
    footage: FootageOption = None,
    seed: Annotated[int, typer.Option(min=1, help="Seed of the test scenes; recipes train on seed 0.")] = 1,
    save: SaveJsonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Test a classifier of the synthetic world's motions on held-out scenes, textures and footage."""
    from trecvit.evaluate.world import report_world

    check_output(save)
    network = load_model(model, "cpu")
    num_tests = 3 if footage else 1
    with progress_bar("clips", num_tests * clips, hidden=as_json) as advance:
        report = report_world(network, num_clips=clips, seed=seed, footage=expand_paths(footage), report=advance)
    if save:
        write_json(save, report, indent=2)
    if as_json:
        print_json(report)
        return
    _print_tests(report["tests"])


def _print_tests(tests: list[dict[str, Any]]) -> None:
    print_table(
        ("test", "clips", "top-1", "right or opposite"),
        ((test["name"], str(test["num_clips"]), f"{test['top1']:.1%}", f"{test['pair']:.1%}") for test in tests),
    )

    def cells(label: str) -> list[str]:
        shares = (f"{test['by_class'][label]:.0%}" if label in test["by_class"] else "" for test in tests)
        return [label, *shares, tests[0]["confused_with"][label]]

    titles = ("class", *(test["name"] for test in tests), "confused with")
    print_table(titles, map(cells, tests[0]["by_class"]))


@app.command(rich_help_panel=MEASURE)
def probe(
    data: Annotated[str, typer.Option("--data", help="Training videos of the probes, in any form of data.")],
    validation: Annotated[str, typer.Option(help="Test videos of the same classes.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for cached features and probe.json.")],
    model: ModelOption = "motions",
    videomae: Annotated[
        Path | None, typer.Option(help="Instead of --model: folder of a Hugging Face VideoMAE (scripts/paper probe).")
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Frame stride of a VideoMAE; a TRecViT stores its own.")] = 4,
    videos: VideosOption = None,
    labels: LabelsOption = None,
    split: SplitOption = None,
    clips: ClipsOption = 1,
    crops: CropsOption = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of the attention probe.")] = 30,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size of the attention probe, in clips.")] = 32,
    learning_rate: LearningRateOption = 3e-4,
    width: Annotated[int, typer.Option(min=0, help="Width of the attention probe.", show_default="as features")] = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds for mean and standard deviation.")] = 3,
    workers: DecodersOption = 0,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Probe frozen features: linear, nearest-neighbour and attention probes, beside features of random weights.

    Features are computed once and cached; a folder with those of another model or other videos is refused. Unreadable
    videos are listed and make the exit code 1.
    """
    from trecvit.train.probe import ProbePlan
    from trecvit.train.probe import probe as run_probes

    check_rate("--lr", learning_rate)
    encoder, untrained = _videomae(videomae, stride, device) if videomae else _trecvit(model, device)
    plan = ProbePlan(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        width=width,
        num_clips=clips,
        num_crops=crops,
        num_seeds=seeds,
    )
    with progress_bars(hidden=as_json) as report:
        result, failures = run_probes(
            encoder,
            untrained,
            manifest_of(
                data, videos, labels, split=split, part=default_part(split, None, "train"), folder_of="train"
            ).for_classifier(),
            manifest_of(
                validation, videos, labels, split=split, part=default_part(split, None, "test"), folder_of="validation"
            ),
            to,
            plan,
            num_workers=workers,
            device=device,
            report=report,
        )
    if as_json:
        print_json(result)
    else:
        rows = []
        for row in sorted(result["rows"], key=lambda row: str(row["probe"])):
            top1 = f"{row['mean']:.1%} ± {row['deviation']:.1%}"
            rows.append((row["probe"], row["features"], top1, f"{row['seconds_per_seed']:.1f}"))
        print_table(("probe", "features", "top-1", "seconds"), rows)
        print(to / "probe.json")
    report_failures(failures)


def _trecvit(model: str, device: str) -> tuple[Encoder, Callable[[int], Encoder]]:
    """The encoder of a TRecViT, and a function that makes it with random weights of a seed."""
    from trecvit.evaluate.features import trecvit_encoder
    from trecvit.train.probe import fresh_trecvit

    network = load_model(model, device)
    return trecvit_encoder(network, model), lambda seed: trecvit_encoder(fresh_trecvit(network, seed), f"seed {seed}")


OTHER_ENCODERS: dict[str, Callable[[Path, int, str], tuple[Encoder, Callable[[int], Encoder]]]] = {}
"""Loaders of a folder with a frame stride on a device, by the option of `probe` that names them; filled by `paper`."""


def _videomae(folder: Path, stride: int, device: str) -> tuple[Encoder, Callable[[int], Encoder]]:
    """Another encoder, and the same with the random initial weights of a seed."""
    if "videomae" not in OTHER_ENCODERS:
        raise ConfigError("--videomae: run `scripts/paper probe --videomae FOLDER` in a checkout of the repository")
    return OTHER_ENCODERS["videomae"](folder, stride, device)
