"""Mesh, placement of parameters, and moving batches onto the devices.

The mesh and the rules are config. The default, one `data` axis over all devices and replicated parameters,
is data parallelism; a rule such as `(r".*MlpBlock_0/Dense_0/kernel", (None, "model"))` on a mesh
`(("data", -1), ("model", 2))` is model parallelism, and nothing else changes.
"""

import collections
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vitjax.errors import UserError, nearest

DATA_AXIS = "data"
TRAVELLERS = ("_mask", "_teacher_logits")  # entries of the pipeline's own that the devices need


def start_processes() -> None:
    """Joins this process to the others of a TPU pod, a Slurm job or a hand-started group.

    Addresses come from the cluster where jax knows it, else from JAX_COORDINATOR_ADDRESS,
    JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    number, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    jax.distributed.initialize(
        coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
        num_processes=int(number) if number else None,
        process_id=int(index) if index else None,
    )


def make_mesh(axes: Sequence[tuple[str, int]] = ((DATA_AXIS, -1),)) -> Mesh:
    """Builds the mesh of `(axis, size)` pairs over all devices; one size may be -1.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or there is no `data` axis.
    """
    pairs = [axis if isinstance(axis, list | tuple) else () for axis in axes]
    if any(len(axis) != 2 or type(axis[0]) is not str or type(axis[1]) is not int for axis in pairs):
        raise UserError(
            f"config.mesh {tuple(axes)} must be (axis, size) pairs, such as (('data', -1), ('model', 2))."
        )
    names = tuple(name for name, _ in axes)
    sizes = [size for _, size in axes]
    if len(set(names)) < len(names):
        raise UserError(f"config.mesh {tuple(axes)} names an axis twice.")
    devices = jax.device_count()
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) == 1 and known > 0 and devices % known == 0:
        sizes[sizes.index(-1)] = devices // known
    if int(np.prod(sizes)) != devices or -1 in sizes:
        raise UserError(
            f"config.mesh {tuple(axes)} does not fit {devices} devices: the sizes must multiply to it."
        )
    if DATA_AXIS not in names:
        raise UserError(f"config.mesh {tuple(axes)} has no axis {DATA_AXIS!r}, over which batches are split.")
    return jax.make_mesh(tuple(sizes), names, axis_types=(AxisType.Auto,) * len(names))


def check_batch_size(
    batch_size: int, mesh: Mesh, *, accumulation: int = 1, key: str = "input.batch_size"
) -> None:
    """Raises UserError unless every device gets the same number of rows of every slice of a batch."""
    if accumulation < 1:
        raise UserError(f"config.grad_accum = {accumulation} must be 1 or more slices of a batch.")
    parts = mesh.shape[DATA_AXIS] * accumulation
    if batch_size < 1 or batch_size % parts:
        slices = f" times {accumulation} accumulation slices" if accumulation > 1 else ""
        below = batch_size - batch_size % parts
        near = " or ".join(str(n) for n in (below, below + parts) if n > 0)
        raise UserError(
            f"config.{key} = {batch_size} does not divide by {mesh.shape[DATA_AXIS]} devices on the "
            f"{DATA_AXIS!r} axis{slices}: take {near}, or change config.mesh."
        )


def state_shardings(state: Any, rules: Sequence[tuple[str, Any]], mesh: Mesh) -> Any:
    """Gives every leaf of a train state its placement: the first rule whose regex its name matches fully.

    Args:
      state: pytree of shapes. The name of a leaf is its path without the field of the train state, so that
        `params`, the moments of the optimizer and the averaged parameters follow the same rules.
      rules: `(regex, placement)` pairs; a placement is `"replicate"`, `"fsdp"` (the largest dimension that
        divides is split over `data`; leaves under 4 MiB stay whole) or a tuple of axis names and Nones.
      mesh: the device mesh.

    Returns:
      A pytree of NamedShardings. Leaves that match no rule, and scalars, are replicated.
    """
    compiled = [_rule(rule) for rule in rules]
    parameters = {
        _name(path) for path, _ in jax.tree_util.tree_leaves_with_path(getattr(state, "params", state))
    }
    leaves = {_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)}

    for pattern, _ in compiled:
        if not any(map(pattern.fullmatch, parameters | leaves)):
            hint = nearest(pattern.pattern, parameters)
            raise UserError(f"config.sharding: {pattern.pattern!r} matches no parameter.{hint}")

    def place(path, leaf):
        name = _name(path)
        # A moment is named `opt_state/.../mu/head/kernel`: the parameter is the longest tail that exists.
        parts = name.split("/")
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        tail = next((t for t in tails if t in parameters), name)
        for pattern, placement in compiled:
            if pattern.fullmatch(tail):
                return NamedSharding(mesh, _spec(leaf, placement, mesh, tail))
        return NamedSharding(mesh, P())

    return jax.tree_util.tree_map_with_path(place, state)


def _rule(rule: Any) -> tuple[re.Pattern[str], Any]:
    """A rule with its regex compiled; raises UserError for what is no rule."""
    if not isinstance(rule, list | tuple) or len(rule) != 2 or type(rule[0]) is not str:
        raise UserError(
            f"config.sharding: {rule!r} must be a pair (regex, placement), such as ('.*', 'fsdp')."
        )
    try:
        return re.compile(rule[0]), rule[1]
    except re.error as error:
        raise UserError(f"config.sharding: {rule[0]!r} is not a regular expression: {error}.") from error


def _spec(leaf: Any, placement: Any, mesh: Mesh, name: str) -> P:
    if placement == "replicate" or not leaf.shape:
        return P()
    if placement == "fsdp":
        size = mesh.shape[DATA_AXIS]
        large = leaf.size * leaf.dtype.itemsize >= 4 * 2**20
        free = [dim for dim in np.argsort(leaf.shape)[::-1] if leaf.shape[dim] % size == 0]
        return (
            P(*[DATA_AXIS if dim == free[0] else None for dim in range(leaf.ndim)]) if large and free else P()
        )
    if not isinstance(placement, list | tuple):
        raise UserError(
            f"config.sharding: unknown placement {placement!r}; take 'replicate', 'fsdp' or axis names."
        )
    if len(placement) > leaf.ndim:
        # A factored moment has fewer dimensions than its parameter; it is small, so it stays whole.
        return P()
    split = [axis for axis in placement if axis is not None]
    if any(split.count(axis) > 1 for axis in split):
        raise UserError(f"config.sharding: {placement!r} splits two dimensions of {name} over one axis.")
    for dim, axis in enumerate(placement):
        if axis is not None and (axis not in mesh.axis_names or leaf.shape[dim] % mesh.shape[axis]):
            raise UserError(
                f"config.sharding: dimension {dim} of {name} (shape {leaf.shape}) cannot be split over axis "
                f"{axis!r} of mesh {dict(mesh.shape)}."
            )
    return P(*placement)


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts host arrays, the same on every process, whole on every device."""
    everywhere = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, everywhere, lambda index: x[index]),
        jax.tree.map(np.asarray, tree),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The placement of a batch: rows split over the `data` axis."""
    return NamedSharding(mesh, P(DATA_AXIS))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on its devices; of the `_`-keys only `TRAVELLERS` do."""
    rows = batch_sharding(mesh)
    return {
        key: jax.make_array_from_process_local_data(rows, value)
        for key, value in batch.items()
        if not key.startswith("_") or key in TRAVELLERS
    }


def prefetch(batches: Iterable[dict], mesh: Mesh, ahead: int = 2) -> Iterator[tuple[dict, dict]]:
    """Yields `(host batch, device batch)` with `ahead` transfers under way."""
    queue: collections.deque = collections.deque()
    for batch in batches:
        queue.append((batch, put_batch(batch, mesh)))
        if len(queue) > ahead:
            yield queue.popleft()
    yield from queue
