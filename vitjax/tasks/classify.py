"""Image classification with one loss over soft or multi-hot labels."""

from typing import Any

import jax

from vitjax import losses
from vitjax.errors import UserError


class Classify:
    """Learns `batch["labels"]` (float [B, K], made by the `onehot` op) from `batch["image"]`.

    Args:
      model: a module of `vitjax.models`.
      loss: name of the loss, `sigmoid_xent` (AugReg) or `softmax_xent`.
      label_smoothing: weight of the uniform distribution mixed into the labels.
    """

    def __init__(self, model: Any, *, loss: str = "softmax_xent", label_smoothing: float = 0.0):
        self.model = model
        self.loss_name = loss
        self.label_smoothing = label_smoothing
        self._xent = losses.get(loss)

    def init(self, rng: jax.Array, batch: dict) -> tuple[Any, Any]:
        """Returns `(params, model_state)` for images of the batch's shape."""
        variables = dict(self.model.init(rng, _entry(batch, "image")))
        return variables.pop("params"), variables

    def loss(self, params: Any, model_state: Any, batch: dict, rng: jax.Array, train: bool = True):
        """Returns `(loss, (metrics, model_state))`: the mean loss of the batch, float32 scalar."""
        (logits, _), updated = self.model.apply(
            {"params": params, **model_state},
            _entry(batch, "image"),
            train=train,
            rngs={"dropout": rng},
            mutable=list(model_state),
        )
        loss = self._xent(logits, _entry(batch, "labels"), label_smoothing=self.label_smoothing)
        return loss, ({}, {**model_state, **updated})

    def predict(self, params: Any, model_state: Any, batch: dict) -> tuple[jax.Array, dict]:
        """Returns `(logits [B, K], out)` in inference mode."""
        return self.model.apply({"params": params, **model_state}, _entry(batch, "image"), train=False)


def _entry(batch: dict, key: str) -> jax.Array:
    if key not in batch:
        has = ", ".join(repr(name) for name in batch if not name.startswith("_")) or "nothing"
        raise UserError(
            f"Classification needs {key!r}, but preprocessing leaves {has}: end the pp string with "
            "onehot({num_classes}, key='label', key_result='labels')|keep('image', 'labels')."
        )
    return batch[key]
