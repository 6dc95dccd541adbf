"""The one door for products of binary operands.

Every layer that multiplies binary numbers calls `binary_matmul` or `binary_conv`, whatever computes them.
The operands are plain arrays of their values, scales stay outside, and the backend is chosen here.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from vitjax.errors import UserError, nearest

# What an operand may hold. A sign of exactly 0 is 0: "pm1" has it as a third value.
VALUES = {"pm1": "-1, 0 and 1", "01": "0 and 1"}
BACKENDS = ("dense",)

Padding = int | tuple[tuple[int, int], tuple[int, int]]  # zeros around height and width


# Jitted under these very names, and not inlined: the accounting (vitjax.analysis.count) knows a binary
# product by the name of the call in the traced program.
@functools.partial(jax.jit, static_argnames=("a_values", "b_values", "backend"))
def binary_matmul(a, b, *, a_values: str = "pm1", b_values: str = "pm1", backend: str = "dense"):
    """Multiplies `a` `[..., M, K]` by `b` `[..., K, N]`: the exact integers `[..., M, N]`.

    Leading axes broadcast as in `jnp.matmul`. `a_values` and `b_values` say what the operands hold: "pm1" are
    signs, "01" bits. The result is float32, or wider where an operand is; its gradient is that of the product
    of real matrices, whatever the backend.

    Raises:
      UserError: no such values or backend.
    """
    _check(backend, a_values, b_values)
    return _dense_matmul(a, b)


@functools.partial(jax.jit, static_argnames=("stride", "padding", "backend"))
def binary_conv(x, signs, stride: int = 1, padding: Padding = 0, *, backend: str = "dense"):
    """Convolves `x` `[B, H, W, C]` of -1, 0 and 1 with `signs` `[k, l, C, D]`: exact integers `[B, h, w, D]`.

    `padding` are the zeros on every side, or those before and after height and width. They are neither -1 nor
    1, as in the published networks. Result and gradient are as those of `binary_matmul`.

    Raises:
      UserError: no such backend.
    """
    _check(backend, "pm1", "pm1")
    pads = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    height, width, channels, features = signs.shape
    if (height, width) == (stride, stride) and pads == ((0, 0), (0, 0)):
        # Windows that do not overlap are rows of a matrix, also in the gradient.
        return _dense_matmul(_windows(x, stride), signs.reshape(height * width * channels, features))
    return lax.conv_general_dilated(
        *_of_one_dtype(x, signs),
        (stride, stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=_result(x, signs),
    )


def _check(backend: str, *values: str):
    for name in values:
        if name not in VALUES:
            raise UserError(f"{name!r} are no values of a binary operand.{nearest(name, VALUES)}")
    if backend not in BACKENDS:
        raise UserError(f"backend={backend!r} multiplies no binary operands.{nearest(backend, BACKENDS)}")


def _result(a, b):
    """Dtype of the result: float32 at least, because bfloat16 holds integers up to 256 only."""
    return jnp.promote_types(jnp.promote_types(a.dtype, b.dtype), jnp.float32)


def _of_one_dtype(a, b):
    dtype = jnp.promote_types(a.dtype, b.dtype)
    return a.astype(dtype), b.astype(dtype)


def _dense_matmul(a, b):
    """The product of real matrices, with all rows of `a` as one matrix where `b` is one."""
    result = _result(a, b)
    a, b = _of_one_dtype(a, b)
    if b.ndim > 2:
        return jnp.matmul(a, b, preferred_element_type=result)
    y = jnp.matmul(a.reshape(-1, a.shape[-1]), b, preferred_element_type=result)
    return y.reshape(*a.shape[:-1], b.shape[-1])


def _windows(x, size: int):
    """The size x size windows of `[B, H, W, C]` side by side: `[B, H / size, W / size, size * size * C]`.

    What is left over on the right and below is in no window.
    """
    if size == 1:
        return x
    batch, height, width, channels = x.shape
    h, w = height // size, width // size
    x = x[:, : h * size, : w * size].reshape(batch, h, size, w, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, h, w, size * size * channels)
