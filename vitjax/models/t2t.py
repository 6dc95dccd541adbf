"""T2T-ViT: tokens made in overlapping windows, step by step, before a deep and narrow Vision Transformer.

Sources: "Tokens-to-Token ViT" (arXiv 2101.11986), yitu-opensource/T2T-ViT, and for the reduced network of
`models.small` aanna0701/SPT_LSA_ViT.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
from jax.typing import DTypeLike

from vitjax.errors import UserError, nearest
from vitjax.layers.attention import MultiHeadDotProductAttention
from vitjax.layers.encoder import EncoderBlock
from vitjax.layers.initialisation import Initialisation
from vitjax.layers.locality import NOWHERE, Locality, locality
from vitjax.layers.norm import LayerNorm
from vitjax.layers.precision import linear
from vitjax.layers.shifted_patches import shifted_views, shifts_of
from vitjax.layers.soft_split import Split, refuse_other_sizes, soft_split, splits_of, stride_of
from vitjax.layers.token_transformer import (
    TOKEN_LAYERS,
    InputResidualAttention,
    TokenLayer,
    ValueResidualAttention,
)
from vitjax.models.vit import ViT

# Width, depth, number of heads, MLP's width over the width (`models/t2t_vit.py` of the official code).
SIZES = {
    "7": (256, 7, 4, 2),
    "10": (256, 10, 4, 2),
    "12": (256, 12, 4, 2),
    "14": (384, 14, 6, 3),
    "19": (448, 19, 7, 3),
    "24": (512, 24, 8, 3),
}
# Names to the size and the kind of token layer.
PUBLISHED = {
    **{f"t2t_vit_{size}": (size, "performer") for size in SIZES},
    **{f"t2t_vit_t_{size}": (size, "transformer") for size in ("14", "19", "24")},
}
QK_SCALES = ("head_dim", "width")


class TokensToToken(nn.Module):
    """Soft splits with a token layer before each but the first, then a linear map to the width.

    Parameters: `token_layer_{i}` and `projection`.
    """

    width: int
    splits: tuple[Split, ...]
    token_dim: int
    kind: str
    dropout: float
    gelu: str
    norm_epsilon: float
    dtype: DTypeLike
    initialisation: Initialisation
    locality: Locality = NOWHERE
    unused_norm: bool = False
    precision: str = "float"  # of all but the layer that reads pixels

    @nn.compact
    def __call__(self, image, *, train: bool = False):
        """Tokens `[B, h, w, width]`, and the map `[B, h', w', token_dim]` before each later split."""
        x, maps = soft_split(image.astype(self.dtype), self.splits[0]), []
        for i, split in enumerate(self.splits[1:]):
            layer = TokenLayer(
                self.kind,
                self.token_dim,
                self.dropout,
                self.gelu,
                self.norm_epsilon,
                self.dtype,
                self.initialisation,
                self.locality,
                self.precision,
                sees_pixels=i == 0,
                name=f"token_layer_{i}",
            )
            tokens = layer(x.reshape(len(x), -1, x.shape[-1]), train=train)
            maps.append(tokens.reshape(*x.shape[:3], -1))
            x = soft_split(maps[-1].astype(self.dtype), split)
        if self.unused_norm:
            LayerNorm(name="norm")(x[:1, :1, :1])
        precision = self.precision if maps else "float"  # without token layers this one reads the pixels
        kernel = self.initialisation.kernel
        projection = linear(self.width, precision, kernel, dtype=self.dtype, name="projection")
        return projection(x), maps


class T2TBlock(EncoderBlock):
    """The block after the tokens: a pre-norm block with a choice of scale and of a second residual.

    With `inner_residual` attention adds its own input, which is normed: x + (attention(LN(x)) + LN(x)). With
    one head it adds its values instead, as the token layers do.
    """

    scale: float | None = None
    inner_residual: bool = False

    def attend(self, x, context=None):
        """Self-attention among tokens `[B, N, D]`, with the inner residual if there is one."""
        kind = MultiHeadDotProductAttention
        if self.inner_residual:
            kind = ValueResidualAttention if self.num_heads == 1 else InputResidualAttention
        attention = kind(
            self.num_heads,
            self.qkv_bias,
            self.dtype,
            self.initialisation,
            self.head_dim,
            self.scale,
            self.locality,
            out_projection=self.out_projection,
            precision=self.precision,
            name="MultiHeadDotProductAttention_0",
        )
        return attention(x)


class T2TViT(ViT):
    """A `ViT` on tokens out of soft splits; the defaults are those of T2T-ViT-14.

    The fields of `ViT` mean the same but for these. `patch_size` has no meaning. `spt` shifts views of the
    image by `spt_ratio` of the first split's stride, and that is all: token layers begin with a norm anyway.
    `lsa` acts in the blocks and in token layers of kind `transformer`; those of kind `performer` have no
    logits that it could act on.

    `out` has `token_maps` besides, `[B, h', w', token_dim]` before each split but the first.

    Fields:
      splits: kernel, stride and padding of each soft split, or how many of 3/2/1 there are. An image must be
        a multiple of the product of strides.
      token_layer: what mixes the tokens between splits, a `performer` or a `transformer`
        (`layers.token_transformer`). With the first a model has a collection `random_features` besides its
        parameters: drawn once, never trained, saved with the model.
      token_dim: channels between splits.
      token_dropout: rate after attention and MLP of a `performer`, in training. The official code has 0.1.
      qk_scale: what logits of the blocks are scaled by, `head_dim`^-1/2 or `width`^-1/2. The official code
        has the first, with which it also evaluates its published weights, and the second for models made
        with `pretrained=True`.
      inner_residual: attention of the blocks adds its own input (`T2TBlock`), as in aanna0701/SPT_LSA_ViT,
        where one class of attention serves token layers and blocks.
      unused_norm: have the parameters of a norm that nothing uses, as aanna0701/SPT_LSA_ViT has; they are in
        its counts and files.
    """

    width: int = 384
    depth: int = 14
    mlp_dim: int = 1152
    num_heads: int = 6
    posemb: str = "sinusoid"
    gelu: str = "erf"
    qkv_bias: bool = False
    norm_epsilon: float = 1e-5
    initialisation: str = "deit"
    head_zeroinit: bool = False
    splits: int | Sequence = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
    token_layer: str = "performer"
    token_dim: int = 64
    token_dropout: float = 0.1
    qk_scale: str = "head_dim"
    inner_residual: bool = False
    unused_norm: bool = False

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        splits = splits_of(self.splits)
        for field, valid in (("token_layer", TOKEN_LAYERS), ("qk_scale", QK_SCALES)):
            value = getattr(self, field)
            if value not in valid:
                raise UserError(
                    f"{field}={value!r} is none of {', '.join(map(repr, valid))}.{nearest(value, valid)}"
                )
        if self.token_dim < 2:
            raise UserError(f"token_dim={self.token_dim!r} must be 2 or more.")
        if not 0 <= self.token_dropout < 1:
            raise UserError(f"token_dropout={self.token_dropout!r} is not a rate: 0 <= token_dropout < 1.")
        if self.patch_size != T2TViT.patch_size:
            raise UserError(
                f"patch_size={self.patch_size!r}: a T2T-ViT cuts no patches. Its tokens are "
                f"{stride_of(splits)} pixels apart by splits={self.splits!r}."
            )
        if self.spt != "none":
            shifts_of((splits[0].stride, splits[0].stride), self.spt_ratio)
        super().__post_init__()

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels from one token to the next, (down, across)."""
        step = stride_of(splits_of(self.splits))
        return step, step

    def embed(self, image, train) -> dict[str, Any]:
        """Returns `stem`, the tokens `[B, h, w, D]`, and `token_maps`."""
        splits = splits_of(self.splits)
        refuse_other_sizes(image.shape[1], image.shape[2], splits)
        if self.spt != "none":
            step = splits[0].stride
            image = shifted_views(image, shifts_of((step, step), self.spt_ratio), self.spt)
        performer = self.token_layer == "performer"
        tokens_to_token = TokensToToken(
            self.width,
            splits,
            self.token_dim,
            self.token_layer,
            self.token_dropout if performer else 0.0,
            self.gelu,
            self.norm_epsilon,
            self.dtype,
            self.initialisers,
            NOWHERE if performer else locality(self.lsa, self.lsa_mask),
            self.unused_norm,
            self.precision,
            name="tokens_to_token",
        )
        stem, maps = tokens_to_token(image, train=train)
        return {"stem": stem, "token_maps": maps}

    @property
    def block(self) -> type[nn.Module]:
        """The kind of all blocks."""
        return T2TBlock

    def block_fields(self) -> dict[str, Any]:
        """The fields of every block."""
        scale = self.width**-0.5 if self.qk_scale == "width" else None
        return super().block_fields() | {"scale": scale, "inner_residual": self.inner_residual}


def names() -> tuple[str, ...]:
    """The published networks."""
    return tuple(PUBLISHED)


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that a name of `PUBLISHED` stands for; None for any other name."""
    if name not in PUBLISHED:
        return None
    size, kind = PUBLISHED[name]
    width, depth, num_heads, mlp_ratio = SIZES[size]
    return T2TViT, {
        "width": width,
        "depth": depth,
        "mlp_dim": mlp_ratio * width,
        "num_heads": num_heads,
        "token_layer": kind,
    }
