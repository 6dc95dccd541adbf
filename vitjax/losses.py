"""Losses: sigmoid and softmax cross-entropy on dense labels; of tokens on integer targets, with the smoothing
forms of translation; what a student owes its teacher's answers.

Those on dense labels take `logits` of shape `[..., K]` and `labels` of the same shape (one-hot, multi-hot or
mixed; the values are used as they are), compute in float32, and return the mean over all examples, or with
`reduction=False` one value for each example (shape `[...]`). The unit is nats.

Label smoothing by s replaces the labels y by (1 - s) y + s / K in all of them. For one-hot and mixed labels
this is Szegedy et al. 2016 (arXiv 1512.00567, section 7); timm smooths the targets of its binary
cross-entropy so as well.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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


# Forms of label smoothing over V tokens: what the label has, and what each other token has.
SMOOTHING_FORMS = (
    "uniform",  # 1 - s + s/V, s/V: Szegedy et al. 2016, which the paper cites; PyTorch
    "off_target",  # 1 - s, s/(V - 1)
    "off_target_minus_entropy",  # the same less the target's entropy, so 0 is best: tensor2tensor, flax
    "annotated",  # 1 - s, s/(V - 2), and nothing for padding: The Annotated Transformer
)


def token_xent(
    logits: Any,
    targets: Any,
    *,
    label_smoothing: float = 0.0,
    form: str = "uniform",
    pad: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns `(loss, nll)`, float32 `[...]`: the smoothed cross-entropy of each token, and the plain one.

    Both are in nats; the exponential of the mean `nll` is the perplexity. "Attention Is All You Need" (arXiv
    1706.03762, section 5.4) smooths by s = 0.1 and does not say in which of `SMOOTHING_FORMS`. No array of
    targets `[..., V]` is made: with nll_k = -log softmax(x)_k all forms are a mix of nll_y, the mean of nll_k
    over all k, and nll_pad.

    Args:
      logits: `[..., V]`.
      targets: integers `[...]` in [0, V); what is outside is nobody's token and has no meaning here.
      label_smoothing: s, in [0, 1).
      form: one of `SMOOTHING_FORMS`. They are the same without smoothing.
      pad: the token of padding, which the form `annotated` needs. Positions whose target it is have a value
        like any other: leave them out by a weight of 0.

    Raises:
      UserError: an unknown form, a smoothing out of range, `annotated` without `pad`.
    """
    check_smoothing(label_smoothing, form)
    logits, targets = jnp.asarray(logits, jnp.float32), jnp.asarray(targets)
    vocabulary = logits.shape[-1]
    total = jax.nn.logsumexp(logits, axis=-1)
    nll = total - _pick(logits, targets)
    if not label_smoothing:
        return nll, nll
    over_all = total - jnp.mean(logits, axis=-1)  # the mean of nll_k over all k
    s = label_smoothing
    if form == "uniform":
        return (1 - s) * nll + s * over_all, nll
    if form == "annotated":
        if pad is None:
            raise errors.UserError("smoothing='annotated' needs the token of padding, which nobody told.")
        others = vocabulary * over_all - nll - (total - logits[..., pad])
        return (1 - s) * nll + s / (vocabulary - 2) * others, nll
    each = s / (vocabulary - 1)
    loss = (1 - s - each) * nll + each * vocabulary * over_all
    if form == "off_target_minus_entropy":
        loss = loss + ((1 - s) * np.log(1 - s) + s * np.log(each))
    return loss, nll


def check_smoothing(label_smoothing: float, form: str) -> None:
    """Refuses a form of smoothing that is none, and a share out of range."""
    if form not in SMOOTHING_FORMS:
        raise errors.UserError(
            f"smoothing={form!r} is unknown; there are {', '.join(SMOOTHING_FORMS)}."
            f"{errors.nearest(str(form), SMOOTHING_FORMS)}"
        )
    if not 0.0 <= label_smoothing < 1.0:
        raise errors.UserError(f"label_smoothing={label_smoothing!r} must lie between 0 and 1, 1 left out.")


def _pick(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """`logits[..., targets]`, by a comparison that melts into the pass over the logits.

    The gradient of a gather is a scatter into an array of zeros of the size of the logits; and on a mesh with
    explicit axes a gather has to be told where its result lies.
    """
    hit = targets[..., None] == jnp.arange(logits.shape[-1], dtype=targets.dtype)
    return jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)


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
