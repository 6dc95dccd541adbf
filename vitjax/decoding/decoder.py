"""From token ids of sources to what a model makes of them: encoder, cache and search in one program."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from vitjax.decoding import Found, beam, conventions, greedy
from vitjax.errors import UserError, nearest

METHODS = ("beam", "greedy")


@dataclasses.dataclass(frozen=True)
class Search:
    """How targets are looked for; the defaults are those of "Attention Is All You Need" (section 6.1).

    Attributes:
      method: `beam` or `greedy`.
      beam: hypotheses that are followed, and returned.
      alpha: exponent of the length penalty.
      convention: what else belongs to a beam search, see `conventions`.
      stop: when a beam search is done, see `conventions`; left out: as the convention has it.
      extra_length: so many tokens more than its source has a target at most, the end counted in both.
      longest: no target has more tokens, whatever its source; for models with a table of positions.
    """

    method: str = "beam"
    beam: int = 4
    alpha: float = 0.6
    convention: str = "tensor2tensor"
    stop: str | None = None
    extra_length: int = 50
    longest: int | None = None

    def __post_init__(self):
        """Refuses what no search can do."""
        if self.method not in METHODS:
            raise UserError(
                f"method={self.method!r} is unknown.{nearest(str(self.method), METHODS)} "
                f"Valid: {', '.join(METHODS)}."
            )
        beam.check_sizes(beam=self.beam, longest=1 if self.longest is None else self.longest)
        if self.extra_length < 0:
            raise UserError(f"extra_length={self.extra_length}: 0 or more.")
        conventions.get(self.convention)
        if self.stop is not None:
            conventions.stop_rule(self.stop)

    def max_length(self, source: int) -> int:
        """Most tokens of a target whose source has `source`."""
        return min(source + self.extra_length, self.longest or source + self.extra_length)


class Decoder:
    """Decodes batches of sources with one model. To be called within a jitted function.

    Args:
      model: has `encode`, `start_cache` and `decode_step`, as `models.transformer.Transformer`.
      vocabulary: has the ids `pad`, `eos` and `bos`, and a length.
      search: how.
    """

    def __init__(self, model: Any, vocabulary: Any, search: Search):
        self.model, self.search, self.vocab_size = model, search, len(vocabulary)
        self.ids = dict(pad=vocabulary.pad, eos=vocabulary.eos, bos=vocabulary.bos)

    def __call__(self, variables: Any, inputs: jax.Array) -> Found:
        """Returns the best targets of each source.

        Args:
          variables: of the model, as `apply` takes them.
          inputs: int32 `[B, S]`, one source a row: its tokens, eos and padding. A row of padding alone is
            left out; what is returned for it means nothing.
        """
        batch, length = inputs.shape
        segments = (jnp.asarray(inputs) != self.ids["pad"]).astype(jnp.int32)
        tokens = segments.sum(axis=1)
        limits = jnp.where(tokens > 0, tokens + self.search.extra_length, 0)
        # A softmax over no key at all would be a division of 0 by 0: an empty row sees its first position.
        segments = segments.at[:, 0].set(1)
        most = self.search.max_length(length)
        encoded = self.model.apply(variables, inputs, segments=segments, method="encode")
        cache = self.model.apply(variables, encoded, segments, most, method="start_cache")
        step = lambda tokens, cache: self.model.apply(variables, tokens, cache, method="decode_step")
        sizes = dict(batch=batch, vocab_size=self.vocab_size, max_length=most, limits=limits)
        if self.search.method == "greedy":
            return greedy.search(step, cache, **sizes, **self.ids)
        how = self.search
        return beam.search(
            step, cache, beam=how.beam, alpha=how.alpha, convention=how.convention, stop=how.stop,
            **sizes, **self.ids,
        )  # fmt: skip


def learned_positions(model: Any) -> int | None:
    """How many tokens a target may have, of a model with a table of positions; None: any number."""
    return model.max_length if getattr(model, "positions", None) == "learned" else None
