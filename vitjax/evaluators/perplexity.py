"""Perplexity of a translation model on one split."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vitjax import losses
from vitjax.evaluators import Context, inputs


class Perplexity:
    """exp of the mean negative log-likelihood of a target token, its sentence's end counted; no smoothing.

    Every pair of the split counts once, but for those with an empty side or too long for a row, whose number
    is yielded. Sums are taken over the whole split, so batch size, packing, devices and processes do not
    matter. A perplexity is per token of this vocabulary: runs with another one cannot be compared by it.
    """

    metrics = ("perplexity", "nll", "token_accuracy")

    def __init__(
        self,
        context: Context,
        *,
        data: str,
        split: str,
        batch_size: int,
        workers: int = 0,
        use_ema: bool = False,
    ):
        """Opens the split and packs it as in training.

        Args:
          context: what the run provides.
          data: sentence pairs, as `config.input.data`.
          split: theirs, such as "val".
          batch_size: rows in a global batch; it affects only speed and memory.
          workers: processes that prepare batches; 0 for threads of this one.
          use_ema: evaluate the averaged parameters.
        """
        self.task, self.use_ema = context.task, use_ema
        text, vocabulary = inputs.text_of(context, "perplexity")
        source = text.open_rows(text.open_pairs(data, split), vocabulary)
        self.left_out = source.counts.empty + source.counts.long
        self.input = inputs.EvalInput(
            context, data=data, split=split, pp="", batch_size=batch_size, workers=workers, source=source
        )
        self._sums_step = inputs.replicated_jit(self._sums, context)

    def check(self, train_state: Any) -> None:
        """Refuses data that does not fit the model, by shape: `train_state` may be abstract."""
        self.input.check(self._sums_step, *inputs.weights(train_state, use_ema=self.use_ema))

    def run(self, train_state: Any) -> Iterator[tuple[str, float]]:
        """Yields the metrics of one pass."""
        total: Any = None
        for sums in self.input.map(self._sums_step, *inputs.weights(train_state, use_ema=self.use_ema)):
            sums = jax.tree.map(np.float64, sums)  # on the host, where adding up loses nothing
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        nll = total["nll"] / total["tokens"]
        with np.errstate(over="ignore"):
            yield "perplexity", float(np.exp(nll))
        yield "nll", float(nll)
        yield "token_accuracy", float(total["hits"] / total["tokens"])
        if self.left_out:
            yield "left_out", float(self.left_out)

    def _sums(self, params: Any, model_state: Any, batch: Any) -> dict[str, jax.Array]:
        """Sums over one batch."""
        real = (batch["targets_segments"] > 0) & batch["_mask"][:, None]
        logits, _ = self.task.predict(params, model_state, batch)
        _, nll = losses.token_xent(logits, batch["targets"])
        hits = jnp.argmax(logits, axis=-1) == batch["targets"]
        return {
            "tokens": jnp.sum(real, dtype=jnp.int32),
            # `where`, not a product: a padding row may be NaN, and NaN times 0 is NaN.
            "nll": jnp.sum(jnp.where(real, nll, 0)),
            "hits": jnp.sum(real & hits, dtype=jnp.int32),
        }
