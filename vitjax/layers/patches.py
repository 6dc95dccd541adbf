"""Cutting an image into patches and embedding them."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.dense import affine
from vitjax.layers.initialisation import AUGREG, Initialisation


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Returns `(height, width)` for one number or two."""
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2 or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise UserError(f"patch_size={size!r} is neither a positive whole number nor two, (height, width).")
    return sizes


def patchify(image, patch_size: tuple[int, int]):
    """Cuts `[B, H, W, C]` into rows of non-overlapping patches `[B, H/p, W/q, p*q*C]`.

    Inside a patch the order is row, column, channel, the same as a convolution
    kernel `[p, q, C, D]` reshaped to `[p*q*C, D]`.
    """
    batch, height, width, channels = image.shape
    p, q = patch_size
    if height % p or width % q:
        raise UserError(
            f"An image of {height}x{width} pixels cannot be cut into patches of {p}x{q}: "
            f"the nearest size that can is {max(round(height / p), 1) * p}x{max(round(width / q), 1) * q}. "
            "Change the crop in the preprocessing string or the model's patch_size."
        )
    grid = image.reshape(batch, height // p, p, width // q, q, channels)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // p, width // q, p * q * channels)


def refuse_other_channels(kernel, channels: int) -> None:
    """Raises a `UserError` if `kernel` `[p, q, C, D]`, None before it is made, is for other images."""
    if kernel is not None and kernel.shape[-2] != channels:
        raise UserError(
            f"The model was made for images of {kernel.shape[-2]} channels, but this one has {channels}: "
            "prepare images everywhere alike; 'decode' gives 3."
        )


class PatchEmbedding(nn.Module):
    """Linear embedding of patches: a convolution whose stride is its kernel, `[B, H, W, C] -> [B, h, w, D]`.

    The parameters are those of the convolution (`kernel` `[p, q, C, D]`, `bias`
    `[D]`), so official files load as they are; the product is written as a matrix
    product, whose gradient no backend runs as a dilated convolution.
    """

    width: int
    patch_size: tuple[int, int]
    dtype: DTypeLike = jnp.float32
    initialisation: Initialisation = AUGREG

    @nn.compact
    def __call__(self, image):
        """Embeds float images `[B, H, W, C]` as `[B, H/p, W/q, width]`."""
        channels = image.shape[-1]
        refuse_other_channels(self.get_variable("params", "kernel"), channels)
        shape = (*self.patch_size, channels, self.width)
        kernel_init, bias_init = self.initialisation.patch(math.prod(shape[:-1]))
        kernel = self.param("kernel", kernel_init, shape)
        bias = self.param("bias", bias_init, (self.width,))
        patches = patchify(image.astype(self.dtype), self.patch_size)
        return affine(patches, kernel.reshape(-1, self.width), bias)
