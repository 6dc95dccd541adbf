"""What beam search leaves open: how lengths are normalised, which ends count, when to stop.

"Attention Is All You Need" (section 6.1) names a length penalty and an early stop; the rest is a convention
of the code it is run with. There are two in use:

    tensor2tensor   also flax's example: scores are logp / ((5 + n) / 6)^alpha (GNMT, arXiv 1609.08144); an
                    end among the best 2 * beam extensions counts; the pool keeps the best. Without any end
                    the live hypotheses are returned with their plain log-probabilities. No token is ruled
                    out.
    fairseq         scores are logp / n^alpha, so that the same alpha means another thing; an end counts only
                    among the best `beam` extensions; the pool keeps the first, and is done when it is full.
                    The last token of the limit is forced to be eos. Never pad, and never an empty
                    translation (facebookresearch/fairseq, `fairseq/sequence_generator.py`).

n counts eos and not bos.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vitjax.errors import UserError, nearest

Penalty = Callable[[jax.Array, float], jax.Array]


def gnmt_penalty(length: jax.Array, alpha: float) -> jax.Array:
    """`((5 + n) / 6)^alpha` of lengths n (arXiv 1609.08144, equation 14)."""
    return jnp.power((5.0 + length) / 6.0, alpha)


def power_penalty(length: jax.Array, alpha: float) -> jax.Array:
    """`n^alpha` of lengths n: fairseq's `--lenpen`; with 1 the mean log-probability of a token."""
    return jnp.power(jnp.asarray(length, jnp.float32), alpha)


@dataclasses.dataclass(frozen=True)
class Convention:
    """One way to fill in what beam search leaves open.

    Attributes:
      penalty: `(length, alpha) -> ` what log-probabilities are divided by.
      ends_within_beam: whether only ends among the best `beam` extensions count, not all among 2 * beam.
      pool_keeps_first: whether a full pool of finished hypotheses takes no better one in.
      forces_end: whether the last token of the limit must be eos.
      never_pad_or_empty: whether pad is ruled out, and eos as the first of several tokens.
      stop: the usual rule of `STOPS`.
    """

    penalty: Penalty
    ends_within_beam: bool
    pool_keeps_first: bool
    forces_end: bool
    never_pad_or_empty: bool
    stop: str


CONVENTIONS = {
    "tensor2tensor": Convention(gnmt_penalty, False, False, False, False, stop="worst"),
    "fairseq": Convention(power_penalty, True, True, True, True, stop="full"),
}

# When a row is done before its limit. `bound` is the best score that a live hypothesis can still come to.
STOPS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    # The worst of a full pool beats the bound: nothing in the n-best list can change (flax's example).
    "worst": lambda scores, bound: scores.min(axis=-1) > bound,
    # The best finished one beats the bound: the first hypothesis cannot change, others may (tensor2tensor).
    "best": lambda scores, bound: scores.max(axis=-1) > bound,
    # As many have finished as there are beams (fairseq).
    "full": lambda scores, bound: scores.min(axis=-1) > -jnp.inf,
    "never": lambda scores, bound: jnp.zeros(bound.shape, bool),
}


def get(name: str) -> Convention:
    """The convention of this name. UserError where there is none."""
    if name not in CONVENTIONS:
        raise UserError(
            f"convention={name!r} is unknown.{nearest(name, CONVENTIONS)} Valid: {', '.join(CONVENTIONS)}."
        )
    return CONVENTIONS[name]


def stop_rule(name: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The rule `(scores of the pool [B, K], bound [B]) -> done [B]`. UserError where there is none."""
    if name not in STOPS:
        raise UserError(f"stop={name!r} is unknown.{nearest(name, STOPS)} Valid: {', '.join(STOPS)}.")
    return STOPS[name]
