"""Counting bits against multiplying integers, and what the kernel is lowered to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax.kernels import binary_conv, binary_matmul
from vitjax.kernels.packed_matmul import by_pallas, by_xla, pack, packed_matmul, words_of

ALPHABETS = {"pm1": (-1, 1), "01": (0, 1)}
# One query, a map, a map with a class token; few classes, more than a block; widths, and what fills no word.
SHAPES = [(m, 100, n) for m in (1, 49, 197) for n in (5, 70)]
SHAPES += [(49, 1, 5), (197, 33, 5), (197, 64, 70), (1, 384, 70), (49, 2048, 5)]


def numbers(seed, shape, values="pm1", dtype=np.float32):
    return np.random.default_rng(seed).choice(ALPHABETS[values], shape).astype(dtype)


def operands(m, k, n, values=("pm1", "pm1")):
    return numbers(1, (m, k), values[0]), numbers(2, (k, n), values[1])


def packed(a, b):
    return pack(jnp.asarray(a.swapaxes(-1, -2)) > 0), pack(jnp.asarray(b) > 0)


def integers(a, b):
    return np.matmul(a.astype(np.int64), b.astype(np.int64))


@pytest.mark.parametrize("k", [1, 32, 40, 64, 96, 192, 384, 700, 2048])
def test_a_word_has_every_number_in_its_plane(k):
    bits = np.random.default_rng(k).integers(0, 2, (k, 3)).astype(bool)
    words = np.asarray(pack(jnp.asarray(bits))).view(np.uint32)
    group = np.gcd(-(-k // 32), 8)
    assert words.shape == (words_of(k), 3) and words_of(k) % group == 0
    for number in range(k):
        block, inside = divmod(number, 32 * group)
        plane, word = divmod(inside, group)
        np.testing.assert_array_equal(words[block * group + word] >> plane & 1, bits[number])
    assert sum(map(int.bit_count, words.ravel().tolist())) == bits.sum()  # the rest is 0


@pytest.mark.parametrize("m, k, n", SHAPES)
def test_the_kernel_gives_the_exact_integers(m, k, n):
    a, b = operands(m, k, n)
    words = packed(a[None], b[None])
    for compute in (by_xla, lambda *args: by_pallas(*args, block=64, interpret=True)):
        y = compute(*words, k, ("pm1", "pm1"))
        assert y.dtype == jnp.int32
        np.testing.assert_array_equal(y[0], integers(a, b))


@pytest.mark.parametrize("values", [("pm1", "pm1"), ("01", "pm1"), ("pm1", "01"), ("01", "01")])
@pytest.mark.parametrize("k", [49, 196])
def test_bits_of_either_kind_are_counted(values, k):
    a, b = numbers(3, (2, 9, k), values[0]), numbers(4, (2, k, 7), values[1])
    for compute in (by_xla, lambda *args: by_pallas(*args, block=16, interpret=True)):
        np.testing.assert_array_equal(compute(*packed(a, b), k, values), integers(a, b))


@pytest.mark.parametrize(
    "left, right",
    [((3, 8), (8, 5)), ((2, 4, 3, 8), (8, 5)), ((2, 4, 3, 8), (4, 8, 5)), ((1, 3, 8), (4, 8, 5))],
)
def test_leading_axes_are_those_of_matmul(left, right):
    a, b = numbers(5, left), numbers(6, right)
    for backend in ("dense", "packed"):
        y = binary_matmul(a, b, backend=backend)
        np.testing.assert_array_equal(y, integers(a, b))
        assert y.dtype == jnp.float32


@pytest.mark.parametrize("wrong", [0.0, -0.0, 0.5, 2.0, np.nan])
def test_what_bits_cannot_hold_is_multiplied_as_it_is(wrong):
    for place in (0, 1):
        pair = list(operands(4, 40, 3))
        pair[place][-1, -1] = wrong
        np.testing.assert_array_equal(packed_matmul(*pair), np.matmul(*pair))
    bits = numbers(1, (4, 40), "01")
    bits[0, 0] = -1
    b = numbers(2, (40, 3))
    np.testing.assert_array_equal(packed_matmul(bits, b, "01"), bits @ b)


def test_signs_without_a_zero_are_counted_and_not_multiplied():
    """The dense way would give the same numbers, so it is made to give others."""
    a, b = operands(4, 40, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitjax.kernels.packed_matmul.dense_matmul", lambda a, b: jnp.full((4, 3), -7.0))
        np.testing.assert_array_equal(packed_matmul(a, b), a @ b)
        a[0, 0] = 0
        np.testing.assert_array_equal(packed_matmul(a, b), np.full((4, 3), -7.0))


def test_the_gradient_is_that_of_the_dense_product():
    a, b = numbers(7, (2, 6, 33)), numbers(8, (33, 5))
    grad = np.random.default_rng(9).normal(size=(2, 6, 5)).astype(np.float32)
    pulls = [
        jax.vjp(lambda a, b, way=way: binary_matmul(a, b, backend=way), a, b)[1]
        for way in ("dense", "packed")
    ]
    for dense, counted in zip(pulls[0](grad), pulls[1](grad), strict=True):
        np.testing.assert_array_equal(counted, dense)
        assert np.abs(dense).max() > 0


def test_vmap_of_the_packed_product():
    a, b = numbers(10, (3, 4, 40)), numbers(11, (3, 40, 5))
    np.testing.assert_array_equal(jax.vmap(packed_matmul)(a, b), integers(a, b))
    a[1, 0, 0] = 0  # one example with a zero takes nothing from the others
    np.testing.assert_array_equal(jax.vmap(packed_matmul)(a, b), integers(a, b))


@pytest.mark.parametrize("size, stride", [(2, 2), (1, 1), (1, 2)])
def test_windows_that_do_not_overlap_are_counted_as_well(size, stride):
    x, signs = numbers(12, (2, 7, 6, 5)), numbers(13, (size, size, 5, 3))
    layout = ("NHWC", "HWIO", "NHWC")
    wanted = jax.lax.conv_general_dilated(x, signs, (stride,) * 2, "VALID", dimension_numbers=layout)
    for backend in ("dense", "packed"):
        np.testing.assert_array_equal(binary_conv(x, signs, stride, 0, backend=backend), wanted)


def lowered(platform, values, shape=((2, 49, 100), (100, 70))):
    a, b = (jax.ShapeDtypeStruct(side, jnp.float32) for side in shape)
    product = jax.jit(lambda a, b: binary_matmul(a, b, a_values=values, backend="packed"))
    # Newer versions of JAX ask which GPU it is, and no device is here to say so.
    with jax.sharding.use_abstract_mesh(
        an_h200() if platform == "cuda" else jax.sharding.AbstractMesh((), ())
    ):
        return product.trace(a, b).lower(lowering_platforms=(platform,)).as_text()


def an_h200():
    device = jax.sharding.AbstractDevice("NVIDIA H200", None, platform="gpu")
    return jax.sharding.AbstractMesh((), (), abstract_device=device)


@pytest.mark.parametrize("values", ["pm1", "01"])
@pytest.mark.parametrize(
    "platform, call", [("tpu", "tpu_custom_call"), ("cuda", "__gpu$xla.gpu.triton"), ("cpu", None)]
)
def test_it_is_lowered_to_a_kernel_of_the_device(platform, call, values):
    text = lowered(platform, values)
    if call is None:
        assert "custom_call" not in text  # XLA's own counting, which is faster than an interpreted kernel
    else:
        assert text.count(f"@{call}") == 1, platform
        assert "packed_binary_matmul" in text


def test_the_dense_backend_is_one_matrix_product():
    a, b = operands(4, 40, 3)
    text = jax.jit(binary_matmul).lower(a, b).as_text()
    assert text.count("dot_general") == 1 and "popcnt" not in text
