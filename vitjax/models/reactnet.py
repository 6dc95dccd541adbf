"""ReActNet and Bi-Real Net: convolutional networks with binary convolutions beside real-valued shortcuts.

Sources: "ReActNet" (arXiv 2003.03488), liuzechun/ReActNet at a6cd08d: the MobileNet layout (ReActNet-A) and
the ResNet layout, in both steps of training; "Bi-Real Net" (arXiv 1808.00278), liuzechun/Bi-Real-net at
f58aa4d. Released files of all of them load by `vitjax.weights` (`reactnet_names`).

ReActNet is trained in two steps: binary activations with real weights (`precision="w32a1"`), then, from the
parameters of that, both binary (`"binary"`). Parameters have the same names and shapes in all precisions, so
`config.model_init` takes a run of the first step, or a released file of either step, as it is. The released
code of the MobileNet layout begins its second step without the first's binary kernels, for it names them
differently: `model_init.dont_load=(".*/conv(3x3|1x1)(_[12])?/kernel",)` is what it did.

A name with `_release` behind it stands for the same network with the choices of the released code that are
not the defaults here, `RELEASE`.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.binary import ESTIMATORS, PRECISIONS, BinaryConv, RPReLU, binarises
from vitjax.layers.binary_shortcuts import mean_of_windows
from vitjax.layers.convolution import Conv
from vitjax.layers.drop_path import DropPath, linear_rates
from vitjax.layers.pooling import max_pool
from vitjax.layers.residual_stages import stages
from vitjax.models.convnet import check_fields, classify, refuse_integers, uniform_by

# Blocks of ReActNet-A.
WIDTHS = (64, *(128,) * 2, *(256,) * 2, *(512,) * 6, *(1024,) * 2)
STRIDES = (1, *(2, 1) * 2, 2, *(1,) * 5, 2, 1)

# Blocks of each stage of the ResNet layout: one for each 3x3 convolution of ResNet-18 and -34.
RESNETS = {"resnet18": (4, 4, 4, 4), "resnet34": (6, 8, 12, 6)}

RELEASE = {"latent_init": "positive", "odd_maps": "drop"}

CHOICES = {
    "precision": PRECISIONS,
    "estimator": tuple(ESTIMATORS),
    "latent_init": ("fan_in", "positive"),
    "border": ("zeros", "ones"),
    "odd_maps": ("cover", "drop"),
}

# PyTorch's start of a convolution: uniform in ±1/sqrt(inputs).
FAN_IN = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
POSITIVE = nn.initializers.uniform(0.001)


def halve(x, odd_maps: str):
    """Means of 2x2 windows with stride 2: `[B, H, W, C]` to `[B, H/2, W/2, C]`.

    Of an odd side, `cover` takes the mean of what is there of the last window; `drop` leaves its pixels out.
    """
    _, height, width, _ = x.shape
    if odd_maps == "cover":
        # The last row or column twice: the mean of both is itself.
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return mean_of_windows(x, 2)


def refuse_other_maps(y, shortcut, odd_maps: str) -> None:
    """Raises a `UserError` if the shortcut cannot be added to `y`: after an odd map, without `cover`.

    A shortcut of a single pixel is added to every one, as in the released code.
    """
    if any(there not in (here, 1) for here, there in zip(y.shape[1:3], shortcut.shape[1:3], strict=True)):
        here, there = ("x".join(map(str, map_.shape[1:3])) for map_ in (y, shortcut))
        raise UserError(
            f"A convolution of stride 2 leaves a map of {here} pixels, its shortcut one of {there}: with "
            f"odd_maps={odd_maps!r} a map must have even sides before it. Take images whose sides are "
            "multiples of 32, or odd_maps='cover'."
        )


class BinaryBlock(nn.Module):
    """What the blocks of both layouts have in common: which binary convolutions, and how they are called.

    Fields are those of the models.
    """

    width: int  # channels that the block puts out
    stride: int = 1
    precision: str = "binary"
    estimator: str = "triangle"
    latent_init: str = "fan_in"
    border: str = "zeros"
    odd_maps: str = "cover"
    dtype: DTypeLike = jnp.float32

    def convolve(
        self, x, features: int, kernel_size: int, stride: int, name: str, progress, move: bool = True
    ):
        """The binary convolution `name` of `x` `[B, H, W, C]`, with its own shift unless `move` is False."""
        padding = kernel_size // 2
        binary_weights, binary_inputs = binarises(self.precision)
        if self.border == "ones" and binary_inputs and padding:
            # Pixels whose sign is 1 wherever the shift moves them, and which pass no gradient.
            around = (padding, padding)
            x = jnp.pad(x, ((0, 0), around, around, (0, 0)), constant_values=jnp.inf)
            padding = 0
        conv = BinaryConv(
            features,
            kernel_size,
            stride,
            padding,
            self.precision,
            self.estimator,
            move=move,
            kernel_init=POSITIVE if self.latent_init == "positive" and binary_weights else FAN_IN,
            dtype=self.dtype,
            name=name,
        )
        return conv(x, progress)

    def add(self, y, shortcut, drop_path, train: bool):
        """The sum, with stochastic depth in the branch `y`."""
        refuse_other_maps(y, shortcut, self.odd_maps)
        return shortcut + DropPath()(y, drop_path, train=train)


class MobileBlock(BinaryBlock):
    """ReActNet-A's block: a binary 3x3 convolution, then a 1x1, each with a shortcut around it.

    Where the block has twice the channels that it gets, two 1x1 convolutions see the same signs, each has the
    shortcut of all channels, and their results stand side by side.
    """

    @nn.compact
    def __call__(self, x, drop_path=None, train: bool = False, progress=0.0):
        """Maps `[B, H, W, C]` to `[B, H/stride, W/stride, width]`, rounded up, float32; width is C or 2 C."""
        channels = x.shape[-1]
        shortcut = halve(x, self.odd_maps) if self.stride == 2 else x
        y = self.convolve(x, channels, 3, self.stride, "conv3x3", progress)
        y = BatchNorm(name="bn1")(y, train=train)
        y = RPReLU(subtract=False, name="rprelu1")(self.add(y, shortcut, drop_path, train))

        moved = y + self.param("move2", nn.initializers.zeros, (channels,))
        halves = []
        for suffix in ("",) if self.width == channels else ("_1", "_2"):
            z = self.convolve(moved, channels, 1, 1, f"conv1x1{suffix}", progress, move=False)
            z = BatchNorm(name=f"bn2{suffix}")(z, train=train)
            halves.append(self.add(z, y, drop_path, train))
        return RPReLU(subtract=False, name="rprelu2")(jnp.concatenate(halves, -1))


class ResidualBlock(BinaryBlock):
    """A binary 3x3 convolution with a shortcut; a real 1x1 one is in that where the shape changes."""

    react: bool = True  # False: without shifts and RPReLU, Bi-Real Net's block, which ends with the sum

    @nn.compact
    def __call__(self, x, drop_path=None, train: bool = False, progress=0.0):
        """Maps `[B, H, W, C]` to `[B, H/stride, W/stride, width]`, rounded up, float32."""
        y = self.convolve(x, self.width, 3, self.stride, "conv", progress, move=self.react)
        y = BatchNorm(name="bn")(y, train=train)
        if self.stride == 2 or x.shape[-1] != self.width:
            x = halve(x, self.odd_maps) if self.stride == 2 else x
            x = Conv(self.width, kernel_init=FAN_IN, dtype=self.dtype, name="conv_proj")(x)
            x = BatchNorm(name="bn_proj")(x, train=train)
        y = self.add(y, x, drop_path, train)
        return RPReLU(subtract=False, name="rprelu")(y) if self.react else y


class ReActNet(nn.Module):
    """ReActNet in the layout of MobileNet; the defaults are those of ReActNet-A.

    `model.apply(variables, image, train=False) -> (logits, out)` for float images `[B, H, W, C]`. Batch
    statistics are the collection `batch_stats`, as of `models.resnet`. Parameters are named `conv_root`,
    `bn_root`, `block{i}/{conv3x3, bn1, rprelu1, move2, conv1x1, bn2, rprelu2}` and `head`; where the width
    doubles, there are `conv1x1_1`, `conv1x1_2`, `bn2_1` and `bn2_2`.

    Fields:
      num_classes: size of the head; None or 0 for no head (`logits` are then `pre_logits`).
      root_width: of the first convolution, 3x3, which is not binary.
      root_stride: its stride; 1 for small images.
      widths: of each block; that of the one before, or twice as much.
      strides: of each block, 1 or 2.
      precision: `binary`; `w32a1`, real weights, the first step of training; `w1a32`, binary weights only;
        `float`, neither.
      estimator: of the gradient of signs, `layers.binary.ESTIMATORS`.
      latent_init: how kernels begin whose signs are taken. `fan_in`: like all others, uniform in
        ±1/sqrt(inputs). `positive`: uniform in [0, 0.001], as released: every sign is 1 at first.
      border: what stands around a map of signs before a 3x3 convolution. `zeros`: as published, a third
        value. `ones`: signs, so that one bit holds all there is; published weights were not trained so.
      odd_maps: what the shortcut of a stride of 2 does with a map of an odd side. `cover`: takes the mean of
        what is there of the last window. `drop`: leaves its pixels out, as released; the sum is then refused,
        for its terms differ in size, unless the shortcut is a single pixel, which is added to all. Images
        whose sides are multiples of 32 have no such maps.
      drop_path: rate of stochastic depth in the last block, growing linearly from 0 in the first.
      remat: recompute blocks in the backward pass, keeping what this policy of jax names
        (`layers.encoder.REMAT_POLICIES`).
      dtype: of convolutions. Parameters, norms, sums, logits and products of signs are float32 always.
    """

    num_classes: int | None = None
    root_width: int = 32
    root_stride: int = 2
    widths: Sequence[int] = WIDTHS
    strides: Sequence[int] = STRIDES
    precision: str = "binary"
    estimator: str = "triangle"
    latent_init: str = "fan_in"
    border: str = "zeros"
    odd_maps: str = "cover"
    drop_path: float = 0.0
    remat: str | None = None
    dtype: str = "float32"

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        check_fields(self, CHOICES, at_least_one=("root_width", "root_stride", "widths", "strides"))
        if len(self.widths) != len(self.strides):
            raise UserError(
                f"strides={self.strides!r} must have one entry for each of the {len(self.widths)} blocks "
                f"of widths={self.widths!r}."
            )
        if any(stride not in (1, 2) for stride in self.strides):
            raise UserError(f"strides={self.strides!r} must be 1 or 2: the shortcut is pooled by 2.")
        before = (self.root_width, *self.widths)
        for i, (width, previous) in enumerate(zip(self.widths, before, strict=False)):
            if width not in (previous, 2 * previous):
                raise UserError(
                    f"widths={self.widths!r}: block {i + 1} is {width} wide after {previous}. A block has "
                    f"the width of what is before it, or twice as much: {previous} or {2 * previous}."
                )
        super().__post_init__()

    @nn.compact
    def __call__(self, image, *, train: bool = False, progress: Any = 0.0) -> tuple[Any, dict[str, Any]]:
        """Returns logits `[B, num_classes]`, float32, and the named intermediates.

        `progress` is the share of training that is done, for annealed estimators. `out`: the feature maps
        `[B, h, w, D]` `root` and `block1`, ... after each block; `pre_logits` `[B, D]`; `logits`.
        """
        refuse_integers(image)
        root = Conv(
            self.root_width, 3, self.root_stride, kernel_init=FAN_IN, dtype=self.dtype, name="conv_root"
        )
        x = BatchNorm(name="bn_root")(root(image), train=train)
        out = {"root": x}
        block = MobileBlock
        if self.remat:
            policy = getattr(jax.checkpoint_policies, self.remat)
            block = nn.remat(block, policy=policy, static_argnums=(2, 3))  # rate, train
        rates = linear_rates(self.drop_path, len(self.widths))
        for i, (width, stride, rate) in enumerate(zip(self.widths, self.strides, rates, strict=True), 1):
            one = block(width=width, stride=stride, **binary_fields(self), name=f"block{i}")
            x = out[f"block{i}"] = one(x, rate, train, progress)
        init = uniform_by(x.shape[-1])
        logits, ends = classify(x, self.num_classes, kernel_init=init, bias_init=init)
        return logits, out | ends


class ReActResNet(nn.Module):
    """ReActNet in the layout of ResNet, one binary convolution a block; or Bi-Real Net. Defaults: 18 layers.

    As `ReActNet`, and with its fields but for these. Parameters are named `conv_root`, `bn_root`,
    `block{s}/unit{u}/{conv, bn, rprelu, conv_proj, bn_proj}` and `head`. There is no ReLU after the root.

    Fields:
      units: number of blocks of each stage; the second and later stages halve the grid.
      widths: of each stage, the first also that of the root.
      stem: `imagenet`: 7x7 convolution and max-pooling, stride 2 each. `small`: 3x3 convolution of stride 1,
        no pooling, for images of 32 pixels.
      react: whether there are learned shifts of signs, and RPReLUs; False is Bi-Real Net.
    """

    num_classes: int | None = None
    units: Sequence[int] = RESNETS["resnet18"]
    widths: Sequence[int] = (64, 128, 256, 512)
    stem: str = "imagenet"
    react: bool = True
    precision: str = "binary"
    estimator: str = "triangle"
    latent_init: str = "fan_in"
    border: str = "zeros"
    odd_maps: str = "cover"
    drop_path: float = 0.0
    remat: str | None = None
    dtype: str = "float32"

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        check_fields(self, {**CHOICES, "stem": ("imagenet", "small")}, at_least_one=("units", "widths"))
        super().__post_init__()

    @nn.compact
    def __call__(self, image, *, train: bool = False, progress: Any = 0.0) -> tuple[Any, dict[str, Any]]:
        """Returns logits and intermediates as `ReActNet` does; `block{s}` are the maps after each stage."""
        refuse_integers(image)
        kernel_size, stride = (7, 2) if self.stem == "imagenet" else (3, 1)
        root = Conv(
            self.widths[0], kernel_size, stride, kernel_init=FAN_IN, dtype=self.dtype, name="conv_root"
        )
        x = BatchNorm(name="bn_root")(root(image), train=train)
        if self.stem == "imagenet":
            x = max_pool(x)
        out = {"root": x}
        shared = {"react": self.react, **binary_fields(self)}
        x, maps = stages(
            x,
            ResidualBlock,
            [{"width": width, **shared} for width in self.widths],
            self.units,
            [2 if stage else 1 for stage in range(len(self.units))],
            drop_path=self.drop_path,
            remat=self.remat,
            train=train,
            besides=(progress,),
        )
        init = uniform_by(x.shape[-1])
        logits, ends = classify(x, self.num_classes, kernel_init=init, bias_init=init)
        return logits, out | maps | ends


def binary_fields(model: ReActNet | ReActResNet) -> dict[str, Any]:
    """The fields that a model passes on to its blocks."""
    return {name: getattr(model, name) for name in (*CHOICES, "dtype")}


NAMES = {
    "reactnet_a": (ReActNet, {}),
    **{f"react_{name}": (ReActResNet, {"units": units}) for name, units in RESNETS.items()},
    **{f"bireal_{name}": (ReActResNet, {"units": units, "react": False}) for name, units in RESNETS.items()},
}


def names() -> tuple[str, ...]:
    """The published networks, each as it is here and as it was released."""
    return (*NAMES, *(f"{name}_release" for name in NAMES))


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that a name stands for; None for any other name."""
    published = name.removesuffix("_release")
    if published not in NAMES:
        return None
    module, fields = NAMES[published]
    return module, fields | (RELEASE if name != published else {})
