"""Checks of every request before the application sees it: Host, Origin, bearer token; and headers of every response."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from trecvit.errors import ConfigError
from trecvit.serve.protocol import TOKEN_PREFIX, ProtocolError
from trecvit.serve.sessions import Limits

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,200}")
# Pages and health: nothing of any session.
_OPEN = re.compile(r"(?!.*\.\.)(/|/healthz|/readyz|/(live|browser)(/[\w.-]*)*)", re.ASCII)

_POLICY = {
    "default-src": "'self'",
    "img-src": "'self' blob: data:",
    "media-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
_BROWSER_POLICY = {"script-src": "'self' 'wasm-unsafe-eval'", "worker-src": "'self' blob:"}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Cache-Control": "no-cache",
}


class Access:
    """Who may use a server.

    Args:
        host: Address that the server listens on.
        token: Bearer token; mandatory unless `host` is a loopback address.
        hosts: Further names under which clients reach it, as in their Host header without the port.
        origins: Further origins of pages that may use it, such as "https://example.org".

    Raises:
        ConfigError: An address other than loopback without a token, an address of all interfaces without names, a
            token that is too short or holds other characters than letters, digits and `._~-`, or a malformed origin.
    """

    def __init__(
        self, host: str, token: str | None = None, hosts: Iterable[str] = (), origins: Iterable[str] = ()
    ) -> None:
        if token is not None and not TOKEN.fullmatch(token):
            raise ConfigError(
                "token: expected 16 to 200 letters, digits and ._~-, got another; see `openssl rand -hex 16`"
            )
        if not is_loopback(host) and token is None:
            raise ConfigError(
                f"--host {host}: expected a token for an address that others can reach, got none; put one into a file "
                "(openssl rand -hex 16 > token) and give --token-file token"
            )
        names = {name.lower() for name in hosts}
        if is_wildcard(host):
            if not names:
                raise ConfigError(
                    f"--host {host}: expected the names under which clients reach this machine, got none; give "
                    "--allow-host NAME for each"
                )
        elif ":" in host:
            names.add(f"[{host.lower()}]")
        else:
            names.add(host.lower())
        for origin in origins:
            if not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ConfigError(f"--allow-origin: expected one such as https://example.org, got {origin!r}")
        self._hosts = LOOPBACK_NAMES | names
        self._origins = frozenset(origins)
        self._token = token

    def check(self, scope: Scope) -> None:
        """Raise ProtocolError with the code "host", "origin" or "token" unless a request may be served."""
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        host = re.sub(r":\d*$", "", hosts[0]).lower() if len(hosts) == 1 else ""
        if host not in self._hosts:
            raise ProtocolError("host", "a host that this server is known by", "another; see --allow-host")
        if origins and (len(origins) > 1 or not self._is_allowed(origins[0], hosts[0])):
            raise ProtocolError("origin", "a page of this server", "another; see --allow-origin")
        if self._token is not None and not _OPEN.fullmatch(scope["path"]) and not self._has_token(scope, headers):
            raise ProtocolError("token", "the server's bearer token", "none or another")

    def _is_allowed(self, origin: str, host: str) -> bool:
        parts = urlsplit(origin)
        is_own = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
        return is_own or origin in self._origins

    def _has_token(self, scope: Scope, headers: Headers) -> bool:
        assert self._token is not None, "the caller checks"
        scheme, _, given = headers.get("authorization", "").partition(" ")
        tokens = [given.strip()] if scheme.lower() == "bearer" else []
        offered = scope.get("subprotocols", ())
        tokens += [name.removeprefix(TOKEN_PREFIX) for name in offered if name.startswith(TOKEN_PREFIX)]
        return any(hmac.compare_digest(token.encode(), self._token.encode()) for token in tokens)


STATUS = {"host": 421, "origin": 403, "token": 401, "full": 503, "busy": 503, "bytes": 413, "missing": 404}
"""HTTP status by error code; 422 for others."""


class Guard:
    """Application that passes a request to another one if `Access` permits it.

    Args:
        app: The other application.
        access: Who may use it.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            self._access.check(scope)
        except ProtocolError as error:
            await refuse(scope, send, error)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                policy = _POLICY | (_BROWSER_POLICY if scope["path"].startswith("/browser") else {})
                headers["Content-Security-Policy"] = "; ".join(f"{name} {value}" for name, value in policy.items())
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        await self._app(scope, receive, send_guarded)


async def refuse(scope: Scope, send: Send, error: ProtocolError) -> None:
    """Answer a request, or the handshake of a socket before it is accepted, with an error."""
    body = json.dumps({"error": error.to_dict()}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.code == "token":
        headers.append((b"www-authenticate", b"Bearer"))
    kind = "websocket.http" if scope["type"] == "websocket" else "http"
    start: dict[str, Any] = {"type": f"{kind}.response.start", "status": STATUS.get(error.code, 422)}
    await send({**start, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Return whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Return whether an address stands for all interfaces."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return not host


def limited_protocol(limits: Limits) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with a limit of connections and a time for the head of each request.

    Without these, clients that send a head byte by byte hold their connections for ever.
    """

    class Limited(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > limits.max_connections:
                transport.abort()
            else:
                self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def _watch(self) -> None:
            is_reading_head = self.conn.their_state is h11.IDLE and self.transport.get_protocol() is self
            if not is_reading_head:
                self._cancel()
            elif self._timer is None:
                self._timer = self.loop.call_later(limits.hello_s, self.transport.abort)

        def _cancel(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Limited
