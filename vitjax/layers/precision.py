"""The layers of a Transformer with one-bit weights, one-bit activations, or both, whatever its architecture.

BinaryViT (arXiv 2306.16678) keeps a real-valued residual stream. Around every binary linear layer it has a
norm, a real-valued shortcut and an RPReLU, and around the products of attention real-valued queries, keys and
values. So have the layers of any Transformer here where their field `precision` is not "float":

    precision   weights   activations
    float       float     float        the layer as it is without this module
    binary      binary    binary
    w1a32       binary    float
    w32a1       float     binary       the usual first of two steps

Their norms are `LayerNorm`s, where the published network has batch norms: so no network gets batch statistics
by its precision, and what works for it in float (blocks that are stacked or recomputed, gradients accumulated
over slices of a batch, a class token that attends alone) works in any precision.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.kernels import binary_matmul
from vitjax.layers.binary import BinaryDense, RPReLU, binarise_attention, binarises, binary_sign
from vitjax.layers.binary_shortcuts import mean_of_neighbours, tile_channels
from vitjax.layers.dense import Dense
from vitjax.layers.initialisation import AUGREG, Initializer
from vitjax.layers.norm import LayerNorm

NORM_EPSILON = 1e-5  # of the norms that are there only in binary layers, as published


def binary_activations(precision: str) -> bool:
    """Whether what a layer multiplies its weights with, and both products of attention, are binary."""
    return binarises(precision)[1]


class BinaryProjection(nn.Module):
    """A binary linear layer in place of a `Dense`: RPReLU(LN(dense(x)) + shortcut), `[..., D] -> [..., E]`.

    The shortcut is `x`, fitted to E channels (`fitted`), or nothing where it does not fit. There is no bias.
    Parameters: `kernel` `[D, E]` and `move` `[D]` of a `BinaryDense`, beside `norm` and `rprelu`.
    """

    features: int
    precision: str
    kernel_init: Initializer = AUGREG.kernel
    dtype: DTypeLike = jnp.float32  # of the product, which in any is exact if both operands are signs

    @nn.compact
    def __call__(self, x, shortcut=None):
        """Projects `x`, around which goes `shortcut` `[..., C]`, by default `x` itself; float32."""
        fields = {"precision": self.precision, "kernel_init": self.kernel_init, "dtype": self.dtype}
        dense = BinaryDense(self.features, **fields)
        nn.share_scope(self, dense)  # its parameters without a level of their own
        y = LayerNorm(NORM_EPSILON, name="norm")(dense(x.astype(jnp.float32)))
        around = fitted(x if shortcut is None else shortcut, self.features)
        return RPReLU(name="rprelu")(y if around is None else y + around.astype(jnp.float32))


def linear(
    features: int,
    precision: str,
    kernel_init: Initializer,
    bias_init: Initializer = nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
    *,
    name: str,
) -> nn.Module:
    """Returns a `Dense` for `precision="float"`, for all others a `BinaryProjection`."""
    if precision == "float":
        return Dense(features, kernel_init, bias_init, dtype, name=name)
    return BinaryProjection(features, precision, kernel_init, dtype, name=name)


def fitted(x, features: int):
    """Makes `features` channels of `[..., D]` without parameters; None where neither divides the other.

    Of fewer channels more, by repeating all of them one after another; of more channels fewer, as means of
    adjacent ones (BinaryViT's shortcuts around the first and the second layer of its MLP).
    """
    width = x.shape[-1]
    if width == features:
        return x
    if features % width == 0:
        return tile_channels(x, features)
    return mean_of_neighbours(x, features) if width % features == 0 else None


class AttentionSigns(nn.Module):
    """The signs of moved queries, keys and values: three arrays `[B, N, H, Dh]` of -1, 0 and 1.

    Parameters: `query`, `key` and `value` `[H, Dh]`, added before the sign.
    """

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, query, key, value):
        """Returns the signs of all three."""
        named = {"query": query, "key": key, "value": value}
        moves = {name: self.param(name, nn.initializers.zeros, x.shape[2:]) for name, x in named.items()}
        return tuple(binary_sign(x + moves[name]).astype(self.dtype) for name, x in named.items())


def sign_products(query, key):
    """The products `[B, H, N, M]` of signs `[B, N, H, Dh]` and `[B, M, H, Dh]`, whole numbers."""
    return binary_matmul(query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1))


class BinaryAverage(nn.Module):
    """Attention weights made 0 or `clip`, and the sums of signs of values by them.

    A weight is on where it is above half of `clip`, a parameter, one number for all heads. It begins at 1/M,
    what each of M keys has of a query that looks at all alike. The published 0.005 is that for 196 patches,
    those of a DeiT; with the fewer keys of a window nearly all would begin on, and without a gradient.
    """

    dtype: DTypeLike = jnp.float32  # of the product, whose result is float32

    @nn.compact
    def __call__(self, weights, value):
        """Averages `value` `[B, M, H, Dh]` by `weights` `[B, H, N, M]`.

        Returns:
          The averages `[B, N, H, Dh]`, and which weights are on, 0 or 1 `[B, H, N, M]`.
        """
        clip = self.param("clip", nn.initializers.constant(1 / weights.shape[-1]), ())
        on, scale = binarise_attention(weights.astype(jnp.float32), clip)
        y = binary_matmul(on.astype(self.dtype), value.transpose(0, 2, 1, 3), a_values="01") * scale
        return y.transpose(0, 2, 1, 3), on


class AttentionShortcuts(nn.Module):
    """RPReLU(LN(y) + query + key + value), side by side over all heads: real-valued ways around attention.

    Where one token reads others, as in class attention, keys and values are not its own and have no place.
    Parameters: `norm` and `rprelu`, of H Dh channels.
    """

    @nn.compact
    def __call__(self, y, query, key, value):
        """Returns `[B, N, H, Dh]` from averages `y`, queries, and keys and values, those of M tokens."""
        side_by_side = lambda x: x.reshape(*x.shape[:2], -1).astype(jnp.float32)
        around = [side_by_side(x) for x in (query, key, value) if x.shape == query.shape]
        normed = LayerNorm(NORM_EPSILON, name="norm")(side_by_side(y))
        return RPReLU(name="rprelu")(normed + sum(around)).reshape(y.shape)
