"""From a name of weights to a file on this machine."""

import pathlib

from vitjax.errors import UserError


def resolve(source: str) -> pathlib.Path:
    """Returns a local path as it is. UserError for anything else."""
    if "://" in source or source.startswith("augreg:"):
        raise UserError(f"{source!r} is no local file.")
    return pathlib.Path(source).expanduser()
