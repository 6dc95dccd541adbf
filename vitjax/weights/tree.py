"""Nested parameters and their flat names `a/b/c`; the blocks of an encoder as a loop or stacked."""

import re
from collections.abc import Mapping
from typing import Any


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a/b": 1}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
        )
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def is_stacked(name: str) -> bool:
    """Whether it names a parameter that is stacked over the blocks, by `nn.scan`."""
    return "encoderblock" in name.split("/")


def of_block(name: str, number: int) -> str:
    """The name that a stacked parameter has in one block of the loop."""
    return re.sub(r"(?<![^/])encoderblock(?![^/])", f"encoderblock_{number}", name)
