"""Convolutions of image maps: dense, by groups, one filter a channel."""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.dense import affine
from vitjax.layers.depthwise import depthwise_convolve
from vitjax.layers.grouped import Pads, grouped_convolve
from vitjax.layers.patches import refuse_other_channels

PADDING = ("symmetric", "same")


def he_fan_out(key, shape, dtype=jnp.float32):
    """He's normal initialisation of `[k, k, C / groups, D]`: deviation sqrt(2 / (k * k * D)).

    As for dense convolutions in PyTorch's "kaiming_normal, fan_out" and in TensorFlow's EfficientNet.
    """
    return nn.initializers.variance_scaling(2.0, "fan_out", "normal")(key, shape, dtype)


def he_depthwise(key, shape, dtype=jnp.float32):
    """`he_fan_out` of depthwise kernels `[k, k, 1, C]`, whose groups have one output: sqrt(2 / (k * k))."""
    return nn.initializers.normal(np.sqrt(2 / (shape[0] * shape[1])))(key, shape, dtype)


class Conv(nn.Module):
    """A convolution with square kernel `[k, k, C / groups, features]`: `[B, H, W, C] -> [B, h, w, features]`.

    Padding `symmetric`: k // 2 zeros on every side, PyTorch's habit. `same`: TensorFlow's, the least that
    makes h = H / stride rounded up, an odd row or column of it last; a stride of 2 over an even size
    so sees other pixels than with `symmetric`.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    padding: str = "symmetric"
    use_bias: bool = False
    kernel_init: Callable = he_fan_out
    dtype: DTypeLike = jnp.float32  # of the products

    @nn.compact
    def __call__(self, x):
        """Convolves `x`; the result has `dtype`."""
        if self.padding not in PADDING:
            raise UserError(f"padding={self.padding!r} is none of {', '.join(map(repr, PADDING))}.")
        shape = (self.kernel_size, self.kernel_size, x.shape[-1] // self.groups, self.features)
        refuse_other_channels(self.get_variable("params", "kernel"), shape[2])
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.use_bias else None
        y = convolve(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            stride=self.stride,
            padding=self.padding,
            groups=self.groups,
        )
        return y if bias is None else y + bias.astype(y.dtype)


def convolve(x, kernel, *, stride: int = 1, padding: str = "symmetric", groups: int = 1):
    """Convolves `[B, H, W, C]` with `[k, k, C / groups, D]`; see `Conv` for the padding.

    A 1x1 convolution is a matrix product: no backend runs its gradient as a dilated convolution.
    """
    size = kernel.shape[0]
    if size == 1 and groups == 1:
        return affine(x[:, ::stride, ::stride], kernel[0, 0])
    pads = zeros_around(x.shape[1:3], size, stride, padding)
    if groups == x.shape[-1] == kernel.shape[-1] > 1:
        return depthwise_convolve(x, kernel, stride, pads)

    if groups > 1:
        return grouped_convolve(x, kernel, stride, pads, groups)
    return lax.conv_general_dilated(
        x, kernel, (stride,) * 2, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def zeros_around(shape: Sequence[int], size: int, stride: int, padding: str) -> Pads:
    """Zeros before and after the height and the width `shape`, as `padding` of `Conv` says."""
    if padding == "symmetric":
        around = size // 2, size // 2
        return around, around
    up, across = lax.padtype_to_pads(shape, (size, size), (stride, stride), "SAME")
    return (up[0], up[1]), (across[0], across[1])
