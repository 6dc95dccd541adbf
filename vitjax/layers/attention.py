"""Multi-head attention."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.dense import affine


class HeadProjection(nn.Module):
    """The parameters of a projection into or out of heads, without the product.

    Attention multiplies with them itself, so that it is free to fuse products.
    Kernels are drawn xavier-uniform as the `[D, H*Dh]` or `[H*Dh, D]` matrix they
    are, then shaped: fan-in and fan-out are those of the matrix.
    """

    shape: tuple[int, int, int]  # of the kernel: [D, H, Dh], or [H, Dh, D] out of heads
    use_bias: bool = True
    into_heads: bool = True

    @nn.compact
    def __call__(self):
        """Returns `(kernel, bias)`; the bias is None without `use_bias`."""
        a, b, c = self.shape
        matrix, bias_shape = ((a, b * c), (b, c)) if self.into_heads else ((a * b, c), (c,))
        initializer = nn.initializers.xavier_uniform()
        kernel = self.param("kernel", lambda key, shape: initializer(key, matrix).reshape(shape), self.shape)
        return kernel, self.param("bias", nn.initializers.zeros, bias_shape) if self.use_bias else None


class MultiHeadDotProductAttention(nn.Module):
    """Scaled dot-product attention with H heads ("Attention is all you need", section 3.2).

    Parameters are named and shaped as in the official JAX files: `query`, `key`,
    `value` with kernels `[D, H, Dh]` and biases `[H, Dh]`, `out` with kernel
    `[H, Dh, D]` and bias `[D]`. There is no dropout on the attention weights, as
    in the official code. A variant overrides `logits` (another temperature, a
    mask) or `weights` (mixing heads around the softmax).
    """

    num_heads: int
    qkv_bias: bool = True
    dtype: DTypeLike = jnp.float32  # of the products; the softmax is float32 always

    @nn.compact
    def __call__(self, x, context=None):
        """Attends from `x` `[B, N, D]` to `context` `[B, M, D]`, by default to `x` itself: `[B, N, D]`."""
        x = x.astype(self.dtype)
        context = x if context is None else context.astype(self.dtype)
        query, key, value = self.project(x, context)
        weights = self.weights(self.logits(query, key)).astype(self.dtype)
        return self.merge(jnp.einsum("bhnm,bmhk->bnhk", weights, value), x.shape[-1])

    def project(self, x, context):
        """Returns queries `[B, N, H, Dh]`, keys and values `[B, M, H, Dh]`."""
        width = x.shape[-1]
        if width % self.num_heads:
            raise UserError(f"width={width} cannot be split over num_heads={self.num_heads} heads.")
        shape = (width, self.num_heads, width // self.num_heads)

        def heads(inputs, name):
            kernel, bias = HeadProjection(shape, self.qkv_bias, name=name)()
            y = affine(inputs, kernel.reshape(width, width), None if bias is None else bias.reshape(width))
            return y.reshape(*y.shape[:-1], *shape[1:])

        return heads(x, "query"), heads(context, "key"), heads(context, "value")

    def logits(self, query, key):
        """Returns the scaled products `[B, H, N, M]` of queries and keys."""
        return jnp.einsum("bnhk,bmhk->bhnm", query * query.shape[-1] ** -0.5, key)

    def weights(self, logits):
        """Returns the attention weights `[B, H, N, M]`, float32, that sum to one over the last axis."""
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)

    def merge(self, y, width):
        """Projects the heads' results `[B, N, H, Dh]` back to `[B, N, D]`."""
        kernel, bias = HeadProjection((*y.shape[-2:], width), into_heads=False, name="out")()
        return affine(y.reshape(*y.shape[:-2], -1), kernel.reshape(-1, width), bias)
