"""Products of operands that hold 32 numbers a word: bit 1 where a number is 1, bit 0 where it is -1 or 0.

A dot product of K such numbers is a count of bits. Words are packed in planes: of a group of 32 G numbers,
number j G + w is bit j of word w, so that a plane of bits is a run of numbers and packing moves no single
one. Any order would do as long as both operands have the same; that is why G depends on K alone.

Arrays of words have the packed axis in front of the other one, `[B, W, M]`: a kernel walks along W, and only
the last axis of a block has to be a multiple of 128 on a TPU.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton as pltriton

from vitjax.kernels.dense_matmul import dense_matmul, result_dtype

WORD = 32  # bits of an int32: a Triton kernel with uint32 lowers, but does not compile
_WIDEST_GROUP = 8  # words; as many as a TPU's sublanes


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def packed_matmul(a, b, a_values: str = "pm1", b_values: str = "pm1"):
    """Multiplies `a` `[..., M, K]` by `b` `[..., K, N]`; see `vitjax.kernels.binary_matmul`.

    Numbers that bits cannot hold, above all a sign of 0, are looked for when the program runs. If there is
    one, the whole product is that of `dense_matmul`.
    """
    packed = functools.partial(_pack_and_count, values=(a_values, b_values))
    fits = _bits_hold(a, a_values) & _bits_hold(b, b_values)
    return lax.cond(fits, packed, dense_matmul, a, b)


def _forward(a, b, a_values, b_values):
    return packed_matmul(a, b, a_values, b_values), (a, b)


def _backward(a_values, b_values, saved, grad):
    del a_values, b_values
    return jax.vjp(dense_matmul, *saved)[1](grad)


packed_matmul.defvjp(_forward, _backward)


def _bits_hold(x, values):
    return (jnp.abs(x) == 1).all() if values == "pm1" else ((x == 0) | (x == 1)).all()


def _pack_and_count(a, b, values):
    """The product as one of `[B, W, M]` by `[B, W, N]` words: leading axes are one, or rows of one matrix."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    leading = jnp.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if b.ndim == 2:
        a, b = a.reshape(1, -1, k), b[None]
    else:
        a, b = (jnp.broadcast_to(x, (*leading, *x.shape[-2:])).reshape(-1, *x.shape[-2:]) for x in (a, b))
    product = packed_product(pack(a.swapaxes(-1, -2) > 0), pack(b > 0), k, values)
    return product.reshape(*leading, m, n).astype(result_dtype(a, b))


def words_of(k: int) -> int:
    """How many words hold `k` numbers; the last ones may have bits of 0 that stand for nothing."""
    group = _group(k)
    return -(-k // (WORD * group)) * group


def _group(k):
    """The G of `k` numbers: the largest power of two up to 8 that divides their number of words."""
    return math.gcd(-(-k // WORD), _WIDEST_GROUP)


def pack(bits):
    """Packs booleans `[..., K, N]` along K to int32 `[..., W, N]`."""
    *batch, k, n = bits.shape
    group, words = _group(k), words_of(k)
    missing = [(0, 0)] * len(batch) + [(0, words * WORD - k), (0, 0)]
    planes = jnp.pad(bits, missing).reshape(*batch, words // group, WORD, group, n)
    packed = jnp.zeros((*batch, words // group, group, n), jnp.uint32)
    for j in range(WORD):
        packed |= jnp.where(planes[..., j, :, :], jnp.uint32(1 << j), jnp.uint32(0))
    return lax.bitcast_convert_type(packed, jnp.int32).reshape(*batch, words, n)


# By the values of both operands: what two words add to the dot product, before it is taken from K (or not).
# Bits that stand for nothing are 0 in both operands, and add nothing in any of them.
_COUNTS = {
    ("pm1", "pm1"): lambda a, b: -2 * lax.population_count(a ^ b),
    ("01", "pm1"): lambda a, b: 2 * lax.population_count(a & b) - lax.population_count(a),
    ("pm1", "01"): lambda a, b: 2 * lax.population_count(a & b) - lax.population_count(b),
    ("01", "01"): lambda a, b: lax.population_count(a & b),
}


def packed_product(a, b, k: int, values: tuple[str, str] = ("pm1", "pm1")):
    """Multiplies words `a` `[B, W, M]` and `b` `[B, W, N]` of `k` numbers a dot product: int32 `[B, M, N]`.

    A Pallas kernel on TPU and CUDA; elsewhere the same count in XLA, which is faster than an interpreted
    kernel. `values` are those of both operands, as in `binary_matmul`.
    """
    xla = functools.partial(by_xla, k=k, values=values)
    tpu = functools.partial(by_pallas, k=k, values=values, block=128, compiler_params=_TPU)
    cuda = functools.partial(by_pallas, k=k, values=values, block=64, compiler_params=_CUDA)
    return lax.platform_dependent(a, b, tpu=tpu, cuda=cuda, default=xla)


# Said outright: left to choose, jax 0.10 takes Mosaic on a GPU, which counts no bits.
_CUDA = pltriton.CompilerParams(num_warps=4, num_stages=3)
_TPU = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel"))


def by_xla(a, b, k: int, values: tuple[str, str]):
    """`packed_product` by XLA's own operations."""
    count = _COUNTS[values]
    terms = (count(a[:, i, :, None], b[:, i, None, :]) for i in range(a.shape[1]))
    return sum(terms, start=jnp.int32(_start(k, values)))


def by_pallas(a, b, k: int, values: tuple[str, str], block: int, compiler_params=None, interpret=False):
    """`packed_product` by a kernel that makes `block` x `block` of its results at a time."""
    batch, words, m = a.shape
    n = b.shape[-1]
    a, b = _padded(a, block), _padded(b, block)
    rows, columns = a.shape[-1], b.shape[-1]
    product = pl.pallas_call(
        functools.partial(_kernel, start=_start(k, values), count=_COUNTS[values]),
        out_shape=jax.ShapeDtypeStruct((batch, rows, columns), jnp.int32),
        grid=(batch, rows // block, columns // block),
        in_specs=[
            pl.BlockSpec((None, words, block), lambda e, i, j: (e, 0, i)),
            pl.BlockSpec((None, words, block), lambda e, i, j: (e, 0, j)),
        ],
        out_specs=pl.BlockSpec((None, block, block), lambda e, i, j: (e, i, j)),
        compiler_params=compiler_params,
        interpret=interpret,
        name="packed_binary_matmul",
    )(a, b)
    return product[:, :m, :n]


def _kernel(a_ref, b_ref, out_ref, *, start, count):
    """Adds up all words of one block of results, here: blocks run side by side on a GPU."""

    def add(i, total):
        return total + count(a_ref[i, :][:, None], b_ref[i, :][None, :])

    begin = jnp.full(out_ref.shape, start, jnp.int32)
    out_ref[...] = lax.fori_loop(0, a_ref.shape[0], add, begin)


def _start(k, values):
    """What a dot product without any count would be: all K pairs alike, if there are pairs of signs."""
    return k if values == ("pm1", "pm1") else 0


def _padded(words, block):
    """Fills up the last axis: Triton masks nothing, and a block that overhangs would write outside."""
    return jnp.pad(words, ((0, 0), (0, 0), (0, -words.shape[-1] % block)))
