"""Cutting an image into patches and embedding them."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.dense import affine
from vitjax.layers.initialisation import AUGREG, Initialisation


def pair(size: int | Sequence[int], field: str = "patch_size") -> tuple[int, int]:
    """Returns `(height, width)` for one number or two, which are those of `field`."""
    sizes = (size, size) if isinstance(size, int) else tuple(size)
    if len(sizes) != 2 or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise UserError(f"{field}={size!r} is neither a positive whole number nor two, (height, width).")
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


def refuse_partial_strides(size: Sequence[int], patch_size: tuple[int, int], stride: tuple[int, int]) -> None:
    """Raises a `UserError` if overlapping patches do not end at the borders of an image of `size` pixels."""
    sizes = list(zip(size, patch_size, stride, strict=True))
    if any(pixels < patch or (pixels - patch) % step for pixels, patch, step in sizes):
        height, width = (patch + max(round((n - patch) / step), 0) * step for n, patch, step in sizes)
        raise UserError(
            f"Patches of {patch_size[0]}x{patch_size[1]} pixels, {stride[0]}x{stride[1]} from one to the "
            f"next, do not fill an image of {size[0]}x{size[1]}: the nearest size that they do is "
            f"{height}x{width}. Change the crop in the preprocessing string or the model's patch_size or "
            "patch_stride."
        )


class PatchEmbedding(nn.Module):
    """Linear embedding of patches: a convolution whose stride is its kernel, `[B, H, W, C] -> [B, h, w, D]`.

    The parameters are those of the convolution (`kernel` `[p, q, C, D]`, `bias`
    `[D]`), so official files load as they are; the product is written as a matrix
    product, whose gradient no backend runs as a dilated convolution. With a `stride`
    below the patch, patches overlap (PiT), and a convolution it is.
    """

    width: int
    patch_size: tuple[int, int]
    dtype: DTypeLike = jnp.float32
    initialisation: Initialisation = AUGREG
    stride: tuple[int, int] | None = (
        None  # pixels from one patch to the next, (down, across); None: the patch
    )

    @nn.compact
    def __call__(self, image):
        """Embeds float images `[B, H, W, C]` as `[B, h, w, width]`; without a stride h = H/p, w = W/q."""
        channels = image.shape[-1]
        refuse_other_channels(self.get_variable("params", "kernel"), channels)
        shape = (*self.patch_size, channels, self.width)
        kernel_init, bias_init = self.initialisation.patch(math.prod(shape[:-1]))
        kernel = self.param("kernel", kernel_init, shape)
        bias = self.param("bias", bias_init, (self.width,))
        if self.stride not in (None, self.patch_size):
            refuse_partial_strides(image.shape[1:3], self.patch_size, self.stride)
            layout = ("NHWC", "HWIO", "NHWC")
            image, kernel = image.astype(self.dtype), kernel.astype(self.dtype)
            y = lax.conv_general_dilated(image, kernel, self.stride, "VALID", dimension_numbers=layout)
            return y + bias.astype(self.dtype)
        patches = patchify(image.astype(self.dtype), self.patch_size)
        return affine(patches, kernel.reshape(-1, self.width), bias)
