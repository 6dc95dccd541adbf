"""Hybrids of ResNet and ViT: published sizes, names, initial values, fields of the ViT, dtypes, mistakes."""

import re

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.encoder import loop_to_scan, scan_to_loop

KEY = jax.random.key(0)
TINY = {
    "num_classes": 5,
    "width": 32,
    "depth": 1,
    "mlp_dim": 64,
    "num_heads": 2,
    "root_width": 32,
    "resnet_units": (1, 2),
    "resnet_widths": (32, 64),
}


def tiny(**fields):
    return models.create("r26_s32", **{**TINY, **fields})


def shapes(model, size=(224, 224), channels=3):
    image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
    return jax.eval_shape(model.init, KEY, image)["params"]


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomised(model, image, seed=1):
    """Parameters away from initialisation, so that nothing hides behind zero scales and a zero head."""
    rng = np.random.default_rng(seed)
    draw = lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype)
    return jax.tree.map(draw, shapes(model, image.shape[1:3]))


def flat(params):
    return flax.traverse_util.flatten_dict(params, sep="/")


# --- Published parameter counts: vision_transformer's models_test.py.

TOTAL = {
    "r_ti16": 6_337_704,
    "r26_s32": 36_431_912,
    "r26_b32": 101_383_976,
    "r50_b16": 98_659_112,
    "r50_l32": 328_994_856,
}


@pytest.mark.parametrize("name", TOTAL)
def test_total_is_the_published_one(name):
    params = shapes(models.create(name, num_classes=1000, scan=True))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == TOTAL[name]


def test_names_and_shapes_are_those_of_the_official_files():
    params = {name: leaf.shape for name, leaf in flat(shapes(tiny(), (64, 96))).items()}
    resnet = {name: shape for name, shape in params.items() if re.match(r"conv_root|gn_root|block\d", name)}
    expected = {"conv_root/kernel": (7, 7, 3, 32), "gn_root/scale": (32,), "gn_root/bias": (32,)}
    for unit, channels, width, projects in [
        ("block1/unit1", 32, 32, True),
        ("block2/unit1", 128, 64, True),
        ("block2/unit2", 256, 64, False),
    ]:
        kernels = {"1": (1, 1, channels, width), "2": (3, 3, width, width), "3": (1, 1, width, 4 * width)}
        if projects:
            kernels["_proj"] = (1, 1, channels, 4 * width)
        for suffix, kernel in kernels.items():
            expected[f"{unit}/conv{suffix}/kernel"] = kernel
            expected[f"{unit}/gn{suffix}/scale"] = expected[f"{unit}/gn{suffix}/bias"] = kernel[-1:]
    assert resnet == expected
    assert params["embedding/kernel"] == (1, 1, 256, 32)
    assert params["pos_embedding"] == (1, 8 * 12 + 1, 32)
    assert {name.split("/")[0] for name in params if name not in resnet} == {
        *("cls", "pos_embedding", "embedding", "Transformer", "head")
    }


def test_initial_values():
    params = flat(
        jax.jit(tiny(head_bias=-6.9, resnet_units=(1, 1)).init)(KEY, images(1, 32, 32, 3))["params"]
    )
    for name, value in params.items():
        if re.fullmatch(r".*(conv\w+|embedding)/kernel", name):  # lecun-normal
            assert np.std(value) == pytest.approx(np.prod(value.shape[:-1]) ** -0.5, rel=0.06), name
        elif "gn" in name:
            assert np.all(value == (name.endswith("scale") and "gn3" not in name)), name
    assert not np.any(params["head/kernel"])
    assert np.all(params["head/bias"] == np.float32(-6.9))


# --- Outputs.


def test_strides():
    for name, grid in [("r_ti16", 7), ("r26_s32", 7), ("r50_b16", 14)]:
        model = models.create(name, num_classes=1000, depth=1)
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        out = jax.eval_shape(lambda x, model=model: model.init_with_output(KEY, x)[0][1], image)
        assert out["stem"].shape[1:3] == (grid, grid), name
        assert model.stride == (224 // grid, 224 // grid)


def test_feature_maps_are_shown_and_embedded():
    image = images(2, 64, 40, 3)
    params = randomised(tiny(), image)
    out = jax.jit(tiny().apply)({"params": params}, image)[1]
    assert {name: out[name].shape for name in ("root", "block1", "block2", "stem")} == {
        "root": (2, 16, 10, 32),
        "block1": (2, 16, 10, 128),
        "block2": (2, 8, 5, 256),
        "stem": (2, 8, 5, 32),
    }
    embedded = np.asarray(out["block2"]) @ params["embedding"]["kernel"][0, 0] + params["embedding"]["bias"]
    np.testing.assert_allclose(out["stem"], embedded, atol=1e-4)


@pytest.mark.parametrize("rates", [{"dropout": 0.5}, {"drop_path": 0.5}])
def test_fields_of_the_vit_work(rates):
    """Those that have parameters or draw numbers; the rest is the encoder's, tested with the ViT."""
    model = tiny(depth=2, pool="gap", posemb="sincos2d", rep_size=True, layer_scale=0.1, **rates)
    image = images(4, 32, 32, 3)
    params = randomised(model, image)
    assert "pre_logits" in params and "cls" not in params and "pos_embedding" not in params
    run = jax.jit(lambda key: model.apply({"params": params}, image, train=True, rngs={"dropout": key})[0])
    one, two = run(KEY), run(jax.random.key(1))
    assert np.all(np.isfinite(one)) and np.array_equal(one, run(KEY))
    assert not np.array_equal(one, two)


def test_scan_and_remat_change_nothing():
    image = images(2, 32, 32, 3)
    params = randomised(tiny(depth=2), image)

    def run(params, **forms):
        model = tiny(depth=2, **forms)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes(model, (32, 32)))
        loss = lambda params: jnp.square(model.apply({"params": params}, image)[0]).sum()
        return jax.jit(jax.grad(loss))(params)

    expected = run(params)
    remat = run(loop_to_scan(params), scan=True, remat="nothing_saveable")
    for grad, reference in zip(jax.tree.leaves(scan_to_loop(remat)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(grad, reference, atol=2e-5 * np.abs(reference).max() + 1e-6)


def test_remat_recomputes_the_units_of_the_resnet():
    image = images(1, 64, 64, 3)

    def kept(remat):
        model = tiny(remat=remat)
        loss = lambda params: model.apply({"params": params}, image)[0].sum()
        residuals = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], shapes(model, (64, 64)))
        maps = [leaf for leaf in jax.tree.leaves(residuals) if leaf.ndim == 4 and leaf.shape[0] == 1]
        return sum(leaf.size for leaf in maps if leaf.shape[1:3] in ((16, 16), (8, 8)))

    assert kept("nothing_saveable") < 0.5 * kept(None)


def test_bfloat16_is_of_the_products_only():
    image = images(2, 64, 64, 3)
    model = tiny(dtype="bfloat16")
    params = randomised(model, image)
    logits, out = jax.jit(model.apply)({"params": params}, image)
    assert {out[name].dtype for name in ("root", "block1", "block2", "with_posemb")} == {np.dtype("float32")}
    assert out["stem"].dtype == jnp.bfloat16
    expected = jax.jit(tiny().apply)({"params": params}, image)[0]
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 5e-2  # really in bfloat16 (8 bits), and close


def test_numerics_reach_the_resnet():
    image = images(1, 32, 32, 3) * np.float32(1e-4)  # so small that the epsilon of gn_root counts
    params = randomised(tiny(), image)
    run = lambda numerics: jax.jit(
        lambda p: tiny(resnet_numerics=numerics).apply({"params": p}, image)[1]["root"]
    )(params)
    assert np.abs(run("jax") - run("timm")).max() > 1e-2


# --- Mistakes are told.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resnet_numerics": "Timm"}, "resnet_numerics='Timm' is none of 'jax', 'timm'. Did you mean 'timm'"),
        ({"resnet_units": (1, 0)}, r"resnet_units=\(1, 0\)"),
        ({"resnet_widths": (32,)}, r"resnet_widths=\(32,\).*2 stages"),
        ({"resnet_widths": (32, 48)}, r"resnet_widths=\(32, 48\) must be multiples of 32"),
        ({"root_width": 16}, "root_width=16 must be"),
        ({"pool": "GAP"}, "Did you mean 'gap'"),
    ],
)
def test_bad_values_are_refused_at_once(fields, message):
    with pytest.raises(UserError, match=message):
        tiny(**fields)


@pytest.mark.parametrize(
    ("size", "nearest"), [((224, 210), "224x224"), ((10, 32), "32x32"), ((64, 80), "64x64")]
)
def test_images_that_leave_no_whole_grid_of_patches(size, nearest):
    with pytest.raises(UserError, match=rf"{size[0]}x{size[1]} pixels.*patches of 8x8.*{nearest}"):
        shapes(models.create("r_ti16", depth=1), size)
    shapes(models.create("r_ti16", depth=1), tuple(int(n) for n in nearest.split("x")))


def test_without_a_patch_any_size_is_whole():
    assert shapes(tiny(), (61, 33))["pos_embedding"].shape == (1, 8 * 5 + 1, 32)


def test_images_of_other_channels():
    params = shapes(tiny(), (32, 32))
    with pytest.raises(UserError, match="made for images of 3 channels, but this one has 1"):
        jax.eval_shape(tiny().apply, {"params": params}, jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32))


def test_images_of_another_size_than_the_positions():
    params = shapes(tiny(), (64, 64))
    with pytest.raises(UserError, match=r"has 65 entries.*have 82 tokens"):
        jax.eval_shape(tiny().apply, {"params": params}, jax.ShapeDtypeStruct((1, 72, 72, 3), jnp.float32))
