"""DeiT: published sizes, initial values, the two heads of the distilled form, mistakes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError

KEY = jax.random.key(0)
TINY = {"num_classes": 5, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2}


def shapes(model, size):
    return jax.eval_shape(model.init, KEY, jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32))["params"]


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def variables(model, image, seed=1):
    rng = np.random.default_rng(seed)
    draw = lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype)
    return {"params": jax.tree.map(draw, shapes(model, image.shape[1]))}


@pytest.mark.parametrize(
    ("name", "size", "total"),
    [
        ("deit_ti16", 224, 5_717_416),
        ("deit_s16", 224, 22_050_664),
        ("deit_b16", 224, 86_567_656),
        ("deit_b16", 384, 86_859_496),
        ("deit_ti16_distilled", 224, 5_910_800),
        ("deit_s16_distilled", 224, 22_436_432),
        ("deit_b16_distilled", 224, 87_338_192),
        ("deit_b16_distilled", 384, 87_630_032),
        ("deit3_s16", 224, 22_059_496),
        ("deit3_b16", 224, 86_585_320),
        ("deit3_l16", 224, 304_374_760),
    ],
)
def test_published_sizes(name, size, total):
    assert count(shapes(models.create(name, num_classes=1000, scan=True), size)) == total


def test_names_say_what_it_is():
    assert models.create("deit_s32_distilled").patch_size == 32
    assert models.create("deit_s16_distilled").distilled and not models.create("deit_s16").distilled
    for unknown in ("deit3_s16_distilled", "deit_s16_distill", "deit_x16"):
        with pytest.raises(UserError, match="Did you mean 'deit"):
            models.create(unknown)


# --- Initialisation.


def test_initial_values():
    model = models.create("deit_ti16_distilled", num_classes=100, depth=1)
    params = jax.jit(model.init)(KEY, np.zeros((1, 112, 112, 3), np.float32))["params"]
    block = params["Transformer"]["encoderblock_0"]
    attention, mlp = block["MultiHeadDotProductAttention_0"], block["MlpBlock_0"]
    normal = [attention[part] for part in ("query", "key", "value", "out")]
    normal += [mlp["Dense_0"], mlp["Dense_1"], params["head"], params["head_dist"]]
    for layer in normal:
        assert np.std(layer["kernel"]) == pytest.approx(0.02, rel=0.03)
        assert np.abs(layer["kernel"]).max() > 0.06  # not truncated at two deviations
        assert not np.any(layer["bias"])
    for token in ("cls", "dist"):
        assert np.std(params[token]) == pytest.approx(0.02, rel=0.2)
    assert not np.allclose(params["cls"], params["dist"])
    assert not np.allclose(params["head"]["kernel"], params["head_dist"]["kernel"])
    assert params["pos_embedding"].shape == (1, 51, 192)
    assert np.std(params["pos_embedding"]) == pytest.approx(0.02, rel=0.03)
    limit = 1 / np.sqrt(16 * 16 * 3)  # the patch embedding is left as PyTorch makes it, bias and all
    for leaf in params["embedding"].values():
        assert 0.95 * limit < np.abs(leaf).max() <= limit
        assert np.std(leaf) == pytest.approx(limit / np.sqrt(3), rel=0.1)


def test_initial_values_of_deit3():
    model = models.create("deit3_ti16", depth=1)
    params = jax.jit(model.init)(KEY, np.zeros((1, 112, 112, 3), np.float32))["params"]
    gamma = params["Transformer"]["encoderblock_0"]["LayerScale_0"]["gamma"]
    np.testing.assert_array_equal(gamma, np.float32(1e-6))
    assert params["pos_embedding"].shape == (1, 49, 192)
    assert np.std(params["pos_embedding"]) == pytest.approx(0.02, rel=0.03)  # and not 1/sqrt(192)
    assert model.drop_path_uniform


# --- Two heads.


@pytest.mark.parametrize("scan", [False, True])
def test_two_heads_are_apart_in_training_and_averaged_in_inference(scan):
    model = models.create("deit_ti16_distilled", **TINY, scan=scan)
    image = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
    weights = variables(model, image)

    @jax.jit
    def run(weights):
        averaged = model.clone(average_heads=True)
        return (
            model.apply(weights, image),
            model.apply(weights, image, train=True),
            averaged.apply(weights, image, train=True),
        )

    (logits, out), (train_logits, train_out), (averaged_logits, _) = run(weights)
    assert logits.shape == out["logits_class"].shape == out["logits_dist"].shape == (3, 5)
    assert out["head_input"].shape == (3, 2, 32) and out["pre_logits"].shape == (3, 32)
    for head, token in (("head", 0), ("head_dist", 1)):
        layer = weights["params"][head]
        expected = out["encoded"][:, token] @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(out["logits_class" if token == 0 else "logits_dist"], expected, atol=1e-5)
    np.testing.assert_allclose(logits, (out["logits_class"] + out["logits_dist"]) / 2, atol=1e-6)
    assert not np.allclose(out["logits_class"], out["logits_dist"], rtol=0.1)
    np.testing.assert_allclose(train_logits, out["logits_class"], atol=1e-6)
    np.testing.assert_allclose(train_out["logits_dist"], out["logits_dist"], atol=1e-6)
    np.testing.assert_allclose(averaged_logits, logits, atol=1e-6)


def test_positions_of_big_vision_leave_both_tokens_alone():
    model = models.create("deit_ti16_distilled", **TINY, posemb_layout="big_vision")
    image = np.zeros((1, 32, 32, 3), np.float32)
    weights = variables(model, image)
    assert weights["params"]["pos_embedding"].shape == (1, 4, 32)
    tokens = jax.jit(model.apply)(weights, image)[1]["with_posemb"]
    np.testing.assert_array_equal(tokens[0, 0], weights["params"]["cls"][0, 0])
    np.testing.assert_array_equal(tokens[0, 1], weights["params"]["dist"][0, 0])


def test_without_classes_the_tokens_themselves_come_out():
    model = models.create("deit_ti16_distilled", **{**TINY, "num_classes": None})
    image = np.ones((2, 32, 32, 3), np.float32)
    weights = variables(model, image)
    assert not {"head", "head_dist"} & weights["params"].keys()
    logits, out = jax.jit(model.apply)(weights, image)
    np.testing.assert_allclose(logits, out["pre_logits"], atol=1e-6)


@pytest.mark.parametrize("pool", ["gap", "map", "0", "none"])
def test_a_distilled_model_reads_its_tokens(pool):
    with pytest.raises(UserError, match=f"pool='{pool}'.*distillation token"):
        models.create("deit_ti16_distilled", pool=pool)


def test_average_heads_is_of_distilled_models_only():
    with pytest.raises(UserError, match=r"model\.average_heads is not a field of 'deit_ti16'"):
        models.create("deit_ti16", average_heads=True)
    with pytest.raises(UserError, match=r"initialisation='deti'.*Did you mean 'deit'"):
        models.create("vit_ti16", initialisation="deti")


@pytest.mark.parametrize("scan", [False, True])
def test_uniform_stochastic_depth(scan):
    """Counts examples that both branches of a block leave unchanged: the rate squared, in every block."""
    model = models.create(
        "deit_ti16", **{**TINY, "depth": 3}, scan=scan, drop_path=0.7, drop_path_uniform=True
    )
    image = np.random.default_rng(0).normal(size=(512, 16, 16, 3)).astype(np.float32)
    weights = variables(model, image)
    out = jax.jit(lambda w: model.apply(w, image, train=True, rngs={"dropout": KEY})[1])(weights)
    tokens = [out["with_posemb"], *out["tokens"]]
    unchanged = [np.mean(np.all(a == b, axis=(1, 2))) for a, b in itertools.pairwise(tokens)]
    np.testing.assert_allclose(unchanged, [0.49] * 3, atol=0.07)  # 3 deviations of 512 draws
