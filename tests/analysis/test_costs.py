"""Multiply-accumulates against arithmetic by hand and against what timm says of its models."""

import jax
import jax.numpy as jnp
import pytest

from vitjax import models
from vitjax.analysis.costs import multiply_accumulates


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# GMACs of timm 1.0.31's models of the same name (`vit_tiny_patch16_224`, ...), to the four digits it gives.
# It counts what we count: products of activations with weights and with each other (attention), no more.
TIMM = [
    ("vit_ti16", 224, 1.2537),
    ("vit_ti16", 384, 4.6822),
    ("vit_s16", 224, 4.5989),
    ("vit_s32", 224, 1.1429),
    ("vit_b16", 224, 17.5638),
    ("vit_b32", 384, 13.0436),
    ("vit_b8", 224, 78.1483),
    ("vit_l32", 224, 15.3775),
    ("r_ti16", 224, 0.4337),  # vit_tiny_r_s16_p8_224
    ("r26_s32", 384, 10.2636),  # vit_small_r26_s32_384
    ("r50_l32", 224, 19.4133),  # vit_large_r50_s32_224
]


def forward(name, size, **options):
    model = models.create(name, num_classes=1000, **options)
    image = spec(1, size, size, 3)
    variables = jax.eval_shape(lambda image: model.init(jax.random.key(0), image), image)
    return multiply_accumulates(lambda v, x: model.apply(v, x)[0], variables, image)


@pytest.mark.parametrize(("name", "size", "gmacs"), TIMM)
def test_models_as_timm_counts_them(name, size, gmacs):
    assert round(forward(name, size) / 1e9, 4) == gmacs


def test_tiny_by_hand():
    tokens, width, mlp = 197, 192, 768
    block = tokens * width * (4 * width + 2 * mlp) + 2 * tokens * tokens * width
    assert forward("vit_ti16", 224) == 196 * 16 * 16 * 3 * width + 12 * block + width * 1000


def test_scanned_and_recomputed_blocks_count_the_same():
    assert forward("vit_ti16", 224, scan=True, remat="nothing_saveable") == forward("vit_ti16", 224)


def test_products_batched_and_not():
    assert multiply_accumulates(lambda a, b: a @ b, spec(2, 3), spec(3, 5)) == 30
    product = lambda a, b: jnp.einsum("bhnk,bmhk->bhnm", a, b)
    assert multiply_accumulates(product, spec(2, 3, 5, 7), spec(2, 11, 3, 7)) == 2 * 3 * 5 * 7 * 11

    assert multiply_accumulates(lambda a: jax.nn.softmax(a + a * a).sum(), spec(4, 4)) == 0


def convolve(groups, padding="SAME"):
    return lambda x, w: jax.lax.conv_general_dilated(
        x, w, (2, 2), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_convolutions_and_their_groups(groups):
    image, kernel = spec(2, 10, 10, 8), spec(3, 3, 8 // groups, 16)
    forward_pass = 2 * 5 * 5 * 16 * 9 * (8 // groups)
    assert multiply_accumulates(convolve(groups), image, kernel) == forward_pass
    # The gradient over the kernel is as many products; with groups, a convolution in groups of the batch.
    gradient = jax.grad(lambda w, x: convolve(groups, "VALID")(x, w).sum())
    assert multiply_accumulates(gradient, kernel, spec(2, 9, 9, 8)) == 2 * 4 * 4 * 16 * 9 * (8 // groups)


def test_control_flow_and_nested_functions():
    square = lambda x: x @ x
    once = 4**3
    count = lambda function: multiply_accumulates(function, spec(4, 4))
    assert count(lambda x: jax.lax.fori_loop(0, 5, lambda _, y: square(y), x)) == 5 * once
    assert count(lambda x: jax.lax.scan(lambda c, _: (square(square(c)), None), x, length=3)[0]) == 6 * once
    branches = (lambda x: x, square, lambda x: square(square(x)))
    assert count(lambda x: jax.lax.switch(jnp.int32(x[0, 0]), branches, x)) == 2 * once
    assert count(jax.jit(square)) == count(jax.checkpoint(square)) == once
    vjp = jax.custom_vjp(square)
    vjp.defvjp(lambda x: (square(square(x)), x), lambda x, g: (g,))
    assert count(vjp) == once
    jvp = jax.custom_jvp(square)
    jvp.defjvp(lambda x, t: (square(x[0]), square(square(t[0]))))
    assert count(jvp) == once


def test_what_no_output_needs_is_not_counted():
    def function(x):
        unused = x @ x @ x
        return x @ x, unused

    assert multiply_accumulates(lambda x: function(x)[0], spec(4, 4)) == 4**3


def test_a_loop_of_unknown_length_is_refused():
    halve = lambda x: jax.lax.while_loop(lambda y: y[0, 0] > 1, lambda y: y @ y, x)
    with pytest.raises(ValueError, match="'while'"):
        multiply_accumulates(halve, spec(4, 4))
    count_down = lambda x: jax.lax.while_loop(lambda n: n > 1, lambda n: n - 1, 5) + x @ x
    assert multiply_accumulates(count_down, spec(4, 4)) == 4**3
