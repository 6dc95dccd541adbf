"""EfficientNet: sizes, rates, initialisation and refusals. Numbers are held against timm in test_goldens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.mbconv import MBConv
from vitjax.models.efficientnet import scaled_channels

IMAGE = jax.ShapeDtypeStruct((2, 32, 40, 3), np.float32)
TINY = {"num_classes": 7, "width_mult": 0.1, "depth_mult": 0.25}


def abstract(model):
    return jax.eval_shape(model.init, jax.random.key(0), IMAGE)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
        ("efficientnet_lite3", 8_197_096),
        ("tf_efficientnet_lite4", 13_006_568),
        ("efficientnet_b1", 7_794_184),
        ("tf_efficientnet_b2", 9_109_994),
    ],
)
def test_the_number_of_parameters_is_timms(name, count):
    params = abstract(models.create(name, num_classes=1000))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("size", "channels", "blocks", "ends"),
    [
        ("b0", [16, 24, 40, 80, 112, 192, 320], [1, 2, 2, 3, 3, 4, 1], (32, 1280)),
        ("b1", [16, 24, 40, 80, 112, 192, 320], [2, 3, 3, 4, 4, 5, 2], (32, 1280)),
        ("b2", [16, 24, 48, 88, 120, 208, 352], [2, 3, 3, 4, 4, 5, 2], (32, 1408)),
        ("b3", [24, 32, 48, 96, 136, 232, 384], [2, 3, 3, 5, 5, 6, 2], (40, 1536)),
        ("b4", [24, 32, 56, 112, 160, 272, 448], [2, 4, 4, 6, 6, 8, 2], (48, 1792)),
        ("b5", [24, 40, 64, 128, 176, 304, 512], [3, 5, 5, 7, 7, 9, 3], (48, 2048)),
        ("b6", [32, 40, 72, 144, 200, 344, 576], [3, 6, 6, 8, 8, 11, 3], (56, 2304)),
        ("b7", [32, 48, 80, 160, 224, 384, 640], [4, 7, 7, 10, 10, 13, 4], (64, 2560)),
    ],
)
def test_the_stages_are_those_of_the_paper(size, channels, blocks, ends):
    model = models.create(f"efficientnet_{size}")
    assert [stage[3] for stage in model.stages] == channels
    assert [stage[4] for stage in model.stages] == blocks
    assert tuple(scaled_channels(c, model.width_mult) for c in (32, 1280)) == ends
    assert (model.numerics, models.create(f"tf_efficientnet_{size}").numerics) == ("timm", "tf")


def test_stochastic_depth_grows_over_all_blocks_and_never_reaches_its_rate():
    rates = []

    def record(call, args, kwargs, context):
        if isinstance(context.module, MBConv) and context.method_name == "__call__":
            rates.append(args[1])
        return call(*args, **kwargs)

    model = models.create("efficientnet_b0", num_classes=7, width_mult=0.1, drop_path=0.2)
    with nn.intercept_methods(record):
        abstract(model)
    np.testing.assert_allclose(rates, 0.2 * np.arange(16) / 16)


def test_training_drops_features_and_blocks_and_moves_the_statistics():
    model = models.create("tf_efficientnet_b0", **{**TINY, "depth_mult": 0.5}, drop_path=0.5)
    assert model.dropout == 0.2
    variables = abstract(model)
    key = jax.random.key(1)
    train = lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})
    (logits, out), moved = jax.eval_shape(train, variables, IMAGE)
    assert logits.shape == (2, 7)
    assert jax.tree.structure(moved["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    assert [out[f"block{i}"].shape[1:3] for i in (1, 2, 3, 4, 5, 6, 7)] == [
        (16, 20), (8, 10), (4, 5), (2, 3), (2, 3), (1, 2), (1, 2)
    ]  # fmt: skip
    draws = str(jax.make_jaxpr(train)(variables, IMAGE)).count("name=_bernoulli")
    assert draws == 1 + 3  # dropout; the second block of each of three stages has a sum


def test_initialisation_is_timms():
    model = models.create("efficientnet_b0", num_classes=400, depth_mult=0.25)

    @jax.jit
    def drawn(key):  # what is not returned is not computed
        params = model.init(key, jnp.zeros((1, 32, 32, 3)))["params"]
        return params["block6"]["unit1"], params["conv_root"], params["head"]

    unit, root, head = drawn(jax.random.key(0))
    deviation = lambda leaf: float(leaf["kernel"].std())
    assert deviation(unit["conv_dw"]) == pytest.approx(np.sqrt(2 / 25), rel=0.02)
    assert deviation(unit["conv_pw"]) == pytest.approx(np.sqrt(2 / (6 * 112)), rel=0.02)
    assert deviation(unit["se"]["reduce"]) == pytest.approx(np.sqrt(2 / 28), rel=0.03)
    assert deviation(root) == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.08)
    kernel = np.asarray(head["kernel"])
    assert 0.0499 < kernel.max() <= 0.05 and -0.05 <= kernel.min() < -0.0499  # 1 / sqrt(classes)
    assert not np.any(head["bias"])


def test_dtype_and_remat():
    model = models.create("efficientnet_b0", **TINY, dtype="bfloat16", remat="nothing_saveable")
    variables = abstract(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x))(variables, IMAGE)
    assert {value.dtype for value in traced.out_avals} == {np.dtype("float32")}
    assert str(traced).count("remat") >= 7 and "bf16[8,6," not in str(traced).split("->")[0]
    plain = models.create("efficientnet_b0", **TINY)
    assert "bf16" in str(traced) and "bf16" not in str(jax.make_jaxpr(plain.apply)(variables, IMAGE))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"numerics": "keras"}, "numerics='keras' is none of 'timm', 'tf'"),
        ({"width_mult": 0.0}, "width_mult=0.0 must be more than 0"),
        ({"depth_mult": float("inf")}, "depth_mult=inf"),
        ({"dropout": 1.0}, "dropout=1.0 is not a rate"),
        ({"drop_path": -0.1}, "drop_path=-0.1 is not a rate"),
        ({"remat": "everything"}, "remat='everything'"),
    ],
)
def test_bad_fields_are_refused(fields, told):
    with pytest.raises(UserError, match=told):
        models.create("efficientnet_b0", **fields)


def test_bad_images_and_names_are_refused():
    model = models.create("efficientnet_lite0", **TINY)
    with pytest.raises(UserError, match="float images"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3), jnp.uint8))
    with pytest.raises(UserError, match="efficientnet_b7"):
        models.create("efficientnet_b9")
