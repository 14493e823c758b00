"""One file over http or https: resumed where it stopped, checked, and whole or not there at all.

Three names stand beside each other while a file is on its way:

- ``<target>.part``       the bytes so far. It is locked (``flock``) by the one process that writes it; the others wait
  and find the target. The lock dies with its process, so a killed download blocks nobody and the next call continues.
- ``<target>.part.json``  what the server said of these bytes: address, ETag or Last-Modified, length. A part is only
  continued if the server still has that very file (``If-Range``); otherwise it starts anew and nothing is glued.
- ``<target>``            appears at the end, by one rename.

NOTE: where a file cannot be locked (Windows, some network file systems) each call writes a part of its own, named by
process and thread. That keeps parallel calls apart; the price is that only this call itself can continue it.

Nothing is printed here: `progress` is called, and every failure is a `DownloadError` that says what to do.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import ssl
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from email.message import Message
from http.client import HTTPException, HTTPMessage, HTTPResponse, IncompleteRead, InvalidURL
from pathlib import Path
from typing import IO

from trecvit.errors import ConfigError, DownloadError, InputError

Progress = Callable[[int, int | None], None]
"""Called with the bytes on disk and the bytes in all (None while unknown)."""

_BLOCK_BYTES = 1 << 18
_GAIN_BYTES = 1 << 20  # an attempt that brought this much was worth it: counting starts again
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_POLL_S = 0.1
_RETRIED_STATUSES = frozenset({408, 425, 429})  # besides every 5xx
_CONTENT_RANGE = re.compile(r"bytes\s+(?:(\d+)-(\d+)|\*)/(\d+|\*)")


def cache_folder() -> Path:
    """Where downloaded files are kept: $TRECVIT_CACHE, else $XDG_CACHE_HOME/trecvit, else ~/.cache/trecvit.

    The folder need not exist yet.
    """
    try:
        if chosen := os.environ.get("TRECVIT_CACHE"):
            return Path(chosen).expanduser()
        # The XDG rules: a path that is not absolute is to be ignored.
        if (shared := os.environ.get("XDG_CACHE_HOME")) and os.path.isabs(shared):
            return Path(shared) / "trecvit"
        return Path.home() / ".cache" / "trecvit"
    except RuntimeError as exc:  # an account without a home, as in some containers
        raise ConfigError(f"no cache folder: {exc}. Set TRECVIT_CACHE to a folder for downloaded files.") from exc


def download(
    url: str,
    target: Path,
    *,
    size_bytes: int | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
    timeout_s: float = 30,
    max_attempts: int = 5,
) -> Path:
    """Fetch `url` to `target`, unless it is there already, and return `target`.

    A broken connection, a server error (5xx) and "too many requests" are tried again after short growing pauses, from
    the byte where it stopped. If another process is fetching the same target, this call waits for it.

    Args:
        url: An http or https address. Redirects are followed, but never from https to http or to another scheme.
        target: Where the file shall be; missing parent folders are made. An existing file is returned unread.
        size_bytes: The exact size, if known.
        sha256: The digest in hex, if known.
        progress: Called after each block with (bytes on disk, bytes in all or None). It falls back to 0 when the
            download has to start anew. What it raises ends the download, which can be continued later.
        timeout_s: Longest silence of the server, in seconds, before the connection counts as broken.
        max_attempts: Attempts in a row that bring less than 1 MiB, before giving up.

    Raises:
        DownloadError: The file could not be fetched or written, or is not of the size or digest asked for.
        InputError: An argument is not possible.
    """
    if size_bytes is not None and size_bytes < 0:
        raise InputError(f"size_bytes must be 0 or more, got {size_bytes}")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    if not timeout_s > 0 or max_attempts < 1:
        raise InputError(f"timeout_s must be > 0 and max_attempts >= 1, got {timeout_s} and {max_attempts}")

    order = _Order(url, Path(target), size_bytes, sha256.lower() if sha256 else None, progress, timeout_s, max_attempts)
    if order.target.is_file():
        return order.target
    order.check_address()
    part = _acquire(order)
    if part is None:
        return order.target
    with part:
        _Fetch(order, part).run()
    return order.target


@dataclass(frozen=True, slots=True)
class _Order:
    """What was asked for; the arguments of `download`."""

    url: str
    target: Path
    size_bytes: int | None
    sha256: str | None
    progress: Progress | None
    timeout_s: float
    max_attempts: int

    def check_address(self) -> None:
        try:
            address = urllib.parse.urlsplit(self.url)
            usable = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError as exc:
            raise self.error(f"this is not an address ({exc})") from exc
        if not usable:
            raise self.error("only http:// and https:// addresses can be fetched")

    def report(self, done_bytes: int, total_bytes: int | None) -> None:
        if self.progress is not None:
            self.progress(done_bytes, total_bytes if total_bytes is not None else self.size_bytes)

    def error(self, reason: str, *, kept_bytes: int = 0) -> DownloadError:
        again = f" Calling again continues after the {kept_bytes:,} bytes that are here." if kept_bytes else ""
        reason = " ".join(reason.split())  # some of Python's own span lines
        return DownloadError(
            f"could not download {self.url}: {reason}. Download it elsewhere and put it at {self.target}.{again}"
        )

    @contextlib.contextmanager
    def file_errors(self) -> Iterator[None]:
        """Name a failure of the disk as such: it must not pass for one of the network."""
        try:
            yield
        except OSError as exc:
            raise self.error(f"writing it failed: {exc}") from exc


# ---- the part: a locked file and a note about where its bytes come from


@dataclass(frozen=True, slots=True)
class _Origin:
    """What the server said of the bytes in a part."""

    url: str
    validator: str | None  # a strong ETag, else Last-Modified: what If-Range may hold
    total_bytes: int | None

    @classmethod
    def read(cls, path: Path) -> _Origin | None:
        """The note at `path`, or None if there is none or it is damaged."""
        try:
            note = json.loads(path.read_text("utf-8"))
            validator, total = note["validator"], note["total_bytes"]
            return cls(
                str(note["url"]),
                None if validator is None else str(validator),
                None if total is None else int(total),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


class _Part:
    """The bytes so far, open for appending; used as a context manager that closes (and so unlocks) it."""

    def __init__(self, path: Path, file: io.FileIO, *, private: bool) -> None:
        self.path = path
        self.note_path = _note_path(path)
        self.file = file
        self.private = private
        self.size_bytes = os.fstat(file.fileno()).st_size

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.private:  # nobody else could continue it
            self.remove()

    def append(self, block: bytes) -> None:
        view = memoryview(block)
        while view:
            written = self.file.write(view)
            self.size_bytes += written
            view = view[written:]

    def restart(self, origin: _Origin | None) -> None:
        """Drop all bytes; note where the next ones come from. Bytes never stand beside a note that is not theirs."""
        self.file.truncate(0)
        self.size_bytes = 0
        if origin is None:
            self.note_path.unlink(missing_ok=True)
        else:
            self.note_path.write_text(json.dumps(asdict(origin)), "utf-8")

    def sha256(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)

    def publish(self, target: Path) -> None:
        os.fsync(self.file.fileno())
        if self.private:  # Windows renames no open file; nobody can come in between here
            self.file.close()
        os.replace(self.path, target)  # the lock is still held: whoever waits will find the target
        self.note_path.unlink(missing_ok=True)


def _note_path(part_path: Path) -> Path:
    return part_path.with_name(part_path.name + ".json")


def _lock(file: io.FileIO) -> None:
    """Lock `file` or raise: BlockingIOError if another holds it, another OSError if it cannot be locked here."""
    if sys.platform == "win32":
        raise OSError(errno.ENOTSUP, "no flock on this system")
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _acquire(order: _Order) -> _Part | None:
    """The part of this target, for us alone; None if the target came to be in the meantime."""
    with order.file_errors():
        if order.target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder of that name is in the way", str(order.target))
        order.target.parent.mkdir(parents=True, exist_ok=True)
    path = order.target.with_name(order.target.name + ".part")
    # The writer may be silent for all of its attempts; after that it is stopped or stuck.
    patience_s = order.max_attempts * (order.timeout_s + _LONGEST_PAUSE_S)
    seen_bytes, seen_s = -1, time.monotonic()
    while True:
        with order.file_errors():
            part = _try_acquire(order, path)
        if part is not None:
            if not order.target.is_file():
                return part
            with part:  # finished by another process just before our open made this empty part
                part.remove()
        if order.target.is_file():
            return None
        try:
            size_bytes = path.stat().st_size
        except FileNotFoundError:
            size_bytes = 0
        if size_bytes != seen_bytes:
            seen_bytes, seen_s = size_bytes, time.monotonic()
        elif time.monotonic() - seen_s > patience_s:
            raise order.error(f"another process holds {path} and has written nothing for {patience_s:.0f} s; end it")
        origin = _Origin.read(_note_path(path))
        order.report(size_bytes, origin.total_bytes if origin else None)
        time.sleep(_POLL_S)


def _try_acquire(order: _Order, path: Path) -> _Part | None:
    """Open and lock `path`; None if another process holds it or has just renamed or removed it."""
    with contextlib.ExitStack() as on_failure:
        file = on_failure.enter_context(path.open("ab", buffering=0))
        try:
            _lock(file)
        except BlockingIOError:
            return None
        except OSError:
            file.close()
            return _private_part(order, path)
        try:
            ours = os.path.samestat(os.fstat(file.fileno()), path.stat())
        except FileNotFoundError:
            ours = False
        if not ours:
            return None
        on_failure.pop_all()
        return _Part(path, file, private=False)


def _private_part(order: _Order, shared_path: Path) -> _Part:
    """A part that needs no lock because no one else knows its name."""
    with contextlib.suppress(FileNotFoundError):
        if shared_path.stat().st_size == 0:  # what the try to lock it made
            shared_path.unlink()
    name = f"{order.target.name}.{os.getpid()}-{threading.get_ident()}.part"
    path = order.target.with_name(name)
    return _Part(path, path.open("wb", buffering=0), private=True)


# ---- the conversation with the server


class _BrokenError(Exception):
    """An attempt that failed in a way that may pass."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects within http and https, and never out of https."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme == "https" or (scheme == "http" and req.type == "http"):
            return super().redirect_request(req, fp, code, msg, headers, newurl)
        reason = f"refused to be redirected from {req.type} to {scheme}"
        raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)


def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows http and https only (the standard one reads file:// and ftp:// too)."""
    opener = urllib.request.OpenerDirector()
    opener.addheaders = [("User-Agent", "trecvit")]
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _pause_s(failures: int, retry_after_s: float) -> float:
    """0.5, 1, 2, 4, ... seconds, or what the server asked for; never more than half a minute."""
    grown_s: float = _FIRST_PAUSE_S * 2 ** min(failures - 1, 10)
    return min(max(grown_s, retry_after_s), _LONGEST_PAUSE_S)


def _validator(headers: Message) -> str | None:
    etag = headers.get("ETag")
    if etag and etag.startswith('"'):  # a weak one (W/"...") does not promise the same bytes
        return str(etag)
    modified = headers.get("Last-Modified")
    return str(modified) if modified else None


class _Fetch:
    """Fills a part until it is the whole file, then publishes it."""

    def __init__(self, order: _Order, part: _Part) -> None:
        self.order = order
        self.part = part
        self.opener = _opener()
        self.origin = _Origin.read(part.note_path)

    def run(self) -> None:
        order, part = self.order, self.part
        failures, mark_bytes = 0, 0
        whole = self._resumable() and part.size_bytes == self._total_bytes()
        while not whole:
            try:
                whole = self._attempt()
            except _BrokenError as exc:
                if part.size_bytes - mark_bytes >= _GAIN_BYTES:
                    failures, mark_bytes = 0, part.size_bytes
                failures += 1
                if failures >= order.max_attempts:
                    tried = "" if failures == 1 else f" ({failures} attempts)"
                    kept_bytes = part.size_bytes if self._resumable() and not part.private else 0
                    raise order.error(f"{exc}{tried}", kept_bytes=kept_bytes) from exc
                time.sleep(_pause_s(failures, exc.retry_after_s))
        self._check_size(part.size_bytes)
        with order.file_errors():
            digest = part.sha256() if order.sha256 is not None else None
        if digest != order.sha256:
            raise self._mismatch(f"its sha256 should be {order.sha256}, but is {digest}")
        with order.file_errors():
            part.publish(order.target)

    def _total_bytes(self) -> int | None:
        return self.origin.total_bytes if self.origin else None

    def _resumable(self) -> bool:
        """Whether more bytes may be added to the part: only if a change of the file on the server would be noticed."""
        origin, size_bytes = self.origin, self.part.size_bytes
        if origin is None or origin.url != self.order.url:
            return False
        if not origin.validator and self.order.sha256 is None:
            return False
        totals = {total for total in (origin.total_bytes, self.order.size_bytes) if total is not None}
        return len(totals) < 2 and all(size_bytes <= total for total in totals)

    def _restart(self, origin: _Origin | None) -> None:
        self.origin = origin
        with self.order.file_errors():
            self.part.restart(origin)

    def _attempt(self) -> bool:
        """One request. True if the file is whole now, False if another request shall follow at once."""
        if not self._resumable():
            self._restart(None)
        request = urllib.request.Request(self.order.url)
        if self.part.size_bytes:
            request.add_header("Range", f"bytes={self.part.size_bytes}-")
            if self.origin and self.origin.validator:
                request.add_header("If-Range", self.origin.validator)
        try:
            response = self._open(request)
        except urllib.error.HTTPError as exc:
            with exc:
                if exc.code == 416 and self.part.size_bytes:
                    return self._settle_416(exc.headers)
                raise self._refusal(exc) from exc
        with response:
            self._check_kind(response)
            if response.status == 206:
                return self._take_rest(response)
            return self._take_all(response)

    def _open(self, request: urllib.request.Request) -> HTTPResponse:
        try:
            response: HTTPResponse = self.opener.open(request, timeout=self.order.timeout_s)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as exc:
            if isinstance(exc.reason, OSError) and not isinstance(exc.reason, ssl.SSLCertVerificationError):
                raise self._broken(exc.reason) from exc
            raise self.order.error(str(exc.reason)) from exc
        except (InvalidURL, ValueError) as exc:
            raise self.order.error(f"this is not an address ({exc})") from exc
        except (OSError, HTTPException) as exc:
            raise self._broken(exc) from exc
        return response

    def _take_all(self, response: HTTPResponse) -> bool:
        """The answer 200: the whole file, whatever was asked for."""
        total_bytes = response.length  # None if chunked or not said
        if total_bytes is not None:
            self._check_size(total_bytes)
        self._restart(_Origin(self.order.url, _validator(response.headers), total_bytes))
        self._receive(response, total_bytes)
        return True

    def _take_rest(self, response: HTTPResponse) -> bool:
        """The answer 206: goes on where the part ends, if it is still the same file."""
        if not self.part.size_bytes:
            raise self.order.error("the server sent a piece (HTTP 206) where the whole was asked for")
        found = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if not found or found[1] is None or int(found[1]) != self.part.size_bytes or int(found[2]) < int(found[1]):
            self._restart(None)
            return False
        total_bytes = None if found[3] == "*" else int(found[3])
        if not self._same_file(response.headers, total_bytes):
            self._restart(None)
            return False
        if total_bytes is not None:
            self._check_size(total_bytes)
        self._receive(response, int(found[2]) - int(found[1]) + 1)
        return self.part.size_bytes == self._total_bytes()

    def _settle_416(self, headers: Message) -> bool:
        """The answer "nothing there": the part is the whole file, or was never a part of this one."""
        found = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
        total_bytes = int(found[3]) if found and found[3] != "*" else None
        if total_bytes == self.part.size_bytes and self._same_file(headers, total_bytes):
            return True
        self._restart(None)
        return False

    def _same_file(self, headers: Message, total_bytes: int | None) -> bool:
        """Compare an answer with the note (some servers ignore If-Range), and learn the length from it."""
        origin = self.origin
        if origin is None or _validator(headers) not in (None, origin.validator):
            return False
        if None not in (total_bytes, origin.total_bytes) and total_bytes != origin.total_bytes:
            return False
        if total_bytes is not None:
            self.origin = replace(origin, total_bytes=total_bytes)
        return True

    def _receive(self, response: HTTPResponse, expected_bytes: int | None) -> None:
        """Append the body. With no length told, its end is where the server ends it; only the checks know better."""
        order, part = self.order, self.part
        missing = expected_bytes
        order.report(part.size_bytes, self._total_bytes())
        while missing is None or missing > 0:
            try:
                block = response.read1(_BLOCK_BYTES if missing is None else min(_BLOCK_BYTES, missing))
            except (OSError, HTTPException) as exc:
                raise self._broken(exc) from exc
            if not block:
                break
            with order.file_errors():
                part.append(block)
            if order.size_bytes is not None and part.size_bytes > order.size_bytes:
                self._check_size(part.size_bytes)  # do not let an endless answer fill the disk
            missing = None if missing is None else missing - len(block)
            order.report(part.size_bytes, self._total_bytes())
        if missing:
            raise _BrokenError(f"the connection ended {missing:,} bytes early")

    def _check_kind(self, response: HTTPResponse) -> None:
        """Refuse what is not the file's own bytes: a web page (the login page of a network), or packed bytes."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise self.order.error(f"the server sent it packed ({encoding}), although this was not asked for")
        is_page = response.headers.get_content_type() == "text/html" and "Content-Type" in response.headers
        if is_page and self.order.target.suffix not in (".html", ".htm"):
            raise self.order.error("the answer is a web page, not the file; does this network ask for a login?")

    def _check_size(self, size_bytes: int) -> None:
        if self.order.size_bytes is not None and size_bytes != self.order.size_bytes:
            raise self._mismatch(f"it should have {self.order.size_bytes:,} bytes, but has {size_bytes:,}")

    def _mismatch(self, reason: str) -> DownloadError:
        with self.order.file_errors():
            self.part.remove()
        return self.order.error(f"what came is not the file expected: {reason}")

    def _broken(self, exc: BaseException) -> _BrokenError:
        if isinstance(exc, TimeoutError) and exc.errno is None:
            return _BrokenError(f"the server was silent for {self.order.timeout_s:g} s")
        if isinstance(exc, IncompleteRead):
            return _BrokenError("the connection ended early")
        return _BrokenError(str(exc) or type(exc).__name__)

    def _refusal(self, exc: urllib.error.HTTPError) -> Exception:
        """An error status as the exception it is: one that may pass, or the end."""
        host = urllib.parse.urlsplit(exc.url).hostname
        asked = urllib.parse.urlsplit(self.order.url).hostname
        where = "" if host in (asked, None) else f" from {host}, to which it redirects"
        reason = f"HTTP {exc.code} {exc.reason}{where}"
        if exc.code >= 500 or exc.code in _RETRIED_STATUSES:
            wait = exc.headers.get("Retry-After", "")
            return _BrokenError(reason, retry_after_s=float(wait) if wait.isdecimal() else 0.0)
        return self.order.error(reason)
