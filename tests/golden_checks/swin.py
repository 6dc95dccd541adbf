"""Swin against timm: forward and gradients."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from golden_checks.vit import compare_gradients, compare_one, forward_and_gradient, loaded
from vitjax.models.swin import Swin
from vitjax.weights.swin_names import TIMM
from vitjax.weights.timm_names import to_timm

_FIELDS = {"embed_dim": "width", "window_size": "window"}
_SAME = ("num_classes", "depths", "num_heads", "patch_size", "mlp_ratio", "qkv_bias")


def fields(kwargs: dict) -> dict[str, Any]:
    """Translates arguments of timm's SwinTransformer into fields of ours."""
    kwargs = {key: value for key, value in kwargs.items() if key not in ("img_size", "drop_path_rate")}
    renamed: dict[str, Any] = {str(_FIELDS.get(key, key)): value for key, value in kwargs.items()}
    assert renamed.keys() <= {*_SAME, *_FIELDS.values()}, (
        f"The check does not know timm's arguments {kwargs}."
    )
    return renamed


@checks(lambda config: config.get("family") == "swin")
def check_swin(config, arrays):
    model = Swin(**fields(config["kwargs"]))
    params, image = loaded(model, arrays, TIMM)
    loss = lambda out: jnp.sum(out["logits"] * arrays["cotangent"].astype(np.float32))
    out, grads, grad_image = forward_and_gradient(model, params, image, loss)
    for key, ours in {"logits": "logits", "pre_logits": "pre_logits", "features": "encoded"}.items():
        if key in arrays:
            compare_one(key, out[ours], arrays[key])
    compare_gradients(below(arrays, "grad/"), to_timm(grads, table=TIMM))
    if "grad_input" in arrays:
        theirs = {"input": np.asarray(grad_image).transpose(0, 3, 1, 2)}
        compare_gradients({"input": arrays["grad_input"]}, theirs)
