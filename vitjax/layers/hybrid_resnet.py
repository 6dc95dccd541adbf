"""The ResNet under the hybrids: weight-standardised convolutions, GroupNorm, activation after the sum.

Sources: "How to train your ViT?" (arXiv 2106.10270), section 3.2, and google-research/vision_transformer.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.layers.group_norm import group_norm
from vitjax.layers.weight_standardization import StdConv


class ResidualUnit(nn.Module):
    """A bottleneck: 1x1, 3x3 with the stride, 1x1 to four times the width; then the sum, then relu.

    Every convolution is followed by GroupNorm, the last one's scale zero at first, so
    that a new unit passes on what it projects. Where the shape changes, the shortcut is a
    1x1 convolution with GroupNorm. Norms and the sum are float32; `dtype` is that
    of the products.
    """

    width: int  # of the bottleneck
    stride: int = 1
    numerics: str = "jax"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x):
        """Maps `[B, H, W, C]` to `[B, H/stride, W/stride, 4*width]`, rounded up, float32."""
        shortcut = x
        if self.stride != 1 or x.shape[-1] != 4 * self.width:
            shortcut = self.convolve(x, "_proj", 4 * self.width, 1, self.stride)
        y = nn.relu(self.convolve(x, "1", self.width, 1))
        y = nn.relu(self.convolve(y, "2", self.width, 3, self.stride))
        y = self.convolve(y, "3", 4 * self.width, 1, scale_init=nn.initializers.zeros)
        return nn.relu(shortcut + y)

    def convolve(self, x, suffix, features, kernel_size, stride=1, scale_init=nn.initializers.ones):
        """Convolves, then normalises: `conv{suffix}` and `gn{suffix}`."""
        x = StdConv(features, kernel_size, stride, self.numerics, self.dtype, name=f"conv{suffix}")(x)
        return group_norm(self.numerics, f"gn{suffix}", scale_init)(x)


class HybridResNetStage(nn.Module):
    """Residual units `unit1`, `unit2`, ... of one width, the first with the stride."""

    num_units: int
    width: int
    stride: int = 1
    numerics: str = "jax"
    dtype: DTypeLike = jnp.float32
    remat: str | None = None  # what a unit may keep for the backward pass, by jax's names

    @nn.compact
    def __call__(self, x):
        """Maps `[B, H, W, C]` to `[B, H/stride, W/stride, 4*width]`, rounded up, float32."""
        unit = ResidualUnit
        if self.remat:
            unit = nn.remat(unit, policy=getattr(jax.checkpoint_policies, self.remat))
        for i in range(self.num_units):
            stride = 1 if i else self.stride
            x = unit(self.width, stride, self.numerics, self.dtype, name=f"unit{i + 1}")(x)
        return x


class HybridResNet(nn.Module):
    """Root (7x7 convolution and max-pooling, stride 2 each) and any number of stages.

    Parameters are named as in the official JAX files: `conv_root`, `gn_root`, and
    `block{s}/unit{u}/{conv1, gn1, conv2, gn2, conv3, gn3, conv_proj, gn_proj}`. No
    convolution has a bias. The second and later stages halve the grid; odd sizes are
    rounded up (SAME padding).
    """

    root_width: int
    units: Sequence[int]  # of each stage; none: root only
    widths: Sequence[int]  # of the bottlenecks of each stage
    numerics: str = "jax"  # or timm
    dtype: DTypeLike = jnp.float32
    remat: str | None = None

    @nn.compact
    def __call__(self, image):
        """Returns the last feature map `[B, h, w, D]`, float32, and all by name: `root`, `block1`, ...

        `image`: float `[B, H, W, C]`.
        """
        x = StdConv(self.root_width, 7, 2, self.numerics, self.dtype, name="conv_root")(image)
        x = nn.relu(group_norm(self.numerics, "gn_root")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        maps = {"root": x}
        for i, (units, width) in enumerate(zip(self.units, self.widths, strict=True)):
            stride = 2 if i else 1
            name = f"block{i + 1}"
            stage = HybridResNetStage(units, width, stride, self.numerics, self.dtype, self.remat, name=name)
            x = maps[name] = stage(x)
        return x, maps
