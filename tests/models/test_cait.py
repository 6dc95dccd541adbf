"""CaiT: published sizes, LayerScale by depth, two stages, forms of the stack, depth, dtypes, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.analysis.costs import multiply_accumulates
from vitjax.errors import UserError
from vitjax.layers.encoder import loop_to_scan, scan_to_loop

KEY = jax.random.key(0)
TINY = {"num_classes": 5, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "layer_scale": 0.5}


def shapes(model, size):
    return jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomised(model, image, seed=1):
    """Parameters away from initialisation."""
    rng = np.random.default_rng(seed)
    draw = lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype)
    return jax.tree.map(draw, shapes(model, image.shape[1]))


def close(actual, desired):
    """One float32 program against another: a few units in the last place of the tensor's maximum."""
    np.testing.assert_allclose(actual, desired, atol=2e-5 * np.abs(desired).max() + 1e-6)


# timm's counts; of sizes that it does not have (XS-36, S-48, M-24), the paper's in millions.
@pytest.mark.parametrize(
    ("name", "size", "total", "giga"),
    [
        ("cait_xxs24", 224, 11_956_264, 2.5235),
        ("cait_xxs36", 384, 17_372_680, 14.3130),
        ("cait_xs24", 384, 26_670_088, 19.2406),
        ("cait_s24", 224, 46_916_200, 9.3273),
        ("cait_s36", 384, 68_366_632, 47.9080),
        ("cait_m36", 384, 271_221_352, 172.9437),
        ("cait_m48", 448, 356_460_520, 329.1077),
    ],
)
def test_published_sizes_and_costs(name, size, total, giga):
    model = models.create(name, num_classes=1000, scan=True)
    params = shapes(model, size)
    assert count(params) == total
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    logits = lambda params, image: model.apply({"params": params}, image)[0]
    assert round(multiply_accumulates(logits, params, image) / 1e9, 4) == giga


@pytest.mark.parametrize(
    ("name", "millions"),
    [("cait_xs36", 38.56), ("cait_s48", 89.53), ("cait_m24", 185.85), ("cait_xxs36", 17.30)],
)
def test_published_sizes_in_millions(name, millions):
    total = count(shapes(models.create(name, num_classes=1000, scan=True), 224))
    assert round(total / 1e6, 2) == millions


@pytest.mark.parametrize(
    ("name", "fields", "value"),
    [
        ("cait_xxs12", {}, 0.1),
        ("cait_xxs18", {}, 0.1),
        ("cait_xxs24", {}, 1e-5),
        ("cait_xxs25", {}, 1e-6),
        ("cait_xs36", {}, 1e-6),
        ("cait_xxs36", {}, 1e-5),  # as released
        ("cait_xxs36", {"layer_scale": "by_depth"}, 1e-6),  # as the paper has it
        ("cait_xxs36", {"layer_scale": 0.3}, 0.3),
        ("cait_xxs120", {}, 1e-6),
    ],
)
def test_layer_scale_begins_as_the_depth_says(name, fields, value):
    assert models.create(name, **fields).block_fields()["layer_scale"] == value


def test_heads_have_48_channels():
    assert [models.create(f"cait_{size}24").num_heads for size in ("xxs", "xs", "s", "m")] == [4, 6, 8, 16]


# --- Two stages.


def test_the_class_token_comes_after_the_first_stage():
    model = models.create("cait_xxs24", **TINY, class_depth=3)
    image = images(2, 32, 32, 3)
    params = randomised(model, image)
    logits, out = jax.jit(model.apply)({"params": params}, image)
    assert params["pos_embedding"].shape == (1, 4, 32)
    assert [tokens.shape for tokens in out["tokens"]] == [(2, 4, 32)] * 2
    assert [cls.shape for cls in out["class_tokens"]] == [(2, 1, 32)] * 3
    assert out["encoded"].shape == (2, 5, 32)
    np.testing.assert_allclose(out["pre_logits"], out["encoded"][:, 0], atol=1e-6)
    close(logits, out["pre_logits"] @ params["head"]["kernel"] + params["head"]["bias"])


def test_stochastic_depth_spares_the_second_stage():
    """With the first stage dropped, what is left is the evaluation of a first stage whose scales are zero."""
    model = models.create("cait_xxs24", **TINY, drop_path=1 - 1e-6, dropout=0.0)
    image = images(4, 32, 32, 3)
    params = randomised(model, image)
    logits = jax.jit(lambda p: model.apply({"params": p}, image, train=True, rngs={"dropout": KEY})[0])(
        params
    )
    silent = {**params, "Transformer": jax.tree.map(np.array, params["Transformer"])}
    for block in silent["Transformer"].values():
        for part in ("LayerScale_0", "LayerScale_1"):
            block[part]["gamma"][:] = 0
    close(logits, jax.jit(model.apply)({"params": silent}, image)[0])


@pytest.mark.parametrize(("pool", "tokens"), [("tok", 5), ("gap", 4)])
def test_without_a_second_stage_it_is_a_vit_with_talking_heads(pool, tokens):
    fields = {**TINY, "class_depth": 0, "pool": pool}
    model = models.create("cait_xxs24", **fields)
    image = images(2, 32, 32, 3)
    params = randomised(model, image)
    assert not [name for name in params if name.startswith("class_attention")]
    logits, out = jax.jit(model.apply)({"params": params}, image)
    assert out["encoded"].shape == (2, tokens, 32) and logits.shape == (2, 5)
    plain = models.create("vit_ti16", **TINY, pool=pool, gelu="erf")
    quiet = models.create("cait_xxs24", **fields, talking_heads=False)
    same = shapes(plain, 32)
    assert jax.tree.map(jnp.shape, same) == jax.tree.map(jnp.shape, shapes(quiet, 32))
    params = randomised(plain, image)
    a, b = (jax.jit(m.apply)({"params": params}, image)[0] for m in (plain, quiet))
    np.testing.assert_array_equal(a, b)


# --- Forms of the stack, depth.


def test_scan_and_remat_change_nothing():
    image = images(2, 32, 32, 3)
    params = randomised(models.create("cait_xxs24", **TINY), image)
    scanned = loop_to_scan(params)
    assert "class_attention_1" in scanned  # only the first stage is stacked

    def run(params, **forms):
        model = models.create("cait_xxs24", **TINY, **forms)
        loss = lambda params: jnp.square(model.apply({"params": params}, image)[0]).sum()
        return jax.jit(jax.value_and_grad(loss))(params)

    loss, grads = run(params)
    scanned_loss, scanned_grads = run(scanned, scan=True, remat="nothing_saveable")
    jax.tree.map(close, (scanned_loss, scan_to_loop(scanned_grads)), (loss, grads))


def first_step(model, image):
    """The parameters at first; loss, RMS of tokens and norm of gradients by block; the loss after a step."""
    labels = jax.nn.one_hot(np.arange(len(image)) % 5, 5)

    @jax.jit
    def run(key):
        params = model.init(key, image)["params"]

        def loss(params):
            logits, out = model.apply({"params": params}, image, train=True)
            return -(labels * jax.nn.log_softmax(logits)).sum(-1).mean(), out

        (loss_value, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
        blocks = grads["Transformer"]["encoderblock"]
        squares = [jnp.square(g).reshape(len(g), -1).sum(1) for g in jax.tree.leaves(blocks)]
        stepped = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
        rms = jnp.sqrt(jnp.square(out["tokens"]).mean((1, 2, 3)))
        return params, (loss_value, rms, jnp.sqrt(sum(squares)), loss(stepped)[0])

    return jax.tree.map(np.asarray, run(KEY))


def test_120_blocks_train_a_step():
    """All is finite, and LayerScale keeps each block so near the identity that tokens do not grow."""
    fields = {"width": 32, "mlp_dim": 64, "num_heads": 2, "num_classes": 5, "scan": True}
    image = images(8, 32, 32, 3)
    params, (loss, rms, norms, after) = first_step(models.create("cait_xxs120", **fields), image)
    assert len(rms) == len(norms) == 120
    assert np.isfinite([loss, after, *rms, *norms]).all() and norms.min() > 0
    assert after < loss
    np.testing.assert_allclose(rms, rms[0], rtol=1e-3)
    for block in (params["Transformer"]["encoderblock"], params["class_attention_1"]):
        for part in ("LayerScale_0", "LayerScale_1"):
            np.testing.assert_array_equal(block[part]["gamma"], np.float32(1e-6))


# --- dtypes.


def test_bfloat16_is_of_the_products_only():
    image = images(2, 32, 32, 3)
    model = models.create("cait_xxs24", **TINY, dtype="bfloat16")
    params = randomised(model, image)
    apply = lambda p: model.apply({"params": p}, image)
    logits, out = jax.jit(apply)(params)
    assert {out[k].dtype for k in ("with_posemb", "encoded", "logits")} == {np.dtype("float32")}
    assert {t.dtype for t in [*out["tokens"], *out["class_tokens"]]} == {np.dtype("float32")}
    expected = jax.jit(models.create("cait_xxs24", **TINY).apply)({"params": params}, image)[0]
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 3e-2  # really in bfloat16 (8 bits), and close
    exps = [line for line in str(jax.make_jaxpr(apply)(params)).splitlines() if " = exp" in line]
    assert len(exps) == 4 and all("f32[" in line for line in exps)


# --- Mistakes are told.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"layer_scale": "depth"},
            "layer_scale='depth' is neither a number nor 'by_depth', 'by_index' or None",
        ),
        ({"class_depth": -1}, "class_depth=-1"),
        ({"pool": "gap"}, "pool='gap'.*class_depth=0"),
        ({"fc_norm": True}, "fc_norm=True.*class_depth=0"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"layer_scale": [1]}, "layer_scale"),
    ],
)
def test_bad_values_are_refused_at_once(fields, message):
    with pytest.raises(UserError, match=message):
        models.create("cait_xxs24", **fields)


@pytest.mark.parametrize("name", ["cait_xl24", "cait_xxs", "cait_xxs024", "CaiT-XXS24"])
def test_unknown_names(name):
    with pytest.raises(UserError, match="Did you mean 'cait_x"):
        models.create(name)
