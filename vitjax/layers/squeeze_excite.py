"""Squeeze and excitation: gates for the channels of a feature map, made from what is in the whole of it."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.layers.convolution import Conv


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a gate between 0 and 1 that depends on the means of all channels.

    gate = sigmoid(expand(activation(reduce(mean over height and width)))), `reduce` and `expand` being 1x1
    convolutions with bias. "Squeeze-and-Excitation Networks" (arXiv 1709.01507).
    """

    squeeze_width: int  # channels between the two: published networks derive it from the block's input
    activation: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: DTypeLike = jnp.float32  # of the products; the means are float32

    @nn.compact
    def __call__(self, x):
        """Gates `[B, H, W, C]`; the result has the dtype of `x`."""
        gate = x.astype(jnp.float32).mean((1, 2), keepdims=True)
        gate = Conv(self.squeeze_width, use_bias=True, dtype=self.dtype, name="reduce")(gate)
        gate = Conv(x.shape[-1], use_bias=True, dtype=self.dtype, name="expand")(self.activation(gate))
        return x * nn.sigmoid(gate).astype(x.dtype)
