"""BiT ResNetV2: weight-standardised convolutions, GroupNorm, activation before the convolutions.

Sources: "Big Transfer (BiT): General Visual Representation Learning" (arXiv 1912.11370) and timm
(`resnetv2_50x1_bit` ...), whose state dicts load by `vitjax.weights`. Kernels are divided by
sqrt(variance + 1e-8) and GroupNorm has epsilon 1e-5, as in timm; the initialisation is timm's, too.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.convolution import he_fan_out
from vitjax.layers.drop_path import DropPath
from vitjax.layers.group_norm import GROUPS, group_norm
from vitjax.layers.pooling import max_pool
from vitjax.layers.residual_stages import stages
from vitjax.layers.weight_standardization import StdConv
from vitjax.models.convnet import check_fields, classify, refuse_integers

# Units of each stage, and the factor on all widths.
BITS = {
    "bit_r50x1": ((3, 4, 6, 3), 1),
    "bit_r50x3": ((3, 4, 6, 3), 3),
    "bit_r101x1": ((3, 4, 23, 3), 1),
    "bit_r101x3": ((3, 4, 23, 3), 3),
    "bit_r152x2": ((3, 8, 36, 3), 2),
    "bit_r152x4": ((3, 8, 36, 3), 4),
}


class PreActivationUnit(nn.Module):
    """A bottleneck of norm, relu and convolution, three times; then the sum.

    Where the shape changes, the shortcut is a 1x1 convolution of what the first relu gives.
    """

    width: int  # of the bottleneck
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, drop_path=None, train: bool = False):
        """Maps `[B, H, W, C]` to `[B, H/stride, W/stride, 4*width]`, rounded up, float32."""
        features = 4 * self.width
        y = nn.relu(group_norm("timm", "gn1")(x))
        if self.stride != 1 or x.shape[-1] != features:
            x = convolution(features, 1, self.stride, self.dtype, "conv_proj")(y)
        y = convolution(self.width, 1, 1, self.dtype, "conv1")(y)
        y = nn.relu(group_norm("timm", "gn2")(y))
        y = convolution(self.width, 3, self.stride, self.dtype, "conv2")(y)
        y = nn.relu(group_norm("timm", "gn3")(y))
        y = convolution(features, 1, 1, self.dtype, "conv3")(y).astype(jnp.float32)
        return x.astype(jnp.float32) + DropPath()(y, drop_path, train=train)


def convolution(features: int, kernel_size: int, stride: int, dtype: DTypeLike, name: str) -> StdConv:
    """A weight-standardised convolution with symmetric padding."""
    return StdConv(
        features, kernel_size, stride, "timm", dtype, padding="symmetric", kernel_init=he_fan_out, name=name
    )


class BiT(nn.Module):
    """A BiT ResNet; the defaults are those of R50x1.

    `model.apply(variables, image, train=False) -> (logits, out)` for float images `[B, H, W, C]` of any size.
    No batch statistics; `train=True` differs only by `drop_path`, which needs the `dropout` random stream.
    Parameters are named `conv_root`, `block{s}/unit{u}/{gn1, conv1, ..., conv_proj}`, `gn_final` and `head`.

    Fields:
      num_classes: size of the head; None or 0 for no head (`logits` are then `pre_logits`).
      units: number of residual units of each stage; the second and later stages halve the grid.
      widths: of each stage's bottlenecks, a quarter of what it returns.
      root_width: channels of the first convolution.
      drop_path: rate of stochastic depth in the last unit, growing linearly from 0 in the first.
      remat: recompute units in the backward pass, keeping what this policy of jax names
        (`layers.encoder.REMAT_POLICIES`).
      dtype: of convolutions. Parameters, norms, sums and logits are float32 always.
    """

    num_classes: int | None = None
    units: Sequence[int] = (3, 4, 6, 3)
    widths: Sequence[int] = (64, 128, 256, 512)
    root_width: int = 64
    drop_path: float = 0.0
    remat: str | None = None
    dtype: str = "float32"

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        check_fields(self, {}, at_least_one=("units", "widths", "root_width"))
        for field, widths in (("root_width", [self.root_width]), ("widths", self.widths)):
            if any(width % GROUPS for width in widths):
                raise UserError(
                    f"{field}={getattr(self, field)!r} must be multiples of {GROUPS}: "
                    f"GroupNorm has {GROUPS} groups."
                )
        super().__post_init__()

    @nn.compact
    def __call__(self, image, *, train: bool = False) -> tuple[Any, dict[str, Any]]:
        """Returns logits `[B, num_classes]`, float32, and the named intermediates.

        `out`: the feature maps `[B, h, w, D]` `root` (after pooling), `block1`, ... after each stage, and
        `encoded`, the last after norm and relu; `pre_logits` `[B, D]`, its mean, which the head sees;
        `logits`.
        """
        refuse_integers(image)
        x = convolution(self.root_width, 7, 2, self.dtype, "conv_root")(image).astype(jnp.float32)
        x = max_pool(x, border=0.0)  # not -inf, as in other networks: the pixels may all be negative
        out = {"root": x}
        x, maps = stages(
            x,
            PreActivationUnit,
            [{"width": width, "dtype": self.dtype} for width in self.widths],
            self.units,
            [2 if stage else 1 for stage in range(len(self.units))],
            drop_path=self.drop_path,
            remat=self.remat,
            train=train,
        )
        x = nn.relu(group_norm("timm", "gn_final")(x))
        logits, ends = classify(x, self.num_classes, kernel_init=nn.initializers.normal(0.01))
        return logits, out | maps | {"encoded": x} | ends


def names() -> tuple[str, ...]:
    """The published depths and widths."""
    return tuple(BITS)


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that a name of `BITS` stands for; None for any other name."""
    if name not in BITS:
        return None
    units, factor = BITS[name]
    widths = tuple(factor * width for width in (64, 128, 256, 512))
    return BiT, {"units": units, "widths": widths, "root_width": 64 * factor}
