"""GroupNorm as the published weight-standardised ResNets have it."""

import flax.linen as nn
import jax.numpy as jnp

GROUPS = 32
# `jax`: the code behind the AugReg models; `timm`: its port of them. `StdConv` differs as well.
GROUP_NORM_EPSILON = {"jax": 1e-6, "timm": 1e-5}


def group_norm(numerics: str, name: str, scale_init=nn.initializers.ones) -> nn.GroupNorm:
    """GroupNorm of 32 groups, float32 whatever the dtype of its input.

    The variance is that of centred values; E[x^2] - E[x]^2, Flax's default, loses digits.
    """
    return nn.GroupNorm(
        GROUPS,
        epsilon=GROUP_NORM_EPSILON[numerics],
        dtype=jnp.float32,
        scale_init=scale_init,
        use_fast_variance=False,
        name=name,
    )
