"""The exponential moving average of the parameters, and of the batch statistics beside them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vitjax import errors

Params = Any


def create(*, decay: float = 0.9999, warmup: bool = False) -> Callable[[Params, Params, Any], Params]:
    """Returns update(ema_params, params, t) -> ema_params, pure and traceable.

    Each average becomes d * average + (1 - d) * parameter, where `params` are those after the update and t is
    the number of updates done before it. d is `decay`, or with `warmup` min(decay, (1 + t) / (10 + t)), which
    soon forgets the initial values. Averages keep their dtype and the structure of the tree. What is no
    float, a counter, is not averaged but follows.
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
        raise errors.UserError(
            f"config.ema: decay={decay!r} must be a number from 0 to below 1, such as 0.9999."
        )

    def update(ema_params: Params, params: Params, t: Any) -> Params:
        # The rate 1 - d is formed in float64 or as 9 / (10 + t): 1 - float32(0.9999) would be off by 1.7e-4.
        rate = jnp.maximum(1.0 - decay, 9.0 / (10.0 + t)) if warmup else 1.0 - decay

        def one(e: Any, p: Any) -> Any:
            return (e + rate * (p - e)).astype(e.dtype) if jnp.issubdtype(e.dtype, jnp.inexact) else p

        return jax.tree.map(one, ema_params, params)

    return update


def init(params: Params) -> Params:
    """Returns the first averages: copies, because a donated train state may not hold one buffer twice."""
    return jax.tree.map(jnp.copy, params)
