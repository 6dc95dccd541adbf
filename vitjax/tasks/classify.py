"""Image classification with one loss over soft or multi-hot labels."""

from typing import Any

import jax

from vitjax import losses
from vitjax.errors import UserError
from vitjax.tasks.task import Task
from vitjax.teachers import Student


class Classify(Task):
    """Learns `batch["labels"]` (float [B, K], made by the `onehot` op) from `batch["image"]`.

    Args:
      model: a module of `vitjax.models`.
      student: what a teacher has to know of the run; there is none here.
      loss: name of the loss: `sigmoid_xent` (AugReg), `softmax_xent` or `binarised_xent` (DeiT III).
      label_smoothing: weight of the uniform distribution mixed into the labels.
    """

    def __init__(
        self,
        model: Any,
        student: Student | None = None,
        *,
        loss: str = "softmax_xent",
        label_smoothing: float = 0.0,
    ):
        super().__init__(model)
        self.loss_name = loss
        self.label_smoothing = label_smoothing
        self._xent = losses.get(loss)
        if self.teacher is None and has_own_target(model):
            raise UserError(
                f"config.model is distilled ({type(model).__name__}), but there is no teacher: the "
                "distillation head would learn nothing, and half of every answer is its. Name a teacher, "
                "config.task = dict(name='distill', teacher=dict(...)), or train the mean of both heads on "
                "the labels with config.model.average_heads=True."
            )

    def init(self, rng: jax.Array, batch: dict) -> tuple[Any, Any]:
        """Returns `(params, model_state)` for images of the batch's shape."""
        variables = dict(self.model.init(rng, _entry(batch, "image")))
        return variables.pop("params"), variables

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
        """Returns `(loss, (metrics, model_state))`: the mean loss of the batch, float32 scalar."""
        logits, _, model_state = self.forward(params, model_state, batch, rng, train, progress)
        return self.loss_on_labels(logits, batch), ({}, model_state)

    def forward(
        self,
        params: Any,
        model_state: Any,
        batch: dict,
        rng: jax.Array,
        train: bool,
        progress: jax.Array | float = 0.0,
    ):
        """Returns `(logits [B, K], out, model_state)`."""
        (logits, out), updated = self.model.apply(
            {"params": params, **model_state},
            _entry(batch, "image"),
            train=train,
            rngs={"dropout": rng},
            mutable=list(model_state),
            **({"progress": progress} if self.takes_progress else {}),
        )
        return logits, out, {**model_state, **updated}

    def loss_on_labels(self, logits: jax.Array, batch: dict) -> jax.Array:
        """The mean loss of a batch, float32 scalar."""
        return self._xent(logits, _entry(batch, "labels"), label_smoothing=self.label_smoothing)

    def predict(self, params: Any, model_state: Any, batch: dict) -> tuple[jax.Array, dict]:
        """Returns `(logits [B, K], out)` in inference mode."""
        return self.model.apply({"params": params, **model_state}, _entry(batch, "image"), train=False)


def has_own_target(model: Any) -> bool:
    """Whether a model has a distillation head that is to be trained on a target of its own."""
    return getattr(model, "distilled", False) and not getattr(model, "average_heads", False)


def _entry(batch: dict, key: str) -> jax.Array:
    if key not in batch:
        has = ", ".join(repr(name) for name in batch if not name.startswith("_")) or "nothing"
        raise UserError(
            f"Classification needs {key!r}, but preprocessing leaves {has}: end the pp string with "
            "onehot({num_classes}, key='label', key_result='labels')|keep('image', 'labels')."
        )
    return batch[key]
