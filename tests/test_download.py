"""Downloads against a real server on this machine that breaks off, lies, hangs, changes its file and refuses."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trecvit.download import cache_folder, download
from trecvit.errors import CheckpointError, ConfigError, DownloadError, InputError
from trecvit.weights.zoo import ZOO, ZooEntry, zoo_path

download_module = importlib.import_module("trecvit.download")
zoo_module = importlib.import_module("trecvit.weights.zoo")

BODY = bytes(range(256)) * 40
OTHER = BODY[::-1]
DIGEST = hashlib.sha256(BODY).hexdigest()
LONGEST_HANG_S = 20.0

CHILD = """
import sys
from pathlib import Path
from trecvit.download import download
print("ready", flush=True)
download(sys.argv[1], Path(sys.argv[2]))
"""


@dataclass
class Site:
    """How the server behaves. Lists speak of the requests in order; past their end all is well."""

    body: bytes = BODY
    etag: str | None = '"v1"'
    modified: str | None = None
    cuts: list[int | None] = field(default_factory=list)  # the connection ends after so many bytes of the body
    statuses: list[int] = field(default_factory=list)  # 200 is "as usual"
    honours_range: bool = True
    honours_if_range: bool = True
    chunked: bool = False
    says_length: bool = True
    extra_length: int = 0  # a lie
    pause_at: int | None = None  # waits for `go_on` after so many bytes of the body
    redirect: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[int], None] | None = None  # called with the number of the request, may change the site
    go_on: threading.Event = field(default_factory=threading.Event)
    seen: list[dict[str, str]] = field(default_factory=list)
    sent_bytes: int = 0

    @property
    def ranges(self) -> list[str | None]:
        return [request.get("range") for request in self.seen]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        site = self.server.site
        self.close_connection = True
        with self.server.lock:
            number = len(site.seen)
            site.seen.append({"path": self.path} | {key.lower(): value for key, value in self.headers.items()})
        if site.before:
            site.before(number)
        status = site.statuses[number] if number < len(site.statuses) else 200
        if site.redirect and self.path != "/moved":
            self.answer(302, {"Location": site.redirect, "Content-Length": "0"})
        elif status != 200:
            self.answer(status, {"Content-Length": "4", **site.headers})
            self.wfile.write(b"sigh")
        else:
            self.send_file(site, site.cuts[number] if number < len(site.cuts) else None)

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def send_file(self, site: Site, cut: int | None) -> None:
        body, start = site.body, 0
        validators = {"ETag": site.etag, "Last-Modified": site.modified}
        headers = {key: value for key, value in validators.items() if value} | site.headers
        condition = self.headers.get("If-Range")
        applies = not site.honours_if_range or condition is None or condition in (site.etag, site.modified)
        if site.honours_range and applies and (asked := self.headers.get("Range")):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.answer(416, headers | {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        rest = body[start:]
        if site.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif site.says_length:
            headers["Content-Length"] = str(len(rest) + site.extra_length)
        self.answer(206 if "Content-Range" in headers else 200, headers)
        if cut is not None:
            rest = rest[:cut]
        halves = [rest] if site.pause_at is None else [rest[: site.pause_at], rest[site.pause_at :]]
        for number, piece in enumerate(halves):
            if number:
                site.go_on.wait(LONGEST_HANG_S)
            self.send_piece(site, piece)
        if site.chunked and cut is None:
            self.wfile.write(b"0\r\n\r\n")
        return None

    def send_piece(self, site: Site, piece: bytes) -> None:
        if site.chunked and piece:
            piece = b"%x\r\n%b\r\n" % (len(piece), piece)
        self.wfile.write(piece)
        self.wfile.flush()
        with self.server.lock:
            site.sent_bytes += len(piece)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.site = Site()
        self.lock = threading.Lock()

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is part of the game."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.npz"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def site(server: Server) -> Iterator[Site]:
    server.site = Site()
    yield server.site
    server.site.go_on.set()


@pytest.fixture(autouse=True)
def _quick_and_direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(download_module, "_POLL_S", 0.01)
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "deep" / "weights.npz"


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


def assert_alone(target: Path, body: bytes = BODY) -> None:
    assert target.read_bytes() == body
    assert os.listdir(target.parent) == [target.name], "something was left beside the target"


def leftovers(target: Path) -> list[str]:
    """Names beside the target, but for the lock: removing that of a failed download would admit two at once."""
    return [name for name in os.listdir(target.parent) if name != target.name + ".lock"]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LONGEST_HANG_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# ---- all is well


def test_a_plain_download_makes_parents_and_reports_each_block(server: Server, site: Site, target: Path) -> None:
    site.body = bytes(1_000_000)
    calls: list[tuple[int, int | None]] = []

    def progress(done_bytes: int, total_bytes: int | None) -> None:
        assert not target.exists(), "the target must not be seen before it is whole"
        calls.append((done_bytes, total_bytes))

    digest = hashlib.sha256(site.body).hexdigest().upper()
    assert download(server.url, target, sha256=digest, progress=progress) == target
    assert_alone(target, site.body)
    assert calls[0] == (0, 1_000_000)
    assert calls[-1] == (1_000_000, 1_000_000)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


@pytest.mark.parametrize("form", ["chunked", "no length", "empty", "redirect", "weak etag", "no validator"])
def test_other_forms_of_a_good_answer(server: Server, site: Site, target: Path, form: str) -> None:
    site.chunked = form == "chunked"
    site.says_length = form != "no length"
    site.body = b"" if form == "empty" else BODY
    site.redirect = "/moved" if form == "redirect" else None
    site.etag = {"weak etag": 'W/"v1"', "no validator": None}.get(form, '"v1"')
    download(server.url, target)
    assert_alone(target, site.body)


def test_an_existing_target_is_returned_without_a_request(server: Server, site: Site, target: Path) -> None:
    target.parent.mkdir(parents=True)
    target.write_bytes(b"mine")
    assert download(server.url, target, sha256=DIGEST) == target
    assert target.read_bytes() == b"mine"
    assert site.seen == []


def test_nothing_is_printed(server: Server, site: Site, target: Path, capfd: pytest.CaptureFixture[str]) -> None:
    site.cuts = [10]
    download(server.url, target)
    site.statuses = [404] * 9
    with pytest.raises(DownloadError):
        download(server.url, target.with_name("b"))
    assert capfd.readouterr() == ("", "")


# ---- broken connections


@pytest.mark.parametrize("chunked", [False, True])
def test_a_broken_connection_continues_where_it_stopped(
    server: Server, site: Site, target: Path, chunked: bool
) -> None:
    site.chunked = chunked
    site.cuts = [1000, 0, 2000]
    download(server.url, target, sha256=DIGEST)
    assert_alone(target)
    assert site.ranges == [None, "bytes=1000-", "bytes=1000-", "bytes=3000-"]
    assert {request.get("if-range") for request in site.seen[1:]} == {'"v1"'}
    if not chunked:
        assert site.sent_bytes == len(BODY), "bytes were fetched twice"


def test_last_modified_serves_where_the_etag_is_weak(server: Server, site: Site, target: Path) -> None:
    site.etag, site.modified = 'W/"v1"', "Mon, 06 Jan 2025 10:00:00 GMT"
    site.cuts = [1000]
    download(server.url, target)
    assert_alone(target)
    assert site.seen[1]["if-range"] == site.modified


def test_without_a_validator_it_starts_anew_unless_a_digest_guards_it(server: Server, site: Site, target: Path) -> None:
    site.etag = None
    site.cuts = [1000, None, 1000]
    download(server.url, target)
    download(server.url, target.with_name("b"), sha256=DIGEST)
    assert site.ranges == [None, None, None, "bytes=1000-"]
    assert target.read_bytes() == target.with_name("b").read_bytes() == BODY


def test_a_server_that_ignores_ranges_starts_over(server: Server, site: Site, target: Path) -> None:
    site.honours_range = False
    site.cuts = [1000, 5000]
    done: list[int] = []
    download(server.url, target, progress=lambda done_bytes, _: done.append(done_bytes))
    assert_alone(target)
    assert done.count(0) == 3


@pytest.mark.parametrize("honours_if_range", [True, False])
@pytest.mark.parametrize("new_body", [OTHER, OTHER[:3000], OTHER[:1000], OTHER[:999], OTHER * 2, b""])
def test_a_file_changed_on_the_server_is_never_glued(
    server: Server, site: Site, target: Path, honours_if_range: bool, new_body: bytes
) -> None:
    def change(number: int) -> None:
        if number == 1:
            site.body, site.etag = new_body, '"v2"'

    site.before, site.cuts, site.honours_if_range = change, [1000], honours_if_range
    download(server.url, target)
    assert_alone(target, new_body)


def test_a_changed_length_is_noticed_even_under_the_same_etag(server: Server, site: Site, target: Path) -> None:
    def change(number: int) -> None:
        if number == 1:
            site.body = OTHER * 2

    site.before, site.cuts = change, [1000]
    download(server.url, target)
    assert_alone(target, OTHER * 2)


def test_a_file_that_changes_and_breaks_at_every_request_ends_in_an_error(
    server: Server, site: Site, target: Path
) -> None:
    def change(number: int) -> None:
        site.etag = f'"v{number}"'

    site.before, site.cuts = change, [1000] * 99
    with pytest.raises(DownloadError, match="early"):
        download(server.url, target, max_attempts=3)
    assert len(site.seen) == 3
    assert not target.exists()


def test_a_length_that_is_too_long_ends_in_an_error(server: Server, site: Site, target: Path) -> None:
    site.extra_length = 100
    with pytest.raises(DownloadError, match=r"100 bytes early.*attempts"):
        download(server.url, target, max_attempts=3)
    assert not target.exists()


def test_a_length_that_is_too_short_is_caught_by_the_digest(server: Server, site: Site, target: Path) -> None:
    site.extra_length = -100
    with pytest.raises(DownloadError, match="sha256"):
        download(server.url, target, sha256=DIGEST)
    assert leftovers(target) == []


def test_attempts_that_bring_much_are_not_counted(server: Server, site: Site, target: Path) -> None:
    site.body = BODY * 1024
    site.cuts = [1 << 20] * 9
    download(server.url, target, max_attempts=2)
    assert_alone(target, site.body)
    assert len(site.seen) == 10


def test_a_silent_server_times_out_and_is_asked_again(server: Server, site: Site, target: Path) -> None:
    site.pause_at = 4000

    def change(number: int) -> None:
        if number == 1:
            site.pause_at = None

    site.before = change
    download(server.url, target, timeout_s=0.2)
    assert_alone(target)
    assert site.ranges == [None, "bytes=4000-"]


def test_a_server_that_stays_silent_is_named_so(server: Server, site: Site, target: Path) -> None:
    site.before = lambda _: site.go_on.wait(LONGEST_HANG_S) and None  # type: ignore[func-returns-value]
    with pytest.raises(DownloadError, match=r"silent for 0\.1 s \(2 attempts\)"):
        download(server.url, target, timeout_s=0.1, max_attempts=2)


@pytest.mark.parametrize("status", [500, 502, 503, 429, 408])
def test_a_passing_server_error_is_tried_again(server: Server, site: Site, target: Path, status: int) -> None:
    site.statuses = [status, status]
    download(server.url, target)
    assert_alone(target)


def test_pauses_grow_and_heed_the_server(
    server: Server, site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses_s: list[float] = []
    monkeypatch.setattr(download_module, "_FIRST_PAUSE_S", 0.5)
    monkeypatch.setattr(download_module.time, "sleep", pauses_s.append)
    site.statuses = [500] * 4
    download(server.url, target)
    site.statuses, site.headers = [500] * 5 + [503, 503], {"Retry-After": "7"}
    download(server.url, target.with_name("b"))
    site.statuses, site.headers = [500] * 8 + [503, 503], {"Retry-After": "86400"}
    download(server.url, target.with_name("c"))
    assert pauses_s == [0.5, 1, 2, 4, 7, 7, 30, 30]


# ---- parts of an earlier call


def leave_part(server: Server, site: Site, target: Path, size_bytes: int) -> None:
    site.cuts = [size_bytes]
    with pytest.raises(DownloadError, match="early"):
        download(server.url, target, max_attempts=1)
    assert part_of(target).stat().st_size == size_bytes
    assert not target.exists()
    site.seen.clear()
    site.cuts.clear()


def test_a_later_call_continues_and_the_error_before_says_so(server: Server, site: Site, target: Path) -> None:
    site.cuts = [4000]
    with pytest.raises(DownloadError, match="4,000 bytes on disk"):
        download(server.url, target, max_attempts=1)
    calls: list[tuple[int, int | None]] = []
    download(server.url, target, progress=lambda *call: calls.append(call))
    assert_alone(target)
    assert site.ranges == [None, "bytes=4000-"]
    assert calls[0] == (4000, len(BODY))


def test_a_whole_part_needs_no_server(server: Server, site: Site, target: Path) -> None:
    leave_part(server, site, target, 4000)
    part_of(target).write_bytes(BODY)  # killed between the last byte and the rename
    download(server.url, target, sha256=DIGEST)
    assert_alone(target)
    assert site.seen == []


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("excess", [0, 1, 5000])
def test_a_part_that_is_too_long_or_of_unknown_length_starts_anew(
    server: Server, site: Site, target: Path, chunked: bool, excess: int
) -> None:
    site.chunked = chunked
    leave_part(server, site, target, 4000)
    part_of(target).write_bytes(BODY + bytes(excess))
    download(server.url, target)
    assert_alone(target)
    if excess or chunked:
        assert site.ranges[-1] is None
    assert len(site.seen) == (2 if chunked else bool(excess)), "a known length needs no request"


@pytest.mark.parametrize("note", [None, "", "{", "[]", "{}", '{"url": 1, "validator": {}, "total_bytes": "x"}'])
def test_a_part_of_unknown_origin_is_not_trusted(server: Server, site: Site, target: Path, note: str | None) -> None:
    leave_part(server, site, target, 4000)
    part_of(target).write_bytes(OTHER[:4000])
    note_path = target.with_name(target.name + ".part.json")
    note_path.unlink()
    if note is not None:
        note_path.write_text(note)
    download(server.url, target)
    assert_alone(target)
    assert site.ranges == [None]


def test_a_part_from_another_address_is_not_continued(server: Server, site: Site, target: Path) -> None:
    leave_part(server, site, target, 4000)
    download(server.url + "?v=2", target)
    assert_alone(target)
    assert site.ranges == [None]


def test_a_corrupted_part_is_caught_by_the_digest_and_removed(server: Server, site: Site, target: Path) -> None:
    leave_part(server, site, target, 4000)
    part_of(target).write_bytes(OTHER[:4000])
    with pytest.raises(DownloadError, match=f"expected sha256 {DIGEST}"):
        download(server.url, target, sha256=DIGEST)
    assert leftovers(target) == []
    download(server.url, target, sha256=DIGEST)
    assert_alone(target)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_whatever_breaks_the_file_is_whole_or_not_there(server: Server, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, 3000), max_size=5), label="cuts")
    changes = data.draw(st.sets(st.integers(1, 6), max_size=2), label="requests that meet a new file")
    bodies = [BODY[: data.draw(st.integers(0, 3000), label="length")] for _ in range(len(changes) + 1)]
    bodies = [bytes(255 - number for number in body) if turn % 2 else body for turn, body in enumerate(bodies)]
    site = Site(
        body=bodies[0],
        cuts=list(cuts),
        honours_range=data.draw(st.booleans(), label="honours Range"),
        honours_if_range=data.draw(st.booleans(), label="honours If-Range"),
        chunked=data.draw(st.booleans(), label="chunked"),
    )
    if data.draw(st.booleans(), label="no validator"):
        site.etag = None
    remaining = iter(bodies[1:])

    def change(number: int) -> None:
        if number in changes:
            site.body = next(remaining)
            site.etag = site.etag and f'"v{number + 1}"'

    site.before = change
    server.site = site
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "weights.npz"
        for _ in range(12):
            try:
                download(server.url, target, max_attempts=data.draw(st.integers(1, 3), label="max_attempts"))
                break
            except DownloadError:
                assert not target.exists()
        assert target.read_bytes() in bodies
        assert os.listdir(folder) == [target.name]


# ---- failures with a name


def assert_says_what_to_do(error: pytest.ExceptionInfo[DownloadError], url: str, target: Path) -> None:
    message = str(error.value)
    assert url in message
    assert f"put it at {target}" in message
    assert "\n" not in message
    assert not target.exists()


def test_no_server_at_all(target: Path) -> None:
    with socket.socket() as held:  # bound but not listening: refused, and nobody else can take the port
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}/w.npz"
        with pytest.raises(DownloadError, match=r"refused.*\(3 attempts\)") as error:
            download(url, target, max_attempts=3)
    assert_says_what_to_do(error, url, target)


def test_a_name_that_cannot_be_resolved(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(DownloadError, match="name resolution") as error:
        download("https://weights.invalid/w.npz", target, max_attempts=2)
    assert_says_what_to_do(error, "https://weights.invalid/w.npz", target)


def test_a_certificate_that_is_not_trusted_is_final(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[None] = []

    def not_trusted(*_: Any, **__: Any) -> None:
        tries.append(None)
        raise ssl.SSLCertVerificationError(1, "certificate verify failed")

    monkeypatch.setattr(socket, "getaddrinfo", not_trusted)
    with pytest.raises(DownloadError, match="certificate verify failed") as error:
        download("https://weights.invalid/w.npz", target)
    assert_says_what_to_do(error, "https://weights.invalid/w.npz", target)
    assert len(tries) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416])
def test_a_refusal_is_final(server: Server, site: Site, target: Path, status: int) -> None:
    site.statuses = [status] * 9
    with pytest.raises(DownloadError, match=f"HTTP {status} ") as error:
        download(server.url, target)
    assert_says_what_to_do(error, server.url, target)
    assert len(site.seen) == 1


def test_a_server_error_that_stays(server: Server, site: Site, target: Path) -> None:
    site.statuses = [503] * 9
    with pytest.raises(DownloadError, match=r"HTTP 503 .*\(5 attempts\)") as error:
        download(server.url, target)
    assert_says_what_to_do(error, server.url, target)
    assert len(site.seen) == 5


def test_an_error_after_a_redirect_names_the_other_host(server: Server, site: Site, target: Path) -> None:
    site.redirect = f"http://localhost:{server.server_port}/moved"
    site.statuses = [200, 404]
    with pytest.raises(DownloadError, match=r"HTTP 404 .* from localhost, to which it redirects") as error:
        download(server.url, target)
    assert_says_what_to_do(error, server.url, target)


@pytest.mark.parametrize("goal", ["file:///etc/passwd", "ftp://127.0.0.1/w.npz", "/elsewhere"])
def test_redirects_out_of_the_web_or_in_circles_are_refused(
    server: Server, site: Site, target: Path, goal: str
) -> None:
    site.redirect = goal
    with pytest.raises(DownloadError, match=r"HTTP 302 .*redirect") as error:
        download(server.url, target)
    assert_says_what_to_do(error, server.url, target)


def test_https_is_never_left_for_http() -> None:
    request = download_module.urllib.request.Request("https://a.example/w")
    redirects, headers = download_module._Redirects(), download_module.HTTPMessage()
    with pytest.raises(OSError, match="from https to http"), tempfile.TemporaryFile() as body:
        redirects.redirect_request(request, body, 302, "Found", headers, "http://a.example/w")
    with tempfile.TemporaryFile() as body:
        onward = redirects.redirect_request(request, body, 302, "Found", headers, "https://b.example/w")
    assert onward.full_url == "https://b.example/w"


@pytest.mark.parametrize(
    "url",
    ["", "w.npz", "file:///etc/passwd", "ftp://a/b", "data:,x", "http://", "http://a:b/", "http://[/", "http://a b/"],
)
def test_only_web_addresses_are_accepted(url: str, target: Path) -> None:
    with pytest.raises(DownloadError, match=r"address") as error:
        download(url, target)
    assert_says_what_to_do(error, url, target)


@pytest.mark.parametrize(
    "wrong", [{"sha256": "abc"}, {"timeout_s": 0}, {"timeout_s": float("nan")}, {"max_attempts": 0}]
)
def test_impossible_arguments(wrong: dict[str, Any], target: Path) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        download("http://127.0.0.1/", target, **wrong)


def test_the_login_page_of_a_network_is_not_taken_for_weights(server: Server, site: Site, target: Path) -> None:
    site.headers = {"Content-Type": "text/html; charset=utf-8"}
    with pytest.raises(DownloadError, match="web page"):
        download(server.url, target)
    download(server.url, target.with_suffix(".html"))


def test_packed_content_is_refused(server: Server, site: Site, target: Path) -> None:
    site.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(DownloadError, match="gzip"):
        download(server.url, target)


@pytest.mark.parametrize("content_range", ["bytes 0-6239/10240", "bytes 4000-3999/10240", "pages 1-2/3"])
def test_an_odd_content_range_starts_anew(server: Server, site: Site, target: Path, content_range: str) -> None:
    leave_part(server, site, target, 4000)

    def change(number: int) -> None:
        site.honours_range, site.headers = number > 0, {} if number else {"Content-Range": content_range}

    site.before = change
    download(server.url, target)
    assert_alone(target)
    assert site.ranges == ["bytes=4000-", None]


def test_a_piece_that_nobody_asked_for_is_refused(server: Server, site: Site, target: Path) -> None:
    site.headers = {"Content-Range": "bytes 0-10239/10240"}
    with pytest.raises(DownloadError, match="206"):
        download(server.url, target)


def test_a_full_disk_is_no_network_error(
    server: Server, site: Site, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DownloadError, match=r"writing it failed.*No space left") as error:
        download(server.url, target)
    assert_says_what_to_do(error, server.url, target)
    assert len(site.seen) == 1


def test_a_folder_or_file_in_the_way(server: Server, site: Site, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="folder of that name"):
        download(server.url, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="writing it failed"):
        download(server.url, tmp_path / "file" / "weights.npz")
    assert site.seen == []


def test_a_callback_can_end_the_download(server: Server, site: Site, target: Path) -> None:
    def stop(done_bytes: int, _: int | None) -> None:
        if done_bytes:
            raise KeyboardInterrupt

    site.pause_at = 4000
    with pytest.raises(KeyboardInterrupt):
        download(server.url, target, progress=stop)
    site.pause_at = None
    download(server.url, target)
    assert_alone(target)
    assert site.ranges == [None, "bytes=4000-"]


# ---- several at once


@contextlib.contextmanager
def child(url: str, target: Path) -> Iterator[subprocess.Popen[str]]:
    """Another Python that downloads; it is up and about to begin when this returns."""
    command = [sys.executable, "-c", CHILD, url, str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def in_threads(*jobs: Callable[[], object]) -> list[threading.Thread]:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    return threads


def test_a_killed_process_hands_over_to_one_that_waits(server: Server, site: Site, target: Path) -> None:
    site.pause_at = 6000
    waiting: list[tuple[int, int | None]] = []
    with child(server.url, target) as first:
        wait_until(lambda: part_of(target).exists() and part_of(target).stat().st_size == 6000)
        (second,) = in_threads(lambda: download(server.url, target, progress=lambda *call: waiting.append(call)))
        wait_until(lambda: len(waiting) > 2)
        assert waiting[0] == (6000, len(BODY)), "who waits sees how far the other is"
        assert len(site.seen) == 1
        site.pause_at = None
        first.send_signal(signal.SIGKILL)
        first.wait()
        second.join(LONGEST_HANG_S)
    assert_alone(target)
    assert site.ranges == [None, "bytes=6000-"]


def test_two_processes_fetch_it_once(server: Server, site: Site, target: Path) -> None:
    site.pause_at = 6000
    with child(server.url, target) as first, child(server.url, target) as second:
        wait_until(lambda: site.sent_bytes == 6000)
        time.sleep(0.2)  # time for the other to do wrong
        assert not target.exists()
        site.go_on.set()
        assert first.wait(LONGEST_HANG_S) == second.wait(LONGEST_HANG_S) == 0
    assert_alone(target)
    assert len(site.seen) == 1


def test_many_threads(server: Server, site: Site, target: Path) -> None:
    site.cuts = [3000, 2000, 1000]
    results: list[Path] = []
    threads = in_threads(*[lambda: results.append(download(server.url, target, sha256=DIGEST))] * 8)
    for thread in threads:
        thread.join(LONGEST_HANG_S)
    assert results == [target] * 8
    assert_alone(target)
    assert len(site.seen) == 4


# ---- the zoo


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"TRECVIT_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, "/a/b"),
        ({"TRECVIT_CACHE": "~/w"}, "/home/ann/w"),
        ({"TRECVIT_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/trecvit"),
        ({"XDG_CACHE_HOME": "relative"}, "/home/ann/.cache/trecvit"),
        ({}, "/home/ann/.cache/trecvit"),
    ],
)
def test_cache_folder(variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TRECVIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in ({"HOME": "/home/ann"} | variables).items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(expected)


def test_an_account_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TRECVIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="Set TRECVIT_CACHE"):
        cache_folder()


def test_zoo_entries_hold_together() -> None:
    assert set(ZOO) == {"base_k400", "base_mae", "bootstapnext", "tapnextpp", "tapnextpp_512"}
    for name, entry in ZOO.items():
        assert entry.name == name
        assert entry.url.startswith("https://")
        assert entry.url.endswith("/" + entry.filename)
        assert entry.licence
        assert entry.description
    assert len({entry.filename for entry in ZOO.values()}) == len(ZOO), "two entries share a file in the cache"


def test_zoo_path_downloads_once_into_the_cache(
    server: Server, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ZooEntry(name="here", url=server.url, filename="h.npz", licence="-", description="-")
    monkeypatch.setitem(ZOO, "here", entry)
    monkeypatch.setenv("TRECVIT_CACHE", str(tmp_path / "cache"))
    calls: list[tuple[int, int | None]] = []
    for _ in range(2):
        assert zoo_path("here", progress=lambda *call: calls.append(call)) == tmp_path / "cache" / "h.npz"
    assert_alone(tmp_path / "cache" / "h.npz")
    assert calls[-1] == (len(BODY), len(BODY))
    assert len(site.seen) == 1


@pytest.mark.parametrize(
    ("name", "near"),
    [("base_k40", "base_k400"), ("BASE_MAE", "base_mae"), ("k400", "base_k400"), ("qqq", None)],
)
def test_an_unknown_name_is_told_the_nearest(name: str, near: str | None) -> None:
    with pytest.raises(CheckpointError, match="the names are base_k400, base_mae") as error:
        zoo_path(name)
    assert repr(name) in str(error.value)
    assert (f"did you mean {near!r}" in str(error.value)) if near else ("did you mean" not in str(error.value))
