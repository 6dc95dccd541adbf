"""The original Transformer: sizes of the paper's table, packed rows, what may see what, and the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.models.transformer import TABLE_3

SMALL = dict(num_classes=13, width=16, depth=1, mlp_dim=24, num_heads=2, dropout=0.0)
SAME = dict(rtol=0, atol=2e-6)  # sums of sixteen numbers about 1 in another order


def small(**fields):
    return models.create("transformer_base", **SMALL | fields)


def started(model, seed=0):
    """Variables, drawn with tables of positions that are no zeros."""
    ids = jnp.zeros((1, 3), jnp.int32)
    return jax.jit(model.init)(jax.random.key(seed), ids, ids)


def ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(3, SMALL["num_classes"], shape).astype(np.int32)


def count(name):
    model, tokens = models.create(name, num_classes=37_000), jnp.zeros((1, 4), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)["params"]
    return model, sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("row", TABLE_3)
def test_parameters_are_those_of_the_papers_formulas(row):
    """No biases in attention, biases in the MLP, norms of scale and offset, one table."""
    model, found = count(f"transformer_{row}")
    d, keys = model.width, model.head_dim or model.width // model.num_heads
    values = model.value_head_dim or keys
    attention = 2 * d * model.num_heads * (keys + values)
    mlp = 2 * d * model.mlp_dim + model.mlp_dim + d
    encoder, decoder = attention + mlp + 2 * 2 * d, 2 * attention + mlp + 3 * 2 * d
    learned = 2 * model.max_length * d if model.positions == "learned" else 0
    assert found == 37_000 * d + model.depth * (encoder + decoder) + learned


@pytest.mark.parametrize(
    ("row", "million"),
    [("base", 63.045632), ("big", 214.171648), ("b_dk16", 55.97), ("c_d256", 26.82), ("c_d1024", 163.82)],
)
def test_counts_of_the_sheet(row, million):
    assert count(f"transformer_{row}")[1] / 1e6 == pytest.approx(million, abs=0.005)


@pytest.mark.parametrize("positions", ["interleaved", "learned"])
def test_packed_sentences_are_what_each_is_alone(positions):
    """Two pairs in a row, with padding behind and between sides of different lengths."""
    model = small(positions=positions)
    variables, forward = started(model), jax.jit(model.apply)
    sources, targets = [ids(4, seed=1), ids(3, seed=2)], [ids(2, seed=3), ids(5, seed=4)]
    row = lambda parts, pad: np.concatenate([*parts, np.zeros(pad, np.int32)])[None]
    segments = lambda parts: [np.full(len(part), i + 1, np.int32) for i, part in enumerate(parts)]
    places = lambda parts: [np.arange(len(part), dtype=np.int32) for part in parts]
    packed, _ = forward(
        variables,
        row(sources, 2),
        row(targets, 1),
        inputs_positions=row(places(sources), 2),
        inputs_segments=row(segments(sources), 2),
        targets_positions=row(places(targets), 1),
        targets_segments=row(segments(targets), 1),
    )
    alone = [forward(variables, s[None], t[None])[0][0] for s, t in zip(sources, targets, strict=True)]
    np.testing.assert_allclose(packed[0, :7], np.concatenate(alone), **SAME)


def test_a_token_sees_neither_later_ones_nor_padding():
    model, source, target = small(), ids(1, 6), ids(1, 5, seed=1)
    variables, segments = started(model), np.int32([[1, 1, 1, 1, 0, 0]])
    forward = jax.jit(lambda s, t: model.apply(variables, s, t, inputs_segments=segments)[0])
    before = forward(source, target)
    other = source.copy()
    other[0, 4:] = 1  # padding
    np.testing.assert_array_equal(forward(other, target), before)
    later = target.copy()
    later[0, 3:] = 1
    np.testing.assert_array_equal(forward(source, later)[:, :3], before[:, :3])
    seen = source.copy()
    seen[0, 3] = 1
    assert np.abs(forward(seen, target) - before).max() > 1e-3


@pytest.mark.parametrize(
    "fields",
    [
        dict(),
        dict(norm="pre", positions="concatenated", attention_bias=True),
        dict(positions="learned", tie="none", head_dim=5, value_head_dim=7),
        dict(final_norm=True, tie="decoder", scale_logits=True, decoder_depth=1, activation="gelu"),
    ],
)
def test_a_token_at_a_time_gives_the_logits_of_the_whole(fields):
    model = small(**fields)
    variables, source, target = started(model), ids(2, 5), ids(2, 4, seed=1)
    segments = np.int32([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    whole, _ = jax.jit(model.apply)(variables, source, target, inputs_segments=segments)

    @jax.jit
    def start():
        encoded = model.apply(variables, source, segments=segments, method="encode")
        return model.apply(variables, encoded, segments, 4, method="start_cache")

    cache = start()
    assert all(len(leaf) == 2 for leaf in jax.tree.leaves(cache))
    step = jax.jit(lambda tokens, cache: model.apply(variables, tokens, cache, method="decode_step"))
    for t in range(4):
        logits, cache = step(target[:, t], cache)
        np.testing.assert_allclose(logits, whole[:, t], rtol=0, atol=1e-5)


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "activation_dropout"])
def test_each_dropout_acts_in_training_alone(rate):
    still, dropped = small(), small(**{rate: 0.5})
    variables, source, target = started(still), ids(1, 4), ids(1, 4, seed=1)
    forward = lambda model, train=False: jax.jit(
        lambda rng: model.apply(variables, source, target, train=train, rngs={"dropout": rng})[0]
    )(jax.random.key(1))
    np.testing.assert_array_equal(forward(dropped), forward(still))
    assert np.abs(forward(dropped, train=True) - forward(still)).max() > 1e-3


def test_logits_are_float32_whatever_the_products():
    model = small(dtype="bfloat16")
    variables = started(model)
    logits, _ = model.apply(variables, ids(1, 4), ids(1, 3))
    exact, _ = small().apply(variables, ids(1, 4), ids(1, 3))
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits - exact).max() < 0.1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(norm="first"), "norm='first' is none of 'post', 'pre'"),
        (dict(positions="sin"), "positions='sin' is none of"),
        (dict(num_heads=3), "width=16 cannot be split over num_heads=3 heads"),
        (dict(dropout=1.0), "dropout=1.0 is not a rate"),
        (dict(depth=0), "depth=0 must be 1 or more"),
    ],
)
def test_bad_fields_are_refused(fields, says):
    with pytest.raises(UserError, match=says):
        small(**fields)


def test_more_tokens_than_learned_positions_are_refused():
    model = small(positions="learned", max_length=4)
    variables = started(model)
    with pytest.raises(UserError, match="5 inputs are more than model\\.max_length=4"):
        model.apply(variables, ids(1, 5), ids(1, 3))
    encoded = model.apply(variables, ids(1, 4), method="encode")
    with pytest.raises(UserError, match="Targets of 9 tokens are longer"):
        model.apply(variables, encoded, None, 9, method="start_cache")
