"""How evenly attention is spread: divergence from the uniform distribution, and entropy.

"Vision Transformer for Small-Size Datasets" (arXiv 2112.13492) shows KL(uniform || p) by layer, estimated
with an epsilon (aanna0701/SPM_LMSA_ViT, `KLDivergence_viz.py`). Where LSA masks the diagonal, the weight of a
token for itself is zero. That is finite only by the epsilon, and most of what the mask adds to the estimate
is the epsilon's. `divergence` leaves out what a query cannot see instead.
"""

import jax
import jax.numpy as jnp
import numpy as np

EPSILON = 1e-12


def published_divergence(weights: jax.Array) -> jax.Array:
    """The paper's estimate of KL(uniform || p) in nats, `[B, H]`, the mean over rows of `[B, H, N, M]`.

    -(1/M) sum_j log(M p_j + 1e-12): each p_j that is zero adds 27.6 / M.
    """
    keys = weights.shape[-1]
    return -jnp.log(keys * weights.astype(jnp.float32) + EPSILON).mean((-2, -1))


def divergence(logits: jax.Array, allowed: np.ndarray) -> jax.Array:
    """KL(uniform || p) in nats over the keys that a query may see, `[B, H]`, the mean over rows.

    Args:
      logits: `[B, H, N, M]`, what the softmax sees; exact where a weight would underflow to zero.
      allowed: bool [W or 1, N, M], see `layers.Layer.allowed`; B is a multiple of W.
    """
    log_p, _, count = _log_softmax(logits, allowed)
    return (-(log_p.sum(-1) / count) - jnp.log(count)).mean(-1)


def entropy(logits: jax.Array, allowed: np.ndarray) -> jax.Array:
    """-sum p log p over the keys that a query may see, as a share of its most, log(number of keys): `[B, H]`.

    The mean over rows with more than one such key. Arguments are those of `divergence`.
    """
    log_p, seen, count = _log_softmax(logits, allowed)
    shares = -jnp.where(seen, jnp.exp(log_p) * log_p, 0).sum(-1) / jnp.log(jnp.maximum(count, 2))
    choice = jnp.broadcast_to(count > 1, shares.shape)
    return jnp.where(choice, shares, 0).sum(-1) / jnp.maximum(choice.sum(-1), 1)


def _log_softmax(logits: jax.Array, allowed: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """log p `[B, H, N, M]`, 0 at keys not allowed; which are, `[B, 1, N, M]`; how many, `[B, 1, N]`."""
    seen = jnp.tile(jnp.asarray(allowed), (len(logits) // len(allowed), 1, 1))[:, None]
    log_p = jax.nn.log_softmax(jnp.where(seen, logits.astype(jnp.float32), -jnp.inf), axis=-1)
    return jnp.where(seen, log_p, 0), seen, seen.sum(-1)
