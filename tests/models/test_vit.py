"""The Vision Transformer: published sizes, initialisation, forms of the stack, dropout, dtypes, mistakes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.encoder import REMAT_POLICIES, loop_to_scan, scan_to_loop
from vitjax.models.vit import SIZES

KEY = jax.random.key(0)


def shapes(model, size=(224, 224)):
    return jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomised(model, image, seed=1):
    """Parameters away from initialisation, so that nothing hides behind the head's zeros or unit scales."""
    rng = np.random.default_rng(seed)
    draw = lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype)
    return jax.tree.map(draw, shapes(model, image.shape[1:3]))


def close(actual, desired):
    """One float32 program against another: a few units in the last place of the tensor's maximum."""
    scale = np.abs(desired).max()
    np.testing.assert_allclose(actual, desired, atol=2e-5 * scale + 1e-6)


# --- Published parameter counts: vision_transformer's models_test.py and big_vision's table of variants.

ENCODER = {
    "mu": 12_768,
    "ti": 5_338_752,
    "s": 21_294_336,
    "m": 37_829_632,
    "b": 85_056_000,
    "l": 302_311_424,
    "so400m": 411_468_912,
    "h": 629_680_640,
    "g": 1_010_009_856,
    "g_opt": 1_133_263_872,
    "G": 1_841_366_272,
    "G_opt": 1_662_004_224,
    "e": 3_803_903_488,
}

TOTAL = {
    "vit_ti16": 5_717_416,
    "vit_s32": 22_878_952,
    "vit_s16": 22_050_664,
    "vit_b32": 88_224_232,
    "vit_b16": 86_567_656,
    "vit_b8": 86_576_872,
    "vit_l32": 306_535_400,
    "vit_l16": 304_326_632,
    "vit_h14": 632_045_800,
}


@pytest.mark.parametrize("size", SIZES)
def test_encoder_has_the_published_size(size):
    # Scanned: the same parameters, traced once instead of up to 56 times.
    assert count(shapes(models.create(f"vit_{size}14", scan=True))["Transformer"]) == ENCODER[size]


@pytest.mark.parametrize("name", TOTAL)
def test_total_is_the_published_one(name):
    assert count(shapes(models.create(name, num_classes=1000, scan=True))) == TOTAL[name]


@pytest.mark.parametrize(("name", "total"), [("vit_s16", 22_049_896), ("vit_b16", 86_566_120)])
def test_total_with_average_pooling(name, total):
    assert count(shapes(models.create(name, num_classes=1000, pool="gap", scan=True))) == total


def test_names_are_those_of_the_official_files():
    tree = shapes(models.create("vit_mu16", num_classes=5, rep_size=7), (32, 48))
    flat = {
        jax.tree_util.keystr(k, simple=True, separator="/"): v.shape
        for k, v in jax.tree.leaves_with_path(tree)
    }
    block = "Transformer/encoderblock_0"
    assert flat["cls"] == (1, 1, 32)
    assert flat["pos_embedding"] == (1, 7, 32)
    assert flat["embedding/kernel"] == (16, 16, 3, 32)
    assert flat[f"{block}/LayerNorm_0/scale"] == flat[f"{block}/LayerNorm_1/bias"] == (32,)
    assert flat[f"{block}/MultiHeadDotProductAttention_0/query/kernel"] == (32, 2, 16)
    assert flat[f"{block}/MultiHeadDotProductAttention_0/value/bias"] == (2, 16)
    assert flat[f"{block}/MultiHeadDotProductAttention_0/out/kernel"] == (2, 16, 32)
    assert flat[f"{block}/MlpBlock_0/Dense_0/kernel"] == (32, 128)
    assert flat["Transformer/encoder_norm/scale"] == (32,)
    assert flat["pre_logits/kernel"] == (32, 7)
    assert flat["head/kernel"] == (7, 5)


# --- Initialisation.


def test_initial_values():
    model = models.create("vit_ti16", num_classes=10, depth=1, rep_size=True, head_bias=-6.9, layer_scale=0.1)
    params = jax.jit(model.init)(KEY, images(1, 224, 224, 3))["params"]
    block = params["Transformer"]["encoderblock_0"]
    attention, mlp = block["MultiHeadDotProductAttention_0"], block["MlpBlock_0"]

    def is_xavier_uniform(kernel, fan_in, fan_out):
        limit = np.sqrt(6 / (fan_in + fan_out))
        assert 0.98 * limit < np.abs(kernel).max() <= limit
        assert np.std(kernel) == pytest.approx(limit / np.sqrt(3), rel=0.02)

    for part in ("query", "key", "value", "out"):  # of the 192 x 192 matrix, not of single heads
        is_xavier_uniform(attention[part]["kernel"], 192, 192)
        assert not np.any(attention[part]["bias"])
    is_xavier_uniform(mlp["Dense_0"]["kernel"], 192, 768)
    is_xavier_uniform(mlp["Dense_1"]["kernel"], 768, 192)
    assert np.std(mlp["Dense_0"]["bias"]) == pytest.approx(1e-6, rel=0.1)
    assert np.std(params["embedding"]["kernel"]) == pytest.approx(np.sqrt(1 / (16 * 16 * 3)), rel=0.02)
    assert np.std(params["pre_logits"]["kernel"]) == pytest.approx(np.sqrt(1 / 192), rel=0.02)
    assert np.std(params["pos_embedding"]) == pytest.approx(0.02, rel=0.02)
    assert not np.any(params["cls"])
    assert not np.any(params["head"]["kernel"])
    assert np.all(params["head"]["bias"] == np.float32(-6.9))
    assert np.all(block["LayerScale_0"]["gamma"] == np.float32(0.1))
    assert np.all(block["LayerNorm_0"]["scale"] == 1)


def test_initial_values_of_the_options():
    model = models.create("vit_mu16", num_classes=1000, posemb_layout="big_vision", head_zeroinit=False)
    params = jax.jit(model.init)(KEY, images(1, 224, 224, 3))["params"]
    assert params["pos_embedding"].shape == (1, 196, 32)
    assert np.std(params["pos_embedding"]) == pytest.approx(1 / np.sqrt(32), rel=0.03)
    assert np.std(params["head"]["kernel"]) == pytest.approx(1 / np.sqrt(32), rel=0.03)


# --- Outputs.


@pytest.mark.parametrize("pool", ["tok", "gap", "map", "0", "none"])
def test_pools(pool):
    model = models.create("vit_mu16", num_classes=5, pool=pool)
    image = images(2, 32, 48, 3)
    params = randomised(model, image)
    logits, out = jax.jit(model.apply)({"params": params}, image)
    tokens = 7 if pool == "tok" else 6
    assert out["stem"].shape == (2, 2, 3, 32)
    assert out["with_posemb"].shape == out["encoded"].shape == (2, tokens, 32)
    assert [t.shape for t in out["tokens"]] == [(2, tokens, 32)]
    assert logits.shape == ((2, 6, 5) if pool == "none" else (2, 5))
    assert ("cls" in params) == (pool == "tok")
    encoded = np.asarray(out["encoded"])
    expected = {"tok": encoded[:, 0], "0": encoded[:, 0], "gap": encoded.mean(1), "none": encoded}
    if pool in expected:
        np.testing.assert_allclose(out["head_input"], expected[pool], atol=1e-6)
        np.testing.assert_array_equal(out["pre_logits"], out["head_input"])
    np.testing.assert_allclose(
        logits, out["pre_logits"] @ params["head"]["kernel"] + params["head"]["bias"], atol=1e-4
    )


def test_without_classes_there_is_no_head():
    model = models.create("vit_mu16", rep_size=8)
    assert "head" not in shapes(model, (32, 32))
    logits, out = jax.eval_shape(lambda x: model.init_with_output(KEY, x)[0], images(2, 32, 32, 3))
    assert logits.shape == out["pre_logits"].shape == (2, 8)


def test_sincos_positions_are_fixed_and_skip_the_class_token():
    model = models.create("vit_mu16", posemb="sincos2d")
    image = np.zeros((1, 32, 48, 3), np.float32)
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes(model, (32, 48)))
    assert "pos_embedding" not in params
    out = jax.jit(model.apply)({"params": params}, image)[1]["with_posemb"][0]
    assert not np.any(out[0])
    # Second row, third column: x=2, y=1; eight channels each of sin x, cos x, sin y, cos y, slowest last.
    np.testing.assert_allclose(out[6, ::8], np.sin([2, 2 + np.pi / 2, 1, 1 + np.pi / 2]), atol=1e-6)
    np.testing.assert_allclose(out[6, 7::8], [2e-4, 1, 1e-4, 1], atol=1e-6)


def test_patches_may_be_any_shape():
    assert models.create("vit_s7").patch_size == 7
    tree = shapes(models.create("vit_mu16", patch_size=(8, 16)), (32, 48))
    assert tree["embedding"]["kernel"].shape == (8, 16, 3, 32)
    assert tree["pos_embedding"].shape == (1, 4 * 3 + 1, 32)


# --- Loop, scan and rematerialisation are one function.


def test_scan_and_remat_change_nothing():
    fields = {"num_classes": 5, "depth": 2, "layer_scale": 0.5, "pool": "gap"}
    image = images(2, 32, 32, 3)
    params = randomised(models.create("vit_mu16", **fields), image)
    scanned = loop_to_scan(params)
    jax.tree.map(np.testing.assert_array_equal, scan_to_loop(scanned), params)

    def run(params, **forms):
        model = models.create("vit_mu16", **fields, **forms)

        def loss(params):
            logits, out = model.apply({"params": params}, image)
            return jnp.square(logits).sum(), (logits, jnp.stack(list(out["tokens"])))

        (_, results), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return results, scan_to_loop(grads)

    (logits, tokens), grads = run(params)
    for forms in [  # remat without scan: below
        {"scan": True},
        {"scan": True, "remat": "dots_with_no_batch_dims_saveable"},
    ]:
        given = scanned if "scan" in forms else params
        expected = shapes(models.create("vit_mu16", **fields, **forms), (32, 32))
        assert jax.tree.map(jnp.shape, given) == jax.tree.map(jnp.shape, expected)
        results, g = run(given, **forms)
        jax.tree.map(close, (results, g), ((logits, tokens), grads))


@pytest.mark.parametrize(("scan", "rates"), [(False, {"drop_path": 0.5}), (True, {"dropout": 0.3})])
def test_remat_draws_the_same_numbers(scan, rates):
    image = images(8, 32, 32, 3)
    fields = {"depth": 2, "scan": scan, **rates}
    params = randomised(models.create("vit_mu16", **fields), image)

    def grads(remat):
        model = models.create("vit_mu16", **fields, remat=remat)
        apply = lambda p: model.apply({"params": p}, image, train=True, rngs={"dropout": KEY})[0]
        return jax.jit(jax.grad(lambda p: jnp.square(apply(p)).sum()))(params)

    jax.tree.map(close, grads("nothing_saveable"), grads(None))


def test_every_policy_is_one_of_jax():
    assert all(hasattr(jax.checkpoint_policies, name) for name in REMAT_POLICIES)


# --- Dropout and stochastic depth.


@pytest.mark.parametrize("scan", [False, True])
def test_training_is_random_and_evaluation_is_not(scan):
    model = models.create("vit_mu16", num_classes=5, depth=2, dropout=0.5, drop_path=0.5, scan=scan)
    image = images(4, 32, 32, 3)
    params = randomised(model, image)
    plain = models.create("vit_mu16", num_classes=5, depth=2, scan=scan)

    @jax.jit
    def run(key):
        one, two = (model.apply({"params": params}, image, train=True, rngs={"dropout": k})[0] for k in key)
        evaluated = model.apply({"params": params}, image)[0]
        # Without rates, training needs no random stream and is the same function.
        return one, two, evaluated, plain.apply({"params": params}, image, train=True)[0]

    one, two, evaluated, expected = run(jax.random.split(KEY))
    close(evaluated, expected)
    assert not np.allclose(one, two, rtol=1e-2)
    assert not np.allclose(one, expected, rtol=1e-2)
    jax.tree.map(np.testing.assert_array_equal, run(jax.random.split(KEY))[:2], (one, two))


@pytest.mark.parametrize("scan", [False, True])
def test_stochastic_depth_grows_with_depth(scan):
    """Counts examples that both branches of a block leave unchanged: (rate of the block) squared."""
    model = models.create("vit_mu16", depth=3, drop_path=0.8, scan=scan)
    image = images(512, 16, 16, 3)  # one patch and the class token
    params = randomised(model, image)
    out = jax.jit(lambda p: model.apply({"params": p}, image, train=True, rngs={"dropout": KEY})[1])(params)
    tokens = [out["with_posemb"], *out["tokens"]]
    unchanged = [np.mean(np.all(a == b, axis=(1, 2))) for a, b in itertools.pairwise(tokens)]
    assert unchanged[0] == 0
    np.testing.assert_allclose(unchanged[1:], [0.4**2, 0.8**2], atol=0.07)  # 3 deviations of 512 draws


# --- dtypes.


@pytest.mark.parametrize("pool", ["tok", "map"])
def test_bfloat16_is_of_the_products_only(pool):
    image = images(2, 32, 32, 3)
    fields = {"num_classes": 5, "pool": pool, "depth": 2}
    model = models.create("vit_mu16", **fields, dtype="bfloat16")
    params = randomised(model, image)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    logits, out = jax.jit(model.apply)({"params": params}, image)
    assert out["stem"].dtype == jnp.bfloat16
    assert {out[k].dtype for k in ("with_posemb", "encoded", "head_input", "logits")} == {np.dtype("float32")}
    assert {t.dtype for t in out["tokens"]} == {np.dtype("float32")}
    expected = jax.jit(models.create("vit_mu16", **fields).apply)({"params": params}, image)[0]
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 3e-2  # really in bfloat16 (8 bits), and close

    jaxpr = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, image)[0])(params))
    exps = [line for line in jaxpr.splitlines() if " = exp" in line]
    assert exps, "no softmax found"
    assert all("f32[" in line for line in exps)


# --- Mistakes are told.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "GAP"}, "Did you mean 'gap'"),
        ({"posemb": "learned"}, "Did you mean 'learn'"),
        ({"dtype": "bf16"}, "'bfloat16'"),
        ({"remat": "full"}, "nothing_saveable"),
        ({"drop_path": 1.0}, "drop_path=1.0"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"patch_size": "16"}, r"patch_size' = '16' is of type str"),
        ({"patch_size": (8, 0)}, "patch_size"),
        ({"class_token": False}, "class_token=False"),
    ],
)
def test_bad_values_are_refused_at_once(fields, message):
    with pytest.raises(UserError, match=message):
        models.create("vit_mu16", **fields)


def test_a_size_that_the_patch_does_not_divide():
    with pytest.raises(UserError, match=r"50x32 pixels.*16x16.*48x32"):
        shapes(models.create("vit_mu16"), (50, 32))


def test_images_of_another_size_than_the_positions():
    model = models.create("vit_mu16")
    params = randomised(model, images(1, 32, 32, 3))
    with pytest.raises(UserError, match=r"has 5 entries.*have 7 tokens"):
        model.apply({"params": params}, images(1, 32, 48, 3))


def test_integer_images_are_refused():
    with pytest.raises(UserError, match=r"uint8.*value_range"):
        models.create("vit_mu16").init(KEY, jnp.zeros((1, 32, 32, 3), jnp.uint8))
