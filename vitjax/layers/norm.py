"""Normalisation."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis with learned `scale` and `bias`.

    Statistics are float32 whatever the dtype of the input, and the variance is
    taken of the centred values: E[x^2] - E[x]^2, Flax's default, loses digits as
    soon as a token's mean is large.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32  # of the result

    @nn.compact
    def __call__(self, x):
        """Normalises `[..., D]`."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        return (centred * (lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(self.dtype)
