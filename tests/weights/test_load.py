"""Every kind of file, into every form of model; what does not fit is told, all of it."""

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import drawn, same, shapes

from vitjax import checkpoint, models
from vitjax.errors import UserError
from vitjax.layers.encoder import loop_to_scan
from vitjax.weights import load, loading, save
from vitjax.weights.position import resize
from vitjax.weights.timm_names import to_timm
from vitjax.weights.tree import flatten

BLOCK = "Transformer/encoderblock_1"


def npz(path, arrays):
    np.savez(path, **arrays)
    return path


def augreg_names(params):
    """By the table of the AugReg collection."""
    changes = {
        "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
        "LayerNorm_1": "LayerNorm_2",
        "MlpBlock_0": "MlpBlock_3",
    }
    flat = {}
    for name, array in flatten(params).items():
        parts = name.split("/")
        if len(parts) > 2 and parts[1].startswith("encoderblock"):
            parts[2] = changes.get(parts[2], parts[2])
        flat["/".join(parts)] = array
    flat["Transformer/posembed_input/pos_embedding"] = flat.pop("pos_embedding")
    return flat


@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
@pytest.mark.parametrize("naming", [augreg_names, flatten])
def test_namings_and_prefixes_of_jax(tmp_path, params, prefix, naming):
    arrays = {f"{prefix}{name}": array for name, array in naming(params).items()}
    if prefix:
        arrays["opt/state/step" if prefix.startswith("opt") else "opt/count"] = np.int32(3)
    loaded = load(npz(tmp_path / "a.npz", arrays), shapes())
    same(loaded.params, params)
    assert ("pre-Linen" in loaded.report) == (naming is augreg_names)
    assert ("1 entries beside" in loaded.report) == bool(prefix)


@pytest.mark.parametrize("file_scan", [False, True])
@pytest.mark.parametrize("model_scan", [False, True])
@pytest.mark.parametrize("naming", [augreg_names, flatten])
def test_blocks_looped_and_stacked(tmp_path, params, file_scan, model_scan, naming):
    stacked = jax.tree.map(np.asarray, loop_to_scan(params))
    path = npz(tmp_path / "a.npz", naming(stacked if file_scan else params))
    loaded = load(path, shapes(scan=model_scan))
    same(loaded.params, stacked if model_scan else params)
    assert ("blocks: " in loaded.report) == (file_scan != model_scan)


def test_timm_into_stacked_blocks(tmp_path, params):
    safetensors.numpy.save_file(contiguous(to_timm(params)), tmp_path / "a")
    same(load(tmp_path / "a", shapes(scan=True)).params, jax.tree.map(np.asarray, loop_to_scan(params)))
    same(load(tmp_path / "a", params).params, params)  # arrays are as good as shapes


def contiguous(arrays):
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


@pytest.mark.parametrize("dtype", ["float64", "float16", ml_dtypes.bfloat16, ">f4"])
def test_dtypes_become_float32(tmp_path, params, dtype):
    narrow = jax.tree.map(lambda x: x.astype(dtype), params)
    path = npz(tmp_path / "a.npz", flatten(narrow))  # numpy writes bfloat16 as two bytes of void
    loaded = load(path, shapes())
    same(loaded.params, jax.tree.map(lambda x: x.astype(np.float32), narrow))
    assert "made float32 of" in loaded.report
    if dtype != ">f4":
        safetensors.numpy.save_file(contiguous(flatten(narrow)), tmp_path / "a.safetensors")
        same(load(tmp_path / "a.safetensors", shapes()).params, loaded.params)


def test_fortran_order_and_compression(tmp_path, params):
    turned = {name: np.asfortranarray(array) for name, array in flatten(params).items()}
    np.savez_compressed(tmp_path / "a.npz", **turned)
    same(load(tmp_path / "a.npz", shapes()).params, params)
    np.savez(tmp_path / "b.npz", **turned)
    same(load(tmp_path / "b.npz", shapes(scan=True)).params, jax.tree.map(np.asarray, loop_to_scan(params)))


def test_sub_trees(tmp_path, params):
    other = drawn(shapes(), seed=1)
    arrays = {
        f"params/{k}/{n}": x for k, p in (("img", params), ("txt", other)) for n, x in flatten(p).items()
    }
    path = npz(tmp_path / "two.npz", arrays | {"params/t": np.ones(1, np.float32)})
    same(load(f"{path}:img", shapes()).params, params)
    same(load(f"{path}:txt", shapes()).params, other)
    same(load(f"{path}:params/txt", shapes()).params, other)
    with pytest.raises(UserError, match=r"several models, 'img', 'txt': name one as .*two.npz:img"):
        load(path, shapes())
    with pytest.raises(UserError, match=r"no sub-tree 'imgg'. Did you mean 'img'\?"):
        load(f"{path}:imgg", shapes())


@pytest.mark.parametrize(
    ("source", "name", "subtree"),
    [
        ("a.npz", "a.npz", ""),
        ("a.npz:img", "a.npz", "img"),
        ("a.npz:img/encoder/", "a.npz", "img/encoder"),
        ("/runs/b16:ema_params", "/runs/b16", "ema_params"),
        ("augreg:vit_b16", "augreg:vit_b16", ""),
        ("augreg:vit_b16:img", "augreg:vit_b16", "img"),
        ("howto-i21k-B/16", "howto-i21k-B/16", ""),
        ("gs://bucket/a.npz", "gs://bucket/a.npz", ""),
        ("gs://bucket/a.npz:img", "gs://bucket/a.npz", "img"),
        ("https://host:8080/a.npz", "https://host:8080/a.npz", ""),
        ("https://host:8080/a.npz:img", "https://host:8080/a.npz", "img"),
    ],
)
def test_the_colon_before_a_sub_tree(monkeypatch, source, name, subtree):
    monkeypatch.setattr(loading, "resolve", lambda source: source)
    assert loading.locate(source) == (name, subtree)


def test_a_colon_in_the_name_of_a_file(tmp_path, params):
    same(load(npz(tmp_path / "a:img", flatten(params)).with_name("a:img.npz"), shapes()).params, params)


def test_a_map_head_that_lies_at_the_top(tmp_path):
    fields = {"pool": "map", "posemb_layout": "big_vision"}
    params = drawn(shapes(**fields))
    flat = {name.removeprefix("MAPHead_0/"): array for name, array in flatten(params).items()}
    assert "probe" in flat and "MlpBlock_0/Dense_0/kernel" in flat
    same(load(npz(tmp_path / "a.npz", flat), shapes(**fields)).params, params)


def test_group_norms_are_squeezed(tmp_path):
    abstract = {"conv_root": {"kernel": np.ones((7, 7, 3, 4))}, "gn_root": {"scale": np.ones(4)}}
    arrays = {"conv_root/kernel": np.ones((7, 7, 3, 4), "f"), "gn_root/scale": np.ones((1, 1, 1, 4), "f")}
    embedding = {"embedding/kernel": np.ones((1, 1, 4, 8), "f")}  # what makes it a ViT
    path = npz(tmp_path / "a.npz", arrays | embedding)
    loaded = load(path, abstract, dont_load="embedding/.*")
    assert loaded.params["gn_root"]["scale"].shape == (4,)
    assert (
        "squeezed: 1 arrays" in loaded.report and "dropped, by dont_load: embedding/kernel" in loaded.report
    )
    with pytest.raises(UserError, match=r"gn_root/scale is \[1, 1, 1, 4\] there, \[5\] here"):
        load(path, abstract | {"gn_root": {"scale": np.ones(5)}}, dont_load="embedding/.*")


@pytest.mark.parametrize("units", [(), (1, 2)])
def test_hybrids_by_all_their_names(tmp_path, units):
    fields = {"width": 32, "depth": 1, "mlp_dim": 64, "num_heads": 2, "num_classes": 3}
    backbone = {"resnet_units": units, "resnet_widths": (32,) * len(units), "root_width": 32}
    model = models.create("r26_s32", **fields, **backbone, patch_size=1 if units else 2)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    abstract = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = drawn(abstract)
    for names in ("vitjax", "augreg", "timm"):
        save(tmp_path / names, params, names=names, format="npz")
        same(load(tmp_path / names, abstract).params, params)
    with np.load(tmp_path / "augreg") as opened:
        old = {n: x.reshape(1, 1, 1, -1) if "gn_" in n or "/gn" in n else x for n, x in opened.items()}
    loaded = load(npz(tmp_path / "old.npz", old), abstract)
    same(loaded.params, params)
    assert f"squeezed: {2 + 22 * bool(units)} arrays" in loaded.report
    with np.load(tmp_path / "timm") as opened:
        stem = "patch_embed.backbone.stem.conv.weight" if units else "patch_embed.backbone.conv.weight"
        np.testing.assert_array_equal(opened[stem].transpose(2, 3, 1, 0), params["conv_root"]["kernel"])


def test_checkpoints_of_our_own(tmp_path, params, monkeypatch):
    state = {"params": params, "ema_params": drawn(shapes(), seed=1)}
    with checkpoint.Checkpointer(tmp_path / "run/checkpoints", fingerprint={}) as saver:
        saver.save(1, state)
    # A grid of ours that is not square, but has as many patches as one that is.
    same(load(tmp_path / "run", shapes((16, 64)), grid=(2, 8)).params, params)
    for source in ("run", "run/checkpoints", "run/checkpoints/1"):
        same(load(tmp_path / source, shapes()).params, params)
    ema = load(f"{tmp_path}/run:ema_params", shapes(scan=True))
    same(ema.params, jax.tree.map(np.asarray, loop_to_scan(state["ema_params"])))
    assert "vitjax checkpoint" in ema.report
    same(load(tmp_path / "run", shapes(), params_key="ema_params").params, state["ema_params"])
    monkeypatch.chdir(tmp_path)
    same(load("run:ema_params", shapes()).params, state["ema_params"])
    with pytest.raises(UserError, match="no 'ema'"):
        load("run:ema", shapes())
    with pytest.raises(UserError, match=r"'runs': there is no such file or folder"):
        load("runs", shapes())


# Position embeddings.


def logits(params, image, **fields):
    model = models.create("vit_mu8", num_classes=5, depth=2, **fields)
    return jax.jit(lambda params: model.apply({"params": params}, image)[0])(params)


def test_the_class_tokens_position_folds_both_ways(tmp_path, params):
    image = np.random.default_rng(2).normal(size=(2, 32, 32, 3)).astype(np.float32)
    big_vision = load(npz(tmp_path / "a.npz", flatten(params)), shapes(posemb_layout="big_vision"))
    assert big_vision.params["pos_embedding"].shape == (1, 16, 32)
    assert "added to the class token" in big_vision.report
    reference = logits(params, image)
    # Equal but for the order of two additions in float32.
    folded = logits(big_vision.params, image, posemb_layout="big_vision")
    np.testing.assert_allclose(folded, reference, atol=1e-5)

    back = load(npz(tmp_path / "b.npz", flatten(big_vision.params)), shapes())
    assert "zero, as the file has none" in back.report
    assert not back.params["pos_embedding"][:, 0].any()
    np.testing.assert_array_equal(back.params["pos_embedding"][:, 1:], params["pos_embedding"][:, 1:])
    np.testing.assert_allclose(logits(back.params, image), reference, atol=1e-5)
    back.params["cls"][0, 0, 0] = big_vision.params["cls"][0, 0, 0] = -0.0  # adding zero would lose the sign
    again = load(npz(tmp_path / "c.npz", flatten(back.params)), shapes(posemb_layout="big_vision"))
    same(again.params, big_vision.params)
    assert np.signbit(again.params["cls"][0, 0, 0])


def test_without_a_class_token_its_position_goes_with_it(tmp_path, params):
    path = npz(tmp_path / "a.npz", flatten(params))
    with pytest.raises(UserError, match=r"1 only in the file: cls \[1, 1, 32\].*dont_load=\('cls',\)"):
        load(path, shapes(pool="gap"))
    loaded = load(path, shapes(pool="gap"), dont_load="cls")
    np.testing.assert_array_equal(loaded.params["pos_embedding"], params["pos_embedding"][:, 1:])
    assert "dropped, as the model has no class token" in loaded.report


@pytest.mark.parametrize("layout", ["augreg", "big_vision"])
def test_grids_resize_as_each_family_does(tmp_path, layout):
    params = drawn(shapes(posemb_layout=layout))
    prefix = int(layout == "augreg")
    jax_file = npz(tmp_path / "a.npz", flatten(params))
    timm_file = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(contiguous(to_timm(params)), timm_file)
    for path, method in ((jax_file, "corners"), (timm_file, "bicubic_aa")):
        loaded = load(path, shapes(48, posemb_layout=layout))
        expected = resize(params["pos_embedding"], (6, 6), prefix=prefix, method=method)
        np.testing.assert_array_equal(loaded.params["pos_embedding"], expected)
        assert f"grid 4x4 resized to 6x6 ({method})" in loaded.report
        np.testing.assert_array_equal(loaded.params["cls"], params["cls"])
    other = load(jax_file, shapes(48, posemb_layout=layout), posemb="bilinear").params["pos_embedding"]
    expected = resize(params["pos_embedding"], (6, 6), prefix=prefix, method="bilinear")
    np.testing.assert_array_equal(other, expected)


def test_grids_that_are_not_square(tmp_path, params):
    path = npz(tmp_path / "a.npz", flatten(params))
    wide = shapes((24, 48))  # 3x6 patches
    with pytest.raises(UserError, match=r"has 19 entries, which is no square grid: give grid="):
        load(path, wide)
    with pytest.raises(UserError, match=r"grid=\(6, 6\) is 36 patches, but .* 19 entries"):
        load(path, wide, grid=(6, 6))
    loaded = load(path, wide, grid=(3, 6))
    np.testing.assert_array_equal(
        loaded.params["pos_embedding"], resize(params["pos_embedding"], (3, 6), prefix=1)
    )
    of_wide = npz(tmp_path / "wide.npz", flatten(loaded.params))
    same(load(of_wide, wide).params, loaded.params)  # nothing to resize, so its grid need not be known
    same(load(of_wide, wide, grid=(3, 6)).params, loaded.params)
    with pytest.raises(UserError, match=r"wide.npz' has 19 entries: neither a square grid"):
        load(of_wide, shapes())
    # As many entries, another grid: 4x4 and a class token are not 17x1 without one.
    tall = shapes((136, 8), posemb_layout="big_vision")
    assert "4x4 resized to 17x1" in load(path, tall, grid=(17, 1)).report
    with pytest.raises(UserError, match=r"posemb='cubic' is none of auto.*Did you mean 'bicubic'"):
        load(path, wide, posemb="cubic")


# Strict.


def test_everything_that_does_not_fit_is_told_at_once(tmp_path, params):
    flat = flatten(params)
    del flat[f"{BLOCK}/LayerNorm_1/scale"]
    flat[f"{BLOCK}/LayerNorm_1/scales"] = np.ones(32, np.float32)
    flat["head/kernel"] = np.ones((32, 7), np.float32)
    flat["head/bias"] = np.arange(5)
    with pytest.raises(UserError) as raised:
        load(npz(tmp_path / "a.npz", flat), shapes())
    told = str(raised.value)
    for part in (
        "a.npz' (npz, JAX (Linen names)) does not fit the model",
        f"1 missing in the file: {BLOCK}/LayerNorm_1/scale [32] Did you mean '{BLOCK}/LayerNorm_1/scales'?",
        f"1 only in the file: {BLOCK}/LayerNorm_1/scales [32].",
        "2 different:",
        "head/kernel is [32, 7] there, [32, 5] here",
        "head/bias is int64, no float",
        "dont_load",
    ):
        assert part in told, told


def test_long_lists_are_cut(tmp_path, params):
    with pytest.raises(UserError, match=r"16 only in the file: .*Is it the right model"):
        load(npz(tmp_path / "a.npz", flatten(params)), shapes(depth=1))
    with pytest.raises(UserError, match=r"64 missing in the file: .*; and 44 more") as raised:
        load(npz(tmp_path / "a.npz", flatten(params)), shapes(depth=6))
    assert str(raised.value).count("[") == 20


def test_dont_load(tmp_path, params):
    path = npz(tmp_path / "a.npz", augreg_names(params))
    wanted = shapes(num_classes=7)
    with pytest.raises(UserError, match=r"2 different: .*dont_load=\('head/\.\*',\)"):
        load(path, wanted)
    loaded = load(path, wanted, dont_load=("head/.*",))
    assert set(wanted) - set(loaded.params) == {"head"}
    same({**loaded.params, "head": params["head"]}, params)
    assert loaded.report.endswith("left as initialised, by dont_load: head/bias, head/kernel")
    # A whole name must match, of the model's; and every pattern something.
    same(load(path, shapes(), dont_load=".*/encoderblock_1/.*").params, without(params, "encoderblock_1"))
    with pytest.raises(UserError, match=r"dont_load='head' matches no .*Did you mean 'head/bias'"):
        load(path, wanted, dont_load=("head", "head/.*"))
    with pytest.raises(UserError, match=r"dont_load='\*head' is no regular expression"):
        load(path, wanted, dont_load="*head")


def without(params, block):
    return {**params, "Transformer": {n: x for n, x in params["Transformer"].items() if n != block}}


def test_a_representation_layer_that_the_model_lacks(tmp_path):
    params = drawn(shapes(rep_size=32))
    path = npz(tmp_path / "a.npz", flatten(params))
    with pytest.raises(UserError, match=r"2 only in the file: pre_logits.*dont_load=\('pre_logits/\.\*',\)"):
        load(path, shapes())
    loaded = load(path, shapes(), dont_load="pre_logits/.*")
    same({**loaded.params, "pre_logits": params["pre_logits"]}, params)
    assert "dropped, by dont_load: pre_logits/bias, pre_logits/kernel" in loaded.report


def test_names_without_a_place(tmp_path, params):
    state = contiguous(to_timm(params)) | {"blocks.0.attn.proj_l.bias": np.zeros(3, np.float32)}
    counter = {"bn.num_batches_tracked": np.ones((), np.int64)}
    safetensors.numpy.save_file(state | counter, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"1 only in the file: 'blocks.0.attn.proj_l.bias' \[3\]"):
        load(tmp_path / "a.safetensors", shapes())
    loaded = load(tmp_path / "a.safetensors", shapes(), dont_load=r"blocks\.0\..*proj_l.*")
    same(loaded.params, params)
    assert "1 buffers ('bn.num_batches_tracked')" in loaded.report
    with pytest.raises(UserError, match=r"of no family known here \(JAX, .*timm.*\): 'x', 'y'"):
        load(npz(tmp_path / "b.npz", {"x": np.ones(1), "y": np.ones(1)}), shapes())


def test_an_entry_by_two_names(tmp_path, params):
    flat = augreg_names(params)
    flat["pos_embedding"] = flat["Transformer/posembed_input/pos_embedding"]
    with pytest.raises(UserError, match=r"pos_embedding, by '\S*pos_embedding' as well"):
        load(npz(tmp_path / "a.npz", flat), shapes())


@pytest.mark.parametrize("scan", [False, True])
def test_what_is_not_finite_is_named(tmp_path, params, scan):
    flat = flatten(params)
    flat["cls"] = np.full((1, 1, 32), 1e30)  # sums beyond float32, but each is fine
    flat["cls"][:] *= 3e8
    load(npz(tmp_path / "a.npz", flat), shapes(scan=scan))
    flat["cls"][0, 0, 3] = 1e39  # beyond float32
    flat[f"{BLOCK}/MlpBlock_0/Dense_0/kernel"][3, 3] = np.nan
    flat["head/bias"][1] = -np.inf
    with pytest.raises(UserError, match="not finite in float32") as raised:
        load(npz(tmp_path / "a.npz", flat), shapes(scan=scan))
    for name in ("cls", f"{BLOCK}/MlpBlock_0/Dense_0/kernel", "head/bias"):
        assert name in str(raised.value)
    assert "LayerNorm" not in str(raised.value)
