"""The reduced T2T-ViT of aanna0701/SPT_LSA_ViT: whole networks, and its class of attention by itself."""

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from golden_checks.vit import compare_gradients, compare_one, forward_and_gradient
from vitjax.layers.locality import locality
from vitjax.layers.position import sinusoid
from vitjax.layers.token_transformer import InputResidualAttention, ValueResidualAttention
from vitjax.models.t2t import T2TViT
from vitjax.weights.t2t_names import T2T_TRANSFORMER
from vitjax.weights.tables import heads_in, moves
from vitjax.weights.timm_names import SAME, out, projections, to_timm
from vitjax.weights.tree import flatten, nest

POSITIONS = "pos_embed"
UNUSED = {"tokens_to_token.norm.weight", "tokens_to_token.norm.bias"}


def fields(config):
    """Translates arguments of the official `T2T_ViT` into fields of ours."""
    assert config["attn_in_dim"] == config["embed_dim"]  # anything else does not run there
    assert config["in_chans"] == 3 and config["layer_norm_eps"] == 1e-5 and config["gelu"] == "exact_erf"
    return {
        "num_classes": config["num_classes"],
        "width": config["embed_dim"],
        "depth": config["depth"],
        "mlp_dim": int(config["embed_dim"] * config["mlp_ratio"]),
        "num_heads": config["num_heads"],
        "token_dim": config["token_dim"],
        "splits": 3 if config["img_size"] == 64 else 2,
        "token_layer": "transformer",
        "qkv_bias": config.get("qkv_bias", False),
        "inner_residual": True,
        "unused_norm": True,
        "spt": "diagonal" if config["is_SPT"] else "none",
        "lsa": "both" if config["is_LSA"] else "none",
    }


def in_our_form(state, shapes, table):
    """The parameters of a state dict; their names and shapes are those of `shapes`."""
    flat = {name: tuple(leaf.shape) for name, leaf in flatten(shapes).items()}
    found, unknown = moves(table, state, heads_in(flat))
    assert not unknown
    params = {
        name: part
        for move in found
        for name, part in zip(move.targets, move.into(state[move.entry]), strict=True)
    }
    assert {name: part.shape for name, part in params.items()} == flat
    return nest(params)


@checks(lambda config: config.get("backbone") == "t2t")
def check_t2t(config, arrays):
    model = T2TViT(**fields(config))
    image = jnp.asarray(arrays["input"].transpose(0, 2, 3, 1))
    state = below(arrays, "param/")
    positions = state.pop(POSITIONS)
    np.testing.assert_allclose(sinusoid(*positions.shape[1:]), positions, rtol=0, atol=2e-7)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    params = in_our_form(state, shapes, T2T_TRANSFORMER)
    cotangent = arrays["cotangent"].astype(np.float32)
    value, grads, grad_image = forward_and_gradient(
        model, params, image, lambda out: jnp.sum(out["logits"] * cotangent)
    )
    compare_one("logits", value["logits"], arrays["logits"])
    grads = {**to_timm(grads, table=T2T_TRANSFORMER), "input": np.asarray(grad_image).transpose(0, 3, 1, 2)}
    without = set(config["params_without_grad"]) - {POSITIONS}
    assert without == UNUSED
    for name in without:
        assert not grads.pop(name).any()
    compare_gradients({**below(arrays, "grad/"), "input": arrays["grad_input"]}, grads)


ATTENTION = {
    **projections("qkv", "x", ("query", "key", "value")),
    **out("proj", "x"),
    "scale": (SAME, "x/scale"),
}


@checks(lambda config: config.get("module") == "t2t.Attention")
def check_attention(config, arrays):
    """With one head it is the token layers' attention, with more the blocks'."""
    lsa = locality("both" if config["is_LSA"] else "none")
    heads, dim, inner = config["num_heads"], config["dim"], config["in_dim"]
    kind = ValueResidualAttention if heads == 1 else InputResidualAttention
    scale = (dim // heads) ** -0.5  # of a token layer, by its input's width
    module = kind(heads, False, head_dim=inner // heads, scale=scale, locality=lsa)
    x = jnp.asarray(arrays["input"], jnp.float32)
    shapes = {"x": jax.eval_shape(module.init, jax.random.key(0), x)["params"]}
    params = in_our_form(below(arrays, "param/"), shapes, ATTENTION)["x"]

    @jax.jit
    def run(params, x, cotangent):
        y, pull = jax.vjp(lambda params, x: module.apply({"params": params}, x), params, x)
        return y, *pull(cotangent)

    with jax.default_matmul_precision("highest"):
        y, grads, grad_x = run(params, x, arrays["cotangent"])
    compare_one("output", y, arrays["output"])
    compare_gradients(
        {**below(arrays, "grad/"), "input": arrays["grad_input"]},
        {**to_timm({"x": grads}, table=ATTENTION), "input": grad_x},
    )
