"""CaiT: deep Vision Transformers with LayerScale, talking heads and a class-attention stage.

Sources: "Going deeper with Image Transformers" (arXiv 2103.17239) and facebookresearch/deit.
"""

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vitjax.errors import UserError
from vitjax.layers.encoder import ClassAttentionBlock
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
        (`layer_scale_of`), or None for none. The released XXS36 begins at 1e-5 and not at 1e-6 as the paper's
        rule has it: `cait_xxs36` stands for the released one, all other names for `by_depth`.
      talking_heads: mix the heads before and after the softmax (`layers.attention.TalkingHeadsAttention`),
        in the first stage.
      class_depth: blocks of the second stage; 0 for none. Then the class token is there from the start, and
        `pool`, `class_token`, `fc_norm` are free as in a `ViT`.
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
    class_depth: int = 2

    def __post_init__(self):
        """Refuses bad values where the model is made, not inside the first trace."""
        if isinstance(self.layer_scale, str) and self.layer_scale != "by_depth":
            raise UserError(f"layer_scale={self.layer_scale!r} is neither a number nor 'by_depth' nor None.")
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

    def block_fields(self) -> dict[str, Any]:
        """The fields of every block of both stages; talking heads are added for the first."""
        by_depth = self.layer_scale == "by_depth"
        return super().block_fields() | {
            "layer_scale": layer_scale_of(self.depth) if by_depth else self.layer_scale,
            "talking_heads": self.talking_heads,
        }

    def encode(self, x, train) -> tuple[Any, dict[str, Any]]:
        """Returns the class token after the final norm, `[B, 1, D]`, and the intermediates."""
        if not self.class_depth:
            return super().encode(x, train)
        patches, tokens = self.encoder(final_norm=False)(x, train=train)
        cls = jnp.tile(self.token("cls"), (len(x), 1, 1))
        fields: dict[str, Any] = {**self.block_fields(), "talking_heads": False}
        class_tokens = []
        for i in range(self.class_depth):
            cls = ClassAttentionBlock(**fields, name=f"class_attention_{i}")(cls, patches)
            class_tokens.append(cls)
        norm = LayerNorm(self.norm_epsilon, name="encoder_norm")
        encoded = norm(jnp.concatenate([cls, patches], axis=1))  # dead code where only logits are asked for
        return norm(cls), {"tokens": tokens, "class_tokens": class_tokens, "encoded": encoded}


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
