"""Greedy and beam search, held against enumeration and against searches in plain Python."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_language import BOS, EOS, PAD, ToyLanguage, all_ended, beam_search, step

from vitjax.decoding import beam, conventions, greedy
from vitjax.errors import UserError

# Of sums of a few float32 log-probabilities. Seen: 9e-7.
ERROR = dict(rtol=2e-6, atol=2e-6)


@functools.cache
def program(options):
    """The compiled search, which languages of one size share."""
    return jax.jit(lambda cache, limits: beam.search(step, cache, limits=limits, **dict(options)))


def found_by_beam(language, limits=None, **options):
    limits = np.full(language.rows, options["max_length"]) if limits is None else limits
    run = program(tuple(sorted(language.arguments(**options).items())))
    return jax.device_get(run(language.cache(), jnp.asarray(limits)))


def compare(found, row, expected):
    """Holds one row against [(score, logp, tokens)]."""
    for k, (score, logp, tokens) in enumerate(expected):
        assert tuple(found.seqs[row, k, : len(tokens)].tolist()) == tokens
        assert (found.seqs[row, k, len(tokens) :] == PAD).all()
        np.testing.assert_allclose(found.scores[row, k], score, **ERROR)
        np.testing.assert_allclose(found.logp[row, k], logp, **ERROR)
    assert np.isneginf(found.scores[row, len(expected) :]).all()


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_a_beam_that_holds_everything_finds_the_best_of_all(alpha):
    language = ToyLanguage(rows=3, vocab_size=4, seed=1)
    found = found_by_beam(language, beam=64, max_length=4, alpha=alpha)
    for row in range(3):
        everything = all_ended(language, row, 4, alpha)
        assert len(everything) == 40  # 1 + 3 + 9 + 27
        expected = [(score, language.logp_of(row, tokens), tokens) for score, tokens in everything]
        compare(found, row, expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beams", [1, 4])
def test_beam_search_is_that_of_the_definition(beams, seed):
    language = ToyLanguage(rows=6, vocab_size=9, seed=seed, eos=1.0)
    limits = np.asarray([9, 1, 4, 2, 7, 9])
    found = found_by_beam(language, limits, beam=beams, max_length=9, alpha=0.6)
    for row, limit in enumerate(limits):
        compare(found, row, beam_search(language, row, beams, limit, 0.6))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("beams", [1, 4])
def test_fairseq_s_beam_search_is_that_of_the_definition(beams, seed):
    language = ToyLanguage(rows=6, vocab_size=9, seed=seed, eos=1.0)
    limits = np.asarray([9, 1, 4, 2, 7, 9])
    found = found_by_beam(language, limits, beam=beams, max_length=9, alpha=1.0, convention="fairseq")
    for row, limit in enumerate(limits):
        expected = beam_search(language, row, beams, limit, 1.0, fairseq=True)
        compare(found, row, expected)
        assert all(tokens[-1] == EOS for _, _, tokens in expected)


def test_conventions_differ_where_they_should():
    language = ToyLanguage(rows=6, vocab_size=9, seed=0, eos=1.0)
    ours = found_by_beam(language, beam=4, max_length=9, alpha=0.6)
    theirs = found_by_beam(language, beam=4, max_length=9, alpha=1.0, convention="fairseq")
    assert (ours.seqs[:, 0] != theirs.seqs[:, 0]).any()
    assert (ours.seqs[:, 0, 0] == EOS).any() and not (theirs.seqs[:, :, 0] == EOS).any()


def test_stopping_early_changes_nothing_but_the_work():
    language = ToyLanguage(rows=6, vocab_size=9, seed=3, eos=3.0)
    options = dict(beam=4, max_length=30, alpha=0.6)
    full, all_steps = found_and_steps(language, stop="never", **options)
    worst, steps_worst = found_and_steps(language, stop="worst", **options)
    best, steps_best = found_and_steps(language, stop="best", **options)
    jax.tree.map(np.testing.assert_array_equal, worst, full)
    np.testing.assert_array_equal(best.seqs[:, 0], full.seqs[:, 0])
    assert steps_best < steps_worst < all_steps == 30


def found_and_steps(language, limits=None, **options):
    """What is found, and how often the search asked what comes next."""
    calls = []

    def counted(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        return step(tokens, cache)

    arguments = language.arguments(limits=limits, **options)
    found = jax.device_get(jax.jit(lambda cache: beam.search(counted, cache, **arguments))(language.cache()))
    jax.effects_barrier()
    return found, len(calls)


def test_without_an_end_the_live_hypotheses_come_back():
    language = ToyLanguage(rows=6, vocab_size=9, seed=5, eos=-50.0)
    found = found_by_beam(language, np.full(6, 4), beam=4, max_length=9, alpha=0.6)
    np.testing.assert_array_equal(found.scores, found.logp)
    assert not (found.seqs == EOS).any()
    for row in range(6):
        compare(found, row, beam_search(language, row, 4, 4, 0.6))


def test_greedy_search_takes_the_likeliest_token_until_its_end():
    language = ToyLanguage(rows=6, vocab_size=7, seed=2)
    limits = np.asarray([12, 3, 12, 12, 1, 12])
    search = functools.partial(greedy.search, step, **language.arguments(max_length=12))
    found = jax.device_get(jax.jit(search)(language.cache(), limits=jnp.asarray(limits)))
    for row, limit in enumerate(limits):
        tokens = ()
        while len(tokens) < limit and EOS not in tokens:
            tokens = (*tokens, int(language.next(row, tokens).argmax()))
        logp = language.logp_of(row, tokens)
        compare(found, row, [(logp, logp, tokens)])


def test_a_row_with_limit_0_costs_nothing_and_disturbs_nobody():
    language = ToyLanguage(rows=6, vocab_size=9, seed=4)
    limits = np.asarray([0, 6, 0, 8, 0, 0])
    found = found_by_beam(language, limits, beam=4, max_length=9, alpha=0.6)
    assert (found.seqs[[0, 2]] == PAD).all()
    for row in (1, 3):
        compare(found, row, beam_search(language, row, 4, limits[row], 0.6))
    _, steps = found_and_steps(language, limits=jnp.asarray([0, 0, 2, 0, 1, 0]), beam=4, max_length=9)
    assert steps == 2


def test_a_cache_goes_with_its_hypothesis_and_what_a_step_hands_through_is_not_moved():
    """Of a step that takes what came before from what it has written itself."""
    language = ToyLanguage(rows=6, vocab_size=9, seed=6, eos=-1.0)

    def remembering(tokens, cache):
        time = cache["time"][0]
        written = jax.lax.dynamic_update_slice_in_dim(cache["written"], tokens[:, None], time + 1, 1)
        cache = cache | {"written": written, "time": cache["time"] + 1}
        return cache["logits"][jnp.arange(24), written[:, time], written[:, time + 1]], cache

    cache = language.cache() | {"written": jnp.zeros((6, 10), jnp.int32), "time": jnp.zeros(6, jnp.int32)}
    del cache["before"]
    options = language.arguments(beam=4, max_length=9, alpha=0.6)
    search = jax.jit(lambda cache: beam.search(remembering, cache, **options))
    expected = found_by_beam(language, beam=4, max_length=9, alpha=0.6)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(search(cache)), expected)
    traced = str(jax.make_jaxpr(search)(cache))
    assert "i32[24,10] = gather" in traced and "f32[24,9,9,9] = gather" not in traced


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
        beam.search(step, language.cache(), **language.arguments(beam=2, max_length=3) | wrong)


@pytest.mark.parametrize("name", conventions.CONVENTIONS)
def test_ids_are_those_that_are_given(name):
    """The same language with its tokens numbered in another way; it ends before it repeats itself in ties."""
    language = ToyLanguage(rows=6, vocab_size=9, seed=7, eos=2.0)
    order = np.asarray([3, 5, 0, 8, 1, 2, 7, 6, 4])  # new id -> old id
    new = np.argsort(order)

    def renumbered(tokens, cache):
        logits, cache = step(jnp.asarray(order)[tokens], cache)
        return logits[:, order], cache

    options = dict(beam=4, max_length=9, alpha=0.6, convention=name)
    ids = dict(bos=int(new[BOS]), eos=int(new[EOS]), pad=int(new[PAD]))
    arguments = language.arguments(**options) | ids
    found = jax.device_get(
        jax.jit(lambda cache: beam.search(renumbered, cache, **arguments))(language.cache())
    )
    expected = found_by_beam(language, **options)
    np.testing.assert_array_equal(order[found.seqs], expected.seqs)
    np.testing.assert_allclose(found.scores, expected.scores, **ERROR)
