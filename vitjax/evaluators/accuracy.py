"""Accuracy, loss and calibration of a classifier on one split."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitjax import errors, losses
from vitjax.evaluators import Context, inputs

NUM_BINS = 15
MAX_CONFUSION = 4096  # classes; the matrix of ImageNet-21k would take 3.8 GB


class Accuracy:
    """prec@1, prec@5, loss and calibration error over every example exactly once.

    Counts are exact and all means are taken over the whole split, so the batch size and the number of devices
    and processes do not matter. Examples whose labels are all zero are left out.

    - prec@1: the label value at the largest logit. For 0/1 labels the share of right answers; several classes
      may be right.
    - prec@5: the largest label value at the five largest logits, or at all if there are fewer classes.
    - loss: the named loss per example, without label smoothing.
    - ece: the expected calibration error (Guo et al. 2017, arXiv 1706.04599) with 15 bins of equal width,
      (0, 1/15] and so on: sum over bins of n_bin / n |accuracy_bin - confidence_bin|. The confidence is the
      probability of the first answer as the loss means it: by softmax or by sigmoid.
    """

    def __init__(
        self,
        context: Context,
        *,
        data: str,
        split: str,
        pp: str,
        loss: str,
        batch_size: int,
        workers: int = 0,
        on_error: str = "raise",
        label_key: str = "labels",
        use_ema: bool = False,
        on_device: bool = False,
    ):
        """Opens the split and prepares the jitted steps.

        Args:
          context: what the run provides.
          data: the source, see `vitjax.data.sources`.
          split: its split, such as "test" or "train[90%:]".
          pp: the preprocessing string; it must make `label_key`, dense labels, by `onehot`.
          loss: a name of `vitjax.losses`.
          batch_size: the global batch size; it affects only speed and memory.
          workers: processes that decode; 0 for threads of this one.
          on_error: `raise` stops at a broken image, `skip` leaves it out and yields `skipped`, their number.
          label_key: the dense labels in a preprocessed batch.
          use_ema: evaluate the averaged parameters.
          on_device: keep the split in the devices' memory after the first pass; as `config.input.on_device`
            unless given.
        """
        self.task, self.label_key, self.use_ema = context.task, label_key, use_ema
        self.loss, self.loss_fn = loss, losses.get(loss)
        self.input = inputs.EvalInput(
            context,
            data=data,
            split=split,
            pp=pp,
            batch_size=batch_size,
            workers=workers,
            on_error=on_error,
            on_device=on_device,
        )
        self._sums_step = inputs.replicated_jit(self._sums, context)
        self._answers_step = inputs.replicated_jit(self._answers, context)

    metrics = ("prec@1", "prec@5", "loss", "ece")

    def check(self, train_state: Any) -> None:
        """Refuses data that does not fit the model, by shape: `train_state` may be abstract."""
        self.input.check(self._sums_step, *inputs.weights(train_state, use_ema=self.use_ema))

    def run(self, train_state: Any) -> Iterator[tuple[str, float]]:
        """Yields the metrics of one pass; a loss that is not finite is reported as it is."""
        total: Any = None
        for sums in self.input.map(self._sums_step, *inputs.weights(train_state, use_ema=self.use_ema)):
            # float64 on the host: the sums stay exact, or as good as, for any number of batches.
            sums = jax.tree.map(np.float64, sums)
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        if total is None or not total["seen"]:
            raise errors.UserError(f"{self.input.name} has no example with a label that is not all zero.")
        seen = total["seen"]
        yield "prec@1", float(total["top1"] / seen)
        yield "prec@5", float(total["top5"] / seen)
        yield "loss", float(total["loss"] / seen)
        yield "ece", float(np.abs(total["bin_correct"] - total["bin_confidence"]).sum() / seen)
        if self.input.skipped:
            yield "skipped", float(self.input.skipped)

    def predictions(self, train_state: Any) -> dict[str, np.ndarray]:
        """Returns the answers to all N examples, in the order of the source.

        `_id` int64 `[N]`, `label` int32 `[N]` (-1 where the labels are all zero), `top5` int32 `[N, k]` and
        `top5_prob` float32 `[N, k]`: the k = min(5, K) most probable classes and their probabilities; and
        `confusion` int64 `[K, K]` (true class, first answer), left out above 4096 classes.
        """
        weights = inputs.weights(train_state, use_ema=self.use_ema)
        batches = list(self.input.map(self._answers_step, *weights))
        table = {
            key: np.concatenate([batch[key] for batch in batches]) for key in batches[0] if key != "classes"
        }
        rows = np.flatnonzero(table.pop("mask"))
        rows = rows[np.argsort(table["_id"][rows], kind="stable")]
        table = {key: value[rows] for key, value in table.items()}
        table["_id"] = table["_id"].astype(np.int64)
        if (num_classes := int(batches[0]["classes"])) <= MAX_CONFUSION:
            table["confusion"] = confusion_matrix(table["label"], table["top5"][:, 0], num_classes)
        return table

    def _forward(self, params: Any, model_state: Any, batch: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns logits `[B, K]` and labels `[B, K]` in float32, and which rows count `[B]`."""
        mask = batch["_mask"]
        batch = self.input.on_device(batch)
        what = f"A batch of {self.input.name}"
        remedy = f"The preprocessing string needs onehot(..., key_result={self.label_key!r})."
        labels = inputs.entry(batch, self.label_key, what=what, remedy=remedy)
        logits, _ = self.task.predict(params, model_state, batch)
        labels = jnp.asarray(labels, jnp.float32)
        return jnp.asarray(logits, jnp.float32), labels, mask & (labels.max(axis=-1) > 0)

    def _sums(self, params: Any, model_state: Any, batch: Any) -> dict[str, jax.Array]:
        """Sums over one batch."""
        logits, labels, valid = self._forward(params, model_state, batch)
        loss = self.loss_fn(logits, labels, reduction=False)
        hits = jnp.take_along_axis(labels, _top5(logits), axis=-1)
        confidence = losses.probabilities(self.loss, logits).max(axis=-1)
        bins = jnp.clip(jnp.ceil(confidence * NUM_BINS).astype(jnp.int32) - 1, 0, NUM_BINS - 1)
        in_bin = valid[:, None] & (bins[:, None] == jnp.arange(NUM_BINS))
        # `where`, not a product: a padding row may be NaN, and NaN times 0 is NaN.
        total = lambda x, where=valid: jnp.sum(jnp.where(where, x, 0), axis=0)
        return {
            "seen": jnp.sum(valid, dtype=jnp.int32),
            "top1": total(hits[:, 0]),
            "top5": total(hits.max(axis=-1)),
            "loss": total(loss),
            "bin_correct": total(hits[:, :1], in_bin),
            "bin_confidence": total(confidence[:, None], in_bin),
        }

    def _answers(self, params: Any, model_state: Any, batch: Any) -> dict[str, jax.Array]:
        """What `predictions` needs of one batch."""
        logits, labels, valid = self._forward(params, model_state, batch)
        top5 = _top5(logits)
        return {
            "_id": batch["_id"],
            "mask": batch["_mask"],
            "label": jnp.where(valid, jnp.argmax(labels, axis=-1), -1).astype(jnp.int32),
            "top5": top5,
            "top5_prob": jnp.take_along_axis(losses.probabilities(self.loss, logits), top5, axis=-1),
            "classes": jnp.asarray(logits.shape[-1]),
        }


def confusion_matrix(label: np.ndarray, answer: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns counts int64 `[num_classes, num_classes]` by (true class, answer), of labels from 0 on."""
    pairs = label[label >= 0].astype(np.int64) * num_classes + answer[label >= 0]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _top5(logits: jax.Array) -> jax.Array:
    """The classes of the five largest logits, int32 `[B, min(5, K)]`; of equal ones the lower class first."""
    return jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]
