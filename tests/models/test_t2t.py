"""T2T-ViT: published sizes and costs, reduced networks, options, what is never trained, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.analysis.costs import multiply_accumulates
from vitjax.errors import UserError
from vitjax.layers.encoder import loop_to_scan
from vitjax.models.t2t import PUBLISHED

KEY = jax.random.key(0)
TINY = {"num_classes": 5, "width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2, "token_dim": 8, "splits": 2}


def variables(model, height, width=None):
    image = jax.ShapeDtypeStruct((1, height, width or height, 3), jnp.float32)
    return jax.eval_shape(model.init, KEY, image)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomised(model, image, seed=1):
    """Variables away from initialisation."""
    rng = np.random.default_rng(seed)
    made = jax.eval_shape(model.init, KEY, image)
    return jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype), made)


def close(actual, desired):
    """One float32 program against another: a few units in the last place of the tensor's maximum."""
    np.testing.assert_allclose(actual, desired, atol=2e-5 * np.abs(desired).max() + 1e-6)


# Exact numbers are those of the official code; published are parameters in millions and MACs in billions, of
# which the 13.8 of T2T-ViT-24 agree neither with ours nor with the 15.0 of its Transformer form: elsewhere
# the two differ by 1.3.
@pytest.mark.parametrize(
    ("name", "exact", "millions", "giga"),
    [
        ("t2t_vit_7", 4_310_222, 4.3, 1.1),
        ("t2t_vit_10", None, 5.9, 1.5),
        ("t2t_vit_12", None, 6.9, 1.8),
        ("t2t_vit_14", None, 21.5, 4.8),
        ("t2t_vit_19", None, 39.2, 8.5),
        ("t2t_vit_24", None, 64.1, 13.7),
        ("t2t_vit_t_14", 21_541_070, 21.5, 6.1),
        ("t2t_vit_t_19", None, 39.2, 9.8),
        ("t2t_vit_t_24", None, 64.1, 15.0),
    ],
)
def test_published_sizes_and_costs(name, exact, millions, giga):
    model = models.create(name, num_classes=1000, scan=True)
    made = variables(model, 224)
    positions = (14 * 14 + 1) * model.width  # parameters there, a constant here
    total = count(made) + positions
    assert round(total / 1e6, 1) == millions
    assert exact in (None, total)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    macs = multiply_accumulates(lambda made, image: model.apply(made, image)[0], made, image)
    assert round(macs / 1e9, 1) == giga


def test_every_published_name_is_above():
    marks = test_published_sizes_and_costs.pytestmark
    assert [case[0] for mark in marks for case in mark.args[1]] == list(PUBLISHED)


# For 10 and 100 classes at 32 pixels, 200 at 64.
@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("small_t2t", (6_486_080, 6_509_210, 6_659_262)),
        ("s_t2t", (6_507_032, 6_530_162, 6_680_214)),
        ("l_t2t", (6_486_129, 6_509_259, 6_659_312)),
        ("sl_t2t", (6_507_081, 6_530_211, 6_680_264)),
    ],
)
def test_reduced_networks_count_as_released(name, counts):
    cases = ((10, 32, {}), (100, 32, {}), (200, 64, {"splits": 3}))
    for total, (classes, size, fields) in zip(counts, cases, strict=True):
        model = models.create(name, num_classes=classes, scan=True, **fields)
        made = variables(model, size)
        assert count(made["params"]) == total and set(made) == {"params"}
        _, out = jax.eval_shape(model.apply, made, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))
        assert out["stem"].shape == (1, 8, 8, 256) and out["encoded"].shape == (1, 65, 256)
        without = models.create(name, num_classes=classes, scan=True, unused_norm=False, **fields)
        assert total - count(variables(without, size)["params"]) == 2 * 9 * 64


# --- Shapes and options.


@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_what_comes_out_of_an_image_that_is_no_square(kind):
    model = models.create("t2t_vit_7", **TINY, token_layer=kind)
    image = images(2, 16, 24, 3)
    made = randomised(model, image)
    (logits, out), seen = jax.jit(lambda v: model.apply(v, image, mutable=["intermediates"]))(made)
    assert model.stride == (4, 4)
    assert logits.shape == (2, 5)
    assert out["stem"].shape == (2, 4, 6, 32)
    assert [tokens.shape for tokens in out["token_maps"]] == [(2, 8, 12, 8)]
    assert [tokens.shape for tokens in out["tokens"]] == [(2, 25, 32)]
    seen = seen["intermediates"]
    in_layer = seen["tokens_to_token"]["token_layer_0"]["MultiHeadDotProductAttention_0"]
    in_block = seen["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    for sown, shape in ((in_layer, (2, 1, 96, 96)), (in_block, (2, 2, 25, 25))):
        for what in ("attention_logits", "attention_weights"):
            assert sown[what][0].shape == shape
        np.testing.assert_allclose(sown["attention_weights"][0].sum(-1), 1, rtol=1e-3)


def apply(fields, made, image):
    return jax.jit(models.create("t2t_vit_7", **{**TINY, **fields}).apply)(made, image)


def test_the_scale_is_by_the_width_of_heads_or_of_tokens():
    """Two heads are half as wide as tokens: one scale is the other with queries sqrt(2) shorter."""
    image = images(2, 16, 16, 3)
    made = randomised(models.create("t2t_vit_7", **TINY), image)
    by_width, _ = apply({"qk_scale": "width"}, made, image)
    shorter = jax.tree_util.tree_map_with_path(
        lambda path, x: x / np.sqrt(2) if "Transformer" in str(path[1]) and "query" in str(path) else x, made
    )
    close(by_width, apply({}, shorter, image)[0])
    assert np.abs(by_width - apply({}, made, image)[0]).max() > 1e-4


def test_with_one_head_the_inner_residual_is_the_values():
    fields = {"num_heads": 1, "inner_residual": True}
    image = images(1, 8, 8, 3)
    made = randomised(models.create("t2t_vit_7", **{**TINY, **fields}), image)
    block = made["params"]["Transformer"]["encoderblock_0"]
    for silent in (block["MultiHeadDotProductAttention_0"]["out"], block["MlpBlock_0"]["Dense_1"]):
        silent.update(jax.tree.map(np.zeros_like, silent))
    x = np.asarray(apply(fields, made, image)[1]["with_posemb"])
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    normed = normed * block["LayerNorm_0"]["scale"] + block["LayerNorm_0"]["bias"]
    expected = x + normed @ block["MultiHeadDotProductAttention_0"]["value"]["kernel"][:, 0]
    close(apply(fields, made, image)[1]["tokens"][0], expected)


@pytest.mark.parametrize("lsa", ["none", "both", "temperature", "mask"])
@pytest.mark.parametrize("kind", ["performer", "transformer"])
def test_lsa_is_in_blocks_and_in_token_layers_that_have_logits(kind, lsa):
    model = models.create("t2t_vit_7", **TINY, token_layer=kind, lsa=lsa)
    made = randomised(model, images(1, 8, 8, 3))
    params = made["params"]
    learned = lsa in ("both", "temperature")
    block = params["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    layer = params["tokens_to_token"]["token_layer_0"]["MultiHeadDotProductAttention_0"]
    assert ("scale" in block) == learned
    assert ("scale" in layer) == (learned and kind == "transformer")
    if lsa in ("both", "mask"):
        run = jax.jit(lambda v: model.apply(v, images(1, 8, 8, 3), mutable=["intermediates"])[1])
        weights = jax.tree_util.tree_leaves_with_path(run(made)["intermediates"])
        diagonals = {
            "token_layer" in str(path): np.abs(np.diagonal(w, axis1=-2, axis2=-1)).max()
            for path, w in weights
            if "attention_weights" in str(path)
        }
        assert diagonals[False] == 0
        assert (diagonals[True] == 0) == (kind == "transformer")


def test_learned_scales_begin_at_the_widths_of_the_inputs():
    model = models.create("sl_t2t", num_classes=5, depth=1)
    params = jax.jit(model.init)(KEY, images(1, 16, 16, 3))["params"]
    layer = params["tokens_to_token"]["token_layer_0"]["MultiHeadDotProductAttention_0"]
    block = params["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    np.testing.assert_allclose(layer["scale"], [135**-0.5], rtol=1e-6)
    np.testing.assert_allclose(block["scale"], [64**-0.5] * 4, rtol=1e-6)
    for kernel in (layer["query"]["kernel"], params["tokens_to_token"]["projection"]["kernel"]):
        assert 0.018 < np.std(kernel) < 0.022
    assert not np.any(params["tokens_to_token"]["projection"]["bias"])


@pytest.mark.parametrize(("directions", "channels"), [("diagonal", 15), ("cardinal", 15), ("all", 27)])
def test_spt_is_views_in_the_first_split_and_nothing_else(directions, channels):
    plain, shifted = (models.create("t2t_vit_7", **TINY, spt=spt) for spt in ("none", directions))
    before, after = (jax.tree_util.tree_leaves_with_path(variables(m, 8)["params"]) for m in (plain, shifted))
    assert [path for path, _ in before] == [path for path, _ in after]
    changed = [b.shape for (_, a), (_, b) in zip(before, after, strict=True) if a.shape != b.shape]
    assert changed == [(9 * channels,)] * 2 + [(9 * channels, 1, 8)] * 3


def test_stochastic_depth_begins_at_zero_and_spares_the_token_layers():
    model = models.create("small_t2t", **TINY, drop_path=0.9)  # the first block has rate 0
    image = images(4, 8, 8, 3)
    made = randomised(model, image)
    in_training = jax.jit(lambda v: model.apply(v, image, train=True, rngs={"dropout": KEY})[0])(made)
    close(in_training, jax.jit(model.apply)(made, image)[0])


def test_scan_and_remat_change_nothing():
    image = images(2, 8, 8, 3)
    fields = {"depth": 2, "inner_residual": True, "lsa": "both"}
    made = randomised(models.create("t2t_vit_7", **{**TINY, **fields}), image)
    stacked = {**made, "params": loop_to_scan(made["params"])}
    forms = {"scan": True, "remat": "nothing_saveable"}
    close(apply({**fields, **forms}, stacked, image)[0], apply(fields, made, image)[0])


def test_bfloat16_is_of_the_products_only():
    image = images(2, 8, 8, 3)
    made = randomised(models.create("small_t2t", **TINY), image)
    logits, out = jax.jit(models.create("small_t2t", **TINY, dtype="bfloat16").apply)(made, image)
    assert {x.dtype for x in (logits, out["with_posemb"], *out["tokens"], *out["token_maps"])} == {
        np.dtype("float32")
    }
    expected = jax.jit(models.create("small_t2t", **TINY).apply)(made, image)[0]
    assert 1e-4 < np.abs(logits - expected).max() / np.abs(expected).max() < 5e-2


def test_learned_positions_and_average_pooling_are_free_to_combine():
    made = variables(models.create("t2t_vit_7", **TINY, posemb="learn", pool="gap"), 8)
    assert made["params"]["pos_embedding"].shape == (1, 4, 32) and "cls" not in made["params"]


# --- Mistakes are told.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"splits": 0}, "splits=0 is neither"),
        ({"splits": ((3, 2, 0),)}, "windows of 3, 2 apart"),
        ({"token_layer": "perfomer"}, "token_layer='perfomer'.*Did you mean 'performer'"),
        ({"qk_scale": "heads"}, "qk_scale='heads' is none of 'head_dim', 'width'"),
        ({"token_dim": 1}, "token_dim=1 must be 2 or more"),
        ({"token_dropout": 1.0}, "token_dropout=1.0 is not a rate"),
        ({"patch_size": 8}, "patch_size=8: a T2T-ViT cuts no patches.*splits=2"),
        ({"spt": "diagonal", "spt_ratio": 0.4}, "spt_ratio=0.4 .* shift of 0"),
        ({"spt": "diagonal", "splits": ((3, 1, 1),)}, "shift of 0"),
        ({"spt": "diagonl"}, "spt='diagonl'"),
        ({"num_heads": 5}, "num_heads=5"),
    ],
)
def test_bad_values_are_refused_at_once(fields, message):
    with pytest.raises(UserError, match=message):
        models.create("t2t_vit_7", **{**TINY, **fields})


def test_an_image_that_the_splits_do_not_divide():
    with pytest.raises(UserError, match=r"An image of 30x32 pixels .* nearest size that can is 32x32"):
        variables(models.create("t2t_vit_7", **TINY), 30, 32)
    with pytest.raises(UserError, match=r"230x230 .* 16 pixels apart: the nearest size that can is 224x224"):
        variables(models.create("t2t_vit_14"), 230)


def test_unknown_names():
    for name in ("t2t_vit_t_7", "t2t_vit_15", "t2t_vit14"):
        with pytest.raises(UserError, match="Did you mean 't2t_vit_"):
            models.create(name)
