"""Files of T2T-ViTs: the official layout, positions computed or learned, a Performer's directions."""

import jax
import numpy as np
import pytest
from conftest import drawn, same

from vitjax import models, weights
from vitjax.checkpoint import Checkpointer
from vitjax.errors import UserError
from vitjax.layers.position import sinusoid
from vitjax.weights import load, save
from vitjax.weights.__main__ import abstract
from vitjax.weights.t2t_names import T2T_PERFORMER, T2T_TRANSFORMER
from vitjax.weights.timm_names import to_timm
from vitjax.weights.tree import flatten
from vitjax.weights.variables import join, split

TINY = {"num_classes": 5, "width": 16, "depth": 2, "mlp_dim": 32, "num_heads": 2, "token_dim": 4}
TABLES = {"t2t_vit_7": T2T_PERFORMER, "t2t_vit_t_14": T2T_TRANSFORMER, "sl_t2t": T2T_TRANSFORMER}


def joined(name, **fields):
    model = models.create(name, **{**TINY, **fields})
    made = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32))
    return join(made["params"], made)


def official(path, name, params, positions=None, prefix=""):
    """An npz of the parameters by their official names, with the sinusoid that such files have."""
    state = {"pos_embed": sinusoid(17, 16) if positions is None else positions}
    state |= to_timm(params, table=TABLES[name])
    np.savez(path, **{f"{prefix}{key}": array for key, array in state.items()})
    return path


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict/module."])
@pytest.mark.parametrize("name", TABLES)
def test_official_files(tmp_path, name, prefix):
    params = drawn(joined(name))
    loaded = load(official(tmp_path / "a.npz", name, params, prefix=prefix), joined(name))
    same(loaded.params, params)
    assert "npz, yitu-opensource/T2T-ViT;" in loaded.report
    assert "left out: pos_embed, which the model computes" in loaded.report
    scanned = load(official(tmp_path / "a.npz", name, params, prefix=prefix), joined(name, scan=True))
    assert scanned.params["Transformer"]["encoderblock"]["LayerNorm_0"]["scale"].shape == (2, 16)


def test_directions_are_w_and_the_projection_is_of_keys_queries_and_values(tmp_path):
    params = drawn(joined("t2t_vit_7"))
    state = to_timm(params, table=T2T_PERFORMER)
    attention = params["tokens_to_token"]["token_layer_1"]["MultiHeadDotProductAttention_0"]
    np.testing.assert_array_equal(state["tokens_to_token.attention2.w"], attention["directions"])
    for i, part in enumerate(("key", "query", "value")):
        kernel = state["tokens_to_token.attention2.kqv.weight"][4 * i : 4 * i + 4]
        np.testing.assert_array_equal(kernel.T, attention[part]["kernel"][:, 0])
    path = official(tmp_path / "a.npz", "t2t_vit_7", params)
    state = dict(np.load(path))
    del state["tokens_to_token.attention1.w"]
    np.savez(path, **state)
    with pytest.raises(UserError, match=r"1 missing in the file: .*token_layer_0/.*/directions \[2, 4\]"):
        load(path, joined("t2t_vit_7"))


def test_positions_that_are_no_sinusoid_are_for_a_model_that_learns_them(tmp_path):
    """Official code interpolates the sinusoid of one size for another."""
    params = drawn(joined("t2t_vit_t_14", posemb="learn"))
    state = to_timm(params, table=T2T_TRANSFORMER)
    np.savez(tmp_path / "a.npz", **state)
    same(load(tmp_path / "a.npz", joined("t2t_vit_t_14", posemb="learn")).params, params)
    with pytest.raises(UserError, match=r"1 only in the file: pos_embedding \[1, 2, 16\] \('pos_embed'\)"):
        load(tmp_path / "a.npz", joined("t2t_vit_t_14"))


@pytest.mark.parametrize(
    ("positions", "left_out"),
    [
        (sinusoid(17, 16), True),
        (sinusoid(577, 16), True),  # of another image size: nothing to resize
        (sinusoid(17, 16).astype(np.float16), True),
        (sinusoid(17, 16) + np.float32(1e-5), False),
        (np.full((1, 17, 16), np.nan, np.float32), False),
    ],
)
def test_only_the_sinusoid_itself_is_left_out(tmp_path, positions, left_out):
    params = drawn(joined("small_t2t"))
    path = official(tmp_path / "a.npz", "sl_t2t", params, positions)
    if left_out:
        same(load(path, joined("small_t2t")).params, params)
    else:
        with pytest.raises(UserError, match="1 only in the file: pos_embedding"):
            load(path, joined("small_t2t"))


@pytest.mark.parametrize(("name", "posemb"), [("t2t_vit_7", "sinusoid"), ("sl_t2t", "learn")])
def test_the_command_line_tells_the_variant_by_the_names(name, posemb):
    model = models.create(name, num_classes=7, posemb=posemb)
    made = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32))
    shapes = {name: leaf.shape for name, leaf in flatten(join(made["params"], made)).items()}
    read = abstract(name, shapes, None, None)
    assert {name: leaf.shape for name, leaf in flatten(read).items()} == shapes


def test_there_and_back_by_our_names(tmp_path):
    params = drawn(joined("t2t_vit_7"))
    save(tmp_path / "a.safetensors", params)
    same(load(tmp_path / "a.safetensors", joined("t2t_vit_7")).params, params)
    with pytest.raises(UserError, match="timm has no name for the parameter 'tokens_to_token/"):
        save(tmp_path / "b.safetensors", params, names="timm")


@pytest.mark.parametrize("key", ["params", "ema_params"])
def test_a_checkpoint_of_ones_own_has_the_directions(tmp_path, key):
    params = drawn(joined("t2t_vit_7"))
    model = models.create("t2t_vit_7", **TINY)
    made = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32))
    trained, state = split(params, made)
    assert set(state) == {"random_features"} and len(jax.tree.leaves(state)) == 2
    of_key = {"params": (trained, state), "ema_params": ({"x": np.zeros(1)}, {})}
    if key == "ema_params":
        of_key = {"params": of_key["ema_params"], "ema_params": of_key["params"]}
    whole = {
        "params": of_key["params"][0],
        "model_state": of_key["params"][1],
        "ema_params": of_key["ema_params"][0],
        "ema_model_state": of_key["ema_params"][1],
    }
    with Checkpointer(tmp_path / "checkpoints", fingerprint={}) as checkpointer:
        checkpointer.save(1, whole)
        checkpointer.wait()
    same(weights.load(f"{tmp_path}:{key}", joined("t2t_vit_7")).params, params)
