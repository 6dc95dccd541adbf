"""What the convolutional classifiers have in common: checks of their fields, and the head."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vitjax.errors import UserError, nearest
from vitjax.layers.encoder import REMAT_POLICIES

CHOICES = {"remat": (None, *REMAT_POLICIES), "dtype": ("float32", "bfloat16")}


def check_fields(model: Any, choices: Mapping[str, Sequence], *, at_least_one: Sequence[str] = ()) -> None:
    """Refuses bad values where a model is made, not inside the first trace.

    Args:
      model: a module with fields `drop_path`, `remat` and `dtype`.
      choices: the valid values of fields, besides `CHOICES`.
      at_least_one: fields that hold a whole number, or several, of 1 or more.

    Raises:
      UserError: naming the field, its value and the valid ones.
    """
    for field, valid in {**CHOICES, **choices}.items():
        value = getattr(model, field)
        if value not in valid:
            hint = nearest(value, [v for v in valid if v]) if isinstance(value, str) else ""
            raise UserError(f"{field}={value!r} is none of {', '.join(map(repr, valid))}.{hint}")
    for field in at_least_one:
        value = getattr(model, field)
        numbers = [value] if isinstance(value, int) else list(value)
        if not numbers or any(not isinstance(n, int) or n < 1 for n in numbers):
            raise UserError(f"{field}={value!r} must be whole numbers of 1 or more.")
    if hasattr(model, "units") and hasattr(model, "widths") and len(model.widths) != len(model.units):
        raise UserError(
            f"widths={model.widths!r} must have one entry for each of the {len(model.units)} stages of units."
        )
    if not 0 <= model.drop_path < 1:
        raise UserError(f"drop_path={model.drop_path!r} is not a rate: 0 <= drop_path < 1.")


def refuse_integers(image: Any) -> None:
    """Raises a `UserError` for an image that is not float."""
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise UserError(
            f"The model takes float images, not {image.dtype}: end pp with e.g. value_range(-1, 1)."
        )


def classify(
    x,
    num_classes: int | None,
    kernel_init: Callable,
    bias_init: Callable = nn.initializers.zeros,
    *,
    dropout: float = 0.0,
    train: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """Mean over the last feature map `[B, h, w, D]`, dropout, then `head` in the module that calls this.

    Returns logits `[B, num_classes]`, float32, and `pre_logits` `[B, D]` and `logits` by name. Without
    classes the logits are the pre_logits.
    """
    logits = pre_logits = x.astype(jnp.float32).mean((1, 2))
    if num_classes:  # float32 whatever the dtype: a sliver of the work, and the loss is sensitive to it
        head = nn.Dense(num_classes, kernel_init=kernel_init, bias_init=bias_init, name="head")
        logits = head(nn.Dropout(dropout, deterministic=not train)(pre_logits))
    return logits, {"pre_logits": pre_logits, "logits": logits}


def uniform_by(fan_in: int) -> Callable:
    """Uniform between -1/sqrt(fan_in) and 1/sqrt(fan_in): how PyTorch starts a Linear, its bias too."""
    limit = 1 / np.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: nn.initializers.uniform(2 * limit)(key, shape, dtype) - limit
