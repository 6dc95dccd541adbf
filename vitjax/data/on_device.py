"""A training set that lies on the devices, and its batches as a function of (seed, step), made there.

Each row of the stream has a position, as on the host (`pipeline.TrainRows`): step s begins at s * batch_size.
A position gives an epoch and a place in that epoch's order, and `shuffle.shuffled` says which example stands
there. So a batch depends on seed and step alone, not on devices, restarts, or how many steps are one program.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vitjax.data import device_memory, pipeline, shuffle
from vitjax.data.sources import Source
from vitjax.errors import UserError

CHUNK = 256  # examples that are read at once
MOST_POSITIONS = 2**32  # of the stream: they are counted in 32 bits on the device
HOST_REMEDY = "Read it on the host with config.input.on_device=False"


class Order(NamedTuple):
    """Which example stands at which position of the stream.

    Attributes:
      num_examples: N of the set.
      batch_size: rows of a global batch.
      repeats: views of each example in a row, see `pipeline.TrainRows`.
      passes: see `pipeline.examples_per_epoch`.
    """

    num_examples: int
    batch_size: int
    repeats: int = 1
    passes: int | None = None

    def indices(self, step: Any, seed: shuffle.Seed) -> Any:
        """Returns the examples uint32 `[batch_size]` of a step: NumPy of a number, jax of a traced int32."""
        first = (np.asarray(step) if isinstance(step, int) else step).astype(np.uint32)
        position = first * np.uint32(self.batch_size) + np.arange(self.batch_size, dtype=np.uint32)
        number, place = pipeline.shuffle_and_place(position, *self)
        return shuffle.shuffled(place, number, seed, self.num_examples)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("arrays", "seed"), meta_fields=("order", "rows")
)
@dataclasses.dataclass(frozen=True)
class DeviceSet:
    """The training set: an argument of the compiled step, never a constant in it.

    Attributes:
      arrays: `{"image": uint8 [M, H, W, C], "label": int32 [M]}`, M the number of examples rounded up to what
        the devices share evenly.
      seed: of the order.
      order: which of them stands where.
      rows: how the first axis of the arrays, and of a batch, lies on the devices.
    """

    arrays: dict[str, jax.Array]
    seed: shuffle.Seed
    order: Order
    rows: NamedSharding

    def indices(self, step: jax.Array) -> jax.Array:
        """Which examples the batch of a step, int32 scalar, holds: uint32 `[batch_size]`; traced."""
        return self.order.indices(step, self.seed)

    def batch(self, indices: jax.Array) -> dict[str, jax.Array]:
        """The global batch of these examples; traced."""
        return take(self.arrays, indices, self.rows)


def take(arrays: dict[str, jax.Array], indices: jax.Array, rows: NamedSharding) -> dict[str, jax.Array]:
    """Returns `array[indices]` for arrays whose rows are spread over devices; traced.

    Each device looks up the rows that it holds and gives every other device those of its part of the batch.
    """
    if device_memory.num_shards(rows) == 1:
        return {key: jnp.take(array, indices, axis=0, mode="clip") for key, array in arrays.items()}
    axis = rows.spec[0]

    def of_one_device(array: jax.Array, indices: jax.Array) -> jax.Array:
        here = indices.astype(jnp.int32) - jax.lax.axis_index(axis) * len(array)
        mine = (here >= 0) & (here < len(array))
        found = jnp.take(array, here, axis=0, mode="clip")
        found = jnp.where(mine.reshape(-1, *[1] * (array.ndim - 1)), found, jnp.zeros((), array.dtype))
        # One device at most has a row, so their sum is the row.
        addable = found.astype(jnp.uint8) if found.dtype == bool else found
        return jax.lax.psum_scatter(addable, axis, tiled=True).astype(array.dtype)

    spread = jax.shard_map(
        of_one_device,
        mesh=rows.mesh,
        in_specs=(PartitionSpec(axis), PartitionSpec()),
        out_specs=PartitionSpec(axis),
    )
    return {key: spread(array, indices) for key, array in arrays.items()}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What was put on the devices.

    Attributes:
      arrays: as `DeviceSet.arrays`.
      ids: int64 `[N]`, which example of the source each row is.
      skipped: how many broken examples this process put others in the place of (`on_error="skip"`).
    """

    arrays: dict[str, jax.Array]
    ids: np.ndarray
    skipped: int


def check(source: Source, spec: Mapping[str, Any], rows: NamedSharding, *, steps: int) -> None:
    """Refuses, before anything is read, a set or a run that is too large.

    Args:
      source: the examples.
      spec: a batch by shape.
      rows: how the rows will lie on the devices.
      steps: length of the run.
    """
    batch_size = next(iter(spec.values())).shape[0]
    device_memory.check_fits(
        source.name, len(source), spec, rows, f"{HOST_REMEDY}, or spread it over more devices."
    )
    if len(source) > shuffle.MOST or steps * batch_size >= MOST_POSITIONS:
        raise UserError(
            f"config.input.on_device counts examples in 32 bits: {steps:,} steps of {batch_size:,} of "
            f"{len(source):,} examples are too many. {HOST_REMEDY}."
        )


def load(
    source: Source,
    host_fn: pipeline.HostFn,
    spec: Mapping[str, Any],
    rows: NamedSharding,
    *,
    on_error: str,
    workers: int,
    num_classes: int,
    tell: Callable[[str], None] = print,
) -> Loaded:
    """Reads the whole set, each example once, and puts it on the devices.

    Every process reads the rows that its devices hold.

    Args:
      source: the examples.
      host_fn: the deterministic beginning of the preprocessing.
      spec: a batch by shape: what every example must look like.
      rows: how the rows lie on the devices.
      on_error: as for `pipeline.train_batches`; a broken example is replaced once, for the whole run.
      workers: processes that read; 0: threads of this one.
      num_classes: labels must be below it.
      tell: takes a line now and then where reading takes long.

    Raises:
      UserError: examples that cannot be read, labels out of range, examples of different shapes.
    """
    shards = device_memory.num_shards(rows)
    size = -(-len(source) // shards) * shards
    mine = [index[0] for index in rows.addressable_devices_indices_map((size,)).values() if index]
    start = min(part.start or 0 for part in mine)
    stop = max(size if part.stop is None else part.stop for part in mine)
    host = {key: np.zeros((stop - start, *leaf.shape[1:]), leaf.dtype) for key, leaf in spec.items()}
    ids, last = np.arange(len(source)), min(stop, len(source))
    batches = pipeline.each_once(
        source, host_fn, start, last, chunk=CHUNK, workers=workers, on_error=on_error, num_classes=num_classes
    )
    done, told = start, time.monotonic()
    try:
        for batch in batches:
            found = batch.pop("_id")
            ids[done : done + len(found)] = found
            for key, array in host.items():
                _check_shape(key, batch, spec[key], source)
                array[done - start : done - start + len(found)] = batch[key]
            done += len(found)
            if time.monotonic() - told > 5 and done < last:
                told = time.monotonic()
                tell(f"reading {source.name} for the devices: {done - start:,} of {last - start:,} examples")
        skipped = batches.skipped
    finally:
        batches.close()

    def put(array: np.ndarray) -> jax.Array:
        part = lambda index: array[(index[0].start or 0) - start : (index[0].stop or size) - start]
        return jax.make_array_from_callback((size, *array.shape[1:]), rows, part)

    return Loaded({key: put(array) for key, array in host.items()}, ids, skipped)


def _check_shape(key: str, batch: Mapping[str, np.ndarray], leaf: Any, source: Source) -> None:
    """Refuses examples that do not fit into one array with the first one."""
    found = batch[key].shape[1:] if key in batch else None
    if found != leaf.shape[1:]:
        raise UserError(
            f"config.input.on_device keeps {source.name} as one array, but {key!r} is {leaf.shape[1:]} in "
            f"the first example and {found or 'missing'} in a later one. Make them one size with "
            f"'resize(SIZE)' in config.input.pp. {HOST_REMEDY}, if sizes are to differ."
        )
