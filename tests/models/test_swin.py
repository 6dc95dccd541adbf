"""Swin: published sizes, windows of every stage, options, forms, dtypes, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.analysis.costs import multiply_accumulates
from vitjax.errors import UserError
from vitjax.models.swin import Stage

KEY = jax.random.key(0)
TINY = {"num_classes": 5, "width": 8, "depths": (1, 2), "num_heads": (2, 2), "window": 4, "patch_size": 2}


def shapes(model, *size):
    image = jax.ShapeDtypeStruct((1, *(size if len(size) == 2 else size * 2), 3), jnp.float32)
    return jax.eval_shape(model.init, KEY, image)["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomised(model, image, seed=1):
    """Parameters away from initialisation."""
    rng = np.random.default_rng(seed)
    draw = lambda x: (0.3 * rng.normal(size=x.shape)).astype(x.dtype)
    return jax.tree.map(draw, shapes(model, *image.shape[1:3]))


def run(model, params, image):
    return jax.jit(model.apply)({"params": params}, image)


def begun(model, select, size=16):
    """What `select` picks of the parameters at first; nothing else is compiled."""
    return jax.jit(lambda key: select(model.init(key, jnp.zeros((1, size, size, 3)))["params"]))(KEY)


def macs(model, size):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, KEY, image)
    return multiply_accumulates(lambda v, x: model.apply(v, x)[0], variables, image)


# --- Published sizes.


@pytest.mark.parametrize(
    ("name", "fields", "size", "total"),
    [
        ("swin_t", {}, 224, 28_288_354),
        ("swin_s", {}, 224, 49_606_258),
        ("swin_b", {}, 224, 87_768_224),
        ("swin_b", {"window": 12}, 384, 87_903_584),
        ("swin_l", {}, 224, 196_532_476),
    ],
)
def test_published_sizes(name, fields, size, total):
    assert count(shapes(models.create(name, num_classes=1000, **fields), size)) == total


# Counted from the released code; for Tiny-ImageNet's 200 classes at 64 pixels.
@pytest.mark.parametrize(
    ("variant", "totals"),
    [
        ("small", (7_073_188, 7_107_838, 7_149_794)),
        ("s", (8_562_076, 8_596_726, 8_652_866)),
        ("l", (7_073_278, 7_107_928, 7_149_884)),
        ("sl", (8_562_166, 8_596_816, 8_652_956)),
    ],
)
def test_released_sizes(variant, totals):
    cases = [(10, 32, {}), (100, 32, {}), (200, 64, {"patch_size": 4})]
    for (classes, size, fields), total in zip(cases, totals, strict=True):
        model = models.create(f"{variant}_swin", num_classes=classes, **fields)
        assert count(shapes(model, size)) == total


def test_the_size_in_the_paper_is_that_without_absolute_positions():
    model = models.create("small_swin", num_classes=200, patch_size=4, abs_pos=False)
    assert count(shapes(model, 64)) == 7_125_218


@pytest.mark.parametrize(
    ("fields", "embedding", "pooling", "published"),
    [
        ({}, 96, 4, 242_267_136),
        ({"spt": "diagonal", "lsa": "both"}, 5 * 3 * 16, 4, 247_022_592),
        ({"spt": "diagonal", "lsa": "both", "spt_pooling": True}, 5 * 3 * 16, 20, 284_918_784),
    ],
)
def test_published_arithmetic(fields, embedding, pooling, published):
    """At 64 pixels and 200 classes; a norm counts as one multiplication an entry."""
    model = models.create("small_swin", num_classes=200, patch_size=4, **fields)
    norms = 256 * embedding + 64 * pooling * 96 + 16 * pooling * 192 + 16 * 384
    norms += 2 * sum(depth * n * d for depth, n, d in ((2, 256, 96), (6, 64, 192), (4, 16, 384)))
    assert macs(model, 64) + norms == published


# --- Windows.


def test_windows_of_every_stage():
    swin = models.create("swin_t").stages((56, 56))
    assert swin[0] == Stage((56, 56), (7, 7), (3, 3))
    assert swin[3] == Stage((7, 7), (7, 7), (0, 0))  # one window: nothing to shift
    wide = models.create("swin_t", **TINY).stages((4, 16))
    assert wide == [Stage((4, 16), (4, 4), (0, 2)), Stage((2, 8), (2, 4), (0, 2))]
    assert models.create("small_swin").stages((16, 16))[2] == Stage((4, 4), (4, 4), (0, 0))


def test_maps_of_all_sizes():
    model = models.create("swin_t", **TINY)
    image = images(2, 16, 32, 3)
    logits, out = run(model, randomised(model, image), image)
    assert out["stem"].shape == out["with_posemb"].shape == (2, 8, 16, 8)
    assert [tokens.shape for tokens in out["tokens"]] == [(2, 8, 16, 8)] + [(2, 4, 8, 16)] * 2
    assert out["encoded"].shape == (2, 4, 8, 16) and logits.shape == (2, 5)
    np.testing.assert_allclose(out["pre_logits"], out["encoded"].mean((1, 2)), atol=1e-6)


def test_all_of_an_image_takes_part_and_every_second_block_is_shifted():
    """One stage of two blocks: by the second, which is shifted, a token sees beyond its window."""
    model = models.create("swin_t", **{**TINY, "num_heads": (2,), "num_classes": None, "depths": (2,)})
    image = images(1, 16, 16, 3)
    params = randomised(model, image)

    @jax.jit
    def seen(x):
        token = lambda x, block: model.apply({"params": params}, x)[1]["tokens"][block][0, 3, 3].sum()
        return [jnp.abs(jax.grad(token)(x, block)).max((0, 3)) for block in (0, 1)]

    one, two = ((map > 1e-7).reshape(8, 2, 8, 2).any((1, 3)) for map in seen(jnp.asarray(image)))
    assert one[:4, :4].all() and one.sum() == 16
    assert two.all()


# --- Options.


@pytest.mark.parametrize("spt", ["diagonal", "cardinal", "all"])
def test_views_of_embedding_and_pooling(spt):
    views = 9 if spt == "all" else 5
    params = shapes(models.create("swin_t", **TINY, spt=spt, spt_pooling=True), 16)
    assert params["embedding"]["norm"]["scale"].shape == (views * 3 * 4,)
    assert params["pooling_0"]["projection"]["kernel"].shape == (views * 4 * 8, 16)
    assert "embedding_norm" not in params
    alone = shapes(models.create("swin_t", **TINY, spt_pooling=True), 16)
    assert alone["pooling_0"]["projection"]["kernel"].shape == (5 * 4 * 8, 16)
    assert "embedding_norm" in alone
    kept = shapes(models.create("swin_t", **TINY, spt=spt), 16)
    assert set(kept["pooling_0"]["projection"]) == {"kernel"}


@pytest.mark.parametrize("lsa", ["none", "temperature", "mask"])
def test_parts_of_lsa(lsa):
    model = models.create("swin_t", **TINY, lsa=lsa)
    image = images(2, 16, 16, 3)
    params = randomised(model, image)
    block = params["stage_1"]["encoderblock_1"]["WindowAttention_0"]
    assert ("scale" in block) == (lsa == "temperature")
    apply = jax.jit(lambda params: model.apply({"params": params}, image, mutable="intermediates")[1])
    stages = apply(params)["intermediates"]
    weights = stages["stage_1"]["encoderblock_1"]["WindowAttention_0"]["attention_weights"][0]
    own = np.diagonal(weights, axis1=-2, axis2=-1)
    assert weights.shape == (2, 2, 16, 16)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    assert (own == 0).all() if lsa == "mask" else (own > 0).all()


def test_the_temperature_begins_at_that_of_plain_attention():
    model = models.create("swin_t", **TINY, lsa="both")
    block = lambda stage: stage["encoderblock_0"]["WindowAttention_0"]
    scales = begun(model, lambda params: [block(params[f"stage_{i}"])["scale"] for i in (0, 1)])
    np.testing.assert_allclose(scales, [[4**-0.5] * 2, [8**-0.5] * 2], rtol=1e-6)


def test_absolute_positions_are_added():
    model = models.create("swin_t", **TINY, abs_pos=True)
    image = images(1, 8, 16, 3)
    params = randomised(model, image)
    out = run(model, params, image)[1]
    positions = params["pos_embedding"].reshape(1, 4, 8, 8)
    np.testing.assert_allclose(out["with_posemb"], out["stem"] + positions, atol=1e-6)
    with pytest.raises(UserError, match="has 32 entries, but images of this size have 64 tokens"):
        run(model, params, images(1, 16, 16, 3))


def test_remat_changes_nothing():
    image = images(2, 16, 16, 3)
    params = randomised(models.create("swin_t", **TINY), image)

    def gradient(**forms):
        model = models.create("swin_t", **TINY, **forms)
        return jax.jit(jax.grad(lambda p: jnp.square(model.apply({"params": p}, image)[0]).sum()))(params)

    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max() + 1e-6)
    jax.tree.map(close, gradient(remat="nothing_saveable"), gradient())


def test_stochastic_depth_grows_over_all_stages():
    """With the last rate near one the first block is untouched, and the last leaves its input as it is."""
    model = models.create("swin_t", **TINY, drop_path=1 - 1e-6)
    image = images(4, 16, 16, 3)
    params = randomised(model, image)
    apply = lambda train: model.apply({"params": params}, image, train=train, rngs={"dropout": KEY})
    train, still = jax.jit(lambda: [apply(train)[1]["tokens"] for train in (True, False)])()
    np.testing.assert_array_equal(train[0], still[0])
    np.testing.assert_array_equal(train[2], train[1])
    assert np.abs(still[2] - still[1]).max() > 0.1


def test_bfloat16_is_of_the_products_only():
    image = images(2, 16, 16, 3)
    model = models.create("swin_t", **TINY, dtype="bfloat16", spt="diagonal", spt_pooling=True, lsa="both")
    params = randomised(model, image)
    apply = lambda p: model.apply({"params": p}, image)
    logits, out = jax.jit(apply)(params)
    kept = [*out["tokens"], out["with_posemb"], out["encoded"], logits]
    assert {array.dtype for array in kept} == {np.dtype("float32")}
    full = models.create("swin_t", **TINY, spt="diagonal", spt_pooling=True, lsa="both")
    expected = jax.jit(full.apply)({"params": params}, image)[0]
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 5e-2  # really in bfloat16 (8 bits), and close
    exps = [line for line in str(jax.make_jaxpr(apply)(params)).splitlines() if " = exp" in line]
    assert len(exps) == 3 and all("f32[" in line for line in exps)


# --- Initialisation.


def parts(params):
    """A parameter or layer of each kind."""
    block = params["stage_1"]["encoderblock_0"]
    attention, mlp = block["WindowAttention_0"], block["MlpBlock_0"]
    return {
        "embedding": params["embedding"],
        "pooling": params["pooling_0"]["projection"],
        "query": attention["query"],
        "out": attention["out"],
        "first": mlp["Dense_0"],
        "second": mlp["Dense_1"],
        "head": params["head"],
        "positions": [attention["relative_position_bias"], params.get("pos_embedding")],
        "norm": block["LayerNorm_0"],
    }


def test_the_reduced_network_begins_as_pytorch_makes_it():
    """Uniform in ±1/sqrt(inputs), biases too; positions with deviation 0.02; norms at one and zero."""
    model = models.create("sl_swin", num_classes=100, depths=(1, 1), num_heads=(3, 6))
    found = begun(model, parts, 16)
    layers = {**found, "embedding": found["embedding"]["projection"]}
    inputs = {"embedding": 60, "pooling": 20 * 96, "query": 192, "out": 192, "first": 192, "second": 384}
    for name, fan_in in {**inputs, "head": 192}.items():
        assert set(layers[name]) == {"kernel", "bias"}
        for leaf in layers[name].values():
            limit = fan_in**-0.5
            assert 0.9 * limit < np.abs(leaf).max() <= limit
            assert abs(np.std(leaf) * 3**0.5 / limit - 1) < 0.15
    for leaf in found["positions"]:
        assert abs(np.std(leaf) / 0.02 - 1) < 0.1
    np.testing.assert_array_equal(found["norm"]["scale"], 1)
    np.testing.assert_array_equal(found["norm"]["bias"], 0)


def test_the_original_begins_with_deviation_002():
    found = begun(models.create("swin_t", **{**TINY, "width": 32}), parts)
    for name in ("pooling", "query", "out", "first", "second", "head"):
        assert abs(np.std(found[name]["kernel"]) / 0.02 - 1) < 0.15
        np.testing.assert_array_equal(found[name].get("bias", 0), 0)
    assert abs(np.std(found["positions"][0]) / 0.02 - 1) < 0.15
    for leaf in found["embedding"].values():  # as PyTorch leaves it
        assert 0.7 * 12**-0.5 < np.abs(leaf).max() <= 12**-0.5


def test_the_head_can_begin_elsewhere():
    fields = {"head_bias": -3.0, "head_zeroinit": True, "initialisation": "torch"}
    head = begun(models.create("swin_t", **TINY, **fields), lambda params: params["head"])
    np.testing.assert_array_equal(head["kernel"], 0)
    np.testing.assert_array_equal(head["bias"], -3)


# --- Mistakes are told.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"window": 0}, "window=0 must be whole numbers of 1 or more"),
        ({"depths": (2, 2)}, r"depths=\(2, 2\) and num_heads=.* one entry a stage each"),
        ({"depths": ()}, r"depths=\(\)"),
        ({"num_heads": (3, 5, 12, 24)}, r"num_heads=\(3, 5, 12, 24\).* width 192 of stage 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio=0.0"),
        ({"drop_path": 1.0}, "drop_path=1.0 is not a rate"),
        ({"spt": "diagnoal"}, "spt='diagnoal'.*Did you mean 'diagonal'"),
        ({"spt": "diagonal", "spt_ratio": 0.1}, "spt_ratio=0.1 .* shift of 0"),
        ({"lsa": "temprature"}, "lsa='temprature'.*Did you mean 'temperature'"),
        ({"initialisation": "xavier"}, "initialisation='xavier'"),
        ({"patch_size": 0}, "patch_size=0"),
        ({"window": 7.5}, "window"),
    ],
)
def test_bad_values_are_refused_at_once(fields, message):
    with pytest.raises(UserError, match=message):
        models.create("swin_t", **fields)


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, (17, 16), "17x16 pixels cannot be cut into patches of 2x2"),
        (
            {"window": 3},
            (16, 16),
            r"window=3 does not divide the map of 8x8 .*stage 0\..* multiples of 12 and 12",
        ),
        ({"window": 9}, (16, 16), "window=9 is larger than the map of 8x8 tokens .* window=8"),
        ({"window": 3}, (18, 18), "an odd side has the map of 9x9 tokens of stage 0"),
        ({"window": 6}, (24, 40), "window=6 does not divide the map of 12x20"),
        (
            {"window": 8, "depths": (1,) * 4, "num_heads": (2,) * 4, "lsa": "both"},
            (16, 16),
            "one token needs lsa",
        ),
    ],
)
def test_maps_that_windows_do_not_fit_are_refused(fields, size, message):
    model = models.create("swin_t", **{**TINY, **fields})
    with pytest.raises(UserError, match=message):
        shapes(model, *size)


def test_integers_are_no_images():
    model = models.create("swin_t", **TINY)
    with pytest.raises(UserError, match="float images, not uint8"):
        jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.uint8))


@pytest.mark.parametrize("name", ["swin_x", "swin_tiny", "Swin-T", "sl_swn"])
def test_unknown_names(name):
    with pytest.raises(UserError, match=r"Did you mean '(swin_|sl_swin)"):
        models.create(name)
