"""Parameters and what else a model consists of, as one tree, the way files hold them.

A file names the running mean of a norm beside its scale, and so do we while weights are read and written:
`bn1/{scale, bias}` are parameters, `bn1/{mean, var}` batch statistics, and no name occurs in both. The same
goes for the random directions of a Performer, which nobody trains.
"""

from collections.abc import Mapping
from typing import Any

from vitjax.weights.tree import flatten, nest

COLLECTIONS = ("batch_stats", "random_features")  # as `layers` name them


def join(params: Mapping[str, Any], model_state: Mapping[str, Any]) -> dict[str, Any]:
    """One nested tree of the parameters and of those of `COLLECTIONS` that are in `model_state`."""
    flat = flatten(params)
    for collection in COLLECTIONS:
        flat |= flatten(model_state.get(collection, {}))
    return nest(flat)


def split(
    joined: Mapping[str, Any], model_state: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The inverse of `join`: `(params, {"batch_stats": ...})`; `model_state` says by name which is which."""
    flat, state = flatten(joined), {}
    for collection in COLLECTIONS:
        names = flatten(model_state.get(collection, {}))
        if found := {name: flat.pop(name) for name in names if name in flat}:
            state[collection] = nest(found)
    return nest(flat), state
