"""Normalisation."""

import functools

import flax.linen as nn
import jax
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
        return layer_norm(x.astype(jnp.float32), scale, bias, self.epsilon).astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x, scale, bias, epsilon):
    """Normalises `x` `[..., D]` to mean 0 and variance 1 over D, times `scale` plus `bias`, both `[D]`.

    The gradient is the closed form instead of the derivative of each operation: it
    keeps two numbers a token besides `x` and takes two row sums instead of five, which
    on a CPU is 5 % of the training step of a ViT-Ti/16. Reverse mode only.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x, scale, bias, epsilon):
    mean = x.mean(-1, keepdims=True)
    centred = x - mean
    rstd = lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
    return centred * rstd * scale + bias, (x, mean, rstd, scale)


def _backward(epsilon, saved, grad):
    del epsilon  # is in rstd
    x, mean, rstd, scale = saved
    normed, scaled = (x - mean) * rstd, grad * scale
    along = (scaled * normed).mean(-1, keepdims=True)
    tokens = tuple(range(grad.ndim - 1))
    return (
        rstd * (scaled - scaled.mean(-1, keepdims=True) - normed * along),
        (grad * normed).sum(tokens),
        grad.sum(tokens),
    )


layer_norm.defvjp(_forward, _backward)
