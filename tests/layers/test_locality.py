"""LSA: which part does what, masks before and after heads are mixed, networks that have it by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.attention import MultiHeadDotProductAttention, TalkingHeadsAttention
from vitjax.layers.locality import locality

KEY = jax.random.key(0)


def attended(module, tokens=5):
    """What a randomly drawn attention sows, its parameters, and its input."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, tokens, 12)).astype("f")
    like = jax.eval_shape(module.init, KEY, x)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("f"), like)
    _, sown = jax.jit(lambda params: module.apply({"params": params}, x, mutable=["intermediates"]))(params)
    return {name: np.asarray(value[0]) for name, value in sown["intermediates"].items()}, params, x


def products(params, x, scale):
    """Scaled products of queries and keys, written down once more."""
    query, key = (
        np.einsum("bnd,dhk->bhnk", x, params[part]["kernel"]) + params[part]["bias"][:, None]
        for part in ("query", "key")
    )
    return np.einsum("bhnk,bhmk->bhnm", query, key) * np.reshape(scale, (-1, 1, 1))


@pytest.mark.parametrize("lsa", ["none", "temperature", "mask", "both"])
def test_parts_of_lsa(lsa):
    sown, params, x = attended(MultiHeadDotProductAttention(3, locality=locality(lsa)))
    learned, masked = lsa in ("temperature", "both"), lsa in ("mask", "both")
    assert ("scale" in params) == learned
    logits = products(params, x, params["scale"] if learned else 4**-0.5)
    off = ~np.eye(5, dtype=bool)
    np.testing.assert_allclose(sown["attention_logits"][..., off], logits[..., off], atol=1e-4)
    diagonal = np.einsum("bhnn->bhn", sown["attention_weights"])
    assert np.any(diagonal) != masked
    np.testing.assert_allclose(sown["attention_weights"].sum(-1), 1, atol=1e-6)


def test_no_gradient_goes_through_the_diagonal():
    """Where a token has one other to attend to, the weights are constant: no gradient of keys or scale."""
    module = MultiHeadDotProductAttention(3, locality=locality("both"))
    _, params, x = attended(module, tokens=2)
    grads = jax.jit(jax.grad(lambda params: jnp.sum(module.apply({"params": params}, x) ** 2)))(params)
    for name in ("query", "key"):
        assert not np.any(grads[name]["kernel"])
    assert not np.any(grads["scale"]) and np.any(grads["value"]["kernel"])


@pytest.mark.parametrize("mask", [-1e-9, -np.inf])
def test_masks_of_talking_heads(mask):
    """A finite one is mixed like any logit, as in the release; -inf comes after the mix, where it masks."""
    sown, params, x = attended(TalkingHeadsAttention(3, locality=locality("both", mask)))
    logits = products(params, x, params["scale"])
    if mask == -1e-9:
        logits[..., np.eye(5, dtype=bool)] = 0
    np.testing.assert_allclose(sown["attention_logits"], logits, atol=1e-4)
    mixed = np.einsum("bhnm,hg->bgnm", logits, params["proj_l"]["kernel"])
    if mask == -np.inf:
        mixed[..., np.eye(5, dtype=bool)] = -np.inf
    weights = np.exp(mixed - mixed.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(sown["unmixed_weights"], weights, atol=1e-4)
    mixed = np.einsum("bhnm,hg->bgnm", weights, params["proj_w"]["kernel"])
    mixed += params["proj_w"]["bias"][:, None, None]
    np.testing.assert_allclose(sown["attention_weights"], mixed, atol=1e-4)


TINY = {"num_classes": 5, "width": 24, "depth": 1, "mlp_dim": 40, "num_heads": 3}
NETWORKS = {
    "vit_ti16": {"patch_size": 8, "pool": "gap", "depth": 2, "scan": True},
    "deit_ti16_distilled": {"patch_size": 8},
    "cait_xxs24": {"patch_size": 8, "class_depth": 1},
    "r_ti16": {"patch_size": 2, "root_width": 32},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_both_by_name(name):
    """Patches have nine views, attention a scale a head, and no token of a first stage attends to itself."""
    model = models.create(name, **TINY | NETWORKS[name], spt="all", lsa="both")
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("f")
    like = jax.eval_shape(model.init, KEY, image)["params"]
    patch = 3 * 8 * 8 if name != "r_ti16" else 32 * 2 * 2
    assert like["embedding"]["projection"]["kernel"].shape == (9 * patch, 24)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape).astype("f"), like)
    run = jax.jit(lambda params: model.apply({"params": params}, image, mutable=["intermediates"]))
    (logits, _), sown = run(params)
    assert np.isfinite(logits).all() and np.std(logits) > 1e-3
    for of, block in sown["intermediates"]["Transformer"].items():
        block = block["MultiHeadDotProductAttention_0"]
        weights = block.get("unmixed_weights", block["attention_weights"])[0]
        assert not np.any(np.einsum("...nn->...n", weights)) and np.isfinite(weights).all()
        scale = like["Transformer"][of]["MultiHeadDotProductAttention_0"]["scale"]
        assert scale.shape == ((2, 3) if model.scan else (3,))
    if name == "cait_xxs24":
        assert like["class_attention_0"]["MultiHeadDotProductAttention_0"]["scale"].shape == (3,)


def test_the_only_token_cannot_be_masked():
    model = models.create("sl_vit", **TINY, patch_size=32, pool="gap", lsa_mask=-np.inf)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    with pytest.raises(UserError, match=r"the only token .* lsa='temperature'"):
        jax.eval_shape(model.init, KEY, image)
