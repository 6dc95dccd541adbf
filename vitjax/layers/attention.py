"""Multi-head attention, plain and with talking heads."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.dense import affine
from vitjax.layers.initialisation import AUGREG, Initialisation, Initializer
from vitjax.layers.locality import NOWHERE, Locality, overwrite_diagonal
from vitjax.layers.precision import (
    AttentionShortcuts,
    AttentionSigns,
    BinaryAverage,
    BinaryProjection,
    binary_activations,
    sign_products,
)

# What overwrites the logit of a query and a key that it must not see. It is finite, so that a query that sees
# no key at all, padding among padding, gets some mean of the values and not NaN.
UNSEEN = -1e9


class HeadProjection(nn.Module):
    """The parameters of a projection into or out of heads, without the product.

    Attention multiplies with them itself, so that it is free to fuse products.
    Kernels are drawn as the `[D, H*Dh]` or `[H*Dh, D]` matrix they are, then
    shaped: fan-in and fan-out are those of the matrix.
    """

    shape: tuple[int, int, int]  # of the kernel: [D, H, Dh], or [H, Dh, D] out of heads
    use_bias: bool = True
    into_heads: bool = True
    kernel_init: Initializer = AUGREG.kernel
    bias_init: Initializer = nn.initializers.zeros
    stacked: int = 1  # into heads: so many projections are drawn as one matrix, of which this is a part

    @nn.compact
    def __call__(self):
        """Returns `(kernel, bias)`; the bias is None without `use_bias`."""
        a, b, c = self.shape
        rows, columns, bias_shape = (a, b * c, (b, c)) if self.into_heads else (a * b, c, (c,))
        matrix = (rows, self.stacked * columns)
        draw = lambda key, shape: self.kernel_init(key, matrix)[:, :columns].reshape(shape)
        kernel = self.param("kernel", draw, self.shape)
        return kernel, self.param("bias", self.bias_init, bias_shape) if self.use_bias else None


class MultiHeadDotProductAttention(nn.Module):
    """Scaled dot-product attention with H heads ("Attention is all you need", section 3.2).

    Parameters are named and shaped as in the official JAX files: `query`, `key`,
    `value` with kernels `[D, H, Dh]` and biases `[H, Dh]`, `out` with kernel
    `[H, Dh, D]` and bias `[D]`. There is no dropout on the attention weights, as
    in the official code, unless `weights_dropout` says how much. Values may have another size a head than
    queries and keys (`value_head_dim`). A variant overrides `logits` (what is added to them) or
    `weights` (mixing heads around the softmax). `locality` adds LSA: its learned
    temperature is the parameter `scale` `[H]`, which logits are multiplied by. Without
    `out_projection` the heads side by side, `[B, N, H*Dh]`, are the result.

    The collection `intermediates` gets `attention_logits` and `attention_weights`
    `[B, H, N, M]` if it is mutable, before and after the softmax.

    With a `precision` (`layers.precision`) all four linear layers are `BinaryProjection`s, without biases,
    and queries, keys and values go around the attention as well. Are activations binary, then so are both
    products: that of the signs of queries and keys, which is scaled, masked and mixed as ever, and that of
    the signs of values and weights that are 0 or one learned number. The collection gets `attention_on`
    besides, 0 or 1 for each of `attention_weights`.
    """

    num_heads: int
    qkv_bias: bool = True
    dtype: DTypeLike = jnp.float32  # of the products; the softmax is float32 always
    initialisation: Initialisation = AUGREG
    head_dim: int | None = None  # by default the width over the heads
    scale: float | None = None  # of the logits, where it begins if it is learned; by default head_dim ** -0.5
    locality: Locality = NOWHERE
    out_projection: bool = dataclasses.field(default=True, kw_only=True)
    out_bias: bool = dataclasses.field(default=True, kw_only=True)
    value_head_dim: int | None = dataclasses.field(default=None, kw_only=True)  # by default as `head_dim`
    weights_dropout: float = dataclasses.field(default=0.0, kw_only=True)
    precision: str = dataclasses.field(default="float", kw_only=True)  # one of `binary.PRECISIONS`

    @nn.compact
    def __call__(self, x, context=None, *, mask=None, train: bool = False):
        """Attends from `x` `[B, N, D]` to `context` `[B, M, D]`, by default to `x` itself: `[B, N, D]`.

        `mask`, bool, broadcastable to `[B, H, N, M]`, is True where query n may see key m; None: everywhere.
        It is put in before the weights, so heads that are mixed there (talking heads) take none.
        `train` switches dropout on.
        """
        x = x.astype(self.dtype)
        context = x if context is None else context.astype(self.dtype)
        return self.merge(self.attended(*self.project(x, context), mask, train), x.shape[-1])

    def project(self, x, context):
        """Returns queries `[B, N, H, Dh]`, keys and values `[B, M, H, Dh]`."""
        return self.heads(x, "query"), self.heads(context, "key"), self.heads(context, "value")

    def heads(self, x, name):
        """Projects `[B, N, D]` to the `query`, `key` or `value` of each head: `[B, N, H, Dh]`."""
        width = x.shape[-1]
        if self.head_dim is None and width % self.num_heads:
            raise UserError(f"width={width} cannot be split over num_heads={self.num_heads} heads.")
        head_dim = self.head_dim or width // self.num_heads
        if name == "value":
            head_dim = self.value_head_dim or head_dim
        stacked = dict(zip(("query", "key", "value"), self.initialisation.stacked, strict=True))[name]
        if self.precision_of_inputs != "float":
            draw = _part_of(self.initialisation.kernel, stacked)
            features, precision = self.num_heads * head_dim, self.precision_of_inputs
            y = BinaryProjection(features, precision, draw, self.dtype, name=name)(x)
        else:
            shape, begin = (width, self.num_heads, head_dim), self.initialisation
            projection = HeadProjection(
                shape, self.qkv_bias, True, begin.kernel, begin.bias_of(width), stacked, name=name
            )
            kernel, bias = projection()
            y = affine(x, kernel.reshape(width, -1), None if bias is None else bias.reshape(-1))
        return y.reshape(*y.shape[:-1], self.num_heads, head_dim)

    @property
    def precision_of_inputs(self) -> str:
        """The `precision` of queries, keys and values' own linear layers."""
        return self.precision

    def attended(self, query, key, value, mask=None, train: bool = False):
        """Averages values by the weights of each query: `[B, N, H, Dh]`."""
        exact = query, key, value
        if binary_activations(self.precision):
            query, key, value = AttentionSigns(self.dtype, name="signs")(query, key, value)
        logits = self.logits(query, key)
        if mask is not None:
            logits = jnp.where(mask, logits, jnp.asarray(UNSEEN, logits.dtype))
        self.sow("intermediates", "attention_logits", logits)
        y = self.average(self.weights(logits), value, train)
        return y if self.precision == "float" else AttentionShortcuts(name="context")(y, *exact)

    def logits(self, query, key):
        """Returns the scaled products `[B, H, N, M]` of queries and keys, masked as `locality` says."""
        return self.masked(self.products(query, key))

    def products(self, query, key):
        """Returns the products `[B, H, N, M]` of queries and keys, times the fixed or learned scale."""
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        if self.locality.learned_temperature:
            scale = self.param("scale", nn.initializers.constant(scale), (self.num_heads,))
            scale = scale.astype(query.dtype)[:, None]
        if binary_activations(self.precision):
            products = sign_products(query, key)  # of signs, so the scale comes after
            return products * jnp.reshape(scale, (-1, 1, 1))
        return jnp.einsum("bnhk,bmhk->bhnm", query * scale, key)

    def masked(self, logits):
        """Masks the diagonal of `[B, H, N, M]` if `locality` does."""
        return overwrite_diagonal(logits, self.locality.mask) if self.locality.masked_diagonal else logits

    def weights(self, logits):
        """Returns the attention weights `[B, H, N, M]`, float32, that sum to one over the last axis."""
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    def average(self, weights, value, train: bool = False):
        """Averages values `[B, M, H, Dh]` by weights `[B, H, N, M]`: `[B, N, H, Dh]`."""
        if binary_activations(self.precision):
            self.sow("intermediates", "attention_weights", weights)
            y, on = BinaryAverage(self.dtype, name="average")(weights, value)
            self.sow("intermediates", "attention_on", on)
            return y
        weights = weights.astype(self.dtype)
        self.sow("intermediates", "attention_weights", weights)
        if self.weights_dropout:
            weights = nn.Dropout(self.weights_dropout, name="weights_dropout")(
                weights, deterministic=not train
            )
        return jnp.einsum("bhnm,bmhk->bnhk", weights, value)

    def merge(self, y, width):
        """Projects the heads' results `[B, N, H, Dh]` back to `[B, N, D]`."""
        side_by_side = y.reshape(*y.shape[:-2], -1)
        if not self.out_projection:
            return side_by_side
        if self.precision != "float":
            draw = self.initialisation.kernel
            return BinaryProjection(width, self.precision, draw, self.dtype, name="out")(side_by_side)
        shape = (*y.shape[-2:], width)
        begin = self.initialisation.kernel, self.initialisation.bias_of(shape[0] * shape[1])
        kernel, bias = HeadProjection(shape, self.out_bias, False, *begin, name="out")()
        return affine(side_by_side, kernel.reshape(-1, width), bias)


def _part_of(kernel_init: Initializer, stacked: int) -> Initializer:
    """What draws the first of so many matrices that are drawn as one."""
    return lambda key, shape, *dtype: kernel_init(key, (shape[0], stacked * shape[1]), *dtype)[:, : shape[1]]


class TalkingHeadsAttention(MultiHeadDotProductAttention):
    """Attention whose heads are mixed linearly before and after the softmax.

    "Talking-Heads Attention" (arXiv 2003.02436), as in CaiT: `proj_l` mixes the H maps of
    scaled products, `proj_w` those of weights, each with a kernel `[H, H]` (from, to) and
    a bias `[H]` unless `mixing_bias` is False. The weights of a query need not sum to one
    afterwards. The bias of `proj_l` shifts all logits of a map alike: no output depends on it.

    The mask of a `locality` is put in before logits are mixed, as in the official code, unless
    it is -inf: times the signed numbers of a mix that would be NaN, so it is put in after it.
    The collection `intermediates` gets `unmixed_weights` besides, what the softmax returns.
    """

    mixing_bias: bool = True

    def masked(self, logits):
        """Masks the diagonal of `[B, H, N, M]` before the mix, if `locality` does and its mask is finite."""
        return logits if self.locality.mask == -jnp.inf else super().masked(logits)

    def weights(self, logits):
        """Returns the mixed weights `[B, H, N, M]`, in the dtype of the products."""
        logits = self.mix(logits, "proj_l")
        if self.locality.mask == -jnp.inf:
            logits = super().masked(logits)
        weights = super().weights(logits)
        self.sow("intermediates", "unmixed_weights", weights)
        return self.mix(weights.astype(self.dtype), "proj_w")

    def mix(self, maps, name):
        """Maps `[B, H, N, M]` to as many linear combinations of them."""
        draw = self.initialisation.head_mix or self.initialisation.kernel
        kernel, bias = HeadMixing(self.num_heads, draw, self.mixing_bias, name=name)()
        batch, heads, *positions = maps.shape
        # One product an example, with the maps as rows, leaves them where they are in memory.
        kernel = jnp.broadcast_to(kernel.T.astype(maps.dtype), (batch, heads, heads))
        mixed = kernel @ maps.reshape(batch, heads, -1)
        if bias is not None:
            mixed = mixed + bias.astype(maps.dtype)[:, None]
        return mixed.reshape(batch, heads, *positions)


class HeadMixing(nn.Module):
    """The parameters of a linear map over heads, without the product: `kernel` `[H, H]` and `bias` `[H]`."""

    num_heads: int
    kernel_init: Initializer = AUGREG.kernel
    use_bias: bool = True

    @nn.compact
    def __call__(self):
        """Returns `(kernel, bias)`; the bias is None without `use_bias`."""
        kernel = self.param("kernel", self.kernel_init, (self.num_heads, self.num_heads))
        return kernel, self.param("bias", nn.initializers.zeros, (self.num_heads,)) if self.use_bias else None
