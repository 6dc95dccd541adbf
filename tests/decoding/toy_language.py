"""A language whose next token hangs on the source and two tokens before, and beam search in plain Python."""

import itertools

import jax.numpy as jnp
import numpy as np
from scipy.special import log_softmax

PAD, EOS, BOS = 0, 1, 2


class ToyLanguage:
    """Random logits `[B, V, V, V]`: source, token before the last, last, next."""

    def __init__(self, rows, vocab_size, seed, spread=1.5, eos=0.0):
        rng = np.random.default_rng(seed)
        self.logits = spread * rng.standard_normal((rows, *(vocab_size,) * 3)).astype(np.float32)
        self.logits[..., EOS] += eos
        self.logp = log_softmax(self.logits.astype(np.float64), axis=-1)
        self.rows, self.vocab_size = self.logits.shape[:2]

    def cache(self):
        """The token before the last, and what no step changes: the table."""
        return {"before": jnp.zeros(self.rows, jnp.int32), "logits": jnp.asarray(self.logits)}

    def next(self, row, tokens):
        """log-probabilities [V] of what follows `tokens`, in float64."""
        before, last = (0, BOS, *tokens)[-2:]
        return self.logp[row, before, last]

    def logp_of(self, row, tokens):
        return sum(self.next(row, tokens[:i])[token] for i, token in enumerate(tokens))

    def arguments(self, **more):
        ids = dict(bos=BOS, eos=EOS, pad=PAD)
        return dict(batch=self.rows, vocab_size=self.vocab_size) | ids | more


def step(tokens, cache):
    """What the search asks: a look-up in each hypothesis's table."""
    rows = jnp.arange(len(tokens))
    return cache["logits"][rows, cache["before"], tokens], cache | {"before": tokens}


def gnmt(n, alpha):
    return ((5 + n) / 6) ** alpha


def power(n, alpha):
    return n**alpha


def all_ended(language, row, limit, alpha):
    """Every sequence of at most `limit` tokens that ends in eos, as (score, tokens), best first."""
    others = [token for token in range(language.vocab_size) if token != EOS]
    found = []
    for n in range(1, limit + 1):
        for begin in itertools.product(others, repeat=n - 1):
            tokens = (*begin, EOS)
            found.append((language.logp_of(row, tokens) / gnmt(n, alpha), tokens))
    return sorted(found, reverse=True)


def beam_search(language, row, beam, limit, alpha, fairseq=False):
    """To the limit, or, as fairseq does, until as many have ended as there are beams."""
    live, pool = [(0.0, ())], []
    for t in range(1, limit + 1):
        extensions = [
            (logp + more, (*tokens, token))
            for logp, tokens in live
            for token, more in enumerate(language.next(row, tokens))
            if not fairseq or allowed_by_fairseq(token, t, limit)
        ]
        candidates = sorted(extensions, reverse=True)[: 2 * beam]
        live = []
        for rank, (logp, tokens) in enumerate(candidates):
            if tokens[-1] != EOS:
                live.append((logp, tokens))
            elif not fairseq:
                pool.append((logp / gnmt(t, alpha), logp, tokens))
            elif rank < beam and len(pool) < beam:
                pool.append((logp / power(t, alpha), logp, tokens))
        live = live[:beam]
        if fairseq and len(pool) == beam:
            break
    pool = sorted(pool, reverse=True)[:beam]
    return pool or [(logp, logp, tokens) for logp, tokens in live]


def allowed_by_fairseq(token, t, limit):
    if t == limit:
        return token == EOS
    return token != PAD and (token != EOS or t > 1)
