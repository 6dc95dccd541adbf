"""ResNet V1.5: batch norm, activation after the sum, the stride in the 3x3 convolution.

Sources: "Deep Residual Learning for Image Recognition" (arXiv 1512.03385) and timm (`resnet18` ...
`resnet152`), whose state dicts, like torchvision's, load by `vitjax.weights`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.convolution import Conv
from vitjax.layers.drop_path import DropPath
from vitjax.layers.pooling import max_pool
from vitjax.layers.residual_stages import stages
from vitjax.models.convnet import check_fields, classify, refuse_integers, uniform_by

# Units of each stage, and whether they are bottlenecks.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
}


class ResidualUnit(nn.Module):
    """A bottleneck (1x1, 3x3 with the stride, 1x1 to four times the width) or two 3x3; then sum and relu.

    Every convolution is followed by batch norm, the last one's scale zero at first. Where the shape changes,
    the shortcut is a 1x1 convolution with batch norm. Norms and the sum are float32; `dtype` is that of the
    products.
    """

    width: int  # of the 3x3 convolution
    bottleneck: bool = True
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, drop_path=None, train: bool = False):
        """Maps `[B, H, W, C]` to `[B, H/stride, W/stride, D]`, rounded up, float32."""
        features = 4 * self.width if self.bottleneck else self.width
        # Features, kernel and stride of each convolution.
        if self.bottleneck:
            parts = [(self.width, 1, 1), (self.width, 3, self.stride), (features, 1, 1)]
        else:
            parts = [(self.width, 3, self.stride), (features, 3, 1)]
        y = x
        for i, part in enumerate(parts, 1):
            last = i == len(parts)
            scale_init = nn.initializers.zeros if last else nn.initializers.ones
            y = self.convolve(y, str(i), *part, train=train, scale_init=scale_init)
            y = y if last else nn.relu(y)
        if self.stride != 1 or x.shape[-1] != features:
            x = self.convolve(x, "_proj", features, 1, self.stride, train=train)
        return nn.relu(x + DropPath()(y, drop_path, train=train))

    def convolve(self, x, suffix, features, kernel_size, stride, *, train, scale_init=nn.initializers.ones):
        """Convolves, then normalises: `conv{suffix}` and `bn{suffix}`."""
        x = Conv(features, kernel_size, stride, dtype=self.dtype, name=f"conv{suffix}")(x)
        return BatchNorm(scale_init=scale_init, name=f"bn{suffix}")(x, train=train)


class ResNet(nn.Module):
    """A ResNet; the defaults are those of ResNet-50.

    `model.apply(variables, image, train=False) -> (logits, out)` for float images `[B, H, W, C]` of any size.
    Batch statistics are the collection `batch_stats`: `train=True` normalises by the batch and moves them
    (`layers.batch_norm`), and needs the `dropout` random stream if `drop_path` is on. Parameters are named
    `conv_root`, `bn_root`, `block{s}/unit{u}/{conv1, bn1, ..., conv_proj, bn_proj}` and `head`.

    Fields:
      num_classes: size of the head; None or 0 for no head (`logits` are then `pre_logits`).
      units: number of residual units of each stage; the second and later stages halve the grid.
      widths: of each stage's 3x3 convolutions.
      bottleneck: three convolutions a unit, the last to four times the width; False: two.
      stem: `imagenet`: 7x7 convolution and max-pooling, stride 2 each. `small`: 3x3 convolution of stride 1,
        no pooling, as is usual for images of 32 pixels.
      drop_path: rate of stochastic depth in the last unit, growing linearly from 0 in the first.
      remat: recompute units in the backward pass, keeping what this policy of jax names
        (`layers.encoder.REMAT_POLICIES`).
      dtype: of convolutions. Parameters, norms, sums and logits are float32 always.
    """

    num_classes: int | None = None
    units: Sequence[int] = (3, 4, 6, 3)
    widths: Sequence[int] = (64, 128, 256, 512)
    bottleneck: bool = True
    stem: str = "imagenet"
    drop_path: float = 0.0
    remat: str | None = None
    dtype: str = "float32"

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        check_fields(self, {"stem": ("imagenet", "small")}, at_least_one=("units", "widths"))
        super().__post_init__()

    @nn.compact
    def __call__(self, image, *, train: bool = False) -> tuple[Any, dict[str, Any]]:
        """Returns logits `[B, num_classes]`, float32, and the named intermediates.

        `out`: the feature maps `[B, h, w, D]` `root` (after pooling) and `block1`, ... after each stage;
        `pre_logits` `[B, D]`, their mean, which the head sees; `logits`.
        """
        refuse_integers(image)
        kernel_size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        x = Conv(64, kernel_size, stride, dtype=self.dtype, name="conv_root")(image)
        x = nn.relu(BatchNorm(name="bn_root")(x, train=train))
        if self.stem == "imagenet":
            x = max_pool(x)
        out = {"root": x}
        shape = {"bottleneck": self.bottleneck, "dtype": self.dtype}
        x, maps = stages(
            x,
            ResidualUnit,
            [{"width": width, **shape} for width in self.widths],
            self.units,
            [2 if stage else 1 for stage in range(len(self.units))],
            drop_path=self.drop_path,
            remat=self.remat,
            train=train,
        )
        init = uniform_by(x.shape[-1])
        logits, ends = classify(x, self.num_classes, kernel_init=init, bias_init=init)
        return logits, out | maps | ends


def names() -> tuple[str, ...]:
    """The published depths."""
    return tuple(RESNETS)


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that a name of `RESNETS` stands for; None for any other name."""
    if name not in RESNETS:
        return None
    units, bottleneck = RESNETS[name]
    return ResNet, {"units": units, "bottleneck": bottleneck}
