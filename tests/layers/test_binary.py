"""Quantisers and their gradients, formula by formula; the layers in every precision.

Golden unit vectors (tests/golden_checks/binary_units.py) hold the published ones at their thresholds.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.errors import UserError
from vitjax.layers.binary import (
    ESTIMATORS,
    PRECISIONS,
    Affine,
    BinaryConv,
    BinaryDense,
    RPReLU,
    binarise_attention,
    binarise_weights,
    binary_sign,
    scaled_sign,
)

X = np.float32([-2, -1.5, -1.25, -1, -0.5, -0.1, -0.05, 0, 0.05, 0.1, 0.5, 1, 1.25, 1.5, 2])


def factors(estimator, progress=0.0):
    """By what the gradient is multiplied at each of X."""
    return jax.grad(lambda x: binary_sign(x, estimator, progress).sum())(X)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_has_the_sign_and_its_zeros(estimator):
    y = binary_sign(np.float32([-3, -1e-30, -0.0, 0.0, 1e-30, 3]), estimator, 0.5)
    np.testing.assert_array_equal(y, [-1, -1, 0, 0, 1, 1])


def test_triangle():
    np.testing.assert_allclose(factors("triangle"), np.maximum(0, 2 - 2 * np.abs(X)), rtol=1e-6)


def test_clip_has_its_ends_inside():
    np.testing.assert_array_equal(factors("clip"), np.abs(X) <= 1)


@pytest.mark.parametrize(
    "progress, t, k", [(0, 0.1, 10), (0.25, 10**-0.5, 10**0.5), (0.75, 10**0.5, 1), (1, 10, 1)]
)
def test_tanh_is_annealed_as_in_ir_net(progress, t, k):
    wanted = k * t * (1 - np.tanh(t * np.float64(X)) ** 2)
    np.testing.assert_allclose(factors("tanh", progress), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("progress", [0, 0.5, 1])
def test_reste_is_the_slope_of_a_power(progress):
    o = 1 + 2 * (1 - np.cos(progress * np.pi / 2))
    x = np.abs(np.float64(X))
    with np.errstate(divide="ignore"):
        wanted = np.where(x <= 0.1 + 1e-8, 0.1 ** (1 / o) / 0.1, x ** ((1 - o) / o) / o)
    np.testing.assert_allclose(factors("reste", progress), np.where(x > 1.5, 0, wanted), rtol=1e-5)


def test_reste_begins_as_a_clip_of_one_and_a_half():
    np.testing.assert_allclose(factors("reste"), np.abs(X) <= 1.5, rtol=1e-6)


@pytest.mark.parametrize("estimator", ["tanh", "reste"])
def test_progress_may_be_traced_and_has_no_gradient(estimator):
    run = jax.jit(jax.grad(lambda x, progress: binary_sign(x, estimator, progress).sum(), argnums=(0, 1)))
    for progress in (0.0, 0.7):  # one program for both
        of_x, of_progress = run(X, progress)
        np.testing.assert_allclose(of_x, factors(estimator, progress), rtol=1e-5, atol=1e-6)
        assert of_progress == 0
    assert run._cache_size() == 1


def test_an_unknown_estimator_is_refused():
    with pytest.raises(UserError, match=r"estimator='triangel' is none of .* Did you mean 'triangle'"):
        binary_sign(X, "triangel")


def times(factors):
    """A pair of numbers and their scale, multiplied."""
    numbers, scale = factors
    return numbers * scale


def test_weights_that_are_all_zero_can_leave_it():
    """As published: signs 0, but a gradient. Dividing by a scale of 0 would make it NaN."""
    kernel = np.float32([[0, 0.5], [0, -0.25], [0, 2]])
    of_weights = np.float32([[1, 1], [2, 2], [6, 3]])
    signs, scale = binarise_weights(kernel, centred=False)
    np.testing.assert_array_equal(signs, np.sign(kernel))
    np.testing.assert_allclose(signs * scale, np.sign(kernel) * [0, 2.75 / 3], rtol=1e-6)
    product = lambda kernel: times(binarise_weights(kernel, centred=False))
    (grad,) = jax.vjp(product, kernel)[1](of_weights)
    np.testing.assert_allclose(grad, [[1, 1], [2, 2], [6, 0]], rtol=1e-6)  # 2 lies beyond 1


def test_centred_weights_are_masked_by_what_is_left_and_centred_again():
    random = np.random.default_rng(0)
    kernel, grad = np.float32(random.normal(size=(6, 4))), np.float32(random.normal(size=(6, 4)))
    kernel[0] += 2
    signs, scale = binarise_weights(kernel)
    rest = kernel - kernel.mean(0)
    np.testing.assert_array_equal(signs, np.sign(rest))
    np.testing.assert_allclose(scale, np.abs(kernel).mean(0), rtol=1e-6)  # of weights that are not centred
    inside = np.abs(rest) <= 1
    assert 0 < inside.sum() < inside.size
    product = lambda kernel: times(binarise_weights(kernel))
    masked = inside * grad
    wanted = masked - masked.mean(0)
    np.testing.assert_allclose(jax.vjp(product, kernel)[1](grad)[0], wanted, rtol=1e-5, atol=1e-6)


def test_axes_are_those_that_one_output_sees():
    kernel = np.float32(np.random.default_rng(1).normal(size=(6, 2, 3)))
    signs, scale = binarise_weights(kernel, axes=0)  # into two heads of three
    flat_signs, flat_scale = binarise_weights(kernel.reshape(6, 6))
    np.testing.assert_array_equal(signs, flat_signs.reshape(6, 2, 3))
    np.testing.assert_allclose(scale, flat_scale.reshape(2, 3), rtol=1e-6)
    assert binarise_weights(kernel)[1].shape == (3,)  # out of them
    np.testing.assert_allclose(binarise_weights(kernel, axes=(0, 1))[1], binarise_weights(kernel)[1])


def test_attention_is_on_above_half_the_clip_only():
    on, clip = binarise_attention(np.float32([0, 0.124, 0.125, 0.126, 0.25, 0.9]), jnp.float32(0.25))
    np.testing.assert_array_equal(on, [0, 0, 0, 1, 1, 1])
    assert clip == 0.25


def test_the_gradient_of_attention_and_its_clip():
    p, of_values = np.float32([-0.1, 0.0, 0.1, 0.2, 0.25, 0.9]), np.float32([1, 2, 4, 8, 16, 32])
    values = lambda p, clip: times(binarise_attention(p, clip))
    of_p, of_clip = jax.vjp(values, p, jnp.float32(0.25))[1](of_values)
    np.testing.assert_allclose(of_p, of_values * [0, 1, 1, 1, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(of_clip, 4 * (0 - 0.4) + 8 * (1 - 0.8) + 16 * (1 - 1) + 32, rtol=1e-6)


def test_a_learned_scale_of_signs():
    scaled = lambda x, scale: times(scaled_sign(x, scale))
    grad = np.arange(1, 16, dtype=np.float32)
    y, pull = jax.vjp(scaled, X, jnp.float32(1.25))
    np.testing.assert_array_equal(y, 1.25 * np.sign(X))
    of_x, of_scale = pull(grad)
    np.testing.assert_allclose(of_x, grad * (np.abs(X) <= 1.25), rtol=1e-6)
    np.testing.assert_allclose(of_scale, (grad * np.sign(X)).sum() / np.sqrt(15), rtol=1e-6)
    assert scaled_sign(X, jnp.float32(-3))[1] == np.float32(1e-5)


def reference(x, variables, precision, centred):
    """The product with what is binary written out, and the weights as a matrix."""
    kernel, x = np.asarray(variables["kernel"]), x + np.asarray(variables["move"])
    if precision in ("binary", "w32a1"):
        x = np.sign(x)
    if precision in ("binary", "w1a32"):
        axes = tuple(range(kernel.ndim - 1))
        scale = np.abs(kernel).mean(axes)
        kernel = np.sign(kernel - (kernel.mean(axes) if centred else 0)) * scale
    return x, kernel


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("centred", [True, False])
def test_a_dense_layer_in_every_precision(precision, centred):
    x = np.float32(np.random.default_rng(2).normal(size=(2, 3, 6)))
    layer = BinaryDense(4, precision, centred=centred)
    params = layer.init(jax.random.key(0), x)["params"]
    params = dict(params, move=np.float32(np.random.default_rng(3).normal(size=6)))
    shifted, kernel = reference(x, params, precision, centred)
    np.testing.assert_allclose(layer.apply({"params": params}, x), shifted @ kernel, rtol=1e-5, atol=1e-6)
    names = {str(eqn.params.get("name")) for eqn in jax.make_jaxpr(layer.apply)({"params": params}, x).eqns}
    assert ("binary_matmul" in names) == (precision == "binary")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_convolution_in_every_precision(precision):
    x = np.float32(np.random.default_rng(4).normal(size=(2, 5, 6, 3)))
    layer = BinaryConv(4, 3, stride=2, padding=1, precision=precision)
    params = layer.init(jax.random.key(0), x)["params"]
    params = dict(params, move=np.float32([0.3, -0.2, 0.1]))
    shifted, kernel = reference(x, params, precision, centred=False)
    padded = np.pad(
        shifted, ((0, 0), (1, 1), (1, 1), (0, 0))
    )  # zeros stand around the signs, not the numbers
    window = lambda i, j: np.einsum("bijc,ijcd->bd", padded[:, i : i + 3, j : j + 3], kernel)
    wanted = [[window(i, j) for j in (0, 2, 4)] for i in (0, 2, 4)]
    y = layer.apply({"params": params}, x)
    assert y.shape == (2, 3, 3, 4)
    np.testing.assert_allclose(y, np.moveaxis(wanted, 2, 0), rtol=1e-5, atol=1e-5)


def test_a_layer_passes_on_estimator_scale_and_move():
    x = np.float32([[1.25, 0.5, -2]])
    # `move` begins at 0; its gradient is that of the input.
    layer = BinaryDense(2, estimator="reste")
    params = layer.init(jax.random.key(0), x)["params"]
    assert params.keys() == {"kernel", "move"} and not params["move"].any()
    loss = lambda params, x: layer.apply({"params": params}, x, 0.5).sum()
    of_params, of_x = jax.grad(loss, argnums=(0, 1))(params, x)
    np.testing.assert_allclose(of_params["move"], of_x[0], rtol=1e-6)
    np.testing.assert_array_equal(of_x[0] != 0, [True, True, False])  # a triangle would be 0 at 1.25

    scaled = BinaryDense(2, learned_scale=True, move=False)
    params = scaled.init(jax.random.key(0), x)["params"]
    assert params.keys() == {"kernel", "input_scale"}
    y = scaled.apply({"params": dict(params, input_scale=jnp.float32(3))}, x)
    np.testing.assert_allclose(y, 3 * scaled.apply({"params": params}, x), rtol=1e-6)


def test_kernels_begin_as_in_pytorch():
    kernel = BinaryDense(64).init(jax.random.key(0), jnp.zeros((1, 100)))["params"]["kernel"]
    assert 0.095 < np.abs(kernel).max() <= 0.1  # 1 / sqrt(100)
    assert abs(kernel.std() - 0.1 / np.sqrt(3)) < 2e-3


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match="precision='w1a1' is none of 'binary', 'w1a32', 'w32a1', 'float'"):
        BinaryDense(2, "w1a1").init(jax.random.key(0), X[None])


def test_rprelu_and_affine_begin_as_published():
    x = np.float32([[-2.0, 3.0]])
    params = RPReLU().init(jax.random.key(0), x)["params"]
    np.testing.assert_array_equal(RPReLU().apply({"params": params}, x), [[-0.5, 3]])
    np.testing.assert_allclose(Affine().init_with_output(jax.random.key(0), x)[0], 0.1 * x, rtol=1e-6)
    assert not Affine(0.0).init_with_output(jax.random.key(0), x)[0].any()


def test_rprelu_subtracts_or_adds_its_first_shift():
    params = {"move1": np.float32([1.0]), "slope": np.float32([0.5]), "move2": np.float32([10.0])}
    x = np.float32([[0.5], [1.0], [-0.5], [-3.0]])
    subtracts = RPReLU().apply({"params": params}, x)
    np.testing.assert_array_equal(subtracts[:, 0], [9.75, 10, 9.25, 8])
    adds = RPReLU(subtract=False).apply({"params": params}, x)
    np.testing.assert_array_equal(adds[:, 0], [11.5, 12, 10.5, 9])
