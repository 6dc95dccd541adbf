"""Convolution by groups, as a CPU computes it against XLA's own, which is for accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from vitjax.analysis.costs import multiply_accumulates
from vitjax.layers.convolution import convolve
from vitjax.layers.grouped import grouped_convolve

GROUPS = 3


def by_xla(x, kernel, stride, pads):
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=layout, feature_group_count=GROUPS
    )


# Groups of 4 channels are products of matrices, groups of 20 convolutions of their own.
@pytest.mark.parametrize("channels", [4, 20])
@pytest.mark.parametrize(
    ("size", "stride", "pads"),
    [(3, 1, ((1, 1), (1, 1))), (3, 2, ((0, 1), (1, 1))), (5, 2, ((2, 2), (1, 2)))],
)
def test_value_and_both_gradients(channels, size, stride, pads):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 7, 8, GROUPS * channels)).astype(np.float32)
    kernel = rng.normal(size=(size, size, channels, GROUPS * 2)).astype(np.float32)
    kernel /= np.sqrt(kernel.size / (GROUPS * 2))
    expected, pull = jax.vjp(lambda x, kernel: by_xla(x, kernel, stride, pads), x, kernel)
    found, pull_found = jax.vjp(lambda x, k: grouped_convolve(x, k, stride, pads, GROUPS), x, kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for ours, reference in zip(pull_found(expected), pull(expected), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4)


@pytest.mark.parametrize("channels", [4, 20])
def test_what_is_counted_and_what_accelerators_run_is_one_convolution(channels):
    x = jax.ShapeDtypeStruct((1, 8, 8, GROUPS * channels), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, channels, GROUPS * 2), jnp.float32)
    convolved = lambda x, kernel: convolve(x, kernel, groups=GROUPS)
    assert multiply_accumulates(convolved, x, kernel) == 64 * GROUPS * 2 * 9 * channels
    program = jax.jit(convolved).trace(x, kernel).lower(lowering_platforms=("tpu",)).as_text()
    assert program.count("stablehlo.convolution") == 1 and f"feature_group_count = {GROUPS}" in program
    on_cpu = jax.jit(convolved).trace(x, kernel).lower(lowering_platforms=("cpu",)).as_text()
    assert on_cpu.count("stablehlo.convolution") == (0 if channels == 4 else GROUPS)
