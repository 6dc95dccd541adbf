"""Parameters and batch statistics as one tree, the way files hold them.

A file names the running mean of a norm beside its scale, and so do we while weights are read and written:
`bn1/{scale, bias}` are parameters, `bn1/{mean, var}` batch statistics, and no name occurs in both.
"""

from collections.abc import Mapping
from typing import Any

from vitjax.weights.tree import flatten, nest

BATCH_STATS = "batch_stats"


def join(params: Mapping[str, Any], model_state: Mapping[str, Any]) -> dict[str, Any]:
    """One nested tree of the parameters and the batch statistics in `model_state`, if there are any."""
    return nest(flatten(params) | flatten(model_state.get(BATCH_STATS, {})))


def split(
    joined: Mapping[str, Any], model_state: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The inverse of `join`: `(params, {"batch_stats": ...})`; `model_state` says by name which is which."""
    flat, statistics = flatten(joined), flatten(model_state.get(BATCH_STATS, {}))
    params = nest({name: leaf for name, leaf in flat.items() if name not in statistics})
    found = {name: leaf for name, leaf in flat.items() if name in statistics}
    return params, {BATCH_STATS: nest(found)} if found else {}
