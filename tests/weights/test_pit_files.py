"""Files of PiT: three namings, two tokens in one array, positions of other maps, converting."""

import re

import jax
import numpy as np
import pytest
from conftest import drawn, same

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.encoder import loop_to_scan
from vitjax.weights import load, pit_names, save
from vitjax.weights.__main__ import main
from vitjax.weights.position import resize
from vitjax.weights.timm_names import to_timm

SMALL = {"num_classes": 5, "width": (8, 16), "depth": (1, 2), "mlp_dim": (16, 32), "num_heads": (2, 4)}
ORIGINAL = {**SMALL, "patch_size": 8, "patch_stride": 4}
REDUCED = {**SMALL, "patch_size": 4, "head_dim": 6}
OF_PIT = {"pit_ti": ORIGINAL, "pit_ti_distilled": ORIGINAL}
OF_SMALL = dict.fromkeys(("small_pit", "s_pit", "l_pit", "sl_pit"), REDUCED)


def shapes(name, size=36, **fields):
    model = models.create(name, **{**(OF_PIT | OF_SMALL)[name], **fields})
    size = size if name in OF_PIT else 32
    return jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, size, size, 3), np.float32))["params"]


@pytest.mark.parametrize(
    ("name", "names", "family"),
    [
        *((name, "vitjax", "JAX") for name in (*OF_PIT, "sl_pit")),
        *((name, "timm", r"timm \(PiT\)") for name in OF_PIT),
        *((name, "spt_lsa", r"aanna0701/SPT_LSA_ViT \(PiT\)") for name in OF_SMALL),
    ],
)
def test_there_and_back(tmp_path, name, names, family):
    params = drawn(shapes(name))
    save(tmp_path / "a.safetensors", params, names=names)
    loaded = load(tmp_path / "a.safetensors", shapes(name))
    same(loaded.params, params)
    assert re.search(f"safetensors, {family}", loaded.report)


@pytest.mark.parametrize(("name", "names"), [("pit_ti_distilled", "timm"), ("sl_pit", "spt_lsa")])
def test_stacked_stages_are_taken_apart_and_put_together(tmp_path, name, names):
    params = drawn(shapes(name))
    stacked = jax.tree.map(np.asarray, loop_to_scan(params))
    save(tmp_path / "a.safetensors", stacked, names=names)
    same(load(tmp_path / "a.safetensors", shapes(name)).params, params)
    same(load(tmp_path / "a.safetensors", shapes(name, scan=True)).params, stacked)


def test_official_files_have_poolings_in_a_list_of_their_own(tmp_path):
    params = drawn(shapes("pit_ti_distilled"))
    state = to_timm(params, table=pit_names.TIMM_DISTILLED)
    assert "transformers.1.pool.fc.weight" in state and not any(n.startswith("pools.") for n in state)
    state = {name.replace("transformers.1.pool.", "pools.0."): array for name, array in state.items()}
    for prefix in ("", "model/"):  # as published; as a training run of the DeiT code leaves it
        np.savez(tmp_path / "a.npz", **{f"{prefix}{name}": array for name, array in state.items()})
        loaded = load(tmp_path / "a.npz", shapes("pit_ti_distilled"))
        same(loaded.params, params)
        assert "npz, naver-ai/pit;" in loaded.report


def test_both_tokens_are_one_array_there():
    params = drawn(shapes("pit_ti_distilled"))
    state = to_timm(params, table=pit_names.TIMM_DISTILLED)
    np.testing.assert_array_equal(state["cls_token"][:, 0], params["cls"][:, 0])
    np.testing.assert_array_equal(state["cls_token"][:, 1], params["dist"][:, 0])
    np.testing.assert_array_equal(
        state["pos_embed"].reshape(8, 64).T, params["pos_embedding"][0]
    )  # row by row
    assert state["pos_embed"].shape == (1, 8, 8, 8)


@pytest.mark.parametrize("name", OF_PIT)
def test_positions_of_another_map_are_resized(tmp_path, name):
    params = drawn(shapes(name))
    save(tmp_path / "a.npz", params, names="timm")
    larger = load(tmp_path / "a.npz", shapes(name, 44))
    expected = resize(params["pos_embedding"], (10, 10), method="bicubic_aa")
    np.testing.assert_array_equal(larger.params["pos_embedding"], expected)
    assert "8x8 resized to 10x10 (bicubic_aa)" in larger.report


def test_positions_that_are_no_square_stay_out_of_timms_form(tmp_path):
    model = models.create("pit_ti", **ORIGINAL)
    image = np.zeros((1, 36, 44, 3), np.float32)
    params = drawn(jax.eval_shape(model.init, jax.random.key(0), image)["params"])
    with pytest.raises(UserError, match="80 positions of this PiT lie on no square"):
        save(tmp_path / "a.npz", params, names="timm")


def test_names_of_others_are_refused(tmp_path):
    with pytest.raises(UserError, match="names='augreg' are those of Vision Transformers"):
        save(tmp_path / "a.npz", drawn(shapes("pit_ti")), names="augreg")
    with pytest.raises(
        UserError, match=r"SPT_LSA_ViT has no name for the parameter '.*/(query|key|value)/bias'"
    ):
        save(tmp_path / "a.npz", drawn(shapes("pit_ti")), names="spt_lsa")
    with pytest.raises(UserError, match=r"65 positions of this PiT.* no place for a class token's"):
        save(tmp_path / "a.npz", drawn(shapes("small_pit")), names="timm")


def test_a_file_of_another_size_is_refused_by_name(tmp_path):
    save(tmp_path / "a.npz", drawn(shapes("sl_pit")), names="spt_lsa")
    with pytest.raises(
        UserError, match=r"3 only in the file: stage_0/encoderblock_0/.*/scale \[2\] \('layers\.0\."
    ):
        load(tmp_path / "a.npz", shapes("s_pit"))


def test_the_command_line_finds_the_image_size_of_overlapping_patches(tmp_path, capsys):
    model = models.create("pit_ti_distilled", num_classes=3)
    made = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))["params"]
    params = drawn(made)
    save(tmp_path / "a.npz", params, names="timm")
    args = ["convert", str(tmp_path / "a.npz"), str(tmp_path / "b.npz"), "--model", "pit_ti_distilled"]
    assert main(args) == 0
    same(load(tmp_path / "b.npz", made).params, params)
    assert "Linen names" in load(tmp_path / "b.npz", made).report
