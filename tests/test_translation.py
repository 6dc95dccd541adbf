"""Losses of tokens, the Transformer's schedules, averages of checkpoints, and scores of translations."""

import gzip
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_checks import translation as checks

from vitjax import average, checkpoint, config, losses, tasks
from vitjax.errors import UserError
from vitjax.evaluators import corpus_scores
from vitjax.optim import schedules

RNG = np.random.default_rng(0)


def smoothed(form, targets, size, s, pad):
    """Targets as dense rows, by the sheet's table."""
    off = {"uniform": s / size, "annotated": s / (size - 2)}.get(form, s / (size - 1))
    rows = np.full((len(targets), size), off)
    if form == "annotated":
        rows[:, pad] = 0
    rows[np.arange(len(targets)), targets] = 1 - s + (s / size if form == "uniform" else 0)
    return rows


@pytest.mark.parametrize("form", losses.SMOOTHING_FORMS)
def test_smoothed_losses_and_their_gradients_are_those_of_dense_targets(form):
    x, targets, s, pad = (
        RNG.standard_normal((6, 7)).astype(np.float32) * 4,
        np.array([1, 2, 3, 4, 5, 6]),
        0.2,
        0,
    )
    rows = smoothed(form, targets, 7, s, pad)
    np.testing.assert_allclose(rows.sum(-1), 1)
    shift = np.log(np.exp(np.float64(x)).sum(-1, keepdims=True))
    want = -(rows * (x - shift)).sum(-1)
    if form == "off_target_minus_entropy":
        want += (rows * np.log(rows)).sum(-1)
    loss, nll = losses.token_xent(x, targets, label_smoothing=s, form=form, pad=pad)
    np.testing.assert_allclose(loss, want, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(nll, shift[:, 0] - x[range(6), targets], rtol=2e-6, atol=1e-6)
    grad = jax.grad(lambda x: losses.token_xent(x, targets, label_smoothing=s, form=form, pad=pad)[0].sum())(
        x
    )
    np.testing.assert_allclose(grad, np.exp(x - shift) - rows, rtol=2e-5, atol=1e-6)


def test_mistakes_in_smoothing():
    with pytest.raises(UserError, match="Did you mean 'off_target'"):
        losses.token_xent(jnp.zeros((1, 3)), jnp.zeros(1, int), label_smoothing=0.1, form="offtarget")
    with pytest.raises(UserError, match="label_smoothing=1"):
        losses.token_xent(jnp.zeros((1, 3)), jnp.zeros(1, int), label_smoothing=1)
    with pytest.raises(UserError, match="needs the token of padding"):
        losses.token_xent(jnp.zeros((1, 3)), jnp.zeros(1, int), label_smoothing=0.1, form="annotated")


def test_the_schedule_of_the_paper_begins_with_step_1():
    make = lambda **options: schedules.create(
        total_steps=100, decay_type="inverse_sqrt", warmup_steps=8, lr=2e-3, **options
    )
    steps = np.arange(20)
    s = steps + 1
    np.testing.assert_allclose(make()(steps), np.minimum(s / 8, np.sqrt(8 / s)), rtol=2e-7)
    # fairseq's: the first update sees the low rate, the ninth the peak.
    fairseq = 2e-3 * make(ahead=0, warmup_lr=1e-4)(steps)
    want = np.where(steps < 8, 1e-4 + steps * (2e-3 - 1e-4) / 8, 2e-3 * np.sqrt(8 / np.maximum(steps, 1)))
    np.testing.assert_allclose(fairseq, want, rtol=3e-7)
    with pytest.raises(UserError, match="ahead=2"):
        make(ahead=2)


class Tiny:
    """Logits by a table, of the model's contract."""

    encode = start_cache = decode_step = None

    def __call__(self):
        pass

    def apply(self, variables, inputs, decoder_inputs, *, train, rngs=None, mutable=False, **places):
        assert set(places) == {"targets_segments"}
        out = variables["params"]["table"][decoder_inputs], {}
        return (out, {}) if mutable is not False else out


def test_the_task_averages_over_real_tokens_and_equal_slices_average_to_it():
    table, targets = jnp.asarray(RNG.standard_normal((5, 5)), jnp.float32), RNG.integers(1, 5, (4, 6))
    segments = np.array([[1] * n + [0] * (6 - n) for n in (6, 1, 3, 2)])
    real = segments > 0
    batch = dict(inputs=targets, decoder_inputs=targets[:, ::-1], targets=targets, targets_segments=segments)
    batch["weights"] = real / real.mean()
    task = tasks.create(dict(name="translate", label_smoothing=0.0), Tiny())
    loss, (metrics, _) = task.loss({"table": table}, {}, batch, jax.random.key(0))
    logp = np.asarray(jax.nn.log_softmax(table))[targets[:, ::-1]]
    nll = -np.take_along_axis(logp, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose([loss, metrics["nll"]], nll[real].mean(), rtol=1e-6)
    np.testing.assert_allclose(
        metrics["token_accuracy"], (logp.argmax(-1) == targets)[real].mean(), rtol=1e-6
    )
    half = lambda n: {key: value[n::2] for key, value in batch.items()}
    slices = [task.loss({"table": table}, {}, half(n), jax.random.key(0))[0] for n in (0, 1)]
    np.testing.assert_allclose(np.mean(slices), loss, rtol=1e-6)


def test_a_task_says_what_it_needs():
    with pytest.raises(UserError, match=r"needs a model that decodes.*has no 'encode'"):
        tasks.create(dict(name="translate"), types.SimpleNamespace())
    with pytest.raises(UserError, match=r"config.task: smoothing='szegedy' is unknown"):
        tasks.create(dict(name="translate", smoothing="szegedy"), Tiny())
    with pytest.raises(UserError, match=r"Translation needs 'inputs'.*token_weights"):
        tasks.create(dict(name="translate"), Tiny()).predict({}, {}, {"image": 0})


def state(value):
    return dict(
        step=np.int32(value),
        params={"a": np.full(3, value, np.float32), "b": {"c": np.float32([value, 1e-3])}},
        opt_state={"mu": np.full(3, value, np.float32)},
    )


def test_the_last_checkpoints_are_averaged_into_a_workdir(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with checkpoint.Checkpointer(tmp_path / "checkpoints", fingerprint={"x": 1}, keep_last=3) as saver:
        for step in (1, 2, 4):
            saver.save(step, state(step))
    assert average.average(tmp_path, 2) == [2, 4]
    folder = tmp_path / "averaged"
    assert (folder / "config.json").read_text() == "{}"
    with checkpoint.Checkpointer(folder / "checkpoints", fingerprint={"x": 1}) as saver:
        step, got = saver.restore(state(0))
    assert step == 4 and got["step"] == 4
    np.testing.assert_array_equal(got["params"]["a"], np.full(3, 3, np.float32))
    np.testing.assert_array_equal(got["params"]["b"]["c"], np.float32([3, 1e-3]))
    np.testing.assert_array_equal(got["opt_state"]["mu"], np.full(3, 4, np.float32))
    average.average(tmp_path, 3, tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as file:
        np.testing.assert_array_equal(file["a"], np.full(3, np.float32(7 / 3)))
    with pytest.raises(UserError, match=r"there are 3 checkpoints in .*: steps 1, 2, 4"):
        average.average(tmp_path, 4)
    with pytest.raises(UserError, match="holds checkpoints already"):
        average.average(tmp_path, 2)
    with pytest.raises(UserError, match="--last 0"):
        average.average(tmp_path, 0)


def test_golden_rules_make_the_texts_they_describe(tmp_path):
    (tmp_path / "multi30k").mkdir()
    for language, line in (("en", "a b\n"), ("de", "A B C D E F\n")):
        (tmp_path / "multi30k" / f"test_2016_flickr.{language}.gz").write_bytes(gzip.compress(line.encode()))
    made = lambda name: checks.texts({"name": f"multi30k_test2016_{name}"}, tmp_path, tmp_path)
    assert made("copy_source") == (["a b"], [["A B C D E F"]])
    assert made("drop_5th")[0] == ["A B C D F"] and made("lowercased_hyp")[0] == ["a b c d e f"]
    assert made("other") == (None, None)


def test_scores_of_unequal_lists_and_unknown_options_are_refused():
    with pytest.raises(UserError, match=r"references of \[1\]"):
        corpus_scores.bleu(["a", "b"], [["a"]])
    with pytest.raises(UserError, match="does not know the options"):
        corpus_scores.bleu(["a"], [["a"]], tokeniser="13a")


def test_compound_split_bleu_counts_the_parts():
    hypotheses, references = ["Der rich-text Editor ist gut."], [["Der rich-text Editor ist sehr gut."]]
    plain, split = (
        f(hypotheses, references) for f in (corpus_scores.bleu, corpus_scores.compound_split_bleu)
    )
    assert split.value > plain.value
    assert split.signature.endswith("|moses:de|compounds:split") and "tok:none|smooth:none" in split.signature


@pytest.mark.parametrize(
    ("arg", "lr", "steps", "tokens"),
    [
        ("base", 6.988e-4, 100_000, 26_624),
        ("big", 4.941e-4, 300_000, 26_624),
        ("small,data=multi30k:X", 5e-3, 8_000, 8_192),
        ("small,fast,data=multi30k:X", 5e-3, 2_000, 4_096),
    ],
)
def test_recipes(arg, lr, steps, tokens):
    c = config.load(f"configs/translate.py:{arg}")
    np.testing.assert_allclose(c.lr, lr, rtol=1e-4)
    assert (c.total_steps, c.input.batch_size * c.text.length) == (steps, tokens)
    assert (c.optax.b1, c.optax.b2) == (0.9, 0.98) and c.task.label_smoothing == 0.1
