"""timm's names, into ours and back."""

import jax
import numpy as np
import pytest

from vitjax import models
from vitjax.errors import UserError
from vitjax.weights.timm_names import from_timm, to_timm


def test_there_and_back():
    fields = {"num_classes": 5, "depth": 2, "layer_scale": 0.1, "rep_size": 8, "pool": "map", "fc_norm": True}
    model = models.create("vit_mu16", **fields)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    state = to_timm(params)
    assert state["blocks.1.attn.qkv.weight"].shape == (96, 32)
    assert state["attn_pool.kv.bias"].shape == (64,)
    assert state["patch_embed.proj.weight"].shape == (32, 3, 16, 16)
    jax.tree.map(np.testing.assert_array_equal, from_timm(state, num_heads=2), params)


@pytest.mark.parametrize("units", [(1, 11), ()])
def test_hybrids_there_and_back(units):
    model = models.create("r26_s32", resnet_units=units, depth=1, scan=False)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.integers(0, 99, x.shape, np.int8), shapes)
    state = to_timm(params)
    jax.tree.map(np.testing.assert_array_equal, from_timm(state, num_heads=6), params)
    if not units:
        np.testing.assert_array_equal(state["patch_embed.backbone.norm.bias"], params["gn_root"]["bias"])
        return
    last = "patch_embed.backbone.stages.1.blocks.10"  # theirs count from zero
    kernel = params["block2"]["unit11"]["conv2"]["kernel"]
    np.testing.assert_array_equal(state[f"{last}.conv2.weight"], kernel.transpose(3, 2, 0, 1))
    assert f"{last}.downsample.conv.weight" not in state
    assert "patch_embed.backbone.stages.1.blocks.0.downsample.norm.weight" in state
    assert "patch_embed.backbone.stem.norm.bias" in state


def test_what_has_no_place_is_named():
    with pytest.raises(UserError, match=r"'blocks.0.attn.proj_l.bias'.*Did you mean"):
        from_timm({"blocks.0.attn.proj_l.bias": np.zeros(3)}, num_heads=3)
    with pytest.raises(UserError, match="'probe'"):
        to_timm({"probe": np.zeros(3)})
    with pytest.raises(
        UserError, match=r"'patch_embed.backbone.stages.0.blocks.2.conv4.weight'.*Did you mean"
    ):
        from_timm({"patch_embed.backbone.stages.0.blocks.2.conv4.weight": np.zeros(3)}, num_heads=3)
    with pytest.raises(UserError, match="'block1/unit0/conv1/kernel'"):  # ours count from one
        to_timm({"conv_root": {}, "block1": {"unit0": {"conv1": {"kernel": np.zeros((1, 1, 2, 2))}}}})
