"""One file from one address: whole and checked in its place, or the reason why not.

`https://` and `http://` go through the standard library. `gs://bucket/file` is read over https without
credentials and, if that is refused and `gcsfs` is installed, once more with the user's own. `hf://org/repo/file`
(or `hf://org/repo@revision/file`) is a file on the Hugging Face hub, or on the host in `$HF_ENDPOINT`. Any
other scheme is fsspec's, with the package that fsspec needs for it (`s3://`: s3fs).

A file is checked against whatever is known of it: the size that the server names, the MD5 in Google's
`x-goog-hash`, the SHA-256 in the hub's `X-Linked-Etag`, and the SHA-256 that the caller expects.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.client
import importlib.util
import os
import pathlib
import re
import socket
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import IO, TypeVar

import vitjax
from vitjax.weights import cache

TIMEOUT = 30.0  # seconds without a byte
WAITS = (0.5, 2.0)  # seconds before the second and the third attempt
GOOGLE_STORAGE = "https://storage.googleapis.com"
HUB = "https://huggingface.co"

_CHUNK = 1 << 20
_Result = TypeVar("_Result")


class Refused(Exception):
    """Why an address did not give the file, in half a sentence.

    `again`: the reason may be gone at the next attempt. `answered`: the place is there and says no.
    """

    def __init__(self, reason: str, *, again: bool = False, answered: bool = False):
        super().__init__(reason)
        self.again, self.answered = again, answered


@dataclasses.dataclass
class _Promised:
    """What a server says about the file that it sends."""

    size: int | None = None
    md5: bytes | None = None
    sha256: str | None = None


def fetch(url: str, path: pathlib.Path, *, sha256: str | None = None) -> None:
    """Fetches the file at `url` to `path`, which appears whole and checked or not at all.

    Raises Refused with the reason, and UserError where the cache cannot be written.
    """
    _first_of(_routes(url), lambda route: _fetch(route, path, sha256))


def text(url: str) -> str | None:
    """The small text file at `url`, None if its place says that there is none, Refused if it says nothing."""

    def read(route: str) -> str:
        with _open(route) as (stream, promised):
            return _read(stream, 0, promised).decode("utf-8", errors="replace")

    try:
        return _first_of(_routes(url), read)
    except Refused as e:
        if e.answered:
            return None
        raise


def without_secrets(url: str) -> str:
    """The address without its query, which may hold a signature."""
    return url.partition("?")[0]


def _first_of(routes: list[str], get: Callable[[str], _Result]) -> _Result:
    """What the first route gives that gives anything; a refusal that may pass is tried again."""
    refusals = []
    for route in routes:
        for wait in (*WAITS, None):
            try:
                return get(route)
            except Refused as e:
                if not e.again or wait is None:
                    refusals.append(e)
                    break
                time.sleep(wait)
    raise Refused("; ".join(map(str, refusals)), answered=all(e.answered for e in refusals))


def _routes(url: str) -> list[str]:
    """The ways to an address that are worth trying, in order."""
    scheme, _, rest = url.partition("://")
    if scheme == "gs":
        public = f"{GOOGLE_STORAGE}/{urllib.parse.quote(rest)}"
        return [public, url] if importlib.util.find_spec("gcsfs") else [public]
    if scheme == "hf":
        found = re.fullmatch(r"([^/@]+)/([^/@]+)(?:@([^/]+))?/(.+)", rest)
        if not found:
            raise Refused("an address on the hub is hf://ORGANISATION/REPOSITORY/FILE")
        organisation, repository, revision, file = found.groups()
        hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
        path = urllib.parse.quote(f"{organisation}/{repository}/resolve/{revision or 'main'}/{file}")
        return [f"{hub}/{path}"]
    return [url]


def _fetch(url: str, path: pathlib.Path, expected: str | None) -> None:
    with _open(url) as (stream, promised):
        temporary = cache.temporary(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = _receive(stream, temporary, promised, path.name)
            if promised.sha256 not in (None, digest):
                raise Refused("the file came with another SHA-256 than the server says", again=True)
            if expected not in (None, digest):
                raise Refused(f"the file has the SHA-256 {digest}, not {expected}")
            cache.keep(temporary, path, without_secrets(url), digest)
        except OSError as e:
            raise cache.cannot_keep(path, e) from e
        finally:
            with contextlib.suppress(OSError):  # as a rule it was moved away
                temporary.unlink()


def _receive(stream: IO[bytes], temporary: pathlib.Path, promised: _Promised, name: str) -> str:
    """Writes the stream to a file, checks size and MD5, and returns the SHA-256."""
    sha256 = hashlib.sha256()
    md5 = hashlib.md5(usedforsecurity=False) if promised.md5 else None
    size = 0
    with open(temporary, "xb") as f, _Progress(name, promised.size) as progress:
        while chunk := _read(stream, size, promised):
            f.write(chunk)
            sha256.update(chunk)
            if md5:
                md5.update(chunk)
            size += len(chunk)
            progress.show(size)
        f.flush()
        os.fsync(f.fileno())
    if promised.size is not None and size != promised.size:
        raise Refused(f"the transfer ended after {size} of {promised.size} bytes", again=True)
    if md5 and md5.digest() != promised.md5:
        raise Refused("the file came with another MD5 than the server says", again=True)
    return sha256.hexdigest()


def _read(stream: IO[bytes], so_far: int, promised: _Promised) -> bytes:
    try:
        return stream.read(_CHUNK)
    except Exception as e:  # a storage library raises what it likes; ours must not look like a full disk
        of = f" of {promised.size}" if promised.size is not None else ""
        raise Refused(f"the transfer ended after {so_far}{of} bytes ({_why(e)})", again=True) from e


@contextlib.contextmanager
def _open(url: str) -> Iterator[tuple[IO[bytes], _Promised]]:
    if url.startswith(("https://", "http://")):
        stream, promised = _open_http(url)
    else:
        stream, promised = _open_fsspec(url)
    with contextlib.closing(stream):
        yield stream, promised


def _open_http(url: str) -> tuple[IO[bytes], _Promised]:
    redirects = _Redirects()
    request = urllib.request.Request(url, headers={"User-Agent": f"vitjax/{vitjax.__version__}"})
    try:
        response = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        e.close()
        busy = e.code in (408, 429) or e.code >= 500
        raise Refused(f"{e.code} {e.reason}", again=busy, answered=not busy) from e
    except (OSError, http.client.HTTPException) as e:
        mute = isinstance(getattr(e, "reason", e), TimeoutError)  # three times as long would be too long
        raise Refused(_why(e), again=not mute) from e
    except ValueError as e:
        raise Refused(_why(e)) from e
    headers = response.headers
    if headers.get_content_type() == "text/html":
        response.close()
        raise Refused("the answer is a web page, not a file", answered=True)
    size = headers.get("Content-Length", "")
    md5 = re.search(r"md5=([\w+/]{22}==)", ",".join(headers.get_all("x-goog-hash", [])))
    return response, _Promised(
        size=int(size) if size.isdecimal() else None,
        md5=base64.b64decode(md5[1]) if md5 else None,
        sha256=redirects.sha256 or _linked_sha256(headers),
    )


def _linked_sha256(headers: http.client.HTTPMessage) -> str | None:
    """The hub's checksum of a large file; of a small one the header is no SHA-256 or is not there."""
    found = re.fullmatch(r'"?([0-9a-fA-F]{64})"?', headers.get("X-Linked-Etag", ""))
    return found[1].lower() if found else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not out of https, and keeps the checksum that the hub sends with them."""

    def __init__(self):
        self.sha256: str | None = None

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (req.type == "https" or scheme != "http"):
            raise Refused(f"it redirects to {without_secrets(newurl)}, which is not https")
        self.sha256 = self.sha256 or _linked_sha256(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open_fsspec(url: str) -> tuple[IO[bytes], _Promised]:
    import fsspec.core

    try:
        system, path = fsspec.core.url_to_fs(url)
        info = system.info(path)
        if info.get("type") == "directory":
            raise Refused("it is a folder, not a file", answered=True)
        return system.open(path, "rb"), _Promised(size=info.get("size"))
    except Refused:
        raise
    except FileNotFoundError as e:
        raise Refused("there is no such file", answered=True) from e
    except PermissionError as e:
        raise Refused(f"permission denied ({_why(e)})", answered=True) from e
    except Exception as e:  # every storage library has errors of its own
        raise Refused(_why(e)) from e


def _why(error: BaseException) -> str:
    """An exception in half a line."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"no answer for {TIMEOUT:g} seconds"
    if isinstance(error, socket.gaierror):
        return f"no network, or no such host: {error.strerror}"
    words = " ".join(str(getattr(error, "strerror", None) or error).split())
    return words[:200] or type(error).__name__


class _Progress:
    """A line on a terminal's standard error about a transfer that takes more than a second."""

    def __init__(self, name: str, size: int | None):
        self._name = name if len(name) <= 40 else f"{name[:39]}…"
        self._size = size
        self._next = time.monotonic() + 1.0 if sys.stderr.isatty() else float("inf")
        self._shown = False

    def __enter__(self) -> "_Progress":
        return self

    def show(self, done: int) -> None:
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.25
        self._shown = True
        of = f" of {self._size / 1e6:.0f} MB, {done / self._size:.0%}" if self._size else " MB"
        print(f"\r{self._name}: {done / 1e6:.0f}{of}", end="", file=sys.stderr, flush=True)

    def __exit__(self, *_) -> None:
        if self._shown:
            print(file=sys.stderr)
