"""The command that tracks points."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trecvit.cli.app import USE, app
from trecvit.cli.options import (
    DeviceOption,
    DtypeOption,
    JsonOption,
    LatestOption,
    ModeOption,
    ReconnectOption,
    SaveVideoOption,
    SourceArgument,
    TrackerOption,
    load_fast_tracker,
)
from trecvit.cli.outputs import check_distinct, check_file
from trecvit.cli.recording import Recording, video_writer
from trecvit.cli.sources import expand_one, open_source
from trecvit.cli.terminal import full_bar, live_panel, notify, probability_bar, progress_bar
from trecvit.errors import ConfigError

if TYPE_CHECKING:
    from trecvit.runtime.follow import Queries, TrackUpdate
    from trecvit.video.frames import VideoInfo

_ROWS = 12  # points that the live view lists


@app.command(rich_help_panel=USE)
def track(
    source: SourceArgument,
    grid: Annotated[
        int | None,
        typer.Option(min=1, help="Track a grid of n x n points; default: 10 without --points."),
    ] = None,
    points: Annotated[
        list[str] | None, typer.Option(help="Point x,y in pixels of the first frame, or x,y@frame; may be repeated.")
    ] = None,
    model: TrackerOption = "bootstapnext",
    save: SaveVideoOption = None,
    tracks: Annotated[Path | None, typer.Option(help="Write the tracks to a .npz or .csv file.")] = None,
    trail: Annotated[int, typer.Option(min=0, help="Length of the drawn trails in frames.")] = 24,
    live: Annotated[bool, typer.Option("--live", help="Print each frame's points as they arrive.")] = False,
    latest: LatestOption = None,
    reconnect: ReconnectOption = 60.0,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    mode: ModeOption = "eager",
    as_json: JsonOption = False,
) -> None:
    """Track points through a video; write an annotated video, the tracks, or both.

    With --live, for streams: a live view on a terminal; otherwise, or with --json, one JSON line per frame. Memory is
    constant. Ctrl-C ends a stream and keeps the files saved so far. A camera or stream that is lost is opened again.
    """
    import numpy as np

    from trecvit.runtime.follow import follow, follow_live, grid_queries
    from trecvit.video.encode import SUFFIXES

    if not (live or save or tracks or as_json):
        raise ConfigError("expected an output: give --save out.mp4, --tracks out.npz, --live or --json")
    if live and tracks and tracks.suffix.lower() == ".npz":
        raise ConfigError(
            f"--live: expected a .csv file, which grows with the stream, got {tracks}, which is written at its end"
        )
    if latest and not live:
        raise ConfigError("--latest: expected --live too, whose points may be given at frames that are skipped")
    source = expand_one(source)
    check_file("--save", save, suffixes=SUFFIXES, inputs=[source, model])
    check_file("--tracks", tracks, suffixes=(".npz", ".csv"), inputs=[source, model])
    check_distinct(save=save, tracks=tracks)
    chosen = [_query(point) for group in points or () for point in group.split()]
    opening = open_source(source, latest=latest if live else False, reconnect_s=reconnect)
    with Recording() as recording, opening as video:
        info = video.info
        queries = np.array(chosen, np.float32).reshape(-1, 3)
        if grid or not chosen:
            queries = np.concatenate([queries, grid_queries(grid or 10, (info.height_px, info.width_px))])
        network = load_fast_tracker(model, device, dtype, mode)
        updates = (follow_live if live else follow)(network, video, queries)
        with _view(info, len(queries), live=live, as_json=as_json) as show:
            _keep(recording, updates, info, queries, save=save, tracks=tracks, trail=trail, show=show)
        recording.report(save, tracks)


def _query(point: str) -> tuple[float, float, float]:
    """Parse "x,y" or "x,y@frame" into (frame, y, x)."""
    position, _, frame = point.partition("@")
    try:
        x, y = (float(number) for number in position.split(","))
        return int(frame or 0), y, x
    except ValueError as error:
        raise ConfigError(
            f"--points: expected x,y or x,y@frame, such as 320,200.5 or 64,48@30, got {point!r}"
        ) from error


def _keep(
    recording: Recording,
    updates: Iterator[TrackUpdate],
    info: VideoInfo,
    queries: Queries,
    *,
    save: Path | None,
    tracks: Path | None,
    trail: int,
    show: Callable[[TrackUpdate], None],
) -> None:
    """Show and save updates until the stream ends or a signal or an error stops it."""
    from trecvit.runtime.follow import Trails, tracks_writer

    writing = tracks_writer(tracks, queries) if tracks else nullcontext()
    trails = Trails(len(queries), trail)
    with video_writer(save, info.average_fps) as video, writing as file, recording.kept():
        for update in recording.until_stopped(updates):
            show(update)
            if file:
                file.write(update)
            if video:
                video.write(trails.draw(update), update.time_s)
    if not recording.stopped and recording.last_frame is not None:
        num_unused = int((queries[:, 0] > recording.last_frame).sum())
        if num_unused:
            notify(
                f"{num_unused} of {len(queries)} points were not tracked: their frame is after the last of "
                f"{recording.last_frame + 1} frames"
            )


@contextmanager
def _view(info: VideoInfo, num_points: int, *, live: bool, as_json: bool) -> Iterator[Callable[[TrackUpdate], None]]:
    """Yield a function that shows updates: a bar; for live streams a panel on a terminal, else one JSON line each."""
    if not live and not as_json:
        with progress_bar("frames", info.stated_frames) as advance:
            yield lambda update: advance(update.index + 1)
        return
    if as_json or not sys.stdout.isatty():
        yield _print_line
        return
    from rich.color import Color
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

    from trecvit.runtime.follow import hue_of
    from trecvit.video.draw import rainbow

    length = full_bar()
    with live_panel(info.source, info.stated_frames) as draw_panel:

        def draw(update: TrackUpdate) -> None:
            table = Table("", "point", "x", "y", "certainty", box=None, pad_edge=False)
            for number, (x, y), visible, certainty in list(zip(update.ids, *update.points, strict=True))[:_ROWS]:
                colour = Color.from_rgb(*rainbow(hue_of(number, num_points)))
                mark = Text("●" if visible else "○", Style(color=colour))
                style = "" if visible else "dim"
                cells = (str(number), f"{x:.1f}", f"{y:.1f}", f"{certainty:4.0%} {probability_bar(certainty, length)}")
                table.add_row(mark, *(Text(cell, style) for cell in cells))
            if len(update.ids) > _ROWS:
                table.add_row("", f"and {len(update.ids) - _ROWS} more")
            draw_panel(table, update.index, update.time_s)

        yield draw


def _print_line(update: TrackUpdate) -> None:
    points = [
        {
            "id": number,
            "x": round(float(x), 3),
            "y": round(float(y), 3),
            "visible": bool(visible),
            "certainty": round(float(certainty), 4),
        }
        for number, (x, y), visible, certainty in zip(update.ids, *update.points, strict=True)
    ]
    line = {"frame": update.index, "time_s": round(update.time_s, 4), "points": points}
    print(json.dumps(line), flush=True)
