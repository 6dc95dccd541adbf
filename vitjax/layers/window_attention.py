"""Attention within windows of a map of tokens, which shift from block to block (Swin).

"Swin Transformer" (arXiv 2103.14030), section 3.2, and microsoft/Swin-Transformer.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vitjax.layers.attention import MultiHeadDotProductAttention
from vitjax.layers.encoder import EncoderBlock
from vitjax.layers.patches import patchify

Pair = tuple[int, int]  # (down, across)

# What is added to the logit of two tokens that only the shift has brought into one window. The official code
# has no -inf; after a softmax in float32 nothing is left of it.
APART = -100.0


def to_windows(x, window: Pair):
    """Cuts a map `[B, H, W, C]` into windows `[B * windows, N, C]`, both row by row; N tokens a window."""
    return patchify(x, window).reshape(-1, window[0] * window[1], x.shape[-1])


def from_windows(x, window: Pair, grid: Pair):
    """The inverse of `to_windows`, for a map of `grid` tokens."""
    (p, q), (height, width) = window, grid
    x = x.reshape(-1, height // p, width // q, p, q, x.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(-1, height, width, x.shape[-1])


@functools.cache
def relative_positions(window: Pair) -> np.ndarray:
    """Which entry of the bias table belongs to query n and key m of a window: `[N, N]`, int32.

    The table has an entry for every offset, (2p - 1)(2q - 1) of them, row by row; the first is that of the
    query farthest above and to the left of its key.
    """
    rows, columns = (axis.ravel() for axis in np.mgrid[: window[0], : window[1]])
    down = rows[:, None] - rows + window[0] - 1
    across = columns[:, None] - columns + window[1] - 1
    return (down * (2 * window[1] - 1) + across).astype(np.int32)


@functools.cache
def shift_mask(grid: Pair, window: Pair, shift: Pair) -> np.ndarray:
    """`APART` where query and key of a window of the shifted map are no neighbours in the map, else 0.

    `[windows, N, N]`, float32. The last window along an axis holds what was shifted out on the other side.
    """
    down, across = (_regions(*sizes) for sizes in zip(grid, window, shift, strict=True))
    regions = (3 * down[:, None] + across).astype(np.float32)
    of_tokens = np.asarray(regions).reshape(grid[0] // window[0], window[0], grid[1] // window[1], window[1])
    of_tokens = of_tokens.transpose(0, 2, 1, 3).reshape(-1, window[0] * window[1])
    return np.where(of_tokens[:, :, None] == of_tokens[:, None], 0.0, APART).astype(np.float32)


def _regions(size: int, window: int, shift: int) -> np.ndarray:
    """Along one axis: 0 before the last window, 1 in it, 2 for what has come in from the front."""
    at = np.arange(size)
    return (at >= size - window).astype(int) + (at >= size - shift) if shift else np.zeros(size, int)


class WindowAttention(MultiHeadDotProductAttention):
    """Attention among the tokens of each window of a map, with a learned bias by relative position.

    A `MultiHeadDotProductAttention` on `[B * windows, N, D]`, window by window within an example. The logits
    are scaled products, plus `relative_position_bias` `[(2p - 1)(2q - 1), H]`, a parameter, plus the mask of
    shifted windows; LSA overwrites the diagonal last. So `attention_logits` and `attention_weights` in the
    collection `intermediates` are `[B * windows, H, N, N]`.

    Fields:
      window: (rows, columns) of tokens, p q = N.
      shift: by how many tokens the map was rolled up and to the left.
      grid: (rows, columns) of the map.
    """

    window: Pair = (7, 7)
    shift: Pair = (0, 0)
    grid: Pair = (7, 7)

    def logits(self, query, key):
        """Returns the logits `[B * windows, H, N, N]`: products, bias, mask of the shift, mask of LSA."""
        logits = self.products(query, key)
        logits = logits + self.position_bias().astype(logits.dtype)
        if any(self.shift):
            mask = self.window_mask()
            by_window = logits.reshape(-1, len(mask), *logits.shape[1:])
            logits = (by_window + mask[:, None].astype(logits.dtype)).reshape(logits.shape)
        return self.masked(logits)

    def position_bias(self):
        """The learned bias `[H, N, N]` of every query and key."""
        positions = relative_positions(self.window)
        offsets = (2 * self.window[0] - 1) * (2 * self.window[1] - 1)
        begin = nn.initializers.normal(self.initialisation.position_std or 0.02)
        table = self.param("relative_position_bias", begin, (offsets, self.num_heads))
        return table[positions.ravel()].T.reshape(self.num_heads, *positions.shape)

    def window_mask(self):
        """What is added in each window of a shifted map, `[windows, N, N]`."""
        return shift_mask(self.grid, self.window, self.shift)


class WindowBlock(EncoderBlock):
    """An `EncoderBlock` on a map `[B, h, w, D]` whose attention stays within windows.

    Before the attention the map is rolled by `shift` tokens up and to the left, and back after it: the
    windows lie across the borders of those of a block without shift.
    """

    window: Pair = (7, 7)
    shift: Pair = (0, 0)

    def attend(self, x, context=None):
        """Attention within the windows of `x` `[B, h, w, D]`."""
        grid = x.shape[1:3]
        attention = WindowAttention(
            self.num_heads,
            self.qkv_bias,
            self.dtype,
            self.initialisation,
            self.head_dim,
            locality=self.locality,
            precision=self.precision,
            window=self.window,
            shift=self.shift,
            grid=grid,
            name="WindowAttention_0",
        )
        if not any(self.shift):
            return from_windows(attention(to_windows(x, self.window)), self.window, grid)
        x = jnp.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        x = from_windows(attention(to_windows(x, self.window)), self.window, grid)
        return jnp.roll(x, self.shift, (1, 2))
