"""The server's application: its routes, and the models, sessions and threads behind them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp
from starlette.websockets import WebSocket

from trecvit.serve.batching import Batcher, ModelStreams, Served
from trecvit.serve.connection import Connection
from trecvit.serve.guard import STATUS, Access, Guard, refuse
from trecvit.serve.metrics import Metrics
from trecvit.serve.openapi import description
from trecvit.serve.protocol import PROTOCOL, CloseCode, ProtocolError
from trecvit.serve.saved import SessionFolder
from trecvit.serve.sessions import Limits, Session, Sessions
from trecvit.serve.uploads import Uploads

_PAGE = Path(__file__).parent / "page"
_SWEEP_S = 1.0
_DECODERS = 2

_NOT_BUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>trecvit</title>
<p>The page that runs the model in the browser was not built into this installation.</p>
<p><a href="/">The live page</a> runs the model on the server.</p></html>
"""


@dataclass(frozen=True)
class Parts:
    """What the routes of one server share.

    Attributes:
        batchers: By the models' names.
        sessions: All sessions.
        decoders: Where frames are decoded.
        metrics: Counters.
        limits: Limits.
    """

    batchers: Mapping[str, ModelStreams]
    sessions: Sessions
    decoders: ThreadPoolExecutor
    metrics: Metrics
    limits: Limits


def create_app(
    models: Sequence[Served[Any, Any] | ModelStreams],
    access: Access,
    limits: Limits | None = None,
    *,
    folder: Path | None = None,
) -> ASGIApp:
    """Create the application of a server.

    Args:
        models: At least one, each with a name of its own; those that are no `ModelStreams` yet get a batcher here.
        access: Who may use it.
        limits: By default those of `Limits`.
        folder: Where sessions are saved, so that another process can resume them.

    Raises:
        BusyError: Another process uses the folder.
        StorageError: The folder cannot be written.
    """
    limits = limits or Limits()
    metrics = Metrics()
    saved = None if folder is None else SessionFolder(folder, max_bytes=limits.folder_bytes)

    def observer(name: str) -> Callable[[int, float], None]:
        step, batch = metrics.step.labels(name), metrics.batch.labels(name)

        def observe(size: int, seconds: float) -> None:
            step.observe(seconds)
            batch.observe(size)

        return observe

    batchers: dict[str, ModelStreams] = {}
    for model in models:
        batcher = model if isinstance(model, ModelStreams) else Batcher(model)
        batcher.observe = observer(batcher.served.name)
        batchers[batcher.served.name] = batcher
    sessions = Sessions(batchers, limits, saved, evicted=metrics.evicted.inc, failed=metrics.unexpected)
    decoders = ThreadPoolExecutor(_DECODERS, thread_name_prefix="decoder")
    metrics.gauge("trecvit_sessions", "Sessions in memory.", lambda: len(sessions))
    metrics.gauge("trecvit_connected_sessions", "Sessions with a socket.", lambda: sessions.num_connected)
    metrics.gauge("trecvit_state_bytes", "Size of all states.", lambda: sessions.state_bytes)
    parts = Parts(batchers, sessions, decoders, metrics, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        sweeper = asyncio.create_task(_sweep(sessions))
        try:
            yield
        finally:
            sweeper.cancel()
            await sessions.close()
            for batcher in batchers.values():
                batcher.close()
            decoders.shutdown()

    app = Starlette(
        routes=_routes(parts),
        lifespan=lifespan,
        exception_handlers={
            ProtocolError: _on_error,
            404: _on_missing,
            405: _on_method,
            Exception: _on_failure(metrics),
        },
    )
    return Guard(app, access)


async def _sweep(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(_SWEEP_S)
        sessions.sweep()


def _routes(parts: Parts) -> list[BaseRoute]:
    """Return all routes; those under /v1 and the documents of operators are described in `openapi`."""
    uploads = Uploads(parts.batchers, parts.limits, parts.metrics)
    api = [
        Route("/v1/classify", uploads.classify, methods=["POST"]),
        Route("/v1/track", uploads.track, methods=["POST"]),
        Route("/v1/models", _models(parts)),
        Route("/v1/sessions/{id}", _session(parts), methods=["GET", "DELETE"]),
        Route("/healthz", _healthz),
        Route("/readyz", _readyz(parts)),
        Route("/metrics", _metrics(parts)),
        Route("/openapi.json", _openapi),
    ]
    built = (_PAGE / "browser" / "models" / "motions" / "step.onnx").exists()  # scripts/page builds it
    browser: BaseRoute = (
        Mount("/browser", StaticFiles(directory=_PAGE / "browser", html=True))
        if built
        else Route("/browser/", _not_built)
    )
    return [
        *api,
        WebSocketRoute("/v1/stream", _stream(parts)),
        Route("/", _live_page),
        Mount("/live", StaticFiles(directory=_PAGE / "live")),
        browser,
    ]


def _stream(parts: Parts) -> Callable[[WebSocket], Any]:
    async def stream(socket: WebSocket) -> None:
        if PROTOCOL not in socket.scope["subprotocols"]:
            await refuse(socket.scope, socket._send, ProtocolError("protocol", f"the subprotocol {PROTOCOL}", "none"))
            return
        await socket.accept(PROTOCOL)
        await Connection(socket, parts.sessions, parts.decoders, parts.metrics).run()

    return stream


def _models(parts: Parts) -> Callable[[Request], Any]:
    async def models(_request: Request) -> Response:
        return JSONResponse({"models": [_model(batcher) for batcher in parts.batchers.values()]})

    return models


def _model(batcher: ModelStreams) -> dict[str, Any]:
    served = batcher.served
    return {
        "name": served.name,
        "task": "track" if served.max_points else "classify",
        "labels": served.labels,
        "image_size": served.image_size,
        "max_points": served.max_points,
        "state_bytes": batcher.state_bytes,
    }


def _session(parts: Parts) -> Callable[[Request], Any]:
    async def session(request: Request) -> Response:
        found: Session | None = parts.sessions.find(
            request.path_params["id"], request.headers.get("x-session-token", "")
        )
        if found is None:  # whether it exists is the owner's knowledge
            raise ProtocolError("missing", "the id of a session in memory, and its token in X-Session-Token", "others")
        if request.method == "DELETE":
            if found.connection is not None:
                await found.connection.stop(CloseCode.GOING_AWAY, "the session was deleted")
            await parts.sessions.delete(found)
            return Response(status_code=204)
        return JSONResponse(found.to_dict())

    return session


async def _healthz(_request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _readyz(parts: Parts) -> Callable[[Request], Any]:
    async def readyz(_request: Request) -> Response:
        is_ready = all(batcher.is_alive for batcher in parts.batchers.values())
        return JSONResponse({"status": "ready" if is_ready else "broken"}, 200 if is_ready else 503)

    return readyz


def _metrics(parts: Parts) -> Callable[[Request], Any]:
    async def metrics(_request: Request) -> Response:
        content, content_type = parts.metrics.text()
        return Response(content, headers={"Content-Type": content_type})

    return metrics


async def _openapi(_request: Request) -> Response:
    return JSONResponse(description())


async def _live_page(_request: Request) -> Response:
    return FileResponse(_PAGE / "live" / "index.html")


async def _not_built(_request: Request) -> Response:
    return Response(_NOT_BUILT, 404, media_type="text/html")


# ---- errors --------------------------------------------------------------------------------------------------------


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ProtocolError), "registered for it"
    return JSONResponse({"error": error.to_dict()}, STATUS.get(error.code, 422))


async def _on_missing(_request: Request, _error: Exception) -> Response:
    error = ProtocolError("missing", "a path of /openapi.json", "another")
    return JSONResponse({"error": error.to_dict()}, 404)


async def _on_method(request: Request, error: Exception) -> Response:
    content = ProtocolError("method", "a method of this path, see /openapi.json", request.method[:20]).to_dict()
    headers = getattr(error, "headers", None)
    return JSONResponse({"error": content}, 405, headers=headers)


def _on_failure(metrics: Metrics) -> Callable[[Request, Exception], Any]:
    async def on_failure(_request: Request, error: Exception) -> Response:
        metrics.unexpected(error)
        content = ProtocolError("internal", "a result", "an error in the server").to_dict()
        return JSONResponse({"error": content}, 500)

    return on_failure
