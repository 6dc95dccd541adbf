"""`--check`: builds a run by shape only and prints what it would be."""

import math
from typing import Any

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from vitjax import experiment as experiment_lib
from vitjax.train_state import TrainState


def check(config: ConfigDict) -> int:
    """Prints parameters, memory, lengths, devices, placements and the batch of a run; returns 0."""
    run = experiment_lib.build(config, tell=print)
    state, starting = run.abstract_state, initial_weights(run)
    print(parameter_overview.get_parameter_overview(state.params, include_stats=False))
    print()
    for title, lines in (
        ("memory, all devices together", memory(run)),
        ("length", length(run)),
        ("optimizer", run.optimizer.describe().splitlines()),
        ("devices", devices(run)),
        ("batch", batch(run)),
        ("text", list(run.source.notes)),
        ("starting weights", starting),
        ("teacher", teacher(run)),
        ("evaluators", [f"{name}: every {every} steps" for name, (every, _) in run.evaluators.items()]),
    ):
        print(f"{title}:")
        print("\n".join(f"  {line}" for line in lines or ["none"]))
    print("\ncheck passed: the config is sound, nothing was trained")
    return 0


def initial_weights(run: experiment_lib.Experiment) -> list[str]:
    """What is found in the weights that the run starts from; they are read for it."""
    loaded = run.initial_weights()
    return loaded.report.splitlines() if loaded else []


def teacher(run: experiment_lib.Experiment) -> list[str]:
    """What is found in the weights or logits of a teacher; they are read for it."""
    _ = run.task.frozen
    return run.task.notes


def memory(run: experiment_lib.Experiment) -> list[str]:
    """Sizes of what a training step holds, by shape."""
    state = run.abstract_state
    parts = {
        "parameters": state.params,
        "averages": (state.ema_params, state.ema_model_state),
        "model state": state.model_state,
        "optimizer": state.opt_state,
        "teacher": run.task.abstract_frozen,
        "activations kept for the backward pass": saved_activations(run, state),
        "batch": run.batch_spec,
        "training set": run.set_spec if run.input.on_device else (),
    }
    return [f"{name}: {_bytes(size)}" for name, tree in parts.items() if (size := num_bytes(tree))]


def saved_activations(run: experiment_lib.Experiment, state: TrainState) -> list[Any]:
    """Shapes that the forward pass keeps for the backward pass, parameters left out.

    An upper bound: the compiler may recompute or fuse some of them away.
    """

    def residuals(params, model_state, batch, rng, frozen):
        batch = run.preprocess.device(batch, rng)
        loss = lambda params: run.task.loss(params, model_state, batch, rng, frozen=frozen)[0]
        return jax.vjp(loss, params)[1]

    spec = run.batch_spec
    accumulation = run.settings.grad_accum
    rows = {
        key: jax.ShapeDtypeStruct((leaf.shape[0] // accumulation, *leaf.shape[1:]), leaf.dtype)
        for key, leaf in spec.items()
    }
    args = (state.params, state.model_state, rows, jax.random.key(0), run.task.abstract_frozen)
    kept = jax.tree.leaves(jax.eval_shape(residuals, *args))
    own = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state.params)]
    for leaf in list(kept):
        if (leaf.shape, leaf.dtype) in own:
            own.remove((leaf.shape, leaf.dtype))
            kept.remove(leaf)
    return kept


def length(run: experiment_lib.Experiment) -> list[str]:
    """Steps, examples and epochs."""
    examples = run.total_steps * run.input.batch_size
    epoch, repeats = run.sizes["num_examples"], run.input.repeats
    seen = min(-(-epoch // repeats), len(run.source))
    views = f": {repeats} views each of {seen:,} images" if repeats > 1 else ""
    passes = f", {run.input.passes} passes in whole batches" if run.input.passes else ""
    return [
        f"{run.total_steps:,} steps of {run.input.batch_size:,} examples, {examples:,} in all",
        f"{examples / epoch:.2f} epochs of {epoch:,} examples ({run.source.name}){views}{passes}",
    ]


def devices(run: experiment_lib.Experiment) -> list[str]:
    """The mesh, and every parameter that is not replicated."""
    kind = jax.devices()[0]
    lines = [f"{jax.device_count()} x {kind.device_kind} ({kind.platform}), mesh {dict(run.mesh.shape)}"]
    split = [
        f"{jax.tree_util.keystr(path, simple=True, separator='/')}: {leaf.sharding.spec}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(run.abstract_state.params)
        if any(leaf.sharding.spec)
    ]
    return lines + (split or ["every parameter is replicated; batches are split over the data axis"])


def batch(run: experiment_lib.Experiment) -> list[str]:
    """What the host sends and what the model sees."""
    spec = run.batch_spec
    seen = jax.eval_shape(run.preprocess.device, spec, jax.random.key(0))
    return [f"sent {key}: {leaf.dtype}{list(leaf.shape)}" for key, leaf in spec.items()] + [
        f"used {key}: {leaf.dtype}{list(leaf.shape)}" for key, leaf in seen.items()
    ]


def num_bytes(tree: Any) -> int:
    """Bytes of all leaves of a pytree of arrays or shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
