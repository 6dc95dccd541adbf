"""Translation: each token of the target given the source and the tokens before it."""

from typing import Any

import jax
import jax.numpy as jnp

from vitjax import losses
from vitjax.errors import UserError
from vitjax.tasks.task import Task
from vitjax.teachers import Student

# What the model is given of a batch, by the names of its arguments.
PLACES = ("inputs_positions", "inputs_segments", "targets_positions", "targets_segments")
REMEDY = (
    "Translation trains on rows of tokens: set config.text = dict(languages=('en', 'de')) and "
    "config.input.pp = 'token_weights'."
)


class Translate(Task):
    """Learns `batch["targets"]` from `batch["inputs"]` and `batch["decoder_inputs"]`, all int32 `[B, L]`.

    The loss is that of "Attention Is All You Need" (arXiv 1706.03762, section 5): cross-entropy with label
    smoothing, as a mean over the real target tokens of the global batch. Rows hold several sentence pairs
    each, told apart by `inputs_segments` and `targets_segments`.

    Args:
      model: a module of `vitjax.models` that encodes and decodes.
      student: what a teacher has to know of the run; there is none here.
      label_smoothing: 0.1 in the paper.
      smoothing: one of `losses.SMOOTHING_FORMS`. The default, over all tokens alike, is what the paper cites;
        tensor2tensor and flax have `off_target_minus_entropy`, whose gradient differs in a share of 1 / V.

    Attributes:
      vocabulary: whose tokens they are, a `vitjax.data.text.vocabulary.Vocabulary`; set by who builds the
        experiment.
    """

    vocabulary: Any = None

    def __init__(
        self,
        model: Any,
        student: Student | None = None,
        *,
        label_smoothing: float = 0.1,
        smoothing: str = "uniform",
    ):
        del student
        super().__init__(model)
        for method in ("encode", "start_cache", "decode_step"):
            if not hasattr(model, method):
                raise UserError(
                    "config.task.name = 'translate' needs a model that decodes, and "
                    f"{type(model).__name__} has no {method!r}: take config.model.name = 'transformer_base' "
                    "or another transformer."
                )
        try:
            losses.check_smoothing(label_smoothing, smoothing)
        except UserError as error:
            raise UserError(f"config.task: {error}") from error
        self.label_smoothing, self.smoothing = label_smoothing, smoothing

    def init(self, rng: jax.Array, batch: dict) -> tuple[Any, Any]:
        """Returns `(params, model_state)`; shapes of parameters do not depend on the batch's."""
        variables = dict(self.model.init(rng, _entry(batch, "inputs"), _entry(batch, "decoder_inputs")))
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
        """Returns `(loss, (metrics, model_state))`: the mean over all positions of weight times token's loss.

        `batch["weights"]` (made by `token_weights`) are 0 at padding and scaled so that this is the mean over
        the real tokens of the global batch, however it is divided. Metrics, means over the same tokens and
        under dropout: `nll`, without smoothing, in nats, and `token_accuracy`.
        """
        del frozen
        logits, _, model_state = self.forward(params, model_state, batch, rng, train, progress)
        targets, weights = _entry(batch, "targets"), _entry(batch, "weights")
        loss, nll = losses.token_xent(
            logits, targets, label_smoothing=self.label_smoothing, form=self.smoothing, pad=self.pad
        )
        hits = jnp.argmax(logits, axis=-1) == targets
        metrics = dict(nll=jnp.mean(weights * nll), token_accuracy=jnp.mean(weights * hits))
        return jnp.mean(weights * loss), (metrics, model_state)

    @property
    def pad(self) -> int | None:
        """The token of padding, if the vocabulary is known."""
        return None if self.vocabulary is None else self.vocabulary.pad

    def forward(
        self,
        params: Any,
        model_state: Any,
        batch: dict,
        rng: jax.Array,
        train: bool,
        progress: jax.Array | float = 0.0,
    ):
        """Returns `(logits [B, L, V], out, model_state)`."""
        (logits, out), updated = self.model.apply(
            {"params": params, **model_state},
            _entry(batch, "inputs"),
            _entry(batch, "decoder_inputs"),
            **_places(batch),
            train=train,
            rngs={"dropout": rng},
            mutable=list(model_state),
            **({"progress": progress} if self.takes_progress else {}),
        )
        return logits, out, {**model_state, **updated}

    def predict(self, params: Any, model_state: Any, batch: dict) -> tuple[jax.Array, dict]:
        """Returns `(logits [B, L, V], out)` of the given targets in inference mode."""
        return self.model.apply(
            {"params": params, **model_state},
            _entry(batch, "inputs"),
            _entry(batch, "decoder_inputs"),
            **_places(batch),
            train=False,
        )


def _places(batch: dict) -> dict[str, jax.Array]:
    return {key: batch[key] for key in PLACES if key in batch}


def _entry(batch: dict, key: str) -> jax.Array:
    if key not in batch:
        has = ", ".join(repr(name) for name in batch if not name.startswith("_")) or "nothing"
        raise UserError(f"Translation needs {key!r}, but preprocessing leaves {has}. {REMEDY}")
    return batch[key]
