"""Batch normalisation with PyTorch's arithmetic, as the published convolutional networks were trained."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with learned `scale` and `bias`.

    In training the statistics are those of the whole global batch, on however many devices it lies (so
    this is what PyTorch calls synchronised batch norm), and the running statistics, collection
    `batch_stats`, move towards them: `running = momentum * running + (1 - momentum) * batch`. As in
    PyTorch, and unlike in Flax, the running variance takes the unbiased variance of the batch, n / (n - 1)
    times the biased one by which the batch itself is normalised; and `momentum` is PyTorch's 1 - 0.1. All is
    float32 whatever the dtype of the input.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        """Normalises `[B, ..., C]`; float32."""
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        x = x.astype(jnp.float32)
        if train:
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            var = jnp.square(x - mean).mean(axes)  # of centred values: E[x^2] - E[x]^2 loses digits
            if not self.is_initializing():
                count = x.size // x.shape[-1]
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = self._moved(running_mean.value, mean)
                running_var.value = self._moved(running_var.value, unbiased)
        else:
            mean, var = running_mean.value, running_var.value
        return (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias

    def _moved(self, running, batch):
        return self.momentum * running + (1 - self.momentum) * jax.lax.stop_gradient(batch)
