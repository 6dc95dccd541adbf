"""Stochastic depth: dropping whole residual branches (Huang et al., arXiv 1603.09382)."""

import flax.linen as nn
import jax
import jax.numpy as jnp


def linear_rates(rate: float, depth: int) -> tuple[float, ...]:
    """Drop probabilities that grow linearly from 0 in the first block to `rate` in the last.

    `rate * block / max(depth - 1, 1)` for block = 0 .. depth-1, as in Scenic's AugReg baseline.
    """
    return tuple(rate * block / max(depth - 1, 1) for block in range(depth))


def uniform_rates(rate: float, depth: int) -> tuple[float, ...]:
    """The same drop probability in every block, as in CaiT and DeiT III."""
    return (rate,) * depth


class DropPath(nn.Module):
    """Sets a branch to zero for a random part of the examples; draws from the `dropout` stream.

    With `rescale` the survivors are divided by the probability to survive, so
    that the expectation does not change (Scenic, timm); without it they are left
    alone (big_vision's Mixer).
    """

    rescale: bool = True

    @nn.compact
    def __call__(self, branch, rate, *, train: bool = False):
        """Drops examples of `branch` `[B, ...]` with probability `rate`: None, a number or traced."""
        if not train or rate is None or (isinstance(rate, int | float) and rate == 0):
            return branch
        keep = 1.0 - rate
        shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        survives = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        if self.rescale:
            branch = branch / jnp.asarray(keep, branch.dtype)
        return jnp.where(survives, branch, jnp.zeros_like(branch))
