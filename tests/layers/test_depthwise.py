"""Depthwise convolution as a sum of taps, which is what a CPU computes, against XLA's own by groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vitjax.analysis.costs import multiply_accumulates
from vitjax.layers.convolution import convolve
from vitjax.layers.depthwise import depthwise_convolve


def by_groups(x, kernel, stride, pads):
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=layout, feature_group_count=x.shape[-1]
    )


@pytest.mark.parametrize(
    ("size", "stride", "image", "pads"),
    [
        (3, 1, (4, 5), ((1, 1), (1, 1))),
        (3, 2, (6, 7), ((0, 1), (1, 1))),  # SAME of an even height and an odd width
        (5, 2, (7, 8), ((2, 2), (1, 2))),
        (5, 2, (8, 9), ((2, 2), (2, 2))),  # the last row is seen by fewer taps
        (3, 2, (1, 2), ((1, 1), (1, 1))),
    ],
)
def test_value_and_both_gradients(size, stride, image, pads):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *image, 6)).astype(np.float32)
    kernel = rng.normal(size=(size, size, 1, 6)).astype(np.float32)
    expected, pull = jax.vjp(lambda x, kernel: by_groups(x, kernel, stride, pads), x, kernel)
    found, pull_found = jax.vjp(lambda x, kernel: depthwise_convolve(x, kernel, stride, pads), x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for ours, reference in zip(pull_found(expected), pull(expected), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4)


def test_convolutions_of_one_filter_a_channel_come_here():
    x, kernel = jnp.ones((1, 8, 9, 4)), jnp.ones((3, 3, 1, 4))
    for padding, pads in (("same", "SAME"), ("symmetric", ((1, 1), (1, 1)))):
        convolved = lambda x, padding=padding: convolve(x, kernel, stride=2, padding=padding, groups=4)
        np.testing.assert_array_equal(convolved(x), by_groups(x, kernel, 2, pads))
        assert "name=_depthwise" in str(jax.make_jaxpr(convolved)(x))
        # Counted as the convolution that it is, whatever computes it.
        assert multiply_accumulates(convolved, x) == convolved(x).size * 9


def test_bfloat16_is_summed_in_float32():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 5, 3)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(5, 5, 1, 3)), jnp.bfloat16)
    convolved, pull = jax.vjp(lambda x, k: depthwise_convolve(x, k, 1, ((2, 2), (2, 2))), x, kernel)
    exact = by_groups(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, ((2, 2), (2, 2)))
    np.testing.assert_array_equal(convolved, exact.astype(jnp.bfloat16))
    assert [gradient.dtype for gradient in pull(convolved)] == [jnp.bfloat16] * 2
