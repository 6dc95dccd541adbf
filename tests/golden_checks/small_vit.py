"""The official small-dataset ViT (aanna0701/SPT_LSA_ViT): forward, attention of the last block, gradients."""

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from golden_checks.vit import compare_gradients, forward_and_gradient, loaded
from vitjax.models.small import NETWORKS, Network
from vitjax.weights.spt_lsa_names import VIT
from vitjax.weights.timm_names import to_timm

# Share of max(1, max|reference|). PyTorch's own float32 error over all of these networks is up to 5e-6 on
# logits of about 1; ours on ViT, CaiT and their units, attention weights included, 2.8e-6.
FORWARD = 1e-5
# Share of the tensor's largest gradient. PyTorch's own is up to 4.7e-5; ours on ViT and CaiT 3.1e-5.
GRADIENT = 2e-4


@checks(lambda config: config.get("backbone") == "vit")
def check_small_vit(config, arrays):
    model = release(
        NETWORKS["vit"],
        config,
        depth=config["depth"],
        num_heads=config["heads"],
        head_dim=config["dim_head"],
        mlp_dim=config["dim"] * config["mlp_dim_ratio"],
        out_projection=not (config["heads"] == 1 and config["dim_head"] == config["dim"]),
    )
    compare_release(model, arrays, VIT)
    compare_last_attention(model, arrays, VIT)


def release(network: Network, config, **fields):
    """The preset in the size and the variant that `config` says."""
    return network.module(
        **network.fields
        | (network.spt if config["is_SPT"] else {})
        | (network.lsa if config["is_LSA"] else {})
        | {"num_classes": config["num_classes"], "width": config["dim"], "patch_size": config["patch_size"]}
        | fields
    )


def compare_release(model, arrays, table):
    """Holds a network in inference against one file: shapes, logits, all gradients."""
    params, image = loaded(model, arrays, table)
    loss = lambda out: jnp.sum(out["logits"] * arrays["cotangent"])
    out, grads, grad_image = forward_and_gradient(model, params, image, loss)
    compare_all_close("logits", out["logits"], arrays["logits"])
    compare_gradients(below(arrays, "grad/"), to_timm(grads, table=table), GRADIENT)
    of_image = np.asarray(grad_image).transpose(0, 3, 1, 2)
    compare_gradients({"input": arrays["grad_input"]}, {"input": of_image}, GRADIENT)


def compare_all_close(what, ours, reference):
    """Compares one output by its largest entry."""
    assert ours.shape == reference.shape, f"{what} is {ours.shape}, not {reference.shape}"
    error = np.abs(np.asarray(ours, np.float64) - reference).max() / max(1, np.abs(reference).max())
    assert error <= FORWARD, f"{what} is off by {error:.1e}"


def compare_last_attention(model, arrays, table):
    """Holds the attention weights of the last block, as `intermediates` has them, against the file's."""
    params, image = loaded(model, arrays, table)
    infer = jax.jit(lambda params: model.apply({"params": params}, image, mutable=["intermediates"]))
    with jax.default_matmul_precision("highest"):
        _, variables = infer(params)
    last = f"encoderblock_{model.depth - 1}"
    sown = variables["intermediates"]["Transformer"][last]["MultiHeadDotProductAttention_0"]
    compare_all_close("attn_last", sown["attention_weights"][0], arrays["attn_last"])
