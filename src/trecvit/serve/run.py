"""A server in this process: its socket, uvicorn, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from trecvit.errors import ConfigError
from trecvit.serve.guard import limited_protocol
from trecvit.serve.sessions import Limits

# Connections that are accepted before the limit is applied to them; with those of the limit, fewer than 1,024 files.
_BACKLOG = 128


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 is any free one.

    Raises:
        ConfigError: The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as exc:
        raise ConfigError(f"--host {host} --port {port}: expected a free address, got: {exc.strerror}") from exc


def address_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve(app: ASGIApp, listener: socket.socket, limits: Limits) -> None:
    """Serve until SIGINT or SIGTERM, which is raised again at the end."""
    _server(app, limits).run(sockets=[listener])


@contextmanager
def serving(app: ASGIApp, limits: Limits | None = None) -> Iterator[str]:
    """Serve in a thread on a free port of 127.0.0.1, for examples and tests; yields the URL."""
    listener = bind("127.0.0.1", 0)
    server = _server(app, limits or Limits())
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(server._serve(sockets=[listener]),))
    thread.start()
    try:
        yield address_of(listener)
    finally:
        server.should_exit = True
        thread.join()
        loop.close()


def _is_no_refusal(record: logging.LogRecord) -> bool:
    """uvicorn reports each handshake that the application refuses as an error."""
    return "without completing handshake" not in record.msg


def _server(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    logging.getLogger("uvicorn.error").addFilter(_is_no_refusal)
    options: dict[str, Any] = {
        "http": limited_protocol(limits),
        "ws": "websockets-sansio",
        "ws_max_size": limits.max_frame_bytes,
        "ws_per_message_deflate": False,  # pictures are compressed already
        "backlog": _BACKLOG,
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_graceful_shutdown": 5,
    }
    return uvicorn.Server(uvicorn.Config(app, **options))
