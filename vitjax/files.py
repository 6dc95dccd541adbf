"""Files that appear whole or not at all, and what is said when they cannot be written."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from vitjax.errors import UserError


def replace(path: str | os.PathLike, data: str | bytes) -> None:
    """Writes `data` to `path` through a temporary file beside it: a reader sees the old or the new, whole.

    Raises UserError naming the path where the disk is full, the folder read-only and so on.
    """
    with replacing(path) as f:
        f.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a temporary file beside `path` that takes its place at the end of the context.

    If the context ends by an exception, what was at `path` stays. Raises UserError naming the path where the
    disk is full, the folder read-only and so on.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise cannot_write(path, e) from e
    finally:
        with contextlib.suppress(OSError):  # gone by its new name, or never made
            temporary.unlink()


def folder(path: str | os.PathLike) -> pathlib.Path:
    """The folder at `path`, made with its parents if it is missing. Raises UserError where it cannot be."""
    path = pathlib.Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise cannot_write(path, e) from e
    return path


def cannot_write(path: str | os.PathLike, error: OSError) -> UserError:
    """The UserError for an OSError met while writing `path`."""
    reason = error.strerror or str(error)
    return UserError(
        f"Cannot write {os.fspath(path)!r}: {reason}. "
        "Free or mount the space and make the folder writable, or name another workdir."
    )
