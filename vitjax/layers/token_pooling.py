"""Pooling of tokens to a quarter of the patches, wider ones: by shifted patch tokenization, by convolution.

"Vision Transformer for Small-Size Datasets" (arXiv 2112.13492), section 3.2, and aanna0701/SPT_LSA_ViT;
"Rethinking Spatial Dimensions of Vision Transformers" (arXiv 2103.16302), section 3, and naver-ai/pit.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from vitjax.errors import UserError
from vitjax.layers.depthwise import depthwise_convolve
from vitjax.layers.initialisation import AUGREG, Initialisation
from vitjax.layers.precision import linear
from vitjax.layers.shifted_patches import ShiftedPatchTokenization


class ShiftedPatchPooling(nn.Module):
    """Pools tokens on a grid with shifted patches of 2: `[B, T + h w, C] -> [B, T + h w / 4, width]`.

    The grid's tokens go through a `ShiftedPatchTokenization`, whose parameters `norm` and `projection` are
    those of this module; at the default ratio views are shifted by one token. The T tokens in front, T = 1
    for a class token, share a linear layer `cls` (`kernel` `[C, width]`, `bias` `[width]`), without a norm.
    """

    width: int
    directions: str = "diagonal"
    ratio: float = 0.5
    norm_epsilon: float = 1e-5
    dtype: DTypeLike = jnp.float32
    initialisation: Initialisation = AUGREG
    precision: str = "float"  # of linear layers, see `layers.precision`; a depthwise convolution stays float

    @nn.compact
    def __call__(self, tokens, grid: tuple[int, int]):
        """Pools `tokens`, the last h w of which lie row by row on `grid` `(h, w)`.

        Raises:
          UserError: a side of the grid is odd.
          ValueError: there are fewer tokens than the grid has places.
        """
        height, width = grid
        in_front = tokens.shape[1] - height * width
        if in_front < 0:
            raise ValueError(f"{tokens.shape[1]} tokens do not fill a grid of {height}x{width}.")
        if height % 2 or width % 2:
            raise UserError(
                f"Pooling with shifted patches halves a grid of tokens, but this one is {height}x{width}: "
                "both sides must be even. Change the crop in the preprocessing string or the model's "
                "patch_size, or pool without SPT (spt_pooling=False)."
            )
        front, patches = jnp.split(tokens, [in_front], axis=1)
        pooled = self._pool(patches.reshape(len(patches), height, width, -1))
        pooled = pooled.reshape(len(pooled), -1, self.width)
        if not in_front:
            return pooled
        kernel = self.initialisation.kernel
        cls = linear(self.width, self.precision, kernel, dtype=self.dtype, name="cls")
        return jnp.concatenate([cls(front), pooled], axis=1)

    def _pool(self, x):
        tokenization = ShiftedPatchTokenization(
            self.width,
            (2, 2),
            self.directions,
            self.ratio,
            self.norm_epsilon,
            self.dtype,
            self.initialisation,
            self.precision,
            name="patches",
        )
        nn.share_scope(self, tokenization)  # its parameters without a level of their own
        return tokenization(x)


class DepthwisePooling(nn.Module):
    """Pools tokens on a grid by a convolution, `[B, T + h w, C] -> [B, T + ceil(h/2) ceil(w/2), width]`.

    PiT's: 3x3 filters with stride 2 and a border of zeros, `depthwise` (`kernel` `[3, 3, 1, width]`, `bias`
    `[width]`). Channel c is seen by `width / C` filters, which make outputs c * width / C and those after it.
    `pointwise` mixes channels afterwards, as aanna0701/SPT_LSA_ViT does (`kernel` `[width, width]`, `bias`
    `[width]`). The T tokens in front share a linear layer `cls` (`kernel` `[C, width]`, `bias` `[width]`).
    """

    width: int
    pointwise: bool = False
    dtype: DTypeLike = jnp.float32
    initialisation: Initialisation = AUGREG
    precision: str = "float"  # of linear layers, see `layers.precision`; a depthwise convolution stays float

    @nn.compact
    def __call__(self, tokens, grid: tuple[int, int]):
        """Pools `tokens`, the last h w of which lie row by row on `grid` `(h, w)`.

        Raises:
          UserError: `width` is no multiple of the tokens' width.
        """
        tokens = tokens.astype(self.dtype)
        in_front = tokens.shape[1] - grid[0] * grid[1]
        front, patches = jnp.split(tokens, [in_front], axis=1)
        pooled = self._depthwise(patches.reshape(len(patches), *grid, -1))
        pooled = pooled.reshape(len(pooled), -1, self.width)
        if self.pointwise:
            pooled = self._dense("pointwise", self.width)(pooled)
        if not in_front:
            return pooled
        return jnp.concatenate([self._dense("cls", tokens.shape[-1])(front), pooled], axis=1)

    def _depthwise(self, x):
        """Convolves `[B, h, w, C]`."""
        filters, rest = divmod(self.width, x.shape[-1])
        if rest:
            raise UserError(
                f"A depthwise pooling cannot make {self.width} channels of {x.shape[-1]}: the width of a "
                "stage must be a multiple of that before it."
            )
        kernel, bias = DepthwiseFilters(self.width, self.initialisation, name="depthwise")()
        # As many depthwise convolutions as filters a channel has: on a CPU the gradient of one over groups
        # takes 3 times as long, that of one over repeated channels 10 times (jax 0.10, 2 cores).
        kernel = kernel.astype(x.dtype)
        pads = ((1, 1), (1, 1))
        maps = [depthwise_convolve(x, kernel[..., i::filters], 2, pads) for i in range(filters)]
        return jnp.stack(maps, axis=-1).reshape(*maps[0].shape[:-1], self.width) + bias.astype(x.dtype)

    def _dense(self, name, fan_in):
        kernel, bias = self.initialisation.kernel, self.initialisation.bias_of(fan_in)
        return linear(self.width, self.precision, kernel, bias, self.dtype, name=name)


class DepthwiseFilters(nn.Module):
    """The parameters of 3x3 filters with one input channel each: `kernel` `[3, 3, 1, D]` and `bias` `[D]`."""

    width: int
    initialisation: Initialisation

    @nn.compact
    def __call__(self):
        """Returns `(kernel, bias)`."""
        kernel, bias = self.initialisation.conv_of(9)
        return self.param("kernel", kernel, (3, 3, 1, self.width)), self.param("bias", bias, (self.width,))
