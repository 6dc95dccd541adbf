"""Files of DeiT and CaiT: round trips, official layout, positions before the grid, converting."""

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
from vitjax.weights.timm_cait_names import CAIT
from vitjax.weights.timm_names import to_timm
from vitjax.weights.tree import flatten

SMALL = {"num_classes": 5, "width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 4, "patch_size": 8}
NAMES = ("deit_ti16_distilled", "deit3_ti16", "cait_xxs24")


def shapes(name, size=32, **fields):
    model = models.create(name, **{**SMALL, **fields})
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def timm_names(name, params):
    return to_timm(params, table=CAIT if name.startswith("cait") else None)


def npz(path, arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("names", ["vitjax", "augreg", "timm"])
@pytest.mark.parametrize("scan", [False, True])
def test_there_and_back(tmp_path, name, names, scan):
    params = drawn(shapes(name))
    params = jax.tree.map(np.asarray, loop_to_scan(params)) if scan else params
    save(tmp_path / "a.safetensors", params, names=names)
    same(load(tmp_path / "a.safetensors", shapes(name, scan=scan)).params, params)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("prefix", "method", "family"),
    [
        ("", "bicubic_aa", "timm"),
        ("module.", "bicubic_aa", "timm"),
        ("model/", "bicubic", "facebookresearch/deit"),
        ("model/module.", "bicubic", "facebookresearch/deit"),
    ],
)
def test_official_files_are_told_by_their_key(tmp_path, name, prefix, method, family):
    """PyTorch's nested dicts come as names with a slash (`pytorch.open_pytorch`)."""
    params = drawn(shapes(name))
    arrays = {f"{prefix}{theirs}": array for theirs, array in timm_names(name, params).items()}
    if family != "timm":  # LayerScale of DeiT III in the official code
        arrays = {
            k.replace(".ls1.gamma", ".gamma_1").replace(".ls2.gamma", ".gamma_2"): a
            for k, a in arrays.items()
        }
    path = npz(tmp_path / "a.npz", arrays)
    loaded = load(path, shapes(name))
    same(loaded.params, params)
    assert f"npz, {family};" in loaded.report

    larger = load(path, shapes(name, 48))
    front = 2 if "distilled" in name else 0
    expected = resize(params["pos_embedding"], (6, 6), prefix=front, method=method)
    np.testing.assert_array_equal(larger.params["pos_embedding"], expected)
    assert f"4x4 resized to 6x6 ({method})" in larger.report


def test_class_attention_has_linears_of_its_own(tmp_path):
    params = drawn(shapes("cait_xxs24"))
    state = timm_names("cait_xxs24", params)
    attention = params["class_attention_1"]["MultiHeadDotProductAttention_0"]
    for part, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
        kernel = state[f"blocks_token_only.1.attn.{theirs}.weight"]
        np.testing.assert_array_equal(kernel.T.reshape(32, 4, 8), attention[part]["kernel"])
    np.testing.assert_array_equal(
        state["blocks_token_only.0.gamma_2"], params["class_attention_0"]["LayerScale_1"]["gamma"]
    )
    first = params["Transformer"]["encoderblock_0"]["MultiHeadDotProductAttention_0"]
    np.testing.assert_array_equal(state["blocks.0.attn.proj_l.weight"].T, first["proj_l"]["kernel"])
    path = npz(tmp_path / "a.npz", {**state, "blocks.0.attn.proj_v.bias": np.ones(4, np.float32)})
    with pytest.raises(UserError, match=r"1 only in the file: 'blocks\.0\.attn\.proj_v\.bias' \[4\]"):
        load(path, shapes("cait_xxs24"))


# Positions before the grid.


def test_a_distilled_file_in_a_plain_model_and_back(tmp_path):
    params = drawn(shapes("deit_ti16_distilled"))
    path = npz(tmp_path / "a.npz", timm_names("deit_ti16_distilled", params))
    with pytest.raises(
        UserError, match=r"3 only in the file: dist \[1, 1, 32\].*dont_load=\('dist', 'head_dist/\.\*'\)"
    ):
        load(path, shapes("deit_ti16"))
    left_out = ("dist", "head_dist/.*")
    plain = load(path, shapes("deit_ti16"), dont_load=left_out)
    expected = np.delete(params["pos_embedding"], 1, axis=1)
    np.testing.assert_array_equal(plain.params["pos_embedding"], expected)
    np.testing.assert_array_equal(plain.params["cls"], params["cls"])
    assert (
        "position of the distillation token: dropped, as the model has no distillation token" in plain.report
    )
    larger = load(path, shapes("deit_ti16", 48), dont_load=left_out).params["pos_embedding"]
    np.testing.assert_array_equal(larger, resize(expected, (6, 6), prefix=1, method="bicubic_aa"))

    back = npz(tmp_path / "b.npz", flatten(plain.params))
    again = load(back, shapes("deit_ti16_distilled"), dont_load=left_out)
    assert "dist" not in again.params
    assert not again.params["pos_embedding"][:, 1].any()
    np.testing.assert_array_equal(np.delete(again.params["pos_embedding"], 1, axis=1), expected)
    assert "position of the distillation token: zero, as the file has none" in again.report


def test_both_tokens_positions_fold(tmp_path):
    name, big_vision = "deit_ti16_distilled", {"posemb_layout": "big_vision"}
    params = drawn(shapes(name))
    folded = load(npz(tmp_path / "a.npz", timm_names(name, params)), shapes(name, **big_vision)).params
    for i, token in enumerate(("cls", "dist")):
        np.testing.assert_array_equal(folded[token], params[token] + params["pos_embedding"][:, i : i + 1])
    image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    one = models.create(name, **SMALL).apply({"params": params}, image)[0]
    other = models.create(name, **SMALL, **big_vision).apply({"params": folded}, image)[0]
    # Equal but for the order of two additions: logits are up to 200 here.
    np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(one).max())


def test_grids_that_are_not_square(tmp_path):
    """2x3 patches and two tokens are eight entries; six would be 2x2 and two tokens."""
    model = models.create("deit_ti16_distilled", **SMALL)
    image = jax.ShapeDtypeStruct((1, 16, 24, 3), np.float32)
    wide = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = drawn(wide)
    path = npz(tmp_path / "a.npz", flatten(params))
    same(load(path, wide, grid=(2, 3)).params, params)
    with pytest.raises(
        UserError, match="neither a square grid nor one and a class token and a distillation token"
    ):
        load(path, shapes("deit_ti16_distilled"))
    with pytest.raises(UserError, match="or 2 more for a class token and a distillation token, would fit"):
        load(path, shapes("deit_ti16_distilled"), grid=(3, 5))
    # Without a distillation token six entries are 2x3 patches and nothing else.
    plain = models.create("deit3_ti16", **SMALL)
    shape = jax.eval_shape(plain.init, jax.random.key(0), image)["params"]
    six = drawn(shape)
    same(load(npz(tmp_path / "b.npz", flatten(six)), shape, grid=(2, 3)).params, six)


# The command line.


@pytest.mark.parametrize(
    ("name", "heads"), [("deit_ti16_distilled", ("head", "head_dist")), ("cait_xxs1", ("head",))]
)
def test_convert(tmp_path, capsys, monkeypatch, name, heads):
    monkeypatch.chdir(tmp_path)
    params = drawn(shapes(name, num_classes=3, **full_size(name)))
    save("a.safetensors", params, names="timm")
    assert main(f"convert a.safetensors b.npz --model {name} --names vitjax".split()) == 0
    with np.load("b.npz") as opened:
        same(dict(opened), flatten(params))
    assert main(f"convert a.safetensors c.npz --model {name} --classes 0 --res 48".split()) == 0
    with np.load("c.npz") as opened:
        assert opened.files == [n for n in flatten(params) if n.split("/")[0] not in heads]
        assert opened["pos_embedding"].shape[1] == 9 + 2 * ("distilled" in name)
    assert "resized to 3x3 (bicubic_aa)" in capsys.readouterr().out


def full_size(name):
    """The fields of the registered model, in place of the small ones."""
    model = models.create(name)
    return {
        field: getattr(model, field) for field in ("width", "depth", "mlp_dim", "num_heads", "patch_size")
    }
