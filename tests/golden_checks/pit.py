"""PiT, plain and distilled, against timm: outputs, intermediates, gradients."""

import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from golden_checks.deit import check_training
from golden_checks.vit import chw, compare_gradients, compare_one, forward_and_gradient, loaded
from vitjax.models.pit import DistilledPiT, PiT
from vitjax.weights.pit_names import TIMM, TIMM_DISTILLED, positions
from vitjax.weights.timm_names import to_timm


def fields(kwargs):
    """Translates arguments of timm's PoolingVisionTransformer into fields of ours."""
    kwargs = {"base_dims": (48,) * 3, "depth": (2, 6, 4), "heads": (2, 4, 8), "mlp_ratio": 4, **kwargs}
    for ignored in ("img_size", "distilled", "in_chans"):
        kwargs.pop(ignored, None)
    assert kwargs.pop("stem_type", "overlap") == "overlap" and kwargs.pop("global_pool", "token") == "token"
    num_heads, ratio = tuple(kwargs.pop("heads")), kwargs.pop("mlp_ratio")
    width = tuple(dim * heads for dim, heads in zip(kwargs.pop("base_dims"), num_heads, strict=True))
    ours = {
        "width": width,
        "mlp_dim": tuple(int(w * ratio) for w in width),
        "num_heads": num_heads,
        "depth": tuple(kwargs.pop("depth")),
        "patch_size": kwargs.pop("patch_size", 16),
        "patch_stride": kwargs.pop("stride", 8),
        "num_classes": kwargs.pop("num_classes", 1000),
    }
    assert not kwargs, f"The check does not know timm's arguments {kwargs}."
    return ours


@checks(lambda config: config.get("family") in ("pit", "pit_distilled"))
def check_pit(config, arrays):
    distilled = "param/head_dist.weight" in arrays
    model = (DistilledPiT if distilled else PiT)(**fields(config["kwargs"]))
    grid = arrays["param/pos_embed"].shape[2:]
    table = {**(TIMM_DISTILLED if distilled else TIMM), "pos_embed": (positions(grid), "pos_embedding")}
    params, image = loaded(model, arrays, table)
    loss = lambda out: jnp.sum(out["logits"] * arrays["cotangent"])
    out, grads, grad_image = forward_and_gradient(model, params, image, loss)
    compare_forward(model, arrays, out)
    compare_gradients(below(arrays, "grad/"), to_timm(grads, table=table))
    if "grad_input" in arrays:
        image = {"input": np.asarray(grad_image).transpose(0, 3, 1, 2)}
        compare_gradients({"input": arrays["grad_input"]}, image)
    if "train_logits" in arrays:
        check_training(model, arrays, table)


def compare_forward(model, arrays, out):
    """Compares what the file has of outputs and intermediates; timm normalises the tokens in front only."""
    front = out["encoded"][:, : len(model.tokens_in_front)]
    places = {name: out[name] for name in ("logits", "pre_logits")} | {"features": front, "act/norm": front}
    stem = chw(out["stem"])
    places |= {"act/patch_embed": stem, "act/patch_embed.conv": stem}
    blocks = [(s, i) for s, depth in enumerate(model.depth) for i in range(depth)]
    for (s, i), tokens in zip(blocks, out["tokens"], strict=True):
        places[f"act/transformers.{s}.blocks.{i}"] = tokens
    unplaced = [key for key in arrays if key.startswith("act/") and key not in places]
    assert not unplaced, f"not compared: {unplaced}"
    for key in places.keys() & arrays.keys():
        compare_one(key, places[key], arrays[key])
