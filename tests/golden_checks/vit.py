"""ViT, DeiT (the same network) and DeiT III against timm: forward, intermediates, gradients."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from vitjax.models.vit import ViT
from vitjax.weights.tables import heads_in
from vitjax.weights.timm_names import from_timm, to_timm
from vitjax.weights.tree import flatten

# Share of max(1, max|reference|). PyTorch's own float32 error is up to 6e-6 on logits; ours here, 2e-6.
FORWARD = 1e-5
# Share of the tensor's largest gradient. Seen here: at most 5e-6.
GRADIENT = 1e-4
# Gradients that are zero in exact arithmetic, such as that of a key's bias, are below this in the files,
EXACT_ZERO = 1e-12
# and here this share of the file's largest gradient. Seen: 7e-8.
ZERO = 1e-6

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


def compare(model, arrays, table=None):
    """Holds a model in inference against one file: shapes, outputs, intermediates, all gradients."""
    params, image = loaded(model, arrays, table)
    cotangent = arrays["cotangent"].astype(np.float32)
    out, grads, grad_image = forward_and_gradient(
        model, params, image, lambda out: jnp.sum(out["logits"] * cotangent)
    )
    compare_forward(arrays, out)
    compare_gradients(below(arrays, "grad/"), to_timm(grads, table=table))
    if "grad_input" in arrays:
        compare_gradients(
            {"input": arrays["grad_input"]}, {"input": np.asarray(grad_image).transpose(0, 3, 1, 2)}
        )


def loaded(model, arrays, table=None):
    """The file's parameters, which have the model's own names and shapes, and its images."""
    image = jnp.asarray(arrays["input"].transpose(0, 2, 3, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    heads = heads_in({name: leaf.shape for name, leaf in flatten(shapes).items()})
    params = from_timm(below(arrays, "param/"), num_heads=heads, **({"table": table} if table else {}))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    return params, image


def forward_and_gradient(model, params, image, loss, train=False):
    """Intermediates, and the gradients of `loss(out)` by parameters and image."""

    @jax.jit
    def run(params, image):
        def value(params, image):
            out = model.apply({"params": params}, image, train=train)[1]
            return loss(out), out

        return jax.grad(value, argnums=(0, 1), has_aux=True)(params, image)

    with jax.default_matmul_precision("highest"):
        (grads, grad_image), out = run(params, image)
    return out, grads, grad_image


def compare_gradients(references, grads, within=GRADIENT):
    """Compares each tensor by its largest entry; every one must have its reference."""
    assert references.keys() == grads.keys()
    largest = max(np.abs(reference).max() for reference in references.values())
    for name, reference in references.items():
        error, size = np.abs(grads[name] - reference).max(), np.abs(reference).max()
        if size < EXACT_ZERO:
            assert error <= ZERO * largest, f"the gradient of {name} is {error:.1e}, not 0"
        else:
            assert error <= within * size, (
                f"the gradient of {name} is off by {error / size:.1e} of its maximum"
            )


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
    places |= {f"act/blocks_token_only.{i}": cls for i, cls in enumerate(out.get("class_tokens", ()))}
    places["act/norm"] = out["encoded"]
    places |= {f"act/{name}": chw(out[ours]) for name, ours in feature_maps(out).items()}
    unplaced = [key for key in arrays if re.match("act/", key) and key not in places]
    if unplaced:
        warnings.warn(f"not compared: {unplaced}", stacklevel=1)
    for key, ours in places.items():
        if key in arrays:
            compare_one(key, ours, arrays[key])


def compare_one(key, ours, reference):
    """Compares one output by its largest entry."""
    assert ours.shape == reference.shape, f"{key} is {ours.shape}, not {reference.shape}"
    error = np.abs(np.asarray(ours) - reference).max() / max(1, np.abs(reference).max())
    assert error <= FORWARD, f"{key} is off by {error:.1e}"
