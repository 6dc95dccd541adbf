"""Files of aanna0701/SPT_LSA_ViT: told by their names, resized, written by them; what has no name there."""

import jax
import numpy as np
import pytest
from conftest import drawn, same

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.encoder import loop_to_scan
from vitjax.weights import load, save
from vitjax.weights.__main__ import main
from vitjax.weights.position import resize
from vitjax.weights.spt_lsa_names import CAIT, VIT
from vitjax.weights.timm_names import to_timm

NAMES = ("small_vit", "sl_vit", "small_cait", "sl_cait")
SMALL = {"num_classes": 5, "width": 24, "depth": 2, "mlp_dim": 40, "num_heads": 3, "head_dim": 10}


def shapes(name, size=32, **fields):
    model = models.create(name, **SMALL | {"patch_size": 8} | fields)
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def official(name, params):
    return to_timm(params, table=CAIT if name.endswith("cait") else VIT)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("names", ["vitjax", "spt_lsa"])
@pytest.mark.parametrize("scan", [False, True])
def test_there_and_back(tmp_path, name, names, scan):
    params = drawn(shapes(name))
    params = jax.tree.map(np.asarray, loop_to_scan(params)) if scan else params
    save(tmp_path / "a.safetensors", params, names=names)
    loaded = load(tmp_path / "a.safetensors", shapes(name, scan=scan))
    same(loaded.params, params)
    assert ("aanna0701/SPT_LSA_ViT" in loaded.report) == (names == "spt_lsa")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prefix", ["", "model_state_dict/", "model_state_dict/module."])
def test_files_as_the_official_code_writes_them(tmp_path, name, prefix):
    """Its training keeps the state dict beside that of the optimiser; positions are resized on loading."""
    params = drawn(shapes(name))
    arrays = {f"{prefix}{theirs}": array for theirs, array in official(name, params).items()}
    if prefix:
        arrays["optimizer_state_dict/state/0/exp_avg"] = np.zeros(3, "f")
    np.savez(tmp_path / "a.npz", **arrays)
    loaded = load(tmp_path / "a.npz", shapes(name))
    same(loaded.params, params)
    assert f"SPT_LSA_ViT ({'CaiT' if name.endswith('cait') else 'ViT'})" in loaded.report

    larger = load(tmp_path / "a.npz", shapes(name, 48))
    front = 0 if name.endswith("cait") else 1
    expected = resize(params["pos_embedding"], (6, 6), prefix=front, method="bicubic")
    np.testing.assert_array_equal(larger.params["pos_embedding"], expected)


def test_patches_of_other_channels_are_refused(tmp_path):
    params = drawn(shapes("small_vit"))
    state = official("small_vit", params)
    state["to_patch_embedding.1.weight"] = np.zeros((24, 8 * 8), "f")
    np.savez(tmp_path / "a.npz", **state)
    with pytest.raises(UserError, match="to_patch_embedding.1.weight|embedding/kernel"):
        load(tmp_path / "a.npz", shapes("small_vit"))


def test_what_the_official_code_has_no_name_for(tmp_path):
    with pytest.raises(UserError, match="SPT_LSA_ViT has no name for the parameter '.*bias'"):
        save(tmp_path / "a.npz", drawn(shapes("small_vit", qkv_bias=True, pool="map")), names="spt_lsa")


def test_convert(tmp_path, capsys):
    params = drawn(
        shapes("sl_cait", width=192, mlp_dim=384, num_heads=4, head_dim=64, depth=24, patch_size=4)
    )
    np.savez(tmp_path / "a.npz", **official("sl_cait", params))
    assert main(["convert", str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--model", "sl_cait"]) == 0
    assert "SPT_LSA_ViT (CaiT)" in capsys.readouterr().out
    with np.load(tmp_path / "b.npz") as ours:
        scale = ours["class_attention_1/MultiHeadDotProductAttention_0/scale"]
    np.testing.assert_array_equal(
        scale, params["class_attention_1"]["MultiHeadDotProductAttention_0"]["scale"]
    )
