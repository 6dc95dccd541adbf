"""Losses: sigmoid and softmax cross-entropy on dense labels.

Both take `logits` of shape `[..., K]` and `labels` of the same shape (one-hot, multi-hot or mixed; the values
are used as they are), compute in float32, and return the mean over all examples, or with `reduction=False`
one value for each example (shape `[...]`). The unit is nats.

Label smoothing by s replaces the labels y by (1 - s) y + s / K in both losses. For one-hot and mixed labels
this is Szegedy et al. 2016 (arXiv 1512.00567, section 7); timm smooths the targets of its binary
cross-entropy so as well.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vitjax import errors


def sigmoid_xent(
    logits: Any, labels: Any, *, label_smoothing: float = 0.0, reduction: bool = True
) -> jax.Array:
    """Independent binary cross-entropies, summed over the classes (big_vision's `sigmoid_xent`).

    -sum_k [y_k log sigmoid(x_k) + (1 - y_k) log sigmoid(-x_k)]
    """
    logits, labels = _prepare(logits, labels, label_smoothing)
    # log sigmoid is precise in both tails; the shorter softplus(x) - y x cancels where the loss is small.
    per_example = -jnp.sum(
        labels * jax.nn.log_sigmoid(logits) + (1.0 - labels) * jax.nn.log_sigmoid(-logits), axis=-1
    )
    return jnp.mean(per_example) if reduction else per_example


def softmax_xent(
    logits: Any, labels: Any, *, label_smoothing: float = 0.0, reduction: bool = True
) -> jax.Array:
    """Categorical cross-entropy -sum_k y_k log softmax(x)_k; labels are not normalised (big_vision's)."""
    logits, labels = _prepare(logits, labels, label_smoothing)
    per_example = -jnp.sum(labels * jax.nn.log_softmax(logits, axis=-1), axis=-1)
    return jnp.mean(per_example) if reduction else per_example


_PROBABILITIES = {sigmoid_xent: jax.nn.sigmoid, softmax_xent: jax.nn.softmax}
LOSSES = {loss.__name__: loss for loss in _PROBABILITIES}


def get(name: str) -> Callable[..., jax.Array]:
    """Returns the loss called `name`; an unknown name is a UserError."""
    if name not in LOSSES:
        raise errors.UserError(
            f"loss={name!r} is unknown; there are {', '.join(LOSSES)}.{errors.nearest(str(name), LOSSES)}"
        )
    return LOSSES[name]


def probabilities(name: str, logits: Any) -> jax.Array:
    """The class probabilities a model trained with the loss `name` means by its logits, in float32.

    For `sigmoid_xent` they are independent and do not sum to one.
    """
    return _PROBABILITIES[get(name)](jnp.asarray(logits, jnp.float32))


def _prepare(logits: Any, labels: Any, label_smoothing: float) -> tuple[jax.Array, jax.Array]:
    """Casts both to float32, checks that they fit and smooths the labels."""
    logits, labels = jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.float32)
    if logits.shape != labels.shape:
        raise errors.UserError(
            f"Logits of shape {logits.shape} do not fit labels of shape {labels.shape}: labels are dense, so"
            f" the preprocessing string needs onehot({logits.shape[-1]}, ...), and num_classes must agree."
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise errors.UserError(f"label_smoothing={label_smoothing!r} must lie between 0 and 1.")
    if label_smoothing:
        labels = (1.0 - label_smoothing) * labels + label_smoothing / labels.shape[-1]
    return logits, labels
