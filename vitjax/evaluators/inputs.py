"""What all evaluators share: batches on the mesh, outputs back on every host, the choice of parameters."""

import collections
import contextlib
import math
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vitjax import errors
from vitjax.data.device_memory import check_fits
from vitjax.evaluators import Context


class EvalInput:
    """All examples of one split, preprocessed and placed on the mesh, each exactly once."""

    def __init__(
        self,
        context: Context,
        *,
        data: str,
        split: str,
        pp: str,
        batch_size: int,
        workers: int = 0,
        on_error: str = "raise",
        on_device: bool = False,
        source: Any = None,
    ):
        """Opens the split, or takes the `source` that is it.

        `batch_size` is rounded up to what the devices can share evenly.

        With `on_device` the batches stay in the devices' memory after the first pass, as they are before the
        device part of the preprocessing. Examples are preprocessed alike in every pass, so nothing changes.
        `skipped` counts the broken examples that the last pass masked out here (`on_error="skip"`).
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise errors.UserError(
                f"config.evals: batch_size={batch_size!r} must be a whole number from 1 on."
            )
        self.name = f"{data}[{split}]"
        self.source = _open_source(data, split=split) if source is None else source
        self.preprocess = _parse(pp)
        self.mesh, self.progress, self.workers = context.mesh, context.progress, workers
        self.on_error, self.skipped = on_error, 0
        self._keep, self._kept = on_device, list[dict[str, jax.Array]]()
        self.compiler_options = context.compiler_options
        self.sharding = batch_sharding(context)
        self.batch_size = whole_shares(batch_size, context.mesh, self.sharding)

    def batches(self) -> Generator[dict[str, jax.Array]]:
        """Yields global batches on the mesh, with `_mask` bool `[B]` and `_id` int32 `[B]`."""
        total = -(-len(self.source) // self.batch_size)
        with self._make() if len(self._kept) < total else contextlib.nullcontext(self._kept) as batches:
            for done, batch in enumerate(batches, 1):
                yield batch
                if self.progress:
                    self.progress(done, total)

    @contextlib.contextmanager
    def _make(self) -> Iterator[Iterable[dict[str, jax.Array]]]:
        """The batches from the host; these threads and processes end with the context."""
        batches = _eval_batches(
            self.source,
            self.preprocess.host,
            batch_size=self.batch_size,
            workers=self.workers,
            on_error=self.on_error,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        self._kept = []
        try:
            yield (self._put(batch) for batch in batches)
        finally:
            self.skipped = getattr(batches, "skipped", 0)
            batches.close()

    def _put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Puts this process's rows of a batch on the mesh, where they stay if they are to."""
        rows = {key: value for key, value in batch.items() if not key.startswith("_")}
        rows |= {"_mask": batch["_mask"], "_id": batch["_id"].astype(np.int32)}
        if self._keep and not self._kept:
            remedy = "Let the host send it in every pass with on_device=False."
            size = -(-len(self.source) // self.batch_size) * self.batch_size
            check_fits(self.name, size, rows, self.sharding, remedy)
        placed = {k: jax.make_array_from_process_local_data(self.sharding, v) for k, v in rows.items()}
        if self._keep:
            self._kept.append(placed)
        return placed

    def map(self, function: Any, *args: Any) -> Iterator[Any]:
        """Yields `function(*args, batch)` for all batches as NumPy arrays, whole on every process.

        `function` is one made by `replicated_jit`. At most three batches are in flight: nothing else would
        keep the host from filling the device's memory with batches that wait.
        """

        def results() -> Iterator[Any]:
            # Closed here even if `function` raises: workers that stay open can hang the exit of the program.
            with contextlib.closing(self.batches()) as batches:
                for batch in batches:
                    with jax.set_mesh(self.mesh):
                        result = function(*args, batch)
                    yield result

        return _fetch(results(), ahead=2)

    def check(self, step: Any, params: Any, model_state: Any) -> None:
        """Traces `step` by shape on a batch like the first example, so that what does not fit shows at once.

        `step` is one made by `replicated_jit`, which keeps the trace for the evaluation itself.
        """
        from vitjax.data import pipeline

        example = pipeline.first_example(
            self.source, self.preprocess.host, on_error=self.on_error, num_classes=self.source.num_classes
        )
        rows = {key: value for key, value in example.items() if not key.startswith("_")}
        rows |= {"_mask": np.ones(1, bool), "_id": np.zeros(1, np.int32)}
        batch = {
            key: jax.ShapeDtypeStruct(
                (self.batch_size, *value.shape[1:]),
                jax.dtypes.canonicalize_dtype(value.dtype),
                sharding=self.sharding,
            )
            for key, value in rows.items()
        }
        with jax.set_mesh(self.mesh):
            step.eval_shape(params, model_state, batch)

    def on_device(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The device part of the preprocessing, traced; evaluation draws nothing, so its key is fixed."""
        return self.preprocess.device(batch, jax.random.key(0))


def batch_sharding(context: Context) -> jax.sharding.Sharding:
    """How the first axis of a batch lies on the devices."""
    axes = context.mesh.axis_names
    return context.batch_sharding or NamedSharding(
        context.mesh, PartitionSpec("data" if "data" in axes else axes[0])
    )


def whole_shares(batch_size: int, mesh: jax.sharding.Mesh, sharding: jax.sharding.Sharding) -> int:
    """`batch_size`, rounded up to what devices and processes can share evenly."""
    shards = mesh.size // sharding.shard_shape((mesh.size,))[0]
    multiple = math.lcm(shards, jax.process_count())
    return -(-batch_size // multiple) * multiple


def text_of(context: Context, evaluator: str) -> tuple[Any, Any]:
    """Section `text` of the run and its vocabulary; raises UserError where it is none on text."""
    if context.text is None or context.vocabulary is None:
        raise errors.UserError(
            f"type={evaluator!r} is for sentence pairs: set config.text = dict(languages=('en', 'de'))."
        )
    return context.text, context.vocabulary


def replicated_jit(function: Any, context: Any) -> Any:
    """Returns `function` jitted so that every process can read its whole outputs.

    `context` has `mesh` and `compiler_options`: the run's `Context`, or an `EvalInput`.
    """
    return jax.jit(
        function,
        out_shardings=NamedSharding(context.mesh, PartitionSpec()),
        compiler_options=dict(context.compiler_options or {}),
    )


def weights(train_state: Any, *, use_ema: bool) -> tuple[Any, Any]:
    """Returns (params, model_state) to evaluate: as trained, or the moving averages of both."""
    if use_ema and train_state.ema_params is None:
        raise errors.UserError("use_ema=True needs averaged parameters; set config.ema=dict(decay=0.9999).")
    if use_ema:
        return train_state.ema_params, train_state.ema_model_state
    return train_state.params, train_state.model_state


def entry(tree: Any, key: str, *, what: str, remedy: str) -> Any:
    """Returns `tree["a"]["b"]` for the key `a/b`, or raises a UserError that lists what there is."""
    for part in key.split("/"):
        if not hasattr(tree, "keys") or part not in tree:
            keys = [k for k in tree if not k.startswith("_")] if hasattr(tree, "keys") else []
            listed = ", ".join(sorted(keys)) or "arrays"
            hint = errors.nearest(part, keys)
            raise errors.UserError(f"{what} has no {key!r}, only {listed}.{hint} {remedy}")
        tree = tree[part]
    return tree


# The data stack is loaded by who evaluates, not by who only reads an evaluator's schema.


def _open_source(data: str, split: str) -> Any:
    from vitjax.data import sources

    return sources.open_source(data, split=split)


def _parse(pp: str) -> Any:
    from vitjax.data import pp as preprocessing

    return preprocessing.parse(pp)


def _eval_batches(*args: Any, **kwargs: Any) -> Any:
    from vitjax.data import pipeline

    return pipeline.eval_batches(*args, **kwargs)


def _fetch(results: Iterable[Any], ahead: int) -> Iterator[Any]:
    """Yields the results as NumPy arrays, `ahead` places behind the computation."""
    queue: collections.deque[Any] = collections.deque()
    for result in results:
        queue.append(result)
        if len(queue) > ahead:
            yield jax.device_get(queue.popleft())
    while queue:
        yield jax.device_get(queue.popleft())
