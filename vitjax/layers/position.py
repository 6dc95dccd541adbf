"""Fixed position embeddings: of a grid of patches, of a sequence."""

import numpy as np

from vitjax.errors import UserError


def sincos_2d(height: int, width: int, dim: int, temperature: float = 10_000.0) -> np.ndarray:
    """Returns the fixed embedding `[1, height*width, dim]`, float32, of MoCo v3 and big_vision.

    A quarter of the channels each: sin x, cos x, sin y, cos y, with wavelengths
    from 2 pi to 2 pi * temperature, the last one included.
    """
    if dim % 4 or dim < 8:
        raise UserError(f"posemb='sincos2d' needs a width that is a multiple of 4 and at least 8, not {dim}.")
    omega = temperature ** -(np.arange(dim // 4) / (dim // 4 - 1))
    y, x = (axis.reshape(-1, 1) * omega for axis in np.mgrid[:height, :width])
    embedding = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    return embedding[None].astype(np.float32)


def sinusoid(positions: int, dim: int) -> np.ndarray:
    """Returns the fixed embedding `[1, positions, dim]`, float32, of the original Transformer.

    "Attention is all you need" (arXiv 1706.03762), section 3.5: of the angle
    position / 10000^(2i / dim), channel 2i is the sine and channel 2i + 1 the cosine.
    """
    channel = np.arange(dim)
    angle = np.arange(positions)[:, None] / 10_000.0 ** (2 * (channel // 2) / dim)
    return np.where(channel % 2, np.cos(angle), np.sin(angle))[None].astype(np.float32)


def concatenated_sinusoid(positions: int, dim: int) -> np.ndarray:
    """Returns the fixed embedding `[1, positions, dim]`, float32, of tensor2tensor and its followers.

    Half of the channels are sines and half cosines of the angle position * 10000^(-i / (dim//2 - 1)); an odd
    `dim` ends in a channel of zeros. Neither order nor frequencies are those of `sinusoid`: the slowest wave
    is exactly 1/10000. Source: tensor2tensor/layers/common_attention.py, `get_timing_signal_1d`.
    """
    if dim < 4:
        raise UserError(f"positions='concatenated' needs a width of at least 4, not {dim}.")
    half = dim // 2
    angle = np.arange(positions)[:, None] * 10_000.0 ** (-np.arange(half) / (half - 1))
    embedding = np.concatenate([np.sin(angle), np.cos(angle), np.zeros((positions, dim % 2))], axis=1)
    return embedding[None].astype(np.float32)
