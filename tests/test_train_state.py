"""The step: determinism, gradient accumulation, averaging, donation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import optim, sharding
from vitjax.train_state import Hyperparameters, make_init, make_step


class Linear:
    """The smallest task: least squares, with noise from the rng and a counter as model state."""

    noise = 0.0

    def init(self, rng, batch):
        return {"w": jax.random.normal(rng, batch["x"].shape[1:])}, {"calls": jnp.zeros(())}

    def loss(self, params, model_state, batch, rng, train=True, frozen=None):
        y = batch["x"] @ params["w"] + self.noise * jax.random.normal(rng, batch["y"].shape)
        loss = jnp.mean((y - batch["y"]) ** 2)
        return loss, ({"error": jnp.sqrt(loss)}, {"calls": model_state["calls"] + 1})


def preprocess(batch, rng):
    return batch | {"x": batch["x"].astype(jnp.float32)}


def batch_of(seed, rows=16):
    rng = np.random.default_rng(seed)
    return {"x": rng.integers(0, 9, (rows, 3)), "y": rng.normal(size=rows).astype(np.float32)}


def hyperparameters(optimizer, log_every=1, seed=0):
    return Hyperparameters(jax.random.key(seed), optimizer.hyperparameters, log_every, total_steps=10)


def build(task=None, log_every=1, **options):
    task = task or Linear()
    params = jax.eval_shape(lambda: task.init(jax.random.key(0), preprocess(batch_of(0), None))[0])
    optimizer = optim.create(params, total_steps=10, lr=0.1, grad_clip_norm=1.0)
    ema = options.get("update_ema")
    state = make_init(task, optimizer, preprocess, ema=bool(ema))(batch_of(0), jax.random.key(0))
    step = jax.jit(make_step(task, optimizer, preprocess, **options))
    return state, lambda state, batch: step(state, batch, hyperparameters(optimizer, log_every))


def test_accumulation_gives_the_gradient_of_the_whole_batch():
    state, step = build()
    _, step4 = build(accumulation=4)
    one, metrics = step(state, batch_of(1))
    four, metrics4 = step4(state, batch_of(1))
    np.testing.assert_allclose(one.params["w"], four.params["w"], rtol=1e-5)
    np.testing.assert_allclose(metrics["training_loss"], metrics4["training_loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics["l2_grads"], metrics4["l2_grads"], rtol=1e-5)
    assert (int(one.model_state["calls"]), int(four.model_state["calls"])) == (1, 4)


def test_the_step_depends_on_seed_and_step_alone():
    noisy = Linear()
    noisy.noise = 1.0
    state, step = build(noisy)
    first, metrics = step(state, batch_of(1))
    again, metrics_again = step(state, batch_of(1))
    assert metrics["training_loss"] == metrics_again["training_loss"]
    np.testing.assert_array_equal(first.params["w"], again.params["w"])
    _, metrics_later = step(dataclasses.replace(state, step=state.step + 1), batch_of(1))
    assert metrics_later["training_loss"] != metrics["training_loss"]


def test_averaged_parameters_start_as_a_copy_and_follow():
    state, step = build(update_ema=optim.ema.create(decay=0.9))
    np.testing.assert_array_equal(state.ema_params["w"], state.params["w"])
    new, _ = step(state, batch_of(1))
    expected = 0.9 * state.params["w"] + 0.1 * new.params["w"]
    np.testing.assert_allclose(new.ema_params["w"], expected, rtol=1e-6)


def test_statistics_are_averaged_beside_the_parameters():
    state, step = build(update_ema=optim.ema.create(decay=0.9))
    for expected in (0.1, 0.29):  # of a count that goes 0, 1, 2
        state, _ = step(state, batch_of(1))
        np.testing.assert_allclose(state.ema_model_state["calls"], expected, rtol=1e-6)
    assert float(state.model_state["calls"]) == 2.0
    assert build()[0].ema_model_state is None


def test_the_step_counts_and_reports_norms():
    state, step = build()
    new, metrics = step(state, batch_of(1))
    assert int(new.step) == 1
    assert set(metrics) == {"training_loss", "error", "l2_grads", "l2_params", "l2_updates"}
    np.testing.assert_allclose(metrics["l2_params"], np.linalg.norm(new.params["w"]), rtol=1e-6)
    np.testing.assert_allclose(
        metrics["l2_updates"], np.linalg.norm(new.params["w"] - state.params["w"]), rtol=1e-4
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_eight_devices_compute_what_one_does(accumulation):
    state, step = build(accumulation=accumulation)
    mesh = sharding.make_mesh()
    split = sharding.put_batch(batch_of(1), mesh)
    alone, _ = step(state, batch_of(1))
    together, _ = step(jax.device_put(state, jax.sharding.NamedSharding(mesh, jax.P())), split)
    np.testing.assert_allclose(alone.params["w"], together.params["w"], rtol=1e-6)


def test_every_buffer_of_the_state_is_donated():
    task = Linear()
    state, _ = build(task, update_ema=optim.ema.create(decay=0.9))
    optimizer = optim.create(state.params, total_steps=10)
    step = make_step(task, optimizer, preprocess, update_ema=optim.ema.create(decay=0.9))
    state = make_init(task, optimizer, preprocess, ema=True)(batch_of(0), jax.random.key(0))
    text = jax.jit(step, donate_argnums=0).lower(state, batch_of(0), hyperparameters(optimizer)).as_text()
    assert text.count("tf.aliasing_output") == len(jax.tree.leaves(state))


def test_norms_that_nobody_reads_are_not_computed():
    state, always = build()
    _, at_fourth = build(log_every=4)
    for number in (1, 2, 3, 4):
        expected_state, expected = always(state, batch_of(number))
        state, metrics = at_fourth(state, batch_of(number))
        np.testing.assert_array_equal(state.params["w"], expected_state.params["w"])
        assert metrics["l2_grads"] == expected["l2_grads"]
        for name in ("l2_params", "l2_updates"):
            assert (metrics[name] == expected[name]) if number in (1, 4) else np.isnan(metrics[name])


@pytest.mark.parametrize(
    "schedule",
    [
        {},
        {"decay_type": "cosine", "warmup_steps": 3, "cooldown_steps": 2},
        {"decay_type": "timm_cosine", "warmup_steps": 3, "per": "step"},
    ],
)
def test_runs_that_differ_in_numbers_alone_share_one_program(schedule):
    """Seed, learning rate, weight decay and lengths are arguments: a sweep over them compiles once."""

    def lowered(seed, total_steps, **numbers):
        task = Linear()
        params = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
        wd_mults = ((".*", 1.0),)
        lengths = {
            key: value * total_steps // 10 for key, value in schedule.items() if key.endswith("_steps")
        }
        optimizer = optim.create(
            params, total_steps=total_steps, schedule=schedule | lengths, wd_mults=wd_mults, **numbers
        )
        state = jax.eval_shape(make_init(task, optimizer, preprocess), batch_of(0), jax.random.key(0))
        step, hyper = make_step(task, optimizer, preprocess), hyperparameters(optimizer, total_steps, seed)
        return jax.jit(step).lower(state, batch_of(0), hyper).as_text()

    assert lowered(0, 10, lr=0.1, wd=0.1) == lowered(7, 20, lr=0.3, wd=0.01)
    assert lowered(0, 10, lr=0.1, wd=0.1) != lowered(0, 10, lr=0.1, wd=0.0)  # the comparison can fail
