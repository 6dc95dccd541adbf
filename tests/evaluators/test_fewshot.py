import numpy as np
import pytest
import stand_ins

from vitjax import evaluators
from vitjax.errors import UserError
from vitjax.evaluators import fewshot

DIM, CLASSES = 12, 4


def split(seed, per_class):
    """Noisy class centres with features of very different offset and scale, in random order."""
    centres = np.random.default_rng(0).standard_normal((CLASSES, DIM))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(CLASSES), per_class)).astype(np.int32)
    features = centres[labels] + 1.5 * rng.standard_normal((len(labels), DIM))
    features = features * np.geomspace(0.1, 10, DIM) + np.linspace(-20, 20, DIM)
    return stand_ins.Source(features.astype(np.float32), labels, CLASSES)


@pytest.fixture
def make(sources):
    sources["toy", "train"], sources["toy", "test"] = split(1, 12), split(2, 25)

    def make(num_devices=1, **section):
        context = evaluators.Context(stand_ins.Task(), stand_ins.mesh(num_devices))
        section = {"type": "fewshot", "datasets": {"toys": ("toy", "train", "test")}, "pp": "", **section}
        return evaluators.create("shots", section, context=context, defaults={"batch_size": 16, "loss": "x"})

    return make


def reference(features, labels, test_features, test_labels, shots, seed, l2):
    """The probe by its normal equations, in float64."""
    rng = np.random.default_rng(seed)
    chosen = np.concatenate([rng.permutation(np.where(labels == c)[0])[:shots] for c in range(CLASSES)])
    x = features[chosen]
    mean, std = x.mean(0), np.sqrt(((x - x.mean(0)) ** 2).mean(0)) + 1e-5
    prepare = lambda x: np.concatenate([(x - mean) / std, np.full((len(x), 1), 100.0)], axis=1)
    x, y = prepare(x), np.where(labels[chosen][:, None] == np.arange(CLASSES), 1.0, -1.0)
    w = np.linalg.solve(x.T @ x + l2 * np.eye(DIM + 1), x.T @ y)
    scores = prepare(test_features) @ w
    return np.mean(scores.argmax(1) == test_labels), scores


@pytest.mark.parametrize("num_devices", [1, 4])
def test_metrics_equal_an_independent_solution(make, sources, num_devices):
    state = stand_ins.train_state(np.zeros((DIM, 2), np.float32))
    got = dict(make(num_devices, shots=(1, 5, 12), l2_reg=3.0).run(state))
    train, test = sources["toy", "train"], sources["toy", "test"]
    data = (2.0 * np.float64(train.images), train.labels, 2.0 * np.float64(test.images), test.labels)
    for shots in (1, 5, 12):
        values = [reference(*data, shots, seed, 3.0)[0] for seed in range(3)]
        assert [got[f"toys_{shots}shot-seed-{seed}"] for seed in range(3)] == values
        np.testing.assert_allclose(got[f"toys_{shots}shot"], np.mean(values), rtol=1e-12)
    assert len(got) == 12 and got["toys_12shot"] > got["toys_1shot"]


@pytest.mark.parametrize("shots", [1, 3, 4, 12])  # 4 and 12 examples: less and more than 13 dimensions
@pytest.mark.parametrize("l2", [1e-2, 1024.0])
def test_both_forms_of_the_solution_give_the_same_scores(shots, l2):
    train, test = split(3, 12), split(4, 5)
    data = [np.float64(train.images), train.labels, np.float64(test.images), test.labels]
    chosen = np.concatenate([members[:shots] for members in fewshot.draw(train.labels, CLASSES, seed=7)])
    weights, bias = fewshot.fit(data[0][chosen], data[1][chosen], num_classes=CLASSES, l2_reg=l2)
    scores = reference(*data, shots, 7, l2)[1]
    np.testing.assert_allclose(data[2] @ weights + bias, scores, rtol=1e-6, atol=1e-8 * np.abs(scores).max())


def test_the_defaults_are_those_of_big_vision():
    schema = evaluators.schema(fewshot.FewShot)
    default = lambda key: schema[key].default
    assert default("shots") == (1, 5, 10, 25) and default("l2_reg") == 1024.0 and default("num_seeds") == 3
    assert default("representation_layer") == "pre_logits" and fewshot.BIAS == 100.0


def test_another_layer_and_features_that_are_not_finite(make):
    state = stand_ins.train_state(np.zeros((DIM, 2), np.float32))
    options = {"shots": (2,), "num_seeds": 1}
    assert dict(make(representation_layer="deep/features", **options).run(state))["toys_2shot"] > 0.25
    broken = stand_ins.train_state(np.full((DIM, 2), np.nan, np.float32))
    assert np.isnan(dict(make(representation_layer="logits", **options).run(broken))["toys_2shot"])


def test_mistakes(make, sources):
    state = stand_ins.train_state(np.zeros((DIM, 2), np.float32))
    with pytest.raises(
        UserError, match=r"class 0 \(class 0\) has 12 examples in toy\[train\], fewer than 25"
    ):
        list(make().run(state))
    with pytest.raises(UserError, match=r"no 'pre_logit', only .*Did you mean 'pre_logits'"):
        list(make(representation_layer="pre_logit").run(state))
    with pytest.raises(UserError, match="must have the shape"):
        list(make(representation_layer="deep").run(state))
    with pytest.raises(UserError, match="has no 'lab'"):
        list(make(label_key="lab").run(state))
    with pytest.raises(UserError, match=r"datasets\.toys='toy' must be"):
        make(datasets={"toys": "toy"})
    with pytest.raises(UserError, match=r"shots=\(0, 1\)"):
        make(shots=(0, 1))
    with pytest.raises(UserError, match="num_seeds=0"):
        make(num_seeds=0)
