"""The parts of BinaryViT: binary linear layers between shortcuts, its attention, block and downsampling.

"BinaryViT: Pushing Binary Vision Transformers Towards Convolutional Models" (arXiv 2306.16678) and
Phuoc-Hoan-Le/BinaryViT at ca16a43.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from vitjax.kernels import binary_matmul
from vitjax.layers.batch_norm import BatchNorm
from vitjax.layers.binary import (
    Affine,
    BinaryConv,
    BinaryDense,
    RPReLU,
    binarise_attention,
    binarises,
    binary_sign,
)
from vitjax.layers.binary_shortcuts import (
    Grid,
    mean_along,
    mean_of_neighbours,
    reduce_tokens,
    repeat_tokens,
    tile_channels,
)
from vitjax.layers.initialisation import TORCH, Initialisation
from vitjax.layers.locality import NOWHERE, Locality, overwrite_diagonal
from vitjax.layers.norm import LayerNorm

NORMS = ("batch", "layer")


@dataclasses.dataclass(frozen=True)
class Style:
    """What all layers of a network have in common.

    Attributes:
      precision: what of a binary layer has one bit (`layers.binary.PRECISIONS`).
      estimator: gradient of the signs of activations (`layers.binary.ESTIMATORS`).
      norm: `batch`: over batch and tokens, or `layer`.
      initialisation: how kernels begin.
    """

    precision: str = "binary"
    estimator: str = "triangle"
    norm: str = "batch"
    initialisation: Initialisation = TORCH

    def normalise(self, x, train: bool, name: str):
        """Normalises `[B, N, C]`, float32, in the compact module that calls this."""
        if self.norm == "batch":
            return BatchNorm(name=name)(x, train=train)
        return LayerNorm(1e-5, name=name)(x)


class ShortcutDense(nn.Module):
    """A binary linear layer, a norm, a shortcut around both, then RPReLU: `[B, N, D] -> [B, N, features]`.

    The shortcut is the input; that of a wider layer repeats its channels, that of a narrower one is the mean
    of neighbours.
    """

    features: int
    style: Style = Style()

    @nn.compact
    def __call__(self, x, train: bool = False, progress=0.0):
        """Maps tokens; `progress` is that of an annealed estimator."""
        style = self.style
        dense = BinaryDense(
            self.features,
            style.precision,
            style.estimator,
            kernel_init=style.initialisation.kernel,
            name="dense",
        )
        y = style.normalise(dense(x, progress), train, "norm")
        fit = tile_channels if self.features >= x.shape[-1] else mean_of_neighbours
        return RPReLU(name="rprelu")(y + fit(x, self.features))


class BinaryAttention(nn.Module):
    """Attention of BinaryViT: signs of queries, keys and values, and probabilities of {0, clip}.

    Queries, keys and values are shortcut layers, and added again after the attention product. With a
    `reduction` keys and values come from as many times fewer tokens down and across: the map is pooled, and
    goes through a shortcut layer of its own. `clip`, one learned number, is what probabilities above half of
    it become; it exists where activations are binary. `locality` adds LSA: its learned temperature `scale`
    `[H]`, and its mask where there is no reduction, as pooled keys are no token's own.

    The collection `intermediates` gets `attention_logits` and `attention_weights` `[B, H, N, M]`, before and
    after the softmax, and where activations are binary `attention_on`, 0 or 1, which times `clip` is what
    values are multiplied by.
    """

    num_heads: int
    reduction: int = 1
    clip: float = 0.005  # where it begins
    locality: Locality = NOWHERE
    style: Style = Style()

    @nn.compact
    def __call__(self, x, grid: Grid, train: bool = False, progress=0.0):
        """Attends from all tokens `[B, N, C]`, N = h w on `grid`, or more where nothing is reduced."""
        width, ratio = x.shape[-1], self.reduction
        unit = lambda x, name: ShortcutDense(width, self.style, name=name)(x, train, progress)
        query, context = unit(x, "query"), x
        if ratio > 1:
            context = unit(reduce_tokens(x, grid, ratio), "reduction")
        key, value = unit(context, "key"), unit(context, "value")

        heads = (self.heads(y, name, progress) for y, name in ((query, "q"), (key, "k"), (value, "v")))
        y = self.attended(*heads)
        y = self.style.normalise(y.reshape(x.shape), train, "context_norm")
        shortcut = key + value
        if ratio > 1:
            shortcut = repeat_tokens(shortcut, grid, ratio)
        return RPReLU(name="context_rprelu")(y + query + shortcut)

    def heads(self, x, name, progress):
        """Shifts `[B, N, C]` by `move_{name}` and takes signs, as `precision` says: `[B, N, H, C / H]`."""
        x = x + self.param(f"move_{name}", nn.initializers.zeros, (x.shape[-1],))
        if binarises(self.style.precision)[1]:
            x = binary_sign(x, self.style.estimator, progress)
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def attended(self, query, key, value):
        """Averages values `[B, M, H, Dh]` by the weights of each query: `[B, N, H, Dh]`."""
        logits = self.logits(query, key)
        self.sow("intermediates", "attention_logits", logits)
        weights = jax.nn.softmax(logits, axis=-1)
        self.sow("intermediates", "attention_weights", weights)
        value = value.transpose(0, 2, 1, 3)
        if binarises(self.style.precision)[1]:
            clip = self.param("clip", nn.initializers.constant(self.clip), ())
            on, clip = binarise_attention(weights, clip)
            self.sow("intermediates", "attention_on", on)
            y = binary_matmul(on, value, a_values="01") * clip
        else:
            y = weights @ value
        return y.transpose(0, 2, 1, 3)

    def logits(self, query, key):
        """Returns the scaled products `[B, H, N, M]` of queries and keys, masked as `locality` says."""
        scale = query.shape[-1] ** -0.5
        if self.locality.learned_temperature:
            scale = self.param("scale", nn.initializers.constant(scale), (self.num_heads,))[:, None, None]
        query, key = query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1)
        product = binary_matmul if binarises(self.style.precision)[1] else jnp.matmul
        logits = product(query, key) * scale
        if self.locality.masked_diagonal and self.reduction == 1:
            logits = overwrite_diagonal(logits, self.locality.mask)
        return logits


class BinaryBlock(nn.Module):
    """The block of BinaryViT: attention, a feed-forward half of two shortcut layers, and branches that pool.

    Branches pool the normalised input of the feed-forward half over windows of rows and of columns; each has
    an affine that begins at 0. `affine` is where that of both halves begins; None for none.
    """

    num_heads: int
    mlp_dim: int
    reduction: int = 1
    branches: Sequence[int] = (3, 5)  # lengths of the windows
    affine: float | None = 0.1
    clip: float = 0.005
    locality: Locality = NOWHERE
    style: Style = Style()

    @nn.compact
    def __call__(self, x, grid: Grid, train: bool = False, progress=0.0):
        """Returns tokens `[B, N, C]`; N = h w on `grid`, or more without branches and reduction."""
        width, style = x.shape[-1], self.style
        unit = lambda x, features, name: ShortcutDense(features, style, name=name)(x, train, progress)

        y = style.normalise(x, train, "norm_0")
        attention = BinaryAttention(
            self.num_heads, self.reduction, self.clip, self.locality, style, name="attention"
        )
        y = unit(attention(y, grid, train, progress), width, "output")
        x = x + self.scaled(y, "affine_0")

        z = style.normalise(x, train, "norm_1")
        y = unit(unit(z, self.mlp_dim, "expand"), width, "contract")
        x = x + self.scaled(y, "affine_1")
        for size in self.branches:
            for axis, name in enumerate(("column", "row")):
                x = x + Affine(0.0, name=f"{name}_{size}")(mean_along(z, grid, axis, size))
        return x

    def scaled(self, y, name):
        """Applies the affine of that name, if there are any."""
        return y if self.affine is None else Affine(self.affine, name=name)(y)


class Downsampling(nn.Module):
    """A norm and a 2x2 convolution with stride 2 between stages, then a norm and positions.

    `binary`: signs of the shifted map are convolved with binary weights; a shortcut around convolution and
    norm pools 2x2 tokens and repeats their channels, and RPReLU follows. Else the convolution is one of real
    numbers, with neither.
    """

    width: int
    binary: bool = True
    style: Style = Style()

    @nn.compact
    def __call__(self, x, grid: Grid, train: bool = False, progress=0.0):
        """Maps `[B, h w, C]` on `grid` to `[B, h w / 4, width]`, before positions are added."""
        batch, _, channels = x.shape
        style = self.style
        x = style.normalise(x, train, "norm_0")
        conv = BinaryConv(
            self.width,
            2,
            stride=2,
            precision=style.precision if self.binary else "float",
            estimator=style.estimator,
            move=self.binary,
            kernel_init=style.initialisation.conv_of(4 * channels)[0],
            name="conv",
        )
        y = conv(x.reshape(batch, *grid, channels), progress).reshape(batch, -1, self.width)
        y = style.normalise(y, train, "norm_1")
        if not self.binary:
            return y
        return RPReLU(name="rprelu")(y + tile_channels(reduce_tokens(x, grid, 2), self.width))
