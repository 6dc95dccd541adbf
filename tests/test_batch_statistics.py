"""Batch statistics in a run: of the global batch, slice by slice, and through a checkpoint."""

import jax
import numpy as np
import pytest

from vitjax import config, experiment, sharding
from vitjax.checkpoint import Checkpointer

PP = "decode|resize(16)|value_range(-1, 1)|onehot(10, key='label', key_result='labels')|drop('label')"


@pytest.fixture(scope="module")
def run():
    """A ResNet on eight devices whose batches of 16 go through it in two slices."""
    given = {
        "model": "{'name': 'resnet18', 'stem': 'small', 'units': (1,), 'widths': (8,)}",
        "input.pp": PP,
        "input.batch_size": "16",
        "total_steps": "4",
        "grad_accum": "2",
        "schedule.warmup_percent": "0",
    }
    return experiment.build(config.load("configs/quickstart.py", given))


def test_two_steps_with_a_checkpoint_between(run, tmp_path):
    assert dict(run.mesh.shape) == {"data": 8}
    batches = run.batches(0)
    first, second = next(batches), next(batches)
    batches.close()
    step, state = run.train_step(), run.init_state()
    start = jax.tree.map(np.asarray, (state.params, state.model_state))
    state, _ = step(state, sharding.put_batch(without_ids(first), run.mesh))

    # What one device would have, going through the slices: every other example of the whole batch.
    images = np.asarray(run.preprocess.device(without_ids(first), jax.random.key(0))["image"])
    update = jax.jit(lambda statistics, images: run.model.apply(
        {"params": start[0], **statistics}, images, train=True, mutable=["batch_stats"]
    )[1])  # fmt: skip
    expected = update(update(start[1], images[0::2]), images[1::2])
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    jax.tree.map(close, state.model_state, jax.tree.map(np.asarray, expected))
    shard = update(update(start[1], images[0:1]), images[1:2])
    mean = lambda tree: np.asarray(tree["batch_stats"]["block1"]["unit1"]["bn1"]["mean"])
    assert np.abs(mean(shard) - mean(expected)).max() > 1e-3  # a device's own statistics would be seen

    with Checkpointer(tmp_path, fingerprint={}) as checkpointer:
        checkpointer.save(1, state)
        checkpointer.wait()
        saved, restored = checkpointer.restore(run.abstract_state)
    assert saved == 1
    batch = sharding.put_batch(without_ids(second), run.mesh)
    straight, _ = step(state, batch)
    resumed, _ = step(restored, batch)
    jax.tree.map(np.testing.assert_array_equal, to_host(resumed), to_host(straight))
    assert np.any(mean(straight.model_state) != mean(expected))


def without_ids(batch):
    return {key: value for key, value in batch.items() if not key.startswith("_")}


def to_host(state):
    return jax.tree.map(np.asarray, (state.params, state.model_state, state.opt_state))
