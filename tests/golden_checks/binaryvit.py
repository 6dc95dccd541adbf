"""BinaryViT, its ladder and its teacher against Phuoc-Hoan-Le/BinaryViT.

Outputs, activations, gradients and, in training, running statistics.
"""

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from vitjax import models
from vitjax.models.binaryvit import BinaryViT
from vitjax.weights import huggingface_names
from vitjax.weights.binaryvit_names import BINARYVIT
from vitjax.weights.tables import heads_in
from vitjax.weights.timm_names import from_timm, to_timm
from vitjax.weights.tree import flatten
from vitjax.weights.variables import join, split

# Share of the largest entry, as the files' own description suggests for float32. Seen: 2e-6.
FORWARD = 1e-4
# Share of a parameter's largest gradient. Seen: 2e-4; PyTorch's own float32 error is up to 3e-4.
GRADIENT = 1e-3
# The same of gradients that cancel: those that are zero in exact arithmetic, as of a shift before a norm, and
# of the attention's clip, which only scales what a norm comes after. Seen: 2.5e-3.
CANCELLING = 1e-2
EXACT_ZERO = 1e-12  # those of the files are below this
PRECISIONS = {(1, 1): "binary", (1, 32): "w1a32", (32, 1): "w32a1", (32, 32): "float"}


def fields(config):
    """Fields of ours for geometry and flags of a file."""
    sizes, flags = dict(config["model_config"]), dict(config["flags"])
    pyramid = config["model_type"] == "extra-res-pyramid"
    ours = {
        "num_classes": sizes.pop("num_labels"),
        "width": sizes.pop("hidden_size"),
        "depth": sizes.pop("depths" if pyramid else "num_hidden_layers"),
        "mlp_dim": sizes.pop("intermediate_size"),
        "num_heads": sizes.pop("num_attention_heads"),
        "reduction": sizes.pop("reduction_ratio") if pyramid else 1,
        "patch_size": sizes.pop("patch_size"),
        "stem_norm": pyramid,
        "class_token": flags.pop("enable_cls_token", False) and not pyramid,
        "branches": [size for size in (3, 5) if flags.pop(f"avg_res{size}", False)],
        "affine": None if flags.pop("disable_layerscale", False) else 0.1,
        "downsampling": "float" if flags.pop("some_fp", False) else "binary",
        "norm": {"bn": "batch", "ln": "layer"}[flags.pop("norm", "bn")],
        "precision": PRECISIONS[flags.pop("weight_bits", 1), flags.pop("input_bits", 1)],
    }
    if pyramid:
        ours["patch_size"] = 4  # in their code, whatever the config says
    sizes.pop("image_size")
    assert not sizes and not flags, f"The check does not know {sizes} and {flags}."
    return ours


def of(*kinds):
    source = lambda config: str(config.get("source_repo", "")).endswith("/BinaryViT")
    return checks(lambda config: source(config) and config.get("model_type") in kinds)


@of("extra-res", "extra-res-pyramid")
def check_binaryvit(config, arrays):
    depth = config["model_config"].get("depths")
    compare(BinaryViT(**fields(config)), config, arrays, BINARYVIT, depth)


@of("deit")
def check_teacher(config, arrays):
    sizes = config["model_config"]
    model = models.create(
        "binaryvit_teacher_s16",
        num_classes=sizes["num_labels"],
        width=sizes["hidden_size"],
        depth=sizes["num_hidden_layers"],
        mlp_dim=sizes["intermediate_size"],
        num_heads=sizes["num_attention_heads"],
        patch_size=sizes["patch_size"],
    )
    of_classifier = {
        name: row for name, row in huggingface_names.VIT.items() if name.startswith(("vit.", "cl"))
    }
    compare(model, config, arrays, {n: row for n, row in of_classifier.items() if ".layers." not in n})


def compare(model, config, arrays, table, depths=None):
    """Holds a model against one file; every array of it is compared."""
    image = jnp.asarray(arrays["input"].transpose(0, 2, 3, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    heads = heads_in({name: leaf.shape for name, leaf in flatten(shapes["params"]).items()})
    state = {name: array for name, array in below(arrays, "param/").items() if not counter(name)}
    params, statistics = split(from_timm(state, num_heads=heads, table=table), shapes)
    assert jax.tree.map(jnp.shape, {"params": params, **statistics}) == jax.tree.map(jnp.shape, shapes)
    train = config["mode"] == "train"

    @jax.jit
    def run(params, image):
        def value(params, image):
            variables = {"params": params, **statistics}
            (logits, out), moved = model.apply(variables, image, train=train, mutable=list(statistics))
            return jnp.sum(arrays["loss_vec"] * jnp.square(logits)), (out, moved)

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, image)

    with jax.default_matmul_precision("highest"):
        (loss, (out, moved)), (grads, grad_image) = run(params, image)

    ours = {"loss": loss, "logits": out["logits"], "act/vit.embeddings": out["with_posemb"]}
    ours |= {f"act/vit.encoder.layer.{i}": tokens for i, tokens in enumerate(out["tokens"])}
    ours |= {f"act/vit.encoder.patch_embed{i + 1}": x for i, x in enumerate(out.get("downsampled", ()))}
    after = {f"after/{name}": a for name, a in to_timm(join({}, moved), table=table).items()} if train else {}
    for key, found in (ours | after).items():
        if key in arrays:
            assert found.shape == arrays[key].shape, f"{key} is {found.shape}, not {arrays[key].shape}"
            error = np.abs(np.asarray(found) - arrays[key]).max() / np.abs(arrays[key]).max()
            assert error <= FORWARD, f"{key} is off by {error:.1e}"

    gradients = {f"grad/{name}": grad for name, grad in to_timm(grads, table=table).items()}
    gradients["grad_input"] = np.asarray(grad_image).transpose(0, 3, 1, 2)
    compare_gradients(gradients, {name: arrays[name] for name in arrays if name.startswith("grad")})

    given = {"input", "loss_vec", *(key for key in arrays if key.startswith("param/") or counter(key))}
    unchecked = arrays.keys() - given - ours.keys() - after.keys() - gradients.keys()
    assert not unchecked, f"not compared: {sorted(unchecked)}"


def compare_gradients(ours, references):
    """Compares each by its largest entry, or a hundredth of the median of those if it is smaller."""
    sizes = {name: np.abs(reference).max() for name, reference in references.items()}
    floor = 0.01 * np.median([size for name, size in sizes.items() if name != "grad_input"])
    assert ours.keys() == references.keys()
    for name, reference in references.items():
        assert ours[name].shape == reference.shape
        error = np.abs(ours[name] - reference).max() / max(sizes[name], floor)
        cancels = sizes[name] < EXACT_ZERO or name.endswith(".att_prob_clip")
        assert error <= (CANCELLING if cancels else GRADIENT), f"{name} is off by {error:.1e}"


def counter(name):
    """Whether PyTorch counts batches there; nothing else does."""
    return name.endswith(".num_batches_tracked")
