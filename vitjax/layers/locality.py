"""Locality self-attention (LSA): a learned temperature, and no token attending to itself.

"Vision Transformer for Small-Size Datasets" (arXiv 2112.13492), section 3.3, and aanna0701/SPT_LSA_ViT.
"""

import dataclasses

import jax.numpy as jnp

from vitjax.errors import UserError

LSA = ("none", "both", "temperature", "mask")


@dataclasses.dataclass(frozen=True)
class Locality:
    """Which parts of LSA an attention has; the paper's network has both.

    Attributes:
      learned_temperature: multiply logits by a learned number a head instead of by 1/sqrt(head_dim), where it
        begins: the inverse of the paper's temperature. Nothing keeps it positive, as in the official code.
      masked_diagonal: overwrite the logit of every token with itself, so that no gradient goes through it.
      mask: what with. The paper has -inf everywhere. The official code has -987654321 in ViT, which is the
        same to all digits, and -1e-9 in CaiT, which masks nothing: it makes the logit zero (before the heads
        are mixed, where a real -inf would give NaN).
    """

    learned_temperature: bool = False
    masked_diagonal: bool = False
    mask: float = -jnp.inf


NOWHERE = Locality()


def locality(lsa: str, mask: float = -jnp.inf) -> Locality:
    """Returns the parts that a model's field `lsa` names: one of `LSA`."""
    return Locality(lsa in ("both", "temperature"), lsa in ("both", "mask"), mask)


def overwrite_diagonal(logits, value: float):
    """Puts `value` where a token meets itself in `[..., N, M]`: query n and key n."""
    queries, keys = logits.shape[-2:]
    if keys == 1 and value == -jnp.inf:
        raise UserError(
            "lsa masks the only token that there is to attend to: a map or window of one token needs "
            "lsa='temperature' or 'none', or larger images."
        )
    return jnp.where(jnp.eye(queries, keys, dtype=bool), jnp.asarray(value, logits.dtype), logits)
