"""The blocks of MobileNet and EfficientNet: one filter a channel, then a mixture of the channels.

Sources: "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (arXiv 1801.04381), "EfficientNet:
Rethinking Model Scaling for Convolutional Neural Networks" (arXiv 1905.11946); names as in timm.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.convolution import Conv, he_depthwise, he_fan_out
from vitjax.layers.drop_path import DropPath
from vitjax.layers.squeeze_excite import SqueezeExcite

# What a published weight was trained with: (padding of convolutions, epsilon of batch norms).
NUMERICS = {"timm": ("symmetric", 1e-5), "tf": ("same", 1e-3)}


class MBConv(nn.Module):
    """The inverted bottleneck: wider by a 1x1 convolution, a depthwise one, gates, and narrow again.

    Expansion 1 is timm's depthwise-separable block, which has no first convolution; then the convolutions
    are `conv_dw`, `conv_pw` and the norms `bn1`, `bn2`, otherwise `conv_pw`, `conv_dw`, `conv_pwl` and `bn1`,
    `bn2`, `bn3`. There is no activation after the last one. The input is added where the shape is the same,
    and only there does `drop_path` do anything. Norms, activations and the sum are float32; `dtype` is that
    of the products.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    expansion: int = 6
    se_ratio: float = 0.25  # of the block's input channels, not of the expanded ones; 0: no gates
    activation: Callable[[jax.Array], jax.Array] = nn.silu
    numerics: str = "timm"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, drop_path=None, train: bool = False):
        """Maps `[B, H, W, C]` to `[B, H/stride, W/stride, features]`, rounded up, float32.

        `drop_path`: the probability with which an example skips the block in training.
        """
        channels = x.shape[-1]
        y, width = x, channels * self.expansion
        separable = self.expansion == 1
        if not separable:
            y = self.activation(self.normalise("bn1", self.convolve("conv_pw", width)(y), train))
        y = self.convolve("conv_dw", width, self.kernel_size, self.stride, groups=width)(y)
        y = self.activation(self.normalise("bn1" if separable else "bn2", y, train))
        if self.se_ratio:
            squeeze_width = round(self.se_ratio * channels)
            y = SqueezeExcite(squeeze_width, self.activation, self.dtype, name="se")(y)
        y = self.convolve("conv_pw" if separable else "conv_pwl", self.features)(y)
        y = self.normalise("bn2" if separable else "bn3", y, train)
        if self.stride == 1 and channels == self.features:
            y = x + DropPath()(y, drop_path, train=train)
        return y

    def convolve(self, name, features, kernel_size=1, stride=1, groups=1):
        """A convolution without bias, in the padding of `numerics`."""
        return Conv(
            features,
            kernel_size,
            stride,
            groups,
            NUMERICS[self.numerics][0],
            kernel_init=he_depthwise if groups > 1 else he_fan_out,
            dtype=self.dtype,
            name=name,
        )

    def normalise(self, name, x, train):
        """Batch norm with the epsilon of `numerics`."""
        return BatchNorm(NUMERICS[self.numerics][1], name=name)(x, train=train)
