"""The one door for products of binary operands.

Every layer that multiplies binary numbers calls `binary_matmul` or `binary_conv`, whatever computes them.
The operands are plain arrays of their values, scales stay outside, and the backend is chosen here.
"""

import functools

import jax
from jax import lax

from vitjax.errors import UserError, nearest
from vitjax.kernels.dense_matmul import dense_matmul, of_one_dtype, result_dtype

# What an operand may hold. A sign of exactly 0 is 0: "pm1" has it as a third value.
VALUES = {"pm1": "-1, 0 and 1", "01": "0 and 1"}
BACKENDS = ("dense", "packed")

Padding = int | tuple[tuple[int, int], tuple[int, int]]  # zeros around height and width


# Jitted under these very names, and not inlined: the accounting (vitjax.analysis.count) knows a binary
# product by the name of the call in the traced program.
@functools.partial(jax.jit, static_argnames=("a_values", "b_values", "backend"))
def binary_matmul(a, b, *, a_values: str = "pm1", b_values: str = "pm1", backend: str = "dense"):
    """Multiplies `a` `[..., M, K]` by `b` `[..., K, N]`: the exact integers `[..., M, N]`.

    Leading axes broadcast as in `jnp.matmul`. `a_values` and `b_values` say what the operands hold: "pm1" are
    signs, "01" bits. The result is float32, or wider where an operand is; its gradient is that of the product
    of real matrices, whatever the backend. `backend` is how it is computed: "dense" multiplies the numbers as
    they are, "packed" counts bits. An operand that bits cannot hold (a sign of exactly 0, NaN) is multiplied
    densely in the same compiled program, so the result is the same in any case.

    Raises:
      UserError: no such values or backend.
    """
    _check(backend, a_values, b_values)
    return _matmul(a, b, a_values, b_values, backend)


@functools.partial(jax.jit, static_argnames=("stride", "padding", "backend"))
def binary_conv(x, signs, stride: int = 1, padding: Padding = 0, *, backend: str = "dense"):
    """Convolves `x` `[B, H, W, C]` of -1, 0 and 1 with `signs` `[k, l, C, D]`: exact integers `[B, h, w, D]`.

    `padding` are the zeros on every side, or those before and after height and width. They are neither -1
    nor 1, as in the published networks. Result, gradient and `backend` are as those of `binary_matmul`;
    windows that overlap, or that reach over zeros, are multiplied densely whatever the backend.

    Raises:
      UserError: no such backend.
    """
    _check(backend, "pm1", "pm1")
    pads = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    height, width, channels, features = signs.shape
    if height == width and height in (1, stride) and pads == ((0, 0), (0, 0)):
        # Windows that do not overlap are rows of a matrix, also in the gradient.
        rows = signs.reshape(height * width * channels, features)
        return _matmul(_windows(x, height, stride), rows, "pm1", "pm1", backend)
    return lax.conv_general_dilated(
        *of_one_dtype(x, signs),
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=result_dtype(x, signs),
    )


def _check(backend: str, *values: str):
    for name in values:
        if name not in VALUES:
            known = ", ".join(f"{value!r} ({holds})" for value, holds in VALUES.items())
            raise UserError(f"{name!r} are no values of a binary operand: these are {known}.")
    if backend not in BACKENDS:
        raise UserError(
            f"backend={backend!r} is none of {', '.join(map(repr, BACKENDS))}.{nearest(backend, BACKENDS)}"
        )


def _matmul(a, b, a_values, b_values, backend):
    if backend == "dense":
        return dense_matmul(a, b)
    from vitjax.kernels.packed_matmul import packed_matmul  # Pallas takes half a second to import

    return packed_matmul(a, b, a_values, b_values)


def _windows(x, size: int, stride: int):
    """The size x size windows of `[B, H, W, C]` side by side: `[B, h, w, size * size * C]`.

    The size is 1 or the stride. What is left over on the right and below is in no window.
    """
    if size == 1:
        return x[:, ::stride, ::stride]
    batch, height, width, channels = x.shape
    h, w = height // size, width // size
    x = x[:, : h * size, : w * size].reshape(batch, h, size, w, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, h, w, size * size * channels)
