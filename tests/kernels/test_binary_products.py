"""The door itself: what it refuses, what it is called in a program, how exact it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.errors import UserError
from vitjax.kernels import BACKENDS, binary_conv, binary_matmul


def calls(function, *args):
    """Names of the calls in the traced function."""
    return [eqn.params.get("name") for eqn in jax.make_jaxpr(function)(*args).eqns]


def test_a_product_is_a_call_of_its_own_name_also_under_a_gradient():
    a, b = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
    x, signs = jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 2))
    for backend in BACKENDS:
        assert calls(lambda a, b, way=backend: binary_matmul(a, b, backend=way), a, b) == ["binary_matmul"]
    assert calls(lambda x, s: binary_conv(x, s, 2, 1), x, signs) == ["binary_conv"]
    assert "binary_matmul" in calls(jax.grad(lambda a: binary_matmul(a, b).sum()), a)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bfloat16_operands_give_exact_integers(backend):
    a, b = jnp.ones((2, 1025), jnp.bfloat16), jnp.ones((1025, 3), jnp.bfloat16)
    y = binary_matmul(a, b, backend=backend)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, 1025)  # which bfloat16 does not have
    grad = jax.grad(lambda a: binary_matmul(a, b, backend=backend).sum())(a)
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_array_equal(grad, 3)


def test_zeros_around_a_convolution_are_neither_sign():
    x, signs = jnp.ones((1, 4, 6, 2)), jnp.ones((3, 3, 2, 1))
    y = np.asarray(binary_conv(x, signs, 1, 1))[0, ..., 0]
    assert y.shape == (4, 6)
    assert (y[0, 0], y[0, 1], y[1, 1]) == (8, 12, 18)
    uneven = np.asarray(binary_conv(x, signs, 1, ((0, 0), (2, 1))))[0, ..., 0]
    assert uneven.shape == (2, 7) and (uneven[0, 0], uneven[0, 1]) == (6, 12)
    for size in (1, 2):  # a border that is not there must not be forgotten where windows do not overlap
        kernel = jnp.ones((size, size, 2, 1))
        assert binary_conv(x, kernel, size, 1)[0, 0, 0, 0] == (0 if size == 1 else 2)


def test_packed_convolutions_over_zeros_are_as_the_dense_ones():
    random = np.random.default_rng(0)
    x, signs = random.choice([-1.0, 1.0], (2, 6, 6, 3)), random.choice([-1.0, 1.0], (3, 3, 3, 4))
    np.testing.assert_array_equal(
        binary_conv(x, signs, 2, 1, backend="packed"), binary_conv(x, signs, 2, 1, backend="dense")
    )


def test_unknown_values_and_backends_are_refused_by_name():
    a, b = jnp.ones((2, 3)), jnp.ones((3, 2))
    with pytest.raises(UserError, match=r"'pm2' are no values .* 'pm1' \(-1, 0 and 1\), '01' \(0 and 1\)"):
        binary_matmul(a, b, a_values="pm2")
    with pytest.raises(UserError, match="'pm3'"):
        binary_matmul(a, b, b_values="pm3")
    with pytest.raises(
        UserError, match=r"backend='pakced' is none of 'dense', 'packed'. Did you mean 'packed'"
    ):
        binary_matmul(a, b, backend="pakced")
    with pytest.raises(UserError, match="backend='fast'"):
        binary_conv(a[None, None], b[None, None], backend="fast")
