"""Beam search as one compiled loop over fixed shapes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vitjax.decoding import Found, conventions
from vitjax.errors import UserError

Step = Callable[[jax.Array, Any], tuple[jax.Array, Any]]


class _Hypotheses(NamedTuple):
    """K hypotheses a row: tokens `[B, K, L]`, order `[B, K]` (-inf: there is none), log-probabilities."""

    seqs: jax.Array
    scores: jax.Array
    logp: jax.Array


class _State(NamedTuple):
    length: jax.Array  # tokens generated so far, of every live hypothesis
    live: _Hypotheses  # ordered by log-probability
    pool: _Hypotheses  # finished
    done: jax.Array  # bool [B]
    cache: Any


def search(
    step: Step,
    cache: Any,
    *,
    batch: int,
    beam: int,
    vocab_size: int,
    bos: int,
    eos: int,
    pad: int,
    max_length: int,
    limits: jax.Array | None = None,
    alpha: float = 0.6,
    convention: str = "tensor2tensor",
    stop: str | None = None,
) -> Found:
    """Finds for each row `beam` sequences of high probability. To be called within a jitted function.

    Every live hypothesis is extended by every token; of the extensions, the best 2 * beam are candidates.
    Those that end go to a pool of at most `beam`, the best `beam` others live on. A leaf of the cache that
    `step` returns as it came is taken to be the same for all hypotheses of a row, and is not moved.

    Args:
      step: `(tokens int32 [N], cache) -> (logits or log-probabilities [N, V], cache)` with N = batch * beam,
        the hypotheses of a row side by side; of the first call all tokens are `bos`.
      cache: tree of arrays with leading axis `batch`, as before the first token.
      batch: rows, B.
      beam: hypotheses a row, K.
      vocab_size: V.
      bos: what stands before the first token.
      eos: what ends a sequence.
      pad: what stands behind it.
      max_length: most tokens of any sequence, eos included: L.
      limits: most tokens of each row's sequences, `[B]`, at most `max_length`, which is the default. A row
        with 0 is done from the start; what is returned for it means nothing.
      alpha: exponent of the length penalty; 0 for none.
      convention: a name of `conventions.CONVENTIONS`.
      stop: a name of `conventions.STOPS`; by default that of the convention.

    Raises:
      UserError: an unknown name, or a size below what makes sense.
    """
    how = conventions.get(convention)
    is_done = conventions.stop_rule(how.stop if stop is None else stop)
    check_sizes(beam=beam, max_length=max_length)
    if vocab_size < 2:
        raise UserError(f"vocab_size={vocab_size}: a search needs 2 tokens or more to choose from.")
    limits = jnp.full(batch, max_length) if limits is None else jnp.minimum(limits, max_length)

    def extend(state: _State) -> _State:
        t = state.length + 1
        last = state.live.seqs[:, :, jnp.maximum(state.length - 1, 0)]
        tokens = jnp.where(state.length == 0, bos, last).reshape(-1)
        logits, cache = step(tokens, state.cache)
        if logits.shape != (batch * beam, vocab_size):
            raise ValueError(f"step returned {logits.shape}, not {(batch * beam, vocab_size)}.")
        logp = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beam, vocab_size)
        logp = _allowed(logp, t, limits, how, eos=eos, pad=pad)

        total = (state.live.logp[..., None] + logp).reshape(batch, -1)
        best, index = jax.lax.top_k(total, 2 * beam)
        parent, token = index // vocab_size, index % vocab_size
        seqs = jnp.take_along_axis(state.live.seqs, parent[..., None], axis=1)
        seqs = jax.lax.dynamic_update_slice_in_dim(seqs, token[..., None], t - 1, axis=2)
        ends = token == eos

        enter = ends & (jnp.arange(2 * beam) < beam) if how.ends_within_beam else ends
        scores = jnp.where(enter, best / how.penalty(t, alpha), -jnp.inf)
        pool = _joined(state.pool, _Hypotheses(seqs, scores, best), beam, how.pool_keeps_first)
        going_on = jnp.where(ends, -jnp.inf, best)
        live, places = _best(_Hypotheses(seqs, going_on, going_on), beam)
        live_parents = jnp.take_along_axis(parent, places, axis=1)

        # Of a row that is done nothing changes any more; its cache does, which nobody looks at.
        live, pool = (
            jax.tree.map(lambda new, old: jnp.where(_like(state.done, new), old, new), new, old)
            for new, old in ((live, state.live), (pool, state.pool))
        )
        # A live hypothesis loses log-probability with each token, so this is the best it can come to.
        bound = live.logp[:, 0] / jnp.maximum(how.penalty(t + 1, alpha), how.penalty(limits, alpha))
        done = state.done | (t >= limits) | is_done(pool.scores, bound)
        return _State(t, live, pool, done, _moved(state.cache, cache, live_parents))

    state = jax.lax.while_loop(
        lambda state: ~jnp.all(state.done), extend, _start(cache, batch, beam, max_length, pad, limits)
    )
    pool, _ = _best(state.pool, beam)
    finished = jnp.isfinite(pool.scores).any(axis=1)
    return Found(
        *jax.tree.map(lambda a, b: jnp.where(_like(finished, a), a, b), tuple(pool), tuple(state.live))
    )


def check_sizes(**sizes: int) -> None:
    """Refuses sizes below 1, by name."""
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}={size}: 1 or more.")


def _start(cache: Any, batch: int, beam: int, max_length: int, pad: int, limits: jax.Array) -> _State:
    """One live hypothesis a row, without tokens, and no finished one."""
    seqs = jnp.full((batch, beam, max_length), pad, jnp.int32)
    nothing = jnp.full((batch, beam), -jnp.inf, jnp.float32)
    live = nothing.at[:, 0].set(0)
    return _State(
        length=jnp.int32(0),
        live=_Hypotheses(seqs, live, live),
        pool=_Hypotheses(seqs, nothing, nothing),
        done=limits < 1,
        cache=jax.tree.map(lambda leaf: jnp.repeat(leaf, beam, axis=0), cache),
    )


def _allowed(
    logp: jax.Array, t: jax.Array, limits: jax.Array, how: conventions.Convention, *, eos: int, pad: int
) -> jax.Array:
    """Rules out, in log-probabilities `[B, K, V]` of the t-th token, what the convention does."""
    vocabulary, last = jnp.arange(logp.shape[-1]), (limits <= t)[:, None, None]
    if how.never_pad_or_empty:
        ruled_out = (vocabulary == pad) | ((vocabulary == eos) & (t == 1) & ~last)
        logp = jnp.where(ruled_out, -jnp.inf, logp)
    if how.forces_end:
        logp = jnp.where(last & (vocabulary != eos), -jnp.inf, logp)
    return logp


def _best(found: _Hypotheses, count: int) -> tuple[_Hypotheses, jax.Array]:
    """The `count` best of each row, best first, and where they stood."""
    _, places = jax.lax.top_k(found.scores, count)
    return _taken(found, places), places


def _joined(pool: _Hypotheses, new: _Hypotheses, size: int, keep_first: bool) -> _Hypotheses:
    """The pool after new hypotheses; at equal scores, who was there stays."""
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), pool, new)
    if not keep_first:
        return _best(both, size)[0]
    # The new ones are ordered by log-probability, and so, being of one length, by score.
    empty = ~jnp.isfinite(both.scores)
    return _taken(both, jnp.argsort(empty, axis=1, stable=True)[:, :size])


def _taken(found: _Hypotheses, places: jax.Array) -> _Hypotheses:
    """Hypotheses at these places `[B, count]` of each row."""
    seqs = jnp.take_along_axis(found.seqs, places[..., None], axis=1)
    scores, logp = (jnp.take_along_axis(x, places, axis=1) for x in (found.scores, found.logp))
    return _Hypotheses(seqs, scores, logp)


def _moved(old: Any, new: Any, parents: jax.Array) -> Any:
    """The cache whose rows are those of the hypotheses' parents `[B, K]`."""
    batch, beam = parents.shape
    rows = (jnp.arange(batch)[:, None] * beam + parents).reshape(-1)
    # While this is traced, what a step hands through is the very same object.
    return jax.tree.map(lambda before, after: after if after is before else after[rows], old, new)


def _like(rows: jax.Array, array: jax.Array) -> jax.Array:
    """Rows `[B]` shaped to be broadcast against `array` `[B, ...]`."""
    return rows.reshape(-1, *(1,) * (array.ndim - 1))
