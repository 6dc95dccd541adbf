"""Files of BinaryViT: told from its teacher's, buffers left out, other image sizes, round trips."""

import jax
import numpy as np
import pytest
from conftest import drawn, same

from vitjax import models
from vitjax.errors import UserError
from vitjax.weights import binaryvit_names, huggingface_names, load, save
from vitjax.weights.timm_names import to_timm
from vitjax.weights.tree import flatten
from vitjax.weights.variables import join

SMALL = {"num_classes": 5, "depth": (2, 1, 1, 1), "width": (8, 16, 32, 64), "mlp_dim": (16, 32, 64, 64)}
ROW = {"num_classes": 5, "depth": 2, "width": 12, "mlp_dim": 48, "num_heads": 3}


def shapes(name="binaryvit_s", size=64, **fields):
    model = models.create(name, **{**(SMALL if name.startswith("binaryvit_s") else ROW), **fields})
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return join(variables["params"], variables)


def official(joined):
    """By the names of the official code, with its counters."""
    state = to_timm(joined, table=binaryvit_names.BINARYVIT)
    counted = [name.removesuffix("mean") for name in state if name.endswith("running_mean")]
    return state | {f"{name[:-8]}.num_batches_tracked": np.int64(7) for name in counted}


def npz(path, arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("prefix", ["", "model/", "module."])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("binaryvit_s", {}),
        ("binaryvit_s_star", {}),
        ("binaryvit_s", {"norm": "layer"}),
        ("binaryvit_s", {"precision": "float"}),
        ("binary_deit_s16", {}),
        ("binary_deit_s16_affine", {"precision": "w32a1"}),
    ],
)
def test_official_files_are_told_by_their_names(tmp_path, prefix, name, fields):
    params = drawn(shapes(name, **fields))
    arrays = {f"{prefix}{key}": array for key, array in official(params).items()}
    loaded = load(npz(tmp_path / "a.npz", arrays), shapes(name, **fields))
    same(loaded.params, params)
    assert "npz, Phuoc-Hoan-Le/BinaryViT;" in loaded.report
    assert ("buffers" in loaded.report) == (fields.get("norm") != "layer")


def test_every_parameter_has_a_name_of_its_own():
    joined = drawn(shapes())
    assert len(to_timm(joined, table=binaryvit_names.BINARYVIT)) == len(flatten(joined))


def test_layouts_are_those_of_pytorch():
    joined = drawn(shapes())
    state = official(joined)
    block = joined["encoderblock_0"]
    np.testing.assert_array_equal(
        state["vit.encoder.layer.0.intermediate.dense.weight"], block["expand"]["dense"]["kernel"].T
    )
    assert state["vit.encoder.patch_embed1.move"].shape == (1, 8, 1, 1)
    assert state["vit.encoder.patch_embed1.proj.weight"].shape == (16, 8, 2, 2)
    assert state["vit.encoder.layer.0.attention.attention.att_prob_clip"].shape == ()


def test_the_teacher_is_of_another_family(tmp_path):
    params = drawn(shapes("binaryvit_teacher_s16"))
    table = {
        name: row
        for name, row in huggingface_names.VIT.items()
        if name.startswith(("vit.e", "vit.layernorm", "cl"))
    }
    state = to_timm(params, table=table)
    assert "vit.encoder.layer.0.attention.attention.query.weight" in state
    loaded = load(npz(tmp_path / "a.npz", state), shapes("binaryvit_teacher_s16"))
    same(loaded.params, params)
    assert "Hugging Face" in loaded.report


@pytest.mark.parametrize("format", ["npz", "safetensors"])
def test_there_and_back(tmp_path, format):
    params = drawn(shapes())
    save(tmp_path / f"a.{format}", params)
    same(load(tmp_path / f"a.{format}", shapes()).params, params)


def test_positions_of_every_stage_are_resized(tmp_path):
    params = drawn(shapes())
    path = npz(tmp_path / "a.npz", official(params))
    loaded = load(path, shapes(size=128))
    for name, side in (("pos_embedding", 32), ("pos_embedding_1", 16), ("pos_embedding_3", 4)):
        assert loaded.params[name].shape[1] == side * side
    assert "grid 16x16 resized to 32x32" in loaded.report and "grid 2x2 resized to 4x4" in loaded.report
    back = load(npz(tmp_path / "b.npz", official(loaded.params)), shapes(size=128))
    same(back.params, loaded.params)


def test_a_grid_that_is_not_square_halves_with_the_stages(tmp_path):
    model = models.create("binaryvit_s", **SMALL)
    image = jax.ShapeDtypeStruct((1, 64, 128, 3), np.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    path = npz(tmp_path / "a.npz", official(drawn(shapes())))
    loaded = load(path, join(variables["params"], variables), grid=(16, 32))
    assert loaded.params["pos_embedding_2"].shape == (1, 4 * 8, 32)
    assert "grid 4x4 resized to 4x8" in loaded.report


def test_what_is_missing_and_what_is_too_much_is_told(tmp_path):
    path = npz(tmp_path / "a.npz", official(drawn(shapes())))
    with pytest.raises(UserError, match=r"patch_embed1\.rprelu|downsampling_0/rprelu"):
        load(path, shapes("binaryvit_s_star"))
    with pytest.raises(UserError, match="encoderblock_5"):
        load(path, shapes(depth=(2, 1, 1, 2)))


@pytest.mark.parametrize("names", ["timm", "augreg"])
def test_there_are_no_other_names(tmp_path, names):
    with pytest.raises(UserError, match=r"BinaryViT has no names in .*names='vitjax'"):
        save(tmp_path / "a.npz", drawn(shapes()), names=names)
