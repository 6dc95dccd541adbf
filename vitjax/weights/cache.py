"""Where fetched weights are kept, and whether a kept file is still what was fetched.

The folder is `$VITJAX_CACHE/weights`, by default `~/.cache/vitjax/weights`. Beside each file stands
`FILE.json` with its source, size and SHA-256. A file whose size and modification time are the recorded ones
is taken at its word; one that was touched is hashed again (350 MB take 0.2 s on a processor with instructions
for it, a few times that on others) and is damaged if the hash is another. A file that somebody put there
without a record is taken as it is.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import time

from vitjax.errors import UserError


def folder() -> pathlib.Path:
    """The folder of this user's kept weights; not made yet, perhaps."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    root = os.environ.get("VITJAX_CACHE") or os.path.join(home, "vitjax")
    return pathlib.Path(root).expanduser() / "weights"


def place(url: str, cache: pathlib.Path) -> pathlib.Path:
    """Where the file at an address is kept: a folder of its own, under the name that it has there."""
    name = re.sub(r"[^\w.+-]", "_", url.partition("?")[0].rpartition("/")[2]).strip(".")[-100:] or "file"
    return cache / "urls" / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises UserError if the file cannot be read."""
    try:
        with open(path, "rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise UserError(
            f"Cannot read {os.fspath(path)!r}: {e.strerror or e}. Make it readable, or delete it."
        ) from e


def kept(path: pathlib.Path) -> str | None:
    """The SHA-256 of a kept file, or None if there is none or it is damaged."""
    if not os.path.isfile(path):
        return None
    stat = path.stat()
    record = _read_record(path)
    if record.get("bytes") == stat.st_size and record.get("mtime_ns") == stat.st_mtime_ns:
        return record["sha256"]
    digest = sha256(path)
    if record and record["sha256"] != digest:
        return None
    with contextlib.suppress(OSError):  # somebody else's folder: it will be hashed the next time too
        _write_record(path, stat, record.get("source", "put there by hand"), digest)
    return digest


def keep(whole: pathlib.Path, path: pathlib.Path, source: str, digest: str) -> None:
    """Moves a whole, checked file to its place. The record comes first: no file is ever without one."""
    _write_record(path, whole.stat(), source, digest)
    os.replace(whole, path)


def temporary(path: pathlib.Path) -> pathlib.Path:
    """A name beside `path` that no other process uses; what was left there a day ago is removed."""
    for left in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - left.stat().st_mtime > 24 * 3600:
                left.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.part")


def cannot_keep(path: pathlib.Path, error: OSError) -> UserError:
    """The UserError for an OSError met while writing below the cache."""
    return UserError(
        f"Cannot keep fetched weights in {os.fspath(path.parent)!r}: {error.strerror or error}. "
        "Free space and make the folder writable, or set VITJAX_CACHE to another one."
    )


def _record(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(path.name + ".json")


def _read_record(path: pathlib.Path) -> dict:
    """What is recorded of a file; empty if nothing is or it cannot be read."""
    try:
        record = json.loads(_record(path).read_bytes())
        return record if isinstance(record, dict) and isinstance(record.get("sha256"), str) else {}
    except (OSError, ValueError):
        return {}


def _write_record(path: pathlib.Path, stat: os.stat_result, source: str, digest: str) -> None:
    record = {"source": source, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}
    written = temporary(_record(path))
    written.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(written, _record(path))
