"""ViT, DeiT (the same network) and DeiT III against timm: forward, intermediates, gradients."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from vitjax.models.vit import ViT
from vitjax.weights.timm_names import from_timm, to_timm

# Share of max(1, max|reference|). PyTorch's own float32 error is up to 6e-6 on logits; ours here, 2e-6.
FORWARD = 1e-5
# Share of the tensor's largest gradient. Seen here: at most 5e-6.
GRADIENT = 1e-4

_POOLS = {"token": "tok", "avg": "gap", "map": "map", "": "none"}


def fields(kwargs: dict) -> dict:
    """Translates arguments of timm's VisionTransformer into fields of ours."""
    kwargs = dict(kwargs)
    kwargs.pop("img_size", None)
    width, pool = kwargs.pop("embed_dim"), kwargs.pop("global_pool", "token")
    fc_norm = kwargs.pop("fc_norm", None)
    ours = {
        "width": width,
        "mlp_dim": int(width * kwargs.pop("mlp_ratio", 4.0)),
        "pool": _POOLS[pool],
        "class_token": kwargs.pop("class_token", True),
        "fc_norm": pool == "avg" if fc_norm is None else fc_norm,
        "posemb_layout": "big_vision" if kwargs.pop("no_embed_class", False) else "augreg",
        "layer_scale": kwargs.pop("init_values", None),
        "rep_size": kwargs.pop("representation_size", None) or False,
        "gelu": kwargs.pop("gelu", "erf"),
        "qkv_bias": kwargs.pop("qkv_bias", True),
    }
    for same in ("depth", "num_heads", "patch_size", "num_classes"):
        if same in kwargs:
            ours[same] = kwargs.pop(same)
    assert not kwargs, f"The check does not know timm's arguments {kwargs}."
    return ours


@checks(lambda config: config.get("family") in ("vit", "deit", "deit3"))
def check_vit(config, arrays):
    compare(ViT(**fields(config["kwargs"])), arrays)


def compare(model, arrays):
    """Holds a model against one file: shapes, outputs, intermediates, all gradients."""
    params = from_timm(below(arrays, "param/"), num_heads=model.num_heads)
    image = jnp.asarray(arrays["input"].transpose(0, 2, 3, 1))
    cotangent = arrays["cotangent"].astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    @jax.jit
    def forward_and_gradient(params, image):
        def loss(params, image):
            logits, out = model.apply({"params": params}, image)
            return jnp.sum(logits * cotangent), out

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, image)

    with jax.default_matmul_precision("highest"):
        (_, out), (grads, grad_image) = forward_and_gradient(params, image)

    compare_forward(arrays, out)
    grads = {f"grad/{name}": grad for name, grad in to_timm(grads).items()}
    if "grad_input" in arrays:
        grads["grad_input"] = np.asarray(grad_image).transpose(0, 3, 1, 2)
    for key, reference in arrays.items():
        if key.startswith("grad"):
            # The floor is for gradients that are zero in exact arithmetic.
            share = np.abs(grads.pop(key) - reference).max() / max(np.abs(reference).max(), 1e-6)
            assert share <= GRADIENT, f"{key} is off by {share:.1e} of its maximum"
    assert not grads, f"no reference for the gradients {sorted(grads)}"


def feature_maps(out):
    """The maps of a hybrid's ResNet: timm's names of modules and ours of intermediates."""
    stages = [name for name in out if re.fullmatch(r"block\d+", name)]
    if not stages:
        return {"patch_embed.backbone": "root"} if "root" in out else {}
    names = {f"patch_embed.backbone.stages.{int(name[5:]) - 1}": name for name in stages}
    return {"patch_embed.backbone.stem": "root", **names}


def chw(feature_map):
    """The files keep a map's first example only, `[1, C, H, W]`."""
    return np.asarray(feature_map)[:1].transpose(0, 3, 1, 2)


def compare_forward(arrays, out):
    """Compares logits and whatever intermediates the file has, and says which ones it cannot place."""
    places = {"logits": out["logits"], "pre_logits": out["pre_logits"], "features": out["encoded"]}
    stem = out["stem"]
    places["act/patch_embed"] = stem.reshape(len(stem), -1, stem.shape[-1])
    places |= {f"act/blocks.{i}": tokens for i, tokens in enumerate(out["tokens"])}
    places["act/norm"] = out["encoded"]
    places |= {f"act/{name}": chw(out[ours]) for name, ours in feature_maps(out).items()}
    unplaced = [key for key in arrays if re.match("act/", key) and key not in places]
    if unplaced:
        warnings.warn(f"not compared: {unplaced}", stacklevel=1)
    for key, ours in places.items():
        if key in arrays:
            reference = arrays[key]
            assert ours.shape == reference.shape, f"{key} is {ours.shape}, not {reference.shape}"
            error = np.abs(np.asarray(ours) - reference).max() / max(1, np.abs(reference).max())
            assert error <= FORWARD, f"{key} is off by {error:.1e}"
