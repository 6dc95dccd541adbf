"""EfficientNet in both flavours against timm: inference, gradients, and a forward pass of training."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from vitjax import models
from vitjax.weights.timm_efficientnet_names import EFFICIENTNET
from vitjax.weights.timm_names import from_timm, to_timm
from vitjax.weights.variables import join, split

# Share of max(1, max|reference|). PyTorch's own float32 error is up to 6e-6 on logits.
FORWARD = 1e-5
# Share of the tensor's largest gradient.
GRADIENT = 1e-4


def model_of(config):
    """The model that a file's arguments of timm mean, without dropout."""
    kwargs = dict(config["kwargs"])
    name = re.fullmatch(r"(tf_)?(efficientnet_\w+)", kwargs.pop("variant"))
    assert name, config
    fields = {"width_mult": kwargs.pop("cm"), "depth_mult": kwargs.pop("dm"), "dropout": 0.0}
    fields["numerics"] = "tf" if kwargs.pop("tf") else "timm"
    model = models.create(name[2], num_classes=kwargs.pop("nc"), **fields)
    assert not kwargs, f"The check does not know timm's arguments {kwargs}."
    return model


@checks(lambda config: config.get("family") in ("efficientnet", "tf_efficientnet"))
def check_efficientnet(config, arrays):
    model = model_of(config)
    image = jnp.asarray(arrays["input"].transpose(0, 2, 3, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    state = {name: a for name, a in below(arrays, "param/").items() if "num_batches_tracked" not in name}
    params, statistics = split(from_timm(state, num_heads=1, table=EFFICIENTNET), shapes)
    assert jax.tree.map(jnp.shape, {"params": params, **statistics}) == jax.tree.map(jnp.shape, shapes)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == config["num_params"]

    @jax.jit
    def forward_and_gradient(params, image):
        def loss(params, image):
            logits, out = model.apply({"params": params, **statistics}, image)
            return jnp.sum(logits * arrays["cotangent"].astype(np.float32)), out

        (_, out), grads = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, image)
        trained = model.apply(
            {"params": params, **statistics}, image, train=True, mutable=["batch_stats"]
        )
        return out, grads, trained

    with jax.default_matmul_precision("highest"):
        out, (grads, grad_image), ((train_logits, _), moved) = forward_and_gradient(params, image)

    places = {"logits": out["logits"], "pre_logits": out["pre_logits"], "train_logits": train_logits}
    places |= {f"act/blocks.{s - 1}": chw(out[f"stage{s}"]) for s in range(1, 8)}
    places |= {"act/conv_stem_bn1": chw(out["stem"]), "act/bn2": chw(out["features"])}
    after = to_timm(join({}, moved), table=EFFICIENTNET)
    places |= {f"train_buffer/{name}": array for name, array in after.items()}
    gradients = {f"grad/{name}": grad for name, grad in to_timm(grads, table=EFFICIENTNET).items()}
    gradients["grad_input"] = np.asarray(grad_image).transpose(0, 3, 1, 2)
    for key, reference in arrays.items():
        if key == "cotangent" or key == "input" or key.startswith("param/") or key.endswith("_tracked"):
            continue
        if key in places:
            ours, allowed, floor = places[key], FORWARD, 1.0
        else:
            ours, allowed, floor = gradients[key], GRADIENT, 1e-6
        assert ours.shape == reference.shape, f"{key} is {ours.shape}, not {reference.shape}"
        error = np.abs(np.asarray(ours) - reference).max() / max(np.abs(reference).max(), floor)
        print(key, f"{error:.1e}")
        assert error <= allowed, f"{key} is off by {error:.1e}"
    unchecked = {f"grad/{name}" for name in below(gradients, "grad/")} - arrays.keys()
    assert not unchecked, f"no reference for {sorted(unchecked)}"


def chw(feature_map):
    """The files keep a map's first example only, `[1, C, H, W]`."""
    return np.asarray(feature_map)[:1].transpose(0, 3, 1, 2)
