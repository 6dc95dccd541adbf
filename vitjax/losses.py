"""Losses: sigmoid and softmax cross-entropy on dense labels; what a student owes its teacher's answers.

Those on labels take `logits` of shape `[..., K]` and `labels` of the same shape (one-hot, multi-hot or mixed;
the values are used as they are), compute in float32, and return the mean over all examples, or with
`reduction=False` one value for each example (shape `[...]`). The unit is nats.

Label smoothing by s replaces the labels y by (1 - s) y + s / K in all of them. For one-hot and mixed labels
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


def binarised_xent(
    logits: Any, labels: Any, *, label_smoothing: float = 0.0, reduction: bool = True
) -> jax.Array:
    """Independent binary cross-entropies against `labels > 0`, averaged over the classes (DeiT III's loss).

    Mixed labels become multi-hot: both images count as wholly there (official code, `--bce-loss`). Labels
    that were smoothed before are all above zero, so smooth by `label_smoothing`, which acts after.
    """
    hot = jnp.asarray(labels, jnp.float32) > 0
    per_example = sigmoid_xent(logits, hot, label_smoothing=label_smoothing, reduction=False)
    per_example = per_example / hot.shape[-1]
    return jnp.mean(per_example) if reduction else per_example


def soft_distillation(
    logits: Any, teacher_logits: Any, *, temperature: float = 1.0, mean: str = "elements"
) -> jax.Array:
    """Divergence of a student's softened answers from its teacher's, t^2 KL(teacher || student).

    With p = softmax(teacher_logits / t) and q = softmax(logits / t), both `[B, K]`, it is
    t^2 sum_bk p (log p - log q), divided

      - by B K for `mean="elements"`: what DeiT was trained with (official `losses.py`);
      - by B for `mean="batch"`: Hinton et al. 2015 (arXiv 1503.02531), K times as much.
    """
    logits, teacher_logits = _answers(logits, teacher_logits)
    log_p = jax.nn.log_softmax(teacher_logits / temperature, axis=-1)
    log_q = jax.nn.log_softmax(logits / temperature, axis=-1)
    share = jnp.exp(log_p) * (log_p - log_q)
    per_example = jnp.mean(share, axis=-1) if mean == "elements" else jnp.sum(share, axis=-1)
    return temperature**2 * jnp.mean(per_example)


def soft_cross_entropy(logits: Any, teacher_logits: Any, *, temperature: float = 1.0) -> jax.Array:
    """Cross-entropy of a student's softened answers against its teacher's, mean over the batch.

    With p = softmax(teacher_logits / t) and q = softmax(logits / t), both `[B, K]`, it is
    t^2 sum_bk -p log q, divided by B. At t = 1 it is the whole loss of BinaryViT (arXiv 2306.16678, official
    `losses.py`) and the "distributional loss" of ReActNet (arXiv 2003.03488, official `KD_loss.py`).
    It is `soft_distillation` with `mean="batch"` plus t^2 times the entropy of the teacher's answers, which
    no gradient sees: so much it is when student and teacher agree.
    """
    logits, teacher_logits = _answers(logits, teacher_logits)
    p = jax.nn.softmax(teacher_logits / temperature, axis=-1)
    log_q = jax.nn.log_softmax(logits / temperature, axis=-1)
    return -(temperature**2) * jnp.mean(jnp.sum(p * log_q, axis=-1))


def hard_distillation(logits: Any, teacher_logits: Any, *, label_smoothing: float = 0.0) -> jax.Array:
    """Softmax cross-entropy against the class that the teacher holds most likely (DeiT, equation 3).

    The paper does not smooth the teacher's labels; `label_smoothing` does, over all K classes.
    """
    logits, teacher_logits = _answers(logits, teacher_logits)
    hot = jax.nn.one_hot(jnp.argmax(teacher_logits, axis=-1), logits.shape[-1])
    return softmax_xent(logits, hot, label_smoothing=label_smoothing)


def _answers(logits: Any, teacher_logits: Any) -> tuple[jax.Array, jax.Array]:
    """Casts both to float32; nothing is learnt through the teacher's."""
    logits, teacher_logits = jnp.asarray(logits, jnp.float32), jnp.asarray(teacher_logits, jnp.float32)
    if logits.shape != teacher_logits.shape:
        raise errors.UserError(
            f"the student's logits {logits.shape} and its teacher's {teacher_logits.shape} differ in shape: "
            "both need the same labels."
        )
    return logits, jax.lax.stop_gradient(teacher_logits)


_PROBABILITIES = {
    sigmoid_xent: jax.nn.sigmoid,
    softmax_xent: jax.nn.softmax,
    binarised_xent: jax.nn.sigmoid,
}
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

    For `sigmoid_xent` and `binarised_xent` they are independent and do not sum to one.
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
