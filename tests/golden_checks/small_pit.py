"""The official small-dataset PiT (aanna0701/SPT_LSA_ViT): networks, attention of the last block, attention alone."""

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from golden_checks.small_vit import compare_all_close, compare_release, release
from golden_checks.vit import compare_gradients, loaded
from vitjax.layers.attention import MultiHeadDotProductAttention
from vitjax.layers.locality import locality
from vitjax.models.small import NETWORKS
from vitjax.weights.pit_names import released_table_of
from vitjax.weights.spt_lsa_names import attention
from vitjax.weights.timm_names import from_timm, to_timm
from vitjax.weights.tree import flatten


@checks(lambda config: config.get("backbone") == "pit")
def check_small_pit(config, arrays):
    width = tuple(config["dim"] * 2**stage for stage in range(len(config["depth"])))
    bare = [h == 1 and config["dim_head"] == w for h, w in zip(config["heads"], width, strict=True)]
    model = release(
        NETWORKS["pit"],
        config,
        width=width,
        depth=tuple(config["depth"]),
        num_heads=tuple(config["heads"]),
        mlp_dim=tuple(config["mlp_dim_ratio"] * w for w in width),
        head_dim=config["dim_head"],
        norm_epsilon=config["layer_norm_eps"],
        out_projection=not any(bare),
    )
    image = jax.ShapeDtypeStruct(arrays["input"].transpose(0, 2, 3, 1).shape, np.float32)
    table = released_table_of(flatten(jax.eval_shape(model.init, jax.random.key(0), image)["params"]))
    compare_release(model, arrays, table)
    compare_last_attention(model, arrays, table)


def compare_last_attention(model, arrays, table):
    """Holds the attention weights of the last block of all against the file's."""
    params, image = loaded(model, arrays, table)
    with jax.default_matmul_precision("highest"):
        _, variables = model.apply({"params": params}, image, mutable=["intermediates"])
    stage = variables["intermediates"][f"stage_{len(model.depth) - 1}"]
    sown = stage[f"encoderblock_{model.depth[-1] - 1}"]["MultiHeadDotProductAttention_0"]
    compare_all_close("attn_last", sown["attention_weights"][0], arrays["attn_last"])


@checks(lambda config: config.get("module") == "pit.Attention")
def check_attention(config, arrays):
    """One attention: output, weights, gradients."""
    heads, width = config["heads"], config["dim"]
    module = MultiHeadDotProductAttention(
        heads,
        qkv_bias=False,
        head_dim=config["dim_head"],
        locality=locality("both" if config["is_LSA"] else "none", float(config["mask_value"])),
        out_projection=not (heads == 1 and config["dim_head"] == width),
    )
    table = {
        name.removeprefix("x."): row
        for name, row in attention("x", "x", {"to_qkv": ("query", "key", "value")}).items()
    }
    params = from_timm(below(arrays, "param/"), num_heads=heads, table=table)["x"]

    @jax.jit
    def run(params, x):
        y, sown = module.apply({"params": params}, x, mutable=["intermediates"])
        return jnp.sum(y * arrays["cotangent"]), (y, sown["intermediates"]["attention_weights"][0])

    with jax.default_matmul_precision("highest"):
        (_, (y, weights)), grads = jax.value_and_grad(run, (0, 1), has_aux=True)(params, arrays["input"])
    compare_all_close("output", y, arrays["output"])
    compare_all_close("attn", weights, arrays["attn"])
    ours = {**to_timm({"x": grads[0]}, table=table), "input": np.asarray(grads[1])}
    compare_gradients({**below(arrays, "grad/"), "input": arrays["grad_input"]}, ours)
