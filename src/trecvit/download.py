"""Downloads over http and https: resumed, checked, and whole or absent.

While a file is on its way, `<target>.part` holds the bytes so far and `<target>.part.json` their source: address, ETag
or Last-Modified, length. A part is resumed only if the server still has that very file (`If-Range`), else dropped.
`<target>.lock` admits one process; the others wait and then find the target. The lock ends with its process, so a
killed download does not block others.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from http.client import HTTPException, HTTPMessage, HTTPResponse, InvalidURL
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

from trecvit.errors import ConfigError, DownloadError, InputError

Progress = Callable[[int, int | None], None]
"""Called with the bytes on disk and the total bytes (None while unknown)."""

_BLOCK_BYTES = 1 << 18
_GAIN_BYTES = 1 << 20  # an attempt that fetched this much resets the count of failures
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_POLL_S = 0.1
_RETRIED_STATUSES = frozenset({408, 425, 429})  # besides every 5xx
_CONTENT_RANGE = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+)")


def cache_folder() -> Path:
    """Return the folder of downloaded files: $TRECVIT_CACHE, else $XDG_CACHE_HOME/trecvit, else ~/.cache/trecvit.

    The folder need not exist yet.
    """
    try:
        if chosen := os.environ.get("TRECVIT_CACHE"):
            return Path(chosen).expanduser()
        # The XDG rules: a path that is not absolute is to be ignored.
        if (shared := os.environ.get("XDG_CACHE_HOME")) and os.path.isabs(shared):
            return Path(shared) / "trecvit"
        return Path.home() / ".cache" / "trecvit"
    except RuntimeError as error:  # an account without a home, as in some containers
        raise ConfigError(f"no cache folder: {error}. Set TRECVIT_CACHE to a folder for downloaded files.") from error


def download(
    url: str,
    target: Path,
    *,
    sha256: str | None = None,
    progress: Progress | None = None,
    timeout_s: float = 30,
    max_attempts: int = 5,
) -> Path:
    """Fetch `url` to `target`, unless it exists, and return `target`.

    Broken connections, server errors (5xx) and "too many requests" are retried after growing pauses, from the byte
    where the transfer stopped. If another process is fetching the same target, this call waits for it.

    Args:
        url: An http or https address. Redirects are followed, but never from https to http or to another scheme.
        target: The file to write; missing parent folders are made. An existing file is returned unread.
        sha256: The digest in hex, if known.
        progress: Called after each block with (bytes on disk, total bytes or None). It falls back to 0 when the
            download restarts. An exception from it ends the download, which a later call resumes.
        timeout_s: Longest silence of the server, in seconds, before the connection counts as broken.
        max_attempts: Consecutive attempts that fetch less than 1 MiB, before giving up.

    Raises:
        DownloadError: The file could not be fetched or written, or its digest differs.
        InputError: An argument is out of range.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    if not timeout_s > 0 or max_attempts < 1:
        raise InputError(f"timeout_s must be > 0 and max_attempts >= 1, got {timeout_s} and {max_attempts}")
    target = Path(target)
    if not target.is_file():
        _Download(url, target, sha256.lower() if sha256 else None, progress, timeout_s, max_attempts).run()
    return target


@dataclass(frozen=True, slots=True)
class _Origin:
    """The source of the bytes in a part."""

    url: str
    validator: str | None  # a strong ETag, else Last-Modified: the value for If-Range
    total_bytes: int | None

    @classmethod
    def read(cls, path: Path) -> _Origin | None:
        """Read the note at `path`; None if it is missing or damaged."""
        try:
            origin = cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        valid = isinstance(origin.validator, str | None) and isinstance(origin.total_bytes, int | None)
        return origin if valid else None


class _BrokenError(Exception):
    """An attempt that failed in a way that may pass."""

    def __init__(self, reason: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects within http and https, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme == "https" or (scheme == "http" and req.type == "http"):
            return super().redirect_request(req, fp, code, msg, headers, newurl)
        reason = f"refused to be redirected from {req.type} to {scheme}"
        raise urllib.error.HTTPError(req.full_url, code, reason, headers, fp)


@dataclass
class _Download:
    """One call of `download`: fills a part until it is the whole file, then renames it to the target."""

    url: str
    target: Path
    sha256: str | None
    progress: Progress | None
    timeout_s: float
    max_attempts: int
    origin: _Origin | None = None

    def __post_init__(self) -> None:
        self.part, self.note, self.lock = (
            self.target.with_name(self.target.name + suffix) for suffix in (".part", ".part.json", ".lock")
        )

    def run(self) -> None:
        self._check_address()
        with self._disk_errors():
            if self.target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder of that name is in the way", str(self.target))
            self.target.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if not self.target.is_file():
                self._fetch()
                with self._disk_errors():
                    os.replace(self.part, self.target)
                    self._remove_part()
            with contextlib.suppress(OSError):  # whoever holds or makes a lock now finds the target
                self.lock.unlink()

    def _check_address(self) -> None:
        try:
            address = urllib.parse.urlsplit(self.url)
            usable = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        except ValueError as error:
            raise self._error(f"this is not an address ({error})") from error
        if not usable:
            raise self._error("only http:// and https:// addresses can be fetched")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Lock the part; while another process holds it, report how far it is."""
        lock = FileLock(self.lock)
        while not lock.is_locked:
            try:
                lock.acquire(timeout=_POLL_S)
            except Timeout:
                self.origin = _Origin.read(self.note)
                self._report()
            except OSError as error:
                raise self._error(f"writing it failed: {error}") from error
        try:
            yield
        finally:
            lock.release()

    @property
    def _done_bytes(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _restart(self, origin: _Origin | None) -> None:
        """Drop all bytes and note the source of the next ones."""
        self.origin = origin
        with self._disk_errors():
            self._remove_part()
            if origin is not None:
                self.note.write_text(json.dumps(asdict(origin)), "utf-8")

    def _remove_part(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    # ---- the transfer

    def _fetch(self) -> None:
        self.origin = _Origin.read(self.note)
        failures, mark_bytes = 0, 0
        whole = self.part.exists() and self._resumable() and self._done_bytes == self._total_bytes()
        while not whole:
            try:
                whole = self._attempt()
            except _BrokenError as error:
                if self._done_bytes - mark_bytes >= _GAIN_BYTES:
                    failures, mark_bytes = 0, self._done_bytes
                failures += 1
                if failures >= self.max_attempts:
                    tried = "" if failures == 1 else f" ({failures} attempts)"
                    kept_bytes = self._done_bytes if self._resumable() else 0
                    raise self._error(f"{error}{tried}", kept_bytes=kept_bytes) from error
                pause_s: float = _FIRST_PAUSE_S * 2 ** min(failures - 1, 10)
                time.sleep(min(max(pause_s, error.retry_after_s), _LONGEST_PAUSE_S))
        if self.sha256 is not None:
            with self._disk_errors(), self.part.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != self.sha256:
                self._restart(None)
                raise self._error(f"expected sha256 {self.sha256}, got {digest}")

    def _total_bytes(self) -> int | None:
        return self.origin.total_bytes if self.origin else None

    def _resumable(self) -> bool:
        """Whether bytes may be added to the part: only if a change of the file on the server would be noticed."""
        origin = self.origin
        if origin is None or origin.url != self.url or not (origin.validator or self.sha256):
            return False
        return origin.total_bytes is None or self._done_bytes <= origin.total_bytes

    def _attempt(self) -> bool:
        """Send a request; False if it must be repeated at once."""
        if not self._resumable():
            self._restart(None)
        request = urllib.request.Request(self.url, headers={"User-Agent": "trecvit"})
        if done_bytes := self._done_bytes:
            request.add_header("Range", f"bytes={done_bytes}-")
            if self.origin and self.origin.validator:
                request.add_header("If-Range", self.origin.validator)
        try:
            response = self._open(request)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 416 and done_bytes:
                    self._restart(None)
                    return False
                raise self._refusal(error) from error
        with response:
            self._check_kind(response)
            if response.status == 206:
                total_bytes = self._total_if_continued(response)
                if total_bytes is None:
                    self._restart(None)
                    return False
            else:
                total_bytes = response.length  # None if chunked or not stated
                self._restart(_Origin(self.url, _validator(response.headers), total_bytes))
            self._receive(response, total_bytes)
            return True

    def _open(self, request: urllib.request.Request) -> HTTPResponse:
        try:
            response: HTTPResponse = urllib.request.build_opener(_Redirects).open(request, timeout=self.timeout_s)
            return response
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:
            if isinstance(error.reason, OSError) and not isinstance(error.reason, ssl.SSLCertVerificationError):
                raise self._broken(error.reason) from error
            raise self._error(str(error.reason)) from error
        except (InvalidURL, ValueError) as error:
            raise self._error(f"this is not an address ({error})") from error
        except (OSError, HTTPException) as error:
            raise self._broken(error) from error

    def _total_if_continued(self, response: HTTPResponse) -> int | None:
        """Total size of the file if this answer continues the part to its end, else None.

        The validator is compared again since some servers ignore If-Range.
        """
        origin, done_bytes = self.origin, self._done_bytes
        if not done_bytes or origin is None:
            raise self._error("expected the whole file, got a part of it (HTTP 206)")
        match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
        if match is None or _validator(response.headers) not in (None, origin.validator):
            return None
        first, last, total_bytes = map(int, match.groups())
        if first != done_bytes or last + 1 != total_bytes or origin.total_bytes not in (None, total_bytes):
            return None
        self.origin = replace(origin, total_bytes=total_bytes)
        return total_bytes

    def _receive(self, response: HTTPResponse, total_bytes: int | None) -> None:
        """Append the body. If its length is not stated, it ends where the server ends it."""
        self._report()
        with self._disk_errors():
            file = self.part.open("ab", buffering=0)
        with file:
            while total_bytes is None or self._done_bytes < total_bytes:
                missing = _BLOCK_BYTES if total_bytes is None else total_bytes - self._done_bytes
                try:
                    block = response.read1(min(_BLOCK_BYTES, missing))
                except (OSError, HTTPException) as error:
                    raise self._broken(error) from error
                if not block and total_bytes is not None:
                    raise _BrokenError(f"the connection ended {missing:,} bytes early")
                if not block:
                    break
                with self._disk_errors():
                    while block:
                        block = block[file.write(block) :]
                self._report()
            with self._disk_errors():
                os.fsync(file.fileno())  # before the rename, lest a power cut leave a short file under the final name

    def _report(self) -> None:
        if self.progress is not None:
            self.progress(self._done_bytes, self._total_bytes())

    # ---- errors

    def _check_kind(self, response: HTTPResponse) -> None:
        """Refuse anything but the file's own bytes: a web page (the login page of a network), or compressed bytes."""
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            raise self._error(f"the server compressed it ({encoding}), although not requested")
        is_page = response.headers.get_content_type() == "text/html" and "Content-Type" in response.headers
        if is_page and self.target.suffix not in (".html", ".htm"):
            raise self._error("expected a file, got a web page; does this network require a login?")

    def _broken(self, error: BaseException) -> _BrokenError:
        if isinstance(error, TimeoutError) and error.errno is None:
            return _BrokenError(f"the server was silent for {self.timeout_s:g} s")
        if isinstance(error, HTTPException):
            return _BrokenError(f"the connection ended early ({type(error).__name__})")
        return _BrokenError(str(error) or type(error).__name__)

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        """The exception for an error status: one that may pass, or a final one."""
        host = urllib.parse.urlsplit(error.url).hostname
        is_redirected = host not in (urllib.parse.urlsplit(self.url).hostname, None)
        reason = f"HTTP {error.code} {error.reason}" + (f" from {host}, to which it redirects" if is_redirected else "")
        if error.code >= 500 or error.code in _RETRIED_STATUSES:
            wait = error.headers.get("Retry-After", "")
            return _BrokenError(reason, retry_after_s=float(wait) if wait.isdecimal() else 0.0)
        return self._error(reason)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Report a failure of the disk as such: it must not pass for one of the network."""
        try:
            yield
        except OSError as error:
            raise self._error(f"writing it failed: {error}") from error

    def _error(self, reason: str, *, kept_bytes: int = 0) -> DownloadError:
        again = f" Run it again to resume after the {kept_bytes:,} bytes on disk." if kept_bytes else ""
        reason = " ".join(reason.split())  # some of Python's own span lines
        return DownloadError(
            f"could not download {self.url}: {reason}. Download it elsewhere and put it at {self.target}.{again}"
        )


def _validator(headers: HTTPMessage) -> str | None:
    etag = headers.get("ETag")
    if etag and etag.startswith('"'):  # a weak one (W/"...") does not promise the same bytes
        return str(etag)
    return headers.get("Last-Modified") or None
