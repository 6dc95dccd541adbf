"""The table of a vocabulary: embeds token ids, and tells by products with it which token comes next."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from vitjax.layers.initialisation import Initializer


class TokenEmbedding(nn.Module):
    """A table `embedding` `[V, D]`, one row a token ("Attention is all you need", section 3.4).

    Drawn by `begin`, by default normal with deviation D^-0.5 (tensor2tensor), so that rows times sqrt(D)
    have about unit variance, and so have products of rows with a layer-normalised vector.
    """

    num_tokens: int
    width: int
    begin: Initializer | None = None
    dtype: DTypeLike = jnp.float32  # of the operands of `logits`

    def setup(self):
        """Makes the table."""
        draw = self.begin or nn.initializers.normal(self.width**-0.5)
        self.embedding = self.param("embedding", draw, (self.num_tokens, self.width))

    def __call__(self, tokens):
        """Looks up ids `[...]`, integers below V: `[..., D]`, float32."""
        return self.embedding[tokens]

    def logits(self, x):
        """Returns the products of `x` `[..., D]` with every row: `[..., V]`, float32 of any operands."""
        rows = x.reshape(-1, self.width).astype(self.dtype)
        table = self.embedding.astype(self.dtype)
        products = lax.dot_general(rows, table, (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
        return products.reshape(*x.shape[:-1], self.num_tokens)
