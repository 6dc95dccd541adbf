"""EfficientNet B0 to B7 and Lite0 to Lite4, in the flavours of timm and of TensorFlow.

Sources: "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv 1905.11946),
tensorflow/tpu (Lite), and timm, whose numbers of parameters these are to the digit.
"""

import math
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vitjax.errors import UserError, nearest
from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.convolution import Conv
from vitjax.layers.encoder import REMAT_POLICIES
from vitjax.layers.mbconv import NUMERICS, MBConvStage

# Table 1 of the paper, the stages between stem and head: kernel, stride, expansion, channels, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, HEAD = 32, 1280  # channels

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
    """A stem, seven stages of `layers.mbconv.MBConv`, a head of 1x1, global mean and a classifier.

    `model.apply(variables, image, train=False) -> (logits, out)` for float images `[B, H, W, C]` of any size.
    `variables` are `params` and `batch_stats`; with `train=True` pass `mutable=["batch_stats"]`, and the
    `dropout` random stream if `dropout` or `drop_path` is on. Parameters: `conv_stem`, `bn1`,
    `stage{s}/block{b}/...`, `conv_head`, `bn2`, `head`.

    Fields:
      num_classes: size of the classifier; None or 0 for none (`logits` are then `pre_logits`).
      width_mult: factor of all channels, which are then rounded to multiples of 8 (`scaled_channels`).
      depth_mult: factor of the number of blocks of each stage, rounded up.
      lite: the Lite form for small devices: no gates, ReLU6 in place of SiLU, and stem, head, and the number
        of blocks of the first and the last stage not scaled.
      numerics: `timm`: padding on both sides alike, batch norms with epsilon 1e-5; `tf`: TensorFlow's padding,
        SAME, and 1e-3, as the original weights were trained with. Names `tf_efficientnet_...` stand for these.
      dropout: rate before the classifier.
      drop_path: rate of stochastic depth: block i of n, counted from 0, is dropped with rate * i / n. 0.2 in the
        paper.
      remat: recompute blocks in the backward pass, keeping what this policy of jax names (`REMAT_POLICIES`).
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
        choices = {"numerics": NUMERICS, "remat": (None, *REMAT_POLICIES), "dtype": ("float32", "bfloat16")}
        for field, valid in choices.items():
            value = getattr(self, field)
            if value not in valid:
                hint = nearest(value, [v for v in valid if v]) if isinstance(value, str) else ""
                raise UserError(f"{field}={value!r} is none of {', '.join(map(repr, valid))}.{hint}")
        for field in ("width_mult", "depth_mult"):
            if not 0 < getattr(self, field) < math.inf:
                raise UserError(f"{field}={getattr(self, field)!r} must be more than 0.")
        for field in ("dropout", "drop_path"):
            if not 0 <= getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)!r} is not a rate: 0 <= {field} < 1.")
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

        `out`: `stem` and `stage1` to `stage7`, the feature maps `[B, h, w, C]`, h being the image's height over
        2, 2, 4, 8, 16, 16, 32, 32, rounded up; `features`, what is averaged; `pre_logits` `[B, D]`, the mean;
        `logits`.
        """
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise UserError(
                f"The model takes float images, not {image.dtype}: end pp with e.g. value_range(-1, 1)."
            )
        out = {"stem": self.convolve_first_or_last("conv_stem", "bn1", STEM, image, train, 3, 2)}
        x = self.run_stages(out["stem"], out, train)
        x = out["features"] = self.convolve_first_or_last("conv_head", "bn2", HEAD, x, train)
        x = out["pre_logits"] = x.mean((1, 2))
        if self.num_classes:
            x = nn.Dropout(self.dropout)(x, deterministic=not train)
            x = nn.Dense(self.num_classes, kernel_init=_uniform, name="head")(x)
        out["logits"] = x
        return x, out

    def run_stages(self, x, out, train):
        """Runs all blocks and notes in `out` what leaves each stage."""
        total, before = sum(blocks for *_, blocks in self.stages), 0
        for s, (kernel_size, stride, expansion, channels, blocks) in enumerate(self.stages, 1):
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
            x = out[f"stage{s}"] = MBConvStage(stride, fields, rates, self.remat, name=f"stage{s}")(x, train)
            before += blocks
        return x

    def convolve_first_or_last(self, conv, norm, channels, x, train, kernel_size=1, stride=1):
        """Convolution, norm and activation around the stages; Lite does not scale their channels."""
        padding, epsilon = NUMERICS[self.numerics]
        channels = channels if self.lite else scaled_channels(channels, self.width_mult)
        x = Conv(channels, kernel_size, stride, padding=padding, dtype=self.dtype, name=conv)(x)
        return self.activation(BatchNorm(epsilon, name=norm)(x, train=train))

    @property
    def activation(self):
        """SiLU, or ReLU6 in Lite, which has a quantised form."""
        return nn.relu6 if self.lite else nn.silu


def scaled_channels(channels: int, width_mult: float) -> int:
    """The multiple of 8 nearest to `channels * width_mult`: at least 8, and at least 90 % of the product."""
    product = channels * width_mult
    rounded = max(8, int(product + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * product else rounded


def _uniform(key, shape, dtype=jnp.float32):
    """The classifier's initialisation: uniform up to 1 / sqrt(classes)."""
    limit = 1 / np.sqrt(shape[1])
    return jax.random.uniform(key, shape, dtype, -limit, limit)


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
