"""ResNet, RegNet and BiT against timm: inference, gradients, and a forward pass of training."""

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from vitjax.models.bit import BiT
from vitjax.models.regnet import RegNet
from vitjax.models.resnet import ResNet
from vitjax.weights import timm_cnn_names
from vitjax.weights.timm_names import from_timm, to_timm
from vitjax.weights.variables import join, split

# Share of max(1, max|reference|). PyTorch's own float32 error is up to 6e-6 on logits; ours here, 2e-6.
FORWARD = 1e-5
# Share of the tensor's largest gradient. Seen here: at most 3e-6.
GRADIENT = 1e-4


@checks(lambda config: config.get("family") == "resnet")
def check_resnet(config, arrays):
    kwargs = dict(config["kwargs"])
    fields = {"units": kwargs.pop("layers"), "widths": kwargs.pop("channels")}
    bottleneck = "param/layer1.0.conv3.weight" in arrays
    model = ResNet(num_classes=kwargs.pop("num_classes"), bottleneck=bottleneck, **fields)
    assert not kwargs, f"The check does not know timm's arguments {kwargs}."
    maps = {f"layer{i + 1}": f"block{i + 1}" for i in range(len(fields["units"]))}
    compare(model, timm_cnn_names.RESNET, arrays, maps, config["num_params"])


@checks(lambda config: config.get("family") == "regnet")
def check_regnet(config, arrays):
    kwargs = dict(config["kwargs"])
    same = ("num_classes", "depth", "w0", "wa", "wm", "se_ratio")
    model = RegNet(group_width=kwargs.pop("group_size"), **{name: kwargs.pop(name) for name in same})
    assert not kwargs, f"The check does not know timm's arguments {kwargs}."
    maps = {f"s{i}": f"block{i}" for i in range(1, 5)}
    compare(model, timm_cnn_names.REGNET, arrays, maps, config["num_params"])


@checks(lambda config: config.get("family") == "resnetv2")
def check_bit(config, arrays):
    kwargs = dict(config["kwargs"])
    units = kwargs.pop("layers")
    widths = [channels // 4 for channels in kwargs.pop("channels")]
    model = BiT(kwargs.pop("num_classes"), units, widths, kwargs.pop("stem_chs"))
    assert not kwargs, f"The check does not know timm's arguments {kwargs}."
    maps = {f"stages.{i}": f"block{i + 1}" for i in range(len(units))} | {"norm": "encoded"}
    compare(model, timm_cnn_names.BIT, arrays, maps, config["num_params"])


def compare(model, table, arrays, maps, num_params):
    """Holds a model against one file: shapes, outputs, feature maps, gradients, one step of the statistics.

    `maps`: timm's names of modules and our names of intermediates.
    """
    image = jnp.asarray(arrays["input"].transpose(0, 2, 3, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    state = {name: a for name, a in below(arrays, "param/").items() if not name.endswith("_tracked")}
    params, statistics = split(from_timm(state, num_heads=1, table=table), shapes)
    assert jax.tree.map(jnp.shape, {"params": params, **statistics}) == jax.tree.map(jnp.shape, shapes)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == num_params

    @jax.jit
    def run(params, image):
        def product(params, image):
            logits, out = model.apply({"params": params, **statistics}, image)
            return jnp.sum(logits * arrays["cotangent"].astype(np.float32)), out

        (_, out), grads = jax.value_and_grad(product, argnums=(0, 1), has_aux=True)(params, image)
        trained = model.apply({"params": params, **statistics}, image, train=True, mutable=list(statistics))
        return out, grads, trained

    with jax.default_matmul_precision("highest"):
        out, (grads, grad_image), ((train_logits, _), moved) = run(params, image)

    ours = {"logits": out["logits"], "pre_logits": out["pre_logits"]}
    ours |= {f"act/{theirs}": chw(out[name]) for theirs, name in maps.items()}
    if statistics:
        ours["train_logits"] = train_logits
        ours |= {f"train_buffer/{name}": a for name, a in to_timm(join({}, moved), table=table).items()}
    gradients = {f"grad/{name}": grad for name, grad in to_timm(grads, table=table).items()}
    if "grad_input" in arrays:
        gradients["grad_input"] = np.asarray(grad_image).transpose(0, 3, 1, 2)

    for found, tolerance, floor in ((ours, FORWARD, 1), (gradients, GRADIENT, 1e-6)):
        for key, array in found.items():
            reference = arrays[key]
            assert array.shape == reference.shape, f"{key} is {array.shape}, not {reference.shape}"
            error = np.abs(np.asarray(array) - reference).max() / max(floor, np.abs(reference).max())
            assert error <= tolerance, f"{key} is off by {error:.1e}"
    given = {"input", "cotangent", *(k for k in arrays if k.startswith("param/") or k.endswith("_tracked"))}
    unchecked = arrays.keys() - given - ours.keys() - gradients.keys()
    assert not unchecked, f"not compared: {sorted(unchecked)}"


def chw(feature_map):
    """The files keep a map's first example only, `[1, C, H, W]`."""
    return np.asarray(feature_map)[:1].transpose(0, 3, 1, 2)
