"""Greedy and beam search, held against enumeration and against searches in plain Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding.toy_language import BOS, EOS, PAD, ToyLanguage, all_ended, beam_search

from vitjax.decoding import beam, conventions, greedy
from vitjax.errors import UserError

# Of sums of a few float32 log-probabilities. Seen: 9e-7.
ERROR = dict(rtol=2e-6, atol=2e-6)


def found_by_beam(language, limits=None, **options):
    arguments = language.arguments(**options)
    run = jax.jit(lambda cache, limits: beam.search(language.step, cache, limits=limits, **arguments))
    limits = None if limits is None else jnp.asarray(limits)
    return jax.device_get(run(language.cache(), limits))


def tokens_of(sequence):
    """A row of `seqs` up to its eos, or up to padding."""
    tokens = sequence.tolist()
    return tuple(tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens)


def compare(found, row, expected):
    """Holds one row against [(score, logp, tokens)]."""
    for k, (score, logp, tokens) in enumerate(expected):
        assert tuple(found.seqs[row, k, : len(tokens)].tolist()) == tokens
        assert (found.seqs[row, k, len(tokens) :] == PAD).all()
        np.testing.assert_allclose(found.scores[row, k], score, **ERROR)
        np.testing.assert_allclose(found.logp[row, k], logp, **ERROR)
    assert np.isneginf(found.scores[row, len(expected) :]).all()


@pytest.mark.parametrize("alpha", [0.0, 0.6, 2.0])
def test_a_beam_that_holds_everything_finds_the_best_of_all(alpha):
    language = ToyLanguage(rows=3, vocab_size=4, seed=1)
    found = found_by_beam(language, beam=64, max_length=4, alpha=alpha)
    for row in range(3):
        everything = all_ended(language, row, 4, alpha)
        assert len(everything) == 40  # 1 + 3 + 9 + 27
        expected = [(score, language.logp_of(row, tokens), tokens) for score, tokens in everything]
        compare(found, row, expected)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_beam_search_is_that_of_the_definition(beams, seed):
    language = ToyLanguage(rows=6, vocab_size=9, seed=seed, eos=1.0)
    limits = np.asarray([9, 1, 4, 2, 7, 9])
    found = found_by_beam(language, limits, beam=beams, max_length=9, alpha=0.6)
    for row, limit in enumerate(limits):
        compare(found, row, beam_search(language, row, beams, limit, 0.6))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("beams", [1, 2, 5])
def test_fairseq_s_beam_search_is_that_of_the_definition(beams, seed):
    language = ToyLanguage(rows=6, vocab_size=9, seed=seed, eos=1.0)
    limits = np.asarray([9, 1, 4, 2, 7, 9])
    found = found_by_beam(language, limits, beam=beams, max_length=9, alpha=1.0, convention="fairseq")
    for row, limit in enumerate(limits):
        expected = beam_search(language, row, beams, limit, 1.0, fairseq=True)
        compare(found, row, expected)
        assert all(tokens[-1] == EOS for _, _, tokens in expected)


def test_conventions_differ_where_they_should():
    language = ToyLanguage(rows=8, vocab_size=9, seed=0, eos=1.0)
    ours, theirs = (
        found_by_beam(language, beam=3, max_length=9, convention=name)
        for name in ("tensor2tensor", "fairseq")
    )
    assert (ours.seqs[:, 0] != theirs.seqs[:, 0]).any()
    assert (ours.seqs[:, 0, 0] == EOS).any() and not (theirs.seqs[:, :, 0] == EOS).any()


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
def test_stopping_early_changes_nothing_but_the_work(alpha):
    language = ToyLanguage(rows=8, vocab_size=9, seed=3, eos=3.0)
    options = dict(beam=4, max_length=30, alpha=alpha)
    full = found_by_beam(language, stop="never", **options)
    worst = found_by_beam(language, stop="worst", **options)
    best = found_by_beam(language, stop="best", **options)
    jax.tree.map(np.testing.assert_array_equal, worst, full)
    np.testing.assert_array_equal(best.seqs[:, 0], full.seqs[:, 0])
    assert steps_taken(language, stop="best", **options) < steps_taken(language, stop="worst", **options)
    assert steps_taken(language, stop="worst", **options) < steps_taken(language, stop="never", **options)


def steps_taken(language, **options):
    """How often the search asks what comes next."""
    calls = []

    def step(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        return language.step(tokens, cache)

    arguments = language.arguments(**options)
    jax.block_until_ready(jax.jit(lambda cache: beam.search(step, cache, **arguments))(language.cache()))
    jax.effects_barrier()
    return len(calls)


def test_without_an_end_the_live_hypotheses_come_back():
    language = ToyLanguage(rows=3, vocab_size=6, seed=5, eos=-50.0)
    found = found_by_beam(language, beam=3, max_length=4, alpha=0.6)
    np.testing.assert_array_equal(found.scores, found.logp)
    assert not (found.seqs == EOS).any()
    for row in range(3):
        compare(found, row, beam_search(language, row, 3, 4, 0.6))


def test_greedy_search_takes_the_likeliest_token_until_its_end():
    language = ToyLanguage(rows=6, vocab_size=7, seed=2)
    limits = np.asarray([12, 3, 12, 12, 1, 12])
    search = functools.partial(greedy.search, language.step, **language.arguments(max_length=12))
    found = jax.device_get(jax.jit(search)(language.cache(), limits=jnp.asarray(limits)))
    for row, limit in enumerate(limits):
        tokens = ()
        while len(tokens) < limit and EOS not in tokens:
            tokens = (*tokens, int(language.next(row, tokens).argmax()))
        logp = language.logp_of(row, tokens)
        compare(found, row, [(logp, logp, tokens)])


def test_a_row_with_limit_0_costs_nothing_and_disturbs_nobody():
    language = ToyLanguage(rows=4, vocab_size=9, seed=4)
    limits = np.asarray([0, 6, 0, 8])
    found = found_by_beam(language, limits, beam=3, max_length=8)
    assert (found.seqs[[0, 2]] == PAD).all()
    for row in (1, 3):
        compare(found, row, beam_search(language, row, 3, limits[row], 0.6))
    assert steps_taken(language, limits=jnp.zeros(4, int), beam=3, max_length=8) == 0


def test_what_a_step_hands_through_is_not_moved():
    """And what it changes goes with the hypothesis: here, the tokens themselves."""
    language = ToyLanguage(rows=5, vocab_size=9, seed=6, eos=-1.0)
    arguments = language.arguments(beam=4, max_length=8, alpha=0.6)

    def remembering(tokens, cache):
        """Takes what came before from what it has written itself."""
        assert cache["source"].shape == (20,)
        time = cache["time"][0]
        written = jax.lax.dynamic_update_slice_in_dim(cache["written"], tokens[:, None], time + 1, 1)
        cache = cache | {"written": written, "time": cache["time"] + 1}
        before, last = written[:, time], written[:, time + 1]
        return jnp.asarray(language.logits)[cache["source"], before, last], cache

    cache = {
        "source": jnp.arange(5),
        "written": jnp.zeros((5, 9), jnp.int32),
        "time": jnp.zeros(5, jnp.int32),
    }
    program = jax.jit(lambda cache: beam.search(remembering, cache, **arguments))
    found = jax.device_get(program(cache))
    jax.tree.map(np.testing.assert_array_equal, found, found_by_beam(language, beam=4, max_length=8))
    text = str(jax.make_jaxpr(program)(cache))
    assert text.count("i32[20,9] = gather") == 1 and "i32[20] = gather" not in text.replace("time", "")


@pytest.mark.parametrize("name", conventions.CONVENTIONS)
def test_length_penalties(name):
    lengths = np.arange(1, 200, dtype=np.float64)
    for alpha in (0.0, 0.6, 1.0):
        expected = {"tensor2tensor": ((5 + lengths) / 6) ** alpha, "fairseq": lengths**alpha}[name]
        found = conventions.get(name).penalty(jnp.asarray(lengths), alpha)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong, told",
    [
        (dict(convention="fairsek"), "Did you mean 'fairseq'"),
        (dict(stop="wurst"), "Did you mean 'worst'"),
        (dict(beam=0), "beam=0"),
        (dict(max_length=0), "max_length=0"),
        (dict(vocab_size=1), "vocab_size=1"),
    ],
)
def test_wrong_arguments_are_named(wrong, told):
    language = ToyLanguage(rows=1, vocab_size=4, seed=0)
    with pytest.raises(UserError, match=told):
        beam.search(language.step, language.cache(), **language.arguments(beam=2, max_length=3) | wrong)


def test_ids_are_those_that_are_given():
    """The same language with its tokens numbered in another way."""
    language = ToyLanguage(rows=4, vocab_size=6, seed=7)
    order = np.asarray([3, 5, 0, 1, 2, 4])  # new id -> old id
    new = np.argsort(order)
    logits = jnp.asarray(language.logits)

    def step(tokens, cache):
        tokens = jnp.asarray(order)[tokens]
        return logits[cache["source"], cache["before"], tokens][:, order], cache | {"before": tokens}

    ids = dict(bos=new[BOS], eos=new[EOS], pad=new[PAD])
    options = dict(batch=4, vocab_size=6, beam=3, max_length=6)
    for name in conventions.CONVENTIONS:
        search = functools.partial(beam.search, step, convention=name, **options, **ids)
        found = jax.device_get(jax.jit(search)(language.cache()))
        expected = found_by_beam(language, beam=3, max_length=6, convention=name)
        np.testing.assert_array_equal(order[found.seqs], expected.seqs)
        np.testing.assert_allclose(found.scores, expected.scores, **ERROR)
