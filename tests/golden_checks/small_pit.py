"""The official small-dataset PiT (aanna0701/SPT_LSA_ViT): forward, attention of the last block, gradients."""

import jax
import numpy as np

from golden_checks import checks
from golden_checks.small_vit import compare_all_close, compare_release, release
from golden_checks.vit import loaded
from vitjax.models.small import NETWORKS
from vitjax.weights.pit_names import released_table_of
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
        out_projection=not any(bare),
    )
    image = jax.ShapeDtypeStruct(arrays["input"].transpose(0, 2, 3, 1).shape, np.float32)
    table = released_table_of(flatten(jax.eval_shape(model.init, jax.random.key(0), image)["params"]))
    compare_release(model, arrays, table)
    compare_last_attention(model, arrays, table)


def compare_last_attention(model, arrays, table):
    """Holds the attention weights of the last block of all against the file's."""
    params, image = loaded(model, arrays, table)
    infer = jax.jit(lambda params: model.apply({"params": params}, image, mutable=["intermediates"]))
    with jax.default_matmul_precision("highest"):
        _, variables = infer(params)
    stage = variables["intermediates"][f"stage_{len(model.depth) - 1}"]
    sown = stage[f"encoderblock_{model.depth[-1] - 1}"]["MultiHeadDotProductAttention_0"]
    compare_all_close("attn_last", sown["attention_weights"][0], arrays["attn_last"])
