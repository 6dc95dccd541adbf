"""BinaryViT and its ladder: published sizes, options, forms, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.models.binaryvit import BinaryViT
from vitjax.weights.tree import flatten

KEY = jax.random.key(0)
TINY = {
    "num_classes": 5,
    "width": (4, 8),
    "depth": (1, 1),
    "mlp_dim": (8, 16),
    "num_heads": (1, 2),
    "reduction": (2, 1),
    "patch_size": 2,
}


def shapes(model, *size):
    image = jax.ShapeDtypeStruct((1, *(size if len(size) == 2 else size * 2), 3), jnp.float32)
    return jax.eval_shape(model.init, KEY, image)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def randomised(variables, seed=1):
    """Parameters away from initialisation, statistics of batches that are possible."""
    rng = np.random.default_rng(seed)
    draw = lambda x: (0.5 * rng.normal(size=x.shape)).astype(x.dtype)
    return {
        "params": jax.tree.map(draw, variables["params"]),
        **(
            {"batch_stats": jax.tree.map(lambda x: np.abs(draw(x)) + 0.5, variables["batch_stats"])}
            if len(variables) > 1
            else {}
        ),
    }


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- Published sizes. Batch norms have a mean and a variance a channel, and PyTorch counts their batches.


@pytest.mark.parametrize(
    ("name", "learnable", "binary", "buffers"),
    [
        ("binary_deit_s16", 22_294_900, 21_233_664, 111_469),
        ("binary_deit_s16_gap", 22_294_132, 21_233_664, 111_469),
        ("binary_deit_s16_branches", 22_330_996, 21_233_664, 111_469),
        ("binary_deit_s16_affine", 22_349_428, 21_233_664, 111_469),
        ("binaryvit_s", 22_491_771, 21_196_800, 126_266),
        ("binaryvit_s_star", 22_488_635, 20_508_672, 126_266),
        ("binaryvit_teacher_s16", 22_050_664, 0, 0),
    ],
)
def test_published_sizes(name, learnable, binary, buffers):
    variables = shapes(models.create(name, num_classes=1000), 224)
    assert count(variables["params"]) == learnable
    statistics = variables.get("batch_stats", {})
    assert count(statistics) + len(jax.tree.leaves(statistics)) // 2 == buffers
    latent = {
        key: leaf for key, leaf in flatten(variables["params"]).items() if key.endswith("/dense/kernel")
    }
    if not name.endswith("_star") and "teacher" not in name:
        latent |= {k: leaf for k, leaf in flatten(variables["params"]).items() if k.endswith("/conv/kernel")}
    assert count(latent) == binary


def test_each_row_of_the_ladder_adds_to_the_one_before():
    rows = ["", "_gap", "_branches", "_affine"]
    found = [set(flatten(shapes(models.create(f"binary_deit_ti16{row}"), 32)["params"])) for row in rows]
    assert found[0] - found[1] == {"cls"} and found[1] < found[2] < found[3]
    assert all("/row_" in name or "/column_" in name for name in found[2] - found[1])
    assert all("/affine_" in name for name in found[3] - found[2])


def test_the_teacher_is_a_deit_with_another_epsilon():
    teacher, deit = (models.create(name) for name in ("binaryvit_teacher_s16", "deit_s16"))
    assert (teacher.norm_epsilon, deit.norm_epsilon) == (1e-5, 1e-6)  # pyright: ignore
    assert shapes(teacher, 224) == shapes(deit, 224)


def test_maps_of_all_stages():
    assert models.create("binaryvit_s").grids((56, 56)) == [(56, 56), (28, 28), (14, 14), (7, 7)]
    assert models.create("binaryvit_s").image_unit == (32, 32)
    assert models.create("binaryvit_ti", reduction=(4, 4, 1, 1)).image_unit == (32, 32)
    assert models.create("binaryvit_ti", reduction=(1, 4, 4, 1)).image_unit == (64, 64)
    variables = shapes(models.create("binaryvit_ti", num_classes=10), 32, 64)
    assert variables["params"]["pos_embedding_3"].shape == (1, 1 * 2, 256)


# --- What is computed.


@pytest.fixture(scope="module")
def network():
    """A binary network, its variables, an image of other sides, and what comes out of it."""
    model = models.create("binaryvit_s", **TINY, lsa="both", spt="diagonal")
    variables, image = randomised(shapes(model, 8, 16)), images(2, 8, 16, 3)

    @jax.jit
    def run(variables, image):
        def loss(params):
            every = {**variables, "params": params}
            (logits, out), state = model.apply(
                every, image, train=True, mutable=["batch_stats", "intermediates"]
            )
            return jnp.square(logits).sum(), (out, state)

        return jax.grad(loss, has_aux=True)(variables["params"])

    grads, (out, state) = run(variables, image)
    return model, variables, grads, out, state


def test_shapes_of_what_comes_out(network):
    _, _, _, out, _ = network
    assert out["stem"].shape == (2, 4, 8, 4) and out["with_posemb"].shape == (2, 32, 4)
    assert [x.shape for x in out["tokens"]] == [(2, 32, 4), (2, 8, 8)]
    assert [x.shape for x in out["downsampled"]] == [(2, 8, 8)]
    assert out["encoded"].shape == (2, 8, 8) and out["logits"].shape == (2, 5)
    np.testing.assert_allclose(out["pre_logits"], out["encoded"].mean(1), atol=1e-6)


def test_attention_is_0_or_1_where_it_is_half_its_clip(network):
    _, variables, _, _, state = network
    for block, keys in (("encoderblock_0", 8), ("encoderblock_1", 8)):
        sown = {name: x[0] for name, x in state["intermediates"][block]["attention"].items()}
        clip = variables["params"][block]["attention"]["clip"]
        assert sown["attention_weights"].shape[-1] == keys
        np.testing.assert_allclose(sown["attention_weights"].sum(-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(sown["attention_on"], sown["attention_weights"] / clip > 0.5)
    masked = state["intermediates"]["encoderblock_1"]["attention"]["attention_weights"][0]
    assert (np.diagonal(masked, axis1=-2, axis2=-1) == 0).all()  # LSA's mask, where nothing is reduced
    reduced = state["intermediates"]["encoderblock_0"]["attention"]["attention_weights"][0]
    assert (np.asarray(reduced) > 0).all()


def test_logits_are_whole_numbers_times_the_temperature(network):
    _, variables, _, _, state = network
    attention = variables["params"]["encoderblock_0"]["attention"]
    products = (
        state["intermediates"]["encoderblock_0"]["attention"]["attention_logits"][0] / attention["scale"][0]
    )
    np.testing.assert_allclose(products, np.round(products), atol=1e-4)
    assert np.abs(products).max() <= 4


def test_statistics_move_and_gradients_are_finite(network):
    _, variables, grads, _, state = network
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state["batch_stats"], variables["batch_stats"])
    assert min(jax.tree.leaves(moved)) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    silent = {name for name, leaf in flatten(grads).items() if not np.any(leaf)}
    assert not {name for name in silent if name.endswith("kernel") and "key" not in name}, silent


def test_branches_begin_at_nothing_and_affines_at_a_tenth():
    model = models.create("binaryvit_s", **TINY)
    params = jax.jit(lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)))["params"])(KEY)
    block = params["encoderblock_0"]
    for name in ("row_3", "column_5"):
        np.testing.assert_array_equal(block[name]["alpha"], 0)
    np.testing.assert_allclose(block["affine_0"]["alpha"], 0.1)
    np.testing.assert_allclose(block["attention"]["clip"], 0.005)
    np.testing.assert_array_equal(block["expand"]["rprelu"]["slope"], 0.25)
    kernel = np.asarray(params["encoderblock_1"]["contract"]["dense"]["kernel"])  # 16 inputs
    assert 0.2 < np.abs(kernel).max() <= 0.25
    conv = np.asarray(params["downsampling_0"]["conv"]["kernel"])  # 2 * 2 * 4 inputs
    assert 0.2 < np.abs(conv).max() <= 0.25


def test_remat_changes_nothing(network):
    plain, variables, *_ = network
    model = models.create("binaryvit_s", **TINY, lsa="both", spt="diagonal", remat="nothing_saveable")
    image = images(2, 8, 16, 3)

    @jax.jit
    def logits(variables):
        return [m.apply(variables, image)[0] for m in (plain, model)]

    a, b = logits(variables)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


# --- Mistakes are told.


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "binaryvit_s",
            {"mlp_dim": (500, 1024, 1024, 2048)},
            "mlp_dim=.* 500 is no multiple of the width 64.* 512",
        ),
        (
            "binaryvit_s",
            {"width": (64, 96, 256, 512), "mlp_dim": (512, 960, 1024, 2048)},
            "width=.* 96 is no multiple of 64.*downsampling='float'",
        ),
        ("binaryvit_s", {"num_heads": (1, 3, 4, 8)}, r"num_heads=\(1, 3, 4, 8\): the width 128 .* 3 heads"),
        ("binaryvit_s", {"depth": 4}, "depth=4 must have one number, 1 or more, for each stage"),
        ("binaryvit_s", {"reduction": (8, 4, 1, 0)}, "reduction=.* 1 or more"),
        ("binaryvit_s", {"class_token": True}, "class_token=True: branches and stages"),
        ("binary_deit_s16", {"branches": (3,)}, "class_token=True: branches"),
        ("binaryvit_s", {"branches": (3, 4)}, r"branches=\(3, 4\) must be odd"),
        ("binaryvit_s", {"attention_clip": 0.0}, "attention_clip=0.0"),
        ("binaryvit_s", {"precision": "binray"}, "precision='binray' is none of .*Did you mean 'binary'"),
        ("binaryvit_s", {"estimator": "ste"}, "estimator='ste' is none of"),
        ("binaryvit_s", {"norm": "bach"}, "norm='bach' is none of .*Did you mean 'batch'"),
        ("binaryvit_s", {"downsampling": "fp"}, "downsampling='fp' is none of"),
        ("binaryvit_s", {"spt": "diagonal", "spt_ratio": 0.1}, "spt_ratio=0.1"),
    ],
)
def test_bad_values_are_refused_at_once(name, fields, message):
    with pytest.raises(UserError, match=message):
        models.create(name, **fields)


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "binaryvit_s",
            (240, 224),
            r"reduction=\(8, .*: 8 does not divide the map of 60x56 .* stage 0.* multiples of 32 and 32",
        ),
        (
            "binaryvit_ti",
            (48, 48),
            "Downsampling halves maps, but an odd side has the map of 3x3 tokens of stage 2",
        ),
        ("binaryvit_s", (225, 224), "225x224 pixels cannot be cut into patches of 4x4"),
    ],
)
def test_maps_that_stages_do_not_fit_are_refused(name, size, message):
    with pytest.raises(UserError, match=message):
        shapes(models.create(name), *size)


def test_images_of_another_size_are_refused():
    model = models.create("binaryvit_s", **TINY)
    variables = shapes(model, 8)
    with pytest.raises(UserError, match="has 16 entries, but images of this size have 32 tokens"):
        jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((1, 8, 16, 3), jnp.float32))


def test_integers_are_no_images():
    with pytest.raises(UserError, match="float images, not uint8"):
        jax.eval_shape(BinaryViT(**TINY).init, KEY, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8))


@pytest.mark.parametrize("name", ["binaryvit_b", "binaryvit_s_str", "binary_deit_s16_gpa", "binaryvit-s"])
def test_unknown_names(name):
    with pytest.raises(UserError, match=r"Did you mean '(binaryvit|binary_deit)_s"):
        models.create(name)
