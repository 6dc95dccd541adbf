"""Batches of examples as a pure function of (seed, step).

What a batch holds is computed from its step alone: the step gives stream positions; a position gives an
epoch and a place in that epoch's permutation, and it seeds the random numbers of its example. Grain runs
this function ahead of the training loop, in threads or worker processes. So neither their number, nor the
number of hosts, nor a restart can change a batch, and the step is the whole state of the input.
"""

import atexit
import contextlib
import dataclasses
import functools
import gc
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags, logging

from vitjax.data.sources import Source
from vitjax.errors import UserError

HostFn = Callable[[dict[str, Any], np.random.Generator], dict[str, Any]]

# What reading and decoding raise for a damaged example; anything else is a fault of the code.
BROKEN = (UserError, ValueError, OSError, EOFError, cv2.error)
# More broken examples in a row than this, with on_error="skip", is no accident.
MAX_REPLACEMENTS = 50


def train_batches(
    source: Source,
    host_fn: HostFn,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    on_error: str = "raise",
    process_index: int = 0,
    process_count: int = 1,
    num_classes: int | None = None,
    repeats: int = 1,
    by_position: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
    passes: int | None = None,
) -> "BatchIterator":
    """Yields this process's rows of every training batch from `start_step` on, for ever.

    Each epoch is shuffled anew; a batch may end one epoch and begin the next, but for `repeats` above 1 and
    with `passes` (see `TrainRows`). The rows of all processes, one process after another, are the rows that a
    single process would have had.

    Args:
      source: the examples.
      host_fn: `host_fn(example, rng) -> example`, for one example; the generator is good for the call only.
      batch_size: examples in a batch, over all processes.
      seed: the seed of order and augmentation, in [0, 2**63).
      start_step: how many batches of the stream to pass over; costs nothing.
      workers: worker processes; 0 reads in threads of this process.
      on_error: `raise` turns the first example that cannot be read into a UserError that names it; `skip`
        puts another in its place, drawn from (seed, position), and counts it in `BatchIterator.skipped`.
      process_index: which process this is.
      process_count: how many processes share the batch.
      num_classes: labels must be below it; by default `source.num_classes`.
      repeats: views of each example, one after another, each with random numbers of its own.
      by_position: further entries of a batch, as functions of the stream positions int64 `[B]` of its rows;
        row b of the batch of step s is at position s * batch_size + b.
      passes: makes an epoch of so many rows for each example, in whole batches; see `examples_per_epoch`.

    Returns:
      An iterator over dicts of arrays, example axis first, with `_id` int64 `[B]`: the index in `source`.

    Raises:
      UserError: for a batch that cannot be divided and, while iterating, for damaged examples, labels out of
        range and images that do not stack.
    """
    local = _local(batch_size, process_index, process_count)
    rows = TrainRows(len(source), local, batch_size, seed, repeats, passes)
    make = BatchMaker(
        source, host_fn, rows, seed, on_error, num_classes or source.num_classes, by_position or {}
    )
    return BatchIterator(make, start_step, sys.maxsize // 2, workers)


def eval_batches(
    source: Source,
    host_fn: HostFn,
    *,
    batch_size: int,
    workers: int = 0,
    on_error: str = "raise",
    process_index: int = 0,
    process_count: int = 1,
    num_classes: int | None = None,
) -> "BatchIterator":
    """Yields this process's rows of batches that together hold every example once, in order.

    Every process makes the same number of batches of the same shape; what is missing in the last one is
    filled with rows whose `_mask` is False and whose `_id` is -1. Arguments are those of `train_batches`;
    with `on_error="skip"` the row of a broken example is masked out and counted.

    Returns:
      An iterator over dicts of arrays as from `train_batches`, with `_mask` bool `[B]` besides. Its `len()`
      is the number of batches to come.
    """
    rows = EvalRows(len(source), _local(batch_size, process_index, process_count), batch_size)
    make = BatchMaker(source, host_fn, rows, 0, on_error, num_classes or source.num_classes)
    return BatchIterator(make, 0, -(-len(source) // batch_size), workers)


def each_once(
    source: Source,
    host_fn: HostFn,
    start: int,
    stop: int,
    *,
    chunk: int,
    workers: int = 0,
    on_error: str = "raise",
    num_classes: int,
) -> "BatchIterator":
    """Yields examples `[start, stop)` in order, `chunk` at a time and the rest at last; nothing is padded.

    Arguments are those of `train_batches`; with `on_error="skip"` another example takes the place of a broken
    one, as there, whatever the seed of the run.
    """
    make = BatchMaker(source, host_fn, ChunkRows(start, stop, chunk), 0, on_error, num_classes)
    return BatchIterator(make, 0, -(-(stop - start) // chunk), workers)


def first_example(
    source: Source, host_fn: HostFn, *, on_error: str, num_classes: int
) -> dict[str, np.ndarray]:
    """A batch of one: the first example, or with `on_error="skip"` another one if it is broken.

    Raises:
      UserError: as `train_batches` does while iterating.
    """
    rows = EvalRows(len(source), slice(0, 1), 1)
    examples = BatchMaker(source, host_fn, rows, 0, on_error, num_classes)
    example, _, _ = examples._example(ExampleRandom(0), 0, 0)
    return stack([example])


def _local(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that belong to one process: a contiguous block."""
    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size={batch_size} cannot be divided by the {process_count} processes. "
            f"Choose a multiple of {process_count}."
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def examples_per_epoch(
    num_examples: int, *, batch_size: int, repeats: int = 1, passes: int | None = None
) -> int:
    """Returns how many rows of the stream an epoch is.

    With `repeats` 1 it is every example once. Repeated augmentation keeps an epoch as long as that, not
    `repeats` times as long: it is the first num_examples // 256 * 256 rows (DeiT's samplers.py; all of
    num_examples where that is 0, as timm 1.x), less those that fill no batch, as DeiT's loader drops them; an
    epoch that is less than one batch is left as it is. Only ceil(rows / repeats) different examples occur in
    it, a random third for `repeats` 3: 427,008 of the 1,281,167 of ImageNet at batch 1024, in 1,251 steps.

    With `passes`, an epoch is passes * num_examples rows less those that fill no batch, whatever `repeats`
    is, as in the sampler of MultiGrain (arXiv 1902.05509), where it is `len_factor`. So 3 passes of CIFAR's
    50,000 images at batch 128 are 1,171 steps; with `repeats` 3 as well, they are three views of each image.
    """
    if passes is None and repeats == 1:
        return num_examples
    rows = num_examples * passes if passes else num_examples // 256 * 256 or num_examples
    return rows // batch_size * batch_size or rows


def shuffle_and_place(
    positions: Any, num_examples: int, batch_size: int, repeats: int = 1, passes: int | None = None
) -> tuple[Any, Any]:
    """Returns of stream positions which shuffle of the examples each is in, and which place in it.

    Arrays of whole numbers of any kind, NumPy's or jax's; the others are arguments of `examples_per_epoch`.
    """
    rows = examples_per_epoch(num_examples, batch_size=batch_size, repeats=repeats, passes=passes)
    epochs, places = positions // rows, positions % rows // repeats
    if passes is None:
        return epochs, places
    return epochs * passes + places // num_examples, places % num_examples


@dataclasses.dataclass
class TrainRows:
    """Which examples training step `step` consists of.

    With `repeats` above 1, repeated augmentation (Hoffer et al., arXiv 1901.09335; Berman et al., arXiv
    1902.05509) as DeiT's sampler does it: the order of an epoch holds each example `repeats` times in a row,
    and step t of the epoch is its positions [t B, (t + 1) B), which is what DeiT's processes together take.
    There the views of an example fall to different processes; here they are neighbouring rows, so an op that
    mixes row i with row B - 1 - i mixes views of one example in the middle of the batch only. The order of
    DeiT's epochs depends on the epoch alone, ours on the seed as well.

    With `passes`, an epoch goes through one fresh permutation after another until its rows are full.
    """

    num_examples: int
    local: slice
    batch_size: int
    seed: int
    repeats: int = 1
    passes: int | None = None

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns stream positions int64 `[B]`, indices into the source int64 `[B]`, and no mask."""
        first = step * self.batch_size
        positions = np.arange(first + self.local.start, first + self.local.stop)
        shuffles, places = shuffle_and_place(
            positions, self.num_examples, self.batch_size, self.repeats, self.passes
        )
        indices = np.empty_like(positions)
        for shuffle in np.unique(shuffles):
            now = shuffles == shuffle
            order = _permutation(self.seed, int(shuffle), self.num_examples)
            indices[now] = order[places[now]]
        return positions, indices, None


@functools.lru_cache(maxsize=4)  # the epochs that end and begin, for two streams
def _permutation(seed: int, number: int, num_examples: int) -> np.ndarray:
    """The order of one epoch, or of one of its passes: 80 ms and 5 MB for ImageNet-1k, once an epoch."""
    kind = np.uint32 if num_examples < 2**32 else np.uint64
    return np.random.default_rng([seed, number]).permutation(np.arange(num_examples, dtype=kind))


@dataclasses.dataclass
class EvalRows:
    """Which examples evaluation batch `step` consists of."""

    num_examples: int
    local: slice
    batch_size: int

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns positions int64 `[B]`, indices int64 `[B]`, and the mask bool `[B]` of rows that count."""
        first = step * self.batch_size
        positions = np.arange(first + self.local.start, first + self.local.stop)
        # Padding repeats the last example, so that it has the right shapes.
        return positions, np.minimum(positions, self.num_examples - 1), positions < self.num_examples


@dataclasses.dataclass
class ChunkRows:
    """Which examples chunk `step` of the examples `[start, stop)` consists of."""

    start: int
    stop: int
    chunk: int

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns positions and indices, which are the same, int64 `[B]`, and no mask."""
        first = self.start + step * self.chunk
        indices = np.arange(first, min(first + self.chunk, self.stop))
        return indices, indices, None


class ExampleRandom:
    """The random numbers of each example: Philox keyed by (seed, position).

    Setting the key of one generator is six times faster than making a generator for each example.
    """

    def __init__(self, seed: int):
        self._seed = seed
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._buffer = np.zeros(4, np.uint64)

    def at(self, position: int, attempt: int) -> np.random.Generator:
        """The generator at its start for `attempt` (0 unless an example had to be replaced) at `position`."""
        self._bits.state = {
            "bit_generator": "Philox",
            # The counter's lower words count the numbers drawn; its upper word can tell attempts apart.
            "state": {"counter": (0, 0, 0, attempt), "key": (self._seed, position)},
            "buffer": self._buffer,
            "buffer_pos": 4,
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._generator


@dataclasses.dataclass
class BatchMaker:
    """`maker(step)`: the batch of a step, with the messages of the examples it had to pass over."""

    source: Source
    host_fn: HostFn
    rows: TrainRows | EvalRows | ChunkRows
    seed: int
    on_error: str
    num_classes: int
    by_position: Mapping[str, Callable[[np.ndarray], np.ndarray]] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.on_error not in ("raise", "skip"):
            raise UserError(f"on_error={self.on_error!r} must be 'raise' or 'skip'.")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed={self.seed} must be a whole number in [0, 2**63).")

    def __call__(self, step: int) -> tuple[dict[str, np.ndarray], list[str]]:
        """Returns the batch and the messages."""
        positions, indices, mask = self.rows(step)
        random = ExampleRandom(self.seed)
        examples, ids, skipped = [], indices.copy(), []
        for row, (position, index) in enumerate(zip(positions.tolist(), indices.tolist(), strict=True)):
            if mask is not None and not mask[row] and examples:
                examples.append(examples[-1])
                continue
            example, found, problem = self._example(random, position, index)
            examples.append(example)
            if mask is None:
                ids[row] = found
            if problem and (mask is None or mask[row]):
                skipped.append(problem)
                if mask is not None:
                    mask[row] = False
        batch = stack(examples)
        batch |= {key: rows(positions) for key, rows in self.by_position.items()}
        batch["_id"] = ids if mask is None else np.where(positions < len(self.source), ids, -1)
        if mask is not None:
            batch["_mask"] = mask
        return batch, skipped

    def _example(self, random: ExampleRandom, position: int, index: int) -> tuple[dict[str, Any], int, str]:
        """The preprocessed example at `position`, its index, and why that is not `index`, if it is not."""
        first_problem = ""
        for attempt in range(MAX_REPLACEMENTS):
            rng = random.at(position, attempt)
            index = index if attempt == 0 else int(rng.integers(len(self.source)))
            try:
                example = self.source[index]
                label = example.get("label")
                example = self.host_fn(example, rng)
            except BROKEN as error:
                problem = f"{self.source.describe(index)} cannot be read: {error}"
                if self.on_error == "raise":
                    raise UserError(
                        f"{problem.rstrip('.')}. Mend or remove it, or let such examples be passed over and "
                        "counted with on_error='skip'."
                    ) from error
                first_problem = first_problem or problem
                continue
            self._check_label(label, index)
            return example, index, first_problem
        raise UserError(f"{MAX_REPLACEMENTS} examples in a row cannot be read. The first: {first_problem}")

    def _check_label(self, label: Any, index: int) -> None:
        """Refuses a class number out of range, which no loss would notice: its one-hot vector is zero."""
        if label is not None and np.ndim(label) == 0 and not 0 <= label < self.num_classes:
            raise UserError(
                f"the label of {self.source.describe(index)} is {label}, but there are {self.num_classes} "
                f"classes, so labels go from 0 to {self.num_classes - 1}."
            )


def stack(examples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Stacks examples along a new first axis; raises UserError for values that have no common shape."""
    batch = {}
    for key, first in examples[0].items():
        if isinstance(first, (bytes, str)):
            raise UserError(
                f"{key!r} is still encoded after preprocessing. Begin the pp string with 'decode'."
            )
        try:
            batch[key] = np.stack([example[key] for example in examples])
        except (ValueError, KeyError) as error:
            shapes = sorted({np.shape(example.get(key, ())) for example in examples})
            raise UserError(
                f"{key!r} has different shapes within a batch: {', '.join(map(str, shapes[:4]))}. "
                "Let the pp string end in one size, for example with 'resize(224)'."
            ) from error
    return batch


class BatchIterator(Iterator[dict[str, np.ndarray]]):
    """Iterates over the batches of steps `[start, stop)`, which are made ahead of time.

    `skipped` counts the rows of the batches yielded so far, on this process, whose example was broken:
    replaced in training, masked out in evaluation. It comes with each batch, so it is exact with workers too.
    """

    def __init__(self, make: BatchMaker, start: int, stop: int, workers: int):
        self.skipped = 0
        self._remaining = stop - start
        cv2.setNumThreads(0)  # batches are made in parallel already
        steps = grain.MapDataset.range(start, stop).map(make)
        if workers:
            _allow_grain_flags()
            atexit.unregister(_free_shared_memory)  # so that it is registered once
            atexit.register(_free_shared_memory)
            options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            processes = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1)
            batches = steps.to_iter_dataset(options).mp_prefetch(processes, worker_init_fn=_start_worker)
        else:
            threads = min(8, max(2, os.cpu_count() or 1))
            batches = steps.to_iter_dataset(
                grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
            )
        self._running: list[Any] = [iter(batches)]
        # A forgotten iterator is closed too, at the latest at exit: Grain would be slow and noisy there.
        self._close = weakref.finalize(self, _close_all, self._running)

    def __len__(self) -> int:
        return self._remaining

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._running:
            raise StopIteration
        batch, skipped = next(self._running[0])
        self._remaining -= 1
        for problem in skipped:
            logging.log_first_n(logging.WARNING, "Passed over: %s", 10, problem)
        self.skipped += len(skipped)
        return batch

    def close(self) -> None:
        """Stops threads and worker processes; the iterator is then at its end."""
        self._close()


def _close_all(running: list[Any]) -> None:
    """Closes Grain's iterators and lets go of them."""
    while running:
        running.pop().close()


def _free_shared_memory() -> None:
    """Frees the last batches of worker processes before Python warns at exit that they leaked.

    jax lets go of arrays it has read only when garbage is collected, and Grain frees them in a thread that
    would be gone by then.
    """
    with contextlib.suppress(ImportError, AttributeError):  # where it is in Grain is Grain's own business
        from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

        freeing = SharedMemoryArray._del_thread_pool
        SharedMemoryArray._disable_async_del()
        if freeing is not None:
            freeing.close()
            freeing.join()
    gc.collect()


def _allow_grain_flags() -> None:
    """Grain reads absl flags, which nobody has parsed in a notebook or a test."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _start_worker(worker_index: int, worker_count: int) -> None:
    """Runs first in each worker process."""
    del worker_index, worker_count
    cv2.setNumThreads(0)
    # Ctrl-C goes to every process of a terminal; the run that asked for batches decides when they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """Ends this worker when the process that started it is gone, even by `kill -9`."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
