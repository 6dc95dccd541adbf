"""The one pytree a run consists of, how it is born, and the step that takes it forward."""

import types
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Everything that changes during training. With the config and the seed it determines the run.

    Attributes:
      step: int32 scalar, number of updates done.
      params: float32 parameters.
      model_state: collections that the model updates itself, such as batch statistics.
      opt_state: state of the optax transformation.
      ema_params: averaged parameters, or None.
      ema_model_state: averaged likewise: averaged parameters go with batch statistics of their own age.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: optax.OptState
    ema_params: Any
    ema_model_state: Any = None


@flax.struct.dataclass
class Hyperparameters:
    """What runs that share one compiled step differ in: arguments of the program, not constants in it.

    Attributes:
      rng: `jax.random.key(seed)`.
      optimizer: `Optimizer.hyperparameters`.
      log_every: metrics are read after the first step, every so many, and after the last.
      total_steps: length of the run.
      frozen: variables that the task needs and the run does not train, those of a teacher; None without any.
    """

    rng: jax.Array
    optimizer: Any
    log_every: int
    total_steps: int
    frozen: Any = None


def is_logged(step: Any, hyper: Hyperparameters) -> Any:
    """Whether the metrics of `step` (a number or traced) are written."""
    return (step == 1) | (step % hyper.log_every == 0) | (step == hyper.total_steps)


def step_rngs(rng: jax.Array, step: Any) -> tuple[jax.Array, jax.Array]:
    """The keys that the step after `step` updates draws from: of the preprocessing, and of the model."""
    data_rng, model_rng = jax.random.split(jax.random.fold_in(rng, step + 1))
    return data_rng, model_rng


def make_init(task, optimizer, preprocess, *, ema: bool = False) -> Callable[..., TrainState]:
    """Returns `init(batch, rng, given={}) -> TrainState`.

    The batch, as it arrives on the device, matters by shape only. Leaves of `given`, a dict of parts of the
    trees `params` and `model_state`, take the place of what the rng draws.
    """

    def init(
        batch: dict, rng: jax.Array, given: Mapping[str, Any] = types.MappingProxyType({})
    ) -> TrainState:
        params, model_state = task.init(rng, preprocess(batch, rng))
        params = _overlay(params, given.get("params"))
        model_state = _overlay(model_state, given.get("model_state"))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state=model_state,
            opt_state=optimizer.init(params),
            ema_params=jax.tree.map(jnp.copy, params) if ema else None,
            ema_model_state=jax.tree.map(jnp.copy, model_state) if ema else None,
        )

    return init


def _overlay(tree: Any, given: Any) -> Any:
    """`tree` with the leaves of `given` in place of those of the same names."""
    if not given:
        return tree
    flat = flax.traverse_util.flatten_dict(tree) | flax.traverse_util.flatten_dict(given)
    return flax.traverse_util.unflatten_dict(flat)


def make_step(
    task,
    optimizer,
    preprocess,
    *,
    update_ema: Callable | None = None,
    accumulation: int = 1,
    diagnostics: Any = None,
) -> Callable[[TrainState, dict, Hyperparameters], tuple[TrainState, dict]]:
    """Returns `step(state, batch, hyper) -> (state, metrics)`, pure, to be jitted with the state donated.

    All randomness is folded out of (seed, state.step). Metrics are float32 scalars: `training_loss`, the
    norms `l2_grads`, `l2_params` and `l2_updates`, and what the task adds. At steps that are not logged
    `l2_params` and `l2_updates` are NaN, which saves passes over all parameters (5 % of a CPU step).

    Args:
      task: see the contract in docs/design.md.
      optimizer: `vitjax.optim.Optimizer`.
      preprocess: device half of the preprocessing, `(batch, rng) -> batch`.
      update_ema: `(averages, present values, step) -> averages` of any tree, or None for no averaging.
      accumulation: number of equal slices of a batch that go through the model one after the other; their
        gradients and metrics are averaged.
      diagnostics: `vitjax.diagnostics.Diagnostics`, which looks at the first slice at steps that are logged;
        None for none. Metrics then have a dict `histograms`, too.
    """

    def loss_and_grads(state: TrainState, batch: dict, rng: jax.Array, frozen: Any, progress: Any):
        annealed = {"progress": progress} if getattr(task, "takes_progress", False) else {}
        loss_of = lambda *args: task.loss(*args, frozen=frozen, **annealed)
        grad = jax.value_and_grad(loss_of, has_aux=True)
        if accumulation == 1:
            (loss, (metrics, model_state)), grads = grad(state.params, state.model_state, batch, rng)
            return loss, metrics, model_state, grads

        def one(carry, slice_and_rng):
            model_state, total = carry
            (loss, (metrics, model_state)), grads = grad(state.params, model_state, *slice_and_rng)
            return (model_state, jax.tree.map(jnp.add, total, grads)), (loss, metrics)

        slices = _slices(batch, accumulation)
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (model_state, total), (losses, metrics) = jax.lax.scan(
            one, (state.model_state, zeros), (slices, jax.random.split(rng, accumulation))
        )
        mean = lambda tree: jax.tree.map(lambda x: jnp.mean(x, axis=0), tree)
        return mean(losses), mean(metrics), model_state, jax.tree.map(lambda g: g / accumulation, total)

    def step(state: TrainState, batch: dict, hyper: Hyperparameters) -> tuple[TrainState, dict]:
        data_rng, model_rng = step_rngs(hyper.rng, state.step)
        batch = preprocess(batch, data_rng)
        logged, progress = is_logged(state.step + 1, hyper), state.step / hyper.total_steps
        if diagnostics:
            seen = state.model_state, jax.tree.map(lambda x: x[0], _slices(batch, accumulation)), model_rng
            seen += (progress,)
            of_state, signs = _if(logged, diagnostics.before, state.params, *seen)
            batch = _once_known(next(iter(of_state.values())), batch)
        loss, metrics, model_state, grads = loss_and_grads(state, batch, model_rng, hyper.frozen, progress)
        updates, opt_state = optimizer.update(
            grads, state.opt_state, state.params, hyperparameters=hyper.optimizer
        )
        params = optimizer.apply(state.params, updates)
        averages = state.ema_params, state.ema_model_state
        if update_ema:
            averages = update_ema(averages, (params, model_state), state.step)
        new = TrainState(state.step + 1, params, model_state, opt_state, *averages)
        norms = _if(logged, lambda: dict(l2_params=_norm(params), l2_updates=_norm(updates)))
        if diagnostics:
            metrics = metrics | of_state | _if(logged, diagnostics.after, signs, params, *seen)
        l2_grads = _norm(optimizer.trainable(grads))
        return new, dict(training_loss=loss, l2_grads=l2_grads, **norms, **metrics)

    return step


def make_many(step: Callable, most: int) -> Callable[..., tuple[TrainState, dict]]:
    """Returns `many(state, data, hyper, count) -> (state, metrics)`: 1 to `most` steps in one program.

    `data.batch(data.indices(state.step))` makes the batches. Metrics are `[most]`, one entry a step, zero
    beyond `count`, which is an argument: the body of the loop is compiled once, so results are bit for bit
    the same however steps are divided into calls.
    """

    def many(state: TrainState, data: Any, hyper: Hyperparameters, count: Any) -> tuple[TrainState, dict]:
        indices = data.indices(state.step)
        metrics = jax.eval_shape(lambda: step(state, data.batch(indices), hyper)[1])
        measured = jax.tree.map(lambda leaf: jnp.zeros((most, *leaf.shape), leaf.dtype), metrics)

        def one(number: Any, carry: tuple) -> tuple:
            # Indices are made one step ahead: in the same turn, the compiler would merge them with the
            # look-up of pixels and make them anew for each pixel.
            state, indices, measured = carry
            ahead = data.indices(state.step + 1)
            state, metrics = step(state, data.batch(indices), hyper)
            return state, ahead, jax.tree.map(lambda all, new: all.at[number].set(new), measured, metrics)

        state, _, measured = jax.lax.fori_loop(0, count, one, (state, indices, measured))
        return state, measured

    return many


def _slices(batch: dict, number: int) -> dict:
    """A batch as `[number, rows, ...]`: rows are dealt out in turn, so that each slice is on all devices."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0] // number, number, *x.shape[1:]).swapaxes(0, 1), batch)


def _if(wanted: jax.Array, measure: Callable, *args: Any) -> Any:
    """Returns `measure(*args)` if wanted; else, for nothing, blanks in its place."""
    return jax.lax.cond(wanted, measure, lambda *args: _blank(measure, *args), *args)


def _blank(measure: Callable, *args: Any) -> Any:
    """Arrays like those that `measure(*args)` gives, which is not computed: NaN, integers 0."""
    blank = lambda leaf: jnp.full(leaf.shape, jnp.nan if leaf.dtype == jnp.float32 else 0, leaf.dtype)
    return jax.tree.map(blank, jax.eval_shape(measure, *args))


def _once_known(share: jax.Array, batch: dict) -> dict:
    """The batch, for which the program has to wait until `share`, never above 1, is known.

    On a CPU of several devices, a sum over all of them inside a branch and one outside, under way at the same
    time, take each other's threads and wait for ever. The compiler there drops an `optimization_barrier`.
    """
    return jax.tree.map(lambda x: jnp.where(share > 2, jnp.zeros_like(x), x), batch)


def _norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves together.

    Each is a dot product with itself over all axes: on a CPU that reads memory twice as fast as a sum of
    squares, and no sharded axis is reshaped.
    """

    def squares(x: jax.Array) -> jax.Array:
        x, axes = x.astype(jnp.float32), tuple(range(x.ndim))
        return jax.lax.dot_general(x, x, ((axes, axes), ((), ())), precision="highest")

    return jnp.sqrt(sum(map(squares, jax.tree.leaves(tree)), start=jnp.float32(0)))
