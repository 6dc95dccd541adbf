"""Attention of sequences that grow by a token at a time: keys and values are made once and kept."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vitjax.layers.attention import MultiHeadDotProductAttention

Memory = dict[str, Any]  # `key` [B, M, H, Dk] and `value` [B, M, H, Dv], projected


class CachedAttention(MultiHeadDotProductAttention):
    """A `MultiHeadDotProductAttention` of the same parameters that can also attend to kept keys and values.

    `attention(x, context)` is as ever. `remember(context)` makes a memory of all of a context at once, and
    `write` adds one token to it; `recall(x, memory, mask)` attends to a memory.
    """

    @nn.compact
    def remember(self, context) -> Memory:
        """Returns the keys and values of `context` `[B, M, D]`."""
        context = context.astype(self.dtype)
        return {"key": self.heads(context, "key"), "value": self.heads(context, "value")}

    @nn.compact
    def write(self, x, memory: Memory, position) -> Memory:
        """Puts the key and value of `x` `[B, 1, D]` at `position`, int32 `[B]`, of each row of the memory.

        A position beyond the memory is not written.
        """
        rows = jnp.arange(len(x))
        new = self.remember(x)
        return {name: kept.at[rows, position].set(new[name][:, 0]) for name, kept in memory.items()}

    @nn.compact
    def recall(self, x, memory: Memory, mask=None):
        """Attends from `x` `[B, N, D]` to a memory, where `mask` lets it: `[B, N, D]`, without dropout."""
        query = self.heads(x.astype(self.dtype), "query")
        return self.merge(self.attended(query, memory["key"], memory["value"], mask), x.shape[-1])
