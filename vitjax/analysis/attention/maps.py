"""From attention weights to maps over the patches: the rows of a query, and rollout."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vitjax.analysis.attention.layers import Layer


def head_maps(layer: Layer, weights: jax.Array) -> jax.Array:
    """What the asking queries of a layer look at, a map a head: `[B, H, h, w]`, float32.

    The columns of class and distillation token are left out. With windows, the map is put together from the
    windows' own, so that the numbers of each window sum to one.

    Args:
      layer: the layer.
      weights: `[B, H, N, M]`, `[B * W, H, n, n]` with windows.
    """
    rows = weights[:, :, layer.rows, layer.front :].astype(jnp.float32).mean(2)
    return _onto_map(layer, rows).reshape(-1, weights.shape[1], *layer.grid)


def _onto_map(layer: Layer, rows: jax.Array) -> jax.Array:
    """`[B * W, H, n]` of windows to `[B, H, h * w]`; without windows, as it is."""
    if layer.windows is None:
        return rows
    count, size = layer.windows.tokens.shape
    heads = rows.shape[1]
    rows = rows.reshape(-1, count, heads, size).transpose(0, 2, 1, 3).reshape(-1, heads, count * size)
    return rows[..., np.argsort(layer.windows.tokens.reshape(-1))]


def matrix(layer: Layer, weights: jax.Array) -> jax.Array:
    """The mean over heads as a matrix from queries to keys whose rows sum to one: `[B, N, M]`, float32.

    Where heads are mixed after the softmax, weights can be negative: these count as zero. Windows become a
    matrix over all tokens of the map, zero between windows.
    """
    mean = jnp.maximum(weights.astype(jnp.float32).mean(1), 0)
    mean = mean / jnp.maximum(mean.sum(-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    if layer.windows is None:
        return mean
    tokens = layer.windows.tokens
    count, size = tokens.shape
    whole = jnp.zeros((len(mean) // count, count * size, count * size), mean.dtype)
    return whole.at[:, tokens[:, :, None], tokens[:, None, :]].set(mean.reshape(-1, count, size, size))


def rollout(layers: Sequence[Layer], weights: Sequence[jax.Array]) -> jax.Array:
    """Attention rollout: how much of each patch comes to who asks in the last layer, `[B, h, w]`, float32.

    Args:
      layers: all layers of a model.
      weights: of each, `[B, H, N, M]`.
    """
    total, last = flow(layers, weights), layers[-1]
    rows = slice(0, 1) if last.one_query else last.rows
    patches = last.grid[0] * last.grid[1]
    return total[:, rows, -patches:].mean(1).reshape(-1, *last.grid)


def flow(layers: Sequence[Layer], weights: Sequence[jax.Array]) -> jax.Array:
    """The matrix of rollout, from tokens after the last layer to those before its stage: `[B, T, T]`.

    "Quantifying Attention Flow in Transformers" (arXiv 2005.00928): the product over layers of A / 2 + I / 2,
    A the mean over heads. Every row sums to one. Only layers of the last stage count, since what pools
    between stages is no attention. A class token that joins after the patches' blocks, and a pooling query,
    is one more token in front: the others stay as they are while it reads them. A pooling query keeps
    nothing of itself.
    """
    chain = [pair for pair in zip(layers, weights, strict=True) if pair[0].stage == layers[-1].stage]
    inside = [matrix(layer, values) for layer, values in chain if not layer.one_query]
    reading = [(layer, matrix(layer, values)) for layer, values in chain if layer.one_query]
    tokens = inside[0].shape[-1] if inside else layers[-1].grid[0] * layers[-1].grid[1]
    total = jnp.eye(tokens)[None]
    for a in inside:
        total = (0.5 * a + 0.5 * jnp.eye(tokens)) @ total
    if not reading:
        return total
    total = jnp.pad(total, ((0, 0), (1, 0), (1, 0))).at[:, 0, 0].set(1)
    for layer, a in reading:
        row = jnp.pad(a[:, 0], ((0, 0), (tokens + 1 - a.shape[-1], 0)))
        if layer.residual:
            row = 0.5 * row + 0.5 * jnp.eye(tokens + 1)[0]
        step = jnp.broadcast_to(jnp.eye(tokens + 1), (len(a), tokens + 1, tokens + 1))
        total = step.at[:, 0].set(row) @ total
    return total
