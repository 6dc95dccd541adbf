"""Greedy search: at every step the likeliest token."""

from typing import Any

import jax
import jax.numpy as jnp

from vitjax.decoding import Found
from vitjax.decoding.beam import Step, check_sizes


def search(
    step: Step,
    cache: Any,
    *,
    batch: int,
    vocab_size: int,
    bos: int,
    eos: int,
    pad: int,
    max_length: int,
    limits: jax.Array | None = None,
) -> Found:
    """Extends each row by its likeliest token until that is eos. To be called within a jitted function.

    Arguments are those of `beam.search`, with one hypothesis a row. Beam search with one beam is another
    thing: it may go on behind an end. Returns `Found` with K = 1, whose scores are the log-probabilities.
    """
    check_sizes(max_length=max_length)
    limits = jnp.full(batch, max_length) if limits is None else jnp.minimum(limits, max_length)

    def extend(state: tuple) -> tuple:
        length, tokens, seqs, logp, done, cache = state
        logits, cache = step(tokens, cache)
        if logits.shape != (batch, vocab_size):
            raise ValueError(f"step returned {logits.shape}, not {(batch, vocab_size)}.")
        logits = jax.nn.log_softmax(logits.astype(jnp.float32))
        tokens = jnp.where(done, pad, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        seqs = jax.lax.dynamic_update_slice_in_dim(seqs, tokens[:, None], length, axis=1)
        logp = logp + jnp.where(done, 0, logits.max(axis=-1))
        done = done | (tokens == eos) | (length + 1 >= limits)
        return length + 1, tokens, seqs, logp, done, cache

    start = (
        jnp.int32(0),
        jnp.full(batch, bos, jnp.int32),
        jnp.full((batch, max_length), pad, jnp.int32),
        jnp.zeros(batch, jnp.float32),
        limits < 1,
        cache,
    )
    _, _, seqs, logp, _, _ = jax.lax.while_loop(lambda state: ~jnp.all(state[4]), extend, start)
    return Found(seqs[:, None], logp[:, None], logp[:, None])
