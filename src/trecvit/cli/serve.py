"""The command that serves models to browsers and other clients."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trecvit.cli.app import USE, app
from trecvit.cli.options import DeviceOption, DtypeOption, ModeOption, absolute_model, fast, gpus_of_actor
from trecvit.cli.terminal import download_bar, notify
from trecvit.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from trecvit.serve.batching import ModelStreams, Served

_TOKEN_VARIABLE = "TRECVIT_SERVE_TOKEN"


@app.command(rich_help_panel=USE)
def serve(
    models: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Model to serve; may be repeated. Default: motions and points."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; all but loopback need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 is any free one.")] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help=f"File with the bearer token of clients, or set {_TOKEN_VARIABLE}.")
    ] = None,
    hosts: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Further name of this machine in clients' addresses.")
    ] = None,
    origins: Annotated[
        list[str] | None, typer.Option("--allow-origin", help="Origin of further pages that may use the server.")
    ] = None,
    folder: Annotated[Path | None, typer.Option("--states", help="Folder from which sessions are resumed.")] = None,
    max_points: Annotated[int, typer.Option(min=1, max=256, help="Points of each tracked stream.")] = 16,
    max_sessions: Annotated[int, typer.Option(min=1, help="Streams at a time.")] = 64,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = "float32",
    mode: ModeOption = "eager",
    on_ray: Annotated[bool, typer.Option("--ray", help="Run the models in actors of a Ray cluster.")] = False,
    actors: Annotated[
        int | None, typer.Option(min=1, help="With --ray: actors, each with all models and a CPU or GPU. Default: 2.")
    ] = None,
) -> None:
    """Serve a live page and an interface for programs: many streams, stepped together.

    Prints its address: open it in a browser and point a camera at something. The protocol for programs is in
    docs/serving.md. Ctrl-C ends it. With --ray, streams outlive the death of an actor.
    """
    run = _server()
    from trecvit.serve.app import create_app
    from trecvit.serve.guard import Access
    from trecvit.serve.sessions import Limits

    access = Access(host, _token(token_file), hosts or (), origins or ())
    if actors is not None and not on_ray:
        raise ConfigError("--actors: expected it with --ray, got it alone; add --ray")
    names = [absolute_model(name) for name in models or ["motions", "points"]]
    load = partial(_load, names, max_points, device, dtype, mode)
    limits = Limits(max_sessions=max_sessions)
    loading = _in_actors(load, actors or 2, gpus_of_actor(device)) if on_ray else nullcontext(load())
    with run.bind(host, port) as listener, loading as loaded:
        application = create_app(loaded, access, limits, folder=folder)
        print(run.address_of(listener), flush=True)
        run.serve(application, listener, limits)


def _server() -> Any:
    try:
        from trecvit.serve import run
    except ImportError as exc:
        if exc.name is None or exc.name.startswith("trecvit"):
            raise
        raise MissingPackageError(exc.name, needed_for="trecvit serve", extra="serve") from exc
    return run


@contextmanager
def _in_actors(
    load: Callable[[], Sequence[Served[Any, Any]]], count: int, num_gpus: int
) -> Iterator[Sequence[ModelStreams]]:
    from trecvit.runtime.cluster import cluster
    from trecvit.serve.actors import Actors

    with cluster(), Actors(load, count, num_gpus=num_gpus, report=notify) as actors:
        yield actors.models


def _token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get(_TOKEN_VARIABLE)
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as exc:
        raise ConfigError(f"--token-file {path}: expected a file with a token, got: {exc}") from exc


def _load(names: list[str], max_points: int, device: str, dtype: str, mode: str) -> list[Served[Any, Any]]:
    """Load the models; a folder is served under its last name."""
    from trecvit.accelerate.exported import is_exported
    from trecvit.model.tracker import PointTracker
    from trecvit.model.trecvit import TRecViT
    from trecvit.serve.batching import ServedClassifier, ServedTracker
    from trecvit.weights.load import load

    served: dict[str, Served[Any, Any]] = {}
    for source in names:
        name = Path(source).name or source
        if name in served:
            raise ConfigError(f"--model {source}: expected models of different names, got two named {name}")
        if is_exported(source):
            raise ConfigError(f"--model {source}: expected a model, got an exported one, whose batch size is fixed")
        with download_bar() as progress:
            network = load(source, device=device, progress=progress)
        if isinstance(network, TRecViT):
            served[name] = ServedClassifier(name, fast(network, dtype, mode))
        elif isinstance(network, PointTracker):
            tracker_mode = "eager" if mode == "openvino" else mode
            served[name] = ServedTracker(name, fast(network, dtype, tracker_mode), max_points)
        else:
            raise ConfigError(f"--model {source}: expected a classifier or tracker, got a {type(network).__name__}")
    return list(served.values())
