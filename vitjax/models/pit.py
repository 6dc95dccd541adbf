"""PiT: a Vision Transformer in stages, with fewer and wider tokens from one to the next.

Sources: "Rethinking Spatial Dimensions of Vision Transformers" (arXiv 2103.16302) and naver-ai/pit; for the
reduced networks "Vision Transformer for Small-Size Datasets" (arXiv 2112.13492) and aanna0701/SPT_LSA_ViT.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vitjax.errors import UserError, nearest
from vitjax.layers.drop_path import uniform_rates
from vitjax.layers.encoder import Encoder, EncoderBlock
from vitjax.layers.norm import LayerNorm
from vitjax.layers.patches import PatchEmbedding, pair
from vitjax.layers.token_pooling import DepthwisePooling, ShiftedPatchPooling
from vitjax.models.deit import DistilledViT
from vitjax.models.vit import ViT

# Table 2 of the paper: width of a head, heads in the first stage (twice as many in each that follows), depth,
# patch_size, patch_stride.
SIZES = {
    "ti": (32, 2, (2, 6, 4), 16, 8),
    "xs": (48, 2, (2, 6, 4), 16, 8),
    "s": (48, 3, (2, 6, 4), 16, 8),
    "b": (64, 4, (3, 6, 4), 14, 7),
}

POOLINGS = ("depthwise", "depthwise_pointwise")


class PiT(ViT):
    """A `ViT` in stages: between two of them tokens are pooled to a quarter of their number.

    The fields of `ViT` mean the same, `width`, `depth`, `mlp_dim` and `num_heads` with one number for each
    stage; the defaults are those of PiT-XS. Class and distillation token go through a linear layer where the
    others are pooled. `out["tokens"]` has what leaves each block, `[B, N, D]` with N and D of its stage, as a
    list always; `out["grids"]` the (height, width) on which its patches lie, row by row behind the tokens in
    front.

    Parameters: those of `ViT`, but blocks are called `stage_{s}/encoderblock_{i}`, the pooling between stages
    s and s + 1 `pooling_{s}`, and the final norm `encoder_norm`. With `scan`, each stage is a stack.

    Fields:
      patch_stride: pixels from one patch to the next, one number or (down, across); None: the patch. If less,
        patches overlap, as in the original.
      pooling: `depthwise` convolution of 3x3 tokens with stride 2, the original; `depthwise_pointwise`: mix
        channels afterwards (the reduced network). A map of n tokens has n / 2, rounded up, afterwards.
      spt_pooling: pool with shifted patches, by one token, instead, where there is `spt`; its views are those
        of `spt`. False: the paper's "w/o S_pool".
      out_projection: False leaves the matrix out in stages of one head that is as wide as the stage (the
        official code of the small-dataset paper).
      drop_path: rate of stochastic depth; block i of n has rate * i / n, as in the official code (in timm
        rate * i / (n - 1)).
      initialisation: `torch`, the original: tokens and positions normal with deviation 0.02, all else as
        PyTorch has it. `small_datasets`: the reduced network.
    """

    width: Sequence[int] = (96, 192, 384)
    depth: Sequence[int] = (2, 6, 4)
    mlp_dim: Sequence[int] = (384, 768, 1536)
    num_heads: Sequence[int] = (2, 4, 8)
    patch_stride: int | Sequence[int] | None = None
    posemb_layout: str = "big_vision"
    gelu: str = "erf"
    initialisation: str = "torch"
    head_zeroinit: bool = False
    pooling: str = "depthwise"
    spt_pooling: bool = False

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        if self.pooling not in POOLINGS:
            raise UserError(
                f"pooling={self.pooling!r} is none of {', '.join(map(repr, POOLINGS))}."
                f"{nearest(self.pooling, POOLINGS)}"
            )
        super().__post_init__()
        if self.spt_pooling and self.spt == "none":
            raise UserError(
                "spt_pooling=True pools with the views that spt names, but spt='none': choose "
                "spt='diagonal', 'cardinal' or 'all'."
            )
        patch_size = pair(self.patch_size)
        if any(step > patch for step, patch in zip(self.stride, patch_size, strict=True)):
            raise UserError(
                f"patch_stride={self.patch_stride!r} is more than patch_size={self.patch_size!r}: pixels "
                "between patches would be seen by none."
            )
        if self.spt != "none" and self.stride != patch_size:
            raise UserError(
                f"spt={self.spt!r} cuts patches side by side, but patch_stride={self.patch_stride!r} lets "
                f"those of patch_size={self.patch_size!r} overlap: set both to {self.patch_stride!r} for "
                "about as many tokens, which see beyond their patch by SPT."
            )

    def refuse_bad_sizes(self) -> None:
        """Raises a `UserError` for sizes that no network has."""
        stages = len(self.depth)
        for field in ("depth", "width", "mlp_dim", "num_heads"):
            numbers = getattr(self, field)
            if not numbers or len(numbers) != stages or min(numbers) < 1:
                raise UserError(
                    f"{field}={tuple(numbers)!r} must have one number, 1 or more, for each stage of "
                    f"depth={tuple(self.depth)!r}."
                )
        if self.head_dim is not None and self.head_dim < 1:
            raise UserError(f"head_dim={self.head_dim!r} must be 1 or more, or None for width / num_heads.")
        for width, heads in zip(self.width, self.num_heads, strict=True):
            if self.head_dim is None and width % heads:
                raise UserError(
                    f"width={tuple(self.width)!r}: {width} cannot be split over the {heads} heads of its "
                    f"stage, num_heads={tuple(self.num_heads)!r}."
                )
        for before, after in zip(self.width[:-1], self.width[1:], strict=True):
            if after % before and not self.spt_pooling:
                raise UserError(
                    f"width={tuple(self.width)!r}: {after} is no multiple of {before}, but a depthwise "
                    "pooling makes as many channels of each. Change width, or pool with SPT."
                )

    @property
    def embedding_width(self) -> int:
        """Width of the tokens that enter the first block."""
        return self.width[0]

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels from one token of the first stage to the next, (down, across)."""
        return pair(self.patch_size) if self.patch_stride is None else pair(self.patch_stride, "patch_stride")

    @property
    def overlap(self) -> tuple[int, int]:
        """Pixels that a patch shares with the next, (down, across)."""
        (p, q), (down, across) = pair(self.patch_size), self.stride
        return p - down, q - across

    def patch_embedding(self) -> nn.Module:
        """The layer that embeds patches of an image."""
        if self.spt != "none":
            return super().patch_embedding()
        # Here the official code has a convolution where that of a ViT has a Linear; it may begin otherwise.
        as_convolution = dataclasses.replace(self.initialisers, patch=self.initialisers.conv_of)
        fields = (self.embedding_width, pair(self.patch_size), self.dtype, as_convolution, self.stride)
        return PatchEmbedding(*fields, name="embedding")

    def block_fields(self, stage: int = -1) -> dict[str, Any]:
        """The fields of every block of a stage, by default the last."""
        width, heads = self.width[stage], self.num_heads[stage]
        single = heads == 1 and self.head_dim in (None, width)
        return super().block_fields() | {
            "num_heads": heads,
            "mlp_dim": self.mlp_dim[stage],
            "out_projection": self.out_projection or not single,
        }

    def encode_on(self, grid, x, train) -> tuple[Any, dict[str, Any]]:
        """Returns what is pooled, `[B, N, D]` of the last stage, and `tokens`, `grids`, `encoded`.

        Of a class or distillation token that is all that is pooled, only those are returned first.
        """
        grid = tuple(grid)
        rates = self.rates() if self.drop_path else None
        tokens, grids = [], []
        for stage, depth in enumerate(self.depth):
            if stage:
                x = self.pooling_layer(stage - 1)(x, grid).astype(jnp.float32)
                grid = tuple((side + 1) // 2 for side in grid)
            first = sum(self.depth[:stage])
            x, after = self.stage(stage, rates and rates[first : first + depth])(x, train=train)
            tokens += list(after)
            grids += [grid] * depth
        norm = (lambda x: x) if self.fc_norm else LayerNorm(self.norm_epsilon, name="encoder_norm")
        encoded = norm(x)  # dead code where only logits are asked for, which depend on the tokens in front
        pooled = norm(x[:, : len(self.tokens_in_front)]) if self.pool == "tok" else encoded
        return pooled, {"tokens": tokens, "grids": grids, "encoded": encoded}

    def rates(self) -> tuple[float, ...]:
        """The rate of stochastic depth of each block of all stages."""
        total = sum(self.depth)
        if self.drop_path_uniform:
            return uniform_rates(self.drop_path, total)
        return tuple(self.drop_path * i / total for i in range(total))

    def stage(self, number: int, rates) -> nn.Module:
        """The blocks of a stage."""
        return Encoder(
            self.depth[number],
            EncoderBlock,
            self.block_fields(number),
            drop_path=rates,
            final_norm_epsilon=None,
            scan=self.scan,
            remat=self.remat,
            name=f"stage_{number}",
        )

    def pooling_layer(self, number: int) -> nn.Module:
        """The pooling between stages `number` and `number` + 1: (tokens, grid) -> tokens."""
        width, common = self.width[number + 1], (self.dtype, self.initialisers, self.precision)
        name = f"pooling_{number}"
        if self.spt_pooling:
            return ShiftedPatchPooling(width, self.spt, 0.5, 1e-5, *common, name=name)
        return DepthwisePooling(width, self.pooling == "depthwise_pointwise", *common, name=name)


class DistilledPiT(PiT, DistilledViT):
    """A `PiT` with a distillation token and a head of its own for it; see `models.deit.DistilledViT`."""


def names() -> tuple[str, ...]:
    """The published models."""
    return tuple(f"pit_{size}{head}" for head in ("", "_distilled") for size in SIZES)


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that `pit_{size}` or `pit_{size}_distilled` stands for; else None."""
    match = re.fullmatch(r"pit_([a-z]+?)(_distilled)?", name)
    if match is None or match[1] not in SIZES:
        return None
    head_dim, first, depth, patch_size, patch_stride = SIZES[match[1]]
    num_heads = tuple(first * 2**stage for stage in range(len(depth)))
    return DistilledPiT if match[2] else PiT, {
        "width": tuple(head_dim * heads for heads in num_heads),
        "depth": depth,
        "mlp_dim": tuple(4 * head_dim * heads for heads in num_heads),
        "num_heads": num_heads,
        "patch_size": patch_size,
        "patch_stride": patch_stride,
    }
