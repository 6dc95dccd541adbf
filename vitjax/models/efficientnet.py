"""EfficientNet B0 to B7 and Lite0 to Lite4, in the flavours of timm and of TensorFlow.

Sources: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv 1905.11946),
tensorflow/tpu (Lite), and timm, whose numbers of parameters these are to the digit.
"""

import math
import re
from typing import Any

import flax.linen as nn

from vitjax.errors import UserError
from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.convolution import Conv
from vitjax.layers.mbconv import NUMERICS, MBConv
from vitjax.layers.residual_stages import Stage
from vitjax.models.convnet import check_fields, classify, refuse_integers, uniform_by

# Table 1 of the paper without first and last convolution: kernel, stride, expansion, channels, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
ROOT, TOP = 32, 1280  # channels of the convolutions before and after them

# Multipliers of width and depth, dropout before the classifier, and the images' side that goes with them. The
# sides of Lite3 and Lite4 are timm's; the TPU repository has 280 and 300.
SIZES = {
    "b0": (1.0, 1.0, 0.2, 224),
    "b1": (1.0, 1.1, 0.2, 240),
    "b2": (1.1, 1.2, 0.3, 260),
    "b3": (1.2, 1.4, 0.3, 300),
    "b4": (1.4, 1.8, 0.4, 380),
    "b5": (1.6, 2.2, 0.4, 456),
    "b6": (1.8, 2.6, 0.5, 528),
    "b7": (2.0, 3.1, 0.5, 600),
    "lite0": (1.0, 1.0, 0.2, 224),
    "lite1": (1.0, 1.1, 0.2, 240),
    "lite2": (1.1, 1.2, 0.3, 260),
    "lite3": (1.2, 1.4, 0.3, 300),
    "lite4": (1.4, 1.8, 0.3, 380),
}


class EfficientNet(nn.Module):
    """A 3x3 convolution, seven stages of `layers.mbconv.MBConv`, a 1x1 convolution, mean and classifier.

    `model.apply(variables, image, train=False) -> (logits, out)` for float images `[B, H, W, C]` of any size.
    `variables` are `params` and `batch_stats`; with `train=True` pass `mutable=["batch_stats"]`, and the
    `dropout` random stream if `dropout` or `drop_path` is on. Parameters: `conv_root`, `bn_root`,
    `block{s}/unit{u}/...` (`MBConv`), `conv_top`, `bn_top`, `head`.

    Fields:
      num_classes: size of the classifier; None or 0 for none (`logits` are then `pre_logits`).
      width_mult: factor of all channels, which are then rounded to multiples of 8 (`scaled_channels`).
      depth_mult: factor of the number of blocks of each stage, rounded up.
      lite: the Lite form for small devices: no gates, ReLU6 in place of SiLU; and not scaled are the first
        and the last convolution and the number of blocks of the first and the last stage.
      numerics: `timm`: padding on both sides alike, batch norms with epsilon 1e-5; `tf`: TensorFlow's
        padding, SAME, and 1e-3, as the original weights were trained with; the names `tf_efficientnet_...`.
      dropout: rate before the classifier.
      drop_path: rate of stochastic depth: block i of n, counted from 0, is dropped with rate * i / n; 0.2 in
        the paper.
      remat: recompute blocks in the backward pass, keeping what this policy of jax names
        (`layers.encoder.REMAT_POLICIES`).
      dtype: of convolutions. Parameters, norms, activations, sums and logits are float32 always.
    """

    num_classes: int | None = None
    width_mult: float = 1.0
    depth_mult: float = 1.0
    lite: bool = False
    numerics: str = "timm"
    dropout: float = 0.2
    drop_path: float = 0.0
    remat: str | None = None
    dtype: str = "float32"

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        check_fields(self, {"numerics": tuple(NUMERICS)})
        for field in ("width_mult", "depth_mult"):
            if not 0 < getattr(self, field) < math.inf:
                raise UserError(f"{field}={getattr(self, field)!r} must be more than 0.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout={self.dropout!r} is not a rate: 0 <= dropout < 1.")
        super().__post_init__()

    @property
    def stages(self) -> tuple[tuple[int, int, int, int, int], ...]:
        """Kernel, stride, expansion, channels and blocks of each stage of this size."""
        fixed = (0, len(STAGES) - 1) if self.lite else ()
        return tuple(
            (
                kernel_size,
                stride,
                expansion,
                scaled_channels(channels, self.width_mult),
                blocks if stage in fixed else math.ceil(blocks * self.depth_mult),
            )
            for stage, (kernel_size, stride, expansion, channels, blocks) in enumerate(STAGES)
        )

    @nn.compact
    def __call__(self, image, *, train: bool = False) -> tuple[Any, dict[str, Any]]:
        """Returns logits `[B, num_classes]`, float32, and the named intermediates.

        `out`: the feature maps `[B, h, w, C]` `root`, and `block1` to `block7` after the stages, h being the
        image's height over 2, 2, 4, 8, 16, 16, 32, 32, rounded up; `encoded`, the last one, of 1280 channels
        times `width_mult`; `pre_logits` `[B, D]`, its mean; `logits`.
        """
        refuse_integers(image)
        x, maps = self.run_stages(self.convolve("_root", ROOT, image, train, 3, 2), train)
        x = self.convolve("_top", TOP, x, train)
        head_init = uniform_by(self.num_classes or 1)  # by the fan-out, as in timm
        logits, ends = classify(x, self.num_classes, head_init, dropout=self.dropout, train=train)
        return logits, {**maps, "encoded": x, **ends}

    def run_stages(self, x, train):
        """Runs all blocks; returns what leaves the last, and the maps `root`, `block1`, ... by name."""
        maps, before, total = {"root": x}, 0, sum(blocks for *_, blocks in self.stages)
        for i, (kernel_size, stride, expansion, channels, blocks) in enumerate(self.stages):
            fields = {
                "features": channels,
                "kernel_size": kernel_size,
                "expansion": expansion,
                "se_ratio": 0.0 if self.lite else 0.25,
                "activation": self.activation,
                "numerics": self.numerics,
                "dtype": self.dtype,
            }
            rates = [self.drop_path * (before + block) / total for block in range(blocks)]
            before += blocks
            name = f"block{i + 1}"
            x = maps[name] = Stage(MBConv, fields, stride, rates, self.remat, name=name)(x, train=train)
        return x, maps

    def convolve(self, suffix, channels, x, train, kernel_size=1, stride=1):
        """Convolution, norm and activation, before and after the stages; not scaled in Lite."""
        padding, epsilon = NUMERICS[self.numerics]
        channels = channels if self.lite else scaled_channels(channels, self.width_mult)
        conv = Conv(channels, kernel_size, stride, padding=padding, dtype=self.dtype, name=f"conv{suffix}")
        return self.activation(BatchNorm(epsilon, name=f"bn{suffix}")(conv(x), train=train))

    @property
    def activation(self):
        """SiLU, or ReLU6 in Lite, which has a quantised form."""
        return nn.relu6 if self.lite else nn.silu


def scaled_channels(channels: int, width_mult: float) -> int:
    """The multiple of 8 nearest to `channels * width_mult`: at least 8, and at least 90 % of the product."""
    product = channels * width_mult
    rounded = max(8, int(product + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * product else rounded


def names() -> tuple[str, ...]:
    """All sizes in both flavours."""
    return tuple(f"{flavour}efficientnet_{size}" for flavour in ("", "tf_") for size in SIZES)


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that a name of `names()` stands for; None for any other name."""
    match = re.fullmatch(r"(tf_)?efficientnet_(\w+)", name)
    if match is None or match[2] not in SIZES:
        return None
    width_mult, depth_mult, dropout, _ = SIZES[match[2]]
    return EfficientNet, {
        "width_mult": width_mult,
        "depth_mult": depth_mult,
        "lite": match[2].startswith("lite"),
        "numerics": "tf" if match[1] else "timm",
        "dropout": dropout,
    }
