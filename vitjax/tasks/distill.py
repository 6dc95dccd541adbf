"""Classification that learns from labels and from a teacher's answers to the same images.

DeiT, "Training data-efficient image transformers & distillation through attention" (arXiv 2012.12877),
section 4, and its official code (`facebookresearch/deit`: `losses.py`, `engine.py`). Binary networks learn
from the teacher's answers alone: BinaryViT (arXiv 2306.16678, official `losses.py`) and ReActNet (arXiv
2003.03488).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from vitjax import losses, teachers
from vitjax.errors import UserError, nearest
from vitjax.tasks.classify import Classify, has_own_target
from vitjax.teachers import Student

KINDS = ("none", "soft", "soft_xent", "hard", "token", "teacher_only")
ALPHA = 0.5  # where a config says nothing
MEANS = ("elements", "batch")


class Distill(Classify):
    """Minimises `(1 - alpha) * loss(logits, labels) + alpha * distillation(logits, teacher's logits)`.

    The teacher sees the augmented and mixed image that the student sees. Where the model has a distillation
    head, the token form of the paper, the distillation loss acts on that head and the loss on labels on the
    class head, so that each has its own target; else both act on the one head there is (the paper's "usual"
    distillation).

    Args:
      model: a module of `vitjax.models`.
      student: what a teacher has to know of the run.
      kind: `hard`: cross-entropy against the class the teacher holds most likely; `soft`: divergence from
        the teacher's softened answers; `soft_xent`: cross-entropy to them, see `losses.soft_cross_entropy`;
        `teacher_only`: that and nothing else, labels are not looked at; `token`: `hard`, for a model that
        must have a distillation head; `none`: labels only, the teacher is not run.
      teacher: config section, see `vitjax.teachers.section.Section`.
      alpha: weight of the distillation loss; left out: 0.5, and 1 for `teacher_only`, which has no other.
        DeiT takes 0.5 for hard, 0.1 for soft; BinaryViT's code with mixup 0.9 for soft_xent.
      temperature: of the soft forms; DeiT takes 3, the binary networks 1.
      kl_mean: by what soft distillation is divided, `elements` (B K, official code) or `batch` (B, as in
        Hinton et al.), see `losses.soft_distillation`.
      teacher_smoothing: label smoothing of the teacher's classes in hard distillation; the paper has none.
      loss: name of the loss on labels.
      label_smoothing: that of the labels.
    """

    def __init__(
        self,
        model: Any,
        student: Student | None = None,
        *,
        kind: str = "hard",
        teacher: Mapping | None = None,
        alpha: float | None = None,
        temperature: float = 1.0,
        kl_mean: str = "elements",
        teacher_smoothing: float = 0.0,
        loss: str = "softmax_xent",
        label_smoothing: float = 0.0,
    ):
        if alpha is None:
            alpha = 1.0 if kind == "teacher_only" else ALPHA
        _check(kind, alpha, temperature, kl_mean, teacher_smoothing)
        self.kind, self.alpha, self.temperature = kind, alpha, temperature
        self.kl_mean, self.teacher_smoothing = kl_mean, teacher_smoothing
        if kind != "none" and teacher is None:
            raise UserError(
                f"config.task.kind = {kind!r} needs a teacher: set config.task.teacher = "
                "dict(weights='runs/NAME'), or kind='none' for labels only."
            )
        if kind == "teacher_only" and has_own_target(model):
            raise UserError(
                "config.task.kind = 'teacher_only' leaves the labels out, and the class head of config.model "
                f"({type(model).__name__}) learns from nothing else: take a model without a distillation "
                "head, kind='token', or config.model.average_heads=True."
            )
        if kind == "token" and not has_own_target(model):
            why = "has no distillation head"
            if getattr(model, "distilled", False):
                why = "trains the mean of both heads (average_heads=True)"
            raise UserError(
                f"config.task.kind = 'token' trains a distillation head on the teacher's answers, but "
                f"config.model {why}: take a distilled model as it comes, or kind='hard'."
            )
        if kind != "none" and teacher is not None:
            assert student is not None, "a teacher has to know its student"
            self.teacher = teachers.create(teacher, student)
        super().__init__(model, student, loss=loss, label_smoothing=label_smoothing)

    def loss(
        self,
        params: Any,
        model_state: Any,
        batch: dict,
        rng: jax.Array,
        train: bool = True,
        frozen: Any = None,
        progress: jax.Array | float = 0.0,
    ):
        """Returns `(loss, (metrics, model_state))`.

        Metrics: `label_loss` and `distillation_loss`, the two parts before weighting (the first where the
        batch has labels), and `teacher_agreement`, the share of examples to which student and teacher give
        the same answer.
        """
        if self.teacher is None:
            return super().loss(params, model_state, batch, rng, train, progress=progress)
        logits, out, model_state = self.forward(params, model_state, batch, rng, train, progress)
        answers = self.teacher.logits(frozen, batch)
        loss, metrics = self.objective(logits, out, batch, answers)
        return loss, (metrics, model_state)

    def objective(
        self, logits: jax.Array, out: Mapping[str, Any], batch: dict, answers: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns `(loss, metrics)` of what the model gave and of the teacher's answers, logits `[B, K]`."""
        own = has_own_target(self.model)
        of_labels, of_teacher = (out["logits_class"], out["logits_dist"]) if own else (logits, logits)
        distillation_loss = self._distillation(of_teacher, answers)
        agreement = jnp.mean(jnp.argmax(of_teacher, axis=-1) == jnp.argmax(answers, axis=-1))
        metrics = dict(distillation_loss=distillation_loss, teacher_agreement=agreement)
        if self.kind == "teacher_only" and "labels" not in batch:
            return distillation_loss, metrics
        metrics["label_loss"] = label_loss = self.loss_on_labels(of_labels, batch)
        if self.kind == "teacher_only":
            return distillation_loss, metrics
        return (1 - self.alpha) * label_loss + self.alpha * distillation_loss, metrics

    def _distillation(self, logits: jax.Array, answers: jax.Array) -> jax.Array:
        if self.kind == "soft":
            return losses.soft_distillation(logits, answers, temperature=self.temperature, mean=self.kl_mean)
        if self.kind in ("soft_xent", "teacher_only"):
            return losses.soft_cross_entropy(logits, answers, temperature=self.temperature)
        return losses.hard_distillation(logits, answers, label_smoothing=self.teacher_smoothing)


def _check(kind: str, alpha: float, temperature: float, kl_mean: str, teacher_smoothing: float) -> None:
    """Refuses values out of range."""
    for key, value, valid in (("kind", kind, KINDS), ("kl_mean", kl_mean, MEANS)):
        if value not in valid:
            raise UserError(
                f"config.task.{key} = {value!r} is none of {', '.join(valid)}.{nearest(value, valid)}"
            )
    for key, value in (("alpha", alpha), ("teacher_smoothing", teacher_smoothing)):
        if not 0 <= value <= 1:
            raise UserError(f"config.task.{key} = {value} must lie between 0 and 1.")
    if kind == "teacher_only" and alpha != 1:
        raise UserError(
            f"config.task.alpha = {alpha} does not go with kind = 'teacher_only', which has no loss on "
            "labels: leave alpha out, or take kind='soft_xent'."
        )
    if not temperature > 0:
        raise UserError(f"config.task.temperature = {temperature} must be above 0.")
