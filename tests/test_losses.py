import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import losses
from vitjax.errors import UserError

RNG = np.random.default_rng(0)
SCALES = (0.0, 1e-3, 1.0, 30.0, 1e4)


def sigmoid_xent(x, y):
    """Float64, through the sign: softplus(z) = max(z, 0) + log1p(exp(-|z|)) is exact in both tails."""
    softplus = lambda z: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))
    return np.sum(y * softplus(-x) + (1 - y) * softplus(x), axis=-1)


def softmax_xent(x, y):
    top = x.max(-1, keepdims=True)
    return np.sum(y * (top + np.log(np.exp(x - top).sum(-1, keepdims=True)) - x), axis=-1)


def sigmoid_gradient(x, y):
    return np.where(x > 0, 1.0, np.exp(np.minimum(x, 0))) / (1 + np.exp(-np.abs(x))) - y


def softmax_gradient(x, y):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True) * y.sum(-1, keepdims=True) - y


REFERENCES = {
    "sigmoid_xent": (sigmoid_xent, sigmoid_gradient),
    "softmax_xent": (softmax_xent, softmax_gradient),
}


def cases():
    """Logits of all magnitudes, exactly representable in float32, with labels of all kinds, also none."""
    for scale in SCALES:
        x = (RNG.standard_normal((6, 5)) * scale).astype(np.float32)
        y = np.zeros((6, 5), np.float32)
        y[[0, 1], [2, 4]] = 1
        y[2, :2] = 0.75, 0.25
        y[3, :3] = 1
        y[4, np.argmax(x[4])] = 1
        yield x, y


@pytest.mark.parametrize("name", REFERENCES)
def test_values_and_gradients_equal_float64_at_every_magnitude(name):
    loss, (value, gradient) = losses.get(name), REFERENCES[name]
    for x, y in cases():
        want = value(x.astype(np.float64), y.astype(np.float64))
        got = loss(x, y, reduction=False)
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(loss(x, y), want.mean(), rtol=2e-6)
        grad = jax.grad(lambda x, y=y: jnp.sum(loss(x, y, reduction=False)))(x)
        want = gradient(x.astype(np.float64), y.astype(np.float64))
        np.testing.assert_allclose(grad, want, rtol=2e-6, atol=3e-7)


def test_a_small_sigmoid_loss_keeps_its_relative_precision():
    x, y = np.float32([[20.0, -20.0]]), np.float32([[1.0, 0.0]])
    np.testing.assert_allclose(losses.sigmoid_xent(x, y), 2 * np.log1p(np.exp(-20.0)), rtol=1e-6)


def test_half_precision_logits_are_computed_in_float32():
    x, y = jnp.asarray(RNG.standard_normal((4, 1000)), jnp.bfloat16), jax.nn.one_hot(jnp.arange(4), 1000)
    for name, (value, _) in REFERENCES.items():
        np.testing.assert_allclose(
            losses.get(name)(x, y), value(np.float64(x), np.float64(y)).mean(), rtol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("name", REFERENCES)
def test_label_smoothing_is_uniform_over_classes(name):
    x, y = RNG.standard_normal((3, 4)), np.eye(4)[[0, 1, 3]]
    want = REFERENCES[name][0](x, 0.9 * y + 0.1 / 4).mean()
    np.testing.assert_allclose(losses.get(name)(x, y, label_smoothing=0.1), want, rtol=1e-6)


def test_probabilities_are_those_of_the_loss():
    x = RNG.standard_normal((3, 4))
    np.testing.assert_allclose(losses.probabilities("softmax_xent", x).sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(losses.probabilities("sigmoid_xent", x), 1 / (1 + np.exp(-x)), rtol=1e-6)


def test_mistakes():
    with pytest.raises(UserError, match="Did you mean 'softmax_xent'"):
        losses.get("softmax_xnet")
    with pytest.raises(UserError, match=r"onehot\(10"):
        losses.softmax_xent(jnp.zeros((2, 10)), jnp.zeros((2, 9)))
    with pytest.raises(UserError, match="label_smoothing=2"):
        losses.softmax_xent(jnp.zeros((2, 3)), jnp.zeros((2, 3)), label_smoothing=2)


def test_cross_entropy_to_a_teacher_is_its_formula_and_has_the_gradient_of_the_divergence():
    z, z_t = RNG.standard_normal((2, 6, 5)).astype(np.float32) * 3
    for t in (1.0, 2.5):
        e = np.exp(np.float64(z_t) / t)
        p = e / e.sum(-1, keepdims=True)
        q = np.float64(z) / t - np.log(np.exp(np.float64(z) / t).sum(-1, keepdims=True))
        got = losses.soft_cross_entropy(z, z_t, temperature=t)
        np.testing.assert_allclose(got, -(t**2) * np.mean(np.sum(p * q, -1)), rtol=2e-6)
        grad = jax.grad(lambda z, t=t: losses.soft_cross_entropy(z, z_t, temperature=t))(z)
        np.testing.assert_allclose(grad, t * (np.exp(q) - p) / 6, rtol=2e-5, atol=1e-7)
    own = losses.soft_cross_entropy(z, z)
    entropy = losses.soft_cross_entropy(z, z_t) - losses.soft_distillation(z, z_t, mean="batch")
    np.testing.assert_allclose(entropy, losses.soft_cross_entropy(z_t, z_t), rtol=1e-5)
    assert own > 0 and not np.any(jax.grad(lambda z_t: losses.soft_cross_entropy(z, z_t))(z_t))
