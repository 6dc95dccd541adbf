"""ResNet, BiT and RegNet: published sizes, initialisation, what the fields do, and bad values.

What they compute is held against timm in tests/test_goldens.py.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.models.regnet import REGNETS, generate
from vitjax.weights.tree import flatten

KEY = jax.random.key(0)
IMAGE = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
TINY = {
    "resnet50": {"units": (1, 1), "widths": (4, 8)},
    "regnety_400mf": {"depth": 2, "w0": 16, "wa": 16.0, "wm": 2.0, "root_width": 12},
    "bit_r50x1": {"units": (1, 1), "widths": (32, 32), "root_width": 32},
}


def tiny(name, **fields):
    return models.create(name, num_classes=5, **{**TINY[name], **fields})


@pytest.mark.parametrize(
    ("name", "expected"),
    [("resnet34", 21_797_672), ("regnety_400mf", 4_344_144), ("bit_r50x3", 217_319_080)],
)
def test_published_parameter_counts(name, expected):
    shapes = jax.eval_shape(models.create(name, num_classes=1000).init, KEY, IMAGE[:1])["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected


def test_the_generator_makes_the_published_stages():
    assert {name: generate(*numbers) for name, numbers in REGNETS.items()} == {
        "regnety_400mf": ([48, 104, 208, 440], [1, 3, 6, 6]),
        "regnety_800mf": ([64, 128, 320, 768], [1, 3, 8, 2]),
        "regnety_1_6gf": ([48, 120, 336, 888], [2, 6, 17, 2]),
        "regnety_3_2gf": ([72, 216, 576, 1512], [2, 5, 13, 1]),
        "regnety_4gf": ([128, 192, 512, 1088], [2, 6, 12, 2]),
        "regnety_8gf": ([168, 448, 896, 2016], [2, 4, 10, 1]),
        "regnety_12gf": ([224, 448, 896, 2240], [2, 5, 11, 1]),
        "regnety_16gf": ([224, 448, 1232, 3024], [2, 4, 11, 1]),
    }


def test_initialisation():
    def draw(names, name, **fields):
        init = models.create(name, **fields).init
        drawn = lambda: flatten(init(KEY, IMAGE[:1])["params"])
        return jax.jit(lambda: {key: leaf for key, leaf in drawn().items() if re.fullmatch(names, key)})()

    names = r"head/.*|conv_root/.*|block1/unit1/bn.*|block1/unit1/conv2/.*|.*/reduce/kernel"
    params = draw(names, "resnet50", num_classes=500, units=(1,), widths=(64,))
    limit = 1 / np.sqrt(256)  # PyTorch's Linear
    for leaf in (params["head/kernel"], params["head/bias"]):
        assert 0.95 * limit < np.max(leaf) <= limit and -limit <= np.min(leaf) < -0.95 * limit
    deviation = np.std(params["conv_root/kernel"])
    np.testing.assert_allclose(deviation, np.sqrt(2 / (49 * 64)), rtol=0.05)
    assert not np.any(params["block1/unit1/bn3/scale"])  # a new unit passes on its shortcut
    assert np.all(params["block1/unit1/bn2/scale"] == 1)
    assert np.all(params["block1/unit1/bn_proj/scale"] == 1)

    params = draw(names, "regnety_8gf", num_classes=50, depth=1, w0=168)
    assert params["block1/unit1/conv2/kernel"].shape == (3, 3, 56, 168)
    deviation = np.std(params["block1/unit1/conv2/kernel"])
    np.testing.assert_allclose(deviation, np.sqrt(2 / (9 * 56)), rtol=0.05)  # the fan-out of one group
    assert params["block1/unit1/se/reduce/kernel"].shape == (1, 1, 168, 8)  # a quarter of the 32 that enter
    np.testing.assert_allclose(np.std(params["head/kernel"]), 0.01, rtol=0.05)
    assert not np.any(params["block1/unit1/bn3/scale"])


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_is_of_the_products_only(name):
    model = tiny(name, dtype="bfloat16")
    shapes = jax.eval_shape(model.init, KEY, IMAGE)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    out = jax.eval_shape(model.apply, shapes, IMAGE)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {np.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(model.apply)(shapes, IMAGE))
    products = re.findall(r":(\w+)\[[\d,]*\] = (?:conv_general_dilated|dot_general)", jaxpr)
    assert products.count("f32") == 1 and set(products) == {"bf16", "f32"}  # the head


@pytest.mark.parametrize("name", TINY)
def test_every_unit_but_the_first_draws_in_training(name):
    def draws(train, **fields):
        model = tiny(name, **fields)
        apply = lambda variables, key: model.apply(
            variables, IMAGE, train=train, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        shapes = jax.eval_shape(model.init, KEY, IMAGE)
        return len(re.findall(r"= random_bits\[", str(jax.make_jaxpr(apply)(shapes, KEY))))

    assert draws(True, drop_path=0.5) == 1
    assert draws(True) == draws(False, drop_path=0.5) == 0


def test_remat_and_stochastic_depth():
    """Units that are computed again drop the same examples and move the statistics once."""
    shapes = jax.eval_shape(tiny("resnet50").init, KEY, IMAGE)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape).astype(np.float32), shapes)

    def logits_and_gradient(**fields):
        def loss(variables, key):
            apply = tiny("resnet50", drop_path=0.5, **fields).apply
            (logits, _), moved = apply(
                variables, IMAGE, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.tanh(logits)), (logits, moved)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    plain, again = logits_and_gradient(), logits_and_gradient(remat="nothing_saveable")
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), rtol=1e-4)
    jax.tree.map(close, again(variables, KEY), plain(variables, KEY))
    drawn = [plain(variables, jax.random.key(seed))[0][1][0] for seed in range(6)]
    assert any(np.abs(other - drawn[0]).max() > 1e-3 for other in drawn[1:])


def test_the_small_stem_keeps_the_grid():
    shapes = lambda **fields: jax.eval_shape(lambda: tiny("resnet50", **fields).init_with_output(KEY, IMAGE))
    (_, out), variables = shapes(stem="small")
    assert out["root"].shape == (4, 16, 16, 64) and out["block2"].shape == (4, 8, 8, 32)
    assert variables["params"]["conv_root"]["kernel"].shape == (3, 3, 3, 64)
    out = shapes()[0][1]
    assert out["root"].shape == (4, 4, 4, 64) and out["block2"].shape == (4, 2, 2, 32)


@pytest.mark.parametrize("name", TINY)
def test_without_a_head(name):
    model = models.create(name, **TINY[name])
    (logits, out), variables = jax.eval_shape(lambda: model.init_with_output(KEY, IMAGE))
    assert logits.shape == out["pre_logits"].shape and "head" not in variables["params"]


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet50", {"stem": "smal"}, r"stem='smal' is none of 'imagenet', 'small'.*'small'"),
        ("resnet50", {"units": (3, 0)}, r"units=\(3, 0\)"),
        ("resnet50", {"units": (3, 4), "widths": (64,)}, r"widths=\(64,\).*one entry for each"),
        ("resnet50", {"drop_path": 1.0}, r"drop_path=1\.0 is not a rate"),
        ("resnet50", {"dtype": "float16"}, "dtype='float16'"),
        ("resnet50", {"remat": "everything"}, "Did you mean 'everything_saveable'"),
        ("resnet50", {"width": 64}, r"width is not a field.*Did you mean 'widths'"),
        ("bit_r50x1", {"root_width": 48}, "root_width=48 must be multiples of 32"),
        ("bit_r50x1", {"units": (3, 4), "widths": (64,)}, r"widths=\(64,\).*one entry for each"),
        ("regnety_8gf", {"wm": 1.0}, r"wm=1\.0"),
        ("regnety_8gf", {"se_ratio": 0.0}, r"se_ratio=0\.0 is not a share"),
        ("regnety_8gf", {"depth": 0}, "depth=0"),
    ],
)
def test_bad_values_are_refused_where_the_model_is_made(name, fields, message):
    with pytest.raises(UserError, match=message):
        models.create(name, num_classes=3, **fields)


@pytest.mark.parametrize("name", ["ResNet-50", "resnet51", "regnety_16", "bit_r50x2", "RegNetY_16GF"])
def test_names_that_are_none_have_a_neighbour(name):
    with pytest.raises(UserError, match=r"Did you mean '(resnet|regnety_|bit_r)"):
        models.create(name, num_classes=3)


def test_images_must_be_floats_of_the_channels_it_was_made_for():
    model = tiny("resnet50")
    with pytest.raises(UserError, match="float images, not uint8"):
        model.init(KEY, jnp.zeros((1, 32, 32, 3), jnp.uint8))
    variables = jax.eval_shape(model.init, KEY, IMAGE)
    with pytest.raises(UserError, match="made for images of 3 channels, but this one has 1"):
        jax.eval_shape(model.apply, variables, IMAGE[..., :1])
