"""PiT, original and reduced: fields, initial values, mistakes. Sizes: `test_small.py` and manifests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.encoder import loop_to_scan
from vitjax.models.pit import PiT
from vitjax.optim.layers import factors
from vitjax.weights.tree import flatten

KEY = jax.random.key(0)
TINY = {
    "num_classes": 5,
    "width": (8, 16),
    "depth": (1, 2),
    "mlp_dim": (16, 32),
    "num_heads": (2, 4),
    "patch_size": 4,
}


def shapes(model, *size):
    image = jax.ShapeDtypeStruct((1, *(size if len(size) == 2 else size * 2), 3), jnp.float32)
    return jax.eval_shape(model.init, KEY, image)["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def variables(model, *size, seed=1):
    rng = np.random.default_rng(seed)
    draw = lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype)
    return {"params": jax.tree.map(draw, shapes(model, *size))}


def images(*size, batch=2):
    return np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)


def forward(model, params, image, **how):
    return jax.jit(lambda params, image: model.apply(params, image, **how))(params, image)


# --- Sizes.


def test_without_s_pool_it_is_the_plain_pooling_behind_an_spt_embedding():
    model = models.create("sl_pit", num_classes=200, patch_size=4, spt_pooling=False, scan=True)
    params = shapes(model, 64)
    assert count(params) == pytest.approx(7.07e6, rel=1e-3)  # the paper's count
    assert {"norm", "projection"} == params["embedding"].keys()
    assert {"depthwise", "pointwise", "cls"} == params["pooling_0"].keys()
    assert {"norm", "projection", "cls"} == shapes(models.create("sl_pit", scan=True), 32)["pooling_1"].keys()


def test_names_say_what_it_is():
    assert models.create("pit_b_distilled").distilled and not models.create("pit_b").distilled
    assert models.create("pit_s").width == (144, 288, 576)
    epsilons = {name: models.create(name).norm_epsilon for name in ("pit_ti", "small_pit", "sl_pit")}
    assert epsilons == {"pit_ti": 1e-6, "small_pit": 1e-5, "sl_pit": 1e-5}
    for unknown in ("pit_xs_distil", "pit_xxs", "sl_pit_distilled"):
        with pytest.raises(UserError, match="Did you mean"):
            models.create(unknown)


# --- What goes through it.


@pytest.mark.parametrize("options", [{}, {"spt": "diagonal", "spt_pooling": True}])
def test_every_block_shows_its_tokens_grid_and_attention(options):
    model = PiT(**TINY, **options)
    out, sown = jax.eval_shape(
        lambda v, x: model.apply(v, x, mutable=["intermediates"]), variables(model, 16, 24), images(16, 24)
    )
    out, sown = out[1], sown["intermediates"]
    grids = [(4, 6), (2, 3), (2, 3)]
    assert out["stem"].shape == (2, 4, 6, 8)
    found = jax.jit(lambda v, x: model.apply(v, x)[1]["grids"])(variables(model, 16, 24), images(16, 24))
    assert [tuple(map(int, grid)) for grid in found] == grids
    assert [t.shape for t in out["tokens"]] == [(2, 25, 8), (2, 7, 16), (2, 7, 16)]
    assert out["encoded"].shape == (2, 7, 16) and out["head_input"].shape == (2, 16)
    for block, heads, tokens in (
        ("stage_0/encoderblock_0", 2, 25),
        ("stage_1/encoderblock_0", 4, 7),
        ("stage_1/encoderblock_1", 4, 7),
    ):
        attention = f"{block}/MultiHeadDotProductAttention_0"
        for kind in ("attention_logits", "attention_weights"):
            assert flatten(sown)[f"{attention}/{kind}"][0].shape == (2, heads, tokens, tokens)


def test_an_odd_map_is_pooled_to_its_half_rounded_up():
    model = PiT(**TINY, patch_stride=2)
    out = jax.eval_shape(lambda v, x: model.apply(v, x)[1], variables(model, 20), images(20, 20))
    assert out["stem"].shape == (2, 9, 9, 8) and out["tokens"][1].shape == (2, 26, 16)


def test_the_head_reads_the_final_norm_of_the_class_token():
    model = PiT(**TINY)
    out = forward(model, variables(model, 16), images(16, 16))[1]
    np.testing.assert_allclose(out["head_input"], out["encoded"][:, 0], rtol=1e-6, atol=1e-6)
    params = variables(model, 16)["params"]
    by_hand = out["head_input"] @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(out["logits"], by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pool", ["gap", "map", "none"])
def test_other_pools_read_the_last_map(pool):
    model = PiT(**TINY, pool=pool)
    params = shapes(model, 16)
    assert "cls" not in params and "cls" not in params["pooling_0"]
    logits, out = jax.eval_shape(model.apply, variables(model, 16), images(16, 16))
    assert logits.shape == ((2, 4, 5) if pool == "none" else (2, 5)) and out["encoded"].shape == (2, 4, 16)
    if pool == "gap":
        out = forward(model, variables(model, 16), images(16, 16))[1]
        np.testing.assert_allclose(out["head_input"], out["encoded"].mean(1), rtol=1e-5, atol=1e-6)


def test_scanned_and_recomputed_stages_are_the_same_function():
    model, scanned = PiT(**TINY), PiT(**TINY, scan=True, remat="nothing_saveable")
    params = variables(model, 16)["params"]
    stacked = loop_to_scan(params)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes(scanned, 16))

    def run(model, params):
        def loss(params):
            logits, out = model.apply({"params": params}, images(16, 16))
            return jnp.sum(logits**2), out["tokens"]

        return jax.grad(loss, has_aux=True)(params)

    grads, tokens = jax.jit(lambda params: run(model, params))(params)
    grads_scanned, tokens_scanned = jax.jit(lambda params: run(scanned, params))(stacked)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, tokens, tokens_scanned)
    jax.tree.map(close, loop_to_scan(grads), grads_scanned)


def test_two_heads_apart_in_training_and_averaged_in_inference():
    model = models.create("pit_ti_distilled", **TINY, patch_stride=None)
    params = variables(model, 16)
    _, out = forward(model, params, images(16, 16))
    assert out["head_input"].shape == (2, 2, 16) and out["pre_logits"].shape == (2, 16)
    mean = (out["logits_class"] + out["logits_dist"]) / 2
    np.testing.assert_allclose(out["logits"], mean, rtol=1e-6)
    assert np.abs(out["logits_class"] - out["logits_dist"]).max() > 0.01
    trained = forward(model, params, images(16, 16), train=True)[1]
    np.testing.assert_array_equal(trained["logits"], trained["logits_class"])
    averaging = forward(model.clone(average_heads=True), params, images(16, 16), train=True)[1]
    np.testing.assert_allclose(averaging["logits"], mean, rtol=1e-5, atol=1e-6)


def test_lsa_is_in_every_stage():
    params = flatten(shapes(PiT(**TINY, lsa="both"), 16))
    scales = {name: leaf.shape for name, leaf in params.items() if name.endswith("Attention_0/scale")}
    assert sorted(scales.values()) == [(2,), (4,), (4,)]
    masked = flatten(shapes(PiT(**TINY, lsa="mask"), 16))
    assert not any(name.endswith("Attention_0/scale") for name in masked)


def test_bfloat16_products_leave_the_residual_stream_in_float32():
    model = PiT(**TINY, spt="diagonal", spt_pooling=True, lsa="both")
    params = variables(model, 16)
    half, _ = forward(model.clone(dtype="bfloat16"), params, images(16, 16))
    full, out = forward(model, params, images(16, 16))
    assert half.dtype == jnp.float32 and {t.dtype for t in out["tokens"]} == {jnp.dtype("float32")}
    assert 0 < np.abs(half - full).max() < 0.1 * np.abs(full).max()


def test_stochastic_depth_grows_over_all_stages_or_is_the_same_everywhere():
    np.testing.assert_allclose(PiT(**TINY, drop_path=0.3).rates(), (0, 0.1, 0.2))
    assert models.create("sl_pit", drop_path=0.1).rates() == (0.1,) * 12
    model = PiT(**{**TINY, "depth": (1, 1)}, drop_path=0.5)
    params, x = variables(model, 16), images(16, 16, batch=64)
    still, moved = (
        forward(model, params, x, train=train, rngs={"dropout": KEY})[1]["tokens"] for train in (False, True)
    )
    np.testing.assert_allclose(still[0], moved[0], rtol=1e-5, atol=1e-5)  # rate 0
    same = np.isclose(still[1], moved[1], rtol=1e-4, atol=1e-5).all((1, 2))
    assert not same.any()  # rate 0.25: a branch is lost or grows


def test_layer_wise_decay_counts_blocks_through_all_stages():
    for scan in (False, True):
        model = PiT(**TINY, scan=scan)
        found = factors({name: leaf.shape for name, leaf in flatten(shapes(model, 16)).items()}, 0.5)
        last = [found[n] for n in found if n.startswith("stage_1/") and n.endswith("LayerNorm_0/scale")]
        assert last == ([(0.25, 0.5)] if scan else [0.25, 0.5])
        assert found["pooling_0/cls/kernel"] == 0.25  # as the block after it
        assert found["embedding/kernel"] == found["pos_embedding"] == 0.5**4
        first = [found[n] for n in found if n.startswith("stage_0/")]
        assert set(first) == {(0.125,) if scan else 0.125}
        assert found["encoder_norm/scale"] == found["head/kernel"] == 1


# --- Initialisation.


def initial(name, size):
    """The first two stages with one block each."""
    fields = models.create(name)
    two = {field: getattr(fields, field)[:2] for field in ("width", "mlp_dim", "num_heads")}
    model = models.create(name, num_classes=100, depth=(1, 1), **two)
    compiled_fast = jax.random.key(0, impl="rbg")
    return jax.jit(model.init)(compiled_fast, np.zeros((1, size, size, 3), np.float32))["params"]


def test_the_original_begins_as_pytorch_has_it():
    params = initial("pit_ti_distilled", 56)
    uniform = {
        "embedding": 16 * 16 * 3,
        "stage_0/encoderblock_0/MultiHeadDotProductAttention_0/query": 64,
        "stage_1/encoderblock_0/MultiHeadDotProductAttention_0/out": 128,
        "stage_1/encoderblock_0/MlpBlock_0/Dense_0": 128,
        "stage_1/encoderblock_0/MlpBlock_0/Dense_1": 512,
        "pooling_0/depthwise": 9,
        "pooling_0/cls": 64,
        "head_dist": 128,
    }
    flat = flatten(params)
    for name, fan_in in uniform.items():
        for leaf in (flat[f"{name}/kernel"], flat[f"{name}/bias"]):
            assert 0.9 < np.abs(leaf).max() * np.sqrt(fan_in) <= 1.0001
            assert np.std(leaf) * np.sqrt(3 * fan_in) == pytest.approx(1, abs=0.15)
    for name in ("cls", "dist", "pos_embedding"):
        assert np.std(params[name]) == pytest.approx(0.02, rel=0.25)


def test_the_reduced_begins_as_released():
    flat = flatten(initial("small_pit", 16))
    fans = {  # of the arrays of the official code: a convolution's include its 2x2 or 3x3 places
        "embedding": (4 * 3, 4 * 96),
        "stage_1/encoderblock_0/MultiHeadDotProductAttention_0/key": (192, 3 * 192),
        "stage_1/encoderblock_0/MultiHeadDotProductAttention_0/out": (192, 192),
        "stage_1/encoderblock_0/MlpBlock_0/Dense_0": (192, 384),
        "pooling_0/depthwise": (9, 9 * 192),
        "pooling_0/pointwise": (192, 192),
        "pooling_0/cls": (96, 192),
        "head": (192, 100),
    }
    for name, (fan_in, fan_out) in fans.items():
        kernel = flat[f"{name}/kernel"]
        assert np.std(kernel) == pytest.approx(np.sqrt(2 / (fan_in + fan_out)), rel=0.08)
        assert np.abs(kernel).max() > 2.5 * np.std(kernel)  # normal, not uniform
        assert not np.any(flat.get(f"{name}/bias", 0))
    assert np.std(flat["cls"]) == pytest.approx(1, rel=0.2)
    assert np.std(flat["pos_embedding"]) == pytest.approx(1, rel=0.05)


# --- Mistakes.


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"depth": (1, 2, 3)}, r"width=\(8, 16\) must have one number.*depth=\(1, 2, 3\)"),
        ({"depth": ()}, r"depth=\(\) must have one number"),
        ({"num_heads": (2, 0)}, r"num_heads=\(2, 0\)"),
        ({"num_heads": (2, 3)}, r"16 cannot be split over the 3 heads"),
        ({"width": (8, 12)}, r"width=\(8, 12\): 12 is no multiple of 8"),
        ({"head_dim": 0}, "head_dim=0 must be 1 or more"),
        ({"pooling": "depthwize"}, "Did you mean 'depthwise'"),
        ({"patch_stride": 8}, "patch_stride=8 is more than patch_size=4"),
        ({"patch_stride": 0}, "patch_stride=0 is neither"),
        ({"patch_stride": 2, "spt": "diagonal"}, "patch_stride=2 lets those of patch_size=4 overlap"),
        ({"spt_pooling": True}, "spt_pooling=True.*spt='none': choose spt='diagonal'"),
    ],
)
def test_bad_fields_are_refused(fields, said):
    with pytest.raises(UserError, match=said):
        models.create("pit_ti", **{**TINY, "patch_stride": None, **fields})


@pytest.mark.parametrize(
    ("fields", "size", "said"),
    [
        ({}, 18, "18x18 pixels cannot be cut into patches of 4x4: .* is 16x16"),
        ({"patch_stride": 3}, 18, "4x4 pixels, 3x3 from one .* do not fill an image of 18x18: .* is 19x19"),
        ({"patch_stride": 2}, 2, "do not fill an image of 2x2: .* is 4x4"),
        ({"spt": "diagonal", "spt_pooling": True}, 20, "this one is 5x5: both sides must be even"),
    ],
)
def test_images_that_do_not_fit_are_refused(fields, size, said):
    with pytest.raises(UserError, match=said):
        shapes(PiT(**TINY, **fields), size)


def test_images_of_another_size_than_the_positions_are_refused():
    model = PiT(**TINY)
    with pytest.raises(UserError, match=r"position embedding has 16 entries.*25 tokens"):
        model.apply(variables(model, 16), images(20, 20))
