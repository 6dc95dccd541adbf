"""From a model that says what comes next to the sequences it finds most likely: greedy and beam search.

The searches know no model. They are given `step(tokens [N], cache) -> (scores [N, V], cache)`, where scores
are logits or log-probabilities of the next token and the cache is any tree of arrays with a row a hypothesis.
"""

from typing import NamedTuple

import jax


class Found(NamedTuple):
    """What a search found: K hypotheses for each of B rows, the best first.

    Attributes:
      seqs: int32 `[B, K, L]`: generated tokens, eos included, bos not, `pad` behind the end.
      scores: float32 `[B, K]`: what they are ordered by. -inf where there are fewer than K hypotheses.
      logp: float32 `[B, K]`: sum of the tokens' log-probabilities.
    """

    seqs: jax.Array
    scores: jax.Array
    logp: jax.Array
