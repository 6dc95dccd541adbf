"""Convolution with weight standardisation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.layers.convolution import convolve
from vitjax.layers.patches import refuse_other_channels

# What a filter is divided by, from its variance: `jax` as in the code behind the AugReg models, `timm` as in
# timm's port of them.
DEVIATION = {
    # Clipped at float32's smallest number, because the root has no gradient at the 0 of a constant filter.
    "jax": lambda variance: jnp.sqrt(jnp.maximum(variance, jnp.finfo(jnp.float32).tiny)) + 1e-5,
    "timm": lambda variance: jnp.sqrt(variance + 1e-8),
}


def weight_standardize(kernel, numerics: str = "jax"):
    """Gives each filter of `[h, w, C, D]`, that is, each of the D, mean 0 and deviation 1 over h, w and C.

    "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization"
    (arXiv 1903.10520). The deviation is the biased one; `numerics`, a key of
    `DEVIATION`, says how it is kept from zero: 1e-5 added to it, as in
    google-research/vision_transformer, or 1e-8 to the variance, as in timm.
    """
    centred = kernel - kernel.mean((0, 1, 2))
    return centred / DEVIATION[numerics](jnp.square(centred).mean((0, 1, 2)))


class StdConv(nn.Module):
    """A convolution without bias whose kernel is standardised at every use: `[B, H, W, C] -> [B, h, w, D]`.

    The parameter `kernel` `[k, k, C, D]` is the raw one, as in official files. Padding `same`: h is
    H / stride rounded up, and an odd row or column of padding stands last; `symmetric`: k // 2 zeros on every
    side, as in `layers.convolution.Conv`.
    """

    features: int
    kernel_size: int
    stride: int = 1
    numerics: str = "jax"
    dtype: DTypeLike = jnp.float32  # of the products; the kernel is standardised in float32
    padding: str = "same"
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x):
        """Convolves `x` `[B, H, W, C]`; the result has `dtype`."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        refuse_other_channels(self.get_variable("params", "kernel"), x.shape[-1])
        kernel = self.param("kernel", self.kernel_init, shape)

        # Checkpointed, so that the backward pass is given the raw kernel, which is there anyway, instead of
        # centred and standardised copies; XLA may still keep what it finds cheaper to keep than to redo.
        with_raw = jax.checkpoint(self.standardize_and_convolve, prevent_cse=False)
        return with_raw(x.astype(self.dtype), kernel)

    def standardize_and_convolve(self, x, kernel):
        """Convolves `x` with the raw `kernel`, standardised."""
        kernel = weight_standardize(kernel, self.numerics).astype(self.dtype)
        return convolve(x, kernel, stride=self.stride, padding=self.padding)
