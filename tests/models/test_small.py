"""The reduced networks of the small-dataset paper: counts of the release, how they begin, options of CaiT."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.encoder import ClassAttentionBlock, Encoder, loop_to_scan
from vitjax.layers.locality import locality
from vitjax.models.small import NETWORKS, VARIANTS, at_64_pixels
from vitjax.weights.tree import flatten

KEY = jax.random.key(0)
TINY = {
    "num_classes": 5,
    "width": 24,
    "depth": 2,
    "class_depth": 1,
    "mlp_dim": 40,
    "num_heads": 3,
    "patch_size": 8,
}

# Trainable parameters of the release with 10, 100 and 200 classes, the last for images of 64 pixels: plain,
# with SPT, with LSA, with both.
PARAMETERS = {
    "vit": (
        (2_692_426, 2_709_796, 2_756_744),
        (2_729_770, 2_747_140, 2_906_120),
        (2_692_534, 2_709_904, 2_756_852),
        (2_729_878, 2_747_248, 2_906_228),
    ),
    "cait": (
        (9_020_618, 9_037_988, 9_084_936),
        (9_057_962, 9_075_332, 9_234_312),
        (9_020_722, 9_038_092, 9_085_040),
        (9_058_066, 9_075_436, 9_234_416),
    ),
    "pit": (
        (6_972_586, 7_007_236, 7_049_192),
        (8_641_954, 8_676_604, 8_732_744),
        (6_972_646, 7_007_296, 7_049_252),
        (8_642_014, 8_676_664, 8_732_804),
    ),
    "swin": (
        (7_073_188, 7_107_838, 7_149_794),
        (8_562_076, 8_596_726, 8_652_866),
        (7_073_278, 7_107_928, 7_149_884),
        (8_562_166, 8_596_816, 8_652_956),
    ),
    "t2t": (
        (6_486_080, 6_509_210, 6_659_262),
        (6_507_032, 6_530_162, 6_680_214),
        (6_486_129, 6_509_259, 6_659_312),
        (6_507_081, 6_530_211, 6_680_264),
    ),
}
CASES = [(f"{variant}_{network}", PARAMETERS[network][i])
         for network in NETWORKS for i, variant in enumerate(VARIANTS)]  # fmt: skip


def shapes(model, size=32):
    return jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))["params"]


def count(model, size):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(model, size)))


def images(size=32, seed=0, batch=2):
    return np.random.default_rng(seed).normal(size=(batch, size, size, 3)).astype(np.float32)


def randomised(model, size=32, seed=1):
    """Parameters away from initialisation."""
    rng = np.random.default_rng(seed)
    draw = lambda x: (0.3 * rng.normal(size=x.shape)).astype(x.dtype)
    return jax.tree.map(draw, shapes(model, size))


@pytest.mark.parametrize(("name", "published"), CASES)
def test_parameters_as_released(name, published):
    network = name.split("_")[1]
    stacked = {f.name for f in dataclasses.fields(NETWORKS[network].module)} & {"scan"}
    fields = dict.fromkeys(stacked, True)  # quicker to trace, and as many
    of_64 = {**fields, **at_64_pixels(network)}
    assert (
        tuple(
            count(models.create(name, num_classes=classes, **of_size), size)
            for classes, size, of_size in ((10, 32, fields), (100, 32, fields), (200, 64, of_64))
        )
        == published
    )


def test_names():
    assert {"small_vit", "s_vit", "l_vit", "sl_vit", "sl_cait"} <= set(models.names())
    with pytest.raises(UserError, match="Did you mean 'sl_vit'"):
        models.create("sl_vitt")


# --- How they begin.


def deviation(kernel):
    return float(np.asarray(kernel).std())


def begun(model):
    """Parameters as they begin, by a generator that compiles fast."""
    return jax.jit(model.init)(jax.random.key(0, impl="rbg"), images(batch=1))["params"]


def xavier(rows, columns):
    return (2 / (rows + columns)) ** 0.5


def test_vit_begins_as_released():
    """Deviations to 5 %: of 10,000 numbers and more they are known to 1 %."""
    params = begun(models.create("small_vit", num_classes=100, depth=1))
    block = params["Transformer"]["encoderblock_0"]
    attention = block["MultiHeadDotProductAttention_0"]
    expected = {
        "patches": (params["embedding"]["kernel"], xavier(48, 192)),  # as a matrix, not as a convolution
        **{part: (attention[part]["kernel"], xavier(192, 3 * 192)) for part in ("query", "key", "value")},
        "out": (attention["out"]["kernel"], xavier(192, 192)),
        "fc1": (block["MlpBlock_0"]["Dense_0"]["kernel"], xavier(192, 384)),
        "fc2": (block["MlpBlock_0"]["Dense_1"]["kernel"], xavier(384, 192)),
        "head": (params["head"]["kernel"], xavier(192, 100)),
        "positions": (params["pos_embedding"], 1.0),
    }
    assert {name: deviation(kernel) for name, (kernel, _) in expected.items()} == {
        name: pytest.approx(value, rel=0.05) for name, (_, value) in expected.items()
    }
    assert np.abs(attention["out"]["kernel"]).max() > 3.5 * xavier(192, 192)  # truncated nowhere
    assert deviation(params["cls"]) == pytest.approx(1.0, rel=0.2)
    biases = [leaf for name, leaf in flatten(params).items() if name.endswith("/bias")]
    assert len(biases) == 8 and not any(np.any(bias) for bias in biases)


def test_cait_begins_as_released():
    # Many heads: as wide together, mixes large enough to see their deviation.
    params = begun(models.create("sl_cait", depth=1, class_depth=1, num_heads=32, head_dim=8))
    assert deviation(params["embedding"]["projection"]["kernel"]) == pytest.approx(xavier(240, 192), rel=0.03)
    for block in (params["Transformer"]["encoderblock_0"], params["class_attention_0"]):
        attention = block["MultiHeadDotProductAttention_0"]
        assert deviation(attention["query"]["kernel"]) == pytest.approx(xavier(192, 256), rel=0.03)
        for part in ("key", "value"):
            assert deviation(attention[part]["kernel"]) == pytest.approx(xavier(192, 512), rel=0.03)
        for mix in ("proj_l", "proj_w"):
            assert attention[mix].keys() == {"kernel"}
            assert deviation(attention[mix]["kernel"]) == pytest.approx(1.0, rel=0.1)
        np.testing.assert_allclose(attention["scale"], np.full(32, 8**-0.5), rtol=1e-6)
        np.testing.assert_array_equal(block["LayerScale_1"]["gamma"], np.full(192, 0.1, "f"))


def test_layer_scale_begins_by_index_in_each_stack():
    model = models.create("small_cait", depth=26)
    assert list(model.layer_scales(model.depth)) == [0.1] * 18 + [1e-5] * 6 + [1e-6] * 2
    assert models.create("cait_xxs24").layer_scales(24) is None


@pytest.mark.parametrize(("scan", "remat"), [(False, None), (True, "nothing_saveable")])
def test_layer_scale_of_each_block(scan, remat):
    encoder = Encoder(
        3, fields={"num_heads": 1, "mlp_dim": 4}, layer_scale=(0.1, 0.2, 0.3), scan=scan, remat=remat
    )
    params = jax.jit(encoder.init)(jax.random.key(0, impl="rbg"), jnp.ones((1, 2, 4)))["params"]
    params = params if scan else loop_to_scan(params)
    expected = np.broadcast_to(np.array([[0.1], [0.2], [0.3]], "f"), (3, 4))
    for branch in ("LayerScale_0", "LayerScale_1"):
        np.testing.assert_array_equal(params["encoderblock"][branch]["gamma"], expected)


def test_stacked_blocks_are_the_same_network():
    model = models.create("sl_cait", **TINY)
    params, image = randomised(model), images()
    run = lambda model, params: jax.jit(model.apply)({"params": params}, image)[0]
    scanned = run(model.clone(scan=True), loop_to_scan(params))
    np.testing.assert_allclose(scanned, run(model, params), atol=2e-5)


# --- CaiT's second stage.


@pytest.mark.parametrize("lsa", ["temperature", "both"])
def test_class_attention_in_each_way(lsa):
    """Against the formulas, written down once more: keys, mask and heads' mixes."""
    rng = np.random.default_rng(0)
    cls, patches = rng.normal(size=(2, 1, 24)), rng.normal(size=(2, 7, 24))
    for keys in ("normed", "class_and_patches", "patches"):
        block = ClassAttentionBlock(
            3, 40, head_dim=5, qkv_bias=False, talking_heads=True, mixing_bias=False, norm_epsilon=1e-5,
            keys=keys, locality=locality(lsa, -1e-9),
        )  # fmt: skip
        like = jax.eval_shape(block.init, KEY, cls.astype("f"), patches.astype("f"))["params"]
        params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f"), like)
        attend = jax.jit(lambda params, of=block: of.apply({"params": params}, cls, patches, mutable=True))
        _, sown = attend(params)
        sown = sown["intermediates"]["MultiHeadDotProductAttention_0"]

        def norm(x, of=params["LayerNorm_0"]):
            centred = x - x.mean(-1, keepdims=True)
            return centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5) * of["scale"] + of["bias"]

        context = {
            "normed": norm(np.concatenate([cls, patches], 1)),
            "class_and_patches": np.concatenate([norm(cls), patches], 1),
            "patches": patches,
        }[keys]
        p = params["MultiHeadDotProductAttention_0"]
        project = lambda x, part, p=p: np.einsum("bnd,dhk->bnhk", x, p[part]["kernel"])
        logits = np.einsum("bnhk,bmhk->bhnm", project(norm(cls), "query"), project(context, "key"))
        logits *= p["scale"][:, None, None]
        if lsa == "both" and keys != "patches":
            logits[..., 0] = 0  # the class token with itself
        mixed = np.exp(np.einsum("bhnm,hg->bgnm", logits, p["proj_l"]["kernel"]))
        weights = np.einsum("bhnm,hg->bgnm", mixed / mixed.sum(-1, keepdims=True), p["proj_w"]["kernel"])
        np.testing.assert_allclose(sown["attention_logits"][0], logits, atol=1e-4, err_msg=keys)
        np.testing.assert_allclose(sown["attention_weights"][0], weights, atol=1e-4, err_msg=keys)


@pytest.mark.parametrize("class_dropout", [False, True])
def test_stochastic_depth_in_the_second_stage(class_dropout):
    """With all branches dropped the class token stays what it was."""
    model = models.create("small_cait", **TINY, drop_path=1 - 1e-6, class_dropout=class_dropout)
    params = randomised(model)
    train = jax.jit(lambda p: model.apply({"params": p}, images(), train=True, rngs={"dropout": KEY})[1])
    out = train(params)
    np.testing.assert_array_equal(out["tokens"][-1], out["with_posemb"])
    unchanged = np.array_equal(out["class_tokens"][-1], np.tile(params["cls"], (2, 1, 1)))
    assert unchanged == class_dropout


@pytest.mark.parametrize("network", [n for n in NETWORKS if n not in ("pit", "swin")])
def test_no_output_projection_where_it_is_left_out(network):
    fields = {"head_dim": 48} if network == "cait" else {}  # its heads are wider than the stream together
    names = flatten(shapes(models.create(f"small_{network}", depth=1, out_projection=False, **fields)))
    assert not [name for name in names if "encoderblock" in name and "/out/" in name]


def test_mistakes():
    with pytest.raises(UserError, match=r"class_keys='patch' is none of .*Did you mean 'patches'"):
        models.create("small_cait", class_keys="patch")
    with pytest.raises(UserError, match="layer_scale='by_indes' is neither"):
        models.create("small_cait", layer_scale="by_indes")
    with pytest.raises(
        UserError, match=r"out_projection=False: 12 heads of head_dim=8 do not fit.*width=192"
    ):
        models.create("small_vit", head_dim=8, out_projection=False)
    with pytest.raises(UserError, match="head_dim=0 must be 1 or more"):
        models.create("small_vit", head_dim=0)
    for mask in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"lsa_mask=.* must be a number, or -inf"):
            models.create("sl_vit", lsa_mask=mask)
    with pytest.raises(UserError, match=r"30x30 pixels cannot be cut into patches of 4x4.*32x32"):
        shapes(models.create("sl_vit"), 30)
