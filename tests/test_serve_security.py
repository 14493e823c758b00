"""What SECURITY.md promises, one by one: who may use a server, and what hostile clients can do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import hostile
import PIL.Image
import pytest
from serving import images, served_models, small_server
from test_serve import eventually, fetch
from test_serve_protocol import jpeg
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from trecvit.errors import ConfigError
from trecvit.serve.client import Client
from trecvit.serve.guard import Access
from trecvit.serve.protocol import JPEG, RGB8, FrameHeader, ProtocolError

TOKEN = "a-token-of-the-tests"
HELLO = '{"type":"hello","model":"classes","policy":"all"}'


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with small_server() as address:
        yield address


@pytest.fixture(scope="module")
def locked() -> Iterator[str]:
    with small_server(token=TOKEN) as address:
        yield address


def scope(path: str = "/v1/models", **headers: str) -> Any:
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "headers": pairs}


def code_of(access: Access, request: Any) -> str:
    try:
        access.check(request)
    except ProtocolError as error:
        return error.code
    return "served"


# ---- who may use it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "127.0.0.1:8000"}, "served"),
        ({"host": "LOCALHOST"}, "served"),
        ({"host": "[::1]:8000"}, "served"),
        ({"host": "cameras.example:8000"}, "served"),
        ({}, "host"),
        ({"host": ""}, "host"),
        ({"host": "evil.example"}, "host"),
        ({"host": "127.0.0.1.evil.example"}, "host"),
        ({"host": "127.0.0.1:80@evil.example"}, "host"),
        ({"host": "evil.example:127.0.0.1"}, "host"),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, "served"),
        ({"host": "cameras.example", "origin": "https://cameras.example"}, "served"),
        ({"host": "127.0.0.1:8000", "origin": "https://pages.example"}, "served"),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, "origin"),
        ({"host": "127.0.0.1:8000", "origin": "http://evil.example"}, "origin"),
        ({"host": "127.0.0.1:8000", "origin": "https://pages.example.evil.example"}, "origin"),
        ({"host": "127.0.0.1:8000", "origin": "null"}, "origin"),
        ({"host": "127.0.0.1:8000", "origin": ""}, "origin"),
        ({"host": "127.0.0.1:8000", "origin": "file://127.0.0.1:8000"}, "origin"),
    ],
)
def test_hosts_and_origins(headers, code):
    access = Access("127.0.0.1", hosts=["Cameras.example"], origins=["https://pages.example"])
    assert code_of(access, scope(**headers)) == code


def test_a_header_given_twice_is_refused():
    twice = scope(host="localhost")
    twice["headers"] *= 2
    assert code_of(Access("127.0.0.1"), twice) == "host"
    origins = scope(host="localhost", origin="http://localhost")
    origins["headers"].append((b"origin", b"http://evil.example"))
    assert code_of(Access("127.0.0.1"), origins) == "origin"


@pytest.mark.parametrize(
    ("path", "authorization", "code"),
    [
        ("/v1/models", f"Bearer {TOKEN}", "served"),
        ("/v1/models", f"bearer  {TOKEN}", "served"),
        ("/v1/models", None, "token"),
        ("/v1/models", "Bearer ", "token"),
        ("/v1/models", f"Bearer {TOKEN[:-1]}", "token"),
        ("/v1/models", f"Bearer {TOKEN}x", "token"),
        ("/v1/models", "Bearer \u00e9", "token"),
        ("/v1/models", f"Basic {TOKEN}", "token"),
        ("/metrics", None, "token"),
        ("/openapi.json", None, "token"),
        ("/v1/sessions/healthz", None, "token"),
        ("//v1/models", None, "token"),
        ("/live/../v1/models", None, "token"),
        ("/", None, "served"),
        ("/live/main.js", None, "served"),
        ("/browser/", None, "served"),
        ("/healthz", None, "served"),
    ],
)
def test_tokens(path, authorization, code):
    headers = {} if authorization is None else {"authorization": authorization}
    assert code_of(Access("127.0.0.1", TOKEN), scope(path, host="localhost", **headers)) == code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"host": "192.168.1.5"}, "--token-file"),
        ({"host": "0.0.0.0"}, "--token-file"),
        ({"host": "0.0.0.0", "token": TOKEN}, "--allow-host"),
        ({"host": "::", "token": TOKEN}, "--allow-host"),
        ({"host": "127.0.0.1", "token": "short"}, "16 to 200"),
        ({"host": "127.0.0.1", "token": "with spaces in the token"}, "16 to 200"),
        ({"host": "127.0.0.1", "origins": ["*"]}, "--allow-origin"),
        ({"host": "127.0.0.1", "origins": ["https://a/b"]}, "--allow-origin"),
    ],
)
def test_servers_that_would_be_open_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        Access(**arguments)


def test_another_address_needs_a_token_and_is_a_host():
    access = Access("192.168.1.5", TOKEN)
    assert code_of(access, scope("/", host="192.168.1.5:8000")) == "served"
    assert code_of(access, scope("/v1/models", host="192.168.1.5:8000")) == "token"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Origin": "null"}, 403),
    ],
)
def test_a_foreign_page_is_refused_before_its_socket_is_accepted(url, headers, status):
    got, content, _ = fetch(url + "v1/models", **headers)
    assert (got, set(content)) == (status, {"error"})
    address = url.replace("http", "ws") + "v1/stream"
    if "Host" in headers:
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        address = f"ws://evil.example:{port}/v1/stream"
        options: dict[str, Any] = {"sock": socket.create_connection((host, int(port)))}
    else:
        options = {"additional_headers": headers}
    refused = pytest.raises(InvalidStatus, match=str(status))
    with refused, connect(address, subprotocols=["trecvit.v1"], proxy=None, **options):
        pass


def test_a_locked_server_needs_its_token(locked):
    address = locked.replace("http", "ws") + "v1/stream"
    for token in (None, "another-token-of-16"):
        with pytest.raises(InvalidStatus, match="401"):
            Client(locked, "classes", token=token)
        offered = ["trecvit.v1"] + ([f"trecvit.token.{token}"] if token else [])
        refused = pytest.raises(InvalidStatus, match="401")
        with refused, connect(address, subprotocols=offered):
            pass
    with Client(locked, "classes", token=TOKEN) as client:
        assert client.step(images(1)[0]).seen == 1
    with connect(address, subprotocols=["trecvit.v1", f"trecvit.token.{TOKEN}"]) as browser:
        assert browser.subprotocol == "trecvit.v1", "the token is not repeated"
        browser.send(HELLO)
        assert json.loads(browser.recv())["type"] == "ready"
    for path, status in (("v1/models", 401), ("metrics", 401), ("", 200), ("live/main.js", 200), ("healthz", 200)):
        assert fetch(locked + path)[0] == status
    assert fetch(locked + "v1/models", Authorization=f"Bearer {TOKEN}")[0] == 200


@pytest.mark.parametrize(
    "path", ["live/../../protocol.py", "live/..%2f..%2fprotocol.py", "live//etc/passwd", "live/%00"]
)
def test_pages_are_their_folder_only(url, path):
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(f"GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        status = client.recv(100)
    assert b" 404 " in status or b" 400 " in status


def test_responses_have_the_headers_that_confine_a_page(url):
    for path in ("", "v1/models", "nothing", "live/main.js"):
        headers = fetch(url + path)[2]
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in headers
        assert "server" not in headers


# ---- hostile clients -----------------------------------------------------------------------------------------------


def raw(url: str) -> Any:
    return connect(url.replace("http", "ws") + "v1/stream", subprotocols=["trecvit.v1"], compression=None)


def ending(socket_: Any) -> tuple[str | None, int]:
    """The code of the last error message, and that of the close."""
    code = None
    try:
        while True:
            message = json.loads(socket_.recv(10))
            code = message.get("code", code)
    except ConnectionClosed as closed:
        return code, closed.rcvd.code if closed.rcvd else 1006


PIXELS = images(1)[0].tobytes()
PICTURE = jpeg(30, 20)


def frame(number: int, payload: bytes = PIXELS, *, codec: int = RGB8, width: int = 30, height: int = 20) -> bytes:
    return FrameHeader(codec, number, 0, width, height).pack() + payload


@pytest.mark.parametrize(
    ("messages", "code", "close"),
    [
        ([b"no frame"], "frame", 1008),
        ([frame(0, PIXELS[:-1])], "frame", 1008),
        ([frame(0, PICTURE[:200], codec=JPEG)], "jpeg", 1008),
        ([frame(0, PICTURE, codec=JPEG, width=31)], "jpeg", 1008),
        ([frame(0, PICTURE, codec=JPEG, width=10_000, height=10_000)], "pixels", 1008),
        (["{}"], "message", 1008),
        (["[" * 3000], "message", 1008),
        ([HELLO], "hello", 1008),
        ([frame(number) for number in range(40)], "credit", 1008),
        (['{"type":"ack","frame":0}'] * 60, "rate", 1013),
    ],
    ids=["bytes", "short", "truncated", "size", "100 megapixels", "object", "nested", "hello", "credit", "rate"],
)
def test_a_client_that_breaks_the_protocol_is_closed_and_others_go_on(messages, code, close):
    with small_server(messages_per_s=50) as url, Client(url, "classes") as good:
        with raw(url) as bad:
            bad.send(HELLO)
            assert json.loads(bad.recv())["type"] == "ready"
            try:
                for message in messages:
                    bad.send(message)
            except ConnectionClosed:
                pass
            assert ending(bad) == (code, close)
        assert good.step(images(1)[0]).seen == 1
        eventually(lambda: "trecvit_connected_sessions 1.0" in fetch(url + "metrics")[1])


def test_a_message_over_the_limit_is_not_read():
    with small_server(max_frame_bytes=5000) as url, raw(url) as bad:
        bad.send(HELLO)
        assert json.loads(bad.recv())["max_bytes"] == 5000
        bad.send(frame(0, bytes(6000)))
        assert ending(bad)[1] == 1009


@pytest.mark.parametrize("message", [None, b"a frame first", '{"type":"ack","frame":1}', "hello"])
def test_a_socket_without_a_hello_is_closed(message):
    with small_server(hello_s=0.3) as url, raw(url) as bad:
        if message is not None:
            bad.send(message)
        assert ending(bad)[1] == 1008


def test_a_silent_session_is_closed():
    with small_server(idle_s=0.3) as url, raw(url) as bad:
        bad.send(HELLO)
        assert ending(bad) == ("idle", 1008)


def is_cut_off(client: socket.socket) -> bool:
    try:
        return client.recv(100) == b""
    except ConnectionError:
        return True


def test_a_head_that_does_not_end_is_cut_off():
    with small_server(hello_s=0.4, max_connections=8) as url:
        host, port = url.removeprefix("http://").rstrip("/").split(":")
        slow = [socket.create_connection((host, int(port)), timeout=10) for _ in range(8)]
        for client in slow:
            client.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        with socket.create_connection((host, int(port)), timeout=10) as ninth:
            assert is_cut_off(ninth)
        start_s = time.monotonic()
        for client in slow:
            assert is_cut_off(client)
            client.close()
        assert time.monotonic() - start_s < 10
        eventually(lambda: fetch(url + "healthz")[0] == 200)


def test_errors_of_the_server_say_nothing_of_its_machine(monkeypatch):
    models = served_models()

    def fail(*_: Any) -> Any:
        raise RuntimeError("/secret/place")

    monkeypatch.setattr(models[0], "step", fail)
    with small_server(models=models) as url, raw(url) as client:
        client.send(HELLO)
        json.loads(client.recv())
        client.send(frame(0))
        message = client.recv(10)
        assert json.loads(message)["code"] == "internal"
        assert "secret" not in message
        assert ending(client)[1] == 1011


def test_a_bomb_of_many_scans_is_refused_at_once(url):
    file = io.BytesIO()
    PIL.Image.new("RGB", (1400, 1400)).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    scan = content[content.rindex(b"\xff\xda") : -2]
    with raw(url) as bad:
        bad.send(HELLO)
        json.loads(bad.recv())
        bad.send(frame(0, content[:-2] + scan * 500 + b"\xff\xd9", codec=JPEG, width=1400, height=1400))
        assert ending(bad) == ("jpeg", 1008)


def median_latency_s(client: Client, seconds: float) -> float:
    """From sending a frame to its answer, one at a time."""
    picture = images(1)[0]
    end_s, times_s = time.perf_counter() + seconds, []
    while time.perf_counter() < end_s:
        start_s = time.perf_counter()
        client.step(picture)
        times_s.append(time.perf_counter() - start_s)
        time.sleep(0.01)
    return statistics.median(times_s)


def held() -> Counter[str]:
    """What the server of this process holds: objects for each of its clients, files, threads."""
    gc.collect()
    kinds = ("Limited", "WebSocketsSansIOProtocol", "Connection", "Session", "_SelectorSocketTransport", "Task")
    found = Counter(name for item in gc.get_objects() if (name := type(item).__name__) in kinds)
    found["threads"] = threading.active_count()
    with contextlib.suppress(OSError):
        found["files"] = len(os.listdir("/proc/self/fd"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["connections", "slow heads", "truncated", "stated 100 megapixels", "hidden 100 megapixels", "flood"],
)
def test_hostile_clients_do_not_slow_the_others_down_and_leave_nothing(tmp_path, monkeypatch, kind):
    resource = pytest.importorskip("resource")
    picture = tmp_path / "large.jpg"
    PIL.Image.effect_noise((1400, 1400), 80).convert("RGB").save(picture, quality=60)
    failures: list[Any] = []
    monkeypatch.setattr(asyncio.BaseEventLoop, "call_exception_handler", lambda _, context: failures.append(context))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, limits[1]), limits[1]))  # what most systems permit
    try:
        with small_server(hello_s=1.0) as url, Client(url, "classes") as good:
            median_latency_s(good, 0.3)
            before = held()
            alone_s = median_latency_s(good, 1.0)
            command = [sys.executable, hostile.__file__, kind, url, str(picture)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as attacker:
                try:
                    assert attacker.stdout is not None
                    first = attacker.stdout.readline()
                    attacked_s = median_latency_s(good, 2.0)
                finally:
                    attacker.kill()
                attempts = int([first, *attacker.stdout.read().splitlines()][-1])
            assert attempts >= (hostile.MANY if kind == "connections" else 5)
            assert attacked_s < 2 * alone_s + 0.005
            eventually(lambda: not held() - before - Counter(dict.fromkeys(before, 2)))
            assert good.step(images(1)[0]).after is not None
        assert not failures, "such as no more files to accept a connection with"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
