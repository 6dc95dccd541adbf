"""CaiT: deep Vision Transformers with LayerScale, talking heads and a class-attention stage.

Sources: "Going deeper with Image Transformers" (arXiv 2103.17239) and facebookresearch/deit.
"""

import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vitjax.errors import UserError, nearest
from vitjax.layers.encoder import CLASS_KEYS, ClassAttentionBlock
from vitjax.layers.initialisation import SMALL_DATASETS_CAIT, Initialisation
from vitjax.layers.norm import LayerNorm
from vitjax.models.vit import ViT

WIDTHS = {"xxs": 192, "xs": 288, "s": 384, "m": 768}
PUBLISHED = ("xxs24", "xxs36", "xs24", "xs36", "s24", "s36", "s48", "m24", "m36", "m48")
HEAD_DIM = 48

# Where the official code differs from the paper's rule (`layer_scale_of`).
RELEASED_LAYER_SCALE = {"xxs36": 1e-5}


def layer_scale_of(depth: int) -> float:
    """Where LayerScale begins in a network of that depth (section 2.1): 0.1, 1e-5 above 18, 1e-6 above 24."""
    return 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6


class CaiT(ViT):
    """A `ViT` in two stages: blocks over the patches alone, then blocks that update a class token alone.

    The fields of `ViT` mean the same, the defaults are CaiT's. `out["tokens"]` are the patches after each
    block of the first stage; `class_tokens` the class token `[B, 1, D]` after each of the second; `encoded`
    `[B, 1 + N, D]` both after the final norm. `scan` and `remat` concern the first stage.

    Fields:
      layer_scale: initial value of LayerScale on all branches of both stages: a number, `by_depth`
        (`layer_scale_of` the first stage's depth), `by_index` (of the block's number in its own stage,
        beginning at 1, as in the official code of the small-dataset paper), or None for none. The released
        XXS36 begins at 1e-5 and not at 1e-6 as the paper's rule has it: `cait_xxs36` stands for the released
        one, all other names for `by_depth`.
      talking_heads: mix the heads before and after the softmax (`layers.attention.TalkingHeadsAttention`),
        in the first stage. Those mix masked logits: `lsa_mask` has a meaning of its own there.
      class_talking_heads: in the second stage, too.
      mixing_bias: whether those mixes have a bias.
      class_depth: blocks of the second stage; 0 for none. Then the class token is there from the start, and
        `pool`, `class_token`, `fc_norm` are free as in a `ViT`.
      class_keys: what the class token attends to. `normed`, the original: the norm of itself and the patches.
        `class_and_patches`: the norm of itself, and the patches as they leave the first stage. `patches`:
        those patches alone. The small-dataset paper was made with the second, its official code has the
        third. The mask of `lsa` is then for the class token's logit with itself, or for nothing.
      class_dropout: dropout and stochastic depth (at the rate `drop_path`) in the second stage, too.
    """

    width: int = 384
    depth: int = 24
    mlp_dim: int = 1536
    num_heads: int = 8
    gelu: str = "erf"
    drop_path_uniform: bool = True
    initialisation: str = "deit"
    head_zeroinit: bool = False
    layer_scale: float | str | None = "by_depth"
    talking_heads: bool = True
    class_talking_heads: bool = False
    mixing_bias: bool = True
    class_depth: int = 2
    class_keys: str = "normed"
    class_dropout: bool = False

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        if isinstance(self.layer_scale, str) and self.layer_scale not in ("by_depth", "by_index"):
            raise UserError(
                f"layer_scale={self.layer_scale!r} is neither a number nor 'by_depth', 'by_index' or None."
            )
        if self.class_keys not in CLASS_KEYS:
            raise UserError(
                f"class_keys={self.class_keys!r} is none of {', '.join(map(repr, CLASS_KEYS))}."
                f"{nearest(self.class_keys, CLASS_KEYS)}"
            )
        if self.class_depth < 0:
            raise UserError(f"class_depth={self.class_depth!r} must be 0 or more.")
        if self.class_depth and (self.pool != "tok" or self.fc_norm):
            raise UserError(
                f"pool={self.pool!r}, fc_norm={self.fc_norm!r}: with class attention the head reads the "
                "class token after the final norm, pool='tok' and fc_norm=False; class_depth=0 leaves the "
                "choice."
            )
        super().__post_init__()

    @property
    def tokens_in_front(self) -> tuple[str, ...]:
        """Names of the tokens before those of the patches in the first stage."""
        return () if self.class_depth else super().tokens_in_front

    @property
    def initialisers(self) -> Initialisation:
        """What `initialisation` names."""
        return SMALL_DATASETS_CAIT if self.initialisation == "small_datasets" else super().initialisers

    def block_fields(self) -> dict[str, Any]:
        """The fields of every block of the first stage."""
        begins = {"by_depth": layer_scale_of(self.depth), "by_index": None}
        layer_scale: Any = self.layer_scale
        return super().block_fields() | {
            "layer_scale": begins.get(layer_scale, layer_scale),
            "talking_heads": self.talking_heads,
            "mixing_bias": self.mixing_bias,
        }

    def layer_scales(self, depth: int) -> Sequence[float] | None:
        """Where LayerScale begins in each of `depth` blocks; None: where `block_fields` says."""
        return [layer_scale_of(i + 1) for i in range(depth)] if self.layer_scale == "by_index" else None

    def encode(self, x, train) -> tuple[Any, dict[str, Any]]:
        """Returns the class token after the final norm, `[B, 1, D]`, and the intermediates."""
        if not self.class_depth:
            return super().encode(x, train)
        patches, tokens = self.encoder(final_norm=False)(x, train=train)
        cls = jnp.tile(self.token("cls"), (len(x), 1, 1))
        class_tokens = []
        for block in self.class_attention():
            cls = block(cls, patches, self.drop_path, train and self.class_dropout)
            class_tokens.append(cls)
        norm = LayerNorm(self.norm_epsilon, name="encoder_norm")
        encoded = norm(jnp.concatenate([cls, patches], axis=1))  # dead code where only logits are asked for
        return norm(cls), {"tokens": tokens, "class_tokens": class_tokens, "encoded": encoded}

    def class_attention(self) -> list[nn.Module]:
        """The blocks of the second stage."""
        fields = self.block_fields() | {"talking_heads": self.class_talking_heads, "keys": self.class_keys}
        scales = self.layer_scales(self.class_depth) or [fields["layer_scale"]] * self.class_depth
        return [
            ClassAttentionBlock(**fields | {"layer_scale": scale}, name=f"class_attention_{i}")
            for i, scale in enumerate(scales)
        ]


def names() -> tuple[str, ...]:
    """The published sizes; `cait_{size}{depth}` takes any other depth just as well."""
    return tuple(f"cait_{size}" for size in PUBLISHED)


def configure(name: str) -> tuple[type[nn.Module], dict[str, Any]] | None:
    """Returns the class and the fields that `cait_{size}{depth}` stands for; None for any other name."""
    match = re.fullmatch(r"cait_([a-z]+)([1-9]\d*)", name)
    if match is None or match[1] not in WIDTHS:
        return None
    width = WIDTHS[match[1]]
    return CaiT, {
        "width": width,
        "depth": int(match[2]),
        "mlp_dim": 4 * width,
        "num_heads": width // HEAD_DIM,
        "layer_scale": RELEASED_LAYER_SCALE.get(match[1] + match[2], "by_depth"),
    }
