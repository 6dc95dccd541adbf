import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stand_ins

from vitjax import evaluators, losses
from vitjax.errors import UserError
from vitjax.evaluators import accuracy

NUM, DIM, CLASSES = 37, 6, 11
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((NUM, DIM)).astype(np.float32)
KERNEL = 2 * RNG.standard_normal((DIM, CLASSES)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, NUM).astype(np.int32)
LABELS[RNG.permutation(NUM)[:14]] = np.argmax(IMAGES @ KERNEL, -1)[RNG.permutation(NUM)[:14]]
LABELS[[3, 36]] = -1  # a one-hot vector of zeros


def onehot(batch):
    return batch | {"labels": jax.nn.one_hot(batch["label"], CLASSES)}


@pytest.fixture
def make(sources):
    sources["toy", "test"] = stand_ins.Source(IMAGES, LABELS, CLASSES)
    sources["preprocessings"]["onehot"] = onehot

    def make(num_devices=1, progress=None, **section):
        context = evaluators.Context(stand_ins.Task(), stand_ins.mesh(num_devices), progress=progress)
        section = {"type": "accuracy", "data": "toy", "split": "test", "pp": "onehot"} | section
        defaults = {"loss": "softmax_xent", "batch_size": 8, "keep_prob": 0.5}
        return evaluators.create("val", section, context=context, defaults=defaults)

    return make


def softmax64(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(loss="softmax_xent", kernel=KERNEL):
    """All metrics in float64, one example at a time."""
    right1, right5, loss_sum, bins, seen = 0, 0, 0.0, np.zeros((15, 3)), 0
    for image, label in zip(IMAGES, LABELS, strict=True):
        if label < 0:
            continue
        logits = np.float64(image) @ np.float64(kernel)
        order, seen = np.argsort(-logits), seen + 1
        if loss == "softmax_xent":
            p = softmax64(logits)
            loss_sum -= np.log(p[label])
        else:
            p = 1 / (1 + np.exp(-logits))
            loss_sum -= np.log(p[label]) + np.log1p(-np.delete(p, label)).sum()
        right1 += order[0] == label
        right5 += label in order[:5]
        inside = [i / 15 < p[order[0]] <= (i + 1) / 15 for i in range(15)]
        bins[inside] += 1, order[0] == label, p[order[0]]
    ece = sum(n / seen * abs(r / n - c / n) for n, r, c in bins if n)
    return {"prec@1": right1 / seen, "prec@5": right5 / seen, "loss": loss_sum / seen, "ece": ece}


SHAPES = [(1, 1), (1, 8), (1, 37), (1, 64), (4, 8), (8, 5), (8, 64)]


@pytest.mark.parametrize(("num_devices", "batch_size"), SHAPES)
def test_every_example_counts_once_whatever_the_batch_and_the_devices(make, num_devices, batch_size):
    got = dict(make(num_devices, batch_size=batch_size).run(stand_ins.train_state(KERNEL)))
    want = reference()
    assert list(got) == ["prec@1", "prec@5", "loss", "ece"]
    assert got["prec@1"] == want["prec@1"] and got["prec@5"] == want["prec@5"]
    np.testing.assert_allclose([got["loss"], got["ece"]], [want["loss"], want["ece"]], rtol=1e-5)
    assert stand_ins.Batches.opened == stand_ins.Batches.closed


def test_sigmoid_loss_has_sigmoid_confidence(make):
    got, want = dict(make(loss="sigmoid_xent").run(stand_ins.train_state(KERNEL))), reference("sigmoid_xent")
    np.testing.assert_allclose([got["loss"], got["ece"]], [want["loss"], want["ece"]], rtol=1e-5)


def test_several_labels_may_be_right_and_the_label_value_counts(make, sources):
    def soft(batch):
        values = jnp.zeros(CLASSES).at[:3].set(jnp.array([1.0, 0.5, 0.25]))
        return batch | {"labels": jnp.tile(values, (len(batch["label"]), 1))}

    sources["preprocessings"]["soft"] = soft
    got = dict(make(pp="soft").run(stand_ins.train_state(KERNEL)))
    values = np.r_[1.0, 0.5, 0.25, np.zeros(CLASSES - 3)]
    order = np.argsort(-(IMAGES @ KERNEL), axis=-1)
    np.testing.assert_allclose(got["prec@1"], values[order[:, 0]].mean(), rtol=1e-6)
    np.testing.assert_allclose(got["prec@5"], values[order[:, :5]].max(-1).mean(), rtol=1e-6)


def test_fewer_than_five_classes(make, sources):
    sources["preprocessings"]["three"] = lambda b: b | {"labels": jax.nn.one_hot(b["label"] % 3, 3)}
    got = dict(make(pp="three").run(stand_ins.train_state(KERNEL[:, :3])))
    assert got["prec@5"] == 1.0


def test_averaged_parameters(make):
    state = stand_ins.train_state(-KERNEL, ema=KERNEL)
    assert dict(make(use_ema=True).run(state))["prec@1"] == reference()["prec@1"]
    assert dict(make().run(state))["prec@1"] == reference(kernel=-KERNEL)["prec@1"]
    # Averaged statistics go with them: here they let the first class win always.
    shifted = stand_ins.train_state(KERNEL, ema=KERNEL, ema_shift=1e6)
    assert dict(make(use_ema=True).run(shifted))["prec@1"] != reference()["prec@1"]
    assert dict(make().run(shifted))["prec@1"] == reference()["prec@1"]
    with pytest.raises(UserError, match="set config"):
        list(make(use_ema=True).run(stand_ins.train_state(KERNEL)))


def test_a_loss_that_is_not_finite_is_reported(make):
    got = dict(make().run(stand_ins.train_state(np.full_like(KERNEL, np.nan))))
    assert np.isnan(got["loss"])


@pytest.mark.parametrize("num_devices", [1, 4])
def test_predictions_are_those_of_all_examples_in_order(make, num_devices):
    got = make(num_devices).predictions(stand_ins.train_state(KERNEL))
    logits = np.float64(IMAGES) @ np.float64(KERNEL)
    order = np.argsort(-logits, axis=-1)[:, :5]
    np.testing.assert_array_equal(got["_id"], np.arange(NUM))
    np.testing.assert_array_equal(got["label"], LABELS)
    np.testing.assert_array_equal(got["top5"], order)
    np.testing.assert_allclose(got["top5_prob"], np.take_along_axis(softmax64(logits), order, -1), rtol=1e-5)
    confusion = np.zeros((CLASSES, CLASSES))
    np.add.at(confusion, (LABELS[LABELS >= 0], order[LABELS >= 0, 0]), 1)
    np.testing.assert_array_equal(got["confusion"], confusion)


def test_the_step_is_compiled_once_and_progress_is_told(make):
    told = []
    evaluator = make(batch_size=10, progress=lambda done, total: told.append((done, total)))
    for scale in (1, 2):
        list(evaluator.run(stand_ins.train_state(scale * KERNEL)))
    assert evaluator._sums_step._cache_size() == 1
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2


def test_confusion_of_a_hundred_classes_is_a_matrix():
    matrix = accuracy.confusion_matrix(np.array([1, 1, -1, 99]), np.array([1, 0, 5, 98]), 100)
    assert matrix.shape == (100, 100) and matrix.sum() == 3
    assert matrix[1, 1] == matrix[1, 0] == matrix[99, 98] == 1


def test_mistakes(make, sources):
    with pytest.raises(UserError, match=r"evals\.val\.splt is unknown; .* Did you mean 'split'"):
        make(splt="test")
    with pytest.raises(UserError, match="Did you mean 'softmax_xent'"):
        make(loss="softmax")
    with pytest.raises(UserError, match="Did you mean 'accuracy'"):
        make(type="acuracy")
    with pytest.raises(UserError, match="Did you mean 'log_epochs'"):
        make(log_epoch=1)
    context = evaluators.Context(stand_ins.Task(), stand_ins.mesh(1))
    with pytest.raises(UserError, match=r"evals\.val needs split and pp and loss and batch_size"):
        evaluators.create("val", {"type": "accuracy", "data": "toy"}, context=context)
    with pytest.raises(UserError, match="has no type"):
        evaluators.create("val", {"data": "toy"}, context=context)
    with pytest.raises(UserError, match=r"toy\[test\] has no 'labels'.*onehot"):
        list(make(pp="").run(stand_ins.train_state(KERNEL)))
    with pytest.raises(UserError, match=r"Logits of shape \(8, 11\)"):
        sources["preprocessings"]["nine"] = lambda b: b | {"labels": jax.nn.one_hot(b["label"], 9)}
        list(make(pp="nine").run(stand_ins.train_state(KERNEL)))
    with pytest.raises(UserError, match="no example with a label"):
        sources["preprocessings"]["zeros"] = lambda b: b | {"labels": jnp.zeros((8, CLASSES))}
        list(make(pp="zeros").run(stand_ins.train_state(KERNEL)))
    with pytest.raises(UserError, match="batch_size=0"):
        make(batch_size=0)
    assert stand_ins.Batches.opened == stand_ins.Batches.closed


def test_own_evaluators_are_found_by_path():
    assert evaluators.get("vitjax.evaluators.accuracy.Accuracy") is evaluators.get("accuracy")
    schema = evaluators.schema(accuracy.Accuracy)
    assert "context" not in schema and "split" in schema


def test_losses_are_called_as_they_are_registered(make):
    assert make(loss="sigmoid_xent", log_epochs=1).loss_fn is losses.sigmoid_xent
