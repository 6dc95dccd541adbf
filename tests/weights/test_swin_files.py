"""Files of Swin: three namings, buffers that are left out, other windows, round trips, converting."""

import jax
import numpy as np
import pytest
from conftest import drawn, same

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.window_attention import relative_positions
from vitjax.weights import load, save, swin_names
from vitjax.weights.__main__ import main
from vitjax.weights.position import resize
from vitjax.weights.timm_names import to_timm
from vitjax.weights.tree import flatten

SMALL = {"num_classes": 5, "width": 8, "depths": (1, 2), "num_heads": (2, 4), "patch_size": 2, "window": 4}
SPT = {"spt": "diagonal", "spt_pooling": True}


def shapes(size=16, **fields):
    model = models.create("swin_t", **{**SMALL, **fields})
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def npz(path, arrays):
    np.savez(path, **arrays)
    return path


def official(params):
    """By the names of the official code, with its buffers."""
    state = to_timm(params, table=swin_names.released(flatten(params)))
    for block in ("layers.0.blocks.0", "layers.1.blocks.0", "layers.1.blocks.1"):
        state[f"{block}.attn.relative_position_index"] = relative_positions((4, 4)).astype(np.int64)
    return {**state, "layers.0.blocks.1.attn_mask": np.zeros((4, 16, 16), np.float32)}


@pytest.mark.parametrize(("names", "fields"), [("vitjax", {}), ("vitjax", SPT), ("timm", {})])
def test_there_and_back(tmp_path, names, fields):
    params = drawn(shapes(**fields))
    save(tmp_path / "a.safetensors", params, names=names)
    loaded = load(tmp_path / "a.safetensors", shapes(**fields))
    same(loaded.params, params)
    assert ("timm (Swin)" if names == "timm" else "JAX") in loaded.report


@pytest.mark.parametrize("prefix", ["", "model/", "module."])
@pytest.mark.parametrize(
    ("fields", "family"),
    [
        ({}, "microsoft/Swin-Transformer"),
        ({"abs_pos": True}, "microsoft/Swin-Transformer"),
        ({"abs_pos": True, "lsa": "both"}, "aanna0701/SPT_LSA_ViT"),
        ({"abs_pos": True, "lsa": "both", **SPT}, "aanna0701/SPT_LSA_ViT"),
    ],
)
def test_official_files_are_told_by_their_names(tmp_path, prefix, fields, family):
    """PyTorch's nested dicts come as names with a slash (`pytorch.open_pytorch`)."""
    params = drawn(shapes(**fields))
    path = npz(tmp_path / "a.npz", {f"{prefix}{name}": array for name, array in official(params).items()})
    loaded = load(path, shapes(**fields))
    same(loaded.params, params)
    assert f"npz, {family};" in loaded.report
    assert "left out: 4 buffers ('layers.0.blocks.0.attn.relative_position_index')" in loaded.report


def test_poolings_stand_at_the_end_of_a_stage_or_at_the_beginning(tmp_path):
    params = drawn(shapes())
    theirs = to_timm(params, table=swin_names.TIMM)
    kernel = params["pooling_0"]["projection"]["kernel"]
    np.testing.assert_array_equal(theirs["layers.1.downsample.reduction.weight"], kernel.T)
    np.testing.assert_array_equal(official(params)["layers.0.downsample.reduction.weight"], kernel.T)
    path = npz(tmp_path / "a.npz", {**theirs, "layers.1.blocks.2.norm1.bias": np.ones(16, np.float32)})
    with pytest.raises(
        UserError, match=r"1 only in the file: stage_1/encoderblock_2/LayerNorm_0/bias \[16\]"
    ):
        load(path, shapes())


@pytest.mark.parametrize(("kwargs", "method"), [({}, "bicubic"), ({"posemb": "bilinear"}, "bilinear")])
def test_tables_of_other_windows_are_resized(tmp_path, kwargs, method):
    """The second stage has one window of the whole map, 4x4 at 16 and 8x8 at 32 pixels."""
    params = drawn(shapes())
    path = npz(tmp_path / "a.npz", official(params))
    loaded = load(path, shapes(32, window=8), **kwargs)
    for stage, block in (("stage_0", "encoderblock_0"), ("stage_1", "encoderblock_1")):
        old, new = (
            tree[stage][block]["WindowAttention_0"]["relative_position_bias"]
            for tree in (params, loaded.params)
        )
        by_position = np.moveaxis(old.reshape(7, 7, -1), -1, 0)
        for head, table in enumerate(by_position):
            expected = resize(table.reshape(1, 49, 1), (15, 15), method=method)
            np.testing.assert_array_equal(new[:, head], expected[0, :, 0])
    assert f"relative positions: windows of 4x4 resized to 8x8 ({method}), 3 tables" in loaded.report
    positions = load(npz(tmp_path / "b.npz", official(drawn(shapes(abs_pos=True)))), shapes(32, abs_pos=True))
    assert "8x8 resized to 16x16 (bicubic)" in positions.report


def test_tables_that_cannot_be_resized(tmp_path):
    params = official(drawn(shapes()))
    name = "layers.0.blocks.0.attn.relative_position_bias_table"
    wide = npz(tmp_path / "a.npz", {**params, name: np.ones((7 * 3, 2), np.float32)})
    with pytest.raises(
        UserError, match=r"stage_0/.*relative_position_bias in .* has 21 relative positions, the"
    ):
        load(wide, shapes())
    other = npz(tmp_path / "b.npz", {**params, name: np.ones((49, 3), np.float32)})
    with pytest.raises(UserError, match=r"1 different: stage_0/.*bias is \[49, 3\] there, \[49, 2\] here"):
        load(other, shapes())
    none = npz(tmp_path / "c.npz", {**params, name: np.ones((0, 2), np.float32)})
    with pytest.raises(UserError, match=r"is \[0, 2\] there"):
        load(none, shapes())


def test_what_timm_and_the_augreg_collection_have_no_names_for(tmp_path):
    for fields in ({"lsa": "both"}, SPT, {"abs_pos": True}):
        with pytest.raises(UserError, match="timm has no name for the parameter"):
            save(tmp_path / "a.npz", drawn(shapes(**fields)), names="timm")
    with pytest.raises(UserError, match="names='augreg' are those of Vision Transformers"):
        save(tmp_path / "a.npz", drawn(shapes()), names="augreg")
    assert not list(tmp_path.iterdir())


def test_convert(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = models.create("small_swin", num_classes=3, width=12, depths=(1, 1), num_heads=(2, 2))
    monkeypatch.setattr(models, "create", lambda name, **fields: model.clone(**fields))
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    params = drawn(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    npz(tmp_path / "a.npz", to_timm(params, table=swin_names.OFFICIAL))
    assert main(["convert", "a.npz", "b.npz", "--model", "small_swin"]) == 0
    with np.load("b.npz") as opened:
        same(dict(opened), flatten(params))
    assert main(["convert", "a.npz", "c.npz", "--model", "small_swin", "--classes", "0", "--res", "64"]) == 0
    assert "16x16 resized to 32x32 (bicubic)" in capsys.readouterr().out
    with np.load("c.npz") as opened:
        assert not [name for name in opened.files if name.startswith("head")]
