"""RegNetY: residual networks whose widths follow a line, with grouped convolutions and squeeze-excitation.

Sources: "Designing Network Design Spaces" (arXiv 2003.13678), facebookresearch/pycls and timm (`regnety_004`
... `regnety_160`), whose state dicts load by `vitjax.weights`. RegNetY-16GF is the teacher of DeiT.
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.convolution import Conv
from vitjax.layers.drop_path import DropPath
from vitjax.layers.residual_stages import stages
from vitjax.layers.squeeze_excite import SqueezeExcite
from vitjax.models.convnet import check_fields, classify, refuse_integers

# The generator's numbers: depth, w0, wa, wm, group width.
REGNETS = {
    "regnety_400mf": (16, 48, 27.89, 2.09, 8),
    "regnety_800mf": (14, 56, 38.84, 2.4, 16),
    "regnety_1_6gf": (27, 48, 20.71, 2.65, 24),
    "regnety_3_2gf": (21, 80, 42.63, 2.66, 24),
    "regnety_4gf": (22, 96, 31.41, 2.24, 64),
    "regnety_8gf": (17, 192, 76.82, 2.19, 56),
    "regnety_12gf": (19, 168, 73.36, 2.37, 112),
    "regnety_16gf": (18, 200, 106.23, 2.48, 112),
}


def generate(depth: int, w0: int, wa: float, wm: float, group_width: int) -> tuple[list[int], list[int]]:
    """The widths and the numbers of units of the stages that the generator makes (section 3.3).

    Widths follow the line w0 + wa * unit, rounded to powers of wm times w0 and then to multiples of 8; units
    of one width are a stage, whose width is rounded to whole groups, as in pycls and timm (torchvision rounds
    otherwise).
    """
    line = w0 + wa * np.arange(depth)
    powers = np.round(np.log(line / w0) / np.log(wm))
    widths, units = np.unique(8 * np.round(w0 * wm**powers / 8).astype(int), return_counts=True)
    groups = np.minimum(group_width, widths)
    return (np.round(widths / groups).astype(int) * groups).tolist(), units.tolist()


class RegNetUnit(nn.Module):
    """1x1, 3x3 by groups with the stride, squeeze-excitation, 1x1, of one width; then the sum, then relu.

    Every convolution is followed by batch norm, the last one's scale zero at first. Where the shape changes,
    the shortcut is a 1x1 convolution with batch norm. The squeeze is a share of the unit's input, not of its
    width. Norms and the sum are float32; `dtype` is that of the products.
    """

    width: int
    group_width: int
    se_ratio: float = 0.25
    stride: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x, drop_path=None, train: bool = False):
        """Maps `[B, H, W, C]` to `[B, H/stride, W/stride, width]`, rounded up, float32."""
        convolve = functools.partial(convolution, train=train, dtype=self.dtype)
        groups = self.width // min(self.group_width, self.width)
        y = nn.relu(convolve(x, "1", self.width))
        y = nn.relu(convolve(y, "2", self.width, 3, self.stride, groups))
        y = SqueezeExcite(round(self.se_ratio * x.shape[-1]), dtype=self.dtype, name="se")(y)
        y = convolve(y, "3", self.width, scale_init=nn.initializers.zeros)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = convolve(x, "_proj", self.width, 1, self.stride)
        return nn.relu(x + DropPath()(y, drop_path, train=train))


def convolution(
    x, suffix, features, kernel_size=1, stride=1, groups=1, *, train, dtype, scale_init=nn.initializers.ones
):
    """Convolves, then normalises: `conv{suffix}` and `bn{suffix}` of the module that calls this."""
    # He's initialisation, the fan-out that of one group.
    kernel_init = nn.initializers.variance_scaling(2.0 * groups, "fan_out", "normal")
    conv = Conv(
        features, kernel_size, stride, groups, kernel_init=kernel_init, dtype=dtype, name=f"conv{suffix}"
    )
    return BatchNorm(scale_init=scale_init, name=f"bn{suffix}")(conv(x), train=train)


class RegNet(nn.Module):
    """A RegNetY; the defaults are those of RegNetY-4GF.

    `model.apply(variables, image, train=False) -> (logits, out)` for float images `[B, H, W, C]` of any size.
    Batch statistics are the collection `batch_stats`: `train=True` normalises by the batch and moves them
    (`layers.batch_norm`), and needs the `dropout` random stream if `drop_path` is on. Parameters are named
    `conv_root`, `bn_root`, `block{s}/unit{u}/{conv1, bn1, conv2, bn2, se, conv3, bn3, conv_proj, bn_proj}`
    and `head`.

    Fields:
      num_classes: size of the head; None or 0 for no head (`logits` are then `pre_logits`).
      depth: number of units (d of the paper).
      w0, wa, wm: initial width, slope and multiplier of the widths; see `generate`.
      group_width: channels of a group of the 3x3 convolutions (g).
      se_ratio: width of the squeeze as a share of the unit's input.
      root_width: channels of the first convolution, 3x3 with stride 2.
      drop_path: rate of stochastic depth in the last unit, growing linearly from 0 in the first.
      remat: recompute units in the backward pass, keeping what this policy of jax names
        (`layers.encoder.REMAT_POLICIES`).
      dtype: of convolutions. Parameters, norms, sums and logits are float32 always.
    """

    num_classes: int | None = None
    depth: int = 22
    w0: int = 96
    wa: float = 31.41
    wm: float = 2.24
    group_width: int = 64
    se_ratio: float = 0.25
    root_width: int = 32
    drop_path: float = 0.0
    remat: str | None = None
    dtype: str = "float32"

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        check_fields(self, {}, at_least_one=("depth", "w0", "group_width", "root_width"))
        if self.w0 % 8 or self.wa < 0 or self.wm <= 1:
            raise UserError(
                f"w0={self.w0}, wa={self.wa}, wm={self.wm} make no widths: w0 must be a multiple of 8, "
                "wa 0 or more, and wm more than 1."
            )
        if not 0 < self.se_ratio <= 1:
            raise UserError(f"se_ratio={self.se_ratio!r} is not a share: 0 < se_ratio <= 1.")
        super().__post_init__()

    @nn.compact
    def __call__(self, image, *, train: bool = False) -> tuple[Any, dict[str, Any]]:
        """Returns logits `[B, num_classes]`, float32, and the named intermediates.

        `out`: the feature maps `[B, h, w, D]` `root` and `block1`, ... after each stage; `pre_logits`
        `[B, D]`, the mean of the last, which the head sees; `logits`.
        """
        refuse_integers(image)
        x = nn.relu(convolution(image, "_root", self.root_width, 3, 2, train=train, dtype=self.dtype))
        out = {"root": x}
        widths, units = generate(self.depth, self.w0, self.wa, self.wm, self.group_width)
        shape = {"group_width": self.group_width, "se_ratio": self.se_ratio, "dtype": self.dtype}
        x, maps = stages(
            x,
            RegNetUnit,
            [{"width": width, **shape} for width in widths],
            units,
            [2] * len(units),
            drop_path=self.drop_path,
            remat=self.remat,
            train=train,
        )
        logits, ends = classify(x, self.num_classes, kernel_init=nn.initializers.normal(0.01))
        return logits, out | maps | ends


def names() -> tuple[str, ...]:
    """The published sizes, by the arithmetic for an image of 224 pixels."""
    return tuple(REGNETS)


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that a name of `REGNETS` stands for; None for any other name."""
    if name not in REGNETS:
        return None
    return RegNet, dict(zip(("depth", "w0", "wa", "wm", "group_width"), REGNETS[name], strict=True))
