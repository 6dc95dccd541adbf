"""The hybrids of AugReg: a Vision Transformer on the feature map of a ResNet.

Sources: "An Image is Worth 16x16 Words" (arXiv 2010.11929), "How to train your ViT?" (arXiv 2106.10270),
section 3.2, and google-research/vision_transformer.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from vitjax.errors import UserError, nearest
from vitjax.layers.group_norm import GROUP_NORM_EPSILON, GROUPS
from vitjax.layers.hybrid_resnet import HybridResNet
from vitjax.layers.patches import pair
from vitjax.models.vit import SIZES, ViT

# Size of the transformer, units of each stage, patch on the feature map. The number in a name is the stride
# from pixels to tokens, but that of R+Ti/16 is 32: the paper counts 2 for the root and 8 for the patch, while
# the published model pools in the root as well, by 2.
HYBRIDS = {
    "r_ti16": ("ti", (), 8),
    "r26_s32": ("s", (2, 2, 2, 2), 1),
    "r26_b32": ("b", (2, 2, 2, 2), 1),
    "r50_b16": ("b", (3, 4, 9), 1),
    "r50_l32": ("l", (3, 4, 6, 3), 1),
}


class HybridViT(ViT):
    """A `ViT` whose patches are cut from the feature map of a ResNet instead of the image.

    All fields of `ViT` mean the same: `patch_size` is that on the feature map, `remat`
    is for the units of the ResNet as well, and `dtype` is that of convolutions too,
    while their norms and sums are float32. `out` has the feature maps besides,
    `[B, h, w, C]`: `root`, and `block1`, ... after each stage.

    Fields:
      resnet_units: number of residual units of each stage; none for a root without stages.
      resnet_widths: channels of the bottlenecks of each stage, a quarter of what it returns; by default
        64, doubled from stage to stage.
      root_width: channels of the root's convolution.
      resnet_numerics: `jax`, the code behind the published models: GroupNorm with epsilon 1e-6, kernels
        divided by (deviation + 1e-5); or `timm`: epsilon 1e-5, kernels divided by sqrt(variance + 1e-8).
    """

    patch_size: int | Sequence[int] = 1
    resnet_units: Sequence[int] = (2, 2, 2, 2)
    resnet_widths: Sequence[int] | None = None
    root_width: int = 64
    resnet_numerics: str = "jax"

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        if self.resnet_numerics not in GROUP_NORM_EPSILON:
            raise UserError(
                f"resnet_numerics={self.resnet_numerics!r} is none of 'jax', 'timm'."
                f"{nearest(self.resnet_numerics, GROUP_NORM_EPSILON)}"
            )
        if any(units < 1 for units in self.resnet_units):
            raise UserError(f"resnet_units={self.resnet_units!r} must be 1 or more in each stage.")
        if len(self.widths) != len(self.resnet_units):
            raise UserError(
                f"resnet_widths={self.resnet_widths!r} must have one entry for each of the "
                f"{len(self.resnet_units)} stages of resnet_units."
            )
        for field, widths in (("root_width", [self.root_width]), ("resnet_widths", self.widths)):
            if any(width < 1 or width % GROUPS for width in widths):
                raise UserError(
                    f"{field}={getattr(self, field)!r} must be multiples of {GROUPS}: "
                    f"GroupNorm has {GROUPS} groups."
                )
        super().__post_init__()

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the bottlenecks of each stage."""
        if self.resnet_widths is not None:
            return tuple(self.resnet_widths)
        return tuple(64 * 2**stage for stage in range(len(self.resnet_units)))

    @property
    def resnet_stride(self) -> int:
        """Pixels from one place of the feature map to the next: 4 by the root, 2 by later stages each."""
        return 4 * 2 ** max(0, len(self.resnet_units) - 1)

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels from one token to the next, (down, across)."""
        p, q = pair(self.patch_size)
        return self.resnet_stride * p, self.resnet_stride * q

    def embed(self, image, train) -> dict[str, Any]:
        """Returns the feature maps and `stem`, the embedded patches of the last one `[B, h, w, D]`."""
        self.refuse_partial_patches(*image.shape[1:3])
        resnet = HybridResNet(
            self.root_width, self.resnet_units, self.widths, self.resnet_numerics, self.dtype, self.remat
        )
        nn.share_scope(self, resnet)  # official files have the ResNet's parameters beside the transformer's
        x, out = resnet(image)
        return out | {"stem": self.patch_embedding()(x)}

    def refuse_partial_patches(self, height: int, width: int) -> None:
        """Raises a `UserError` if the feature map of such an image is no whole grid of patches."""
        p, q = pair(self.patch_size)
        rows, columns = -(-height // self.resnet_stride), -(-width // self.resnet_stride)
        if rows % p or columns % q:
            sizes = zip((height, width), self.stride, strict=True)
            nearest_height, nearest_width = (max(round(size / step), 1) * step for size, step in sizes)
            raise UserError(
                f"An image of {height}x{width} pixels has a feature map of {rows}x{columns}, which cannot be "
                f"cut into patches of {p}x{q}: the nearest whole size is {nearest_height}x{nearest_width}. "
                "Change the crop in the preprocessing string or the model's patch_size."
            )


def names() -> tuple[str, ...]:
    """The published hybrids."""
    return tuple(HYBRIDS)


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that a name of `HYBRIDS` stands for; None for any other name."""
    if name not in HYBRIDS:
        return None
    size, units, patch_size = HYBRIDS[name]
    width, depth, mlp_dim, num_heads = SIZES[size]
    return HybridViT, {
        "width": width,
        "depth": depth,
        "mlp_dim": mlp_dim,
        "num_heads": num_heads,
        "patch_size": patch_size,
        "resnet_units": units,
    }
