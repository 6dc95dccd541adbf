"""The gradient transformation that a config names: any of optax by its attribute path, and ours.

    adam, adamw                     optax.scale_by_adam (decoupled weight decay is the config's `wd`)
    adam_l2                         Adam whose weight decay is part of the gradient, the `adam_l2` below
    sgd                             plain or momentum SGD, the `sgd` below
    adafactor                       big_vision.scale_by_adafactor
    big_vision.scale_by_adafactor   the Adafactor variant of "Scaling Vision Transformers"
    big_vision.momentum_hp          momentum with a bfloat16 accumulator
    big_vision.sgd                  the gradient itself (optax.identity)
    scale_by_lion, identity, ...    optax.<that>

An accumulator in bfloat16 (`mu_dtype`, `dtype`, `dtype_momentum`) is multiplied by its decay in bfloat16,
where 0.9 is 0.8984. So computes optax, and big_vision with it.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vitjax import errors
from vitjax.optim.patterns import parameter_names

KERNELS = ".*/kernel"


def scale_by_adafactor(
    *,
    min_dim_size_to_factor: int = 32,
    decay_rate: float = 0.8,
    decay_offset: int = 0,
    beta2_cap: float = 0.999,
    clipping_threshold: float | None = None,
    momentum: float | None = 0.9,
    dtype_momentum: Any = "bfloat16",
    eps: float = 1e-30,
) -> optax.GradientTransformation:
    """Adafactor as modified in "Scaling Vision Transformers" (arXiv 2106.04560, section 3.4).

    The second moment of arrays with two dimensions of at least `min_dim_size_to_factor` is kept as row and
    column means. Its decay at update t = 0, 1, ... is min(beta2_cap, 1 - (t + 1 - decay_offset)^-decay_rate).
    Then an optional clip of each array's update to the RMS `clipping_threshold`, and an average of the
    updates (no bias correction) with decay `momentum`, stored in `dtype_momentum`.
    """

    def beta2(step: Any, exponent: Any) -> Any:
        return jnp.minimum(beta2_cap, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -exponent)

    parts = [
        optax.scale_by_factored_rms(
            decay_rate=decay_rate,
            step_offset=decay_offset,
            min_dim_size_to_factor=min_dim_size_to_factor,
            epsilon=eps,
            decay_rate_fn=beta2,
        )
    ]
    if clipping_threshold:
        parts.append(optax.clip_by_block_rms(clipping_threshold))
    if momentum:
        parts.append(optax.ema(momentum, debias=False, accumulator_dtype=dtype_momentum))
    return optax.chain(*parts)


def momentum_hp(
    *, momentum: float = 0.9, dtype: Any = "bfloat16", nesterov: bool = False
) -> optax.GradientTransformation:
    """Momentum m <- g + momentum * m, stored in half precision; the update is m before rounding."""
    return optax.trace(decay=momentum, nesterov=nesterov, accumulator_dtype=dtype)


def sgd(
    *,
    momentum: float = 0.0,
    dtype: Any = None,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decayed: str = KERNELS,
) -> optax.GradientTransformation:
    """Stochastic gradient descent: the gradient, or its momentum with an accumulator of type `dtype`.

    PyTorch's SGD has a `weight_decay` that is part of the gradient, so that momentum multiplies it by up to
    1 / (1 - momentum). It acts on parameters whose names the regex `decayed` matches as a whole.
    """
    parts = [momentum_hp(momentum=momentum, dtype=dtype, nesterov=nesterov)] if momentum else []
    if weight_decay:
        parts.insert(0, _decay_in_gradient(weight_decay, decayed))
    return optax.chain(*parts) if len(parts) > 1 else (parts or [optax.identity()])[0]


def adam_l2(
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decayed: str = KERNELS,
    mu_dtype: Any = None,
) -> optax.GradientTransformation:
    """Adam with an L2 penalty: PyTorch's `Adam(weight_decay=...)`, what `AdamW` was made to replace.

    The decay is added to the gradient of parameters whose names the regex `decayed` matches as a whole,
    before the moments, which divide it by the size of the gradients: it pulls as strongly on what hardly
    moves as on what moves much. ReActNet trains its first step so, with 1e-5 on the convolutions (official
    code).
    """
    adam = optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)
    return optax.chain(_decay_in_gradient(weight_decay, decayed), adam) if weight_decay else adam


def _decay_in_gradient(weight_decay: float, decayed: str) -> optax.GradientTransformation:
    """Adds `weight_decay` times the parameter to the gradient of those that the regex matches as a whole."""

    def mask(params: Any) -> Any:
        chosen = jax.tree.map(lambda name: bool(re.fullmatch(decayed, name)), parameter_names(params))
        if decayed != KERNELS and not any(jax.tree.leaves(chosen)):
            raise errors.UserError(
                f"config.optax.decayed={decayed!r} matches no parameter, so nothing decays: it must match "
                f"a whole name, such as {jax.tree.leaves(parameter_names(params))[0]!r}."
            )
        return chosen

    return optax.add_decayed_weights(weight_decay, mask)


OURS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adam": optax.scale_by_adam,
    "adamw": optax.scale_by_adam,
    "adam_l2": adam_l2,
    "sgd": sgd,
    "adafactor": scale_by_adafactor,
    "big_vision.scale_by_adafactor": scale_by_adafactor,
    "big_vision.momentum_hp": momentum_hp,
    "big_vision.sgd": optax.identity,
}


def factory(name: str) -> Callable[..., Any]:
    """Returns the function that `optax_name` names; its signature is the schema of the section `optax`."""
    if name in OURS:
        return OURS[name]
    found: Any = optax
    for part in str(name).split("."):
        found = None if part.startswith("_") else getattr(found, part, None)
    if found is None or not callable(found):
        known = [n for n in dir(optax) if n.startswith("scale_by_")]
        raise errors.UserError(
            f"optax_name={name!r} is neither one of {', '.join(OURS)} nor a path in optax."
            f"{errors.nearest(str(name), [*OURS, *known])}"
        )
    if "learning_rate" in inspect.signature(found).parameters:
        # Its own learning rate and sign would multiply those of the chain, and turn descent into ascent.
        scale = f"scale_by_{name}"
        remedy = f"{scale!r}" if hasattr(optax, scale) else "a `scale_by_...` transformation"
        raise errors.UserError(
            f"optax_name={name!r} is a whole optimizer with a learning rate of its own; name {remedy}."
        )
    return found


def create(name: str, options: Mapping[str, Any]) -> optax.GradientTransformation:
    """Returns the transformation `name` made with `options`, both checked."""
    make = factory(name)
    valid = inspect.signature(make).parameters
    for key in options:
        if key not in valid:
            raise errors.UserError(
                f"config.optax: {name!r} has no option {key!r}; it has {', '.join(valid) or 'none'}."
                f"{errors.nearest(str(key), valid)}"
            )
        default = valid[key].default
        if type(default) in (int, float) and not _is_number(options[key]):
            raise errors.UserError(
                f"config.optax.{key}={options[key]!r} must be a number, such as {default!r}."
            )
    try:
        transform = make(**options)
    except (TypeError, ValueError) as e:
        raise errors.UserError(f"config.optax={dict(options)} does not suit {name!r}: {e}.") from e
    if not isinstance(transform, optax.GradientTransformation):
        raise errors.UserError(f"optax_name={name!r} is a part of optax, but not a gradient transformation.")
    return transform


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
