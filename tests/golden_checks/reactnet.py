"""ReActNet and Bi-Real Net as released, both steps: forward, feature maps, gradients, batch statistics."""

import pathlib
import re
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from golden_checks import below, checks
from vitjax import models, weights
from vitjax.weights import reactnet_names
from vitjax.weights.stored import from_array
from vitjax.weights.tree import flatten
from vitjax.weights.variables import join, split

# Share of the tensor's largest number. PyTorch's own float32 error on these networks is up to 6e-6 on logits
# (the plain Bi-Real Net, whose numbers cancel; 1e-6 on all others), ours 1e-5 and 1.4e-6.
FORWARD = 5e-5
# PyTorch's own: 1e-5; ours 2e-5.
GRADIENT = 2e-4


@checks(lambda config: config.get("family") == "reactnet_a")
def check_mobilenet(config, arrays):
    root, *strides = config["strides"]
    model = models.create(
        "reactnet_a_release",
        root_width=config["widths"][0],
        root_stride=root,
        widths=tuple(config["widths"][1:]),
        strides=tuple(strides),
        **of_config(config),
    )
    compare(model, reactnet_names.FROM_MOBILENET, config, arrays, {r"feature\.0": "root"} | {
        rf"feature\.{i}": f"block{i}" for i in range(1, len(config["widths"]))
    })  # fmt: skip


@checks(lambda config: config.get("family") in ("react_birealnet", "birealnet"))
def check_resnet(config, arrays):
    react = config["family"] == "react_birealnet"
    model = models.create(
        f"{'react' if react else 'bireal'}_resnet18_release",
        units=tuple(config["layers"]),
        widths=tuple(config["widths"]),
        **of_config(config),
    )
    # Our maps are those after whole stages.
    last = {rf"layer{i}\.{units - 1}": f"block{i}" for i, units in enumerate(config["layers"], 1)}
    compare(model, reactnet_names.FROM_RESNET, config, arrays, {"maxpool": "root"} | last)


def of_config(config):
    """Fields that all networks have; Bi-Real Net knows one step only."""
    return {
        "num_classes": config["num_classes"],
        "precision": {1: "w32a1", 2: "binary"}[config.get("step", 2)],
    }


def compare(model, translate, config, arrays, maps):
    """Holds a model against one file: shapes, logits, feature maps, gradients, statistics after a step.

    `maps`: patterns of their names of modules and our names of intermediates.
    """
    image = jnp.asarray(arrays["input"].transpose(0, 2, 3, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    params, statistics = split(loaded(arrays, join(shapes["params"], shapes)), shapes)
    train = config["mode"] == "train"

    @jax.jit
    def run(params, image):
        def loss(params, image):
            variables = {"params": params, **statistics}
            (logits, out), moved = model.apply(variables, image, train=train, mutable=["batch_stats"])
            return jnp.sum(arrays["loss_vec"] * jnp.square(logits)), (out, moved)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, image)

    with jax.default_matmul_precision("highest"):
        (loss, (out, moved)), (grads, grad_image) = run(params, image)
    close("loss", loss, arrays["loss"], FORWARD)
    close("logits", out["logits"], arrays["logits"], FORWARD)
    for name, reference in below(arrays, "act/").items():
        ours = [out[map_] for pattern, map_ in maps.items() if re.fullmatch(pattern, name)]
        if ours:
            close(name, np.transpose(ours[0], (0, 3, 1, 2)), reference, FORWARD)
        else:
            assert re.fullmatch(r"layer\d+\.\d+", name), f"{name} is not compared"
    compare_gradients(translate, arrays, flatten(grads))
    close("the gradient of the input", np.transpose(grad_image, (0, 3, 1, 2)), arrays["grad_input"], GRADIENT)
    assert train == any(name.startswith("after/") for name in arrays)
    if train:
        after = {k: v for k, v in below(arrays, "after/").items() if not k.endswith("num_batches_tracked")}
        ours = in_our_names(translate, after)
        statistics = flatten(moved["batch_stats"])
        assert ours.keys() == statistics.keys()
        for name, reference in ours.items():
            close(name, statistics[name], reference, FORWARD)


def loaded(arrays, abstract):
    """The file's parameters and statistics, by the way of a file of weights with their names."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.npz"
        np.savez(path, allow_pickle=False, **below(arrays, "param/"))
        return weights.load(path, abstract).params


def in_our_names(translate, theirs, others=()):
    """Arrays by our names and in our layouts; `others` are in the file, too."""
    stored = {name: from_array(name, array) for name, array in {**dict(others), **theirs}.items()}
    moves, unknown = translate(stored, lambda name: 1)
    assert not set(unknown) & theirs.keys(), unknown
    return {
        target: part
        for move in moves
        if move.entry in theirs
        for target, part in zip(move.targets, move.into(theirs[move.entry]), strict=True)
    }


def compare_gradients(translate, arrays, grads):
    """Compares each gradient by the larger of its own largest entry and a hundredth of the usual one.

    A gradient that is nothing but rounding has no scale of its own.
    """
    references = in_our_names(translate, below(arrays, "grad/"), below(arrays, "param/"))
    assert references.keys() == grads.keys()
    usual = np.median([np.abs(reference).max() for reference in references.values()])
    for name, reference in references.items():
        close(f"the gradient of {name}", grads[name], reference, GRADIENT, 0.01 * usual)


def close(what, ours, reference, within, floor=0.0):
    """Compares one array by its largest entry."""
    ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
    assert ours.shape == reference.shape, f"{what} is {ours.shape}, not {reference.shape}"
    error = np.abs(ours - reference).max() / max(floor, np.abs(reference).max(), 1e-30)
    assert error <= within, f"{what} is off by {error:.1e}"
