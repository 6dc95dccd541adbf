"""What is written: exact round trips, files that peers read, and the command line."""

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import drawn, same, shapes

from vitjax import models
from vitjax.errors import UserError
from vitjax.layers.encoder import loop_to_scan
from vitjax.weights import load, save
from vitjax.weights.__main__ import abstract, main
from vitjax.weights.timm_names import to_timm
from vitjax.weights.tree import flatten

FIELDS = (
    {},
    {"posemb_layout": "big_vision", "pool": "map", "rep_size": 8},
    {"pool": "gap", "fc_norm": True, "class_token": True, "layer_scale": 0.1, "qkv_bias": False},
)


@pytest.mark.parametrize("format", ["npz", "safetensors"])
@pytest.mark.parametrize("names", ["vitjax", "augreg", "timm"])
@pytest.mark.parametrize("fields", FIELDS)
def test_round_trips_are_exact(tmp_path, format, names, fields):
    params = drawn(shapes(**fields))
    params["head"]["bias"][:3] = -0.0, 1e-45, 3.4e38
    for scan in (False, True):
        made = jax.tree.map(np.asarray, loop_to_scan(params)) if scan else params
        path = tmp_path / f"{scan}.{format}"
        save(path, made, names=names)
        loaded = load(path, shapes(**fields, scan=scan)).params
        same(loaded, made)
        np.testing.assert_array_equal(np.signbit(loaded["head"]["bias"]), np.signbit(made["head"]["bias"]))
    if names != "vitjax":  # blocks in a loop either way, and no clock in the file
        assert (tmp_path / f"True.{format}").read_bytes() == path.read_bytes()
        save(tmp_path / "again", params, names=names, format=format)
        assert (tmp_path / "again").read_bytes() == (tmp_path / f"False.{format}").read_bytes()


def test_peers_read_what_is_written(tmp_path, params):
    save(tmp_path / "a.npz", params, names="augreg")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as opened:
        assert len(opened.files) == 40
        block, attention = "Transformer/encoderblock_1", "MultiHeadDotProductAttention"
        expected = flatten(params)
        for old, new in {
            f"{block}/{attention}_1/out/kernel": f"{block}/{attention}_0/out/kernel",
            f"{block}/LayerNorm_2/scale": f"{block}/LayerNorm_1/scale",
            f"{block}/MlpBlock_3/Dense_1/bias": f"{block}/MlpBlock_0/Dense_1/bias",
            "Transformer/posembed_input/pos_embedding": "pos_embedding",
            "Transformer/encoder_norm/bias": "Transformer/encoder_norm/bias",
            "cls": "cls",
        }.items():  # fmt: skip
            np.testing.assert_array_equal(opened[old], expected[new])
    save(tmp_path / "a.safetensors", params, names="timm")
    with safetensors.safe_open(tmp_path / "a.safetensors", "np") as opened:
        assert opened.metadata() == {"format": "pt"}
    assert int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little") % 8 == 0  # aligned
    read = safetensors.numpy.load_file(tmp_path / "a.safetensors")
    expected = to_timm(params)
    assert read.keys() == expected.keys()
    for name, array in read.items():
        np.testing.assert_array_equal(array, expected[name])


def test_what_cannot_be_written(tmp_path, params):
    with pytest.raises(UserError, match=r"format='npy', for .*a.npy', is none of npz.*Did you mean 'npz'"):
        save(tmp_path / "a.npy", params)
    with pytest.raises(UserError, match=r"names='tim'.*Did you mean 'timm'"):
        save(tmp_path / "a.npz", params, names="tim")
    with pytest.raises(UserError, match="parameter head/bias is float64"):
        save(tmp_path / "a.npz", {"head": {"bias": np.zeros(3)}})
    with pytest.raises(UserError, match="timm has no name for the parameter 'probe'"):
        save(tmp_path / "a.npz", {"probe": np.zeros(3, "f")}, names="timm")
    with pytest.raises(UserError, match="Cannot write"):
        save(tmp_path / "no/where/a.npz", params)
    assert not list(tmp_path.iterdir())
    save(tmp_path / "a.npz", {"probe": np.ones(3, ml_dtypes.bfloat16)})
    assert np.load(tmp_path / "a.npz")["probe"].dtype == np.float32


def test_a_save_that_fails_leaves_what_was_there(tmp_path, params, monkeypatch):
    save(tmp_path / "a.npz", params)
    before = (tmp_path / "a.npz").read_bytes()
    written = []

    def full(*args, **kwargs):
        written.append(args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(UserError, match=r"Cannot write .*a.npz.*No space left"):
        save(tmp_path / "a.npz", drawn(shapes(), seed=1))
    assert written and (tmp_path / "a.npz").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


# The command line.


def run(capsys, *words):
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


def test_show(tmp_path, capsys, params):
    save(tmp_path / "a.npz", params, names="augreg")
    code, out, _ = run(capsys, "show", tmp_path / "a.npz")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["Transformer/encoder_norm/bias", "[32]", "float32"]
    assert lines[-2].endswith("a.npz: npz, JAX (pre-Linen Flax names)")
    assert lines[-1] == "40 entries, 32,389 numbers, 0.1 MB"
    assert sum(map(np.size, jax.tree.leaves(params))) == 32389
    np.savez(tmp_path / "b.npz", **{"bad\x1b[31m": np.ones(2)})
    code, out, _ = run(capsys, "show", tmp_path / "b.npz")
    assert code == 0 and "no one known family" in out and "\x1b" not in out


@pytest.mark.parametrize("fields", FIELDS)
def test_convert_there_and_back(tmp_path, capsys, fields):
    fields = fields | {"depth": 1}  # of mu
    params = drawn(shapes(40, **fields))
    save(tmp_path / "a.npz", params)
    steps = (
        ("a.npz", "b.safetensors", "timm"),
        ("b.safetensors", "c.npz", "augreg"),
        ("c.npz", "d.npz", "vitjax"),
    )
    for source, out, names in steps:
        words = ("convert", tmp_path / source, tmp_path / out, "--model", "vit_mu8", "--names", names)
        code, told, error = run(capsys, *words)
        assert code == 0, error
        assert f"wrote {tmp_path / out}" in told
    assert (tmp_path / "d.npz").read_bytes() == (tmp_path / "a.npz").read_bytes()


def test_convert_to_another_size_and_head(tmp_path, capsys):
    params = drawn(shapes(depth=1))
    save(tmp_path / "a.npz", params)
    words = ("convert", tmp_path / "a.npz", tmp_path / "b.npz", "--model", "vit_mu8")
    code, out, _ = run(capsys, *words, "--res", 48, "--classes", 0)
    assert code == 0 and "4x4 resized to 6x6 (corners)" in out and "dropped, by dont_load: head/bias" in out
    with np.load(tmp_path / "b.npz") as opened:
        assert opened["pos_embedding"].shape == (1, 37, 32) and "head/bias" not in opened


@pytest.mark.parametrize(("name", "entries"), [("vit_ti16", 197), ("vit_ti32", 49), ("r_ti16", 50)])
def test_the_image_size_is_read_off_the_positions(name, entries):
    width = models.create(name).width
    provided = {"pos_embedding": (1, entries, width), "cls": (1, 1, width), "head/bias": (7,)}
    found = abstract(name, {**provided, "Transformer/encoderblock_0/query/bias": ()}, None, None)
    assert found["pos_embedding"].shape == (1, entries, width)
    assert found["head"]["bias"].shape == (7,)
    with pytest.raises(UserError, match=r"30 positions are those of no square image.*--res"):
        abstract(name, {**provided, "pos_embedding": (1, 30, width)}, None, None)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "the following arguments are required: {show,convert}"),
        ("shw a", "invalid choice: 'shw'"),
        ("show nowhere.npz", "'nowhere.npz': there is no such file"),
        ("convert a.npz b.npz", "required: --model"),
        ("convert a.npz b.bin --model vit_mu8", "format='bin', for 'b.bin', is none of npz, safetensors"),
        ("convert a.npz b.npz --model vit_mu8 --names tim", "Did you mean 'timm'"),
        ("convert a.npz b.npz --model vit_mu8 --classes -1", "--classes -1 must be"),
        ("convert a.npz b.npz --model vit_mu8 --classes 3", "head/bias is [5] there, [3] here"),
        ("convert a.npz b.npz --model vit_mu8 --res 33", "33x33 pixels cannot be cut"),
        ("convert a.npz b.npz --model vit_nu8", "names no model"),
        ("convert a.npz b.npz --model vit_ti8", "Is it the right model"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, capsys, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    save("a.npz", drawn(shapes(depth=1)))
    code, out, error = run(capsys, *words.split())
    assert code == 2 and not out
    assert error.startswith("error: ") and told in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
