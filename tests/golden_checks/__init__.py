"""Checks of golden files: which one a file needs is decided by the JSON `config` inside it.

A file that is JSON itself is all config; a list of cases in it is taken as `{"cases": [...]}`.

A family joins by a module in this folder that decorates its check with `@checks(...)`.
"""

import importlib
import json
import pathlib
import pkgutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]
_CHECKS: list[tuple[Callable[[dict], bool], Callable[[dict, Arrays], None]]] = []


def checks(matches: Callable[[dict[str, Any]], bool]):
    """Registers a check `(config, arrays) -> None` for the files whose config `matches`."""

    def register(check):
        _CHECKS.append((matches, check))
        return check

    return register


def run(path: pathlib.Path) -> None:
    """Checks one file. A file that no check claims fails: an unchecked golden proves nothing."""
    config, arrays = read(path)
    found = [check for matches, check in _CHECKS if matches(config)]
    if not found:
        pytest.fail(
            f"Nothing checks {path.name}: no module of tests/golden_checks claims a config with "
            f"family={config.get('family')!r} and the keys {sorted(config)}.",
            pytrace=False,
        )
    for check in found:
        check(config, arrays)


def read(path: pathlib.Path) -> tuple[dict[str, Any], Arrays]:
    """Returns the config and the arrays of a file."""
    if path.suffix == ".json":
        config = json.loads(path.read_text())
        # What a case is about may lie in files beside it.
        return (config if isinstance(config, dict) else {"cases": config}) | {"folder": path.parent}, {}
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    return (json.loads(str(arrays.pop("config"))) if "config" in arrays else {}), arrays


def below(arrays: Arrays, prefix: str) -> Arrays:
    """Returns the entries whose key begins with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
